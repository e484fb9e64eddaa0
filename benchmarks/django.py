"""Jobs that outlive their requests, in Django: each driver with one worker process."""

import socket
from typing import Any

import attrs

from .django_run import DRIVERS
from .measure import Section, Table, Target, inside
from .server import running

__all__ = ["section"]

_SHORTEST = (
    30  # seconds that a job runs, in the full measurement; eleven aliases, each a second more
)
_SPREAD = 11
_JOBS = 1_000
_PICTURE = 100_000  # bytes
_SERVICES = {"PostgreSQL": 5432, "Redis": 6379}


@attrs.frozen(kw_only=True)
class _Run:
    """How it went with one driver; see `django_run.run`."""

    driver: str
    wall: float
    ideal: float
    cpu: float
    memory: float
    lags: list[float] = attrs.field(converter=sorted)
    polls: int
    left: int
    failed: int
    images: int

    def lag(self, part: float) -> float:
        """The lag that so many (0.0 to 1.0) of the jobs do not exceed."""
        return self.lags[int(part * (len(self.lags) - 1))]

    @property
    def row(self) -> tuple[str, ...]:
        """Itself in a table."""
        seconds = (self.wall, self.ideal, self.lag(0.5), self.lag(0.95), self.lags[-1], self.cpu)
        rate = self.polls / self.wall
        return (
            self.driver,
            *(f"{each:.1f}" for each in seconds),
            f"{self.memory:.0f}",
            str(self.polls),
            f"{rate:.0f}",
            str(self.left),
            str(self.images),
        )


def section(*, quick: bool) -> Section:
    """1,000 jobs of 30 to 40 s; in the quick run 100 of 3 to 6 s, by the sweep command alone."""
    missing = [name for name, port in _SERVICES.items() if not _listens(port)]
    title = "Django: jobs that outlive their requests"
    if missing:
        return Section(title=title, note=f"Not measured: no {' and no '.join(missing)} here.")
    shortest, spread, jobs = (3, 4, 100) if quick else (_SHORTEST, _SPREAD, _JOBS)
    drivers = [*DRIVERS][:1] if quick else [*DRIVERS]
    with running() as service:
        bases = {f"s{n}": service.jobs_of(shortest + n, _PICTURE) for n in range(spread)}
        found: dict[str, dict[str, Any]] = {
            driver: inside("run", driver, bases, jobs, room="django_run") for driver in drivers
        }
    runs = [_Run(driver=driver, **each) for driver, each in found.items()]
    head = (
        "driver",
        "wall, s",
        "ideal, s",
        "median lag, s",
        "p95 lag, s",
        "worst lag, s",
        "CPU, s",
    )
    counts = ("MiB", "polls", "polls/s", "rows left", "images")
    return Section(
        title=title,
        note=f"{jobs:,} jobs of {shortest} to {shortest + spread - 1} s, started one after the "
        "other by four threads; PostgreSQL, Redis, and one worker process, whose CPU and peak "
        "memory are counted. Ideal is the end of the last job at the service. The lag is from a "
        "job's end there until its image is stored and its row settled. Rows left: those that "
        "the queue keeps in the database afterwards.",
        tables=(Table((*head, *counts), tuple(run.row for run in runs)),),
        targets=tuple(target for run in runs for target in _targets(run, jobs)),
        curves={run.driver: run.lags for run in runs},
    )


def _targets(run: _Run, jobs: int) -> list[Target]:
    name = f"{run.driver}: "
    return [
        Target(name + "jobs without an image", jobs - run.images + run.failed, 0),
        Target(name + "memory of the worker", run.memory, 100, "MiB"),
        Target(name + "p95 lag", run.lag(0.95), 3, "s"),
    ]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
