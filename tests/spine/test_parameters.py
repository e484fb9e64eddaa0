"""What an image was made with, as the tools write it into files."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagelabs_sdk import ImageRequest, InvalidRequestError
from imagelabs_sdk.parameters import read_parameters
from imagelabs_sdk.provenance import SourceType, with_provenance
from tests.faulty import PNG

INFOTEXT = """a lighthouse, (dusk:1.2)
by the sea
Negative prompt: people, fog
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, Model: "a, b"
"""
WORKFLOW: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 42,
            "steps": 20,
            "cfg": 8.0,
            "model": ["4", 0],
            "positive": ["9", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a mill", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["4", 1]}},
    "9": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0]}},
}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def text(keyword: str, value: str) -> bytes:
    return chunk(b"tEXt", keyword.encode() + b"\0" + value.encode("latin-1"))


def test_our_own_files_tell_seeds_size_and_engine() -> None:
    """And the prompt only where the server was told to write it."""
    info = {"engine": "x", "seed": 7, "subseed": 8, "width": 64, "height": 48}
    for prompt in (None, 'a <mill> & "fog"'):
        found = read_parameters(with_provenance(PNG, SourceType.TRAINED, info, prompt=prompt))
        assert found is not None
        assert found.tool == "imagelabs"
        assert found.fields.get("prompt") == prompt
        assert found.fields["seed"] == 7
        assert found.details == {
            "engine": "x",
            "digital_source_type": "trainedAlgorithmicMedia",
        }
        assert "fog" not in repr(found)


def test_the_text_of_automatic1111_is_read() -> None:
    """Prompt over several lines, commas in quotes."""
    found = read_parameters(with_chunks(text("parameters", INFOTEXT)))
    assert found is not None
    assert found.fields == {
        "prompt": "a lighthouse, (dusk:1.2)\nby the sea",
        "negative_prompt": "people, fog",
        "width": 512,
        "height": 768,
        "seed": 965400086,
    }
    assert found.details["Model"] == '"a, b"'


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ("only a prompt", {"prompt": "only a prompt", "negative_prompt": ""}),
        ("x\nSteps: 1, Seed: -1, Size: big", {"prompt": "x", "negative_prompt": ""}),
        ("x\nSteps: 1, Seed: 9999999999999999999", {"prompt": "x", "negative_prompt": ""}),
        ("x\nSteps: 1, Variation seed: 4", {"prompt": "x", "negative_prompt": "", "subseed": 4}),
    ],
)
def test_a_text_that_tells_less_is_read_as_far_as_it_goes(
    value: str, fields: dict[str, object]
) -> None:
    """Tools leave things out, and people edit them."""
    found = read_parameters(with_chunks(text("parameters", value)))
    assert found is not None
    assert found.fields == fields


def test_a_workflow_of_comfyui_is_read_through_its_links() -> None:
    """The text may stand behind other nodes."""
    found = read_parameters(with_chunks(text("prompt", json.dumps(WORKFLOW))))
    assert found is not None
    assert found.fields == {
        "prompt": "a mill",
        "negative_prompt": "fog",
        "seed": 42,
        "width": 512,
        "height": 640,
    }
    assert found.details == {"steps": 20, "cfg": 8.0, "ckpt_name": "sd15.safetensors"}


@pytest.mark.parametrize(
    "value",
    [
        "no JSON",
        "[1]",
        "{}",
        '{"3": 5}',
        '{"3": {"inputs": 5}}',
        '{"3": {"inputs": {"seed": 5}}}',
        "[" * 99999,
    ],
)
def test_a_workflow_without_a_sampler_tells_nothing(value: str) -> None:
    """Not every workflow draws from a prompt."""
    assert read_parameters(with_chunks(text("prompt", value))) is None


def test_links_in_a_circle_end() -> None:
    """A workflow is a file that anybody may have written."""
    circle = {
        "3": {"inputs": {"seed": True, "positive": ["4", 0], "latent_image": []}},
        "4": {"inputs": {"a": ["4", 0], "b": ["4", 0]}},
    }
    found = read_parameters(with_chunks(text("prompt", json.dumps(circle))))
    assert found is not None
    assert found.fields == {}


def test_packed_and_international_texts_are_read() -> None:
    """Prompts in other languages stand in iTXt."""
    packed = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"packed"))
    plain = chunk(b"iTXt", b"parameters\0\0\0de\0x\0" + "Mühle".encode())
    both = chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress("灯塔".encode()))
    for data, prompt in ((packed, "packed"), (plain, "Mühle"), (both, "灯塔")):
        found = read_parameters(with_chunks(data))
        assert found is not None
        assert found.fields["prompt"] == prompt


def test_a_damaged_text_ends_the_reading() -> None:
    """Nothing is better than half a prompt; a bomb is unpacked to a bound."""
    assert read_parameters(with_chunks(chunk(b"zTXt", b"parameters\0\0junk"))) is None
    assert read_parameters(with_chunks(chunk(b"iTXt", b"parameters\0\0\0\0\0\xff"))) is None
    bomb = zlib.compress(b"x" * 64_000_000)
    found = read_parameters(with_chunks(chunk(b"zTXt", b"parameters\0\0" + bomb)))
    assert found is not None
    assert len(found.fields["prompt"]) <= 4 * 1024 * 1024


def test_a_text_that_is_cut_off_is_not_read() -> None:
    """Half a prompt is none."""
    whole = PNG[:33] + text("parameters", INFOTEXT)
    assert read_parameters(whole) is not None
    assert read_parameters(whole[:-10]) is None


# JPEG and WebP ---------------------------------------------------------------------------------


def with_exif(kind: str, tags: dict[int, Any], comment: bytes | None = None) -> bytes:
    exif = Image.Exif()
    exif.update(tags)
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + INFOTEXT.encode("utf-16-be"),
        b"UNICODE\0" + INFOTEXT.encode("utf-16-le"),
        b"UNICODE\0" + INFOTEXT.encode("utf-16"),
        b"ASCII\0\0\0" + INFOTEXT.encode(),
        bytes(8) + INFOTEXT.encode() + b"\0",
        INFOTEXT.encode(),
    ],
    ids=["big-endian", "little-endian", "marked", "ascii", "undefined", "bare"],
)
def test_the_comment_of_automatic1111_is_read(kind: str, comment: bytes) -> None:
    """Each of its heirs writes it in an encoding of its own."""
    found = read_parameters(with_exif(kind, {}, comment))
    assert found == read_parameters(with_chunks(text("parameters", INFOTEXT)))


@pytest.mark.parametrize("order", ["be", "le"])
def test_a_prompt_in_chinese_is_read_in_either_order(order: str) -> None:
    """Its characters have no byte of 0 that would tell the order."""
    words = f"灯塔，黄昏，海边的悬崖，油画\n{INFOTEXT.splitlines()[-1]}"
    comment = b"UNICODE\0" + words.encode(f"utf-16-{order}")
    found = read_parameters(with_exif("JPEG", {}, comment))
    assert found is not None
    assert found.fields["prompt"] == "灯塔，黄昏，海边的悬崖，油画"


@pytest.mark.parametrize("comment", [b"", b"ASCII\0\0\0a day at the sea", b"UNICODE\0\0a\0"])
def test_the_comment_of_a_photograph_is_no_prompt(comment: bytes) -> None:
    """Cameras and people write comments, too."""
    assert read_parameters(with_exif("JPEG", {0x0110: "a camera"}, comment)) is None


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "tags",
    [
        {0x0110: "prompt:%s", 0x010F: "workflow:{}"},
        {0x010F: "Prompt:%s", 0x010E: "Workflow:{}"},
        {0x010E: "Prompt: a mill", 0x0110: "prompt: %s"},
    ],
    ids=["ComfyUI", "nodes", "both"],
)
def test_a_workflow_of_comfyui_is_read_from_exif(kind: str, tags: dict[int, str]) -> None:
    """ComfyUI itself writes it as the model of the camera; nodes of others as its make."""
    filled = {tag: value.replace("%s", json.dumps(WORKFLOW)) for tag, value in tags.items()}
    found = read_parameters(with_exif(kind, filled))
    assert found == read_parameters(with_chunks(text("prompt", json.dumps(WORKFLOW))))


def test_exif_of_a_webp_may_begin_as_in_jpeg() -> None:
    """Some writers keep the six bytes that only JPEG needs."""
    data = with_exif("WEBP", {0x0110: f"prompt:{json.dumps(WORKFLOW)}"})
    place = data.index(b"EXIF")
    (size,) = struct.unpack_from("<I", data, place + 4)
    block = b"Exif\0\0" + data[place + 8 : place + 8 + size]
    longer = data[:place] + b"EXIF" + struct.pack("<I", len(block)) + block
    assert read_parameters(longer) == read_parameters(data)
    assert read_parameters(data) is not None


# Whatever the bytes are --------------------------------------------------------------------------

JPEG, WEBP = (
    with_exif(kind, {0x0110: "prompt:{}"}, b"UNICODE\0" + INFOTEXT.encode("utf-16-le"))
    for kind in ("JPEG", "WEBP")
)


@given(st.binary(max_size=200))
def test_no_file_breaks_the_reader(data: bytes) -> None:
    """Whatever follows the head of a file."""
    for head in (b"", PNG[:33], JPEG[:2], JPEG[:30], WEBP[:12], WEBP[:30]):
        read_parameters(head + data)


@given(st.data())
def test_no_damaged_exif_breaks_the_reader(data: st.DataObject) -> None:
    """Any byte may be another one, and the file may end anywhere."""
    file = bytearray(data.draw(st.sampled_from([JPEG, WEBP])))
    for place in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=8)):
        file[place] = data.draw(st.integers(0, 255))
    read_parameters(bytes(file[: data.draw(st.integers(0, len(file)))]))


def test_a_request_is_made_from_an_image(tmp_path: Path) -> None:
    """The prompt can be given in place of the one in the file."""
    path = tmp_path / "x.png"
    path.write_bytes(with_chunks(text("parameters", INFOTEXT)))
    request = ImageRequest.from_image(path)
    assert (request.width, request.height, request.seed) == (512, 768, 965400086)
    assert ImageRequest.from_image(str(path), prompt="a mill").prompt == "a mill"


def test_an_image_that_does_not_tell_is_refused_by_name(tmp_path: Path) -> None:
    """With what is missing."""
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    with pytest.raises(InvalidRequestError, match=r"path=.*: does not say how it was made"):
        ImageRequest.from_image(path)
    path.write_bytes(with_provenance(PNG, SourceType.TRAINED, {"seed": 7}))
    with pytest.raises(InvalidRequestError, match="prompt: the file holds none") as caught:
        ImageRequest.from_image(path)
    assert caught.value.field == "prompt"
    assert ImageRequest.from_image(path, prompt="x").seed == 7
