"""A file of JSON lines that is appended durably; what checkpoints and ledgers are made of."""

import errno
import io
import json
import logging
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ._files import sync_folder
from ._redact import sanitize_text
from .errors import InvalidRequestError

__all__ = ["Journal"]

log = logging.getLogger(__name__)

_MAX_HEADER = 65_536  # bytes; a longer first line is that of another file
_MAX_LINE = 256 * 1024 * 1024  # bytes; a request may hold a reference image
_LOCK_INTERVAL = 0.005  # seconds between two attempts
_IN_USE = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Journal:
    """One such file, open for appending and locked. Thread-safe.

    It may hold prompts, so its mode is 0600. A forked child closes its copy, because the lock is
    shared with it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Mapping[str, Any],
        *,
        field: str,
        lock_timeout: float = 0.0,
    ) -> None:
        """Open the file, or create it with its first line, and lock it.

        Args:
            path: Its folder must exist.
            header: The first line.
            field: The argument that named the file, for errors.
            lock_timeout: Seconds to wait while another process has the lock; 0: do not wait.

        Raises:
            InvalidRequestError: It is not such a file, or in use; or `path` is not a path.
            OSError: It cannot be read or written.
        """
        self.path, self._field = _as_path(path, field), field
        self._absolute = Path.cwd() / self.path  # the working directory may change
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        self._written = self._synced = 0  # lines
        self._sync_failed = False
        self._start = self._size = 0  # bytes: of the header; of the file, as far as we know
        self._refuse_special_file()
        self._file = open(self.path, "a+b", buffering=0, opener=_open_private)  # noqa: SIM115
        _open_journals.add(self)
        try:
            self._lock(lock_timeout)
            self.check_in_place()
            self._read_header(dict(header))
            _make_private(self._file)
        except BaseException:
            self._file.close()
            raise

    def read(self, *, strict: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and the content of each line behind the header.

        At the end a last line that was not written completely is cut off; a complete one without
        a line break, as some editors leave it, gets its line break.

        Args:
            strict: False: leave out lines that are not JSON objects.

        Raises:
            InvalidRequestError: A line is not a JSON object.
        """
        end, number, line = self._start, 1, b""
        for line in self._raw_lines(self._start):
            number, fields = number + 1, _load(line)
            if fields:
                yield number, fields
            elif strict and line.strip() and line.endswith(b"\n"):
                raise self.refusal(f"its line {number} is not a JSON object")
            elif not line.endswith(b"\n"):
                break
            end += len(line)
        self._file.truncate(end)
        self._size = end
        if line and not line.endswith(b"\n") and _load(line):
            self._write(b"\n")

    def seek_end(self) -> None:
        """Get ready to write without reading; a line that was not written completely is ended."""
        self._size = self._file.seek(0, os.SEEK_END)
        self._file.seek(self._size - 1)
        if self._file.read(1) != b"\n":
            self._write(b"\n")

    def append(self, fields: Mapping[str, Any]) -> None:
        """Write one line and wait until it is on disk.

        Raises:
            OSError: It cannot be written; or an earlier line could not be synced, after which the
                system may report a success that is none.
        """
        with self._writing:
            self._write(_dump(fields))
            self._written += 1
            mine = self._written
        with self._syncing:
            if self._synced < mine:  # otherwise another thread has synced this line as well
                if self._sync_failed:
                    raise OSError(errno.EIO, "an earlier line could not be synced", str(self.path))
                so_far = self._written
                try:
                    os.fsync(self._file.fileno())
                except OSError:
                    self._sync_failed = True
                    raise
                self._synced = so_far

    def check_in_place(self) -> None:
        """Make sure that the path still leads to this file.

        Raises:
            OSError: It was deleted, replaced or truncated: another process would not see what is
                written to it.
        """
        with self._writing:
            held = os.fstat(self._file.fileno())
            try:
                found = os.stat(self._absolute)  # noqa: PTH116 - beside fstat
            except OSError:
                found = None
            same = found is not None and os.path.samestat(held, found)
            is_whole = held.st_size >= self._size
        if not (same and is_whole):
            what = f"the {self._field} was deleted or replaced while it was in use"
            raise OSError(errno.ESTALE, what, str(self.path))

    def close(self) -> None:
        """Close the file, which releases the lock. May be called again."""
        self._file.close()

    def refusal(self, reason: str) -> InvalidRequestError:
        """Return the error for a file that cannot be used."""
        return InvalidRequestError(
            f"{self._field} {sanitize_text(self.path)}: {reason}", field=self._field
        )

    def _refuse_special_file(self) -> None:
        try:
            mode = os.stat(self.path).st_mode  # noqa: PTH116 - beside fstat
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
            raise self.refusal(f"it is {kind}; give the path of a file, there or not")

    def _lock(self, timeout: float) -> None:
        """Take the lock that the system releases when the process ends, however it ends."""
        until = time.monotonic() + timeout
        while True:
            try:
                _lock_exclusively(self._file)
            except OSError as exc:
                if exc.errno not in _IN_USE:
                    reason = f"it cannot be locked ({exc.strerror}); use a file on a local disk"
                    raise self.refusal(reason) from exc
                if time.monotonic() >= until:
                    raise self.refusal(
                        "another run uses it; two would buy the same images"
                    ) from exc
                time.sleep(_LOCK_INTERVAL)
            else:
                return

    def _read_header(self, header: dict[str, Any]) -> None:
        written = _dump(header)
        self._file.seek(0)
        line = self._file.read(_MAX_HEADER).partition(b"\n")
        if not line[1] and written.startswith(line[0]):  # new, or torn when it was created
            self._file.truncate(0)
            self._write(written)
            os.fsync(self._file.fileno())
            sync_folder(self.path.parent)
            self._start = len(written)
            return
        found = _load(line[0])
        if not found or not line[1]:
            raise self.refusal(f"it is not a {self._field}")
        if found != header:
            raise self.refusal(_mismatch(found, header, self._field))
        self._start = len(line[0]) + 1

    def _raw_lines(self, start: int) -> Iterator[bytes]:
        self._file.seek(start)
        reader = io.BufferedReader(self._file)
        try:
            while line := reader.readline(_MAX_LINE):
                if len(line) == _MAX_LINE:
                    raise self.refusal(f"it has a line of more than {_MAX_LINE} bytes")
                yield line
        finally:
            reader.detach()

    def _write(self, line: bytes) -> None:
        view = memoryview(line)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self._cut(len(line) - len(view))
            raise
        self._size += len(line)

    def _cut(self, length: int) -> None:
        """Cut off what was written of a line, so that another line does not continue it."""
        with suppress(OSError):
            self._file.truncate(os.fstat(self._file.fileno()).st_size - length)


