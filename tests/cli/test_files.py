"""Output files are checked before an image is paid for."""

import re
import tempfile
from pathlib import Path

import pytest

from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command


def test_an_unnamed_image_never_replaces_another(imagelabs: Command) -> None:
    """Two prompts with one seed are two images, and both were paid for."""
    paths = [imagelabs("generate", "x", "--seed", 7).stdout.strip() for _ in range(3)]
    assert paths == ["imagelabs-7.png", "imagelabs-7-2.png", "imagelabs-7-3.png"]


def test_the_service_names_no_file(imagelabs: Command, service: FakeService) -> None:
    """A task id such as ``../../x`` must not become a path."""
    service.known_job("../../task")
    result = imagelabs("wait", "../../task")
    assert re.fullmatch(r"imagelabs-[0-9]{8}-[0-9]{6}\.png\n", result.stdout)


@pytest.mark.parametrize("path", ["nowhere/x.png", ".", "", "/dev/null", "a-file/x.png"])
def test_a_file_that_cannot_be_is_refused_before_the_job_is_bought(
    imagelabs: Command, service: FakeService, path: str
) -> None:
    """An image that cannot be saved is an image lost."""
    Path("a-file").touch()
    result = imagelabs("generate", "x", "-o", path)
    assert result.exit_code == 2
    assert "must be a file in a folder that exists" in result.stderr
    assert not service.sent


def test_a_name_that_becomes_too_long_is_refused_before_the_job_is_bought(
    imagelabs: Command, service: FakeService
) -> None:
    """Its extension comes last."""
    result = imagelabs("generate", "x", "-o", "x" * 252)
    assert result.exit_code == 1
    assert "cannot be written: File name too long" in result.stderr
    assert not service.sent


def test_a_folder_that_is_not_ours_is_refused_before_the_job_is_bought(
    imagelabs: Command, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run of what `save` does, as permissions alone do not tell."""

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for arguments in (["-o", "x.png"], []):
        result = imagelabs("generate", "x", *arguments)
        assert result.exit_code == 1
        assert "cannot be written: Permission denied" in result.stderr
    assert not service.sent
