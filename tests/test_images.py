"""Finished images: only a whole image is saved, and the server does not steer the fetching."""

import errno
import gzip
import os
import stat
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import (
    DownloadError,
    GeneratedImage,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    InvalidRequestError,
)
from imagelabs_sdk.images import sniff

from . import faulty
from .faulty import PNG, FaultyServer, chunked, message

Connect = Callable[..., ImageLabs]
squeezed = partial(gzip.compress, mtime=0)  # the same in every worker of the test runner

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


@pytest.fixture
def image(server: FaultyServer, connect: Connect) -> Callable[..., GeneratedImage]:
    """A finished image whose address answers by the given script."""

    def make(*script: faulty.Answer, **settings: Any) -> GeneratedImage:
        server.scripts["/image.png"] = list(script)
        return connect(server, **settings).generate("x")

    return make


Make = Callable[..., GeneratedImage]


# What is saved ------------------------------------------------------------------------


@pytest.mark.parametrize("extension", FORMATS)
def test_an_image_of_every_kind_is_saved_whole(image: Make, tmp_path: Path, extension: str) -> None:
    """And gets the extension of its bytes when the path has none."""
    it = image(faulty.reply(200, FORMATS[extension], ("Content-Type", "text/plain")))
    path = it.save(tmp_path / "lighthouse")
    assert path == tmp_path / f"lighthouse{extension}"
    assert path.read_bytes() == it.read() == b"".join(it.iter_bytes()) == FORMATS[extension]
    assert it.save(str(tmp_path / "mine.bin")).name == "mine.bin"


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_not_saved(
    server: FaultyServer, image: Make, tmp_path: Path, kind: str
) -> None:
    """Whatever its Content-Type claims; said at once, with the job at hand."""
    it = image(faulty.reply(200, NO_IMAGES[kind], ("Content-Type", "image/png")))
    for attempt in (lambda: it.save(tmp_path / "x.png"), it.read):
        with pytest.raises(DownloadError) as caught:
            attempt()
        assert caught.value.task_id == "task-1"
        assert caught.value.job == it.job
        assert caught.value.url == it.url
    assert list(tmp_path.iterdir()) == []
    assert server.count("/image.png") == 2


@pytest.mark.parametrize("length", ["none", "abc", "-1", ""])
@pytest.mark.parametrize("extension", FORMATS)
def test_without_a_length_the_format_tells_the_end(
    image: Make, extension: str, length: str
) -> None:
    """A body that ends where its connection does may have been cut by a single byte."""
    head = "" if length == "none" else f"Content-Length: {length}\r\n"
    start, body = f"HTTP/1.1 200 OK\r\n{head}\r\n".encode(), FORMATS[extension]
    with pytest.raises(DownloadError):
        image(faulty.raw(start + body[:-1])).read()
    assert image(faulty.raw(start + body)).read() == body


CUT = {
    "by length": faulty.raw(message(200, PNG[:40], [("Content-Length", str(len(PNG)))])),
    "in a chunk": faulty.raw(
        message(200, chunked(PNG[:40], end=b"20\r\nab"), [("Transfer-Encoding", "chunked")])
    ),
    "by a reset": faulty.reset(message(200, PNG[:40], [("Content-Length", str(len(PNG)))])),
    "without a length": faulty.raw(b"HTTP/1.1 200 OK\r\n\r\n" + PNG[:60]),
}


@pytest.mark.parametrize("kind", CUT)
def test_an_image_that_breaks_off_is_fetched_again(
    server: FaultyServer, image: Make, tmp_path: Path, kind: str
) -> None:
    """A GET may be repeated; half an image is none."""
    it = image(CUT[kind], faulty.reply(200, PNG))
    assert it.save(tmp_path / "x.png").read_bytes() == PNG
    assert server.count("/image.png") == 2


