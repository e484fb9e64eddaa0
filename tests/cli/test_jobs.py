"""`imagelabs jobs`: what was bought is found again, also after kill -9."""

import json
import re
from pathlib import Path

import pytest

from imagelabs_sdk import Ledger, SubmissionUnknownError
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command


def buy(service: FakeService, count: int = 1, *, prompts: bool = False) -> None:
    """Submit jobs and forget them, as a program that is killed does."""
    with service.client(ledger=Ledger(Path("jobs.jsonl"), prompts=prompts)) as client:
        for _ in range(count):
            client.submit("a lighthouse")


def test_jobs_are_listed_with_the_unfinished_ones_first(
    imagelabs: Command, service: FakeService
) -> None:
    """With what is needed to go on; prompts only if they were kept."""
    buy(service, 2)
    Ledger(Path("jobs.jsonl")).ended("task-1", service.url)
    lines = imagelabs("jobs", "--ledger", "jobs.jsonl").stdout.splitlines()
    assert re.fullmatch(r"unfinished \d{4}-\S+ \S+  task-2  https://imagelabs.test", lines[0])
    assert lines[1].startswith("done ")
    rows = imagelabs("jobs", "--ledger", "jobs.jsonl", "--json").stdout.splitlines()
    facts = json.loads(rows[0])
    assert list(facts) == [
        "state", "task_id", "base_url", "submitted_at", "prompt", "message", "metadata"
    ]  # fmt: skip
    assert (facts["state"], facts["task_id"], facts["prompt"]) == ("unfinished", "task-2", None)


def test_kept_prompts_are_shown(
    imagelabs: Command, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the ledger may come from the environment."""
    buy(service, prompts=True)
    monkeypatch.setenv("IMAGELABS_LEDGER", "jobs.jsonl")
    assert imagelabs("jobs").stdout.endswith("task-1  https://imagelabs.test  a lighthouse\n")


def test_missing_images_are_brought(imagelabs: Command, service: FakeService) -> None:
    """Each once: what has ended is not asked for again."""
    buy(service, 2)
    words = ("jobs", "--ledger", "jobs.jsonl", "--resume", "--out-dir", "images")
    result = imagelabs(*words)
    assert result.exit_code == 0
    paths = result.stdout.split()
    assert len(paths) == len(set(paths)) == 2
    assert all(Path(path).is_file() for path in paths)
    assert result.stderr.splitlines()[-1] == "2 of 2 unfinished jobs saved"
    assert imagelabs(*words).stderr.splitlines()[-1] == "0 of 0 unfinished jobs saved"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_job_that_failed_does_not_hold_up_the_others(
    imagelabs: Command, service: FakeService, as_json: bool
) -> None:
    """The exit code tells of the first failure."""
    service.job().fails("no memory")
    service.job().done().refuses(status=404)
    buy(service, 3)
    more = ["--json"] if as_json else []
    result = imagelabs("jobs", "--ledger", "jobs.jsonl", "--resume", *more)
    assert result.exit_code == 6
    assert result.stderr.splitlines()[-1] == "1 of 3 unfinished jobs saved"
    if as_json:
        failed, lost, saved = (json.loads(line) for line in result.stdout.splitlines())
        assert (failed["code"], failed["task_id"]) == ("job_failed", "task-1")
        assert (lost["code"], lost["task_id"]) == ("download", "task-2")
        assert saved["task_id"] == "task-3"
    assert "failed" in imagelabs("jobs", "--ledger", "jobs.jsonl").stdout


def test_a_submit_that_was_cut_off_is_unknown(imagelabs: Command, service: FakeService) -> None:
    """It has no id that could be asked for."""
    service.drops_connection()
    with pytest.raises(SubmissionUnknownError):
        buy(service)
    lines = imagelabs("jobs", "--ledger", "jobs.jsonl").stdout.splitlines()
    assert re.fullmatch(r"unknown .*  -  https://imagelabs.test", lines[0])
    result = imagelabs("jobs", "--ledger", "jobs.jsonl", "--resume")
    assert result.stderr.splitlines()[-1] == "0 of 0 unfinished jobs saved"


def test_how_long_to_wait_for_each_image_may_come_from_the_environment(
    imagelabs: Command, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for `generate` and `wait`."""
    service.never_finishes()
    buy(service)
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "7.5")
    result = imagelabs("jobs", "--ledger", "jobs.jsonl", "--resume")
    assert result.exit_code == 7
    assert imagelabs.settings[0]["timeout"] == 7.5


def test_a_ledger_that_does_not_exist_is_no_empty_one(imagelabs: Command) -> None:
    """A mistyped name must not look like "no jobs"."""
    result = imagelabs("jobs", "--ledger", "nope.jsonl")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "'nope.jsonl' does not exist" in result.stderr


def test_without_a_ledger_the_remedy_is_named(imagelabs: Command) -> None:
    """Nothing is guessed; a file that is no ledger is refused."""
    assert "--ledger FILE, or set IMAGELABS_LEDGER" in imagelabs("jobs").stderr
    Path("x").write_text("no ledger\n")
    assert imagelabs("jobs", "--ledger", "x").exit_code == 2
