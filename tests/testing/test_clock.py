"""The clock that nobody waits for."""

from time import monotonic, sleep

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
    before, clock = monotonic(), SystemClock()
    clock.sleep(0.01)
    assert before + 0.01 <= clock.now() <= monotonic()
    clock.advance(600)
    assert 600.01 <= clock.elapsed <= monotonic() - before + 600


def test_time_does_not_overtake_a_batch() -> None:
    """However threads are scheduled, each job is noticed as soon as with one thread."""
    for _ in range(10):
        service = FakeService().takes(20)
        service.job("a sphinx").never_finishes()
        prompts = ["a sphinx", *map(str, range(15))]
        outcomes = list(service.client(timeout=300).generate_many(prompts))
        assert isinstance(outcomes[-1].error, JobTimeoutError)
        totals = [outcome.result.timings.total for outcome in outcomes[:-1] if outcome.result]
        assert totals == [pytest.approx(totals[0])] * 15
        assert 20 <= totals[0] < 23


def test_time_stands_still_while_the_caller_of_a_batch_is_busy() -> None:
    """What the caller does between two outcomes takes no time of the clock."""
    service = FakeService()
    service.job("a cat").takes(10)
    service.job("a dog").takes(100)
    clock = service.clock
    with service.client(poll_interval=1).generate_many(["a dog", "a cat"]) as batch:
        first = next(batch)
        noticed = clock.now()
        sleep(0.05)
        assert clock.now() == noticed == 1010
        assert next(batch).index == 0
    assert first.index == 1
    assert clock.now() == 1100
