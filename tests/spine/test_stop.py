"""Waits that others can end: by a stop, or because nothing moves any more."""

import threading
import time as real_time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import (
    Deadline,
    FixedInterval,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    ImageLabsError,
    InvalidRequestError,
    Job,
    JobStalledError,
    JobStoppedError,
    JobTimeoutError,
)
from imagelabs_sdk.testing import FakeClock, FakeService
from tests import faulty
from tests.faulty import FaultyServer

SOON = 5.0  # seconds; far above what stopping takes, far below what it ends


def stop_after(seconds: float) -> threading.Event:
    event = threading.Event()
    threading.Timer(seconds, event.set).start()
    return event


def timed(call: Callable[[], object]) -> tuple[JobStoppedError, float]:
    begun = real_time.monotonic()
    with pytest.raises(JobStoppedError) as caught:
        call()
    return caught.value, real_time.monotonic() - begun


@pytest.mark.parametrize("as_function", [False, True])
def test_a_stop_ends_a_wait_with_the_job_at_hand(as_function: bool) -> None:
    """Somebody else decides that waiting is over; the job is not lost by it."""
    client = FakeService().progress(0.5).client(polling=FixedInterval(60.0), timeout=600)
    event = stop_after(0.05)
    stop = event.is_set if as_function else event
    error, took = timed(lambda: client.generate("x", stop=stop))
    assert took < SOON
    assert (error.task_id, error.delivered, error.code) == ("task-1", "yes", "job_stopped")
    assert "goes on at the service" in str(error)
    assert isinstance(error.job, Job)
    assert error.job.refresh().fraction == 0.5


@pytest.mark.parametrize("call", ["wait", "result", "refresh", "poll"])
def test_a_stop_ends_a_poll_that_hangs(
    call: str, server: FaultyServer, connect: Callable[..., ImageLabs]
) -> None:
    """Also a service that does not answer is left within a tenth of a second."""
    server.scripts["/progress"] = [faulty.hang()]
    job = connect(server, timeout=60).get_job("task-1")
    error, took = timed(lambda: getattr(job, call)(stop=stop_after(0.1)))
    assert took < SOON
    assert error.job is job


def test_events_end_by_a_stop_too() -> None:
    """The reader of a loop is told in the loop."""
    stop = threading.Event()
    job = FakeService().progress(0.5).client(polling=FixedInterval(0.001)).submit("x")
    events = job.events(stop=stop)
    assert next(events).fraction == 0.5
    stop.set()
    with pytest.raises(JobStoppedError, match="last status was 'Processing'"):
        next(events)


def test_a_submit_in_flight_finishes_first() -> None:
    """Its id is known then; without it an image would be bought and lost."""
    stop, service = threading.Event(), FakeService()
    service.on_accepted = lambda _: stop.set()
    with pytest.raises(JobStoppedError) as caught:
        service.client().generate("x", stop=stop)
    assert caught.value.task_id == "task-1"
    stop.clear()
    assert service.client().submit("x", stop=stop).id == "task-2"


def test_a_submit_whose_answer_crawls_finishes_first(
    server: FaultyServer, connect: Callable[..., ImageLabs]
) -> None:
    """Over a real socket, where a stop ends a poll at once."""
    answer = faulty.message(200, b'{"task_id": "task-1"}')
    server.scripts["/txt2img"] = [faulty.drip(answer, every=0.01)]
    server.scripts["/progress"] = [faulty.hang()]
    client = connect(server, timeout=60)
    error, took = timed(lambda: client.generate("x", stop=stop_after(0.1)))
    assert took < SOON
    assert (error.task_id, error.delivered) == ("task-1", "yes")


def test_what_is_stopped_before_its_submit_is_not_sent() -> None:
    """Nor sent again after a refusal."""
    service = FakeService().rate_limited(20)
    with pytest.raises(JobStoppedError) as caught:
        service.client().submit("x", stop=lambda: True)
    assert (caught.value.delivered, caught.value.job, len(service.sent)) == ("no", None, 0)
    with pytest.raises(JobStoppedError) as later:
        service.client().generate("x", stop=lambda: service.clock.elapsed > 3.0)
    assert (later.value.delivered, service.count("submit")) == ("no", 1)
    assert service.clock.elapsed < 4.0


def test_a_stop_in_a_deadline_ends_every_call_that_shares_it() -> None:
    """One deadline and one stop for a whole piece of work."""
    service = FakeService().never_finishes()
    client = service.client()
    deadline = client.deadline(30, stop=lambda: service.clock.elapsed >= 5.0)
    job = client.submit("x", timeout=deadline)
    with pytest.raises(JobStoppedError):
        job.wait(timeout=deadline)
    assert 5.0 <= service.clock.elapsed < 5.2


