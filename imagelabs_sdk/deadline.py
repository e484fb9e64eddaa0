"""One point in time that bounds everything done on behalf of one call."""

import math
import time
from collections.abc import Callable

import attrs

__all__ = ["Deadline"]

_LONGEST_SOCKET_WAIT = 86_400.0  # seconds; the C type behind a socket's timeout has an end


@attrs.frozen
class Deadline:
    """A point on a monotonic clock after which nobody waits any more.

    Attributes:
        at: In seconds of `clock`; infinity means never.
        clock: A monotonic clock, in seconds.
    """

    at: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> "Deadline":
        """The deadline `seconds` from now; infinity means never, 0 means at once."""
        return cls(clock() + seconds, clock)

    def remaining(self) -> float:
        """Seconds left: 0.0 when it has passed, infinity when it never will."""
        return max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining() <= 0.0

    def within(self, seconds: float) -> "Deadline":
        """The earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)

    def socket_timeout(self) -> float:
        """What to give a socket before it may block.

        Raises:
            TimeoutError: No time is left.
        """
        left = self.remaining()
        if left <= 0.0:
            raise TimeoutError("the deadline has passed")
        return min(left, _LONGEST_SOCKET_WAIT)
