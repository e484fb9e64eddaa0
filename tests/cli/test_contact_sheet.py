"""Many images on one sheet."""

from pathlib import Path

import pytest

from imagelabs_sdk.cli.contact_sheet import Tile, draw_sheet
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
