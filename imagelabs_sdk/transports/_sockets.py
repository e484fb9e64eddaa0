"""urllib3's connections, taught one deadline and one guard.

urllib3 bounds each single wait; a peer that drips one byte at a time outlasts any such bound.
Here the socket is held to the time left before every single read, so that all waits together
end at the deadline. The guard looks at the address before it is connected to.
"""

import functools
import http.client
import io
import ipaddress
import re
import socket
import time
from contextvars import ContextVar
from types import FunctionType
from typing import Any

import attrs
from urllib3 import HTTPConnectionPool, PoolManager, Retry
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from ..deadline import Deadline

__all__ = ["Exchange", "PrivateAddressError", "current", "install_deadlines", "refuse_private"]

_MAX_IDLE = 20.0  # seconds; a connection idle for longer may be dead without our knowing
_MAX_LINES = 64  # of headers, that a connection keeps; cookies and lengths may change for ever
_SLACK = 0.01  # seconds that the last wait may end too late
_PLAIN = re.compile(rb"((?:[!-9;-~]+:[^\r\n]*\r\n){1,99})\r\n")  # a head with no odd line in it
_NEVER = Retry(0, read=False, redirect=False)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 in its last 32 bits
_UNICAST = ipaddress.ip_network("2000::/3")  # all that is public in IPv6; what follows is in it
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")  # older Pythons do not know of it


@attrs.define
class Exchange:
    """What the connections need to know of the exchange under way.

    Attributes:
        deadline: When everything about it is over.
        public_only: Whether to connect to public addresses alone.
        dialled: Whether a connection was opened for it.
        sent: Whether any byte of the request may have left.
    """

    deadline: Deadline
    public_only: bool
    dialled: bool = False
    sent: bool = False


current: ContextVar[Exchange | None] = ContextVar("imagelabs_exchange", default=None)
"""The exchange that this thread carries. Without one the connections are plain urllib3."""


class PrivateAddressError(Exception):
    """The host leads to an address that is not public. No OSError: urllib3 lets it through."""


def _is_public(text: str) -> bool:
    """Whether an address belongs to the public internet, also where it is wrapped in IPv6."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        relay = address in ipaddress.ip_network("192.88.99.0/24")  # into other networks
        return address.is_global and not address.is_multicast and not relay
    inner = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo:
        inner = address.teredo[1]
    if inner:
        return _is_public(str(inner))
    return address in _UNICAST and address.is_global and address not in _DOCUMENTATION


def _addresses(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host.strip("[]"), port, 0, socket.SOCK_STREAM)


def refuse_private(host: str, found: list[Any]) -> None:
    """Raise `PrivateAddressError` unless every address in `found` is public."""
    for *_, address in found:
        if not _is_public(str(address[0])):
            raise PrivateAddressError(
                f"{host} leads to {address[0]}, which is not a public address"
            )


def refuse_private_target(host: str) -> None:
    """The same before a proxy is asked to connect. A name only the proxy knows is left to it."""
    try:
        found = _addresses(host.rstrip("."), 0)
    except (OSError, UnicodeError):
        return
    refuse_private(host, found)


def _dial(host: str, port: int, exchange: Exchange, options: Any) -> socket.socket:
    """Connect to the first address that answers; each gets its share of the time left."""
    found = _addresses(host, port)
    if exchange.public_only:
        refuse_private(host, found)
    failure = OSError("the host has no address")
    for left, (family, kind, proto, _, address) in zip(
        range(len(found), 0, -1), found, strict=True
    ):
        sock = socket.socket(family, kind, proto)
        try:
            for option in options or ():
                sock.setsockopt(*option)
            sock.settimeout(exchange.deadline.socket_timeout() / left)
            sock.connect(address)
            sock.settimeout(exchange.deadline.socket_timeout())  # for a handshake that follows
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _limit_socket_timeout(sock: Any, deadline: Deadline) -> None:
    """Let the next wait of `sock` end at the deadline, or within `_SLACK` after it.

    Setting it anew for less is not worth it: that is a system call, and at each of those the other
    threads fight for the interpreter.
    """
    left = deadline.socket_timeout()
    held = sock.gettimeout() if hasattr(sock, "gettimeout") else None  # pyOpenSSL's do not tell
    if held is None or not left <= held <= left + _SLACK:
        sock.settimeout(left)


class _DeadlineReader(io.RawIOBase):
    """A socket's file that gives every single read no more than the time left."""

    def __init__(self, file: Any, sock: Any, deadline: Deadline) -> None:
        self._file, self._sock, self._deadline = file, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        _limit_socket_timeout(self._sock, self._deadline)
        count: int | None = self._file.readinto(buffer)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _parse_headers(file: io.BufferedReader, *args: Any, **kwargs: Any) -> http.client.HTTPMessage:
    """What `http.client.parse_headers` returns, which takes an eighth of an exchange to find it.

    It starts the parser of e-mails for the few plain lines that nearly every answer has. Whatever
    is odd, too much or not all there yet is left to it.
    """
    head = _PLAIN.match(file.peek())
    if head is None:
        return http.client.parse_headers(file, *args, **kwargs)  # type: ignore[no-any-return]
    file.read(head.end())
    message = http.client.HTTPMessage()
    for line in head[1].decode("iso-8859-1").split("\r\n")[:-1]:
        message.set_raw(*message.policy.header_source_parse([line]))
    message.set_payload("")
    return message


def _with(function: Any, **names: Any) -> Any:
    """`function` as it is, but for what these global names of its mean to it."""
    twin = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


