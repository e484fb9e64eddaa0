"""Sweeps by the workers of ``django.tasks``: a chain of tasks, each of which plans the next.

There is one chain per backend, however many jobs there are. A task plans its successor before it
sweeps, so that the chain survives a killed worker. It ends when no job is outstanding; the next
start begins another.
"""

from datetime import datetime, timedelta

from django.db import router, transaction
from django.utils import timezone

from .models import ASLEEP, SweepChain
from .sweep import any_outstanding, sweep_briefly

try:
    from django.tasks import task, task_backends
except ImportError:  # pragma: no cover - before Django 6.0: the backport
    from django_tasks import task, task_backends  # type: ignore[no-redef,assignment]

__all__ = ["sweep", "task_backends", "wake"]

_INTERVAL = timedelta(seconds=1)
_DEAD = timedelta(seconds=60)  # a task that is so late counts as lost


def wake(backend: str) -> None:
    """Begin a chain of sweeps, unless one is alive.

    Args:
        backend: Its alias in ``settings.TASKS``.
    """
    SweepChain.objects.get_or_create(backend=backend)
    now = timezone.now()
    _plan(backend, now - _DEAD, at=now)


@task
def sweep(backend: str, at: str) -> int:
    """Plan the next sweep, then sweep once; return how many steps were taken.

    Args:
        backend: Whose chain it is.
        at: When this task was to run, in ISO 8601.
    """
    now, planned = timezone.now(), datetime.fromisoformat(at)
    if not any_outstanding():
        if SweepChain.claim(backend, planned, at=ASLEEP) and any_outstanding():  # in the meantime
            wake(backend)
        return 0
    return sweep_briefly() if _plan(backend, planned, at=max(now, planned) + _INTERVAL) else 0


def _plan(backend: str, until: datetime, *, at: datetime) -> bool:
    """Plan the chain's next task, if it was not to run after `until`; return True if so."""
    with transaction.atomic(using=router.db_for_write(SweepChain)):
        if not SweepChain.claim(backend, until, at=at):
            return False
        sweep.using(backend=backend, run_after=at).enqueue(backend, at.isoformat())
    return True
