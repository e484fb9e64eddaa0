"""The errors of a job that ends without an image, or is not done: class, text and remedy.

Each gets the latest progress, `None` when no poll was answered, and the seconds since the submit.
"""

from . import wire
from .errors import (
    ImageLabsError,
    JobFailedError,
    JobRefusedError,
    JobStalledError,
    JobStoppedError,
    JobTimeoutError,
)
from .models import Progress

__all__ = ["failed", "job_failure", "not_done", "not_moving", "stopped", "timed_out", "unreachable"]


def job_failure(message: str, *, status: str, waited: float) -> JobFailedError:
    """Return the error of a failed job: a refusal has its own class."""
    kind = JobRefusedError if wire.is_moderation(status) else JobFailedError
    return kind(message, status=status, waited=waited)


def failed(progress: Progress, waited: float) -> JobFailedError:
    """Return the error of a job that has ended without an image."""
    word = progress.status
    message = f"the service says that the job failed: {word!r}"
    if word.lower() == "done":
        message = "the service says that the job is done and names no image"
        if progress.refused:
            message = f"the service says that the job is done, but {progress.refused}"
    return job_failure(message, status=word, waited=waited)


def timed_out(progress: Progress | None, waited: float, *, lost: bool) -> JobTimeoutError:
    """Return the error of a wait whose time is over; `lost`: the last polls were not answered."""
    how = "cannot reach the service" if lost else "the job is still running"
    return JobTimeoutError(
        f"{how} after {waited:.1f} s; {_last_status(progress)}; it may yet finish: wait again, or "
        "ask for its id later",
        waited=waited,
        status=_word(progress),
    )


def not_done(progress: Progress | None, waited: float) -> JobTimeoutError:
    """Return the error of an image that is wanted before its job is known to be done."""
    return JobTimeoutError(
        f"the job is not known to be done; {_last_status(progress)}; call result() or refresh() "
        "first",
        waited=waited,
        status=_word(progress),
    )


def stopped(progress: Progress | None, waited: float) -> JobStoppedError:
    """Return the error of a wait that the caller has ended."""
    return JobStoppedError(
        f"stopped by the caller; {_last_status(progress)}; the job goes on at the service: "
        "wait again, or ask for its id later",
        waited=waited,
        status=_word(progress),
    )


def not_moving(progress: Progress | None, waited: float, *, seconds: float) -> JobStalledError:
    """Return the error of a job that has stood still for so many seconds."""
    return JobStalledError(
        f"neither status nor progress has changed for {seconds:g} s; {_last_status(progress)}; the "
        "job may be healthy: wait again, or ask for its id later",
        waited=waited,
        status=_word(progress),
    )


def unreachable(
    progress: Progress | None, waited: float, *, failures: int, last: ImageLabsError
) -> JobStalledError:
    """Return the error of a wait in which too many polls in a row have failed."""
    return JobStalledError(
        f"cannot reach the service: {failures} polls in a row failed; {_last_status(progress)}; "
        f"the last failure: {last.message}",
        waited=waited,
        status=_word(progress),
    )


def _word(progress: Progress | None) -> str:
    return progress.status if progress else ""


def _last_status(progress: Progress | None) -> str:
    if progress is None:
        return "no poll was answered"
    return f"its last status was {progress.status or progress.state.value!r}"
