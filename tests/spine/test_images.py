"""Finished images: read, streamed, saved; their links refreshed."""

import pickle
import tracemalloc
from collections.abc import Callable
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
from tests import faulty
from tests.faulty import PNG, FaultyServer, message
from tests.spine.samples import CUT, FORMATS

Connect = Callable[..., ImageLabs]
Make = Callable[..., GeneratedImage]


@pytest.mark.parametrize("extension", FORMATS)
def test_an_image_of_every_kind_is_saved_whole(image: Make, tmp_path: Path, extension: str) -> None:
    """And gets the extension of its bytes when the path has none."""
    it = image(faulty.reply(200, FORMATS[extension], ("Content-Type", "text/plain")))
    path = it.save(tmp_path / "lighthouse")
    assert path == tmp_path / f"lighthouse{extension}"
    assert path.read_bytes() == it.read() == b"".join(it.iter_bytes()) == FORMATS[extension]
    assert it.save(str(tmp_path / "a cat vs. a dog")).name == f"a cat vs. a dog{extension}"


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


def test_saving_ends_at_its_deadline(image: Make, tmp_path: Path) -> None:
    """Also against a body that drips for minutes."""
    it = image(faulty.drip(PNG * 50, message(200, b"", [("Content-Length", "9999")])))
    with pytest.raises(DownloadError, match="in time"):
        it.save(tmp_path / "x.png", timeout=0.3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", [-1, "1", True])
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


def test_an_image_is_streamed(image: Make) -> None:
    """Whoever passes it on need not hold it."""
    whole = PNG + bytes(3_000_000)
    pieces = list(image(faulty.reply(200, whole)).iter_bytes())
    assert b"".join(pieces) == whole
    assert len(pieces) > 1


def test_leaving_a_stream_releases_its_connection(
    image: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader who stops must not hold the connection; nothing was interrupted."""
    pieces = image(faulty.reply(200, PNG + bytes(300_000))).iter_bytes()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert "interrupted" not in caplog.text


def test_saving_holds_two_pieces_at_most(tmp_path: Path) -> None:
    """The one that is written, and the one that comes in; also while the first is long gone."""
    size = 1_000_000

    def peer(request: HttpRequest) -> HttpResponse:
        if request.method == "GET":
            return HttpResponse(200, {}, (piece.ljust(size) for piece in (PNG, b"", b"", b"", b"")))
        return HttpResponse(200, {}, b'{"task_id": "t", "final_image_url": "/x"}')

    image = ImageLabs(transport=HandlerTransport(peer), poll_interval=0.01).generate("x")
    tracemalloc.start()
    try:
        image.save(tmp_path / "x.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.9 * size


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


# Names and formats --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.jpg", "x.bmp", "x.png.webp"])
def test_a_wrong_suffix_gets_the_right_one_added(
    image: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Never an error after paying, never a JPEG that is none; said in the log and the result."""
    path = image(faulty.reply(200, PNG)).save(tmp_path / name)
    assert path == tmp_path / f"{name}.png"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert f"the image is a PNG: saved as {path}" in caplog.text


def test_a_link_without_a_suffix_may_lead_to_a_file_that_has_the_right_one(
    image: Make, tmp_path: Path
) -> None:
    """The file gets no second one, and the link stays."""
    (tmp_path / "latest").symlink_to("x.png")
    assert image(faulty.reply(200, PNG)).save(tmp_path / "latest") == tmp_path / "x.png"
    assert (tmp_path / "latest").read_bytes() == PNG
    assert sorted(each.name for each in tmp_path.iterdir()) == ["latest", "x.png"]


@pytest.mark.parametrize("name", ["x.JPG", "x.jpeg", "x.jpe", "x.jfif"])
def test_any_suffix_of_the_format_is_right(
    image: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """JPEG has several, and case means nothing."""
    assert image(faulty.reply(200, FORMATS[".jpg"])).save(tmp_path / name).name == name
    assert "saved as" not in caplog.text


def test_the_format_is_guessed_first_and_then_known(
    server: FaultyServer, image: Make, tmp_path: Path
) -> None:
    """By the URL before fetching, by the bytes after it, in whatever way they were fetched."""
    for fetch in (
        lambda it: it.read(),
        lambda it: list(it.iter_bytes()),
        lambda it: it.save(tmp_path / "x"),
    ):
        it = image(faulty.reply(200, FORMATS[".jpg"]))
        assert it.format
        assert it.format.name == "PNG"
        assert it.media_type == "image/png"
        fetch(it)
        assert it.format.name == "JPEG"
        assert it.media_type == "image/jpeg"
        assert pickle.loads(pickle.dumps(it)).format == it.format


def test_an_address_may_tell_no_format(server: FaultyServer, connect: Connect) -> None:
    """Then it is unknown until the image is there."""
    server.scripts["/image"] = [faulty.reply(200, PNG)]
    server.scripts["/progress"] = [server.done(f"{server.url}/image?name=x.gif")]
    it = connect(server).generate("x")
    assert (it.format, it.media_type) == (None, None)
    it.read()
    assert it.media_type == "image/png"
