"""One driver and many jobs, in a Django project of its own; see `django_jobs`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from .server import ROOT, ends_at

__all__ = ["DRIVERS", "Tree", "fresh_database", "run"]

_CELERY = [sys.executable, "-m", "celery", "-A", "benchmarks.django_celery"]
_FLAGS = ["--concurrency", "1", "--without-gossip", "--without-mingle", "-l", "WARNING"]
DRIVERS: dict[str, list[list[str]]] = {
    "imagelabs_sweep": [[sys.executable, "-m", "django", "imagelabs_sweep"]],
    "celery": [
        [*_CELERY, "worker", "--pool", "solo", *_FLAGS],
        [*_CELERY, "beat", "-s", "{folder}/beat", "-l", "WARNING"],
    ],
    "django.tasks": [[sys.executable, "-m", "django", "db_worker", "--interval", "1"]],
}
"""The processes of each; the first is the worker."""

_STARTERS = 4  # threads that start jobs, as those of web workers would
_LONGEST = 300.0  # seconds until a run is given up


@attrs.define
class Tree:
    """What a process and its children have used so far, by ``/proc``; poll it often."""

    root: int
    cpu: dict[int, float] = attrs.field(factory=dict)
    memory: float = 0.0  # MiB, the most at once

    def poll(self) -> None:
        """Add what was used since the last poll."""
        pids = [self.root, *self._children()]
        sizes = [self._one(pid) for pid in pids]
        self.memory = max(self.memory, sum(sizes))

    def _children(self) -> list[int]:
        with contextlib.suppress(OSError):
            path = f"/proc/{self.root}/task/{self.root}/children"
            return [int(pid) for pid in Path(path).read_text().split()]
        return []

    def _one(self, pid: int) -> float:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.cpu[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        return 0.0


def run(driver: str, services: Mapping[str, str], jobs: int) -> dict[str, Any]:
    """Start so many jobs, let one worker poll them, and return how it went.

    Args:
        driver: One of `DRIVERS`.
        services: Base URLs by alias; the jobs take turns at them.
        jobs: How many.
    """
    with tempfile.TemporaryDirectory() as folder:
        decided = {"driver": driver, "services": dict(services), "media": f"{folder}/media"}
        os.environ["IMAGELABS_BENCH"] = json.dumps(decided)
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.django_settings"
        fresh_database()
        with _processes(DRIVERS[driver], folder) as worker:
            return _measured(list(services), jobs, Tree(worker))


def fresh_database() -> None:
    """Make the database and the queue anew."""
    import psycopg

    with psycopg.connect("host=127.0.0.1 user=postgres", autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS imagelabs_bench WITH (FORCE)")
        admin.execute("CREATE DATABASE imagelabs_bench")
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    import redis

    with redis.Redis(host="127.0.0.1", db=12) as queue:
        queue.flushdb()


@contextlib.contextmanager
def _processes(commands: list[list[str]], folder: str) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        started = []
        for command in commands:
            words = [word.format(folder=folder) for word in command]
            process = stack.enter_context(subprocess.Popen(words, cwd=ROOT))
            stack.callback(_end, process)
            started.append(process)
        yield started[0].pid


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def _measured(aliases: list[str], jobs: int, worker: Tree) -> dict[str, Any]:
    from django.conf import settings
    from django_tasks_db.models import DBTaskResult

    from imagelabs_sdk.contrib.django.models import ImageJob

    def start(number: int) -> None:
        ImageJob.objects.start("a lighthouse", alias=aliases[number % len(aliases)])

    began = time.monotonic()
    with ThreadPoolExecutor(_STARTERS) as pool:
        list(pool.map(start, range(jobs)))
    outstanding = ImageJob.objects.filter(next_poll_at__isnull=False)
    while outstanding.exists():
        worker.poll()
        time.sleep(0.2)
        if time.monotonic() - began > _LONGEST:
            raise TimeoutError(f"{outstanding.count()} jobs are still outstanding")
    wall = time.monotonic() - began
    epoch = time.time() - time.monotonic()
    rows = ImageJob.objects.filter(state="done").values_list("task_id", "finished_at", "attempts")
    lags = [finished.timestamp() - epoch - ends_at(task) for task, finished, _ in rows]
    polls = sum(attempts for _, _, attempts in rows)
    ideal = max(ends_at(task) for task, _, _ in rows) - began
    return {
        "wall": wall,
        "ideal": ideal,
        "cpu": sum(worker.cpu.values()),
        "memory": worker.memory,
        "lags": sorted(lags),
        "polls": polls,
        "left": DBTaskResult.objects.count(),
        "failed": jobs - len(lags),
        "images": sum(path.is_file() for path in Path(settings.MEDIA_ROOT).rglob("*")),
    }
