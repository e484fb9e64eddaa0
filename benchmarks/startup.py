"""What a process pays before its first job, and until that is done."""

import statistics
from collections.abc import Sequence

from . import ways
from .measure import Section, Table, Target, fresh, ratio
from .server import running

__all__ = ["section"]

_REQUESTS, _OURS, _BARE = "import requests", "import imagelabs_sdk, make a client", "bare Python"
_STATEMENTS = {
    _REQUESTS: "import requests",
    _OURS: "from imagelabs_sdk import ImageLabs; ImageLabs()",
    _BARE: "pass",
    "import httpx": "import httpx",
    "import replicate": "import replicate",
    "import fal_client": "import fal_client",
}
_IMPORT = """
import time
before = time.process_time()
{statement}
cpu = time.process_time() - before
with open("/proc/self/status") as status:
    memory = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
print([cpu, memory])
"""
_FIRST_JOB = """
import time
from benchmarks import ways
ways.{way}({base!r}, None)()
print(time.process_time())
"""


def section(*, quick: bool) -> Section:
    """Fresh processes, by turns."""
    rounds = 7 if quick else 21
    cpu, memory = _imports(rounds)
    first = _first_jobs(rounds)
    grown = {name: memory[name] - memory[_BARE] for name in memory}
    ratios = {name: ratio(cpu[name], cpu[_REQUESTS]) for name in cpu if name != _BARE}
    return Section(
        title="Start-up",
        note="Each in fresh processes, with bytecode cached. The first job is counted from the "
        "start of its process, the interpreter's own included.",
        tables=(
            Table(
                ("statement", "of `import requests`", "CPU, ms", "MiB over bare Python"),
                tuple(
                    (name, f"{each:.2f}", _milliseconds(cpu[name]), f"{grown[name]:.1f}")
                    for name, each in ratios.items()
                ),
            ),
            Table(
                ("fresh process to first finished job", "of the loop", "CPU, ms"),
                tuple(
                    (name, f"{ratio(seen, first[ways.LOOP]):.2f}", _milliseconds(seen))
                    for name, seen in first.items()
                ),
            ),
        ),
        targets=(
            Target("import and client, of `import requests`", ratios[_OURS], 0.45),
            Target("import and client, over bare Python", grown[_OURS], 6, "MiB"),
            Target(
                "first job, of the hand-written loop",
                ratio(first[ways.OURS], first[ways.LOOP]),
                1.15,
            ),
        ),
        bars=ratios,
    )


def _imports(rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds of each round, and MiB at the peak, by statement."""
    there = {name: code for name, code in _STATEMENTS.items() if _installed(name)}
    seen: dict[str, list[list[float]]] = {name: [] for name in there}
    for _ in range(rounds):
        for name, code in there.items():
            seen[name].append(fresh(_IMPORT.format(statement=code)))
    cpu = {name: [cpu for cpu, _ in turns] for name, turns in seen.items()}
    memory = {name: statistics.median(mib for _, mib in turns) for name, turns in seen.items()}
    return cpu, memory


def _installed(statement: str) -> bool:
    return statement == _BARE or ways.installed(statement.split()[1].rstrip(","))


def _first_jobs(rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each round, by way."""
    seen: dict[str, list[float]] = {ways.LOOP: [], ways.OURS: []}
    with running() as service:
        for _ in range(rounds):
            for name, turns in seen.items():
                way = ways.JOBS[name].__name__
                turns.append(fresh(_FIRST_JOB.format(way=way, base=service.jobs_of(0))))
    return seen


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f}"
