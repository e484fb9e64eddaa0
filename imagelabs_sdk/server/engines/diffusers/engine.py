"""A diffusers pipeline: batches in, images out, in one thread."""

import inspect
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import diffusers
import torch
import transformers
from PIL import Image, ImageOps

from ....models import ImageRequest
from ..base import RenderedImage, RenderError, RenderJob, RenderMonitor
from ..references import decode_reference
from ..tuning import Tuning, ignored_fields
from .latents import LatentPreview, initial_noise, wrapping
from .models import ModelCard

__all__ = ["DiffusersEngine", "load_engine"]

log = logging.getLogger(__name__)

_SMALLEST = 64  # pixels; models fail or draw nothing below
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_USED = frozenset({"steps", "guidance", "subseed_strength", "negative_prompt"}) | frozenset(
    {"tiling", "reference_image", "reference_strength"}
)


class _CancelledError(Exception):
    """Every job of the batch is cancelled. Thrown through the pipeline from its callback."""


def load_engine(
    card: ModelCard,
    *,
    model: str,
    device: str,
    dtype: str,
    tuning: Callable[[ImageRequest], Tuning],
    worker: int,
) -> "DiffusersEngine":
    """Load a model from this machine: safetensors only, no code of the model's, no request.

    Args:
        card: Where it is and what it is.
        model: Its name in `info`.
        device: ``"auto"`` or a device of torch.
        dtype: ``"auto"`` or a type of torch.
        tuning: Steps and guidance for a request.
        worker: Chooses the GPU when there are several.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for library in (diffusers, transformers):  # a long prompt would be quoted in a warning
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    place = _device(device, worker)
    started = time.monotonic()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        card.folder,
        torch_dtype=_dtype(dtype, place, card),
        variant=_variant(card.folder),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    if card.defaults.trailing:
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, timestep_spacing="trailing"
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(place)
    if place.type == "cuda":  # pragma: no cover - with a GPU only
        for part in ("unet", "vae"):
            if getattr(pipeline, part, None) is not None:
                getattr(pipeline, part).to(memory_format=torch.channels_last)
    took = time.monotonic() - started
    log.info("%s is on %s after %.1f s, %s", model, place, took, _memory(pipeline, place))
    return DiffusersEngine(pipeline, model, tuning)


def _device(device: str, worker: int) -> torch.device:
    if device == "auto":
        there = ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())
        device = next((name for name, is_there in there if is_there), "cpu")
    if device == "cuda":  # pragma: no cover - with a GPU only
        device = f"cuda:{worker % max(1, torch.cuda.device_count())}"
    return torch.device(device)


def _dtype(dtype: str, device: torch.device, card: ModelCard) -> torch.dtype:
    """Half precision on a GPU: transformers need the range of bfloat16, UNets do not."""
    if dtype == "auto":
        half = "float16" if card.has_convolutions or device.type == "mps" else "bfloat16"
        dtype = "float32" if device.type == "cpu" else half
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def _variant(folder: str) -> str | None:
    halves = any(Path(folder).glob("*/*.fp16.*safetensors"))
    return "fp16" if halves else None


def _memory(pipeline: Any, device: torch.device) -> str:
    """Return in words how much memory the model takes."""
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    count = sum(parameter.nbytes for part in modules for parameter in part.parameters())
    words = f"{count / 2**30:.2f} GiB of weights"
    if device.type == "cuda":  # pragma: no cover - with a GPU only
        words += f", {torch.cuda.memory_allocated(device) / 2**30:.2f} GiB allocated"
    return words


@attrs.define
class DiffusersEngine:
    """Renders with one pipeline. Not for several threads: a pipeline keeps state while it runs.

    Attributes:
        pipeline: The loaded pipeline.
        model: Its name in `info`.
        tuning: Steps and guidance for a request.
    """

    pipeline: Any
    model: str
    tuning: Callable[[ImageRequest], Tuning]
    _fitting: dict[tuple[int, int], int] = attrs.field(factory=dict, init=False)
    _image_pipeline: Any = attrs.field(default=None, init=False)
    _preview: LatentPreview | None = attrs.field(init=False)

    @_preview.default
    def _fit_preview(self) -> LatentPreview | None:
        vae = getattr(self.pipeline, "vae", None)
        known = isinstance(vae, diffusers.AutoencoderKL | diffusers.AutoencoderTiny)
        return LatentPreview(vae) if known else None

    def render(
        self, batch: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        """Render the batch in as few forward passes as fit into memory; see `Engine.render`."""
        outcomes: list[RenderedImage | RenderError] = []
        waiting = list(batch)
        while waiting:
            size = self._size(waiting[0].request)
            count = min(len(waiting), self._fitting.get(size, len(waiting)))
            try:
                outcomes += self._forward(waiting[:count], monitor)
            except (torch.OutOfMemoryError, RuntimeError) as exc:
                if not _is_out_of_memory(exc):
                    raise
                if count > 1:
                    self._fitting[size] = count // 2
                else:
                    outcomes.append(RenderError(f"there is not enough memory for {size}"))
                    waiting = waiting[1:]
                _free_memory()
                continue
            waiting = waiting[count:]
        return outcomes

    def close(self) -> None:
        """Let go of the model."""
        self.pipeline = self._image_pipeline = None
        _free_memory()

    # One forward pass -------------------------------------------------------------------------

    def _forward(
        self, jobs: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        started = time.monotonic()
        request = jobs[0].request
        try:
            references = [_reference(job.request, self._size(request)) for job in jobs]
        except ValueError as exc:
            return self._one_by_one(jobs, monitor, exc)
        pipeline = self._pipeline_for(request)
        arguments = self._arguments(pipeline, jobs, references)
        if "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters:
            arguments["callback_on_step_end"] = _Steps(jobs, monitor, self._preview)
        for job in jobs:  # pipelines without that callback report no more than this
            monitor.progress(job.id, 0.0)
        wrapped = wrapping([pipeline.unet, pipeline.vae]) if request.tiling else nullcontext()
        try:
            with torch.inference_mode(), wrapped:
                output = pipeline(**arguments)
        except _CancelledError:
            return [RenderError("cancelled")] * len(jobs)
        blank = getattr(output, "nsfw_content_detected", None) or [False] * len(jobs)
        took = time.monotonic() - started
        return [
            RenderError("the model's own filter has blanked the image")
            if hidden
            else self._finished(job, image, len(jobs), took)
            for job, image, hidden in zip(jobs, output.images, blank, strict=True)
        ]

    def _one_by_one(
        self, jobs: Sequence[RenderJob], monitor: RenderMonitor, exc: ValueError
    ) -> Sequence[RenderedImage | RenderError]:
        """A damaged reference image fails its own job alone."""
        if len(jobs) == 1:
            return [RenderError(str(exc))]
        return [outcome for job in jobs for outcome in self._forward([job], monitor)]

    def _pipeline_for(self, request: ImageRequest) -> Any:
        if not request.reference_image:
            return self.pipeline
        if self._image_pipeline is None:
            image = diffusers.AutoPipelineForImage2Image.from_pipe(self.pipeline)
            image.set_progress_bar_config(disable=True)
            self._image_pipeline = image
        return self._image_pipeline

    def _arguments(
        self, pipeline: Any, jobs: Sequence[RenderJob], references: Sequence[Image.Image | None]
    ) -> dict[str, Any]:
        request = jobs[0].request
        tuning, (width, height) = self.tuning(request), self._size(request)
        known = inspect.signature(pipeline.__call__).parameters
        arguments: dict[str, Any] = {
            "prompt": [job.request.prompt for job in jobs],
            "width": width,
            "height": height,
            "num_inference_steps": tuning.steps,
            "guidance_scale": tuning.guidance,
            "generator": [torch.Generator().manual_seed(job.request.seed or 0) for job in jobs],
        }
        if self._takes_negative(known, tuning):
            arguments["negative_prompt"] = [job.request.negative_prompt for job in jobs]
        if request.reference_image:
            strength = request.reference_strength / 100
            arguments["image"] = list(references)
            arguments["strength"] = strength
            steps = tuning.steps or known["num_inference_steps"].default
            arguments["num_inference_steps"] = max(steps, math.ceil(1 / strength))
        elif any(self.tuning(job.request).subseed_strength for job in jobs):
            arguments["latents"] = self._noise(jobs, width, height)
        return {
            name: value for name, value in arguments.items() if value is not None and name in known
        }

    def _takes_negative(self, known: Any, tuning: Tuning) -> bool:
        """Return True if a negative prompt has an effect: it needs classifier-free guidance."""
        if "negative_prompt" not in known or "true_cfg_scale" in known:
            return False
        guidance = tuning.guidance
        if guidance is None:
            guidance = known["guidance_scale"].default if "guidance_scale" in known else 0.0
        return bool(guidance > 1.0)

    def _noise(self, jobs: Sequence[RenderJob], width: int, height: int) -> torch.Tensor:
        unet, factor = self.pipeline.unet, self.pipeline.vae_scale_factor
        shape = (1, unet.config.in_channels, height // factor, width // factor)
        noises = []
        for job in jobs:
            request = job.request
            strength = self.tuning(request).subseed_strength
            noises.append(initial_noise(shape, request.seed or 0, request.subseed or 0, strength))
        return torch.cat(noises).to(unet.device, unet.dtype)

    def _size(self, request: ImageRequest) -> tuple[int, int]:
        """Return the next larger size that the model renders."""
        patch = 1 if getattr(self.pipeline, "unet", None) is not None else 2
        multiple = math.lcm(8, patch * getattr(self.pipeline, "vae_scale_factor", 8))
        width, height = (
            max(_SMALLEST, math.ceil(side / multiple) * multiple)
            for side in (request.width, request.height)
        )
        return width, height

    # What is said about the image ---------------------------------------------------------------

    def _finished(
        self, job: RenderJob, image: Image.Image, batch: int, took: float
    ) -> RenderedImage:
        request = job.request
        if not request.tiling:  # an image that wraps must keep its edges
            image = image.crop((0, 0, request.width, request.height))
        return RenderedImage(image, self._info(job, image.size, batch, took))

    def _info(
        self, job: RenderJob, size: tuple[int, int], batch: int, took: float
    ) -> dict[str, Any]:
        request = job.request
        tuning = self.tuning(request)
        known = inspect.signature(self.pipeline.__call__).parameters
        used = _USED if self._takes_negative(known, tuning) else _USED - {"negative_prompt"}
        if request.reference_image:
            used = used - {"subseed_strength"}
        info: dict[str, Any] = {
            "engine": "diffusers",
            "model": self.model,
            "steps": tuning.steps,
            "guidance": tuning.guidance,
            "seed": request.seed,
            "subseed": request.subseed if tuning.subseed_strength else None,
            "width": size[0],
            "height": size[1],
            "ignored": ignored_fields(request, used),
            "batch": batch,
            "seconds": round(took, 3),
        }
        if tuning.subseed_strength:
            info["subseed_strength"] = tuning.subseed_strength
        if request.reference_image:
            info["reference_strength"] = request.reference_strength
        return info


class _Steps:
    """Called by the pipeline after each step: reports, shows, and stops."""

    def __init__(
        self, jobs: Sequence[RenderJob], monitor: RenderMonitor, preview: LatentPreview | None
    ) -> None:
        self._jobs, self._monitor, self._preview = jobs, monitor, preview

    def __call__(
        self, pipeline: Any, step: int, timestep: Any, kept: dict[str, Any]
    ) -> dict[str, Any]:
        if all(self._monitor.is_cancelled(job.id) for job in self._jobs):
            raise _CancelledError
        steps = getattr(pipeline, "num_timesteps", None) or step + 1
        fraction = min(1.0, (step + 1) / steps)
        for job, latents in zip(self._jobs, self._latents(kept), strict=True):
            self._monitor.progress(job.id, fraction, self._shown(job, latents))
        return {}  # a pipeline asks it for the tensors that it changes

    def _latents(self, kept: dict[str, Any]) -> Iterator[Any]:
        """Yield the latents of each job; `None` where they are packed, as those of Flux."""
        latents = kept.get("latents")
        whole = latents is not None and latents.ndim == 4 and len(latents) == len(self._jobs)
        for index in range(len(self._jobs)):
            yield latents[index] if latents is not None and whole else None

    def _shown(self, job: RenderJob, latents: Any) -> Image.Image | None:
        if latents is None or self._preview is None or not self._monitor.wants_preview(job.id):
            return None
        return self._preview.image(latents)


def _reference(request: ImageRequest, size: tuple[int, int]) -> Image.Image | None:
    if not request.reference_image:
        return None
    return ImageOps.fit(decode_reference(request.reference_image), size)


def _is_out_of_memory(exc: BaseException) -> bool:
    words = str(exc).lower()
    return isinstance(exc, torch.OutOfMemoryError) or any(text in words for text in _NO_MEMORY)


def _free_memory() -> None:
    if torch.cuda.is_available():  # pragma: no cover - with a GPU only
        torch.cuda.empty_cache()
