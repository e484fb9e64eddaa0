"""Many jobs at once on few threads: items in, outcomes out, in the order in which they end."""

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeAlias

from .checkpoint import Checkpoint, fingerprint
from .errors import InvalidRequestError, JobFailedError, SubmissionUnknownError, sanitize_text
from .images import GeneratedImage, Timings
from .jobs import ClientContext, Job
from .models import ImageRequest, Progress
from .schedule import Entry, Outcome, Schedule, Settings
from .validation import invalid

__all__ = ["Batch", "Item", "OnBatchProgress", "Outcome"]

Item: TypeAlias = str | ImageRequest | Mapping[str, Any]
"""What is to be drawn: a prompt, a request, or the fields of one."""

OnBatchProgress: TypeAlias = Callable[[int, Progress], object]
"""Called with an item's index and the latest poll of its job; what it returns is ignored."""


class Batch(Iterator[Outcome]):
    """The outcomes of many items, as they come. Made by `ImageLabs.generate_many`.

    Work begins with the first `next` and is over with the last outcome, with `close`, the end of
    a ``with``, an exception in here, or when nothing refers to the batch any more: threads then
    finish the exchange under way and are gone. For one thread at a time; in that thread also the
    items are taken, one by one, each when there is room for it.
    """

    def __init__(
        self,
        items: Iterable[Item],
        context: ClientContext,
        *,
        job_from_dict: Callable[[Mapping[str, Any]], Job],
        settings: Settings,
        on_progress: OnBatchProgress | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        """Starts nothing, but opens the checkpoint. Errors as in `ImageLabs.generate_many`."""
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            raise invalid("items", type(items).__name__, "must be an iterable of prompts")
        self._items: Iterator[tuple[int, Item]] = enumerate(items)
        self._context, self._job_from_dict = context, job_from_dict
        self._on_progress = on_progress
        base_url = context.endpoints.base_url
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint, base_url)
        self._schedule = Schedule(
            context, settings, self._checkpoint, listens=on_progress is not None
        )
        # The threads refer to the schedule alone, so that an abandoned batch is noticed.
        self._finish = weakref.finalize(self, self._schedule.stop)

    @property
    def unfinished(self) -> dict[int, Job]:
        """By index, the jobs that were accepted and whose outcome was not taken yet."""
        return self._schedule.unfinished()

    def close(self) -> None:
        """Stop: nothing more is sent, and no thread is left. May be called again.

        What is `unfinished` goes on at the service. Outcomes that are there already can still
        be taken.
        """
        self._finish()

    def __next__(self) -> Outcome:
        """Wait for the next outcome.

        Raises:
            InvalidRequestError: An item is not the one that the checkpoint knows for its place.
            OSError: The checkpoint cannot be written.
        """
        try:
            outcome = self._next()
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
        """Close; an error that is the reason gets a note of what is left at the service."""
        first = self._finish.alive
        self.close()
        unfinished_message = self._schedule.unfinished_message()
        if first and unfinished_message and error is not None and sys.version_info >= (3, 11):
            error.add_note(unfinished_message)

    def _next(self) -> Outcome | None:
        # With each outcome that goes out one item comes in, so that a slow consumer does not
        # run the service dry, and slow items do not hold up what is there.
        while True:
            came = self._take_in()
            self._tell()
            outcome = self._schedule.take(wait=not came)
            if outcome is not None or (self._schedule.idle and not came):
                return outcome

    def _take_in(self) -> bool:
        """Take one item in, if there is room, and another one."""
        if not self._schedule.has_room:
            return False
        taken = next(self._items, None)
        if taken is None:
            return False
        index, item = taken
        try:
            asked = _request(item)
        except InvalidRequestError as error:
            self._schedule.put(Outcome(index, None, error=error))
        else:
            self._admit(index, asked)
        return True

    def _tell(self) -> None:
        if self._on_progress is not None:
            for index, progress in self._schedule.take_progress().items():
                self._on_progress(index, progress)

    def _admit(self, index: int, asked: ImageRequest) -> None:
        """Let an item go on where the checkpoint says that it stands."""
        if self._checkpoint is None:
            self._schedule.add(Entry(index, asked.with_seeds()))
            return
        facts = self._checkpoint.recall(index, asked)
        job = self._job_from_dict(facts["job"]) if "job" in facts else None
        event = facts.get("event")
        if event == "sending":
            self._schedule.put(Outcome(index, asked, error=_unknown()))
        elif job is not None and event != "accepted":
            self._schedule.put(self._as_before(index, job, facts))
        else:
            request = (job and job.request) or asked.with_seeds()
            self._schedule.add(Entry(index, request, fingerprint(asked), job))

    def _as_before(self, index: int, job: Job, facts: Mapping[str, Any]) -> Outcome:
        """The outcome that an earlier run came to."""
        if facts["event"] == "failed":
            error = JobFailedError(facts["message"], status=facts["status"], waited=facts["waited"])
            error.attach_job(job)
            return Outcome(index, job.request, error=error, job=job)
        image = GeneratedImage(
            url=facts["url"],
            task_id=job.id,
            request=job.request,
            timings=Timings(*facts["timings"]),
            job=job,
            fetcher=self._context.fetcher,
        )
        return Outcome(index, job.request, result=image, job=job)


def _request(item: object) -> ImageRequest:
    if isinstance(item, ImageRequest):
        return item
    if not isinstance(item, str | Mapping):
        raise invalid("item", type(item).__name__, "must be a prompt, an ImageRequest or a mapping")
    try:
        return ImageRequest(**item) if isinstance(item, Mapping) else ImageRequest(item)
    except TypeError as exc:  # a name that is no field's, or no prompt
        raise InvalidRequestError(f"item: {sanitize_text(exc)}", field="item") from exc


def _unknown() -> SubmissionUnknownError:
    return SubmissionUnknownError(
        "an earlier run ended while it submitted this item, which may or may not have been "
        "accepted, so it was not sent again",
        endpoint="POST /txt2img",
    )
