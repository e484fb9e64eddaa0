"""The commands: what a person types, checked and passed on."""

from typing import Any

import click
from click.core import ParameterSource

from .. import ImageRequest, __version__
from .batch import generate_batch
from .exits import EXIT_CODES_HELP, CommandGroup
from .options import (
    BatchOptions,
    CommonOptions,
    as_json_option,
    base_url_option,
    debug_option,
    parse_size,
    with_batch_options,
    with_common_options,
)
from .output import describe_progress, print_result, to_json
from .runtime import current_runtime
from .serve import serve
from .single import generate_one, wait_for_one

__all__ = ["cli"]

_GUIDE = f"""\
{EXIT_CODES_HELP}

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
"""

_GENERATE_GUIDE = f"""\
\b
Example: imagelabs generate "a lighthouse" -o lighthouse.png --seed 7
Many:    imagelabs generate --batch prompts.txt --out-dir images --checkpoint run.jsonl

{EXIT_CODES_HELP}
"""


@click.group("imagelabs", cls=CommandGroup, epilog=_GUIDE, invoke_without_command=True)
@click.version_option(__version__, prog_name="imagelabs", message="%(prog)s %(version)s")
@debug_option
@click.pass_context
def cli(context: click.Context) -> None:
    """Generate images from text with the ImageLabs service."""
    if context.invoked_subcommand is None:
        print_result(context.get_help())


@cli.command(epilog=_GENERATE_GUIDE)
@click.argument("prompt", required=False)
@click.option(
    "--negative-prompt",
    "--negative",
    metavar="TEXT",
    default="",
    help="What to keep out of the image.",
)
@click.option("--width", metavar="PIXELS", type=int, help="[default: 1152]")
@click.option("--height", metavar="PIXELS", type=int, help="[default: 896]")
@click.option("--size", type=parse_size, metavar="WxH", help="Width and height, such as 512x768.")
@click.option("--aspect-ratio", metavar="W:H", help="Such as 16:9, instead of width and height.")
@click.option("--seed", type=int, help="Start of the noise. [default: picked at random]")
@click.option("--embedded", is_flag=True, help="Render here, with the built-in engine; no network.")
@click.option("--no-wait", is_flag=True, help="Print the task id and exit; see imagelabs wait.")
@with_common_options
@with_batch_options
def generate(
    common: CommonOptions,
    *,
    prompt: str | None,
    negative_prompt: str,
    width: int | None,
    height: int | None,
    size: tuple[int, int] | None,
    aspect_ratio: str | None,
    seed: int | None,
    no_wait: bool,
    batch: BatchOptions | None,
) -> None:
    """Generate the image of PROMPT and save it; with --batch, generate many.

    Prints the file's path on stdout, and the seed that was used on stderr.
    """
    _check_combination(common, prompt, no_wait, batch)
    fields: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "aspect_ratio": aspect_ratio,
        "seed": seed,
        **_sides(size, width, height),
    }
    if batch is None:
        generate_one(ImageRequest(prompt or "", **fields), common, no_wait=no_wait)
    else:
        requests = [ImageRequest(each.text, **fields) for each in batch.prompts]
        generate_batch(requests, common, batch)


def _sides(size: tuple[int, int] | None, width: int | None, height: int | None) -> dict[str, int]:
    """Return the sides that were given, under the names of the request's fields."""
    if size is None:
        return {name: side for name, side in _named_sides(width, height) if side is not None}
    for name, side in _named_sides(width, height):
        if side is not None:
            raise click.UsageError(f"Give either --size or --{name}.")
    return {"width": size[0], "height": size[1]}


def _named_sides(width: int | None, height: int | None) -> tuple[tuple[str, int | None], ...]:
    return ("width", width), ("height", height)


def _check_combination(
    common: CommonOptions, prompt: str | None, no_wait: bool, batch: BatchOptions | None
) -> None:
    if (prompt is None) is (batch is None):
        raise click.UsageError("Give either a PROMPT or --batch.")
    given = {
        "--no-wait": no_wait,
        "--base-url": _is_typed("base_url"),
        "--checkpoint": batch and batch.checkpoint,
        "--output": common.output,
        "--json": common.as_json,
    }
    embedded = common.embedded and "--embedded renders in this process: it"
    for subject, others in (
        (embedded, ("--no-wait", "--base-url", "--checkpoint")),
        (batch and "--batch", ("--no-wait", "--output")),
        (common.to_stdout and "--output -", ("--json", "--no-wait")),
    ):
        for other in others:
            if subject and given[other]:
                raise click.UsageError(f"{subject} does not go with {other}.")


def _is_typed(name: str) -> bool:
    """Return True if an option was given on the command line, not by the environment."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


@cli.command(
    short_help="Save the image of a TASK that was submitted before.",
    epilog="Example: imagelabs wait 8f14e45fceea -o lighthouse.png",
)
@click.argument("task")
@with_common_options
def wait(common: CommonOptions, *, task: str) -> None:
    """Wait for the image of TASK, which was submitted before, and save it."""
    if common.to_stdout and common.as_json:
        raise click.UsageError("--output - does not go with --json.")
    wait_for_one(task, common)


@cli.command(epilog="Example: imagelabs status 8f14e45fceea --json")
@click.argument("task")
@base_url_option
@as_json_option
@debug_option
def status(task: str, base_url: str | None, as_json: bool) -> None:
    """Poll TASK once and print its state. A failed job is an answer, too: exit code 0."""
    with current_runtime().make_client(base_url) as client:
        progress = client.get_job(task).refresh()
    percent = None if progress.fraction is None else round(100 * progress.fraction, 1)
    facts = {"state": progress.state.value, "status": progress.status, "percent": percent}
    shown = "" if percent is None else f", {percent:g} %"
    line = describe_progress(progress) + shown
    print_result(to_json({"task_id": task, **facts}) if as_json else line)


cli.add_command(serve)
