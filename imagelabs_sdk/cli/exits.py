"""How a command ends: an exit code for each kind of error, and one line that explains it."""

import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NoReturn

import click

from .. import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    BatchStoppedError,
    ChallengeError,
    DownloadError,
    ImageLabsError,
    InvalidRequestError,
    JobFailedError,
    JobStalledError,
    JobStoppedError,
    JobTimeoutError,
    NotSupportedError,
    SubmissionUnknownError,
)
from .._extras import MissingExtraError, needs_extra
from .option_names import Command, option_message
from .output import escape_unencodable, print_result, say, to_json
from .signals import HangupError, TerminatedError, signals_as_exceptions

__all__ = [
    "EXIT_CODES",
    "EXIT_CODES_HELP",
    "CommandGroup",
    "error_line",
    "exit_code",
    "exit_with_hint",
    "failure_facts",
    "report_error",
    "require_extra",
]

log = logging.getLogger(__name__)

EXIT_CODES: tuple[tuple[int, str, tuple[type[BaseException], ...]], ...] = (
    (
        2,
        "a value cannot be used; nothing was sent",
        (click.UsageError, InvalidRequestError, NotSupportedError),
    ),
    (3, "the service cannot be reached", (APIConnectionError, JobStalledError, BatchStoppedError)),
    (4, "the service refused, or its answer cannot be used", (APIStatusError, APIResponseError)),
    (5, "the job may or may not have been accepted", (SubmissionUnknownError,)),
    (6, "the job failed", (JobFailedError,)),
    (7, "the job was still running when --timeout was over", (JobTimeoutError, JobStoppedError)),
    (8, "the finished image could not be fetched", (DownloadError,)),
    (129, "SIGHUP: the terminal was closed", (HangupError,)),
    (143, "SIGTERM: another program ended the command", (TerminatedError,)),
    (130, "Ctrl-C", (KeyboardInterrupt, click.Abort)),
    (1, "anything else, such as a full disk", (BaseException,)),
)
"""Code, meaning and error classes; the first row that fits an error counts."""

_SIGNAL_LINES: dict[type[BaseException], str] = {
    TerminatedError: "ended by SIGTERM",
    HangupError: "ended by SIGHUP",
}
_CODES: tuple[tuple[str, type[BaseException]], ...] = (
    ("usage", click.UsageError),
    ("terminated", TerminatedError),
    ("hangup", HangupError),
    ("interrupted", KeyboardInterrupt),
    ("interrupted", click.Abort),
    ("os_error", OSError),
    ("command_failed", click.ClickException),
    ("unexpected", BaseException),
)
"""Codes of the errors that are not the library's; the first that fits counts."""

EXIT_CODES_HELP = "\b\nExit codes:\n" + "\n".join(
    f"  {code:<5}{meaning}" for code, meaning, _ in sorted([(0, "success", ()), *EXIT_CODES])
)
"""The table as click prints it at the end of a help text."""


_json_wanted: ContextVar[bool] = ContextVar("json_wanted", default=False)


class CommandGroup(click.Group):
    """A group of commands that ends with one line and an exit code when there is an error."""

    command_class = Command

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run one command and end the process."""
        # Without a handler, logging would print warnings that the command words by itself.
        logging.getLogger("imagelabs_sdk").addHandler(logging.NullHandler())
        escape_unencodable()
        words = extra.get("args")
        _json_wanted.set(_wants_json(sys.argv[1:] if words is None else words))
        try:
            with signals_as_exceptions():
                code = super().main(*args, **{**extra, "standalone_mode": False})
        except Exception as error:  # noqa: BLE001 - a person gets a line; --debug, the traceback
            code = report_error(_signal_of(error))
        sys.exit(code)


def _wants_json(words: Sequence[str]) -> bool:
    """Return True if ``--json`` was typed, also in a line that click cannot parse."""
    return "--json" in itertools.takewhile(lambda word: word != "--", words)


def _signal_of(error: BaseException) -> BaseException:
    """Return the signal that click has turned into its `Abort`, or the error itself."""
    cause = error.__cause__
    return cause if isinstance(error, click.Abort) and cause is not None else error


def report_error(error: BaseException, *, hint: str = "", resumable: bool = True) -> int:
    """Explain an error on stderr and, with ``--json``, on stdout. Return its exit code.

    Args:
        error: What ended the command.
        hint: A second line, which says how to go on.
        resumable: False if the job ends with this command.
    """
    log.debug("traceback", exc_info=error)
    say("imagelabs: " + error_line(error, resumable=resumable))
    if hint:
        say(hint)
    if _json_wanted.get():
        with suppress(OSError):  # stdout may be what has failed
            print_result(to_json(failure_facts(error, hint=hint, resumable=resumable)))
    return exit_code(error)


def failure_facts(
    error: BaseException, *, hint: str = "", resumable: bool = True
) -> dict[str, Any]:
    """Return what ``--json`` prints about a failure: the same keys for each command and error."""
    cause = error.__cause__ if isinstance(error, click.UsageError) else error
    library = cause if isinstance(cause, ImageLabsError) else None
    return {
        "code": library.code if library else _code(error),
        "message": error_line(error, resumable=resumable),
        "task_id": library and library.task_id,
        "retryable": library.retryable if library else _usage_is_final(error),
        "hint": hint or None,
    }


def _usage_is_final(error: BaseException) -> bool | None:
    return False if isinstance(error, click.UsageError) else None


def _code(error: BaseException) -> str:
    return next(code for code, kind in _CODES if isinstance(error, kind))


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error."""
    return next(code for code, _, kinds in EXIT_CODES if isinstance(error, kinds))


def error_line(error: BaseException, *, resumable: bool = True) -> str:
    """Return the explanation of an error for a person.

    Args:
        error: What ended a job or the command.
        resumable: False if the job ends with this command.
    """
    return " ".join(_lines(error, resumable).splitlines())


def _lines(error: BaseException, resumable: bool) -> str:
    match error:
        case click.ClickException():
            return error.format_message() + _help_hint(error)
        case KeyboardInterrupt() | click.Abort():
            return _SIGNAL_LINES.get(type(error), "interrupted")
        case ImageLabsError():
            return _library_line(error, resumable)
        case OSError():
            return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def _library_line(error: ImageLabsError, resumable: bool) -> str:
    match error:
        case ChallengeError():
            return f"{error}; the command takes IMAGELABS_COOKIE and IMAGELABS_USER_AGENT"
        case JobTimeoutError() if not resumable:
            return f"the job was still running after {error.waited:.1f} s: give a longer --timeout"
        case InvalidRequestError():
            return option_message(error, click.get_current_context(silent=True))
    return str(error)


def _help_hint(error: click.ClickException) -> str:
    context: click.Context | None = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context else ""


@contextmanager
def exit_with_hint(
    hint: str, *kinds: type[BaseException], resumable: bool = True
) -> Iterator[None]:
    """End the command on errors of these kinds, with `hint` as a second line."""
    try:
        yield
    except kinds as error:
        code = report_error(error, hint=hint, resumable=resumable)
        raise click.exceptions.Exit(code) from error


@contextmanager
def require_extra(name: str) -> Iterator[None]:
    """Turn an `ImportError` into an error of the command that names the extra to install."""
    try:
        with needs_extra(name):
            yield
    except MissingExtraError as error:
        raise click.ClickException(str(error)) from error
