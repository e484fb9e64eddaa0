"""One poll of a job, far from the database: ask, fetch the image, store it.

What comes of it is a change of the row's columns, which `advance` settles. No ORM is touched
here, so that threads may poll without opening connections to the database.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from django.core.files import File
from django.core.files.storage import Storage
from django.utils import timezone

from imagelabs_sdk import (
    APIStatusError,
    Deadline,
    GeneratedImage,
    ImageLabsError,
    ImageRequest,
    Job,
    JobFailedError,
    JobTimeoutError,
    Progress,
    State,
    sanitize_text,
)

from .choices import JobState
from .clients import clients

if TYPE_CHECKING:
    from .models import AbstractImageJob

__all__ = ["MAX_CODE", "MAX_ERROR", "ClaimedJob", "ColumnUpdates", "PollResult", "poll"]

log = logging.getLogger(__name__)

_MAX_URL = 4096  # characters of a preview's address
MAX_CODE, MAX_ERROR = 64, 500  # characters of an error's class and text
_PAUSE = 2.0  # seconds until the next poll when the image could not be fetched or stored
_LONGEST_PAUSE = 60.0  # seconds between polls that fail
_TO_STORE = timedelta(seconds=55)  # that must be left of the lease when storing begins

ColumnUpdates = dict[str, Any]
"""Columns of a row and their new values."""


@attrs.frozen(kw_only=True)
class ClaimedJob:
    """What has to be known of a job that was claimed, to look at it.

    Attributes:
        key: The row's primary key, for the log.
        alias, task_id, request, submitted_at, failures, give_up_after: As in the row.
        leased_until: Until when nobody else looks at it.
        storage: Where its image belongs.
        name: Makes the image's name there from a name with the right extension.
        max_length: Characters that this name may have.
        progress: The latest progress; `None`: not polled yet.
    """

    key: object
    alias: str
    task_id: str
    request: Mapping[str, Any] = attrs.field(repr=False)
    submitted_at: datetime
    failures: int
    give_up_after: timedelta
    leased_until: datetime
    storage: Storage
    name: Callable[[str], str]
    max_length: int | None
    progress: Progress | None = None

    @classmethod
    def of(cls, row: "AbstractImageJob", leased_until: datetime) -> "ClaimedJob":
        """The work that a claimed row means."""
        field = row.image.field
        return cls(
            key=row.pk,
            alias=row.alias,
            task_id=row.task_id,
            request=row.request,
            submitted_at=row.submitted_at or row.created_at,
            failures=row.failures,
            give_up_after=row.give_up_after,
            leased_until=leased_until,
            storage=field.storage,
            name=lambda file: field.generate_filename(row, file),
            max_length=field.max_length,
            progress=_latest(row),
        )

    def job(self) -> Job:
        """The SDK's job. Asks nobody."""
        return clients[self.alias].get_job(
            self.task_id,
            request=ImageRequest(**self.request),
            submitted_at=self.submitted_at.timestamp(),
            progress=self.progress,
        )


@attrs.frozen
class PollResult:
    """What came of a poll.

    Attributes:
        change: Of the row.
        trouble: Why the poll failed, if it did; the job may be healthy.
    """

    change: ColumnUpdates
    trouble: Exception | None = None


def poll(claimed: ClaimedJob, *, timeout: float) -> PollResult:
    """Ask once; fetch and store the image if it is there. Raises nothing.

    Args:
        claimed: What was claimed.
        timeout: Seconds for asking and fetching together.
    """
    if not claimed.task_id:
        return PollResult(_lost())
    try:
        deadline = clients[claimed.alias].deadline(timeout)
        return _poll(claimed, claimed.job(), deadline)
    except Exception as error:
        if not isinstance(error, ImageLabsError):
            log.exception("job %s: the poll failed", claimed.key)
        return PollResult(_postponed(claimed, error, _PAUSE), error)


