"""The application on a socket: a WSGI callable, and waitress to serve it."""

import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from wsgiref.util import request_uri

from waitress import wasyncore  # type: ignore[import-untyped]  # it has no types
from waitress.server import create_server  # type: ignore[import-untyped]

from ..transports.base import HttpRequest, HttpResponse
from .app import MAX_BODY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Server", "running", "serve", "wsgi"]

Handler = Callable[[HttpRequest], HttpResponse]
"""Such as an `App`."""

_BACKLOG = 128  # connections that may wait to be accepted
_WAKE = 1  # seconds between looks at connections that idle
_LIMITS: dict[str, Any] = {
    "threads": 8,
    "connection_limit": 200,
    "channel_timeout": 60,  # seconds that a connection may idle
    "cleanup_interval": 10,
    "max_request_header_size": 64 * 1024,
    "max_request_body_size": MAX_BODY + 1,  # waitress refuses from here on, itself, with 413
    "log_socket_errors": False,  # a client that goes away is no event
    "ident": None,
}


# WSGI ---------------------------------------------------------------------------------


def wsgi(app: Handler) -> "WSGIApplication":
    """`app` as a WSGI application, for `serve` or for a server of your own.

    It must be one process: an `App` keeps its jobs in memory.
    """

    def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
        response = app(_request(environ))
        phrase = HTTPStatus(response.status).phrase
        start_response(f"{response.status} {phrase}", list(response.headers.items()))
        return _body(response)

    return application


def _request(environ: "WSGIEnvironment") -> HttpRequest:
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or name == "CONTENT_TYPE"
    }
    return HttpRequest(
        method=environ["REQUEST_METHOD"],
        url=request_uri(environ),
        headers=headers,
        body=environ["wsgi.input"].read(_length(environ)),
    )


def _length(environ: "WSGIEnvironment") -> int:
    """How much of the body to read: a byte more than is allowed lets the application refuse it."""
    length = environ.get("CONTENT_LENGTH") or ""
    if re.fullmatch("[0-9]{1,18}", length):
        return min(int(length), MAX_BODY + 1)
    return MAX_BODY + 1 if environ.get("wsgi.input_terminated") else 0


def _body(response: HttpResponse) -> Iterator[bytes]:
    with response:
        yield from response.iter_bytes()


# A server -----------------------------------------------------------------------------


class Server:
    """Listens from the beginning; answers while `run` runs. Bounded in threads and connections.

    Attributes:
        url: Where it listens, without a slash at the end.
    """

    def __init__(self, app: Handler, *, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Listen at the first address that `host` has.

        Args:
            app: Answers, in up to 8 threads at once.
            host: A name or an address; ``"0.0.0.0"``: every address of this machine.
            port: 0: any that is free.

        Raises:
            OSError: It cannot listen there.
        """
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        bound, number = listener.getsockname()[:2]
        name = f"[{bound}]" if family == socket.AF_INET6 else bound
        self.url = f"http://{name}:{number}"
        self._open: dict[int, Any] = {}
        self._stopping = False
        self._server = create_server(
            wsgi(app), map=self._open, sockets=[listener], server_name=name, **_LIMITS
        )
        # A logger of its own, since a request that waits for a thread is no warning.
        self._server.task_dispatcher.queue_logger = logging.Logger("queue", logging.ERROR)

    def run(self) -> None:
        """Answer until `stop`, or until an exception such as KeyboardInterrupt; then close.

        Answers that are being worked out get up to 5 seconds. Once.
        """
        try:
            while not self._stopping:
                wasyncore.loop(timeout=_WAKE, use_poll=True, map=self._open, count=1)
        finally:
            self.close()

    def stop(self) -> None:
        """Let `run` return, from any thread. May be called again."""
        self._stopping = True
        if self._open:
            self._server.pull_trigger()

    def close(self) -> None:
        """Close every socket; for a server that never runs. `run` does so by itself."""
        self._server.task_dispatcher.shutdown()
        wasyncore.close_all(self._open)


def serve(
    app: Handler,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Answer over HTTP until Ctrl-C.

    Args:
        app: Such as an `App`.
        host: Where to listen. Whoever can reach it can use it: there is no login.
        port: 0: any that is free.
        on_ready: Called with the address, once it is listening.

    Raises:
        OSError: It cannot listen there.
    """
    server = Server(app, host=host, port=port)
    try:
        if on_ready is not None:
            on_ready(server.url)
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()


@contextmanager
def running(app: Handler, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The address of a server that answers in a thread of its own while the block lasts."""
    server = Server(app, host=host, port=port)
    thread = threading.Thread(target=server.run, name="imagelabs-server")
    thread.start()
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()
