"""The application as a WSGI callable."""

import io
from typing import Any
from wsgiref.validate import validator

import pytest

from imagelabs_sdk import HttpRequest, HttpResponse
from imagelabs_sdk.server.app import App
from imagelabs_sdk.server.wsgi import wsgi
from tests.server.conftest import Rig


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


def test_a_body_that_is_too_long_is_read_no_further_than_needed(rig: Rig) -> None:
    """The application refuses it; the rest stays in the socket."""
    stream = io.BytesIO(b'{"prompt": "x"}')
    application = wsgi(App(rig.store, rig.engine, max_body=10), max_body=10)
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
