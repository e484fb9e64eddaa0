"""Read from an image's file what it was made with, whichever known tool has written it.

Read are the XMP of our own server (`provenance`), the ``parameters`` text of the AUTOMATIC1111
tools and the ``prompt`` JSON of ComfyUI: in PNG as texts, in JPEG and WebP as EXIF. Pixels are
never decoded.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from ._exif import read_exif
from ._pieces import exif_blocks, format_with_pieces, pieces
from .provenance import read_provenance

__all__ = ["GenerationParameters", "read_parameters"]

_MAX_TEXT = 4 * 1024 * 1024  # bytes of one text, unpacked
_MAX_LINKS = 32  # nodes of a workflow on the way from the sampler to a text
_LARGEST_SEED = 2**63 - 1
_LAST_LINE = re.compile(r"(?:^|\n)Steps: \d+,.*\Z", re.DOTALL)
_SETTING = re.compile(r'\s*([\w ./-]+): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@attrs.frozen
class GenerationParameters:
    """What a file says about how its image was made.

    Attributes:
        tool: ``"imagelabs"``, ``"automatic1111"`` or ``"comfyui"``.
        fields: Fields of `ImageRequest` by name, as far as the file tells them.
        details: The rest, as the tool has named it, such as the model.
    """

    tool: str
    fields: Mapping[str, Any] = attrs.field(repr=lambda fields: repr(sorted(fields)))
    details: Mapping[str, Any] = attrs.field(repr=lambda details: repr(sorted(details)))


def read_parameters(data: bytes) -> GenerationParameters | None:
    """Return what the file says about how its image was made; `None`: nothing that we can read."""
    own = read_provenance(data)
    if own is not None and (own.info or own.prompt):
        found = _from_info(own.info, own.prompt)
        details = {**found.details, "digital_source_type": own.source_type}
        return attrs.evolve(found, details=details)
    texts = _texts(data)
    if "parameters" in texts:
        return _from_infotext(texts["parameters"])
    if "prompt" in texts:
        return _from_workflow(texts["prompt"])
    return None


# Our own server -------------------------------------------------------------------------------


def _from_info(info: Mapping[str, Any], prompt: str | None) -> GenerationParameters:
    names = ("negative_prompt", "width", "height", "seed", "subseed")
    fields = {name: info[name] for name in names if name in info}
    fields.update({} if prompt is None else {"prompt": prompt})
    details = {name: value for name, value in info.items() if name not in fields}
    return GenerationParameters("imagelabs", _usable(fields), details)


def _usable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the right type and range; a file may say anything."""
    kept = {}
    for name, value in fields.items():
        if name in ("prompt", "negative_prompt"):
            usable = isinstance(value, str)
        else:
            usable = isinstance(value, int) and not isinstance(value, bool)
            usable = usable and 0 <= value <= _LARGEST_SEED
        if usable:
            kept[name] = value
    return kept


# AUTOMATIC1111 --------------------------------------------------------------------------------


