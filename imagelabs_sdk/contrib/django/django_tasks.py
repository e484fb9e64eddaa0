"""Sweeps by the workers of ``django.tasks``."""

from django_tasks import task_backends

__all__ = ["task_backends", "wake"]


def wake(job: object, backend: str) -> None:
    """To be written."""
