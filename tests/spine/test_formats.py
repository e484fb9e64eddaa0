"""Formats: known by their bytes, followed to their end however the bytes arrive."""

import io
import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagelabs_sdk import DownloadError, GeneratedImage
from imagelabs_sdk.formats import (
    HEAD_SIZE,
    StructureParser,
    format_of_name,
    has_image_suffix,
    sniff,
)
from tests import faulty
from tests.spine.samples import FORMATS, NO_IMAGES, encoded

Make = Callable[..., GeneratedImage]


def jpeg_with_thumbnail() -> bytes:
    """A whole JPEG, end marker included, lies inside a segment of the outer one."""
    exif = Image.Exif()
    exif[0x010E] = "a lighthouse"
    thumbnail = encoded("JPEG", size=(16, 16))
    segment = b"Exif\0\0" + exif.tobytes()[6:] + thumbnail
    outer = encoded("JPEG")
    return outer[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + outer[2:]


def avif_box(kind: bytes, data: bytes) -> bytes:
    return (8 + len(data)).to_bytes(4, "big") + kind + data


WEBP_WITH_REST = FORMATS[".webp"][:4] + (len(FORMATS[".webp"]) - 5).to_bytes(4, "little")
WEBP_WITH_REST += FORMATS[".webp"][8:] + bytes(3)
AVIF_HEAD = avif_box(b"ftyp", b"avif\0\0\0\0mif1miafavif")
META = avif_box(b"meta", bytes(4) + avif_box(b"hdlr", bytes(20)))
IMAGES = {
    **{name[1:]: data for name, data in FORMATS.items()},
    "a large PNG of several chunks": encoded("PNG", size=(400, 300)),
    "an animated PNG": encoded("PNG", frames=3),
    "a PNG with a palette and text": encoded("PNG", size=(60, 40), dpi=(72, 72), icc_profile=b"x"),
    "a progressive JPEG": encoded("JPEG", progressive=True, quality=95),
    "a JPEG with restarts": encoded("JPEG", quality=95, restart_marker_blocks=1),
    "a JPEG with a thumbnail": jpeg_with_thumbnail(),
    "a JPEG with filling bytes": encoded("JPEG").replace(b"\xff\xda", b"\xff\xff\xff\xda", 1),
    "an animated GIF": encoded("GIF", frames=4, duration=50, loop=0),
    "a GIF with a comment": encoded("GIF", comment=b"x" * 700),
    "a GIF whose block ends twice": FORMATS[".gif"][:-1] + b"\0;",
    "an animated WebP": encoded("WEBP", frames=3),
    "a lossless WebP": encoded("WEBP", lossless=True),
    "a WebP with metadata": encoded("WEBP", exif=b"Exif\0\0odd", icc_profile=b"x" * 33),
    "a WebP with a rest that is no chunk": WEBP_WITH_REST,
    "an animated AVIF": encoded("AVIF", frames=3),
    "an AVIF with a long size": AVIF_HEAD
    + META
    + b"\0\0\0\1mdat"
    + (16 + 30).to_bytes(8, "big")
    + bytes(30),
    "an AVIF whose data comes first": AVIF_HEAD + avif_box(b"mdat", bytes(30)) + META,
    "an AVIF whose data is in its description": AVIF_HEAD
    + avif_box(b"meta", bytes(4) + avif_box(b"idat", bytes(30))),
}
BROKEN = {
    "a PNG that is zeros from the middle": FORMATS[".png"][:33] + bytes(200),
    "a PNG without data": FORMATS[".png"][:33] + FORMATS[".png"][-12:],
    "a JPEG without a scan": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(9) + b"\xff\xd9",
    "a JPEG segment of no length": b"\xff\xd8\xff\xe0\x00\x01" + bytes(40) + b"\xff\xd9",
    "a GIF with an odd block": FORMATS[".gif"][:-1] + b"?;",
    "a GIF without an image": b"GIF89a" + bytes(7) + b";" + bytes(20),
    "a WebP without an image": b"RIFF\x18\0\0\0WEBPEXIF\x0c\0\0\0" + bytes(12),
    "a WebP of no length": b"RIFF\0\0\0\0WEBPVP8 \x0c\0\0\0" + bytes(12),
    "an AVIF without data": AVIF_HEAD + META,
    "an AVIF without a description": AVIF_HEAD + avif_box(b"mdat", bytes(30)),
    "an AVIF with an odd box": AVIF_HEAD + b"\0\0\0\x10\1\2\3\4" + bytes(8),
    "an AVIF with a box of no length": AVIF_HEAD + b"\0\0\0\4meta" + bytes(8),
    "an AVIF of data without an end": AVIF_HEAD + b"\0\0\0\0mdat" + bytes(30),
}


def parsed(pieces: Iterable[bytes]) -> StructureParser:
    parser = StructureParser()
    for piece in pieces:
        parser.feed(piece)
    return parser


def split(data: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        size = next(sizes)
        yield data[position : position + size]
        position += size


@pytest.mark.parametrize("kind", IMAGES)
def test_a_whole_image_is_complete_and_a_byte_less_is_not(kind: str) -> None:
    """Whatever makes the format difficult: frames, thumbnails, restarts, odd lengths."""
    data = IMAGES[kind]
    whole, cut = parsed([data]), parsed([data[:-1]])
    assert whole.complete
    assert not cut.complete
    assert whole.format == cut.format == sniff(data[:32])
    assert not whole.rejected


@pytest.mark.parametrize("kind", IMAGES)
def test_no_beginning_of_an_image_is_complete(kind: str) -> None:
    """Fed byte by byte, it becomes complete with its last byte and not before."""
    data, parser = IMAGES[kind], StructureParser()
    for position in range(len(data) - 1):
        assert not parser.complete, position
        assert not parser.rejected
        parser.feed(data[position : position + 1])
    assert not parser.complete
    parser.feed(data[-1:])
    assert parser.complete


@given(st.sampled_from(sorted(IMAGES)), st.lists(st.integers(1, 300), min_size=1), st.data())
def test_the_sizes_of_pieces_change_nothing(
    kind: str, sizes: list[int], draw: st.DataObject
) -> None:
    """They are the network's business; nor do bytes after the end change anything."""
    data = IMAGES[kind]
    position, cycle = draw.draw(st.integers(0, len(data))), itertools.cycle(sizes)
    assert parsed(split(data[:position], cycle)).complete == parsed([data[:position]]).complete
    trailing = draw.draw(st.sampled_from([b"", b"\0", bytes(20), b"trailing \xff\xd9\0\0\0\0IEND"]))
    assert parsed(split(data + trailing, cycle)).complete


@given(st.binary(max_size=400), st.sampled_from([b"", *(d[:40] for d in FORMATS.values())]))
def test_any_bytes_do_no_harm(tail: bytes, head: bytes) -> None:
    """No exception, and what Pillow would not begin to read is not complete by chance."""
    parser = parsed([head + tail])
    assert parser.complete in (True, False)
    if parser.rejected:
        assert not parser.complete


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_structure_is_never_complete(kind: str) -> None:
    """A file that its writer has not finished is often as long as it will be, and half zeros."""
    parser = parsed([BROKEN[kind]])
    assert parser.format is not None
    assert not parser.complete


def test_data_to_the_end_of_a_file_is_as_long_as_it_comes() -> None:
    """A last box of AVIF may say so; then HTTP alone knows its end."""
    assert parsed([AVIF_HEAD + META + b"\0\0\0\0mdat", bytes(99)]).complete


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_image_is_followed_in_little_memory(kind: str) -> None:
    """Only what a step needs is held."""
    data = encoded(kind, size=(1500, 1500))
    parser = StructureParser()
    tracemalloc.start()
    for start in range(0, len(data), 65_536):
        parser.feed(memoryview(data)[start : start + 65_536].tobytes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parser.complete
    assert peak < 200_000


def test_pillow_reads_what_is_complete() -> None:
    """The samples are what they are meant to be."""
    for kind in ("png", "jpg", "gif", "webp", "avif", "an animated PNG", "a JPEG with restarts"):
        with Image.open(io.BytesIO(IMAGES[kind])) as image:
            image.load()


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


@pytest.mark.parametrize("brand", [b"avif", b"avis"])
@pytest.mark.parametrize("others", [0, 4, 10, 58])
def test_an_avif_may_name_many_brands_before_its_own(brand: bytes, others: int) -> None:
    """They are a list, in an order that means nothing; up to 256 bytes of it are read."""
    head = avif_box(b"ftyp", b"mif1" + bytes(4) + b"miaf" * others + brand)
    data = head + META + avif_box(b"mdat", bytes(30))
    assert sniff(data) == sniff(data[:HEAD_SIZE]) is not None
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        assert parsed(pieces).complete
    parser = StructureParser()
    for at in range(len(head)):
        parser.feed(head[at : at + 1])
        assert not parser.rejected


@pytest.mark.parametrize("others", [1, 10, 59, 1000])
def test_a_relative_of_avif_is_rejected_by_its_brands(others: int) -> None:
    """As soon as they have come; what stands after them is no brand."""
    head = avif_box(b"ftyp", b"heic" + bytes(4) + b"miaf" * others + b"heic")
    assert parsed([head + b"avif" * 99]).rejected
    assert parsed([head + bytes(16)]).rejected
    assert sniff(head + bytes(16) + b"avif") is None


def test_the_signature_of_every_format_is_known() -> None:
    """Thirty-two bytes are enough."""
    assert [found.extension for body in FORMATS.values() if (found := sniff(body[:32]))] == list(
        FORMATS
    )
    assert all(sniff(body[:32]) is None for body in NO_IMAGES.values())
    assert all(parsed([body]).rejected for body in NO_IMAGES.values())


@pytest.mark.parametrize(
    ("name", "promised", "is_suffix"),
    [
        ("x.png", ".png", True),
        ("x.JPEG", ".jpg", True),
        ("x.tiff", None, True),
        ("a cat vs. a dog", None, False),
        ("mine.bin", None, False),
        ("version 1.5", None, False),
        (".png", ".png", True),
        ("", None, False),
    ],
)
def test_only_an_images_suffix_counts_as_one(
    name: str, promised: str | None, is_suffix: bool
) -> None:
    """A prompt makes a good file name, full stops and all."""
    found = format_of_name(name)
    assert (found and found.extension) == promised
    assert has_image_suffix(name) == is_suffix
