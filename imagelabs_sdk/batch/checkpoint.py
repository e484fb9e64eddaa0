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
============  ==============================================================================
"""

import os
from collections.abc import Mapping
from typing import Any

from .. import wire
from .._journal import Journal
from ..models import ImageRequest

__all__ = ["Checkpoint"]

_VERSION = 1
_NEEDED = {
    "sending": {"index", "fingerprint"},
    "refused": {"index"},
    "accepted": {"index", "job"},
    "done": {"index", "url", "timings"},
    "failed": {"index", "message", "status", "waited"},
}
"""The fields that a line of each event must have."""


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
            InvalidRequestError: It is not a checkpoint of this service, or it is in use.
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

    def close(self) -> None:
        """Close the file, which releases the lock. May be called again."""
        self._journal.close()

    def _learn(self, number: int, fields: dict[str, Any]) -> None:
        needed = _NEEDED.get(str(fields.get("event")))
        if needed is None or not needed <= fields.keys():
            raise self._journal.refusal(f"its line {number} is not a line of a checkpoint")
        index = fields["index"]
        self._known[index] = {**self._known.get(index, {}), **fields}
