"""A deadline for a whole batch."""

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import (
    Deadline,
    ImageLabsError,
    InvalidRequestError,
    JobStoppedError,
    JobTimeoutError,
    SubmissionUnknownError,
)
from imagelabs_sdk.batch.batch import Batch
from imagelabs_sdk.testing import FakeService
from tests import faulty
from tests.batch.scripted import Connect, begin, client_of, events, kinds, run, submits
from tests.faulty import FaultyServer


def take_all(batch: Batch) -> tuple[list[Any], ImageLabsError | None]:
    """Return the outcomes, and what was raised after them."""
    outcomes = []
    try:
        for outcome in batch:
            outcomes.append(outcome)
    except ImageLabsError as error:
        return outcomes, error
    return outcomes, None


def test_it_ends_a_batch_of_any_length(service: FakeService) -> None:
    """As many images as there are in ten seconds; the job in flight is at hand."""
    client = client_of(service)
    prompts = map(str, itertools.count())
    deadline = client.deadline(10.0)
    batch = client.generate_many(prompts, workers=1, max_in_flight=1, timeout=deadline)
    outcomes, error = take_all(batch)
    assert kinds(outcomes) == {0: "result", 1: "result", 2: "result"}
    assert isinstance(error, JobTimeoutError)
    assert "the deadline of the batch has passed" in error.message
    assert submits(service) == ["0", "1", "2", "3"]
    assert [job.id for job in batch.unfinished.values()] == ["3"]
    assert "task ids 3" in error.message
    assert service.clock.elapsed == pytest.approx(10.0)


def test_in_time_it_changes_nothing(service: FakeService) -> None:
    """Nor does it end a batch that has ended."""
    client = client_of(service)
    deadline = client.deadline(10.0)
    assert kinds(run(service, *"ab", client=client, timeout=deadline)) == {0: "result", 1: "result"}
    service.clock.sleep(20.0)
    assert run(service, client=client, timeout=deadline) == []


def test_after_it_nothing_is_sent(service: FakeService) -> None:
    """It may have passed before the batch begins."""
    client = client_of(service)
    outcomes, error = take_all(begin(service, *"ab", client=client, timeout=client.deadline(0)))
    assert (outcomes, service.sent) == ([], [])
    assert isinstance(error, JobTimeoutError)


def test_a_hold_ends_with_it(service: FakeService) -> None:
    """Nobody waits for a service that asks for more time than there is."""
    service.rate_limited(60.0, at="submit")
    client = client_of(service)
    outcomes, error = take_all(begin(service, *"ab", client=client, timeout=client.deadline(10.0)))
    assert outcomes == []
    assert isinstance(error, JobTimeoutError)
    assert service.clock.elapsed == pytest.approx(10.0)


def test_it_may_have_a_clock_of_its_own(service: FakeService) -> None:
    """Such as `Deadline.after`, with a strategy whose clock says something else."""
    service.clock.sleep(1e9)
    client = client_of(service)
    batch = client.generate_many([*"ab"], workers=1, timeout=Deadline.after(10.0))
    assert kinds(list(batch)) == {0: "result", 1: "result"}
    assert service.count("progress") < 20


def test_its_stop_is_obeyed(service: FakeService) -> None:
    """`client.deadline(60, stop=stop)` has both."""
    stop = threading.Event()
    client = client_of(service)
    batch = begin(service, *"ab", client=client, timeout=client.deadline(10.0, stop=stop))
    stop.set()
    with pytest.raises(JobStoppedError):
        next(batch)


def test_a_submit_in_flight_is_cut_off(server: FaultyServer, connect: Connect, path: Path) -> None:
    """As by the `timeout` of `submit`: whether it was accepted is not known then."""
    server.scripts["/txt2img"] = [faulty.hang()]
    client = connect(server)
    batch = client.generate_many(["a"], timeout=Deadline.after(0.3), checkpoint=path)
    outcomes, error = take_all(batch)
    if error is not None:  # the outcome came after the end of the batch
        assert isinstance(error, JobTimeoutError)
        outcomes += list(batch)
    assert kinds(outcomes) == {0: SubmissionUnknownError}
    assert events(path) == [(0, "sending")]


@pytest.mark.parametrize("timeout", [-1, "soon", float("nan"), 0])
def test_what_is_no_timeout_is_refused(service: FakeService, timeout: Any) -> None:
    """At once, and not by the first item."""
    with pytest.raises(InvalidRequestError, match="timeout"):
        begin(service, "a", timeout=timeout)
