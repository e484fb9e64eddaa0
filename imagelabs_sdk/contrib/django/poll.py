"""One step of a claimed job, away from the database: submit it, or poll it and store its image.

The result is a change of the row's columns, which `lifecycle` writes. No ORM is used here, so that
threads can take steps without opening connections to the database.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from django.core.files.storage import Storage
from django.utils import timezone

from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    Deadline,
    Eta,
    GeneratedImage,
    ImageLabsError,
    ImageRequest,
    Job,
    JobFailedError,
    JobStoppedError,
    JobTimeoutError,
    Poll,
    Progress,
    RateLimitError,
    State,
    sanitize_text,
)

from .choices import LONGEST_PAUSE, JobState
from .clients import clients
from .storage import make_thumbnail, save_bytes, save_file

if TYPE_CHECKING:
    from django.db.models.fields.files import FieldFile

    from .models import AbstractImageJob

__all__ = [
    "MAX_CODE",
    "MAX_ERROR",
    "MAX_STATUS",
    "ClaimedJob",
    "ColumnUpdates",
    "FileTarget",
    "Lease",
    "PollResult",
    "poll",
    "submit",
    "take_step",
]

log = logging.getLogger(__name__)

MAX_CODE, MAX_ERROR, MAX_STATUS = 64, 500, 200  # characters of an error's class and text, a status
_MAX_URL = 4096  # characters of a preview's address
_MAX_POLLS = 16  # kept for the next one: the first, by which the rest is extrapolated, and the last
_LONGEST_ETA = timedelta(days=1)
_PAUSE = 2.0  # seconds until the next step when a submit or a download failed
_LONGEST_RETRY_PAUSE = 60.0  # seconds between steps that fail

ColumnUpdates = dict[str, Any]
"""Columns of a row and their new values."""


@attrs.define
class Lease:
    """Until when a claimed job belongs to this process.

    Attributes:
        until: By `time.monotonic`; whoever claimed the job may move it.
    """

    until: float

    @classmethod
    def lasting(cls, seconds: float) -> "Lease":
        """Return a lease from now on."""
        return cls(time.monotonic() + seconds)

    @property
    def has_ended(self) -> bool:
        """True if another process may have claimed the job by now."""
        return time.monotonic() >= self.until


@attrs.frozen(kw_only=True)
class FileTarget:
    """Where a file of a job belongs.

    Attributes:
        storage: Its storage.
        name: Makes the name there from a file name with the right extension.
        max_length: Characters that the name may have; `None`: any number.
    """

    storage: Storage
    name: Callable[[str], str]
    max_length: int | None

    @classmethod
    def from_field(cls, row: "AbstractImageJob", file: "FieldFile") -> "FileTarget":
        """Return the target that a row's file field means."""
        field = file.field
        return cls(
            storage=field.storage,
            name=lambda filename: field.generate_filename(row, filename),
            max_length=field.max_length,
        )


@attrs.frozen(kw_only=True)
class ClaimedJob:
    """What a step needs to know of a claimed job.

    Attributes:
        key: The row's primary key, for the log.
        state: The row's state before the claim.
        alias, task_id, request, failures, give_up_after: As in the row.
        begun_at: When it was submitted, or when it was created if it was not.
        lease: Until when no other process takes a step.
        image: Where its image belongs.
        thumbnail: Where its thumbnail belongs.
        progress: The latest progress; `None`: it was not polled yet.
        polls: Those that were answered, as in the row.
    """

    key: object
    state: str
    alias: str
    task_id: str
    request: Mapping[str, Any] = attrs.field(repr=False)
    begun_at: datetime
    failures: int
    give_up_after: timedelta
    lease: Lease
    image: FileTarget
    thumbnail: FileTarget
    progress: Progress | None = None
    polls: Sequence[Sequence[Any]] = ()

    @classmethod
    def from_row(cls, row: "AbstractImageJob", state: str, lease: Lease) -> "ClaimedJob":
        """Return what the steps need of a row that was claimed in `state`."""
        return cls(
            key=row.pk,
            state=state,
            alias=row.alias,
            task_id=row.task_id,
            request=row.request,
            begun_at=row.submitted_at or row.created_at,
            failures=row.failures,
            give_up_after=row.give_up_after,
            lease=lease,
            image=FileTarget.from_field(row, row.image),
            thumbnail=FileTarget.from_field(row, row.thumbnail),
            progress=_latest(row),
            polls=row.polls,
        )

    @property
    def is_overdue(self) -> bool:
        """True if it is time to give the job up."""
        return timezone.now() - self.begun_at > self.give_up_after

    def job(self) -> Job:
        """Return the SDK's job. Sends nothing."""
        return clients[self.alias].get_job(
            self.task_id,
            request=ImageRequest(**self.request),
            submitted_at=self.begun_at.timestamp(),
            progress=self.progress,
            polls=_polls_from_json(self.polls),
        )


