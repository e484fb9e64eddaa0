"""The facade over a handler function: no socket, no real time, the whole protocol."""

import json
import logging
import math
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    Backoff,
    ChallengeError,
    Deadline,
    FixedInterval,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    ImageLabsError,
    ImageRequest,
    InvalidRequestError,
    Job,
    JobFailedError,
    JobStalledError,
    JobTimeoutError,
    Progress,
    RateLimitError,
    RequestsTransport,
    State,
    SubmissionUnknownError,
)
from imagelabs_sdk.settings import USER_AGENT
from tests.conftest import FakeTime
from tests.faulty import PNG

Say = HttpResponse | Exception


def ok(**fields: object) -> HttpResponse:
    return HttpResponse(200, {}, json.dumps(fields).encode())


ACCEPTED = ok(task_id="task-1")
QUEUED = ok(status="Queue position 2", progress=0)
HALF = ok(status="Processing", progress=0.5, current_image_url="/preview.png")
DONE = ok(status="Done", progress=1, final_image_url="https://images.test/x.png")
PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<html>Please wait</html>")


@attrs.define
class Service:
    """Answers from scripts, and keeps what it was asked. The last answer repeats."""

    submits: list[Say]
    polls: list[Say]
    asked: list[HttpRequest] = attrs.Factory(list)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.asked.append(request)
        script = self.submits if request.url.endswith("/txt2img") else self.polls
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def count(self, path: str) -> int:
        return sum(request.url.endswith(path) for request in self.asked)

    def body(self, number: int = 0) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.asked[number].body)
        return body


def service(polls: Iterable[Say] = (DONE,), submits: Iterable[Say] = (ACCEPTED,)) -> Service:
    return Service(list(submits), list(polls))


def client_of(
    peer: Callable[[HttpRequest], HttpResponse], time: FakeTime, **more: Any
) -> ImageLabs:
    settings = {"polling": time.every(1.0), "timeout": 60.0, **more}
    return ImageLabs(transport=HandlerTransport(peer), **settings)


# The way ------------------------------------------------------------------------------


def test_a_prompt_becomes_an_image(time: FakeTime) -> None:
    """The promise of the whole library, in one line of the caller's."""
    peer = service([QUEUED, HALF, DONE])
    seen: list[Progress] = []
    image = client_of(peer, time).generate("a lighthouse", seed=7, on_progress=seen.append)
    assert [(p.state, p.fraction) for p in seen] == [
        (State.QUEUED, 0.0),
        (State.RUNNING, 0.5),
        (State.DONE, 1.0),
    ]
    assert image.url == "https://images.test/x.png"
    assert image.task_id == "task-1"
    assert attrs.astuple(image.timings) == (2.0, 1.0, 3.0, 3)
    assert image.request is not None
    assert image.request.seed == 7
    assert str(image.request.subseed) == peer.body()["subseed"]
    assert peer.body(1) == {"task_id": "task-1"}


def test_options_and_a_ready_request_are_the_same(time: FakeTime) -> None:
    """Whoever builds requests ahead should not have to take them apart."""
    options: Any = {"width": 512, "height": 640, "seed": 1, "subseed": 2, "negative_prompt": "fog"}
    peer = service()
    client = client_of(peer, time)
    client.submit("x", **options)
    client.submit(ImageRequest("x", **options))
    assert peer.body(0) == peer.body(1)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c: c.generate(" "), "prompt"),
        (lambda c: c.submit("x", wdith=512), "wdith"),
        (lambda c: c.submit("x", nonsense=1), "nonsense"),
        (lambda c: c.submit(ImageRequest("x"), width=512), "width"),
        (lambda c: c.generate("x", timeout=-1), "timeout"),
        (lambda c: c.generate("x", timeout="5"), "timeout"),
        (lambda c: c.submit("x", timeout=math.nan), "timeout"),
        (lambda c: c.get_job(""), "task_id"),
        (lambda c: c.get_job(None), "task_id"),
        (lambda c: c.get_job("t").wait(timeout=-1), "timeout"),
        (lambda c: c.get_job("t").wait(timeout=True), "timeout"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    call: Callable[[ImageLabs], object], field: str, time: FakeTime
) -> None:
    """A call that cannot succeed must not cost an image."""
    peer = service()
    with pytest.raises(InvalidRequestError) as caught:
        call(client_of(peer, time))
    assert caught.value.field == field
    assert not peer.asked


def test_no_time_at_all_buys_nothing(time: FakeTime) -> None:
    """0 seconds is a valid answer of a loop that has run out of time; the same rule everywhere."""
    peer = service()
    with pytest.raises(APITimeoutError) as caught:
        client_of(peer, time).submit("x", timeout=0)
    assert (caught.value.delivered, caught.value.code) == ("no", "api_timeout")
    assert not peer.asked


def test_several_calls_share_one_deadline(time: FakeTime) -> None:
    """A deadline goes wherever seconds do, and keeps its end."""
    client = client_of(service([HALF]), time)
    deadline = client.deadline(5)
    assert client.deadline(deadline) is deadline
    job = client.submit("x", timeout=deadline)
    with pytest.raises(JobTimeoutError):
        job.wait(timeout=deadline)
    with pytest.raises(JobTimeoutError):
        job.result(timeout=deadline)
    assert time.now == 1005.0


# Submit -------------------------------------------------------------------------------

REFUSED = APIConnectionError("refused", delivered="no")
RESET = APIConnectionError("reset", delivered="maybe")
SLOW = APITimeoutError("no answer in time", delivered="maybe")


def status(code: int, body: bytes = b"", **headers: str) -> HttpResponse:
    return HttpResponse(code, {k.replace("_", "-"): v for k, v in headers.items()}, body)


