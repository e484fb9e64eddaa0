"""Engines that misbehave, for workers that are processes: they must be importable."""

import os
import signal
import threading
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar

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


class _Deadly:
    """An image that kills who encodes it."""

    info: ClassVar[dict[str, str]] = {}

    def save(self, *_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@attrs.frozen
class _Late:
    """An image that cannot be encoded before a file is there."""

    until: Path
    info: ClassVar[dict[str, str]] = {}

    def save(self, buffer: BinaryIO, *_: object, **__: object) -> None:
        while not self.until.exists():
            time.sleep(0.01)
        buffer.write(b"\x89PNG")
        self.until.with_name("encoded").touch()


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
        word, first = job.request.prompt.split()[0], job.attempt == 1
        self._break(word, first)
        image = Image.new("RGB", (job.request.width, job.request.height))
        if word == "late":
            while not monitor.wants_preview(job.id):
                time.sleep(0.01)
            monitor.progress(job.id, 0.5, _Late(self.folder / "go on"))  # type: ignore[arg-type]
        if word == "slow":
            monitor.progress(job.id, 0.5)
        if word == "long":
            self._until_cancelled(job, monitor, image)
        info = {"attempt": job.attempt}
        outcomes: dict[str, RenderedImage | RenderError] = {
            "fail": RenderError("no such model"),
            "file": RenderedImage(b"\xff\xd8\xff a JPEG", {}),
            "odd": RenderedImage(b"\xff\xd8\xff\xe1", {}),
            "junk": RenderedImage(b"<html>", {}),
            "huge": RenderedImage(b"\xff\xd8\xff" + bytes(2**24), info),
            "die-encoding": RenderedImage(_Deadly() if first else image, info),  # type: ignore[arg-type]
        }
        return outcomes.get(word, RenderedImage(image, info))

    def _break(self, word: str, first: bool) -> None:
        if word == "die" or (word == "die-once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "segfault":
            os.abort()
        if word == "hang" and first:
            threading.Event().wait()
        if word == "lose" and first:
            raise BackendLostError("http://back.end: refused")
        if word == "raise":
            raise ValueError("broken")

    def _until_cancelled(self, job: RenderJob, monitor: RenderMonitor, image: Image.Image) -> None:
        fraction = 0.0
        while not monitor.is_cancelled(job.id) and not (self.folder / "go on").exists():
            fraction = min(1.0, fraction + 0.01)
            monitor.progress(job.id, fraction, image if monitor.wants_preview(job.id) else None)
            time.sleep(0.02)
        (self.folder / "ended").touch()
