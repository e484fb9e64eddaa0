"""Takes every job that is due its next step, many at once, over few threads.

The ORM stays in the caller's thread: it claims and settles. Threads ask, fetch and store.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from types import TracebackType

import attrs
from django.apps import apps
from django.core.exceptions import ObjectDoesNotExist
from django.db import router
from django.db.models import QuerySet
from django.utils import timezone

from imagelabs_sdk import APIConnectionError, APIResponseError, APIStatusError

from .clients import clients
from .lifecycle import LEASE, claim, record_result
from .models import AbstractImageJob
from .poll import PollResult, poll

__all__ = [
    "ServiceHealth",
    "Sweeper",
    "any_outstanding",
    "in_process_aliases",
    "job_models",
    "job_rows",
    "sweep_briefly",
]

log = logging.getLogger(__name__)

_PAGE = 200  # rows that are read at once; each is claimed only when a thread is free for it
_TIMEOUT = LEASE.total_seconds() / 2  # seconds for one job's poll and download
_GLANCE = 1.0  # seconds after which a free thread polls again for what is due
_LONGEST_HOLD = 30.0  # seconds between probes of a service that is down
_LONGEST_ASKED = 300.0  # seconds for which a service may hold us back


@attrs.define
class ServiceHealth:
    """How a service has answered lately, whichever sweeper asked.

    Attributes:
        failures: In a row, whichever the job.
        opens: When the next poll may leave, by the sweepers' clock.
    """

    failures: int = 0
    opens: float = 0.0


class Sweeper:
    """Polls at what is due. For one thread; use it in a ``with``, or close it.

    Any number may run, in any number of processes: a job is claimed by one at a time.
    """

    def __init__(
        self,
        *,
        threads: int = 8,
        using: str | None = None,
        skip: frozenset[str] = frozenset(),
        health: dict[str, ServiceHealth] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens nothing.

        Args:
            threads: How many polls may be under way at once.
            using: The database; `None`: where each model is written to.
            skip: Aliases whose jobs are left alone.
            health: How the services have answered, by alias; kept up to date, and may be shared
                by the sweepers of a process. `None`: nothing is known.
            clock: In seconds.
        """
        self._threads, self._using, self._skip, self._clock = threads, using, skip, clock
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="imagelabs-sweep")
        self._health = {} if health is None else health
        self._flying: dict[Future[PollResult], AbstractImageJob] = {}

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
        """Wait for the polls under way, and let the threads end."""
        self._pool.shutdown(cancel_futures=True)

    def sweep(
        self, *, stop: Callable[[], bool] = lambda: False, due_by: datetime | None = None
    ) -> int:
        """Take every due job one step, until none is due.

        The failure of a single job is its own; a service that cannot be reached is left in
        peace for a while, its jobs stay due.

        Args:
            stop: Asked between two jobs; once it is true, what is under way is finished.
            due_by: Leave alone what becomes due later, so that this ends however many jobs there
                are. `None`: take what becomes due meanwhile, too.

        Returns:
            How many polls were taken.

        Raises:
            Error: The database fails. What was under way is settled by the next call.
        """
        polls = 0
        rows: deque[AbstractImageJob] = deque()
        while True:
            while len(self._flying) < self._threads and not stop():
                rows = rows or self._due(due_by or timezone.now())
                if not rows:
                    break
                self._take(rows.popleft())
            if not self._flying:
                return polls
            done, _ = wait(self._flying, timeout=_GLANCE, return_when=FIRST_COMPLETED)
            for future in done:
                polls += 1
                self._land(self._flying.pop(future), future.result())

    def _due(self, by: datetime) -> "deque[AbstractImageJob]":
        """Some of the rows that are due, in an order that other sweepers do not have."""
        rows: list[AbstractImageJob] = []
        for every in job_rows(self._using):
            due = every.filter(next_poll_at__lte=by)
            rows += due.exclude(alias__in=self._shut()).order_by("next_poll_at")[:_PAGE]
        random.shuffle(rows)
        return deque(rows)

    def _shut(self) -> set[str]:
        """The aliases at which no poll may leave now."""
        return {alias for alias in [*self._health] if not self._permits(alias)} | self._skip

    def _permits(self, alias: str) -> bool:
        """Whether a poll may leave; a service in trouble is asked one thing at a time."""
        health = self._health[alias]
        asking = any(job.alias == alias for job in self._flying.values())
        in_trouble = health.failures >= self._threads
        return health.opens <= self._clock() and not (in_trouble and asking)

    def _take(self, job: AbstractImageJob) -> None:
        self._health.setdefault(job.alias, ServiceHealth())
        if self._permits(job.alias) and (claimed := claim(job)) is not None:
            self._flying[self._pool.submit(poll, claimed, timeout=_TIMEOUT)] = job

    def _land(self, job: AbstractImageJob, seen: PollResult) -> None:
        self._record_result(self._health[job.alias], seen.trouble)
        try:
            record_result(job, seen)
        except ObjectDoesNotExist:
            log.debug("job %s: was deleted meanwhile", job.pk)
        except Exception:  # the row stays as it is, and is due again when its lease ends
            log.exception("job %s: cannot be settled", job.pk)

    def _record_result(self, health: ServiceHealth, trouble: Exception | None) -> None:
        if not isinstance(trouble, APIConnectionError | APIStatusError | APIResponseError):
            health.failures = 0
            return
        health.failures += 1
        asked = min(trouble.retry_after or 0.0, _LONGEST_ASKED)
        over = health.failures - self._threads  # one bad poll is a job's own matter
        pause = min(2.0 ** min(over, 10), _LONGEST_HOLD) if over >= 0 else 0.0
        health.opens = max(health.opens, self._clock() + max(asked, pause))


def job_models() -> list[type[AbstractImageJob]]:
    """All models of jobs there are, the site's own included; each row is of one."""
    models = [model for model in apps.get_models() if issubclass(model, AbstractImageJob)]
    return [model for model in models if model._meta.get_field("attempts").model is model]


def job_rows(using: str | None = None) -> Iterator[QuerySet[AbstractImageJob]]:
    """The rows of each of these models, in `using`; `None`: where they are written."""
    for model in job_models():
        yield model._base_manager.using(using or router.db_for_write(model))


# For queues, whose messages each mean one sweep ------------------------------------------

_BRIEFLY = 5.0  # seconds after which no further poll is taken: others use the queue, too
_health: dict[str, ServiceHealth] = {}  # what this process knows of the services


def sweep_briefly() -> int:
    """One sweep over the jobs that any process can look at. Answers how many polls were taken."""
    until = time.monotonic() + _BRIEFLY
    with Sweeper(skip=in_process_aliases(), health=_health) as sweeper:
        return sweeper.sweep(stop=lambda: time.monotonic() > until)


def any_outstanding() -> bool:
    """Whether there is anything to look at, now or later."""
    skip = in_process_aliases()
    outstanding = (rows.filter(next_poll_at__isnull=False) for rows in job_rows())
    return any(rows.exclude(alias__in=skip).exists() for rows in outstanding)


def in_process_aliases() -> frozenset[str]:
    """The aliases whose service is a function in another process, where alone its jobs live."""
    return frozenset(alias for alias in clients if clients.is_in_process(alias))
