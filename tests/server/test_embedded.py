"""Both ends in one process: everything but the network is real."""

import pickle
import threading
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from PIL import Image

from imagelabs_sdk import (
    FixedInterval,
    HandlerTransport,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    JobFailedError,
    Progress,
    State,
)
from imagelabs_sdk.embedded import embedded_client
from imagelabs_sdk.server.engines.base import (
    RenderedImage,
    RenderError,
    RenderJob,
    RenderMonitor,
)
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.landscape.renders import finished
from imagelabs_sdk.server.local import LocalServer
from imagelabs_sdk.testing import FakeClock
from tests.server.conftest import Easel

SMALL = ImageRequest("a lighthouse at dusk", width=64, height=48, seed=1, subseed=2)


def test_a_prompt_becomes_an_image_with_no_network(time: FakeClock, tmp_path: Path) -> None:
    """Four lines in a README must work on any machine."""
    server = LocalServer(LandscapeEngine(duration=2.0), clock=time.now)
    transport = HandlerTransport(server)
    with ImageLabs("http://x.test", transport=transport, polling=time.every(0.5)) as client:
        seen: list[Progress] = []
        image = client.generate(SMALL, on_progress=seen.append)
        path = image.save(tmp_path / "lighthouse")
    assert path.name == "lighthouse.png"
    with Image.open(path) as found:
        assert found.tobytes() == finished(SMALL).tobytes()
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
class Failing(Easel):
    """An engine whose renders all fail; it is its own settings, too."""

    def load(self, worker: int) -> "Failing":
        return self

    def render(
        self, batch: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        return [RenderError("out of memory") for _ in batch]

    def close(self) -> None:
        pass


def test_an_engine_of_ones_own_is_loaded_by_threads_that_end_with_the_client() -> None:
    """Its words reach the caller; and nothing is left behind."""
    with embedded_client(Failing(), poll_interval=0.01) as client:
        with pytest.raises(JobFailedError, match="Error: out of memory"):
            client.generate(SMALL, timeout=20)
        assert threads()
    assert not threads()


def test_a_client_with_an_engine_of_its_own_may_be_closed_unused() -> None:
    """No thread has been started, and none is left."""
    with embedded_client(Easel()):
        assert not threads()
    assert not threads()


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("imagelabs")]


def test_its_speed_can_be_chosen() -> None:
    """As that of the transport and of the Django setting."""
    assert embedded_client(duration=0).submit(SMALL).refresh().state is State.DONE


def test_it_does_not_pickle_and_says_why() -> None:
    """A copy in another process would know none of the jobs."""
    with pytest.raises(TypeError, match="its jobs are in this process"):
        pickle.dumps(embedded_client())
