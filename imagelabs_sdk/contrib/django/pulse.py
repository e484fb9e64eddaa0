"""When the next task of a chain of sweeps is to run; see `django_tasks`."""

from datetime import datetime, timezone

from django.db import models

__all__ = ["ASLEEP", "SweepChain"]

ASLEEP = datetime(1970, 1, 1, tzinfo=timezone.utc)
"""Of a chain that has ended."""


class SweepChain(models.Model):
    """One chain of sweeps; there is a row for each backend of ``django.tasks`` in use.

    Attributes:
        backend: Its alias in ``settings.TASKS``.
        at: When the chain's next task is to run. A task of an earlier time is of another chain,
            which was taken for dead; it ends there.
    """

    backend = models.CharField(primary_key=True, max_length=64)
    at = models.DateTimeField(default=ASLEEP)

    @classmethod
    def claim(cls, backend: str, until: datetime, *, at: datetime) -> bool:
        """Put the chain's next task at `at`, if it was not to run after `until`."""
        mine = cls.objects.filter(backend=backend, at__lte=until)
        return bool(mine.update(at=at))
