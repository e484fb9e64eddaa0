"""The clock that nobody waits for."""

from time import monotonic

import pytest

from imagelabs_sdk import InvalidRequestError, JobTimeoutError
from imagelabs_sdk.testing import FakeClock, FakeService
from imagelabs_sdk.testing.clock import SystemClock


def test_a_sleep_returns_at_once_and_moves_the_time() -> None:
    """Ten minutes of waiting must not cost a test ten minutes."""
    clock, real = FakeClock(), monotonic()
    clock.sleep(600)
    clock.advance(5)
    assert (clock.elapsed, clock.slept) == (605, [600])
    assert monotonic() - real < 60


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_time_does_not_run_backwards(seconds: float) -> None:
    """Code under test may rely on a monotonic clock."""
    with pytest.raises(InvalidRequestError, match="0 or more"):
        FakeClock().advance(seconds)


def test_a_strategy_follows_the_clock() -> None:
    """The strategy is where a client's clock comes from."""
    clock = FakeClock()
    for strategy in (clock.adaptive(), clock.every(3)):
        strategy.sleep(2)
        assert strategy.clock() == clock.now()
    assert clock.elapsed == 4
    assert clock.every(3).interval == 3


def test_a_wait_of_ten_minutes_ends_after_ten_minutes_of_the_clock() -> None:
    """Timeouts are worth a test, and nobody has ten minutes."""
    service = FakeService().never_finishes()
    with pytest.raises(JobTimeoutError) as caught:
        service.client(timeout=600).generate("a cat")
    assert caught.value.waited == pytest.approx(600, abs=1)


def test_the_systems_clock_is_real() -> None:
    """Other programs that talk to a fake service know no other."""
    clock, before = SystemClock(), monotonic()
    clock.sleep(0.01)
    assert before + 0.01 <= clock.now() <= monotonic()
