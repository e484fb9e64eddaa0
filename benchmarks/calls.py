"""What one job costs: a submit and one poll of a job that takes no time."""

import contextlib
import os
from collections.abc import Iterator, Mapping

from . import ways
from .measure import Cost, Job, Section, Table, Target, by_turns
from .server import Service, running

__all__ = ["section"]

_VARIABLES = 200
_CROWDED = f", {_VARIABLES} more variables"


def section(*, quick: bool) -> Section:
    """The ways by turns in one process, over HTTP and TLS, and in a large environment."""
    calls, rounds = (10, 50) if quick else (20, 150)
    with running() as service:
        jobs = _jobs(service)
        http = by_turns(jobs, calls=calls, rounds=rounds)
        pair = {name: jobs[name] for name in (ways.LOOP, ways.OURS)}
        crowd = {name + _CROWDED: job for name, job in pair.items()}
        crowded = by_turns(
            pair | crowd, around=dict.fromkeys(crowd, _variables), calls=calls, rounds=rounds
        )
    with running(tls=True) as service:
        tls = by_turns(_jobs(service), calls=calls, rounds=rounds)
    growth = crowded[ways.OURS + _CROWDED].ratio / crowded[ways.OURS].ratio
    return Section(
        title="CPU per job",
        note="A submit and one poll of a job that takes no time, over kept connections. Ours is "
        "`generate` with everything on: deadline, checks, typed result. urllib3 alone is the "
        "floor: no checks, no cookies, no deadline.",
        tables=(_table("HTTP", http), _table("TLS", tls), _table("environment, HTTP", crowded)),
        targets=(
            Target("HTTP, of the hand-written loop", http[ways.OURS].ratio, 0.58),
            # Nothing grows; the margin is what such a measurement is off by.
            Target(f"with {_VARIABLES} more variables, of without", growth, 1.05),
        ),
        bars={name: cost.ratio for name, cost in http.items()}
        | {f"{name}, TLS": cost.ratio for name, cost in tls.items()},
    )


def _jobs(service: Service) -> dict[str, Job]:
    return {name: way(service.jobs_of(0), service.bundle) for name, way in ways.JOBS.items()}


def _table(name: str, costs: Mapping[str, Cost]) -> Table:
    return Table(
        (name, "of the loop", "CPU, ms", "wall, ms"),
        tuple(
            (way, f"{cost.ratio:.2f}", f"{cost.cpu * 1e3:.2f}", f"{cost.wall * 1e3:.2f}")
            for way, cost in costs.items()
        ),
    )


@contextlib.contextmanager
def _variables() -> Iterator[None]:
    names = [f"BENCHMARK_{number}" for number in range(_VARIABLES)]
    os.environ.update(dict.fromkeys(names, "x"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
