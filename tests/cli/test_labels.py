"""Labels of the user's own: kept with a job, shown again, never sent."""

import json
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, invoke

LABELS = ("--label", "project=spring", "--label", "url=a=b")
BOTH = {"project": "spring", "url": "a=b"}


def write(*rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path("prompts.txt").write_text("\n".join(lines), encoding="utf-8")


def printed(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def sent(service: FakeService) -> str:
    return str([(one.request.url, one.request.headers, one.fields) for one in service.sent])


@pytest.mark.parametrize("more", [("-o", "x.png"), ("--no-wait",), ("-n", 1)])
def test_labels_are_shown_and_not_sent(
    imagelabs: Command, service: FakeService, more: tuple[object, ...]
) -> None:
    """With one image, with its task id alone, with many."""
    result = imagelabs("generate", "x", "--json", *LABELS, *more)
    assert result.exit_code == 0
    (facts,) = printed(result.stdout)
    assert facts["metadata"] == BOTH
    assert "spring" not in sent(service)


def test_a_row_has_labels_of_its_own(imagelabs: Command, gallery: FakeService) -> None:
    """Any JSON; they win over the options, name by name."""
    write("a boat", {"prompt": "a mill", "metadata": {"order": [4711], "project": "autumn"}})
    words = ("-n", 2, "--label", "project=spring", "--checkpoint", "run.jsonl", "--json")
    for _ in range(2):  # the second time from the checkpoint
        result = imagelabs.batch(*words)
        assert result.exit_code == 0
        found = sorted((each["line"], each["metadata"]) for each in printed(result.stdout))
        mill = {"order": [4711], "project": "autumn"}
        assert found == [(1, {"project": "spring"})] * 2 + [(2, mill)] * 2
    assert gallery.count("submit") == 4
    assert "4711" not in sent(gallery)


@pytest.mark.parametrize("metadata", [7, None, ["x"], {"x": float("nan")}, {"x": "\ud800"}])
def test_labels_that_are_none_are_refused_before_anything_is_bought(
    imagelabs: Command, gallery: FakeService, metadata: object
) -> None:
    """By their line."""
    write("a boat", {"prompt": "a mill", "metadata": metadata})
    result = imagelabs.batch()
    assert result.exit_code == 2
    assert "line 2: metadata" in result.stderr
    assert not gallery.sent


@pytest.mark.parametrize("label", ["project", "=spring", "a=\udcff"])
def test_a_label_that_is_none_is_named(
    imagelabs: Command, service: FakeService, label: str
) -> None:
    """By its option."""
    result = imagelabs("generate", "x", "--label", label)
    assert result.exit_code == 2
    assert "--label" in result.stderr
    assert not service.sent


def test_a_ledger_knows_the_labels(
    imagelabs: Command, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was lost is told from the others by them."""
    monkeypatch.setenv("IMAGELABS_LEDGER", "jobs.jsonl")
    imagelabs("generate", "x", "--no-wait", *LABELS)
    imagelabs("generate", "y", "--no-wait")
    lines = imagelabs("jobs").stdout.splitlines()
    assert lines[0].endswith("project=spring url=a=b")
    assert lines[1].endswith(service.url.replace("imagelabs.test", "editor.imagelabs.net"))
    labelled, plain = printed(imagelabs("jobs", "--json").stdout)
    assert (labelled["metadata"], plain["metadata"]) == (BOTH, {})
    resumed = printed(imagelabs("jobs", "--resume", "--json").stdout)
    assert [facts["metadata"] for facts in resumed] == [BOTH, {}]


def test_show_reads_what_stands_beside_an_image(service: FakeService) -> None:
    """As `ImageRequest.from_image` does, for an image that says nothing itself."""
    image = service.client().generate("a mill", seed=7, metadata={**BOTH, "order": [4711]})
    image.save("x.png", sidecar=True)
    lines = invoke(["show", "x.png"]).stdout.splitlines()
    assert "seed                7" in lines
    assert "label project       spring" in lines
    assert "label order         [4711]" in lines
    facts = json.loads(invoke(["show", "x.png", "--json"]).stdout)
    assert facts["metadata"] == {**BOTH, "order": [4711]}
    assert (facts["tool"], facts["seed"]) == (None, 7)


@pytest.mark.parametrize("content", ["[]", '{"request": 7, "metadata": []}', "{", '"x"'])
def test_a_sidecar_that_makes_no_sense_says_nothing(service: FakeService, content: str) -> None:
    """It may have been written by anybody."""
    service.client().generate("a mill").save("x.png")
    Path("x.png.json").write_text(content)
    assert invoke(["show", "x.png"]).exit_code == 2
