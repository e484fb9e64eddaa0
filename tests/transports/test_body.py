"""Bodies: codings undone in bounded memory."""

import zlib
from collections.abc import Callable
from typing import Any

import pytest

from imagelabs_sdk import APIResponseError, Deadline, ImageLabs, RequestsTransport
from tests import faulty
from tests.faulty import PNG, FaultyServer, message
from tests.transports.peers import get, squeezed

Connect = Callable[..., ImageLabs]


RAW = bytes([0x2B, 0xC8, 0x49, 0xCC, 0xCC, 0x03, 0x00])  # "plain", deflated without a header


def test_a_part_may_begin_as_gzip_does(server: FaultyServer, carry: Any) -> None:
    """One part in 256 does, and what it begins with is the middle of an image."""
    part = b"\x1f\x8b\x08" + PNG
    server.scripts["/x"] = [faulty.raw(message(206, part, [("Content-Range", "bytes 9-99/100")]))]
    assert carry(get(server.url + "/x"))[1] == part


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("identity", b"plain"),
        ("gzip", squeezed(b"plain")),
        ("x-gzip", squeezed(b"plain")),
        ("deflate", zlib.compress(b"plain")),
        ("deflate", RAW),
        ("gzip, identity", squeezed(b"plain")),
        ("GZIP", squeezed(b"plain")),
        ("gzip, gzip", squeezed(b"plain")),
        ("gzip", squeezed(b"pl") + squeezed(b"ain")),
        ("gzip", squeezed(b"plain") + b"nobody's business"),
        ("UTF-8", b"plain"),
        ("rot13, gzip", squeezed(b"plain")),
        ("gzip", b"plain"),
    ],
)
def test_codings_are_undone(server: FaultyServer, carry: Any, encoding: str, body: bytes) -> None:
    """Also those that were not asked for: servers do as they like."""
    server.scripts["/x"] = [faulty.reply(200, body, ("Content-Encoding", encoding))]
    assert carry(get(server.url + "/x"))[1] == b"plain"


def test_a_body_that_never_ceases_to_be_gzip_is_undone_twice(
    server: FaultyServer, carry: Any
) -> None:
    """There are files that hold themselves."""
    body = squeezed(squeezed(squeezed(b"plain")))
    server.scripts["/x"] = [faulty.reply(200, body, ("Content-Encoding", "gzip"))]
    assert carry(get(server.url + "/x"))[1] == squeezed(b"plain")


def test_a_task_id_is_kept_whatever_coding_is_named(server: FaultyServer, connect: Connect) -> None:
    """Some servers name a character set there, or name gzip and send plain text."""
    for coding in ("UTF-8", "gzip"):
        body = b'{"task_id": "t1"}'
        server.scripts["/txt2img"] = [faulty.reply(200, body, ("Content-Encoding", coding))]
        assert connect(server).submit("x").id == "t1"


def test_gzip_may_come_byte_by_byte(server: FaultyServer, carry: Any) -> None:
    """The first byte alone must say how to go on."""
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in squeezed(b"plain")) + b"0\r\n\r\n"
    headers = [("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip")]
    server.scripts["/x"] = [faulty.raw(message(200, pieces, headers))]
    assert carry(get(server.url + "/x"))[1] == b"plain"


def test_a_bomb_is_defused(server: FaultyServer) -> None:
    """A megabyte that becomes a gigabyte must cost neither memory nor time."""
    bomb = squeezed(bytes(64 * 1024 * 1024))
    server.scripts["/x"] = [faulty.reply(200, bomb, ("Content-Encoding", "gzip"))]
    transport = RequestsTransport()
    with transport.send(get(server.url + "/x"), deadline=Deadline.after(10)) as response:
        assert (
            max(len(chunk) for _, chunk in zip(range(50), response.iter_bytes(), strict=False))
            <= 65_536
        )
        with pytest.raises(APIResponseError, match="longer than"):
            response.read(1024 * 1024)
    transport.close()


def test_a_body_without_end_is_cut_off(server: FaultyServer, connect: Connect) -> None:
    """In memory, not only in time: an answer has a megabyte at most."""
    head = message(200, b"", [("Transfer-Encoding", "chunked")])
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    server.scripts["/progress"] = [faulty.endless(piece, head), server.done()]
    assert connect(server).generate("x").read() == PNG
