"""Write a file atomically: the whole new content, or what was there before."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import attrs

__all__ = ["Draft", "atomic_write", "is_writable", "sync_folder"]


@attrs.define
class Draft:
    """A file being written.

    Attributes:
        file: Open for writing, in binary mode.
        target: The path it gets at the end; may be changed before.
    """

    file: IO[bytes]
    target: Path


def is_writable(target: Path) -> bool:
    """Return True if `target` names a file, there or not, in a folder that exists."""
    named = bool(target.name) and "\0" not in target.name
    try:
        return named and target.parent.is_dir() and not target.is_dir()
    except (ValueError, OSError):  # a character, or a length, that no path may have
        return False


@contextmanager
def atomic_write(target: Path) -> Iterator[Draft]:
    """Write a temporary file beside `target` and rename it when the block ends.

    An error in the block leaves `target` as it was and removes the temporary file.
    """
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            draft = Draft(file, target)
            yield draft
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(draft.target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable; systems that cannot open a folder do so themselves."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
