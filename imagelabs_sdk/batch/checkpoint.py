"""The checkpoint of a batch: each item's state on disk, so that nothing is bought twice.

The file holds JSON lines. The first line names the version and the service. Each further line is
an event of one item; an item's last event is its state:

============  ==============================================================================
``sending``   about to be submitted; as the last event: it may or may not have been accepted
``refused``   surely not accepted: it may be submitted again
``accepted``  with the job, as `Job.to_dict` describes it (its prompt included)
``done``      with the image's URL
``failed``    the service says that the job failed
============  ==============================================================================
"""

import hashlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .. import wire
from .._files import sync_folder
from .._redact import sanitize_text
from ..errors import InvalidRequestError
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

    It holds prompts, so it is created with mode 0600. It holds no cookie, header or proxy.
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
        self.path = Path(path)
        self._known: dict[int, dict[str, Any]] = {}
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        self._written = self._synced = 0
        self._file = open(self.path, "a+b", opener=_open_private)  # noqa: SIM115 - `close`
        try:
            self._lock()
            self._read(_dump({"version": _VERSION, "base_url": base_url}))
        except BaseException:
            self._file.close()
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
        if facts and facts.get("fingerprint") != fingerprint(request):
            raise self._refusal(
                f"item {index} (counted from 0) is not the one that had this place before; give "
                "the same items in the same order, new ones at the end"
            )
        return facts

    def append(self, index: int, event: str, facts: Mapping[str, Any]) -> None:
        """Write one event and wait until it is on disk.

        Raises:
            OSError: It cannot be written.
        """
        with self._writing:
            self._write(_dump({"index": index, "event": event, **facts}))
            self._written += 1
            mine = self._written
        with self._syncing:
            if self._synced < mine:  # otherwise another thread has synced this line as well
                so_far = self._written
                os.fsync(self._file.fileno())
                self._synced = so_far

    def close(self) -> None:
        """Close the file. May be called again."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def _lock(self) -> None:
        """Take the lock that the system releases when the process ends, however it ends."""
        try:
            _lock_exclusively(self._file)
        except OSError as exc:
            raise self._refusal("another run uses it; two would buy the same images") from exc

    def _read(self, header: bytes) -> None:
        """Read all lines; drop a last line that was not written completely."""
        self._file.seek(0)
        end, line = 0, b""
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            self._learn(number, line, header)
            end += len(line)
        if end == 0 and not header.startswith(line):
            raise self._refusal("it is no checkpoint")
        self._file.truncate(end)
        if end == 0:
            self._write(header)
            os.fsync(self._file.fileno())
            sync_folder(self.path.parent)

    def _learn(self, number: int, line: bytes, header: bytes) -> None:
        facts = _load(line)
        if number == 1:
            if line != header:
                raise self._refusal(_mismatch(facts))
            return
        needed = _NEEDED.get(str(facts.get("event")))
        if needed is None or not needed <= facts.keys():
            raise self._refusal(f"its line {number} is no line of a checkpoint")
        index = facts["index"]
        self._known[index] = {**self._known.get(index, {}), **facts}

    def _refusal(self, reason: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"checkpoint {sanitize_text(self.path)}: {reason}", field="checkpoint"
        )


def fingerprint(request: ImageRequest) -> str:
    """Return a digest that is equal for equal requests, also in another process."""
    plain = json.dumps(wire.request_to_json(request), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:32]


def _mismatch(header: Mapping[str, Any]) -> str:
    if header.get("version") == _VERSION and "base_url" in header:
        return f"it is of another service, {sanitize_text(header['base_url'])}"
    return "it is no checkpoint of this version"


def _dump(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, separators=(",", ":")).encode() + b"\n"


def _load(line: bytes) -> dict[str, Any]:
    """Return the object in a line; an empty one if the line holds none."""
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lock_exclusively(file: IO[bytes]) -> None:
    if sys.platform == "win32":  # pragma: no cover - by the system
        import msvcrt

        file.seek(2**40)  # beyond all content: a lock there blocks no reader
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
