"""Fixtures for pytest: ``pytest_plugins = ["imagelabs_sdk.testing.fixtures"]`` in a conftest.py."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from ..client import ImageLabs
from .backend import FakeBackend
from .service import FakeService
from .sockets import serve_in_thread

__all__ = ["imagelabs", "imagelabs_server", "imagelabs_service"]


@pytest.fixture
def imagelabs_service() -> Iterator[FakeService]:
    """Provide a fake service.

    In a Django project with ``imagelabs_sdk.contrib.django``, the clients of all aliases of
    ``settings.IMAGELABS`` talk to it during the test.
    """
    with _django_settings():
        yield FakeBackend.reset()
    FakeBackend.reset()


def _django_settings() -> AbstractContextManager[object]:
    conf: Any = sys.modules.get("django.conf")  # not loaded: no project of Django
    if conf is None or not conf.settings.configured:
        return nullcontext()
    if "imagelabs_sdk.contrib.django" not in conf.settings.INSTALLED_APPS:
        return nullcontext()
    from .django import fake_backends

    return fake_backends()


@pytest.fixture
def imagelabs(imagelabs_service: FakeService) -> Iterator[ImageLabs]:
    """Provide a client of `imagelabs_service` that never waits."""
    with imagelabs_service.client() as client:
        yield client


@pytest.fixture
def imagelabs_server(
    imagelabs_service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Provide the address of `imagelabs_service` on a real socket.

    It is also in the environment, as ``IMAGELABS_BASE_URL``: a client that is made without an
    address talks to it.
    """
    with serve_in_thread(imagelabs_service) as url:
        monkeypatch.setenv("IMAGELABS_BASE_URL", url)
        yield url
