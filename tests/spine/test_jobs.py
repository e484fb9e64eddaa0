"""Jobs: polled by hand, kept, found again; whatever ends a call names them."""

import json
import logging
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    Backoff,
    Deadline,
    FixedInterval,
    GeneratedImage,
    ImageLabs,
    ImageLabsError,
    InvalidRequestError,
    JobTimeoutError,
    Progress,
    State,
)
from imagelabs_sdk.testing import FakeService


def test_a_job_is_found_again_by_its_id() -> None:
    """In another process, another day; and it is polled without delay."""
    service = FakeService()
    service.known_job("task-9")
    job = service.client().get_job("task-9")
    assert not service.sent
    assert (job.progress, job.done, job.request) == (None, False, None)
    image = job.result()
    assert (image.task_id, image.request) == ("task-9", None)
    assert not service.clock.slept
    assert service.sent[0].fields == {"task_id": "task-9"}


def test_refresh_polls_once_and_answers_whatever_it_is() -> None:
    """A failed job is an answer, an unusable answer is an error with the job."""
    service = FakeService().progress(0.5).html().fails()
    job = service.client().submit("x")
    assert job.refresh().fraction == 0.5
    assert job.progress is not None
    with pytest.raises(APIResponseError) as caught:
        job.refresh()
    assert caught.value.job is job
    assert job.refresh().state is State.FAILED
    assert job.done


def test_a_poll_never_sleeps_and_says_when_the_next_is_due() -> None:
    """For loops, queues and sweeps of one's own."""
    service = FakeService().progress(0.5).drops_connection(times=2).done()
    job = service.client(poll_interval=1).submit("x")
    results = [job.poll() for _ in range(5)]
    assert [result.next_poll_in for result in results] == [1.0, 1.0, 2.0, None, None]
    assert [type(result.error) for result in results[:3]] == [
        type(None),
        APIConnectionError,
        APIConnectionError,
    ]
    assert results[1].progress == results[0].progress
    assert not service.clock.slept
    assert service.count("progress") == 4


def test_after_a_refresh_the_next_poll_is_not_due_yet() -> None:
    """A loop that sleeps for `next_poll_in` and refreshes must not run hot, nor while it fails."""
    service = FakeService().progress(0.5).drops_connection().rate_limited(7, at="progress").done()
    job = service.client(poll_interval=3).submit("x")
    service.clock.sleep(job.next_poll_in)
    assert job.next_poll_in == 0.0
    job.refresh()
    assert job.next_poll_in == 3.0
    for asked in (3.0, 7.0):
        service.clock.sleep(job.next_poll_in)
        with pytest.raises(ImageLabsError):
            job.refresh()
        assert job.next_poll_in == asked


