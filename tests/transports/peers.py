"""Answers and helpers that the tests of the transports share."""

import gzip
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from imagelabs_sdk import HttpRequest
from tests import faulty
from tests.faulty import FaultyServer, chunked, message

squeezed = partial(gzip.compress, mtime=0)  # the same in every worker of the test runner


DONE_BODY = b'{"status": "Done", "final_image_url": "https://images.test/x.png"}'


def get(url: str, **more: Any) -> HttpRequest:
    return HttpRequest(method="GET", url=url, **more)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


BROKEN = {
    "refused before a byte": faulty.reset(),
    "closed before a byte": faulty.raw(b""),
    "reset inside the status line": faulty.reset(b"HTTP/1.1 20"),
    "reset inside the headers": faulty.reset(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "reset inside the body": faulty.reset(message(200, b"{}", [("Content-Length", "50")])),
    "closed inside the headers": faulty.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"),
    "closed inside the body": faulty.raw(message(200, b"{}", [("Content-Length", "50")])),
    "no HTTP at all": faulty.raw(b"220 smtp.test ESMTP\r\n"),
    "a chunk without end": faulty.raw(message(200, b"5\r\nab", [("Transfer-Encoding", "chunked")])),
    "a chunk of odd length": faulty.raw(
        message(200, b"zz\r\nab\r\n", [("Transfer-Encoding", "chunked")])
    ),
    "chunks without the last": faulty.raw(
        message(200, chunked(b"{}", end=b""), [("Transfer-Encoding", "chunked")])
    ),
    "wrong gzip": faulty.reply(200, b"\x1f\x8b" + DONE_BODY, ("Content-Encoding", "gzip")),
    "cut gzip": faulty.reply(200, squeezed(DONE_BODY)[:-12], ("Content-Encoding", "gzip")),
    "a chunk of negative length": faulty.raw(
        message(200, b"-5\r\n{}\r\n0\r\n\r\n", [("Transfer-Encoding", "chunked")])
    ),
    "nothing that is said to be gzip": faulty.reply(200, b"", ("Content-Encoding", "gzip")),
    "two lengths": faulty.raw(
        message(200, b"{}", [("Content-Length", "2"), ("Content-Length", "3")])
    ),
    "endless headers": faulty.raw(b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 5000),
    "a monstrous header": faulty.raw(b"HTTP/1.1 200 OK\r\nX-Y: " + b"z" * 200_000),
}


# Each of these peers would be finished, or give up, only after many seconds; a deadline
# that is not obeyed shows as another outcome, not as a slow test.
SLOW_ANSWER = message(200, DONE_BODY)


SLOW = {
    "silence": faulty.hang(),
    "silence after the headers": faulty.hang(message(200, b"", [("Content-Length", "9")])),
    "one byte at a time from the start": faulty.drip(SLOW_ANSWER),
    "one byte at a time in a header": faulty.drip(b"z" * 200, b"HTTP/1.1 200 OK\r\nX-Y: "),
    "one byte at a time in the body": faulty.drip(
        DONE_BODY, message(200, b"", [("Content-Length", str(len(DONE_BODY)))])
    ),
    "one byte at a time in chunks": faulty.drip(
        b"1\r\n{\r\n" * 50, message(200, b"", [("Transfer-Encoding", "chunked")])
    ),
    "100 Continue without end": faulty.drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 20, every=0.005),
    "100 Continue in a flood": faulty.endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
}


def tunnelling(server: FaultyServer, target: int) -> Callable[[faulty.Wire], None]:
    """A proxy's answer to CONNECT: a pipe to a port of this machine."""

    def answer(wire: faulty.Wire) -> None:
        wire.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", target)) as onward:
            back = threading.Thread(target=pump, args=(onward, wire.sock))
            back.start()
            pump(wire.sock, onward)
            back.join()

    return answer


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for sock in (source, sink):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
