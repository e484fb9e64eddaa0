"""500 jobs, one worker that is killed every four seconds, 5 % of all answers faulty.

``python -m benchmarks.django_kill``; by hand, for some minutes at most. It needs PostgreSQL and
Redis on this machine, as `benchmarks.django` does.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from imagelabs_sdk import (
    APIConnectionError,
    Deadline,
    HttpRequest,
    HttpResponse,
    RequestsTransport,
)

from .django_run import fresh_database
from .server import ROOT, Service, ends_at, running

__all__ = ["FaultyTransport"]

_JOBS = 500
_SECONDS = range(5, 16)  # how long jobs run; one alias for each
_IMAGE = 100_000  # bytes
_KILL_EVERY = 4.0  # seconds
_FAULTS = 0.05  # of all answers
_LONGEST = 240.0  # seconds until a run is given up
_GOAL_FACTOR, _GOAL_LAG = 2.5, 20.0
_WORKER = [sys.executable, "-m", "django", "imagelabs_sweep"]


class FaultyTransport(RequestsTransport):
    """Loses answers, or replaces them by errors and nonsense."""

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Send the request; the service has always got it."""
        response = super().send(request, deadline=deadline)
        if random.random() >= _FAULTS:
            return response
        response.close()
        kind = random.choice(("lost", "error", "nonsense"))
        if kind == "lost":
            raise APIConnectionError("the connection was reset", delivered="maybe")
        return HttpResponse(500 if kind == "error" else 200, {}, b"<html>oops")


@attrs.frozen
class _Run:
    """How a run went.

    Attributes:
        wall: Seconds until every job had ended.
        lags: Seconds from a job's end at the service to its end in the row, sorted.
        states: How many jobs ended in which state.
        bought: How many task ids the rows have.
        images: How many files the storage has.
        kills: How often the worker was killed.
    """

    wall: float
    lags: list[float]
    states: Counter[str]
    bought: int
    images: int
    kills: int

    @property
    def p95(self) -> float:
        """The lag that 95 % of the jobs do not exceed."""
        return self.lags[int(0.95 * (len(self.lags) - 1))]

    def row(self, name: str) -> str:
        """Return the run as a row of a table."""
        states = ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))
        return (
            f"| {name} | {self.wall:.1f} s | {self.p95:.1f} s | {self.lags[-1]:.1f} s | {states} | "
            f"{self.images} | {self.kills} |"
        )


def main() -> None:
    """Measure without kills and with them, and compare."""
    with running() as service:
        calm = _run(service, kill=False)
        killed = _run(service, kill=True)
    factor = killed.wall / calm.wall
    lines = [
        "| run | all ended after | p95 lag | longest lag | jobs | images | kills |",
        "|---|---|---|---|---|---|---|",
        calm.row("undisturbed"),
        killed.row("a kill every 4 s"),
        f"{factor:.2f} times as long (goal: {_GOAL_FACTOR}); p95 lag goal: {_GOAL_LAG:.0f} s",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if factor > _GOAL_FACTOR or killed.p95 > _GOAL_LAG:
        raise SystemExit("the goal is missed")


def _run(service: Service, *, kill: bool) -> _Run:
    services = {f"s{seconds}": service.jobs_of(seconds, _IMAGE) for seconds in _SECONDS}
    with tempfile.TemporaryDirectory() as folder:
        decided = {
            "services": services,
            "media": f"{folder}/media",
            "backend": f"{__name__ if __name__ != '__main__' else 'benchmarks.django_kill'}."
            "FaultyTransport",
        }
        os.environ["IMAGELABS_BENCH"] = json.dumps(decided)
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.django_settings"
        if kill:  # the settings are read once in this process, and are the same but for the folder
            from django.conf import settings

            settings.MEDIA_ROOT = decided["media"]
        fresh_database()
        from django.db import connections

        with _worker(kill=kill) as kills:
            try:
                return _measured(list(services), Path(folder) / "media", kills)
            finally:
                connections.close_all()  # the next run drops the database


@contextlib.contextmanager
def _worker(*, kill: bool) -> Iterator[list[float]]:
    """Keep one worker running, and kill it again and again; yield the times of the kills."""
    ended, kills = threading.Event(), []

    def keep() -> None:
        while not ended.is_set():
            with subprocess.Popen(_WORKER, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
                if not ended.wait(_KILL_EVERY if kill else _LONGEST):
                    kills.append(time.monotonic())
                process.kill()

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield kills
    finally:
        ended.set()
        thread.join()


def _measured(aliases: list[str], media: Path, kills: list[float]) -> _Run:
    from imagelabs_sdk.contrib.django.models import ImageJob

    def start(number: int) -> None:
        ImageJob.objects.start("a lighthouse", alias=aliases[number % len(aliases)])

    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(_JOBS)))
    outstanding = ImageJob.objects.filter(next_poll_at__isnull=False)
    while outstanding.exists():
        time.sleep(0.2)
        if time.monotonic() - began > _LONGEST:
            raise TimeoutError(f"{outstanding.count()} jobs are still outstanding")
    wall = time.monotonic() - began
    epoch = time.time() - time.monotonic()
    done = ImageJob.objects.filter(state="done").values_list("task_id", "finished_at")
    lags = sorted(finished.timestamp() - epoch - ends_at(task) for task, finished in done)
    return _Run(
        wall=wall,
        lags=lags,
        states=Counter(ImageJob.objects.values_list("state", flat=True)),
        bought=ImageJob.objects.exclude(task_id="").count(),
        images=sum(path.is_file() for path in media.rglob("*")),
        kills=len(kills),
    )


if __name__ == "__main__":
    main()
