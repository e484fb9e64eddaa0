"""urllib3's connections with one deadline for all their waits, and a check of the peer's address.

urllib3 bounds each single wait; a peer that sends one byte at a time outlasts any such bound.
Here the socket's timeout is set to the time left before every single read, so that all waits
together end at the deadline. The address is checked before the connection is made.
"""

import functools
import http.client
import io
import math
import socket
import time
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import attrs
from urllib3 import HTTPConnectionPool, PoolManager, Retry
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.wait import wait_for_read

from ..deadline import STOP_INTERVAL, Deadline
from . import _addresses

__all__ = ["Exchange", "current", "install_deadlines"]

_MAX_IDLE = 20.0  # seconds; a connection idle for longer may be dead without our knowing
_MAX_LINES = 64  # of headers, that a connection keeps; cookies and lengths may change for ever
_IDLE = 1.0  # seconds; a connection that is closed later was closed for being idle
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)
_SLACK = 0.01  # seconds that the last wait may end too late
_NEVER = Retry(0, read=False, redirect=False)


@attrs.define
class Exchange:
    """One request and its response, as far as the connections need to know.

    Attributes:
        deadline: When everything about it is over; at first, when the head of its answer must
            be there.
        public_only: True: connect to public addresses only.
        proxy: Host and port of the proxy that it goes through; empty: none.
        tunnelled: True once the proxy has connected to the host.
        connected: True once a connection was opened for it, or tried to.
        exact_url: The URL, if its percent-encodings must be sent to the letter; else empty.
            requests and urllib3 rewrite some, which breaks URLs that are signed.
        repeatable: False: it may go over a used connection only if that is proven to be safe.
        silence: Seconds that each read of the answer may wait, besides the deadline; `None`:
            the deadline alone.
        sent: True once any byte of the request may have left.
    """

    deadline: Deadline
    public_only: bool
    exact_url: str = ""
    repeatable: bool = True
    silence: float | None = None
    proxy: str = ""
    tunnelled: bool = False
    connected: bool = False
    sent: bool = False

    def next_read(self) -> Deadline:
        """Return when the next read must be over."""
        assert self.silence is not None
        return self.deadline.within(self.silence)

    def target(self, target: str) -> str:
        """Return the request target that urllib3 is about to send, to the letter."""
        if not self.exact_url or not target.startswith("/"):  # a proxy wants the whole URL
            return self.exact_url or target
        parts = urlsplit(self.exact_url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


current: ContextVar[Exchange | None] = ContextVar("imagelabs_exchange", default=None)
"""This thread's exchange. Without one the connections behave as urllib3's own."""


@attrs.define
class _Habits:
    """What is known of how an origin treats connections that it could keep.

    Attributes:
        keeps: True if a used connection has served another request since one was last found
            closed without notice.
        limit: After how many requests the origin was seen to close a connection without notice.
    """

    keeps: bool = False
    limit: float = math.inf

    def served(self, number: int) -> None:
        """Note that a connection has served its request of this number."""
        self.keeps = self.keeps or number > 1

    def closed(self, served: int, idle: float) -> None:
        """Note that a connection was closed without notice, after so many requests and seconds."""
        self.keeps = False
        if idle < _IDLE:
            self.limit = min(self.limit, served)

    def allow(self, number: int) -> bool:
        """Return True if a connection may be trusted with its request of this number."""
        return self.keeps and number <= self.limit


def _now() -> float:
    """Return seconds that also pass while the machine is suspended, where it can tell them."""
    return time.clock_gettime(_CLOCK) if _CLOCK is not None else time.monotonic()


def _limit_socket_timeout(sock: Any, deadline: Deadline) -> None:
    """Let the next wait of `sock` end at the deadline, or within `_SLACK` after it.

    A smaller difference is not worth a system call, which makes the threads contend for the GIL.
    """
    left = deadline.socket_timeout()
    held = sock.gettimeout() if hasattr(sock, "gettimeout") else None  # pyOpenSSL's has none
    if held is None or not left <= held <= left + _SLACK:
        sock.settimeout(left)


def _wait_for_read(sock: Any, deadline: Deadline) -> None:
    """Wait until there is something to read, asking in between if the caller wants to stop."""
    if getattr(sock, "pending", int)():  # TLS has decrypted more than was read
        return
    while not wait_for_read(sock, min(deadline.socket_timeout(), STOP_INTERVAL)):
        pass


class _DeadlineReader(io.RawIOBase):
    """A socket's file that gives every single read no more than the time left."""

    def __init__(self, file: Any, sock: Any, exchange: Exchange) -> None:
        self._file, self._sock, self._exchange = file, sock, exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        exchange = self._exchange
        until = exchange.deadline if exchange.silence is None else exchange.next_read()
        if until.stop is not None:
            _wait_for_read(self._sock, until)
        _limit_socket_timeout(self._sock, until)
        count: int | None = self._file.readinto(buffer)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._exchange = exchange = current.get()
        if exchange is not None:
            file = self.fp.detach()
            self.fp = io.BufferedReader(_DeadlineReader(file, sock, exchange))

    def read(self, amt: int | None = None) -> bytes:
        """Return what has come, at most `amt` bytes, instead of waiting for as many.

        A connection that breaks meanwhile would take those with it that are there already.
        """
        if amt is None or self.chunked or self._exchange is None:
            return super().read(amt)
        data = self.read1(amt)
        # Python 3.13 does so itself.
        if self.length == 0 and self.fp is not None:  # pragma: no cover - by Python's version
            self._close_conn()  # type: ignore[attr-defined]
        return data

    def _read_status(self) -> tuple[str, int, str]:
        """Read past 103 and other interim responses as http.client does past 100 alone."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, 100 if 101 < status < 200 else status, reason


class _DeadlineConnection:
    """Mixed into every class of connections."""

    response_class: Any = _DeadlineResponse
    habits: _Habits  # shared by the connections of a pool
    _tunnelling = False
    _last_used = 0.0
    _served = 0  # requests, since it was opened
    _held: list[bytes] | None = None  # pieces of a request that are yet to be sent
    _exchange: Exchange | None = None  # the latest; its body may be read after it has been sent

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lines: dict[tuple[Any, tuple[Any, ...]], bytes] = {}  # of headers, ready to be sent

    def _new_conn(self: Any) -> socket.socket:
        exchange, plain = current.get(), super()._new_conn  # type: ignore[misc]
        self._served = 0
        if exchange is None:
            return plain()  # type: ignore[no-any-return]
        exchange.connected, self._exchange = True, exchange
        if plain.__func__ is not HTTPConnection._new_conn:  # one that connects in its own way
            self.timeout = exchange.deadline.socket_timeout()
            return plain()  # type: ignore[no-any-return]
        try:
            return _addresses.connect(
                self._dns_host,
                self.port,
                exchange.deadline,
                public_only=exchange.public_only,
                options=self.socket_options,
            )
        except TimeoutError as exc:
            raise ConnectTimeoutError(self, f"connecting to {self.host} took too long") from exc
        except (OSError, UnicodeError) as exc:  # a name may be one that no encoding takes
            raise NewConnectionError(self, f"cannot connect: {exc}") from exc

    def _tunnel(self: Any) -> None:
        self._tunnelling = True
        try:
            super()._tunnel()  # type: ignore[misc]
            if self._exchange is not None:
                self._exchange.tunnelled = True
        finally:
            self._tunnelling = False

    def request(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        """Send head and body in one piece; http.client makes two writes, packets, TLS records."""
        exchange = current.get()
        if exchange is None:
            super().request(method, url, *args, **kwargs)  # type: ignore[misc]
            return
        self._held = []
        try:
            super().request(method, exchange.target(url), *args, **kwargs)  # type: ignore[misc]
        finally:
            held, self._held = self._held, None
            del args, kwargs  # error trackers show local variables: none may hold a secret
        pieces = iter(held)
        del held
        self.send(b"".join(pieces))

    def putheader(self: Any, header: Any, *values: Any) -> None:
        """Let http.client check and encode each header once: most are the same every time."""
        line = self._lines.get((header, values))
        if line is not None:
            self._buffer.append(line)
            return
        plain, before = super().putheader, len(self._buffer)  # type: ignore[misc]
        plain(header, *values)
        added = self._buffer[before:]  # nothing, where urllib3 was told to leave it out
        cacheable = plain.__func__ is HTTPConnection.putheader and len(self._lines) < _MAX_LINES
        if added and cacheable:
            self._lines[header, values] = added[0]

    def _connect_tls_proxy(self: Any, hostname: str, sock: Any) -> Any:
        """Apply the deadline to TLS within TLS, which reads the outer socket in its own loop."""
        outer = super()._connect_tls_proxy(hostname, sock)  # type: ignore[misc]
        receive = outer.recv

        def recv(size: int, flags: int = 0) -> bytes:
            if self._exchange is not None:  # pragma: no branch - else plain urllib3
                outer.settimeout(self._exchange.deadline.socket_timeout())
            return receive(size, flags)  # type: ignore[no-any-return]

        outer.recv = recv
        return outer

    def send(self: Any, data: Any) -> None:
        try:
            if self._held is not None:
                self._held.append(data)
                return
            exchange = current.get()
            if exchange is not None:
                if self.sock is None:
                    self.connect()
                if exchange.public_only:  # a kept connection may have been opened without the check
                    _addresses.refuse_private(self.host, [(self.sock.getpeername(),)])
                exchange.sent, self._exchange = exchange.sent or not self._tunnelling, exchange
                _limit_socket_timeout(self.sock, exchange.deadline)
            super().send(data)  # type: ignore[misc]
        finally:
            del data  # as in `request`

    def getresponse(self: Any) -> Any:
        self._last_used = _now()
        try:
            response = super().getresponse()  # type: ignore[misc]
        except ConnectionError:
            if self._served:
                self.habits.closed(self._served, 0.0)
            raise
        self._served += 1
        self.habits.served(self._served)
        return response

    @property
    def is_connected(self: Any) -> bool:
        """urllib3 asks before it reuses a connection, and opens another if this is False."""
        exchange, idle = current.get(), _now() - self._last_used
        if not super().is_connected:  # type: ignore[misc]
            if self.sock is not None and self._served:
                self.habits.closed(self._served, idle)
            return False
        safe = exchange is None or exchange.repeatable or self.habits.allow(self._served + 1)
        return bool(safe and idle < _MAX_IDLE)


class _NoRetryPool:
    """Mixed into every class of pools: an exchange of ours is never repeated below us."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._habits = _Habits()

    @property
    def ConnectionCls(self) -> Any:  # noqa: N802 - urllib3's name
        """The class of the pool below, which a test double may replace at any time, with ours."""
        return _deadline_connection(super().ConnectionCls)  # type: ignore[misc]

    def _new_conn(self: Any) -> Any:
        connection = super()._new_conn()  # type: ignore[misc]
        connection.habits = self._habits
        return connection

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        if current.get() is not None:
            kwargs["retries"] = _NEVER
        try:
            return super().urlopen(*args, **kwargs)  # type: ignore[misc]
        finally:
            del args, kwargs  # error trackers show local variables: none may hold a secret


@functools.lru_cache(maxsize=64)
def _deadline_pool(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """Return a class that does what `pool` does, and honours the current exchange."""
    return type("NoRetryPool", (_NoRetryPool, pool), {})


@functools.lru_cache(maxsize=64)
def _deadline_connection(connection: type) -> type:
    """Return a class that does what `connection` does, and honours the current exchange.

    A test double that is not a connection of http.client is returned as it is.
    """
    if not issubclass(connection, http.client.HTTPConnection):
        return connection
    return type("DeadlineConnection", (_DeadlineConnection, connection), {})


def install_deadlines(manager: PoolManager) -> None:
    """Make `manager` open pools of our classes from now on.

    Outside an exchange of ours they behave as those that it opened before.
    """
    classes = manager.pool_classes_by_scheme
    if not any(issubclass(each, _NoRetryPool) for each in classes.values()):
        manager.clear()  # the idle connections of the pools so far, if there are any
        manager.pool_classes_by_scheme = {
            scheme: _deadline_pool(each) for scheme, each in classes.items()
        }
