"""Many images: from a list of items to files, with one report for all."""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import click

from .. import GeneratedImage, ImageLabs, ImageLabsError, Job, Outcome, SubmissionUnknownError
from .display import ProgressDisplay
from .exits import error_line, exit_code, failure_facts, report_error, require_extra
from .files import check_writable
from .interrupts import cancel_jobs
from .items import BatchItem, check_not_overwritten
from .options import BatchOptions, CommonOptions
from .output import image_facts, print_result, say, to_json

__all__ = ["ItemResult", "generate_batch", "save_outcome"]

_MAX_PLACES = 20  # in one line


@attrs.frozen
class ItemResult:
    """What became of one item.

    Attributes:
        index: Its place among the items.
        error: Why there is no image. `None`: there is one.
        image: `None` if there is none.
        path: Where it is. `None` if there is none.
        new: True if this run has saved it.
    """

    index: int
    error: ImageLabsError | None = None
    image: GeneratedImage | None = None
    path: Path | None = None
    new: bool = False


def generate_batch(items: Sequence[BatchItem], options: CommonOptions, batch: BatchOptions) -> None:
    """Draw and save all images. The exit code is that of the first failure in the file."""
    _check_files(items, batch)
    with options.make_client() as client:
        results = _run(client, items, options, batch)
    _save_contact_sheet(results, items, batch)
    failed = [(result.index, exit_code(result.error)) for result in results if result.error]
    if failed:
        raise click.exceptions.Exit(min(failed)[1])


def save_outcome(outcome: Outcome, item: BatchItem) -> ItemResult:
    """Save the image of an outcome, unless an earlier run has saved it.

    Raises:
        OSError: The image cannot be written.
    """
    image = outcome.result
    if image is None:
        return ItemResult(outcome.index, outcome.error)
    saved = item.saved_path() if outcome.saved else None
    if saved is not None:
        return ItemResult(outcome.index, None, image, saved)
    try:
        path = image.save(item.stem)
    except ImageLabsError as error:
        return ItemResult(outcome.index, error)
    return ItemResult(outcome.index, None, image, path, new=True)


def _check_files(items: Sequence[BatchItem], batch: BatchOptions) -> None:
    """Refuse, before anything is bought, what could not be saved or would replace a file."""
    inputs = {"--batch": batch.source, "--checkpoint": batch.checkpoint}
    if batch.sheet is not None:
        with require_extra("server"):
            from . import contact_sheet  # noqa: F401 - a missing package is reported before paying
        check_not_overwritten("--contact-sheet", batch.sheet, items, inputs)
    if batch.checkpoint is not None:
        check_not_overwritten("--checkpoint", batch.checkpoint, items, {"--batch": batch.source})
    folder = items[0].stem.parent
    if batch.folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(items[0].stem)
    if batch.sheet is not None:
        check_writable(batch.sheet)
    if batch.checkpoint is None or not batch.checkpoint.exists():
        for path in filter(None, (item.saved_path() for item in items)):
            raise click.UsageError(
                f"{str(path)!r} exists already: give the --checkpoint of the run that drew it, "
                "or another name."
            )


def _run(
    client: ImageLabs, items: Sequence[BatchItem], options: CommonOptions, batch: BatchOptions
) -> list[ItemResult]:
    """Return the result of each item. Whatever ends it early: report how to resume."""
    display = ProgressDisplay(len(items))
    results: list[ItemResult] = []
    saving: dict[int, Job] = {}
    outcomes = client.generate_many(
        [item.item for item in items[:: batch.count]],
        n=batch.count,
        max_in_flight=batch.max_in_flight,
        on_progress=display.show_poll,
        checkpoint=batch.checkpoint,
        unknown=batch.unknown,
    )
    try:
        with display, outcomes:
            for outcome in outcomes:
                saving = {outcome.index: outcome.job} if outcome.job else {}
                results.append(save_outcome(outcome, items[outcome.index]))
                saving.clear()
                if results[-1].new:
                    outcomes.record_saved(outcome)
                _report(results[-1], items, options, display)
    except BaseException as error:  # whatever it is: list what goes on at the service
        code, left = report_error(error), {**saving, **outcomes.unfinished}
        lost = outcomes.unrecorded if batch.checkpoint is not None else left
        if options.cancel_on_interrupt and isinstance(error, KeyboardInterrupt):
            cancelled = cancel_jobs({} if options.embedded else left)
            left = {index: job for index, job in left.items() if index not in cancelled}
        for line in _summary_lines(results, items, options):
            say(line)
        _report_unfinished(left, lost.keys(), items, options, batch)
        if batch.checkpoint is None and not options.embedded:
            _report_unsubmitted({result.index for result in results} | left.keys(), items)
        raise click.exceptions.Exit(code) from error
    for line in _summary_lines(results, items, options):
        say(line)
    if batch.checkpoint is not None and any(map(_is_unknown, results)):
        say("To settle what is unknown: run the same command again with --unknown=retry.")
    return results


