"""The stand-in engine: the same bytes for the same request, and a queue made of arithmetic."""

import hashlib
import io
import math
import os
import subprocess
import sys
import threading
from typing import Any

import attrs
import pytest
from PIL import Image, ImageChops, ImageStat

from imagelabs_sdk import ImageRequest, InvalidRequestError, State
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.landscape import engine as landscape
from imagelabs_sdk.server.engines.landscape.painter import paint
from imagelabs_sdk.server.engines.landscape.scene import DiscKind, Frame, Scene, Sprig, compose
from tests.conftest import FakeTime

SMALL = ImageRequest("a lighthouse at dusk", width=96, height=72, seed=1, subseed=2)


def drawn(request: ImageRequest = SMALL) -> bytes:
    return LandscapeEngine(duration=0).start(request).image()


def scene(prompt: str, **changes: Any) -> Scene:
    return compose(attrs.evolve(SMALL, prompt=prompt, **changes))


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(sum(ImageStat.Stat(ImageChops.difference(one, other)).mean))


# The picture --------------------------------------------------------------------------


def test_the_same_request_gives_the_same_bytes() -> None:
    """Who asks with a known seed wants the known picture; also a cache may forget it."""
    assert drawn() == drawn()


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_another_process_gives_the_same_bytes(hash_seed: str) -> None:
    """Nothing may come from the time, the process or the hash of a text."""
    code = (
        "import hashlib, tests.server.test_landscape as t;"
        "print(hashlib.sha256(t.drawn()).hexdigest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == hashlib.sha256(drawn()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a lighthouse at dawn"},
        {"negative_prompt": "people"},
        {"seed": 2},
        {"subseed": 3},
        {"tiling": True},
    ],
    ids=str,
)
def test_every_wish_changes_the_picture(change: dict[str, Any]) -> None:
    """A parameter that a stand-in ignores would look broken to who tries it out."""
    one, other = (
        Image.open(io.BytesIO(data)) for data in (drawn(), drawn(attrs.evolve(SMALL, **change)))
    )
    assert difference(one, other) > 1.0


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (1, 700), (700, 1), (1500, 2), (3, 1500), (64, 48), (97, 53)],
)
@pytest.mark.parametrize("tiling", [False, True])
@pytest.mark.parametrize("prompt", ["peaks at night", "a lighthouse at night", "city at night"])
def test_a_picture_has_exactly_the_size_that_was_asked_for(
    prompt: str, width: int, height: int, tiling: bool
) -> None:
    """Pages leave that much room for it; and no shape may be too odd to draw."""
    request = attrs.evolve(SMALL, prompt=prompt, width=width, height=height, tiling=tiling)
    with Image.open(io.BytesIO(drawn(request))) as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (width, height))


def test_the_largest_picture_can_be_drawn() -> None:
    """4096 is what a request may ask for."""
    assert paint(scene("dunes"), 4096, 4096).size == (4096, 4096)


def test_a_picture_says_what_it_is_and_not_what_was_asked() -> None:
    """Nobody shall take it for a model's work; and a prompt is the user's own business."""
    data = drawn()
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.info["Software"] == "imagelabs_sdk landscape engine"
        assert "no diffusion model" in image.info["Comment"]
        assert (image.info["Seed"], image.info["Subseed"]) == ("1", "2")
    assert b"lighthouse" not in data


def test_a_seed_moves_things_and_a_subseed_only_details() -> None:
    """So it is with a model: the variation is of one composition."""
    one, moved, varied = scene("lake"), scene("lake", seed=2), scene("lake", subseed=3)
    assert moved.horizon != one.horizon
    assert moved.palette == varied.palette == one.palette
    assert (varied.horizon, varied.disc) == (one.horizon, one.disc)
    assert varied.ridges != one.ridges


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [("Mountains!", "peaks"), ("the SEA", "sea"), ("a wolf in the woods", "forest")],
)
def test_a_few_words_choose_the_scenery(prompt: str, kind: str) -> None:
    """A demonstration that answers "the sea" with a forest would puzzle."""
    assert {scene(prompt, seed=seed).kind for seed in range(9)} == {kind}


def test_the_negative_prompt_keeps_scenery_out() -> None:
    """Unless that would leave nothing: then it only changes the picture."""
    kinds = {scene(f"number {i}", negative_prompt="sea, forest").kind for i in range(60)}
    assert len(kinds) > 5
    assert not kinds & {"sea", "forest"}
    assert scene("the sea", negative_prompt="sea").kind == "sea"