@pytest.mark.parametrize("kind", CUT)
def test_a_failure_leaves_what_was_there(image: Make, tmp_path: Path, kind: str) -> None:
    """Whole or not at all: the old file stays, and no stray file with it."""
    target = tmp_path / "x.png"
    target.write_bytes(b"old")
    it = image(CUT[kind])
    with pytest.raises(DownloadError):
        it.save(target, timeout=1.2)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_image_that_ends_with_its_connection_is_whole_by_its_end_mark(image: Make) -> None:
    """HTTP alone could not tell it from one cut short."""
    assert image(faulty.raw(b"HTTP/1.1 200 OK\r\n\r\n" + PNG)).read() == PNG


def test_a_passing_failure_is_outlasted(server: FaultyServer, image: Make, tmp_path: Path) -> None:
    """Three attempts; then the last error is told."""
    assert image(faulty.reply(503), faulty.reset(), faulty.reply(200, PNG)).read() == PNG
    server.asked.clear()
    with pytest.raises(DownloadError) as caught:
        image(faulty.reply(500)).read()
    assert caught.value.status_code == 500
    assert server.count("/image.png") == 3


@pytest.mark.parametrize("code", [400, 401, 402, 451])
def test_a_refused_image_is_said_at_once(server: FaultyServer, image: Make, code: int) -> None:
    """Asking on cannot help."""
    with pytest.raises(DownloadError, match=str(code)) as caught:
        image(faulty.reply(code)).read()
    assert caught.value.status_code == code
    assert server.count("/image.png") == 1


