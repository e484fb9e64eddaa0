"""Polling strategies against simulated jobs: no I/O, no waiting, only the public `delay`.

Run it from the root of the repository: ``python -m benchmarks.simulation [--plot FILE.svg]``.
"""

import argparse
import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

import attrs

from imagelabs_sdk import Backoff, FixedInterval, Poll, PollingStrategy, Progress, State
from imagelabs_sdk.polling import Adaptive

__all__ = ["LAWS", "SHAPES", "Render", "Summary", "draw", "simulate"]

ROUND_TRIP = 0.06  # seconds; the service answers in the middle of it
KEPT = 64  # polls that a strategy is shown, as by `Job`
SHORTEST = 1.0  # seconds; a service that is done sooner is judged as if it took so long


@attrs.frozen
class Render:
    """One job: seconds in the queue, then seconds of drawing."""

    queued: float
    service: float


@attrs.frozen
class Summary:
    """What many jobs cost.

    Attributes:
        delay: Mean seconds from the end to knowing it.
        polls: Mean number of polls per job.
        worst: The longest delay, as part of max(1.5 s, 15 % of the job's time).
        worst_usual: The same without what a drawing took less than `SHORTEST`.
    """

    delay: float
    polls: float
    worst: float
    worst_usual: float


def _lognormal(median: float, sigma: float) -> Callable[[random.Random], float]:
    return lambda dice: dice.lognormvariate(math.log(median), sigma)


def _bimodal(dice: random.Random) -> float:
    return _lognormal(3.0 if dice.random() < 0.5 else 18.0, 0.2)(dice)


LAWS: dict[str, Callable[[random.Random], float]] = {
    "lognormal 6 s": _lognormal(6.0, 0.5),  # the one that the constants were chosen on
    "lognormal 3 s": _lognormal(3.0, 0.6),
    "lognormal 20 s": _lognormal(20.0, 0.5),
    "lognormal 60 s": _lognormal(60.0, 0.7),
    "uniform 2-14 s": lambda dice: dice.uniform(2.0, 14.0),
    "exponential 8 s": lambda dice: dice.expovariate(1 / 8.0),
    "bimodal 3, 18 s": _bimodal,
}
"""How long drawing takes, in seconds."""

SHAPES: dict[str, Callable[[float, random.Random], float | None]] = {
    "linear": lambda done, _: done,
    "20 steps": lambda done, _: math.floor(done * 20) / 20,
    "jittery": lambda done, dice: min(max(done + dice.gauss(0.0, 0.05), 0.0), 1.0),
    "1.0 at 85 %": lambda done, _: min(done / 0.85, 1.0),
    "stuck at 0": lambda _, __: 0.0,
    "absent": lambda _, __: None,
    "easing in": lambda done, _: done**2,
    "easing out": lambda done, _: 1.0 - (1.0 - done) ** 2,
    "stuck at 0.3": lambda done, _: min(done, 0.3),
}
"""What the service reports when a part of the drawing is done."""


def draw(law: str, count: int, seed: int) -> list[Render]:
    """So many jobs; half of them wait in a queue, lognormal with median 3 s."""
    dice, queue = random.Random(seed), _lognormal(3.0, 0.5)
    return [
        Render(queue(dice) if dice.random() < 0.5 else 0.0, LAWS[law](dice)) for _ in range(count)
    ]


def simulate(
    strategy: PollingStrategy, drawings: Sequence[Render], shape: str, *, seed: int = 1
) -> Summary:
    """Look at each job by `strategy` until its end is seen."""
    dice = random.Random(seed)
    delays, polls, worst, worst_usual = 0.0, 0, 0.0, 0.0
    for drawing in drawings:
        end = drawing.queued + drawing.service
        seen, count = _watch(strategy, drawing, shape, dice)
        delays, polls = delays + seen - end, polls + count
        allowed = max(1.5, 0.15 * end)
        excess = max(SHORTEST - drawing.service, 0.0)
        worst = max(worst, (seen - end) / allowed)
        worst_usual = max(worst_usual, (seen - end - excess) / allowed)
    return Summary(delays / len(drawings), polls / len(drawings), worst, worst_usual)


