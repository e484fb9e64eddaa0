"""Images, and what is none, that several tests share."""

import io
from typing import Any

from PIL import Image

from tests import faulty
from tests.faulty import PNG, chunked, message


def encoded(kind: str, *, size: tuple[int, int] = (48, 32), frames: int = 1, **how: Any) -> bytes:
    """An image of noise, which no format makes small, as Pillow writes it."""
    images = [Image.effect_noise(size, 90 + n).convert("RGB") for n in range(frames)]
    if frames > 1:
        how |= {"save_all": True, "append_images": images[1:]}
    buffer = io.BytesIO()
    images[0].save(buffer, kind, **how)
    return buffer.getvalue()


FORMATS = {
    ".png": PNG,
    ".jpg": encoded("JPEG"),
    ".gif": encoded("GIF"),
    ".webp": encoded("WEBP"),
    ".avif": encoded("AVIF"),
}


NO_IMAGES = {
    "a page": b"<!doctype html><html>login</html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>',
    "JSON": b'{"error": "expired"}',
    "other media": b"\x00\x00\x00\x1cftypmp42\x00\x00\x00\x00isommp42" + bytes(40),
    "a sound": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40),
}


CUT = {
    "by length": faulty.raw(message(200, PNG[:40], [("Content-Length", str(len(PNG)))])),
    "in a chunk": faulty.raw(
        message(200, chunked(PNG[:40], end=b"20\r\nab"), [("Transfer-Encoding", "chunked")])
    ),
    "by a reset": faulty.reset(message(200, PNG[:40], [("Content-Length", str(len(PNG)))])),
    "although its length is right": faulty.reply(200, PNG[:-1]),
    "before anything came": faulty.reply(200, b""),
    "inside its signature": faulty.reply(200, PNG[:5]),
    "without a length": faulty.raw(b"HTTP/1.1 200 OK\r\n\r\n" + PNG[:60]),
}