def _from_infotext(text: str) -> GenerationParameters:
    """Read the prompt, ``Negative prompt: ...``, and a last line of ``Name: value, ...``."""
    last = _LAST_LINE.search(text)
    settings = dict(_SETTING.findall(last[0])) if last else {}
    words = text[: last.start()] if last else text
    prompt, _, negative = words.partition("Negative prompt:")
    size = _SIZE.fullmatch(settings.get("Size", ""))
    fields: dict[str, Any] = {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    fields.update({"width": int(size[1]), "height": int(size[2])} if size else {})
    for name, setting in (("seed", "Seed"), ("subseed", "Variation seed")):
        if re.fullmatch(r"\d{1,19}", settings.get(setting, "")):
            fields[name] = int(settings[setting])
    named = ("Size", "Seed", "Variation seed")
    details = {name.strip(): value for name, value in settings.items() if name not in named}
    return GenerationParameters("automatic1111", _usable(fields), details)


# ComfyUI --------------------------------------------------------------------------------------


def _from_workflow(text: str) -> GenerationParameters | None:
    """Read the first sampler of a workflow, and follow its links to the texts and the size."""
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(nodes, dict):
        return None
    for node in nodes.values():
        inputs = _inputs(node)
        if "positive" in inputs and ("seed" in inputs or "noise_seed" in inputs):
            return _from_sampler(nodes, inputs)
    return None


def _from_sampler(nodes: Mapping[str, Any], inputs: Mapping[str, Any]) -> GenerationParameters:
    size = _linked(nodes, inputs.get("latent_image"), ("width", "height"))
    fields = {
        "prompt": _linked(nodes, inputs.get("positive"), ("text",)).get("text"),
        "negative_prompt": _linked(nodes, inputs.get("negative"), ("text",)).get("text"),
        "seed": inputs.get("seed", inputs.get("noise_seed")),
        "width": size.get("width"),
        "height": size.get("height"),
    }
    model = _linked(nodes, inputs.get("model"), ("ckpt_name",))
    plain = {name: value for name, value in inputs.items() if not isinstance(value, list)}
    details = {**plain, **model}
    details.pop("seed", None)
    return GenerationParameters("comfyui", _usable(fields), details)


def _linked(nodes: Mapping[str, Any], link: object, names: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the inputs of the first node behind a link that has all these, as plain values."""
    waiting = [link]
    for _ in range(_MAX_LINKS):
        if not waiting:
            break
        inputs = _inputs(nodes.get(_target(waiting.pop(0))))
        if all(isinstance(inputs.get(name), str | int) for name in names):
            return {name: inputs[name] for name in names}
        waiting += [value for value in inputs.values() if isinstance(value, list)]
    return {}


def _target(link: object) -> str:
    return str(link[0]) if isinstance(link, list) and link else ""


def _inputs(node: object) -> Mapping[str, Any]:
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


# Texts in files -------------------------------------------------------------------------------


def _texts(data: bytes) -> Mapping[str, str]:
    """Return the texts of a file by keyword, as PNG has them; a damaged file has fewer or none."""
    found = format_with_pieces(data)
    texts: dict[str, str] = {}
    with contextlib.suppress(ValueError, zlib.error):
        if found == "PNG":
            texts.update(_png_texts(data))
        elif found:
            for block in exif_blocks(found, data):
                texts.update(_exif_texts(block))
    return texts


def _exif_texts(block: bytes) -> Iterator[tuple[str, str]]:
    """Yield what AUTOMATIC1111 writes as the user's comment, and ComfyUI's nodes as the camera.

    A comment may be anybody's: it counts if it has the line of settings. ComfyUI writes the model
    of the camera, other nodes its make, as ``prompt:`` and the JSON; the former wins.
    """
    exif = read_exif(block)
    if _LAST_LINE.search(exif.comment):
        yield "parameters", exif.comment
    for text in exif.camera:
        keyword, _, value = text.partition(":")
        if keyword.lower() == "prompt":
            yield "prompt", value


def _png_texts(data: bytes) -> Iterator[tuple[str, str]]:
    for kind, whole in pieces("PNG", data):
        if kind in _TEXTS and len(whole) == 12 + int.from_bytes(whole[:4], "big"):
            yield _TEXTS[kind](whole[8:-4])


def _text(body: bytes) -> tuple[str, str]:
    keyword, _, text = body.partition(b"\0")
    return keyword.decode("latin-1"), text.decode("latin-1")


def _packed_text(body: bytes) -> tuple[str, str]:
    keyword, _, packed = body.partition(b"\0")
    return keyword.decode("latin-1"), _unpack(packed[1:]).decode("latin-1")


def _international_text(body: bytes) -> tuple[str, str]:
    keyword, _, rest = body.partition(b"\0")
    _, _, text = rest[2:].partition(b"\0")  # behind a flag, a method and a language
    _, _, text = text.partition(b"\0")  # behind the keyword in that language
    return keyword.decode("latin-1"), (_unpack(text) if rest[:1] == b"\1" else text).decode()


def _unpack(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, _MAX_TEXT)


_TEXTS = {b"tEXt": _text, b"zTXt": _packed_text, b"iTXt": _international_text}
