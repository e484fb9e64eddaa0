"""The landscape engine in a worker: one request's image, finished or not, and how it was made."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from PIL import Image

from ....models import ImageRequest
from ....provenance import SourceType
from ..base import RenderedImage, RenderError, RenderJob, RenderMonitor
from ..tuning import ignored_fields
from .painter import paint
from .scene import TAKES, compose, dice

__all__ = ["LandscapeRenderer", "finished", "info", "unfinished"]

_COMMENT = "A stand-in drawn by arithmetic from the request; no diffusion model was used."
_STEPS = 20  # reports of progress in the time of a batch
_PREVIEW = 512  # pixels, the longer side of a preview at most
_COARSEST = 12  # pixels, the longer side of what a preview shows at first


@attrs.frozen
class LandscapeRenderer:
    """The engine as a worker has it.

    Attributes:
        duration: Seconds for a batch.
        sleep: Waits so many seconds.
    """

    duration: float
    sleep: Callable[[float], None] = time.sleep

    def render(
        self, batch: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        """Paint, and let the rest of the time pass; a batch that nobody wants ends early."""
        begin = time.monotonic()
        images = [finished(job.request) for job in batch]
        for step in range(1, _STEPS + 1):
            if all(monitor.is_cancelled(job.id) for job in batch):
                return [RenderError("cancelled")] * len(batch)
            for job in batch:
                self._report(job, step / (_STEPS + 1), monitor)
            self.sleep(max(0.0, begin + self.duration * step / _STEPS - time.monotonic()))
        seconds = round(time.monotonic() - begin, 3)
        return [
            RenderedImage(image, info(job.request, seconds), SourceType.ALGORITHMIC)
            for job, image in zip(batch, images, strict=True)
        ]

    def close(self) -> None:
        """Release nothing: there is no model."""

    def _report(self, job: RenderJob, fraction: float, monitor: RenderMonitor) -> None:
        wanted = self.duration > 0 and monitor.wants_preview(job.id)
        preview = unfinished(job.request, fraction) if wanted else None
        monitor.progress(job.id, fraction, preview)


def finished(request: ImageRequest) -> Image.Image:
    """Paint the image; its texts say what it is, and not what was asked for."""
    image = paint(compose(request), request.width, request.height)
    image.info.update(
        Software="imagelabs_sdk landscape engine",
        Comment=_COMMENT,
        Seed=f"{request.seed}",
        Subseed=f"{request.subseed}",
    )
    return image


def info(request: ImageRequest, seconds: float) -> dict[str, Any]:
    """Return how the image was made."""
    return {
        "engine": "landscape",
        "model": None,
        "steps": None,
        "guidance": None,
        "seed": request.seed,
        "subseed": request.subseed,
        "width": request.width,
        "height": request.height,
        "ignored": ignored_fields(request, TAKES),
        "seconds": seconds,
    }


def unfinished(request: ImageRequest, fraction: float) -> Image.Image:
    """Coarse and noisy at 0.0, almost the image at 1.0; smaller than it."""
    longer = max(request.width, request.height)
    size = _scaled(request, min(1.0, _PREVIEW / longer))
    sharp = min(longer, round(_COARSEST * (_PREVIEW / _COARSEST) ** fraction))
    image = paint(compose(request), *_scaled(request, sharp / longer))
    image = image.resize(size, Image.Resampling.BICUBIC)
    grid = max(1, size[0] // 6), max(1, size[1] // 6)
    noise = dice("noise", request.seed, round(fraction, 3)).randbytes(3 * grid[0] * grid[1])
    dots = Image.frombytes("RGB", grid, noise).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(image, dots, 0.7 * (1.0 - fraction) ** 3)


def _scaled(request: ImageRequest, factor: float) -> tuple[int, int]:
    return max(1, round(request.width * factor)), max(1, round(request.height * factor))