@attrs.frozen
class PollResult:
    """The outcome of a step.

    Attributes:
        columns: What changes in the row.
        error: Why the step failed, if it did; the job may be healthy.
    """

    columns: ColumnUpdates
    error: Exception | None = None


def take_step(claimed: ClaimedJob, *, timeout: float | Deadline) -> PollResult:
    """Submit a queued job, or poll one that was accepted. Raises no `Exception`.

    A job that was claimed while it was being submitted lost its sender: it is unknown.

    Args:
        claimed: The job.
        timeout: Seconds for all requests together, or a `Deadline`.
    """
    if claimed.state == JobState.QUEUED:
        return submit(claimed, timeout=timeout, requeue=True)
    if not claimed.task_id:
        return PollResult(_interrupted())
    return poll(claimed, timeout=timeout)


# Submitting -----------------------------------------------------------------------------


def submit(claimed: ClaimedJob, *, timeout: float | Deadline, requeue: bool) -> PollResult:
    """Send the request, once. Raises no `Exception`.

    Args:
        claimed: The job.
        timeout: Seconds, or a `Deadline`.
        requeue: Queue the job again when the service was too busy to accept it or could not be
            reached, or the caller stopped before, until it is time to give it up. False: it has
            failed then.
    """
    try:
        request = ImageRequest(**claimed.request)
        accepted = clients[claimed.alias].submit(request, timeout=timeout)
    except Exception as error:  # of the site's own transport, too
        if not isinstance(error, ImageLabsError):
            log.exception("job %s: the submit failed", claimed.key)
        return PollResult(_refused(claimed, error, requeue), error)
    now = timezone.now()
    return PollResult(
        {
            "state": JobState.RUNNING,
            "task_id": accepted.id,
            "submitted_at": now,
            "next_poll_at": _in(accepted.next_poll_in, now),
            "finished_at": None,
            "failures": 0,
            **error_columns(None),
        }
    )


def _refused(claimed: ClaimedJob, error: Exception, requeue: bool) -> ColumnUpdates:
    if not isinstance(error, ImageLabsError) or error.delivered in (None, "maybe"):
        return final_columns(JobState.UNKNOWN, error)
    if requeue and isinstance(error, RateLimitError | APIConnectionError | JobStoppedError):
        return _retried(claimed, error, error.retry_after or _PAUSE)
    return final_columns(JobState.FAILED, error)


def _interrupted() -> ColumnUpdates:
    columns = final_columns(JobState.UNKNOWN)
    text = "the sender was interrupted"
    return {**columns, "error_code": "SubmissionUnknownError", "error": text}


# Polling --------------------------------------------------------------------------------


def poll(claimed: ClaimedJob, *, timeout: float | Deadline) -> PollResult:
    """Poll once; fetch and store the image if it is there. Raises no `Exception`.

    Args:
        claimed: The job.
        timeout: Seconds for the poll and the download together, or a `Deadline`.
    """
    try:
        deadline = clients[claimed.alias].deadline(timeout)
        return _poll(claimed, claimed.job(), deadline)
    except Exception as error:
        if not isinstance(error, ImageLabsError):
            log.exception("job %s: the poll failed", claimed.key)
        return PollResult(_retried(claimed, error, _PAUSE), error)


def _poll(claimed: ClaimedJob, job: Job, deadline: Deadline) -> PollResult:
    try:
        result = job.poll(timeout=deadline)
    except (JobFailedError, APIStatusError) as error:
        return PollResult(final_columns(JobState.FAILED, error))
    if result.error is not None:
        pause = result.next_poll_in or _PAUSE
        return PollResult(_retried(claimed, result.error, pause), result.error)
    assert result.progress is not None  # the poll was answered
    if result.next_poll_in is not None:
        columns = _running(claimed, result.progress, result.next_poll_in)
        return PollResult({**columns, **_history(job.polls, result.progress.eta)})
    status = fitting(result.progress.status, MAX_STATUS)
    return PollResult(
        {
            **final_columns(JobState.DONE),
            **_store(claimed, job.image(), deadline),
            "status": status,
            "fraction": 1.0,
            "preview_url": "",
            "failures": 0,
        }
    )


def _store(claimed: ClaimedJob, image: GeneratedImage, deadline: Deadline) -> ColumnUpdates:
    """Fetch the image and store it with its thumbnail; return the names of both."""
    with tempfile.TemporaryDirectory(prefix="imagelabs-") as folder:
        path = image.save(Path(folder) / "image", timeout=deadline)
        if claimed.lease.has_ended:
            raise TimeoutError("too late to store the image: another process may be storing it")
        target = claimed.image
        name = save_file(target.storage, target.name(path.name), path, target.max_length)
        return {"image": name, "thumbnail": _store_thumbnail(claimed, path)}


