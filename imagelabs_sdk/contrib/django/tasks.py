"""Sweeps by Celery workers (extra ``celery``): one task, which beat sends every second.

Celery finds it by ``app.autodiscover_tasks()``. In the project's settings::

    CELERY_BEAT_SCHEDULE = {
        "imagelabs": {"task": "imagelabs.sweep", "schedule": 1.0, "options": {"expires": 5.0}}
    }

``expires`` lets what a busy worker could not begin in time fall away: the next one does all
that is due. A task that is lost, late or delivered twice harms nothing.
"""

from celery import shared_task

from .sweep import sweep_briefly

__all__ = ["sweep"]


@shared_task(name="imagelabs.sweep", ignore_result=True)
def sweep() -> int:
    """Look at what is due. Answers how many polls were taken."""
    return sweep_briefly()
