"""Fixtures for pytest: ``pytest_plugins = ["imagelabs_sdk.testing.fixtures"]`` in a conftest.py."""

from collections.abc import Iterator

import pytest

from ..client import ImageLabs
from .backend import FakeBackend
from .service import FakeService
from .sockets import serve_in_thread

__all__ = ["imagelabs", "imagelabs_server", "imagelabs_service"]


@pytest.fixture
def imagelabs_service() -> Iterator[FakeService]:
    """Provide a fake service. In this test `FakeBackend` talks to it, too."""
    yield FakeBackend.reset()
    FakeBackend.reset()


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
