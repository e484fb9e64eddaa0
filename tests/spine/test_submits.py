"""Submits: an image is never bought twice, and what was bought is never lost."""

import math
from collections.abc import Callable

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    ChallengeError,
    HttpResponse,
    ImageLabs,
    ImageLabsError,
    RateLimitError,
    SubmissionUnknownError,
)
from imagelabs_sdk.testing import FakeService
from tests import faulty
from tests.faulty import FaultyServer

Connect = Callable[..., ImageLabs]
Say = HttpResponse | Exception

REFUSED = APIConnectionError("refused", delivered="no")


@pytest.mark.parametrize(
    "first",
    [
        REFUSED,
        HttpResponse(429),
        HttpResponse(429, {"retry-after": "3"}),
        HttpResponse(503, {"retry-after": "3"}),
    ],
)
def test_a_submit_that_was_surely_not_accepted_is_sent_again(first: Say) -> None:
    """Nothing was bought, so nothing can be bought twice."""
    service = FakeService().answers(first, times=2)
    assert service.client().submit("x").id == "task-1"
    service.assert_submitted_once(prompt="x")  # the same body each time
    assert service.count("submit") == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (APIConnectionError("reset", delivered="maybe"), SubmissionUnknownError),
        (APITimeoutError("no answer in time", delivered="maybe"), SubmissionUnknownError),
        (HttpResponse(200, {"content-type": "text/html"}, b"<html>"), SubmissionUnknownError),
        (HttpResponse(200), SubmissionUnknownError),
        (HttpResponse(200, {}, b'{"task_id'), SubmissionUnknownError),
        (HttpResponse(200, {}, b"{" * 2_000_000), SubmissionUnknownError),
        (HttpResponse(200, {}, b'{"task_id": null}'), SubmissionUnknownError),
        (HttpResponse(200, {}, b'[{"task_id": "a"}, {"task_id": "b"}]'), SubmissionUnknownError),
        *[
            (HttpResponse(code), APIStatusError)
            for code in (301, 307, 408, 500, 502, 503, 504, 520, 524)
        ],
        *[
            (HttpResponse(503, {"retry-after": asked}), APIStatusError)
            for asked in ("soon", "-1", "86400")
        ],
    ],
)
def test_a_submit_that_may_have_been_accepted_is_never_sent_again(
    answer: Say, kind: type[ImageLabsError]
) -> None:
    """An image is never bought twice; the caller is told that nobody knows."""
    service = FakeService().answers(answer)
    with pytest.raises(kind) as caught:
        service.client(max_retries=5).generate("x")
    assert caught.value.delivered == "maybe"
    assert caught.value.endpoint == "POST https://imagelabs.test/txt2img"
    assert service.count("submit") == 1
    assert not service.clock.slept


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 422])
def test_a_refused_request_is_said_at_once(code: int) -> None:
    """The service has judged it; the same words would be judged the same way."""
    service = FakeService().refuses("not like this", status=code)
    with pytest.raises(APIStatusError, match="not like this") as caught:
        service.client().generate("x")
    assert (caught.value.status_code, caught.value.delivered) == (code, "yes")
    assert len(service.sent) == 1


NGINX = {"server": "nginx/1.27.3", "via": "1.1 varnish", "content-type": "text/html"}


@pytest.mark.parametrize("code", [404, 405])
@pytest.mark.parametrize("headers", [{"content-type": "application/json"}, NGINX])
def test_a_404_is_a_refusal_whoever_answers_it(code: int, headers: dict[str, str]) -> None:
    """A gateway without a way to the service has passed nothing on, and none sends a POST twice."""
    body = b"{}" if "json" in headers["content-type"] else b"<html><title>404 Not Found</title>"
    service = FakeService().answers(HttpResponse(code, headers, body))
    with pytest.raises(APIStatusError, match="check base_url") as caught:
        service.client(max_retries=5).generate("x")
    assert (caught.value.delivered, caught.value.retryable) == ("yes", False)
    assert headers["content-type"] in caught.value.message
    assert len(service.sent) == 1


def test_a_refusal_with_status_200_is_said_at_once() -> None:
    """The reference implementation polls for `null` without end."""
    service = FakeService().answers({"error": "limit reached"})
    with pytest.raises(APIResponseError, match="limit reached"):
        service.client().generate("x")
    assert len(service.sent) == 1


@pytest.mark.parametrize(
    "first", [REFUSED, HttpResponse(429), HttpResponse(503, {"retry-after": "0"})]
)
def test_attempts_are_bounded(first: Say) -> None:
    """`max_retries` more, then the last error."""
    service = FakeService().answers(first)
    with pytest.raises((APIConnectionError, APIStatusError)) as caught:
        service.client(max_retries=3).submit("x")
    assert caught.value.delivered == "no"
    assert service.count("submit") == 4
    assert len(service.clock.slept) == 3
    assert service.clock.slept == sorted(service.clock.slept)


# When it is sent again ----------------------------------------------------------------


