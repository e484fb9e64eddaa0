"""The jobs that the server has accepted: every change is a compare-and-set on one row.

::

    submit -> queued -> claim -> rendering -> finish -> done
                ^                  |  |
                +--- give_back ----+  +-> fail -> failed

`cancel` ends a job that is queued or renders; what its worker brings later is dropped. A job that
has ended never changes again; it is removed when it expires or when its bytes are needed.
"""

import contextlib
import json
import logging
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from ... import wire
from ...provenance import read_provenance
from ..engines.base import EngineConfig, Recovery, RenderJob
from ..options import StoreLimits
from .capacity import check_owner, check_room, evict, expire, reserved_bytes
from .database import Database, StoreError
from .images import EXTENSIONS, ImageFiles, Images, MemoryImages, image_name
from .queue import Queue
from .records import Claim, Counts, JobState, JobStatus, KeyReusedError, Submission

__all__ = ["JobStore"]

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Workers that may die on a job before it fails."""


MAYBE_MADE = "the server stopped while it was rendered; the image may have been made"
DIED_ON_IT = f"{MAX_DEATHS} workers died while they rendered it"


@attrs.define
class _Live:
    """What is known of a job in memory only, while it renders."""

    fraction: float = 0.0
    version: int = 0
    preview: Callable[[], bytes] | None = None


Listener = Callable[[str], None]
"""Called with a task id after its job has changed; returns at once."""


class JobStore:
    """Jobs and their images. Safe for threads, for one process.

    Progress and previews are kept in memory alone: after a restart a job has none.
    """

    def __init__(
        self,
        database: Database,
        images: Images,
        limits: StoreLimits | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Take over an open database and the images beside it.

        Args:
            database: Owned from now on.
            images: Those of its jobs.
            limits: What the store may hold.
            clock: Seconds since 1970 that never jump; None: the wall clock's time at the start,
                then counted by the monotonic clock, so that setting the clock removes nothing.
        """
        self.limits = limits or StoreLimits()
        self._database, self._images = database, images
        self._clock = clock or _anchored_clock(time.time, time.monotonic)
        self._lock = threading.Lock()
        self._live: dict[str, _Live] = {}
        self._queue = Queue()
        self._listeners: list[Listener] = []

    @classmethod
    def in_memory(
        cls, limits: StoreLimits | None = None, *, clock: Callable[[], float] | None = None
    ) -> "JobStore":
        """Return a store that is gone with its process."""
        return cls(Database.in_memory(), MemoryImages(), limits, clock=clock)

    @classmethod
    def open(
        cls,
        folder: Path,
        limits: StoreLimits | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> "JobStore":
        """Open the store in a folder, or create it; jobs that rendered are settled.

        Raises:
            StoreError: It cannot be used; the message names the file.
            OSError: The folder cannot be used.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        images = folder / "images"
        images.mkdir(mode=0o700, exist_ok=True)
        store = cls(Database.open(folder), ImageFiles(images), limits, clock=clock)
        try:
            store._settle()
        except sqlite3.Error as exc:
            store.close()
            raise StoreError(f"{folder}: cannot be used as a store now ({exc})") from exc
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the database. May be called again."""
        with self._lock:
            self._database.close()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each change of a job, in the thread that made it.

        Returns:
            A function that ends the subscription; it may be called again.
        """
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    # Submitting ---------------------------------------------------------------------------

    def submit(self, submission: Submission, *, max_in_flight: int | None = None) -> str:
        """Store a job and return its task id. It is on disk when this returns.

        A key that is known returns the task id that it got the first time.

        Args:
            submission: What to store.
            max_in_flight: Unfinished jobs that its owner may have, this one included; None: any.

        Raises:
            StoreFullError: There is no room now.
            KeyReusedError: The key is known, with another digest.
            InvalidRequestError: The image would not fit into the store, ever.
        """
        body = json.dumps(wire.request_to_json(submission.request), separators=(",", ":"))
        task_id = secrets.token_hex(16)  # no dash in front that a shell would misread
        self.expire()
        with self._lock, self._database.transaction() as db:
            known = self._known(db, submission)
            if known is not None:
                return known
            reserved = reserved_bytes(submission.request)
            check_owner(db, submission.owner, max_in_flight)
            check_room(db, self.limits, len(body), reserved)
            db.execute(
                "INSERT INTO jobs (id, handle, owner, priority, request, request_bytes, reserved,"
                " state, submitted_at, idempotency_key, digest)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    task_id,
                    str(uuid.uuid4()),
                    submission.owner,
                    submission.priority,
                    body,
                    len(body),
                    reserved,
                    JobState.QUEUED.value,
                    self._clock(),
                    submission.key,
                    submission.digest,
                ),
            )
            self._queue.add(task_id, submission.request)
        self._changed(task_id)
        return task_id

    def _known(self, db: sqlite3.Connection, submission: Submission) -> str | None:
        if submission.key is None:
            return None
        row = db.execute(
            "SELECT id, digest FROM jobs WHERE owner = ? AND idempotency_key = ?",
            (submission.owner, submission.key),
        ).fetchone()
        if row is None:
            return None
        if row["digest"] != submission.digest:
            raise KeyReusedError
        return str(row["id"])

    # Claiming -----------------------------------------------------------------------------

    def claim(self, engine: EngineConfig) -> Claim:
        """Take the jobs that are due next and may share a batch; see `Queue.next_batch`."""
        refused: list[str] = []
        claim = self._claim(engine, refused)
        for task_id in [*refused, *(job.id for job in claim.jobs)]:
            self._changed(task_id)
        return claim

    def _claim(self, engine: EngineConfig, refused: list[str]) -> Claim:
        """Return the claim; add the task ids of queued jobs that failed on the way to `refused`."""
        with self._lock, self._database.transaction() as db:

            def refuse(row: sqlite3.Row, reason: str) -> None:
                self._refuse(db, row["id"], reason)
                refused.append(row["id"])

            rows = self._queue.next_batch(db, engine, refuse)
            if not rows:
                return Claim()
            waits = [self._clock() - row["submitted_at"] for row in rows]
            could_grow = len(rows) < engine.max_batch and not rows[0]["deaths"]
            if could_grow and waits[0] < engine.batch_wait:
                return Claim(retry_in=engine.batch_wait - waits[0])
            jobs = [self._claim_one(db, row, engine) for row in rows]
            self._queue.take(rows)
            self._live.update((job.id, _Live()) for job in jobs)
        return Claim(jobs, None, waits)

    def _refuse(self, db: sqlite3.Connection, task_id: str, reason: str) -> None:
        db.execute(
            "UPDATE jobs SET state = 'failed', ended_at = ?, request = '', detail = ?"
            " WHERE id = ? AND state = 'queued'",
            (self._clock(), f"the request is refused by now: {reason}", task_id),
        )
        self._queue.remove(task_id)

    def _claim_one(
        self, db: sqlite3.Connection, row: sqlite3.Row, engine: EngineConfig
    ) -> RenderJob:
        job = RenderJob(row["id"], self._queue.request(row), row["handle"], row["attempt"] + 1)
        db.execute(
            "UPDATE jobs SET state = 'rendering', attempt = ?, started_at = ?, engine = ?,"
            " recovery = ? WHERE id = ? AND state = 'queued'",
            (job.attempt, self._clock(), engine.name, engine.recovery.value, job.id),
        )
        return job

    # Rendering ----------------------------------------------------------------------------

    def progress(
        self, job: RenderJob, fraction: float, preview: Callable[[], bytes] | None = None
    ) -> None:
        """Note how much of a claimed job is rendered; None: there is no newer preview."""
        with self._lock:
            live = self._live.get(job.id)
            if live is None:
                return
            live.fraction = min(max(fraction, live.fraction), 1.0)
            live.preview = preview or live.preview
            live.version += 1
        self._changed(job.id)

    def finish(self, job: RenderJob, data: bytes, media_type: str, info: Mapping[str, Any]) -> bool:
        """Store a rendered image; return False if the job is not this attempt's any more.

        The image is written and synced before its job says done.

        Raises:
            OSError, sqlite3.Error: It could not be written, such as on a full disk; the job
                renders still, and this may be tried again.
        """
        name = image_name(job.id, job.attempt, media_type)
        self._images.write(name, data)
        with self._lock:
            with self._database.transaction() as db:
                done = self._end(
                    db,
                    job.id,
                    job.attempt,
                    JobState.DONE,
                    media_type=media_type,
                    size=len(data),
                    info=json.dumps(dict(info)),
                )
                removed = evict(db, self.limits) if done else []
            self._delete([*removed, *([] if done else [name])])
        if done:
            self._changed(job.id)
        return done

    def fail(self, job: RenderJob, message: str) -> bool:
        """End a claimed job without an image; return False if it is not this attempt's."""
        with self._lock, self._database.transaction() as db:
            done = self._end(db, job.id, job.attempt, JobState.FAILED, detail=message)
        if done:
            self._changed(job.id)
        return done

    def _end(
        self, db: sqlite3.Connection, task_id: str, attempt: int, state: JobState, **columns: Any
    ) -> bool:
        columns = {"state": state.value, "ended_at": self._clock(), "request": "", **columns}
        names = ", ".join(f"{name} = :{name}" for name in columns)
        changed = db.execute(
            f"UPDATE jobs SET {names}"  # noqa: S608 - names of columns, all ours
            " WHERE id = :id AND attempt = :attempt AND state = 'rendering'",
            {**columns, "id": task_id, "attempt": attempt},
        ).rowcount
        if changed:
            self._live.pop(task_id, None)
        return changed == 1

    def give_back(self, job: RenderJob, *, died: bool) -> None:
        """Return a claimed job that was not finished.

        Args:
            job: As it was claimed.
            died: True if its worker died on it; False if the worker was stopped on purpose.
        """
        with self._lock, self._database.transaction() as db:
            row = db.execute(
                "SELECT * FROM jobs WHERE id = ? AND attempt = ? AND state = 'rendering'",
                (job.id, job.attempt),
            ).fetchone()
            if row is not None:
                self._return(db, row, deaths=row["deaths"] + died)
        self._changed(job.id)

    def _return(self, db: sqlite3.Connection, row: sqlite3.Row, deaths: int) -> None:
        """Queue a job again, or end it: by its engine's `Recovery` and by how many died on it."""
        task_id, attempt = row["id"], row["attempt"]
        if row["recovery"] == Recovery.NEITHER.value:
            self._end(db, task_id, attempt, JobState.FAILED, detail=MAYBE_MADE)
        elif deaths >= MAX_DEATHS:
            self._end(db, task_id, attempt, JobState.FAILED, detail=DIED_ON_IT)
        else:
            db.execute(
                "UPDATE jobs SET state = 'queued', deaths = ?, started_at = NULL WHERE id = ?",
                (deaths, task_id),
            )
            self._live.pop(task_id, None)

    def is_wanted(self, job: RenderJob) -> bool:
        """Return False if a claimed job was cancelled, or belongs to a later attempt."""
        with self._lock:
            row = self._row(job.id)
            return row is not None and (row["state"], row["attempt"]) == ("rendering", job.attempt)

    def adopt(self, engine: EngineConfig) -> None:
        """Fail the jobs that another engine began and only that one could resume."""
        with self._lock, self._database.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'failed', ended_at = ?, request = '', detail = ?"
                " WHERE state = 'queued' AND attempt > 0 AND recovery = ? AND engine <> ?",
                (self._clock(), MAYBE_MADE, Recovery.RESUMABLE.value, engine.name),
            )

    # Asking -------------------------------------------------------------------------------

    def status(self, task_id: str) -> JobStatus | None:
        """Return how a job stands; None if it is not known (any more)."""
        with self._lock:
            row = self._row(task_id)
            if row is None:
                return None
            live = self._live.get(task_id, _Live())
            state = JobState(row["state"])
            return JobStatus(
                id=task_id,
                state=state,
                owner=row["owner"],
                detail=row["detail"],
                attempt=row["attempt"],
                position=self._position(row) if state is JobState.QUEUED else None,
                fraction=1.0 if state is JobState.DONE else live.fraction,
                version=live.version,
                has_preview=live.preview is not None,
                media_type=row["media_type"] if state is JobState.DONE else None,
                size=row["size"],
                info=None if row["info"] is None else json.loads(row["info"]),
            )

    def _row(self, task_id: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._database.connection.execute(
            "SELECT seq, owner, state, detail, attempt, priority, media_type, size, info, ended_at"
            " FROM jobs WHERE id = ?",
            (task_id,),
        ).fetchone()
        if row is None or self._is_expired(row["ended_at"]):
            return None
        return row

    def _position(self, row: sqlite3.Row) -> int:
        ahead: int = self._database.connection.execute(
            "SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND (priority, seq) < (?, ?)",
            (row["priority"], row["seq"]),
        ).fetchone()[0]
        return 1 + ahead

    def preview(self, task_id: str) -> bytes | None:
        """Return the latest preview of a job that renders; None if there is none."""
        with self._lock:
            live = self._live.get(task_id)
            preview = live.preview if live else None
        return preview() if preview else None

    def image(self, status: JobStatus, start: int = 0, count: int = -1) -> bytes | None:
        """Return the image of a job that is done, or a piece; None if it is not there any more.

        Args:
            status: Of the job.
            start: Where the piece begins.
            count: How many bytes it has at most; -1: all that follow.
        """
        if status.media_type is None:
            return None
        name = image_name(status.id, status.attempt, status.media_type)
        return self._images.read(name, start, count)

    def mark_fetched(self, task_id: str) -> None:
        """Note that a job's image has been sent as a whole: from now on it may make room.

        On a full disk it is not noted, and the image is kept for longer.
        """
        try:
            with self._lock, self._database.transaction() as db:
                db.execute(
                    "UPDATE jobs SET fetched = 1"
                    " WHERE id = ? AND ended_at IS NOT NULL AND NOT fetched",
                    (task_id,),
                )
        except sqlite3.Error as exc:
            log.error("it cannot be noted that an image was fetched: %s", exc)

    def cancel(self, task_id: str) -> bool | None:
        """Cancel a job that has not ended.

        Returns:
            True if it is cancelled, now or before; False if it has ended otherwise; None if it is
            not known.
        """
        with self._lock:
            with self._database.transaction() as db:
                changed = db.execute(
                    "UPDATE jobs SET state = 'cancelled', ended_at = ?, request = ''"
                    " WHERE id = ? AND ended_at IS NULL",
                    (self._clock(), task_id),
                ).rowcount
            self._queue.remove(task_id)
            self._live.pop(task_id, None)
            row = self._row(task_id)
        if changed:
            self._changed(task_id)
        return None if row is None else row["state"] == "cancelled"

    def counts(self) -> Counts:
        """Return what the store holds now."""
        with self._lock:
            db = self._database.connection
            queued, rendering, first = db.execute(
                "SELECT COUNT(*) FILTER (WHERE state = 'queued'),"
                " COUNT(*) FILTER (WHERE state = 'rendering'),"
                " MIN(submitted_at) FILTER (WHERE state = 'queued')"
                " FROM jobs WHERE ended_at IS NULL"
            ).fetchone()
            kept, size = db.execute("SELECT kept, kept_bytes FROM totals").fetchone()
            oldest = 0.0 if first is None else max(0.0, self._clock() - first)
            return Counts(queued, rendering, kept, size, oldest)

    # Keeping within the limits --------------------------------------------------------------

    def expire(self) -> None:
        """Forget jobs that ended more than `keep` seconds ago."""
        with self._lock:
            with self._database.transaction() as db:
                names = expire(db, self._clock() - self.limits.keep)
            self._delete(names)

    def _is_expired(self, ended_at: float | None) -> bool:
        return ended_at is not None and ended_at + self.limits.keep <= self._clock()

    def _delete(self, names: Iterable[str]) -> None:
        """Remove images whose rows are gone; what cannot be removed is swept at the next start."""
        for name in names:
            with contextlib.suppress(OSError):
                self._images.delete(name)

    # After a crash --------------------------------------------------------------------------

    def _settle(self) -> None:
        """Return what was rendered when the last server stopped, and compare rows with images.

        The end of a server is no fault of the jobs that it rendered: it counts no death. Times
        that lie ahead, because the clock has been set back since, are now.
        """
        with self._database.transaction() as db:
            db.execute(
                "UPDATE jobs SET submitted_at = MIN(submitted_at, :now),"
                " ended_at = MIN(ended_at, :now) WHERE submitted_at > :now OR ended_at > :now",
                {"now": self._clock()},
            )
            for row in db.execute("SELECT * FROM jobs WHERE state = 'rendering'").fetchall():
                if not self._finish_written(db, row):
                    self._return(db, row, deaths=row["deaths"])
            names = set()
            for row in db.execute("SELECT * FROM jobs WHERE state = 'done'").fetchall():
                name = image_name(row["id"], row["attempt"], row["media_type"])
                if self._images.size(name) == row["size"]:
                    names.add(name)
                    continue
                db.execute(
                    "UPDATE jobs SET state = 'failed', size = 0, detail = ? WHERE seq = ?",
                    ("its image is missing from the store", row["seq"]),
                )
        self._images.sweep(names)

    def _finish_written(self, db: sqlite3.Connection, row: sqlite3.Row) -> bool:
        """End a job whose image had been written when the server stopped; False: none had been.

        The file says how it was made, and it is whole: it got its name after it was synced.
        """
        for media_type in EXTENSIONS:
            data = self._images.read(image_name(row["id"], row["attempt"], media_type))
            if data is not None:
                found = read_provenance(data)
                info = json.dumps(dict(found.info)) if found else None
                return self._end(
                    db,
                    row["id"],
                    row["attempt"],
                    JobState.DONE,
                    media_type=media_type,
                    size=len(data),
                    info=info,
                )
        return False

    def _changed(self, task_id: str) -> None:
        for listener in tuple(self._listeners):
            listener(task_id)


def _anchored_clock(
    wall: Callable[[], float], monotonic: Callable[[], float]
) -> Callable[[], float]:
    begin = wall() - monotonic()
    return lambda: begin + monotonic()
