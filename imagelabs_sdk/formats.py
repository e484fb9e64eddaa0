"""Image formats: recognize one by its first bytes, and tell a whole image from a cut one."""

import attrs

__all__ = ["HEAD_SIZE", "ImageFormat", "is_whole", "sniff"]

HEAD_SIZE = 32
"""How many first bytes `sniff` needs."""


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
_END_MARKS = {_PNG: b"IEND\xaeB`\x82", _JPEG: b"\xff\xd9", _GIF: b";"}


def sniff(head: bytes) -> ImageFormat | None:
    """Return the format of an image by its first 32 bytes; `None` if they are not an image's."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _PNG
    if head.startswith(b"\xff\xd8\xff"):
        return _JPEG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _GIF
    if head[4:8] == b"ftyp" and (b"avif" in head[8:HEAD_SIZE] or b"avis" in head[8:HEAD_SIZE]):
        return _AVIF
    return None


class AvifBoxes:
    """Follow an AVIF file, a sequence of boxes that state their sizes, to its last box."""

    def __init__(self) -> None:
        self._total = self._next = 0  # bytes seen, and where the next box begins
        self._head = b""

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the file."""
        start, self._total = self._total, self._total + len(piece)
        while True:
            here = max(self._next + len(self._head) - start, 0)
            self._head += piece[here : max(self._next + 8 - start, 0)]
            if len(self._head) < 8:
                return
            self._next += max(int.from_bytes(self._head[:4], "big"), 8)
            self._head = b""

    @property
    def complete(self) -> bool:
        """True if the bytes so far end with a box."""
        return self._total == self._next


def is_whole(found: ImageFormat, head: bytes, tail: bytes, total: int, boxes: AvifBoxes) -> bool:
    """Return True if an image of `total` bytes ended where its format says."""
    if found is _AVIF:
        return boxes.complete
    if found is _WEBP:
        return total >= 8 + int.from_bytes(head[4:8], "little")
    return tail.endswith(_END_MARKS[found])
