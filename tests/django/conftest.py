"""What every test of Django starts with."""

from collections.abc import Iterator

import pytest

from tests.django.app.storage import FailingStorage


@pytest.fixture(autouse=True)
def _storage_works() -> Iterator[None]:
    yield
    FailingStorage.fails = None
