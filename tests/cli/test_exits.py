"""One line and one exit code for each kind of error."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import APIStatusError, ImageLabsError, JobError
from imagelabs_sdk.cli.exits import EXIT_CODES
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, Script
from tests.cli.conftest import PROGRAM, run_python
from tests.faulty import PNG


@pytest.mark.parametrize(
    ("script", "code", "resumable"),
    [
        (lambda s: s.unreachable(), 3, False),
        (lambda s: s.refuses(status=400), 4, False),
        (lambda s: s.rate_limited(999), 4, False),
        (lambda s: s.challenge(), 4, False),
        (lambda s: s.answers({"error": "no"}), 4, False),
        (lambda s: s.drops_connection(), 5, False),
        (lambda s: s.refuses(status=404, at="progress"), 4, False),
        (lambda s: s.challenge(at="progress"), 4, True),
        (lambda s: s.fails("[red]out of memory[/red]"), 6, False),
        (lambda s: s.drops_connection(at="progress"), 3, True),
        (lambda s: s.html(at="image"), 8, True),
        (lambda s: s.answers(OSError(28, "No space left on device"), at="image"), 1, True),
        (lambda s: s.answers(KeyboardInterrupt(), at="progress"), 130, True),
        (lambda s: s.answers(KeyboardInterrupt(), at="image"), 130, True),
        (lambda s: s.answers(ZeroDivisionError("oops"), at="progress"), 1, False),
    ],
)
def test_each_bad_end_has_its_code_and_its_line(
    imagelabs: Command, service: FakeService, script: Script, code: int, resumable: bool
) -> None:
    """A script goes by the code, a person by the line; a job that lives on is named."""
    script(service)
    result = imagelabs("generate", "x", "-o", "x.png", "--timeout", 600)
    lines = result.stderr.splitlines()
    end = next(n for n, line in enumerate(lines) if line.startswith("imagelabs: "))
    assert result.exit_code == code
    assert result.stdout == ""
    hint = ["To resume: imagelabs wait task-1 -o x.png"] if resumable else []
    assert lines[end + 1 :] == hint
    assert "Traceback" not in result.stderr
    assert not Path("x.png").exists()


def test_running_out_of_time_has_its_own_code(imagelabs: Command, service: FakeService) -> None:
    """The job may yet finish: the same command with `wait` is the remedy."""
    service.queued()
    result = imagelabs("generate", "x", "-o", "x.png", "--timeout", 3)
    assert result.exit_code == 7
    assert "imagelabs: the job is still running after 3.0 s" in result.stderr
    assert result.stderr.endswith("To resume: imagelabs wait task-1 -o x.png\n")


def kinds(base: type[ImageLabsError]) -> Iterator[type[ImageLabsError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("kind", [kind for kind in kinds(ImageLabsError) if kind is not JobError])
def test_no_error_of_the_library_is_anything_else(kind: type[ImageLabsError]) -> None:
    """A new class of error needs a row in the table."""
    extra: dict[str, Any] = {"status_code": 500} if issubclass(kind, APIStatusError) else {}
    code = next(code for code, _, of in EXIT_CODES if isinstance(kind("x", **extra), of))
    assert code not in (1, 130)


def test_the_words_of_a_challenge_name_the_variables(
    imagelabs: Command, service: FakeService
) -> None:
    """There is no client object that cookies could be given to."""
    service.challenge()
    assert "IMAGELABS_COOKIE and IMAGELABS_USER_AGENT" in imagelabs("generate", "x").stderr


def test_an_interrupt_elsewhere_is_a_line_too(imagelabs: Command, service: FakeService) -> None:
    """Also where nothing was going on."""
    service.known_job("task-1").answers(KeyboardInterrupt(), at="progress")
    result = imagelabs("status", "task-1")
    assert result.exit_code == 130
    assert "imagelabs: interrupted" in result.stderr


def test_debug_shows_the_way_to_an_error(
    imagelabs: Command, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """Before or after the command, as people type it."""
    service.answers(ZeroDivisionError("oops"), at="progress")
    for arguments in (["--debug", "generate", "x"], ["generate", "x", "--debug"]):
        caplog.clear()
        result = imagelabs(*arguments)
        assert result.exit_code == 1
        assert "imagelabs: unexpected ZeroDivisionError: oops" in result.stderr
        assert "Traceback" in caplog.text


@pytest.mark.parametrize("arguments", [("generate", "x", "--embedded"), ("serve", "--port", "0")])
def test_without_pillow_the_remedy_is_named(arguments: tuple[str, ...]) -> None:
    """The engine has an extra of its own: a client needs no Pillow."""
    code = "import sys; sys.modules['PIL'] = None; import imagelabs_sdk.__main__ as m; m.main()"
    done = run_python(code, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    line = r"imagelabs: .*\bPIL\b.*: pip install .imagelabs_sdk\[server\].\n"
    assert re.fullmatch(line, done.stderr)


def test_debug_writes_to_stderr(url: str) -> None:
    """The log and the traceback; a pipe stays clean."""
    arguments = ("status", "task-1", "--json", "--debug", "--base-url", url)
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (4, "api_status")
    assert "APIStatusError" in done.stderr
    assert "Traceback" in done.stderr


def test_a_reader_that_has_gone_is_no_traceback(service: FakeService, url: str) -> None:
    """``imagelabs status ... | true``."""
    service.known_job("task-1")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PROGRAM, "status", "task-1", "--base-url", url],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


HINT = "To resume: imagelabs wait task-1 -o x.png"


@pytest.mark.parametrize(
    ("arguments", "script", "facts"),
    [
        ("--width 0", lambda s: s, (2, "too_small", None, False, None)),
        ("--colour", lambda s: s, (2, "usage", None, False, None)),
        ("--output", lambda s: s, (2, "usage", None, False, None)),
        ("", lambda s: s.unreachable(), (3, "api_connection", None, True, None)),
        ("", lambda s: s.rate_limited(), (4, "rate_limited", None, True, None)),
        ("", lambda s: s.challenge(), (4, "challenge", None, False, None)),
        ("", lambda s: s.drops_connection(), (5, "submission_unknown", None, None, None)),
        ("", lambda s: s.fails(), (6, "job_failed", "task-1", None, None)),
        ("--timeout 2", lambda s: s.queued(), (7, "job_timeout", "task-1", True, HINT)),
        ("", lambda s: s.done().refuses(status=404), (8, "download", "task-1", False, HINT)),
        (
            "",
            lambda s: s.queued().answers(KeyboardInterrupt()),
            (130, "interrupted", None, None, HINT),
        ),
        ("", lambda s: s.done().answers(OSError(28, "full")), (1, "os_error", None, None, HINT)),
        (
            "",
            lambda s: s.queued().answers(ZeroDivisionError("x")),
            (1, "unexpected", None, None, None),
        ),
    ],
)
def test_a_failure_is_one_json_object_for_programs(
    imagelabs: Command,
    service: FakeService,
    arguments: str,
    script: Script,
    facts: tuple[object, ...],
) -> None:
    """The same keys for every exit code, and the person's lines stay on stderr."""
    script(service)
    result = imagelabs("generate", "x", "-o", "x.png", "--json", *arguments.split())
    told = json.loads(result.stdout)
    assert list(told) == ["code", "message", "task_id", "retryable", "hint"]
    assert (result.exit_code, *(told[k] for k in ("code", "task_id", "retryable", "hint"))) == facts
    assert f"imagelabs: {told['message']}\n" in result.stderr
    assert HINT not in result.stderr or told["hint"] == HINT