@pytest.mark.parametrize("stop", [True, 7, "now"])
def test_a_stop_that_cannot_be_asked_is_refused(stop: Any) -> None:
    """Before anything is sent."""
    service = FakeService()
    with pytest.raises(InvalidRequestError) as caught:
        service.client().generate("x", stop=stop)
    assert caught.value.field == "stop"
    assert not service.sent


def test_a_stop_of_the_callers_that_fails_names_the_job() -> None:
    """It is the caller's own code, and the job is the caller's, too."""
    job = FakeService().client().submit("x")
    with pytest.raises(ZeroDivisionError) as caught:
        job.wait(stop=lambda: 1 / 0 > 1)
    notes = getattr(caught.value, "__notes__", ["task id task-1"])
    assert "task id task-1" in notes[0]


@pytest.mark.parametrize("answer", ["hang", "drip", "again"])
def test_a_stop_ends_a_download(
    answer: str, server: FaultyServer, connect: Callable[..., ImageLabs], tmp_path: Path
) -> None:
    """One that hangs, one that crawls, and the pause before one is tried again."""
    head = faulty.message(200, b"", [("Content-Length", "99999")])
    server.scripts["/image.png"] = {
        "hang": [faulty.hang()],
        "drip": [faulty.drip(faulty.PNG * 99, at_once=head)],
        "again": [faulty.reply(503)],
    }[answer]
    image = connect(server, timeout=60).generate("x")
    error, took = timed(lambda: image.save(tmp_path / "x.png", stop=stop_after(0.2)))
    assert took < SOON
    assert (error.task_id, list(tmp_path.iterdir())) == ("task-1", [])
    with pytest.raises(JobStoppedError):
        image.read(stop=lambda: True)


# Nothing moves ----------------------------------------------------------------------------


def test_a_wait_without_movement_ends_by_the_stall_timeout() -> None:
    """A queue that stands still is told from one that moves."""
    service = FakeService().queued().progress(0.5)
    with pytest.raises(JobStalledError, match="changed for 10 s") as caught:
        service.client(poll_interval=1).generate("x", stall_timeout=10)
    assert (caught.value.status, caught.value.task_id) == ("Processing", "task-1")
    assert service.clock.elapsed == 12.0


def test_a_wait_with_movement_goes_on() -> None:
    """Each new word and each new fraction counts."""
    service = FakeService().queued(5).progress(0.1, 0.2, 0.3, 0.4, 0.5).done()
    image = service.client(poll_interval=4).generate("x", stall_timeout=5)
    assert image.timings.total == 44.0


def test_a_stall_is_noticed_when_it_is_due() -> None:
    """Not at the next poll of a strategy that polls rarely."""
    service = FakeService()
    service.known_job("task-1").never_finishes()
    with pytest.raises(JobStalledError):
        service.client(poll_interval=60).get_job("task-1").result(stall_timeout=5)
    assert service.clock.elapsed == 5.0


def test_the_deadline_still_comes_first() -> None:
    """A stall is a guess, the deadline a promise."""
    with pytest.raises(JobTimeoutError):
        FakeService().never_finishes().client().generate("x", timeout=5, stall_timeout=50)


@pytest.mark.parametrize("bad", [0, -1, "5", True])
def test_a_stall_timeout_that_makes_no_sense_is_refused(bad: Any) -> None:
    """Before an image is bought."""
    service = FakeService()
    client = service.client()
    with pytest.raises(InvalidRequestError) as caught:
        client.generate("x", stall_timeout=bad)
    assert caught.value.field == "stall_timeout"
    assert not service.sent
    with pytest.raises(InvalidRequestError) as late:
        client.get_job("task-1").wait(stall_timeout=bad)
    assert late.value.task_id == "task-1"


def test_a_pause_without_a_stop_is_one_sleep() -> None:
    """Nothing is paid for what is not used."""
    clock = FakeClock()
    Deadline.after(60, clock.now).pause(5.0, clock.sleep)
    assert clock.slept == [5.0]
    assert not Deadline().stopped


def test_a_function_as_a_transport_is_stopped_around_its_call() -> None:
    """It cannot be interrupted; what it raises after a stop is the stop."""

    def peer(request: HttpRequest) -> HttpResponse:
        stop.set()
        raise ImageLabsError("gone")

    stop = threading.Event()
    job = ImageLabs(transport=HandlerTransport(peer)).get_job("task-1")
    with pytest.raises(JobStoppedError) as caught:
        job.refresh(stop=stop)
    assert isinstance(caught.value.__cause__, ImageLabsError)
