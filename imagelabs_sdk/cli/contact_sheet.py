"""Draw many images on one sheet, each with its number and its prompt."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import attrs
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

__all__ = ["Tile", "draw_sheet"]

_PAPER, _INK, _FAINT, _EMPTY = "#f5f2ec", "#33302c", "#938b80", "#e4dfd6"
_MAX_WIDTH = 5000  # pixels
_TILE = 320  # pixels, the longer side of an image
_MIN_CAPTIONED = 120  # pixels; a smaller tile has no caption
_GAP = 28  # pixels between tiles
_LINE = 19  # pixels, a line of a caption
_CAPTION = 3 * _LINE + 10
_RADIUS = 10  # pixels, of the corners


@attrs.frozen
class Tile:
    """One image of a sheet.

    Attributes:
        path: The image file; one that cannot be read becomes an empty frame.
        name: Such as ``"0001"``.
        text: The prompt; cut after two lines.
    """

    path: Path
    name: str
    text: str


def draw_sheet(tiles: Sequence[Tile], *, max_width: int = _MAX_WIDTH) -> Image.Image:
    """Return a sheet with all tiles in rows.

    Args:
        tiles: At least one. Many tiles become smaller.
        max_width: In pixels.
    """
    columns = min(len(tiles), round((len(tiles) * 4 / 3) ** 0.5))
    gap = min(_GAP, max_width // (4 * columns))
    side = max(8, min(_TILE, (max_width - gap) // columns - gap))
    caption = _CAPTION if side >= _MIN_CAPTIONED else 0
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    bands = [_row(row, columns, side, gap, caption) for row in rows]
    sheet = Image.new("RGB", (bands[0].width, sum(row.height for row in bands) + gap), _PAPER)
    top = gap
    for row in bands:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _row(tiles: Sequence[Tile], columns: int, side: int, gap: int, caption: int) -> Image.Image:
    images = [_thumbnail(tile.path, side) for tile in tiles]
    height = max(image.height for image in images)
    row = Image.new("RGB", (columns * (side + gap) + gap, height + caption + gap), _PAPER)
    pen = ImageDraw.Draw(row)
    for number, (tile, image) in enumerate(zip(tiles, images, strict=True)):
        left = gap + number * (side + gap)
        _paste_framed(row, image, left + (side - image.width) // 2, height - image.height)
        if caption:
            pen.text((left, height + 10), tile.name, _FAINT, _font(12))
            for line, words in enumerate(_wrapped(tile.text, side), 1):
                pen.text((left, height + 10 + line * _LINE), words, _INK, _font(15))
    return row


def _thumbnail(path: Path, side: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.contain(image.convert("RGB"), (side, side))
    except (OSError, Image.DecompressionBombError):
        return Image.new("RGB", (side, side * 3 // 4), _EMPTY)


def _paste_framed(row: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """Paste an image with round corners and a soft shadow."""
    mask, shadow = _rounded_mask(image.size), _shadow(image.size)
    edge = (shadow.width - image.width) // 2
    row.paste(_INK, (left - edge, top - edge + 3), shadow)
    row.paste(image, (left, top), mask)


@lru_cache(16)
def _rounded_mask(size: tuple[int, int]) -> Image.Image:
    fine = 4  # drawn larger, for smooth edges
    mask = Image.new("L", (size[0] * fine, size[1] * fine))
    radius = min(_RADIUS, min(size) // 8) * fine
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius, 255)
    return mask.resize(size, Image.Resampling.LANCZOS)


@lru_cache(16)
def _shadow(size: tuple[int, int]) -> Image.Image:
    edge = min(12, min(size) // 8)
    shadow = Image.new("L", (size[0] + 2 * edge, size[1] + 2 * edge))
    shadow.paste(70, (edge, edge), _rounded_mask(size))
    return shadow.filter(ImageFilter.GaussianBlur(edge / 2.5))


@lru_cache(16)
def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size)


def _wrapped(text: str, width: int) -> list[str]:
    """Return the first two lines of a text, the second one cut with an ellipsis."""
    first, rest = _take_line(text.split(), width)
    second, more = _take_line(rest, width)
    if more:
        second = _cut(second + " " + more[0], width)
    return [_cut(line, width) for line in (first, second) if line]


def _take_line(words: list[str], width: int) -> tuple[str, list[str]]:
    """Return as many words as fit into a line (one at least), and the other words."""
    count = 1
    while count < len(words) and _font(15).getlength(" ".join(words[: count + 1])) <= width:
        count += 1
    return " ".join(words[:count]), words[count:]


def _cut(line: str, width: int) -> str:
    font = _font(15)
    if font.getlength(line) <= width:
        return line
    lengths = range(len(line))
    most = bisect_right(lengths, float(width), key=lambda n: font.getlength(line[:n] + "…"))
    return line[: most - 1].rstrip() + "…"
