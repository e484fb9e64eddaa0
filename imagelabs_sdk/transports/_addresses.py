"""Resolve a host's name, refuse addresses that are not public, and connect."""

import ipaddress
import itertools
import math
import os
import selectors
import socket
from typing import Any

from ..deadline import STOP_INTERVAL, Deadline

__all__ = [
    "PrivateAddressError",
    "connect",
    "refuse_private",
    "refuse_private_target",
    "resolve_public",
]

_STAGGER = 0.25  # seconds after which the next address is tried, too
_LONGEST_WAIT = 3600.0  # seconds; the C type behind it has an end
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 in its last 32 bits
_RELAY = ipaddress.ip_network("192.88.99.0/24")  # into other networks
_UNICAST = ipaddress.ip_network("2000::/3")  # all that is public in IPv6
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")  # older Pythons do not know of it


class PrivateAddressError(Exception):
    """The host leads to an address that is not public. Not an OSError: urllib3 lets it through."""


def _is_public(text: str) -> bool:
    """Return True for an address of the public internet, also where it is wrapped in IPv6."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and address not in _RELAY
    inner = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo:
        inner = address.teredo[1]
    if inner:
        return _is_public(str(inner))
    return address in _UNICAST and address.is_global and address not in _DOCUMENTATION


def _resolve(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host.strip("[]"), port, 0, socket.SOCK_STREAM)


def refuse_private(host: str, found: list[Any]) -> None:
    """Raise `PrivateAddressError` unless every address that `getaddrinfo` found is public."""
    for *_, address in found:
        if not _is_public(str(address[0])):
            raise PrivateAddressError(
                f"{host} leads to {address[0]}, which is not a public address"
            )


def resolve_public(host: str, port: int) -> list[Any]:
    """Return what `getaddrinfo` finds for a host, unless `PrivateAddressError` refuses it."""
    found = _resolve(host, port)
    refuse_private(host, found)
    return found


def refuse_private_target(host: str) -> None:
    """Do the same before a proxy connects to `host`, unless only the proxy can resolve it."""
    try:
        found = _resolve(host.rstrip("."), 0)
    except (OSError, UnicodeError):
        return
    refuse_private(host, found)


def connect(
    host: str, port: int, deadline: Deadline, *, public_only: bool, options: Any
) -> socket.socket:
    """Connect to the address of a host that answers first.

    The next address is tried when the one before has failed, or after 0.25 s (RFC 8305).

    Args:
        host: A name or an address.
        port: Its TCP port.
        deadline: When to give up.
        public_only: True: raise `PrivateAddressError` if any address of the host is not public.
        options: Arguments of `setsockopt`, in order; `None`: none.
    """
    found = resolve_public(host, port) if public_only else _resolve(host, port)
    attempt = _Attempt(deadline, options)
    try:
        for info in _by_turns(found):
            attempt.start(info)
            if attempt.wait(_STAGGER):
                break
        attempt.wait(math.inf)
        return attempt.winner()
    finally:
        attempt.close()


def _by_turns(found: list[Any]) -> list[Any]:
    """Return the addresses with the families by turns, beginning with the system's choice."""
    first = [info for info in found if info[0] == found[0][0]]
    others = [info for info in found if info[0] != found[0][0]]
    return [info for pair in itertools.zip_longest(first, others) for info in pair if info]


class _Attempt:
    """Connects to several addresses at once, without a thread; the first one to answer wins."""

    def __init__(self, deadline: Deadline, options: Any) -> None:
        self._deadline, self._options = deadline, options
        self._pending: list[socket.socket] = []
        self._connected: socket.socket | None = None
        self._failure: OSError = OSError("the host has no address")

    def start(self, info: Any) -> None:
        """Begin to connect to an address."""
        family, kind, proto, _, address = info
        try:
            sock = socket.socket(family, kind, proto)
        except OSError as exc:  # a family that this system does not have
            self._failure = exc
            return
        self._pending.append(sock)
        try:
            for option in self._options or ():
                sock.setsockopt(*option)
            sock.setblocking(False)
            sock.connect(address)
            self._connected = sock
        except BlockingIOError:  # it is under way
            pass
        except OSError as exc:
            self._drop(sock, exc)

    def wait(self, seconds: float) -> bool:
        """Wait until an address has answered or all have failed. Return True for an answer."""
        until = self._deadline.within(seconds)
        longest = _LONGEST_WAIT if until.stop is None else STOP_INTERVAL
        while self._pending and self._connected is None and not until.passed:
            if until.stopped:
                raise InterruptedError("stopped by the caller")
            with selectors.DefaultSelector() as selector:
                for sock in self._pending:
                    selector.register(sock, selectors.EVENT_WRITE)
                for key, _ in selector.select(min(until.remaining(), longest)):
                    self._settle(key.fileobj)
        return self._connected is not None

    def _settle(self, sock: Any) -> None:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._drop(sock, OSError(code, os.strerror(code)))
        else:
            self._connected = self._connected or sock

    def _drop(self, sock: socket.socket, failure: OSError) -> None:
        self._failure = failure
        self._pending.remove(sock)
        sock.close()

    def winner(self) -> socket.socket:
        """Return the connected socket.

        Raises:
            OSError: No address could be connected to; `TimeoutError`: none has answered in time.
        """
        if self._connected is None and self._pending:
            raise TimeoutError("no address answers")
        if self._connected is None:
            raise self._failure
        self._connected.settimeout(self._deadline.socket_timeout())  # for a handshake that follows
        self._pending.remove(self._connected)
        return self._connected

    def close(self) -> None:
        """Close what has not won."""
        for sock in self._pending:
            sock.close()
