"""What a TCP socket tells of its peer beyond what asyncio reports."""

import ipaddress
import select
import socket
import struct
import sys

__all__ = ["is_reset", "network_of", "unacknowledged"]


def network_of(address: str) -> str:
    """Return whose connections count together: an IPv4 address, or the /64 of an IPv6 address.

    A line of IPv6 usually gets a whole /64, so that its single addresses say nothing. What is no
    address is returned as it is.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), 64), strict=False))


def is_reset(sock: socket.socket) -> bool:
    """Return True if the peer has reset the connection, or both sides have closed it."""
    if sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):  # pragma: no cover - by the system
        return False
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def unacknowledged(sock: socket.socket) -> int:
    """Return how many sent bytes the peer's system has not acknowledged; 0 if ours cannot tell."""
    if not sys.platform.startswith("linux"):  # pragma: no cover - by the system
        return 0
    import fcntl
    import termios

    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0])
