"""Many images: which requests, under which names, from which lines."""

import json
from pathlib import Path

import pytest

from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, saved


def write(*rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path("prompts.txt").write_text("\n".join(lines), encoding="utf-8")


def test_a_row_gives_the_fields_of_its_request(imagelabs: Command, gallery: FakeService) -> None:
    """They win over the options; lines of text stand beside them."""
    write(
        "a boat",
        {"prompt": "a mill", "width": 64, "seed": 3, "tiling": True},
        {"prompt": "a fox", "aspect_ratio": "1:1", "negative_prompt": "fog"},
        "{red|blue} boat",
    )
    result = imagelabs.batch("--width", 512, "--height", 256, "--seed", 7, "--negative", "rain")
    assert result.exit_code == 0
    asked = [submit.request for submit in gallery.submits]
    assert {r.prompt: (r.width, r.height, r.seed, r.negative_prompt) for r in asked} == {
        "a boat": (512, 256, 7, "rain"),
        "a mill": (64, 896, 3, "rain"),
        "a fox": (1016, 1016, 7, "fog"),
        "{red|blue} boat": (512, 256, 7, "rain"),
    }
    gallery.assert_submitted(prompt="a mill", tiling=True)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ('{"prompt": "x", ', "line 2 is not a JSON object"),
        ('{"width": 5}', "line 2: prompt: is required"),
        ("{}", "line 2: prompt: is required"),
        ('{"prompt": " "}', "line 2: prompt"),
        ('{"prompt": "x", "widht": 5}', "line 2: widht"),
        ('{"prompt": "x", "width": "5"}', "line 2: width='5'"),
        ('{"prompt": "x", "width": 5, "aspect_ratio": "1:1"}', "line 2: width=5"),
        ('{ "prompt": 5}', "line 2: prompt"),
        ('{"prompt": ' + "[" * 99999, "line 2 is not a JSON object"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_bought(
    imagelabs: Command, gallery: FakeService, row: str, word: str
) -> None:
    """By its line, as an editor counts."""
    write("a boat", row)
    result = imagelabs.batch()
    assert result.exit_code == 2
    assert word in result.stderr
    assert not gallery.sent


def test_a_bad_option_is_not_blamed_on_a_row(imagelabs: Command, gallery: FakeService) -> None:
    """The row is right."""
    assert imagelabs.batch("--width", 0).stderr.startswith("imagelabs: --width=0: must")
    assert imagelabs("generate", " ", "-n", 2).stderr.startswith("imagelabs: PROMPT")


def test_variations_have_the_seeds_that_follow(imagelabs: Command, gallery: FakeService) -> None:
    """Each of them can be asked for again by its own seed."""
    result = imagelabs("generate", "a boat", "-n", 3, "--seed", 7, "-o", "boat.png")
    assert result.exit_code == 0
    assert sorted(result.stdout.split()) == ["boat-1.png", "boat-2.png", "boat-3.png"]
    assert sorted(submit.request.seed or 0 for submit in gallery.submits) == [7, 8, 9]


def test_variations_without_a_seed_differ(imagelabs: Command, gallery: FakeService) -> None:
    """Equal images would be bought for nothing."""
    result = imagelabs("generate", "a boat", "-n", 3, "--json")
    facts = [json.loads(line) for line in result.stdout.splitlines()]
    assert len({each["seed"] for each in facts}) == 3
    assert {each["line"] for each in facts} == {None}
    names = sorted(each["path"] for each in facts)
    assert [name.rpartition("-")[2] for name in names] == ["1.png", "2.png", "3.png"]


def test_variations_of_a_file_are_numbered_twice(imagelabs: Command, gallery: FakeService) -> None:
    """The line's number first, so that a folder sorts by prompt."""
    assert imagelabs.batch("-n", 2, "--contact-sheet", "sheet.png").exit_code == 0
    assert saved() == [f"000{line}-{copy}.png" for line in (1, 2, 3) for copy in (1, 2)]
    assert imagelabs("generate", "x", "-n", 1, "--out-dir", "one").stdout == "one/0001.png\n"


def test_variations_of_one_prompt_can_be_resumed(imagelabs: Command, gallery: FakeService) -> None:
    """With the same names, though no seed was given."""
    words = ("generate", "a boat", "-n", 2, "-o", "boat", "--checkpoint", "run.jsonl")
    assert imagelabs(*words).exit_code == 0
    result = imagelabs(*words)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "0 saved, 2 there already"
    assert len(gallery.submits) == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--contact-sheet images/0002.png", "--contact-sheet 'images/0002.png' is the name of an"),
        ("--contact-sheet ./images/../images/0002.WEBP", "is the name of an image"),
        ("--contact-sheet prompts.png", "--contact-sheet and --batch are the same file"),
        ("--contact-sheet x.png --checkpoint x.png", "--checkpoint are the same file"),
        ("--contact-sheet hard.png", "are the same file"),
        ("--checkpoint images/0001.png", "--checkpoint 'images/0001.png' is the name of an image"),
    ],
)
def test_no_file_of_a_run_is_written_over_another(
    imagelabs: Command, gallery: FakeService, arguments: str, word: str
) -> None:
    """By whatever path it is named; refused before anything is bought."""
    Path("images").mkdir()
    Path("prompts.png").symlink_to("prompts.txt")
    Path("hard.png").hardlink_to("prompts.txt")
    result = imagelabs.batch(*arguments.split())
    assert result.exit_code == 2
    assert word in result.stderr
    assert not gallery.sent


def test_a_sheet_may_stand_beside_the_images(imagelabs: Command, gallery: FakeService) -> None:
    """And replace the sheet of an earlier run."""
    for _ in range(2):
        words = ("--contact-sheet", "images/sheet.png", "--checkpoint", "images/run.jsonl")
        assert imagelabs.batch(*words).exit_code == 0
    assert "sheet.png" in saved()
