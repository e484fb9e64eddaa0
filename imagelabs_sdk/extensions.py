"""What a service can do beyond the protocol, as it has announced in its answers.

Our own server names its extensions in the header ``imagelabs-features``. They are remembered for
each origin, in this process; an origin that does not announce them is never sent one. A submit that
an earlier run has sent with a key is an exception: it is sent again with it (`Endpoints.submit`).
"""

import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache

import attrs

from .transports.base import origin_of

__all__ = ["HEADER", "Features", "LongPoll", "known_features", "new_key", "remember_features"]

HEADER = "imagelabs-features"
_MAX_ORIGINS = 256
_LONGEST = 300  # seconds; an announcement of more is not believed


@attrs.frozen
class Features:
    """What an origin has announced.

    Attributes:
        long_poll: The longest that it parks a poll, in seconds; 0: it does not.
        idempotency_key: True if a submit may carry a key and be sent again.
        cancel: True if jobs can be cancelled.
        priority: True if a submit may say how urgent it is.
    """

    long_poll: int = 0
    idempotency_key: bool = False
    cancel: bool = False
    priority: bool = False

    @classmethod
    def parse(cls, text: str) -> "Features":
        """Read the header; words that mean nothing here are ignored."""
        words = {word.strip().lower() for word in text[:1000].split(",")}
        parked = [re.fullmatch(r"long-poll=(\d{1,6})", word) for word in words]
        return cls(
            long_poll=max((min(int(found[1]), _LONGEST) for found in parked if found), default=0),
            idempotency_key="idempotency-key" in words,
            cancel="cancel" in words,
            priority="priority" in words,
        )


@attrs.frozen
class LongPoll:
    """How a poll is to be parked.

    Attributes:
        wait: Seconds, 1 or more.
        etag: Of the last answer; empty: there was none.
        with_progress: True to be answered when nothing but the progress has changed.
    """

    wait: int
    etag: str = ""
    with_progress: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that ask for it."""
        prefer = f"wait={self.wait}" + (", progress" if self.with_progress else "")
        return {"prefer": prefer, **({"if-none-match": self.etag} if self.etag else {})}


_NONE = Features()
_origin_of = lru_cache(maxsize=_MAX_ORIGINS)(origin_of)  # asked for several times per job
_known: "OrderedDict[object, Features]" = OrderedDict()
_lock = threading.Lock()


def known_features(url: str) -> Features:
    """Return what the origin of `url` has announced in this process; nothing, if it has not."""
    with _lock:
        return _known.get(_origin_of(url), _NONE)


def remember_features(url: str, headers: Mapping[str, str]) -> None:
    """Remember what an answer of the service announces; one without the header takes it back."""
    origin, text = _origin_of(url), headers.get(HEADER, "")
    if not text and origin not in _known:
        return  # the common case, without a lock
    with _lock:
        _known[origin] = Features.parse(text)
        _known.move_to_end(origin)
        if len(_known) > _MAX_ORIGINS:
            _known.popitem(last=False)


def new_key() -> str:
    """Return an idempotency key, one for each call."""
    return str(uuid.uuid4())
