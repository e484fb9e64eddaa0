"""A large image to disk."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import ways
from .measure import Section, Table, Target, inside, ratio
from .server import Service, running

__all__ = ["section"]

_SIZE = 100_000_000  # bytes
_OURS, _PIECES = "GeneratedImage.save", "iter_content(1 MiB)"


def section(*, quick: bool) -> Section:
    """Each download in a fresh process, by turns."""
    with running() as service, tempfile.TemporaryDirectory() as folder:
        seen = _downloads(service, Path(folder) / "image.png", 3 if quick else 25)
    cpu = {name: [run["cpu"] for run in runs] for name, runs in seen.items()}
    ratios = {name: ratio(each, cpu[_PIECES]) for name, each in cpu.items()}
    growth = {name: _median(runs, "growth") for name, runs in seen.items()}
    return Section(
        title="An image of 100 MB to disk",
        note="Over HTTP, each in fresh processes that have fetched a small image before, so "
        "that imports are paid; each opens its connection. Ours checks that it is an image, whole "
        "and not too large, and syncs it to the disk before it takes its name: compare that with "
        "the line with fsync.",
        tables=(
            Table(
                ("way", f"of {_PIECES}", "CPU, ms", "wall, ms", "MiB more"),
                tuple(
                    (
                        name,
                        f"{ratios[name]:.2f}",
                        f"{_median(runs, 'cpu') * 1e3:.0f}",
                        f"{_median(runs, 'wall') * 1e3:.0f}",
                        f"{growth[name]:.1f}",
                    )
                    for name, runs in seen.items()
                ),
            ),
        ),
        targets=(
            Target(f"CPU, of {_PIECES}", ratios[_OURS], 1.1),
            Target("memory", growth[_OURS], 3, "MiB"),
        ),
        bars=ratios,
    )


def _downloads(service: Service, path: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in ways.DOWNLOADS}
    small, large = service.jobs_of(0), service.jobs_of(0, _SIZE)
    for _ in range(rounds):
        for name, runs in seen.items():
            runs.append(inside("download", name, small, large, str(path)))
            path.unlink()
    return seen


def _median(runs: Sequence[Mapping[str, float]], field: str) -> float:
    return statistics.median(run[field] for run in runs)
