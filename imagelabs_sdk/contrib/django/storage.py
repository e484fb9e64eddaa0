"""Where images are stored, and how they are stored and deleted."""

import io
import logging
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import Storage, default_storage, storages

if TYPE_CHECKING:
    from PIL import Image

    from .models import AbstractImageJob

__all__ = [
    "FOLDER",
    "delete_file",
    "image_name",
    "image_storage",
    "make_thumbnail",
    "save_bytes",
    "save_file",
    "thumbnail_name",
]

log = logging.getLogger(__name__)

FOLDER = "imagelabs"
"""The folder of all images in the storage."""

_THUMBNAIL_SIDE = 512  # pixels of the longer side
_MAX_MARK = 65_536  # bytes of XMP; a thumbnail is to be small
_CHUNK = 1024 * 1024  # bytes that are compared at once


def image_storage() -> Storage:
    """Return ``STORAGES["imagelabs"]`` if there is one, else the default storage."""
    return storages["imagelabs"] if "imagelabs" in settings.STORAGES else default_storage


def image_name(job: "AbstractImageJob", filename: str) -> str:
    """Return the name of a job's image; nothing of it comes from the service or the user."""
    return f"{FOLDER}/{job.pk.hex[:2]}/{job.pk}{PurePath(filename).suffix}"


def thumbnail_name(job: "AbstractImageJob", filename: str) -> str:
    """Return the name of a job's thumbnail."""
    return f"{FOLDER}/{job.pk.hex[:2]}/{job.pk}-thumbnail{PurePath(filename).suffix}"


def save_file(storage: Storage, name: str, path: Path, max_length: int | None) -> str:
    """Store the file at `path`; return the name that the storage has given it.

    A copy that a killed process left under `name` is used if it is the same, else replaced. If
    the storage cannot delete it, the file gets another name.
    """
    if storage.exists(name):
        if _has_content_of(storage, name, path):
            return name
        delete_file(storage, name)
    with path.open("rb") as file:
        return storage.save(name, File(file), max_length=max_length)


def save_bytes(storage: Storage, name: str, data: bytes, max_length: int | None) -> str:
    """Store `data`, in place of what is under `name` already; return the name it has got."""
    if storage.exists(name):
        delete_file(storage, name)
    return storage.save(name, ContentFile(data), max_length=max_length)


def delete_file(storage: Storage, name: str) -> bool:
    """Delete a file; return False, and log why, if the storage fails."""
    try:
        storage.delete(name)
    except Exception as error:  # noqa: BLE001 - whatever a storage raises; its text may hold an address
        log.error("%s: cannot be deleted: %s", name, type(error).__name__)
        return False
    return True


def make_thumbnail(path: Path) -> bytes | None:
    """Return the image at `path` as a small WebP, which is marked as the image is (XMP).

    `None`: it is small already, Pillow is not installed, or cannot read it.
    """
    try:
        from PIL import Image, ImageOps  # optional: the extra `server`, or Pillow itself
    except ImportError:
        return None
    data = io.BytesIO()
    try:
        with Image.open(path) as image:
            if max(image.size) <= _THUMBNAIL_SIDE:
                return None
            image.draft(None, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))  # JPEG: decodes no more than that
            small = ImageOps.exif_transpose(image).convert(
                "RGBA" if image.has_transparency_data else "RGB"
            )
            small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
            small.save(data, "WEBP", quality=80, xmp=_mark(image))
    except Exception:
        log.warning("%s: no thumbnail could be made", path.name, exc_info=True)
        return None
    return data.getvalue()


def _mark(image: "Image.Image") -> bytes:
    mark = image.info.get("xmp", b"")
    return mark if isinstance(mark, bytes) and len(mark) <= _MAX_MARK else b""


def _has_content_of(storage: Storage, name: str, path: Path) -> bool:
    try:
        if storage.size(name) != path.stat().st_size:
            return False
        with storage.open(name) as stored, path.open("rb") as ours:
            while chunk := ours.read(_CHUNK):
                if stored.read(len(chunk)) != chunk:
                    return False
    except Exception:  # not every storage can read what it wrote
        log.debug("%s: cannot be compared", name, exc_info=True)
        return False
    return True
