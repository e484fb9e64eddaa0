"""Whatever happens to stdout and stderr, nothing that was bought is lost."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from imagelabs_sdk.cli import output
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command
from tests.cli.conftest import PROGRAM, PROMPTS, place
from tests.faulty import PNG


def run(
    url: str,
    *words: str,
    stdout: "int | IO[bytes]" = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    **variables: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    return subprocess.run(
        [*PROGRAM, *words, *place(url)],
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **variables},
        timeout=30,
        check=False,
    )


NO_WAIT = ("generate", "x", "-o", "x.png", "--no-wait")


def test_a_task_id_that_stdout_cannot_encode_is_escaped(service: FakeService, url: str) -> None:
    """A Windows console in cp1252 would end the command after the job was bought."""
    service.answers({"task_id": "łódź-1"})
    done = run(url, *NO_WAIT, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert (done.returncode, done.stdout) == (0, b"\\u0142\xf3d\\u017a-1\n")
    assert b"task \\u0142\xf3d\\u017a-1: accepted" in done.stderr


@pytest.mark.parametrize("words", [NO_WAIT, ("generate", "x", "-o", "x.png")])
def test_a_full_stdout_hides_no_id(url: str, words: tuple[str, ...]) -> None:
    """The id is on stderr before anything is written to stdout."""
    with open("/dev/full", "wb") as full:
        done = run(url, *words, stdout=full)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert lines[0] == "task task-1: accepted"
    assert "imagelabs: No space left on device: stdout" in lines
    assert ("--no-wait" in words) or lines[-1] == "The image is saved: x.png"
    assert not any("Exception ignored" in line for line in lines)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_loses_no_image(service: FakeService, url: str, stream: str) -> None:
    """``imagelabs generate x 2>&1 | head -0``."""
    service.done(PNG)
    reading, writing = os.pipe()
    os.close(reading)
    words = ("generate", "x", "-o", "x.png")
    out = stream == "stdout"
    done = run(url, *words, stdout=writing) if out else run(url, *words, stderr=writing)
    os.close(writing)
    assert Path("x.png").read_bytes() == PNG
    assert done.returncode == (1 if out else 0)
    if out:
        assert done.stderr.decode().splitlines()[-1] == "The image is saved: x.png"


@pytest.mark.parametrize("number", [1, 2])
def test_a_closed_stream_is_nobodys_trouble(service: FakeService, url: str, number: int) -> None:
    """``>&-`` and ``2>&-``."""
    service.done(PNG)
    words = [*PROGRAM, "generate", "x", "-o", "x.png", *place(url)]
    shell = f'exec "$@" {number}>&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *words], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0
    assert Path("x.png").read_bytes() == PNG


def test_an_image_goes_to_a_closed_stdout_without_an_error(url: str) -> None:
    """Nobody wanted it."""
    words = [*PROGRAM, "generate", "x", "-o", "-", *place(url)]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words], timeout=30, check=False)
    assert done.returncode == 0


def test_the_image_itself_can_go_to_stdout(
    imagelabs: Command, service: FakeService, folder: Path
) -> None:
    """``imagelabs generate x -o - | convert - ...``: no line of text among the bytes."""
    service.done(PNG)
    result = imagelabs("generate", "x", "-o", "-")
    assert (result.exit_code, result.stdout_bytes) == (0, PNG)
    assert result.stderr.splitlines()[0] == "task task-1: accepted"
    assert not list(folder.iterdir())


def test_an_image_that_stdout_does_not_take_can_be_had_again(url: str) -> None:
    """It was paid for."""
    with open("/dev/full", "wb") as full:
        done = run(url, "generate", "x", "-o", "-", stdout=full)
    last = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("To resume: python -m imagelabs_sdk wait task-1 -o - --base-url http")


def test_a_batch_whose_stdout_is_full_names_what_goes_on(url: str) -> None:
    """With the jobs of the other prompts still at the service."""
    Path("prompts.txt").write_text(PROMPTS)
    with open("/dev/full", "wb") as full:
        words = ("generate", "--batch", "prompts.txt", "--out-dir", "images", "--jobs", "3")
        done = run(url, *words, stdout=full)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert "imagelabs: No space left on device: stdout" in lines
    assert any(line.startswith("1 saved") for line in lines)


def test_whatever_ends_a_batch_lists_what_is_unfinished(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Also an error that nobody has thought of."""
    gallery.job("a lighthouse").done(PNG).answers(ZeroDivisionError("oops"), times=1)
    for prompt in ("a castle", "a [red] boat"):
        gallery.job(prompt).never_finishes()
    result = imagelabs.batch()
    assert result.exit_code == 1
    assert "imagelabs: unexpected ZeroDivisionError: oops" in result.stderr
    assert "To resume: imagelabs wait a-lighthouse -o images/0001" in result.stderr
    assert result.stderr.count("To resume: ") == 3


def test_json_is_ascii(imagelabs: Command, service: FakeService) -> None:
    """It survives every encoding."""
    service.answers({"task_id": "łódź"})
    result = imagelabs(*NO_WAIT, "--json")
    assert result.stdout.isascii()
    assert json.loads(result.stdout)["task_id"] == "łódź"


def test_a_full_stream_is_left_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left in its buffer would fail once more when Python exits."""
    for write in (output.print_result, lambda line: output.print_bytes(line.encode())):
        full = open("/dev/full", "w")  # noqa: SIM115 - closed below
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="stdout"):
            write("x")
        full.close()


def test_a_message_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk behind stderr must not end a command that has bought an image."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        output.say("x")
    for closed in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", closed)
        output.escape_unencodable()
        output.say("x")
        output.print_result("x")
    monkeypatch.setattr(sys, "stdout", None)
    output.print_bytes(b"x")
