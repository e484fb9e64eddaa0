"""Open the store's database: lock, ownership, integrity, schema."""

import contextlib
import os
import sqlite3
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import attrs

__all__ = ["MIGRATIONS", "Database", "StoreError"]

_APPLICATION_ID = 0x494D4C53  # "IMLS": this file is ours
MIGRATIONS = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        handle TEXT NOT NULL,
        owner TEXT NOT NULL,              -- name of the token that submitted it; '': none
        priority INTEGER NOT NULL,        -- 0 first, 7 last
        request TEXT NOT NULL,            -- JSON; '' once the job has ended
        request_bytes INTEGER NOT NULL,
        reserved INTEGER NOT NULL,        -- bytes that its image may need
        state TEXT NOT NULL,
        detail TEXT NOT NULL DEFAULT '',  -- why it failed
        attempt INTEGER NOT NULL DEFAULT 0,
        deaths INTEGER NOT NULL DEFAULT 0,
        engine TEXT NOT NULL DEFAULT '',
        recovery TEXT NOT NULL DEFAULT '',
        submitted_at REAL NOT NULL,       -- seconds since 1970, like the other two
        started_at REAL,
        ended_at REAL,
        media_type TEXT,
        size INTEGER NOT NULL DEFAULT 0,  -- bytes of the image
        info TEXT,
        fetched INTEGER NOT NULL DEFAULT 0,
        idempotency_key TEXT,
        digest TEXT
    );
    CREATE UNIQUE INDEX jobs_key ON jobs (owner, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE INDEX jobs_queue ON jobs (state, priority, seq);
    CREATE INDEX jobs_open ON jobs (owner, request_bytes, reserved) WHERE ended_at IS NULL;
    CREATE INDEX jobs_kept ON jobs (fetched, ended_at, size) WHERE ended_at IS NOT NULL;
    """,
    """
    DROP INDEX jobs_kept;  -- with a day's jobs, each submit read all of it
    CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL;
    CREATE INDEX jobs_fetched ON jobs (ended_at, seq, size) WHERE fetched = 1;
    CREATE TABLE totals (                 -- one row: of the jobs that have ended
        kept INTEGER NOT NULL,
        kept_bytes INTEGER NOT NULL,
        fetched INTEGER NOT NULL,         -- of these
        fetched_bytes INTEGER NOT NULL
    );
    INSERT INTO totals SELECT
        COUNT(*),
        COALESCE(SUM(size), 0),
        COUNT(*) FILTER (WHERE fetched = 1),
        COALESCE(SUM(size) FILTER (WHERE fetched = 1), 0)
        FROM jobs WHERE ended_at IS NOT NULL;
    CREATE TRIGGER jobs_changed AFTER UPDATE OF ended_at, size, fetched ON jobs BEGIN
        UPDATE totals SET
            kept = kept + (NEW.ended_at IS NOT NULL) - (OLD.ended_at IS NOT NULL),
            kept_bytes = kept_bytes
                + NEW.size * (NEW.ended_at IS NOT NULL) - OLD.size * (OLD.ended_at IS NOT NULL),
            fetched = fetched + NEW.fetched - OLD.fetched,
            fetched_bytes = fetched_bytes + NEW.size * NEW.fetched - OLD.size * OLD.fetched;
    END;
    CREATE TRIGGER jobs_removed AFTER DELETE ON jobs WHEN OLD.ended_at IS NOT NULL BEGIN
        UPDATE totals SET
            kept = kept - 1,
            kept_bytes = kept_bytes - OLD.size,
            fetched = fetched - OLD.fetched,
            fetched_bytes = fetched_bytes - OLD.size * OLD.fetched;
    END;
    """,
)


class StoreError(Exception):
    """The store cannot be used; the message names the file and says what to do."""


@attrs.frozen
class Database:
    """One connection to the store's database.

    Attributes:
        connection: In autocommit mode; may be used by any thread, by one at a time.
        lock: The open file whose lock keeps a second server out; None: in memory.
    """

    connection: sqlite3.Connection
    lock: IO[bytes] | None = None

    @classmethod
    def in_memory(cls) -> "Database":
        """Return a database that is gone with its process, and closed when nothing refers to it."""
        connection = _connect(":memory:")
        _migrate(connection)
        database = cls(connection)
        weakref.finalize(database, connection.close)  # an embedded client need not be closed
        return database

    @classmethod
    def open(cls, folder: Path) -> "Database":
        """Open or create ``jobs.db`` in a folder, for this process alone.

        Raises:
            StoreError: Another server uses it, or the file is torn, foreign or of a newer
                version. It is left as it is.
            OSError: The folder cannot be used.
        """
        lock = _lock(folder / "lock")
        try:
            return cls(_open_file(folder / "jobs.db"), lock)
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        """Close the connection and release the lock. May be called again."""
        self.connection.close()
        if self.lock is not None:
            self.lock.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what the block does, all of it or, after an exception, nothing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self.connection.execute("ROLLBACK")
            raise


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def _open_file(path: Path) -> sqlite3.Connection:
    with open(path, "ab", opener=_private):
        pass  # created with the right mode, which SQLite copies to its other files
    connection = _connect(str(path))
    try:
        _check(connection, path)
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _migrate(connection)
    except sqlite3.DatabaseError as exc:
        connection.close()
        raise StoreError(
            f"{path}: cannot be used as a store ({exc}): restore it from a backup, or move it "
            "away to begin an empty store"
        ) from exc
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is not ours, is newer than this code, or is damaged."""
    empty = not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if not empty and _pragma(connection, "application_id") != _APPLICATION_ID:
        raise StoreError(f"{path}: a database of another program; choose another folder")
    version = _pragma(connection, "user_version")
    if version > len(MIGRATIONS):
        raise StoreError(f"{path}: written by a newer version of imagelabs_sdk; upgrade to use it")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema to the newest version, each step in a transaction of its own."""
    for version in range(_pragma(connection, "user_version"), len(MIGRATIONS)):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]}"
            f"PRAGMA application_id = {_APPLICATION_ID};"
            f"PRAGMA user_version = {version + 1}; COMMIT;"
        )


def _lock(path: Path) -> IO[bytes]:
    """Lock a file until it is closed or the process ends, in whatever way."""
    file = open(path, "ab", opener=_private)  # noqa: SIM115 - it stays open, and so locked
    try:
        if sys.platform == "win32":  # pragma: no cover - by the system
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.close()
        raise StoreError(f"{path.parent}: another server uses this store") from exc
    return file


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
