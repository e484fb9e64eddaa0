"""The whole server as a function, in one process: for the embedded client and for tests."""

import threading
import time
from collections.abc import Callable
from typing import NoReturn

from ..transports.base import HttpRequest, HttpResponse
from .app import App
from .engines.base import EngineConfig
from .engines.landscape.engine import LandscapeEngine
from .options import StoreLimits
from .pool import WorkerPool
from .store.jobs import JobStore

__all__ = ["LocalServer"]

LIMITS = StoreLimits(max_image_bytes=512 * 1024 * 1024)
"""Of a server that keeps everything in memory."""


class LocalServer:
    """Answers requests with jobs and images in memory.

    The landscape engine needs no threads: its jobs are brought up to date by each request. Any
    other engine is loaded by threads, at the first request, until `close`.
    """

    def __init__(
        self,
        engine: EngineConfig | None = None,
        *,
        limits: StoreLimits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load nothing yet.

        Args:
            engine: Renders; None: a `LandscapeEngine`.
            limits: What is kept.
            clock: A monotonic clock, in seconds.
        """
        engine = engine or LandscapeEngine()
        self._store = JobStore.in_memory(limits, clock=clock)
        # Nothing is announced: no answer is lost in one process, and a poll costs nothing here.
        self._app = App(self._store, engine, features=())
        self._worker = (
            _Timed(self._store, engine, clock)
            if isinstance(engine, LandscapeEngine)
            else _Threads(self._store, engine)
        )

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer a request."""
        self._worker.before()
        response = self._app(request)
        self._worker.after()
        return response

    def close(self) -> None:
        """Stop the threads of an engine that has some; another request starts them again."""
        self._worker.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LocalServer cannot be pickled: its jobs are in this process")


class _Timed:
    """The landscape engine, by the clock."""

    def __init__(
        self, store: JobStore, engine: LandscapeEngine, clock: Callable[[], float]
    ) -> None:
        from .engines.landscape.timeline import Timeline  # it loads Pillow

        self._timeline = Timeline(store, engine, clock)
        self.before, self.after = self._timeline.advance, self._timeline.claim

    def close(self) -> None:
        """There is nothing to stop."""


class _Threads:
    """Any engine, in threads."""

    def __init__(self, store: JobStore, engine: EngineConfig) -> None:
        self._store, self._engine = store, engine
        self._lock = threading.Lock()
        self._pool: WorkerPool | None = None

    def before(self) -> None:
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(self._store, self._engine, in_threads=True)
                self._pool.start()

    def after(self) -> None:
        """Threads need no push."""

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