_open_journals: "weakref.WeakSet[Journal]" = weakref.WeakSet()


def _close_in_child() -> None:  # pragma: no cover - measured in the parent alone
    for journal in list(_open_journals):
        journal.close()


if sys.platform != "win32":  # pragma: no branch - by the system
    os.register_at_fork(after_in_child=_close_in_child)


def _mismatch(found: Mapping[str, Any], header: Mapping[str, Any], field: str) -> str:
    if found.get("version") == header["version"] and found.keys() == header.keys():
        return f"it is of another service, {sanitize_text(found.get('base_url'))}"
    return f"it is not a {field} of this version"


def _as_path(path: str | os.PathLike[str], field: str) -> Path:
    try:
        given = Path(path)
    except TypeError as exc:
        kind = type(path).__name__
        raise InvalidRequestError(f"{field}: must be a path, not {kind}", field=field) from exc
    try:
        is_usable = b"\0" not in os.fsencode(given)
    except UnicodeError:
        is_usable = False
    if not is_usable:
        shown = sanitize_text(str(given))
        raise InvalidRequestError(f"{field} {shown}: no file can have this name", field=field)
    return given


def _dump(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _load(line: bytes) -> dict[str, Any]:
    """Return the object in a line; an empty one if the line holds none."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)


def _make_private(file: IO[bytes]) -> None:
    if sys.platform != "win32" and os.fstat(file.fileno()).st_mode & 0o077:
        try:
            os.fchmod(file.fileno(), 0o600)
        except OSError as exc:
            log.warning("%s may be read by others: %s", file.name, exc.strerror)


def _lock_exclusively(file: IO[bytes]) -> None:
    if sys.platform == "win32":  # pragma: no cover - by the system
        import msvcrt

        file.seek(2**40)  # beyond all content: a lock there blocks no reader
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
