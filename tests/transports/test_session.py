"""A session of ours and of the caller: cookies, adapters, test doubles, failures."""

import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import requests
import responses
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError, NewConnectionError
from urllib3.util import Retry

from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Deadline,
    DownloadError,
    HttpRequest,
    ImageLabs,
    ImageLabsError,
    JobTimeoutError,
    RequestsTransport,
    SubmissionUnknownError,
)
from tests import faulty
from tests.faulty import PNG, FaultyServer
from tests.transports.peers import SLOW

Connect = Callable[..., ImageLabs]


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
    """Its pools honour the deadline; outside our exchanges they stay as they were."""
    server.scripts["/progress"] = [SLOW["one byte at a time in a header"]]
    with requests.Session() as session:
        client = ImageLabs(server.url, transport=RequestsTransport(session=session))
        with pytest.raises(JobTimeoutError):
            client.get_job("t").wait(timeout=0.25)
        assert session.post(server.url + "/txt2img", timeout=5).json() == {"task_id": "task-1"}


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


def test_pools_of_another_class_honour_the_deadline_too(
    server: FaultyServer, other: FaultyServer
) -> None:
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
    """It cannot honour the deadline itself; it is used all the same."""

    class Canned(requests.adapters.BaseAdapter):
        def send(self, *_: Any, **__: Any) -> requests.Response:
            raise requests.ConnectTimeout("slow")

        def close(self) -> None:
            pass

    with requests.Session() as session:
        session.mount("http://", Canned())
        request = HttpRequest(method="POST", url="http://h.test/progress")
        with pytest.raises(APITimeoutError) as caught:
            RequestsTransport(session=session).send(request, deadline=Deadline.after(5))
        assert caught.value.delivered == "no"


def test_what_is_remembered_of_hosts_is_bounded(server: FaultyServer) -> None:
    """A service may name a new host with every image."""
    transport = RequestsTransport(proxy=server.url)
    for number in range(200):
        url = f"http://h{number}.test/x"
        server.scripts[url] = [faulty.reply(200, b"x")]
        request = HttpRequest(method="POST", url=url, cookies={})
        transport.send(request, deadline=Deadline.after(5)).close()
    assert len(transport._thread_session()._routes) <= 64
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
    request, transport = (
        HttpRequest(method="POST", url="https://h.test/progress"),
        RequestsTransport(),
    )
    with pytest.raises(APIConnectionError) as caught:
        transport.send(request, deadline=Deadline.after(5))
    transport.close()
    assert caught.value.delivered == delivered


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


def test_a_header_is_sent_once(carry: Any) -> None:
    """A cookie or a length among the given headers does not come beside that of the request."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.extend(self.headers.items())
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as peer, ThreadPoolExecutor(1) as pool:
        pool.submit(peer.handle_request)
        carry(
            HttpRequest(
                method="POST",
                url=f"http://127.0.0.1:{peer.server_port}/",
                headers={"cookie": "a=1", "content-length": "7"},
                body=b"{}",
                cookies={"b": "2"},
            )
        )
    sent = [(name, value) for name, value in seen if name.lower() in ("cookie", "content-length")]
    assert sorted(sent) == [("Content-Length", "2"), ("Cookie", "b=2")]


def test_a_hook_may_read_the_answer_first(server: FaultyServer) -> None:
    """Those that log do; what they have read is not lost to us."""
    seen: list[str] = []
    packed = gzip.compress(b'{"task_id": "t"}')
    server.scripts["/txt2img"] = [faulty.reply(200, packed, ("Content-Encoding", "gzip"))]
    with requests.Session() as session:
        session.hooks["response"].append(lambda answer, **_: seen.append(answer.text))
        client = ImageLabs(server.url, transport=RequestsTransport(session=session))
        assert client.submit("x").id == "t"
    assert seen == ['{"task_id": "t"}']
