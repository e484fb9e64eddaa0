"""The pieces of an image's file: walk through PNG, JPEG and WebP, and put them together again.

Pixels are never decoded, and nothing here needs more than the standard library.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

from .formats import sniff

__all__ = [
    "MAX_JPEG_PACKET",
    "Piece",
    "exif_blocks",
    "format_with_pieces",
    "is_metadata",
    "is_xmp",
    "join",
    "pieces",
]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF = b"Exif\0\0"
_XMP_FLAG, _EXIF_FLAG, _ALPHA_FLAG = 0x04, 0x08, 0x10

MAX_JPEG_PACKET = 65_533 - len(_JPEG_XMP)
"""Bytes of XMP that a JPEG file holds, in one segment."""

Piece = tuple[bytes, bytes]
"""What kind of piece, and the whole of it with its framing."""


def format_with_pieces(data: bytes) -> str:
    """Return ``"PNG"``, ``"JPEG"`` or ``"WebP"``; empty: a file of another kind."""
    found = sniff(data[:32])
    return found.name if found is not None and found.name in _PIECES else ""


def pieces(found: str, data: bytes) -> Iterator[Piece]:
    """Yield the pieces of a file of this format; the last one may be cut.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        yield from _PIECES[found](data)
    except (struct.error, IndexError) as exc:
        raise ValueError("the image file is damaged") from exc


def join(found: str, kept: list[Piece], packet: bytes) -> bytes:
    """Return the file of these pieces, with `packet` as its XMP unless that is empty.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return _JOIN[found](kept, packet)
    except (struct.error, IndexError) as exc:
        raise ValueError("the image file is damaged") from exc


def is_xmp(found: str, piece: Piece) -> bool:
    """Return True if the piece is XMP."""
    kind, whole = piece
    if found == "PNG":
        return kind == b"iTXt" and whole[8:].startswith(_PNG_XMP)
    if found == "JPEG":
        return kind == b"\xe1" and whole[4:].startswith(_JPEG_XMP)
    return kind == b"XMP "


def is_metadata(found: str, piece: Piece) -> bool:
    """Return True if the piece is a text, EXIF, XMP or IPTC."""
    return piece[0] in _METADATA[found]


def exif_blocks(found: str, data: bytes) -> Iterator[bytes]:
    """Yield the EXIF of a JPEG or WebP file, each block from its byte order on.

    Raises:
        ValueError: The file is damaged.
    """
    for kind, whole in pieces(found, data):
        if found == "JPEG" and kind == b"\xe1" and whole[4:].startswith(_EXIF):
            yield whole[4 + len(_EXIF) :]
        elif found == "WebP" and kind == b"EXIF":
            yield whole[8:].removeprefix(_EXIF)  # which some writers keep as in JPEG


# One format after the other ---------------------------------------------------------------------


def _png_pieces(data: bytes) -> Iterator[Piece]:
    position = len(_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        yield data[position + 4 : position + 8], data[position : position + 12 + length]
        position += 12 + length


def _join_png(kept: list[Piece], packet: bytes) -> bytes:
    body = b"iTXt" + _PNG_XMP + packet
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    first, others = kept[0][1], [whole for _, whole in kept[1:]]  # IHDR must stay the first
    return b"".join([_SIGNATURE, first, chunk if packet else b"", *others])


def _jpeg_pieces(data: bytes) -> Iterator[Piece]:
    """Segments up to the first scan, then all the rest as one piece without a kind."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        yield data[position + 1 : position + 2], data[position : position + 2 + length]
        position += 2 + length
    yield b"", data[position:]


def _join_jpeg(kept: list[Piece], packet: bytes) -> bytes:
    body = _JPEG_XMP + packet
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body if packet else b""
    head = [whole for kind, whole in kept if kind == b"\xe0"]  # JFIF must stay the first
    others = [whole for kind, whole in kept if kind != b"\xe0"]
    return b"".join([b"\xff\xd8", *head, segment, *others])


def _webp_pieces(data: bytes) -> Iterator[Piece]:
    position = 12
    while position + 8 <= len(data):
        (length,) = struct.unpack("<I", data[position + 4 : position + 8])
        end = position + 8 + length + length % 2
        yield data[position : position + 4], data[position:end]
        position = end


def _join_webp(kept: list[Piece], packet: bytes) -> bytes:
    kind, whole = kept[0]
    if kind == b"VP8X":
        has_exif = any(piece[0] == b"EXIF" for piece in kept)
        flags = whole[8] & ~(_XMP_FLAG | _EXIF_FLAG)
        flags |= (_XMP_FLAG if packet else 0) | (_EXIF_FLAG if has_exif else 0)
        parts = [whole[:8] + bytes([flags]) + whole[9:], *(piece for _, piece in kept[1:])]
    else:
        parts = [_extended_header(kind, whole), whole] if packet else [whole]
    if packet:
        padding = b"\0" * (len(packet) % 2)
        parts.append(b"XMP " + struct.pack("<I", len(packet)) + packet + padding)
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _extended_header(kind: bytes, whole: bytes) -> bytes:
    """Make the header that a WebP file needs before it may hold metadata."""
    flags = _XMP_FLAG
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", whole[9:13])
        width, height = bits & 0x3FFF, bits >> 14 & 0x3FFF
        flags |= _ALPHA_FLAG if bits >> 28 & 1 else 0
    else:
        sides = struct.unpack("<HH", whole[14:18])
        width, height = ((side & 0x3FFF) - 1 for side in sides)
    size = struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
    return b"VP8X" + struct.pack("<IB3x", 10, flags) + size


_PIECES: Mapping[str, Callable[[bytes], Iterator[Piece]]] = {
    "PNG": _png_pieces,
    "JPEG": _jpeg_pieces,
    "WebP": _webp_pieces,
}
_JOIN: Mapping[str, Callable[[list[Piece], bytes], bytes]] = {
    "PNG": _join_png,
    "JPEG": _join_jpeg,
    "WebP": _join_webp,
}
_METADATA: Mapping[str, tuple[bytes, ...]] = {
    "PNG": (b"tEXt", b"zTXt", b"iTXt", b"eXIf"),
    "JPEG": (b"\xe1", b"\xed", b"\xfe"),  # EXIF and XMP, IPTC, a comment
    "WebP": (b"EXIF", b"XMP "),
}
