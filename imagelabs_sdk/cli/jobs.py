"""``imagelabs jobs``: what the ledger knows, and the images that are missing."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from .. import ImageLabsError, Ledger, LedgerEntry
from .display import show_job
from .exits import error_line, exit_code, failure_facts
from .files import unused_name
from .option_names import Command
from .options import FILE, FOLDER, as_json_option, debug_option, timeout_option
from .output import image_facts, print_result, say, to_json
from .runtime import current_runtime

__all__ = ["jobs"]

_STATES = {"sending": "unknown", "accepted": "unfinished"}  # in the words of a person


@click.command(
    cls=Command,
    short_help="List the jobs of the ledger, or bring what is missing.",
    epilog="Example: imagelabs jobs --resume --out-dir images",
)
@click.option(
    "--ledger",
    type=FILE,
    envvar="IMAGELABS_LEDGER",
    show_envvar=True,
    help="The file that clients with the same setting write.",
)
@click.option("--resume", is_flag=True, help="Wait for the unfinished jobs and save their images.")
@click.option(
    "--out-dir",
    metavar="DIR",
    type=FOLDER,
    default=".",
    show_default=True,
    help="Folder for these images; created if it is missing.",
)
@timeout_option
@as_json_option
@debug_option
def jobs(
    ledger: Path | None, *, resume: bool, out_dir: Path, timeout: float, as_json: bool
) -> None:
    """List the jobs that programs with a ledger have submitted, the unfinished ones first.

    "unfinished": the service has the job. "unknown": the program was killed while it submitted;
    nobody knows if the service accepted it.
    """
    if ledger is None:
        raise click.UsageError("Give --ledger FILE, or set IMAGELABS_LEDGER.")
    if not ledger.exists():  # perhaps mistyped, perhaps nothing was submitted yet
        say(f"{str(ledger)!r} does not exist: no client has recorded a job there")
    entries = Ledger(ledger).entries()
    if resume:
        left = [entry for entry in entries if entry.unfinished and entry.task_id is not None]
        _resume(left, ledger, _Target(out_dir, timeout, as_json))
        return
    for entry in entries:
        print_result(to_json(_facts(entry)) if as_json else _line(entry))


def _facts(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "state": _STATES.get(entry.state, entry.state),
        "task_id": entry.task_id,
        "base_url": entry.base_url,
        "submitted_at": entry.submitted_at,
        "prompt": entry.request and entry.request.prompt,
        "message": entry.message,
        "metadata": dict(entry.metadata),
    }


def _line(entry: LedgerEntry) -> str:
    state = _STATES.get(entry.state, entry.state)
    words = entry.message or (entry.request.prompt if entry.request else "")
    labels = " ".join(f"{name}={value}" for name, value in entry.metadata.items())
    place = f"{entry.task_id or '-'}  {entry.base_url}"
    return f"{state:<11}{_moment(entry, '%Y-%m-%d %H:%M:%S')}  {place}  {words}  {labels}".rstrip()


def _moment(entry: LedgerEntry, form: str) -> str:
    return time.strftime(form, time.localtime(entry.submitted_at))


@attrs.frozen
class _Target:
    """Where images go, and how."""

    folder: Path
    timeout: float
    as_json: bool


def _resume(entries: Sequence[LedgerEntry], ledger: Path, target: _Target) -> None:
    """Save the images of all entries. The exit code is that of the first failure."""
    target.folder.mkdir(parents=True, exist_ok=True)
    codes = []
    for entry in entries:
        try:
            facts, path = _save(entry, ledger, target)
        except ImageLabsError as error:
            codes.append(exit_code(error))
            say(f"task {entry.task_id}: {error_line(error)}")
            if target.as_json:
                print_result(to_json(failure_facts(error)))
        else:
            print_result(to_json(facts) if target.as_json else str(path))
    say(f"{len(entries) - len(codes)} of {len(entries)} unfinished jobs saved")
    if codes:
        raise click.exceptions.Exit(codes[0])


def _save(entry: LedgerEntry, ledger: Path, target: _Target) -> tuple[dict[str, Any], Path]:
    make = current_runtime().make_client
    with make(entry.base_url, timeout=target.timeout, ledger=os.fspath(ledger)) as client:
        job = client.job_from_dict(entry.to_dict())
        with show_job("waiting", job.id) as show:
            image = job.result(on_progress=show)
            name = unused_name(_moment(entry, "imagelabs-%Y%m%d-%H%M%S"), target.folder)
            path = image.save(name)
    return image_facts(image, path), path
