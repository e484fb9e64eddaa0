"""The command ``imagelabs``: from a prompt to an image, in a shell.

Results go to the standard output, everything said to a person goes to the standard error.
"""

import itertools
import json
import logging
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import attrs
import click
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

from . import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    ChallengeError,
    Deadline,
    DownloadError,
    GeneratedImage,
    ImageLabs,
    ImageLabsError,
    ImageRequest,
    InvalidRequestError,
    Job,
    JobFailedError,
    JobStalledError,
    JobTimeoutError,
    Progress,
    State,
    SubmissionUnknownError,
    __version__,
)
from .cli_batch import (
    BatchOptions,
    ItemResult,
    ProgressDisplay,
    Prompt,
    bring,
    read_prompts,
    summary,
)

__all__ = ["EXIT_CODES", "cli"]

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
"""Code, meaning and errors of each bad end; the first row that fits an error counts."""

_RESUMABLE = (
    KeyboardInterrupt,
    JobTimeoutError,
    JobStalledError,
    ChallengeError,
    DownloadError,
    InvalidRequestError,  # the folder has gone meanwhile
    OSError,
)
"""What may end a wait although the service keeps the job."""

_JOBS = 64  # of a batch at once
_WIDEST_STATE = 40  # columns of a terminal; the service's words may be far longer


# How a command ends -----------------------------------------------------------------------


class _Commands(click.Group):
    """The commands, and the one place where an error becomes a line and an exit code."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run one command and end the process."""
        # Without a handler warnings would appear by themselves; what they say is said here.
        logging.getLogger("imagelabs_sdk").addHandler(logging.NullHandler())
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except Exception as error:  # noqa: BLE001 - a person gets a line; --debug, the traceback
            code = _tell(error)
        sys.exit(code)


def _tell(error: BaseException) -> int:
    """Say in one line what went wrong. Answers the exit code."""
    log.debug("how it came to this", exc_info=error)
    _say("imagelabs: " + " ".join(_line(error).splitlines()))
    return _code(error)


def _code(error: BaseException) -> int:
    return next(code for code, _, kinds in EXIT_CODES if isinstance(error, kinds))


def _line(error: BaseException) -> str:
    match error:
        case click.ClickException():
            return error.format_message() + _where_to_read(error)
        case KeyboardInterrupt() | click.Abort():
            return "interrupted"
        case ChallengeError():
            return f"{error}; the command takes IMAGELABS_COOKIE and IMAGELABS_USER_AGENT"
        case ImageLabsError():
            return str(error)
        case OSError():
            return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def _where_to_read(error: click.ClickException) -> str:
    context: click.Context | None = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context else ""


def _say(line: str) -> None:
    """To a person; the standard output is kept for results."""
    click.echo(line, err=True)


