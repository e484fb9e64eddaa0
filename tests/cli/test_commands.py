"""The help texts, and `status`."""

import json
import re
from pathlib import Path

import pytest

from imagelabs_sdk.cli.commands import cli
from imagelabs_sdk.cli.exits import EXIT_CODES
from tests.cli.service import DONE, HALF, Command, Say, ScriptedService, poll


@pytest.mark.parametrize(
    ("answer", "line", "facts"),
    [
        (HALF, "running (Render [bold]3/6[/bold]), 50 %", ["running", 50.0]),
        (poll("queued"), "queued", ["queued", None]),
        (poll("Failed"), "failed", ["failed", None]),
        (DONE, "done, 100 %", ["done", 100.0]),
    ],
)
def test_status_is_one_poll(
    imagelabs: Command, service: ScriptedService, answer: Say, line: str, facts: list[object]
) -> None:
    """A job that failed is an answer as well: the command itself did what it should."""
    service.polls = [answer]
    result, told = imagelabs("status", "task-9"), imagelabs("status", "task-9", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (0, line + "\n", "")
    about = json.loads(told.stdout)
    assert list(about) == ["task_id", "state", "status", "percent"]
    assert [about["state"], about["percent"]] == facts
    assert len(service.asked) == 2


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
