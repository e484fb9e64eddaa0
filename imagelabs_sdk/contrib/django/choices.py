"""The states of a job's row, and when a row is due."""

from datetime import datetime, timedelta

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

__all__ = ["LONGEST_PAUSE", "JobState", "due", "is_due"]

LONGEST_PAUSE = timedelta(minutes=5)
"""No row is planned further ahead than this; see `due`."""


class JobState(models.TextChoices):
    """Where a job stands, by its row; ``status`` keeps the service's own word."""

    QUEUED = "queued", _("queued")
    """The row is committed; a driver is to submit the request."""

    SUBMITTING = "submitting", _("being submitted")
    """The request is about to be sent, or was sent, or its sender has died."""

    RUNNING = "running", _("running")
    """The service has accepted it; it may wait there in a queue."""

    DONE = "done", _("done")
    """The image is stored."""

    FAILED = "failed", _("failed")
    """There is no image; ``error_code`` says why."""

    UNKNOWN = "unknown", _("submission unknown")
    """The service may or may not have accepted it; it is not sent again automatically."""


def due(now: datetime) -> Q:
    """Return the condition for rows that are due at `now`.

    A time further ahead than any pause is due, too: the clock was set back since it was written.
    """
    return Q(next_poll_at__lte=now) | Q(next_poll_at__gt=now + 2 * LONGEST_PAUSE)


def is_due(next_poll_at: datetime | None, now: datetime) -> bool:
    """Return True if a row with this time is due at `now`; `None`: never."""
    if next_poll_at is None:
        return False
    return not now < next_poll_at <= now + 2 * LONGEST_PAUSE
