"""What a site may want to hear about; received after the row is committed.

Sent with ``sender``, the job's model, and ``job``; by the one process that settled the job, so
once at most. A process that is killed between the commit and the receivers tells nobody: what
must not be missed is asked of the rows.
"""

from django.dispatch import Signal

__all__ = ["job_failed", "job_succeeded", "jobs_outstanding"]

jobs_outstanding = Signal()
"""Somebody is to look at jobs of ``alias``, since one was started or taken up again.

Drivers wake by it.
"""

job_succeeded = Signal()
"""The image is stored."""

job_failed = Signal()
"""There will be none, or nobody can tell: see `AbstractImageJob.state` and ``error_code``."""
