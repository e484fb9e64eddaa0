"""When to look again: strategies as plain values, to be simulated without any I/O."""

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs

from .models import Progress, invalid

__all__ = ["Backoff", "FixedInterval", "Look", "Polling", "after_failures"]

_LONGEST_PAUSE = 10.0  # seconds between looks while the service cannot be reached
_LONGEST_ASKED = 60.0  # seconds that the service may make us wait between looks


@attrs.frozen
class Look:
    """One answered question.

    Attributes:
        elapsed: Seconds since submit.
        progress: What was seen.
    """

    elapsed: float
    progress: Progress


class Polling(Protocol):
    """Decides when to look again, and by which clock everything about a job is measured."""

    @property
    def clock(self) -> Callable[[], float]:
        """A monotonic clock, in seconds."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def sleep(self) -> Callable[[float], None]:
        """Waits so many seconds of that clock."""
        ...  # pragma: no cover - a Protocol has no body

    def delay(self, looks: Sequence[Look]) -> float:
        """Seconds from now until the next look.

        `looks` are those so far, oldest first, perhaps without the earliest of very many;
        empty right after submit.
        """
        ...  # pragma: no cover - a Protocol has no body


def seconds(field: str, value: object, *, above: float = 0.0, most: float = math.inf) -> float:
    """Check a length of time.

    Raises:
        InvalidRequestError: It is no number, not above `above`, or over `most`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not above < float(value) <= most:  # type: ignore[arg-type]
        limit = f" and at most {most:g}" if math.isfinite(most) else ""
        raise invalid(field, value, f"must be a number of seconds above {above:g}{limit}")
    return float(value)  # type: ignore[arg-type]


def _seconds(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    seconds(field.name, value, most=86_400.0)


@attrs.frozen
class FixedInterval:
    """Look at a fixed interval.

    Attributes:
        interval: Seconds between looks, also before the first.
        clock: A monotonic clock, in seconds.
        sleep: Waits so many seconds of that clock.
    """

    interval: float = attrs.field(default=1.0, validator=_seconds)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, kw_only=True)

    def delay(self, looks: Sequence[Look]) -> float:
        """Always `interval`."""
        return self.interval


def _uniform() -> float:
    """`random.random`, in a form that pickles without its generator's state."""
    return random.random()


@attrs.frozen
class Backoff:
    """Look less and less often: kind to the service, late to notice.

    Attributes:
        initial: Seconds before the first look.
        maximum: No pause is longer, in seconds.
        multiplier: Each pause is so many times the one before; 1 or more.
        jitter: Each pause is shortened at random by up to this part of it, 0.0 to 1.0, so that
            many clients do not look in step.
        clock: A monotonic clock, in seconds.
        sleep: Waits so many seconds of that clock.
        random: Answers 0.0 to 1.0.
    """

    initial: float = attrs.field(default=0.5, validator=_seconds)
    maximum: float = attrs.field(default=10.0, validator=_seconds)
    multiplier: float = attrs.field(default=1.5)
    jitter: float = attrs.field(default=0.1)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, kw_only=True)
    random: Callable[[], float] = attrs.field(default=_uniform, kw_only=True)

    @maximum.validator
    def _not_below_initial(self, field: Any, value: float) -> None:
        if value < self.initial:
            raise invalid(field.name, value, "must not be below initial")

    @multiplier.validator
    def _grows(self, field: Any, value: object) -> None:
        if not isinstance(value, int | float) or not 1.0 <= value <= 100.0:
            raise invalid(field.name, value, "must be a number from 1 to 100")

    @jitter.validator
    def _is_part(self, field: Any, value: object) -> None:
        if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise invalid(field.name, value, "must be a number from 0.0 to 1.0")

    def delay(self, looks: Sequence[Look]) -> float:
        """`initial`, times `multiplier` for each look so far, at most `maximum`, jittered."""
        growth = min(math.log(self.multiplier) * len(looks), 50.0)  # keeps the power finite
        pause = min(self.initial * math.exp(growth), self.maximum)
        return pause * (1.0 - self.jitter * self.random())


def after_failures(failures: int, pause: float, asked: float) -> float:
    """Seconds until the next look when the last ones failed.

    Doubles the strategy's own pause with each failure in a row, up to ten seconds (or to that
    pause, if it is longer); no sooner than the service `asked` for, if that is within reason.
    """
    grown = pause * 2.0 ** min(failures - 1, 30)
    return max(min(grown, max(pause, _LONGEST_PAUSE)), min(asked, _LONGEST_ASKED))
