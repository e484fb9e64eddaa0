"""What the app does when something happens: wake task queues, delete the files of deleted rows."""

import logging
from functools import partial
from typing import Any

from django.apps import apps
from django.db import router, transaction
from django.db.models import Q
from django.db.models.fields.files import FieldFile
from django.db.models.signals import post_delete

from .clients import clients
from .models import AbstractImageJob, LeftoverFile, job_models
from .signals import jobs_outstanding
from .storage import delete_file

__all__ = ["connect", "is_in_use"]

log = logging.getLogger(__name__)


def connect() -> None:
    """Connect the receivers; called once the models are loaded."""
    jobs_outstanding.connect(_wake, dispatch_uid="imagelabs.tasks")
    for model in apps.get_models():  # one by one: a receiver of all models would slow each delete
        # A proxy's rows are deleted by its own name, those of a child table by the parent's, too.
        if issubclass(model, AbstractImageJob) and model._meta.concrete_model in job_models():
            uid = f"imagelabs.files.{model._meta.label_lower}"
            post_delete.connect(_delete_files, sender=model, dispatch_uid=uid)


def is_in_use(name: str, using: str) -> bool:
    """Return True if a row in the database `using` names this file."""
    named = Q(image=name) | Q(thumbnail=name)
    return any(
        model._base_manager.using(using).filter(named).exists()
        for model in job_models()
        if router.allow_migrate_model(using, model)
    )


def _wake(*, alias: str, **_: object) -> None:
    if backend := clients.tasks(alias):
        from .django_tasks import wake  # optional: Django 6.0, or the backport

        wake(backend)


def _delete_files(*, instance: AbstractImageJob, using: str, **_: Any) -> None:
    for file in (instance.image, instance.thumbnail):
        if name := file.name:
            after = partial(_delete_unless_used, instance._meta.label_lower, file, name, using)
            transaction.on_commit(after, using=using, robust=True)


def _delete_unless_used(model: str, file: FieldFile, name: str, using: str) -> None:
    if is_in_use(name, using) or delete_file(file.storage, name):
        return
    LeftoverFile.objects.create(model=model, field=file.field.name, name=name)
    log.error("%s: is kept for `manage.py imagelabs_prune`, which tries again", name)
