"""Waiting: a wait survives any single failed poll, ends in time, and loses no job."""

import math
from typing import Any

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ChallengeError,
    FixedInterval,
    HttpResponse,
    InvalidRequestError,
    Job,
    JobFailedError,
    JobStalledError,
    JobTimeoutError,
    State,
)
from imagelabs_sdk.testing import FakeService

Say = HttpResponse | Exception

CHALLENGE = HttpResponse(403, {"cf-mitigated": "challenge"})
BAD_POLLS: list[Say] = [
    APIConnectionError("reset", delivered="maybe"),
    APITimeoutError("no answer in time", delivered="maybe"),
    APIConnectionError("refused", delivered="no"),
    HttpResponse(200, {"content-type": "text/html"}, b"<html>Please wait</html>"),
    *[
        HttpResponse(200, {}, body)
        for body in (b"", b"{}", b'{"status": null}', b"[" * 100_000, b"\xff\xfe\x00")
    ],
    HttpResponse(200, {}, b" " * 2_000_000),
    HttpResponse(200, {}, b'{"task_id": "t2", "status": "Done", "final_image_url": "/of-t2.png"}'),
    HttpResponse(302, {"location": "/login"}),
    *[HttpResponse(code) for code in (204, 408, 425, 429, 500, 501, 502, 503, 504, 520)],
    HttpResponse(429, {"retry-after": "2"}),
]


@pytest.mark.parametrize("bad", [*BAD_POLLS, CHALLENGE])
def test_a_wait_survives_any_single_bad_poll(bad: Say) -> None:
    """The job behind it is healthy, and paid for."""
    service = FakeService().queued().answers(bad).progress(0.5).answers(bad).done()
    assert service.client().generate("x").read()
    assert service.count("submit") == 1


@pytest.mark.parametrize("bad", BAD_POLLS)
def test_a_streak_of_bad_polls_ends_the_wait(bad: Say) -> None:
    """It says that the service cannot be reached, never that the job failed."""
    service = FakeService().answers(bad, at="progress")
    with pytest.raises(JobStalledError, match="cannot reach the service") as caught:
        service.client(timeout=math.inf).generate("x")
    assert service.count("progress") == 10
    assert caught.value.job is not None
    assert caught.value.task_id == "task-1"
    assert caught.value.__cause__ is not None
    assert "job failed" not in str(caught.value)


def test_failures_must_be_in_a_row_to_count() -> None:
    """A service that answers every other time is slow, not gone."""
    service = FakeService()
    for _ in range(20):
        service.drops_connection(at="progress").progress(0.5)
    service.done()
    assert service.client(timeout=math.inf).generate("x").timings.polls == 21


def test_a_bad_poll_slows_the_polling_down() -> None:
    """And a good one restores the pace."""
    service = FakeService().drops_connection(at="progress", times=3).progress(0.5).done()
    service.client(poll_interval=1).generate("x")
    assert service.clock.slept == [1.0, 1.0, 2.0, 4.0, 1.0]


def test_a_poll_may_be_put_off_by_the_service() -> None:
    """Within reason: a minute at most, and never past the deadline."""
    service = FakeService().rate_limited(7, at="progress").rate_limited(1000, at="progress").done()
    service.client(poll_interval=1, timeout=math.inf).generate("x")
    assert service.clock.slept == [1.0, 7.0, 60.0]
    with pytest.raises(JobTimeoutError):
        FakeService().rate_limited(1000, at="progress").client().generate("x", timeout=5)


def test_a_cloudflare_page_again_and_again_is_said() -> None:
    """Waiting does not pass it; the job is kept."""
    service = FakeService().challenge(at="progress")
    with pytest.raises(ChallengeError) as caught:
        service.client().generate("x")
    assert caught.value.task_id == "task-1"
    assert service.count("progress") == 2


@pytest.mark.parametrize(
    "before",
    [
        FakeService().drops_connection(at="progress", times=3),
        FakeService().challenge(at="progress", times=1).progress(0.5),
    ],
)
def test_one_cloudflare_page_is_polled_again_whatever_came_before_it(before: FakeService) -> None:
    """Only pages count, and only those since the last poll that was answered."""
    service = before.challenge(at="progress", times=1).done()
    assert service.client(timeout=math.inf).generate("x").read()


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 422])
def test_a_forgotten_or_refused_task_is_said_at_once(code: int) -> None:
    """Polling on cannot help."""
    service = FakeService().progress(0.5).refuses("unknown task", status=code)
    with pytest.raises(APIStatusError, match="unknown task") as caught:
        service.client().generate("x")
    assert caught.value.status_code == code
    assert caught.value.job is not None
    assert service.count("progress") == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": "Done"}, "names no image"),
        ({"status": "DONE", "final_image_url": ""}, "names no image"),
        ({"status": "error: out of memory"}, "out of memory"),
        ({"status": "Failed"}, "Failed"),
    ],
)
def test_a_failed_job_is_said_at_once(answer: dict[str, str], words: str) -> None:
    """With the service's own words; and it stays failed."""
    service = FakeService().progress(0.5).answers(answer)
    with pytest.raises(JobFailedError, match=words) as caught:
        service.client().generate("x")
    assert service.count("progress") == 2
    job = caught.value.job
    assert isinstance(job, Job)
    assert job.done
    for again in (job.wait, job.result, job.image, job.poll, lambda: list(job.events())):
        with pytest.raises(JobFailedError):
            again()
    assert service.count("progress") == 2


