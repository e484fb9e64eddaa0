"""Images show themselves in notebooks and windows, and tell beside their file what made them."""

import base64
import io
import json
import pickle
import sys
from pathlib import Path

import pytest
from PIL import Image

from imagelabs_sdk import ImageRequest
from imagelabs_sdk.embedded import embedded_client
from imagelabs_sdk.images import RequestedImage
from imagelabs_sdk.testing import FakeService
from tests.faulty import PNG

SMALL = ImageRequest("a secret mill", negative_prompt="fog", width=16, height=8, seed=7, subseed=8)


@pytest.fixture
def image() -> RequestedImage:
    with embedded_client(duration=0.0, poll_interval=0.01) as client:
        return client.generate(SMALL, metadata={"shelf": "b"})


def test_a_notebook_shows_the_image_and_its_facts(image: RequestedImage) -> None:
    """No prompt: a notebook is shared more easily than one thinks."""
    bundle = image._repr_mimebundle_(include=None, exclude=None)
    content = base64.b64decode(bundle["image/png"])
    with Image.open(io.BytesIO(content)) as shown:
        assert shown.size == (16, 8)
    assert bundle["text/plain"].startswith("seed 7, subseed 8, width 16, height 8, seconds ")
    assert bundle["image/png"] in bundle["text/html"]
    assert "seed 7" in bundle["text/html"]
    assert "secret" not in "".join(bundle.values())


def test_what_is_shown_again_is_fetched_once() -> None:
    """A cell is run again and again; the content stays out of pickles."""
    service = FakeService()
    image = service.client().generate("x")
    for _ in range(3):
        image._repr_mimebundle_()
        image.to_pil()
    assert service.count("image") == 1
    assert len(pickle.dumps(image._known)) < 500


def test_a_job_of_another_process_is_shown_without_a_seed() -> None:
    """Nobody knows it here."""
    service = FakeService()
    service.known_job("task-1")
    bundle = service.client().get_job("task-1").result()._repr_mimebundle_()
    assert bundle["text/plain"].startswith("seconds ")


def test_what_cannot_be_fetched_is_shown_as_text() -> None:
    """A traceback in place of an image would look like a bug of the notebook."""
    service = FakeService().done().refuses(status=404)
    bundle = service.client().generate("x")._repr_mimebundle_()
    assert list(bundle) == ["text/plain"]
    assert "cannot be shown" in bundle["text/plain"]
    assert "404" in bundle["text/plain"]


def test_pillow_gets_the_image(image: RequestedImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded; and in a window."""
    assert image.to_pil().size == (16, 8)
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda opened: shown.append(opened.size))
    image.show()
    assert shown == [(16, 8)]


def test_without_pillow_the_remedy_is_named(
    image: RequestedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core does without it."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install Pillow"):
        image.to_pil()


def test_a_sidecar_says_what_made_the_image(image: RequestedImage, tmp_path: Path) -> None:
    """Never the task id, which is a key to the job; prompts only if they are asked for."""
    path = image.save(tmp_path / "x", sidecar=True)
    text = (tmp_path / "x.png.json").read_text()
    facts = json.loads(text)
    assert facts["image"] == "x.png"
    assert (facts["request"]["seed"], facts["request"]["width"]) == (7, 16)
    assert facts["metadata"] == {"shelf": "b"}
    assert "secret" not in text
    assert "fog" not in text
    assert image.task_id not in text
    image.save(path, sidecar="with_prompt")
    assert json.loads((tmp_path / "x.png.json").read_text())["request"]["prompt"] == SMALL.prompt


def test_a_request_is_read_from_a_sidecar(tmp_path: Path) -> None:
    """Also of an image that says nothing by itself."""
    path = FakeService().client().generate(SMALL).save(tmp_path / "x.png", sidecar="with_prompt")
    assert ImageRequest.from_image(path) == SMALL


def test_without_a_sidecar_none_is_written(image: RequestedImage, tmp_path: Path) -> None:
    """It is an offer."""
    image.save(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("content", ["[]", "{", '{"request": 5}', "{}"])
def test_a_sidecar_that_makes_no_sense_is_none(tmp_path: Path, content: str) -> None:
    """The file beside an image may be anybody's."""
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    (tmp_path / "x.png.json").write_text(content)
    with pytest.raises(ValueError, match="does not say how it was made"):
        ImageRequest.from_image(path)
