"""A function as a transport: no socket, no network."""

from collections.abc import Callable

import attrs

from ..deadline import Deadline
from ..errors import APITimeoutError
from .base import HttpRequest, HttpResponse

__all__ = ["HandlerTransport"]


@attrs.frozen
class HandlerTransport:
    """Calls `handler` for each request, in the caller's thread.

    For the embedded server and for tests. It pickles if the handler does.

    Attributes:
        handler: Takes the request and returns the response. Its exceptions pass through.
    """

    handler: Callable[[HttpRequest], HttpResponse]

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Return the handler's response.

        Raises:
            APITimeoutError: The deadline had passed before.
        """
        if deadline.passed:
            raise APITimeoutError("no time was left to ask", delivered="no")
        return self.handler(request)

    def close(self) -> None:
        """Do nothing: no connection is open."""