@pytest.mark.parametrize(
    "first",
    [REFUSED, status(429), status(429, retry_after="3"), status(503, retry_after="3")],
)
def test_a_submit_that_was_surely_not_accepted_is_sent_again(first: Say, time: FakeTime) -> None:
    """Nothing was bought, so nothing can be bought twice."""
    peer = service(submits=[first, first, ACCEPTED])
    assert client_of(peer, time).submit("x").id == "task-1"
    assert peer.count("/txt2img") == 3
    bodies = {request.body for request in peer.asked}
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (RESET, SubmissionUnknownError),
        (SLOW, SubmissionUnknownError),
        (PAGE, SubmissionUnknownError),
        (status(200), SubmissionUnknownError),
        (status(200, b'{"task_id'), SubmissionUnknownError),
        (status(200, b"{" * 2_000_000), SubmissionUnknownError),
        (ok(task_id=None), SubmissionUnknownError),
        *[(status(code), APIStatusError) for code in (301, 307, 408, 500, 502, 504, 520, 524)],
        (status(503), APIStatusError),
        (status(503, retry_after="soon"), APIStatusError),
        (status(503, retry_after="-1"), APIStatusError),
        (status(503, retry_after="86400"), APIStatusError),
    ],
)
def test_a_submit_that_may_have_been_accepted_is_never_sent_again(
    answer: Say, kind: type[Exception], time: FakeTime
) -> None:
    """An image is never bought twice; the caller is told that nobody knows."""
    peer = service(submits=[answer])
    with pytest.raises(kind) as caught:
        client_of(peer, time, max_retries=5).generate("x")
    assert isinstance(caught.value, ImageLabsError)
    assert caught.value.delivered == "maybe"
    assert caught.value.endpoint == "POST https://editor.imagelabs.net/txt2img"
    assert peer.count("/txt2img") == 1
    assert not time.slept


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 422])
def test_a_refused_request_is_said_at_once(code: int, time: FakeTime) -> None:
    """The service has judged it; the same words would be judged the same way."""
    peer = service(submits=[status(code, b'{"error": "not like this"}')])
    with pytest.raises(APIStatusError, match="not like this") as caught:
        client_of(peer, time).generate("x")
    assert (caught.value.status_code, caught.value.delivered) == (code, "yes")
    assert len(peer.asked) == 1


def test_a_refusal_with_status_200_is_said_at_once(time: FakeTime) -> None:
    """The reference implementation polls for `null` without end."""
    peer = service(submits=[ok(error="limit reached")])
    with pytest.raises(APIResponseError, match="limit reached"):
        client_of(peer, time).generate("x")
    assert len(peer.asked) == 1


@pytest.mark.parametrize("first", [REFUSED, status(429), status(503, retry_after="0")])
def test_attempts_are_bounded(first: Say, time: FakeTime) -> None:
    """`max_retries` more, then the last error."""
    peer = service(submits=[first])
    with pytest.raises((APIConnectionError, APIStatusError)) as caught:
        client_of(peer, time, max_retries=3).submit("x")
    assert caught.value.delivered == "no"
    assert peer.count("/txt2img") == 4
    assert time.slept == sorted(time.slept)


def test_retry_after_is_obeyed(time: FakeTime) -> None:
    """In seconds, with a fraction too."""
    peer = service(submits=[status(429, retry_after="12.5"), ACCEPTED])
    client_of(peer, time).submit("x")
    assert time.slept == [12.5]


def test_retry_after_may_be_a_date(time: FakeTime) -> None:
    """A date that has passed means now."""
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    peer = service(submits=[status(503, retry_after=past), ACCEPTED])
    client_of(peer, time).submit("x")
    assert len(time.slept) == 1
    assert time.slept[0] < 1.0


@pytest.mark.parametrize("asked", ["301", "999999999", "Fri, 31 Dec 2999 23:59:59 GMT"])
def test_an_absurd_retry_after_is_told_and_not_obeyed(asked: str, time: FakeTime) -> None:
    """The caller may have another day; a call has not."""
    peer = service(submits=[status(429, retry_after=asked)])
    with pytest.raises(RateLimitError) as caught:
        client_of(peer, time, timeout=math.inf).submit("x")
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 300
    assert not time.slept


@pytest.mark.parametrize("asked", ["-5", "soon", "", "1e9", "nan", "0x10", "1 2", "\u0663"])
def test_a_senseless_retry_after_is_ignored(asked: str, time: FakeTime) -> None:
    """429 alone says that nothing was bought."""
    peer = service(submits=[status(429, retry_after=asked), ACCEPTED])
    client_of(peer, time).submit("x")
    assert time.slept[0] < 1.0


def test_no_attempt_is_waited_for_past_the_deadline(time: FakeTime) -> None:
    """The error comes now rather than at the end."""
    peer = service(submits=[status(429, retry_after="30")])
    with pytest.raises(RateLimitError):
        client_of(peer, time).generate("x", timeout=20)
    assert not time.slept


@pytest.mark.parametrize(
    "page",
    [
        status(403, b"", cf_mitigated="challenge"),
        status(403, b"", cf_mitigated="Challenge, challenge"),
        status(503, b"<html><title>Just a moment...</title>"),
        status(403, b"<html><head><TITLE>Just a moment...</TITLE>"),
        status(200, b"\n <html><title>Just a moment...</title>{'task_id': 'x'}"),
        status(200, b"", cf_mitigated="challenge"),
    ],
)
def test_a_cloudflare_page_names_both_remedies(page: HttpResponse, time: FakeTime) -> None:
    """Neither retrying nor waiting passes it; a person must know what does."""
    peer = service(submits=[page])
    with pytest.raises(ChallengeError, match=r"cf_clearance.*user-agent.*TLS handshake") as caught:
        client_of(peer, time).generate("x")
    assert len(peer.asked) == 1
    assert caught.value.delivered == "no"


def test_an_answer_that_quotes_such_a_page_is_no_page(time: FakeTime) -> None:
    """A prompt may be about one; what is paid for is kept."""
    answer = status(200, b'{"task_id": "t1", "prompt": "<title>Just a moment</title>"}')
    assert client_of(service(submits=[answer]), time).submit("x").id == "t1"


