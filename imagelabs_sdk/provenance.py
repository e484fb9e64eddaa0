"""How an image was made, in its own file: written, read and removed, in PNG, JPEG and WebP.

The metadata is one XMP packet, the same in the three formats. It marks the image as machine-made in
the standard way (IPTC's ``DigitalSourceType``) and holds the details as JSON. Pixels are never
decoded, and nothing here needs more than the standard library.
"""

import enum
import html
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

import attrs

from .formats import sniff

__all__ = ["Provenance", "SourceType", "read_provenance", "with_provenance", "without_metadata"]

_SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_NAMESPACE = "urn:imagelabs-sdk:info:1"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEYWORD = b"XML:com.adobe.xmp\0\0\0\0\0"
_JPEG_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_ROOM = 65_533 - len(_JPEG_HEADER)  # bytes that one segment holds
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
_JPEG_TEXTS = (0xE1, 0xED, 0xFE)  # EXIF and XMP, IPTC, a comment
_WEBP_TEXTS = (b"EXIF", b"XMP ")
_XMP_FLAG, _EXIF_FLAG, _ALPHA_FLAG = 0x04, 0x08, 0x10
_PASSING = ("batch", "seconds", "usage")  # not of the image: the same one has the same bytes
_SOURCE = re.compile(rb"digitalsourcetype/(\w{1,64})[\"'<]")
_INFO = re.compile(rb"""imagelabs:info=(?:"([^"]*)"|'([^']*)')""")
_PROMPT = re.compile(rb'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">(.*?)</', re.S)

Piece = tuple[bytes, bytes]  # what kind of piece, and the whole of it with its framing


class SourceType(enum.Enum):
    """Where an image comes from, in the words of IPTC's vocabulary."""

    TRAINED = "trainedAlgorithmicMedia"
    """Made by a trained model."""

    ALGORITHMIC = "algorithmicMedia"
    """Made by arithmetic alone, from no training data."""


@attrs.frozen
class Provenance:
    """What a file says about how its image was made.

    Attributes:
        source_type: A word of IPTC's vocabulary, such as ``"trainedAlgorithmicMedia"``.
        info: Engine, model, seed and the like; empty when the file says nothing that we know.
        prompt: What was to be drawn; `None` when it was not written.
    """

    source_type: str
    info: Mapping[str, Any] = attrs.field(factory=dict)
    prompt: str | None = attrs.field(default=None, repr=False)


def with_provenance(
    data: bytes, source_type: SourceType, info: Mapping[str, Any], *, prompt: str | None = None
) -> bytes:
    """Return the file with this as its XMP; a file of another format as it is.

    Args:
        data: A whole PNG, JPEG or WebP.
        source_type: How the image is marked.
        info: Plain JSON values. What differs from one rendering of the same image to the next
            is left out: how long it took, and in which batch.
        prompt: Written as the image's description; `None`: no prompt is written.

    Raises:
        ValueError: The file is damaged.
    """
    found = _format(data)
    if not found:
        return data
    lasting = {name: value for name, value in info.items() if name not in _PASSING}
    packet = _packet(source_type, lasting, prompt)
    if found == "JPEG" and len(packet) > _JPEG_ROOM:
        packet = _packet(source_type, {}, None)
    return _joined(found, data, packet, _is_xmp)


def without_metadata(data: bytes) -> bytes:
    """Return the file without texts, EXIF, XMP and IPTC; a file of another format as it is.

    Raises:
        ValueError: The file is damaged.
    """
    found = _format(data)
    return _joined(found, data, b"", _is_text) if found else data


def read_provenance(data: bytes) -> Provenance | None:
    """Return what the file says about how its image was made; `None`: nothing."""
    found = _format(data)
    try:
        packet = b"".join(_metadata(found, data)) if found else b""
    except (struct.error, IndexError):
        return None
    source, info = _SOURCE.search(packet), _INFO.search(packet)
    if source is None:
        return None
    details = _read_info((info[1] or info[2]) if info else b"")
    prompt = _PROMPT.search(packet)
    text = html.unescape(prompt[1].decode("utf-8", "replace")) if prompt else None
    return Provenance(source[1].decode(), details, text)


def _format(data: bytes) -> str:
    found = sniff(data[:32])
    return found.name if found is not None and found.name in _JOIN else ""


