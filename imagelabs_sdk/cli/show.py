"""``imagelabs show``: how an image was made, as its file tells."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from .. import ImageRequest
from ..parameters import read_parameters
from ..sidecar import read_sidecar
from .option_names import Command
from .options import as_json_option, debug_option
from .output import print_result, say, to_json

__all__ = ["fields_of_image", "show"]

_MAX_FILE = 256 * 1024 * 1024  # bytes that are read
_FIELDS = ("prompt", "negative_prompt", "width", "height", "seed", "subseed")


@click.command(
    cls=Command,
    short_help="Show how an image FILE was made.",
    epilog="Example: imagelabs show lighthouse.png",
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@as_json_option
@debug_option
def show(file: Path, as_json: bool) -> None:
    """Show how an image FILE was made: prompt, seeds, size, model, as far as the file tells.

    Reads what our own server, the AUTOMATIC1111 tools and ComfyUI write into PNG, JPEG and WebP,
    and the JSON that GeneratedImage.save(sidecar=True) writes beside an image, with its labels.
    imagelabs generate --like FILE draws it again.
    """
    found = _read(file)
    if as_json:
        print_result(to_json({"path": str(file), **found}))
        return
    for name, value in _lines(found):
        print_result(f"{name:<20}{value}")
    if not found["prompt"]:
        say("no prompt: who made the file left it out")


def _read(file: Path) -> dict[str, Any]:
    """Return what an image tells, and the JSON beside it, which wins.

    Raises:
        click.UsageError: There is nothing.
    """
    with open(file, "rb") as opened:
        inside = read_parameters(opened.read(_MAX_FILE))
    beside = read_sidecar(file)
    if inside is None and not any(beside.values()):
        raise click.UsageError(f"{str(file)!r} does not say how it was made")
    known = {**(inside.fields if inside else {}), **beside["request"]}
    return {
        "tool": inside and inside.tool,
        **{name: known.get(name) for name in _FIELDS},
        "details": {**beside["info"], **(inside.details if inside else {})},
        "metadata": beside["metadata"],
    }


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    labels = {f"label {name}": value for name, value in found["metadata"].items()}
    shown = {"made by": found["tool"], **{name: found[name] for name in _FIELDS}}
    for name, value in {**shown, **found["details"], **labels}.items():
        if value not in ("", None, [], {}):
            yield name.replace("_", " "), " ".join(str(value).split())


def fields_of_image(file: Path, prompt: str | None) -> dict[str, Any]:
    """Return the fields of the request that an image was made with.

    Args:
        file: The image.
        prompt: In place of the one in the file.

    Raises:
        InvalidRequestError: The file does not tell, or holds no prompt and none is given.
    """
    request = ImageRequest.from_image(file, prompt=prompt)
    fields = {name: getattr(request, name) for name in _FIELDS}
    return {name: value for name, value in fields.items() if value not in ("", None)}
