"""Sweeps by Celery workers (extra ``celery``): one task, which beat sends every second.

Celery finds it by ``app.autodiscover_tasks()``. In the project's settings::

    CELERY_BEAT_SCHEDULE = {
        "imagelabs": {"task": "imagelabs.sweep", "schedule": 1.0, "options": {"expires": 5.0}}
    }

``expires`` drops what a busy worker could not begin in time: the next task does all that is due.
A task that is lost, late or delivered twice does no harm.
"""

from celery import shared_task

from .sweep import sweep_briefly

__all__ = ["sweep"]


@shared_task(name="imagelabs.sweep", ignore_result=True)
def sweep() -> int:
    """Sweep once; return how many steps were taken."""
    return sweep_briefly()
