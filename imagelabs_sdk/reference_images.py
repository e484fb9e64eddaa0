"""An image to start from, as the text that travels in a request."""

import base64
import io
import os
from typing import Any, Protocol

from .formats import sniff
from .validation import invalid, invalid_secret, without_locals

__all__ = ["ReferenceImage", "encode_image"]

_MAX_BYTES = 16 * 1024 * 1024
_TYPES = ("image/png", "image/jpeg", "image/webp")


class SavesItself(Protocol):
    """An image of Pillow, or of a library that follows it."""

    def save(self, fp: Any, format: str | None = None) -> Any:  # noqa: A002 - as Pillow names it
        """Write a file in `format`."""
        ...  # pragma: no cover - a Protocol has no body


ReferenceImage = str | os.PathLike[str] | bytes | SavesItself
"""What ``reference_image=`` takes: a text is passed through; the others are encoded."""


@without_locals
def encode_image(source: ReferenceImage) -> str:
    """Return a ``data:`` URI of an image, as our own server takes it for ``reference_image``.

    Which encoding the public service wants is not known.

    Args:
        source: Path of a PNG, JPEG or WebP file, the content of one, or an image of Pillow,
            which becomes a PNG.

    Raises:
        InvalidRequestError: It cannot be read, is no such image, or has more than 16 MiB.
    """
    data = _content(source)
    found = sniff(data)
    if found is None or found.media_type not in _TYPES:
        raise invalid_secret("reference_image", "must be a PNG, JPEG or WebP image")
    if len(data) > _MAX_BYTES:
        raise invalid_secret("reference_image", f"must have at most {_MAX_BYTES} bytes")
    return f"data:{found.media_type};base64,{base64.b64encode(data).decode()}"


def _content(source: object) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | os.PathLike):
        return _file(source)
    if callable(save := getattr(source, "save", None)):
        buffer = io.BytesIO()
        save(buffer, format="PNG")
        return buffer.getvalue()
    raise invalid_secret("reference_image", "must be a path, bytes or an image of Pillow")


def _file(path: "str | os.PathLike[str]") -> bytes:
    try:
        with open(path, "rb") as opened:
            return opened.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise invalid(
            "reference_image", os.fspath(path), f"cannot be read: {exc.strerror}"
        ) from exc


def encoded_if_no_text(value: object) -> object:
    """Encode everything but a text: a field's converter."""
    return value if isinstance(value, str) else encode_image(value)  # type: ignore[arg-type]
