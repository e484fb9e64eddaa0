"""Draw many images on one sheet, each with its number and its prompt."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import attrs
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from .._files import atomic_write
from .captions import draw_text, wrap_text

__all__ = ["Tile", "draw_sheet", "on_paper", "save_sheet"]

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
        path: The image file; one that cannot be read becomes a crossed frame.
        name: Such as ``"0001"``.
        text: The prompt; cut after two lines.
    """

    path: Path
    name: str
    text: str


def save_sheet(tiles: Sequence[Tile], path: Path) -> None:
    """Draw a sheet and write it atomically, in the format that the path's extension names.

    Raises:
        OSError: It cannot be written.
    """
    with atomic_write(path) as draft:
        draw_sheet(tiles).save(draft.file, Image.registered_extensions()[path.suffix.lower()])


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
            draw_text(pen, left, height + 10, tile.name, size=12, color=_FAINT)
            for line, words in enumerate(wrap_text(tile.text, side, size=15, lines=2), 1):
                top = height + 10 + line * _LINE
                draw_text(pen, left, top, words, size=15, color=_INK)
    return row


def _thumbnail(path: Path, side: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return _fit(on_paper(ImageOps.exif_transpose(image)), side)
    except Exception:  # noqa: BLE001 - decoders raise anything for a broken file
        return _broken(side)


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def on_paper(image: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB, its transparent parts in the colour of the sheet."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, _PAPER)
        image = Image.alpha_composite(paper, _to_rgba(image))
    if image.mode == "LAB":
        image = image.getchannel("L")
    return image.convert("RGB")


def _to_rgba(image: Image.Image) -> Image.Image:
    # Pillow converts premultiplied alpha to straight alpha, but not from one to the other kind.
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    return (image.convert(straight) if straight else image).convert("RGBA")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 bits, or of any range, to 0 to 255."""
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:
        low, high = (float(str(value)) for value in image.convert("F").getextrema())
    scale = 255.0 / (high - low) if high > low else 0.0
    grey = image.convert("F").point(lambda value: value * scale - low * scale).convert("L")
    key = grey.info.pop("transparency", None)  # the one grey, of 16 bits, that is transparent
    if isinstance(key, int):
        grey.putalpha(image.convert("I").point([255 * (each != key) for each in range(65536)], "L"))
    return grey


def _broken(side: int) -> Image.Image:
    """Return an empty frame with a cross for a file that cannot be read."""
    frame = Image.new("RGB", (side, max(1, side * 3 // 4)), _EMPTY)
    pen = ImageDraw.Draw(frame)
    pen.line((0, 0, frame.width, frame.height), _FAINT)
    pen.line((0, frame.height, frame.width, 0), _FAINT)
    return frame


def _paste_framed(row: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """Paste an image with round corners and a soft shadow."""
    mask, shadow = _rounded_mask(image.size), _shadow(image.size)
    edge = (shadow.width - image.width) // 2
    if edge:  # below a thin line it would be a second line
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
