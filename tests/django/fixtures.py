"""What the scripted service answers here, and people who come to its rows all at once."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.db import connections
from django.utils import timezone

from imagelabs_sdk import ImageRequest
from imagelabs_sdk.contrib.django.models import ImageJob
from imagelabs_sdk.testing import FakeBackend, FakeService, JobScript
from imagelabs_sdk.testing.script import png
from tests.django.app.settings import HAS_MARIADB, HAS_POSTGRES

ROOT = Path(__file__).parents[2]
PROMPT, COOKIE, KEY = "a-secret-lighthouse", "secret-crumb", "secret-signature"
IMAGE = png(8, 8)
_T = TypeVar("_T")

needs_postgres = pytest.mark.skipif(not HAS_POSTGRES, reason="no PostgreSQL on 127.0.0.1:5432")
needs_mariadb = pytest.mark.skipif(not HAS_MARIADB, reason="no MariaDB on 127.0.0.1:3306")
ALIASES = ["file", *(["postgres"] if HAS_POSTGRES else []), *(["mariadb"] if HAS_MARIADB else [])]
shared_databases = [
    pytest.param("file"),
    pytest.param("postgres", marks=needs_postgres),
    pytest.param("mariadb", marks=needs_mariadb),
]
"""Those that several connections may use at once."""


def counts(service: FakeService) -> tuple[int, int, int]:
    """How many submits, polls and downloads came."""
    return service.count("submit"), service.count("progress"), service.count("image")


def scripted(**options: object) -> dict[str, Any]:
    """The settings of an alias that a scripted service answers; due again after a moment."""
    given = {"poll_interval": 0.01, "max_retries": 0, "cookies": f"c={COOKIE}"}
    return {"BACKEND": "imagelabs_sdk.testing.FakeBackend", "OPTIONS": {**given, **options}}


def known(task_id: str) -> JobScript:
    """The script of a small image that was asked for before; its row is made by the test."""
    return FakeBackend.service.known_job(task_id, ImageRequest(PROMPT, width=8, height=8))


def due(job: ImageJob) -> ImageJob:
    """The row, once nobody's lease or pause holds it."""
    rows = type(job)._base_manager.using(job._state.db).filter(pk=job.pk)
    rows.update(next_poll_at=timezone.now())
    return rows.get()


def all_due(using: str = "default") -> None:
    ImageJob.objects.using(using).filter(next_poll_at__isnull=False).update(
        next_poll_at=timezone.now()
    )


def at_once(count: int, act: Callable[[int], _T]) -> list[_T]:
    """What `act` answers in so many threads that begin together, each with its connections."""
    barrier = threading.Barrier(count)

    def one(number: int) -> _T:
        try:
            barrier.wait(20)
            return act(number)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count), timeout=60))


def elsewhere(act: Callable[[], _T]) -> _T:
    """What `act` answers in another thread, with connections of its own."""
    return at_once(1, lambda _: act())[0]


def files(media: Path) -> list[Path]:
    return [path for path in media.rglob("*") if path.is_file()]


def stored(media: Path) -> list[Path]:
    """The images, without their thumbnails."""
    return [path for path in files(media) if "-thumbnail" not in path.name]


def process(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    """A process of the project; whoever starts it ends it."""
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
