"""Where finished images are kept: in memory, or as files that survive a crash."""

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import attrs

__all__ = ["EXTENSIONS", "ImageFiles", "Images", "MemoryImages", "image_name"]

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
"""What an engine may deliver, by media type."""

_OURS = re.compile(r"[0-9a-f]{32}\.[0-9]+\.[a-z]+(\.part)?")  # as `image_name` has them


def image_name(task_id: str, attempt: int, media_type: str) -> str:
    """Return an image's name. A late writer of an earlier attempt cannot touch a later one's."""
    return f"{task_id}.{attempt}.{EXTENSIONS[media_type]}"


class Images(Protocol):
    """Keeps finished images by name. Safe for threads, as long as names differ."""

    def write(self, name: str, data: bytes) -> None:
        """Keep an image. When this returns, it survives whatever the store survives.

        Raises:
            OSError: It could not be written; nothing is left under the name.
        """
        ...  # pragma: no cover - a Protocol has no body

    def read(self, name: str, start: int = 0, count: int = -1) -> bytes | None:
        """Return an image, or `count` bytes of it from `start`; None if there is none."""
        ...  # pragma: no cover - a Protocol has no body

    def size(self, name: str) -> int | None:
        """Return the size of an image in bytes; None if there is none."""
        ...  # pragma: no cover - a Protocol has no body

    def delete(self, name: str) -> None:
        """Remove an image, if there is one."""
        ...  # pragma: no cover - a Protocol has no body

    def sweep(self, known: Collection[str]) -> int:
        """Remove every image whose name is not in `known`; return how many there were."""
        ...  # pragma: no cover - a Protocol has no body


@attrs.frozen
class MemoryImages:
    """Images of one process, gone with it."""

    _kept: dict[str, bytes] = attrs.field(factory=dict, init=False, repr=False)

    def write(self, name: str, data: bytes) -> None:
        """Keep an image."""
        self._kept[name] = data

    def read(self, name: str, start: int = 0, count: int = -1) -> bytes | None:
        """Return an image, or `count` bytes of it from `start`; None if there is none."""
        data = self._kept.get(name)
        return data if data is None or count < 0 else data[start : start + count]

    def size(self, name: str) -> int | None:
        """Return the size of an image in bytes; None if there is none."""
        data = self._kept.get(name)
        return None if data is None else len(data)

    def delete(self, name: str) -> None:
        """Remove an image, if there is one."""
        self._kept.pop(name, None)

    def sweep(self, known: Collection[str]) -> int:
        """Remove every image whose name is not in `known`; return how many there were."""
        orphans = self._kept.keys() - set(known)
        for name in orphans:
            self.delete(name)
        return len(orphans)


@attrs.frozen
class ImageFiles:
    """Images as files of mode 0600 in a folder.

    Attributes:
        folder: Exists. What else is in it is left alone.
    """

    folder: Path

    def write(self, name: str, data: bytes) -> None:
        """Write and sync a file under another name, then rename it: a reader sees it whole."""
        path = self.folder / name
        part = path.with_name(name + ".part")
        try:
            with open(part, "wb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            self._sync_folder()
        except OSError:
            for each in (part, path):
                with contextlib.suppress(OSError):
                    each.unlink(missing_ok=True)
            raise

    def read(self, name: str, start: int = 0, count: int = -1) -> bytes | None:
        """Return an image, or `count` bytes of it from `start`; None if there is none."""
        try:
            with open(self.folder / name, "rb") as file:
                file.seek(start)
                return file.read(count)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Return the size of an image in bytes; None if there is none."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        """Remove an image, if there is one."""
        (self.folder / name).unlink(missing_ok=True)

    def sweep(self, known: Collection[str]) -> int:
        """Remove every file that is named like an image of a store and is not in `known`.

        The folder may have been there before the store, with images of a user's in it.
        """
        names = set(known)
        ours = [path for path in self.folder.iterdir() if _OURS.fullmatch(path.name)]
        orphans = [path for path in ours if path.name not in names]
        for path in orphans:
            path.unlink()
        return len(orphans)

    def _sync_folder(self) -> None:
        if os.name == "nt":  # pragma: no cover - by the system: folders cannot be synced there
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
