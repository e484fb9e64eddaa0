"""What the command needs to bring many images: a file of prompts, names, a display, a summary."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from . import GeneratedImage, ImageLabsError, Progress
from .batch.scheduler import Outcome

__all__ = [
    "BatchOptions",
    "ItemResult",
    "ProgressDisplay",
    "Prompt",
    "bring",
    "read_prompts",
    "summary",
]

_EXTENSIONS = (".png", ".jpg", ".webp", ".gif", ".avif")  # what a saved image may have


@attrs.frozen
class Prompt:
    """One line of the file.

    Attributes:
        line: Its number, counted from 1.
        text: What to draw.
    """

    line: int
    text: str


@attrs.frozen(kw_only=True)
class BatchOptions:
    """What is to be drawn, and where it goes.

    Attributes:
        prompts: In the file's order.
        folder: Where the images go.
        jobs: How many are at work at once.
        checkpoint: What is kept for the next run; `None`: nothing.
        sheet: Where the contact sheet goes; `None`: there will be none.
    """

    prompts: Sequence[Prompt]
    folder: Path
    jobs: int
    checkpoint: Path | None
    sheet: Path | None

    def stem(self, index: int) -> Path:
        """The file of an image, but for its extension."""
        return self.folder / f"{index + 1:04}"

    def there(self, index: int) -> Path | None:
        """The file of an image that an earlier run has saved."""
        files = (self.stem(index).with_suffix(extension) for extension in _EXTENSIONS)
        return next((file for file in files if file.is_file()), None)


@attrs.frozen
class ItemResult:
    """What came of one prompt.

    Attributes:
        index: Its place among the prompts.
        error: Why there is no image, or `None`.
        image: The image; `None` if there is none.
        path: Where it is; `None` if there is none.
        new: Whether this run has saved it.
    """

    index: int
    error: ImageLabsError | None = None
    image: GeneratedImage | None = None
    path: Path | None = None
    new: bool = False


def read_prompts(path: Path) -> list[Prompt]:
    """One prompt a line; blank lines, and those that begin with ``#``, are none.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is no UTF-8.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n"))
    prompts = (Prompt(number, line) for number, line in enumerate(lines, 1))
    return [prompt for prompt in prompts if prompt.text and not prompt.text.startswith("#")]


def bring(outcome: Outcome, plan: BatchOptions) -> ItemResult:
    """Save the image, unless an earlier run did.

    Raises:
        OSError: The disk did not take it.
    """
    image = outcome.result
    if image is None:
        return ItemResult(outcome.index, outcome.error)
    # A job that nobody has polled is one whose end an earlier run has seen.
    there = None if image.job.done else plan.there(outcome.index)
    if there is not None:
        return ItemResult(outcome.index, None, image, there)
    try:
        path = image.save(plan.stem(outcome.index))
    except ImageLabsError as error:
        return ItemResult(outcome.index, error)
    return ItemResult(outcome.index, None, image, path, new=True)


def summary(
    endings: Sequence[ItemResult], plan: BatchOptions, say: Callable[[BaseException], str]
) -> Iterator[str]:
    """How many were saved, and for each failure its line in the file and its reason."""
    failed = sorted((e for e in endings if e.error is not None), key=lambda e: e.index)
    saved = sum(ending.new for ending in endings)
    there = len(endings) - saved - len(failed)
    left = len(plan.prompts) - len(endings)
    counts = {"saved": saved, "there already": there, "failed": len(failed), "not finished": left}
    shown = [f"{n} {word}" for word, n in counts.items() if n or word == "saved"]
    yield ", ".join(shown) + (":" if failed else "")
    for ending in failed:
        assert ending.error is not None
        yield f"  {_place(plan, ending)}: {say(ending.error)}"


def _place(plan: BatchOptions, ending: ItemResult) -> str:
    return f"line {plan.prompts[ending.index].line} ({plan.stem(ending.index).name})"


# What is seen meanwhile -------------------------------------------------------------------


class ProgressDisplay:
    """Shows how far a batch is, from ``with`` to its end: in one bar for all, or in lines."""

    def __init__(
        self, plan: BatchOptions, say: Callable[[str], None], console: Console | None
    ) -> None:
        """Shows nothing yet.

        Args:
            plan: What is to be done.
            say: Shows a line to a person.
            console: Where the bar goes; `None`: a line by `say` for each end.
        """
        self._plan, self._say = plan, say
        self._bar = None if console is None else _bar(console, len(plan.prompts))
        self._ended = self._failed = 0
        self._drawn: dict[int, float] = {}  # by index, how far those are that are being drawn

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def poll(self, index: int, progress: Progress) -> None:
        """A job was polled."""
        self._drawn[index] = progress.fraction or 0.0
        self._show()

    def end(self, ending: ItemResult) -> None:
        """An image is there, or will not be."""
        self._drawn.pop(ending.index, None)
        self._ended += 1
        self._failed += ending.error is not None
        what = ending.path or f"{_place(self._plan, ending)} failed"
        if self._bar is None:
            self._say(f"{self._ended} of {len(self._plan.prompts)}: {what}")
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            words = f"{self._failed} failed" if self._failed else ""
            done, (row,) = self._ended + sum(self._drawn.values()), self._bar.task_ids
            self._bar.update(row, completed=done, ended=self._ended, description=words)


def _bar(console: Console, total: int) -> Bar:
    columns = (
        BarColumn(),
        TextColumn("{task.fields[ended]} of {task.total}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    # Results go to the standard output: above the bar if it is the same terminal.
    same = sys.stdout.isatty()
    bar = Bar(*columns, console=console, transient=True, redirect_stdout=same)
    bar.add_task("", total=total, ended=0)
    return bar
