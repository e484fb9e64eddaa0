"""A loopback server that speaks HTTP/2 over TLS, and misbehaves by the path asked for."""

import contextlib
import gzip
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import attrs
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded


@attrs.define
class Asked:
    """One request as it arrived; pseudo headers begin with a colon."""

    headers: dict[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.headers[":path"]


@attrs.frozen
class Stream:
    """The server's end of one stream."""

    sock: socket.socket
    connection: H2Connection
    number: int
    stop: threading.Event
    go_on: threading.Event

    def head(self, status: int = 200, *headers: tuple[str, str], last: bool = False) -> None:
        sent = [(":status", str(status)), *headers]
        self.connection.send_headers(self.number, sent, end_stream=last)
        self.flush()

    def data(self, data: bytes, *, last: bool = False) -> None:
        size = self.connection.max_outbound_frame_size
        pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        for piece in pieces:
            self.connection.send_data(self.number, piece, last and piece is pieces[-1])
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.connection.data_to_send())


Answer = Callable[[Stream, Asked], None]


def echo(stream: Stream, asked: Asked) -> None:
    stream.head()
    stream.data(asked.body, last=True)


def silence(stream: Stream, asked: Asked) -> None:
    pass


def drip(stream: Stream, asked: Asked) -> None:
    stream.head()
    while not stream.stop.wait(0.05):
        stream.data(b"x")


def half(stream: Stream, asked: Asked) -> None:
    stream.head()
    stream.data(b"half")
    stream.go_on.wait(20)
    stream.data(b"half", last=True)


def bomb(stream: Stream, asked: Asked) -> None:
    stream.head(200, ("content-encoding", "gzip"))
    stream.data(gzip.compress(bytes(1024 * 1024), 9) * 64, last=True)


def cut(stream: Stream, asked: Asked) -> None:
    stream.head(200, ("content-length", "1000"))
    stream.data(b"half")
    stream.sock.close()


def close(stream: Stream, asked: Asked) -> None:
    stream.sock.close()


def refuse(stream: Stream, asked: Asked) -> None:
    stream.connection.reset_stream(stream.number, ErrorCodes.REFUSED_STREAM)
    stream.flush()


def go_away(stream: Stream, asked: Asked) -> None:
    """Say that nothing was processed, although it was read."""
    stream.connection.close_connection(ErrorCodes.NO_ERROR, last_stream_id=0)
    stream.flush()
    stream.sock.close()


def endless(stream: Stream, asked: Asked) -> None:
    stream.head()
    while not stream.stop.wait(0.001) and stream.connection.local_flow_control_window(1) > 0x4000:
        stream.data(bytes(0x4000))


ANSWERS: dict[str, Answer] = {
    "/bomb": bomb,
    "/close": close,
    "/cut": cut,
    "/drip": drip,
    "/endless": endless,
    "/go-away": go_away,
    "/half": half,
    "/refuse": refuse,
    "/silence": silence,
}


class Http2Server:
    """Answers each path in its own way; keeps what it reads. Close it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        context.set_alpn_protocols(["h2"])
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        self.asked: list[Asked] = []
        self.connections = 0
        self.open: list[socket.socket] = []
        self.stop, self.go_on = threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def count(self, path: str) -> int:
        return sum(asked.path == path for asked in self.asked)

    def close(self) -> None:
        self.stop.set()
        self.go_on.set()
        for sock in (self.listener, *self.open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes whoever waits on it
        self.listener.close()
        for thread in self.threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,))
            self.threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(30)
        with (
            contextlib.suppress(OSError),
            plain,
            self.context.wrap_socket(plain, server_side=True) as sock,
        ):
            self.open.append(sock)
            self._converse(sock)

    def _converse(self, sock: ssl.SSLSocket) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        sock.sendall(connection.data_to_send())
        streams: dict[int, Asked] = {}
        while data := sock.recv(65_536):
            for event in connection.receive_data(data):
                self._take(event, Stream(sock, connection, 0, self.stop, self.go_on), streams)
            sock.sendall(connection.data_to_send())

    def _take(self, event: Any, stream: Stream, streams: dict[int, Asked]) -> None:
        if isinstance(event, RequestReceived):
            headers = {_text(name): _text(value) for name, value in event.headers}
            streams[event.stream_id] = Asked(headers)
        elif isinstance(event, DataReceived):
            streams[event.stream_id].body += event.data
            size = event.flow_controlled_length
            stream.connection.acknowledge_received_data(size, event.stream_id)
        elif isinstance(event, StreamEnded):
            asked = streams.pop(event.stream_id)
            self.asked.append(asked)
            answer = ANSWERS.get(asked.path, echo)
            answer(attrs.evolve(stream, number=event.stream_id), asked)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
