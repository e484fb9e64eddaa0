"""A server on 127.0.0.1 for `check_transport`: misbehaves byte by byte, by the path asked for."""

import functools
import gzip
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

import attrs

__all__ = ["Peer", "Received"]

_HANG = 4.0  # seconds for which a path hangs or drips at most
_DRIP = 0.05  # seconds between two bytes
_PAUSE = 0.001  # seconds between two pieces of 64 kB of a body without end
_BOMB = 64  # MiB


@attrs.frozen
class Received:
    """One request as it was read.

    Attributes:
        path: Without the origin.
        headers: By lower-case name.
        body: All of it.
    """

    path: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """Answers each path in its own way; counts and keeps what it reads. Close it.

    Attributes:
        url: Without a slash at the end.
        received: Every request, in order.
        connections: How many were accepted so far.
    """

    def __init__(self) -> None:
        """Listen at a free port."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.received: list[Received] = []
        self.connections = 0
        self._stopped = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    def count(self, path: str) -> int:
        """Return how often `path` was asked for."""
        return sum(one.path == path for one in self.received)

    def close(self) -> None:
        """Close everything and wait for the threads."""
        self._stopped.set()
        for sock in (self._listener, *self._open):
            with suppress(OSError):  # gone already
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(sock)
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(30)
        with suppress(OSError), sock, sock.makefile("rb") as file:
            while (request := _read(file)) is not None:
                self.received.append(request)
                answer = _ANSWERS.get(request.path.partition("?")[0], _echo)
                if not answer(_Connection(sock, self._stopped), request):
                    break
            with suppress(OSError):  # the other end has closed
                sock.shutdown(socket.SHUT_RDWR)
        self._open.discard(sock)


def _read(file: BinaryIO) -> Received | None:
    first = file.readline().decode("latin-1").split()
    if len(first) < 2:
        return None
    headers = {}
    while line := file.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Received(first[1], headers, file.read(int(headers.get("content-length", 0))))


# Answers: each returns whether the connection stays open --------------------------------------


@attrs.frozen
class _Connection:
    sock: socket.socket
    stopped: threading.Event

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def drip(self, data: bytes) -> None:
        for position in range(len(data)):
            if self.stopped.wait(_DRIP):
                return
            self.send(data[position : position + 1])


_Answer = Callable[[_Connection, Received], bool]


def _message(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _echo(connection: _Connection, request: Received) -> bool:
    connection.send(_message(200, request.body))
    return True


def _fixed(status: int, *headers: str) -> _Answer:
    def answer(connection: _Connection, _: Received) -> bool:
        connection.send(_message(status, b'{"error": "words"}', *headers))
        return True

    return answer


def _raw(data: bytes) -> _Answer:
    """Send these bytes and close."""

    def answer(connection: _Connection, _: Received) -> bool:
        connection.send(data)
        return False

    return answer


def _reset(connection: _Connection, _: Received) -> bool:
    linger = struct.pack("ii", 1, 0)  # close with RST instead of FIN
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return False


def _silent(connection: _Connection, _: Received) -> bool:
    connection.stopped.wait(_HANG)
    return False


def _drip_head(connection: _Connection, _: Received) -> bool:
    connection.drip(b"HTTP/1.1 200 OK\r\nX-Slow: ".ljust(round(_HANG / _DRIP), b"x"))
    return False


def _drip_body(connection: _Connection, _: Received) -> bool:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
    connection.drip(b"x" * round(_HANG / _DRIP))
    return False


def _endless(connection: _Connection, _: Received) -> bool:
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not connection.stopped.wait(_PAUSE):
        connection.send(b"10000\r\n" + bytes(0x10000) + b"\r\n")
    return False


def _zipped(connection: _Connection, request: Received) -> bool:
    accepts = "gzip" in request.headers.get("accept-encoding", "")
    coding = ("Content-Encoding: gzip",) if accepts else ()
    plain = b"plain text"
    connection.send(_message(200, gzip.compress(plain) if accepts else plain, *coding))
    return True


def _bomb(connection: _Connection, request: Received) -> bool:
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return _echo(connection, request)
    connection.send(_message(200, _zipped_zeros(), "Content-Encoding: gzip"))
    return True


@functools.lru_cache
def _zipped_zeros() -> bytes:
    return gzip.compress(bytes(1024 * 1024), 9) * _BOMB


_ANSWERS: dict[str, _Answer] = {
    "/bomb": _bomb,
    "/close": _raw(b""),
    "/cookie": _fixed(200, "Set-Cookie: crumb=fresh; Path=/"),
    "/cut": _raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"),
    "/cut-chunks": _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    "/drip-body": _drip_body,
    "/drip-head": _drip_head,
    "/endless": _endless,
    "/redirect": _fixed(302, "Location: /target"),
    "/reset": _reset,
    "/silent": _silent,
    "/until-close": _raw(b"HTTP/1.1 200 OK\r\n\r\nall of it"),
    "/zipped": _zipped,
    **{f"/status/{status}": _fixed(status, "Retry-After: 7") for status in (403, 404, 429, 500)},
}
