"""Show how far jobs are: a bar on a terminal, plain lines elsewhere."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from rich.console import Console, RenderableType
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
from .output import describe_progress, print_result, say
from .runtime import current_runtime

__all__ = ["ProgressDisplay", "SmoothFraction", "show_job"]

_MAX_STATE_WIDTH = 40  # columns; the service's words may be far longer
_MIN_SPAN = 0.5  # seconds; polls that are closer together tell no pace
_MAX_GUESS = 0.99  # the end of a job is never guessed

Clock = Callable[[], float]


@attrs.define
class SmoothFraction:
    """Estimate a job's progress between polls, at the pace of the last ones; never go back.

    Attributes:
        clock: A monotonic clock, in seconds.
    """

    clock: Clock = time.monotonic
    _shown: float = attrs.field(default=0.0, init=False)
    _pace: float = attrs.field(default=0.0, init=False)  # per second
    _last: tuple[float, float] = attrs.field(init=False)  # the latest poll: when, which fraction
    _base: tuple[float, float] = attrs.field(init=False)  # what the pace is measured from

    def __attrs_post_init__(self) -> None:
        self._last = self._base = (self.clock(), 0.0)

    def poll(self, fraction: float) -> None:
        """Take the fraction of the latest poll, from 0.0 to 1.0."""
        now, (then, before) = self.clock(), self._base
        self._last = (now, fraction)
        if now - then >= _MIN_SPAN:
            self._pace = max((fraction - before) / (now - then), 0.0)
            self._base = self._last

    def estimate(self) -> float:
        """Return the fraction to show now.

        It begins at the pace of the last polls and slows down towards 0.99.
        """
        polled_at, fraction = self._last
        left = _MAX_GUESS - fraction
        guess = fraction
        if left > 0.0:
            guess += left * (1.0 - math.exp(-self._pace * (self.clock() - polled_at) / left))
        self._shown = max(self._shown, guess)
        return self._shown


class _LiveBar(Bar):
    """A bar with one row, whose fields are computed each time it is drawn."""

    def __init__(
        self,
        *columns: ProgressColumn,
        console: Console,
        fields: Callable[[], Mapping[str, Any]],
        below: Callable[[], RenderableType] | None = None,
    ) -> None:
        self._fields, self._below = fields, below
        # Lines go above the bar by `console.out`, and only if they belong on this terminal.
        super().__init__(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.add_task(**fields())

    def get_renderables(self) -> Iterable[RenderableType]:
        """Compute the fields and draw the row."""
        for row in self.task_ids:  # none yet when rich draws it for the first time
            self.update(row, **self._fields())
        yield from super().get_renderables()
        if self._below is not None:
            yield self._below()


@contextmanager
def _retries_shown(show: Callable[[str], None]) -> Iterator[None]:
    """Show what the library logs at level INFO: each time it tries something again."""
    logger = logging.getLogger("imagelabs_sdk")
    if logger.isEnabledFor(logging.INFO):  # the log shows them already
        yield
        return
    handler = _RetryHandler(show)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class _RetryHandler(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO and record.name != "imagelabs_sdk.job":
            self._show(record.getMessage())


def _same_terminal() -> bool:
    """Return True if stdout is the terminal that shows the bar."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except (OSError, AttributeError):  # closed, or no file of the system
        return False


# One job ----------------------------------------------------------------------------------


@contextmanager
def show_job(
    word: str, task_id: str = "", below: Callable[[], RenderableType] | None = None
) -> Iterator[Callable[[Progress], None]]:
    """Show one job while in ``with``; yield the function that shows a poll.

    Args:
        word: What is shown in the bar before the first poll.
        task_id: Stands in the lines that are shown where no bar can be drawn.
        below: Returns what is drawn below the bar. `None`: nothing.
    """
    console = current_runtime().bar_console()
    if console is None:
        with _retries_shown(say):
            yield _StateLines(task_id).show_poll
        return
    row = _Row(word)
    bar = _LiveBar(*_columns(), console=console, fields=row.fields, below=below)

    def show_poll(progress: Progress) -> None:
        row.show_poll(progress)
        bar.refresh()  # so that each poll is seen, however busy the machine is

    with bar, _retries_shown(lambda line: console.out(line, highlight=False)):
        yield show_poll


