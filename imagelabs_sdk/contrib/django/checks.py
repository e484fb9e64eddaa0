"""What ``manage.py check`` reports."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, InvalidStorageError, Storage, storages

from .clients import clients
from .conf import SettingsError, sweep_settings

__all__ = ["check_settings"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_settings(**_: Any) -> list[CheckMessage]:
    """Return all that is wrong with the settings. Making the clients opens nothing."""
    aliases = [message for alias in clients for message in _check_alias(alias)]
    return [*aliases, *_check_sweep(), *_check_time(), *_check_storage()]


def _check_alias(alias: str) -> Iterator[CheckMessage]:
    try:
        client = clients[alias]
        clients.max_in_flight(alias), clients.submits_by_worker(alias)
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
    if clients.is_in_process(alias) and clients.submits_by_worker(alias):
        yield Error(
            f"IMAGELABS[{alias!r}]['SUBMIT'] = 'worker': no worker can reach a service in the web "
            "process.",
            hint='Leave it out, or run "imagelabs serve" and give its address as base_url.',
            id="imagelabs.E003",
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


def _check_sweep() -> Iterator[CheckMessage]:
    try:
        sweep_settings()
    except SettingsError as error:
        yield Error(str(error), hint=error.hint, id=error.check)


def _check_time() -> Iterator[CheckMessage]:
    if not settings.USE_TZ:
        yield Error(
            "USE_TZ = False: when the clocks change, all running jobs would be given up in spring, "
            "and wait for an hour in autumn.",
            hint="Set USE_TZ = True.",
            id="imagelabs.E006",
        )


def _check_storage() -> Iterator[CheckMessage]:
    name = "imagelabs" if "imagelabs" in settings.STORAGES else "default"
    try:
        storage = storages[name]
    except InvalidStorageError:  # Django reports it when the storage is used
        return
    if not isinstance(storage, FileSystemStorage):
        return
    options: Any = settings.STORAGES[name].get("OPTIONS", {})
    if not (settings.MEDIA_ROOT or options.get("location")):
        yield CheckWarning(
            "Images would be stored in the directory that the process happens to run in.",
            hint="Set MEDIA_ROOT, or STORAGES['imagelabs'].",
            id="imagelabs.W002",
        )
    elif _is_public(storage):
        yield CheckWarning(
            "Images are stored below MEDIA_ROOT, which everybody can read at MEDIA_URL.",
            hint="Give STORAGES['imagelabs'] a location of its own, or silence this if all images "
            "are public.",
            id="imagelabs.W003",
        )


def _is_public(storage: Storage) -> bool:
    if not (settings.MEDIA_ROOT and settings.MEDIA_URL not in ("", "/")):
        return False
    root = Path(settings.MEDIA_ROOT).resolve()
    return Path(storage.path("")).resolve().is_relative_to(root)
