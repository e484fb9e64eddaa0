"""One poll of a job, far from the database: ask, fetch the picture, store it.

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
)
from imagelabs_sdk.errors import sanitize_text

from .clients import clients
from .state import JobState

if TYPE_CHECKING:
    from .models import AbstractImageJob

__all__ = ["MAX_CODE", "MAX_ERROR", "Change", "PollResult", "Work", "poll"]

log = logging.getLogger(__name__)

_MAX_URL = 4096  # characters of a preview's address
MAX_CODE, MAX_ERROR = 64, 500  # characters of an error's class and text
_PAUSE = 2.0  # seconds until the next poll when the picture could not be fetched or stored
_LONGEST_PAUSE = 60.0  # seconds between polls that fail
_TO_STORE = timedelta(seconds=55)  # that must be left of the lease when storing begins

Change = dict[str, Any]
"""Columns of a row and their new values."""


@attrs.frozen(kw_only=True)
class Work:
    """What has to be known of a job that was claimed, to look at it.

    Attributes:
        key: The row's primary key, for the log.
        alias, task_id, request, submitted_at, failures, patience: As in the row.
        leased_until: Until when nobody else looks at it.
        storage: Where its picture belongs.
        name: Makes the picture's name there from a name with the right extension.
        max_length: Characters that this name may have.
    """

    key: object
    alias: str
    task_id: str
    request: Mapping[str, Any] = attrs.field(repr=False)
    submitted_at: datetime
    failures: int
    patience: timedelta
    leased_until: datetime
    storage: Storage
    name: Callable[[str], str]
    max_length: int | None

    @classmethod
    def of(cls, row: "AbstractImageJob", leased_until: datetime) -> "Work":
        """The work that a claimed row means."""
        field = row.picture.field
        return cls(
            key=row.pk,
            alias=row.alias,
            task_id=row.task_id,
            request=row.request,
            submitted_at=row.submitted_at or row.created_at,
            failures=row.failures,
            patience=row.patience,
            leased_until=leased_until,
            storage=field.storage,
            name=lambda file: field.generate_filename(row, file),
            max_length=field.max_length,
        )

    def job(self) -> Job:
        """The SDK's job. Asks nobody."""
        return clients[self.alias].get_job(
            self.task_id,
            request=ImageRequest(**self.request),
            submitted_at=self.submitted_at.timestamp(),
        )


@attrs.frozen
class PollResult:
    """What came of a poll.

    Attributes:
        change: Of the row.
        trouble: Why the poll failed, if it did; the job may be healthy.
    """

    change: Change
    trouble: Exception | None = None


def poll(work: Work, *, timeout: float) -> PollResult:
    """Ask once; fetch and store the picture if it is there. Raises nothing.

    Args:
        work: What was claimed.
        timeout: Seconds for asking and fetching together.
    """
    if not work.task_id:
        return PollResult(_lost())
    try:
        deadline = clients[work.alias].deadline(timeout)
        return _poll(work, work.job(), deadline)
    except Exception as error:
        if not isinstance(error, ImageLabsError):
            log.exception("job %s: the poll failed", work.key)
        return PollResult(_postponed(work, error, _PAUSE), error)


def _poll(work: Work, job: Job, deadline: Deadline) -> PollResult:
    try:
        result = job.poll(timeout=deadline.remaining())
    except (JobFailedError, APIStatusError) as error:
        return PollResult(ended(JobState.FAILED, error))
    if result.error is not None:
        return PollResult(
            _postponed(work, result.error, result.next_poll_in or _PAUSE), result.error
        )
    assert result.progress is not None  # the poll was answered
    if result.next_poll_in is not None:
        return PollResult(_running(work, result.progress, result.next_poll_in))
    name = _stored(work, job.image(), deadline)
    done = {"picture": name, "status": result.progress.status, "fraction": 1.0, "preview_url": ""}
    return PollResult({**ended(JobState.DONE), **done, "failures": 0})


def _stored(work: Work, image: GeneratedImage, deadline: Deadline) -> str:
    """Fetch the picture and put it into the storage, in place of what a killed process left."""
    with tempfile.TemporaryDirectory(prefix="imagelabs-") as folder:
        path = image.save(Path(folder) / "picture", timeout=deadline.remaining() or _PAUSE)
        if timezone.now() > work.leased_until - _TO_STORE:
            raise TimeoutError("too late to store the picture: somebody else may be at it")
        name = work.name(path.name)
        if work.storage.exists(name):
            work.storage.delete(name)
        with path.open("rb") as file:
            return work.storage.save(name, File(file), max_length=work.max_length)


# What becomes of the row ----------------------------------------------------------------


def ended(state: str, error: Exception | None = None) -> Change:
    """A job that nobody looks at any more."""
    return {"state": state, "next_poll_at": None, "finished_at": timezone.now(), **told(error)}


def told(error: Exception | None) -> Change:
    """What a row tells of an error; `None`: of none."""
    if error is None:
        return {"error_code": "", "error": ""}
    # The texts of others may hold anything: addresses, credentials.
    text = sanitize_text(error, MAX_ERROR) if isinstance(error, ImageLabsError) else ""
    return {"error_code": type(error).__name__[:MAX_CODE], "error": text}


def _lost() -> Change:
    """Whoever was to send the request has died, before or after."""
    change = ended(JobState.UNKNOWN)
    return {**change, "error_code": "SubmissionUnknownError", "error": "the sender was interrupted"}


def _running(work: Work, progress: Progress, delay: float) -> Change:
    news: Change = {
        "status": progress.status,
        "fraction": progress.fraction,
        "preview_url": _kept(progress.preview_url),
        "failures": 0,
    }
    now = timezone.now()
    if (waited := now - work.submitted_at) > work.patience:
        seconds = round(waited.total_seconds())
        error = JobTimeoutError(f"still running after {seconds} s; it may yet finish")
        return {**news, **ended(JobState.FAILED, error)}
    return {**news, **told(None), "next_poll_at": now + timedelta(seconds=delay)}


def _postponed(work: Work, error: Exception, delay: float) -> Change:
    """A poll that failed: the next one later and later, until our patience ends."""
    now = timezone.now()
    news = {"failures": work.failures + 1, **told(error)}
    if now - work.submitted_at > work.patience:
        return {**news, **ended(JobState.FAILED, error)}
    pause = max(delay, min(delay * 2.0 ** min(work.failures, 10), _LONGEST_PAUSE))
    return {**news, "next_poll_at": now + timedelta(seconds=pause)}


def _kept(url: str | None) -> str:
    """An address that a column can hold."""
    return url if url and len(url) <= _MAX_URL and url.isprintable() else ""
