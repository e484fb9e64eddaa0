"""A service inside of the test's process, and people who come to its rows all at once."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.db import connections
from django.utils import timezone

from imagelabs_sdk import APIConnectionError, Deadline, HttpRequest, HttpResponse
from imagelabs_sdk.contrib.django.models import ImageJob
from tests.django.app.settings import HAS_MARIADB, HAS_POSTGRES
from tests.faulty import PNG, FaultyServer

ROOT = Path(__file__).parents[2]
URL = "http://service.test"
PROMPT, COOKIE, KEY = "a-secret-lighthouse", "secret-crumb", "secret-signature"
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


def answer(code: int = 200, /, **fields: object) -> HttpResponse:
    return HttpResponse(code, {}, json.dumps(fields).encode())


def running(fraction: float = 0.5, **fields: object) -> HttpResponse:
    return answer(status="Processing", progress=fraction, **fields)


def done(task_id: str) -> HttpResponse:
    return answer(status="Done", final_image_url=f"{URL}/{task_id}.png?key={KEY}")


class Service:
    """Accepts everything and is done at the first poll, unless told otherwise; counts strictly.

    Attributes:
        submit, progress, image: What answers, given a task's id.
        asked: How often, by what and whom.
    """

    def __init__(self) -> None:
        self.submit: Callable[[str], HttpResponse] = lambda task_id: answer(task_id=task_id)
        self.progress: Callable[[str], HttpResponse] = done
        self.image: Callable[[str], HttpResponse] = lambda _: HttpResponse(200, {}, PNG)
        self.asked: Counter[tuple[str, str]] = Counter()
        self.wanted: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def count(self, what: str) -> int:
        return sum(count for (asked, _), count in self.asked.items() if asked == what)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.count("submit"), self.count("progress"), self.count("image")

    def __call__(self, request: HttpRequest) -> HttpResponse:
        path = request.url.removeprefix(URL).partition("?")[0]
        body = json.loads(request.body or b"{}")
        with self._lock:
            if path == "/txt2img":
                what, task_id = "submit", f"task-{next(self._numbers)}"
                self.wanted.append(body)
            elif path == "/progress":
                what, task_id = "progress", body["task_id"]
            else:
                what, task_id = "image", path.removeprefix("/").removesuffix(".png")
            self.asked[what, task_id] += 1
        reply: HttpResponse = getattr(self, what)(task_id)
        return reply


def down(_: str) -> HttpResponse:
    raise APIConnectionError("nobody answers", delivered="maybe")


class Line:
    """A backend with an option of its own: a way to a `Service`, from wherever."""

    def __init__(self, service: Service) -> None:
        self.service, self.closed = service, 0

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        assert not deadline.passed
        return self.service(request)

    def close(self) -> None:
        self.closed += 1


def settings_for(service: Service, **options: object) -> dict[str, Any]:
    given = {"base_url": URL, "poll_interval": 0.01, "max_retries": 0, "cookies": f"c={COOKIE}"}
    return {"BACKEND": f"{__name__}.Line", "OPTIONS": {"service": service, **given, **options}}


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


def environment(
    alias: str, server: FaultyServer, media: Path, **settings: object
) -> dict[str, str]:
    """That of a process which shares a database of this test."""
    database = connections[alias].settings_dict
    shared = {key: database[key] for key in ("ENGINE", "NAME", "HOST", "USER", "OPTIONS")}
    options = {"base_url": server.url, "allow_private_hosts": True, "poll_interval": 0.01}
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.django.app.settings",
        "IMAGELABS_TEST_DATABASE": json.dumps({**shared, "NAME": str(shared["NAME"])}),
        "IMAGELABS_TEST_SETTINGS": json.dumps({"default": {"OPTIONS": {**options, **settings}}}),
        "IMAGELABS_TEST_MEDIA": str(media),
    }


def process(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    """A process of the project; whoever starts it ends it."""
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
