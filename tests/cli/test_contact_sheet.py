"""Many images on one sheet."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from imagelabs_sdk.cli.captions import draw_text, text_width, wrap_text
from imagelabs_sdk.cli.contact_sheet import Tile, draw_sheet, on_paper, save_sheet
from tests.faulty import PNG


@pytest.mark.parametrize(("count", "widest"), [(1, 5000), (30, 5000), (30, 1000), (30, 90)])
def test_a_contact_sheet_has_a_size_that_can_be_opened(
    folder: Path, count: int, widest: int
) -> None:
    """Many tiles become smaller; long texts and words are cut."""
    Path("x.png").write_bytes(PNG)
    texts = ["short", "many words " * 30, "w" * 300, "two lines of words, just a little too long"]
    tiles = [
        Tile(Path("x.png"), f"{number:04}", texts[number % len(texts)]) for number in range(count)
    ]
    sheet = draw_sheet(tiles, max_width=widest)
    assert min(widest, 320) / 2 <= sheet.width <= widest
    assert sheet.height <= sheet.width * 2


GREY = Image.linear_gradient("L").resize((64, 48))
ROUND = Image.radial_gradient("L").resize((64, 48))
COLOR = Image.merge("RGB", (GREY, ROUND, GREY))


def save(name: str, image: Image.Image, **more: Any) -> Path:
    path = Path(name)
    image.save(path, **more)
    return path


def pixels(path: Path, text: str = "x") -> Image.Image:
    """The sheet of one tile, cut to the image."""
    sheet = draw_sheet([Tile(path, "0001", text)])
    return sheet.crop((28, 28, 28 + 320, 28 + 240))


def test_sixteen_bits_are_not_white() -> None:
    """Pillow's own conversion cuts off everything above 255."""
    image = Image.new("I;16", (64, 48))
    for x in range(64):
        for y in range(48):
            image.putpixel((x, y), x * 1000)
    shown = pixels(save("x.png", image)).convert("L")
    left, middle = shown.getpixel((5, 120)), shown.getpixel((160, 120))
    assert isinstance(left, int)
    assert isinstance(middle, int)
    assert left < 20
    assert 100 < middle < 150


def test_transparent_parts_show_the_paper() -> None:
    """Black, as Pillow's own conversion has it, would hide a dark subject."""
    clear = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    paper = (0xF5, 0xF2, 0xEC)
    assert pixels(save("a.png", clear)).getpixel((160, 120)) == paper
    palette = COLOR.quantize(4)
    index = palette.getpixel((32, 24))
    assert pixels(save("p.png", palette, transparency=index)).getpixel((160, 120)) == paper
    for mode in ("RGBa", "La"):
        kept = Image.new(mode, (64, 48), 0)
        assert on_paper(kept).getpixel((1, 1)) == paper


@pytest.mark.parametrize("clear", [0, 300, 32_768])
def test_the_transparent_one_of_sixteen_bits_is_that_grey_alone(clear: int) -> None:
    """Not another one that is the same in eight bits."""
    image = Image.new("I;16", (64, 48), clear)
    image.putpixel((1, 1), clear + 1)
    image.putpixel((2, 2), 44)
    save("x.png", image, transparency=clear)
    with Image.open("x.png") as opened:
        shown = on_paper(opened)
    assert shown.getpixel((0, 0)) == (0xF5, 0xF2, 0xEC)
    for place in ((1, 1), (2, 2)):
        assert shown.getpixel(place) != (0xF5, 0xF2, 0xEC)


def test_a_thin_image_has_no_shadow_beside_it() -> None:
    """It would look like a second line."""
    sheet = draw_sheet([Tile(save("x.png", Image.new("RGB", (4000, 1), "red")), "0001", "")])
    rows = {y for y in range(40) if sheet.getpixel((160, y)) != (0xF5, 0xF2, 0xEC)}
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("x.png", GREY.convert("1")),
        ("x.png", Image.merge("LA", (GREY, ROUND))),
        ("x.jpg", COLOR.convert("CMYK")),
        ("x.tiff", COLOR.convert("LAB")),
        ("x.tiff", GREY.convert("I")),
        ("x.tiff", GREY.convert("F")),
        ("x.webp", COLOR),
        ("x.gif", COLOR),
        ("x.png", Image.new("RGB", (4096, 1), "red")),
        ("x.png", Image.new("RGB", (1, 4096), "red")),
    ],
)
def test_an_image_of_any_kind_is_shown(name: str, image: Image.Image) -> None:
    """A sheet with one odd image is still a sheet, and the image can be recognised."""
    sheet = draw_sheet([Tile(save(name, image), "0001", "x")])
    crossed = draw_sheet([Tile(Path("none.png"), "0001", "x")])
    assert sheet.size != crossed.size or sheet.tobytes() != crossed.tobytes()
    assert len(sheet.getcolors(999999) or ()) > 10


