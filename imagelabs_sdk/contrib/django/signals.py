"""The signals of the app.

``job_starting`` is sent before a job is stored. The others are sent after the row is committed,
by the one process that wrote it, at most once; a process that is killed between the commit and
the receivers sends none. For what must not be missed query the rows.
"""

from django.core.exceptions import PermissionDenied
from django.dispatch import Signal

__all__ = [
    "JobRefusedError",
    "job_failed",
    "job_starting",
    "job_succeeded",
    "job_unknown",
    "jobs_outstanding",
]


class JobRefusedError(PermissionDenied):
    """A receiver of `job_starting` refuses a job; the text is shown to the visitor."""


job_starting = Signal()
"""A job is about to be stored: ``sender``, the model, and ``job``, the unsaved row.

A receiver may raise `JobRefusedError`: nothing is stored or sent then.
"""

jobs_outstanding = Signal()
"""Jobs of ``alias`` are outstanding, since one was started or resumed; drivers wake up by it."""

job_succeeded = Signal()
"""The image is stored: ``sender``, the model, and ``job``, the row."""

job_failed = Signal()
"""There will be no image: ``sender`` and ``job``; see ``job.error_code``."""

job_unknown = Signal()
"""Nobody can tell whether the service accepted the request: ``sender`` and ``job``."""
