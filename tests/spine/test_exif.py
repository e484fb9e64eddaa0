"""The texts in EXIF, whatever the bytes around them are."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagelabs_sdk._exif import ExifTexts, read_exif

MODEL, EXIF, COMMENT = 0x0110, 0x8769, 0x9286
ASCII, SHORT, LONG, UNDEFINED = 2, 3, 4, 7


def directory(*entries: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    rows = (
        struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
        for tag, kind, count, value in entries
    )
    return struct.pack(f"{order}H", len(entries)) + b"".join(rows) + bytes(4)


def block(*entries: tuple[int, int, int, bytes], after: bytes = b"") -> bytes:
    return b"MM\0*\0\0\0\x08" + directory(*entries) + after


def at(place: int) -> bytes:
    return struct.pack(">I", place)


def test_a_file_of_piexif_is_read() -> None:
    """As AUTOMATIC1111 writes it: the order of the block and of the text are both big-endian."""
    # piexif.dump({"Exif": {UserComment: UserComment.dump("\u5854 by night", encoding="unicode")}})
    written = bytes.fromhex(
        "4d4d002a00000008000187690004000000010000001a000000000001928600070000001c00000028554e49434f44450058540020006200790020006e0069006700680074"
    )
    assert read_exif(written) == ExifTexts("塔 by night")


def test_a_short_text_stands_in_its_entry() -> None:
    """Up to four bytes need no place of their own."""
    assert read_exif(block((MODEL, ASCII, 4, b"abc\0"))).camera == ("abc",)


@pytest.mark.parametrize(
    "entry",
    [
        (MODEL, SHORT, 2, b"ab\0\0"),
        (MODEL, ASCII, 5, at(9999)),
        (MODEL, ASCII, 0xFFFFFFFF, at(0)),
        (0x0131, ASCII, 4, b"abc\0"),
    ],
    ids=["of another type", "behind the end", "without an end", "of another tag"],
)
def test_an_entry_that_makes_no_sense_is_left_out(entry: tuple[int, int, int, bytes]) -> None:
    """The others are read all the same."""
    assert read_exif(block(entry)) == ExifTexts()


def test_a_text_of_many_megabytes_is_left_out() -> None:
    """A file may be as large as it likes."""
    most = 4 * 1024 * 1024
    for size, found in ((most, ("x" * most,)), (most + 1, ())):
        large = block((MODEL, ASCII, size, at(26)), after=b"x" * size)
        assert read_exif(large).camera == found


def test_of_equal_tags_the_first_is_read() -> None:
    """So that many entries cannot ask for the same megabytes again and again."""
    twice = block((MODEL, ASCII, 2, b"a\0"), (MODEL, ASCII, 2, b"b\0"))
    assert read_exif(twice).camera == ("a",)


def test_directories_in_a_circle_end() -> None:
    """One leads to the next and no further."""
    assert (
        read_exif(block((EXIF, LONG, 1, at(8)), (COMMENT, UNDEFINED, 3, b"abc"))).comment == "abc"
    )


@pytest.mark.parametrize("data", [b"", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"no EXIF at all"])
def test_what_is_no_exif_holds_no_text(data: bytes) -> None:
    """A file may say that it has some."""
    assert not read_exif(data).comment
    assert not read_exif(data).camera


@given(st.sampled_from([b"II*\0", b"MM\0*"]), st.binary(max_size=300))
def test_no_bytes_break_the_reader(order: bytes, data: bytes) -> None:
    """Whatever follows the byte order."""
    texts = read_exif(order + data)
    assert len(texts.comment) + sum(map(len, texts.camera)) <= 4 * len(order + data)
