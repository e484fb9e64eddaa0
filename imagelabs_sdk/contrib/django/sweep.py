"""Take every job that is due its next step, many at once, over few threads.

The ORM stays in the caller's thread: it claims jobs, renews their leases and records results. The
threads submit, poll, fetch and store.
"""

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any

import attrs
from django.core.exceptions import ObjectDoesNotExist
from django.db import router
from django.db.models import Min, Q, QuerySet
from django.utils import timezone

from .choices import JobState, due
from .clients import clients
from .conf import sweep_settings
from .health import ServiceHealth
from .lifecycle import claim, record_result, release, renew
from .models import AbstractImageJob, is_full, job_models
from .poll import ClaimedJob, PollResult, take_step
from .threads import StepThreads

__all__ = [
    "ServiceHealth",
    "SweepStatus",
    "Sweeper",
    "any_outstanding",
    "in_process_aliases",
    "job_rows",
    "sweep_briefly",
    "sweep_status",
]

log = logging.getLogger(__name__)

_PAGE = 200  # rows that are read at once; each is claimed only when a thread is free for it
_RECHECK = 1.0  # seconds after which a free thread looks for jobs that became due
_NOTICE = 0.2  # seconds after which a request to stop is noticed


@attrs.frozen
class _Step:
    """A step under way."""

    job: AbstractImageJob
    claimed: ClaimedJob

    @property
    def submits(self) -> bool:
        return self.claimed.state == JobState.QUEUED


