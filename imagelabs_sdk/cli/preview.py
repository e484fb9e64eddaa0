"""Draw an image in a terminal: two pixels in each character, as half blocks."""

import io

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from .. import GeneratedImage, ImageLabsError, Job
from .contact_sheet import on_paper

__all__ = ["PreviewPane", "half_blocks"]

_MAX_COLUMNS, _MAX_LINES = 64, 24
_TIMEOUT = 2.0  # seconds for one preview, so that polling goes on


class PreviewPane:
    """The latest preview of a job, drawn below its bar."""

    def __init__(self, console: Console) -> None:
        """Draw nothing yet.

        Args:
            console: Where it will be drawn; its size bounds that of the image.
        """
        self._console = console
        self._drawing = Text()

    def get_drawing(self) -> Text:
        """Return the latest image as text; empty before the first."""
        return self._drawing

    def show_preview(self, job: Job) -> None:
        """Fetch the preview that the latest poll has named, and draw it; keep the last one if not.

        A preview that cannot be fetched or read is not worth an error.
        """
        preview = job.preview()
        if preview is not None:
            self.show_image(preview)

    def show_image(self, image: GeneratedImage) -> None:
        """Fetch an image and draw it."""
        try:
            content = image.read(timeout=_TIMEOUT)
            with Image.open(io.BytesIO(content)) as opened:
                self._drawing = half_blocks(opened, *self._room())
        except (ImageLabsError, OSError, ValueError, SyntaxError):
            return

    def print_image(self, image: GeneratedImage) -> None:
        """Fetch the finished image and leave it on the terminal."""
        self.show_image(image)
        self._console.print(self._drawing)

    def _room(self) -> tuple[int, int]:
        """Return columns and lines; three lines are left for the bar and what is around it."""
        lines = min(self._console.height - 3, _MAX_LINES)
        return min(self._console.width, _MAX_COLUMNS), max(lines, 1)


def half_blocks(image: Image.Image, columns: int, lines: int) -> Text:
    """Return the image as text of at most so many columns and lines."""
    scale = min(columns / image.width, 2 * lines / image.height)
    width = max(1, round(image.width * scale))
    height = max(2, round(image.height * scale) // 2 * 2)
    small = on_paper(image).resize((width, height), Image.Resampling.LANCZOS)
    text = Text(no_wrap=True, end="")
    for y in range(0, height, 2):
        for x in range(width):
            text.append("▀", Style(color=_color(small, x, y), bgcolor=_color(small, x, y + 1)))
        text.append("\n")
    return text


def _color(image: Image.Image, x: int, y: int) -> Color:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return Color.from_rgb(*pixel)