def test_a_task_id_in_an_error_is_told_and_the_request_not_sent_again(time: FakeTime) -> None:
    """An id is given out for a job that exists, whatever the status says."""
    peer = service(submits=[status(429, b'{"task_id": "t1"}', retry_after="1"), ACCEPTED])
    with pytest.raises(APIStatusError) as caught:
        client_of(peer, time).submit("x")
    assert caught.value.task_id == "t1"
    assert getattr(caught.value, "delivered") == "maybe"  # noqa: B009
    assert peer.count("/txt2img") == 1


def breaking_off(text: bytes) -> HttpResponse:
    def chunks() -> Iterable[bytes]:
        yield text
        raise APIConnectionError("cut")

    return HttpResponse(200, {}, chunks())


@pytest.mark.parametrize("rest", [b"", b',"eta":', b',"prompt":"' + b"x" * 1_100_000])
def test_an_answer_that_breaks_off_behind_its_task_id_is_accepted(
    rest: bytes, time: FakeTime
) -> None:
    """The id is what was paid for."""
    answer = breaking_off(b'{"task_id":"t1"' + rest)
    assert client_of(service(submits=[answer]), time).submit("x").id == "t1"


@pytest.mark.parametrize("half", [b"", b'{"task_id":', b'{"task_id":"t1', b'{"task_id":12'])
def test_half_a_task_id_is_none(half: bytes, time: FakeTime) -> None:
    """It would be somebody else's job."""
    peer = service(submits=[breaking_off(half)])
    with pytest.raises(SubmissionUnknownError):
        client_of(peer, time).submit("x")


def test_an_error_page_that_breaks_off_still_tells_its_status(time: FakeTime) -> None:
    """The status alone says enough."""

    def broken() -> Iterable[bytes]:
        yield b"half"
        raise APIConnectionError("cut")

    peer = service(submits=[HttpResponse(400, {}, broken())])
    with pytest.raises(APIStatusError) as caught:
        client_of(peer, time).generate("x")
    assert caught.value.status_code == 400


# Waiting ------------------------------------------------------------------------------

BAD_POLLS: list[Say] = [
    RESET,
    SLOW,
    REFUSED,
    PAGE,
    status(200),
    status(200, b"{}"),
    status(200, b'{"status": null}'),
    status(200, b"[" * 100_000),
    status(200, b"\xff\xfe\x00"),
    status(200, b" " * 2_000_000),
    status(204),
    status(302, location="/login"),
    *[status(code) for code in (408, 425, 429, 500, 501, 502, 503, 504, 520)],
    status(429, retry_after="2"),
    status(403, b"", cf_mitigated="challenge"),
]


@pytest.mark.parametrize("bad", BAD_POLLS)
def test_a_wait_survives_any_single_bad_poll(bad: Say, time: FakeTime) -> None:
    """The job behind it is healthy, and paid for."""
    peer = service([QUEUED, bad, HALF, bad, DONE])
    assert client_of(peer, time).generate("x").url.endswith("/x.png")
    assert peer.count("/txt2img") == 1


@pytest.mark.parametrize("bad", BAD_POLLS[:-1])
def test_a_streak_of_bad_polls_ends_the_wait(bad: Say, time: FakeTime) -> None:
    """It says that the service cannot be reached, never that the job failed."""
    peer = service([bad])
    with pytest.raises(JobStalledError, match="cannot reach the service") as caught:
        client_of(peer, time, timeout=math.inf).generate("x")
    assert peer.count("/progress") == 10
    assert caught.value.job is not None
    assert caught.value.task_id == "task-1"
    assert caught.value.__cause__ is not None
    assert "job failed" not in str(caught.value)


def test_failures_must_be_in_a_row_to_count(time: FakeTime) -> None:
    """A service that answers every other time is slow, not gone."""
    polls: list[Say] = [RESET, HALF]
    peer = service([*polls * 20, DONE])
    assert client_of(peer, time, timeout=math.inf).generate("x").timings.polls == 21


def test_a_bad_poll_slows_the_looking_down(time: FakeTime) -> None:
    """And a good one restores the pace."""
    peer = service([RESET, RESET, RESET, HALF, DONE])
    client_of(peer, time).generate("x")
    assert time.slept == [1.0, 1.0, 2.0, 4.0, 1.0]


def test_a_poll_may_be_put_off_by_the_service(time: FakeTime) -> None:
    """Within reason: a minute at most, and never past the deadline."""
    peer = service([status(429, retry_after="7"), status(429, retry_after="1000"), DONE])
    client_of(peer, time, timeout=math.inf).generate("x")
    assert time.slept == [1.0, 7.0, 60.0]
    with pytest.raises(JobTimeoutError):
        client_of(service([status(429, retry_after="1000")]), time).generate("x", timeout=5)


def test_a_cloudflare_page_again_and_again_is_said(time: FakeTime) -> None:
    """Waiting does not pass it; the job is kept."""
    peer = service([status(403, b"", cf_mitigated="challenge")])
    with pytest.raises(ChallengeError) as caught:
        client_of(peer, time).generate("x")
    assert caught.value.task_id == "task-1"
    assert peer.count("/progress") == 2


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 422])
def test_a_forgotten_or_refused_task_is_said_at_once(code: int, time: FakeTime) -> None:
    """Asking on cannot help."""
    peer = service([HALF, status(code, b'{"error": "unknown task"}')])
    with pytest.raises(APIStatusError, match="unknown task") as caught:
        client_of(peer, time).generate("x")
    assert caught.value.status_code == code
    assert caught.value.job is not None
    assert peer.count("/progress") == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ok(status="Done"), "names no image"),
        (ok(status="DONE", final_image_url=""), "names no image"),
        (ok(status="error: out of memory"), "out of memory"),
        (ok(status="Failed"), "Failed"),
    ],
)
def test_a_failed_job_is_said_at_once(answer: HttpResponse, words: str, time: FakeTime) -> None:
    """With the service's own words; and it stays failed."""
    peer = service([HALF, answer])
    with pytest.raises(JobFailedError, match=words) as caught:
        client_of(peer, time).generate("x")
    assert peer.count("/progress") == 2
    job = caught.value.job
    assert isinstance(job, Job)
    assert job.done
    for again in (job.wait, job.result, job.image, job.poll, lambda: list(job.events())):
        with pytest.raises(JobFailedError):
            again()
    assert peer.count("/progress") == 2


