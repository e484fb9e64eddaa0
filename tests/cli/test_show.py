"""`imagelabs show` and `generate --like`: an image tells how it was made."""

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from imagelabs_sdk.cli.runtime import Runtime
from imagelabs_sdk.embedded import embedded_client
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, invoke
from tests.faulty import PNG
from tests.spine.test_parameters import INFOTEXT


def png(name: str, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    Image.new("RGB", (8, 8)).save(name, pnginfo=info)
    return Path(name)


def test_an_image_tells_how_it_was_made(imagelabs: Command) -> None:
    """One fact a line for a person, one object for a program."""
    path = png("x.png", parameters=INFOTEXT)
    lines = imagelabs("show", path).stdout.splitlines()
    assert lines[0] == "made by             automatic1111"
    assert "seed                965400086" in lines
    assert "Sampler             Euler a" in lines
    facts = json.loads(imagelabs("show", path, "--json").stdout)
    assert list(facts) == [
        "path", "tool", "prompt", "negative_prompt", "width", "height", "seed", "subseed",
        "details", "metadata",
    ]  # fmt: skip
    assert (facts["width"], facts["seed"]) == (512, 965400086)
    assert "no prompt" not in imagelabs("show", path).stderr
    path = png("silent.png", parameters="Steps: 4, Seed: 7")
    assert "no prompt: who made the file left it out" in imagelabs("show", path).stderr


@pytest.mark.parametrize("content", [PNG, b"no image", b""])
def test_an_image_that_tells_nothing_is_exit_code_2(imagelabs: Command, content: bytes) -> None:
    """For both commands, before anything is bought."""
    Path("x.png").write_bytes(content)
    for words in (["show", "x.png"], ["generate", "--like", "x.png"]):
        result = imagelabs(*words)
        assert result.exit_code == 2
        assert "does not say how it was made" in result.stderr


def test_an_image_is_drawn_again_by_its_file(imagelabs: Command, service: FakeService) -> None:
    """Options win over the file, and a prompt over its prompt."""
    path = png("x.png", parameters=INFOTEXT)
    assert imagelabs("generate", "--like", path, "-o", "y.png").exit_code == 0
    service.assert_submitted_once(width=512, height=768, seed=965400086)
    assert service.submits[0].request.prompt.startswith("a lighthouse")
    words = ("a mill", "--seed", 5, "--aspect-ratio", "1:1", "-o", "z.png")
    assert imagelabs("generate", "--like", path, *words).exit_code == 0
    service.assert_submitted(prompt="a mill", width=1016, seed=5)


def test_a_batch_may_look_like_an_image(imagelabs: Command, gallery: FakeService) -> None:
    """The prompts are the file's own."""
    path = png("x.png", parameters=INFOTEXT)
    assert imagelabs.batch("--like", path).exit_code == 0
    assert {submit.request.seed for submit in gallery.submits} == {965400086}
    gallery.assert_submitted(prompt="a castle")


def test_the_built_in_engine_draws_the_same_pixels_again() -> None:
    """What the server embeds is enough, together with the prompt that it does not embed."""
    runtime = Runtime(make_embedded_client=partial(embedded_client, duration=0.0))
    words = ["generate", "a mill", "--embedded", "--poll-interval", 0.01]
    first = [*words, "--size", "64x48", "--seed", 7, "--subseed", 8, "-o", "x.png"]
    assert invoke(first, runtime).exit_code == 0
    second = invoke([*words, "--like", "x.png", "-o", "y.png"], runtime)
    assert second.exit_code == 0, second.stderr
    with Image.open("x.png") as one, Image.open("y.png") as other:
        assert one.tobytes() == other.tobytes()
    without = invoke(["generate", "--embedded", "--like", "x.png"], runtime)
    assert without.exit_code == 2
    assert "the file holds none: give it" in without.stderr
