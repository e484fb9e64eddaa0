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

from imagelabs_sdk import (
    HandlerTransport,
    HttpRequest,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    Job,
    State,
)
from imagelabs_sdk.provenance import read_provenance
from imagelabs_sdk.server.encoding import encode
from imagelabs_sdk.server.engines.base import RenderedImage, RenderError, RenderJob
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.landscape import timeline as landscape_timeline
from imagelabs_sdk.server.engines.landscape.painter import paint
from imagelabs_sdk.server.engines.landscape.renders import LandscapeRenderer, finished
from imagelabs_sdk.server.engines.landscape.scene import DiscKind, Frame, Scene, Sprig, compose
from imagelabs_sdk.server.local import LocalServer
from imagelabs_sdk.testing import FakeClock

SMALL = ImageRequest("a lighthouse at dusk", width=96, height=72, seed=1, subseed=2)


def drawn(request: ImageRequest = SMALL) -> bytes:
    return encode(finished(request))


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


# Without threads ----------------------------------------------------------------------


def client_of(time: FakeClock, **settings: Any) -> ImageLabs:
    server = LocalServer(LandscapeEngine(**settings), clock=time.now)
    return ImageLabs("http://x.test", transport=HandlerTransport(server), polling=time.every(1.0))


def words(job: Job) -> str:
    return job.refresh().status


def test_a_job_stands_as_the_clock_says(time: FakeClock) -> None:
    """Nothing runs in between: asking is all that there is."""
    job = client_of(time, duration=4.0).submit(SMALL)
    first = job.refresh()
    assert (first.state, first.fraction) == (State.RUNNING, 0.0)
    time.advance(1.0)
    assert job.refresh().fraction == 0.25
    time.advance(3.0)
    assert job.refresh().state is State.DONE
    data = job.image().read()
    assert difference(*(Image.open(io.BytesIO(each)) for each in (data, drawn()))) == 0
    found = read_provenance(data)
    assert found is not None
    assert found.source_type == "algorithmicMedia", "no model was trained for it"
    assert found.info["engine"] == "landscape"


def test_the_queue_moves_on_as_workers_become_free(time: FakeClock) -> None:
    """Two render at a time, and a job begins when the one before it ended, asked or not."""
    client = client_of(time, duration=4.0, workers=2)
    jobs = [client.submit(SMALL) for _ in range(6)]
    assert [words(job) for job in jobs] == [
        *["Processing"] * 2,
        *[f"Queue position {place}" for place in (1, 2, 3, 4)],
    ]
    assert jobs[-1].refresh().state is State.QUEUED
    time.advance(4.0)
    assert words(jobs[-1]) == "Queue position 2"
    time.advance(6.0)
    assert [job.refresh().state for job in jobs[:4]] == [State.DONE] * 4
    assert jobs[-1].refresh().fraction == 0.5


def test_a_worker_that_was_idle_starts_at_once(time: FakeClock) -> None:
    """The time in which nobody asked is not owed to the next job."""
    client = client_of(time, duration=4.0, workers=1)
    client.submit(SMALL)
    time.advance(100.0)
    assert client.submit(SMALL).refresh().fraction == 0.0


def test_no_duration_means_done_at_the_first_poll(time: FakeClock) -> None:
    """For tests, and for who is in a hurry."""
    client = client_of(time, duration=0, workers=1)
    assert {client.submit(SMALL).refresh().state for _ in range(3)} == {State.DONE}


@pytest.mark.parametrize("setting", [{"duration": -1.0}, {"duration": math.nan}, {"workers": 0}])
def test_a_setting_that_makes_no_sense_is_refused(setting: dict[str, Any]) -> None:
    """Before anything is asked of it."""
    with pytest.raises(InvalidRequestError) as caught:
        LandscapeEngine(**setting)
    assert caught.value.field in setting


def test_a_preview_comes_nearer_to_the_picture(time: FakeClock) -> None:
    """It is what makes waiting pleasant; and it is cheap, for it is small."""
    request = attrs.evolve(SMALL, width=1152, height=896)
    job = client_of(time, duration=10.0).submit(request)
    final = paint(compose(request), 1152, 896).resize((512, 398))
    gaps = []
    for _ in range(9):
        time.advance(1.0)
        job.refresh()
        preview = job.preview()
        assert preview is not None
        with Image.open(io.BytesIO(preview.read())) as image:
            assert image.size == (512, 398)
            gaps.append(difference(image, final))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 3


