"""A loopback server that answers by script, byte by byte, and misbehaves on demand."""

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import BinaryIO

import attrs

PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00"
    b"\x90wS\xde\x00\x00\x00\x0cIDATx\x9cc\xf8\xff\xff?\x00\x05\xfe\x02\xfe\r\xefF\xb8"
    b"\x00\x00\x00\x00IEND\xaeB`\x82"
)


@attrs.frozen
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Wire:
    """The server's end of one connection."""

    def __init__(
        self, sock: socket.socket, file: BinaryIO, stop: threading.Event, asked: Asked
    ) -> None:
        self.sock, self.file, self.stop, self.asked = sock, file, stop, asked

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def drip(self, data: bytes, every: float = 0.05) -> None:
        for position in range(len(data)):
            if self.stop.wait(every):
                return
            self.sock.sendall(data[position : position + 1])

    def hang(self) -> None:
        self.stop.wait(30)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.file.close()  # the socket stays open as long as a file of it does
        self.sock.close()


Answer = Callable[[Wire], None]


def message(
    status: int | str = 200, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()
) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers)]
    if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply(status: int | str = 200, body: bytes | object = b"", *headers: tuple[str, str]) -> Answer:
    """A proper answer; a body that is no bytes becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda wire: wire.send(message(status, data, headers))


def raw(data: bytes) -> Answer:
    """These bytes, then the end of the connection."""

    def answer(wire: Wire) -> None:
        wire.send(data)
        wire.close()

    return answer


def reset(after: bytes = b"") -> Answer:
    def answer(wire: Wire) -> None:
        wire.send(after)
        wire.reset()

    return answer


def hang(after: bytes = b"") -> Answer:
    def answer(wire: Wire) -> None:
        wire.send(after)
        wire.hang()

    return answer


def drip(data: bytes, at_once: bytes = b"", every: float = 0.05) -> Answer:
    def answer(wire: Wire) -> None:
        wire.send(at_once)
        wire.drip(data, every)

    return answer


def endless(piece: bytes, at_once: bytes = b"") -> Answer:
    def answer(wire: Wire) -> None:
        wire.send(at_once)
        while not wire.stop.is_set():
            wire.send(piece)

    return answer


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


ACCEPTED = reply(200, {"task_id": "task-1"})
QUEUED = reply(200, {"status": "Queue position 2", "progress": 0})
RUNNING = reply(200, {"status": "Processing", "progress": 0.5})


class FaultyServer:
    """Answers each path by its own script; the last answer of a script repeats.

    Paths without a script behave like a service that accepts, and is done at the first poll.
    """

    def __init__(self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.listener = socket.create_server((host, 0))
        self.context = context
        self.port = self.listener.getsockname()[1]
        self.url = f"{'https' if context else 'http'}://{host}:{self.port}"
        self.asked: list[Asked] = []
        self.connections = 0
        self.open: list[socket.socket] = []
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.scripts: dict[str, list[Answer]] = defaultdict(list)
        self.scripts["/txt2img"] = [ACCEPTED]
        self.scripts["/progress"] = [self.done()]
        self.scripts["/image.png"] = [reply(200, PNG, ("Content-Type", "image/png"))]
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def done(self, address: str | None = None) -> Answer:
        address = f"{self.url}/image.png" if address is None else address
        return reply(200, {"status": "Done", "progress": 1, "final_image_url": address})

    def count(self, path: str) -> int:
        return sum(1 for asked in self.asked if asked.path == path)

    def close(self) -> None:
        self.stop.set()
        for sock in (self.listener, *self.open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes whoever waits on it
        self.listener.close()
        for thread in self.threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self.stop.is_set():
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock, self.connections))
            self.threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        sock.settimeout(30)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            if self.context:
                sock = stack.enter_context(self.context.wrap_socket(sock, server_side=True))
            file = stack.enter_context(sock.makefile("rb"))
            self.open.append(sock)
            while sock.fileno() >= 0 and (asked := self._read(file, number)):
                self._next(asked)(Wire(sock, file, self.stop, asked))

    def _read(self, file: BinaryIO, number: int) -> Asked | None:
        head = file.readline().decode("latin-1").split()
        if len(head) < 2:
            return None
        headers = {}
        while line := file.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers.get("content-length", 0)))
        asked = Asked(head[0], head[1], headers, body, number)
        self.asked.append(asked)
        return asked

    def _next(self, asked: Asked) -> Answer:
        with self.lock:
            script = self.scripts.get(asked.path.partition("?")[0]) or [reply(404, {"error": "?"})]
            return script.pop(0) if len(script) > 1 else script[0]
