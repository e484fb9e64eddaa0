"""The Django app."""

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _

from .checks import check_settings
from .clients import clients
from .signals import jobs_outstanding

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
        jobs_outstanding.connect(_wake, dispatch_uid="imagelabs.tasks")


def _wake(*, alias: str, **_: object) -> None:
    if backend := clients.tasks(alias):
        from .django_tasks import wake  # optional: Django 6.0, or the backport

        wake(backend)
