"""The life of a row: submitted once, polled by one at a time, settled once.

The row is the truth. ``attempts`` counts how often it was claimed, and is what a claim is
known by; ``next_poll_at`` is when it is due, which a claim puts off for as long as its lease
lasts. So a job that was claimed by a process that died is due again by itself.
"""

import logging
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ObjectDoesNotExist
from django.db import models, router, transaction
from django.db.models import F, Q
from django.utils import timezone

from imagelabs_sdk import ImageLabsError, ImageRequest, attach_job

from .choices import JobState
from .clients import clients, in_transaction
from .poll import ClaimedJob, ColumnUpdates, PollResult, final_columns, poll
from .signals import job_failed, job_succeeded, jobs_outstanding

if TYPE_CHECKING:
    from .models import AbstractImageJob

    Rows = models.QuerySet[AbstractImageJob]

__all__ = ["BRIEF", "LEASE", "advance", "claim", "poll_now", "record_result", "submit"]

log = logging.getLogger(__name__)

BRIEF = 20.0
"""Seconds for which a web request may be held: well below the limits of servers and proxies."""

LEASE = timedelta(seconds=120)
"""For how long nobody else touches a job that was claimed."""


def advance(job: "AbstractImageJob", *, timeout: float = BRIEF) -> bool:
    """Take the next step of a job, if it is due and nobody else is at it; never sleeps.

    One poll; if the image is there, it is fetched, stored, and the row is settled. Two
    callers at once cost the service one poll. Afterwards `job` is as fresh as the row.

    Args:
        job: Its row.
        timeout: Seconds for asking and fetching together; at most half of `LEASE`.

    Returns:
        Whether this call took the step.

    Raises:
        RuntimeError: It was called in a transaction, which would hide the claim from others
            and keep the row locked while we ask.
    """
    job._state.db = router.db_for_write(type(job), instance=job)  # it may be read from a replica
    if in_transaction(job._state.db):
        raise RuntimeError("advance() must not be called in a transaction")
    claimed = claim(job)
    if claimed is None:
        job.refresh_from_db(using=job._state.db)
        return False
    record_result(job, poll(claimed, timeout=min(timeout, LEASE.total_seconds() / 2)))
    return True


def claim(job: "AbstractImageJob") -> ClaimedJob | None:
    """Take the lease of a job, for as long as `LEASE`; `None`: it is not due, or another's."""
    now = timezone.now()
    if job.next_poll_at is None or job.next_poll_at > now:
        return None
    leased_until = now + LEASE
    mine = (
        _same(job)
        .filter(next_poll_at__lte=now)
        .update(attempts=F("attempts") + 1, next_poll_at=leased_until)
    )
    if not mine:
        return None
    job.attempts += 1
    job.next_poll_at = leased_until
    return ClaimedJob.of(job, leased_until)


def record_result(job: "AbstractImageJob", seen: PollResult) -> bool:
    """Write down what came of a poll, if the claim still holds. The winner sends the signal.

    Raises:
        ObjectDoesNotExist: The row was deleted meanwhile.
    """
    try:
        return _record_columns(job, _same(job), seen.change)
    except ObjectDoesNotExist:
        if name := seen.change.get("image"):  # that nobody would find again
            job.image.storage.delete(name)
        raise


def submit(job: "AbstractImageJob") -> None:
    """Send the request of a row that is committed, and write down what came of it. Once.

    No failure of the service is raised: it is in the row.
    """
    rows = _rows(job).filter(task_id="", state__in=(JobState.SUBMITTING, JobState.UNKNOWN))
    try:
        accepted = clients[job.alias].submit(ImageRequest(**job.request), timeout=BRIEF)
    except Exception as error:  # of other people's transports, too: the row shall tell
        if not isinstance(error, ImageLabsError):
            log.exception("job %s: the submit failed", job.pk)
        doubt = not isinstance(error, ImageLabsError) or error.delivered in (None, "maybe")
        _record_columns(
            job, rows, final_columns(JobState.UNKNOWN if doubt else JobState.FAILED, error)
        )
        return
    with attach_job(accepted):  # if the database is gone now, the log has the task id
        now = timezone.now()
        _record_columns(
            job,
            rows,
            {
                "state": JobState.RUNNING,
                "task_id": accepted.id,
                "submitted_at": now,
                "next_poll_at": now + timedelta(seconds=accepted.next_poll_in),
                "finished_at": None,
                "error_code": "",
                "error": "",
            },
        )


def poll_now(rows: "Rows") -> int:
    """Let jobs that were accepted and have no image be polled again, at once.

    Also those that were given up: the service may have drawn them after all. Answers how many
    there were; a job that is being polled right now is left alone.
    """
    now = timezone.now()
    # A poll is over before half of its lease is.
    at_rest = Q(state=JobState.FAILED) | Q(state=JobState.RUNNING, next_poll_at__lt=now + LEASE / 2)
    again = rows.filter(at_rest).exclude(task_id="").order_by()
    aliases = set(again.values_list("alias", flat=True))
    count = again.update(state=JobState.RUNNING, next_poll_at=now, finished_at=None)
    for alias in aliases:
        jobs_outstanding.send_robust(sender=rows.model, alias=alias)
    return count


def _rows(job: "AbstractImageJob") -> "Rows":
    # The model that has the columns: through one that inherits the table, an update is two
    # statements, between which somebody else may claim.
    model: Any = job._meta.get_field("attempts").model
    every: models.Manager[AbstractImageJob] = model._base_manager
    return every.using(job._state.db).filter(pk=job.pk)


def _same(job: "AbstractImageJob") -> "Rows":
    """The row, if nobody has claimed or settled it since it was read."""
    return _rows(job).filter(attempts=job.attempts, state=job.state)


def _record_columns(job: "AbstractImageJob", rows: "Rows", change: ColumnUpdates) -> bool:
    if not rows.update(**change):
        job.refresh_from_db(using=job._state.db)
        return False
    for name, value in change.items():
        setattr(job, name, value)
    if not job.is_outstanding:
        signal = job_succeeded if job.image else job_failed
        tell = partial(signal.send_robust, sender=type(job), job=job)
        transaction.on_commit(tell, using=job._state.db)
    return True
