"""What commands need from outside: a way to make clients, and a terminal."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import attrs
import click
from rich.console import Console

from .. import ImageLabs
from .exits import require_extra

__all__ = ["Runtime", "current_runtime"]

log = logging.getLogger(__name__)


def _stderr_console() -> Console:
    # FORCE_COLOR may force colours; a bar that is redrawn into a file helps nobody.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return Console(stderr=True, force_interactive=None if terminal else False)


def _embedded_client(**settings: Any) -> ImageLabs:
    with require_extra("server"):
        from ..embedded import embedded_client  # needs an extra that others do without

        return embedded_client(**settings)  # loads the engine, which needs Pillow


@attrs.frozen
class Runtime:
    """Passed to the commands as click's ``obj``, so that a test can replace it.

    Attributes:
        make_client: Takes the arguments of `ImageLabs`.
        make_embedded_client: Takes the settings of `embedded_client`.
        make_console: Returns the console on which progress is drawn.
        sleep: Waits so many seconds.
    """

    make_client: Callable[..., ImageLabs] = ImageLabs
    make_embedded_client: Callable[..., ImageLabs] = _embedded_client
    make_console: Callable[[], Console] = _stderr_console
    sleep: Callable[[float], None] = time.sleep

    def bar_console(self) -> Console | None:
        """Return the console for a bar; `None` without a terminal or while log lines are shown."""
        console = self.make_console()
        return console if console.is_interactive and not log.isEnabledFor(logging.INFO) else None


def current_runtime() -> Runtime:
    """Return the runtime of the command that runs now."""
    return click.get_current_context().find_object(Runtime) or Runtime()
