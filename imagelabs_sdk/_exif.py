"""The texts in EXIF in which programs tell how an image was made; no other tag is read.

EXIF is TIFF without an image: a byte order, then directories of entries of 12 bytes each. A value
of up to four bytes stands in its entry, a longer one elsewhere in the block. An entry that makes no
sense is left out; whatever the bytes are, no error is raised.
"""

from collections.abc import Mapping
from typing import Literal

import attrs

__all__ = ["ExifTexts", "read_exif"]

_ByteOrder = Literal["little", "big"]

_MAX_TEXT = 4 * 1024 * 1024  # bytes of one text
_ORDERS: Mapping[bytes, _ByteOrder] = {b"II*\0": "little", b"MM\0*": "big"}
_DESCRIPTION, _MAKE, _MODEL, _EXIF, _USER_COMMENT = 0x010E, 0x010F, 0x0110, 0x8769, 0x9286
_WANTED = (_DESCRIPTION, _MAKE, _MODEL, _EXIF, _USER_COMMENT)
_ENTRY = 12  # bytes
_LONG = 4  # the type of a whole number of four bytes
_BYTE_TYPES = (1, 2, 7)  # BYTE, ASCII and UNDEFINED: all three are used for texts


@attrs.frozen
class ExifTexts:
    """The texts of one block of EXIF.

    Attributes:
        comment: The user's comment; empty: none.
        camera: The description, the make and the model, as far as they are there, in this order.
    """

    comment: str = ""
    camera: tuple[str, ...] = ()


def read_exif(block: bytes) -> ExifTexts:
    """Return the texts of a block that begins with its byte order."""
    order = _ORDERS.get(block[:4])
    if order is None:
        return ExifTexts()
    main = _directory(block, order, int.from_bytes(block[4:8], order))
    pointer = main.get(_EXIF)
    inner = _directory(block, order, int.from_bytes(pointer, order)) if pointer else {}
    camera = tuple(_utf_8(main[tag]) for tag in (_DESCRIPTION, _MAKE, _MODEL) if tag in main)
    return ExifTexts(_comment(inner.get(_USER_COMMENT, b"")), camera)


def _directory(block: bytes, order: _ByteOrder, place: int) -> Mapping[int, bytes]:
    """Return the values of the entries that are wanted, by tag; of equal tags the first."""

    def number(start: int, size: int) -> int:
        return int.from_bytes(block[start : start + size], order)

    values: dict[int, bytes] = {}
    end = min(place + 2 + _ENTRY * number(place, 2), len(block))
    for entry in range(place + 2, end, _ENTRY):
        tag, kind, count = number(entry, 2), number(entry + 2, 2), number(entry + 4, 4)
        if tag not in _WANTED or tag in values or kind not in (_LONG, *_BYTE_TYPES):
            continue
        size = 4 if kind == _LONG else count
        start = entry + 8 if size <= 4 else number(entry + 8, 4)
        value = block[start : start + size]
        if len(value) == size <= _MAX_TEXT:
            values[tag] = value
    return values


def _comment(value: bytes) -> str:
    """Decode a comment by the name of its encoding, which some programs leave out."""
    code, text = value[:8], value[8:]
    if code == b"UNICODE\0":
        return _utf_16(text)
    return _utf_8(text if code in (b"ASCII\0\0\0", bytes(8)) else value)


def _utf_8(text: bytes) -> str:
    return text.decode("utf-8", "replace").rstrip("\0")


def _utf_16(text: bytes) -> str:
    """Decode UTF-16 by its mark, or by a guess: programs use both orders, whatever the block's.

    The high bytes of a text vary less than its low bytes.
    """
    if text.startswith((b"\xfe\xff", b"\xff\xfe")):
        return text.decode("utf-16", "replace").rstrip("\0")
    is_little = len(set(text[1::2])) < len(set(text[::2]))
    return text.decode("utf-16-le" if is_little else "utf-16-be", "replace").rstrip("\0")
