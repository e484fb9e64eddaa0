"""The way to the fake inside the process, where it differs from a socket."""

import pytest

from imagelabs_sdk import APITimeoutError, Deadline, HttpRequest, SubmissionUnknownError
from imagelabs_sdk.testing import FakeService


def test_a_request_that_hangs_ends_at_its_deadline() -> None:
    """Of the fake clock: no test waits for it."""
    service = FakeService().hangs()
    with pytest.raises(SubmissionUnknownError):
        service.client(request_timeout=30).generate("a cat")
    assert service.clock.now() == 1030


def test_a_clock_that_is_not_the_services_is_left_alone() -> None:
    """A client by real time is told at once."""
    service = FakeService().hangs()
    request = HttpRequest(method="POST", url=service.url + "/txt2img", body=b'{"prompt": "a cat"}')
    with pytest.raises(APITimeoutError) as caught:
        service.transport().send(request, deadline=Deadline.after(600))
    assert caught.value.delivered == "maybe"
    assert service.clock.now() == 1000


def test_without_time_nothing_is_sent() -> None:
    """As a real transport would say."""
    service = FakeService()
    request = HttpRequest(method="POST", url=service.url + "/txt2img")
    with pytest.raises(APITimeoutError) as caught:
        service.transport().send(request, deadline=Deadline.after(0))
    assert caught.value.delivered == "no"
    assert service.sent == []
    service.transport().close()
