"""The help texts, and `status`."""

import json
import re
from pathlib import Path

import pytest

from imagelabs_sdk.cli.commands import cli
from imagelabs_sdk.cli.exits import EXIT_CODES
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, Script


@pytest.mark.parametrize(
    ("script", "line", "percent"),
    [
        (
            lambda s: s.progress(0.5, status="Step [b]3/6[/b]"),
            "running (Step [b]3/6[/b]), 50 %",
            50.0,
        ),
        (lambda s: s.answers({"status": "queued"}, at="progress"), "queued", None),
        (lambda s: s.fails("no memory"), "failed (Error: no memory)", None),
        (lambda s: s.done(), "done, 100 %", 100.0),
    ],
)
def test_status_is_one_poll(
    imagelabs: Command, service: FakeService, script: Script, line: str, percent: float | None
) -> None:
    """A job that failed is an answer as well: the command itself did what it should."""
    script(service.known_job("task-9"))
    result, told = imagelabs("status", "task-9"), imagelabs("status", "task-9", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (0, line + "\n", "")
    about = json.loads(told.stdout)
    assert list(about) == ["task_id", "state", "status", "percent"]
    assert about["state"] == line.split(maxsplit=1)[0].strip(",")
    assert about["percent"] == percent
    assert [one.at for one in service.sent] == ["progress", "progress"]


def test_the_help_shows_the_table_and_an_example(imagelabs: Command) -> None:
    """Nobody reads the source to learn what 5 means."""
    result = imagelabs("--help")
    assert result.exit_code == 0
    for text in (result.stdout, imagelabs("generate", "--help").stdout):
        for code, meaning, _ in EXIT_CODES:
            assert re.search(rf"^ +{code} +{re.escape(meaning)}$", text, re.MULTILINE)
    assert imagelabs().stdout == result.stdout
    for command in cli.commands:
        assert "Example: imagelabs " + command in imagelabs(command, "--help").stdout


def test_the_page_about_the_command_has_the_same_exit_codes() -> None:
    """Two tables of one thing drift apart."""
    page = (Path(__file__).parents[2] / "docs/command-line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    table = [(str(code), meaning) for code, meaning, _ in sorted(EXIT_CODES)]
    assert [(code, meaning.replace("`", "")) for code, meaning in rows] == [
        ("0", "success"),
        *table,
    ]
