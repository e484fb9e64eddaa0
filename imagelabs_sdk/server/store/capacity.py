"""What fits into the store: whether a job is accepted, and which ended ones make room.

An unfinished job counts with its request and with what its image may need; an ended one with its
image. Each function runs inside the transaction of its caller.
"""

import sqlite3
from typing import Any, Literal

from ...errors import InvalidRequestError
from ...models import ImageRequest
from ..options import StoreLimits
from .images import image_name
from .records import StoreFullError

__all__ = ["check_owner", "check_room", "evict", "expire", "reserved_bytes"]

_ROW_BYTES = 1024  # counted for an ended job besides its image, so that failed ones are bounded too
_FORMAT_BYTES = 64 * 1024  # what a file may need besides its pixels


def reserved_bytes(request: ImageRequest) -> int:
    """Return the bytes that the image of a request may need: its pixels do not always compress."""
    return 3 * request.width * request.height + _FORMAT_BYTES


def check_owner(db: sqlite3.Connection, owner: str, most: int | None) -> None:
    """Raise `StoreFullError` if an owner has `most` unfinished jobs; None: there is no limit."""
    if most is None:
        return
    jobs = db.execute(
        "SELECT COUNT(*) FROM jobs WHERE ended_at IS NULL AND owner = ?", (owner,)
    ).fetchone()[0]
    if jobs >= most:
        raise StoreFullError(f"your token allows {most} unfinished jobs")


def check_room(db: sqlite3.Connection, limits: StoreLimits, request: int, image: int) -> None:
    """Raise an error unless a job with a request and an image of so many bytes fits in.

    Raises:
        StoreFullError: There is no room now.
        InvalidRequestError: The image would not fit in, ever.
    """
    if image > limits.max_image_bytes:
        raise InvalidRequestError(
            "width, height: the image would not fit into this server's store", field="width"
        )
    jobs, requests, reserved = db.execute(
        "SELECT COUNT(*), TOTAL(request_bytes), TOTAL(reserved) FROM jobs WHERE ended_at IS NULL"
    ).fetchone()
    if jobs >= limits.max_jobs:
        raise StoreFullError("too many unfinished jobs")
    if requests + request > limits.max_request_bytes:
        raise StoreFullError("the unfinished jobs' requests are too large together")
    unfetched = _kept(db, "kept") - _kept(db, "fetched")
    if unfetched + reserved + image > limits.max_image_bytes:
        raise StoreFullError("too many finished images wait to be fetched")


def expire(db: sqlite3.Connection, before: float) -> list[str]:
    """Remove the jobs that have ended by a point in time; return their images."""
    return _remove(db, "ended_at <= ?", (before,))


def evict(db: sqlite3.Connection, limits: StoreLimits) -> list[str]:
    """Remove fetched jobs, oldest first, until what is kept fits; return their images."""
    excess = _kept(db, "kept") - limits.max_image_bytes
    rows = db.execute("SELECT seq, size FROM jobs WHERE fetched = 1 ORDER BY ended_at, seq")
    doomed = []
    while excess > 0 and (row := rows.fetchone()) is not None:
        doomed.append(row["seq"])
        excess -= row["size"] + _ROW_BYTES
    return [name for seq in doomed for name in _remove(db, "seq = ?", (seq,))]


def _remove(db: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> list[str]:
    """Remove rows; return the names of their images."""
    rows = db.execute(
        f"DELETE FROM jobs WHERE {where} RETURNING id, state, attempt, media_type",  # noqa: S608 - ours
        values,
    ).fetchall()
    return [
        image_name(row["id"], row["attempt"], row["media_type"])
        for row in rows
        if row["state"] == "done"
    ]


def _kept(db: sqlite3.Connection, which: Literal["kept", "fetched"]) -> int:
    """Return the bytes of all ended jobs, or of those whose images were fetched."""
    totals = db.execute("SELECT * FROM totals").fetchone()
    return int(totals[f"{which}_bytes"] + totals[which] * _ROW_BYTES)