def test_a_job_that_outlasts_our_patience_is_not_lost(time: FakeTime) -> None:
    """It may finish yet; waiting goes on where it stopped."""
    polls: list[Say] = [HALF]
    peer = Service([ACCEPTED], polls)
    with pytest.raises(JobTimeoutError, match=r"still running after 5\.0 s") as caught:
        client_of(peer, time).generate("x", timeout=5)
    assert time.now == 1005.0
    polls[:] = [DONE]
    assert caught.value.job is not None
    assert caught.value.job.result().url.endswith("/x.png")


def test_a_short_patience_is_not_wasted(time: FakeTime) -> None:
    """A poll that the strategy would take after the deadline is taken just before it."""
    polling = Backoff(10.0, 10.0, clock=time.clock, sleep=time.sleep)
    peer = service()
    assert client_of(peer, time, polling=polling).generate("x", timeout=2).url.endswith("/x.png")
    assert time.slept == [1.5]
    with pytest.raises(JobTimeoutError):
        client_of(service([HALF]), time, polling=polling).generate("x", timeout=2)
    assert time.slept == [1.5, 1.5, 0.5]


def test_a_deadline_in_the_middle_of_failures_says_so(time: FakeTime) -> None:
    """ "Still running" would be a guess."""
    with pytest.raises(JobTimeoutError, match="cannot reach the service"):
        client_of(service([RESET]), time).generate("x", timeout=5)


def test_a_timeout_of_zero_does_not_wait(time: FakeTime) -> None:
    """For who only wants to know; a job known to be done is done."""
    peer = service()
    job = client_of(peer, time).get_job("task-1")
    with pytest.raises(JobTimeoutError):
        job.wait(timeout=0)
    assert not peer.asked
    job.refresh()
    assert job.wait(timeout=0).image().url.endswith("/x.png")


def test_strategies_are_told_what_was_seen(time: FakeTime) -> None:
    """Seconds since submit and the answer: enough to decide, and no I/O."""
    told: list[list[tuple[float, State]]] = []

    class Curious(FixedInterval):
        def delay(self, polls: Any) -> float:
            told.append([(poll.elapsed, poll.progress.state) for poll in polls])
            return 2.0

    polling = Curious(clock=time.clock, sleep=time.sleep)
    client_of(service([QUEUED, HALF, DONE]), time, polling=polling).generate("x")
    assert told[0] == []
    assert told[-1] == [(2.0, State.QUEUED), (4.0, State.RUNNING)]


# Jobs ---------------------------------------------------------------------------------


def test_a_job_is_found_again_by_its_id(time: FakeTime) -> None:
    """In another process, another day; and it is polled without delay."""
    peer = service()
    job = client_of(peer, time).get_job("task-9")
    assert not peer.asked
    assert (job.progress, job.done, job.request) == (None, False, None)
    image = job.result()
    assert (image.task_id, image.request) == ("task-9", None)
    assert not time.slept
    assert peer.body() == {"task_id": "task-9"}


def test_refresh_asks_once_and_answers_whatever_it_is(time: FakeTime) -> None:
    """A failed job is an answer, an unusable answer is an error with the job."""
    peer = service([HALF, PAGE, ok(status="Failed")])
    job = client_of(peer, time).get_job("task-1")
    assert job.refresh().fraction == 0.5
    assert job.progress is not None
    with pytest.raises(APIResponseError) as caught:
        job.refresh()
    assert caught.value.job is job
    assert job.refresh().state is State.FAILED
    assert job.done


def test_a_step_never_sleeps_and_says_when_to_come_again(time: FakeTime) -> None:
    """For loops, queues and sweeps of one's own."""
    peer = service([HALF, RESET, RESET, DONE])
    job = client_of(peer, time).get_job("task-1")
    steps = [job.poll() for _ in range(5)]
    assert [result.next_poll_in for result in steps] == [1.0, 1.0, 2.0, None, None]
    assert [type(result.error) for result in steps[:3]] == [
        type(None),
        APIConnectionError,
        APIConnectionError,
    ]
    assert steps[1].progress == steps[0].progress
    assert not time.slept
    assert peer.count("/progress") == 4


def test_events_are_the_polls_that_were_answered(time: FakeTime) -> None:
    """One loop for whoever draws a bar; the last event is the end."""
    job = client_of(service([QUEUED, RESET, HALF, DONE]), time).submit("x")
    assert [p.state for p in job.events()] == [State.QUEUED, State.RUNNING, State.DONE]
    assert job.image().timings.polls == 3
    assert list(job.events()) == []


def test_a_job_without_an_image_yet_says_so(time: FakeTime) -> None:
    """Asking nobody, `image` cannot know better."""
    job = client_of(service(), time).submit("x")
    with pytest.raises(JobTimeoutError):
        job.image()


def test_a_job_can_be_kept_as_json(time: FakeTime) -> None:
    """And resumed with its request and its age, by a client of the same service."""
    client = client_of(service(), time, cookies={"session": "hush"}, headers={"x-key": "hush"})
    job = client.submit("a lighthouse", seed=7)
    kept = json.dumps(job.to_dict())
    assert "hush" not in kept
    again = client.job_from_dict(json.loads(kept))
    assert again == job
    assert again.request == job.request
    assert again.submitted_at == job.submitted_at
    assert client.job_from_dict(client.get_job("x").to_dict()).request is None


