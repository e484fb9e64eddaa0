"""The life of a row: submitted once, claimed by one process at a time, ended once.

The row is the truth. ``attempts`` counts its claims and identifies the latest one; ``next_poll_at``
is when it is due, and the end of the lease while it is claimed. So a job that was claimed by a
process that died is due again after the lease.
"""

import logging
from collections import defaultdict
from collections.abc import Collection
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ObjectDoesNotExist
from django.db import models, router, transaction
from django.db.models import F, Q
from django.utils import timezone

from imagelabs_sdk import Deadline

from . import poll as steps
from .choices import LONGEST_PAUSE, JobState, due
from .clients import in_transaction
from .conf import sweep_settings
from .poll import ClaimedJob, ColumnUpdates, Lease, PollResult
from .signals import job_failed, job_succeeded, job_unknown, jobs_outstanding
from .storage import delete_file

if TYPE_CHECKING:
    from .models import AbstractImageJob

    Rows = models.QuerySet[AbstractImageJob]

__all__ = [
    "MAX_REQUEST_TIME",
    "SUBMIT_LEASE",
    "advance",
    "claim",
    "poll_now",
    "record_result",
    "release",
    "renew",
    "resubmit",
    "submit",
]

log = logging.getLogger(__name__)

MAX_REQUEST_TIME = 20.0
"""Seconds for which a web request may be held: well below the limits of servers and proxies."""

_LONGEST_STEP = LONGEST_PAUSE.total_seconds()  # a row with a much longer lease would be due
_MARGIN = 2.0  # seconds of a lease that are left for storing the image
SUBMIT_LEASE = MAX_REQUEST_TIME + 10.0
"""Seconds after which a job whose submit has not ended is taken for interrupted."""


def advance(job: "AbstractImageJob", *, timeout: float | Deadline = MAX_REQUEST_TIME) -> bool:
    """Take the next step of a job, if it is due and no other process is at it; never sleeps.

    Submit it if it is queued; else poll once, and if the image is there, fetch and store it. Two
    callers at the same time cost the service one poll. Afterwards `job` is as fresh as the row.

    Args:
        job: Its row.
        timeout: Seconds for all requests together, or a `Deadline`; at most five minutes. 0: no
            request is sent, and the step counts as one that failed.

    Returns:
        True if this call took the step.

    Raises:
        InvalidRequestError: `timeout` is something else; nothing was sent.
        RuntimeError: It was called in a transaction, which would hide the claim from others
            and keep the row locked during the requests.
    """
    limit, left = _bounded(timeout)
    job._state.db = router.db_for_write(type(job), instance=job)  # it may come from a replica
    if in_transaction(job._state.db):
        raise RuntimeError("advance() must not be called in a transaction")
    claimed = claim(job, lease=max(sweep_settings().lease, left + _MARGIN))
    if claimed is None:
        job.refresh_from_db(using=job._state.db)
        return False
    record_result(job, steps.take_step(claimed, timeout=limit))
    return True


def _bounded(timeout: float | Deadline) -> tuple[float | Deadline, float]:
    """Return the limit of a step, and how many seconds that is now."""
    deadline = Deadline.from_timeout(timeout).within(_LONGEST_STEP)
    if isinstance(timeout, Deadline):
        return deadline, deadline.remaining()
    seconds = min(timeout, _LONGEST_STEP)  # by the client's clock, whichever that is
    return seconds, seconds


def claim(job: "AbstractImageJob", *, lease: float | None = None) -> ClaimedJob | None:
    """Claim a job for `lease` seconds; return `None` if it is not due, or another process's.

    A queued job counts as being submitted from here on: if this process dies, nobody can tell
    whether the request was sent. It stays queued while ``MAX_IN_FLIGHT`` jobs are at the service.

    Args:
        job: Its row; it gets the columns of the claim.
        lease: Seconds; `None`: as in the settings.
    """
    if not job.is_due:
        return None
    if job.state != JobState.QUEUED:
        return _claim(job, lease)
    with job.submit_turn() as is_mine:
        return _claim(job, lease) if is_mine else None


