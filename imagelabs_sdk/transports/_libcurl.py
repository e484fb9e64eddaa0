"""libcurl, one exchange at a time, driven step by step by the thread that waits for it.

`Curl.perform` returns only when the body has ended, and cannot be told to stop before. With
libcurl's multi interface the caller's thread makes every step: between two steps the deadline is
checked, and what nobody has asked for is not read.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from curl_cffi import Curl, CurlECode, CurlInfo, CurlMOpt, CurlOpt, ffi, lib

from ..deadline import STOP_INTERVAL, Deadline

__all__ = ["Connections", "Transfer", "TransferError"]

_LONGEST_WAIT = 1.0  # seconds; then another thread may end the transfer


class TransferError(Exception):
    """libcurl has given up. Its text is libcurl's.

    Attributes:
        code: One of `curl_cffi.CurlECode`.
    """

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Connections:
    """One kept connection, names and TLS sessions, for one transfer at a time.

    A forked child leaves them to its parent, also half a transfer: to end it would write to the
    parent's sockets.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.multi: Any = lib.curl_multi_init()
        lib.curl_multi_setopt(self.multi, CurlMOpt.MAXCONNECTS, ffi.cast("void *", 1))

    def close(self) -> None:
        """Close all. May be called again."""
        multi, self.multi = self.multi, None
        if multi is not None and self._pid == os.getpid():
            lib.curl_multi_cleanup(multi)

    def __del__(self) -> None:
        self.close()


