"""Django's settings with fakes in place of services, and rows of jobs that end without waiting."""

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from django.conf import settings
from django.db.models import Min
from django.test import override_settings
from django.utils import timezone

from ..client import ImageLabs
from .backend import FakeBackend
from .clock import Clock

__all__ = ["fake_backends", "finish_jobs"]

_PATH = "imagelabs_sdk.testing.FakeBackend"
_REAL = {"transport", "proxy", "verify", "polling"}  # have no meaning without a network
_KEPT = set(inspect.signature(ImageLabs).parameters) - _REAL
_STEP = 1.0  # seconds to pass when rows are due and the sweeper leaves the service alone


def fake_backends() -> override_settings:
    """Return ``settings.IMAGELABS`` overridden: each alias is answered by `FakeBackend`.

    Use it as a context manager or a decorator. Options of `ImageLabs`, such as ``timeout`` and
    ``cookies``, stay as they are; those of another backend, and of the network, are left out.
    """
    entries: Mapping[str, Any] = getattr(settings, "IMAGELABS", {"default": {}})
    faked = {}
    for alias, entry in entries.items():
        given = entry.get("OPTIONS", {})
        options = {name: given[name] for name in given if name in _KEPT}
        fake = {**entry, "BACKEND": _PATH, "OPTIONS": options}
        faked[alias] = entry if entry.get("BACKEND") == _PATH else fake
    return override_settings(IMAGELABS=faked)


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
    from ..contrib.django.sweep import Sweeper  # the models, which need our app to be installed

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
    from ..contrib.django.sweep import job_rows

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
