"""What ``manage.py check`` has to say about the settings."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured

from .clients import SettingsError, clients

__all__ = ["check_settings"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FILES = "django.core.files.storage.FileSystemStorage"


def check_settings(**_: Any) -> list[CheckMessage]:
    """All that is wrong. Making the clients opens nothing."""
    return [*(message for alias in clients for message in _check(alias)), *_check_storage()]


def _check(alias: str) -> Iterator[CheckMessage]:
    try:
        client = clients[alias]
    except SettingsError as error:
        yield Error(str(error), hint=error.hint, id=error.check)
        return
    url = urlsplit(client.url)
    if url.scheme == "http" and url.hostname not in _LOOPBACK and not clients.is_in_process(alias):
        yield CheckWarning(
            f"IMAGELABS[{alias!r}]: prompts and cookies travel unencrypted to {client.url}.",
            hint="Use https, unless the network between is your own.",
            id="imagelabs.W001",
        )
    if backend := clients.tasks(alias):
        yield from _check_tasks(alias, backend)


def _check_tasks(alias: str, name: str) -> Iterator[CheckMessage]:
    where = f"IMAGELABS[{alias!r}]['TASKS']"
    hint = "Use a backend such as django-tasks-db, or run manage.py imagelabs_sweep instead."
    try:
        from .django_tasks import task_backends  # optional: Django 6.0, or the backport

        backend = task_backends[name]
    except (ImportError, ImproperlyConfigured) as error:
        yield Error(f"{where} = {name!r} cannot be used: {error}", hint=hint, id="imagelabs.E004")
        return
    if not backend.supports_defer:
        yield Error(
            f"{where} = {name!r}: the backend cannot run a task later.",
            hint=hint,
            id="imagelabs.E005",
        )


def _check_storage() -> Iterator[CheckMessage]:
    storage = settings.STORAGES.get("imagelabs") or settings.STORAGES.get("default", {})
    placed = settings.MEDIA_ROOT or storage.get("OPTIONS", {}).get("location")
    if storage.get("BACKEND") == _FILES and not placed:
        yield CheckWarning(
            "Images would be stored in the directory that the process happens to run in.",
            hint="Set MEDIA_ROOT, or STORAGES['imagelabs'].",
            id="imagelabs.W002",
        )
