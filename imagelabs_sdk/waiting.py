"""The state of one wait: which of its polls the service may park, and whether the job moves."""

import math

from .context import ClientContext
from .extensions import LongPoll
from .models import Progress

__all__ = ["Parking", "movement"]

_MAX_FAILURES = 2  # parked polls in a row that fail, after which a wait polls plainly
_ANSWER_TIME = 2.0  # seconds of the request timeout that are left for the answer itself
_AT_ONCE = 0.2  # seconds


def movement(progress: Progress | None) -> object:
    """Return what has to change within `stall_timeout`."""
    return progress and (progress.state, progress.status, progress.fraction)


class Parking:
    """Decides which polls of one wait the service may park.

    Only a service that has announced it, only if the polling strategy allows it, and no longer
    after two parked polls in a row have failed: something on the way may cut them.
    """

    def __init__(self, context: ClientContext, with_progress: bool) -> None:
        self._context, self._with_progress = context, with_progress
        self._allowed = bool(getattr(context.polling, "long_polls", False))
        self._etag, self._failures = "", 0
        self._seen: object = None
        self._refused = False

    @property
    def is_open(self) -> bool:
        """Return True if the next poll may be sent at once, to be parked."""
        if not self._allowed or self._refused or self._failures >= _MAX_FAILURES:
            return False
        return self._context.endpoints.features.long_poll > 0

    def next_poll(self, left: float) -> LongPoll | None:
        """Return how the next poll is parked, with `left` seconds to wait; None: a plain one."""
        if not self.is_open:
            self._refused = False
            return None
        announced = self._context.endpoints.features.long_poll
        most = self._context.settings.request_timeout - _ANSWER_TIME
        wait = math.floor(min(announced, most, left))
        if wait < 1:
            return None
        return LongPoll(wait, self._etag, self._with_progress)

    def record_answer(self, progress: Progress, etag: str, seconds: float) -> None:
        """Note an answer. One that came at once and says nothing new was not parked."""
        news = movement(progress)
        at_once = seconds < _AT_ONCE and news == self._seen
        self._refused = not etag or at_once
        self._etag, self._seen, self._failures = etag, news, 0

    def record_failure(self) -> None:
        """Note that a parked poll has failed."""
        self._failures += 1