def test_a_failure_that_two_polls_report_is_recognised_across_processes(time: FakeTime) -> None:
    """A queue's worker makes a job anew for each poll."""
    peer = service([ok(status="Generation failed", progress=0.4), ok(status="Render failed")])
    client = client_of(peer, time)
    job = client.submit("x")
    assert job.refresh().state is State.RUNNING
    again = client.job_from_dict(json.loads(json.dumps(job.to_dict())))
    other = client.get_job("t1", progress=job.progress)
    assert again.progress == other.progress == job.progress
    assert again.refresh().state is State.FAILED
    assert other.refresh().fraction == 0.4


def test_progress_never_goes_backwards(time: FakeTime) -> None:
    """Not even when the service renders the image again."""
    told = [0.5, 0.1, None, 0.7]
    peer = service([*[ok(status="Processing", progress=fraction) for fraction in told], DONE])
    assert [p.fraction for p in client_of(peer, time).submit("x").events()][:4] == [
        0.5,
        0.5,
        0.5,
        0.7,
    ]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 2}, "version"),
        ({"base_url": "https://elsewhere.test"}, "base_url"),
        ({"submitted_at": None}, "submitted_at"),
        ({"submitted_at": math.nan}, "submitted_at"),
        ({"submitted_at": True}, "submitted_at"),
        ({"request": "x"}, "request"),
        ({"request": {"prompt": ""}}, "prompt"),
        ({"request": {}}, "prompt"),
        ({"task_id": 7}, "task_id"),
    ],
)
def test_a_description_that_cannot_be_right_is_refused(
    change: dict[str, object], field: str, time: FakeTime
) -> None:
    """A task id means something to its own service only."""
    client = client_of(service(), time)
    with pytest.raises(InvalidRequestError) as caught:
        client.job_from_dict({**client.submit("x").to_dict(), **change})
    assert caught.value.field == field
    with pytest.raises(InvalidRequestError):
        client.job_from_dict([])  # type: ignore[arg-type]