class _DeadlineResponse(http.client.HTTPResponse):
    # How an answer is framed stays http.client's to find out; it has no other way to be told.
    begin = _with(http.client.HTTPResponse.begin, parse_headers=_parse_headers)

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        exchange = current.get()
        if exchange is not None:
            file = self.fp.detach()
            self.fp = io.BufferedReader(_DeadlineReader(file, sock, exchange.deadline))

    def _read_status(self) -> tuple[str, int, str]:
        """http.client takes 103 and its like for the answer; only 100 it reads past."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, 100 if 101 < status < 200 else status, reason


class _DeadlineConnection:
    """Mixed into every kind of connection."""

    response_class: Any = _DeadlineResponse
    _tunnelling = False
    _last_used = 0.0
    _held: list[bytes] | None = None  # pieces of a request that are yet to be sent
    _exchange: Exchange | None = None  # the latest; its body may be read after it has been sent

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lines: dict[tuple[Any, tuple[Any, ...]], bytes] = {}  # of headers, ready to be sent

    def _new_conn(self: Any) -> socket.socket:
        exchange, plain = current.get(), super()._new_conn  # type: ignore[misc]
        if exchange is None:
            return plain()  # type: ignore[no-any-return]
        exchange.dialled, self._exchange = True, exchange
        if plain.__func__ is not HTTPConnection._new_conn:  # one that dials by a way of its own
            self.timeout = exchange.deadline.socket_timeout()
            return plain()  # type: ignore[no-any-return]
        try:
            return _dial(self._dns_host, self.port, exchange, self.socket_options)
        except TimeoutError as exc:
            raise ConnectTimeoutError(self, f"connecting to {self.host} took too long") from exc
        except (OSError, UnicodeError) as exc:  # a name may be one that no encoding takes
            raise NewConnectionError(self, f"cannot connect: {exc}") from exc

    def _tunnel(self: Any) -> None:
        self._tunnelling = True
        try:
            super()._tunnel()  # type: ignore[misc]
        finally:
            self._tunnelling = False

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        """Send head and body in one piece; http.client makes two writes, packets, TLS records."""
        if current.get() is None:
            super().request(*args, **kwargs)  # type: ignore[misc]
            return
        self._held = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
        finally:
            held, self._held = self._held, None
        self.send(b"".join(held))

    def putheader(self: Any, header: Any, *values: Any) -> None:
        """Most headers are the same in each request: http.client checks and spells them once."""
        line = self._lines.get((header, values))
        if line is not None:
            self._buffer.append(line)
            return
        plain, before = super().putheader, len(self._buffer)  # type: ignore[misc]
        plain(header, *values)
        added = self._buffer[before:]  # nothing, where urllib3 was told to leave it out
        ours_to_keep = plain.__func__ is HTTPConnection.putheader and len(self._lines) < _MAX_LINES
        if added and ours_to_keep:
            self._lines[header, values] = added[0]

    def _connect_tls_proxy(self: Any, hostname: str, sock: Any) -> Any:
        """TLS within TLS reads the outer socket in a loop of its own, which needs the deadline."""
        outer = super()._connect_tls_proxy(hostname, sock)  # type: ignore[misc]
        receive = outer.recv

        def recv(size: int, flags: int = 0) -> bytes:
            if self._exchange is not None:  # pragma: no branch - else plain urllib3
                outer.settimeout(self._exchange.deadline.socket_timeout())
            return receive(size, flags)  # type: ignore[no-any-return]

        outer.recv = recv
        return outer

    def send(self: Any, data: Any) -> None:
        if self._held is not None:
            self._held.append(data)
            return
        exchange = current.get()
        if exchange is not None:
            if self.sock is None:
                self.connect()
            if exchange.public_only:  # a kept connection was perhaps opened for another purpose
                refuse_private(self.host, [(self.sock.getpeername(),)])
            exchange.sent, self._exchange = exchange.sent or not self._tunnelling, exchange
            _limit_socket_timeout(self.sock, exchange.deadline)
        super().send(data)  # type: ignore[misc]

    def getresponse(self: Any) -> Any:
        self._last_used = time.monotonic()
        return super().getresponse()  # type: ignore[misc]

    @property
    def is_connected(self: Any) -> bool:
        """urllib3 asks before it reuses a connection, and opens another if it is not."""
        alive: bool = super().is_connected  # type: ignore[misc]
        return alive and time.monotonic() - self._last_used < _MAX_IDLE


class _NoRetryPool:
    """Mixed into every kind of pool: an exchange of ours is never repeated below us."""

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        if current.get() is not None:
            kwargs["retries"] = _NEVER
        return super().urlopen(*args, **kwargs)  # type: ignore[misc]


@functools.lru_cache(maxsize=64)
def _deadline_pool(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """A kind of pool that does what `pool` does, and knows of exchanges."""
    connection = type("Timed", (_DeadlineConnection, pool.ConnectionCls), {})
    return type("Once", (_NoRetryPool, pool), {"ConnectionCls": connection})


def install_deadlines(manager: PoolManager) -> None:
    """Make `manager` open pools of our kind from now on.

    Outside an exchange of ours they behave as those that it opened before.
    """
    kinds = manager.pool_classes_by_scheme
    if not any(issubclass(kind, _NoRetryPool) for kind in kinds.values()):
        manager.clear()  # the idle connections of the pools so far, if there are any
        manager.pool_classes_by_scheme = {
            scheme: _deadline_pool(kind) for scheme, kind in kinds.items()
        }
