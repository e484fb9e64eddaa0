"""One worker: loads an engine, renders batches, encodes, and talks to the front over a pipe.

The same function runs as a process (models) or as a thread of the front (engines that only wait
for another service). Messages are tuples of plain values, the first of which is their kind:

- to the worker: ``("render", jobs)``, ``("cancel", task_id)``, ``("stop",)``;
- from it: ``("ready",)`` when it can take a batch, ``("lost",)`` when it cannot load or its back
  end is gone,
  ``("progress", task_id, fraction, preview)``, ``("finished", task_id, data, media_type, info)``,
  ``("failed", task_id, message)``.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from ..provenance import with_provenance
from .encoding import encode, media_type_of
from .engines.base import (
    BackendLostError,
    Engine,
    EngineConfig,
    RenderedImage,
    RenderError,
    RenderJob,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Worker", "start_process", "start_thread"]

log = logging.getLogger(__name__)

_ENCODERS = 8  # threads; Pillow encodes without holding the interpreter
_NICENESS = 5  # of worker processes, relative to the front
_PREVIEW_INTERVAL = 0.5  # seconds between previews of one job
_PROGRESS_INTERVAL = 0.1  # seconds between reports of progress without a preview


class Worker(Protocol):
    """A started worker, as the front sees it."""

    @property
    def connection(self) -> Connection:
        """The front's end of its pipe."""
        ...  # pragma: no cover - a Protocol has no body

    def kill(self) -> None:
        """End it at once where that is possible; a thread goes on until its engine returns."""
        ...  # pragma: no cover - a Protocol has no body

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        ...  # pragma: no cover - a Protocol has no body


@attrs.frozen
class _ProcessWorker:
    connection: Connection
    _process: Any

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout: float) -> None:
        self._process.join(timeout)


@attrs.frozen
class _ThreadWorker:
    connection: Connection
    _thread: threading.Thread

    def kill(self) -> None:
        """A thread cannot be killed: closing its pipe cancels what it renders."""

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)


def start_process(config: EngineConfig, index: int, *, embed_prompts: bool = False) -> Worker:
    """Start a worker in a process of its own; it ends when its pipe does."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(
        target=_process_main,
        args=(there, config, index, embed_prompts),
        name=f"imagelabs-worker-{index}",
        daemon=True,
    )
    with _signals_blocked():  # inherited: Ctrl-C must not reach it before it ignores Ctrl-C
        process.start()
    there.close()
    return _ProcessWorker(here, process)


def start_thread(config: EngineConfig, index: int, *, embed_prompts: bool = False) -> Worker:
    """Start a worker in a thread of this process."""
    here, there = multiprocessing.Pipe()
    thread = threading.Thread(
        target=_run,
        args=(there, config, index, embed_prompts),
        name=f"imagelabs-worker-{index}",
        daemon=True,
    )
    thread.start()
    return _ThreadWorker(here, thread)


@contextlib.contextmanager
def _signals_blocked() -> Any:
    """Block Ctrl-C and friends in this thread, and so in the processes that it starts."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - by the system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_ENDING_SIGNALS = {signal.SIGINT, signal.SIGTERM} | (
    {signal.SIGHUP} if hasattr(signal, "SIGHUP") else set()
)


def _process_main(
    connection: Connection, config: EngineConfig, index: int, embed_prompts: bool
) -> None:
    """A terminal or a service manager signals the whole group: only the front shall end itself."""
    if hasattr(os, "nice"):  # pragma: no branch - by the system
        os.nice(_NICENESS)  # whatever an engine computes, the front must stay quick to answer
    for each in _ENDING_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch - by the system
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)
    _run(connection, config, index, embed_prompts, on_broken=lambda: os._exit(1))


def _run(
    connection: Connection,
    config: EngineConfig,
    index: int,
    embed_prompts: bool,
    on_broken: Any = lambda: None,
) -> None:
    mailbox = _Mailbox(connection, on_broken)
    try:
        engine = config.load(index)
    except Exception:
        log.exception("the engine cannot be loaded")
        mailbox.send("lost")
        return
    try:
        with ThreadPoolExecutor(_ENCODERS, thread_name_prefix="imagelabs-encoder") as encoders:
            for batch in mailbox.batches():
                _render(engine, batch, mailbox, encoders, embed_prompts)
    except BackendLostError as exc:  # ends like a death: the jobs go back, and it starts again
        log.warning("the back end is gone: %s", exc)
        mailbox.send("lost")
    finally:
        engine.close()
        mailbox.close()