class _Handle(Curl):
    """A handle that a forked child leaves to its parent, too."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._places: Any = ffi.NULL
        self.easy: Any = lib.curl_easy_init()
        super().__init__(handle=self.easy)

    def connect_to(self, place: str) -> None:
        """Connect to this host and port whatever the URL has."""
        self._places = lib.curl_slist_append(self._places, f"::{place}".encode())
        self.setopt(CurlOpt.CONNECT_TO, self._places)

    @property
    def is_own(self) -> bool:
        """False in a forked child."""
        return self._pid == os.getpid()

    def close(self) -> None:
        if self.is_own:  # pragma: no branch - False in a child only
            super().close()
            places, self._places = self._places, ffi.NULL
            lib.curl_slist_free_all(places)


@attrs.define
class _State:
    """How far an exchange has come; libcurl calls its methods.

    Attributes:
        to_send: What is left of the request's body. It can be read once: with a body that it
            cannot read again, libcurl does not repeat a request.
        is_begun: True once libcurl was about to send.
        status: Of the answer; 0: none yet.
        headers: Of the answer, in order.
        has_head: True once they are complete.
        pieces: Of the body, that nobody has taken yet.
    """

    to_send: memoryview
    is_begun: bool = False
    status: int = 0
    headers: list[tuple[str, str]] = attrs.Factory(list)
    has_head: bool = False
    pieces: list[bytes] = attrs.Factory(list)

    def send(self, size: int) -> bytes:
        self.is_begun = True
        piece, self.to_send = self.to_send[:size], self.to_send[size:]
        return bytes(piece)

    def take_line(self, line: bytes) -> int:
        if self.has_head:  # a trailer
            return len(line)
        text = line.decode("latin-1").strip()
        if text.startswith("HTTP/"):
            self.status, self.headers = int(text.split()[1]), []
        elif text:
            name, _, value = text.partition(":")
            self.headers.append((name.lower(), value.strip()))
        else:
            self.has_head = self.status == 101 or self.status >= 200
        return len(line)

    def take_piece(self, piece: bytes) -> int:
        self.pieces.append(piece)
        return len(piece)


class Transfer:
    """One request and its answer.

    Args:
        connections: To be used by nobody else until `end`.
        browser: Whose handshake and headers; a name that `Curl.impersonate` knows.
        options: Of libcurl.
        headers: Lines as libcurl reads them.
        connect_to: Host and port to connect to; empty: those of the URL.
        body: Of a POST; empty: libcurl's options say what is sent.

    Raises:
        curl_cffi.CurlError: libcurl does not take an option.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        browser: str,
        options: Mapping[CurlOpt, Any],
        headers: Sequence[bytes],
        connect_to: str,
        body: bytes,
    ) -> None:
        self._connections: Connections | None = connections
        self._lock = threading.Lock()  # libcurl crashes when a thread ends what another drives
        self._state = _State(memoryview(body))
        self._result: int | None = None
        self._words, self._count = ffi.new("char[256]"), ffi.new("int *")
        self._handle = handle = _Handle()
        handle.impersonate(browser)
        handle.setopt(CurlOpt.ERRORBUFFER, self._words)
        handle.setopt(CurlOpt.READFUNCTION, self._state.send)
        handle.setopt(CurlOpt.HEADERFUNCTION, self._state.take_line)
        handle.setopt(CurlOpt.WRITEFUNCTION, self._state.take_piece)
        handle.setopt(CurlOpt.HTTPHEADER, headers)
        for option, value in options.items():
            handle.setopt(option, value)
        if connect_to:
            handle.connect_to(connect_to)
        lib.curl_multi_add_handle(connections.multi, handle.easy)

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self._state.status

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of the answer, by lower-case name, in order."""
        return self._state.headers

    @property
    def is_sent(self) -> bool:
        """False if surely no byte of the request was sent."""
        state, size = self._state, self._handle.getinfo(CurlInfo.REQUEST_SIZE)
        return state.is_begun or state.status != 0 or size != 0

    @property
    def is_tunnelled(self) -> bool:
        """True if a proxy has connected to the host."""
        return bool(self._handle.getinfo(CurlInfo.HTTP_CONNECTCODE) == 200)

    @property
    def has_ended(self) -> bool:
        """True once the whole answer was read."""
        return self._result == int(CurlECode.OK)

    def read_head(self, until: Deadline) -> None:
        """Go on until the status and the headers of the answer are there.

        Raises:
            TransferError: They do not come.
            TimeoutError, InterruptedError: As `Deadline.socket_timeout`.
        """
        while not self._state.has_head and self._result is None:
            self._step(until)
        if not self._state.has_head:
            self._fail()

    def read_body(self, next_read: Callable[[], Deadline]) -> Iterator[bytes]:
        """Yield the body as it comes, free of transfer codings.

        Args:
            next_read: Says when the next piece must be there.

        Raises:
            TransferError: It breaks off.
            TimeoutError, InterruptedError: As `Deadline.socket_timeout`.
        """
        state = self._state
        while True:
            until = next_read()
            while not state.pieces and self._result is None:
                self._step(until)
            if not state.pieces:
                break
            piece, state.pieces = b"".join(state.pieces), []
            yield piece
        if not self.has_ended:
            self._fail()

    def end(self) -> Connections | None:
        """End it, also before its time. Return the connections; `None` when called again."""
        if not self._handle.is_own:
            return None  # pragma: no cover - in a child only
        with self._lock:
            connections, self._connections = self._connections, None
            if connections is not None:
                lib.curl_multi_remove_handle(connections.multi, self._handle.easy)
                self._handle.close()
            return connections

    def _step(self, until: Deadline) -> None:
        """Do what can be done at once; if nothing came of it, wait for the network a while."""
        left, state = until.socket_timeout(), self._state
        had_head = state.has_head
        with self._lock:
            if self._connections is None or not self._handle.is_own:
                raise TransferError(0, "the response was closed before its end")
            multi, count = self._connections.multi, self._count
            lib.curl_multi_perform(multi, count)
            message = lib.curl_multi_info_read(multi, count)
            if message != ffi.NULL:
                self._result = message.data.result
            elif not state.pieces and state.has_head == had_head:
                longest = _LONGEST_WAIT if until.stop is None else STOP_INTERVAL
                milliseconds = math.ceil(min(left, longest) * 1000)
                lib.curl_multi_poll(multi, ffi.NULL, 0, milliseconds, count)
        interruption = self._handle._get_callback_exception()
        if interruption is not None:  # such as Ctrl-C, while libcurl was calling us
            raise interruption

    def _fail(self) -> None:
        code = self._result or 0
        words = ffi.string(self._words).decode("utf-8", "replace")
        if code == CurlECode.SEND_FAIL_REWIND:  # libcurl would have sent it again
            words = "the connection ended before an answer came"
        raise TransferError(code, f"libcurl {code}: {words}")
