"""A file of prompts becomes a folder of images; nothing bought is lost or bought twice."""

import errno
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import imagelabs_sdk.cli
from imagelabs_sdk import HttpResponse
from imagelabs_sdk.cli.runtime import Runtime
from imagelabs_sdk.embedded import embedded_client
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, invoke, prompts, saved
from tests.cli.conftest import PROMPTS
from tests.faulty import PNG


def test_a_file_of_prompts_becomes_a_folder_of_images(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Their paths are the standard output; numbers, no names of the server's, name them."""
    result = imagelabs.batch("--seed", 7, "--size", "512x640", "--jobs", 2)
    assert result.exit_code == 0
    assert sorted(prompts(gallery)) == ["a [red] boat", "a castle", "a lighthouse"]
    assert saved() == ["0001.png", "0002.png", "0003.png"]
    assert sorted(result.stdout.split()) == [f"images/{name}" for name in saved()]
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *(f"{n} of 3" for n in (1, 2, 3)),
        "3 saved",
    ]


def test_a_batch_tells_json_line_by_line(imagelabs: Command, gallery: FakeService) -> None:
    """Also of what failed."""
    gallery.job("a castle").refuses()
    result = imagelabs.batch("--json", "--seed", 7)
    facts = {each["line"]: each for each in map(json.loads, result.stdout.splitlines())}
    assert sorted(facts) == [2, 3, 5]
    assert facts[3]["path"] == "images/0002.png"
    assert facts[3]["seed"] == 7
    assert facts[5]["task_id"] is None
    assert (facts[5]["code"], facts[5]["retryable"]) == ("api_status", False)
    assert "answered 422" in facts[5]["message"]


