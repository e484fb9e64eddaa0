"""Messages: an error says what was asked, what came back and what to do."""

import math

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    HttpResponse,
    ImageLabsError,
    JobStalledError,
    JobTimeoutError,
    SubmissionUnknownError,
)
from imagelabs_sdk.testing import FakeService

HTML = {"content-type": "text/html; charset=utf-8", "cf-ray": "ray-7"}
PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<html>Please wait</html>")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HttpResponse(502, HTML, b"<html>"), "502 text/html (tried once); sending it"),
        (HttpResponse(401, {}, b'{"error": "who?"}'), "401: who? (tried once); check api_key"),
        (HttpResponse(404), "404 (tried once); check base_url"),
        (HttpResponse(422, {}, b'{"error": "no"}'), "422: no (tried once); change the request"),
        (HttpResponse(302), "302 (tried once); redirects of the API are not followed"),
        (HttpResponse(429, {"retry-after": "3"}), "429 (tried 3 times); wait 3 s before"),
        (HttpResponse(429), "429 (tried 3 times); wait a while before"),
        (HttpResponse(503, {"retry-after": "0"}), "503 (tried 3 times); nothing was bought: try"),
        (HttpResponse(200, {}, b"<title>Just a moment"), "200 with a Cloudflare check (tried"),
        (HttpResponse(200, {}, b'{"error": "no"}'), "200: the service refused the request: no"),
        (PAGE, "200 text/html: no usable task id in the answer"),
    ],
)
def test_the_error_of_a_submit_says_what_was_asked_what_came_and_what_to_do(
    answer: HttpResponse, words: str
) -> None:
    """One line in a log has to be enough."""
    with pytest.raises(ImageLabsError) as caught:
        FakeService().answers(answer).client().generate("x")
    assert caught.value.endpoint == "POST https://imagelabs.test/txt2img"
    assert caught.value.endpoint in str(caught.value)
    assert f"answered {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HttpResponse(404), "404 (tried once); the service does not know this task"),
        (HttpResponse(403), "403 (tried once); check api_key, cookies and headers"),
        (HttpResponse(502, HTML, b""), "502 text/html (tried once); the job may be"),
        (PAGE, "200 text/html: the answer says nothing about the job"),
    ],
)
def test_the_error_of_a_poll_says_so_too(answer: HttpResponse, words: str) -> None:
    """And names the task."""
    job = FakeService().answers(answer, at="progress").client().submit("x")
    with pytest.raises(ImageLabsError) as caught:
        job.refresh()
    assert f"POST https://imagelabs.test/progress answered {words}" in str(caught.value)
    assert "(task task-1)" in str(caught.value)


def test_an_error_counts_the_attempts_and_says_that_nothing_was_bought() -> None:
    """The last one speaks for all."""
    with pytest.raises(APIConnectionError) as caught:
        FakeService().unreachable().client().submit("x")
    assert str(caught.value) == (
        "POST https://imagelabs.test/txt2img the connection was refused (tried 3 times); "
        "nothing was bought: check base_url and network, or try again"
    )


def test_a_transport_that_raises_one_error_again_and_again_is_understood() -> None:
    """Scripted transports do; the text must not grow."""
    service = FakeService().answers(APIConnectionError("reset"), at="progress")
    with pytest.raises(JobStalledError) as caught:
        service.client(timeout=math.inf).generate("x")
    assert str(caught.value).count("POST") == 1


def test_a_stalled_wait_names_the_last_status() -> None:
    """It is the best guess at how the job stands."""
    with pytest.raises(JobStalledError, match="last status was 'Queue position 1'") as caught:
        FakeService().queued().drops_connection().client(timeout=math.inf).generate("x")
    assert caught.value.status == "Queue position 1"
    with pytest.raises(JobTimeoutError, match="last status was 'Processing'") as late:
        FakeService().never_finishes().client().generate("x", timeout=3)
    assert late.value.status == "Processing"
    with pytest.raises(JobTimeoutError, match="no poll was answered"):
        FakeService().client().submit("x").wait(timeout=0)


def test_an_error_carries_the_answer_and_its_request_id() -> None:
    """The people behind a service ask for the one, a person reads the other."""
    answer = HttpResponse(500, HTML, b"<html>\x1b[31mOops: a lighthouse at dusk</html>" * 99)
    with pytest.raises(APIStatusError) as caught:
        FakeService().answers(answer).client().generate("a lighthouse at dusk")
    assert caught.value.request_id == "ray-7"
    assert caught.value.body.startswith("<html> [31mOops: …")
    assert "lighthouse" not in caught.value.body
    with pytest.raises(SubmissionUnknownError) as unknown:
        FakeService().answers(PAGE).client().generate("x")
    assert (unknown.value.request_id, unknown.value.body) == (None, "<html>Please wait</html>")