def test_a_cancelled_job_frees_nothing_and_is_not_painted(
    time: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker comes to its end, and what it made is dropped."""
    server = LocalServer(LandscapeEngine(duration=4.0, workers=1), clock=time.now)
    client = ImageLabs("http://x.test", transport=HandlerTransport(server))
    job, after = client.submit(SMALL), client.submit(SMALL)
    body = f'{{"task_id": "{job.id}"}}'.encode()
    server(HttpRequest(method="POST", url="http://x.test/cancel", body=body))
    monkeypatch.setattr(landscape_timeline, "finished", lambda request: pytest.fail("painted"))
    time.advance(5.0)
    assert words(job) == "Cancelled"
    assert after.refresh().fraction == 0.25


def test_no_more_images_are_painted_at_once_than_there_are_workers(
    time: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest take half a gigabyte each; a server's threads must not add that up."""
    both, painted = threading.Barrier(2), []

    def slowly(request: ImageRequest) -> Image.Image:
        painted.append(threading.get_ident())
        both.wait(5.0)  # passes only when two are at it
        return Image.new("RGB", (request.width, request.height))

    monkeypatch.setattr(landscape_timeline, "finished", slowly)
    client = client_of(time, duration=4.0, workers=2)
    jobs = [client.submit(SMALL) for _ in range(4)]
    time.advance(5.0)
    threads = [threading.Thread(target=job.refresh) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(painted)) == len(painted) == 2


# In a worker --------------------------------------------------------------------------


@attrs.define
class Watch:
    """A monitor that takes notes; it cancels after so many reports."""

    cancel_after: int = 1000
    fractions: list[float] = attrs.Factory(list)
    previews: int = 0

    def progress(self, job_id: str, fraction: float, preview: object = None) -> None:
        self.fractions.append(fraction)
        self.previews += preview is not None

    def wants_preview(self, job_id: str) -> bool:
        return True

    def is_cancelled(self, job_id: str) -> bool:
        return len(self.fractions) >= self.cancel_after


def test_a_batch_is_rendered_step_by_step() -> None:
    """With progress and previews for each of its jobs, and the same pixels as without threads."""
    slept: list[float] = []
    batch = [RenderJob(str(n), attrs.evolve(SMALL, seed=n), "") for n in range(2)]
    watch = Watch()
    one, other = LandscapeRenderer(4.0, slept.append).render(batch, watch)
    assert isinstance(one, RenderedImage)
    assert isinstance(other, RenderedImage)
    assert encode(other.image) == drawn(batch[1].request)
    assert watch.fractions[::2] == sorted(watch.fractions[::2])
    assert watch.previews == len(watch.fractions) == 40
    assert len(slept) == 20
    assert one.info["seed"] == 0
    assert one.info["ignored"] == []


def test_a_batch_that_nobody_wants_ends_early() -> None:
    """No worker draws for nobody."""
    watch = Watch(cancel_after=3)
    (outcome,) = LandscapeRenderer(0.0).render([RenderJob("a", SMALL, "")], watch)
    assert isinstance(outcome, RenderError)
    assert len(watch.fractions) == 3


def test_it_says_which_wishes_had_no_effect() -> None:
    """Fields of other clients, too."""
    extra = {"pose": "x", "subseed_strength": 0}
    request = attrs.evolve(SMALL, attention=3, reference_strength=70, extra_body=extra)
    (outcome,) = LandscapeRenderer(0.0).render([RenderJob("a", request, "")], Watch())
    assert isinstance(outcome, RenderedImage)
    assert outcome.info["ignored"] == ["attention", "pose", "reference_strength"]


def test_a_reference_image_is_refused_before_the_job_is_accepted() -> None:
    """A landscape that has nothing of it would be another image than was asked for."""
    server = LocalServer(LandscapeEngine(duration=0))
    body = b'{"prompt": "x", "reference_image": "data:image/png;base64,AAAA"}'
    request = HttpRequest(method="POST", url="http://x/txt2img", body=body)
    with server(request) as response:
        assert response.status == 422
        assert b"reference_image: the engine landscape" in response.read(1000)


def test_requests_of_one_size_share_a_batch() -> None:
    """As a model's would."""
    engine = LandscapeEngine()
    engine.check(SMALL)
    assert engine.batch_key(SMALL) == engine.batch_key(attrs.evolve(SMALL, seed=9))
    assert engine.batch_key(SMALL) != engine.batch_key(attrs.evolve(SMALL, width=128))
    loaded = engine.load(0)
    assert isinstance(loaded, LandscapeRenderer)
    loaded.close()
