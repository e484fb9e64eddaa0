"""The image that a request starts from: a ``data:`` URI, checked in front, decoded in a worker."""

import base64
import binascii
import io
import re

from PIL import Image, ImageOps

from ...models import ImageRequest
from ...validation import invalid, invalid_secret

__all__ = [
    "MAX_REFERENCE_BYTES",
    "MAX_REFERENCE_PIXELS",
    "check_reference",
    "decode_reference",
    "reference_bytes",
]

MAX_REFERENCE_BYTES = 16 * 1024 * 1024
"""No longer file is taken, in bytes."""

MAX_REFERENCE_PIXELS = 4096 * 4096
"""No larger image is decoded."""

_DATA_URI = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)
_REMEDY = "must be a data: URI of a PNG, JPEG or WebP image in base64, such as encode_image() makes"


def check_reference(request: ImageRequest) -> None:
    """Check the form and the length of the reference image; nothing is decoded.

    Raises:
        InvalidRequestError: It is no ``data:`` URI of an image, it is too long, or its strength
            is 0, with which there is nothing to render.
    """
    if not request.reference_image:
        return
    if not _DATA_URI.match(request.reference_image):
        raise invalid_secret("reference_image", _REMEDY)
    if len(request.reference_image) > MAX_REFERENCE_BYTES * 4 // 3 + 64:
        raise invalid_secret(
            "reference_image", f"must be at most {MAX_REFERENCE_BYTES} bytes before base64"
        )
    if request.reference_strength == 0:
        raise invalid("reference_strength", 0, "must be 1 to 100 with a reference_image")


def reference_bytes(uri: str) -> bytes:
    """Return the file inside a ``data:`` URI that `check_reference` has let pass.

    Raises:
        ValueError: It is not base64.
    """
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except binascii.Error as exc:
        raise ValueError("the reference image is not base64") from exc


def decode_reference(uri: str) -> Image.Image:
    """Return the image inside a ``data:`` URI, upright and in RGB; transparency becomes white.

    Raises:
        ValueError: It is no whole PNG, JPEG or WebP, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(reference_bytes(uri)), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_REFERENCE_PIXELS:
                raise ValueError(
                    f"the reference image has {image.width} x {image.height} pixels, "
                    f"more than {MAX_REFERENCE_PIXELS}"
                )
            upright = ImageOps.exif_transpose(image)
            rgba = upright.convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as exc:
        raise ValueError("the reference image cannot be read: it is damaged") from exc
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
