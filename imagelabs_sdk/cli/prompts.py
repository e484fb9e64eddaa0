"""Read a file of prompts: lines of text, and JSON objects with the fields of a request."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

__all__ = ["Row", "read_rows"]


@attrs.frozen
class Row:
    """What one line of the file asks for.

    Attributes:
        line: Its number, counted from 1; `None` for a prompt from the command line.
        fields: Fields of `ImageRequest` by name; ``prompt`` at least.
    """

    line: int | None
    fields: Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read one prompt a line; blank lines and lines that begin with ``#`` are skipped.

    A line that is a JSON object gives several fields of a request. The path ``-`` is stdin.

    Raises:
        OSError: The file cannot be read.
        click.BadParameter: It is not UTF-8, has a broken JSON object, or has no prompt.
    """
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{str(path)!r} is not text in UTF-8") from error
    lines = (line.strip() for line in text.split("\n"))
    rows = [
        Row(number, _fields(number, line))
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    if not rows:
        raise click.BadParameter(f"{str(path)!r} has no prompt in it")
    return rows


def _read(path: Path) -> bytes:
    return sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()


def _fields(number: int, line: str) -> Mapping[str, Any]:
    if not line.startswith(('{"', "{ ", "{}")):  # "{red|blue} boat" is a prompt
        return {"prompt": line}
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"line {number} is not a JSON object: {error}") from error
    if "prompt" not in fields:
        raise click.BadParameter(f"line {number}: prompt: is required")
    return dict(fields)
