"""Images, and what is none, that several tests share."""

from tests import faulty
from tests.faulty import PNG, chunked, message

FORMATS = {
    ".png": PNG,
    ".jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(40) + b"\xff\xd9",
    ".gif": b"GIF89a" + bytes(40) + b";",
    ".webp": b"RIFF\x30\x00\x00\x00WEBPVP8 " + bytes(40),
    ".avif": b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00mif1miaf"
    b"\x00\x00\x00\x0cmeta1234\x00\x00\x00\x28mdat" + bytes(32),
}


NO_IMAGES = {
    "a page": b"<!doctype html><html>login</html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>',
    "nothing": b"",
    "JSON": b'{"error": "expired"}',
    "a part of a signature": PNG[:5],
    "other media": b"\x00\x00\x00\x1cftypmp42\x00\x00\x00\x00isommp42" + bytes(40),
    "a sound": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40),
}


CUT = {
    "by length": faulty.raw(message(200, PNG[:40], [("Content-Length", str(len(PNG)))])),
    "in a chunk": faulty.raw(
        message(200, chunked(PNG[:40], end=b"20\r\nab"), [("Transfer-Encoding", "chunked")])
    ),
    "by a reset": faulty.reset(message(200, PNG[:40], [("Content-Length", str(len(PNG)))])),
    "without a length": faulty.raw(b"HTTP/1.1 200 OK\r\n\r\n" + PNG[:60]),
}
