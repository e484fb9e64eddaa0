"""A circuit breaker for each service: hold back from one that fails, and probe it."""

import logging
import time
from collections.abc import Callable

import attrs

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    ImageLabsError,
    RateLimitError,
)

__all__ = ["ServiceHealth"]

log = logging.getLogger("imagelabs_sdk.contrib.django.sweep")

_LONGEST_PROBE_PAUSE = 30.0  # seconds between probes of a service that is down
_LONGEST_SUBMIT_PAUSE = 60.0  # seconds between submits to a service that is too busy
_LONGEST_RETRY_AFTER = 300.0  # seconds that a service may ask us to wait


@attrs.define
class ServiceHealth:
    """How one service has answered lately, whichever sweep asked.

    Attributes:
        alias: The client's, for the log.
        clock: In seconds.
        failures: Steps that failed in a row, whichever the job.
        polls_from: By the clock, when the next poll may be sent.
        rejections: Submits in a row for which the service was too busy.
        submits_from: By the clock, when the next submit may be sent.
    """

    alias: str = ""
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    polls_from: float = 0.0
    rejections: int = 0
    submits_from: float = 0.0

    def permits(self, threshold: int, *, submit: bool, steps: int, submits: int) -> bool:
        """Return True if a step may be taken now.

        A service that is down gets one request at a time, and one that is too busy one submit.

        Args:
            threshold: Failures in a row that mean that the service is down.
            submit: The step is a submit, not a poll.
            steps: How many steps of this service are under way.
            submits: How many of them are submits.
        """
        now = self.clock()
        if self.polls_from > now or (self.failures >= threshold and steps):
            return False
        return not submit or (self.submits_from <= now and not (self.rejections and submits))

    def record_result(self, threshold: int, error: Exception | None, *, submit: bool) -> None:
        """Take the outcome of a step into account."""
        if submit and isinstance(error, RateLimitError):
            self.rejections += 1
            pause = min(2.0 ** min(self.rejections, 10), _LONGEST_SUBMIT_PAUSE)
            self._hold("submits_from", max(pause, _retry_after(error)))
            return
        if submit and error is None:
            self.rejections = 0
        if not isinstance(error, APIConnectionError | APIStatusError | APIResponseError):
            self._note_recovery(threshold)
            return
        self.failures += 1
        over = self.failures - threshold  # one bad poll is a job's own matter
        pause = min(2.0 ** min(over, 10), _LONGEST_PROBE_PAUSE) if over >= 0 else 0.0
        self._hold("polls_from", max(pause, _retry_after(error)))
        if over == 0:
            log.info("%s: the service is down (%s); it is probed", self.alias, type(error).__name__)

    def _note_recovery(self, threshold: int) -> None:
        if self.failures >= threshold:
            log.info("%s: the service is back", self.alias)
        self.failures = 0

    def _hold(self, name: str, pause: float) -> None:
        setattr(self, name, max(getattr(self, name), self.clock() + pause))


def _retry_after(error: ImageLabsError) -> float:
    return min(error.retry_after or 0.0, _LONGEST_RETRY_AFTER)