def test_retry_after_is_obeyed() -> None:
    """In seconds, with a fraction too."""
    service = FakeService().rate_limited(12.5, times=1)
    service.client().submit("x")
    assert service.clock.slept == [12.5]


def test_retry_after_may_be_a_date() -> None:
    """A date that has passed means now."""
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    service = FakeService().answers(HttpResponse(503, {"retry-after": past}), times=1)
    service.client().submit("x")
    assert len(service.clock.slept) == 1
    assert service.clock.elapsed < 1.0


@pytest.mark.parametrize("asked", ["301", "999999999", "Fri, 31 Dec 2999 23:59:59 GMT"])
def test_an_absurd_retry_after_is_told_and_not_obeyed(asked: str) -> None:
    """The caller may have another day; a call has not."""
    service = FakeService().answers(HttpResponse(429, {"retry-after": asked}))
    with pytest.raises(RateLimitError) as caught:
        service.client(timeout=math.inf).submit("x")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 300
    assert not service.clock.slept


@pytest.mark.parametrize("asked", ["-5", "soon", "", "1e9", "nan", "0x10", "1 2", "\u0663"])
def test_a_senseless_retry_after_is_ignored(asked: str) -> None:
    """429 alone says that nothing was bought."""
    service = FakeService().answers(HttpResponse(429, {"retry-after": asked}), times=1)
    service.client().submit("x")
    assert len(service.clock.slept) == 1
    assert service.clock.elapsed < 1.0


def test_no_attempt_is_waited_for_past_the_deadline() -> None:
    """The error comes now rather than at the end."""
    service = FakeService().rate_limited(30)
    with pytest.raises(RateLimitError):
        service.client().generate("x", timeout=20)
    assert not service.clock.slept


# Cloudflare ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        HttpResponse(403, {"cf-mitigated": "challenge"}),
        HttpResponse(403, {"cf-mitigated": "Challenge, challenge"}),
        HttpResponse(503, {}, b"<html><title>Just a moment...</title>"),
        HttpResponse(403, {}, b"<html><head><TITLE>Just a moment...</TITLE>"),
        HttpResponse(200, {}, b"\n <html><title>Just a moment...</title>{'task_id': 'x'}"),
        HttpResponse(200, {"cf-mitigated": "challenge"}),
    ],
)
def test_a_cloudflare_page_names_both_remedies(page: HttpResponse) -> None:
    """Neither retrying nor waiting passes it; a person must know what does."""
    service = FakeService().answers(page)
    with pytest.raises(ChallengeError, match=r"cf_clearance.*user-agent.*TLS handshake") as caught:
        service.client().generate("x")
    for line in ('pip install "imagelabs_sdk[curl]"', "ImageLabs(transport=CurlTransport())"):
        assert line in str(caught.value)
    assert len(service.sent) == 1
    assert caught.value.delivered == "no"


def test_an_answer_that_quotes_such_a_page_is_no_page() -> None:
    """A prompt may be about one; what is paid for is kept."""
    service = FakeService().answers({"task_id": "t1", "prompt": "<title>Just a moment</title>"})
    assert service.client().submit("x").id == "t1"


# The id is what was paid for ----------------------------------------------------------


def test_a_task_id_in_an_error_is_told_and_the_request_not_sent_again() -> None:
    """An id is given out for a job that exists, whatever the status says."""
    answer = HttpResponse(429, {"retry-after": "1"}, b'{"task_id": "t1"}')
    service = FakeService().answers(answer, times=1)
    with pytest.raises(APIStatusError) as caught:
        service.client().submit("x")
    assert (caught.value.task_id, caught.value.delivered) == ("t1", "maybe")
    assert service.count("submit") == 1


def cut(body: bytes, status: int = 200) -> faulty.Answer:
    """An answer that announces one byte more than it has."""
    return faulty.raw(faulty.message(status, body, [("Content-Length", str(len(body) + 1))]))


@pytest.mark.parametrize("rest", [b"", b',"eta":', b',"prompt":"' + b"x" * 1_100_000])
def test_an_answer_that_breaks_off_behind_its_task_id_is_accepted(
    rest: bytes, server: FaultyServer, connect: Connect
) -> None:
    """Also a long one."""
    server.scripts["/txt2img"] = [cut(b'{"task_id":"t1"' + rest)]
    assert connect(server).submit("x").id == "t1"


@pytest.mark.parametrize("half", [b"", b'{"task_id":', b'{"task_id":"t1', b'{"task_id":12'])
def test_half_a_task_id_is_none(half: bytes, server: FaultyServer, connect: Connect) -> None:
    """It would be somebody else's job."""
    server.scripts["/txt2img"] = [cut(half)]
    with pytest.raises(SubmissionUnknownError):
        connect(server).submit("x")
    assert server.count("/txt2img") == 1


def test_an_error_page_that_breaks_off_still_tells_its_status(
    server: FaultyServer, connect: Connect
) -> None:
    """The status alone says enough."""
    server.scripts["/txt2img"] = [cut(b"half", status=400)]
    with pytest.raises(APIStatusError) as caught:
        connect(server).generate("x")
    assert caught.value.status_code == 400