def _claim(job: "AbstractImageJob", lease: float | None) -> ClaimedJob | None:
    seconds = lease or sweep_settings().lease
    held, now = Lease.lasting(seconds), timezone.now()  # in this order, as in `renew`
    columns: ColumnUpdates = {"next_poll_at": now + timedelta(seconds=seconds)}
    if job.state == JobState.QUEUED:
        columns["state"] = JobState.SUBMITTING
    if not _unchanged(job).filter(due(now)).update(attempts=F("attempts") + 1, **columns):
        return None
    state = job.state
    job.attempts += 1
    _assign(job, columns)
    return ClaimedJob.from_row(job, state, held)


def renew(held: "Collection[tuple[AbstractImageJob, ClaimedJob]]") -> None:
    """Renew the leases of claimed jobs, by one UPDATE for each model.

    A job that is another process's by now is left alone; its lease here runs out.
    """
    seconds = sweep_settings().lease
    for rows, group in _claims(held):
        # Before the UPDATE, however long that takes: a lease here never outlasts the row's.
        renewed, until = Lease.lasting(seconds).until, timezone.now() + timedelta(seconds=seconds)
        count = rows.update(next_poll_at=until)
        kept = {job.pk for job, _ in group}
        if count != len(group):
            kept &= set(rows.values_list("pk", flat=True))
        for job, claimed in group:
            if job.pk in kept:
                claimed.lease.until = renewed


def release(held: "Collection[tuple[AbstractImageJob, ClaimedJob]]") -> None:
    """Make claimed jobs due at once, for others: their steps are not finished here.

    One whose request may have been sent keeps its lease, and is unknown after it.
    """
    for rows, _ in _claims(held):
        rows.filter(state=JobState.RUNNING).update(next_poll_at=timezone.now())


def record_result(job: "AbstractImageJob", result: PollResult) -> bool:
    """Write the outcome of a step, if the claim still holds; return True if it was written.

    The answer to a submit is written also when the lease is over: nobody else knows it. The
    process that ends a job sends its signal. What was stored in vain is deleted.

    Raises:
        ObjectDoesNotExist: The row was deleted meanwhile.
    """
    columns = result.columns
    try:
        if _record_columns(job, _recordable(job, columns), columns):
            return True
    except ObjectDoesNotExist:
        _delete_stored(job, columns, row_exists=False)
        raise
    except Exception:
        if task_id := columns.get("task_id"):  # the job was accepted, and nobody else knows its id
            log.error("job %s: the database does not take its task id %s", job.pk, task_id)
        raise
    _delete_stored(job, columns, row_exists=True)
    return False


def submit(job: "AbstractImageJob") -> None:
    """Send the request of a row that was committed as being submitted, and write the outcome.

    No failure of the service is raised: it is in the row. A row that was deleted is not sent.
    """
    mine = _rows(job).filter(task_id="", state__in=(JobState.SUBMITTING, JobState.UNKNOWN))
    columns: ColumnUpdates = {
        "state": JobState.SUBMITTING,
        "next_poll_at": timezone.now() + timedelta(seconds=SUBMIT_LEASE),
        "finished_at": None,
    }
    if not mine.update(**columns):  # other submits of the same transaction may have taken long
        return
    _assign(job, columns)
    claimed = ClaimedJob.from_row(job, job.state, Lease.lasting(SUBMIT_LEASE))
    record_result(job, steps.submit(claimed, timeout=MAX_REQUEST_TIME, requeue=False))


