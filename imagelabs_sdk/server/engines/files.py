"""A back end's image file: keep it as it came, or make a PNG of it."""

import io

from PIL import Image

from ...formats import StructureParser

__all__ = ["MAX_PIXELS", "finished_file"]

MAX_PIXELS = 8192 * 8192
"""No larger image is taken from a back end."""

_KEPT = ("PNG", "JPEG", "WEBP")


def finished_file(data: bytes) -> bytes:
    """Return `data` as it is if it is a whole PNG, JPEG or WebP; any other image as a PNG.

    Raises:
        ValueError: It is no whole image, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
            if image.format in _KEPT:
                return _checked(data)
            file = io.BytesIO()
            image.convert("RGBA" if image.has_transparency_data else "RGB").save(file, "PNG")
            return file.getvalue()
    except (OSError, SyntaxError, Image.DecompressionBombError) as exc:
        raise ValueError("it is no image, or a damaged one") from exc


def _checked(data: bytes) -> bytes:
    """Return `data` if it ends where its format says; Pillow alone is lenient about that."""
    parser = StructureParser()
    parser.feed(data)
    if not parser.complete:
        raise ValueError("the file is cut short")
    return data
