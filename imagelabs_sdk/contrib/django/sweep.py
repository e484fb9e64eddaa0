"""Takes every job that is due its next step, many at once, over few threads.

The ORM stays in the caller's thread: it claims and settles. Threads ask, fetch and store.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

import attrs
from django.apps import apps
from django.db import DatabaseError
from django.utils import timezone

from imagelabs_sdk import APIConnectionError, APIResponseError, APIStatusError

from .advance import LEASE, claim, settle
from .look import Seen, look
from .models import AbstractImageJob

__all__ = ["Sweeper", "job_models"]

log = logging.getLogger(__name__)

_PAGE = 200  # rows that are read at once; each is claimed only when a thread is free for it
_TIMEOUT = LEASE.total_seconds() / 2  # seconds for one job's look and download
_LONGEST_HOLD = 30.0  # seconds between probes of a service that is down
_LONGEST_ASKED = 300.0  # seconds for which a service may hold us back


@attrs.define
class _Weather:
    """How a service has answered lately."""

    failures: int = 0  # in a row, whichever the job
    opens: float = 0.0  # when the next look may leave
    in_flight: int = 0

    def permits(self, now: float, patience: int) -> bool:
        """Whether a look may leave; a service in trouble is asked one thing at a time."""
        return self.opens <= now and not (self.failures >= patience and self.in_flight)


class Sweeper:
    """Looks at what is due. For one thread; use it in a ``with``, or close it.

    Any number may run, in any number of processes: a job is claimed by one at a time.
    """

    def __init__(
        self,
        *,
        threads: int = 8,
        using: str | None = None,
        skip: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens nothing.

        Args:
            threads: How many looks may be under way at once.
            using: The database; `None`: where each model is written to.
            skip: Aliases whose jobs are left alone.
            clock: In seconds.
        """
        self._threads, self._using, self._skip, self._clock = threads, using, skip, clock
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="imagelabs-sweep")
        self._weather: dict[str, _Weather] = {}
        self._flying: dict[Future[Seen], AbstractImageJob] = {}

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
        """Wait for the looks under way, and let the threads end."""
        self._pool.shutdown(cancel_futures=True)

    def sweep(self, *, stop: Callable[[], bool] = lambda: False) -> int:
        """Take every due job one step, until none is due; what becomes due meanwhile, too.

        The failure of a single job is its own; a service that cannot be reached is left in
        peace for a while, its jobs stay due.

        Args:
            stop: Asked between two jobs; once it is true, what is under way is finished.

        Returns:
            How many looks were taken.

        Raises:
            DatabaseError: The database fails. What was under way is settled by the next call.
        """
        looks = 0
        rows: deque[AbstractImageJob] = deque()
        while True:
            while len(self._flying) < self._threads and not stop():
                rows = rows or self._due()
                if not rows:
                    break
                self._take(rows.popleft())
            if not self._flying:
                return looks
            done, _ = wait(self._flying, return_when=FIRST_COMPLETED)
            for future in done:
                looks += 1
                self._land(self._flying.pop(future), future.result())

    def _due(self) -> "deque[AbstractImageJob]":
        """Some of the rows that are due, in an order that other sweepers do not have."""
        rows: list[AbstractImageJob] = []
        for model in job_models():
            manager = model._base_manager
            due = manager.using(self._using or manager.db).filter(next_look__lte=timezone.now())
            rows += due.exclude(alias__in=self._shut()).order_by("next_look")[:_PAGE]
        random.shuffle(rows)
        return deque(rows)

    def _shut(self) -> set[str]:
        """The aliases at which no look may leave now."""
        return {alias for alias in self._weather if not self._permits(alias)} | self._skip

    def _permits(self, alias: str) -> bool:
        return self._weather[alias].permits(self._clock(), self._threads)

    def _take(self, job: AbstractImageJob) -> None:
        weather = self._weather.setdefault(job.alias, _Weather())
        if self._permits(job.alias) and (work := claim(job)) is not None:
            weather.in_flight += 1
            self._flying[self._pool.submit(look, work, timeout=_TIMEOUT)] = job

    def _land(self, job: AbstractImageJob, seen: Seen) -> None:
        weather = self._weather[job.alias]
        weather.in_flight -= 1
        self._forecast(weather, seen.trouble)
        try:
            settle(job, seen)
        except DatabaseError:  # the row stays as it is, and is due again when its lease ends
            log.exception("job %s: cannot be settled", job.pk)

    def _forecast(self, weather: _Weather, trouble: Exception | None) -> None:
        if not isinstance(trouble, APIConnectionError | APIStatusError | APIResponseError):
            weather.failures = 0
            return
        weather.failures += 1
        asked = min(getattr(trouble, "retry_after", None) or 0.0, _LONGEST_ASKED)
        over = weather.failures - self._threads  # one bad look is a job's own matter
        pause = min(2.0**over, _LONGEST_HOLD) if over >= 0 else 0.0
        weather.opens = self._clock() + max(asked, pause)


def job_models() -> list[type[AbstractImageJob]]:
    """All models of jobs there are, the site's own included."""
    return [model for model in apps.get_models() if issubclass(model, AbstractImageJob)]
