"""Pixels to a file."""

import io

import pytest
from PIL import Image

from imagelabs_sdk.server.encoding import encode, media_type_of


def test_texts_of_an_image_are_written_and_all_else_is_left_out() -> None:
    """Pillow keeps more than texts there, such as a resolution."""
    image = Image.new("RGB", (2, 2))
    image.info.update(Comment="\u00fc", dpi=(72, 72))
    with Image.open(io.BytesIO(encode(image))) as found:
        found.load()
        assert found.info == {"Comment": "\u00fc"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_stays_as_it_is_and_says_its_kind(kind: str) -> None:
    """Back ends deliver finished files."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, kind)
    assert encode(file.getvalue()) == file.getvalue()
    assert media_type_of(file.getvalue()) == f"image/{kind.lower()}"


def test_another_kind_of_file_is_refused() -> None:
    """Nobody could show it."""
    with pytest.raises(ValueError, match="PNG, JPEG or WebP"):
        media_type_of(b"GIF89a")