def poll_now(rows: "Rows") -> int:
    """Let jobs that were accepted and have no image be polled again, at once; return how many.

    Also those that were given up: the service may have drawn them all the same. One whose poll is
    under way, or comes within a lease, is left alone.
    """
    now = timezone.now()
    waits = due(now) | Q(next_poll_at__gt=now + sweep_settings().lease_time)
    at_rest = Q(state=JobState.FAILED) | (Q(state=JobState.RUNNING) & waits)
    again = rows.filter(at_rest).exclude(task_id="").order_by()
    return _resume(again, state=JobState.RUNNING)


def resubmit(rows: "Rows") -> int:
    """Queue jobs that failed before the service accepted them; return how many.

    A driver submits them again, which cannot buy twice.
    """
    again = rows.filter(state=JobState.FAILED, task_id="").order_by()
    return _resume(again, state=JobState.QUEUED, created_at=timezone.now(), failures=0)


def _resume(rows: "Rows", **columns: Any) -> int:
    aliases = set(rows.values_list("alias", flat=True))
    count = rows.update(next_poll_at=timezone.now(), finished_at=None, **columns)
    for alias in aliases:
        jobs_outstanding.send_robust(sender=rows.model, alias=alias)
    return count


def _model(job: "AbstractImageJob") -> Any:
    # The model that has the columns: through one that inherits the table, an update is two
    # statements, between which another process may claim.
    return job._meta.get_field("attempts").model


def _rows(job: "AbstractImageJob") -> "Rows":
    every: models.Manager[AbstractImageJob] = _model(job)._base_manager
    return every.using(job._state.db).filter(pk=job.pk)


def _unchanged(job: "AbstractImageJob") -> "Rows":
    """Return the row, if no other process has claimed or ended it since it was read."""
    return _rows(job).filter(attempts=job.attempts, state=job.state)


def _recordable(job: "AbstractImageJob", columns: ColumnUpdates) -> "Rows":
    answered = job.state == JobState.SUBMITTING and columns.get("state") != JobState.UNKNOWN
    if not answered:
        return _unchanged(job)
    return _rows(job).filter(task_id="", state__in=(JobState.SUBMITTING, JobState.UNKNOWN))


def _claims(
    held: "Collection[tuple[AbstractImageJob, ClaimedJob]]",
) -> "list[tuple[Rows, list[tuple[AbstractImageJob, ClaimedJob]]]]":
    """Return, for each model, the rows that are still claimed as we know, and their claims."""
    groups = defaultdict(list)
    for job, claimed in held:
        groups[_model(job), job._state.db].append((job, claimed))
    found = []
    for (model, using), group in groups.items():
        ours = Q()
        for job, _ in group:
            ours |= Q(pk=job.pk, attempts=job.attempts, state=job.state)
        rows = model._base_manager.using(using).filter(ours, next_poll_at__isnull=False)
        found.append((rows, group))
    return found


def _record_columns(job: "AbstractImageJob", rows: "Rows", columns: ColumnUpdates) -> bool:
    if not rows.update(**columns):
        job.refresh_from_db(using=job._state.db)
        return False
    _assign(job, columns)
    if not job.is_outstanding:
        signals = {JobState.DONE: job_succeeded, JobState.UNKNOWN: job_unknown}
        signal = signals.get(JobState(job.state), job_failed)
        send = partial(signal.send_robust, sender=type(job), job=job)
        transaction.on_commit(send, using=job._state.db)
    return True


def _assign(job: "AbstractImageJob", columns: ColumnUpdates) -> None:
    for name, value in columns.items():
        setattr(job, name, value)


def _delete_stored(job: "AbstractImageJob", columns: ColumnUpdates, *, row_exists: bool) -> None:
    """Delete what a step has stored in vain.

    A file under the job's own name stays while the job is outstanding: the next step uses it.
    """
    for file in (job.image, job.thumbnail):
        name = columns.get(file.field.name)
        if not name or (row_exists and name == file.name):
            continue
        own = file.field.generate_filename(job, name)
        if not (row_exists and job.is_outstanding and name == own):
            delete_file(file.storage, name)
