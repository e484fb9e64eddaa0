"""What a socket tells of its peer."""

import socket

import pytest

from imagelabs_sdk.server.sockets import is_reset, network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_line_counts_as_one(address: str, network: str) -> None:
    """It has 2**64 addresses of its own."""
    assert network_of(address) == network


def test_a_closed_socket_reaches_nobody() -> None:
    """The event loop may close it while a thread asks."""
    one, other = socket.socketpair()
    with one, other:
        assert not is_reset(one)
        one.close()
        assert is_reset(one)
