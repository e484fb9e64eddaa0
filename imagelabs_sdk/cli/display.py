"""Show how far jobs are: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column

from .. import Progress, State
from .output import describe_progress, say
from .runtime import current_runtime

__all__ = ["ProgressDisplay", "StateLines", "show_bar"]

log = logging.getLogger(__name__)

_MAX_STATE_WIDTH = 40  # columns; the service's words may be far longer


def _bar_console() -> Console | None:
    """Return the console for a bar; `None` without a terminal or while log lines are shown."""
    console = current_runtime().make_console()
    return console if console.is_interactive and not log.isEnabledFor(logging.DEBUG) else None


# One job ----------------------------------------------------------------------------------


@contextmanager
def show_bar(word: str) -> Iterator[Callable[[Progress], None] | None]:
    """Draw a bar that begins with `word`; yield the function that shows a poll in it.

    Yields `None` where no bar can be drawn.
    """
    console = _bar_console()
    if console is None:
        yield None
        return
    with Bar(*_columns(), console=console, transient=True) as bar:
        row = bar.add_task(word, total=None)
        yield lambda progress: bar.update(row, **_row(progress))


def _columns() -> Iterator[ProgressColumn]:
    yield BarColumn()
    yield TaskProgressColumn("{task.percentage:>3.0f} %", " " * 5, markup=False)
    yield TimeElapsedColumn()
    # Last, so that its changing length moves nothing.
    words = Column(no_wrap=True, overflow="ellipsis", max_width=_MAX_STATE_WIDTH)
    yield TextColumn("{task.description}", markup=False, table_column=words)


def _row(progress: Progress) -> Mapping[str, Any]:
    """Return the fields of a bar. Without a fraction it pulses and shows no percentage."""
    fraction = 1.0 if progress.state is State.DONE else progress.fraction
    total = None if fraction is None else 1.0
    return {"description": describe_progress(progress), "completed": fraction, "total": total}


@attrs.define
class StateLines:
    """Print a line for each change of a job's state.

    Attributes:
        task_id: The job's id.
        state: The state printed last; `None` before the first.
    """

    task_id: str
    state: State | None = None

    def __call__(self, progress: Progress) -> None:
        """Print a line if the state has changed."""
        if progress.state is not self.state:
            self.state = progress.state
            say(f"task {self.task_id}: {describe_progress(progress)}")


# A batch ----------------------------------------------------------------------------------


class ProgressDisplay:
    """Show how far a batch is, while in ``with``: one bar for all jobs, or a line for each end."""

    def __init__(self, total: int) -> None:
        """Show nothing yet.

        Args:
            total: How many images are wanted.
        """
        console = _bar_console()
        self._total = total
        self._bar = None if console is None else _batch_bar(console, total)
        self._ended = self._failed = 0
        self._fractions: dict[int, float] = {}  # of the jobs that are running, by index

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show_poll(self, index: int, progress: Progress) -> None:
        """Show the latest poll of a job."""
        self._fractions[index] = progress.fraction or 0.0
        self._update()

    def show_end(self, index: int, what: str, *, failed: bool) -> None:
        """Show that a job has ended, with `what` came of it."""
        self._fractions.pop(index, None)
        self._ended += 1
        self._failed += failed
        if self._bar is None:
            say(f"{self._ended} of {self._total}: {what}")
        self._update()

    def _update(self) -> None:
        if self._bar is not None:
            words = f"{self._failed} failed" if self._failed else ""
            done, (row,) = self._ended + sum(self._fractions.values()), self._bar.task_ids
            self._bar.update(row, completed=done, ended=self._ended, description=words)


def _batch_bar(console: Console, total: int) -> Bar:
    columns = (
        BarColumn(),
        TextColumn("{task.fields[ended]} of {task.total}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    # Results on the same terminal go above the bar.
    same = sys.stdout.isatty()
    bar = Bar(*columns, console=console, transient=True, redirect_stdout=same)
    bar.add_task("", total=total, ended=0)
    return bar
