"""Connections: reused, replaced, dialled, and bounded by the deadline."""

import json
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import requests
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.connection import HTTPConnection
from urllib3.util import SKIP_HEADER

from imagelabs_sdk import (
    APIConnectionError,
    APITimeoutError,
    Deadline,
    ImageLabs,
    RequestsTransport,
    SubmissionUnknownError,
)
from imagelabs_sdk.transports import _addresses, _connections
from tests import faulty
from tests.faulty import PNG, FaultyServer, message
from tests.transports.peers import closed_port, get

Connect = Callable[..., ImageLabs]


def test_an_over_long_body_does_not_spoil_the_next_answer(
    server: FaultyServer, connect: Connect
) -> None:
    """What follows a body on the wire is not the next answer."""
    smuggled = message(200, b'{"status": "Failed"}')
    server.scripts["/progress"] = [
        faulty.raw(message(200, b'{"status": "Painting"}') + smuggled),
        server.done(),
    ]
    assert connect(server).generate("x").read() == PNG


@pytest.mark.parametrize("status", ["102 Processing", "103 Early Hints"])
def test_an_answer_before_the_answer_is_read_past(
    server: FaultyServer, connect: Connect, status: str
) -> None:
    """Taken for the answer it would shift every later one by one."""
    early = f"HTTP/1.1 {status}\r\nLink: <x>\r\n\r\n".encode()

    def accept(wire: faulty.Wire) -> None:
        wire.send(early + message(200, b'{"task_id": "task-%d"}' % len(server.asked)))

    server.scripts["/txt2img"] = [accept]
    client = connect(server)
    assert [client.submit("x").id for _ in range(3)] == ["task-1", "task-2", "task-3"]


def test_a_connection_is_reused_and_a_stale_one_replaced(
    server: FaultyServer, connect: Connect
) -> None:
    """Handshakes are dear; a connection that the peer has closed meanwhile is no failure."""

    def answer_and_close(wire: faulty.Wire) -> None:
        wire.send(message(200, b'{"status": "Painting"}'))
        wire.close()

    server.scripts["/progress"] = [faulty.QUEUED, answer_and_close, server.done()]
    seen: list[object] = []
    connect(server).generate("x", on_progress=seen.append)
    assert [asked.connection for asked in server.asked] == [1, 1, 1, 2]
    assert len(seen) == 3