def test_one_grey_is_no_division_by_zero() -> None:
    """An image of a range of its own is scaled by its darkest and lightest value."""
    assert pixels(save("x.tiff", Image.new("F", (64, 48), 7.0))).getpixel((9, 9)) == (0, 0, 0)


@pytest.mark.parametrize(
    "content", [b"", b"no image", PNG[:40], b"GIF89a" + b"x" * 40, b"\xff\xd8\xff\xe0"]
)
def test_a_broken_file_becomes_a_crossed_frame(content: bytes) -> None:
    """A black image would look like what the service made."""
    Path("broken.png").write_bytes(content)
    broken = draw_sheet([Tile(Path("broken.png"), "0001", "x")])
    missing = draw_sheet([Tile(Path("none.png"), "0001", "x")])
    assert broken.tobytes() == missing.tobytes()


def test_two_captions_never_look_alike() -> None:
    """Also in scripts that no font here knows, with characters that show nothing, and when cut."""
    start = "a lighthouse at dusk by the sea " * 9
    captions = [
        "一只猫", "一只狗", "ねこ", "고양이", "قطة", "🦊", "🐻", "a\u200bb", "ab", "a\u200cb",
        "a\u034fb", "a\u17b4b", "a\u3164b", "a\ufe0fb", "a\ufe0eb",
        "\u0939\u093f", "\u0939\u0940",
        "\ue000", "\ue001", "\U0010fffe", "x" * 300, "x" * 301, start + "one", start + "two",
    ]  # fmt: skip
    path = save("x.png", COLOR)
    sheets = {draw_sheet([Tile(path, "0001", text)]).tobytes() for text in captions}
    assert len(sheets) == len(captions)


def drawn(text: str) -> Image.Image:
    line = Image.new("L", (200, 24), 255)
    draw_text(ImageDraw.Draw(line), 4, 2, text, size=15, color="black")
    return line


def test_the_space_after_right_to_left_text_is_at_its_right() -> None:
    """Where the next word, in another font, begins."""
    word, line = drawn("שלום"), drawn("שלום and")
    width = 4 + int(text_width("שלום", 15))
    area = (0, 0, width, 24)
    assert line.crop(area).tobytes() == word.crop(area).tobytes()


def test_a_mark_is_drawn_upon_its_letter() -> None:
    """With the letter in the mark's font; never upon a dotted circle."""
    try:
        ImageFont.truetype("DejaVuSans.ttf")
    except OSError:
        pytest.skip("no font here has the mark")
    mark = "e\u0301"
    assert text_width(mark, 15) < 1.5 * text_width("e", 15)
    assert drawn(mark).tobytes() != drawn("e").tobytes()


def test_text_stays_within_its_lines() -> None:
    """East Asian text has no spaces to break at; one long word has none either."""
    for text in ("灯塔" * 40, "w" * 200, "a lighthouse " * 20, "灯 lighthouse 塔 " * 9):
        lines = wrap_text(text, 320, size=15, lines=2)
        assert len(lines) == 2
        assert all(text_width(line, 15) <= 320 for line in lines)
    assert wrap_text("short text", 320, size=15, lines=2) == ["short text"]
    assert wrap_text("灯塔" * 15, 320, size=15, lines=9) != ["灯塔" * 15]
    assert wrap_text("w", 1, size=15, lines=2) == ["w"]


@pytest.mark.parametrize("name", ["sheet.png", "sheet.JPG", "sheet.webp"])
def test_a_sheet_is_written_atomically(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there survives a full disk; no half sheet and no temporary file stays."""
    tiles = [Tile(save("x.png", COLOR), "0001", "x")]
    Path(name).write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save_sheet(tiles, Path(name))
    assert Path(name).read_bytes() == b"before"
    assert sorted(path.name for path in Path().iterdir()) == sorted([name, "x.png"])
    save_sheet(tiles, Path(name))
    with Image.open(name) as sheet:
        assert sheet.width == 320 + 2 * 28


def test_a_tile_without_words_is_drawn() -> None:
    """Nothing to write is no error."""
    assert draw_sheet([Tile(save("x.png", COLOR), "", " ")]).width == 320 + 2 * 28
