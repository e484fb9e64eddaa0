"""``manage.py imagelabs_prune``: deletes old jobs and their images."""

import logging
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import QuerySet
from django.utils import timezone

from ...models import AbstractImageJob
from ...sweep import job_rows

log = logging.getLogger("imagelabs_sdk.contrib.django")


class Command(BaseCommand):
    """Deletes what ended long ago; jobs that are outstanding are left alone."""

    help = "Delete jobs that ended long ago, with their images. May be interrupted and repeated."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options."""
        parser.add_argument(
            "--days", type=float, default=30.0, help="how long ago, at least (default: 30)"
        )
        parser.add_argument("--dry-run", action="store_true", help="only say how many there are")
        parser.add_argument("--database", help="alias of the database, if not the models' own")

    def handle(self, *_: Any, **options: Any) -> None:
        """Prune."""
        if not 0 <= options["days"] < 36_500:
            raise CommandError("--days must be 0 or more, and less than 36500")
        before = timezone.now() - timedelta(days=options["days"])
        gone = kept = 0
        for rows in job_rows(options["database"]):
            old = rows.filter(next_poll_at__isnull=True, finished_at__lt=before)
            if options["dry_run"]:
                gone += old.count()
                continue
            for job in old.order_by("finished_at").iterator(chunk_size=200):
                pruned = _prune(job)
                gone, kept = gone + pruned, kept + (not pruned)
        verb = "would be deleted" if options["dry_run"] else "deleted"
        self.stdout.write(f"{gone} jobs {verb}")
        if kept:
            raise CommandError(f"{kept} jobs are kept, since their images cannot be deleted")


def _prune(job: AbstractImageJob) -> bool:
    """The image first: a row without an image is found again, an image without one is not."""
    try:
        if job.image:
            job.image.delete(save=False)
    except Exception:
        log.exception("job %s: its image cannot be deleted", job.pk)
        return False
    rows: QuerySet[AbstractImageJob] = type(job)._base_manager.using(job._state.db)
    rows.filter(pk=job.pk, next_poll_at__isnull=True).delete()
    return True