def test_prompts_without_such_words_get_all_kinds_of_scenery_and_light() -> None:
    """Different prompts shall look different."""
    scenes = [scene(f"number {i}") for i in range(120)]
    assert len({each.kind for each in scenes}) == 9
    assert {each.disc.kind for each in scenes} == {"sun", "bars", "moon", "crescent", "planet"}
    assert len({each.palette for each in scenes}) > 100


def test_each_kind_of_scenery_is_a_picture_of_its_own() -> None:
    """By day and by night: windows are lit, and the lighthouse is."""
    lands = ["peaks", "hills", "dunes", "forest", "canyon", "lake", "sea", "lighthouse", "city"]
    scenes = [scene(f"{land} {hour}") for land in lands for hour in ("at noon", "at night")]
    assert len({each.kind for each in scenes}) == len(lands)
    assert len({paint(each, 120, 90).tobytes() for each in scenes}) == 2 * len(lands)


@pytest.mark.parametrize("kind", ["sun", "bars", "moon", "crescent", "planet"])
def test_every_light_in_the_sky_looks_its_own_way(kind: DiscKind) -> None:
    """A kind that is not drawn would be a plain sun."""
    plain = scene("sea")
    plain = attrs.evolve(plain, disc=attrs.evolve(plain.disc, kind="sun", radius=0.15))
    other = attrs.evolve(plain, disc=attrs.evolve(plain.disc, kind=kind))
    same = paint(plain, 120, 90).tobytes() == paint(other, 120, 90).tobytes()
    assert same is (kind == "sun")


@pytest.mark.parametrize(
    "things",
    [
        {"stars": (Sprig(0.5, 0.5, 1.0),)},
        {"birds": (Sprig(0.5, 0.3, 1.0),)},
        {"boats": (Sprig(0.5, 0.7, 1.0),)},
        {"tower": Sprig(0.2, 0.6, 1.0)},
        {"tower": Sprig(0.8, 0.6, 1.0)},
        {"aurora": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)},
    ],
    ids=str,
)
def test_everything_in_a_scene_is_drawn(things: dict[str, Any]) -> None:
    """And a scene without it is drawn as well."""
    none: dict[str, Any] = {
        "stars": (),
        "birds": (),
        "boats": (),
        "tower": None,
        "aurora": (),
        "clouds": (),
    }
    bare = attrs.evolve(scene("sea at noon"), **none)
    full = attrs.evolve(bare, **things)
    assert paint(bare, 240, 180).tobytes() != paint(full, 240, 180).tobytes()


def test_a_red_sun_does_not_dye_the_snow() -> None:
    """Of the colours of an ink print, the light is no white."""
    palette = attrs.evolve(scene("lake").palette, light=(255, 240, 220))
    red = attrs.evolve(palette, light=(200, 60, 40))
    assert (palette.glows, palette.white) == (True, palette.light)
    assert (red.glows, red.white) == (False, red.low)
    paint(attrs.evolve(scene("lake"), palette=red), 120, 90)


def test_a_pattern_goes_on_where_it_ends() -> None:
    """Laid side by side, or one above the other, there is no seam."""
    size = 128, 96
    image = paint(scene("a", tiling=True), *size)
    plain = paint(scene("forest at noon"), *size)
    assert seam(image, 0) <= 1.2 * roughness(image, 0)
    assert seam(image, 1) <= 1.2 * roughness(image, 1)
    assert seam(plain, 1) > 1.2 * roughness(plain, 1)


def seam(image: Image.Image, axis: int) -> float:
    """How much the last column (or row) differs from the first."""
    return step(image, axis, image.size[axis] - 1)


def roughness(image: Image.Image, axis: int) -> float:
    """The largest such difference within the picture."""
    return max(step(image, axis, place) for place in range(image.size[axis] - 1))


def step(image: Image.Image, axis: int, place: int) -> float:
    places = (place, (place + 1) % image.size[axis])
    lines = [
        image.crop((i, 0, i + 1, image.height) if axis == 0 else (0, i, image.width, i + 1))
        for i in places
    ]
    return difference(*lines)


def test_a_ridge_repeats_after_its_period() -> None:
    """That is what makes a pattern exact, and not only nearly so."""
    ridge = scene("a", tiling=True).ridges[0]
    wide = Frame(96, 72).width / Frame(96, 72).unit
    for x in (-0.6, 0.0, 0.31):
        assert math.isclose(ridge.crest(x), ridge.crest(x + wide), abs_tol=1e-9)


