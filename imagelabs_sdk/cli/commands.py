"""The commands: what a person types, checked and passed on."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import ImageRequest, __version__
from .batch import generate_batch
from .doctor import doctor
from .engines import pull
from .exits import EXIT_CODES_HELP, CommandGroup
from .fields import override, parse_label, with_request_options
from .files import unused_name
from .items import BatchItem, plan_items
from .jobs import jobs
from .options import (
    BatchOptions,
    CommonOptions,
    as_json_option,
    base_url_option,
    debug_option,
    header_option,
    with_batch_options,
    with_common_options,
)
from .output import describe_progress, print_result, to_json
from .prompts import Row, read_rows
from .runtime import current_runtime
from .serve import serve
from .show import fields_of_image, show
from .single import generate_one, wait_for_one

__all__ = ["cli"]

_GUIDE = f"""\
{EXIT_CODES_HELP}

\b
Environment:
  IMAGELABS_BASE_URL    address of the service
  IMAGELABS_TIMEOUT     seconds to wait for an image
  IMAGELABS_API_KEY     key of a service that asks for one
  IMAGELABS_COOKIE      cookies of a browser that passed the service's check
  IMAGELABS_USER_AGENT  the user-agent of that browser
  IMAGELABS_PROXY       such as http://user:password@host:3128
  IMAGELABS_LEDGER      file that keeps each job, for imagelabs jobs
  IMAGELABS_LOG         debug or info: show the log

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
@with_request_options
@click.option(
    "--like",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Take prompt, size and seeds from an image; other options win.",
)
@click.option(
    "--label",
    "labels",
    metavar="KEY=VALUE",
    type=parse_label,
    multiple=True,
    help="A label of yours for the job, which is not sent; may be repeated. See --json, jobs.",
)
@click.option("--embedded", is_flag=True, help="Render here, with the built-in engine; no network.")
@click.option("--no-wait", is_flag=True, help="Print the task id and exit; see imagelabs wait.")
@with_common_options
@with_batch_options
def generate(
    common: CommonOptions,
    *,
    prompt: str | None,
    fields: Mapping[str, Any],
    like: Path | None,
    labels: Sequence[tuple[str, str]],
    no_wait: bool,
    batch: BatchOptions | None,
) -> None:
    """Generate the image of PROMPT and save it; with --batch or -n, generate many.

    Prints the file's path on stdout, and the seeds that were used on stderr.
    """
    if like is not None:
        in_file = fields_of_image(like, "x" if batch and batch.source else prompt)
        found = in_file.pop("prompt")
        prompt = None if batch and batch.source else found
        fields = override(in_file, fields)
    _check_combination(common, prompt, no_wait, batch)
    if batch is None:
        request = ImageRequest(prompt or "", **fields)
        generate_one(request, common, no_wait=no_wait, labels=dict(labels))
    else:
        generate_batch(_items(prompt, fields, dict(labels), common, batch), common, batch)


def _items(
    prompt: str | None,
    fields: Mapping[str, Any],
    labels: Mapping[str, str],
    common: CommonOptions,
    batch: BatchOptions,
) -> list[BatchItem]:
    rows = [Row(None, {"prompt": prompt})] if batch.source is None else read_rows(batch.source)
    if batch.folder is not None:
        stem, numbered = batch.folder, True
    else:
        name = common.output or unused_name(time.strftime("imagelabs-%Y%m%d-%H%M%S"))
        stem, numbered = name.with_suffix("") if common.output else name, False
    return plan_items(rows, fields, labels, count=batch.count, stem=stem, numbered=numbered)


def _check_combination(
    common: CommonOptions, prompt: str | None, no_wait: bool, batch: BatchOptions | None
) -> None:
    if (prompt is None) is not bool(batch and batch.source):
        raise click.UsageError("Give either a PROMPT or --batch.")
    given = {
        "--no-wait": no_wait,
        "--base-url": _is_typed("base_url"),
        "--checkpoint": batch and batch.checkpoint,
        "--output": common.output,
        "--json": common.as_json,
        "-n": batch,
    }
    embedded = common.embedded and "--embedded renders in this process: it"
    for subject, others in (
        (embedded, ("--no-wait", "--base-url", "--checkpoint")),
        (batch and ((batch.source and "--batch") or "-n"), ("--no-wait",)),
        (batch and batch.folder and "--out-dir", ("--output",)),
        (common.to_stdout and "--output -", ("--json", "--no-wait", "-n")),
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
@header_option
@as_json_option
@debug_option
def status(
    task: str, base_url: str | None, header: Sequence[tuple[str, str]], as_json: bool
) -> None:
    """Poll TASK once and print its state. A failed job is an answer, too: exit code 0."""
    with current_runtime().make_client(base_url, headers=dict(header) or None) as client:
        progress = client.get_job(task).refresh()
    percent = None if progress.fraction is None else round(100 * progress.fraction, 1)
    facts = {"state": progress.state.value, "status": progress.status, "percent": percent}
    shown = "" if percent is None else f", {percent:g} %"
    line = describe_progress(progress) + shown
    print_result(to_json({"task_id": task, **facts}) if as_json else line)


cli.add_command(serve)
cli.add_command(doctor)
cli.add_command(jobs)
cli.add_command(show)
cli.add_command(pull)
