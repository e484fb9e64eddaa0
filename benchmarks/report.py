"""The findings as text, as a page with its date and machine, and as plots."""

import datetime
import importlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .measure import Section, Table, Target
from .server import ROOT

__all__ = ["as_text", "write"]

_PAGE = ROOT / "docs" / "performance.md"
_KEPT = "<!-- From here on: figures of benchmarks.serve, which --write keeps. -->"
_PACKAGES = ("imagelabs_sdk", "requests", "urllib3", "attrs", "httpx", "replicate", "fal_client")
_INTRODUCTION = """\
# Performance

What this SDK costs, beside what one would write by hand. Written by `python -m benchmarks --write`
(extra `bench`, Linux); nothing in the tests asserts a time.

{machine}

## How to read it

- **Ratios are what counts**; milliseconds are this machine's. Smaller is better.
- "The loop" is what one would write by hand with `requests`: one `Session` with the same headers,
  `post(json=, timeout=)`, `raise_for_status()`, `.json()`, a poll a second.
- All ways take turns, round by round, and a ratio is the median of the ratios of all rounds: a
  busy machine slows all alike. CPU is that of the measured process, user and system.
- The server is a process of its own on 127.0.0.1 that does next to nothing. A network adds to
  the wall time of all ways, not to their CPU.
- A promise that this run has not kept says **no**.
"""


def as_text(section: Section) -> str:
    """A section as Markdown, which is plain enough for a terminal."""
    parts = [f"## {section.title}", section.note, *map(_table, section.tables)]
    if section.targets:
        rows = tuple(map(_row, section.targets))
        parts.append(_table(Table(("promise", "measured", "at most", "kept"), rows)))
    return "\n\n".join(parts) + "\n"


def _row(target: Target) -> tuple[str, ...]:
    value, limit = (f"{each:.4g} {target.unit}".strip() for each in (target.value, target.limit))
    return target.what, value, limit, "yes" if target.reached else "**no**"


def _table(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
    first, *others = widths
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    lines = [_line(table.head, widths), f"|{rule}|"]
    return "\n".join(lines + [_line(row, widths) for row in table.rows])


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(padded)} |"


def write(sections: Mapping[str, Section], *, load: float) -> Path:
    """Write the page, and the plots if matplotlib is there. Answers where the page is.

    `load` is how many processes wanted a core before all began.
    """
    parts = [_INTRODUCTION.format(machine=_machine(load))]
    for name, section in sections.items():
        parts.append(as_text(section))
        if (section.bars or section.curves) and _plot(name, section):
            parts.append(f"![{section.title}](performance-{name}.svg)\n")
    kept = _PAGE.read_text(encoding="utf-8").partition(_KEPT)[2] if _PAGE.exists() else ""
    _PAGE.write_text("\n".join(parts) + (f"\n{_KEPT}{kept}" if kept else ""), encoding="utf-8")
    return _PAGE


def _machine(load: float) -> str:
    versions = {name: _version(name) for name in _PACKAGES}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"Measured on {datetime.date.today():%d %B %Y}: {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores ({_processor()}), load "
        f"{load:.1f} at the start; {platform.python_implementation()} "
        f"{platform.python_version()}, {packages}."
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


# Plots ------------------------------------------------------------------------------------


def _plot(name: str, section: Section) -> bool:
    """Draw a section; whether that could be done."""
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    bars = section.bars
    figure = figures.Figure((7, 0.9 + 0.3 * len(bars)) if bars else (7, 3.5), layout="constrained")
    axes = figure.subplots()
    if bars:
        _draw_bars(axes, bars)
    else:
        _draw_curves(axes, section.curves)
    axes.set_title(section.title)
    figure.savefig(_PAGE.with_name(f"performance-{name}.svg"), metadata={"Date": None})
    return True


def _draw_bars(axes: Any, bars: Mapping[str, float]) -> None:
    colours = ["#c33" if "imagelabs" in name or "save" in name else "#888" for name in bars]
    axes.bar_label(axes.barh(list(bars), list(bars.values()), color=colours), fmt=" %.2f")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("CPU, of the first line")


def _draw_curves(axes: Any, curves: Mapping[str, Any]) -> None:
    for name, delays in curves.items():
        parts = [number / len(delays) for number in range(1, len(delays) + 1)]
        axes.plot(delays, parts, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("seconds from a job's end until it is noticed")
    axes.set_ylabel("part of the jobs")
    axes.legend()
