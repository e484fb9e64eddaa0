"""Undo the content codings of a body in bounded memory."""

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Set

__all__ = ["decode"]

_CHUNK = 65_536  # bytes inflated at once: what is small may become large
_GZIP = 0x1F  # the first byte of gzip, and of no image, no JSON and no text
_TRAILER = 8  # bytes at the end of gzip: a checksum and a length
_COMPRESSED = {"gzip", "x-gzip", "deflate"}


def decode(chunks: Iterable[bytes], headers: Mapping[str, str]) -> Iterator[bytes]:
    """Return the body as it was before it was compressed, inflated in bounded steps.

    The bytes decide more than ``content-encoding``: gzip is undone also where it is not named, or
    was applied twice, and what is only named so passes as it is. An unknown coding counts as none:
    some servers name a character set here. A part of a body (``content-range``) may begin with
    any byte, so only what is named counts there.

    Raises:
        zlib.error: The body is cut or broken; what came before that has been yielded.
    """
    named = {name.strip() for name in headers.get("content-encoding", "").lower().split(",")}
    compressed = named & _COMPRESSED
    if "content-range" in headers and not compressed:
        return iter(chunks)
    return _undo(chunks, compressed, layers=2)


def _undo(chunks: Iterable[bytes], named: Set[str], layers: int) -> Iterator[bytes]:
    pieces = filter(None, chunks)
    head = next(pieces, b"")
    if not head and named:
        raise zlib.error("the compressed body is empty")
    window = _window(head, named) if layers else None
    if window is None:
        yield head
        del head  # an answer may quote a prompt, and error trackers show local variables
        yield from pieces
    else:
        whole, head = itertools.chain([head], pieces), b""
        yield from _undo(_inflate(whole, window), set(), layers - 1)


def _inflate(pieces: Iterable[bytes], window: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(window)
    try:
        for piece in _before_trailers(pieces):
            left = piece
            while left:
                if inflater.eof:
                    if left[0] != _GZIP:
                        break  # what follows the last member means nothing
                    inflater = zlib.decompressobj(window)
                yield inflater.decompress(left, _CHUNK)
                left = inflater.unconsumed_tail or inflater.unused_data
    finally:
        piece = left = b""  # as above: what is no gzip may be plain text
    if not inflater.eof:
        raise zlib.error("the compressed body is cut short")


def _window(head: bytes, named: Set[str]) -> int | None:
    """Return what zlib calls window bits, which say the format; `None`: it is not compressed."""
    if head[:1] == bytes([_GZIP]):
        return zlib.MAX_WBITS | 16
    if named and head:
        # Some servers send deflate without the header of zlib.
        has_header = head[0] & 0x0F == zlib.DEFLATED
        window = zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS
        if (has_header or "deflate" in named) and _can_inflate(head, window):
            return window
    return None


def _can_inflate(head: bytes, window: int) -> bool:
    try:
        zlib.decompressobj(window).decompress(head, _CHUNK)
    except zlib.error:
        return False
    return True


def _before_trailers(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split off what may be a trailer: if that is wrong, zlib keeps all it was given with it."""
    for chunk in chunks:
        yield chunk[:-_TRAILER]
        yield chunk[-_TRAILER:]
