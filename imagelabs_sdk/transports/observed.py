"""A transport that reports each request and its answer to the caller's functions."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from ..deadline import Deadline
from ..errors import ImageLabsError
from .base import HttpRequest, HttpResponse, Transport

__all__ = ["ObservedTransport", "OnRequest", "OnResponse", "RequestInfo", "ResponseInfo"]

log = logging.getLogger(__name__)


@attrs.frozen
class RequestInfo:
    """A request that is about to be sent. It holds no header, no body and no query.

    Attributes:
        method: ``"GET"`` or ``"POST"``.
        url: Without its query.
        started_at: When, in seconds since 1970.
    """

    method: str
    url: str
    started_at: float


@attrs.frozen
class ResponseInfo:
    """What came back, as soon as the status and the headers are there; the body is read later.

    Attributes:
        request: The request, the same object that `on_request` got.
        status: The HTTP status; `None`: no answer came.
        seconds: Since the request was begun.
        error: The `code` of the error when no answer came, such as ``"api_timeout"``; else `None`.
    """

    request: RequestInfo
    status: int | None
    seconds: float
    error: str | None = None


OnRequest: TypeAlias = Callable[[RequestInfo], object]
"""Called in the thread that sends, before each request; what it returns is ignored."""

OnResponse: TypeAlias = Callable[[ResponseInfo], object]
"""Called in that thread after each request, also if it failed; what it returns is ignored."""


@attrs.frozen
class ObservedTransport:
    """Sends with `transport` and calls the functions around it.

    An exception of such a function is logged and goes no further: a job must not be lost over a
    metric.

    Attributes:
        transport: Sends the requests.
        on_request, on_response: `None`: not called.
    """

    transport: Transport
    on_request: OnRequest | None = None
    on_response: OnResponse | None = None

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Send `request` before `deadline`; see `Transport.send`."""
        info = RequestInfo(request.method, request.url.partition("?")[0], time.time())
        _call(self.on_request, info)
        begun = time.monotonic()
        try:
            response = self.transport.send(request, deadline=deadline)
        except ImageLabsError as error:
            seconds = time.monotonic() - begun
            _call(self.on_response, ResponseInfo(info, None, seconds, error.code))
            raise
        _call(self.on_response, ResponseInfo(info, response.status, time.monotonic() - begun))
        return response

    def close(self) -> None:
        """Close the connections of `transport`."""
        self.transport.close()


def _call(hook: Callable[[Any], object] | None, info: RequestInfo | ResponseInfo) -> None:
    if hook is None:
        return
    try:
        hook(info)
    except Exception:
        log.exception("a hook failed")
