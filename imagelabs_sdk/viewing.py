"""Show an image in a notebook or a window."""

import base64
import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from .models import ImageRequest

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["mime_bundle", "open_with_pillow", "request_fields"]


def mime_bundle(content: bytes, media_type: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what IPython's ``_repr_mimebundle_`` does: the image, and a page with its facts."""
    encoded = base64.b64encode(content).decode()
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    figure = (
        f'<figure style="margin:0"><img alt="" src="data:{media_type};base64,{encoded}">'
        f"<figcaption>{html.escape(words)}</figcaption></figure>"
    )
    return {media_type: encoded, "text/html": figure, "text/plain": words}


def open_with_pillow(content: bytes) -> "Image.Image":
    """Return the image, decoded.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image  # not needed by anything else here
    except ImportError as error:
        raise ImportError("this needs Pillow: pip install Pillow") from error
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def request_fields(request: ImageRequest | None) -> dict[str, Any]:
    """Return the fields of a request by name, but for the ratio, which only says the size."""
    if request is None:
        return {}
    return attrs.asdict(request, filter=lambda field, _: field.name != "aspect_ratio")
