"""The checkpoint of a batch: each item's state on disk, so that nothing is bought twice.

The file holds JSON lines. The first line names the version and the service. Each further line is
an event of one item; an item's last event is its state:

============  ==============================================================================
``sending``   about to be submitted; as the last event: it may or may not have been accepted.
              With the idempotency key and the seeds, if it is sent with a key
``refused``   surely not accepted: it may be submitted again
``accepted``  with the job, as `Job.to_dict` describes it (its prompt included)
``done``      with the image's URL
``failed``    the service says that the job failed
``saved``     the caller has saved the image
============  ==============================================================================
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs

from .. import urls, wire
from .._journal import Journal
from ..errors import InvalidRequestError
from ..images import Timings
from ..models import LARGEST_INT, ImageRequest
from ..validation import count, invalid_secret, number, text

__all__ = ["Checkpoint"]

_VERSION = 1
_TIMINGS = len(attrs.fields(Timings))
_NEEDED = {
    "sending": {"index", "fingerprint"},
    "refused": {"index"},
    "accepted": {"index", "job"},
    "done": {"index", "url", "timings"},
    "failed": {"index", "message", "status", "waited"},
    "saved": {"index"},
}
"""The fields that a line of each event must have."""

_AFTER: dict[str, set[str | None]] = {
    "sending": {None, "sending", "refused"},
    "refused": {"sending"},
    "accepted": {"sending"},
    "done": {"accepted"},
    "failed": {"accepted"},
    "saved": {"done", "saved"},
}
"""The events that each event of an item may follow; `None`: it is the first."""


class Checkpoint:
    """A checkpoint file, open for appending. For one process at a time; thread-safe.

    It holds prompts, so its mode is 0600. It holds no cookie, header or proxy.
    """

    def __init__(self, path: str | os.PathLike[str], base_url: str) -> None:
        """Open the file, or create it, and read its events.

        Args:
            path: Its folder must exist.
            base_url: The service; another one does not know these jobs.

        Raises:
            InvalidRequestError: It is not a checkpoint of this service, it is in use, or a line
                of it is not as `append` writes it: an item would be lost, or bought again.
            OSError: It cannot be read or written.
        """
        header = {"version": _VERSION, "base_url": base_url}
        self._journal = Journal(path, header, field="checkpoint")
        self.path = self._journal.path
        self._known: dict[int, dict[str, Any]] = {}
        try:
            for number, fields in self._journal.read():
                self._learn(number, fields)
        except BaseException:
            self.close()
            raise

    def recall(self, index: int, request: ImageRequest) -> Mapping[str, Any]:
        """Return the merged fields of an item's events, with the last ``event``; empty: none.

        Call it once per item: the fields are then dropped from memory.

        Args:
            index: The item's position.
            request: As the caller gave it, without seeds picked by the client.

        Raises:
            InvalidRequestError: The earlier run had another item at this position.
        """
        facts = self._known.pop(index, {})
        if facts and facts.get("fingerprint") != wire.fingerprint(request):
            raise self._journal.refusal(
                f"item {index} (counted from 0) is not the one that had this place before; give "
                "the same items in the same order, new ones at the end"
            )
        return facts

    def append(self, index: int, event: str, facts: Mapping[str, Any]) -> None:
        """Write one event and wait until it is on disk.

        Raises:
            OSError: It cannot be written; or, before a submit, the file was deleted or replaced,
                so that a later run would not know of what is bought now.
        """
        if event == "sending":
            self._journal.check_in_place()
        self._journal.append({"index": index, "event": event, **facts})

    def refusal(self, reason: str) -> InvalidRequestError:
        """Return the error for a checkpoint that cannot be used."""
        return self._journal.refusal(reason)

    def close(self) -> None:
        """Close the file, which releases the lock. May be called again."""
        self._journal.close()

    def _learn(self, number: int, fields: dict[str, Any]) -> None:
        event = str(fields.get("event"))
        needed = _NEEDED.get(event)
        if needed is None or not needed <= fields.keys():
            raise self.refusal(f"its line {number} is not a line of a checkpoint")
        try:
            for name, check in _CHECKS.items():
                if name in fields:
                    check(name, fields[name])
        except ValueError as exc:
            raise self.refusal(f"its line {number} is not a line of a checkpoint: {exc}") from exc
        index = fields["index"]
        known = self._known.get(index, {})
        before = known.get("event")
        if before not in _AFTER[event]:
            raise self.refusal(
                f"its line {number} says {event!r} of item {index} (counted from 0), after "
                f"{repr(before) if before else 'nothing'}: a line before it is missing or changed"
            )
        self._known[index] = {**known, **fields}


def _check_keyed(name: str, value: object) -> None:
    if value is None:
        return
    _check_type(name, value, dict)
    assert isinstance(value, dict)
    _check_type("key", value.get("key"), str)
    for seed in ("seed", "subseed"):
        count(seed, value.get(seed), 0, LARGEST_INT)


def _check_timings(name: str, value: object) -> None:
    if not isinstance(value, list) or len(value) != _TIMINGS:
        raise invalid_secret(name, f"must be {_TIMINGS} numbers")
    for each in value:
        _check_seconds(name, each)


def _check_seconds(name: str, value: object) -> None:
    number(name, value, -LARGEST_INT, LARGEST_INT)


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise invalid_secret(name, f"must not be {type(value).__name__}")


def _check_url(name: str, value: object) -> None:
    urls.resolve(text(name, value), "")


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "index": partial(count, low=0, high=LARGEST_INT),
    "keyed": _check_keyed,
    "job": partial(_check_type, kind=dict),
    "url": _check_url,
    "timings": _check_timings,
    "message": partial(_check_type, kind=str),
    "status": partial(_check_type, kind=str),
    "waited": _check_seconds,
}
"""The check of each field that a line may have; it raises `ValueError`."""
