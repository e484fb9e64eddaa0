"""The workers of one engine: what they get, what they bring, and what happens when one dies."""

import logging
import multiprocessing.connection
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import attrs

from .engines.base import EngineConfig, RenderJob
from .options import PoolOptions
from .store.jobs import JobStore
from .store.records import Claim
from .worker import Worker, start_process, start_thread

__all__ = ["WorkerPool"]

log = logging.getLogger(__name__)

OnOutcome = Callable[[str, float], object]
"""Gets "done", "failed" or "died", and the seconds since the batch began."""

OnBatch = Callable[[Sequence[float]], object]
"""Gets the seconds that each job of a batch was queued."""

_CANNOT_START = (OSError, EOFError)
_STOP_WAIT = 5.0  # seconds for a worker that was told to stop, before it is killed


class WorkerPool:
    """Keeps the workers of an engine running, each supervised by a thread of the front."""

    def __init__(
        self,
        store: JobStore,
        config: EngineConfig,
        *,
        options: PoolOptions | None = None,
        in_threads: bool | None = None,
        embed_prompts: bool = False,
        on_outcome: OnOutcome = lambda kind, seconds: None,
        on_batch: OnBatch = lambda waited: None,
    ) -> None:
        """Start nothing yet.

        Args:
            store: Where jobs come from and images go to.
            config: What the workers load.
            options: How workers are supervised.
            in_threads: True: workers are threads, False: processes; None: as the engine says.
            embed_prompts: Whether images' files hold the prompt, besides how they were made.
            on_outcome: Called when a job is done or failed, or a worker has died.
            on_batch: Called when a batch begins.
        """
        threads = config.in_process if in_threads is None else in_threads
        start = partial(start_thread if threads else start_process, embed_prompts=embed_prompts)
        shared = _Shared(store, config, options or PoolOptions(), start, on_outcome, on_batch)
        self._store = store
        self._unsubscribe: Callable[[], None] = _nothing
        self._supervisors = [_Supervisor(shared, index) for index in range(config.workers)]

    def start(self) -> None:
        """Start the workers. Jobs that only another engine could resume fail first."""
        self._store.adopt(self._supervisors[0].config)
        for supervisor in self._supervisors:
            supervisor.start()
        self._unsubscribe = self._store.subscribe(self._notify)

    def stop(self, grace: float = 0.0) -> None:
        """Stop the workers.

        Args:
            grace: Seconds for batches that render now. What is not finished by then goes back to
                the queue, or fails if it may have been made.
        """
        self.drain()
        until = time.monotonic() + grace
        for supervisor in self._supervisors:
            supervisor.join(max(0.0, until - time.monotonic()))
        for supervisor in self._supervisors:
            supervisor.stop()
        for supervisor in self._supervisors:
            supervisor.join(None)
        self._unsubscribe()
        self._unsubscribe = _nothing

    def drain(self) -> None:
        """Begin no more batches; what renders goes on."""
        for supervisor in self._supervisors:
            supervisor.drain()

    @property
    def ready(self) -> bool:
        """Return True if a worker has loaded its engine and lives."""
        return any(supervisor.ready for supervisor in self._supervisors)

    def _notify(self, task_id: str) -> None:
        for supervisor in self._supervisors:
            supervisor.notify()


def _nothing() -> None:
    """Ends a subscription that has not begun."""


@attrs.frozen
class _Shared:
    store: JobStore
    config: EngineConfig
    options: PoolOptions
    start: Callable[[EngineConfig, int], Worker]
    on_outcome: OnOutcome
    on_batch: OnBatch


class _Supervisor:
    """One worker's thread in the front: starts it, feeds it, and starts it again."""

    def __init__(self, shared: _Shared, index: int) -> None:
        self._shared, self._index = shared, index
        self.config = shared.config
        self.ready = False
        self._draining, self._stopping = threading.Event(), threading.Event()
        self._woken, self._wake = multiprocessing.Pipe(duplex=False)
        self._waking = threading.Lock()
        self._pending_wake = False
        self._thread = threading.Thread(
            target=self._supervise, name=f"imagelabs-pool-{index}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def notify(self) -> None:
        """Have the thread look at the store soon; wakes that are not yet seen count once."""
        with self._waking:
            if not self._pending_wake and not self._wake.closed:
                self._pending_wake = True
                self._wake.send_bytes(b"w")

    def drain(self) -> None:
        self._draining.set()
        self.notify()

    def stop(self) -> None:
        self._stopping.set()
        self.notify()

    def join(self, timeout: float | None) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout)

    # The thread ---------------------------------------------------------------------------

    def _supervise(self) -> None:
        deaths = 0
        try:
            while not self._draining.is_set():
                died, delivered = self._live_once()
                deaths = 0 if delivered else deaths + 1
                if died and not self._draining.is_set():
                    self._shared.on_outcome("died", 0.0)
                    self._pause(deaths)
        finally:
            with self._waking:
                self._wake.close()
                self._woken.close()

    def _live_once(self) -> tuple[bool, bool]:
        """Run one worker to its end; return if it died, and if it had delivered anything."""
        try:
            run = _Run(self._shared, self._index, self._stopping)
            return self._follow(run), run.delivered
        except Exception:
            log.exception("worker %d cannot be served", self._index)
            return True, False

    def _pause(self, deaths: int) -> None:
        options = self._shared.options
        pause = min(options.first_pause * 2.0 ** max(0, deaths - 1), options.longest_pause)
        log.warning("worker %d ended; it is started again in %.1f s", self._index, pause)
        self._draining.wait(pause)

    def _follow(self, run: "_Run") -> bool:
        """Serve one worker until it ends; return True if it died."""
        try:
            while not self._stopping.is_set():
                if self._draining.is_set() and not run.jobs:
                    return False
                if run.ready and not self._draining.is_set():
                    run.feed()
                self.ready = run.loaded
                if not self._wait(run):
                    return True
            return False
        finally:
            self.ready = False
            run.end()

    def _wait(self, run: "_Run") -> bool:
        """Wait for a message, a wake or a timeout; return False when the worker is lost."""
        ready = multiprocessing.connection.wait([run.connection, self._woken], run.longest_wait())
        if self._woken in ready:
            with self._waking:
                self._woken.recv_bytes()
                self._pending_wake = False
            run.forward_cancels()
        if run.connection in ready:
            return run.receive()
        if run.hangs():
            log.error("worker %d hangs and is killed", self._index)
            return False
        return True


