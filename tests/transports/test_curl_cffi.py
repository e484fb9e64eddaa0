"""libcurl with a browser's handshake: the same promises, over real sockets."""

import contextlib
import functools
import gc
import json
import os
import pickle
import signal
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import trustme
from curl_cffi import lib

from imagelabs_sdk import (
    APIConnectionError,
    APITimeoutError,
    Deadline,
    ForbiddenAddressError,
    HttpRequest,
    ImageLabs,
    InvalidRequestError,
    RequestsTransport,
    Transport,
    sniff,
)
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.http import running
from imagelabs_sdk.server.local import LocalServer
from imagelabs_sdk.settings import IMAGE_HEADERS, USER_AGENT
from imagelabs_sdk.testing import PROMISES, check_transport
from imagelabs_sdk.transports import _addresses, _libcurl, curl_cffi
from imagelabs_sdk.transports.curl_cffi import CurlTransport
from tests import faulty
from tests.faulty import PNG, FaultyServer, message
from tests.test_docs import ROOT, blocks
from tests.transports.http2 import Http2Server
from tests.transports.peers import BROKEN, SLOW, closed_port, get, pump, squeezed, tunnelling

Connect = Callable[..., ImageLabs]


def post(url: str, **more: Any) -> HttpRequest:
    return HttpRequest(method="POST", url=url, **{"body": b"{}", "cookies": {}, **more})


@pytest.fixture
def transport() -> Iterator[CurlTransport]:
    carrier = CurlTransport()
    yield carrier
    carrier.close()


@pytest.fixture
def trusting(bundle: str) -> Iterator[CurlTransport]:
    carrier = CurlTransport(verify=bundle)
    yield carrier
    carrier.close()


