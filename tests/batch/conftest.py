"""Fixtures for tests of batches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagelabs_sdk.testing import FakeService
from tests.batch.scripted import make_service, workers


@pytest.fixture
def service() -> FakeService:
    return make_service()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """The promise of every test in here."""
    yield
    assert not workers()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"
