"""Options that commands share, and the values that they become."""

import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import attrs
import click

from .. import Adaptive, ImageLabs
from .files import check_writable, unused_name
from .runtime import current_runtime

__all__ = [
    "FILE",
    "FOLDER",
    "BatchOptions",
    "CommonOptions",
    "as_json_option",
    "base_url_option",
    "debug_option",
    "header_option",
    "parse_header",
    "timeout_option",
    "with_batch_options",
    "with_common_options",
]

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
_IN_FLIGHT = 64  # jobs of a batch at once, by default
_WATCHED_INTERVAL = 1.0  # seconds; the reference client polls as often
_STDOUT = Path("-")
_SECRET_HEADERS = {
    "authorization": "IMAGELABS_API_KEY",
    "cookie": "IMAGELABS_COOKIE",
    "proxy-authorization": "IMAGELABS_PROXY",
}
"""Headers that carry secrets, and the variable to use instead."""


@attrs.frozen(kw_only=True)
class CommonOptions:
    """How to get an image.

    Attributes:
        output: The file to write; ``-``: stdout. `None`: a new name in the working directory.
        base_url: The service's address. `None`: from the environment, or the default.
        embedded: True if the built-in engine renders in this process.
        timeout: Seconds for submit and wait together.
        poll_interval: Seconds between polls. `None`: the client's default.
        headers: Sent with each request besides, or instead of, the default ones.
        as_json: True if results are printed as JSON.
        cancel_on_interrupt: True to cancel at the service what Ctrl-C leaves unfinished.
        preview: True to draw the image in the terminal while it is rendered.
    """

    output: Path | None
    base_url: str | None
    embedded: bool
    timeout: float
    poll_interval: float | None
    headers: Mapping[str, str]
    as_json: bool
    cancel_on_interrupt: bool = False
    preview: bool = False

    def make_client(self, *, one_job: bool = False) -> ImageLabs:
        """Return a client for these options; the caller closes it.

        Args:
            one_job: True to poll often enough for a person who watches a bar, if there is one.
        """
        runtime = current_runtime()
        settings: dict[str, Any] = {"timeout": self.timeout, "poll_interval": self.poll_interval}
        if self.embedded:
            return runtime.make_embedded_client(**settings)
        if self.headers:
            settings["headers"] = self.headers
        if one_job and self.poll_interval is None and runtime.bar_console() is not None:
            settings["polling"] = Adaptive(maximum=_WATCHED_INTERVAL, long_polls=True)
        return runtime.make_client(self.base_url, **settings)

    @property
    def to_stdout(self) -> bool:
        """True if the image itself goes to stdout."""
        return self.output == _STDOUT

    def with_output(self, stem: str) -> "CommonOptions":
        """Return these options with an output file: a new one named `stem` if none was given."""
        if self.output:
            return self
        return attrs.evolve(self, output=check_writable(unused_name(stem)))

    def resume_hint(self, task_id: str) -> str:
        """Return how to get the image of an accepted job with another command."""
        if self.embedded:
            return "The built-in engine ends with this command: there is nothing to resume."
        words = ["-o", str(self.output)]
        words += ["--base-url", self.base_url] if self.base_url else []
        # A task id that looks like an option has to stand behind the end of the options.
        words = [*words, "--", task_id] if task_id.startswith("-") else [task_id, *words]
        program = click.get_current_context().find_root().info_name
        return f"To resume: {program} wait {shlex.join(words)}"


@attrs.frozen(kw_only=True)
class BatchOptions:
    """How to generate many images.

    Attributes:
        source: The file of prompts; ``-``: stdin. `None`: one prompt, from the command line.
        folder: Where the images go. `None`: the name of `CommonOptions.output`, with numbers.
        count: Images of each prompt.
        max_in_flight: How many jobs run at once.
        checkpoint: The file that keeps what was bought for the next run. `None`: none.
        unknown: What to do with prompts that an earlier run was submitting when it ended.
        sheet: The file of the contact sheet. `None`: none.
    """

    source: Path | None
    folder: Path | None
    count: int
    max_in_flight: int
    checkpoint: Path | None
    unknown: Literal["skip", "retry"]
    sheet: Path | None


def parse_header(text: str) -> tuple[str, str]:
    """Return name and value of a text such as ``X-Team: blue``.

    Raises:
        click.BadParameter: It is not like that, or it would show a secret in the list of processes.
    """
    name, colon, value = text.partition(":")
    remedy = _SECRET_HEADERS.get(name.strip().lower())
    if remedy:
        raise click.BadParameter(f"every user sees the command line: set {remedy} instead")
    if not colon:
        raise click.BadParameter("it is not like 'NAME: VALUE'")
    return name.strip(), value.strip()


