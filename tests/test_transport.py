"""The default transport over real loopback sockets, against a peer that misbehaves."""

import gzip
import http.client
import io
import json
import os
import pickle
import socket
import ssl
import threading
import traceback
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
import responses
import trustme
from hypothesis import example, given
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError
from urllib3.util import SKIP_HEADER, Retry

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    Deadline,
    DownloadError,
    FixedInterval,
    ForbiddenAddressError,
    HttpRequest,
    ImageLabs,
    ImageLabsError,
    InvalidRequestError,
    JobTimeoutError,
    RequestsTransport,
    SubmissionUnknownError,
)
from imagelabs_sdk.transports import _sockets

from . import faulty
from .faulty import PNG, FaultyServer, chunked, message

Connect = Callable[..., ImageLabs]
squeezed = partial(gzip.compress, mtime=0)  # the same in every worker of the test runner
DONE_BODY = b'{"status": "Done", "final_image_url": "https://images.test/x.png"}'


def get(url: str, **more: Any) -> HttpRequest:
    return HttpRequest(method="GET", url=url, **more)


@pytest.fixture
def carry() -> Any:
    transport = RequestsTransport()

    def send(request: HttpRequest, seconds: float = 5.0) -> tuple[int, bytes]:
        with transport.send(request, deadline=Deadline.after(seconds)) as response:
            return response.status, response.read(10**6)

    yield send
    transport.close()


# One exchange -------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_meant(server: FaultyServer, connect: Connect) -> None:
    """Header by header what the reference implementation sends, and nothing of python-requests."""
    connect(server, cookies={"cf_clearance": "c"}).submit("a lighthouse")
    asked = server.asked[0]
    assert (asked.method, asked.path) == ("POST", "/txt2img")
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["x-requested-with"] == "XMLHttpRequest"
    assert asked.headers["origin"] == server.url
    assert asked.headers["user-agent"].startswith("Mozilla/5.0")
    assert asked.headers["cookie"] == "cf_clearance=c"
    assert asked.headers["accept-encoding"] == "gzip"
    assert "python" not in str(asked.headers).lower()


def test_a_transport_does_not_judge(server: FaultyServer, carry: Any) -> None:
    """A 500 is a response like any other, and so is a redirect, which is not followed."""
    server.scripts["/500"] = [faulty.reply(500, b"oops")]
    server.scripts["/302"] = [faulty.reply(302, b"", ("Location", server.url + "/500"))]
    assert carry(get(server.url + "/500")) == (500, b"oops")
    assert carry(get(server.url + "/302")) == (302, b"")
    assert server.count("/500") == 1


RAW = bytes([0x2B, 0xC8, 0x49, 0xCC, 0xCC, 0x03, 0x00])  # "plain", deflated without a header


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("identity", b"plain"),
        ("gzip", squeezed(b"plain")),
        ("x-gzip", squeezed(b"plain")),
        ("deflate", zlib.compress(b"plain")),
        ("deflate", RAW),
        ("gzip, identity", squeezed(b"plain")),
        ("GZIP", squeezed(b"plain")),
        ("gzip, gzip", squeezed(b"plain")),
        ("gzip", squeezed(b"pl") + squeezed(b"ain")),
        ("gzip", squeezed(b"plain") + b"nobody's business"),
    ],
)
def test_codings_are_undone(server: FaultyServer, carry: Any, encoding: str, body: bytes) -> None:
    """Also those that were not asked for: servers do as they like."""
    server.scripts["/x"] = [faulty.reply(200, body, ("Content-Encoding", encoding))]
    assert carry(get(server.url + "/x"))[1] == b"plain"


def test_a_bomb_is_defused(server: FaultyServer) -> None:
    """A megabyte that becomes a gigabyte must cost neither memory nor time."""
    bomb = squeezed(bytes(64 * 1024 * 1024))
    server.scripts["/x"] = [faulty.reply(200, bomb, ("Content-Encoding", "gzip"))]
    transport = RequestsTransport()
    with transport.send(get(server.url + "/x"), deadline=Deadline.after(10)) as response:
        assert (
            max(len(chunk) for _, chunk in zip(range(50), response.iter_bytes(), strict=False))
            <= 65_536
        )
        with pytest.raises(APIResponseError, match="longer than"):
            response.read(1024 * 1024)
    transport.close()