def _is_unknown(result: ItemResult) -> bool:
    return isinstance(result.error, SubmissionUnknownError)


def _report(
    result: ItemResult,
    items: Sequence[BatchItem],
    options: CommonOptions,
    display: ProgressDisplay,
) -> None:
    """Count one result in the display, and print it."""
    item = items[result.index]
    what = str(result.path or f"{item.place} failed")
    display.show_end(result.index, what, failed=result.error is not None)
    if options.as_json:
        display.print_result(to_json(_facts(result, item, options)))
    elif result.path is not None:
        display.print_result(str(result.path))


def _facts(result: ItemResult, item: BatchItem, options: CommonOptions) -> dict[str, Any]:
    if result.image is not None and result.path is not None:
        return {**_place(item), **image_facts(result.image, result.path)}
    assert result.error is not None
    return {**_place(item), **failure_facts(result.error, resumable=not options.embedded)}


def _place(item: BatchItem) -> dict[str, Any]:
    return {"line": item.line, "name": item.stem.name}


def _summary_lines(
    results: Sequence[ItemResult], items: Sequence[BatchItem], options: CommonOptions
) -> Iterator[str]:
    """Yield a line of counts, then a line for each failure with its reason."""
    failed = sorted((r for r in results if r.error is not None), key=lambda r: r.index)
    saved = sum(result.new for result in results)
    skipped = len(results) - saved - len(failed)
    left = len(items) - len(results)
    counts = {"saved": saved, "there already": skipped, "failed": len(failed), "not finished": left}
    shown = [f"{n} {word}" for word, n in counts.items() if n or word == "saved"]
    yield ", ".join(shown) + (":" if failed else "")
    for result in failed:
        assert result.error is not None
        reason = error_line(result.error, resumable=not options.embedded)
        yield f"  {items[result.index].place}: {reason}"


def _report_unfinished(
    left: Mapping[int, Job],
    lost: Set[int],
    items: Sequence[BatchItem],
    options: CommonOptions,
    batch: BatchOptions,
) -> None:
    """Tell how to get the images of the jobs that go on at the service.

    Args:
        left: These jobs.
        lost: Those of them that no file has.
        items: Of the batch.
        options: Of the command.
        batch: Of the command.
    """
    if batch.checkpoint is not None:
        but = ", but for the jobs named below" if lost & left.keys() else ""
        again = f"run the same command again; {batch.checkpoint} keeps what was bought{but}."
        say(f"To resume: {again}")
    elif options.embedded:
        say(options.resume_hint(""))
    for index, job in left.items():
        hint = attrs.evolve(options, output=items[index].stem).resume_hint(job.id)
        if index in lost and not options.embedded:
            say(hint)
        if options.as_json:
            with suppress(OSError):  # stdout may be what has failed
                print_result(to_json(_unfinished_facts(items[index], job, hint)))


def _report_unsubmitted(known: Set[int], items: Sequence[BatchItem]) -> None:
    places = [item.place for index, item in enumerate(items) if index not in known]
    if places:
        more = f" and {len(places) - _MAX_PLACES} more" if len(places) > _MAX_PLACES else ""
        say(f"Without a task id: {', '.join(places[:_MAX_PLACES])}{more}")


def _unfinished_facts(item: BatchItem, job: Job, hint: str) -> dict[str, Any]:
    message = "the job goes on at the service"
    facts = {"code": "unfinished", "message": message, "task_id": job.id}
    return {**_place(item), **facts, "retryable": True, "hint": hint}


def _save_contact_sheet(
    results: Sequence[ItemResult], items: Sequence[BatchItem], batch: BatchOptions
) -> None:
    paths = {result.index: result.path for result in results if result.path}
    if batch.sheet is None or not paths:
        return
    with require_extra("server"):
        from .contact_sheet import Tile, save_sheet  # needs an extra that others do without
    tiles = [
        Tile(paths[index], items[index].stem.name, items[index].prompt) for index in sorted(paths)
    ]
    save_sheet(tiles, batch.sheet)
    say(f"contact sheet: {batch.sheet}")
