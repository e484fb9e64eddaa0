"""What all engines share: reference images, and the limits of what a request may ask for."""

import base64
import io

import pytest
from PIL import Image

from imagelabs_sdk import InvalidRequestError
from imagelabs_sdk.server.engines.references import check_reference, decode_reference
from tests.server.monitor import job


def uri(image: Image.Image, kind: str = "PNG", **more: object) -> str:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_data_uri_becomes_an_rgb_image(kind: str) -> None:
    address = uri(Image.new("RGB", (5, 3), "red"), kind)
    check_reference(job(reference_image=address).request)
    image = decode_reference(address)
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_transparency_becomes_white() -> None:
    assert decode_reference(uri(Image.new("RGBA", (1, 1), (9, 9, 9, 0)))).getpixel((0, 0)) == (
        255,
        255,
        255,
    )


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_reference(uri(Image.new("RGB", (5, 3)), "JPEG", exif=exif)).size == (3, 5)


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a.png",
        "file:///etc/passwd",
        "iVBORw0KGgo=",
        "data:image/svg+xml;base64,AAAA",
        "data:image/gif;base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
    ],
)
def test_anything_but_a_data_uri_of_an_image_is_refused_and_not_quoted(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="must be a data: URI") as caught:
        check_reference(job(reference_image=address).request)
    assert caught.value.field == "reference_image"
    assert address not in str(caught.value)


def test_a_reference_image_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagelabs_sdk.server.engines.references.MAX_REFERENCE_BYTES", 30)
    check_reference(job(reference_image="data:image/png;base64," + "A" * 40).request)
    with pytest.raises(InvalidRequestError, match="at most 30 bytes"):
        check_reference(job(reference_image="data:image/png;base64," + "A" * 400).request)


def test_a_reference_image_is_bounded_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagelabs_sdk.server.engines.references.MAX_REFERENCE_PIXELS", 15)
    decode_reference(uri(Image.new("RGB", (5, 3))))
    with pytest.raises(ValueError, match="5 x 4 pixels, more than 15"):
        decode_reference(uri(Image.new("RGB", (5, 4))))


@pytest.mark.parametrize("body", ["@@@", "AAAA", "R0lGODlhAQABAAAAACw="])
def test_a_damaged_reference_image_is_a_plain_error(body: str) -> None:
    with pytest.raises(ValueError, match="reference image"):
        decode_reference(f"data:image/png;base64,{body}")


def test_a_strength_of_zero_is_refused_with_a_reference_image_alone() -> None:
    check_reference(job(reference_strength=0).request)
    with pytest.raises(InvalidRequestError, match="1 to 100"):
        check_reference(
            job(reference_strength=0, reference_image=uri(Image.new("L", (1, 1)))).request
        )
