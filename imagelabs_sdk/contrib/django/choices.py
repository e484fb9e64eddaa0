"""The states of a job's row."""

from django.db import models
from django.utils.translation import gettext_lazy as _

__all__ = ["JobState"]


class JobState(models.TextChoices):
    """Where a job stands, as the row tells; ``status`` keeps the service's own word."""

    SUBMITTING = "submitting", _("being submitted")
    """The row is committed; the request leaves, or its sender has died."""

    RUNNING = "running", _("running")
    """The service has accepted it; it may wait there in a queue."""

    DONE = "done", _("done")
    """The image is stored."""

    FAILED = "failed", _("failed")
    """There is no image; ``error_code`` tells why."""

    UNKNOWN = "unknown", _("submission unknown")
    """It may or may not have been accepted; it is never sent again by itself."""
