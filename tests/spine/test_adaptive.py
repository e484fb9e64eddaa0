"""The adaptive strategy: what it promises for any history, its stories, and simulated jobs."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation import SHAPES, draw, simulate
from imagelabs_sdk import FixedInterval, InvalidRequestError, Poll, Progress, State
from imagelabs_sdk.polling import Adaptive

fractions = st.none() | st.floats(0.0, 1.0)
progresses = st.builds(Progress, state=st.sampled_from(State), fraction=fractions)
times = st.floats(0.0, 1e9)
histories = st.lists(st.tuples(times, progresses), max_size=64).map(
    lambda pairs: [Poll(elapsed, progress) for elapsed, progress in sorted(pairs, key=first)]
)


def first(pair: tuple[float, Progress]) -> float:
    return pair[0]


def running(elapsed: float, fraction: float | None) -> Poll:
    return Poll(elapsed, Progress(state=State.RUNNING, fraction=fraction))


def queued(elapsed: float) -> Poll:
    return Poll(elapsed, Progress(state=State.QUEUED, fraction=0.0))


# Any history ---------------------------------------------------------------------------


@given(histories, st.floats(0.001, 100), st.floats(0.001, 10), st.floats(1, 100))
def test_no_history_drives_it_out_of_its_bounds(
    polls: list[Poll], poll_cost: float, minimum: float, factor: float
) -> None:
    """A service may report anything; the answer is a finite time within what was agreed."""
    strategy = Adaptive(poll_cost, minimum, minimum * factor)
    assert minimum <= strategy.delay(polls) <= minimum * factor


@given(histories)
def test_the_same_polls_give_the_same_answer(polls: list[Poll]) -> None:
    """It remembers nothing: one strategy serves all jobs of all threads, here and elsewhere."""
    strategy = Adaptive()
    answer = strategy.delay(polls)
    strategy.delay([running(3.0, 0.5)])
    assert strategy.delay(tuple(polls)) == answer
    assert pickle.loads(pickle.dumps(strategy)).delay(polls) == answer


def test_it_is_a_plain_value() -> None:
    """It travels with its client to other processes."""
    assert pickle.loads(pickle.dumps(Adaptive(0.1))) == Adaptive(0.1)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Adaptive(0), "poll_cost"),
        (lambda: Adaptive(math.nan), "poll_cost"),
        (lambda: Adaptive(minimum=0), "minimum"),
        (lambda: Adaptive(minimum=2.0, maximum=1.0), "maximum"),
        (lambda: Adaptive(min_render_time=-1), "min_render_time"),
        (lambda: Adaptive(long_polls=1), "long_polls"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], field: str) -> None:
    """At its making, by name."""
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert caught.value.field == field


# Stories -------------------------------------------------------------------------------


def test_it_waits_before_the_first_poll_and_in_the_queue() -> None:
    """All the drawing is still to come: as long as the promise lets it."""
    assert Adaptive().delay([]) == pytest.approx(1.4 + 1.0)
    assert Adaptive(min_render_time=0.001).delay([]) == pytest.approx(1.4, abs=0.01)
    assert Adaptive().delay([queued(5.0)]) == pytest.approx(1.4 + 1.0)
    assert Adaptive().delay([queued(40.0)]) == pytest.approx(0.15 * 40.0 - 0.1 + 1.0)


def test_it_aims_just_behind_the_end() -> None:
    """Two readings tell the end of drawing: here at 5.0 s."""
    pause = Adaptive().delay([running(2.0, 0.25), running(4.0, 0.75)])
    assert 1.0 < pause < 1.5


def test_a_small_reading_may_have_been_hidden_in_the_queue() -> None:
    """10 % after 10 s would be 90 s to go, if it had not begun only a moment ago."""
    assert Adaptive().delay([running(10.0, 0.1)]) < 2.5
    assert Adaptive().delay([running(9.9, 0.0), running(10.0, 0.1)]) < 2.0


def test_the_last_poll_without_movement_bounds_the_end() -> None:
    """It has begun after 4.0 s at the earliest, so half of it took at most half a second."""
    assert Adaptive().delay([running(4.0, 0.0), running(4.5, 0.5)]) < 0.5 + 0.4


@pytest.mark.parametrize("fraction", [None, 0.0, 0.3, 1.0])
def test_what_does_not_move_is_polled_blindly(fraction: float | None) -> None:
    """Also 1.0: the end may still be far, and must not be hammered at."""
    polls = [running(6.0, fraction), running(8.0, fraction)]
    assert Adaptive(0.04).delay(polls) == pytest.approx(math.sqrt(2 * 0.04 * 8.0))


def test_a_fraction_that_falls_is_survived() -> None:
    """Services count strangely; no more than twice the promise is ever lost by it."""
    assert 0.25 <= Adaptive().delay([running(2.0, 0.8), running(4.0, 0.5)]) <= 2 * 1.4


def test_less_poll_cost_means_more_polls() -> None:
    """The one parameter of the trade moves in the direction that its name says."""
    polls = [running(8.0, 0.0)]
    pauses = [Adaptive(poll_cost, 0.01).delay(polls) for poll_cost in (0.001, 0.01, 0.1, 1.0)]
    assert pauses == sorted(set(pauses))


# Simulated jobs ------------------------------------------------------------------------

LIMITS = {
    "linear": 0.54,
    "20 steps": 0.55,
    "jittery": 0.56,
    "1.0 at 85 %": 0.62,
    "stuck at 0": 0.95,
    "absent": 0.95,
    "easing in": 0.52,
    "easing out": 0.80,
    "stuck at 0.3": 0.62,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("law", "seed"), [("lognormal 6 s", 3), ("uniform 2-14 s", 4)])
def test_jobs_are_noticed_in_time_with_fewer_polls(law: str, seed: int, shape: str) -> None:
    """No job later than max(1.5 s, 15 % of its time); one that stops midway, twice that."""
    drawings = draw(law, 300, seed)
    ours = simulate(Adaptive(), drawings, shape)
    fixed = simulate(FixedInterval(1.0), drawings, shape)
    assert ours.worst_usual <= (2.0 if shape == "stuck at 0.3" else 1.0)
    assert ours.polls <= LIMITS[shape] * fixed.polls


@pytest.mark.parametrize("shape", ["linear", "20 steps", "jittery", "1.0 at 85 %", "absent"])
def test_it_notices_no_later_than_a_fixed_second(shape: str) -> None:
    """On average, where progress is honest or says nothing: the polls saved cost no time."""
    drawings = draw("lognormal 6 s", 500, 5)
    fixed = simulate(FixedInterval(1.0), drawings, shape)
    assert simulate(Adaptive(), drawings, shape).delay <= 1.05 * fixed.delay


@pytest.mark.parametrize("shape", ["linear", "absent"])
def test_nothing_is_assumed_of_how_long_drawing_takes(shape: str) -> None:
    """With `min_render_time` near 0 the promise holds for the fastest renders, too."""
    drawings = draw("exponential 8 s", 300, 6)
    assert simulate(Adaptive(min_render_time=0.001), drawings, shape).worst <= 1.0
