"""Read a file of prompts."""

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

    Raises:
        OSError: The file cannot be read.
        click.BadParameter: It is not UTF-8, or has no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
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
