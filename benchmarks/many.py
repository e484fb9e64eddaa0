"""Many jobs at once: `generate_many`, beside a thread per job on one `Session`."""

from typing import Any

import attrs

from .measure import Section, Table, Target, inside
from .server import Service, running

__all__ = ["section"]

_SECONDS = 2.0  # that each job runs
_FEW, _MANY = 1_000, 10_000
_OURS, _THREADS = "generate_many", "thread_per_job"


@attrs.frozen
class _Run:
    """One run, in a process of its own.

    Attributes:
        name: The function of `inside`.
        jobs: How many.
        wall, cpu: Seconds.
        threads, sockets: The most at any time.
        growth: MiB over the start.
        failed: How many jobs came to nothing.
        delays: Seconds from a job's end until it was noticed, sorted.
        busy: The part of the time that the server worked.
    """

    name: str
    jobs: int
    wall: float
    cpu: float
    threads: int
    sockets: int
    growth: float
    failed: int
    delays: list[float] = attrs.field(converter=sorted)
    busy: float

    def delay(self, part: float) -> float:
        """The delay that so many (0.0 to 1.0) of the jobs do not exceed."""
        return self.delays[int(part * (len(self.delays) - 1))]

    @property
    def row(self) -> tuple[str, ...]:
        """Itself in a table."""
        seconds = (self.wall, self.cpu, self.delay(0.5), self.delay(0.95))
        counts = (self.threads, self.sockets, self.failed)
        return (
            f"{self.jobs:,} jobs, {self.name}",
            *(f"{each:.2f}" for each in seconds),
            *map(str, counts),
            f"{self.growth:.1f}",
            f"{self.busy:.0%}",
        )


def section(*, quick: bool) -> Section:
    """1,000 jobs; in the full run 10,000 as well."""
    with running() as service:
        few = [_run(service, _OURS, _FEW) for _ in range(1 if quick else 5)]
        runs = [sorted(few, key=lambda run: run.wall)[len(few) // 2]]
        runs.append(_run(service, _THREADS, _FEW // 5 if quick else _FEW))
        targets = _targets(runs[0])
        if not quick:
            pairs = [[_run(service, name, _MANY) for name in (_OURS, _THREADS)] for _ in range(3)]
            ours, threads = sorted(pairs, key=lambda pair: pair[0].wall / pair[1].wall)[1]
            runs += [ours, threads]
            targets += _targets_of_many(ours, threads)
    head = "wall, s", "CPU, s", "median delay, s", "p95 delay, s"
    counts = "threads", "sockets", "failed", "MiB over the start", "server busy"
    return Section(
        title="Many jobs at once",
        note=f"Jobs of {_SECONDS:g} s, all at once, `generate_many(..., workers=8)` with the "
        "client's default strategy; beside it what one would write, a thread per job that polls "
        "once a second, on one `Session`. The delay is from a job's end at the service until the "
        "loop over the outcomes has it. Each run in a process of its own, which has done one job "
        "before; its threads and sockets are counted 20 times a second; of five runs of "
        "ours with 1,000 jobs the median, of three pairs with 10,000 the one whose ratio is the "
        "median. Ideal would be the "
        f"{_SECONDS:g} s themselves.",
        tables=(Table(("run", *head, *counts), tuple(run.row for run in runs)),),
        targets=tuple(targets),
        curves={run.row[0]: run.delays for run in runs},
    )


def _run(service: Service, name: str, jobs: int) -> _Run:
    before = service.busy()
    found: dict[str, Any] = inside(name, service.jobs_of(_SECONDS), service.jobs_of(0), jobs)
    busy = (service.busy() - before) / found["wall"]
    return _Run(name=name, jobs=jobs, busy=busy, **found)


def _targets(run: _Run) -> list[Target]:
    name = f"{run.jobs:,} jobs: "
    return [
        Target(name + "wall, of ideal", run.wall / _SECONDS, 1.8),
        Target(name + "p95 delay", run.delay(0.95), 0.5, "s"),
        Target(name + "threads", run.threads, 10),
        Target(name + "connections", run.sockets, 8),
        Target(name + "memory over the start", run.growth, 20, "MiB"),
        Target(name + "failures", run.failed, 0),
    ]


def _targets_of_many(run: _Run, threads: _Run) -> list[Target]:
    name = f"{run.jobs:,} jobs: "
    return [
        Target(name + "wall, of a thread per job", run.wall / threads.wall, 0.30),
        Target(name + "memory over the start", run.growth, 40, "MiB"),
        Target(name + "failures", run.failed, 0),
    ]
