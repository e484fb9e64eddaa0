"""Fixtures for tests of batches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch.scripted import ScriptedService, workers
from tests.conftest import FakeTime


@pytest.fixture
def service(time: FakeTime) -> ScriptedService:
    return ScriptedService(time)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """The promise of every test in here."""
    yield
    assert not workers()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"
