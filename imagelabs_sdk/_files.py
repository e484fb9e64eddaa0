"""Write a file atomically: the whole new content, or what was there before."""

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import attrs

__all__ = ["Draft", "atomic_write", "is_writable", "sync_folder"]


_NOT_RENAMED = (errno.EBUSY, errno.ETXTBSY)  # a mount point, or a file that is being run
_NO_NEW_FILE = (errno.EACCES, errno.EPERM, errno.EROFS)  # in this folder
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # on this file system


@attrs.define
class Draft:
    """A file being written.

    Attributes:
        file: Open for writing, in binary mode.
        target: The path it gets at the end; may be changed before, unless `in_place`.
        in_place: True: `target` cannot be replaced by another file (a device, say), and is
            overwritten at the end.
    """

    file: IO[bytes]
    target: Path
    in_place: bool = False


def is_writable(target: Path) -> bool:
    """Return True if `target` names a file, there or not, in a folder that exists."""
    named = bool(target.name) and "\0" not in target.name
    try:
        os.fsencode(target)
        place = _followed(target)
        in_a_loop = place.is_symlink()
        return named and not in_a_loop and place.parent.is_dir() and not target.is_dir()
    except (ValueError, OSError):  # a character, or a length, that no path may have
        return False


@contextmanager
def atomic_write(target: Path) -> Iterator[Draft]:
    """Write a temporary file and let it take the place of `target` when the block ends.

    An error in the block leaves `target` as it was and removes the temporary file. A symbolic
    link stays, and what it leads to is written; the mode of an existing file is kept. A FIFO, a
    device, a mount point and a file in a folder that takes no new ones are overwritten at the
    end of the block instead, which is not atomic.
    """
    place = _followed(target)
    temporary = place.with_name(f".{secrets.token_hex(8)}.part")
    file = None if _is_special(target) else _new_file(temporary, place)
    if file is None:
        with tempfile.TemporaryFile() as elsewhere:
            yield Draft(elsewhere, target, in_place=True)
            _overwrite(target, elsewhere)
        return
    try:
        with file:
            draft = Draft(file, place)
            yield draft
            file.flush()
            _sync(file)
        _replace(temporary, _followed(draft.target))
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(place.parent)


def _followed(target: Path) -> Path:
    """Return what a symbolic link leads to; any other path as it is."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _is_special(target: Path) -> bool:
    """Return True for a FIFO, a device, and a name such as ``/dev/stdout``."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) or str(target).startswith(("/dev/", "/proc/"))


def _new_file(temporary: Path, place: Path) -> IO[bytes] | None:
    """Open a new file; return `None` if the folder takes none and `place` can be overwritten."""
    try:
        return open(temporary, "xb")
    except OSError as exc:
        if exc.errno in _NO_NEW_FILE and place.is_file():
            return None
        raise


def _replace(temporary: Path, place: Path) -> None:
    with suppress(FileNotFoundError):
        temporary.chmod(stat.S_IMODE(place.stat().st_mode))
    try:
        temporary.replace(place)
    except OSError as exc:
        if exc.errno not in _NOT_RENAMED:
            raise
        with open(temporary, "rb") as source:
            _overwrite(place, source)
        temporary.unlink()


def _overwrite(place: Path, source: IO[bytes]) -> None:
    source.seek(0)
    with open(place, "wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    """Wait until the disk has the file, where the file system can tell."""
    try:
        os.fsync(file.fileno())
    except OSError as exc:
        if exc.errno not in _NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable; systems that cannot open a folder do so themselves."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
