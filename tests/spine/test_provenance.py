"""How an image was made, written into its file and read from it."""

import io
import json
from typing import Any

import pytest
from PIL import Image

from imagelabs_sdk.provenance import (
    Provenance,
    SourceType,
    read_provenance,
    with_provenance,
    without_metadata,
)

INFO = {"engine": "diffusers", "seed": 7, "ignored": ["pose"], "note": "<'&\"> ü"}
KINDS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "WEBP alpha": {"lossless": True, "mode": "RGBA"},
    "WEBP extended": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
}


def image_file(kind: str, **more: Any) -> bytes:
    options: dict[str, Any] = {**KINDS.get(kind, {}), **more}
    mode = options.pop("mode", "RGB")
    file = io.BytesIO()
    image = Image.new(mode, (21, 13), (200, 30, 60, 90)[: len(mode)])
    image.save(file, kind.partition(" ")[0], **options)
    return file.getvalue()


def pixels(data: bytes) -> tuple[tuple[int, int], bytes]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.size, image.convert("RGBA").tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", SourceType)
def test_a_file_says_how_it_was_made_and_keeps_its_pixels(kind: str, source: SourceType) -> None:
    data = image_file(kind)
    marked = with_provenance(data, source, INFO)
    assert read_provenance(marked) == Provenance(source.value, INFO)
    assert pixels(marked) == pixels(data)


def test_the_same_image_has_the_same_bytes_however_long_it_took() -> None:
    one, other = ({**INFO, "seconds": each, "batch": each, "usage": each} for each in (1, 2))
    data = image_file("PNG")
    marked = with_provenance(data, SourceType.TRAINED, one)
    assert marked == with_provenance(data, SourceType.TRAINED, other)


@pytest.mark.parametrize("kind", KINDS)
def test_pillow_finds_the_standard_mark_where_every_tool_looks_for_it(kind: str) -> None:
    marked = with_provenance(image_file(kind), SourceType.TRAINED, INFO)
    with Image.open(io.BytesIO(marked)) as image:
        packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in packet


@pytest.mark.parametrize("kind", KINDS)
def test_marking_again_replaces_the_mark(kind: str) -> None:
    once = with_provenance(image_file(kind), SourceType.TRAINED, {"seed": 1})
    again = with_provenance(once, SourceType.ALGORITHMIC, {"seed": 2})
    assert read_provenance(again) == Provenance("algorithmicMedia", {"seed": 2})
    assert again.count(b"digitalsourcetype/") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_somebody_else_wrote_is_removed(kind: str) -> None:
    marked = with_provenance(image_file(kind), SourceType.TRAINED, {"secret": 1}, prompt="secret")
    clean = without_metadata(marked)
    assert b"secret" not in clean
    assert read_provenance(clean) is None
    assert pixels(clean) == pixels(marked)


def test_a_prompt_is_written_only_when_it_is_given() -> None:
    assert b"description>" not in with_provenance(image_file("PNG"), SourceType.TRAINED, {})
    marked = with_provenance(image_file("PNG"), SourceType.TRAINED, {}, prompt="a <b> & \x00c")
    with Image.open(io.BytesIO(marked)) as image:
        assert "a &lt;b&gt; &amp;  c</rdf:li>" in image.info["XML:com.adobe.xmp"]


def test_texts_and_exif_of_a_png_and_a_comment_of_a_jpeg_are_removed() -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    assert b"secret" not in without_metadata(image_file("PNG", exif=exif))
    assert b"secret" not in without_metadata(image_file("JPEG", exif=exif, comment="secret"))


def test_info_that_no_jpeg_segment_holds_is_left_out_and_the_mark_stays() -> None:
    marked = with_provenance(image_file("JPEG"), SourceType.TRAINED, {"x": "y" * 70_000})
    assert read_provenance(marked) == Provenance("trainedAlgorithmicMedia")


def test_another_format_is_left_as_it_is() -> None:
    gif = image_file("GIF")
    assert with_provenance(gif, SourceType.TRAINED, INFO) == gif
    assert without_metadata(b"no image") == b"no image"
    assert read_provenance(gif) is None


@pytest.mark.parametrize("info", ["[1]", "{", json.dumps({"a": 1})[:-1]])
def test_info_of_another_shape_reads_as_none(info: str) -> None:
    marked = with_provenance(image_file("PNG"), SourceType.TRAINED, {})
    changed = marked.replace(b'imagelabs:info="{}"', f'imagelabs:info="{info}"'.encode())
    assert read_provenance(changed) == Provenance("trainedAlgorithmicMedia")


def test_a_mark_of_somebody_else_is_read_too() -> None:
    marked = with_provenance(image_file("PNG"), SourceType.TRAINED, {})
    foreign = marked.replace(b"imagelabs:info=", b"elsewhere:info=")
    assert read_provenance(foreign) == Provenance("trainedAlgorithmicMedia")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_damaged_file_is_a_plain_error(kind: str) -> None:
    damaged = {
        "JPEG": b"\xff\xd8\xff\xe1",
        "WEBP": b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0",
    }[kind]
    assert read_provenance(damaged) is None
    with pytest.raises(ValueError, match="damaged"):
        without_metadata(damaged)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_no_cut_file_breaks_the_reader(kind: str) -> None:
    marked = with_provenance(image_file(kind), SourceType.TRAINED, INFO)
    for end in range(0, len(marked), 7):
        found = read_provenance(marked[:end])
        assert found is None or found.source_type == "trainedAlgorithmicMedia"
