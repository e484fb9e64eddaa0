"""Undo the content codings of a body in bounded memory."""

import zlib
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["decode"]

_CHUNK = 65_536  # bytes inflated at once: what is small may become large
_GZIP = b"\x1f\x8b"
_COMPRESSED = ("gzip", "x-gzip", "deflate")


def decode(chunks: Iterable[bytes], headers: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the body as it was before ``content-encoding``, inflated in bounded steps.

    An unknown coding counts as none: some servers name a character set here.

    Raises:
        zlib.error: The body is cut or broken, or was compressed twice.
    """
    names = [name.strip() for name in headers.get("content-encoding", "").lower().split(",")]
    # Once each: some proxies repeat the header that they pass on.
    codings = list(dict.fromkeys(name for name in names if name in _COMPRESSED))
    if len(codings) > 1:
        raise zlib.error(f"content-encoding {', '.join(codings)}")
    yield from _inflate(chunks, codings[0]) if codings else chunks


def _inflate(chunks: Iterable[bytes], coding: str) -> Iterator[bytes]:
    inflater = None
    for chunk in chunks:
        if inflater is None and chunk and coding != "deflate" and not _has_header(chunk):
            yield chunk  # named gzip, but not compressed
            yield from chunks
            return
        left = chunk
        while left:
            if inflater is None:
                inflater = _inflater(left)
            elif inflater.eof:
                if not left.startswith(_GZIP):
                    break  # what follows the last member means nothing
                inflater = _inflater(left)
            yield inflater.decompress(left, _CHUNK)
            left = inflater.unconsumed_tail or inflater.unused_data
    if inflater is None or not inflater.eof:
        raise zlib.error("the compressed body is cut short")


def _inflater(head: bytes) -> "zlib._Decompress":
    """Return one for gzip, for zlib, or for deflate without a header, as some servers send it."""
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32 if _has_header(head) else -zlib.MAX_WBITS)


def _has_header(head: bytes) -> bool:
    """Return True for the first byte of gzip or of zlib."""
    return head[0] == _GZIP[0] or head[0] & 0x0F == zlib.DEFLATED