@pytest.mark.parametrize(
    "answer",
    [
        faulty.reply(200, PNG + bytes(1000)),
        faulty.raw(
            message(200, chunked(PNG, bytes(1000)), [("Transfer-Encoding", "chunked")])
        ),
        faulty.endless(b"10\r\n" + bytes(16) + b"\r\n", message(
            200, chunked(PNG, end=b""), [("Transfer-Encoding", "chunked")]
        )),
        faulty.raw(b"HTTP/1.1 200 OK\r\n\r\n" + PNG + bytes(1000)),
        faulty.reply(200, squeezed(PNG + bytes(1000)), ("Content-Encoding", "gzip")),
    ],
)  # fmt: skip
def test_an_image_over_the_cap_is_not_taken(
    image: Make, tmp_path: Path, answer: faulty.Answer
) -> None:
    """Whether its length is announced, found out, or endless."""
    it = image(answer, max_image_bytes=len(PNG) + 500)
    with pytest.raises(DownloadError, match="larger than"):
        it.save(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_saving_ends_at_its_deadline(image: Make, tmp_path: Path) -> None:
    """Also against a body that drips for minutes."""
    it = image(faulty.drip(PNG * 50, message(200, b"", [("Content-Length", "9999")])))
    with pytest.raises(DownloadError, match="in time"):
        it.save(tmp_path / "x.png", timeout=0.3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", [0, -1, "1", True])
def test_a_timeout_must_make_sense(image: Make, timeout: Any) -> None:
    """Before anything is fetched."""
    with pytest.raises(InvalidRequestError, match="timeout"):
        image(faulty.reply(200, PNG)).read(timeout=timeout)


@pytest.mark.parametrize("path", ["no/such/folder/x.png", "", "/", ".", "a\0b", "x" * 9000])
def test_a_path_that_cannot_be_written_is_said_first(
    server: FaultyServer, image: Make, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the download."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match="path") as caught:
        image(faulty.reply(200, PNG)).save(path)
    assert caught.value.task_id == "task-1"
    assert server.count("/image.png") == 0


def test_a_full_disk_leaves_nothing_behind(
    image: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The system's own error passes through."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        image(faulty.reply(200, PNG)).save(tmp_path / "x.png")
    assert "the job goes on at the service: task id task-1" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_saved_file_has_the_usual_permissions(image: Make, tmp_path: Path) -> None:
    """Temporary files are often private; an image is a file like any other."""
    other = tmp_path / "other"
    other.touch()
    path = image(faulty.reply(200, PNG)).save(tmp_path / "x.png")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_an_image_is_streamed(image: Make) -> None:
    """Whoever passes it on need not hold it."""
    whole = PNG[:8] + bytes(3_000_000)
    pieces = list(image(faulty.reply(200, whole)).iter_bytes())
    assert b"".join(pieces) == whole
    assert len(pieces) > 1


def test_leaving_a_stream_lets_go_of_it(image: Make) -> None:
    """A reader who stops must not hold the connection."""
    pieces = image(faulty.reply(200, PNG[:8] + bytes(300_000))).iter_bytes()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]


def test_the_first_bytes_may_come_one_by_one() -> None:
    """Piece sizes are the network's business."""

    def peer(request: HttpRequest) -> HttpResponse:
        if request.method == "GET":
            return HttpResponse(200, {}, (PNG[i : i + 1] for i in range(len(PNG))))
        return HttpResponse(200, {}, b'{"task_id": "t", "final_image_url": "/x"}')

    assert (
        ImageLabs(transport=HandlerTransport(peer), poll_interval=0.01).generate("x").read() == PNG
    )


def test_saving_holds_two_pieces_at_most(tmp_path: Path) -> None:
    """The one that is written, and the one that comes in; also while the first is long gone."""
    size = 1_000_000

    def peer(request: HttpRequest) -> HttpResponse:
        if request.method == "GET":
            return HttpResponse(200, {}, (PNG[:8].ljust(size) for _ in range(5)))
        return HttpResponse(200, {}, b'{"task_id": "t", "final_image_url": "/x"}')

    image = ImageLabs(transport=HandlerTransport(peer), poll_interval=0.01).generate("x")
    tracemalloc.start()
    try:
        image.save(tmp_path / "x.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.9 * size


# Stale links --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_stale_link_is_asked_for_anew_once(
    server: FaultyServer, connect: Connect, code: int
) -> None:
    """Links expire; the job knows a fresh one."""
    server.scripts["/old.png"] = [faulty.reply(code)]
    server.scripts["/progress"] = [server.done(server.url + "/old.png"), server.done()]
    image = connect(server).generate("x")
    assert image.read() == PNG
    assert (server.count("/old.png"), server.count("/progress")) == (1, 2)


def test_a_fresh_link_is_kept_to(server: FaultyServer, connect: Connect) -> None:
    """A failure of the fresh one is no reason to ask a third time."""
    server.scripts["/old.png"] = [faulty.reply(404)]
    server.scripts["/progress"] = [server.done(server.url + "/old.png"), server.done()]
    server.scripts["/image.png"] = [faulty.reset(), faulty.reply(200, PNG)]
    assert connect(server).generate("x").read() == PNG
    assert (server.count("/old.png"), server.count("/progress")) == (1, 2)


@pytest.mark.parametrize(
    "fresh",
    [faulty.reply(404), faulty.RUNNING, faulty.reply(200, {"status": "Failed"}), faulty.reset()],
)
def test_a_link_that_stays_stale_is_said(
    server: FaultyServer, connect: Connect, fresh: faulty.Answer
) -> None:
    """Once is enough; the first answer is what is told."""
    server.scripts["/old.png"] = [faulty.reply(410)]
    server.scripts["/progress"] = [server.done(server.url + "/old.png"), fresh]
    with pytest.raises(DownloadError, match="410") as caught:
        connect(server).generate("x").read()
    assert caught.value.status_code == 410
    assert server.count("/progress") == 2


# Who steers ---------------------------------------------------------------------------


def leading_to(address: str, server: FaultyServer, connect: Connect, **more: Any) -> GeneratedImage:
    server.scripts["/progress"] = [server.done(address)]
    return connect(server, **more).generate("x")


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://images.test/x.png",
        "gopher://images.test/x",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)",
        "//",
        "http://",
        "http:///x.png",
        "http://user@images.test/x.png",
        "http://user:word@images.test/x.png",
        "http://:@images.test/x.png",
        "http://images.test:port/x.png",
        "http://images.test:99999/x.png",
        "http://[::1/x.png",
        "http://images.test\\@127.0.0.1/x.png",
        "http://images.test/\u0661.png",
        "http://images.test/a b.png",
        "http://images.test/a\tb.png",
        "http://images.test/" + "x" * 5000,
        "http://%31%32%37.0.0.1/x.png",
        "http://loca%6chost/x.png",
        "http://[::1%25lo]/x.png",
    ],
)
def test_an_odd_address_is_refused(server: FaultyServer, connect: Connect, address: str) -> None:
    """Before anything is sent anywhere; what is shown of it is short and clean."""
    image = leading_to(address, server, connect)
    with pytest.raises(DownloadError) as caught:
        image.read()
    assert not [asked for asked in server.asked if asked.method == "GET"]
    assert "cannot be fetched" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert len(repr(image)) < 1500


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"])
def test_a_link_into_the_callers_network_is_refused(
    server: FaultyServer, other: FaultyServer, connect: Connect, host: str
) -> None:
    """The server must not make us ask the caller's neighbours."""
    with pytest.raises(DownloadError, match="not a public address"):
        leading_to(f"http://{host}:{other.port}/image.png", server, connect).read()
    assert other.connections == 0


