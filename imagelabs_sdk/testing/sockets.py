"""The way to a fake service over a real socket on 127.0.0.1."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..transports.base import HttpRequest
from .script import Answer, Fault
from .service import FakeService

__all__ = ["serve_in_thread"]

_LONGEST_HANG = 300.0  # seconds after which a connection that hangs is closed
_IDLE = 60.0  # seconds that a connection may idle


@contextmanager
def serve_in_thread(
    service: FakeService, *, host: str = "127.0.0.1", port: int = 0
) -> Iterator[str]:
    """Answer over HTTP in threads of its own while the block lasts.

    Args:
        service: What answers.
        host: Where to listen.
        port: 0: any that is free.

    Yields:
        The address, without a slash at the end.

    Raises:
        OSError: It cannot listen there.
    """
    server = _Server((host, port), service)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="imagelabs-fake")
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.stopped.set()
        server.close_connections()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them

    def __init__(self, address: tuple[str, int], service: FakeService) -> None:
        self.service, self.stopped = service, threading.Event()
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""

    def close_connections(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):  # it closes itself
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Stay silent: the service records what came."""

    def _answer(self) -> None:
        host, port = self.connection.getsockname()[:2]
        request = HttpRequest(
            method=self.command,
            url=f"http://{self.headers.get('host', f'{host}:{port}')}{self.path}",
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(self.headers.get("content-length", 0))),
        )
        self._send(self.server.service.answer(request))

    def _send(self, answer: Answer) -> None:
        if answer.fault is Fault.HANG:
            self.server.stopped.wait(_LONGEST_HANG)
        if answer.error is not None or answer.fault in (Fault.DROP, Fault.HANG, Fault.REFUSE):
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "content-length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if answer.fault is Fault.CUT:
            self.close_connection = True
            self.wfile.write(answer.body[: len(answer.body) // 2])
        else:
            self.wfile.write(answer.body)
