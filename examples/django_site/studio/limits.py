"""How much one visitor may ask for."""

from datetime import timedelta
from typing import Any

from django.utils import timezone

from imagelabs_sdk.contrib.django.models import ImageJob
from imagelabs_sdk.contrib.django.signals import JobRefusedError

_AT_ONCE, _PER_DAY = 24, 200


def limit(*, job: ImageJob, **_: Any) -> None:
    """Refuse a job of a visitor who has too many; a receiver of `job_starting`."""
    jobs = ImageJob.objects.filter(owner=job.owner)
    if jobs.filter(next_poll_at__isnull=False).count() >= _AT_ONCE:
        raise JobRefusedError("You have asked for a lot. Wait until some of it is there.")
    if jobs.filter(created_at__gt=timezone.now() - timedelta(days=1)).count() >= _PER_DAY:
        raise JobRefusedError("That is all for today.")