@pytest.mark.parametrize(
    "words", [["status", "x", "y"], ["wait"], ["serve"], ["nonsense"], ["status", " "]]
)
def test_every_command_fails_alike_in_json(imagelabs: Command, words: list[str]) -> None:
    """Also one that has no results in JSON, or does not exist."""
    result = imagelabs(*words, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["message"] in result.stderr


def test_after_the_end_of_options_nothing_asks_for_json(imagelabs: Command) -> None:
    """A prompt may be called --json."""
    assert imagelabs("status", "--", "x", "--json").stdout == ""


def test_an_interrupted_batch_lists_its_jobs_for_programs(
    imagelabs: Command, gallery: FakeService
) -> None:
    """One row for each, with the command that gets its image."""
    gallery.job("a lighthouse").done(PNG).answers(KeyboardInterrupt(), times=1)
    for prompt in ("a castle", "a [red] boat"):
        gallery.job(prompt).never_finishes()
    rows = [json.loads(line) for line in imagelabs.batch("--json").stdout.splitlines()]
    assert [row["code"] for row in rows] == ["interrupted", *["unfinished"] * 3]
    left = {row["task_id"]: row["hint"] for row in rows[1:]}
    assert left["a-castle"] == "To resume: imagelabs wait a-castle -o images/0003"
    assert {row["line"] for row in rows[1:]} == {2, 3, 5}
