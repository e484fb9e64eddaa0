"""Pixels to a file, and what kind of file some bytes are."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["encode", "media_type_of"]

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"RIFF", "image/webp"),
)


def encode(image: "Image.Image | bytes") -> bytes:
    """Return a PNG of the pixels, with the texts in ``image.info``; a file is returned as it is."""
    if isinstance(image, bytes):
        return image
    from PIL.PngImagePlugin import PngInfo  # who passes files through needs no Pillow

    notes = PngInfo()
    for name, text in image.info.items():
        if isinstance(name, str) and isinstance(text, str):
            notes.add_itxt(name, text)
    buffer = io.BytesIO()
    # Noise does not compress: higher levels take longer and gain little.
    image.save(buffer, "PNG", compress_level=1, pnginfo=notes)
    return buffer.getvalue()


def media_type_of(data: bytes) -> str:
    """Return the media type of a file that an engine delivered.

    Raises:
        ValueError: It is no PNG, JPEG or WebP.
    """
    for signature, media_type in _SIGNATURES:
        if data.startswith(signature):
            return media_type
    raise ValueError("an engine's file must be PNG, JPEG or WebP")