BROKEN = {
    "refused before a byte": faulty.reset(),
    "closed before a byte": faulty.raw(b""),
    "reset inside the status line": faulty.reset(b"HTTP/1.1 20"),
    "reset inside the headers": faulty.reset(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "reset inside the body": faulty.reset(message(200, b"{}", [("Content-Length", "50")])),
    "closed inside the headers": faulty.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"),
    "closed inside the body": faulty.raw(message(200, b"{}", [("Content-Length", "50")])),
    "no HTTP at all": faulty.raw(b"220 smtp.test ESMTP\r\n"),
    "a chunk without end": faulty.raw(message(200, b"5\r\nab", [("Transfer-Encoding", "chunked")])),
    "a chunk of odd length": faulty.raw(
        message(200, b"zz\r\nab\r\n", [("Transfer-Encoding", "chunked")])
    ),
    "chunks without the last": faulty.raw(
        message(200, chunked(b"{}", end=b""), [("Transfer-Encoding", "chunked")])
    ),
    "wrong gzip": faulty.reply(200, DONE_BODY, ("Content-Encoding", "gzip")),
    "cut gzip": faulty.reply(200, squeezed(DONE_BODY)[:-12], ("Content-Encoding", "gzip")),
    "two codings": faulty.reply(200, DONE_BODY, ("Content-Encoding", "deflate, gzip")),
    "a chunk of negative length": faulty.raw(
        message(200, b"-5\r\n{}\r\n0\r\n\r\n", [("Transfer-Encoding", "chunked")])
    ),
    "nothing that is said to be gzip": faulty.reply(200, b"", ("Content-Encoding", "gzip")),
    "unknown coding": faulty.reply(200, DONE_BODY, ("Content-Encoding", "rot13")),
    "two lengths": faulty.raw(
        message(200, b"{}", [("Content-Length", "2"), ("Content-Length", "3")])
    ),
    "endless headers": faulty.raw(b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 5000),
    "a monstrous header": faulty.raw(b"HTTP/1.1 200 OK\r\nX-Y: " + b"z" * 200_000),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_is_one_of_our_errors(server: FaultyServer, carry: Any, kind: str) -> None:
    """Whatever HTTP library is below, its exceptions end here."""
    server.scripts["/x"] = [BROKEN[kind]]
    with pytest.raises(APIConnectionError) as caught:
        carry(get(server.url + "/x"))
    assert caught.value.delivered == "maybe"
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_poll_does_not_lose_the_job(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """The job behind it is healthy, and paid for."""
    server.scripts["/progress"] = [faulty.QUEUED, BROKEN[kind], faulty.RUNNING, server.done()]
    assert connect(server).generate("x").read() == PNG
    assert server.count("/txt2img") == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_to_a_submit_is_never_sent_again(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """It may have been accepted: one request on the wire, and an error that says so."""
    server.scripts["/txt2img"] = [BROKEN[kind], faulty.ACCEPTED]
    with pytest.raises(SubmissionUnknownError) as caught:
        connect(server, max_retries=5).generate("x")
    assert caught.value.delivered == "maybe"
    assert isinstance(caught.value.__cause__, ImageLabsError)
    assert server.count("/txt2img") == 1


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
    monkeypatch.setattr(_sockets, "_MAX_IDLE", 0.0)
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
    _sockets.install_deadlines(manager)
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
    _sockets.install_deadlines(manager)
    for number in range(3):
        manager.request("GET", server.url + "/x", headers={"x": "a"})
        assert server.asked[-1].headers["x"] == f"a {number}"
    manager.clear()


LINES = st.lists(
    st.sampled_from(
        [
            "Content-Length: 3", "content-length:3", "Content-Length: 3, 3", "Content-Length: x",
            "Transfer-Encoding: chunked", "Transfer-Encoding : chunked", "Connection: close",
            "Set-Cookie: a=1", "Set-Cookie: b=2", "Content-Type: multipart/mixed", "X:", "X: \t y ",
            " folded", "\tfolded", "no colon", ": no name", "From me", "From: me", "X: \x85\x1c",
            "X: a\rContent-Length: 1", "X: a\nContent-Length: 1", "\xe9: x", "X: " + "y" * 9000,
        ]
    )
    | st.text(st.characters(max_codepoint=255), max_size=12),
    max_size=6,
)  # fmt: skip


@given(LINES, st.sampled_from(["\r\n", "\n"]), st.sampled_from([1, 7, 100_000]))
@example(["X: a\rContent-Length: 1"], "\r\n", 100_000)
@example(["X: \x85\x1c"], "\r\n", 100_000)
@example(["X: y"] * 99, "\r\n", 100_000)
@example(["X: y"] * 100, "\r\n", 100_000)
@example(["X: y"] * 101, "\r\n", 100_000)
def test_an_answers_head_means_what_it_means_to_http_client(
    lines: list[str], end: str, piece: int
) -> None:
    """However odd it is, and in however small pieces it comes."""
    head = end.join(["HTTP/1.1 200 OK", *lines, "", "abc: d\r\n\r\n"]).encode("iso-8859-1")

    class Arriving(io.RawIOBase):
        def __init__(self) -> None:
            self.left = io.BytesIO(head)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.left.readinto(memoryview(buffer)[:piece])

        def makefile(self, _: str) -> io.BufferedReader:
            return io.BufferedReader(self)

    def take_all(kind: type[http.client.HTTPResponse]) -> Any:
        try:
            answer = kind(Arriving())  # type: ignore[arg-type]
            answer.begin()
            framing = answer.length, answer.chunked, answer.will_close
            return answer.msg.items(), framing, answer.read()
        except http.client.HTTPException as exc:
            return repr(exc)

    assert take_all(_sockets._DeadlineResponse) == take_all(http.client.HTTPResponse)


# What surely never left ---------------------------------------------------------------


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_refused_connection_surely_delivered_nothing(carry: Any) -> None:
    """So it may be tried again."""
    with pytest.raises(APIConnectionError, match="refused") as caught:
        carry(get(f"http://127.0.0.1:{closed_port()}/"))
    assert caught.value.delivered == "no"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".test", "x..y"])
def test_a_name_that_leads_nowhere_surely_delivered_nothing(carry: Any, host: str) -> None:
    """Whether the resolver or the encoding refuses it."""
    with pytest.raises(APIConnectionError) as caught:
        carry(get(f"http://{host}/"))
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


def test_a_refused_submit_is_tried_again_and_then_told() -> None:
    """`max_retries` more attempts, each after a pause."""
    slept: list[float] = []
    polling = FixedInterval(0.01, sleep=slept.append)
    client = ImageLabs(f"http://127.0.0.1:{closed_port()}", max_retries=3, polling=polling)
    with pytest.raises(APIConnectionError) as caught:
        client.submit("x")
    assert caught.value.delivered == "no"
    assert len(slept) == 3
    client.close()


def test_no_time_left_means_nothing_is_sent(server: FaultyServer, carry: Any) -> None:
    """A deadline that has passed is not stretched."""
    with pytest.raises(APITimeoutError) as caught:
        carry(get(server.url + "/x"), 0.0)
    assert caught.value.delivered == "no"
    assert server.connections == 0


# TLS ----------------------------------------------------------------------------------


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def test_the_whole_way_works_over_tls(
    tls_server: FaultyServer, connect: Connect, bundle: str
) -> None:
    """With a bundle of one's own, as behind a company's proxy."""
    assert connect(tls_server, verify=bundle).generate("x").read() == PNG


def test_the_standard_variable_names_the_bundle(
    tls_server: FaultyServer, connect: Connect, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What works for requests works here."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    assert connect(tls_server).generate("x").read() == PNG


def test_a_certificate_that_is_not_trusted_is_an_error(
    tls_server: FaultyServer, connect: Connect
) -> None:
    """And nothing was sent to whoever showed it."""
    with pytest.raises(APIConnectionError, match="certificate is not trusted") as caught:
        connect(tls_server, max_retries=0).generate("x")
    assert caught.value.delivered == "no"
    assert not tls_server.asked


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


@pytest.mark.parametrize("path", ["/no/such/bundle.pem", 7, None])
def test_a_bundle_that_is_not_there_is_said_before_anything(path: Any) -> None:
    """Not as a request whose fate is unknown."""
    with pytest.raises(InvalidRequestError, match="verify"):
        ImageLabs("https://h.test", verify=path)


def test_a_bundle_of_the_environment_that_is_not_there_is_said(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is sent."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    with pytest.raises(InvalidRequestError, match="verify"):
        connect(server).submit("x")
    assert not server.asked


# The deadline -------------------------------------------------------------------------

# Each of these peers would be finished, or give up, only after many seconds; a deadline
# that is not obeyed shows as another outcome, not as a slow test.
SLOW_ANSWER = message(200, DONE_BODY)
SLOW = {
    "silence": faulty.hang(),
    "silence after the headers": faulty.hang(message(200, b"", [("Content-Length", "9")])),
    "one byte at a time from the start": faulty.drip(SLOW_ANSWER),
    "one byte at a time in a header": faulty.drip(b"z" * 200, b"HTTP/1.1 200 OK\r\nX-Y: "),
    "one byte at a time in the body": faulty.drip(
        DONE_BODY, message(200, b"", [("Content-Length", str(len(DONE_BODY)))])
    ),
    "one byte at a time in chunks": faulty.drip(
        b"1\r\n{\r\n" * 50, message(200, b"", [("Transfer-Encoding", "chunked")])
    ),
    "100 Continue without end": faulty.drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 20, every=0.005),
    "100 Continue in a flood": faulty.endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_submit_ends_at_the_deadline(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """`timeout` bounds everything, down to a single byte of a header."""
    server.scripts["/txt2img"] = [SLOW[kind]]
    with pytest.raises(SubmissionUnknownError, match="in time"):
        connect(server).generate("x", timeout=0.25)
    assert server.count("/txt2img") == 1


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_poll_ends_at_the_deadline(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """With the job in hand."""
    server.scripts["/progress"] = [SLOW[kind]]
    with pytest.raises(JobTimeoutError) as caught:
        connect(server).generate("x", timeout=0.25)
    assert caught.value.task_id == "task-1"


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_poll_costs_no_more_than_one_exchange(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """`request_timeout` bounds it, and the next poll succeeds."""
    server.scripts["/progress"] = [SLOW[kind], server.done()]
    assert connect(server, request_timeout=0.2).generate("x").read() == PNG


def test_a_body_without_end_is_cut_off(server: FaultyServer, connect: Connect) -> None:
    """In memory, not only in time: an answer has a megabyte at most."""
    head = message(200, b"", [("Transfer-Encoding", "chunked")])
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    server.scripts["/progress"] = [faulty.endless(piece, head), server.done()]
    assert connect(server).generate("x").read() == PNG


@pytest.mark.parametrize("seconds", [float("inf"), 1e10, 1e300])
def test_no_limit_is_a_limit_like_another(
    server: FaultyServer, connect: Connect, seconds: float
) -> None:
    """Sockets take only so large a number."""
    client = connect(server, timeout=seconds, request_timeout=seconds)
    assert client.generate("x").read() == PNG


def test_cookies_are_kept_within_bounds(server: FaultyServer, connect: Connect) -> None:
    """As browsers do: not too large ones, and not too many."""
    many = [("Set-Cookie", f"c{number}={'v' * 1000}; Path=/") for number in range(80)]
    server.scripts["/txt2img"] = [
        faulty.reply(200, {"task_id": "t"}, ("Set-Cookie", f"large={'v' * 5000}"), *many)
    ]
    connect(server).generate("x")
    cookie = server.asked[1].headers["cookie"]
    assert "large" not in cookie
    assert cookie.count("=") == 50


def test_a_deadline_holds_with_a_session_of_ones_own(server: FaultyServer) -> None:
    """Its pools are taught the deadline; outside our exchanges they stay as they were."""
    server.scripts["/progress"] = [SLOW["one byte at a time in a header"]]
    with requests.Session() as session:
        client = ImageLabs(server.url, transport=RequestsTransport(session=session))
        with pytest.raises(JobTimeoutError):
            client.get_job("t").wait(timeout=0.25)
        assert session.post(server.url + "/txt2img", timeout=5).json() == {"task_id": "task-1"}


# A session of one's own ---------------------------------------------------------------


def test_a_session_of_ones_own_keeps_what_it_does(server: FaultyServer) -> None:
    """Headers, auth, cookies and hooks of the caller's session go to the API."""
    hooked: list[int] = []
    with requests.Session() as session:
        session.headers["x-team"] = "blue"
        session.auth = ("user", "word")
        session.cookies.set("kept", "1")
        session.hooks["response"].append(lambda answer, **_: hooked.append(answer.status_code))
        transport = RequestsTransport(session=session)
        with ImageLabs(server.url, transport=transport, cookies="mine=2") as client:
            client.submit("x")
        transport.close()
        headers = server.asked[0].headers
        assert headers["x-team"] == "blue"
        assert headers["authorization"].startswith("Basic ")
        assert headers["cookie"] in ("mine=2; kept=1", "kept=1; mine=2")
        assert hooked == [200]
        assert session.get(server.url + "/image.png").content == PNG


def test_a_session_of_ones_own_does_not_tell_strangers(
    server: FaultyServer, other: FaultyServer
) -> None:
    """What the caller's session knows is meant for the API, not for whom its answers name."""
    server.scripts["/progress"] = [server.done(f"{other.url}/image.png")]
    with requests.Session() as session:
        session.headers["authorization"] = "hush"
        session.cookies["everywhere"] = "hush"
        transport = RequestsTransport(session=session)
        client = ImageLabs(server.url, transport=transport, allow_private_hosts=True)
        assert client.get_job("t").result().read() == PNG
    assert "hush" in str(server.asked[0].headers)
    assert "hush" not in str(other.asked[0].headers)


def test_a_session_of_ones_own_learns_nothing_of_strangers(
    server: FaultyServer, other: FaultyServer
) -> None:
    """A cookie planted by an image's host would be sent to the API."""
    other.scripts["/image.png"] = [faulty.reply(200, PNG, ("Set-Cookie", "planted=1; Path=/"))]
    server.scripts["/progress"] = [server.done(f"{other.url}/image.png")]
    with requests.Session() as session:
        transport = RequestsTransport(session=session)
        client = ImageLabs(server.url, transport=transport, allow_private_hosts=True)
        client.get_job("t").result().read()
        client.submit("x")
    assert "cookie" not in server.asked[-1].headers


def test_two_services_on_one_host_do_not_share_cookies(
    server: FaultyServer, other: FaultyServer
) -> None:
    """Another port is another origin, which cookies by themselves do not know."""
    server.scripts["/txt2img"] = [
        faulty.reply(200, {"task_id": "t"}, ("Set-Cookie", "session=hush; Path=/"))
    ]
    transport = RequestsTransport()
    for each in (server, other, server):
        ImageLabs(each.url, transport=transport).submit("x")
    assert "cookie" not in other.asked[0].headers
    assert server.asked[1].headers["cookie"] == "session=hush"
    transport.close()


@pytest.mark.parametrize("location", ["http://[bad", "/\xff\xfe", "http://elsewhere.test/"])
def test_a_session_of_ones_own_polls_into_no_redirect(server: FaultyServer, location: str) -> None:
    """requests would parse where it leads, and read its body to the end, however long."""
    head = f"HTTP/1.1 302 X\r\nLocation: {location}\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    server.scripts["/txt2img"] = [faulty.endless(piece, head.encode("latin-1"))]
    with requests.Session() as session:
        client = ImageLabs(server.url, transport=RequestsTransport(session=session))
        with pytest.raises(APIStatusError) as caught:
            client.submit("x")
    assert caught.value.status_code == 302


class OddPool(HTTPConnectionPool):
    """A pool of the caller's own making, as libraries for tracing or unix sockets have."""


class OddAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": OddPool, "https": OddPool}


def test_pools_of_another_kind_are_taught_too(server: FaultyServer, other: FaultyServer) -> None:
    """The deadline, the guard, and to send nothing twice."""
    server.scripts["/txt2img"] = [faulty.reset()]
    server.scripts["/progress"] = [server.done(f"{other.url}/image.png")]
    with requests.Session() as session:
        session.mount("http://", OddAdapter(max_retries=Retry(3, allowed_methods=None)))
        client = ImageLabs(server.url, transport=RequestsTransport(session=session))
        with pytest.raises(SubmissionUnknownError):
            client.submit("x")
        with pytest.raises(DownloadError, match="not a public address"):
            client.get_job("t").result().read()
    assert server.count("/txt2img") == 1
    assert other.connections == 0


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
    _sockets.install_deadlines(manager)
    token = _sockets.current.set(_sockets.Exchange(Deadline.after(5), public_only=False))
    assert manager.request("POST", server.url + "/txt2img", body=b"{}").status == 200
    _sockets.current.set(_sockets.Exchange(Deadline.after(5), public_only=True))
    with pytest.raises(_sockets.PrivateAddressError):
        manager.request("POST", server.url + "/txt2img", body=b"{}")
    _sockets.current.reset(token)
    manager.clear()
    assert len(OddConnection.dialled) == 1
    assert server.count("/txt2img") == 1


def test_a_session_of_ones_own_does_not_retry_below_us(server: FaultyServer) -> None:
    """An adapter's own retries would buy an image twice."""
    server.scripts["/txt2img"] = [faulty.reply(500), faulty.ACCEPTED]
    with requests.Session() as session:
        retries = Retry(3, allowed_methods=None, status_forcelist=[500])
        session.mount("http://", HTTPAdapter(max_retries=retries))
        client = ImageLabs(server.url, transport=RequestsTransport(session=session))
        with pytest.raises(ImageLabsError):
            client.submit("x")
        assert server.count("/txt2img") == 1
        assert session.post(server.url + "/txt2img").status_code == 200


def test_an_adapter_of_another_kind_is_left_alone() -> None:
    """It cannot be taught; it is used all the same."""

    class Canned(requests.adapters.BaseAdapter):
        def send(self, *_: Any, **__: Any) -> requests.Response:
            raise requests.ConnectTimeout("slow")

        def close(self) -> None:
            pass

    with requests.Session() as session:
        session.mount("http://", Canned())
        client = ImageLabs("http://h.test", transport=RequestsTransport(session=session))
        with pytest.raises(APITimeoutError) as caught:
            client.get_job("t").refresh()
        assert caught.value.delivered == "no"


@responses.activate(assert_all_requests_are_fired=True)
def test_responses_works_as_for_any_code_on_requests() -> None:
    """Users test their own code with it."""
    base = "https://editor.imagelabs.net"
    responses.post(f"{base}/txt2img", json={"task_id": "t"})
    responses.post(f"{base}/progress", json={"status": "Done", "final_image_url": "/x.png"})
    responses.get(f"{base}/x.png", body=PNG)
    with ImageLabs(poll_interval=0.01) as client:
        assert client.generate("x").read() == PNG


@responses.activate
def test_what_is_remembered_of_hosts_is_bounded() -> None:
    """A service may name a new host with every image."""
    transport = RequestsTransport()
    for number in range(200):
        url = f"https://h{number}.test/x"
        responses.post(url, body=b"x")
        request = HttpRequest(method="POST", url=url, cookies={})
        transport.send(request, deadline=Deadline.after(5)).close()
    assert len(transport._mine()._routes) <= 64
    transport.close()


@responses.activate
@pytest.mark.parametrize(
    ("failure", "delivered"),
    [
        (requests.ConnectTimeout("slow"), "no"),
        (requests.ReadTimeout("slow"), "maybe"),
        (requests.ConnectionError("reset"), "maybe"),
        (requests.exceptions.InvalidProxyURL("odd"), "no"),
        (
            requests.ConnectionError(
                MaxRetryError(None, "/", NewConnectionError(None, "refused"))  # type: ignore[arg-type]
            ),
            "no",
        ),
        (OSError("odd"), "maybe"),
    ],
)
def test_mocked_failures_are_translated(failure: Exception, delivered: str) -> None:
    """By the exception alone, with caution: nothing is known of a socket."""
    responses.post("https://h.test/progress", body=failure)
    with ImageLabs("https://h.test") as client, pytest.raises(APIConnectionError) as caught:
        client.get_job("t").refresh()
    assert caught.value.delivered == delivered


# Cookies ------------------------------------------------------------------------------


def test_cookies_that_the_service_sets_are_kept_and_win(
    server: FaultyServer, connect: Connect
) -> None:
    """A `cf_clearance` is renewed by the answers."""
    server.scripts["/txt2img"] = [
        faulty.reply(200, {"task_id": "t"}, ("Set-Cookie", "cf_clearance=new; Path=/"))
    ]
    connect(server, cookies="cf_clearance=old; session=s").generate("x")
    assert server.asked[0].headers["cookie"] == "cf_clearance=old; session=s"
    assert server.asked[1].headers["cookie"] == "cf_clearance=new; session=s"


# Proxies ------------------------------------------------------------------------------


def test_a_proxy_is_used_when_given_or_set(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By argument, by our variable or by the standard one; its password goes to it alone."""
    proxy = server.url.replace("http://", "http://user:word@")
    server.scripts["http://service.test/txt2img"] = [faulty.ACCEPTED]

    class Service:
        url = "http://service.test"

    connect(Service, proxy=proxy).submit("x")
    monkeypatch.setenv("HTTP_PROXY", proxy)
    connect(Service).submit("x")
    monkeypatch.setenv("NO_PROXY", "service.test")
    with pytest.raises(APIConnectionError):
        connect(Service, max_retries=0).submit("x")
    assert len(server.asked) == 2
    assert {asked.headers["proxy-authorization"] for asked in server.asked} == {
        "Basic dXNlcjp3b3Jk"
    }


def test_a_proxy_in_any_spelling_is_taught_the_deadline(connect: Connect) -> None:
    """requests spells it anew, and keeps its connections by that."""
    client = connect(FaultyAddress, proxy=f"HTTP://u:%zz@LocalHost:{closed_port()}", max_retries=0)
    with pytest.raises(APIConnectionError) as caught:
        client.submit("x")
    assert caught.value.delivered == "no"


class FaultyAddress:
    url = "http://service.test"


def tunnelling(server: FaultyServer, target: int) -> Callable[[faulty.Wire], None]:
    """A proxy's answer to CONNECT: a pipe to a port of this machine."""

    def answer(wire: faulty.Wire) -> None:
        wire.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", target)) as onward:
            back = threading.Thread(target=pump, args=(onward, wire.sock))
            back.start()
            pump(wire.sock, onward)
            back.join()

    return answer


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for sock in (source, sink):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def test_tls_goes_through_a_tunnel(
    server: FaultyServer, tls_server: FaultyServer, connect: Connect, bundle: str
) -> None:
    """The proxy sees the host's name and no more."""
    target = f"127.0.0.1:{tls_server.port}"
    server.scripts[target] = [tunnelling(server, tls_server.port)]
    connect(tls_server, proxy=server.url, verify=bundle).submit("x")
    assert server.asked[0].method == "CONNECT"
    assert tls_server.count("/txt2img") == 1


def test_a_proxy_that_refuses_surely_delivered_nothing(
    server: FaultyServer, tls_server: FaultyServer, connect: Connect
) -> None:
    """The request never got past it; and the password is not told."""
    server.scripts[f"127.0.0.1:{tls_server.port}"] = [faulty.reply(407)]
    proxy = server.url.replace("http://", "http://user:hush@")
    with pytest.raises(APIConnectionError) as caught:
        connect(tls_server, proxy=proxy, max_retries=0).submit("x")
    assert caught.value.delivered == "no"
    assert "hush" not in f"{caught.value} {caught.value.__cause__!r}"


# Addresses ----------------------------------------------------------------------------

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
    with pytest.raises(_sockets.PrivateAddressError):
        _sockets.refuse_private("host", [(None, None, None, None, (address, 80))])


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"]
)
def test_a_public_address_is_let_through(address: str) -> None:
    """A guard that refuses everything would hold too."""
    _sockets.refuse_private("host", [(None, None, None, None, (address, 80))])


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


@pytest.mark.parametrize(
    "proxy", ["http://u:hush@127.0.0.1:99999", "http://u:hush@", "http://u:\u20ac@h"]
)
def test_a_proxy_that_makes_no_sense_is_said_without_its_password(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """Wherever it comes from."""
    with pytest.raises(InvalidRequestError) as wrong:
        RequestsTransport(proxy=proxy)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(APIConnectionError) as caught:
        connect(server, max_retries=0).submit("x")
    shown = "".join(traceback.format_exception(caught.value)) + str(wrong.value)
    assert caught.value.delivered == "no"
    assert "hush" not in shown
    assert "\u20ac" not in shown


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


# Threads, forks, pickles --------------------------------------------------------------


def test_one_client_serves_32_threads(server: FaultyServer, connect: Connect) -> None:
    """Every job its own answer, and no connection used by two threads."""
    client = connect(server)
    numbers = iter(range(1000))
    lock = threading.Lock()

    def accept(wire: faulty.Wire) -> None:
        with lock:
            wire.send(message(200, b'{"task_id": "task-%d"}' % next(numbers)))

    server.scripts["/txt2img"] = [accept]
    with ThreadPoolExecutor(32) as pool:
        tasks = list(pool.map(lambda _: client.generate("x").task_id, range(96)))
    assert len(set(tasks)) == 96
    assert server.connections <= 32


def test_a_client_made_before_a_fork_works_on_both_sides(
    server: FaultyServer, connect: Connect
) -> None:
    """Prefork servers inherit it; parent and child must not share a connection."""
    client = connect(server)
    client.generate("x")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if client.generate("x").read() == PNG else 2
        finally:
            os._exit(code)
    assert client.generate("x").read() == PNG
    assert os.waitpid(child, 0)[1] == 0
    assert server.connections == 2


def test_a_closed_client_works_again(server: FaultyServer, connect: Connect) -> None:
    """A result outlives its client."""
    with connect(server) as client:
        image = client.generate("x")
    client.close()
    assert image.read() == PNG


def test_closing_closes_the_connections_of_all_threads(
    server: FaultyServer, connect: Connect
) -> None:
    """Not only those of the thread that closes."""
    client = connect(server)
    gate = threading.Barrier(5)

    def work(_: int) -> None:
        gate.wait()
        client.submit("x")
        gate.wait()
        gate.wait()

    with ThreadPoolExecutor(4) as pool:
        done = pool.map(work, range(4))
        gate.wait()
        gate.wait()
        sessions = list(client._context.endpoints.transport._sessions.all)  # type: ignore[attr-defined]
        assert sum(held(session) for session in sessions) == 4
        client.close()
        assert sum(held(session) for session in sessions) == 0
        gate.wait()
        list(done)


def held(session: Any) -> int:
    """Connections that a session keeps."""
    manager = session._session.get_adapter("http://x").poolmanager
    return sum(
        any(conn and conn.sock for conn in list(manager.pools.get(key).pool.queue))
        for key in manager.pools.keys()  # noqa: SIM118 - no dict
    )


def test_a_transport_pickles_without_its_connections(
    server: FaultyServer, connect: Connect
) -> None:
    """Settings travel, sockets do not."""
    transport = RequestsTransport(proxy="http://h.test:1", verify=False)
    assert pickle.loads(pickle.dumps(transport)) == transport
    client = connect(server)
    image = client.generate("x")
    again = pickle.loads(pickle.dumps(image))
    assert again == image
    assert again.read() == PNG
    again.job._context.endpoints.transport.close()


def test_files_and_sockets_are_closed_after_failures(
    server: FaultyServer, connect: Connect
) -> None:
    """Failures are where handles leak."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("this system does not list its open files")
    client = connect(server, request_timeout=0.2)
    client.submit("x")
    before = len(list(folder.iterdir()))
    for broken in BROKEN.values():
        server.scripts["/progress"] = [broken]
        with pytest.raises(ImageLabsError):
            client.get_job("t").refresh()
    server.scripts["/progress"] = [SLOW["silence"]]
    with pytest.raises(APITimeoutError):
        client.get_job("t").refresh()
    client.close()
    held_by_client = len(list(folder.iterdir())) - before
    assert held_by_client <= 2 * len(server.threads)


@pytest.mark.parametrize(
    ("held", "set_to"), [(None, 5.0), (4.9, 5.0), (5.0, None), (5.005, None), (5.02, 5.0)]
)
def test_no_wait_outlasts_the_deadline(held: float | None, set_to: float | None) -> None:
    """A hundredth of a second is not worth a system call for each piece of an answer."""
    sock = socket.socket()
    sock.settimeout(held)
    _sockets._limit_socket_timeout(sock, Deadline(5.0, clock=lambda: 0.0))
    assert sock.gettimeout() == (held if set_to is None else set_to)
    sock.close()


def test_a_socket_that_does_not_tell_its_timeout_is_given_it() -> None:
    """As those of pyOpenSSL, which urllib3 can be told to use."""

    class Socket:
        given: ClassVar[list[float]] = []

        def settimeout(self, seconds: float) -> None:
            self.given.append(seconds)

    _sockets._limit_socket_timeout(Socket(), Deadline(5.0, clock=lambda: 0.0))
    assert Socket.given == [5.0]


def test_plain_urllib3_is_left_as_it_is(server: FaultyServer) -> None:
    """Connections of ours outside an exchange behave as urllib3's own."""
    import urllib3

    manager = urllib3.PoolManager()
    _sockets.install_deadlines(manager)
    _sockets.install_deadlines(manager)
    answer = manager.request("POST", server.url + "/txt2img", body=b"{}")
    assert json.loads(answer.data) == {"task_id": "task-1"}
    manager.clear()


def test_tls_versions_below_1_2_are_not_offered() -> None:
    """The safe choice is the default; we leave it alone."""
    assert ssl.create_default_context().minimum_version >= ssl.TLSVersion.TLSv1_2