def test_the_end_of_a_job_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A link that has expired is refreshed for years."""
    caplog.set_level(logging.INFO, "imagelabs_sdk.job")
    job = FakeService().done().client().submit("x")
    job.wait()
    job.refresh()
    job.refresh()
    assert len(caplog.messages) == 2


def test_events_are_the_polls_that_were_answered() -> None:
    """One loop for whoever draws a bar; the last event is the end."""
    job = FakeService().queued().drops_connection().progress(0.5).done().client().submit("x")
    assert [p.state for p in job.events()] == [State.QUEUED, State.RUNNING, State.DONE]
    assert job.image().timings.polls == 3
    assert list(job.events()) == []


def test_a_job_without_an_image_yet_says_so() -> None:
    """Asking nobody, `image` cannot know better."""
    job = FakeService().never_finishes().client().submit("x")
    with pytest.raises(JobTimeoutError, match="not known to be done; no poll was answered"):
        job.image()
    job.refresh()
    with pytest.raises(JobTimeoutError, match=r"last status was .* call result\(\) or refresh\(\)"):
        job.image()


def test_progress_never_goes_backwards() -> None:
    """Not even when the service renders the image again."""
    service = FakeService().progress(0.5, 0.1).answers({"status": "Processing"}).progress(0.7)
    seen = [progress.fraction for progress in service.done().client().submit("x").events()]
    assert seen == [0.5, 0.5, 0.5, 0.7, 1.0]


# Keeping ------------------------------------------------------------------------------


def test_a_job_can_be_kept_as_json() -> None:
    """And resumed with its request and its age, by a client of the same service."""
    client = FakeService().client(cookies={"session": "hush"}, headers={"x-key": "hush"})
    job = client.submit("a lighthouse", seed=7)
    kept = json.dumps(job.to_dict())
    assert "hush" not in kept
    again = client.job_from_dict(json.loads(kept))
    assert again == job
    assert again.request == job.request
    assert again.submitted_at == job.submitted_at
    assert client.job_from_dict(client.get_job("x").to_dict()).request is None


def test_a_failure_that_two_polls_report_is_recognised_across_processes() -> None:
    """A queue's worker makes a job anew for each poll."""
    service = FakeService().answers(
        {"status": "Generation failed", "progress": 0.4}, at="progress", times=1
    )
    client = service.answers({"status": "Render failed"}, at="progress").client()
    job = client.submit("x")
    assert job.refresh().state is State.RUNNING
    again = client.job_from_dict(json.loads(json.dumps(job.to_dict())))
    other = client.get_job(job.id, progress=job.progress)
    assert again.progress == other.progress == job.progress
    assert again.refresh().state is State.FAILED
    assert other.refresh().fraction == 0.4


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
    change: dict[str, object], field: str
) -> None:
    """A task id means something to its own service only."""
    client = FakeService().client()
    with pytest.raises(InvalidRequestError) as caught:
        client.job_from_dict({**client.submit("x").to_dict(), **change})
    assert caught.value.field == field
    with pytest.raises(InvalidRequestError):
        client.job_from_dict([])  # type: ignore[arg-type]


def test_an_older_job_counts_its_time_from_its_submit() -> None:
    """Strategies aim by the job's age, not by ours."""
    client = FakeService().client()
    kept = client.submit("x").to_dict()
    kept["submitted_at"] -= 100.0
    assert 100.0 <= client.job_from_dict(kept).result().timings.total < 160.0


def test_a_job_that_was_never_seen_queued_did_not_wait() -> None:
    """The seconds before the first poll are ours, not the queue's."""
    timings = FakeService().progress(0.5).done().client(poll_interval=1).generate("x").timings
    assert (timings.queued, timings.running, timings.total, timings.polls) == (0.0, 2.0, 2.0, 2)


def test_jobs_and_clients_pickle() -> None:
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


def test_an_image_pickles(image: Callable[..., GeneratedImage]) -> None:
    """Results come from worker processes; what fetches them stays outside the comparison."""
    it = image()
    assert pickle.loads(pickle.dumps(it)) == it


# Whatever ends a call names the job ---------------------------------------------------


def test_an_interrupt_names_the_job(caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C must not lose what was paid for."""

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    service = FakeService()
    caplog.set_level(logging.WARNING, "imagelabs_sdk")
    with pytest.raises(KeyboardInterrupt) as caught:
        service.client(polling=FixedInterval(sleep=interrupted)).generate("x")
    notes = getattr(caught.value, "__notes__", None)
    if sys.version_info >= (3, 11):
        assert notes == ["the job goes on at the service: task id task-1"]
    assert "the job goes on at the service: task id task-1" in caplog.text


def test_an_error_of_the_callers_own_callback_is_the_callers() -> None:
    """It passes through as it is, with the job named in a note."""

    def broken(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        FakeService().client().generate("x", on_progress=broken)


@pytest.mark.parametrize("bad", [-1, "x", True])
def test_also_a_bad_argument_after_submit_names_the_job(bad: Any) -> None:
    """Whatever ends a wait, the task id is at hand."""
    job = FakeService().client().submit("x")
    for call in (job.wait, job.result, job.refresh, job.poll, job.events):
        with pytest.raises(InvalidRequestError) as caught:
            call(timeout=bad)
        assert caught.value.job is job