def test_a_connection_idle_for_long_is_not_trusted(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit over a dead one would leave its fate unknown."""
    server.scripts["/x"] = [faulty.reply(200, b"x")]
    carry(get(server.url + "/x"))
    carry(get(server.url + "/x"))
    monkeypatch.setattr(_connections, "_MAX_IDLE", 0.0)
    carry(get(server.url + "/x"))
    assert [asked.connection for asked in server.asked] == [1, 1, 2]


def test_each_request_has_its_own_headers(server: FaultyServer, carry: Any) -> None:
    """Their lines are kept with the connection, but what changes must change on the wire."""
    for number in [1, 2, 1, *range(100)]:
        carry(get(server.url + "/x", headers={"x-same": "yes", "x-other": str(number)}))
        headers = server.asked[-1].headers
        assert (headers["x-same"], headers["x-other"]) == ("yes", str(number))
    assert {asked.connection for asked in server.asked} == {1}


def test_a_header_is_checked_as_ever(server: FaultyServer) -> None:
    """Also over a connection that has sent its like before; and urllib3's own ways stay."""
    manager = PoolManager()
    _connections.install_deadlines(manager)
    ask = partial(manager.request, "GET", server.url + "/x")
    for _ in range(2):
        ask(headers={"x": "a", "user-agent": SKIP_HEADER})
        assert "user-agent" not in server.asked[-1].headers
        with pytest.raises(ValueError, match="header value"):
            ask(headers={"x": "a\r\ny: b"})
        with pytest.raises(ValueError, match="header name"):
            ask(headers={"x:": "a"})
    manager.clear()


def test_a_connection_that_writes_its_own_headers_goes_on_to_do_so(server: FaultyServer) -> None:
    """A signature, say, that is another one each time."""

    class Signed(HTTPConnection):
        def putheader(self, header: Any, *values: Any) -> None:
            super().putheader(header, *(f"{value} {len(server.asked)}" for value in values))

    class Pool(HTTPConnectionPool):
        ConnectionCls = Signed

    manager = PoolManager()
    manager.pool_classes_by_scheme = {"http": Pool}
    _connections.install_deadlines(manager)
    for number in range(3):
        manager.request("GET", server.url + "/x", headers={"x": "a"})
        assert server.asked[-1].headers["x"] == f"a {number}"
    manager.clear()


def test_a_refused_connection_surely_delivered_nothing(carry: Any) -> None:
    """So it may be tried again."""
    with pytest.raises(APIConnectionError, match="refused") as caught:
        carry(get(f"http://127.0.0.1:{closed_port()}/"))
    assert caught.value.delivered == "no"


def test_a_connect_that_takes_too_long_surely_delivered_nothing(carry: Any) -> None:
    """A listener whose queue is full answers no handshake at all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        with pytest.raises(APITimeoutError) as caught:
            carry(get(f"http://127.0.0.1:{listener.getsockname()[1]}/"), 0.3)
        for sock in waiting:
            sock.close()
    assert caught.value.delivered == "no"


def test_a_handshake_that_drips_ends_at_the_deadline(connect: Connect) -> None:
    """The deadline holds below HTTP, too."""
    peer = FaultyServer()

    def serve() -> None:
        sock, _ = peer_socket.accept()
        with sock:
            for _ in range(100):
                if peer.stop.wait(0.05):
                    return
                sock.sendall(b"\x16")

    peer_socket = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    url = f"https://127.0.0.1:{peer_socket.getsockname()[1]}"
    with ImageLabs(url, max_retries=0) as client, pytest.raises(APIConnectionError) as caught:
        client.generate("x", timeout=0.3)
    assert caught.value.delivered == "no"
    peer.close()
    thread.join()
    peer_socket.close()


def test_tls_within_tls_ends_at_the_deadline(
    tls_server: FaultyServer, connect: Connect, bundle: str
) -> None:
    """A tunnel through a proxy that is spoken to over TLS, and drips what is inside."""

    def drips(wire: faulty.Wire) -> None:
        wire.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        wire.drip(b"\x16\x03\x03\x40\x00" + bytes(200))

    tls_server.scripts["service.test:443"] = [drips]

    class Service:
        url = "https://service.test"

    client = connect(Service, proxy=tls_server.url, verify=bundle, max_retries=0)
    with pytest.raises(APITimeoutError) as caught:
        client.submit("x", timeout=0.5)
    assert caught.value.delivered == "no"


class OddConnection(HTTPConnection):
    dialled: ClassVar[list[float]] = []

    def _new_conn(self) -> socket.socket:
        assert isinstance(self.timeout, float)
        self.dialled.append(self.timeout)
        return super()._new_conn()


def test_a_connection_that_dials_by_a_way_of_its_own_is_let(server: FaultyServer) -> None:
    """As SOCKS does; it is told the time left, and what it reached is checked."""
    manager = PoolManager()
    manager.pool_classes_by_scheme = {
        "http": type("Pool", (HTTPConnectionPool,), {"ConnectionCls": OddConnection})
    }
    _connections.install_deadlines(manager)
    token = _connections.current.set(_connections.Exchange(Deadline.after(5), public_only=False))
    assert manager.request("POST", server.url + "/txt2img", body=b"{}").status == 200
    _connections.current.set(_connections.Exchange(Deadline.after(5), public_only=True))
    with pytest.raises(_addresses.PrivateAddressError):
        manager.request("POST", server.url + "/txt2img", body=b"{}")
    _connections.current.reset(token)
    manager.clear()
    assert len(OddConnection.dialled) == 1
    assert server.count("/txt2img") == 1


@pytest.mark.parametrize(
    ("held", "set_to"), [(None, 5.0), (4.9, 5.0), (5.0, None), (5.005, None), (5.02, 5.0)]
)
def test_no_wait_outlasts_the_deadline(held: float | None, set_to: float | None) -> None:
    """A hundredth of a second is not worth a system call for each piece of an answer."""
    sock = socket.socket()
    sock.settimeout(held)
    _connections._limit_socket_timeout(sock, Deadline(5.0, clock=lambda: 0.0))
    assert sock.gettimeout() == (held if set_to is None else set_to)
    sock.close()


def test_a_socket_that_does_not_tell_its_timeout_is_given_it() -> None:
    """As those of pyOpenSSL, which urllib3 can be told to use."""

    class Socket:
        given: ClassVar[list[float]] = []

        def settimeout(self, seconds: float) -> None:
            self.given.append(seconds)

    _connections._limit_socket_timeout(Socket(), Deadline(5.0, clock=lambda: 0.0))
    assert Socket.given == [5.0]


def test_plain_urllib3_is_left_as_it_is(server: FaultyServer) -> None:
    """Connections of ours outside an exchange behave as urllib3's own."""
    import urllib3

    manager = urllib3.PoolManager()
    _connections.install_deadlines(manager)
    _connections.install_deadlines(manager)
    answer = manager.request("POST", server.url + "/txt2img", body=b"{}")
    assert json.loads(answer.data) == {"task_id": "task-1"}
    manager.clear()


# Submits and kept connections ---------------------------------------------------------


def serving(count: int, server: FaultyServer) -> Callable[[faulty.Answer], faulty.Answer]:
    """Wraps answers: a connection serves `count` requests, and is reset when another arrives.

    That is the worst moment: the request was sent, and nobody can tell that it was not read.
    """
    served: dict[int, int] = {}

    def wrap(answer: faulty.Answer) -> faulty.Answer:
        def wrapped(wire: faulty.Wire) -> None:
            number = wire.asked.connection
            served[number] = served.get(number, 0) + 1
            answer(wire)
            if served[number] >= count:
                wire.sock.recv(1, socket.MSG_PEEK)
                wire.reset()

        return wrapped

    return wrap


@pytest.mark.parametrize("with_session", [False, True])
def test_no_submit_is_lost_to_a_server_that_closes_without_notice(
    server: FaultyServer, connect: Connect, with_session: bool
) -> None:
    """Each goes over a new connection, as long as the origin has not kept one."""
    closing = serving(1, server)
    server.scripts["/txt2img"] = [closing(faulty.ACCEPTED)]
    server.scripts["/progress"] = [closing(server.done())]
    with requests.Session() as session:
        how = {"transport": RequestsTransport(session=session)} if with_session else {}
        client = connect(server, **how)
        for _ in range(30):
            assert client.generate("x").task_id == "task-1"
    assert server.count("/txt2img") == 30


def test_an_origin_is_not_trusted_beyond_what_it_was_seen_to_serve(
    server: FaultyServer, connect: Connect
) -> None:
    """Some close after a number of requests: one submit may find out, no second one does."""
    closing = serving(2, server)
    server.scripts["/txt2img"] = [closing(faulty.ACCEPTED)]
    server.scripts["/progress"] = [closing(server.done())]
    client, unknown = connect(server), 0
    for _ in range(30):
        try:
            client.generate("x")
        except SubmissionUnknownError:
            unknown += 1
    assert unknown <= 1


def test_an_origin_that_keeps_connections_is_asked_over_one(
    server: FaultyServer, connect: Connect
) -> None:
    """A handshake is paid only where the origin has not proven itself."""
    client = connect(server)
    for _ in range(5):
        client.generate("x")
    assert server.connections == 1
    other = connect(server)
    for _ in range(3):
        other.submit("x")
    assert server.connections == 4


def test_a_close_after_long_idleness_limits_nothing(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next submit is careful; the origin may prove itself again."""

    def then_close(wire: faulty.Wire) -> None:
        wire.send(message(200, b'{"status": "Painting"}'))
        wire.close()

    monkeypatch.setattr(_connections, "_IDLE", -1.0)  # any idleness counts as long
    client = connect(server)
    client.generate("x")
    server.scripts["/progress"] = [then_close, server.done()]
    for _ in range(4):
        client.generate("x")
    assert [each.connection for each in server.asked] == [*[1] * 4, 2, *[3] * 6]


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no such clock")
def test_idleness_counts_while_the_machine_is_suspended(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's clock went on, and it has closed the connection long ago."""
    carry(get(server.url + "/x"))
    real = time.clock_gettime

    def later(clock: int) -> float:
        return real(clock) + (60 if clock == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", later)
    carry(get(server.url + "/x"))
    assert [asked.connection for asked in server.asked] == [1, 2]


def test_without_such_a_clock_the_usual_one_counts(
    server: FaultyServer, carry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and Windows."""
    monkeypatch.setattr(_connections, "_CLOCK", None)
    carry(get(server.url + "/x"))
    carry(get(server.url + "/x"))
    assert server.connections == 1
