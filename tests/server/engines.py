"""Engines that misbehave, for workers that are processes: they must be importable."""

import os
import signal
import threading
import time
from collections.abc import Hashable, Sequence
from pathlib import Path

import attrs
from PIL import Image

from imagelabs_sdk import ImageRequest
from imagelabs_sdk.server.engines.base import (
    BackendLostError,
    Recovery,
    RenderedImage,
    RenderError,
    RenderJob,
    RenderMonitor,
)


@attrs.frozen
class Scripted:
    """Does what the first word of the prompt says.

    Attributes:
        folder: Each render of a job leaves a line in the file ``renders``.
    """

    folder: Path
    recovery: Recovery = Recovery.REPEATABLE
    max_batch: int = 1
    batch_wait: float = 0.0
    workers: int = 1
    in_process: bool = False
    load_fails: bool = False
    name: str = "scripted"

    def check(self, request: ImageRequest) -> None:
        pass

    def batch_key(self, request: ImageRequest) -> Hashable:
        return None

    def load(self, worker: int) -> "Scripted":
        with (self.folder / "loads").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.load_fails:
            raise ImportError("no such extra")
        return self

    def render(
        self, batch: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        with (self.folder / "renders").open("a") as file:
            file.writelines(f"{job.id} {job.attempt} {len(batch)} {job.handle}\n" for job in batch)
        outcomes = [self._one(job, monitor) for job in batch]
        return outcomes[: 0 if batch[0].request.prompt == "short" else None]

    def close(self) -> None:
        (self.folder / "closed").touch()

    def _one(self, job: RenderJob, monitor: RenderMonitor) -> RenderedImage | RenderError:
        word = job.request.prompt.split()[0]
        image = Image.new("RGB", (job.request.width, job.request.height))
        if word == "die" or (word == "die-once" and job.attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "segfault":
            os.abort()
        if word == "hang" and job.attempt == 1:
            threading.Event().wait()
        if word == "lose" and job.attempt == 1:
            raise BackendLostError("http://back.end: refused")
        if word == "raise":
            raise ValueError("broken")
        if word == "fail":
            return RenderError("no such model")
        if word == "file":
            return RenderedImage(b"\xff\xd8\xff a JPEG", {})
        if word == "odd":
            return RenderedImage(b"\xff\xd8\xff\xe1", {})
        if word == "junk":
            return RenderedImage(b"<html>", {})
        if word == "long":
            self._until_cancelled(job, monitor, image)
        return RenderedImage(image, {"attempt": job.attempt})

    def _until_cancelled(self, job: RenderJob, monitor: RenderMonitor, image: Image.Image) -> None:
        fraction = 0.0
        while not monitor.is_cancelled(job.id) and not (self.folder / "go on").exists():
            fraction = min(1.0, fraction + 0.01)
            monitor.progress(job.id, fraction, image if monitor.wants_preview(job.id) else None)
            time.sleep(0.02)
        (self.folder / "ended").touch()
