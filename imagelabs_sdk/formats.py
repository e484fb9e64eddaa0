"""Image formats: recognize one by its first bytes, and follow its structure to its end."""

import re
from collections.abc import Callable, Generator
from typing import Literal, NamedTuple

import attrs

__all__ = [
    "HEAD_SIZE",
    "ImageFormat",
    "StructureParser",
    "format_of_name",
    "has_image_suffix",
    "sniff",
]

HEAD_SIZE = 256
"""How many first bytes `sniff` needs at most: an AVIF may name many brands before its own."""

_SHORT_HEAD = 32  # bytes that tell every other format
_LEAST_BOX = 16  # bytes of a ``ftyp`` box with its first brand; smaller lengths have a meaning


@attrs.frozen
class ImageFormat:
    """A format of image files.

    Attributes:
        name: Such as ``"PNG"``.
        extension: With its dot.
        media_type: Such as ``"image/png"``.
    """

    name: str
    extension: str
    media_type: str


_PNG = ImageFormat("PNG", ".png", "image/png")
_JPEG = ImageFormat("JPEG", ".jpg", "image/jpeg")
_WEBP = ImageFormat("WebP", ".webp", "image/webp")
_GIF = ImageFormat("GIF", ".gif", "image/gif")
_AVIF = ImageFormat("AVIF", ".avif", "image/avif")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"GIF87a", b"GIF89a")
_BY_SUFFIX = {
    **dict.fromkeys((".png", ".apng"), _PNG),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), _JPEG),
    ".webp": _WEBP,
    ".gif": _GIF,
    **dict.fromkeys((".avif", ".avifs"), _AVIF),
}
_OTHER_SUFFIXES = (".bmp", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".svg", ".tif", ".tiff")
_AVIF_BOXES = (b"meta", b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"uuid")
_SUFFIX = re.compile(r"\.[0-9A-Za-z]+$")


def sniff(head: bytes) -> ImageFormat | None:
    """Return the format of an image by its first 256 bytes; `None` if they are not an image's.

    32 are enough for all but an AVIF that names many other brands first.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _PNG
    if head.startswith(b"\xff\xd8\xff"):
        return _JPEG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _GIF
    if head[4:8] == b"ftyp":
        brands = head[8 : _telling_size(head)]
        if b"avif" in brands or b"avis" in brands:
            return _AVIF
    return None


def _telling_size(head: bytes) -> int:
    """Return how many first bytes tell the format: of a file of boxes all of the first one."""
    box = int.from_bytes(head[:4], "big") if head[4:8] == b"ftyp" else 0
    return min(box, HEAD_SIZE) if box >= _LEAST_BOX else _SHORT_HEAD


def format_of_name(name: str) -> ImageFormat | None:
    """Return the format that a file's name promises by its suffix; `None` if it has none."""
    return _BY_SUFFIX.get(_suffix(name))


def has_image_suffix(name: str) -> bool:
    """Return True if a file's name ends like an image's, also of a format not read here."""
    return _suffix(name) in _BY_SUFFIX or _suffix(name) in _OTHER_SUFFIXES


def _suffix(name: str) -> str:
    found = _SUFFIX.search(name)
    return found[0].lower() if found else ""


# The structure ------------------------------------------------------------------------


class _Step(NamedTuple):
    """What a format's structure wants next.

    ``read``: the next `number` bytes. ``peek``: the same, if there are any: the image may end
    here. ``skip``: as many bytes unseen. ``find``: everything up to and with the byte `number`.
    """

    kind: Literal["read", "peek", "skip", "find"]
    number: int


_Structure = Generator[_Step, bytes, None]
"""Asks for bytes by steps, is sent those that were read, and ends where the image does."""


class _BrokenError(Exception):
    """The bytes do not follow the structure of their format."""


