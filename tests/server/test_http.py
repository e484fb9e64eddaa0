"""The face on a real socket, and what attacks it."""

import contextlib
import gc
import http.client
import io
import json
import re
import shutil
import socket
import sqlite3
import struct
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
from PIL import Image

from imagelabs_sdk import Deadline, HandlerTransport, HttpRequest, HttpResponse, ImageLabs
from imagelabs_sdk.server.app import Parked
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.landscape.renders import finished
from imagelabs_sdk.server.http import ParkingHandler, Server, running
from imagelabs_sdk.server.local import LocalServer
from imagelabs_sdk.server.options import FaceOptions
from tests.server.conftest import BASE, Rig, make_rig
from tests.server.test_app import REFERENCE_BODY
from tests.server.test_store import SMALL


def quick() -> LocalServer:
    return LocalServer(LandscapeEngine(duration=0))


def echo(request: HttpRequest) -> HttpResponse:
    """Tells how a request arrived."""
    facts = {"url": request.url, "length": len(request.body), "headers": dict(request.headers)}
    body = json.dumps({**facts, "method": request.method}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    return HttpResponse(200, headers, b"" if request.method == "HEAD" else body)


def in_threads(count: int, work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def served(handler: ParkingHandler, **options: Any) -> Iterator[str]:
    """The address of a face over `handler`, which may park."""
    own = {name: options.pop(name) for name in ("subscribe", "is_proxy") if name in options}
    server = Server(handler, port=0, options=FaceOptions(**options), **own)
    thread = threading.Thread(target=server.run, name="imagelabs-server")
    thread.start()
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()


@contextmanager
def connected(url: str, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or 0
    with socket.create_connection(address, timeout=20.0, source_address=(source, 0)) as sock:
        yield sock


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return data


def said(url: str, data: bytes, source: str = "127.0.0.1") -> bytes:
    """What the server says to these bytes until it closes."""
    with connected(url, source) as sock:
        sock.sendall(data)
        return read_all(sock)


@attrs.frozen
class Answer:
    status: int
    body: bytes


def get(url: str) -> Answer:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20.0)
    with contextlib.closing(connection):
        connection.request("GET", f"{parts.path or '/'}?{parts.query}")
        response = connection.getresponse()
        return Answer(response.status, response.read())


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No thread and no socket outlives a server; pytest makes an error of a ResourceWarning."""
    yield
    until = time.monotonic() + 5.0
    while alive() and time.monotonic() < until:
        time.sleep(0.01)
    assert alive() == set()
    gc.collect()


def alive() -> set[str]:
    return {each.name for each in threading.enumerate() if each.name.startswith("imagelabs")}


# Clients ------------------------------------------------------------------------------


def test_over_a_socket_come_the_same_pixels() -> None:
    """The socket is only another way for the same messages."""
    with running(quick()) as url, ImageLabs(url, poll_interval=0.01) as client:
        assert url.startswith("http://127.0.0.1:")
        image = client.generate(SMALL)
        assert image.url.startswith(url + "/image/")
        with Image.open(io.BytesIO(image.read())) as found:
            assert found.tobytes() == finished(SMALL).tobytes()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_with_the_reference_body_gets_an_image(tmp_path: Path) -> None:
    """Any client of the service is a client of this server."""

    def curl(*arguments: str) -> bytes:
        command = ["curl", "--silent", "--fail", "--noproxy", "*", "--max-time", "10", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    with running(quick()) as url:
        task = json.loads(curl("--data", json.dumps(REFERENCE_BODY), url + "/txt2img"))
        done = json.loads(curl("--json", json.dumps(task), url + "/progress"))
        assert done["status"] == "Done"
        curl("--output", str(tmp_path / "x.png"), done["final_image_url"])
        head = curl("--head", done["final_image_url"]).decode().lower()
    data = (tmp_path / "x.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (1152, 896)
    assert f"content-length: {len(data)}" in head


def test_many_threads_are_served_together() -> None:
    """More of them than there are threads behind the socket."""
    found = []
    with running(quick()) as url, ImageLabs(url, poll_interval=0.01) as client:
        in_threads(16, lambda i: found.append(client.generate(f"{i}", width=64, height=48).read()))
    assert len(found) == 16


def test_a_connection_serves_many_requests_also_pipelined() -> None:
    """Also in one packet; each gets its own answer, in order."""
    one = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with running(echo) as url:
        answer = said(url, one * 3 + last)
    assert re.findall(rb"http://x/(\w)", answer) == [b"a", b"a", b"a", b"b"]
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_body_may_come_in_chunks_and_after_a_100() -> None:
    """Clients that do not know its length, and those that ask first."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    with running(echo) as url:
        chunked = said(url, head + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        asked = said(url, head + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\nab")
    assert b'"length": 3' in chunked
    assert asked.startswith(b"HTTP/1.1 100")
    assert b'"length": 2' in asked


def test_the_address_is_the_one_that_the_client_wrote() -> None:
    """Absolute, of HTTP/1.0 without a host, or with headers that came twice."""
    with running(echo) as url:
        absolute = said(url, b"GET http://y/z HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        old = said(url, b"GET /q HTTP/1.0\r\nx-a: 1\r\nx-a: 2\r\n\r\n")
    assert b'"http://y/z"' in absolute
    assert f"{url}/q".encode() in old
    assert b'"x-a": "1, 2"' in old


def test_head_and_streams_are_sent_as_http_has_them() -> None:
    """A stream of unknown length is chunked; its resources are released at its end."""
    closed = []

    def stream(request: HttpRequest) -> HttpResponse:
        return HttpResponse(
            200, {}, iter([b"a" * 100_000, b"b"]), on_close=lambda: closed.append(1)
        )

    with running(stream) as url:
        assert get(url).body == b"a" * 100_000 + b"b"
    assert closed == [1]
    with running(echo) as url:
        answer = said(url, b"HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")


# Attacks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000, 431),
        (b"GET * HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: [::1\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nhost: x/metrics?\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nhost: x/metrics#\r\n\r\n", 400),
        (b"CONNECT /x HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 33554433\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            b"3000000\r\n" + b"a" * 0x2000001,
            413,
        ),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(data: bytes, status: int) -> None:
    """In words where there may be a reader; nothing of it reaches the application."""
    with running(echo) as url:
        answer = said(url, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "begin",
    [b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nab"],
    ids=["head", "body"],
)
def test_one_deadline_ends_a_request_that_drips(begin: bytes) -> None:
    """However often a byte comes: no byte renews it."""
    with running(echo, options=FaceOptions(receive_timeout=0.5)) as url, connected(url) as sock:
        sock.sendall(begin)
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    sock.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        answer = read_all(sock)
        stop.set()
        thread.join()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"retry-after" in answer.lower()


def test_dripping_connections_keep_nobody_else_waiting() -> None:
    """199 of them made the server before this one deaf."""
    with running(quick()) as url, ExitStack() as stack:
        for _ in range(199):
            stack.enter_context(connected(url)).sendall(b"POST /txt2img HTTP/1.1\r\nhost")
        with ImageLabs(url, poll_interval=0.01) as client:
            assert client.generate(SMALL, timeout=20).read()


def test_too_many_connections_are_told_to_come_again() -> None:
    """503 with Retry-After: a submit was surely not taken, and the client sends it again."""
    options = FaceOptions(max_connections=2, address_share=1.0)
    with running(echo, options=options) as url, ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(connected(url))
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert sock.recv(10)
        refused = said(url, b"POST /txt2img HTTP/1.1\r\nhost: x\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in refused


def test_one_address_cannot_take_every_connection() -> None:
    """A thousand slow connections of one client closed the server to all others for 30 s."""
    options = FaceOptions(max_connections=10, address_share=0.2)
    request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with running(echo, options=options) as url, ExitStack() as stack:
        slow = [stack.enter_context(connected(url)) for _ in range(2)]
        refused = said(url, request)
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in refused
        assert b" 200 " in said(url, request, source="127.0.0.2")
        slow[0].close()
        while b" 200 " not in (answer := said(url, request)):
            assert b" 429 " in answer, "until the server has seen that it is closed"


def test_the_connections_of_a_named_proxy_are_those_of_many_clients() -> None:
    """Only the bound of all connections holds for it."""
    request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with (
        served(
            lambda request, peer: echo(request),
            max_connections=10,
            address_share=0.1,
            is_proxy=lambda address: address == "127.0.0.2",
        ) as url,
        connected(url, source="127.0.0.2"),
        connected(url),
    ):
        assert b" 200 " in said(url, request, source="127.0.0.2")
        assert b" 429 " in said(url, request)


def test_refusals_do_not_take_all_room_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits up to 2 s for its client to read it: beyond a number they are closed at once."""
    monkeypatch.setattr("imagelabs_sdk.server.http._MAX_REFUSALS", 1)
    with running(echo, options=FaceOptions(max_connections=1)) as url, ExitStack() as stack:
        stack.enter_context(connected(url))
        refused = stack.enter_context(connected(url))
        assert refused.recv(20).startswith(b"HTTP/1.1 503 ")
        assert said(url, b"") == b""


def test_bodies_under_way_are_bounded_together() -> None:
    """Thirty of thirty megabytes filled the memory."""
    body = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 600\r\n\r\n"
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n190\r\n"
    options = FaceOptions(max_bodies=1000, max_body=900)
    with running(echo, options=options) as url, connected(url) as sock:
        sock.sendall(body + b"a" * 500)
        other = said(url, body + b"a" * 600)
        while b"503" not in other:  # the first one's body may not have been read yet
            other = said(url, body + b"a" * 600)
        assert b"503" in said(url, chunked + b"a" * 0x190 + b"\r\n190\r\n" + b"a" * 0x190)
        sock.sendall(b"a" * 100)
        assert sock.recv(20).startswith(b"HTTP/1.1 200")
        assert b" 413 " in said(url, body.replace(b"600", b"901"))


def test_the_bodies_of_one_address_leave_room_for_others() -> None:
    """A few that stop in the middle kept all submits out for 30 s."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 300\r\n\r\n"
    options = FaceOptions(max_bodies=1000, max_body=300)
    with running(echo, options=options) as url, ExitStack() as stack:
        slow = [stack.enter_context(connected(url)) for _ in range(2)]
        for sock in slow:
            sock.sendall(head + b"a" * 240)
        while b" 429 " not in (refused := said(url, head + b"a" * 300)):
            assert b" 200 " in refused, "until their bodies have been read"
        assert b"from your address" in refused
        assert b" 200 " in said(url, head + b"a" * 300, source="127.0.0.2")


def test_a_body_that_is_only_announced_keeps_nobody_out() -> None:
    """Else a few idle connections would close the server to all others."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 900\r\n\r\n"
    options = FaceOptions(max_bodies=1000, max_body=900)
    with running(echo, options=options) as url, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(url)).sendall(head)
        assert said(url, head + b"a" * 900).startswith(b"HTTP/1.1 200 ")


def test_requests_that_wait_for_a_thread_are_bounded() -> None:
    """Over the bound they hear 503 at once, instead of being answered when nobody listens."""
    go_on, busy = threading.Event(), threading.Semaphore(0)

    def slow(request: HttpRequest) -> HttpResponse:
        busy.release()
        assert go_on.wait(20.0)
        return echo(request)

    request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    options = FaceOptions(threads=1, max_waiting=1)
    with running(slow, options=options) as url, connected(url) as sock:
        sock.sendall(request)
        assert busy.acquire(timeout=20.0)
        assert said(url, request).startswith(b"HTTP/1.1 503 ")
        go_on.set()
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")


SUBMIT = b"POST /txt2img HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


def close(sock: socket.socket) -> None:
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def close_in_two_steps(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    sock.close()


@attrs.define
class Queue:
    """A server whose only thread is busy until it is released.

    Attributes:
        begun: The paths that the handler was asked for.
    """

    url: str = ""
    begun: list[str] = attrs.Factory(list)
    _gates: dict[str, threading.Event] = attrs.Factory(lambda: defaultdict(threading.Event))

    def handle(self, request: HttpRequest) -> HttpResponse:
        path = urlsplit(request.url).path
        self.begun.append(path)
        if path in ("/first", "/second"):
            assert self._gates[path].wait(20.0)
        return echo(request)

    def release(self, path: str = "/first") -> None:
        """Once the server has seen what its clients did meanwhile."""
        time.sleep(0.2)
        self._gates[path].set()


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue()
    with running(made.handle, options=FaceOptions(threads=1)) as made.url:
        with connected(made.url) as first:
            first.sendall(b"GET /first HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            while not made.begun:
                time.sleep(0.01)
            yield made
            assert read_all(first)
        assert get(made.url + "/last").status == 200


@pytest.mark.parametrize("leave", [close, reset, close_in_two_steps])
def test_a_submit_whose_client_has_gone_is_not_begun(
    queue: Queue, leave: Callable[[socket.socket], None]
) -> None:
    """It was parked for 50 s, accepted and rendered after its client had given up."""
    with connected(queue.url) as gone:
        gone.sendall(SUBMIT)
        time.sleep(0.2)
        leave(gone)
    queue.release()
    assert get(queue.url + "/next").status == 200
    assert queue.begun == ["/first", "/next"]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_closes_its_sending_half_gets_its_answer(
    queue: Queue, version: bytes
) -> None:
    """As `nc -N` and some clients of HTTP/1.0 do after their request."""
    with connected(queue.url) as half:
        half.sendall(SUBMIT.replace(b"1.1", version))
        half.shutdown(socket.SHUT_WR)
        queue.release()
        answer = read_all(half)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["url"] == "http://x/txt2img"


def test_a_client_that_leaves_before_its_turn_comes_is_not_served(queue: Queue) -> None:
    """Its system had taken the beginning of the answer: nobody had read it."""
    with connected(queue.url) as half, connected(queue.url) as second:
        half.sendall(SUBMIT)
        half.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        second.sendall(SUBMIT.replace(b"txt2img", b"second"))
        queue.release()
        assert half.recv(9, socket.MSG_PEEK) == b"HTTP/1.1 "
        time.sleep(0.1)
        half.close()
        queue.release("/second")
        assert second.recv(20).startswith(b"HTTP/1.1 200 ")
    assert get(queue.url + "/next").status == 200
    assert queue.begun == ["/first", "/second", "/next"]


def test_a_client_whose_system_takes_nothing_is_not_served(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine is away: nobody will read the answer."""
    monkeypatch.setattr("imagelabs_sdk.server.http.unacknowledged", lambda sock: 1)
    monkeypatch.setattr("imagelabs_sdk.server.http._PROBES", 3)
    with connected(queue.url) as half:
        half.sendall(SUBMIT)
        half.shutdown(socket.SHUT_WR)
        queue.release()
        assert read_all(half) == b"HTTP/1.1 "
    assert queue.begun == ["/first"]


def test_all_that_it_has_sent_before_is_answered() -> None:
    """Requests in one packet, a malformed one at their end, and then no more."""
    with running(echo) as url, connected(url) as sock:
        sock.sendall(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n" * 2 + b"nonsense\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"200", b"400"]
    assert answer.count(b"HTTP/1.1") == 3


def test_the_waiting_requests_of_one_address_leave_room_for_others() -> None:
    """Each of its connections may have one."""
    go_on, busy = threading.Event(), threading.Semaphore(0)

    def slow(request: HttpRequest) -> HttpResponse:
        busy.release()
        assert go_on.wait(20.0)
        return echo(request)

    request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    options = FaceOptions(threads=2, max_waiting=2)
    with running(slow, options=options) as url, connected(url) as sock:
        sock.sendall(request)
        assert busy.acquire(timeout=20.0)
        assert said(url, request).startswith(b"HTTP/1.1 429 ")
        with connected(url, source="127.0.0.2") as other:
            other.sendall(request)
            assert busy.acquire(timeout=20.0)
            go_on.set()
            assert read_all(other).startswith(b"HTTP/1.1 200 ")
            assert read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_a_response_that_breaks_off_ends_its_connection_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its client sees that it is short; the log says why."""

    def broken() -> Iterator[bytes]:
        yield b"begun"
        raise sqlite3.DatabaseError("secret words")

    headers = {"content-length": "100"}
    with running(lambda request: HttpResponse(200, headers, broken())) as url:
        for _ in range(2):
            answer = said(url, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answer.endswith(b"begun")
            assert b"secret" not in answer
    assert "secret words" in caplog.text


def test_a_client_that_does_not_read_is_left() -> None:
    """One deadline for the whole response."""
    left = threading.Event()

    def endless(request: HttpRequest) -> HttpResponse:
        chunks = (b"x" * 1_000_000 for _ in range(1000))
        return HttpResponse(200, {}, chunks, on_close=left.set)

    with running(endless, options=FaceOptions(send_timeout=0.3)) as url, connected(url) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert left.wait(20.0)


def test_an_idle_connection_outlives_the_clients_trust_and_then_ends() -> None:
    """A client reuses one that has idled for 20 seconds: the server must be the more patient."""
    assert FaceOptions().idle_timeout > 3 * 20
    with running(echo, options=FaceOptions(idle_timeout=1)) as url, connected(url) as sock:
        assert read_all(sock) == b""


def test_a_handler_that_fails_ends_one_request_only(caplog: pytest.LogCaptureFixture) -> None:
    """500 for this one; its words stay in the log."""

    def broken(request: HttpRequest) -> HttpResponse:
        raise sqlite3.DatabaseError("secret words")

    with running(broken) as url:
        for _ in range(2):
            response = get(url)
            assert response.status == 500
            assert b"secret" not in response.body
    assert "secret words" in caplog.text


def test_the_access_log_holds_no_prompt_and_no_key_to_an_image(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Task ids open images: they are cut."""
    caplog.set_level("INFO", "imagelabs_sdk.server.access")
    task_id = "ab" * 16
    with running(echo) as url:
        get(f"{url}/image/{task_id}.png?prompt=secret")
    assert "GET /image/abababab….png: 200" in caplog.text
    assert task_id not in caplog.text
    assert "secret" not in caplog.text


# Long polls ---------------------------------------------------------------------------


@attrs.frozen
class Poller:
    """Parks polls at a served rig, each in a thread of its own."""

    url: str
    rig: Rig

    def headers(self, task_id: str, progress: bool = False) -> dict[str, str]:
        response = self.rig.ask("POST", "/progress", {"task_id": task_id})
        wait = "wait=20, progress" if progress else "wait=20"
        return {"prefer": wait, "if-none-match": response.headers["etag"]}

    def ask(self, task_id: str, headers: dict[str, str]) -> dict[str, Any]:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=30)
        body = json.dumps({"task_id": task_id})
        connection.request("POST", "/progress", body, headers)
        response = connection.getresponse()
        found = {"status": response.status, **json.loads(response.read())}
        connection.close()
        return {**found, "applied": response.getheader("preference-applied")}


@contextmanager
def pollers(**options: Any) -> Iterator[Poller]:
    rig = make_rig()

    def handle(request: HttpRequest, peer: str) -> HttpResponse | Parked:
        return rig.app.handle(request, can_park=True)

    with served(handle, subscribe=rig.store.subscribe, **options) as url:
        yield Poller(url, rig)


def test_parked_polls_hold_no_thread_and_end_with_the_job() -> None:
    """Two hundred of them, and a plain request in between is answered."""
    found: list[dict[str, Any]] = []
    with pollers(threads=2) as poller:
        task_id = poller.rig.submit()
        headers = poller.headers(task_id)
        threads = [
            threading.Thread(target=lambda: found.append(poller.ask(task_id, headers)))
            for _ in range(200)
        ]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert poller.ask(task_id, {})["status"] == "Queue position 1"
        assert found == []
        poller.rig.claim()
        for thread in threads:
            thread.join()
    assert {(each["status"], each["applied"]) for each in found} == {("Processing", "wait")}


def test_all_who_wait_for_a_job_look_at_it_once_a_change() -> None:
    """Each report of progress made the store busy for every poll that was parked."""
    looks: list[bool] = []
    asked, ended = threading.Semaphore(0), threading.Event()

    def look() -> Any:
        looks.append(ended.is_set())
        return looks[-1]

    def handle(request: HttpRequest, peer: str) -> Parked:
        asked.release()
        return Parked(
            "job", 60.0, look, lambda has_ended, _: bool(has_ended), lambda: echo(request)
        )

    listeners: list[Callable[[str], None]] = []

    def subscribe(listener: Callable[[str], None]) -> Callable[[], None]:
        listeners.append(listener)
        return listeners.clear

    request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with served(handle, subscribe=subscribe) as url, ExitStack() as stack:
        socks = [stack.enter_context(connected(url)) for _ in range(50)]
        for sock in socks:
            sock.sendall(request)
        for _ in socks:
            assert asked.acquire(timeout=20.0)
        time.sleep(0.3)
        before = len(looks)
        for _ in range(3):
            listeners[0]("job")
            time.sleep(0.1)
        ended.set()
        listeners[0]("job")
        assert all(read_all(sock).startswith(b"HTTP/1.1 200 ") for sock in socks)
    assert before == 1
    assert len(looks) <= 5


def test_a_look_that_fails_ends_the_polls_and_not_those_to_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A disk that was full is mended."""
    failures = iter([sqlite3.OperationalError("full")])

    def look() -> None:
        for failure in failures:
            raise failure

    def handle(request: HttpRequest, peer: str) -> Parked:
        return Parked("job", 0.05, look, lambda *_: False, lambda: echo(request))

    with served(handle) as url:
        assert [get(url).status for _ in range(2)] == [500, 200]


def test_progress_is_told_to_who_asked_for_it() -> None:
    """Also when it moved before the quarter of a second was over, and nothing moved after."""
    with pollers() as poller:
        task_id = poller.rig.submit()
        job = poller.rig.claim()
        headers = poller.headers(task_id, progress=True)
        poller.rig.store.progress(job, 0.5)
        assert poller.ask(task_id, headers)["progress"] == 0.5


def test_a_poll_that_waits_in_vain_is_answered_in_the_end() -> None:
    """After the seconds that it asked for; and at once when too many are parked."""
    with pollers(max_parked=0) as poller:
        task_id = poller.rig.submit()
        assert poller.ask(task_id, poller.headers(task_id))["applied"] == "wait"
    with pollers() as poller:
        task_id = poller.rig.submit()
        headers = {**poller.headers(task_id), "prefer": "wait=1"}
        assert poller.ask(task_id, headers)["status"] == "Queue position 1"


def test_a_poller_that_leaves_takes_no_room_any_more() -> None:
    """A few that came and left kept all connections busy for 25 s."""
    with pollers(max_connections=1) as poller:
        task_id = poller.rig.submit()
        body = json.dumps({"task_id": task_id}).encode()
        head = (
            b"POST /progress HTTP/1.1\r\nhost: x\r\nprefer: wait=20\r\ncontent-length: %d\r\n\r\n"
        )
        with connected(poller.url) as sock:
            sock.sendall(head % len(body) + body)
            time.sleep(0.2)
        until = time.monotonic() + 10.0
        while (answer := poller.ask(task_id, {}))["status"] == 503:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert answer["status"] == "Queue position 1"


def test_stopping_answers_what_is_parked() -> None:
    """A client polls again elsewhere, or later; nothing waits for the whole time."""
    found: list[dict[str, Any]] = []
    with pollers() as poller:
        task_id = poller.rig.submit()
        headers = poller.headers(task_id)
        thread = threading.Thread(target=lambda: found.append(poller.ask(task_id, headers)))
        thread.start()
        time.sleep(0.3)
    thread.join()
    assert found[0]["status"] == "Queue position 1"


# Start and end ------------------------------------------------------------------------


def test_what_is_under_way_is_finished_and_nothing_new_is_accepted() -> None:
    """A response that has begun arrives whole."""
    busy, go_on, answers = threading.Event(), threading.Event(), []

    def slow(request: HttpRequest, peer: str) -> HttpResponse:
        busy.set()
        assert go_on.wait(20.0)
        return echo(request)

    server = Server(slow, port=0)
    thread = threading.Thread(target=server.run, name="imagelabs-server")
    thread.start()
    asking = threading.Thread(target=lambda: answers.append(get(server.url).body))
    with connected(server.url) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\n")
        asking.start()
        assert busy.wait(20.0)
        server.stop(20.0)
        time.sleep(0.2)
        with pytest.raises(OSError, match="refused"):
            get(server.url)
        idle.close()
        go_on.set()
        thread.join()
        asking.join()
    assert json.loads(answers[0])["method"] == "GET"


def test_what_takes_longer_than_the_grace_is_cut() -> None:
    """The end comes all the same."""
    go_on, busy = threading.Event(), threading.Event()

    def slow(request: HttpRequest, peer: str) -> HttpResponse:
        busy.set()
        go_on.wait(20.0)
        return echo(request)

    server = Server(slow, port=0)
    thread = threading.Thread(target=server.run, name="imagelabs-server")
    thread.start()
    with connected(server.url) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert busy.wait(20.0)
        server.stop(0.1)
        assert read_all(sock) == b""
        go_on.set()
        thread.join()


def test_half_a_request_before_the_end_is_none() -> None:
    """It is told so, in case that its client still reads."""
    with running(echo) as url, connected(url) as sock:
        sock.sendall(SUBMIT[:-4])
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing of its request reaches the application."""
    with running(echo) as url:
        with connected(url) as sock:
            sock.sendall(b"POST /gone HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
        assert get(url + "/next").status == 200
    assert "gone" not in caplog.text


def test_a_server_may_be_stopped_twice_or_never_run() -> None:
    """Cleaning up must not need to know how far it came."""
    server = Server(lambda request, peer: echo(request), port=0)
    server.stop()
    server.run()
    server.stop()
    server.close()
    early = Server(lambda request, peer: echo(request), port=0)
    early.run(on_ready=early.stop)


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing() -> None:
    """No thread has been started by then."""
    with running(echo) as url, pytest.raises(OSError, match="in use"):
        Server(lambda request, peer: echo(request), port=urlsplit(url).port or 0)


def test_it_listens_on_ipv6_as_well() -> None:
    """The address in the URL needs its brackets."""
    try:
        server = Server(lambda request, peer: echo(request), host="::1", port=0)
    except OSError:
        pytest.skip("there is no IPv6 here")
    assert re.fullmatch(r"http://\[::1\]:\d+", server.url)
    server.close()


def test_the_answer_over_a_transport_obeys_its_deadline() -> None:
    """A handler is a transport like any other."""
    transport = HandlerTransport(quick())
    request = HttpRequest(method="GET", url=BASE + "/")
    with transport.send(request, deadline=Deadline.after(1.0)) as response:
        assert response.status == 404