def test_what_failed_is_told_at_the_end_with_its_line_and_reason(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Among a thousand lines that scrolled by nobody finds it."""
    gallery.job("a castle").refuses()
    gallery.job("a lighthouse").done().answers(HttpResponse(200, {}, b"<html>" * 99))
    result = imagelabs.batch()
    assert result.exit_code == 8  # of the first one in the file
    assert "line 5 (0003) failed" in result.stderr
    *_, counts, first, second = result.stderr.splitlines()
    assert counts == "1 saved, 2 failed:"
    assert first.startswith("  line 2 (0001): GET https://")
    assert "answered 200: what came is no image" in first
    assert second.startswith(
        "  line 5 (0003): POST https://editor.imagelabs.net/txt2img answered 422"
    )
    assert saved() == ["0002.png"]


def test_the_same_command_again_brings_what_is_missing(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Nothing is bought twice, and images that are there are not even fetched."""
    gallery.job("a castle").refuses()
    assert imagelabs.batch("--checkpoint", "run.jsonl").exit_code == 4
    gallery.job("a castle")
    gallery.sent.clear()
    Path("images/0001.png").unlink()
    result = imagelabs.batch("--checkpoint", "run.jsonl")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "2 saved, 1 there already"
    assert len(result.stdout.splitlines()) == 3
    fetched = {one.task_id for one in gallery.sent if one.at == "image"}
    assert fetched == {"a-castle", "a-lighthouse"}
    assert sorted(prompts(gallery)) == ["a [red] boat", "a castle", "a castle", "a lighthouse"]


def test_a_batch_never_replaces_the_images_of_another(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Without the checkpoint that drew them, they are somebody else's."""
    assert imagelabs.batch().exit_code == 0
    Path("images/0001.png").unlink()
    for more in ((), ("--checkpoint", "new.jsonl")):
        result = imagelabs.batch(*more)
        assert result.exit_code == 2
        assert "'images/0002.png' exists already" in result.stderr
    assert len(gallery.submits) == 3


def test_changed_prompts_are_refused_with_their_checkpoint(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Places count: a line put in at the top would buy everything again."""
    imagelabs.batch("--checkpoint", "run.jsonl")
    Path("prompts.txt").write_text("new\n" + PROMPTS)
    result = imagelabs.batch("--checkpoint", "run.jsonl")
    assert result.exit_code == 2
    assert "item 0" in result.stderr
    assert len(gallery.submits) == 3


def test_an_interrupted_batch_names_what_goes_on(imagelabs: Command, gallery: FakeService) -> None:
    """Each line can be pasted; the image in hand is not forgotten either."""
    gallery.job("a lighthouse").done(PNG).answers(KeyboardInterrupt(), times=1)
    for prompt in ("a castle", "a [red] boat"):
        gallery.job(prompt).never_finishes()
    result = imagelabs.batch()
    assert result.exit_code == 130
    lines = result.stderr.splitlines()
    assert lines[0] == "imagelabs: interrupted"
    assert lines[1] == "0 saved, 3 not finished"
    assert sorted(lines[2:]) == [
        "To resume: imagelabs wait 'a-[red]-boat' -o images/0002",
        "To resume: imagelabs wait a-castle -o images/0003",
        "To resume: imagelabs wait a-lighthouse -o images/0001",
    ]


def test_an_interrupted_batch_with_a_checkpoint_is_resumed_by_the_same_command(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Which needs no list of ids."""
    gallery.job("a lighthouse").done(PNG).answers(KeyboardInterrupt(), times=1)
    result = imagelabs.batch("--checkpoint", "run.jsonl")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        "To resume: run the same command again; run.jsonl keeps what was bought."
    )
    assert imagelabs.batch("--checkpoint", "run.jsonl").exit_code == 0
    assert saved() == ["0001.png", "0002.png", "0003.png"]
    assert len(gallery.submits) == 3


def test_an_image_that_was_bought_is_saved_whatever_has_its_name_meanwhile(
    imagelabs: Command, gallery: FakeService
) -> None:
    """A file counts as saved only if an earlier run has recorded that it saved it."""
    gallery.job("a lighthouse").done(PNG).answers(KeyboardInterrupt(), times=1)
    gallery.job("a castle").queued(9).done(PNG)
    assert imagelabs.batch("--checkpoint", "run.jsonl").exit_code == 130
    assert not Path("images/0001.png").exists()  # it was finished, and not fetched
    for name in ("0001", "0003"):
        Path(f"images/{name}.png").write_bytes(b"another image")
    assert imagelabs.batch("--checkpoint", "run.jsonl").exit_code == 0
    for name in ("0001", "0003"):
        assert Path(f"images/{name}.png").read_bytes() == PNG
    assert len(gallery.submits) == 3


def test_an_image_that_could_not_be_fetched_is_saved_by_a_later_run(
    imagelabs: Command, gallery: FakeService
) -> None:
    """The run went on without it, and something else has its name by now."""
    gallery.job("a lighthouse").done(PNG).answers(HttpResponse(404), times=2)
    assert imagelabs.batch("--checkpoint", "run.jsonl").exit_code == 8
    Path("images/0001.png").write_bytes(b"another image")
    result = imagelabs.batch("--checkpoint", "run.jsonl")
    assert result.stderr.splitlines()[-1] == "1 saved, 2 there already"
    assert Path("images/0001.png").read_bytes() == PNG


def test_a_job_that_the_checkpoint_lacks_is_named(
    imagelabs: Command, gallery: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: its id is nowhere else."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    gallery.on_request = lambda sent: monkeypatch.setattr(os, "fsync", full)
    result = imagelabs.batch("--checkpoint", "run.jsonl", "--jobs", 1)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "imagelabs: job a-lighthouse was accepted and is not in the checkpoint: "
        "No space left on device",
        "0 saved, 3 not finished",
        "To resume: run the same command again; run.jsonl keeps what was bought, but for the jobs "
        "named below.",
        "To resume: imagelabs wait a-lighthouse -o images/0001",
    ]


def test_an_interrupt_before_anything_was_accepted_has_nothing_to_resume(
    imagelabs: Command, gallery: FakeService
) -> None:
    """A hint without a task id would help nobody."""
    gallery.answers(KeyboardInterrupt(), at="submit")
    result = imagelabs.batch()
    assert result.stderr.splitlines() == [
        "imagelabs: interrupted",
        "0 saved, 3 not finished",
        "Without a task id: line 2 (0001), line 3 (0002), line 5 (0003)",
    ]


def test_a_full_disk_ends_a_batch(imagelabs: Command, gallery: FakeService) -> None:
    """Buying on would be images for nobody."""
    full = OSError(28, "No space left on device")
    gallery.answers(full, at="image")
    result = imagelabs.batch()
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "imagelabs: No space left on device"
    assert "To resume: imagelabs wait " in result.stderr


def test_an_embedded_batch_needs_no_service(folder: Path) -> None:
    """The whole way in one process, as for one image."""
    Path("prompts.txt").write_text("a\nb\n")
    client = partial(embedded_client, LandscapeEngine(duration=60.0))
    words = "generate --batch prompts.txt --out-dir images --embedded --size 16x16 --timeout 0.05"
    result = invoke(words.split(), Runtime(make_embedded_client=client))
    assert result.exit_code == 7
    assert result.stderr.splitlines()[-3] == "0 saved, 2 failed:"


def test_an_interrupted_embedded_batch_has_nothing_to_resume(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Its service ends with the process."""
    gallery.job("a lighthouse").done(PNG).answers(KeyboardInterrupt(), times=1)
    result = imagelabs.batch("--embedded")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("there is nothing to resume.")


def test_a_contact_sheet_shows_all_that_is_there(imagelabs: Command, gallery: FakeService) -> None:
    """Also what an earlier run has drawn, and whatever cannot be read as an empty frame."""
    unreadable = b"RIFF\x18\0\0\0WEBPVP8 \x0c\0\0\0" + bytes(12)  # whole, by its structure
    gallery.job("a castle").done(unreadable)
    assert imagelabs.batch("--checkpoint", "run.jsonl").exit_code == 0
    result = imagelabs.batch("--checkpoint", "run.jsonl", "--contact-sheet", "sheet.png")
    assert result.stderr.splitlines()[-1] == "contact sheet: sheet.png"
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 2 * 320
        assert len(sheet.getcolors(99999) or ()) > 10


def test_without_any_image_there_is_no_contact_sheet(
    imagelabs: Command, gallery: FakeService
) -> None:
    """An empty sheet would look like a success."""
    gallery.refuses(at="submit")
    assert imagelabs.batch("--contact-sheet", "sheet.png").exit_code == 4
    assert not Path("sheet.png").exists()


def test_without_pillow_a_contact_sheet_is_refused_before_anything_is_bought(
    imagelabs: Command, gallery: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the remedy, as for the embedded engine."""
    monkeypatch.setitem(sys.modules, "imagelabs_sdk.cli.contact_sheet", None)
    monkeypatch.delattr(imagelabs_sdk.cli, "contact_sheet", raising=False)
    result = imagelabs.batch("--contact-sheet", "sheet.png")
    assert result.exit_code == 1
    assert 'pip install "imagelabs_sdk[server]"' in result.stderr
    assert not gallery.sent


def test_what_has_no_task_id_is_named_up_to_a_bound(
    imagelabs: Command, gallery: FakeService
) -> None:
    """Their prompts have to be given again."""
    prompts = [f"prompt {number}" for number in range(30)]
    Path("prompts.txt").write_text("\n".join(prompts))
    gallery.answers(KeyboardInterrupt(), at="submit")
    last = imagelabs.batch().stderr.splitlines()[-1]
    assert last.startswith("Without a task id: line 1 (0001), line 2 (0002), ")
    assert last.endswith("line 20 (0020) and 10 more")


def test_a_service_that_is_down_stops_a_batch(imagelabs: Command, gallery: FakeService) -> None:
    """With exit code 3, instead of failing one prompt after the other for hours."""
    prompts = [f"prompt {number}" for number in range(200)]
    Path("prompts.txt").write_text("\n".join(prompts))
    gallery.unreachable(at="submit")
    result = imagelabs.batch("--jobs", 1)
    assert result.exit_code == 3
    assert len(gallery.submits) < 200


def test_what_an_earlier_run_left_unknown_can_be_settled(
    imagelabs: Command, gallery: FakeService
) -> None:
    """The user decides: an image may be lost, or be bought twice."""
    gallery.job("a castle").drops_connection()
    words = ("--checkpoint", "run.jsonl")
    first = imagelabs.batch(*words)
    assert first.exit_code == 5
    hint = "To settle what is unknown: run the same command again with --unknown=retry."
    assert first.stderr.splitlines()[-1] == hint
    gallery.job("a castle")
    assert imagelabs.batch(*words).exit_code == 5
    assert imagelabs.batch(*words, "--unknown", "retry").exit_code == 0
    assert prompts(gallery).count("a castle") == 2
