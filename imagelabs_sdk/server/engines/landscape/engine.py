"""The landscape engine: its queue is arithmetic over a clock, its images are painted on demand."""

import io
import math
import threading
import time
from collections.abc import Callable

import attrs
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ....models import ImageRequest, State
from ....validation import invalid
from ..render import RenderStatus
from .painter import paint
from .scene import compose, dice

__all__ = ["LandscapeEngine", "LandscapeRender"]

_COMMENT = "A stand-in drawn by arithmetic from the request; no diffusion model was used."
_PREVIEW = 512  # pixels, the longer side of a preview at most
_COARSEST = 12  # pixels, the longer side of what a preview shows at first


def _seconds(_: object, field: "attrs.Attribute[float]", value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise invalid(field.name, value, "must be a number of seconds, 0 or more")


def _at_least_one(_: object, field: "attrs.Attribute[int]", value: int) -> None:
    if value < 1:
        raise invalid(field.name, value, "must be 1 or more")


@attrs.define
class LandscapeEngine:
    """Draws `workers` images at a time, as far as anybody can tell; the others queue.

    There is no thread behind it and nothing sleeps. How a drawing stands is arithmetic over
    the clock, and it is drawn when its bytes are asked for, in the thread that asks; no more
    than `workers` threads draw at once, for the largest images take half a gigabyte.

    Attributes:
        duration: Seconds for an image; 0: done at the first poll.
        workers: How many are drawn at once.
        clock: A monotonic clock, in seconds.
    """

    duration: float = attrs.field(default=4.0, validator=_seconds)
    workers: int = attrs.field(default=2, validator=_at_least_one)
    clock: Callable[[], float] = time.monotonic
    _free: list[float] = attrs.field(init=False, repr=False, eq=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False, eq=False)
    _desks: threading.Semaphore = attrs.field(init=False, repr=False, eq=False)

    @_free.default
    def _all_free(self) -> list[float]:
        return [-math.inf] * self.workers

    @_desks.default
    def _one_each(self) -> threading.Semaphore:
        return threading.Semaphore(self.workers)

    def start(self, request: ImageRequest) -> "LandscapeRender":
        """Give the request to the worker that is free first."""
        with self._lock:
            before = tuple(self._free)
            first = min(range(self.workers), key=before.__getitem__)
            begin = max(self.clock(), before[first])
            self._free[first] = begin + self.duration
        return LandscapeRender(request, begin, self.duration, before, self.clock, self._desks)


@attrs.frozen
class LandscapeRender:
    """One image of a `LandscapeEngine`.

    Attributes:
        request: What to draw.
        begin: When its worker turns to it, by `clock`.
        duration: Seconds from then until it is done.
        before: When each worker would have been free without it.
        clock: A monotonic clock, in seconds.
        desks: One is taken while the image is drawn.
    """

    request: ImageRequest
    begin: float
    duration: float
    before: tuple[float, ...]
    clock: Callable[[], float]
    desks: threading.Semaphore

    def standing(self) -> RenderStatus:
        """How it stands by the clock."""
        now = self.clock()
        if now < self.begin:
            return RenderStatus(State.QUEUED, f"Queue position {self._position(now)}", 0.0)
        if now >= self.begin + self.duration:
            return RenderStatus(State.DONE, fraction=1.0)
        fraction = (now - self.begin) / self.duration
        return RenderStatus(State.RUNNING, "Processing", fraction, has_preview=True)

    def preview(self) -> bytes | None:
        """The image, the sharper the more of it is done; `None` before and after."""
        standing = self.standing()
        if standing.state is not State.RUNNING or standing.fraction is None:
            return None
        return _png(_unfinished(self.request, standing.fraction))

    def image(self) -> bytes:
        """The image, drawn anew."""
        request = self.request
        notes = PngInfo()
        notes.add_text("Software", "imagelabs_sdk landscape engine")
        notes.add_text("Comment", _COMMENT)
        notes.add_text("Seed", f"{request.seed}")
        notes.add_text("Subseed", f"{request.subseed}")
        with self.desks:
            return _png(paint(compose(request), request.width, request.height), notes)

    def _position(self, now: float) -> int:
        """Its place in the queue, from 1: each worker takes up a drawing every `duration`."""
        waits = (math.ceil((free - now) / self.duration - 1e-9) - 1 for free in self.before)
        return 1 + sum(max(0, wait) for wait in waits)


def _png(image: Image.Image, notes: PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    # Grain does not compress: higher levels take longer and gain little.
    image.save(buffer, "PNG", compress_level=1, pnginfo=notes)
    return buffer.getvalue()


def _unfinished(request: ImageRequest, fraction: float) -> Image.Image:
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
