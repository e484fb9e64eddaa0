"""A clock that moves only when somebody sleeps or a test says so."""

import threading
import time
from typing import ClassVar, Protocol

from .. import validation
from ..polling import Adaptive, FixedInterval

__all__ = ["Clock", "FakeClock", "SystemClock"]


class Clock(Protocol):
    """What a fake service measures time by."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...  # pragma: no cover - a Protocol has no body

    def sleep(self, seconds: float) -> None:
        """Wait so many seconds of this clock."""
        ...  # pragma: no cover - a Protocol has no body


class FakeClock:
    """A clock for tests: a sleep of ten minutes returns at once, ten minutes later by this clock.

    Safe for threads. `ImageLabs.generate_many` lets it move only when none of its threads has
    anything to do, so that a job that is being asked about is not overtaken by the time.

    Attributes:
        simulated: Always true: it jumps, where other clocks run.
        slept: Each sleep so far, in seconds.
    """

    simulated: ClassVar[bool] = True

    def __init__(self, start: float = 1000.0) -> None:
        """Stand still at `start` seconds."""
        self.slept: list[float] = []
        self._start = self._now = start
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the time in seconds. It does not pass by itself."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move the time by `seconds` and return at once."""
        self.advance(seconds)
        self.slept.append(seconds)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass.

        Raises:
            InvalidRequestError: Time does not run backwards.
        """
        validation.seconds("seconds", seconds, least=0.0)
        with self._lock:
            self._now += seconds

    @property
    def elapsed(self) -> float:
        """Seconds that have passed since the clock was made."""
        return self._now - self._start

    def adaptive(self) -> Adaptive:
        """Return the default polling strategy, by this clock."""
        return Adaptive(clock=self.now, sleep=self.sleep)

    def every(self, seconds: float) -> FixedInterval:
        """Return a strategy that polls every `seconds`, by this clock."""
        return FixedInterval(seconds, clock=self.now, sleep=self.sleep)


class SystemClock(FakeClock):
    """Real time, and what `advance` adds: for a fake service that other programs talk to."""

    simulated: ClassVar[bool] = False

    def __init__(self) -> None:
        """Start now."""
        super().__init__(time.monotonic())

    def now(self) -> float:
        """Return the time in seconds. It passes by itself."""
        return time.monotonic() + self._now - self._start

    def sleep(self, seconds: float) -> None:
        """Really wait."""
        time.sleep(seconds)

    @property
    def elapsed(self) -> float:
        """Seconds that have passed since the clock was made."""
        return self.now() - self._start
