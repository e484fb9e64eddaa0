"""Fixtures for pytest: ``pytest_plugins = ["imagelabs_sdk.testing.fixtures"]`` in a conftest.py."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NoReturn
from unittest import mock
from urllib.parse import urlsplit

import pytest

from ..client import ImageLabs
from ..deadline import Deadline
from ..transports.base import HttpRequest, Transport
from ..transports.requests import RequestsTransport
from .backend import FakeBackend
from .service import FakeService
from .sockets import serve_in_thread

__all__ = ["imagelabs", "imagelabs_server", "imagelabs_service"]


_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


@pytest.fixture
def imagelabs_service() -> Iterator[FakeService]:
    """Provide a fake service.

    In a Django project the clients of all aliases of ``settings.IMAGELABS`` talk to it during the
    test. A request of any other client, by `RequestsTransport` or `CurlTransport`, to another host
    than this machine is not sent, and fails the test.
    """
    with _only_to_this_machine(), _django_settings():
        yield FakeBackend.reset()
    FakeBackend.reset()


@contextmanager
def _only_to_this_machine() -> Iterator[None]:
    kinds: list[type[Transport]] = [RequestsTransport]
    with suppress(ImportError):  # the extra `curl`
        from ..transports.curl_cffi import CurlTransport

        kinds.append(CurlTransport)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(mock.patch.object(kind, "send", _checked(kind.send)))
        yield


def _checked(send: Any) -> Any:
    def checked(self: Transport, request: HttpRequest, *, deadline: Deadline) -> Any:
        if urlsplit(request.url).hostname not in _THIS_MACHINE:
            _refuse(request)
        return send(self, request, deadline=deadline)

    return checked


def _refuse(request: HttpRequest) -> NoReturn:
    """End the test by what no ``except Exception`` of the code under test can catch."""
    url = urlsplit(request.url)._replace(query="", fragment="").geturl()
    pytest.fail(
        f"{request.method} {url} was not sent: a test with the fixture imagelabs_service asks no "
        "other machine. Give the code under test the client of the fixture imagelabs, or let it "
        "make its client while the fixture imagelabs_server is in use."
    )


def _django_settings() -> AbstractContextManager[object]:
    conf: Any = sys.modules.get("django.conf")  # not loaded: no project of Django
    if conf is None or not conf.settings.configured:
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
