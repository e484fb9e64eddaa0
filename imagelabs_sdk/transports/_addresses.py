"""Resolve a host's name, refuse addresses that are not public, and connect."""

import ipaddress
import socket
from typing import Any

from ..deadline import Deadline

__all__ = ["PrivateAddressError", "connect", "refuse_private", "refuse_private_target"]

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
    """Connect to the first address that answers; each gets its share of the time left.

    Args:
        host: A name or an address.
        port: Its TCP port.
        deadline: When to give up.
        public_only: True: raise `PrivateAddressError` if any address of the host is not public.
        options: Arguments of `setsockopt`, in order; `None`: none.
    """
    found = _resolve(host, port)
    if public_only:
        refuse_private(host, found)
    failure = OSError("the host has no address")
    for left, (family, kind, proto, _, address) in zip(
        range(len(found), 0, -1), found, strict=True
    ):
        sock = socket.socket(family, kind, proto)
        try:
            for option in options or ():
                sock.setsockopt(*option)
            sock.settimeout(deadline.socket_timeout() / left)
            sock.connect(address)
            sock.settimeout(deadline.socket_timeout())  # for a handshake that follows
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
