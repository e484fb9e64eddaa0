"""When to poll again: strategies as plain values, which can be simulated without I/O."""

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs

from .models import Progress, State
from .validation import boolean, invalid, number, seconds, validator

__all__ = ["Adaptive", "Backoff", "FixedInterval", "Poll", "PollingStrategy", "after_failures"]

_LONGEST_PAUSE = 10.0  # seconds between polls while the service cannot be reached
_LONGEST_ASKED = 60.0  # seconds that the service may make us wait between polls

_LATE = 1.5  # seconds after its end by which a job is noticed,
_LATE_SHARE = 0.15  # or this share of its time, if that is longer
_ROUND_TRIP = 0.1  # seconds of that which one poll itself may take
_DOUBT = 0.25  # a reported fraction may fall short of the truth by so much
_MARGIN = 0.4  # of the steady pause, by which a poll aims behind the expected end


@attrs.frozen
class Poll:
    """One poll that was answered.

    Attributes:
        elapsed: Seconds since submit.
        progress: The answer.
    """

    elapsed: float
    progress: Progress


class PollingStrategy(Protocol):
    """Decides when to poll again, and has the clock by which everything is measured."""

    @property
    def clock(self) -> Callable[[], float]:
        """A monotonic clock, in seconds."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def sleep(self) -> Callable[[float], None]:
        """Sleep for so many seconds of that clock."""
        ...  # pragma: no cover - a Protocol has no body

    def delay(self, polls: Sequence[Poll]) -> float:
        """Return the seconds from now until the next poll.

        `polls` are those so far, oldest first, perhaps without the earliest of very many;
        empty right after submit.
        """
        ...  # pragma: no cover - a Protocol has no body


_seconds = validator(seconds, most=86_400.0)


@attrs.frozen
class FixedInterval:
    """Poll at a fixed interval.

    Attributes:
        interval: Seconds between polls, also before the first.
        clock: A monotonic clock, in seconds.
        sleep: Waits so many seconds of that clock.
    """

    interval: float = attrs.field(default=1.0, validator=_seconds)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, kw_only=True)

    def delay(self, polls: Sequence[Poll]) -> float:
        """Return `interval`."""
        return self.interval


def _uniform() -> float:
    """Return `random.random()`; pickles without the generator's state."""
    return random.random()


@attrs.frozen
class Backoff:
    """Poll less and less often: few polls, and the end is noticed late.

    Attributes:
        initial: Seconds before the first poll.
        maximum: No pause is longer, in seconds.
        multiplier: Each pause is so many times the one before; 1 or more.
        jitter: Each pause is shortened at random by up to this part of it, 0.0 to 1.0, so that
            many clients do not poll in step.
        clock: A monotonic clock, in seconds.
        sleep: Waits so many seconds of that clock.
        random: Returns 0.0 to 1.0.
    """

    initial: float = attrs.field(default=0.5, validator=_seconds)
    maximum: float = attrs.field(default=10.0, validator=_seconds)
    multiplier: float = attrs.field(default=1.5, validator=validator(number, 1.0, 100.0))
    jitter: float = attrs.field(default=0.1, validator=validator(number, 0.0, 1.0))
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, kw_only=True)
    random: Callable[[], float] = attrs.field(default=_uniform, kw_only=True)

    @maximum.validator
    def _not_below_initial(self, field: Any, value: float) -> None:
        if value < self.initial:
            raise invalid(field.name, value, "must not be below initial", code="too_small")

    def delay(self, polls: Sequence[Poll]) -> float:
        """Return `initial` times `multiplier` for each poll so far, at most `maximum`, jittered."""
        growth = min(math.log(self.multiplier) * len(polls), 50.0)  # keeps the power finite
        pause = min(self.initial * math.exp(growth), self.maximum)
        return pause * (1.0 - self.jitter * self.random())


