"""Strategies, simulated without any I/O, and the arithmetic of deadlines."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagelabs_sdk import (
    Backoff,
    Deadline,
    FixedInterval,
    InvalidRequestError,
    Poll,
    Progress,
    State,
)
from imagelabs_sdk.polling import after_failures
from imagelabs_sdk.testing import FakeClock


def polls(count: int) -> list[Poll]:
    return [Poll(float(n), Progress(state=State.RUNNING)) for n in range(count)]


def test_a_fixed_interval_stays() -> None:
    """Also before the first poll: an image is never there at once."""
    assert [FixedInterval(2.5).delay(polls(n)) for n in range(4)] == [2.5] * 4


def test_a_backoff_grows_to_its_maximum() -> None:
    """Without jitter it is plain arithmetic."""
    strategy = Backoff(1.0, 5.0, 2.0, 0.0)
    assert [round(strategy.delay(polls(n)), 6) for n in (0, 1, 2, 3, 60)] == [1, 2, 4, 5, 5]


@given(
    st.floats(0.001, 100), st.floats(1, 100), st.floats(1, 100), st.floats(0, 1), st.integers(0, 99)
)
def test_a_backoff_stays_within_its_bounds(
    initial: float, factor: float, multiplier: float, jitter: float, count: int
) -> None:
    """Whatever the values: never negative, never longer than the maximum."""
    strategy = Backoff(initial, initial * factor, multiplier, jitter)
    assert 0.0 <= strategy.delay(polls(count)) <= initial * factor


def test_jitter_only_shortens() -> None:
    """The maximum is a promise."""
    strategy = Backoff(10.0, 10.0, 1.0, 0.5, random=lambda: 1.0)
    assert strategy.delay([]) == 5.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: FixedInterval(0), "interval"),
        (lambda: FixedInterval(-1), "interval"),
        (lambda: FixedInterval(math.nan), "interval"),
        (lambda: FixedInterval(math.inf), "interval"),
        (lambda: FixedInterval("1"), "interval"),  # type: ignore[arg-type]
        (lambda: FixedInterval(True), "interval"),
        (lambda: Backoff(0), "initial"),
        (lambda: Backoff(2.0, 1.0), "maximum"),
        (lambda: Backoff(multiplier=0.5), "multiplier"),
        (lambda: Backoff(multiplier="2"), "multiplier"),  # type: ignore[arg-type]
        (lambda: Backoff(jitter=2), "jitter"),
        (lambda: Backoff(jitter=None), "jitter"),  # type: ignore[arg-type]
    ],
)
def test_a_strategy_that_makes_no_sense_is_refused(make: Callable[[], Any], field: str) -> None:
    """At its making, by name: a zero interval would hammer the service."""
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize("strategy", [FixedInterval(2.0), Backoff()])
def test_a_strategy_is_a_plain_value(strategy: Any) -> None:
    """It travels with its client to other processes."""
    assert pickle.loads(pickle.dumps(strategy)) == strategy


def test_failures_double_the_pause_up_to_ten_seconds() -> None:
    """A service in trouble is given time; the strategy's own pace is the measure."""
    assert [after_failures(n, 1.0, 0.0) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert after_failures(3, 30.0, 0.0) == 30.0
    assert after_failures(10**6, 0.001, 0.0) == 10.0


def test_the_service_may_ask_for_more_time_within_reason() -> None:
    """A minute is obeyed, a year is not."""
    assert after_failures(1, 1.0, 25.0) == 25.0
    assert after_failures(1, 1.0, 1e9) == 60.0


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 2e6))
def test_a_deadline_within_another_never_outlasts_it(
    whole: float, part: float, passed: float
) -> None:
    """All clocks of one call end by the first of them."""
    clock = FakeClock()
    outer = Deadline.after(whole, clock.now)
    inner = outer.within(part)
    clock.advance(passed)
    assert 0.0 <= inner.remaining() <= outer.remaining()
    assert inner.passed == (inner.remaining() == 0.0)


def test_no_deadline_is_one_that_never_passes() -> None:
    """Infinity is a number like another, and a socket gets a number that it takes."""
    never = Deadline()
    assert never.remaining() == math.inf
    assert not never.passed
    assert never.socket_timeout() == 86_400.0
    assert never.within(5.0).remaining() <= 5.0


def test_a_passed_deadline_gives_a_socket_no_time() -> None:
    """Zero would make the socket non-blocking instead."""
    clock = FakeClock()
    deadline = Deadline.after(1.0, clock.now)
    assert deadline.socket_timeout() == 1.0
    clock.advance(1.0)
    with pytest.raises(TimeoutError):
        deadline.socket_timeout()
