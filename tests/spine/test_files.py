"""Files are written atomically."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from imagelabs_sdk import GeneratedImage
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


def test_a_saved_file_has_the_usual_permissions(image: Make, tmp_path: Path) -> None:
    """Temporary files are often private; an image is a file like any other."""
    other = tmp_path / "other"
    other.touch()
    path = image(faulty.reply(200, PNG)).save(tmp_path / "x.png")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