def _columns() -> Iterator[ProgressColumn]:
    yield BarColumn()
    yield TaskProgressColumn("{task.percentage:>3.0f} %", " " * 5, markup=False)
    yield TimeElapsedColumn()
    yield TextColumn("{task.fields[eta]}", markup=False)
    # Last, so that its changing length moves nothing.
    words = Column(no_wrap=True, overflow="ellipsis", max_width=_MAX_STATE_WIDTH)
    yield TextColumn("{task.description}", markup=False, table_column=words)


@attrs.define
class _Row:
    """The bar of one job. Without a fraction it pulses and shows no percentage."""

    description: str
    eta: str = ""
    known: bool = False
    fraction: SmoothFraction = attrs.Factory(SmoothFraction)

    def show_poll(self, progress: Progress) -> None:
        self.description = describe_progress(progress)
        self.eta = _seconds_left(progress)
        fraction = 1.0 if progress.state is State.DONE else progress.fraction
        self.known = fraction is not None
        if fraction is not None:
            self.fraction.poll(fraction)

    def fields(self) -> Mapping[str, Any]:
        total = 1.0 if self.known else None
        completed = self.fraction.estimate() if self.known else 0.0
        shown = {"description": self.description, "eta": self.eta}
        return {**shown, "completed": completed, "total": total}


def _seconds_left(progress: Progress) -> str:
    """Return the range in which the job probably ends; empty if nothing is known."""
    if progress.eta is None or progress.state.ended:
        return ""
    low, high = round(progress.eta.low), max(round(progress.eta.high), 1)
    return f"{high} s left," if low >= high else f"{low} to {high} s left,"


@attrs.define
class _StateLines:
    """Print a line for each change of a job's state.

    Attributes:
        task_id: The job's id.
        state: The state printed last; `None` before the first.
    """

    task_id: str
    state: State | None = None

    def show_poll(self, progress: Progress) -> None:
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
        console = current_runtime().bar_console()
        self._total = total
        self._ended = self._failed = 0
        self._fractions: dict[int, SmoothFraction] = {}  # of the jobs that are running, by index
        self._bar = (
            None
            if console is None
            else _LiveBar(*_batch_columns(), console=console, fields=self._fields)
        )
        self._retries = _retries_shown(self._say)

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
        self._retries.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._retries.__exit__(None, None, None)
        if self._bar is not None:
            self._bar.stop()

    def show_poll(self, index: int, progress: Progress) -> None:
        """Show the latest poll of a job."""
        running = self._fractions.get(index) or SmoothFraction()
        running.poll(progress.fraction or 0.0)
        self._fractions[index] = running

    def show_end(self, index: int, what: str, *, failed: bool) -> None:
        """Show that a job has ended, with `what` came of it."""
        self._fractions.pop(index, None)
        self._ended += 1
        self._failed += failed
        if self._bar is None:
            say(f"{self._ended} of {self._total}: {what}")

    def print_result(self, line: str) -> None:
        """Write a line to stdout; above the bar if that is on the same terminal.

        Raises:
            OSError: It cannot be written.
        """
        if self._bar is not None and _same_terminal():
            self._bar.console.out(line, highlight=False)
        else:
            print_result(line)

    def _say(self, line: str) -> None:
        if self._bar is None:
            say(line)
        else:
            self._bar.console.out(line, highlight=False)

    def _fields(self) -> Mapping[str, Any]:
        running = sum(fraction.estimate() for fraction in list(self._fractions.values()))
        return {
            "description": f"{self._failed} failed" if self._failed else "",
            "completed": self._ended + running,
            "total": self._total,
            "ended": self._ended,
        }


def _batch_columns() -> Iterator[ProgressColumn]:
    yield BarColumn()
    yield TextColumn("{task.fields[ended]} of {task.total}", markup=False)
    yield TimeElapsedColumn()
    yield TextColumn("{task.description}", markup=False)
