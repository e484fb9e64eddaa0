"""The application as WSGI and on a socket."""

import gc
import http.client
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.validate import validator

import pytest

from imagelabs_sdk import (
    Deadline,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    ImageRequest,
)
from imagelabs_sdk.server import http as server_http
from imagelabs_sdk.server.app import MAX_BODY
from imagelabs_sdk.server.encoding import encode
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.landscape.renders import finished
from imagelabs_sdk.server.http import Server, running, serve, wsgi
from imagelabs_sdk.server.local import LocalServer
from tests.server.test_app import REFERENCE_BODY

BASE = "http://imagelabs.test"
SMALL = ImageRequest("a lighthouse at dusk", width=64, height=48, seed=1, subseed=2)


def quick() -> LocalServer:
    return LocalServer(LandscapeEngine(duration=0))


def in_threads(count: int, work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# WSGI ---------------------------------------------------------------------------------


def called(application: Any, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    """One call by the rules of WSGI, which the standard library's validator watches."""
    started: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.extend([status, {name.lower(): value for name, value in headers}])

    full = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/txt2img",
        "QUERY_STRING": "",
        "SERVER_NAME": "imagelabs.test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b'{"prompt": "x"}'),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **environ,
    }
    result = validator(application)(full, start_response)
    try:
        body = b"".join(result)
    finally:
        result.close()  # type: ignore[attr-defined]
    return started[0], started[1], body


def test_a_mounted_wsgi_application_hears_its_whole_address() -> None:
    """Scheme, host, mount and path make the address that images are beside."""
    heard = []

    def handler(request: HttpRequest) -> HttpResponse:
        heard.append(request)
        return HttpResponse(200, {"content-type": "text/plain"}, iter([b"a", b"b"]))

    found = called(
        wsgi(handler),
        SCRIPT_NAME="/draw",
        HTTP_HOST="x.example:8443",
        HTTP_X_REQUESTED_WITH="XMLHttpRequest",
        CONTENT_TYPE="application/json",
        CONTENT_LENGTH="15",
        **{"wsgi.url_scheme": "https"},
    )
    assert found == ("200 OK", {"content-type": "text/plain"}, b"ab")
    (request,) = heard
    assert (request.method, request.body) == ("POST", b'{"prompt": "x"}')
    assert request.url == "https://x.example:8443/draw/txt2img"
    assert request.headers["x-requested-with"] == "XMLHttpRequest"
    assert request.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"CONTENT_LENGTH": "15"}, b'{"prompt": "x"}'),
        ({"CONTENT_LENGTH": "3"}, b'{"p'),
        ({"CONTENT_LENGTH": ""}, b""),
        ({"CONTENT_LENGTH": "9" * 30}, b""),
        ({}, b""),
        ({"wsgi.input_terminated": True}, b'{"prompt": "x"}'),
    ],
)
def test_a_body_is_read_as_far_as_it_is_known_to_go(
    environ: dict[str, Any], expected: bytes
) -> None:
    """Reading on would wait for a client that has said everything."""
    heard = []

    def handler(request: HttpRequest) -> HttpResponse:
        heard.append(request.body)
        return HttpResponse(200, {"content-type": "text/plain"})

    called(wsgi(handler), **environ)
    assert heard == [expected]


def test_a_body_that_is_too_long_is_read_no_further_than_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The application refuses it; the rest stays in the socket."""
    monkeypatch.setattr(server_http, "MAX_BODY", 10)
    monkeypatch.setattr("imagelabs_sdk.server.app.MAX_BODY", 10)
    stream = io.BytesIO(b'{"prompt": "x"}')
    application = wsgi(quick())
    environ = {"CONTENT_LENGTH": "15", "wsgi.input": stream}
    assert called(application, **environ)[0].startswith("413 ")
    assert stream.tell() == 11


def test_a_response_is_closed_when_it_was_sent() -> None:
    """It may hold a file or a connection."""
    closed = []
    response = HttpResponse(
        200, {"content-type": "text/plain"}, b"x", on_close=lambda: closed.append(1)
    )
    called(wsgi(lambda request: response))
    assert closed == [1]


# A socket -----------------------------------------------------------------------------


def alive() -> set[str]:
    """Names of threads that a server may have left behind."""
    return {
        thread.name
        for thread in threading.enumerate()
        if re.match("waitress|imagelabs", thread.name)
    }


@pytest.fixture
def nothing_left() -> Any:
    """No thread and no socket outlives a server; pytest makes an error of a ResourceWarning."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("waitress"):
            thread.join(5.0)  # it has been told to end
    assert alive() == set()
    gc.collect()


