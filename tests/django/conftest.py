"""What every test of Django starts with."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from imagelabs_sdk.testing import FakeService
from tests.django.app.storage import FailingStorage
from tests.django.fixtures import scripted


@pytest.fixture(autouse=True)
def _storage_works() -> Iterator[None]:
    yield
    FailingStorage.fails = None


@pytest.fixture
def service(imagelabs_service: FakeService, settings: Any) -> FakeService:
    """The service that the clients of this test talk to; it has no script yet."""
    settings.IMAGELABS = {"default": scripted(), "other": scripted()}
    return imagelabs_service


@pytest.fixture
def around(service: FakeService, imagelabs_server: str, media: Path) -> Callable[..., Any]:
    """Makes the environment of processes that share a database and the service of this test."""

    def around(alias: str, **entry: object) -> dict[str, str]:
        database = connections[alias].settings_dict
        shared = {key: database[key] for key in ("ENGINE", "NAME", "HOST", "USER", "OPTIONS")}
        options = {"base_url": imagelabs_server, "allow_private_hosts": True}
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.django.app.settings",
            "IMAGELABS_TEST_DATABASE": json.dumps({**shared, "NAME": str(shared["NAME"])}),
            "IMAGELABS_TEST_SETTINGS": json.dumps(
                {"default": {"OPTIONS": {**options, "poll_interval": 0.01}, **entry}}
            ),
            "IMAGELABS_TEST_MEDIA": str(media),
        }

    return around
