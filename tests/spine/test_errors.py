"""The tree of errors: each one pickles, compares, reads the same elsewhere and tells no secrets."""

import multiprocessing
import pickle
from typing import Any

import attrs
import pytest

from imagelabs_sdk import ImageLabs, Job, errors, sanitize_text

CONTEXT = {"endpoint": "POST /progress", "task_id": "task-1"}


def every_class() -> list[type[errors.ImageLabsError]]:
    found, waiting = [], [errors.ImageLabsError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(kind.__subclasses__())
    return found


def example(kind: type[errors.ImageLabsError], **more: object) -> errors.ImageLabsError:
    """An error with every field set to something."""
    samples: Any = {
        "message": "it went wrong", "code": "too_small", "field": "width", "params": {"low": 1},
        "delivered": "no", "status_code": 429,
        "retry_after": 2.5, "request_id": "ray-1", "body": "words",
        "status": "Failed", "waited": 1.5, "unsubmitted": (3, 4),
        "url": "https://host/x", "job": None,
        **CONTEXT, **more,
    }  # fmt: skip
    return kind(**{field.name: samples[field.name] for field in attrs.fields(kind)})


@pytest.mark.parametrize("kind", every_class())
def test_an_error_survives_pickle(kind: type[errors.ImageLabsError]) -> None:
    """Errors cross process borders in every task queue."""
    error = example(kind)
    again = pickle.loads(pickle.dumps(error))
    assert again == error
    assert (str(again), repr(again), again.args) == (str(error), repr(error), error.args)
    assert hash(again) == hash(error)


@pytest.mark.parametrize("kind", every_class())
def test_an_error_carries_its_job_through_pickle(kind: type[errors.ImageLabsError]) -> None:
    """What was accepted must be found again on the other side."""
    job: Job = ImageLabs().get_job("task-1")
    error = example(kind)
    error.task_id = None
    error.attach_job(job)
    again = pickle.loads(pickle.dumps(error))
    assert again.job == job
    assert again.task_id == "task-1"


def test_an_error_names_endpoint_and_task() -> None:
    """A line in a log must be enough to find the job."""
    error = errors.APIConnectionError("no answer", **CONTEXT)  # type: ignore[arg-type]
    assert str(error) == "no answer (POST /progress, task task-1)"
    assert repr(error) == "APIConnectionError('no answer (POST /progress, task task-1)')"
    assert str(errors.DownloadError("no image")) == "no image"


def test_errors_differ_by_class_and_by_what_they_carry() -> None:
    """Equality is by value, so that tests and queues can compare."""
    error = errors.JobTimeoutError("late", waited=1.0)
    assert error != errors.JobTimeoutError("late", waited=2.0)
    assert error != errors.JobStalledError("late", waited=1.0)
    assert error != "late"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidRequestError, ValueError),
        (errors.APIConnectionError, ConnectionError),
        (errors.APITimeoutError, TimeoutError),
        (errors.JobTimeoutError, TimeoutError),
    ],
)
def test_an_error_is_also_the_builtin_one_would_catch(
    kind: type[errors.ImageLabsError], builtin: type[Exception]
) -> None:
    """Code that knows nothing of us should catch what it expects."""
    with pytest.raises(builtin):
        raise example(kind)


def test_the_first_job_stays() -> None:
    """An error passes several hands; the one nearest to it knows best."""
    client = ImageLabs()
    error = errors.JobError("x")
    error.attach_job(client.get_job("first"))
    error.attach_job(client.get_job("second"))
    assert error.task_id == "first"


def test_an_error_with_a_job_says_that_the_job_was_accepted() -> None:
    """Who sends again whatever was not delivered must not buy a second image over a lost poll."""
    error = errors.APIConnectionError("refused", delivered="no")
    error.attach_job(ImageLabs().get_job("task-1"))
    assert error.delivered == "yes"


@pytest.mark.parametrize("kind", every_class())
def test_every_error_has_a_code_of_its_own(kind: type[errors.ImageLabsError]) -> None:
    """Programs tell errors apart by it, also where only JSON arrives."""
    codes = [attrs.fields_dict(each)["code"].default for each in every_class()]
    assert codes.count(attrs.fields_dict(kind)["code"].default) == 1


def test_notes_cross_the_border_too() -> None:
    """They are where a task id is told in an interruption."""
    error = errors.JobError("x")
    error.__dict__["__notes__"] = ["task id task-1"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["task id task-1"]


def fail_in_a_worker(message: str) -> None:
    raise errors.RateLimitError(message, status_code=429, retry_after=3.0, delivered="no")


def test_an_error_from_a_worker_process_reads_the_same_here() -> None:
    """The real way: raised in a pool's process, caught in the caller."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool, pytest.raises(errors.RateLimitError) as caught:
        pool.apply(fail_in_a_worker, ("too many",))
    assert (str(caught.value), caught.value.retry_after) == ("too many", 3.0)


def test_words_of_a_peer_are_cut_and_cleaned() -> None:
    """They reach terminals and logs."""
    assert sanitize_text("a\x1b[31m\r\nb\u202ec") == "a [31m b c"
    assert sanitize_text("x" * 1000, 10) == "x" * 9 + "…"
    assert sanitize_text("\n" * 10**6 + "x") == ""


def test_a_job_shows_its_id_and_state_only() -> None:
    """A repr ends in logs."""
    assert repr(ImageLabs().get_job("task-1")) == "<Job task-1: not yet polled>"