def _packet(source_type: SourceType, info: Mapping[str, Any], prompt: str | None) -> bytes:
    details = quoteattr(json.dumps(dict(info), separators=(",", ":")))
    description = "" if prompt is None else _description(prompt)
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about=""'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/"'
        f' xmlns:imagelabs="{_NAMESPACE}"'
        f' Iptc4xmpExt:DigitalSourceType="{_SOURCES}{source_type.value}"'
        f" imagelabs:info={details}>{description}</rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="w"?>'
    ).encode()


def _description(prompt: str) -> str:
    printable = "".join(c if c.isprintable() or c in "\n\t" else " " for c in prompt)
    text = html.escape(printable, quote=False)
    item = f'<rdf:li xml:lang="x-default">{text}</rdf:li>'
    return f"<dc:description><rdf:Alt>{item}</rdf:Alt></dc:description>"


def _read_info(text: bytes) -> dict[str, Any]:
    try:
        info = json.loads(html.unescape(text.decode()))
    except (ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


# Walking through a file -------------------------------------------------------------------


def _joined(
    found: str, data: bytes, packet: bytes, is_dropped: Callable[[str, Piece], bool]
) -> bytes:
    """Return the file without some of its pieces, and with `packet` unless that is empty."""
    try:
        pieces = [piece for piece in _PIECES[found](data) if not is_dropped(found, piece)]
        return _JOIN[found](pieces, packet)
    except (struct.error, IndexError) as exc:
        raise ValueError("the image file is damaged") from exc


def _is_xmp(found: str, piece: Piece) -> bool:
    kind, whole = piece
    if found == "PNG":
        return kind == b"iTXt" and whole[8:].startswith(_PNG_KEYWORD)
    if found == "JPEG":
        return kind == b"\xe1" and whole[4:].startswith(_JPEG_HEADER)
    return kind == b"XMP "


def _metadata(found: str, data: bytes) -> Iterator[bytes]:
    return (piece[1] for piece in _PIECES[found](data) if _is_text(found, piece))


def _is_text(found: str, piece: Piece) -> bool:
    if found == "JPEG":
        return piece[0] != b"" and piece[0][0] in _JPEG_TEXTS
    return piece[0] in (_PNG_TEXTS if found == "PNG" else _WEBP_TEXTS)


def _png_pieces(data: bytes) -> Iterator[Piece]:
    position = len(_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        yield data[position + 4 : position + 8], data[position : position + 12 + length]
        position += 12 + length


def _join_png(pieces: list[Piece], packet: bytes) -> bytes:
    body = b"iTXt" + _PNG_KEYWORD + packet
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    first, others = pieces[0][1], [whole for _, whole in pieces[1:]]  # IHDR must stay the first
    return b"".join([_SIGNATURE, first, chunk if packet else b"", *others])


def _jpeg_pieces(data: bytes) -> Iterator[Piece]:
    """Segments up to the first scan, then all the rest as one piece without a kind."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        yield data[position + 1 : position + 2], data[position : position + 2 + length]
        position += 2 + length
    yield b"", data[position:]


def _join_jpeg(pieces: list[Piece], packet: bytes) -> bytes:
    body = _JPEG_HEADER + packet
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body if packet else b""
    head = [whole for kind, whole in pieces if kind == b"\xe0"]  # JFIF must stay the first
    others = [whole for kind, whole in pieces if kind != b"\xe0"]
    return b"".join([b"\xff\xd8", *head, segment, *others])


def _webp_pieces(data: bytes) -> Iterator[Piece]:
    position = 12
    while position + 8 <= len(data):
        (length,) = struct.unpack("<I", data[position + 4 : position + 8])
        end = position + 8 + length + length % 2
        yield data[position : position + 4], data[position:end]
        position = end


def _join_webp(pieces: list[Piece], packet: bytes) -> bytes:
    kind, whole = pieces[0]
    if kind == b"VP8X":
        has_exif = any(piece[0] == b"EXIF" for piece in pieces)
        flags = whole[8] & ~(_XMP_FLAG | _EXIF_FLAG)
        flags |= (_XMP_FLAG if packet else 0) | (_EXIF_FLAG if has_exif else 0)
        parts = [whole[:8] + bytes([flags]) + whole[9:], *(piece for _, piece in pieces[1:])]
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
