"""How a command ends: an exit code for each kind of error, and one line that explains it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from .. import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    ChallengeError,
    DownloadError,
    ImageLabsError,
    InvalidRequestError,
    JobFailedError,
    JobStalledError,
    JobTimeoutError,
    SubmissionUnknownError,
)
from .output import say

__all__ = [
    "EXIT_CODES",
    "EXIT_CODES_HELP",
    "CommandGroup",
    "error_line",
    "exit_code",
    "exit_with_hint",
    "report_error",
    "require_extra",
]

log = logging.getLogger(__name__)

EXIT_CODES: tuple[tuple[int, str, tuple[type[BaseException], ...]], ...] = (
    (2, "a value cannot be used; nothing was sent", (click.UsageError, InvalidRequestError)),
    (3, "the service cannot be reached", (APIConnectionError, JobStalledError)),
    (4, "the service refused, or its answer cannot be used", (APIStatusError, APIResponseError)),
    (5, "the job may or may not have been accepted", (SubmissionUnknownError,)),
    (6, "the job failed", (JobFailedError,)),
    (7, "the job was still running when --timeout was over", (JobTimeoutError,)),
    (8, "the finished image could not be fetched", (DownloadError,)),
    (130, "Ctrl-C", (KeyboardInterrupt, click.Abort)),
    (1, "anything else, such as a full disk", (BaseException,)),
)
"""Code, meaning and error classes; the first row that fits an error counts."""

EXIT_CODES_HELP = "\b\nExit codes:\n" + "\n".join(
    f"  {code:<5}{meaning}" for code, meaning, _ in sorted([(0, "success", ()), *EXIT_CODES])
)
"""The table as click prints it at the end of a help text."""


class CommandGroup(click.Group):
    """A group of commands that ends with one line and an exit code when there is an error."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run one command and end the process."""
        # Without a handler, logging would print warnings that the command words by itself.
        logging.getLogger("imagelabs_sdk").addHandler(logging.NullHandler())
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except Exception as error:  # noqa: BLE001 - a person gets a line; --debug, the traceback
            code = report_error(error)
        sys.exit(code)


def report_error(error: BaseException) -> int:
    """Explain an error in one line on stderr. Return its exit code."""
    log.debug("traceback", exc_info=error)
    say("imagelabs: " + " ".join(error_line(error).splitlines()))
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error."""
    return next(code for code, _, kinds in EXIT_CODES if isinstance(error, kinds))


def error_line(error: BaseException) -> str:
    """Return what a person is told about an error."""
    match error:
        case click.ClickException():
            return error.format_message() + _help_hint(error)
        case KeyboardInterrupt() | click.Abort():
            return "interrupted"
        case ChallengeError():
            return f"{error}; the command takes IMAGELABS_COOKIE and IMAGELABS_USER_AGENT"
        case ImageLabsError():
            return str(error)
        case OSError():
            return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def _help_hint(error: click.ClickException) -> str:
    context: click.Context | None = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context else ""


@contextmanager
def exit_with_hint(hint: str, *kinds: type[BaseException]) -> Iterator[None]:
    """End the command on errors of these kinds, with `hint` as a second line."""
    try:
        yield
    except kinds as error:
        code = report_error(error)
        say(hint)
        raise click.exceptions.Exit(code) from error


@contextmanager
def require_extra(name: str) -> Iterator[None]:
    """Turn an `ImportError` into an error that names the extra to install."""
    try:
        yield
    except ImportError as error:
        remedy = f'pip install "imagelabs_sdk[{name}]"'
        raise click.ClickException(f"{error}: {remedy}") from error