def test_a_redirect_into_the_callers_network_is_refused(
    server: FaultyServer, other: FaultyServer, image: Make
) -> None:
    """Every hop is checked again."""
    it = image(faulty.reply(302, b"", ("Location", f"{other.url}/image.png")))
    with pytest.raises(DownloadError, match="not a public address"):
        it.read()
    assert other.connections == 0


def test_private_hosts_may_be_allowed(
    server: FaultyServer, other: FaultyServer, connect: Connect
) -> None:
    """A self-hosted service keeps its images where it likes; cookies stay at home."""
    image = leading_to(
        f"{other.url}/image.png",
        server,
        connect,
        allow_private_hosts=True,
        cookies="session=hush",
        headers={"x-key": "hush", "user-agent": "mine"},
    )
    assert image.read() == PNG
    assert "hush" in str(server.asked[0].headers)
    asked = other.asked[0].headers
    assert "hush" not in str(asked)
    assert not {"cookie", "origin", "referer", "x-requested-with", "content-type"} & set(asked)


def test_cookies_do_not_travel_with_a_redirect(
    server: FaultyServer, other: FaultyServer, connect: Connect
) -> None:
    """The API's own origin gets them, the next hop does not, and sets none either."""
    other.scripts["/image.png"] = [faulty.reply(200, PNG, ("Set-Cookie", "spy=1; Path=/"))]
    server.scripts["/image.png"] = [faulty.reply(302, b"", ("Location", f"{other.url}/image.png"))]
    client = connect(server, allow_private_hosts=True, cookies="session=hush")
    assert client.generate("x").read() == PNG
    client.submit("again")
    assert server.asked[2].headers["cookie"] == "session=hush"
    assert "cookie" not in other.asked[0].headers
    assert server.asked[-1].headers["cookie"] == "session=hush"


def test_a_relative_link_belongs_to_the_api(server: FaultyServer, connect: Connect) -> None:
    """Nobody has shown one, but it has one sensible meaning."""
    image = leading_to("/image.png", server, connect)
    assert image.url == f"{server.url}/image.png"
    assert image.read() == PNG


def test_redirects_are_followed_but_not_without_end(server: FaultyServer, image: Make) -> None:
    """Relative ones too."""
    server.scripts["/there.png"] = [faulty.reply(200, PNG)]
    assert image(faulty.reply(307, b"", ("Location", "there.png"))).read() == PNG
    with pytest.raises(DownloadError, match="without end"):
        image(faulty.reply(302, b"", ("Location", "/image.png"))).read()
    with pytest.raises(DownloadError, match="302"):
        image(faulty.reply(302)).read()
    with pytest.raises(DownloadError):
        image(faulty.reply(302, b"", ("Location", "http://[::1"))).read()


def test_https_does_not_fall_back_to_http() -> None:
    """What was asked for over TLS does not come in the clear."""

    def peer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, {}, b'{"task_id": "t", "final_image_url": "http://h.test/x.png"}')

    client = ImageLabs("https://api.test", transport=HandlerTransport(peer), poll_interval=0.01)
    with pytest.raises(DownloadError, match="http:"):
        client.generate("x").read()


def test_the_signature_of_every_kind_is_known() -> None:
    """Thirty-two bytes are enough."""
    assert [found.extension for body in FORMATS.values() if (found := sniff(body[:32]))] == list(
        FORMATS
    )
    assert all(sniff(body[:32]) is None for body in NO_IMAGES.values())
