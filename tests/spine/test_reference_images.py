"""An image to start from: a path, bytes or an image of Pillow become what our server takes."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagelabs_sdk import ImageRequest, InvalidRequestError, encode_image
from imagelabs_sdk.testing import FakeService


def image_file(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "teal").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_or_its_bytes_travel_as_they_are(tmp_path: Path, kind: str) -> None:
    data = image_file(kind)
    (tmp_path / "image").write_bytes(data)
    uri = f"data:image/{kind.lower()};base64," + base64.b64encode(data).decode()
    assert encode_image(data) == uri
    assert encode_image(tmp_path / "image") == uri
    assert encode_image(str(tmp_path / "image")) == uri


def test_an_image_of_pillow_becomes_a_png() -> None:
    image = Image.new("RGBA", (3, 2), (1, 2, 3, 4))
    head, _, body = encode_image(image).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as found:
        assert found.tobytes() == image.tobytes()


def test_a_request_takes_each_of_them_and_passes_a_text_through(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_file())
    sources: list[Any] = [tmp_path / "a.png", image_file()]
    sent = {ImageRequest("x", reference_image=source).reference_image for source in sources}
    assert sent == {encode_image(image_file())}
    pillow = ImageRequest("x", reference_image=Image.new("L", (1, 1))).reference_image
    assert pillow.startswith("data:image/png;base64,")
    assert ImageRequest("x", reference_image="as it is").reference_image == "as it is"


def test_it_reaches_the_service() -> None:
    service = FakeService()
    with service.client() as client:
        client.generate("x", reference_image=image_file(), reference_strength=60)
    assert service.submits[0].request.reference_image == encode_image(image_file())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"<html>", "must be a PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(40), "must be a PNG, JPEG or WebP"),
        (Path("/no/such/file.png"), "cannot be read: No such file"),
        (5, "must be a path, bytes or an image of Pillow"),
    ],
)
def test_what_is_no_image_is_refused_by_name(source: Any, words: str) -> None:
    for use in (encode_image, lambda each: ImageRequest("x", reference_image=each)):
        with pytest.raises(InvalidRequestError, match=words) as caught:
            use(source)
        assert caught.value.field == "reference_image"


def test_it_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagelabs_sdk.reference_images._MAX_BYTES", 60)
    with pytest.raises(InvalidRequestError, match="at most 60 bytes"):
        encode_image(image_file())
