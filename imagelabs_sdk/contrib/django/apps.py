"""The Django app."""

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _

from .checks import check_settings

__all__ = ["ImageLabsConfig"]


class ImageLabsConfig(AppConfig):
    """``INSTALLED_APPS = [..., "imagelabs_sdk.contrib.django"]``."""

    name = "imagelabs_sdk.contrib.django"
    label = "imagelabs"
    verbose_name = _("ImageLabs")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks, and connect the receivers."""
        from .receivers import connect  # it needs the models, which are loaded by now

        register(check_settings, "imagelabs")
        connect()