@pytest.fixture
def http2(authority: trustme.CA) -> Iterator[Http2Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = Http2Server(context)
    yield server
    server.close()


def ask(transport: Transport, request: HttpRequest, seconds: float = 5.0) -> bytes:
    with transport.send(request, deadline=Deadline.after(seconds)) as response:
        return response.read(10**6)


def fail(transport: Transport, request: HttpRequest, seconds: float = 5.0) -> APIConnectionError:
    with pytest.raises(APIConnectionError) as caught:
        ask(transport, request, seconds)
    return caught.value


# The promises ----------------------------------------------------------------------------


def test_it_keeps_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the default transport, by the same suite."""
    check_transport(CurlTransport)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].split() for line in lines] == [["ok", name] for name in PROMISES]


@pytest.mark.parametrize("peer", SLOW)
def test_a_slow_answer_ends_at_the_deadline(
    server: FaultyServer, transport: CurlTransport, peer: str
) -> None:
    """These peers would go on for many seconds."""
    server.scripts["/x"] = [SLOW[peer]]
    error = fail(transport, post(f"{server.url}/x"), 0.3)
    flood = "Too large response headers" in str(error)  # 300 kB, which is libcurl's limit
    assert isinstance(error, APITimeoutError) or flood
    assert error.delivered == "maybe"


@pytest.mark.parametrize("peer", BROKEN)
def test_a_broken_answer_is_an_error_of_ours(
    server: FaultyServer, transport: CurlTransport, peer: str
) -> None:
    """Whatever libcurl calls it; and the request was sent once."""
    server.scripts["/x"] = [BROKEN[peer]]
    error = fail(transport, post(f"{server.url}/x"))
    assert error.delivered == "maybe"
    assert "no answer" in str(error)
    assert server.count("/x") == 1


def test_a_silence_in_the_body_ends_it_and_a_steady_drip_does_not(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """A slow line may take longer than the idle timeout, which bounds each silence."""
    head = message(200, b"", [("Content-Length", "20")])
    server.scripts["/steady"] = [faulty.drip(b"x" * 20, head, 0.05)]
    server.scripts["/stops"] = [faulty.hang(head + b"x")]
    assert len(ask(transport, get(f"{server.url}/steady", idle_timeout=0.6))) == 20
    deadline = Deadline.after(20)
    with (
        pytest.raises(APITimeoutError),
        transport.send(get(f"{server.url}/stops", idle_timeout=0.2), deadline=deadline) as response,
    ):
        response.read(100)
    assert deadline.remaining() > 10


def test_the_head_is_returned_before_a_body_comes(
    server: FaultyServer, transport: CurlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller may want no more than the status."""
    monkeypatch.setattr(_libcurl, "_LONGEST_WAIT", 60.0)
    server.scripts["/x"] = [faulty.hang(message(200, b"", [("Content-Length", "9")]))]
    deadline = Deadline.after(10)
    transport.send(post(f"{server.url}/x"), deadline=deadline).close()
    assert deadline.remaining() > 5


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
def test_a_caller_who_wants_to_stop_is_heard(
    server: FaultyServer, transport: CurlTransport, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the head and in the body; the server would hang for 30 s."""
    monkeypatch.setattr(_libcurl, "_LONGEST_WAIT", 60.0)
    stop = threading.Event()

    def answer(wire: faulty.Wire) -> None:
        wire.send(begun)
        threading.Timer(0.1, stop.set).start()
        wire.hang()

    server.scripts["/x"] = [answer]
    deadline = Deadline.from_timeout(20, stop=stop)
    with (
        pytest.raises(APIConnectionError, match="stopped by the caller"),
        transport.send(post(f"{server.url}/x"), deadline=deadline) as response,
    ):
        response.read(100)
    assert deadline.remaining() > 10


# What is sent ----------------------------------------------------------------------------


def hello(carrier: Transport) -> dict[int, bytes]:
    """Return the ClientHello of a transport: its extensions by type; -1: the cipher suites."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        thread = threading.Thread(target=fail, args=(carrier, post(url), 5))
        thread.start()
        sock, _ = listener.accept()
        with sock, sock.makefile("rb") as file:
            record = file.read(5)
            data = file.read(int.from_bytes(record[3:5], "big"))
    thread.join()
    carrier.close()
    assert (record[0], data[0]) == (22, 1)  # a handshake, a ClientHello

    def block(position: int, size: int) -> tuple[bytes, int]:
        """Return what stands behind a length of so many bytes, and where it ends."""
        begin = position + size
        end = begin + int.from_bytes(data[position:begin], "big")
        return data[begin:end], end

    _, position = block(38, 1)  # behind type, length, version and random: the session
    suites, position = block(position, 2)
    _, position = block(position, 1)  # compression
    _, end = block(position, 2)
    found, position = {-1: suites}, position + 2
    while position < end:
        kind = int.from_bytes(data[position : position + 2], "big")
        found[kind], position = block(position + 2, 2)
    return found


def is_grease(value: int) -> bool:
    """Return True for a value that browsers send so that servers must ignore it (RFC 8701)."""
    return value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF


def test_the_handshake_is_a_browsers() -> None:
    """Read off the wire, and other than that of `requests`."""
    browser, plain = hello(CurlTransport()), hello(RequestsTransport())
    suites = [int.from_bytes(browser[-1][at : at + 2], "big") for at in range(0, 6, 2)]
    assert is_grease(suites[0])
    assert suites[1:] == [0x1301, 0x1302]  # Chrome's order
    assert sum(map(is_grease, browser)) == 2  # the first and the last extension
    assert browser[16] == b"\x00\x0c\x02h2\x08http/1.1"  # ALPN
    chromes_own = {17613, 27, 65037}  # ALPS, compressed certificates, encrypted ClientHello
    assert chromes_own <= browser.keys()
    assert not chromes_own & plain.keys()
    assert not any(map(is_grease, plain))
    assert browser[-1] != plain[-1]
    assert b"h2" not in plain.get(16, b"")


def sent(server: FaultyServer, transport: Transport, request: HttpRequest) -> dict[str, str]:
    with contextlib.suppress(APIConnectionError):
        ask(transport, request)
    return server.asked[-1].headers


def test_without_a_user_agent_of_ones_own_the_browsers_is_sent(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """Chrome's handshake with another version's name would be told at once."""
    headers = sent(server, transport, post(f"{server.url}/x", headers={"user-agent": USER_AGENT}))
    version = headers["user-agent"].partition("Chrome/")[2].partition(".")[0]
    assert USER_AGENT not in headers["user-agent"]
    assert f'"Google Chrome";v="{version}"' in headers["sec-ch-ua"]
    firefox = CurlTransport(impersonate="firefox")
    headers = sent(server, firefox, get(f"{server.url}/x", headers=IMAGE_HEADERS))
    firefox.close()
    assert "Firefox/" in headers["user-agent"]
    assert headers["accept"] == IMAGE_HEADERS["accept"]


def test_a_user_agent_of_ones_own_is_sent_without_hints_of_another(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """It belongs to a cookie that a browser has got."""
    own = {"User-Agent": "Mozilla/5.0 (mine)", "x-empty": ""}
    headers = sent(server, transport, post(f"{server.url}/x", headers=own))
    assert headers["user-agent"] == "Mozilla/5.0 (mine)"
    assert not {name for name in headers if name.startswith("sec-ch-ua")}
    assert headers["x-empty"] == ""
    hinting = {**own, "sec-ch-ua": '"Mine";v="1"'}
    assert sent(server, transport, post(server.url, headers=hinting))["sec-ch-ua"] == '"Mine";v="1"'


def test_the_headers_are_those_of_a_pages_own_requests(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """Not those of a person who opens a page; and only codings that are decoded in steps."""
    headers = sent(server, transport, post(f"{server.url}/x", headers={"accept": "*/*"}))
    fetch = [headers[f"sec-fetch-{each}"] for each in ("site", "mode", "dest")]
    assert fetch == ["same-origin", "cors", "empty"]
    strange = {"sec-fetch-user", "upgrade-insecure-requests", "expect", "upgrade", "content-type"}
    assert not strange & headers.keys()
    assert headers["accept-encoding"] == "gzip, deflate"
    headers = sent(server, transport, get(f"{server.url}/x"))
    fetch = [headers[f"sec-fetch-{each}"] for each in ("site", "mode", "dest")]
    assert fetch == ["cross-site", "no-cors", "image"]


def test_a_large_body_is_sent_whole_and_at_once(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """An image to start from; libcurl would ask first, with ``Expect``, and might send twice."""
    body = os.urandom(3_000_000)
    server.scripts["/x"] = [faulty.reply(417), faulty.reply(200)]
    headers = sent(server, transport, post(f"{server.url}/x", body=body))
    assert "expect" not in headers
    assert [asked.body == body for asked in server.asked] == [True]


def test_a_url_is_sent_to_the_letter(
    server: FaultyServer, transport: CurlTransport, http2: Http2Server, trusting: CurlTransport
) -> None:
    """It may be signed."""
    proxied = CurlTransport(proxy=server.url)
    for path in ("/a%2fb?x=%7e%zz", "/a/../b", "/plain?x=1"):
        ask(transport, get(f"{server.url}{path}"))
        ask(proxied, get(f"http://h.invalid{path}"))
        assert [asked.path for asked in server.asked[-2:]] == [path, f"http://h.invalid{path}"]
        ask(trusting, get(f"{http2.url}{path}#part"))
        assert http2.asked[-1].path == path
    proxied.close()


def test_what_cannot_be_sent_surely_was_not(transport: CurlTransport) -> None:
    """And what libcurl says of it is not shown: it quotes what it was given."""
    bad = post("http://127.0.0.1:1/", headers={"x-one": "a\r\nx-two: hush"})
    for request, words in (
        (bad, "line break"),
        (post("http://127.0.0.1:1/", headers={"x": "\u20ac"}), "latin-1"),
        (post("http://127.0.0.1:1/with space"), "libcurl 3: "),
        (post("ftp://127.0.0.1:1/"), "libcurl 1: "),
        (post("http://127.0.0.1:1/?hush" + "x" * 9_000_000), "libcurl does not take the request"),
    ):
        error = fail(transport, request)
        assert words in str(error)
        assert error.delivered == "no"
        assert "hush" not in f"{error} {error.__cause__}"


# Connections -----------------------------------------------------------------------------


def test_polls_share_a_connection_and_a_submit_and_an_image_do_not(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """libcurl would repeat what it can when a kept connection turns out dead."""
    url = f"{server.url}/progress"
    for request, connection in (
        (post(url), 1),
        (post(url), 1),
        (post(url, repeatable=False), 2),
        (post(url), 2),
        (get(url), 3),
        (post(url), 2),
        (post(url, body=b""), 4),
        (post(url), 4),
    ):
        ask(transport, request)
        assert server.asked[-1].connection == connection


@pytest.mark.parametrize("end", [faulty.raw(b""), faulty.reset()], ids=["closed", "reset"])
@pytest.mark.parametrize("repeatable", [True, False])
def test_a_post_over_a_dead_connection_is_read_once(
    server: FaultyServer, transport: CurlTransport, end: faulty.Answer, repeatable: bool
) -> None:
    """The server reads it and goes; libcurl takes the connection for one that had been dead."""
    ask(transport, post(f"{server.url}/progress"))
    server.scripts["/x"] = [end]
    error = fail(transport, post(f"{server.url}/x", repeatable=repeatable))
    assert (error.delivered, server.count("/x")) == ("maybe", 1)
    assert ("before an answer came" in str(error)) is repeatable


def test_a_connection_idle_for_long_is_not_trusted(
    server: FaultyServer, transport: CurlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something on the way may have forgotten it. libcurl counts whole seconds."""
    monkeypatch.setattr(curl_cffi, "_MAX_IDLE", 1)
    ask(transport, post(f"{server.url}/progress"))
    ask(transport, post(f"{server.url}/progress"))
    assert server.connections == 1
    sleep(2.1)
    ask(transport, post(f"{server.url}/progress"))
    assert server.connections == 2


def test_requests_at_once_have_connections_of_their_own(
    server: FaultyServer, transport: CurlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is read slowly holds up nobody; and only so many are kept afterwards."""
    monkeypatch.setattr(curl_cffi, "_MAX_KEPT", 2)
    deadline = Deadline.after(5)
    answers = [transport.send(post(f"{server.url}/progress"), deadline=deadline) for _ in range(3)]
    assert {answer.read(1000) for answer in answers} == {answers_of(server)}
    assert len(transport._process.kept) == 2


def answers_of(server: FaultyServer) -> bytes:
    body = {"status": "Done", "progress": 1, "final_image_url": f"{server.url}/image.png"}
    return json.dumps(body).encode()


def test_closing_leaves_what_is_in_use_to_its_end(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """Its connection is closed then."""
    with transport.send(post(f"{server.url}/progress"), deadline=Deadline.after(5)) as response:
        transport.close()
        assert response.read(1000) == answers_of(server)
        server.threads[1].join(5)  # it serves the connection
        assert not server.threads[1].is_alive()


def test_a_response_that_was_closed_says_so(server: FaultyServer, transport: CurlTransport) -> None:
    """Whoever goes on reading gets an error, and no crash."""
    server.scripts["/x"] = [faulty.hang(message(200, b"", [("Content-Length", "9")]) + b"half")]
    response = transport.send(get(f"{server.url}/x"), deadline=Deadline.after(5))
    pieces = response.iter_bytes()
    assert next(pieces) == b"half"
    response.close()
    with pytest.raises(APIConnectionError, match="closed before its end") as caught:
        next(pieces)
    assert caught.value.delivered == "maybe"


class Watch:
    """libcurl, which must not be called while another thread is inside."""

    def __init__(self) -> None:
        self.lock, self.broken = threading.Lock(), False

    def __getattr__(self, name: str) -> Any:
        function = getattr(lib, name)
        return functools.partial(self.call, function) if name.startswith("curl_multi") else function

    def call(self, function: Any, *args: Any) -> Any:
        self.broken = self.broken or not self.lock.acquire(blocking=False)
        try:
            return function(*args)
        finally:
            with contextlib.suppress(RuntimeError):  # released by the other
                self.lock.release()


def test_another_thread_may_close_a_response(
    server: FaultyServer, transport: CurlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is waited for; libcurl may crash if two threads are inside."""
    watch = Watch()
    monkeypatch.setattr(_libcurl, "lib", watch)
    head = message(200, b"", [("Content-Length", "9")])
    server.scripts["/x"] = [faulty.hang(head)]
    response = transport.send(get(f"{server.url}/x"), deadline=Deadline.after(20))
    closer = threading.Timer(0.1, response.close)
    closer.start()
    with pytest.raises(APIConnectionError, match="closed before its end"):
        response.read(1000)
    closer.join()
    assert not watch.broken


def test_a_response_that_nobody_closes_leaves_no_socket(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """It ends with its last reference."""
    server.scripts["/x"] = [faulty.hang(message(200, b"", [("Content-Length", "9")]))]
    response = transport.send(get(f"{server.url}/x"), deadline=Deadline.after(5))
    del response
    (end,) = server.open
    assert end.recv(1) == b""


def test_no_file_is_left_open_after_failures(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """Failures are where handles leak."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("this system does not list its open files")
    before = len(list(folder.iterdir()))
    for peer in BROKEN.values():
        server.scripts["/x"] = [peer]
        fail(transport, post(f"{server.url}/x"))
    server.scripts["/x"] = [SLOW["silence"]]
    fail(transport, post(f"{server.url}/x"), 0.1)
    transport.close()
    held = len(list(folder.iterdir())) - before
    assert held <= 2 * len(server.threads)


# Interruptions ---------------------------------------------------------------------------


def test_ctrl_c_ends_a_wait(server: FaultyServer, transport: CurlTransport) -> None:
    """Although libcurl is C."""

    def answer(wire: faulty.Wire) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wire.hang()

    server.scripts["/x"] = [answer]
    with pytest.raises(KeyboardInterrupt):
        ask(transport, post(f"{server.url}/x"), 20)


@pytest.mark.parametrize("place", ["send", "take_line", "take_piece"])
def test_ctrl_c_while_libcurl_calls_us_is_not_swallowed(
    server: FaultyServer, transport: CurlTransport, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """C has no exceptions."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_libcurl._State, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(transport, post(f"{server.url}/progress"))


# What comes back -------------------------------------------------------------------------


def test_a_head_is_read_as_it_is_meant(server: FaultyServer, transport: CurlTransport) -> None:
    """Interim answers are read past, repeated headers joined, trailers left alone."""
    chunks = faulty.chunked(b"ok", end=b"0\r\nX-Late: no\r\n\r\n")
    head = [("X-A", "1"), ("x-a", "2"), ("X-Odd", "\xe4"), ("Transfer-Encoding", "chunked")]
    early = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
    answer = message(200, chunks, head).decode().encode("latin-1")
    server.scripts["/x"] = [faulty.raw(early + answer)]
    with transport.send(post(f"{server.url}/x"), deadline=Deadline.after(5)) as response:
        assert (response.status, response.read(100)) == (200, b"ok")
    assert response.headers == {"x-a": "1, 2", "x-odd": "\xe4", "transfer-encoding": "chunked"}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_codings_are_undone(server: FaultyServer, transport: CurlTransport, coding: str) -> None:
    """Those that were offered."""
    body = squeezed(b"plain") if coding == "gzip" else zlib.compress(b"plain")
    server.scripts["/x"] = [faulty.reply(200, body, ("Content-Encoding", coding))]
    assert ask(transport, post(f"{server.url}/x")) == b"plain"


def test_a_transfer_coding_that_nobody_asked_for_is_refused(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """libcurl would inflate it without a limit."""
    body = faulty.chunked(squeezed(bytes(1000)))
    server.scripts["/x"] = [
        faulty.raw(message(200, body, [("Transfer-Encoding", "gzip, chunked")]))
    ]
    assert "libcurl 61" in str(fail(transport, post(f"{server.url}/x")))


def test_cookies_are_kept_within_limits_and_for_all_threads(
    server: FaultyServer, transport: CurlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a browser does."""
    monkeypatch.setattr(curl_cffi, "_MAX_ORIGINS", 2)
    lines = [("Set-Cookie", f"c{n}=1") for n in range(60)]
    lines += [("Set-Cookie", "huge=" + "x" * 5000)]
    server.scripts["/x"] = [faulty.reply(200, b"", *lines), faulty.reply(200)]
    thread = threading.Thread(target=ask, args=(transport, post(f"{server.url}/x")))
    thread.start()
    thread.join()
    cookies = sent(server, transport, post(f"{server.url}/x"))["cookie"].split("; ")
    assert len(cookies) == 50
    assert not [cookie for cookie in cookies if cookie.startswith("huge")]
    assert "cookie" not in sent(server, transport, post(f"{server.url}/x", jar="another"))
    for number in range(2):
        ask(transport, post(f"{server.url}/x", jar=str(number)))
    assert len(transport._process.jars) <= 2


# TLS and proxies -------------------------------------------------------------------------


def test_a_certificate_is_checked(
    tls_server: FaultyServer, transport: CurlTransport, trusting: CurlTransport
) -> None:
    """By an authority that one names; and nothing leaves before."""
    request = post(f"{tls_server.url}/progress")
    error = fail(transport, request)
    assert "the certificate is not trusted: " in str(error)
    assert error.delivered == "no"
    assert b"Done" in ask(trusting, request)
    careless = CurlTransport(verify=False)
    assert b"Done" in ask(careless, request)
    careless.close()
    stranger = post(tls_server.url.replace("127.0.0.1", "localhost"))
    assert "not trusted" in str(fail(trusting, stranger))


def test_authorities_come_from_the_environment(
    tls_server: FaultyServer,
    authority: trustme.CA,
    bundle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same variables as for the default transport: a file, or a folder of hashed names."""
    request = post(f"{tls_server.url}/progress")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    assert b"Done" in ask(CurlTransport(), request)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    folder = tmp_path / "authorities"
    folder.mkdir()
    command = ["openssl", "x509", "-hash", "-noout", "-in", bundle]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    authority.cert_pem.write_to_path(folder / f"{found.stdout.strip()}.0")
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    assert b"Done" in ask(CurlTransport(), request)
    assert b"Done" in ask(CurlTransport(verify=str(folder)), request)


def test_a_handshake_that_hangs_ends_at_the_deadline(transport: CurlTransport) -> None:
    """And nothing was delivered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = fail(transport, post(f"https://127.0.0.1:{listener.getsockname()[1]}/"), 0.3)
    assert isinstance(error, APITimeoutError)
    assert error.delivered == "no"


def test_a_tunnel_sees_none_of_it(
    server: FaultyServer, tls_server: FaultyServer, bundle: str
) -> None:
    """Neither cookies nor headers go to the proxy; its password does."""
    proxy = server.url.replace("http://", "http://user:p%40ss@")
    target = f"127.0.0.1:{tls_server.port}"
    server.scripts[target] = [tunnelling(server, tls_server.port)]
    transport = CurlTransport(proxy=proxy, verify=bundle)
    request = post(
        f"{tls_server.url}/progress", cookies={"secret": "hush"}, headers={"x-key": "hush"}
    )
    assert b"Done" in ask(transport, request)
    transport.close()
    assert server.asked[0].method == "CONNECT"
    assert server.asked[0].headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    assert "hush" not in str(server.asked)
    assert "proxy-authorization" not in tls_server.asked[0].headers
    assert tls_server.asked[0].headers["x-key"] == "hush"
    assert "p%40ss" not in repr(transport)


def test_who_fails_on_the_way_is_named(
    server: FaultyServer, tls_server: FaultyServer, bundle: str
) -> None:
    """The proxy or the service; without the proxy's password."""
    port = closed_port()
    for base in (server, tls_server):
        transport = CurlTransport(proxy=f"http://u:hush@127.0.0.1:{port}")
        error = fail(transport, post(base.url))
        assert f"the proxy 127.0.0.1:{port}: " in str(error)
        assert error.delivered == "no"
        assert "hush" not in f"{error} {error.__cause__}"
    target = f"127.0.0.1:{tls_server.port}"
    server.scripts[target] = [faulty.reply(502), tunnelling(server, tls_server.port)]
    transport = CurlTransport(proxy=server.url)
    error = fail(transport, post(tls_server.url))
    assert f"the proxy 127.0.0.1:{server.port}: " in str(error)
    assert (error.delivered, "502" in str(error)) == ("no", True)
    where = f"{target} by proxy 127.0.0.1:{server.port}"
    error = fail(transport, post(tls_server.url))
    assert f"{where}: no answer (the certificate is not trusted" in str(error)
    assert error.delivered == "no"
    transport.close()


def test_proxies_of_the_environment_count(
    server: FaultyServer, other: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same rules as for the default transport, whatever libcurl's own are."""
    monkeypatch.setattr(curl_cffi, "_MAX_ORIGINS", 1)
    monkeypatch.setenv("HTTP_PROXY", other.url)
    transport = CurlTransport()
    url = f"{server.url}/progress"
    other.scripts[url] = [faulty.reply(200)]
    ask(transport, post(url))
    ask(transport, post("http://elsewhere.invalid/"))
    assert (server.connections, other.connections) == (0, 1)
    monkeypatch.setenv("http_proxy", other.url)  # libcurl reads the small one only
    monkeypatch.setenv("NO_PROXY", f"localhost:{server.port}")  # and no port
    ask(CurlTransport(), post(url.replace("127.0.0.1", "localhost")))
    assert (server.connections, other.connections) == (1, 1)
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ask(CurlTransport(), post(url))
    ask(CurlTransport(proxy=other.url, no_proxy=True), post(url))
    assert (server.connections, other.connections) == (3, 1)
    ask(CurlTransport(proxy=other.url), post(url))
    assert (server.connections, other.connections) == (3, 2)


def socks(wire: socket.socket, port: int) -> None:
    """Serve one connection as a SOCKS5 proxy, which leads to a port here whatever it is told."""
    with wire, wire.makefile("rb") as file, socket.create_connection(("127.0.0.1", port)) as onward:
        file.read(file.read(2)[1])
        wire.sendall(b"\x05\x00")  # no password
        file.read(4)
        file.read(file.read(1)[0] + 2)
        wire.sendall(b"\x05\x00\x00\x01" + bytes(6))
        back = threading.Thread(target=pump, args=(onward, wire))
        back.start()
        pump(wire, onward)
        back.join()


def test_a_socks_proxy_resolves_the_name(server: FaultyServer) -> None:
    """With ``socks5h``; nothing else has to be installed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport = CurlTransport(proxy=f"socks5h://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=lambda: socks(listener.accept()[0], server.port))
        thread.start()
        assert b"Done" in ask(transport, post("http://no-such-host.invalid/progress"))
        transport.close()
        thread.join()


# The address guard -----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0"])
def test_a_guarded_request_reaches_no_private_host(
    server: FaultyServer, transport: CurlTransport, host: str
) -> None:
    """However it is spelled, and before a connection is opened."""
    with pytest.raises(ForbiddenAddressError):
        ask(transport, get(f"http://{host}:{server.port}/x", public_only=True))
    assert server.connections == 0


@pytest.mark.parametrize("host", ["images.invalid", "IMAGES.invalid.", "10.0.0.1", "[fd00::1]"])
def test_a_connection_goes_to_the_address_that_was_checked(
    server: FaultyServer, transport: CurlTransport, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """And to no other, whatever libcurl makes of the name: here it can resolve none of them."""
    ask(transport, post(f"{server.url}/progress"))
    monkeypatch.setattr(_addresses, "_is_public", lambda address: address == "127.0.0.1")
    place = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", server.port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place])
    for _ in range(2):
        guarded = get(f"http://{host}:{server.port}/image.png", public_only=True)
        assert ask(transport, guarded) == PNG
    assert server.asked[-1].headers["host"].lower().startswith(host.lower().rstrip("."))


def test_one_private_address_among_public_ones_is_enough(
    transport: CurlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libcurl would try them all."""
    found = [(None, None, None, None, (each, 80)) for each in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ForbiddenAddressError, match=r"10\.0\.0\.1"):
        ask(transport, get("http://both.test/x", public_only=True))


def test_a_name_that_nobody_knows_is_an_error_of_ours(
    transport: CurlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever resolves it."""

    def unknown(*_: object, **__: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = fail(transport, get("http://images.invalid/x", public_only=True))
    assert "gaierror" in str(error)
    assert error.delivered == "no"


def test_a_proxy_is_not_asked_for_a_private_host(server: FaultyServer) -> None:
    """The proxy may be inside the network that is to be guarded."""
    transport = CurlTransport(proxy=server.url)
    for host in ("127.0.0.1", "127.0.0.1.", "localhost."):
        with pytest.raises(ForbiddenAddressError):
            ask(transport, get(f"http://{host}:1/x", public_only=True))
    assert server.connections == 0
    ask(transport, get("http://no-such-host.invalid/x", public_only=True))
    assert server.count("http://no-such-host.invalid/x") == 1
    transport.close()


# HTTP/2, which the public service speaks --------------------------------------------------


def test_http_2_is_spoken_where_the_server_can(http2: Http2Server, trusting: CurlTransport) -> None:
    """As a browser does; polls share a connection, and a submit does not."""
    for repeatable, connections in ((True, 1), (True, 1), (False, 2), (True, 2)):
        assert ask(trusting, post(f"{http2.url}/x", repeatable=repeatable)) == b"{}"
        assert http2.connections == connections
    names = [name for name in http2.asked[0].headers if name.startswith(":")]
    assert names == [":method", ":authority", ":scheme", ":path"]  # in Chrome's order


@pytest.mark.parametrize("path", ["/silence", "/drip"])
def test_a_slow_stream_ends_at_the_deadline(
    http2: Http2Server, trusting: CurlTransport, path: str
) -> None:
    """Also frame by frame."""
    error = fail(trusting, post(f"{http2.url}{path}"), 0.4)
    assert isinstance(error, APITimeoutError)
    assert error.delivered == "maybe"


@pytest.mark.parametrize("path", ["/close", "/cut", "/go-away", "/refuse"])
@pytest.mark.parametrize("how", ["submit", "poll"])
def test_a_stream_that_breaks_is_not_sent_again(
    http2: Http2Server, trusting: CurlTransport, path: str, how: str
) -> None:
    """libcurl would repeat one that the server calls unprocessed; who knows if that is true."""
    if how == "poll":
        ask(trusting, post(f"{http2.url}/x"))
    error = fail(trusting, post(f"{http2.url}{path}", repeatable=how == "poll"))
    assert error.delivered == "maybe"
    assert http2.count(path) == 1


@pytest.mark.parametrize("path", ["/close", "/cut", "/go-away", "/refuse"])
def test_a_get_that_was_not_processed_is_repeated_within_limits(
    http2: Http2Server, trusting: CurlTransport, path: str
) -> None:
    """That is libcurl's own; it has no body that could be read once only."""
    assert fail(trusting, get(f"{http2.url}{path}")).delivered == "maybe"
    assert http2.count(path) == (6 if path in ("/go-away", "/refuse") else 1)


def test_a_connection_that_has_brought_no_answer_is_not_used_again(
    http2: Http2Server, trusting: CurlTransport
) -> None:
    """HTTP/2 would keep it, and it may be dead."""
    ask(trusting, post(f"{http2.url}/x"))
    fail(trusting, post(f"{http2.url}/silence"), 0.3)
    assert http2.connections == 1
    ask(trusting, post(f"{http2.url}/x"))
    assert http2.connections == 2


def test_a_stream_is_inflated_in_steps(http2: Http2Server, trusting: CurlTransport) -> None:
    """64 kB become 64 MB."""
    request = get(f"{http2.url}/bomb")
    with trusting.send(request, deadline=Deadline.after(20)) as response:
        sizes = [len(piece) for piece in response.iter_bytes()]
    assert sum(sizes) == 64 * 1024 * 1024
    assert max(sizes) < 1024 * 1024


def test_a_stream_is_not_read_ahead(http2: Http2Server, trusting: CurlTransport) -> None:
    """What nobody takes stays with the server."""
    request = get(f"{http2.url}/endless")
    with trusting.send(request, deadline=Deadline.after(20)) as response:
        assert len(next(response.iter_bytes())) < 1024 * 1024


# Processes -------------------------------------------------------------------------------


def test_settings_travel_and_connections_do_not(
    server: FaultyServer, transport: CurlTransport
) -> None:
    """To another process, perhaps with another curl_cffi."""
    ask(transport, post(f"{server.url}/progress"))
    assert not pickle.loads(pickle.dumps(transport))._process.kept
    other = CurlTransport(impersonate="safari", proxy="http://h.test:1", verify=False)
    assert pickle.loads(pickle.dumps(other)) == other
    assert other != transport


def test_a_transport_that_was_used_before_a_fork_works_on_both_sides(
    http2: Http2Server, trusting: CurlTransport
) -> None:
    """The child ends nothing of its parent's: whatever it wrote would break the encryption."""
    poll = post(f"{http2.url}/x")
    held = trusting.send(post(f"{http2.url}/half"), deadline=Deadline.after(20))
    pieces = held.iter_bytes()
    assert next(pieces) == b"half"
    ask(trusting, poll)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ask(trusting, poll)
            with contextlib.suppress(APIConnectionError):
                next(pieces)  # it is the parent's
                code = 2
            held.close()
            del held, pieces
            gc.collect()
            code = 0 if code == 1 else code
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert http2.connections == 3
    http2.go_on.set()
    assert b"".join(pieces) == b"half"
    for _ in range(2):  # over the connection that was held, and over the one that was kept
        first = trusting.send(poll, deadline=Deadline.after(5))
        ask(trusting, poll)
        first.read(1000)
    assert http2.connections == 3


# The whole way ---------------------------------------------------------------------------


def test_an_image_is_made_over_it(tmp_path: Path, transport: CurlTransport) -> None:
    """From the prompt to the file, by the built-in server."""
    with (
        running(LocalServer(LandscapeEngine(duration=0.2))) as url,
        ImageLabs(url, transport=transport) as client,
    ):
        path = client.generate("a lighthouse", width=64, height=64).save(tmp_path / "image.png")
    assert sniff(path.read_bytes()) is not None


def test_a_client_comes_through_a_bad_poll_and_a_bad_download(
    server: FaultyServer, transport: CurlTransport, connect: Connect
) -> None:
    """As over the default transport: what is paid for is not lost."""
    server.scripts["/progress"] = [faulty.reset(), faulty.raw(b""), faulty.RUNNING, server.done()]
    cut = faulty.raw(message(200, PNG[:40], [("Content-Length", str(len(PNG)))]))
    server.scripts["/image.png"] = [cut, faulty.reply(200, PNG)]
    assert connect(server, transport=transport).generate("x").read() == PNG
    assert server.count("/txt2img") == 1


def test_the_lines_of_the_documentation_work(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader copies them."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", server.url)
    page = ROOT / "docs" / "howto" / "cloudflare.md"
    (code,) = [block.code for block in blocks(page) if "CurlTransport" in block.code]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["client"].generate("x").read() == PNG
    names["client"].close()


@pytest.mark.parametrize("name", ["netscape", "", None, 7])
def test_a_browser_that_is_not_known_is_refused(name: Any) -> None:
    """When the transport is made, not at the first request."""
    with pytest.raises(InvalidRequestError, match=r"impersonate.*chrome"):
        CurlTransport(impersonate=name)


def test_libcurl_cannot_ask_the_machine_which_authorities_it_trusts() -> None:
    """It takes files and folders."""
    with pytest.raises(InvalidRequestError, match="libcurl takes True, False or a CA bundle"):
        CurlTransport(verify="system")
