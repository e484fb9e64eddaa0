"""The conformance suite for engines: it passes a good one, and names what a bad one breaks."""

from collections.abc import Hashable, Sequence
from typing import Any

import attrs
import pytest
from PIL import Image

from imagelabs_sdk import ImageRequest
from imagelabs_sdk.server.encoding import encode
from imagelabs_sdk.server.engines.base import (
    Recovery,
    RenderedImage,
    RenderError,
    RenderJob,
    RenderMonitor,
)
from imagelabs_sdk.server.engines.conformance import INFO_KEYS, check_engine
from imagelabs_sdk.server.engines.landscape import LandscapeEngine

SMALL = ImageRequest("x-ray", width=32, height=16, seed=1, subseed=2)


@attrs.frozen
class Model:
    """An engine that breaks one promise, or none."""

    breaks: str = ""
    name: str = "model"
    recovery: Recovery = Recovery.REPEATABLE
    max_batch: int = 3
    batch_wait: float = 0.0
    workers: int = 1
    in_process: bool = True
    renders: list[int] = attrs.field(factory=list, eq=False)

    def check(self, request: ImageRequest) -> None:
        pass

    def batch_key(self, request: ImageRequest) -> Hashable:
        return request.seed if self.breaks == "key" else (request.width, request.height)

    def load(self, worker: int) -> "Model":
        return self

    def close(self) -> None:
        pass

    def render(
        self, batch: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        self.renders.append(len(batch))
        for job in batch:
            monitor.wants_preview(job.id)
            for fraction in (0.5, 0.2) if self.breaks == "backwards" else (0.2, 1.0):
                monitor.progress("x" if self.breaks == "stranger" else job.id, fraction)
        if self.breaks == "fails":
            return [RenderError("no such model")]
        outcomes = [self._one(job) for job in batch]
        return {"order": outcomes[::-1], "short": outcomes[:-1]}.get(self.breaks, outcomes)

    def _one(self, job: RenderJob) -> RenderedImage:
        request = job.request
        shade = len(self.renders) if self.breaks == "drifts" else 7
        size = (8, 8) if self.breaks == "size" else (request.width, request.height)
        info: dict[str, Any] = {**dict.fromkeys(INFO_KEYS), "seed": request.seed, "ignored": []}
        if self.breaks == "info":
            del info["steps"]
        if self.breaks == "ignores" and request.reference_image:
            info["ignored"] = ["reference_image"]
        if self.breaks == "prompt":
            info["model"] = request.prompt
        image = Image.new("L", size, shade)
        return RenderedImage(encode(image) if self.breaks != "pixels" else image, info)


@pytest.mark.parametrize("breaks", ["", "pixels"])
@pytest.mark.parametrize("recovery", list(Recovery))
def test_an_engine_that_keeps_its_promises_passes(breaks: str, recovery: Recovery) -> None:
    """With files and with pixels; in batches no larger than it allows."""
    model = Model(breaks, recovery=recovery)
    check_engine(model, SMALL)
    assert max(model.renders) == model.max_batch


def test_the_landscape_engine_passes() -> None:
    """Alone and in batches."""
    check_engine(LandscapeEngine(duration=0, max_batch=4), SMALL)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (Model("key"), "differ by seed share a batch"),
        (Model("backwards"), "does not go backwards"),
        (Model("stranger"), "jobs of the batch"),
        (Model("fails"), "no such model"),
        (Model("order"), "in their order"),
        (Model("short"), "one outcome for each job"),
        (Model("drifts"), "gives the same image"),
        (Model("size"), "the size that was asked for"),
        (Model("info"), "steps"),
        (Model("prompt"), "does not hold the prompt"),
        (Model("ignores"), "takes reference_image or refuses it"),
        (Model(max_batch=0), "at least one"),
        (Model(name=""), "a name"),
        (Model(batch_wait=-1.0), "no negative time"),
    ],
    ids=lambda value: value.breaks if isinstance(value, Model) else "",
)
def test_a_broken_promise_is_named(engine: Model, words: str) -> None:
    """So that its author finds it."""
    with pytest.raises(AssertionError, match=words):
        check_engine(engine, SMALL)
