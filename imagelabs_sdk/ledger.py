"""The ledger: a file with each job that a client has submitted, so that kill -9 loses no id.

The file holds JSON lines, written as a checkpoint's are. The first line names the version. Each
further line is an event. The events of a submit share a key, and the ends of a job its task id:

============  ==============================================================================
``sending``   about to be submitted; as the last event: it may or may not have been accepted
``refused``   surely not accepted
``accepted``  with the task id
``done``      the service says that the image is there
``failed``    the service says that the job failed, or does not know it any more
============  ==============================================================================
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from . import wire
from ._journal import Journal
from ._redact import sanitize_text
from .errors import ImageLabsError, InvalidRequestError
from .models import ImageRequest

__all__ = ["Ledger", "LedgerEntry"]

log = logging.getLogger(__name__)

_HEADER = {"version": 1, "kind": "ledger"}
_LOCK_TIMEOUT = 10.0  # seconds; another process holds the lock for one line alone


@attrs.frozen
class LedgerEntry:
    """What a ledger knows of one job.

    Attributes:
        state: The last event: ``"sending"``, ``"refused"``, ``"accepted"``, ``"done"``,
            ``"failed"``. ``"sending"`` means that nobody knows whether it was accepted.
        base_url: The service.
        task_id: The service's name of the job; `None` until it is accepted.
        submitted_at: In seconds since 1970; 0: the submit is not in this ledger.
        fingerprint: Equal for equal requests with equal seeds.
        request: `None` unless the ledger keeps prompts.
        message: Why it failed or was refused; else empty.
        metadata: The labels that were given with the job.
    """

    state: str
    base_url: str
    task_id: str | None
    submitted_at: float
    fingerprint: str = ""
    request: ImageRequest | None = attrs.field(default=None, repr=False)
    message: str = ""
    metadata: Mapping[str, Any] = attrs.field(factory=dict, repr=False, hash=False)

    @property
    def unfinished(self) -> bool:
        """True if the job may have been bought and its end is not known."""
        return self.state in ("sending", "accepted")

    def to_dict(self) -> dict[str, Any]:
        """Return the job for `ImageLabs.job_from_dict`.

        Raises:
            InvalidRequestError: No task id is known.
        """
        if self.task_id is None:
            raise InvalidRequestError("task_id: none is known of this job", field="task_id")
        return {
            "version": 1,
            "task_id": self.task_id,
            "base_url": self.base_url,
            "submitted_at": self.submitted_at,
            "request": self.request and wire.request_to_json(self.request),
            "metadata": dict(self.metadata),
        }


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - a symlink may be changed later


@attrs.define
class Submit:
    """One submit in progress; `task_id` is set when it was accepted."""

    task_id: str = ""


@attrs.frozen
class Ledger:
    """A ledger file. It is open only while a line is written, so any number of processes share it.

    It holds no cookie, header or proxy, and its mode is 0600. It may be moved away at any time.

    Attributes:
        path: Its folder must exist; the file is created with the first line.
        prompts: True: requests are kept with their prompts; False: only their fingerprints.
    """

    path: Path = attrs.field(converter=_absolute)
    prompts: bool = attrs.field(default=False, kw_only=True)

    def entries(self) -> list[LedgerEntry]:
        """Return all jobs, the unfinished ones first, each part in the order of the submits.

        Raises:
            InvalidRequestError: The file is not a ledger.
            OSError: It cannot be read.
        """
        if not self.path.exists():
            return []
        jobs: dict[str, dict[str, Any]] = {}
        keys: dict[str, str] = {}  # of accepted jobs, by task id
        journal = self._open()
        try:
            for _, fields in journal.read(strict=False):
                task_id = fields.get("task_id")
                key = fields.get("key") or keys.get(str(task_id)) or str(task_id)
                if isinstance(task_id, str):
                    keys[task_id] = key
                jobs[key] = {**jobs.get(key, {}), "message": "", **fields}
        finally:
            journal.close()
        found = [_entry(fields) for fields in jobs.values()]
        return sorted(found, key=lambda entry: (not entry.unfinished, entry.submitted_at))

    @contextmanager
    def submitting(
        self,
        request: ImageRequest,
        base_url: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
    ) -> Iterator["Submit"]:
        """Record that a request is about to be sent, and at the end of the block what came of it.

        The block sets `task_id` of what it is given.

        Args:
            request: What is asked for.
            base_url: The service.
            metadata: The labels of the job.
            key: Equal for submits of which at most one makes a job; `None`: it is the only one.

        Raises:
            InvalidRequestError: The file is not a ledger.
            OSError: It cannot be written: then nothing must be bought.
        """
        key, submit = key or uuid.uuid4().hex, Submit()
        kept: dict[str, Any] = {"metadata": dict(metadata)} if metadata else {}
        if self.prompts:
            kept["request"] = wire.request_to_json(request)
        fields = {"base_url": base_url, "fingerprint": wire.fingerprint(request), **kept}
        self._write("sending", {"key": key, "sent_at": time.time(), **fields})
        try:
            yield submit
        except ImageLabsError as error:
            if error.delivered != "maybe":
                self._try("refused", {"key": key, "message": error.message})
            raise
        self._try("accepted", {"key": key, "task_id": submit.task_id})

    def ended(self, task_id: str, base_url: str, message: str = "") -> None:
        """Record the end of a job; `message` says why it failed; empty: it did not.

        A ledger that cannot be written now is logged: the job is more important.
        """
        fields = {"task_id": task_id, "base_url": base_url}
        if message:
            self._try("failed", {**fields, "message": message})
        else:
            self._try("done", fields)

    def _try(self, event: str, fields: Mapping[str, Any]) -> None:
        try:
            self._write(event, fields)
        except BaseException as error:
            task = sanitize_text(fields.get("task_id", "without an id"), wire.MAX_TASK_ID)
            log.error("ledger not written, %s; task %s: %s", event, task, error or type(error))
            if not isinstance(error, OSError | InvalidRequestError):
                raise  # Ctrl-C

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        journal = self._open()
        try:
            journal.seek_end()
            journal.append({"event": event, **fields})
        finally:
            journal.close()

    def _open(self) -> Journal:
        return Journal(self.path, _HEADER, field="ledger", lock_timeout=_LOCK_TIMEOUT)


def _entry(fields: Mapping[str, Any]) -> LedgerEntry:
    task_id, at, request = fields.get("task_id"), fields.get("sent_at"), fields.get("request")
    metadata = fields.get("metadata")
    return LedgerEntry(
        state=str(fields.get("event")),
        base_url=str(fields.get("base_url", "")),
        task_id=task_id if isinstance(task_id, str) else None,
        submitted_at=at if isinstance(at, float) else 0.0,
        fingerprint=str(fields.get("fingerprint", "")),
        request=wire.request_from_json(request) if isinstance(request, Mapping) else None,
        message=str(fields.get("message", "")),
        metadata=metadata if isinstance(metadata, dict) else {},
    )
