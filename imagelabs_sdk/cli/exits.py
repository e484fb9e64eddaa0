"""How a command ends: an exit code for each kind of error, and one line that explains it."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from click.core import ParameterSource

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
    NotSupportedError,
    SubmissionUnknownError,
)
from .output import escape_unencodable, say
from .signals import HangupError, TerminatedError, signals_as_exceptions

__all__ = [
    "EXIT_CODES",
    "EXIT_CODES_HELP",
    "Command",
    "CommandGroup",
    "error_line",
    "exit_code",
    "exit_with_hint",
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
    (3, "the service cannot be reached", (APIConnectionError, JobStalledError)),
    (4, "the service refused, or its answer cannot be used", (APIStatusError, APIResponseError)),
    (5, "the job may or may not have been accepted", (SubmissionUnknownError,)),
    (6, "the job failed", (JobFailedError,)),
    (7, "the job was still running when --timeout was over", (JobTimeoutError,)),
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
_TYPED = "imagelabs_sdk.typed"  # where a context keeps the words that were typed
_PARAMETERS = {
    "width": ("width", "size"),
    "height": ("height", "size"),
    "extra_body": ("extra",),
    "interval": ("poll_interval",),
    "max_in_flight": ("jobs",),
    "path": ("output", "out_dir"),
    "task_id": ("task",),
}
"""Parameters of commands that give a field of the library its value; else the one of its name."""
_VARIABLES = {
    "cookies": "IMAGELABS_COOKIE",
    "headers": "IMAGELABS_USER_AGENT",
    "proxy": "IMAGELABS_PROXY",
}
"""Variables of the environment that the library reads by itself."""

EXIT_CODES_HELP = "\b\nExit codes:\n" + "\n".join(
    f"  {code:<5}{meaning}" for code, meaning, _ in sorted([(0, "success", ()), *EXIT_CODES])
)
"""The table as click prints it at the end of a help text."""


class Command(click.Command):
    """A command whose errors name the option that the user typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words that were typed."""
        ctx.meta[_TYPED] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except InvalidRequestError as error:
            raise click.UsageError(_option_message(error, ctx), ctx) from error


class CommandGroup(click.Group):
    """A group of commands that ends with one line and an exit code when there is an error."""

    command_class = Command

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run one command and end the process."""
        # Without a handler, logging would print warnings that the command words by itself.
        logging.getLogger("imagelabs_sdk").addHandler(logging.NullHandler())
        escape_unencodable()
        try:
            with signals_as_exceptions():
                code = super().main(*args, **{**extra, "standalone_mode": False})
        except Exception as error:  # noqa: BLE001 - a person gets a line; --debug, the traceback
            code = report_error(_signal_of(error))
        sys.exit(code)


def _signal_of(error: BaseException) -> BaseException:
    """Return the signal that click has turned into its `Abort`, or the error itself."""
    cause = error.__cause__
    return cause if isinstance(error, click.Abort) and cause is not None else error


def report_error(error: BaseException, *, resumable: bool = True) -> int:
    """Explain an error in one line on stderr. Return its exit code."""
    log.debug("traceback", exc_info=error)
    say("imagelabs: " + " ".join(error_line(error, resumable=resumable).splitlines()))
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error."""
    return next(code for code, _, kinds in EXIT_CODES if isinstance(error, kinds))


def error_line(error: BaseException, *, resumable: bool = True) -> str:
    """Return what a person is told about an error.

    Args:
        error: What ended a job or the command.
        resumable: False if the job ends with this command.
    """
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
            return _option_message(error, click.get_current_context(silent=True))
    return str(error)


def _help_hint(error: click.ClickException) -> str:
    context: click.Context | None = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context else ""


# An option for a field ----------------------------------------------------------------------


def _option_message(error: InvalidRequestError, ctx: click.Context | None) -> str:
    """Return the error's message, with the option that was typed instead of the field's name."""
    name = ctx and _typed_name(error.field, ctx)
    if not name:
        return str(error)
    same = name.lstrip("-").replace("-", "_").lower() in (error.field, "negative")
    return name + str(error).removeprefix(error.field) if same else f"{name}: {error}"


def _typed_name(field: str, ctx: click.Context) -> str | None:
    """Return the option, argument or variable that gave a field its value, if one did."""
    wanted = _PARAMETERS.get(field, (field,))
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        if param.name not in wanted or source is ParameterSource.DEFAULT:
            continue
        if source is ParameterSource.ENVIRONMENT:
            return str(param.envvar)
        return _typed_option(param, ctx)
    variable = _VARIABLES.get(field, "")
    return variable if os.environ.get(variable) else None


def _typed_option(param: click.Parameter, ctx: click.Context) -> str:
    if isinstance(param, click.Argument):
        return param.human_readable_name
    words = [word.partition("=")[0] for word in ctx.meta.get(_TYPED, ())]
    return next((name for name in param.opts if name in words), param.opts[-1])


@contextmanager
def exit_with_hint(
    hint: str, *kinds: type[BaseException], resumable: bool = True
) -> Iterator[None]:
    """End the command on errors of these kinds, with `hint` as a second line."""
    try:
        yield
    except kinds as error:
        code = report_error(error, resumable=resumable)
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
