"""A function as a transport."""

import pytest

from imagelabs_sdk import (
    APITimeoutError,
    Deadline,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
)

REQUEST = HttpRequest(method="GET", url="https://h.test/x")


def test_the_function_is_called_in_the_callers_thread() -> None:
    """Its response is returned and its exceptions pass through; closing does nothing."""
    seen: list[HttpRequest] = []

    def answer(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        if len(seen) > 1:
            raise KeyError("as it is")
        return HttpResponse(204)

    transport = HandlerTransport(answer)
    assert transport.send(REQUEST, deadline=Deadline.after(5)).status == 204
    transport.close()
    with pytest.raises(KeyError, match="as it is"):
        transport.send(REQUEST, deadline=Deadline.after(5))
    assert seen == [REQUEST, REQUEST]


def test_no_time_left_means_that_it_is_not_called() -> None:
    """As for every transport."""
    transport = HandlerTransport(lambda _: pytest.fail("it was called"))
    with pytest.raises(APITimeoutError) as caught:
        transport.send(REQUEST, deadline=Deadline.after(0))
    assert caught.value.delivered == "no"
