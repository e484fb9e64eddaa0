"""The application as a WSGI callable, for a server of your own."""

import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING
from wsgiref.util import request_uri

from ..transports.base import HttpRequest, HttpResponse
from .app import MAX_BODY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["wsgi"]

Handler = Callable[[HttpRequest], HttpResponse]
"""Such as an `App`."""


def wsgi(app: Handler, *, max_body: int = MAX_BODY) -> "WSGIApplication":
    """Return `app` as a WSGI application, for a server of your own.

    It must be one process: only one may open a store. Long polls are neither announced nor parked:
    each would hold one of the server's threads.

    Args:
        app: Answers requests.
        max_body: Bytes of a body that are read, and one more, so that `app` can refuse it.
    """

    def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
        response = app(_request(environ, max_body))
        phrase = HTTPStatus(response.status).phrase
        start_response(f"{response.status} {phrase}", list(response.headers.items()))
        return _body(response)

    return application


def _request(environ: "WSGIEnvironment", max_body: int) -> HttpRequest:
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or name == "CONTENT_TYPE"
    }
    return HttpRequest(
        method=environ["REQUEST_METHOD"],
        url=request_uri(environ),
        headers=headers,
        body=environ["wsgi.input"].read(_length(environ, max_body)),
    )


def _length(environ: "WSGIEnvironment", max_body: int) -> int:
    """Return how much to read: a byte more than is allowed lets the application refuse it."""
    length = environ.get("CONTENT_LENGTH") or ""
    if re.fullmatch("[0-9]{1,18}", length):
        return min(int(length), max_body + 1)
    return max_body + 1 if environ.get("wsgi.input_terminated") else 0


def _body(response: HttpResponse) -> Iterator[bytes]:
    with response:
        yield from response.iter_bytes()
