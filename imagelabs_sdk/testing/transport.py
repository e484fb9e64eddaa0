"""The way to a fake service inside this process."""

from collections.abc import Callable, Iterator

import attrs

from ..deadline import Deadline
from ..errors import APIConnectionError, APITimeoutError
from ..transports.base import HttpRequest, HttpResponse
from .clock import Clock
from .script import Answer, Fault

__all__ = ["FakeTransport"]


@attrs.frozen
class FakeTransport:
    """A transport that hands requests to a function and turns faults into the SDK's errors.

    Attributes:
        answer: Answers each request, in the caller's thread.
        clock: Passes when a request hangs.
    """

    answer: Callable[[HttpRequest], Answer]
    clock: Clock

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Answer `request`.

        Raises:
            APIConnectionError: The script drops or refuses the connection, or says so.
            APITimeoutError: The script hangs, or no time was left to ask.
        """
        if deadline.passed:
            raise APITimeoutError("no time was left to ask", delivered="no")
        answer = self.answer(request)
        if answer.error is not None:
            raise answer.error
        if answer.fault is Fault.REFUSE:
            raise APIConnectionError("the connection was refused", delivered="no")
        if answer.fault is Fault.DROP:
            raise APIConnectionError("the connection was dropped", delivered="maybe")
        if answer.fault is Fault.HANG:
            self._wait_for(deadline)
            raise APITimeoutError("no answer in time", delivered="maybe")
        body = _half_of(answer.body) if answer.fault is Fault.CUT else answer.body
        return HttpResponse(answer.status, answer.headers, body)

    def close(self) -> None:
        """Do nothing: no connection is open."""

    def _wait_for(self, deadline: Deadline) -> None:
        if deadline.clock == self.clock.now:  # else it is not ours to move
            self.clock.sleep(deadline.remaining())


def _half_of(body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    raise APIConnectionError("the body broke off", delivered="maybe")
