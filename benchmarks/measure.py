"""How things are measured: by turns, as medians, in CPU of the process, in fresh processes."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs

from .server import ROOT

__all__ = ["Cost", "Section", "Table", "Target", "by_turns", "fresh", "inside", "ratio"]

_LONGEST = 900  # seconds that one fresh process may take

Job = Callable[[], object]


@attrs.frozen
class Cost:
    """What one call costs; medians of all rounds.

    Attributes:
        cpu: Seconds of this process's CPU, user and system.
        wall: Seconds.
        ratio: CPU by that of the first way in the same round.
    """

    cpu: float
    wall: float
    ratio: float


@attrs.frozen
class Target:
    """A figure and what was promised of it.

    Attributes:
        what: The figure's name.
        value: What was measured.
        limit: What it should be at most.
        unit: Of both.
    """

    what: str
    value: float
    limit: float
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the promise holds here."""
        return self.value <= self.limit


@attrs.frozen
class Table:
    """Rows under a head; the first column names them."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@attrs.frozen(kw_only=True)
class Section:
    """What one benchmark found.

    Attributes:
        title: Its headline.
        note: What was done.
        tables: The figures.
        targets: The promises about them.
        bars: For the plot: ratios by name.
        curves: For the plot: seconds from each job's end until it was noticed, by name.
    """

    title: str
    note: str
    tables: tuple[Table, ...] = ()
    targets: tuple[Target, ...] = ()
    bars: Mapping[str, float] = attrs.field(factory=dict)
    curves: Mapping[str, Sequence[float]] = attrs.field(factory=dict)


def by_turns(
    jobs: Mapping[str, Job],
    *,
    calls: int,
    rounds: int,
    around: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, Cost]:
    """What each of `jobs` costs. They take turns, so that a busy machine slows all alike.

    `around` has contexts, by name, in which a turn is taken; they are not measured.
    """
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for job in jobs.values():
        _turn(job, calls)  # connections are opened now, and code is warm
    for _ in range(rounds):
        for name, job in jobs.items():
            with (around or {}).get(name, nullcontext)():
                seen[name].append(_turn(job, calls))
    first = [cpu for cpu, _ in next(iter(seen.values()))]
    return {name: _cost(turns, first) for name, turns in seen.items()}


def _turn(job: Job, calls: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        job()
    return (time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls


def _cost(turns: Sequence[tuple[float, float]], first: Sequence[float]) -> Cost:
    cpu, wall = zip(*turns, strict=True)
    return Cost(statistics.median(cpu), statistics.median(wall), ratio(cpu, first))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def fresh(code: str) -> Any:
    """What the last line that `code` prints says as JSON, from a process of its own."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, timeout=_LONGEST, check=True, text=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def inside(function: str, *arguments: object, room: str = "inside") -> Any:
    """What a function of a room of `benchmarks` answers in a fresh process."""
    call = f"{room}.{function}{arguments!r}"
    return fresh(f"import json; from benchmarks import {room}; print(json.dumps({call}))")