# The queue ----------------------------------------------------------------------------


def test_a_drawing_stands_as_the_clock_says(time: FakeTime) -> None:
    """Nothing runs in between: looking is all that there is."""
    drawing = LandscapeEngine(duration=4.0, clock=time.clock).start(SMALL)
    first = drawing.standing()
    assert (first.state, first.fraction, first.has_preview) == (State.RUNNING, 0.0, True)
    time.now += 1.0
    assert drawing.standing().fraction == 0.25
    time.now += 3.0
    assert (drawing.standing().state, drawing.standing().fraction) == (State.DONE, 1.0)


def test_who_waits_is_told_the_place_in_the_queue(time: FakeTime) -> None:
    """Two are drawn at a time, so the queue moves on by two."""
    engine = LandscapeEngine(duration=4.0, workers=2, clock=time.clock)
    drawings = [engine.start(SMALL) for _ in range(6)]
    words = [drawing.standing().words for drawing in drawings]
    assert words[:3] == ["Processing", "Processing", "Queue position 1"]
    assert words[3:] == ["Queue position 2", "Queue position 3", "Queue position 4"]
    last = drawings[-1].standing()
    assert (last.state, last.fraction, last.has_preview) == (State.QUEUED, 0.0, False)
    time.now += 4.0
    assert drawings[-1].standing().words == "Queue position 2"
    time.now += 4.0
    assert drawings[-1].standing().state is State.RUNNING


def test_a_worker_that_was_idle_starts_at_once(time: FakeTime) -> None:
    """The time in which nobody asked is not owed to the next one."""
    engine = LandscapeEngine(duration=4.0, workers=1, clock=time.clock)
    engine.start(SMALL)
    time.now += 2.0
    waiting = engine.start(SMALL)
    assert waiting.standing().words == "Queue position 1"
    time.now += 100.0
    assert engine.start(SMALL).standing().fraction == 0.0


def test_no_duration_means_done_at_the_first_look(time: FakeTime) -> None:
    """For tests, and for who is in a hurry."""
    engine = LandscapeEngine(duration=0, workers=1, clock=time.clock)
    assert {engine.start(SMALL).standing().state for _ in range(3)} == {State.DONE}


@pytest.mark.parametrize("setting", [{"duration": -1.0}, {"duration": math.nan}, {"workers": 0}])
def test_a_setting_that_makes_no_sense_is_refused(setting: dict[str, Any]) -> None:
    """Before anything is asked of it."""
    with pytest.raises(InvalidRequestError) as caught:
        LandscapeEngine(**setting)
    assert caught.value.field in setting


def test_a_preview_comes_nearer_to_the_picture(time: FakeTime) -> None:
    """It is what makes waiting pleasant; and it is cheap, for it is small."""
    request = attrs.evolve(SMALL, width=1152, height=896)
    drawing = LandscapeEngine(duration=10.0, clock=time.clock).start(request)
    final = paint(compose(request), 1152, 896).resize((512, 398))
    gaps = []
    for _ in range(9):
        time.now += 1.0
        with Image.open(io.BytesIO(drawing.preview() or b"")) as preview:
            assert preview.size == (512, 398)
            gaps.append(difference(preview, final))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 3


def test_there_is_no_preview_before_and_after(time: FakeTime) -> None:
    """A queued picture has nothing to show, a finished one has better."""
    engine = LandscapeEngine(duration=4.0, workers=1, clock=time.clock)
    done, queued = engine.start(SMALL), engine.start(SMALL)
    assert queued.preview() is None
    time.now += 4.0
    assert done.preview() is None


def test_no_more_pictures_are_drawn_at_once_than_there_are_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The largest take half a gigabyte each; a server's threads must not add that up."""
    busy, most, both = 0, 0, threading.Barrier(2)
    counting = threading.Lock()

    def slowly(scene: Scene, width: int, height: int) -> Image.Image:
        nonlocal busy, most
        with counting:
            busy += 1
            most = max(most, busy)
        both.wait(5.0)  # passes only when two are at it
        with counting:
            busy -= 1
        return Image.new("RGB", (width, height))

    monkeypatch.setattr(landscape, "paint", slowly)
    engine = LandscapeEngine(duration=0, workers=2)
    threads = [threading.Thread(target=engine.start(SMALL).image) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