# The deadline -------------------------------------------------------------------------


def test_a_job_that_outlasts_its_timeout_is_not_lost() -> None:
    """It may finish yet; waiting goes on where it stopped."""
    service = FakeService().takes(10)
    with pytest.raises(JobTimeoutError, match=r"still running after 5\.0 s") as caught:
        service.client().generate("x", timeout=5)
    assert service.clock.elapsed == 5.0
    assert caught.value.job is not None
    assert caught.value.job.result().read()
    service.assert_submitted_once()


def test_a_short_timeout_is_not_wasted() -> None:
    """A poll that the strategy would take after the deadline is taken just before it."""
    service = FakeService()
    assert service.client(poll_interval=10).generate("x", timeout=2).read()
    assert service.clock.slept == [1.5]
    service = FakeService().never_finishes()
    with pytest.raises(JobTimeoutError):
        service.client(poll_interval=10).generate("x", timeout=2)
    assert service.clock.slept == [1.5, 0.5]


def test_a_deadline_in_the_middle_of_failures_says_so() -> None:
    """ "Still running" would be a guess."""
    service = FakeService().drops_connection(at="progress")
    with pytest.raises(JobTimeoutError, match="cannot reach the service"):
        service.client().generate("x", timeout=5)


def test_a_timeout_of_zero_does_not_wait() -> None:
    """For who only wants to know; a job known to be done is done."""
    service = FakeService()
    job = service.client().submit("x")
    with pytest.raises(JobTimeoutError):
        job.wait(timeout=0)
    assert service.count("progress") == 0
    job.refresh()
    assert job.wait(timeout=0).image().read()


def test_several_calls_share_one_deadline() -> None:
    """A deadline goes wherever seconds do, and keeps its end."""
    service = FakeService().never_finishes()
    client = service.client()
    deadline = client.deadline(5)
    assert client.deadline(deadline) is deadline
    job = client.submit("x", timeout=deadline)
    with pytest.raises(JobTimeoutError):
        job.wait(timeout=deadline)
    with pytest.raises(JobTimeoutError):
        job.result(timeout=deadline)
    assert service.clock.elapsed == 5.0


# The strategy -------------------------------------------------------------------------


def test_strategies_are_told_what_was_seen() -> None:
    """Seconds since submit and the answer: enough to decide, and no I/O."""
    told: list[list[tuple[float, State]]] = []

    class Curious(FixedInterval):
        def delay(self, polls: Any) -> float:
            told.append([(poll.elapsed, poll.progress.state) for poll in polls])
            return 2.0

    service = FakeService().queued().progress(0.5).done()
    polling = Curious(clock=service.clock.now, sleep=service.clock.sleep)
    service.client(polling=polling).generate("x")
    assert told[0] == []
    assert told[-1] == [(2.0, State.QUEUED), (4.0, State.RUNNING)]


@pytest.mark.parametrize("answer", [None, "1", math.nan, -1.0, math.inf, True])
def test_a_strategy_that_answers_nonsense_is_named(answer: Any) -> None:
    """It must neither hammer the service nor lose the job."""

    class Odd(FixedInterval):
        def delay(self, polls: Any) -> Any:
            return answer

    service = FakeService()
    with pytest.raises(InvalidRequestError, match="polling") as caught:
        service.client(polling=Odd()).generate("x")
    assert caught.value.task_id == "task-1"
    assert service.count("progress") == 0


def test_a_strategy_that_fails_does_not_lose_the_job(caplog: pytest.LogCaptureFixture) -> None:
    """It is the caller's own code, and the job is the caller's, too."""

    class Odd(FixedInterval):
        def delay(self, polls: Any) -> Any:
            return polls[-1].elapsed

    job = FakeService().client(polling=Odd()).submit("x")
    assert job.to_dict()["task_id"] == "task-1"
    with pytest.raises(IndexError):
        job.wait()
    assert "task id task-1" in caplog.text
