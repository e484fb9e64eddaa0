"""Run the whole server: store, workers, application and face, from start to a graceful end."""

import logging
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from .access import AccessOptions, Gate
from .app import App
from .engines.base import EngineConfig
from .http import Server
from .metrics import Metrics
from .options import FaceOptions, PoolOptions, StoreLimits
from .pool import WorkerPool
from .site import Site
from .store.jobs import JobStore

__all__ = ["ServeOptions", "Service", "serve"]

log = logging.getLogger(__name__)

_EXPIRE = 60.0  # seconds between looks for what has expired
_RESERVE = 1.0  # seconds of the grace for closing everything


@attrs.frozen(kw_only=True)
class ServeOptions:
    """How a server runs.

    Attributes:
        host: Where to listen; a name or an address.
        port: 0: any that is free.
        store: Folder of the jobs and images; None: in memory, gone at the end.
        grace: Seconds from a signal to the end.
        limits: Of the store.
        face: Bounds of the HTTP server.
        pool: How workers are supervised.
        access: Hosts, origins, proxies and tokens.
        embed_prompts: Whether images' files hold the prompt, besides how they were made.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    store: Path | None = None
    grace: float = 8.0
    limits: StoreLimits = attrs.field(factory=StoreLimits)
    face: FaceOptions = attrs.field(factory=FaceOptions)
    pool: PoolOptions = attrs.field(factory=PoolOptions)
    access: AccessOptions = attrs.field(factory=AccessOptions)
    embed_prompts: bool = False


class Service:
    """One server. Listens from the beginning; answers while `run` runs.

    Attributes:
        url: Where it listens, without a slash at the end.
    """

    def __init__(self, engine: EngineConfig, options: ServeOptions) -> None:
        """Open the store and listen.

        Raises:
            StoreError: The store cannot be used.
            OSError: It cannot listen there, or the store's folder cannot be used.
        """
        self._options = options
        self._store = (
            JobStore.in_memory(options.limits)
            if options.store is None
            else JobStore.open(options.store, options.limits)
        )
        metrics = Metrics(self._store)
        self._pool = WorkerPool(
            self._store,
            engine,
            options=options.pool,
            embed_prompts=options.embed_prompts,
            on_outcome=metrics.outcome,
            on_batch=metrics.batch,
        )
        self._stopping = threading.Event()
        self._stop_at = 0.0
        gate = Gate(options.access, options.host)
        site = Site(
            App(self._store, engine, max_body=options.face.max_body),
            gate,
            self._is_ready,
            metrics.response,
        )
        try:
            self._server = Server(
                site.handle,
                host=options.host,
                port=options.port,
                options=options.face,
                subscribe=self._store.subscribe,
                is_proxy=gate.is_proxy,
            )
        except BaseException:
            self._store.close()
            raise
        self.url = self._server.url

    def run(self, on_ready: Callable[[str], object] = lambda url: None) -> None:
        """Answer until `stop`; then finish or keep what runs. Once."""
        keeper = threading.Thread(target=self._expire, name="imagelabs-keeper")
        keeper.start()
        try:
            self._pool.start()
            self._server.run(lambda: on_ready(self.url), self._pool.drain)
        finally:
            self._stopping.set()
            left = self._stop_at - time.monotonic() - _RESERVE
            self._pool.stop(max(0.0, left))
            self._server.close()
            keeper.join()
            self._store.close()

    def stop(self) -> None:
        """Let `run` return within the grace, from any thread or signal handler."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._stop_at = time.monotonic() + self._options.grace
            self._server.stop(max(0.0, self._options.grace / 2))

    def _is_ready(self) -> bool:
        return self._pool.ready and not self._stopping.is_set()

    def _expire(self) -> None:
        while not self._stopping.wait(_EXPIRE):
            try:
                self._store.expire()
            except (OSError, sqlite3.Error) as exc:
                log.error("what has expired cannot be removed: %s", exc)


def serve(
    engine: EngineConfig,
    options: ServeOptions | None = None,
    *,
    on_ready: Callable[[str], object] = lambda url: None,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; call it from the main thread.

    A signal that the parent process had ignored stays ignored, but for SIGTERM.

    Args:
        engine: Renders.
        options: How.
        on_ready: Called with the address, once it is listening.

    Raises:
        StoreError: The store cannot be used.
        OSError: It cannot listen there.
    """
    service = Service(engine, options or ServeOptions())
    with _signals(service.stop):
        service.run(on_ready)


@contextmanager
def _signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` on a signal; as PID 1 a process has no other way to hear of one."""
    names = ("SIGTERM", "SIGINT", "SIGHUP")
    ending = [getattr(signal, name) for name in names if hasattr(signal, name)]
    heard = [s for s in ending if s is signal.SIGTERM or signal.getsignal(s) != signal.SIG_IGN]
    before = {each: signal.signal(each, lambda *_: stop()) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
