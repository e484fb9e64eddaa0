"""Our own server on loopback, with the landscape engine in threads, as a test watches it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from imagelabs_sdk import HttpRequest
from imagelabs_sdk.server.app import App
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.http import Server
from imagelabs_sdk.server.pool import WorkerPool
from imagelabs_sdk.server.store.jobs import JobStore

Note = Callable[[HttpRequest], object]


@attrs.frozen
class OurServer:
    """A server that runs.

    Attributes:
        url: Where it is.
        store: Its jobs.
    """

    url: str
    store: JobStore


@contextmanager
def our_server(
    duration: float, note: Note = lambda request: None, handled: Note = lambda request: None
) -> Iterator[OurServer]:
    """Serve while in ``with``.

    Args:
        duration: Seconds for an image.
        note: Called with each request before it is handled.
        handled: The same afterwards, before its answer leaves; a poll may be parked then.
    """
    store = JobStore.in_memory()
    engine = LandscapeEngine(duration=duration, workers=1, in_process=True)
    app, pool = App(store, engine), WorkerPool(store, engine)

    def handle(request: HttpRequest, peer: str) -> Any:
        note(request)
        answer = app.handle(request, can_park=True)
        handled(request)
        return answer

    server = Server(handle, port=0, subscribe=store.subscribe)
    thread = threading.Thread(target=server.run)
    thread.start()
    pool.start()
    try:
        yield OurServer(server.url, store)
    finally:
        server.stop()
        thread.join()
        pool.stop()
        store.close()