def _store_thumbnail(claimed: ClaimedJob, path: Path) -> str:
    """Return the thumbnail's name; empty if there is none, which never costs the image."""
    target = claimed.thumbnail
    try:
        data = make_thumbnail(path)
        if data is None:
            return ""
        name = target.name("thumbnail.webp")
        return save_bytes(target.storage, name, data, target.max_length)
    except Exception:
        log.warning("job %s: its thumbnail could not be stored", claimed.key, exc_info=True)
        return ""


# What changes in the row ----------------------------------------------------------------


def _latest(row: "AbstractImageJob") -> Progress | None:
    if not row.status and row.fraction is None:
        return None
    return Progress(state=State.RUNNING, status=row.status, fraction=row.fraction)


def _polls_from_json(kept: Sequence[Sequence[Any]]) -> list[Poll]:
    return [
        Poll(elapsed, Progress(state=State(state), fraction=fraction, queue_position=position))
        for elapsed, state, fraction, position in kept
    ]


def _poll_to_json(poll: Poll) -> list[Any]:
    progress = poll.progress
    return [
        round(poll.elapsed, 3), progress.state.value, progress.fraction, progress.queue_position
    ]  # fmt: skip


def _history(polls: Sequence[Poll], eta: Eta | None) -> ColumnUpdates:
    """Return the polls that the next one, in any process, should know; when the job may end."""
    half = _MAX_POLLS // 2
    kept = polls if len(polls) <= _MAX_POLLS else [*polls[:half], *polls[-half:]]
    expected_at = None if eta is None else timezone.now() + _likely(eta)
    return {"polls": [_poll_to_json(poll) for poll in kept], "expected_at": expected_at}


def _likely(eta: Eta) -> timedelta:
    """Return one time for a range: of an extrapolated one, the extrapolation itself."""
    seconds: float = max(eta.low, 1.0) ** 0.4 * max(eta.high, 1.0) ** 0.6
    return min(timedelta(seconds=seconds), _LONGEST_ETA)


def final_columns(state: str, error: Exception | None = None) -> ColumnUpdates:
    """Return the columns of a job that has ended."""
    ended = {"state": state, "next_poll_at": None, "finished_at": timezone.now()}
    return {**ended, "polls": [], "expected_at": None, **error_columns(error)}


def error_columns(error: Exception | None) -> ColumnUpdates:
    """Return what a row says of an error; `None`: of none."""
    if error is None:
        return {"error_code": "", "error": ""}
    # The texts of other people's exceptions may hold anything: addresses, credentials.
    text = fitting(error, MAX_ERROR) if isinstance(error, ImageLabsError) else ""
    return {"error_code": type(error).__name__[:MAX_CODE], "error": text}


def fitting(text: object, limit: int) -> str:
    """Return text of the service in a form that every database can store, ``utf8mb3`` too."""
    plain = sanitize_text(text, limit)
    return "".join(
        c if c <= "\uffff" and not "\ud800" <= c <= "\udfff" else "\ufffd" for c in plain
    )


def _running(claimed: ClaimedJob, progress: Progress, pause: float) -> ColumnUpdates:
    seen: ColumnUpdates = {
        "status": fitting(progress.status, MAX_STATUS),
        "fraction": progress.fraction,
        "preview_url": _storable(progress.preview_url),
        "failures": 0,
    }
    now = timezone.now()
    if claimed.is_overdue:
        seconds = round((now - claimed.begun_at).total_seconds())
        error = JobTimeoutError(f"still running after {seconds} s; it may yet finish")
        return {**seen, **final_columns(JobState.FAILED, error)}
    return {**seen, **error_columns(None), "next_poll_at": _in(pause, now)}


def _retried(claimed: ClaimedJob, error: Exception, pause: float) -> ColumnUpdates:
    """Return the columns of a step that failed: the next one comes later and later, then none."""
    columns = {"failures": claimed.failures + 1, **error_columns(error)}
    if claimed.is_overdue:
        return {**columns, **final_columns(JobState.FAILED, error)}
    longer = min(pause * 2.0 ** min(claimed.failures, 10), _LONGEST_RETRY_PAUSE)
    state = claimed.state  # a queued job is queued again; one that runs goes on running
    next_poll_at = _in(max(pause, longer), timezone.now())
    return {**columns, "state": state, "next_poll_at": next_poll_at}


def _in(seconds: float, now: datetime) -> datetime:
    return now + min(timedelta(seconds=seconds), LONGEST_PAUSE)


def _storable(url: str | None) -> str:
    """Return an address that a column can hold; empty for any other."""
    return url if url and len(url) <= _MAX_URL and url.isprintable() and url.isascii() else ""