@attrs.frozen
class Adaptive:
    """Poll rarely while nothing moves, then just after the end that the progress foretells.

    A job is noticed at the latest 1.5 s or 15 % of its time after its end, whichever is longer, as
    long as no reported fraction falls short of the share of time that has passed by more than a
    quarter; twice as late at the worst, whatever the service reports. ``docs/polling.md`` derives
    it and says where it ends.

    Attributes:
        poll_cost: Seconds of delay that are as bad as one poll more. Less: polls more often and
            notices the end sooner.
        minimum: No pause is shorter, in seconds.
        maximum: No pause is longer, in seconds.
        min_render_time: Seconds that rendering takes at the least, once it has begun. An image
            that is rendered sooner is noticed as if it had taken so long.
        long_polls: True: at a service that has announced long polls (our own server does), a
            blocking wait may use them: each poll is answered when something has changed. At any
            other service it polls by the pauses. False: it always polls by the pauses.
        clock: A monotonic clock, in seconds.
        sleep: Waits so many seconds of that clock.
    """

    poll_cost: float = attrs.field(default=0.06, validator=_seconds)
    minimum: float = attrs.field(default=0.25, validator=_seconds)
    maximum: float = attrs.field(default=15.0, validator=_seconds)
    min_render_time: float = attrs.field(default=1.0, validator=_seconds)
    long_polls: bool = attrs.field(default=False, validator=validator(boolean), kw_only=True)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, kw_only=True)

    @maximum.validator
    def _not_below_minimum(self, field: Any, value: float) -> None:
        if value < self.minimum:
            raise invalid(field.name, value, "must not be below minimum", code="too_small")

    def delay(self, polls: Sequence[Poll]) -> float:
        """Return the pause; it depends on the polls alone."""
        return min(max(self._pause(polls), self.minimum), self.maximum)

    def _pause(self, polls: Sequence[Poll]) -> float:
        now = polls[-1].elapsed if polls else 0.0
        if not polls or polls[-1].progress.state is State.QUEUED:
            return _max_pause(now) + self.min_render_time  # rendering has not begun
        if not _has_moved(polls):
            return self._steady_pause(now)
        guess, surely = _remaining(polls, self.min_render_time)
        aim = guess + _MARGIN * self._steady_pause(now)
        return min(aim, _max_pause(now) + min(surely, _max_pause(now)))

    def _steady_pause(self, now: float) -> float:
        """Return the cheapest pause when the end may come at any time."""
        return min(math.sqrt(2.0 * self.poll_cost * now), _max_pause(now))


def _max_pause(now: float) -> float:
    """Return the longest pause that keeps the promise if the job ends right after its poll."""
    return max(_LATE, _LATE_SHARE * now) - _ROUND_TRIP


def _fraction(poll: Poll) -> float:
    return poll.progress.fraction or 0.0


def _has_moved(polls: Sequence[Poll]) -> bool:
    """Return True if the last poll can be extrapolated; at 1.0 the end is open again."""
    before = _fraction(polls[-2]) if len(polls) > 1 else 0.0
    return 0.0 < _fraction(polls[-1]) < 1.0 and _fraction(polls[-1]) != before


def _remaining(polls: Sequence[Poll], min_render_time: float) -> tuple[float, float]:
    """Return the seconds to the end: the estimate, and the least that is sure.

    Render began between the last poll without movement and the first one with it, so the line
    through the former goes too far, and only the line between two readings may be trusted: for
    the guess as it is, for what is sure as steep as the doubt about the last reading makes it.
    """
    start = next(n for n, poll in enumerate(polls) if _fraction(poll))
    first, last = polls[start], polls[-1]
    begun = polls[start - 1].elapsed if start else 0.0
    done, gained = _fraction(last), max(_fraction(last) - _fraction(first), 0.0)
    span = last.elapsed - first.elapsed
    whole = min((last.elapsed - begun) / done, span / gained if gained else math.inf)
    least = max(span / (gained + _DOUBT), min_render_time)
    return (1.0 - done) * whole, max(1.0 - done - _DOUBT, 0.0) * least


def after_failures(failures: int, pause: float, asked: float) -> float:
    """Return the seconds until the next poll when the last ones failed.

    The strategy's own `pause` is doubled with each failure in a row, up to ten seconds (or up to
    that pause, if it is longer). It is at least what the service `asked` for, up to a minute.
    """
    grown = pause * 2.0 ** min(failures - 1, 30)
    return max(min(grown, max(pause, _LONGEST_PAUSE)), min(asked, _LONGEST_ASKED))