@pytest.mark.usefixtures("nothing_left")
def test_over_a_socket_come_the_same_bytes() -> None:
    """The socket is only another way for the same messages."""
    with running(quick()) as url, ImageLabs(url, poll_interval=0.01) as client:
        assert url.startswith("http://127.0.0.1:")
        image = client.generate(SMALL)
        assert image.url.startswith(url + "/image/")
        assert image.read() == encode(finished(SMALL))


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_with_the_reference_body_gets_an_image(tmp_path: Path) -> None:
    """Any client of the service is a client of this server."""

    def curl(*arguments: str) -> bytes:
        command = ["curl", "--silent", "--fail", "--noproxy", "*", "--max-time", "10", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def post(url: str, body: object) -> Any:
        header = "content-type: application/json"
        return json.loads(curl("--header", header, "--data", json.dumps(body), url))

    with running(quick()) as url:
        task = post(url + "/txt2img", REFERENCE_BODY)
        done = post(url + "/progress", task)
        assert done["status"] == "Done"
        curl("--output", str(tmp_path / "x.png"), done["final_image_url"])
        head = curl("--head", done["final_image_url"]).decode().lower()
    data = (tmp_path / "x.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == 1152
    assert int.from_bytes(data[20:24], "big") == 896
    assert f"content-length: {len(data)}" in head


@pytest.mark.usefixtures("nothing_left")
def test_a_body_that_is_announced_too_long_is_not_even_read() -> None:
    """The answer comes before the body is sent."""
    with running(quick()) as url:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port or 0, timeout=5.0)
        connection.putrequest("POST", "/txt2img")
        connection.putheader("content-length", str(MAX_BODY + 1))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        response.read()
        connection.close()


@pytest.mark.usefixtures("nothing_left")
def test_many_threads_are_served_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """More of them than there are threads behind the socket: that is no event to be logged."""
    found = []
    with running(quick()) as url, ImageLabs(url, poll_interval=0.01) as client:
        in_threads(16, lambda i: found.append(client.generate(f"number {i}").read()))
    assert len(found) == 16
    assert "queue" not in caplog.text


@pytest.mark.usefixtures("nothing_left")
def test_serve_says_where_it_listens_and_ends_with_ctrl_c() -> None:
    """The command line prints the address; Ctrl-C is its usual end and no error."""
    ready = []

    def interrupt(url: str) -> None:
        ready.append(url)
        raise KeyboardInterrupt

    serve(quick(), port=0, on_ready=interrupt)
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", ready[0])


@pytest.mark.usefixtures("nothing_left")
def test_serve_ends_with_ctrl_c_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes out of the loop, wherever that is."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("waitress.wasyncore.loop", interrupted)
    serve(quick(), port=0)


@pytest.mark.usefixtures("nothing_left")
def test_a_port_that_is_taken_is_an_error_and_leaves_nothing() -> None:
    """No thread has been started by then."""
    with running(quick()) as url, pytest.raises(OSError, match="in use"):
        serve(quick(), port=urlsplit(url).port or 0)


@pytest.mark.usefixtures("nothing_left")
def test_a_server_may_be_stopped_twice_or_never_run() -> None:
    """Cleaning up must not need to know how far it came."""
    server = Server(quick(), port=0)
    server.stop()
    server.run()
    server.stop()
    server.close()


@pytest.mark.usefixtures("nothing_left")
def test_it_listens_on_ipv6_as_well() -> None:
    """The address in the URL needs its brackets."""
    try:
        server = Server(quick(), host="::1", port=0)
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
