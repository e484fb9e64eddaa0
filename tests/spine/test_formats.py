"""Formats are known by their bytes."""

from collections.abc import Callable

import pytest

from imagelabs_sdk import DownloadError, GeneratedImage
from imagelabs_sdk.formats import sniff
from tests import faulty
from tests.faulty import PNG
from tests.spine.samples import FORMATS, NO_IMAGES

Make = Callable[..., GeneratedImage]


@pytest.mark.parametrize("length", ["none", "abc", "-1", ""])
@pytest.mark.parametrize("extension", FORMATS)
def test_without_a_length_the_format_tells_the_end(
    image: Make, extension: str, length: str
) -> None:
    """A body that ends where its connection does may have been cut by a single byte."""
    head = "" if length == "none" else f"Content-Length: {length}\r\n"
    start, body = f"HTTP/1.1 200 OK\r\n{head}\r\n".encode(), FORMATS[extension]
    with pytest.raises(DownloadError):
        image(faulty.raw(start + body[:-1])).read()
    assert image(faulty.raw(start + body)).read() == body


def test_an_image_that_ends_with_its_connection_is_whole_by_its_end_mark(image: Make) -> None:
    """HTTP alone could not tell it from one cut short."""
    assert image(faulty.raw(b"HTTP/1.1 200 OK\r\n\r\n" + PNG)).read() == PNG


def test_the_signature_of_every_kind_is_known() -> None:
    """Thirty-two bytes are enough."""
    assert [found.extension for body in FORMATS.values() if (found := sniff(body[:32]))] == list(
        FORMATS
    )
    assert all(sniff(body[:32]) is None for body in NO_IMAGES.values())
