"""What a batch draws: a request for each row, and a file name for each image."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from .. import ImageRequest, InvalidRequestError
from ..models import plain_json
from .fields import override
from .prompts import Row

__all__ = ["BatchItem", "check_not_overwritten", "plan_items"]

_EXTENSIONS = (".png", ".jpg", ".webp", ".gif", ".avif")  # of a saved image


@attrs.frozen
class BatchItem:
    """One image of a batch.

    Attributes:
        line: The line of its prompt, counted from 1; `None`: from the command line.
        item: What its row asks for, for `ImageLabs.generate_many`.
        stem: The path of the image without its extension.
    """

    line: int | None
    item: Mapping[str, Any]
    stem: Path

    @property
    def prompt(self) -> str:
        """What to draw."""
        return str(self.item["prompt"])

    @property
    def place(self) -> str:
        """Where a person finds it, such as ``line 5 (0003)``."""
        return self.stem.name if self.line is None else f"line {self.line} ({self.stem.name})"

    def saved_path(self) -> Path | None:
        """Return the path of the image if an earlier run has saved it."""
        return next((path for path in self.paths() if path.is_file()), None)

    def paths(self) -> Iterator[Path]:
        """Yield each path that the image may get."""
        for extension in _EXTENSIONS:
            yield self.stem.with_name(self.stem.name + extension)


def plan_items(
    rows: Sequence[Row],
    fields: Mapping[str, Any],
    labels: Mapping[str, str],
    *,
    count: int,
    stem: Path,
    numbered: bool,
) -> list[BatchItem]:
    """Return the items of all rows, in order.

    Args:
        rows: What the file asks for.
        fields: What the options ask for; a row's own fields win.
        labels: Labels of each job; a row's own ``"metadata"`` win, name by name.
        count: Images of each row.
        stem: A folder if `numbered`, else a path that the numbers are added to.
        numbered: True: ``0001``, ``0002`` ... in a folder, one number a row.

    Raises:
        InvalidRequestError: A value of the options cannot be used.
        click.BadParameter: A value of a row cannot be used.
    """
    ImageRequest("x", **fields)  # so that a bad option is not blamed on a row
    items = []
    for number, row in enumerate(rows, 1):
        item = _item(row, fields, labels)
        for copy in range(count):
            name = f"{number:04}" if numbered else stem.name
            name += f"-{copy + 1}" if count > 1 else ""
            path = stem / name if numbered else stem.with_name(name)
            items.append(BatchItem(row.line, item, path))
    return items


def _item(row: Row, fields: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    values = override(fields, row.fields)
    try:
        own = plain_json("metadata", values.pop("metadata", {}))
        ImageRequest(**values)
    except InvalidRequestError as error:
        if row.line is None:
            raise
        raise click.BadParameter(f"line {row.line}: {error}") from error
    return {**values, "metadata": {**labels, **own}}


def check_not_overwritten(
    option: str, path: Path, items: Sequence[BatchItem], inputs: Mapping[str, Path | None]
) -> None:
    """Refuse an output file that is an image of the batch or one of its inputs.

    Raises:
        click.UsageError: It is.
    """
    real = Path(os.path.realpath(path))
    for name, other in inputs.items():
        if other is not None and _is_same(real, Path(os.path.realpath(other))):
            raise click.UsageError(f"{option} and {name} are the same file, {str(path)!r}.")
    if any(_is_same(real, Path(os.path.realpath(p))) for item in items for p in item.paths()):
        raise click.UsageError(f"{option} {str(path)!r} is the name of an image of this run.")


def _is_same(path: Path, other: Path) -> bool:
    # Some file systems do not tell "A.png" from "a.png".
    if str(path).lower() == str(other).lower():
        return True
    return path.exists() and other.exists() and path.samefile(other)
