"""Write text of any language below an image, with the fonts that this machine has."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

from PIL import ImageDraw, ImageFont

__all__ = ["draw_text", "text_width", "wrap_text"]

_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleGothic.ttf",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "arialuni.ttf",
    "arial.ttf",
)
"""Asked in this order for a character that Pillow's own font lacks: Linux, macOS, Windows."""

_MISSING = "\U0010ffff"  # no font has it: it shows the font's sign for a missing character
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_DIGIT = 7  # pixels, the font of the digits in a box
_BOX = 5  # pixels, the width of one digit

Font = ImageFont.FreeTypeFont


def text_width(text: str, size: int) -> float:
    """Return the width of one line in pixels."""
    return sum(_width(font, run, size) for font, run in _runs(text, size))


def draw_text(
    pen: ImageDraw.ImageDraw, left: float, top: float, text: str, *, size: int, color: str
) -> None:
    """Draw one line. A character that no font has becomes a box with its code point."""
    for font, run in _runs(text, size):
        if font is None:
            _draw_box(pen, (left, top), run, size, color)
        else:
            pen.text((left, top + size), run, color, font, anchor="ls")
        left += _width(font, run, size)


def wrap_text(text: str, width: float, *, size: int, lines: int) -> list[str]:
    """Break a text into lines that fit.

    What does not fit into `lines` is cut with an ellipsis and a short fingerprint, so that two
    texts with the same beginning differ.
    """
    wrapped = list(_wrap(" ".join(text.split()), width, size))
    if len(wrapped) <= lines:
        return wrapped
    mark = f"… {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:4]}"
    last = wrapped[lines - 1]
    while last and text_width(last + mark, size) > width:
        last = last[:-1]
    return [*wrapped[: lines - 1], last.rstrip() + mark]


def _wrap(text: str, width: float, size: int) -> Iterator[str]:
    """Yield lines, broken at a space where there is one, else between two characters."""
    line = ""
    for piece in _pieces(text):
        if line and text_width((line + piece).rstrip(), size) > width:
            yield line.rstrip()
            line = ""
        line += piece if line else piece.lstrip()
        while text_width(line.rstrip(), size) > width and len(line.rstrip()) > 1:
            fits = _fitting(line, width, size)
            yield line[:fits]
            line = line[fits:]
    if line.strip():
        yield line.rstrip()


def _pieces(text: str) -> Iterator[str]:
    """Yield what may begin a new line: words, and each character of East Asian text."""
    piece = ""
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF"
        if piece and (wide or piece.endswith(" ") or _is_wide(piece)):
            yield piece
            piece = ""
        piece += character
    yield piece


def _is_wide(piece: str) -> bool:
    return unicodedata.east_asian_width(piece[-1]) in "WF"


def _fitting(line: str, width: float, size: int) -> int:
    """Return how many characters fit, at least one."""
    count = 1
    while text_width(line[: count + 1], size) <= width:
        count += 1
    return count


# Fonts --------------------------------------------------------------------------------------


def _runs(text: str, size: int) -> Iterator[tuple[Font | None, str]]:
    """Yield parts of the text with one font each; `None`: a character that no font has."""
    run = ""
    font: Font | None = None
    for cluster in _clusters(text, size):
        # A space stays with the word before it: the width of a space differs between fonts.
        own = font if cluster == " " and font else _font_for(cluster, size)
        if run and (own is not font or own is None):
            yield from _without_moved_space(font, run)
            run = ""
        run, font = run + cluster, own
    if run:
        yield from _without_moved_space(font, run)


def _without_moved_space(font: Font | None, run: str) -> Iterator[tuple[Font | None, str]]:
    """Yield a run; of right-to-left text without the space at its end, which comes on its own.

    It would be drawn at the left end.
    """
    words = run.rstrip(" ")
    if words != run and any(unicodedata.bidirectional(each) in ("R", "AL") for each in words):
        yield font, words
        run = run[len(words) :]
    yield font, run


def _clusters(text: str, size: int) -> Iterator[str]:
    """Yield each character with the marks upon it, if one font has them all, else without."""
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and unicodedata.category(text[end])[0] == "M":
            end += 1
        if _font_for(text[start:end], size) is None:
            end = start + 1
        yield text[start:end]
        start = end


@lru_cache(4096)
def _font_for(cluster: str, size: int) -> Font | None:
    # Controls, formats, surrogates, unassigned; and what every font has as nothing.
    if any(unicodedata.category(each)[0] == "C" for each in cluster) or _INVISIBLE.search(cluster):
        return None
    if unicodedata.category(cluster[0])[0] == "M":  # without its letter fonts draw what they like
        return None
    return next((font for font in _fonts(size) if all(_has(font, each) for each in cluster)), None)


@lru_cache(4)
def _fonts(size: int) -> tuple[Font, ...]:
    return tuple(_load(size))


def _load(size: int) -> Iterable[Font]:
    default = ImageFont.load_default(size)
    assert isinstance(default, Font)  # a size is refused where Pillow lacks FreeType
    yield default
    for name in _FONTS:
        try:
            yield ImageFont.truetype(name, size)
        except OSError:  # not on this machine
            continue


def _has(font: Font, character: str) -> bool:
    if character.isspace():
        return True
    plain = _unshaped(font)
    shown, missing = plain.getmask(character), plain.getmask(_MISSING)
    return shown.size != missing.size or bytes(shown) != bytes(missing)


@lru_cache(64)
def _unshaped(font: Font) -> Font:
    """Return the font without shaping, which puts a circle below a lone mark, missing or not."""
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _width(font: Font | None, run: str, size: int) -> float:
    return _box_width(run) + 3 if font is None else font.getlength(run)


def _box_width(character: str) -> int:
    return (len(f"{ord(character):04X}") + 1) // 2 * _BOX + 3


def _draw_box(
    pen: ImageDraw.ImageDraw, corner: tuple[float, float], character: str, size: int, color: str
) -> None:
    left, top = corner
    code = f"{ord(character):04X}"
    half = (len(code) + 1) // 2
    pen.rectangle((left, top, left + _box_width(character), top + size + 2), outline=color)
    for row, digits in enumerate((code[:half], code[half:])):
        for column, digit in enumerate(digits):
            place = (left + 2 + column * _BOX, top + 8 + row * 8)
            pen.text(place, digit, color, _digit_font(), anchor="ls")


@lru_cache(1)
def _digit_font() -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(_DIGIT)
