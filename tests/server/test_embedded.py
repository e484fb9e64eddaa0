"""Both ends in one process: everything but the network is real."""

import pickle
from pathlib import Path

import attrs
import pytest

from imagelabs_sdk import FixedInterval, ImageRequest, InvalidRequestError, Progress, State
from imagelabs_sdk.embedded import embedded_client
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.render import RenderStatus
from tests.conftest import FakeTime

SMALL = ImageRequest("a lighthouse at dusk", width=64, height=48, seed=1, subseed=2)


def test_a_prompt_becomes_an_image_with_no_network(time: FakeTime, tmp_path: Path) -> None:
    """Four lines in a README must work on any machine."""
    engine = LandscapeEngine(duration=2.0, clock=time.clock)
    with embedded_client(engine, polling=time.every(0.5)) as client:
        seen: list[Progress] = []
        image = client.generate(SMALL, on_progress=seen.append)
        path = image.save(tmp_path / "lighthouse")
    assert path.name == "lighthouse.png"
    assert path.read_bytes() == engine.start(SMALL).image()
    assert [progress.fraction for progress in seen] == [0.25, 0.5, 0.75, 1.0]
    assert seen[0].preview_url is not None
    assert image.request == SMALL


def test_the_default_engine_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds, and a poll every tenth: progress can be seen."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    client = embedded_client()
    job = client.submit(SMALL)
    assert job.refresh().state is State.RUNNING
    assert client.url == "http://imagelabs.embedded"
    assert job.poll().next_poll_in == 0.1


def test_settings_of_the_client_go_through() -> None:
    """It is an ordinary client: what `ImageLabs` refuses is refused here, too."""
    client = embedded_client(
        LandscapeEngine(duration=0),
        base_url="http://x.example/api",
        poll_interval=0.01,
        timeout=5.0,
    )
    image = client.generate(SMALL)
    assert image.url.startswith("http://x.example/api/image/")
    assert image.read().startswith(b"\x89PNG")
    with pytest.raises(InvalidRequestError):
        embedded_client(polling=FixedInterval(1.0), poll_interval=1.0)


@attrs.frozen
class Failing:
    """An engine whose drawings all fail, and a drawing of its."""

    def start(self, request: ImageRequest) -> "Failing":
        return self

    def standing(self) -> RenderStatus:
        return RenderStatus(State.FAILED, "out of memory")

    def preview(self) -> None:
        return None

    def image(self) -> bytes:
        raise AssertionError("was not done")


def test_an_engine_of_ones_own_can_fail(time: FakeTime) -> None:
    """Its words reach the caller."""
    client = embedded_client(Failing(), polling=time.every(1.0))
    progress = client.submit(SMALL).refresh()
    assert (progress.state, progress.status) == (State.FAILED, "Error: out of memory")


def test_it_does_not_pickle_and_says_why() -> None:
    """A copy in another process would know none of the jobs."""
    with pytest.raises(TypeError, match="its jobs are in this process"):
        pickle.dumps(embedded_client())
