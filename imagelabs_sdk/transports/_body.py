"""Undo the content codings of a body in bounded memory."""

import zlib
from collections.abc import Iterable, Iterator, Mapping

from .._redact import sanitize_text

__all__ = ["decode"]

_CHUNK = 65_536  # bytes inflated at once: what is small may become large
_GZIP = b"\x1f\x8b"


def decode(chunks: Iterable[bytes], headers: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the body as it was before ``content-encoding``, inflated in bounded steps.

    Raises:
        zlib.error: The body is cut or broken, or its coding is unknown.
    """
    names = [name.strip() for name in headers.get("content-encoding", "").lower().split(",")]
    # Once each: some proxies repeat the header that they pass on.
    codings = list(dict.fromkeys(name for name in names if name not in ("identity", "")))
    if not codings:
        yield from chunks
    elif codings[0] in ("gzip", "x-gzip", "deflate") and len(codings) == 1:
        yield from _inflate(chunks)
    else:
        raise zlib.error(f"unknown content-encoding {sanitize_text(', '.join(codings), 40)}")


def _inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    inflater = None
    for chunk in chunks:
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
    headed = head.startswith(_GZIP) or head[0] & 0x0F == zlib.DEFLATED
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32 if headed else -zlib.MAX_WBITS)
