"""`Batch`: an iterator that takes items and returns their outcomes as they come."""

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeAlias

import attrs

from .. import wire
from ..context import ClientContext
from ..errors import InvalidRequestError, SubmissionUnknownError
from ..images import Timings
from ..job_errors import job_failure
from ..jobs import Job
from ..models import LARGEST_INT, ImageRequest, Progress, plain_json
from ..validation import invalid, invalid_secret, without_locals
from .checkpoint import Checkpoint
from .scheduler import BatchSettings, Entry, Outcome, Place, Scheduler

__all__ = ["Batch", "Item", "OnBatchProgress", "Outcome"]

Item: TypeAlias = str | ImageRequest | Mapping[str, Any]
"""What to draw: a prompt, a request, or the fields of one, perhaps with ``"metadata"``."""

OnBatchProgress: TypeAlias = Callable[[int, Progress], object]
"""Called with an item's index and the latest poll of its job; what it returns is ignored."""


class Batch(Iterator[Outcome]):
    """Iterate over the outcomes of many items, as they come. Made by `ImageLabs.generate_many`.

    Work begins with the first `next`. It ends with the last outcome, with `close`, at the end of
    a ``with``, with an exception raised here, or when nothing refers to the batch any more: the
    threads then finish the exchange in progress and end. Use it in one thread at a time; the
    items are taken in that thread, one by one, each when there is room for it.
    """

    def __init__(
        self,
        items: Iterable[Item],
        context: ClientContext,
        *,
        job_from_dict: Callable[[Mapping[str, Any]], Job],
        settings: BatchSettings,
        on_progress: OnBatchProgress | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the checkpoint; start nothing else. Errors as in `ImageLabs.generate_many`."""
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            remedy = "must be an iterable of prompts; put a single one in a list"
            raise invalid("items", type(items).__name__, remedy)
        self._items = _numbered(items, settings.n)
        self._context, self._job_from_dict, self._settings = context, job_from_dict, settings
        self._on_progress = on_progress
        base_url = context.settings.base_url
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint, base_url)
        self._scheduler = Scheduler(
            context, settings, self._checkpoint, wants_progress=on_progress is not None
        )
        # The threads refer to the scheduler alone, so that an abandoned batch is collected.
        self._stop = weakref.finalize(self, self._scheduler.stop)

    @property
    def unfinished(self) -> dict[int, Job]:
        """By index, the jobs that were accepted and whose outcome was not taken."""
        return self._scheduler.unfinished()

    @property
    def unrecorded(self) -> dict[int, Job]:
        """Those of `unfinished` that the checkpoint lacks: it could not be written.

        A later run does not know them, so note their ids. Empty without a checkpoint.
        """
        return self._scheduler.unrecorded()

    def record_saved(self, outcome: Outcome) -> None:
        """Record in the checkpoint that the image is saved: a later run has it in `Outcome.saved`.

        Without a checkpoint, without a result and after `close` it does nothing.

        Args:
            outcome: Of this batch.

        Raises:
            OSError: The checkpoint cannot be written.
        """
        if self._checkpoint is not None and outcome.result is not None and self._stop.alive:
            self._checkpoint.append(outcome.index, "saved", {})

    def close(self) -> None:
        """Stop: nothing more is sent, and no thread is left. May be called again.

        `unfinished` jobs go on at the service. Outcomes that have come already can still be
        taken.
        """
        self._stop()

    def __next__(self) -> Outcome:
        """Wait for the next outcome and return it.

        Raises:
            InvalidRequestError: An item is not the one that the checkpoint has for its position;
                or the batch was made in another process, of which this one is a fork.
            BatchStoppedError: The service answered none of several submits in a row.
            JobStoppedError: The caller's `stop` ended it.
            JobTimeoutError: The `Deadline` of the batch has passed.
            OSError: The checkpoint cannot be written, or was deleted or replaced.
        """
        try:
            self._scheduler.check_process()
            outcome = self._next_outcome()
        except StopIteration as error:  # of the caller's: it would end the loop without a word
            self._leave(error)
            raise RuntimeError("a callback raised StopIteration") from error
        except BaseException as error:
            self._leave(error)
            raise
        if outcome is None:
            self.close()
            raise StopIteration
        return outcome

    def __enter__(self) -> "Batch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Close; add a note to the error that names the unfinished jobs."""
        first = self._stop.alive
        self.close()
        unfinished_message = self._scheduler.unfinished_message()
        if first and unfinished_message and error is not None and sys.version_info >= (3, 11):
            error.add_note(unfinished_message)

    def _next_outcome(self) -> Outcome | None:
        # One item is taken per outcome, so that a slow consumer does not leave the service idle,
        # and slow items do not delay outcomes that have come.
        while True:
            taken = self._take_item()
            self._report_progress()
            outcome = self._scheduler.take(wait=not taken)
            if outcome is not None or (self._scheduler.idle and not taken):
                return outcome

    def _take_item(self) -> bool:
        """Take one item, if there is room; return False if none was taken."""
        if not self._scheduler.has_room:
            return False
        taken = next(self._items, None)
        if taken is None:
            return False
        index, item, variation = taken
        place = Place(index, index // self._settings.n, variation, {})
        try:
            place = attrs.evolve(place, metadata=_metadata(item))
            request = _variation(_request(item), variation)
        except InvalidRequestError as error:
            self._scheduler.put(place.outcome(None, error=error))
        else:
            self._admit(place, request)
        finally:
            del taken, item  # error trackers show local variables: none may hold a prompt
        return True

    def _report_progress(self) -> None:
        if self._on_progress is not None:
            for index, progress in self._scheduler.take_progress().items():
                self._on_progress(index, progress)

    def _admit(self, place: Place, asked: ImageRequest) -> None:
        """Start an item, or continue where the checkpoint says that an earlier run ended."""
        if self._checkpoint is None:
            self._scheduler.add(Entry(place, asked.with_seeds()))
            return
        facts = self._checkpoint.recall(place.index, asked)
        job = self._recorded_job(self._checkpoint, place.index, facts)
        event, keyed = facts.get("event"), facts.get("keyed")
        if event == "sending" and self._settings.unknown == "skip":
            self._scheduler.put(place.outcome(asked, error=_unknown(keyed=bool(keyed))))
        elif event == "sending" and keyed:
            request = attrs.evolve(asked, seed=keyed["seed"], subseed=keyed["subseed"])
            fingerprint = wire.fingerprint(asked)
            entry = Entry(place, request, fingerprint, key=keyed["key"], was_sent=True)
            self._scheduler.add(entry)
        elif job is not None and event != "accepted":
            self._scheduler.put(_recorded_outcome(place, job, facts))
        else:
            request = (job and job.request) or asked.with_seeds()
            entry = Entry(place, request, wire.fingerprint(asked), job, recorded=job is not None)
            self._scheduler.add(entry)

    def _recorded_job(
        self, checkpoint: Checkpoint, index: int, facts: Mapping[str, Any]
    ) -> Job | None:
        try:
            return self._job_from_dict(facts["job"]) if "job" in facts else None
        except InvalidRequestError as error:
            raise checkpoint.refusal(f"its job of item {index} cannot be used: {error}") from error


def _recorded_outcome(place: Place, job: Job, facts: Mapping[str, Any]) -> Outcome:
    """Return the outcome that an earlier run has recorded."""
    if facts["event"] == "failed":
        error = job_failure(facts["message"], status=facts["status"], waited=facts["waited"])
        error.attach_job(job)
        return place.outcome(job.request, error=error, job=job)
    image = job.image_at(facts["url"], Timings(*facts["timings"]))
    outcome = place.outcome(job.request, image, job=job)
    return attrs.evolve(outcome, saved=facts["event"] == "saved")


@without_locals
def _request(item: object) -> ImageRequest:
    if isinstance(item, ImageRequest):
        return item
    if not isinstance(item, str | Mapping):
        raise invalid("item", type(item).__name__, "must be a prompt, an ImageRequest or a mapping")
    if isinstance(item, str):
        return ImageRequest(item)
    if not all(isinstance(name, str) for name in item) or "prompt" not in item:
        raise invalid_secret("item", "must have the fields of an ImageRequest, with a prompt")
    return ImageRequest(**{name: item[name] for name in item if name != "metadata"})


@without_locals
def _metadata(item: object) -> Mapping[str, Any]:
    return plain_json("metadata", item.get("metadata", {}) if isinstance(item, Mapping) else {})


def _variation(request: ImageRequest, number: int) -> ImageRequest:
    """Return the request for one of several images: a seed that is given counts up."""
    if not number or request.seed is None:
        return request
    return attrs.evolve(request, seed=(request.seed + number) % (LARGEST_INT + 1))


def _numbered(items: Iterable[Item], n: int) -> Iterator[tuple[int, Item, int]]:
    """Yield the position of each image, its item and which of the item's images it is."""
    for item_index, item in enumerate(items):
        for variation in range(n):
            yield item_index * n + variation, item, variation


def _unknown(*, keyed: bool) -> SubmissionUnknownError:
    how = (
        "with its idempotency key, which is answered with the same job as long as the service "
        "keeps that"
    )
    return SubmissionUnknownError(
        "an earlier run ended while it submitted this item, which may or may not have been "
        'accepted, so it was not sent again; unknown="retry" sends it again, '
        f"{how if keyed else 'which may buy the image twice'}",
        endpoint="POST /txt2img",
    )