def _check_output(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    if path == _STDOUT:
        if sys.stdout is not None and sys.stdout.isatty():
            raise click.BadParameter("an image does not belong on a terminal: redirect stdout")
        return path
    return path and check_writable(path)


def _check_sheet(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    if path and path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise click.BadParameter(f"{str(path)!r} must end in .png, .jpg or .webp")
    return path


def _start_debugging(_: click.Context, __: click.Parameter, wanted: bool) -> None:
    if wanted:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("imagelabs_sdk").setLevel(logging.DEBUG)


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_start_debugging,
    help="Log to stderr and show tracebacks; no prompts, no cookies.",
)
base_url_option = click.option(
    "--base-url",
    metavar="URL",
    envvar="IMAGELABS_BASE_URL",
    show_envvar=True,
    help="Address of the service.",
)
header_option = click.option(
    "--header",
    metavar="'NAME: VALUE'",
    type=parse_header,
    multiple=True,
    help="A header of each request to the service; may be repeated. Not for secrets.",
)
as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a result."
)
timeout_option = click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    default=300.0,
    show_default=True,
    envvar="IMAGELABS_TIMEOUT",
    show_envvar=True,
    help="How long to wait for an image.",
)
_common_options = (
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        type=click.Path(path_type=Path),
        callback=_check_output,
        help="File to write; a missing extension is added; - is stdout. [default: a new file here]",
    ),
    base_url_option,
    timeout_option,
    click.option("--poll-interval", metavar="SECONDS", type=float, help="Time between polls."),
    click.option(
        "--cancel-on-interrupt",
        is_flag=True,
        help="On Ctrl-C or SIGTERM, cancel at the service what is unfinished, if it can.",
    ),
    click.option(
        "--preview",
        is_flag=True,
        help="Draw the image in the terminal while it is rendered. Needs Pillow.",
    ),
    header_option,
    as_json_option,
    debug_option,
)


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the common options to a command; its first argument becomes a `CommonOptions`."""

    @wraps(command)
    def run(
        *,
        output: Path | None,
        base_url: str | None,
        timeout: float,
        poll_interval: float | None,
        header: Sequence[tuple[str, str]],
        as_json: bool,
        cancel_on_interrupt: bool,
        preview: bool,
        embedded: bool = False,
        **own: Any,
    ) -> None:
        options = CommonOptions(
            output=output,
            base_url=base_url,
            embedded=embedded,
            timeout=timeout,
            poll_interval=poll_interval,
            headers=dict(header),
            as_json=as_json,
            cancel_on_interrupt=cancel_on_interrupt,
            preview=preview,
        )
        command(options, **own)

    for option in reversed(_common_options):
        run = option(run)
    return run


_batch_options = (
    click.option(
        "--batch",
        metavar="FILE",
        type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
        help="Draw many images: a prompt, or a JSON object with the fields of a request, on each "
        "line; # begins a comment; - is stdin. Needs --out-dir.",
    ),
    click.option(
        "-n",
        "count",
        metavar="N",
        type=click.IntRange(1, 1000),
        help="Images of each prompt, with different seeds. [default: 1]",
    ),
    click.option(
        "--out-dir",
        metavar="DIR",
        type=FOLDER,
        help="Folder for the images 0001.png, 0002.png, ...; created if it is missing.",
    ),
    click.option(
        "--jobs",
        metavar="N",
        type=click.IntRange(1),
        help=f"How many jobs run at once. [default: {_IN_FLIGHT}]",
    ),
    click.option(
        "--checkpoint",
        type=FILE,
        help="Keep what was bought, so that the same command can resume; holds the prompts.",
    ),
    click.option(
        "--unknown",
        type=click.Choice(["skip", "retry"]),
        help="What to do with a prompt that the last run was submitting when it ended, so that "
        "it may have been accepted: retry may buy its image twice, except from a service that "
        "takes idempotency keys. [default: skip]",
    ),
    click.option(
        "--contact-sheet",
        "sheet",
        type=FILE,
        callback=_check_sheet,
        help="Also draw all images on one sheet, such as sheet.png.",
    ),
)


def with_batch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a batch; the keyword argument `batch` becomes a `BatchOptions` or None."""

    @wraps(command)
    def run(
        *args: Any,
        batch: Path | None,
        count: int | None,
        out_dir: Path | None,
        jobs: int | None,
        checkpoint: Path | None,
        unknown: Literal["skip", "retry"] | None,
        sheet: Path | None,
        **own: Any,
    ) -> None:
        given = {
            "--out-dir": out_dir,
            "--jobs": jobs,
            "--checkpoint": checkpoint,
            "--contact-sheet": sheet,
        }
        if batch is None and count is None:
            for name in (name for name, value in given.items() if value is not None):
                raise click.UsageError(f"{name} needs --batch or -n.")
            command(*args, batch=None, **own)
            return
        if batch is not None and out_dir is None:
            raise click.UsageError("--batch needs --out-dir.")
        if unknown is not None and checkpoint is None:
            raise click.UsageError("--unknown needs --checkpoint.")
        options = BatchOptions(
            source=batch,
            folder=out_dir,
            count=count or 1,
            max_in_flight=jobs or _IN_FLIGHT,
            checkpoint=checkpoint,
            unknown=unknown or "skip",
            sheet=sheet,
        )
        command(*args, batch=options, **own)

    for option in reversed(_batch_options):
        run = option(run)
    return run
