"""One point in time that bounds everything done on behalf of one call."""

import math
import time
from collections.abc import Callable

import attrs

from .validation import seconds

__all__ = ["Deadline"]

_LONGEST_SOCKET_WAIT = 86_400.0  # seconds; the C type behind a socket's timeout has an end


@attrs.frozen
class Deadline:
    """A point on a monotonic clock that ends every wait.

    Every `timeout` argument takes one in place of seconds, so that several calls can share it.

    Attributes:
        at: In seconds of `clock`; infinity: never.
        clock: A monotonic clock, in seconds.
    """

    at: float = math.inf
    clock: Callable[[], float] = time.monotonic

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
    ) -> "Deadline":
        """Return the deadline that a `timeout` argument means.

        Args:
            timeout: Seconds from now, 0 or more; a `Deadline` is returned as it is; `None`:
                `default`.
            default: Seconds from now; infinity: never.
            clock: A monotonic clock, in seconds.

        Raises:
            InvalidRequestError: `timeout` is something else.
        """
        if isinstance(timeout, Deadline):
            return timeout
        if timeout is None:
            return cls(clock() + default, clock)
        return cls(clock() + seconds("timeout", timeout, least=0.0), clock)

    def remaining(self) -> float:
        """Return the seconds left: 0.0 when it has passed, infinity when it never will."""
        return max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        """True when no time is left."""
        return self.remaining() <= 0.0

    def within(self, seconds: float) -> "Deadline":
        """Return the earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)

    def socket_timeout(self) -> float:
        """Return the seconds for which a socket may block.

        Raises:
            TimeoutError: No time is left.
        """
        left = self.remaining()
        if left <= 0.0:
            raise TimeoutError("the deadline has passed")
        return min(left, _LONGEST_SOCKET_WAIT)
