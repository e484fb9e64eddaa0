"""Options that become fields of a request."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import click

__all__ = ["override", "parse_extra", "parse_label", "parse_size", "with_request_options"]

_SIDES = ("width", "height", "aspect_ratio")
_OWN_OPTIONS = ("prompt", "negative_prompt", "width", "height", "seed", "subseed")


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height in pixels of a text such as ``512x768``."""
    found = re.fullmatch(r"([0-9]{1,5})[xX×]([0-9]{1,5})", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not like 1152x896")
    return int(found[1]), int(found[2])


def parse_extra(text: str) -> tuple[str, Any]:
    """Return name and value of a text such as ``cfg_scale=7.5``; the value is JSON."""
    name, equals, value = text.partition("=")
    if name in _OWN_OPTIONS:
        raise click.BadParameter(f"{name} has an option of its own")
    try:
        if not (name and equals):
            raise ValueError("no name, or no =")
        return name, json.loads(value)
    except (ValueError, RecursionError) as error:
        hint = """such as cfg_scale=7.5, or site='"x"' for text"""
        raise click.BadParameter(f"{text!r} is not KEY=JSON, {hint}") from error


def parse_label(text: str) -> tuple[str, str]:
    """Return name and value of a text such as ``project=spring``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is not KEY=VALUE")
    return name, value


_options = (
    click.option(
        "--negative-prompt", "--negative", metavar="TEXT", help="What to keep out of the image."
    ),
    click.option("--width", metavar="PIXELS", type=int, help="[default: 1152]"),
    click.option("--height", metavar="PIXELS", type=int, help="[default: 896]"),
    click.option(
        "--size", type=parse_size, metavar="WxH", help="Width and height, such as 512x768."
    ),
    click.option(
        "--aspect-ratio", metavar="W:H", help="Such as 16:9, instead of width and height."
    ),
    click.option(
        "--seed", metavar="N", type=int, help="Start of the noise. [default: picked at random]"
    ),
    click.option("--subseed", metavar="N", type=int, help="Start of the variation of that noise."),
    click.option(
        "--extra",
        metavar="KEY=JSON",
        type=parse_extra,
        multiple=True,
        help="A field that has no option, such as cfg_scale=7.5; may be repeated.",
    ),
)


def with_request_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add these options; the keyword argument `fields` gets those that were given, by field."""

    @wraps(command)
    def run(
        *args: Any,
        negative_prompt: str | None,
        width: int | None,
        height: int | None,
        size: tuple[int, int] | None,
        aspect_ratio: str | None,
        seed: int | None,
        subseed: int | None,
        extra: Sequence[tuple[str, Any]],
        **own: Any,
    ) -> None:
        sides = {"width": width, "height": height}
        fields = {
            "negative_prompt": negative_prompt,
            "aspect_ratio": aspect_ratio,
            "seed": seed,
            "subseed": subseed,
            "extra_body": dict(extra) or None,
            **_merge_size(size, sides),
        }
        given = {name: value for name, value in fields.items() if value is not None}
        command(*args, fields=given, **own)

    for option in reversed(_options):
        run = option(run)
    return run


def _merge_size(
    size: tuple[int, int] | None, sides: Mapping[str, int | None]
) -> Mapping[str, int | None]:
    if size is None:
        return sides
    for name, side in sides.items():
        if side is not None:
            raise click.UsageError(f"Give either --size or --{name}.")
    return {"width": size[0], "height": size[1]}


def override(fields: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the options, replaced by those of a row. A row's size is a whole."""
    sized = any(name in row for name in _SIDES)
    kept = {name: value for name, value in fields.items() if not (sized and name in _SIDES)}
    return {**kept, **row}
