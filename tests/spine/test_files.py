"""Files are written atomically."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import DownloadError, GeneratedImage, InvalidRequestError
from tests import faulty
from tests.faulty import PNG

Make = Callable[..., GeneratedImage]


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


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_is_no_failure(
    image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The image is written all the same."""

    def cannot(handle: int) -> None:
        raise OSError(code, "not here")

    monkeypatch.setattr(os, "fsync", cannot)
    assert image(faulty.reply(200, PNG)).save(tmp_path / "x.png").read_bytes() == PNG


def test_a_saved_file_has_the_usual_permissions(image: Make, tmp_path: Path) -> None:
    """Temporary files are often private; an image is a file like any other."""
    other = tmp_path / "other"
    other.touch()
    path = image(faulty.reply(200, PNG)).save(tmp_path / "x.png")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


@pytest.mark.parametrize("name", ["x.png", "x"])
def test_a_symbolic_link_stays_and_is_followed(image: Make, tmp_path: Path, name: str) -> None:
    """Also one to a file that is yet to come; the suffix belongs to the file."""
    for folder in (tmp_path / "links", tmp_path / "files"):
        folder.mkdir()
    link, file = tmp_path / "links" / name, tmp_path / "files" / name
    link.symlink_to(file)
    for _ in range(2):
        path = image(faulty.reply(200, PNG)).save(link)
        assert path == tmp_path / "files" / "x.png"
        assert path.read_bytes() == PNG
        assert link.is_symlink()
    assert [each.name for each in (tmp_path / "links").iterdir()] == [name]
    assert [each.name for each in (tmp_path / "files").iterdir()] == ["x.png"]


def test_a_link_with_the_suffix_leads_to_a_file_of_any_name(image: Make, tmp_path: Path) -> None:
    """Whoever reads the link later must find the new image."""
    (tmp_path / "x.png").symlink_to("current")
    (tmp_path / "current").write_bytes(b"old")
    assert image(faulty.reply(200, PNG)).save(tmp_path / "x.png") == tmp_path / "current"
    assert (tmp_path / "x.png").read_bytes() == PNG
    assert sorted(each.name for each in tmp_path.iterdir()) == ["current", "x.png"]


@pytest.mark.parametrize("name", ["loop.png", "\ud800.png"])
def test_a_path_that_leads_nowhere_is_said_first(image: Make, tmp_path: Path, name: str) -> None:
    """Nothing is fetched that could not be written."""
    (tmp_path / "loop.png").symlink_to("back.png")
    (tmp_path / "back.png").symlink_to("loop.png")
    found = image()  # any request would fail
    with pytest.raises(InvalidRequestError, match="path") as caught:
        found.save(tmp_path / name)
    assert caught.value.field == "path"


def test_a_link_into_a_folder_that_is_not_there_is_said_first(image: Make, tmp_path: Path) -> None:
    """As any other path."""
    (tmp_path / "x.png").symlink_to(tmp_path / "gone" / "x.png")
    with pytest.raises(InvalidRequestError, match="path"):
        image(faulty.reply(200, PNG)).save(tmp_path / "x.png")


def test_the_mode_of_an_existing_file_is_kept(image: Make, tmp_path: Path) -> None:
    """Somebody has set it for a reason."""
    (tmp_path / "x.png").touch(mode=0o640)
    (tmp_path / "x.png").chmod(0o640)
    path = image(faulty.reply(200, PNG)).save(tmp_path / "x.png")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_fifo_gets_a_whole_image_or_nothing(image: Make, tmp_path: Path) -> None:
    """It cannot be replaced, and what was written cannot be taken back."""
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with pytest.raises(DownloadError):
        image(faulty.reply(200, PNG[:-1])).save(fifo)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(fifo.read_bytes)
        assert image(faulty.reply(200, PNG)).save(fifo) == fifo
        assert reading.result(10) == PNG
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert list(tmp_path.iterdir()) == [fifo]


def test_a_device_stays_a_device(image: Make) -> None:
    """A program that runs as root would make a file of /dev/null."""
    assert image(faulty.reply(200, PNG)).save("/dev/null") == Path("/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_standard_output_is_written_to(image: Make, tmp_path: Path) -> None:
    """The file that it was led into by the shell stays the one that the shell has open."""
    code = (
        "import pathlib, sys; from imagelabs_sdk._files import atomic_write\n"
        "with atomic_write(pathlib.Path('/dev/stdout')) as draft: draft.file.write(b'image')"
    )
    for how in ("pipe", "file"):
        with open(tmp_path / "out", "w+b") as out:
            target = out if how == "file" else subprocess.PIPE
            done = subprocess.run([sys.executable, "-c", code], stdout=target, check=True)
            out.seek(0)
            assert (done.stdout or out.read()) == b"image"


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ETXTBSY])
def test_a_file_that_cannot_be_replaced_is_overwritten(
    image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A single file that was mounted into a container, say."""

    def busy(self: Path, target: Path) -> Path:
        raise OSError(code, "busy")

    target = tmp_path / "x.png"
    target.write_bytes(b"old and longer than the image" * 9)
    inode = target.stat().st_ino
    monkeypatch.setattr(Path, "replace", busy)
    assert image(faulty.reply(200, PNG)).save(target).read_bytes() == PNG
    assert target.stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_may_take_no_new_file(
    image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """Then a file that is there is overwritten, and any other is the system's own error."""
    target = tmp_path / "x.png"
    if is_there:
        target.write_bytes(b"old")
    plain = open

    def refuse(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if mode == "xb":
            raise PermissionError(errno.EACCES, "no")
        return plain(path, mode, *more, **named)

    monkeypatch.setattr("builtins.open", refuse)
    if is_there:
        assert image(faulty.reply(200, PNG)).save(target).read_bytes() == PNG
    else:
        with pytest.raises(PermissionError):
            image(faulty.reply(200, PNG)).save(target)


def test_another_failure_of_the_rename_is_told(
    image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what was there still there."""

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.EDQUOT, "quota")

    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="quota"):
        image(faulty.reply(200, PNG)).save(tmp_path / "x.png")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]