class Sweeper:
    """Take steps of jobs that are due. For one thread; use it in a ``with``, or close it.

    Any number may run, in any number of processes: a job is claimed by one at a time.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        using: str | None = None,
        skip: frozenset[str] = frozenset(),
        health: dict[str, ServiceHealth] | None = None,
        drain_timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing yet.

        Args:
            threads: How many steps may be under way at once; `None`: as in the settings.
            using: The database; `None`: where each model is written to.
            skip: Aliases whose jobs are not touched.
            health: How the services have answered, by alias; kept up to date, and may be shared
                by the sweepers of a process. `None`: nothing is known.
            drain_timeout: Seconds for which a sweep that is to stop waits for the steps under way;
                `None`: until they end.
            clock: In seconds.
        """
        conf = sweep_settings()
        self._count = conf.threads if threads is None else threads
        self._renew_every, self._step_timeout = conf.lease / 3, conf.step_timeout
        self._using, self._skip, self._clock = using, skip, clock
        self._drain_timeout = drain_timeout
        self._threads = StepThreads(self._count)
        self._health = {} if health is None else health
        self._steps: dict[int, _Step] = {}
        self._renewed_at = clock()
        self._number = 0

    def __enter__(self) -> "Sweeper":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the threads end; one whose step is under way is left to the end of the process."""
        self._threads.close()

    def sweep(
        self, *, stop: Callable[[], bool] = lambda: False, due_by: datetime | None = None
    ) -> int:
        """Take a step of every due job, until none is due; return how many were taken.

        The failure of a single job is its own; a service that cannot be reached is probed now and
        then, and its jobs stay due.

        Args:
            stop: Called between two steps; once it is true, no further job is claimed.
            due_by: Leave alone what becomes due later, so that this ends however many jobs there
                are. `None`: take what becomes due meanwhile, too.

        Raises:
            Error: The database fails. The results of steps under way are recorded by the next call.
        """
        taken = 0
        rows: deque[AbstractImageJob] = deque()
        drained_by: float | None = None
        while True:
            while len(self._steps) < self._count and not stop():
                rows = rows or self._due(due_by or timezone.now())
                if not rows:
                    break
                self._take(rows.popleft())
            if not self._steps:
                return taken
            if stop() and self._drain_timeout is not None:
                drained_by = drained_by or time.monotonic() + self._drain_timeout
                if time.monotonic() >= drained_by:
                    self._abandon()
                    return taken
            self._renew_leases()
            for number, result in self._threads.finished(_NOTICE if drained_by else _RECHECK):
                if step := self._steps.pop(number, None):  # else it was abandoned
                    taken += 1
                    self._land(step, result)
                    self._renew_leases()  # the site's receivers may have taken long

    def _due(self, by: datetime) -> "deque[AbstractImageJob]":
        """Return some of the rows that are due, in an order that other sweepers do not have."""
        rows: list[AbstractImageJob] = []
        for every in job_rows(self._using):
            free = every.filter(due(by)).exclude(self._held_back(every.db))
            # Jobs to poll come before the queue: "submitting" and "running" sort after "queued".
            rows += free.order_by("-state", "next_poll_at")[:_PAGE]
        first = [row for row in rows if row.state != JobState.QUEUED]
        random.shuffle(first)
        return deque([*first, *(row for row in rows if row.state == JobState.QUEUED)])

    def _held_back(self, using: str) -> Q:
        """Return the condition for rows of which no step may be taken now."""
        polls = {alias for alias in self._health if not self._permits(alias, submit=False)}
        submits = {alias for alias in self._health if not self._permits(alias, submit=True)}
        full = {alias for alias in clients if is_full(alias, using)}
        return Q(alias__in=polls | self._skip) | Q(alias__in=submits | full, state=JobState.QUEUED)

    def _permits(self, alias: str, *, submit: bool) -> bool:
        steps = [step for step in self._steps.values() if step.job.alias == alias]
        submits = sum(step.submits for step in steps)
        health = self._health[alias]
        return health.permits(self._count, submit=submit, steps=len(steps), submits=submits)

    def _take(self, job: AbstractImageJob) -> None:
        submit = job.state == JobState.QUEUED
        new = ServiceHealth(job.alias, self._clock)
        self._health.setdefault(job.alias, new)
        if not self._permits(job.alias, submit=submit):
            return
        if submit and is_full(job.alias, str(job._state.db)):  # spares a claim its transaction
            return
        if (claimed := claim(job)) is None:
            return
        self._number += 1
        self._steps[self._number] = _Step(job, claimed)
        step = partial(take_step, claimed, timeout=self._step_timeout)
        self._threads.start(self._number, step)

    def _renew_leases(self) -> None:
        if (now := self._clock()) - self._renewed_at >= self._renew_every:
            renew([(step.job, step.claimed) for step in self._steps.values()])
            self._renewed_at = now

    def _abandon(self) -> None:
        """Leave the steps under way to the end of the process; others take the jobs at once."""
        log.info("%d steps are not finished; their jobs are due again", len(self._steps))
        release([(step.job, step.claimed) for step in self._steps.values()])
        self._steps.clear()

    def _land(self, step: _Step, result: PollResult | BaseException) -> None:
        if isinstance(result, BaseException):  # neither this app's error nor the SDK's
            log.error("job %s: the step failed", step.job.pk, exc_info=result)
            return
        health = self._health[step.job.alias]
        health.record_result(self._count, result.error, submit=step.submits)
        try:
            record_result(step.job, result)
        except ObjectDoesNotExist:
            log.debug("job %s: was deleted meanwhile", step.job.pk)
        except Exception:  # the row stays as it is, and is due again after its lease
            log.exception("job %s: its result cannot be recorded", step.job.pk)


def job_rows(using: str | None = None) -> Iterator[QuerySet[AbstractImageJob]]:
    """Return the rows of each model of jobs, in `using`; `None`: where they are written."""
    for model in job_models():
        yield model._base_manager.using(using or router.db_for_write(model))


# For queues, whose messages each mean one sweep ------------------------------------------

_BRIEFLY = 5.0  # seconds after which no further step is taken: others use the queue, too
_health: dict[str, ServiceHealth] = {}  # what this process knows of the services


def sweep_briefly() -> int:
    """Sweep once over the jobs that any process can poll; return how many steps were taken."""
    until = time.monotonic() + _BRIEFLY
    with Sweeper(skip=in_process_aliases(), health=_health) as sweeper:
        return sweeper.sweep(stop=lambda: time.monotonic() > until)


def any_outstanding() -> bool:
    """Return True if a job is outstanding that any process can poll."""
    skip = in_process_aliases()
    outstanding = (rows.filter(next_poll_at__isnull=False) for rows in job_rows())
    return any(rows.exclude(alias__in=skip).exists() for rows in outstanding)


def in_process_aliases() -> frozenset[str]:
    """Return the aliases whose service is a function in another process, which has its jobs."""
    return frozenset(alias for alias in clients if clients.is_in_process(alias))


# For operators --------------------------------------------------------------------------

_TROUBLED = 3  # failures in a row of a job after which its service is reported


@attrs.frozen
class SweepStatus:
    """How the outstanding jobs stand.

    Attributes:
        outstanding: How many there are.
        queued: How many of them wait to be submitted.
        overdue: Seconds for which the oldest due job has waited; 0.0: none is due.
        troubled: The aliases that have jobs whose latest steps failed.
    """

    outstanding: int
    queued: int
    overdue: float
    troubled: tuple[str, ...]


def sweep_status(using: str | None = None) -> SweepStatus:
    """Return how the outstanding jobs stand, by their rows."""
    now, skip = timezone.now(), in_process_aliases()
    counts: Counter[str] = Counter()
    oldest, troubled = now, set()
    for every in job_rows(using):
        rows = every.filter(next_poll_at__isnull=False).exclude(alias__in=skip).order_by()
        found: dict[str, Any] = rows.aggregate(first=Min("next_poll_at"))
        counts["outstanding"] += rows.count()
        counts["queued"] += rows.filter(state=JobState.QUEUED).count()
        oldest = min(oldest, found["first"] or now)
        failing = rows.filter(failures__gte=_TROUBLED)
        troubled |= set(failing.values_list("alias", flat=True).distinct())
    overdue = max(timedelta(0), now - oldest).total_seconds()
    return SweepStatus(counts["outstanding"], counts["queued"], overdue, tuple(sorted(troubled)))
