"""Rows of jobs, taken to their end without waiting."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from unittest import mock

from django.db.models import Min
from django.utils import timezone

from ..contrib.django.sweep import Sweeper, job_rows
from .backend import FakeBackend
from .clock import Clock

__all__ = ["finish_jobs"]

_STEP = 1.0  # seconds to pass when rows are due and the sweeper leaves the service alone


def finish_jobs(clock: Clock | None = None, *, within: float = 3600.0) -> int:
    """Sweep until no job is outstanding, as ``manage.py imagelabs_sweep`` would.

    Between the sweeps the clock is moved to when the next row is due, and dates follow it in the
    whole process meanwhile: jobs of ten minutes take milliseconds.

    Args:
        clock: Of the service that the jobs are at; `None`: that of `FakeBackend`.
        within: Seconds of that clock in which all must have ended.

    Returns:
        How many polls were sent.

    Raises:
        AssertionError: Some have not ended in time.
    """
    clock = FakeBackend.service.clock if clock is None else clock
    polls, end = 0, clock.now() + within
    with _dates_by(clock), Sweeper(threads=1, clock=clock.now) as sweeper:
        while (due := _next_due()) is not None:
            clock.sleep(max(0.0, (due - timezone.now()).total_seconds()))
            taken = sweeper.sweep(due_by=timezone.now())
            polls += taken
            if not taken:
                clock.sleep(_STEP)
            if clock.now() > end:
                raise AssertionError(f"jobs are still outstanding after {within:g} s")
    return polls


def _next_due() -> datetime | None:
    dues = (rows.aggregate(due=Min("next_poll_at"))["due"] for rows in job_rows())
    return min((due for due in dues if due is not None), default=None)


@contextmanager
def _dates_by(clock: Clock) -> Iterator[None]:
    begin, real_now, real_time = clock.now(), timezone.now, time.time

    def fake_now() -> datetime:
        return real_now() + timedelta(seconds=clock.now() - begin)

    def fake_time() -> float:
        return real_time() + clock.now() - begin

    with mock.patch.object(timezone, "now", fake_now), mock.patch("time.time", fake_time):
        yield
