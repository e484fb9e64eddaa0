"""Admission control: when the next submit of a batch may leave. No threads, no clock, no I/O."""

import math

import attrs

from ..endpoints import submit_retry_delay
from ..errors import (
    APIConnectionError,
    APIStatusError,
    ChallengeError,
    ImageLabsError,
    SubmissionUnknownError,
)

__all__ = ["Admission", "Attempts"]

_MIN_HOLD = 1.0  # seconds without submits after one that may not be sent again
_MAX_OUTAGES = 6  # submits in a row that the service does not answer
_MAX_OUTAGE_HOLD = 8.0  # seconds between two of them
_MAX_HOLD = 3600.0  # seconds; a longer `Retry-After` does not stop a batch for longer


@attrs.define(eq=False)
class Attempts:
    """The submits of one item.

    Attributes:
        failed: How many were refused, or got no answer and may be sent again. Submits that left
            together and were refused together count once, for the first of them.
        is_probe: True while the item is submitted alone, to find out whether the service
            accepts submits again.
    """

    failed: int = 0
    is_probe: bool = False


class Admission:
    """Decides when the next submit may leave, and which one may be sent again.

    A refused submit holds back those of all items, because a rate limit belongs to the account.
    A submit that gets no answer does so, too. After the hold one item is submitted alone, as a
    probe; the others follow when the service has accepted or judged it. Times are seconds of one
    monotonic clock, passed in as `now`. Not thread-safe: the scheduler calls it while it holds
    its lock.
    """

    def __init__(self, *, min_interval: float, max_retries: int) -> None:
        """Allow the first submit at once.

        Args:
            min_interval: Seconds between two submits; 0: no limit.
            max_retries: How often an item is sent again after a refusal; 0: never.
        """
        self._min_interval, self._max_retries = min_interval, max_retries
        self._not_before = -math.inf
        self._in_flight = 0  # submits without an answer
        self._refusals = 0  # in a row
        self._outages = 0  # in a row

    @property
    def next_submit_at(self) -> float:
        """The time at which the next submit may leave; infinity while a probe is in flight."""
        return math.inf if self._is_probing and self._in_flight else self._not_before

    @property
    def is_down(self) -> bool:
        """True if so many submits in a row got no answer that the service must be down."""
        return self._outages >= _MAX_OUTAGES

    @property
    def _is_probing(self) -> bool:
        return self._refusals > 0 or self._outages > 0

    def submitting(self, attempts: Attempts, now: float) -> None:
        """Record that a submit leaves."""
        attempts.is_probe = self._is_probing
        self._in_flight += 1
        self._not_before = now + self._min_interval

    def accepted(self) -> None:
        """Record that a submit was accepted."""
        self._in_flight -= 1
        self._refusals = self._outages = 0

    def failed(
        self, attempts: Attempts, error: ImageLabsError, now: float, *, keyed: bool = False
    ) -> bool:
        """Record that a submit failed. Return True if it has to be sent again, later.

        Args:
            attempts: The item's.
            error: Why.
            now: The time.
            keyed: True if it carried an idempotency key.
        """
        self._in_flight -= 1
        is_first = attempts.is_probe or not self._is_probing  # of those that left together
        self._outages = self._outages + is_first if _is_outage(error) else 0
        if error.delivered != "no":
            self._refusals = 0
            attempts.failed += 1
            retry_delay = submit_retry_delay(error, attempts.failed, keyed=keyed)
            if self._outages or retry_delay is not None:
                pause = _MIN_HOLD * 2.0 ** max(self._outages - 2, 0)
                self.hold(error, now, min(pause, _MAX_OUTAGE_HOLD))
            return self._may_repeat(attempts, retry_delay)
        if is_first:
            self._refusals += 1
            # An item does not lose its attempts to a service that is down.
            if not (isinstance(error, APIConnectionError) and self._max_retries):
                attempts.failed += 1
        retry_delay = submit_retry_delay(error, self._refusals)
        self.hold(error, now, _MIN_HOLD if retry_delay is None else retry_delay)
        return self._may_repeat(attempts, retry_delay)

    def _may_repeat(self, attempts: Attempts, retry_delay: float | None) -> bool:
        return retry_delay is not None and attempts.failed <= self._max_retries

    def hold(self, error: ImageLabsError, now: float, least: float = _MIN_HOLD) -> None:
        """Allow no submit for `least` seconds or the error's `retry_after`, if that is longer."""
        pause = max(least, min(error.retry_after or 0.0, _MAX_HOLD))
        self._not_before = max(self._not_before, now + pause)


def _is_outage(error: ImageLabsError) -> bool:
    """Return True for an error that any other submit would have met as well."""
    if isinstance(error, APIStatusError) and error.status_code >= 500:
        return True
    return isinstance(error, APIConnectionError | SubmissionUnknownError | ChallengeError)