def _poll(claimed: ClaimedJob, job: Job, deadline: Deadline) -> PollResult:
    try:
        result = job.poll(timeout=deadline)
    except (JobFailedError, APIStatusError) as error:
        return PollResult(final_columns(JobState.FAILED, error))
    if result.error is not None:
        return PollResult(
            _postponed(claimed, result.error, result.next_poll_in or _PAUSE), result.error
        )
    assert result.progress is not None  # the poll was answered
    if result.next_poll_in is not None:
        return PollResult(_running(claimed, result.progress, result.next_poll_in))
    name = _stored(claimed, job.image(), deadline)
    done = {"image": name, "status": result.progress.status, "fraction": 1.0, "preview_url": ""}
    return PollResult({**final_columns(JobState.DONE), **done, "failures": 0})


def _stored(claimed: ClaimedJob, image: GeneratedImage, deadline: Deadline) -> str:
    """Fetch the image and put it into the storage, in place of what a killed process left."""
    with tempfile.TemporaryDirectory(prefix="imagelabs-") as folder:
        path = image.save(Path(folder) / "image", timeout=deadline)
        if timezone.now() > claimed.leased_until - _TO_STORE:
            raise TimeoutError("too late to store the image: somebody else may be at it")
        name = claimed.name(path.name)
        if claimed.storage.exists(name):
            claimed.storage.delete(name)
        with path.open("rb") as file:
            return claimed.storage.save(name, File(file), max_length=claimed.max_length)


# What becomes of the row ----------------------------------------------------------------


def final_columns(state: str, error: Exception | None = None) -> ColumnUpdates:
    """A job that nobody looks at any more."""
    return {
        "state": state,
        "next_poll_at": None,
        "finished_at": timezone.now(),
        **error_columns(error),
    }


def error_columns(error: Exception | None) -> ColumnUpdates:
    """What a row tells of an error; `None`: of none."""
    if error is None:
        return {"error_code": "", "error": ""}
    # The texts of others may hold anything: addresses, credentials.
    text = sanitize_text(error, MAX_ERROR) if isinstance(error, ImageLabsError) else ""
    return {"error_code": type(error).__name__[:MAX_CODE], "error": text}


def _lost() -> ColumnUpdates:
    """Whoever was to send the request has died, before or after."""
    change = final_columns(JobState.UNKNOWN)
    return {**change, "error_code": "SubmissionUnknownError", "error": "the sender was interrupted"}


def _latest(row: "AbstractImageJob") -> Progress | None:
    if not row.status and row.fraction is None:
        return None
    return Progress(state=State.RUNNING, status=row.status, fraction=row.fraction)


def _running(claimed: ClaimedJob, progress: Progress, delay: float) -> ColumnUpdates:
    news: ColumnUpdates = {
        "status": progress.status,
        "fraction": progress.fraction,
        "preview_url": _kept(progress.preview_url),
        "failures": 0,
    }
    now = timezone.now()
    if (waited := now - claimed.submitted_at) > claimed.give_up_after:
        seconds = round(waited.total_seconds())
        error = JobTimeoutError(f"still running after {seconds} s; it may yet finish")
        return {**news, **final_columns(JobState.FAILED, error)}
    return {**news, **error_columns(None), "next_poll_at": now + timedelta(seconds=delay)}


def _postponed(claimed: ClaimedJob, error: Exception, delay: float) -> ColumnUpdates:
    """A poll that failed: the next one later and later, until our give_up_after ends."""
    now = timezone.now()
    news = {"failures": claimed.failures + 1, **error_columns(error)}
    if now - claimed.submitted_at > claimed.give_up_after:
        return {**news, **final_columns(JobState.FAILED, error)}
    pause = max(delay, min(delay * 2.0 ** min(claimed.failures, 10), _LONGEST_PAUSE))
    return {**news, "next_poll_at": now + timedelta(seconds=pause)}


def _kept(url: str | None) -> str:
    """An address that a column can hold."""
    return url if url and len(url) <= _MAX_URL and url.isprintable() else ""
