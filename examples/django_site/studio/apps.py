"""The site's own app."""

from django.apps import AppConfig


class StudioConfig(AppConfig):
    """Connects the limits."""

    name = "studio"

    def ready(self) -> None:
        """Let no visitor ask for too much."""
        from imagelabs_sdk.contrib.django.signals import job_starting

        from .limits import limit

        job_starting.connect(limit, dispatch_uid="studio.limit")
