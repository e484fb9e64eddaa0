"""The Django app."""

from typing import TYPE_CHECKING

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _

from .checks import check_settings
from .clients import clients
from .signals import job_started

if TYPE_CHECKING:
    from .models import AbstractImageJob

__all__ = ["ImageLabsConfig"]


class ImageLabsConfig(AppConfig):
    """``INSTALLED_APPS = [..., "imagelabs_sdk.contrib.django"]``."""

    name = "imagelabs_sdk.contrib.django"
    label = "imagelabs"
    verbose_name = _("ImageLabs")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let ``manage.py check`` look at the settings, and task backends hear of jobs."""
        register(check_settings, "imagelabs")
        job_started.connect(_wake, dispatch_uid="imagelabs.tasks")


def _wake(*, job: "AbstractImageJob", **_: object) -> None:
    if backend := clients.tasks(job.alias):
        from .django_tasks import wake  # optional: Django 6.0, or the backport

        wake(backend)