class _Run:
    """One life of one worker: from its start to its end."""

    def __init__(self, shared: _Shared, index: int, stopping: threading.Event) -> None:
        self._shared, self._stopping = shared, stopping
        self._worker = shared.start(shared.config, index)
        self.connection: Connection = self._worker.connection
        self.jobs: dict[str, RenderJob] = {}
        self.ready, self.loaded, self.delivered = False, False, False
        self._told: set[str] = set()
        self._heard = self._begun = time.monotonic()
        self._retry_at: float | None = None

    def feed(self) -> None:
        """Send the next batch, if there is one."""
        try:
            claim = self._shared.store.claim(self._shared.config)
        except sqlite3.Error as exc:
            log.error("no job can be claimed: %s", exc)
            claim = Claim(retry_in=self._shared.options.first_pause)
        self._retry_at = None if claim.retry_in is None else time.monotonic() + claim.retry_in
        batch = list(claim.jobs)
        if not batch:
            return
        self.jobs.update({job.id: job for job in batch})
        self.ready = False
        self._heard = time.monotonic()
        self._begun = time.monotonic()
        self._shared.on_batch(claim.waited)
        self._send("render", batch)

    def forward_cancels(self) -> None:
        """Tell the worker which of its jobs nobody wants any more."""
        for job in list(self.jobs.values()):
            if job.id not in self._told and not self._shared.store.is_wanted(job):
                self._told.add(job.id)
                self._send("cancel", job.id)

    def receive(self) -> bool:
        """Handle one message; return False if there will be no more."""
        try:
            kind, *values = self.connection.recv()
        except _CANNOT_START:
            return False
        self._heard = time.monotonic()
        if kind == "lost":
            return False
        if kind == "ready":
            self.ready = self.loaded = True
        else:
            getattr(self, f"_{kind}")(*values)
        return True

    def longest_wait(self) -> float | None:
        """Return the seconds until something must have happened; None: there is no limit."""
        now = time.monotonic()
        limit = self._limit()
        limits = [] if limit is None else [self._heard + limit - now]
        if self.ready and self._retry_at is not None:
            limits.append(self._retry_at - now)
        return max(0.0, min(limits)) if limits else None

    def hangs(self) -> bool:
        """Return True if the worker has been silent for too long while it had something to do."""
        limit = self._limit()
        return limit is not None and time.monotonic() - self._heard >= limit

    def end(self) -> None:
        """End the worker; what it had not finished goes back."""
        if self.ready and not self.jobs:
            self._send("stop")
            self._worker.join(_STOP_WAIT)
        self.connection.close()
        self._worker.kill()
        self._worker.join(_STOP_WAIT)
        for job in self.jobs.values():
            self._give_back(job)

    def _give_back(self, job: RenderJob) -> None:
        died = not self._stopping.is_set()
        self._persist(lambda: self._shared.store.give_back(job, died=died))

    def _limit(self) -> float | None:
        options = self._shared.options
        if not self.loaded:
            return options.load_timeout
        return options.hang_timeout if self.jobs else None

    def _send(self, *message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:  # it is gone: the next receive says so
            log.debug("the worker cannot be reached")

    # What a worker says -------------------------------------------------------------------

    def _progress(self, task_id: str, fraction: float, preview: bytes | None) -> None:
        job = self.jobs.get(task_id)
        if job is not None:
            show = None if preview is None else lambda: preview
            self._shared.store.progress(job, fraction, show)

    def _finished(self, task_id: str, data: bytes, media_type: str, info: dict[str, Any]) -> None:
        job = self.jobs[task_id]
        self._persist(lambda: self._shared.store.finish(job, data, media_type, info))
        self._delivered(task_id, "done")

    def _failed(self, task_id: str, message: str) -> None:
        job = self.jobs[task_id]
        self._persist(lambda: self._shared.store.fail(job, message))
        self._delivered(task_id, "failed")

    def _delivered(self, task_id: str, outcome: str) -> None:
        del self.jobs[task_id]
        self._told.discard(task_id)
        self.delivered = True
        self._shared.on_outcome(outcome, time.monotonic() - self._begun)

    def _persist(self, write: Callable[[], object]) -> None:
        """Write, and wait while that fails, such as on a full disk: an image is not dropped."""
        pause = self._shared.options.first_pause
        while True:
            try:
                write()
                return
            except (OSError, sqlite3.Error) as exc:
                log.error("an image cannot be stored, trying again in %.1f s: %s", pause, exc)
            if self._stopping.wait(pause):
                return
            pause = min(2.0 * pause, self._shared.options.longest_pause)
