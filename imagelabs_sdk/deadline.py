"""One point in time that bounds everything done on behalf of one call."""

import math
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

import attrs

from .validation import invalid, seconds

__all__ = ["STOP_INTERVAL", "Deadline", "Stop"]

Stop: TypeAlias = threading.Event | Callable[[], bool]
"""Ends a call early: an event that is set, or a function that returns True. It is asked often."""

_MAX_SOCKET_WAIT = 86_400.0  # seconds; the C type behind a socket's timeout has an end
STOP_INTERVAL = 0.05
"""Seconds after which a wait asks again whether its caller wants to stop."""


@attrs.frozen
class Deadline:
    """A point on a monotonic clock that ends every wait; perhaps with a way to end it earlier.

    Every `timeout` argument takes one in place of seconds, so that several calls can share it.

    Attributes:
        at: In seconds of `clock`; infinity: never.
        clock: A monotonic clock, in seconds.
        stop: Ends every wait before that; `None`: nothing does.
    """

    at: float = math.inf
    clock: Callable[[], float] = time.monotonic
    stop: Callable[[], bool] | None = attrs.field(default=None, eq=False, repr=False)

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> "Deadline":
        """Return the deadline `seconds` from now. Infinity: never; 0: it has passed already."""
        return cls(clock() + seconds, clock)

    @classmethod
    def from_timeout(
        cls,
        timeout: "float | Deadline | None",
        *,
        default: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        stop: Stop | None = None,
    ) -> "Deadline":
        """Return the deadline that the arguments `timeout` and `stop` mean.

        Args:
            timeout: Seconds from now, 0 or more; a `Deadline` is returned as it is; `None`:
                `default`.
            default: Seconds from now; infinity: never.
            clock: A monotonic clock, in seconds.
            stop: Ends every wait before that; `None`: what a `Deadline` has already.

        Raises:
            InvalidRequestError: `timeout` or `stop` is something else.
        """
        check = None if stop is None else _stop_check(stop)
        if isinstance(timeout, Deadline):
            return timeout if check is None else attrs.evolve(timeout, stop=check)
        allowed = default if timeout is None else seconds("timeout", timeout, least=0.0)
        return cls(clock() + allowed, clock, check)

    def remaining(self) -> float:
        """Return the seconds left: 0.0 when it has passed, infinity when it never will."""
        return max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        """True when no time is left."""
        return self.remaining() <= 0.0

    def within(self, seconds: float) -> "Deadline":
        """Return the earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock, self.stop)

    @property
    def stopped(self) -> bool:
        """True when the caller has asked to stop."""
        return self.stop is not None and self.stop()

    def without_stop(self) -> "Deadline":
        """Return this deadline for what must not be interrupted."""
        return self if self.stop is None else Deadline(self.at, self.clock)

    def pause(self, seconds: float, sleep: Callable[[float], None]) -> None:
        """Sleep for so many seconds, or until the caller asks to stop."""
        if self.stop is None:
            sleep(seconds)
            return
        end = self.clock() + seconds
        while not self.stop() and (left := end - self.clock()) > 0.0:
            sleep(min(left, STOP_INTERVAL))

    def socket_timeout(self) -> float:
        """Return the seconds for which a socket may block.

        Raises:
            TimeoutError: No time is left.
            InterruptedError: The caller has asked to stop.
        """
        if self.stopped:
            raise InterruptedError("stopped by the caller")
        left = self.remaining()
        if left <= 0.0:
            raise TimeoutError("the deadline has passed")
        return min(left, _MAX_SOCKET_WAIT)


def _stop_check(stop: Stop) -> Callable[[], bool]:
    if isinstance(stop, threading.Event):
        return stop.is_set
    if not callable(stop):
        raise invalid("stop", stop, "must be a threading.Event or a function without arguments")
    return stop
