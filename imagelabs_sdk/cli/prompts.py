"""Read a file of prompts."""

import sys
from pathlib import Path

import attrs
import click

__all__ = ["Prompt", "read_prompts"]


@attrs.frozen
class Prompt:
    """One line of the file.

    Attributes:
        line: Its number, counted from 1.
        text: What to draw.
    """

    line: int
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Read one prompt a line; blank lines and lines that begin with ``#`` are skipped.

    The path ``-`` is stdin.

    Raises:
        OSError: The file cannot be read.
        click.BadParameter: It is not UTF-8, or has no prompt.
    """
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{str(path)!r} is not text in UTF-8") from error
    lines = (line.strip() for line in text.split("\n"))
    prompts = [
        Prompt(number, line)
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    if not prompts:
        raise click.BadParameter(f"{str(path)!r} has no prompt in it")
    return prompts


def _read(path: Path) -> bytes:
    return sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
