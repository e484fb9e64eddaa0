"""How an image was made, in its own file: written, read and removed, in PNG, JPEG and WebP.

The metadata is one XMP packet, the same in the three formats. It marks the image as machine-made in
the standard way (IPTC's ``DigitalSourceType``) and holds the details as JSON. Pixels are never
decoded, and nothing here needs more than the standard library.
"""

import enum
import html
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

import attrs

from ._pieces import MAX_JPEG_PACKET, Piece, format_with_pieces, is_metadata, is_xmp, join, pieces

__all__ = ["Provenance", "SourceType", "read_provenance", "with_provenance", "without_metadata"]

_SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_NAMESPACE = "urn:imagelabs-sdk:info:1"
_PASSING = ("batch", "seconds", "usage")  # not of the image: the same one has the same bytes
_SOURCE = re.compile(rb"digitalsourcetype/(\w{1,64})[\"'<]")
_INFO = re.compile(rb"""imagelabs:info=(?:"([^"]*)"|'([^']*)')""")
_PROMPT = re.compile(rb'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">(.*?)</', re.S)


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
    found = format_with_pieces(data)
    if not found:
        return data
    lasting = {name: value for name, value in info.items() if name not in _PASSING}
    packet = _packet(source_type, lasting, prompt)
    if found == "JPEG" and len(packet) > MAX_JPEG_PACKET:
        packet = _packet(source_type, {}, None)
    return _joined(found, data, packet, is_xmp)


def without_metadata(data: bytes) -> bytes:
    """Return the file without texts, EXIF, XMP and IPTC; a file of another format as it is.

    Raises:
        ValueError: The file is damaged.
    """
    found = format_with_pieces(data)
    return _joined(found, data, b"", is_metadata) if found else data


def read_provenance(data: bytes) -> Provenance | None:
    """Return what the file says about how its image was made; `None`: nothing."""
    found = format_with_pieces(data)
    try:
        packet = _metadata(found, data) if found else b""
    except ValueError:
        return None
    source, info = _SOURCE.search(packet), _INFO.search(packet)
    if source is None:
        return None
    details = _read_info((info[1] or info[2]) if info else b"")
    prompt = _PROMPT.search(packet)
    text = html.unescape(prompt[1].decode("utf-8", "replace")) if prompt else None
    return Provenance(source[1].decode(), details, text)


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


def _joined(
    found: str, data: bytes, packet: bytes, is_dropped: Callable[[str, Piece], bool]
) -> bytes:
    """Return the file without some of its pieces, and with `packet` unless that is empty."""
    kept = [piece for piece in pieces(found, data) if not is_dropped(found, piece)]
    return join(found, kept, packet)


def _metadata(found: str, data: bytes) -> bytes:
    return b"".join(each[1] for each in pieces(found, data) if is_metadata(found, each))
