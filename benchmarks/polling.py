"""When to poll: the default strategy against a fixed second, on simulated jobs."""

from imagelabs_sdk import FixedInterval
from imagelabs_sdk.polling import Adaptive

from .measure import Section, Table, Target
from .simulation import Summary, draw, simulate

__all__ = ["section"]

_LAW = "lognormal 6 s"
_POLLS = {  # by what the service reports: looks at most, of those at a fixed second
    "linear": 0.30,
    "20 steps": 0.40,
    "jittery": 0.45,
    "1.0 at 85 %": 0.50,
    "stuck at 0": 1.10,
    "absent": 1.10,
}


def section(*, quick: bool) -> Section:
    """No I/O, no time: what each strategy would have asked, and when it would have known."""
    drawings = draw(_LAW, 1_000 if quick else 5_000, seed=7)
    fixed = {shape: simulate(FixedInterval(1.0), drawings, shape) for shape in _POLLS}
    ours = {shape: simulate(Adaptive(), drawings, shape) for shape in _POLLS}
    latest = max(each.delay / fixed[shape].delay for shape, each in ours.items())
    return Section(
        title="When to poll",
        note=f"The default strategy against a poll every second, {len(drawings):,} simulated jobs "
        "(drawing lognormal, median 6 s; half of them queued, median 3 s; 60 ms round trip), by "
        "what the service reports. `docs/polling.md` has more laws, the derivation, and why few "
        "polls and the bound on the worst delay exclude each other beyond a point.",
        tables=(
            Table(
                (
                    "progress",
                    "polls",
                    "polls, fixed",
                    "mean delay, s",
                    "fixed, s",
                    "worst of bound",
                ),
                tuple(_row(shape, ours[shape], fixed[shape]) for shape in _POLLS),
            ),
        ),
        targets=(
            *(
                Target(f"{shape}: polls, of fixed", ours[shape].polls / fixed[shape].polls, limit)
                for shape, limit in _POLLS.items()
            ),
            Target("mean delay, of fixed, whatever is reported", latest, 1.0),
            Target("worst delay, of its bound", max(one.worst for one in ours.values()), 1.0),
        ),
    )


def _row(shape: str, ours: Summary, fixed: Summary) -> tuple[str, ...]:
    figures = ours.polls, fixed.polls, ours.delay, fixed.delay, ours.worst
    return (shape, *(f"{figure:.2f}" for figure in figures))
