"""Hold an engine to the promises of its contract, in the tests of whoever writes one."""

import io
import json
import pickle
import uuid
from collections.abc import Sequence
from typing import Any

import attrs
from PIL import Image

from ...errors import InvalidRequestError
from ...models import ImageRequest
from .base import Engine, EngineConfig, Recovery, RenderedImage, RenderError, RenderJob

__all__ = ["INFO_KEYS", "check_engine"]

INFO_KEYS = frozenset(
    [
        "engine",
        "model",
        "steps",
        "guidance",
        "seed",
        "subseed",
        "width",
        "height",
        "ignored",
        "seconds",
    ]
)
"""What `RenderedImage.info` must hold, at least."""

_MOST = 4  # jobs of the batch that is tried
_REFERENCE = (  # one black pixel
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNg"
    "YGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)


@attrs.define
class _Watch:
    """A monitor that takes notes."""

    cancelled: bool = False
    fractions: dict[str, list[float]] = attrs.Factory(dict)

    def progress(self, job_id: str, fraction: float, preview: object = None) -> None:
        self.fractions.setdefault(job_id, []).append(fraction)

    def wants_preview(self, job_id: str) -> bool:
        return True

    def is_cancelled(self, job_id: str) -> bool:
        return self.cancelled


def check_engine(config: EngineConfig, request: ImageRequest) -> None:
    """Check that an engine does what the workers of `imagelabs serve` rely on.

    Args:
        config: The engine's settings, as the server would have them.
        request: One that it can render, with both seeds set; small, for it is rendered about ten
            times.

    Raises:
        AssertionError: A promise is broken; its words say which.
    """
    _check_config(config, request)
    engine = config.load(0)
    try:
        checks = (_check_one, _check_batch, _check_repeat, _check_cancelled, _check_needed)
        for check in checks:
            check(config, engine, request)
    finally:
        engine.close()


def _check_config(config: EngineConfig, request: ImageRequest) -> None:
    _promise(bool(config.name), "it has a name")
    _promise(isinstance(config.recovery, Recovery), "it says what a crash leaves of a job")
    _promise(config.max_batch >= 1 and config.workers >= 1, "it renders at least one at a time")
    _promise(config.batch_wait >= 0.0, "it waits no negative time")
    _promise(pickle.loads(pickle.dumps(config)) == config, "its settings pickle")  # noqa: S301
    config.check(request)
    key = config.batch_key(request)
    other = attrs.evolve(request, seed=(request.seed or 0) + 1)
    _promise(hash(key) == hash(config.batch_key(request)), "equal requests share a batch")
    _promise(key == config.batch_key(other), "requests that differ by seed share a batch")


def _check_one(config: EngineConfig, engine: Engine, request: ImageRequest) -> None:
    watch, job = _Watch(), _job(request)
    (outcome,) = _render(engine, [job], watch)
    with _opened(outcome) as image:
        size = (request.width, request.height)
        _promise(image.size == size, f"the image has the size that was asked for, {size}")
    missing = INFO_KEYS - outcome.info.keys()
    _promise(not missing, f"info says how it was made; without {sorted(missing)}")
    text = json.dumps(dict(outcome.info))
    _promise(request.prompt not in text, "info does not hold the prompt")
    _promise(outcome.info["seed"] == request.seed, "info has the seed")
    _promise(set(watch.fractions) <= {job.id}, "progress is of jobs of the batch")
    fractions = watch.fractions.get(job.id, [])
    _promise(all(0.0 <= each <= 1.0 for each in fractions), "progress is from 0.0 to 1.0")
    _promise(fractions == sorted(fractions), "progress does not go backwards")


def _check_batch(config: EngineConfig, engine: Engine, request: ImageRequest) -> None:
    count = min(config.max_batch, _MOST)
    seeds = range(request.seed or 0, (request.seed or 0) + count)
    outcomes = _render(engine, [_job(attrs.evolve(request, seed=each)) for each in seeds], _Watch())
    found = [outcome.info["seed"] for outcome in outcomes]
    _promise(found == list(seeds), "a batch has an outcome a job, in their order")


def _check_repeat(config: EngineConfig, engine: Engine, request: ImageRequest) -> None:
    """A job whose worker died comes again, with the same handle and a higher attempt."""
    if config.recovery is Recovery.NEITHER:
        return
    job = _job(request)
    (first,) = _render(engine, [job], _Watch())
    (second,) = _render(engine, [attrs.evolve(job, attempt=2)], _Watch())
    with _opened(first) as one, _opened(second) as other:
        _promise(one.tobytes() == other.tobytes(), "a second attempt gives the same image")


def _check_cancelled(config: EngineConfig, engine: Engine, request: ImageRequest) -> None:
    outcomes = engine.render([_job(request)], _Watch(cancelled=True))
    _promise(len(outcomes) == 1, "a cancelled job has an outcome, whichever")
    _render(engine, [_job(request)], _Watch())


def _check_needed(config: EngineConfig, engine: Engine, request: ImageRequest) -> None:
    """What makes another image when it is left out is not left out."""
    needed: tuple[tuple[str, Any], ...] = (("tiling", True), ("reference_image", _REFERENCE))
    for field, value in needed:
        asking = attrs.evolve(request, **{field: value})
        try:
            config.check(asking)
        except InvalidRequestError:
            continue
        (outcome,) = _render(engine, [_job(asking)], _Watch())
        _promise(field not in outcome.info["ignored"], f"it takes {field} or refuses it")


def _render(engine: Engine, jobs: Sequence[RenderJob], watch: _Watch) -> list[RenderedImage]:
    outcomes = engine.render(jobs, watch)
    _promise(len(outcomes) == len(jobs), "there is one outcome for each job")
    images = []
    for outcome in outcomes:
        if isinstance(outcome, RenderError):
            raise AssertionError(f"it renders the request, but: {outcome.message}")
        images.append(outcome)
    return images


def _opened(outcome: RenderedImage) -> Image.Image:
    if not isinstance(outcome.image, bytes):
        return outcome.image.copy()
    image = Image.open(io.BytesIO(outcome.image))
    _promise(image.format in ("PNG", "JPEG", "WEBP"), "a file is a PNG, a JPEG or a WebP")
    image.load()
    return image


def _job(request: ImageRequest) -> RenderJob:
    handle = str(uuid.uuid4())
    return RenderJob(handle.replace("-", ""), request, handle)


def _promise(kept: bool, words: str) -> None:
    if not kept:
        raise AssertionError(f"an engine promises: {words}")