def _watch(
    strategy: PollingStrategy, drawing: Render, shape: str, dice: random.Random
) -> tuple[float, int]:
    """Seconds until the end is known, and polls it took."""
    now, count, polls = 0.0, 0, list[Poll]()
    while True:
        now += strategy.delay(polls) + ROUND_TRIP
        count += 1
        progress = _reported(drawing, shape, now - ROUND_TRIP / 2, dice)
        if progress.state is State.DONE:
            return now, count
        polls = [*polls[1 - KEPT :], Poll(now, progress)]


def _reported(drawing: Render, shape: str, now: float, dice: random.Random) -> Progress:
    if now < drawing.queued:
        return Progress(state=State.QUEUED, fraction=None if shape == "absent" else 0.0)
    done = (now - drawing.queued) / drawing.service
    if done >= 1.0:
        return Progress(state=State.DONE, fraction=1.0, image_url="https://example.com/1.png")
    return Progress(state=State.RUNNING, fraction=SHAPES[shape](done, dice))


# Tables and plot -----------------------------------------------------------------------


def _table(rows: Iterable[Sequence[str]]) -> str:
    first, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([first, "|---" * (first.count("|") - 1) + "|", *rest]) + "\n"


def _one_law(law: str, count: int, seed: int) -> str:
    """`Adaptive` beside a fixed second, for each shape of progress."""
    rows = [
        ("progress", "polls", "of fixed", "mean delay", "of fixed", "worst delay, of its bound")
    ]
    drawings = draw(law, count, seed)
    for shape in SHAPES:
        fixed = simulate(FixedInterval(1.0), drawings, shape)
        ours = simulate(Adaptive(), drawings, shape)
        rows.append(
            (
                shape,
                f"{ours.polls:.2f}",
                f"{ours.polls / fixed.polls:.2f}",
                f"{ours.delay:.2f} s",
                f"{ours.delay / fixed.delay:.2f}",
                f"{ours.worst:.2f}",
            )
        )
    return _table(rows)


def _all_laws(count: int, seed: int) -> str:
    rows = [("drawing takes", *SHAPES)]
    for law in LAWS:
        drawings = draw(law, count, seed)
        fixed = simulate(FixedInterval(1.0), drawings, "absent")
        cells = [simulate(Adaptive(), drawings, shape) for shape in SHAPES]
        texts = [f"{one.polls / fixed.polls:.2f} · {one.worst_usual:.2f}" for one in cells]
        rows.append((law, *texts))
    return _table(rows)


def _plot(path: str, count: int, seed: int) -> None:
    matplotlib: Any = import_module("matplotlib")  # the extra `bench`, wanted only here
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "imagelabs"  # the same data, the same file
    figure, panels = import_module("matplotlib.pyplot").subplots(1, 3, figsize=(11, 4), sharey=True)
    drawings = draw("lognormal 6 s", count, seed)
    for panel, shape in zip(panels, ["linear", "jittery", "absent"], strict=True):
        for name, strategies in _curves().items():
            points = [simulate(one, drawings, shape) for one in strategies]
            panel.plot([p.polls for p in points], [p.delay for p in points], "o-", ms=4, label=name)
        default = simulate(Adaptive(), drawings, shape)
        panel.plot([default.polls], [default.delay], "k*", ms=12, label="the default")
        panel.set(title=f"progress: {shape}", xlabel="polls per job", xlim=(0, 16), ylim=(0, 2.5))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean delay, seconds")
    panels[-1].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _curves() -> dict[str, list[PollingStrategy]]:
    return {
        "Adaptive(poll_cost)": [Adaptive(cost) for cost in (0.005, 0.01, 0.02, 0.06, 0.12, 0.25)],
        "FixedInterval": [FixedInterval(pause) for pause in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)],
        "Backoff": [Backoff(first) for first in (0.1, 0.25, 0.5, 1.0, 2.0)],
    }


def main() -> None:
    """Print the tables of docs/polling.md; draw its plot if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="simulated for each cell")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", metavar="FILE", help="write the plot there, too")
    options = parser.parse_args()
    sys.stdout.write(_one_law("lognormal 6 s", options.jobs, options.seed) + "\n")
    sys.stdout.write(_all_laws(options.jobs, options.seed + 1))
    if options.plot:
        _plot(options.plot, options.jobs, options.seed)


if __name__ == "__main__":
    main()