@contextmanager
def _hinting(hint: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Errors of these kinds end the command with a second line that says how to go on."""
    try:
        yield
    except kinds as error:
        code = _tell(error)
        _say(hint)
        raise click.exceptions.Exit(code) from error


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Names the remedy when what is imported in here is not installed."""
    try:
        yield
    except ImportError as error:
        remedy = f'pip install "imagelabs_sdk[{name}]"'
        raise click.ClickException(f"{error}: {remedy}") from error


# Options that commands share --------------------------------------------------------------


@attrs.frozen(kw_only=True)
class CommonOptions:
    """How an image is to be brought.

    Attributes:
        output: The file; `None`: a name of our own in the working directory.
        base_url: The service's address; `None`: the environment's, or the default.
        embedded: Whether the built-in engine draws, in this process.
        timeout: Seconds for submit and wait together.
        poll_interval: Seconds between polls; `None`: the client's default.
        as_json: Whether the result is told as JSON.
    """

    output: Path | None
    base_url: str | None
    embedded: bool
    timeout: float
    poll_interval: float | None
    as_json: bool

    def client(self) -> ImageLabs:
        """A client for this errand; the caller closes it."""
        settings: dict[str, Any] = {"timeout": self.timeout, "poll_interval": self.poll_interval}
        if not self.embedded:
            return ImageLabs(self.base_url, **settings)
        with _extra("server"):
            from .embedded import embedded_client  # needs an extra that others do without
        return embedded_client(**settings)

    def or_into(self, stem: str) -> "CommonOptions":
        """The same, into a new file of the working directory if none was named."""
        return self if self.output else attrs.evolve(self, output=_writable(_unused(stem)))

    def resumption(self, task_id: str) -> str:
        """What a person can do when the image of this task was not brought."""
        if self.embedded:
            return "The built-in engine ends with this command: there is nothing to resume."
        words = ["-o", str(self.output)]
        words += ["--base-url", self.base_url] if self.base_url else []
        # A task id that looks like an option has to stand behind the end of the options.
        words = [*words, "--", task_id] if task_id.startswith("-") else [task_id, *words]
        program = click.get_current_context().find_root().info_name
        return f"To go on: {program} wait {shlex.join(words)}"


def _unused(stem: str) -> Path:
    """A name that no image here has yet. The extension comes with the image."""
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    names = itertools.chain([stem], numbered)
    return next(Path(name) for name in names if not any(Path().glob(f"{name}.*")))


def _writable(path: Path) -> Path:
    """Refuse, before its image is paid for, a file that could not be written.

    Raises:
        click.BadParameter: It is no plain file in a folder that exists.
        click.ClickException: The system does not let us write there.
    """
    # What the name becomes at most: a missing extension is added.
    longest = path.parent / (path.name if path.suffix else path.name + ".avif")
    try:
        plain = path.name not in ("", "-") and (path.is_file() or not path.exists())
        if not plain or not path.parent.is_dir():
            raise click.BadParameter(f"{str(path)!r} must be a file in a folder that exists")
        with suppress(FileNotFoundError):
            longest.lstat()  # tells a name that is too long
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def _check_output(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    return path and _writable(path)


def _check_sheet(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    if path and path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise click.BadParameter(f"{str(path)!r} must end in .png, .jpg or .webp")
    return path and _writable(path)


def _start_debugging(_: click.Context, __: click.Parameter, wanted: bool) -> None:
    if wanted:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("imagelabs_sdk").setLevel(logging.DEBUG)


def _size(text: str) -> tuple[int, int]:
    """Width and height in pixels, from ``512x768``."""
    found = re.fullmatch(r"([0-9]{1,5})[xX×]([0-9]{1,5})", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not like 1152x896")
    return int(found[1]), int(found[2])


_debug = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_start_debugging,
    help="Log to stderr and show tracebacks; no prompts, no cookies.",
)
_base_url = click.option(
    "--base-url", metavar="URL", help="Where the service is. [env var: IMAGELABS_BASE_URL]"
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_errand_options = (
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        type=click.Path(path_type=Path),
        callback=_check_output,
        help="Where the image goes; a missing extension is added. [default: a new file here]",
    ),
    _base_url,
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=300.0,
        show_default=True,
        envvar="IMAGELABS_TIMEOUT",
        show_envvar=True,
        help="How long to wait for an image.",
    ),
    click.option("--poll-interval", metavar="SECONDS", type=float, help="Time between polls."),
    _as_json,
    _debug,
)


def _with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of an errand; its first argument becomes the `CommonOptions`."""

    @wraps(command)
    def run(
        *,
        output: Path | None,
        base_url: str | None,
        timeout: float,
        poll_interval: float | None,
        as_json: bool,
        embedded: bool = False,
        **own: Any,
    ) -> None:
        errand = CommonOptions(
            output=output,
            base_url=base_url,
            embedded=embedded,
            timeout=timeout,
            poll_interval=poll_interval,
            as_json=as_json,
        )
        command(errand, **own)

    for option in reversed(_errand_options):
        run = option(run)
    return run


_file = click.Path(path_type=Path, dir_okay=False)
_batch_options = (
    click.option(
        "--batch",
        metavar="FILE",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Many images: one prompt a line, # begins a comment. Needs --out-dir.",
    ),
    click.option(
        "--out-dir",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where they go, as 0001.png and so on; made if it is missing.",
    ),
    click.option("--jobs", metavar="N", type=click.IntRange(1), help="At once. [default: 64]"),
    click.option(
        "--checkpoint",
        metavar="FILE",
        type=_file,
        help="Keep what was bought, for the same command again; holds the prompts.",
    ),
    click.option(
        "--contact-sheet",
        "sheet",
        metavar="FILE",
        type=_file,
        callback=_check_sheet,
        help="All images on one sheet; such as sheet.png.",
    ),
)


def _with_batch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of a batch; its keyword argument `plan` may be `None`."""

    @wraps(command)
    def run(
        errand: CommonOptions,
        *,
        batch: Path | None,
        out_dir: Path | None,
        jobs: int | None,
        checkpoint: Path | None,
        sheet: Path | None,
        **own: Any,
    ) -> None:
        given = {
            "--out-dir": out_dir,
            "--jobs": jobs,
            "--checkpoint": checkpoint,
            "--contact-sheet": sheet,
        }
        if batch is None:
            for name in (name for name, value in given.items() if value is not None):
                raise click.UsageError(f"{name} needs --batch.")
            command(errand, plan=None, **own)
            return
        if out_dir is None:
            raise click.UsageError("--batch needs --out-dir.")
        plan = BatchOptions(
            prompts=_prompts(batch),
            folder=out_dir,
            jobs=jobs or _JOBS,
            checkpoint=checkpoint,
            sheet=sheet,
        )
        command(errand, plan=plan, **own)

    for option in reversed(_batch_options):
        run = option(run)
    return run


def _prompts(path: Path) -> list[Prompt]:
    try:
        prompts = read_prompts(path)
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{str(path)!r} is no text in UTF-8") from error
    if not prompts:
        raise click.BadParameter(f"{str(path)!r} has no prompt in it")
    return prompts


# The commands -----------------------------------------------------------------------------

_GUIDE = """\
\b
Exit codes:
{codes}

\b
Environment:
  IMAGELABS_BASE_URL    address of the service
  IMAGELABS_TIMEOUT     seconds to wait for an image
  IMAGELABS_COOKIE      cookies of a browser that passed the service's check
  IMAGELABS_USER_AGENT  the user-agent of that browser
  IMAGELABS_PROXY       such as http://user:password@host:3128

\b
Example, without any service:
  imagelabs generate "a lighthouse" -o lighthouse.png --embedded
""".format(codes="\n".join(f"  {code:<5}{meaning}" for code, meaning, _ in sorted(EXIT_CODES)))


@click.group("imagelabs", cls=_Commands, epilog=_GUIDE, invoke_without_command=True)
@click.version_option(__version__, prog_name="imagelabs", message="%(prog)s %(version)s")
@_debug
@click.pass_context
def cli(context: click.Context) -> None:
    """Images from text, by the ImageLabs service."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(
    epilog="""\b
Example: imagelabs generate "a lighthouse" -o lighthouse.png --seed 7
Many:    imagelabs generate --batch prompts.txt --out-dir images --checkpoint run.jsonl
"""
)
@click.argument("prompt", required=False)
@click.option("--negative", metavar="TEXT", default="", help="What to keep out of the image.")
@click.option("--size", type=_size, metavar="WxH", help="In pixels. [default: 1152x896]")
@click.option("--aspect-ratio", metavar="W:H", help="Such as 16:9, instead of --size.")
@click.option("--seed", type=int, help="Start of the noise. [default: picked at random]")
@click.option("--embedded", is_flag=True, help="Draw here, with the built-in engine; no network.")
@click.option("--no-wait", is_flag=True, help="Print the task id and leave; wait brings it later.")
@_with_common_options
@_with_batch_options
def generate(
    errand: CommonOptions,
    *,
    prompt: str | None,
    negative: str,
    size: tuple[int, int] | None,
    aspect_ratio: str | None,
    seed: int | None,
    no_wait: bool,
    plan: BatchOptions | None,
) -> None:
    """Draw PROMPT, wait for the image and save it; with --batch, draw many.

    Prints the file's path. The seed that was used is told, too.
    """
    _check_together(errand, prompt, no_wait, plan)
    sides: dict[str, Any] = {} if size is None else {"width": size[0], "height": size[1]}
    options = {"negative_prompt": negative, "aspect_ratio": aspect_ratio, "seed": seed, **sides}
    if plan is None:
        _bring_one(errand, ImageRequest(prompt or "", **options).with_seeds(), no_wait)
    else:
        _bring_many(errand, [ImageRequest(each.text, **options) for each in plan.prompts], plan)


def _check_together(
    errand: CommonOptions, prompt: str | None, no_wait: bool, plan: BatchOptions | None
) -> None:
    if (prompt is None) is (plan is None):
        raise click.UsageError("Give either a PROMPT or --batch.")
    given = {
        "--no-wait": no_wait,
        "--base-url": errand.base_url,
        "--checkpoint": plan and plan.checkpoint,
        "--output": errand.output,
    }
    here = "--embedded draws in this process: it"
    for who, others in (
        (errand.embedded and here, ("--no-wait", "--base-url", "--checkpoint")),
        (plan and "--batch", ("--no-wait", "--output")),
    ):
        for other in others:
            if who and given[other]:
                raise click.UsageError(f"{who} does not go with {other}.")


def _bring_one(errand: CommonOptions, request: ImageRequest, no_wait: bool) -> None:
    errand = errand.or_into(f"imagelabs-{request.seed}")
    deadline = Deadline.after(errand.timeout)
    with errand.client() as client:
        job = _submit(client, request, errand)
        if no_wait:
            _hand_over(job, errand)
        else:
            _say(f"task {job.id}: accepted")
            _bring(job, errand, deadline)


@cli.command(
    short_help="Bring the image of a TASK that was submitted before.",
    epilog="Example: imagelabs wait 8f14e45fceea -o lighthouse.png",
)
@click.argument("task")
@_with_common_options
def wait(errand: CommonOptions, *, task: str) -> None:
    """Wait for the image of TASK, which was submitted before, and save it."""
    errand = errand.or_into(time.strftime("imagelabs-%Y%m%d-%H%M%S"))
    deadline = Deadline.after(errand.timeout)
    with errand.client() as client:
        _bring(client.get_job(task), errand, deadline)


@cli.command(epilog="Example: imagelabs status 8f14e45fceea --json")
@click.argument("task")
@_base_url
@_as_json
@_debug
def status(task: str, base_url: str | None, as_json: bool) -> None:
    """Poll once how TASK stands. A job that failed is an answer, too: exit code 0."""
    with ImageLabs(base_url) as client:
        progress = client.get_job(task).refresh()
    percent = None if progress.fraction is None else round(100 * progress.fraction, 1)
    facts = {"state": progress.state.value, "status": progress.status, "percent": percent}
    if as_json:
        click.echo(json.dumps({"task_id": task, **facts}))
    else:
        click.echo(_described(progress) + ("" if percent is None else f", {percent:g} %"))


@cli.command(
    short_help="Serve images over HTTP, as the service would.",
    epilog="Example: imagelabs serve --port 8000 --duration 2",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--duration",
    metavar="SECONDS",
    type=float,
    default=4.0,
    show_default=True,
    help="How long an image takes.",
)
@click.option(
    "--workers", metavar="N", type=int, default=2, show_default=True, help="Drawn at once."
)
@_debug
def serve(host: str, port: int, duration: float, workers: int) -> None:
    """Serve images of the built-in engine over HTTP, as the service would, until Ctrl-C."""
    with _extra("server"):
        # They need an extra that the other commands do without.
        from .server.app import App
        from .server.engines.landscape import LandscapeEngine
        from .server.http import serve as serve_http
    engine = LandscapeEngine(duration=duration, workers=workers)
    serve_http(App(engine), host=host, port=port, on_ready=_invite)
    _say("")  # a terminal has shown ^C and no end of line


def _invite(url: str) -> None:
    click.echo(f"Serving on {url} (Ctrl-C stops). In another terminal:")
    click.echo(f'  IMAGELABS_BASE_URL={url} imagelabs generate "a lighthouse" -o lighthouse.png')


# From a job to a file ---------------------------------------------------------------------


def _submit(client: ImageLabs, request: ImageRequest, errand: CommonOptions) -> Job:
    hint = "No task id had come yet: whether the service accepted the job is not known."
    with _hinting(hint, KeyboardInterrupt), _bar("submitting"):
        return client.submit(request, timeout=errand.timeout)


def _hand_over(job: Job, errand: CommonOptions) -> None:
    """Leave the job to a later command."""
    if errand.as_json:
        click.echo(json.dumps({"task_id": job.id, **_asked_for(job.request)}))
    else:
        click.echo(job.id)
    _say(errand.resumption(job.id))


def _bring(job: Job, errand: CommonOptions, deadline: Deadline) -> None:
    """Wait for the image, save it, and tell where it is."""
    assert errand.output is not None
    with _hinting(errand.resumption(job.id), *_RESUMABLE), _bar("waiting") as show:
        patience = deadline.remaining()
        image = job.result(timeout=patience, on_progress=show or _Lines(job.id))
        path = image.save(errand.output)
    if errand.as_json:
        click.echo(json.dumps(_facts(image, path)))
    else:
        click.echo(click.format_filename(path))
        _say(_summary(image))


def _facts(image: GeneratedImage, path: Path) -> dict[str, Any]:
    return {
        "path": str(path),
        "task_id": image.task_id,
        "url": image.url,
        **_asked_for(image.request),
        "timings": attrs.asdict(image.timings),
    }


def _asked_for(request: ImageRequest | None) -> dict[str, int | None]:
    """Seeds and size; all `None` when the job was submitted elsewhere."""
    return {name: getattr(request, name, None) for name in ("seed", "subseed", "width", "height")}


def _summary(image: GeneratedImage) -> str:
    request, seconds = image.request, f"{image.timings.total:.1f} s"
    if request is None:
        return seconds
    return f"seed {request.seed}, {request.width}x{request.height} pixels, {seconds}"


# From a file of prompts to a folder -------------------------------------------------------


def _bring_many(
    errand: CommonOptions, requests: Sequence[ImageRequest], plan: BatchOptions
) -> None:
    """Draw and save all, and tell what came of it. The first failure gives the exit code."""
    _check_room(plan)
    with errand.client() as client:
        endings = _endings(client, requests, errand, plan)
    _draw_sheet(endings, plan)
    failed = [(ending.index, _code(ending.error)) for ending in endings if ending.error]
    if failed:
        raise click.exceptions.Exit(min(failed)[1])


def _endings(
    client: ImageLabs, requests: Sequence[ImageRequest], errand: CommonOptions, plan: BatchOptions
) -> list[ItemResult]:
    """What came of each. If something ends them early it is told how to go on."""
    shown = ProgressDisplay(plan, _say, _bar_console())
    endings: list[ItemResult] = []
    in_hand: dict[int, Job | None] = {}
    batch = client.generate_many(
        requests, max_in_flight=plan.jobs, on_progress=shown.poll, checkpoint=plan.checkpoint
    )
    try:
        with shown, batch:
            for outcome in batch:
                in_hand = {outcome.index: outcome.job}
                endings.append(bring(outcome, plan))
                in_hand.clear()
                _print(endings[-1], plan, errand)
                shown.end(endings[-1])
    except (KeyboardInterrupt, OSError) as error:
        code, left = _tell(error), {**in_hand, **batch.unfinished}
        for line in (*summary(endings, plan, _line), *_resumptions(left, errand, plan)):
            _say(line)
        raise click.exceptions.Exit(code) from error
    for line in summary(endings, plan, _line):
        _say(line)
    return endings


def _check_room(plan: BatchOptions) -> None:
    """Refuse what could not be saved, or would replace an image, before anything is bought."""
    if plan.sheet is not None:
        with _extra("server"):
            from . import contact_sheet  # noqa: F401 - a package that is missing is said at once
    plan.folder.mkdir(parents=True, exist_ok=True)
    _writable(plan.stem(0))
    if plan.checkpoint is None or not plan.checkpoint.exists():
        for there in filter(None, map(plan.there, range(len(plan.prompts)))):
            raise click.UsageError(
                f"{str(there)!r} is there already: give the --checkpoint of the run that drew it, "
                "or another --out-dir."
            )


def _print(ending: ItemResult, plan: BatchOptions, errand: CommonOptions) -> None:
    """One result, on the standard output."""
    line = {"line": plan.prompts[ending.index].line}
    if ending.image is None or ending.path is None:
        if errand.as_json:
            error = ending.error
            click.echo(
                json.dumps({**line, "task_id": error and error.task_id, "error": str(error)})
            )
    elif errand.as_json:
        click.echo(json.dumps({**line, **_facts(ending.image, ending.path)}))
    else:
        click.echo(click.format_filename(ending.path))


def _resumptions(
    left: Mapping[int, Job | None], errand: CommonOptions, plan: BatchOptions
) -> Iterator[str]:
    """What a person can do about the jobs that go on at the service."""
    if plan.checkpoint:
        yield f"To go on: the same command again; {plan.checkpoint} knows what was bought."
    elif errand.embedded:
        yield errand.resumption("")
    else:
        for index, job in left.items():
            if job is not None:
                yield attrs.evolve(errand, output=plan.stem(index)).resumption(job.id)


def _draw_sheet(endings: Sequence[ItemResult], plan: BatchOptions) -> None:
    paths = {ending.index: ending.path for ending in endings if ending.path}
    if plan.sheet is None or not paths:
        return
    with _extra("server"):
        from .contact_sheet import Tile, draw_sheet  # needs an extra that others do without
    tiles = [
        Tile(paths[index], plan.stem(index).name, plan.prompts[index].text)
        for index in sorted(paths)
    ]
    draw_sheet(tiles).save(plan.sheet)
    _say(f"contact sheet: {plan.sheet}")


# What is seen meanwhile -------------------------------------------------------------------


@contextmanager
def _bar(word: str) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on the terminal, which begins with `word`, and what shows a poll in it.

    `None` where there is no terminal, or where the lines of a log would tear the bar apart.
    """
    console = _bar_console()
    if console is None:
        yield None
        return
    with Bar(*_columns(), console=console, transient=True) as bar:
        row = bar.add_task(word, total=None)
        yield lambda progress: bar.update(row, **_as_row(progress))


def _bar_console() -> Console | None:
    console = _console()
    return console if console.is_interactive and not log.isEnabledFor(logging.DEBUG) else None


def _console() -> Console:
    # Colours can be forced by the environment; redrawing into a file helps nobody.
    return Console(stderr=True, force_interactive=None if sys.stderr.isatty() else False)


def _columns() -> Iterator[ProgressColumn]:
    yield BarColumn()
    yield TaskProgressColumn("{task.percentage:>3.0f} %", " " * 5, markup=False)
    yield TimeElapsedColumn()
    # Last, so that its changing length moves nothing.
    words = Column(no_wrap=True, overflow="ellipsis", max_width=_WIDEST_STATE)
    yield TextColumn("{task.description}", markup=False, table_column=words)


def _as_row(progress: Progress) -> Mapping[str, Any]:
    """The fields of a bar. Without a fraction it keeps moving and gives no percentage."""
    fraction = 1.0 if progress.state is State.DONE else progress.fraction
    total = None if fraction is None else 1.0
    return {"description": _described(progress), "completed": fraction, "total": total}


@attrs.define
class _Lines:
    """Shows a job in plain lines, one per change of state.

    Attributes:
        task_id: Its name.
        state: The one shown last; `None` before the first.
    """

    task_id: str
    state: State | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.state is not self.state:
            self.state = progress.state
            _say(f"task {self.task_id}: {_described(progress)}")


def _described(progress: Progress) -> str:
    """Our reading, and the service's own word where it says more."""
    state, word = progress.state.value, progress.status
    return state if word.lower() in ("", state) else f"{state} ({word})"