def test_an_older_job_counts_its_time_from_its_submit(
    time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strategies aim by the job's age, not by ours."""
    client = client_of(service(), time)
    kept = client.submit("x").to_dict()
    kept["submitted_at"] -= 100.0
    assert 100.0 <= client.job_from_dict(kept).result().timings.total < 160.0


def test_an_interrupt_names_the_job(time: FakeTime, caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C must not lose what was paid for."""

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    polling = FixedInterval(1.0, clock=time.clock, sleep=interrupted)
    caplog.set_level(logging.WARNING, "imagelabs_sdk")
    with pytest.raises(KeyboardInterrupt) as caught:
        client_of(service(), time, polling=polling).generate("x")
    notes = getattr(caught.value, "__notes__", None)
    if sys.version_info >= (3, 11):
        assert notes == ["the job goes on at the service: task id task-1"]
    assert "the job goes on at the service: task id task-1" in caplog.text


def test_an_error_of_the_callers_own_callback_is_the_callers(time: FakeTime) -> None:
    """It passes through as it is, with the job named in a note."""

    def broken(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client_of(service(), time).generate("x", on_progress=broken)


def test_jobs_clients_and_images_pickle(time: FakeTime) -> None:
    """They travel to worker processes and come back equal."""
    client = ImageLabs(
        "https://h.test",
        cookies="a=b",
        proxy="http://u:p@h.test:1",
        polling=Backoff(),
        verify=False,
    )
    job = client.job_from_dict(
        {"version": 1, "task_id": "t", "base_url": client.url, "submitted_at": 5.0,
         "request": {"prompt": "x"}}
    )  # fmt: skip
    for value in (client, job, job.request, Deadline(5.0)):
        assert pickle.loads(pickle.dumps(value)) == value
        assert hash(pickle.loads(pickle.dumps(value))) == hash(value)
    again = pickle.loads(pickle.dumps(job))
    assert abs((again._elapsed()) - job._elapsed()) < 5.0
    assert client != ImageLabs("https://h.test")
    assert client != "client"
    assert job != "job"


def test_an_image_pickles(time: FakeTime) -> None:
    """Results come from worker processes; what draws them stays outside the comparison."""
    image = client_of(Module, time, polling=FixedInterval(0.001)).generate("x")
    assert pickle.loads(pickle.dumps(image)) == image


def Module(request: HttpRequest) -> HttpResponse:
    return ACCEPTED if request.url.endswith("/txt2img") else DONE


@pytest.mark.parametrize("answer", [None, "1", math.nan, -1.0, math.inf, True])
def test_a_strategy_that_answers_nonsense_is_named(answer: Any, time: FakeTime) -> None:
    """It must neither hammer the service nor lose the job."""

    class Odd(FixedInterval):
        def delay(self, polls: Any) -> Any:
            return answer

    peer = service([HALF])
    with pytest.raises(InvalidRequestError, match="polling") as caught:
        client_of(peer, time, polling=Odd(clock=time.clock, sleep=time.sleep)).generate("x")
    assert caught.value.task_id == "task-1"
    assert peer.count("/progress") == 0


def test_a_strategy_that_fails_does_not_lose_the_job(
    time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the caller's own code, and the job is the caller's, too."""

    class Odd(FixedInterval):
        def delay(self, polls: Any) -> Any:
            return polls[-1].elapsed

    client = client_of(service(), time, polling=Odd(clock=time.clock, sleep=time.sleep))
    job = client.submit("x")
    assert pickle.loads(pickle.dumps(job.to_dict())) == job.to_dict()
    with pytest.raises(IndexError):
        job.wait()
    assert "task id task-1" in caplog.text


@pytest.mark.parametrize("bad", [-1, "x", True])
def test_also_a_bad_argument_after_submit_names_the_job(bad: Any, time: FakeTime) -> None:
    """Whatever ends a wait, the task id is at hand."""
    job = client_of(service(), time).submit("x")
    for call in (job.wait, job.result, job.refresh, job.poll, job.events):
        with pytest.raises(InvalidRequestError) as caught:
            call(timeout=bad)
        assert caught.value.job is job


QUOTED = "a lighthouse at dusk"
ECHOES: list[HttpResponse] = [
    status(400, b'{"error": "bad prompt: A Lighthouse at dusk, cookie WHISPER"}'),
    status(500, b'{"error": "cookie session=whisper is stale"}'),
    ok(error="do not draw 'a lighthouse at dusk'"),
    HttpResponse(200, {}, b"<html>a lighthouse at dusk is not allowed</html>"),
]


@pytest.mark.parametrize("echo", ECHOES)
def test_a_service_that_quotes_us_is_not_quoted(
    echo: HttpResponse, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    """What it was told comes back in its words, and would end in our messages and logs."""
    caplog.set_level(logging.DEBUG)
    failed = ok(status="error: NSFW prompt 'a lighthouse at dusk'")
    for peer in (service(submits=[echo]), service([echo]), service([failed])):
        client = client_of(peer, time, cookies={"session": "whisper"}, max_retries=0)
        with pytest.raises(ImageLabsError) as caught:
            client.generate(QUOTED, negative_prompt=QUOTED[:12])
        error = caught.value
        shown = f"{error!r} {error.args} {traceback.format_exception(error)} {caplog.text}"
        shown += repr(isinstance(error.job, Job) and error.job.progress)
        assert "lighthouse" not in shown.lower()
        assert "whisper" not in shown.lower()


# Settings -----------------------------------------------------------------------------


def sent_by(time: FakeTime, **settings: Any) -> HttpRequest:
    peer = service()
    client_of(peer, time, **settings).submit("x")
    return peer.asked[0]


def test_the_headers_are_the_reference_implementations(time: FakeTime) -> None:
    """What is known to pass is what is sent."""
    assert sent_by(time).headers == {
        "accept": "*/*",
        "accept-language": "en-US,en;q=0.9",
        "cache-control": "no-cache",
        "content-type": "application/json",
        "origin": "https://editor.imagelabs.net",
        "referer": "https://editor.imagelabs.net/",
        "x-requested-with": "XMLHttpRequest",
        "user-agent": USER_AGENT,
    }


def test_every_header_can_be_replaced_added_or_left_out(time: FakeTime) -> None:
    """Names in any case; `None` leaves one out."""
    headers = sent_by(time, headers={"User-Agent": "mine/1", "Referer": None, "X-Key": "k"}).headers
    assert headers["user-agent"] == "mine/1"
    assert "referer" not in headers
    assert headers["x-key"] == "k"


@pytest.mark.parametrize(
    "settings",
    [
        {"cookies": {"a": "1", "b": "2"}},
        {"cookies": "a=1; b=2"},
        {"cookies": "a=1;b=2;"},
        {"headers": {"Cookie": "a=1; b=2"}},
        {"headers": {"cookie": "a=9; b=2"}, "cookies": {"a": "1"}},
    ],
)
def test_cookies_come_as_mapping_text_or_header(settings: Any, time: FakeTime) -> None:
    """A browser shows them as one line."""
    request = sent_by(time, **settings)
    assert request.cookies == {"a": "1", "b": "2"}
    assert "cookie" not in request.headers


def test_the_environment_gives_defaults_and_arguments_win(
    time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read when a client is made; what is asked for explicitly is obeyed."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", "http://127.0.0.1:9/base/")
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "12.5")
    monkeypatch.setenv("IMAGELABS_COOKIE", "cf_clearance=x")
    monkeypatch.setenv("IMAGELABS_USER_AGENT", "browser/1")
    monkeypatch.setenv("IMAGELABS_PROXY", "http://proxy.test:3128")
    client = ImageLabs()
    assert client.url == "http://127.0.0.1:9/base"
    assert client.api_endpoint == "http://127.0.0.1:9/base/txt2img"
    context = client._context
    assert context.settings.timeout == 12.5
    assert context.settings.cookies == {"cf_clearance": "x"}
    assert context.settings.headers["user-agent"] == "browser/1"
    assert context.settings.headers["origin"] == "http://127.0.0.1:9"
    proxied = RequestsTransport(proxy="http://proxy.test:3128", no_proxy=True)
    assert context.transport == proxied
    explicit = ImageLabs(
        "https://h.test",
        timeout=5,
        cookies={},
        proxy="http://p.test:1",
        headers={"user-agent": "x"},
    )._context
    assert (explicit.settings.timeout, explicit.settings.cookies) == (5.0, {})
    assert explicit.transport == RequestsTransport(proxy="http://p.test:1")
    assert explicit.settings.headers["user-agent"] == "x"


def test_a_bad_number_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote it must find it."""
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "soon")
    with pytest.raises(InvalidRequestError, match="IMAGELABS_TIMEOUT='soon'"):
        ImageLabs()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        *[
            ({"base_url": bad}, "base_url")
            for bad in ("h.test", "ftp://h", "https://", "http://h:x")
        ],
        *[
            ({"base_url": f"https://h{bad}"}, "base_url")
            for bad in ("/?a=1", "/#x", ":0", ":99999")
        ],
        ({"base_url": "https://user:hush@h"}, "base_url"),
        ({"base_url": 7}, "base_url"),
        *[({"proxy": bad}, "proxy") for bad in ("h:hush@x", "ftp://u:hush@h", "http://", 7)],
        ({"proxy": "http://u:hush@h:port"}, "proxy"),
        ({"transport": HandlerTransport(Module), "proxy": "http://h:1"}, "transport"),
        ({"transport": HandlerTransport(Module), "verify": False}, "transport"),
        ({"polling": FixedInterval(), "poll_interval": 1}, "poll_interval"),
        *[({"poll_interval": bad}, "poll_interval") for bad in (0, -1, "1", math.nan)],
        *[({"timeout": bad}, "timeout") for bad in (0, -1, "1", True)],
        *[({"request_timeout": bad}, "request_timeout") for bad in (0, None)],
        *[({"max_retries": bad}, "max_retries") for bad in (-1, 1.0, True, 101)],
        *[({"max_image_bytes": bad}, "max_image_bytes") for bad in (0, 1.5)],
        *[
            ({"headers": bad}, "headers")
            for bad in ({"a b": "x"}, {7: "x"}, {"a": "hush\r\nb: c"}, ["hush"])
        ],
        *[({"headers": {"a": bad}}, "headers") for bad in ("hush\x00", "hush\u2603", 7)],
        *[({"cookies": bad}, "cookies") for bad in (7, {"a": "hush;b"}, {"a b": "hush"}, {"a": 7})],
        ({"cookies": "a=hush\nb"}, "cookies"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings: Any, field: str) -> None:
    """When the client is made, not in the first request; and secrets are not shown."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageLabs(**settings)
    assert caught.value.field == field
    assert "hush" not in str(caught.value)


def test_no_secret_is_shown_anywhere(time: FakeTime, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in a repr, nor in a log at any level, nor in an error."""
    caplog.set_level(logging.DEBUG)
    peer = service([HALF, RESET, ok(status="Failed")])
    client = client_of(peer, time, cookies={"session": "hush"}, headers={"x-key": "hush"})
    with pytest.raises(ImageLabsError) as caught:
        client.generate("a whispered hush")
    job = caught.value.job
    assert isinstance(job, Job)
    shown: list[object] = [
        client,
        job,
        job.request,
        client._context,
        client._settings,
        peer.asked[0],
        caught.value,
        caplog.text,
    ]
    shown.append(RequestsTransport(proxy="http://u:hush@h:1"))
    assert "hush" not in repr(shown)
    assert "16 characters" in caplog.text


def test_prompts_are_logged_only_when_asked_for(
    time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    """Some want to see what they draw."""
    caplog.set_level(logging.DEBUG)
    client_of(service(), time, log_prompts=True).generate("a lighthouse")
    assert "a lighthouse" in caplog.text


def test_the_log_has_two_lines_per_job_and_one_per_request(
    time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    """Enough to follow a job; and what a request was, for those who look for trouble."""
    caplog.set_level(logging.DEBUG, "imagelabs_sdk")
    client_of(service([HALF, DONE]), time).generate("a lighthouse")
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert lines == [
        "task task-1 accepted, prompt: 12 characters",
        "task task-1 done after 2.0 s, 2 polls",
    ]
    requests = [line for line in caplog.messages if line.startswith("POST")]
    base = "POST https://editor.imagelabs.net"
    assert requests == [f"{base}/txt2img: 200", f"{base}/progress: 200", f"{base}/progress: 200"]


def test_a_handler_is_not_asked_after_the_deadline(time: FakeTime) -> None:
    """A function cannot be interrupted, but need not be begun."""
    transport = HandlerTransport(Module)
    with pytest.raises(APITimeoutError) as caught:
        transport.send(
            HttpRequest(method="GET", url="http://h"), deadline=Deadline(0.0, lambda: 1.0)
        )
    assert caught.value.delivered == "no"


def test_a_transport_that_was_passed_in_is_not_closed(time: FakeTime) -> None:
    """Its owner closes it."""

    class Mine(HandlerTransport):
        closed = False

        def close(self) -> None:
            Mine.closed = True

    with ImageLabs(transport=Mine(Module)) as client:
        client.get_job("x").refresh()
    assert not Mine.closed
    Mine(Module).close()


def test_the_reference_providers_names_are_there() -> None:
    """People who come from it look for these."""
    assert ImageLabs.url == "https://editor.imagelabs.net"
    assert ImageLabs.api_endpoint == "https://editor.imagelabs.net/txt2img"
    assert ImageLabs.working is True
    assert ImageLabs.default_model == ImageLabs.default_image_model == "sdxl-turbo"
    assert ImageLabs.models == ImageLabs.image_models == ["sdxl-turbo"]
    assert ImageLabs.get_model("dall-e-9") == "sdxl-turbo"


def test_a_client_shows_its_service_only() -> None:
    """A repr is for people."""
    assert repr(ImageLabs("https://h.test")) == "<ImageLabs https://h.test>"


def test_a_tiny_png_is_an_image(time: FakeTime) -> None:
    """From prompt to bytes with no socket at all."""

    def peer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, {}, PNG) if request.method == "GET" else Module(request)

    assert client_of(peer, time).generate("x").read() == PNG


# Messages -----------------------------------------------------------------------------

HTML = {"content-type": "text/html; charset=utf-8", "cf-ray": "ray-7"}


def reset(_: HttpRequest) -> HttpResponse:
    raise APIConnectionError("reset by peer")


@pytest.mark.parametrize(
    ("submit", "words"),
    [
        (HttpResponse(502, HTML, b"<html>"), "answered 502 text/html (tried once); sending it"),
        (status(401, b'{"error": "who?"}'), "answered 401: who? (tried once); check api_key"),
        (status(404), "answered 404 (tried once); check base_url"),
        (status(422, b'{"error": "no"}'), "answered 422: no (tried once); change the request"),
        (status(302), "answered 302 (tried once); redirects of the API are not followed"),
        (status(429, retry_after="3"), "answered 429 (tried 3 times); wait 3 s before"),
        (status(429), "answered 429 (tried 3 times); wait a while before"),
        (status(503, retry_after="0"), "answered 503 (tried 3 times); nothing was bought: try"),
        (status(200, b"<title>Just a moment..."), "answered 200 with a Cloudflare check (tried"),
        (ok(error="limit"), "limit (tried once); change the request"),
        (PAGE, "answered 200 text/html: no usable task id in the answer"),
    ],
)
def test_the_error_of_a_submit_says_what_was_asked_what_came_and_what_to_do(
    submit: HttpResponse, words: str, time: FakeTime
) -> None:
    """One line in a log has to be enough."""
    with pytest.raises(ImageLabsError) as caught:
        client_of(service(submits=[submit]), time).generate("x")
    assert f"POST https://editor.imagelabs.net/txt2img {words}" in str(caught.value) or (
        words in str(caught.value) and caught.value.endpoint in str(caught.value)
    )
    assert caught.value.endpoint == "POST https://editor.imagelabs.net/txt2img"


@pytest.mark.parametrize(
    ("poll", "words"),
    [
        (status(404), "answered 404 (tried once); the service does not know this task"),
        (status(403), "answered 403 (tried once); check api_key, cookies and headers"),
        (HttpResponse(502, HTML, b""), "answered 502 text/html (tried once); the job may be"),
        (PAGE, "answered 200 text/html: the answer says nothing about the job"),
    ],
)
def test_the_error_of_a_poll_says_so_too(poll: HttpResponse, words: str, time: FakeTime) -> None:
    """And names the task."""
    with pytest.raises(ImageLabsError) as caught:
        client_of(service([poll]), time).get_job("task-1").refresh()
    assert f"POST https://editor.imagelabs.net/progress {words}" in str(caught.value)
    assert "(task task-1)" in str(caught.value)


def test_an_error_counts_the_attempts_and_says_that_nothing_was_bought(time: FakeTime) -> None:
    """Each attempt raises anew, as a transport does."""

    def refuse(_: HttpRequest) -> HttpResponse:
        raise APIConnectionError("connection refused", delivered="no")

    with pytest.raises(APIConnectionError) as caught:
        client_of(refuse, time).submit("x")
    assert str(caught.value) == (
        "POST https://editor.imagelabs.net/txt2img connection refused (tried 3 times); "
        "nothing was bought: check base_url and network, or try again"
    )


def test_a_transport_that_raises_one_error_again_and_again_is_understood(time: FakeTime) -> None:
    """Scripted transports do; the text must not grow."""
    with pytest.raises(JobStalledError) as caught:
        client_of(service([RESET]), time, timeout=math.inf).get_job("task-1").wait()
    assert str(caught.value).count("POST") == 1


def test_a_stalled_wait_names_the_last_status(time: FakeTime) -> None:
    """It is the best guess at how the job stands."""

    def peer(request: HttpRequest) -> HttpResponse:
        answered.append(request)
        return QUEUED if len(answered) == 1 else reset(request)

    answered: list[HttpRequest] = []
    with pytest.raises(JobStalledError, match="last status was 'Queue position 2'") as caught:
        client_of(peer, time, timeout=math.inf).get_job("task-1").wait()
    assert caught.value.status == "Queue position 2"
    with pytest.raises(JobTimeoutError, match="last status was 'Processing'") as late:
        client_of(service([HALF]), time).generate("x", timeout=3)
    assert late.value.status == "Processing"
    with pytest.raises(JobTimeoutError, match="no poll was answered"):
        client_of(service(), time).get_job("task-1").wait(timeout=0)


def test_an_error_carries_the_answer_and_its_request_id(time: FakeTime) -> None:
    """The people behind a service ask for the one, a person reads the other."""
    answer = HttpResponse(500, HTML, b"<html>\x1b[31mOops: a lighthouse at dusk</html>" * 99)
    with pytest.raises(APIStatusError) as caught:
        client_of(service(submits=[answer]), time).generate("a lighthouse at dusk")
    assert caught.value.request_id == "ray-7"
    assert caught.value.body.startswith("<html> [31mOops: …")
    assert "lighthouse" not in caught.value.body
    with pytest.raises(SubmissionUnknownError) as unknown:
        client_of(service(submits=[PAGE]), time).generate("x")
    assert (unknown.value.request_id, unknown.value.body) == (None, "<html>Please wait</html>")


def test_a_job_that_was_never_seen_queued_did_not_wait(time: FakeTime) -> None:
    """The seconds before the first poll are ours, not the queue's."""
    image = client_of(service([HALF, DONE]), time).generate("x")
    assert attrs.astuple(image.timings) == (0.0, 2.0, 2.0, 2)


# Settings of images and internationalized hosts ------------------------------------------


def test_headers_for_image_hosts_go_there_alone(time: FakeTime) -> None:
    """Some hosts of images want a referer or a key of their own."""

    def peer(request: HttpRequest) -> HttpResponse:
        asked.append(request)
        return HttpResponse(200, {}, PNG) if request.method == "GET" else Module(request)

    asked: list[HttpRequest] = []
    headers = {"Referer": "https://gallery.test/", "x-key": "k"}
    client = client_of(peer, time, image_headers=headers)
    client.generate("x").read()
    assert asked[-1].headers["referer"] == "https://gallery.test/"
    assert asked[-1].headers["x-key"] == "k"
    assert "x-key" not in asked[0].headers


def test_a_cookie_for_image_hosts_is_refused() -> None:
    """No cookie leaves the API's origin."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageLabs(image_headers={"Cookie": "a=hush"})
    assert caught.value.field == "image_headers"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (" https://h.test/base/ \n", "https://h.test/base"),
        ("https://bücher.test:8443/x", "https://xn--bcher-kva.test:8443/x"),
        ("https://пример.test", "https://xn--e1afmkfd.test"),
        ("https://straße.test", "https://xn--strae-oqa.test"),
    ],
)
def test_an_address_is_read_as_browsers_read_it(given: str, url: str) -> None:
    """Copied with spaces around it, or in letters of any language; the origin is its A-label."""
    client = ImageLabs(given)
    assert client.url == url
    assert client._settings.headers["origin"] == "/".join(url.split("/")[:3])


def test_a_host_that_is_no_name_is_refused() -> None:
    """Before any request."""
    with pytest.raises(InvalidRequestError, match="base_url") as caught:
        ImageLabs("https://ü..test")
    assert caught.value.code == "malformed"
