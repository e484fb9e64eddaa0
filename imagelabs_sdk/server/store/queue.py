"""Which queued jobs are rendered next, and which of them in one batch."""

import json
import sqlite3
from collections.abc import Callable

from ... import wire
from ...errors import InvalidRequestError
from ...models import ImageRequest
from ..engines.base import EngineConfig

__all__ = ["Queue", "Refuse"]

_SCAN = 256  # queued jobs that are compared for one batch

Refuse = Callable[[sqlite3.Row, str], None]
"""Called with a queued job that cannot be rendered, and why; it must end the job."""


class Queue:
    """The order of the queued jobs, and their requests, each decoded once.

    Not safe for threads: its store holds a lock around each call, and a transaction.
    """

    def __init__(self) -> None:
        self._requests: dict[str, ImageRequest] = {}  # by task id
        self._turns: dict[str, int] = {}  # by owner: when a job of theirs was taken last
        self._turn = 0

    def add(self, task_id: str, request: ImageRequest) -> None:
        """Keep the request of a job that is queued."""
        self._requests[task_id] = request

    def remove(self, task_id: str) -> None:
        """Forget the request of a job that is not queued any more."""
        self._requests.pop(task_id, None)

    def request(self, row: sqlite3.Row) -> ImageRequest:
        """Return the request of a queued job."""
        request = self._requests.get(row["id"])
        if request is None:
            request = self._requests[row["id"]] = wire.request_from_json(json.loads(row["request"]))
        return request

    def next_batch(
        self, db: sqlite3.Connection, engine: EngineConfig, refuse: Refuse
    ) -> list[sqlite3.Row]:
        """Return the rows of the jobs that are due next and may share a batch; they stay queued.

        The best priority comes first; of equal ones, whose owner has waited longest; then who
        submitted first. A job on which a worker has died is rendered alone, so that it cannot
        take others with it.
        """
        while (head := self._head(db)) is not None:
            if self._is_usable(head, engine, refuse):
                return [head] if head["deaths"] else self._mates(db, head, engine, refuse)
        return []

    def take(self, rows: list[sqlite3.Row]) -> None:
        """Take the jobs of a batch out; their owner's next one waits for those of others."""
        self._turn += 1
        self._turns[rows[0]["owner"]] = self._turn
        for row in rows:
            self.remove(row["id"])

    def _head(self, db: sqlite3.Connection) -> sqlite3.Row | None:
        first = db.execute(
            "SELECT owner, MIN(seq) AS seq FROM jobs WHERE state = 'queued' AND priority ="
            " (SELECT MIN(priority) FROM jobs WHERE state = 'queued') GROUP BY owner"
        ).fetchall()
        if not first:
            return None
        best = min(first, key=lambda row: (self._turns.get(row["owner"], 0), row["seq"]))
        row: sqlite3.Row = db.execute("SELECT * FROM jobs WHERE seq = ?", (best["seq"],)).fetchone()
        return row

    def _mates(
        self, db: sqlite3.Connection, head: sqlite3.Row, engine: EngineConfig, refuse: Refuse
    ) -> list[sqlite3.Row]:
        """Return the head and the queued jobs, in order, that may share its batch."""
        if engine.max_batch == 1:
            return [head]
        key = engine.batch_key
        wanted = key(self.request(head))
        others = db.execute(
            "SELECT * FROM jobs WHERE state = 'queued' AND deaths = 0 AND seq <> ?"
            " ORDER BY priority, seq LIMIT ?",
            (head["seq"], _SCAN),
        )
        mates = (
            row
            for row in others.fetchall()
            if self._is_usable(row, engine, refuse) and key(self.request(row)) == wanted
        )
        return [head, *(row for row, _ in zip(mates, range(engine.max_batch - 1), strict=False))]

    def _is_usable(self, row: sqlite3.Row, engine: EngineConfig, refuse: Refuse) -> bool:
        """Refuse a queued job that another version or another engine has accepted, and this cannot.

        It would be the next one for ever, and nothing behind it would be rendered.
        """
        try:
            engine.check(self.request(row))
        except ValueError as exc:  # InvalidRequestError is one, and so is what is no JSON
            reason = exc.message if isinstance(exc, InvalidRequestError) else "it cannot be read"
            refuse(row, reason)
            return False
        return True
