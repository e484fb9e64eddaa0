"""``manage.py imagelabs_prune``: deletes old jobs, and files that no row names."""

import logging
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.apps import apps
from django.core.files.storage import Storage
from django.core.management.base import BaseCommand, CommandError
from django.db import connections, router, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from ...models import AbstractImageJob, LeftoverFile, job_models
from ...receivers import is_in_use
from ...storage import FOLDER, delete_file
from ...sweep import job_rows

log = logging.getLogger("imagelabs_sdk.contrib.django")


class Command(BaseCommand):
    """Delete what ended long ago, and files that no row names any more."""

    help = (
        "Delete jobs that ended long ago, with their images, and files that a storage would not "
        "delete before. May be interrupted and repeated."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument(
            "--days", type=float, default=30.0, help="how long ago, at least (default: 30)"
        )
        parser.add_argument("--dry-run", action="store_true", help="only say how many there are")
        parser.add_argument("--database", help="alias of the database, if not the models' own")
        parser.add_argument(
            "--orphans", action="store_true",
            help="instead, list the files in the storage that no row names",
        )  # fmt: skip
        parser.add_argument(
            "--delete", action="store_true", help="with --orphans: delete these files"
        )

    def handle(self, *_: Any, **options: Any) -> None:
        """Prune."""
        if options["delete"] and not options["orphans"]:
            raise CommandError("--delete goes with --orphans")
        if options["orphans"]:
            self._handle_orphans(delete=options["delete"] and not options["dry_run"])
            return
        if not 0 <= options["days"] < 36_500:
            raise CommandError("--days must be 0 or more, and less than 36500")
        before = timezone.now() - timedelta(days=options["days"])
        count = 0
        for rows in job_rows(options["database"]):
            old = rows.filter(next_poll_at__isnull=True, finished_at__lt=before)
            if options["dry_run"]:
                count += old.count()
                continue
            for job in old.order_by("finished_at").iterator(chunk_size=200):
                count += _delete(job)
        verb = "would be deleted" if options["dry_run"] else "deleted"
        self.stdout.write(f"{count} jobs {verb}")
        if not options["dry_run"]:
            self._retry_leftovers()

    def _retry_leftovers(self) -> None:
        """Delete the files that the storage would not delete when their rows were."""
        for leftover in LeftoverFile.objects.order_by("created_at").iterator(chunk_size=200):
            field: Any = apps.get_model(leftover.model)._meta.get_field(leftover.field)
            in_use = is_in_use(leftover.name, router.db_for_write(field.model))
            if in_use or delete_file(field.storage, leftover.name):
                leftover.delete()
        if left := LeftoverFile.objects.count():
            raise CommandError(f"{left} files of deleted jobs cannot be deleted; see the log")

    def _handle_orphans(self, *, delete: bool) -> None:
        count = failed = 0
        for storage, name in _orphans():
            self.stdout.write(name)
            count += 1
            failed += delete and not delete_file(storage, name)
        if not delete:
            self.stdout.write(f"{count} files that no row names; --delete deletes them")
            return
        self.stdout.write(f"{count - failed} files deleted")
        if failed:
            raise CommandError(f"{failed} files cannot be deleted; see the log")


def _delete(job: AbstractImageJob) -> int:
    """Delete a row that has ended, its files after it; return how many rows went."""
    rows: QuerySet[AbstractImageJob] = type(job)._base_manager.using(job._state.db)
    with transaction.atomic(using=job._state.db):
        deleted, _ = rows.filter(pk=job.pk, next_poll_at__isnull=True).delete()
    return int(deleted > 0)


def _orphans() -> Iterator[tuple[Storage, str]]:
    """Return the files of jobs that no row of any database names, with their storages."""
    seen: list[Storage] = []
    for model in job_models():
        for field in ("image", "thumbnail"):
            storage: Storage = model._meta.get_field(field).storage  # type: ignore[union-attr]
            if storage not in seen:
                seen.append(storage)
                yield from ((storage, name) for name in _files(storage) if _is_orphan(name))


def _files(storage: Storage) -> Iterator[str]:
    """Return the names of files in our folder that are named after a job."""
    try:
        folders, _ = storage.listdir(FOLDER)
    except FileNotFoundError:
        return
    for folder in sorted(folders):
        path = f"{FOLDER}/{folder}"
        yield from (f"{path}/{name}" for name in sorted(storage.listdir(path)[1]) if _job_id(name))


def _job_id(name: str) -> UUID | None:
    try:
        return UUID(name.rpartition("/")[2][:36])
    except ValueError:
        return None


def _is_orphan(name: str) -> bool:
    """Return True if no row names the file, nor is its job outstanding and may be storing it."""
    theirs = Q(image=name) | Q(thumbnail=name) | Q(pk=_job_id(name), next_poll_at__isnull=False)
    return not any(
        model._base_manager.using(alias).filter(theirs).exists()
        for model in job_models()
        for alias in connections
        if router.allow_migrate_model(alias, model) and _has_table(alias, model)
    )


def _has_table(alias: str, model: type[AbstractImageJob]) -> bool:
    return model._meta.db_table in connections[alias].introspection.table_names()
