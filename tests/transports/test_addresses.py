"""Which addresses may be connected to."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import requests

from imagelabs_sdk import (
    APIConnectionError,
    APITimeoutError,
    Deadline,
    DownloadError,
    ForbiddenAddressError,
    ImageLabs,
    RequestsTransport,
)
from imagelabs_sdk.transports import _addresses
from tests import faulty
from tests.faulty import PNG, FaultyServer
from tests.transports.peers import closed_port, get

PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "100.64.0.1",
    "198.18.0.1",
    "192.0.2.1",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "fec0::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2001:0:5ef5:79fd:0:0:80ff:fffe",
    "64:ff9b:1::7f00:1",
    "::ffff:0:127.0.0.1",
    "5f00::1",
    "3fff::1",
    "192.88.99.1",
]


@pytest.mark.parametrize(
    "address",
    PRIVATE,
)
def test_an_address_that_is_not_public_is_known_as_such(address: str) -> None:
    """In every way that it can be written or wrapped."""
    with pytest.raises(_addresses.PrivateAddressError):
        _addresses.refuse_private("host", [(None, None, None, None, (address, 80))])


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"]
)
def test_a_public_address_is_let_through(address: str) -> None:
    """A guard that refuses everything would hold too."""
    _addresses.refuse_private("host", [(None, None, None, None, (address, 80))])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0"])
def test_a_guarded_request_reaches_no_private_host(
    server: FaultyServer, carry: Any, host: str
) -> None:
    """However it is spelled, and before a connection is opened."""
    with pytest.raises(ForbiddenAddressError) as caught:
        carry(get(f"http://{host}:{server.port}/x", public_only=True))
    assert caught.value.delivered == "no"
    assert server.connections == 0


def test_what_is_checked_is_what_is_connected_to(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to a public address first and to a private one later gains nothing."""
    answers = [[("93.184.216.34", 80)], [("127.0.0.1", server.port)]]
    asked: list[str] = []
    dialled: list[object] = []

    def resolve(host: str, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", a) for a in answers[len(asked) - 1]]

    def connect(self: socket.socket, address: object) -> None:
        dialled.append(address)
        raise ConnectionRefusedError

    class Sock(socket.socket):
        pass

    Sock.connect = connect  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Sock)
    with pytest.raises(APIConnectionError):
        carry(get("http://rebinding.test/x", public_only=True))
    assert dialled == [("93.184.216.34", 80)]
    with pytest.raises(ForbiddenAddressError):
        carry(get("http://rebinding.test/x", public_only=True))
    assert len(dialled) == 1


def test_a_kept_connection_is_no_way_around(server: FaultyServer, other: FaultyServer) -> None:
    """The caller's own session, or a less strict client, may have opened it for good reasons."""
    server.scripts["/progress"] = [server.done(f"{other.url}/image.png")]
    with requests.Session() as session:
        transport = RequestsTransport(session=session)
        image = ImageLabs(server.url, transport=transport).get_job("t").result()
        assert session.get(f"{other.url}/image.png").content == PNG
        with pytest.raises(DownloadError, match="not a public address"):
            image.read()
    assert other.count("/image.png") == 1


def test_one_private_address_among_public_ones_is_enough(
    carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may be answered with both, to be tried in turn."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (a, 80)) for a in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ForbiddenAddressError, match=r"10\.0\.0\.1"):
        carry(get("http://both.test/x", public_only=True))


def test_a_proxy_is_not_asked_for_a_private_host(server: FaultyServer) -> None:
    """The proxy may be inside the network that is to be guarded."""
    transport = RequestsTransport(proxy=server.url)
    server.scripts["http://no-such-host.invalid/x"] = [faulty.reply(200, b"x")]
    deadline = Deadline.after(5)
    for host in ("127.0.0.1", "127.0.0.1.", "localhost."):
        with pytest.raises(ForbiddenAddressError):
            transport.send(get(f"http://{host}:1/x", public_only=True), deadline=deadline)
    assert server.connections == 0
    request = get("http://no-such-host.invalid/x", public_only=True)
    transport.send(request, deadline=deadline).close()
    assert server.count("http://no-such-host.invalid/x") == 1
    transport.close()


def test_the_second_address_is_tried_when_the_first_is_dead(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets its share of the time."""
    dead = ("127.0.0.1", closed_port())
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", a) for a in (dead, ("127.0.0.1", server.port))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    server.scripts["/x"] = [faulty.reply(200, b"x")]
    assert carry(get("http://two.test/x")) == (200, b"x")


def test_an_interrupt_while_connecting_leaves_no_socket(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come at any moment."""

    class Sock(socket.socket):
        def connect(self, address: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(socket, "socket", Sock)
    with pytest.raises(KeyboardInterrupt):
        carry(get(server.url + "/x"))


# Several addresses --------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that answers no handshake at all: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for sock in waiting:
            sock.close()


def found(*ports: int, family: Any = socket.AF_INET) -> list[Any]:
    return [(family, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]


def test_the_second_address_is_tried_before_the_first_gives_up(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    """A route that swallows packets must not cost half of the time; IPv6 is often one."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found(silent, server.port))
    server.scripts["/x"] = [faulty.reply(200, b"x")]
    started = time.monotonic()
    assert carry(get("http://two.test/x"), 60) == (200, b"x")
    assert time.monotonic() - started < 10


def test_a_family_that_the_system_lacks_is_passed_over(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host may have addresses of it all the same."""
    answers = [*found(1, family=9999), *found(server.port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    server.scripts["/x"] = [faulty.reply(200, b"x")]
    assert carry(get("http://two.test/x")) == (200, b"x")


def test_addresses_that_are_all_dead_surely_delivered_nothing(
    carry: Any, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    """Refused, or without an answer; and a name may have none at all."""
    for answers, kind in (
        (found(closed_port(), closed_port()), APIConnectionError),
        (found(closed_port(), silent, closed_port()), APITimeoutError),
        ([], APIConnectionError),
    ):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, each=answers, **__: each)
        with pytest.raises(kind) as caught:
            carry(get("http://dead.test/x"), 0.6)
        assert caught.value.delivered == "no"


def test_the_families_take_turns() -> None:
    """So that one of them without a route costs 0.25 s at most."""
    v6, v4 = found(1, 2, 3, family=socket.AF_INET6), found(4, 5)
    ports = [info[4][1] for info in _addresses._by_turns([*v6, *v4])]
    assert ports == [1, 4, 2, 5, 3]


def test_connecting_can_be_stopped(carry: Any, silent: int) -> None:
    """As every other wait."""
    asked = iter([False] * 3)
    deadline = attrs.evolve(Deadline.after(60), stop=lambda: next(asked, True))
    transport = RequestsTransport()
    with pytest.raises(APIConnectionError) as caught:
        transport.send(get(f"http://127.0.0.1:{silent}/x"), deadline=deadline)
    assert caught.value.delivered == "no"
    assert deadline.remaining() > 40


def test_a_connection_may_be_there_at_once(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with libraries that stand in for sockets."""

    class Sock(socket.socket):
        def connect(self, address: Any) -> None:
            self.setblocking(True)
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Sock)
    server.scripts["/x"] = [faulty.reply(200, b"x")]
    assert carry(get(server.url + "/x")) == (200, b"x")