class StructureParser:
    """Find out if an image is whole by its own structure, as its bytes arrive.

    Memory stays bounded by a few bytes, whatever the image's size.

    Attributes:
        format: `None` until the first bytes have told it.
        complete: True once all bytes of the image have been seen. Bytes after its end are
            allowed; they do not change it.
        ended: True once no further byte can be the image's.
    """

    def __init__(self) -> None:
        self.format: ImageFormat | None = None
        self._held = b""  # the first bytes, or those of a step that is not finished
        self._structure: _Structure | None = None
        self._step: _Step | None = None
        self.ended = False

    @property
    def complete(self) -> bool:
        """True once all bytes of the image have been seen."""
        return self.ended or (self._step is not None and self._step.kind == "peek")

    @property
    def rejected(self) -> bool:
        """True once the first bytes cannot be the beginning of an image."""
        if self.format is not None:
            return False
        head = self._held
        begins = any(signature.startswith(head[: len(signature)]) for signature in _SIGNATURES)
        return len(head) >= _telling_size(head) or not (
            begins or head[4:8] == b"ftyp"[: len(head[4:])]
        )

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the image, as many as there happen to be."""
        if self.format is None:
            piece = self._held + piece
            self.format = sniff(piece[:HEAD_SIZE])
            if self.format is None:
                self._held = piece[:HEAD_SIZE]
                return
            self._held = b""
            self._structure = _STRUCTURES[self.format]()
            self._advance(None)
        self._follow(piece)

    def _follow(self, piece: bytes) -> None:
        position, size = 0, len(piece)
        while self._step is not None and position < size:
            kind, count = self._step  # of bytes; of a find it is the byte
            if kind == "find":
                found = piece.find(count, position)
                position = size if found < 0 else found + 1
                if found >= 0:
                    self._advance(b"")
            elif kind == "skip":
                step = min(count, size - position)
                position += step
                self._step = _Step("skip", count - step)
                if step == count:
                    self._advance(b"")
            else:
                taken = piece[position : position + count - len(self._held)]
                position += len(taken)
                self._held += taken
                if len(self._held) == count:
                    read, self._held = self._held, b""
                    self._advance(read)

    def _advance(self, read: bytes | None) -> None:
        """Ask the structure for its next step that takes any bytes."""
        assert self._structure is not None
        try:
            step = self._structure.send(read)  # type: ignore[arg-type]
            while step.number == 0 and step.kind == "skip":
                step = next(self._structure)
            self._step = step
        except StopIteration:
            self._step, self.ended = None, True
        except _BrokenError:
            self._step = None


def _read(count: int) -> _Step:
    return _Step("read", count)


def _skip(count: int) -> _Step:
    return _Step("skip", count)


def _png() -> _Structure:
    """Chunks of length, type, data and checksum, to IEND; with data in at least one IDAT."""
    yield _skip(8)
    has_data = False
    while True:
        head = yield _read(8)
        if not head[4:].isalpha():
            raise _BrokenError
        yield _skip(int.from_bytes(head[:4], "big") + 4)
        has_data = has_data or head[4:] == b"IDAT"
        if head[4:] == b"IEND":
            break
    if not has_data:
        raise _BrokenError


def _jpeg() -> _Structure:
    """Segments by their lengths, and after each start of a scan its data, to the end marker."""
    yield _skip(2)
    has_scan = False
    while True:
        yield _Step("find", 0xFF)
        marker = b"\xff"
        while marker == b"\xff":  # filling bytes
            marker = yield _read(1)
        code = marker[0]
        if code == 0xD9:
            break
        if code in (0x00, 0x01) or 0xD0 <= code <= 0xD8:  # no segment: data, restarts
            continue
        length = int.from_bytes((yield _read(2)), "big")
        if length < 2:
            raise _BrokenError
        yield _skip(length - 2)
        has_scan = has_scan or code == 0xDA
    if not has_scan:
        raise _BrokenError


def _gif() -> _Structure:
    """Blocks, each a row of sub-blocks by their lengths, to the trailer."""
    yield _skip(6)
    screen = yield _read(7)
    yield _skip(_color_table_size(screen[4]))
    has_image = False
    while True:
        kind = yield _read(1)
        if kind == b";":
            break
        if kind == b"!":
            yield _skip(1)  # the extension's label
        elif kind == b",":
            descriptor = yield _read(9)
            yield _skip(_color_table_size(descriptor[8]) + 1)  # and the size of its codes
            has_image = True
        elif kind == b"\0":  # some writers end a block twice
            continue
        else:
            raise _BrokenError
        while (size := (yield _read(1))[0]) > 0:
            yield _skip(size)
    if not has_image:
        raise _BrokenError


def _color_table_size(flags: int) -> int:
    return 3 * 2 ** ((flags & 0x07) + 1) if flags & 0x80 else 0


def _webp() -> _Structure:
    """Chunks of type, length and data, to the length that the head of the file states."""
    head = yield _read(12)
    left = int.from_bytes(head[4:8], "little") - 4
    has_image = False
    while left >= 8:
        head = yield _read(8)
        size = int.from_bytes(head[4:], "little")
        left -= 8 + size
        yield _skip(size)
        if left > 0:
            yield _skip(size % 2)  # a filling byte, which some writers leave out at the end
            left -= size % 2
        has_image = has_image or head[:4] in (b"VP8 ", b"VP8L", b"ANMF")
    if not has_image:
        raise _BrokenError
    if left > 0:
        yield _skip(left)


def _avif() -> _Structure:
    """Boxes of length, type and data: the description and its data, in either order."""
    has_description = has_data = False
    while True:
        whole = has_description and has_data
        head = yield _Step("peek" if whole else "read", 8)
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if whole and kind not in _AVIF_BOXES:
            return  # these bytes come after the image
        if not re.fullmatch(rb"[ 0-9A-Za-z]{4}", kind):
            raise _BrokenError
        left = size - 8
        if size == 1:
            left = int.from_bytes((yield _read(8)), "big") - 16
        has_description = has_description or kind in (b"meta", b"moov")
        has_data = has_data or kind == b"mdat"
        if size == 0:  # to the end of the file, which only HTTP knows
            if has_description and has_data:
                return
            raise _BrokenError
        if left < 0:
            raise _BrokenError
        if kind == b"meta" and left >= 4:
            has_data = (yield from _has_data_inside(left)) or has_data
        else:
            yield _skip(left)


def _has_data_inside(left: int) -> Generator[_Step, bytes, bool]:
    """Go through the boxes in a meta box; return True if one of them holds the image's data."""
    yield _skip(4)
    left -= 4
    found = False
    while left >= 8:
        head = yield _read(8)
        size = min(max(int.from_bytes(head[:4], "big"), 8), left)
        yield _skip(size - 8)
        left -= size
        found = found or head[4:] == b"idat"
    yield _skip(left)
    return found


_STRUCTURES: dict[ImageFormat, Callable[[], _Structure]] = {
    _PNG: _png,
    _JPEG: _jpeg,
    _GIF: _gif,
    _WEBP: _webp,
    _AVIF: _avif,
}