class _Mailbox:
    """The worker's end of the pipe. A thread reads it, so that it notices its end at once."""

    def __init__(self, connection: Connection, on_broken: Any) -> None:
        self._connection, self._on_broken = connection, on_broken
        self._batches: queue.SimpleQueue[Sequence[RenderJob] | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._broken = False
        self._sending = threading.Lock()
        threading.Thread(target=self._read, name="imagelabs-mailbox", daemon=True).start()

    def batches(self) -> Any:
        """Yield batches as they come, until the front says stop or is gone."""
        while True:
            self.send("ready")
            batch = self._batches.get()
            if batch is None:
                return
            yield batch

    def send(self, *message: Any) -> None:
        """Send a message; a front that is gone needs none."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(message)

    def is_cancelled(self, task_id: str) -> bool:
        """Return True if nobody wants the job any more."""
        return self._broken or task_id in self._cancelled

    def forget(self, batch: Sequence[RenderJob]) -> None:
        """Forget which jobs of a finished batch were cancelled."""
        self._cancelled.difference_update(job.id for job in batch)

    def close(self) -> None:
        """Close the pipe."""
        with self._sending:
            self._connection.close()

    def _read(self) -> None:
        try:
            while (message := self._connection.recv())[0] != "stop":
                if message[0] == "render":
                    self._batches.put(message[1])
                else:
                    self._cancelled.add(message[1])
        except (OSError, EOFError):
            self._broken = True
            self._on_broken()
        self._batches.put(None)


def _render(
    engine: Engine,
    batch: Sequence[RenderJob],
    mailbox: _Mailbox,
    encoders: ThreadPoolExecutor,
    embed_prompts: bool,
) -> None:
    monitor = _Monitor(mailbox, encoders)
    try:
        outcomes = engine.render(batch, monitor)
        if len(outcomes) != len(batch):
            raise ValueError(f"{len(outcomes)} outcomes for {len(batch)} jobs")
    except BackendLostError:
        raise
    except Exception:
        log.exception("the engine failed")
        outcomes = [RenderError("the engine failed")] * len(batch)
    for job, outcome in zip(batch, outcomes, strict=True):
        encoders.submit(_deliver, job, outcome, mailbox, embed_prompts)
    mailbox.forget(batch)


def _deliver(
    job: RenderJob, outcome: RenderedImage | RenderError, mailbox: _Mailbox, embed_prompts: bool
) -> None:
    """Send one outcome, whose file says how it was made; in an encoder's thread."""
    if isinstance(outcome, RenderError):
        mailbox.send("failed", job.id, outcome.message)
        return
    try:
        data = encode(outcome.image)
        media_type = media_type_of(data)
        data = _marked(data, outcome, job.request.prompt if embed_prompts else None)
    except Exception:
        log.exception("the image cannot be encoded")
        mailbox.send("failed", job.id, "the image cannot be encoded")
        return
    mailbox.send("finished", job.id, data, media_type, dict(outcome.info))


def _marked(data: bytes, outcome: RenderedImage, prompt: str | None) -> bytes:
    """Write into the file how it was made; a file that is too odd for that is left as it is."""
    try:
        return with_provenance(data, outcome.source_type, outcome.info, prompt=prompt)
    except ValueError as exc:
        log.warning("an image cannot be marked as machine-made: %s", exc)
        return data


class _Monitor:
    """Reports progress; previews are encoded outside the rendering thread, and not too often."""

    def __init__(self, mailbox: _Mailbox, encoders: ThreadPoolExecutor) -> None:
        self._mailbox, self._encoders = mailbox, encoders
        self._reported: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._begin = time.monotonic()  # what is done at once needs no preview

    def progress(
        self, job_id: str, fraction: float, preview: "Image.Image | bytes | None" = None
    ) -> None:
        now = time.monotonic()
        if preview is not None and self.wants_preview(job_id):
            self._shown[job_id] = self._reported[job_id] = now
            self._encoders.submit(self._show, job_id, fraction, preview)
        elif now - self._reported.get(job_id, 0.0) >= _PROGRESS_INTERVAL:
            self._reported[job_id] = now
            self._mailbox.send("progress", job_id, fraction, None)

    def wants_preview(self, job_id: str) -> bool:
        due = self._shown.get(job_id, self._begin) + _PREVIEW_INTERVAL
        return time.monotonic() >= due and not self.is_cancelled(job_id)

    def is_cancelled(self, job_id: str) -> bool:
        return self._mailbox.is_cancelled(job_id)

    def _show(self, job_id: str, fraction: float, preview: "Image.Image | bytes") -> None:
        self._mailbox.send("progress", job_id, fraction, encode(preview))
