"""A job that the service has accepted: looking, waiting, its result."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from . import wire
from .deadline import Deadline
from .downloads import ImageDownloader
from .endpoints import Endpoints, is_permanent_poll_error
from .errors import (
    ChallengeError,
    ImageLabsError,
    JobError,
    JobFailedError,
    JobStalledError,
    JobTimeoutError,
    attach_job,
    sanitize_text,
)
from .images import GeneratedImage, Timings
from .models import ImageRequest, Progress, State
from .polling import Poll, PollingStrategy, after_failures
from .validation import invalid

__all__ = ["Job", "OnProgress", "PollResult"]

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], object]
"""Called with each poll that was answered; what it returns is ignored."""

_MAX_FAILURES = 10  # polls that may fail in a row before a wait gives up
_MAX_CHALLENGES = 2  # the same when it is Cloudflare that answers: waiting does not pass it
_MAX_POLLS = 64  # that a strategy is shown
_LAST_POLL = 0.5  # seconds before the deadline, if the strategy would look after it


@attrs.frozen
class PollResult:
    """What one step of a job came to.

    Attributes:
        progress: The latest that is known; `None` when no poll has been answered yet.
        next_poll_in: Seconds until the next poll is due; `None` when the job is done.
        error: Why this poll failed, if it did; the job may be healthy all the same.
    """

    progress: Progress | None
    next_poll_in: float | None
    error: ImageLabsError | None = None


@attrs.frozen(kw_only=True)
class ClientContext:
    """What the jobs of one client share.

    Attributes:
        endpoints: To ask with.
        downloader: To fetch images with.
        polling: When to poll, and by which clock.
        timeout: Seconds for a whole job, unless the caller says otherwise.
    """

    endpoints: Endpoints
    downloader: ImageDownloader
    polling: PollingStrategy
    timeout: float

    def deadline(self, timeout: float | None) -> Deadline:
        """`timeout` seconds from now; `None`: the default; infinity: never."""
        if timeout is None:
            timeout = self.timeout
        elif isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
            raise invalid("timeout", timeout, "must be a number of seconds, 0 or more")
        return Deadline.after(timeout, self.polling.clock)


class Job:
    """One accepted job. Made by `ImageLabs.submit` and `ImageLabs.get_job`, not by hand.

    For one thread at a time. It pickles, and its id is all that another process needs.
    """

    def __init__(
        self,
        task_id: str,
        context: ClientContext,
        *,
        request: ImageRequest | None = None,
        submitted_at: float | None = None,
        first_poll_now: bool = True,
    ) -> None:
        self._id = task_id
        self._context = context
        self._request = request
        wall = time.time()
        self._submitted_at = wall if submitted_at is None else submitted_at
        self._progress: Progress | None = None
        self._polls: deque[Poll] = deque(maxlen=_MAX_POLLS)
        self._poll_count = 0
        self._failures = 0
        self._queued: float | None = None
        self._ended: float | None = None
        now = self._now()
        self._origin = now - max(0.0, wall - self._submitted_at)
        # Not yet asked of the strategy: it may be the caller's own, and fail.
        self._due: float | None = now if first_poll_now else None

    # What is known ---------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The service's name of the job."""
        return self._id

    @property
    def request(self) -> ImageRequest | None:
        """What was asked for, with the seeds used; `None` if it is not known here."""
        return self._request

    @property
    def progress(self) -> Progress | None:
        """The latest answer; `None` before the first. Asks nobody."""
        return self._progress

    @property
    def done(self) -> bool:
        """Whether the job is known to have ended, well or not. Asks nobody."""
        return self._progress is not None and self._progress.state.ended

    @property
    def submitted_at(self) -> float:
        """When it was submitted (or first heard of here), in seconds since 1970."""
        return self._submitted_at

    @property
    def next_poll_in(self) -> float:
        """Seconds until the next poll is due, by the polling strategy; 0.0: now. Asks nobody.

        Raises:
            InvalidRequestError: The strategy answers no number of seconds.
        """
        with attach_job(self):
            if self._due is None:
                self._due = self._origin + self._delay()
            return max(0.0, self._due - self._now())

    def __repr__(self) -> str:
        state = self._progress.state.value if self._progress else "not yet polled"
        return f"<Job {sanitize_text(self._id, 64)}: {state}>"

    # Asking ----------------------------------------------------------------------------

    def refresh(self, *, timeout: float | None = None) -> Progress:
        """Ask once how the job stands. Also a failed job is an answer.

        Raises:
            APIConnectionError, APIStatusError, APIResponseError: No usable answer; the job
                may be healthy.
        """
        with attach_job(self):
            return self._refresh(self._context.deadline(timeout))

    def poll(self, *, timeout: float | None = None) -> PollResult:
        """Ask once and say when to ask next; never sleeps. A done job is not asked about.

        For loops, queues and sweeps of your own. A poll that fails is no error yet: see
        `PollResult.error`.

        Raises:
            JobFailedError: The service says that it failed.
            JobTimeoutError: There was no time to ask.
            JobStalledError: Too many polls in a row have failed.
            APIStatusError: The service refuses to tell (it has forgotten the task, say).
        """
        with attach_job(self):
            return self._poll(self._context.deadline(timeout))

    def wait(self, *, timeout: float | None = None, on_progress: OnProgress | None = None) -> "Job":
        """Wait until the image is there. Answers the job itself.

        Args:
            timeout: Seconds; `None`: the client's `timeout`; 0: do not wait; infinity: no limit.
            on_progress: Called with each answered poll.

        Raises:
            JobFailedError, JobTimeoutError, JobStalledError, APIStatusError: As in `poll`.
        """
        with attach_job(self):
            deadline = self._context.deadline(timeout)
        return self.wait_until(deadline, on_progress)

    def result(
        self, *, timeout: float | None = None, on_progress: OnProgress | None = None
    ) -> GeneratedImage:
        """Wait, and answer the image. Arguments and errors as in `wait`."""
        return self.wait(timeout=timeout, on_progress=on_progress).image()

    def events(self, *, timeout: float | None = None) -> Iterator[Progress]:
        """Each answered poll while waiting, the last one included. Arguments as in `wait`."""
        with attach_job(self):
            deadline = self._context.deadline(timeout)
        return self._events(deadline)

    def wait_until(self, deadline: Deadline, on_progress: OnProgress | None = None) -> "Job":
        """`wait`, for who has a deadline already."""
        for progress in self._events(deadline):
            if on_progress is not None:
                with attach_job(self):
                    on_progress(progress)
        return self

    def image(self) -> GeneratedImage:
        """The image of a job that is known to be done. Asks nobody.

        Raises:
            JobFailedError: It has ended without one.
            JobTimeoutError: It is not known to be done; `result` waits for it.
        """
        with attach_job(self):
            self._raise_if_failed()
            if self._progress is None or self._progress.image_url is None:
                raise self._timeout_error()
            return self._make_image(self._progress.image_url)

    def preview(self, url: str | None = None) -> GeneratedImage | None:
        """The half-drawn image that a poll told of; read or saved like a finished one.

        Asks nobody. The service may take it back at any time: then reading it raises
        `DownloadError`.

        Args:
            url: The address, if it was kept from another poll (`Progress.preview_url`); `None`:
                that of the latest poll.

        Returns:
            `None` if there is none.
        """
        latest = self._progress.preview_url if self._progress else None
        address = url or latest
        return self._make_image(address, final=False) if address else None

    def _make_image(self, url: str, *, final: bool = True) -> GeneratedImage:
        queued, total = self._queued or 0.0, self._ended or 0.0
        return GeneratedImage(
            url=self._context.downloader.absolute(url),
            task_id=self._id,
            request=self._request,
            timings=Timings(queued, total - queued, total, self._poll_count),
            job=self,
            downloader=self._context.downloader,
            final=final,
        )

    def fresh_url(self, deadline: Deadline) -> str | None:
        """The image's address, asked for anew: links expire."""
        return self._context.endpoints.progress(self._id, deadline=deadline).image_url

    # Keeping ---------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The job as plain JSON for `ImageLabs.job_from_dict`, in another process, another day.

        Holds the request with its prompt, and no cookie, header or proxy.
        """
        return {
            "version": 1,
            "task_id": self._id,
            "base_url": self._context.endpoints.base_url,
            "submitted_at": self._submitted_at,
            "request": self._request and wire.request_to_json(self._request),
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        return self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._id)

    def _value(self) -> tuple[Any, ...]:
        return self._id, self._context, self._request, self._submitted_at, self._progress

    def __getstate__(self) -> dict[str, Any]:
        # A monotonic clock means nothing in another process: keep distances, not points.
        now = self._now()
        due = None if self._due is None else self._due - now
        return {**self.__dict__, "_origin": now - self._origin, "_due": due}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        now = self._now()
        self._origin = now - state["_origin"]
        self._due = None if state["_due"] is None else now + state["_due"]

    # How it is done --------------------------------------------------------------------

    def _now(self) -> float:
        return self._context.polling.clock()

    def _elapsed(self) -> float:
        return self._now() - self._origin

    def _events(self, deadline: Deadline) -> Iterator[Progress]:
        with attach_job(self):
            self._raise_if_failed()
        while not self.done:
            with attach_job(self):
                self._sleep_until_due(deadline)
                result = self._poll(deadline)
            if result.error is None and result.progress is not None:
                yield result.progress

    def _sleep_until_due(self, deadline: Deadline) -> None:
        pause, left = self.next_poll_in, deadline.remaining()
        if pause >= left:  # too late to be of use: poll a last time while it is
            pause = left - _LAST_POLL if left > _LAST_POLL else left
        if pause > 0:
            self._context.polling.sleep(pause)

    def _poll(self, deadline: Deadline) -> PollResult:
        if self.done:
            self._raise_if_failed()
            return PollResult(self._progress, None)
        if deadline.passed:
            raise self._timeout_error()
        pause = self._delay()
        try:
            progress = self._refresh(deadline)
        except ImageLabsError as error:
            delay = self._after_failure(error, pause)
            result = PollResult(self._progress, delay, error)
        else:
            self._failures = 0
            self._raise_if_failed()
            delay = self._delay()
            result = PollResult(progress, None if self.done else delay)
        self._due = self._now() + delay
        return result

    def _delay(self) -> float:
        delay = self._context.polling.delay(self._polls)
        number = isinstance(delay, int | float) and not isinstance(delay, bool)
        if not number or not 0.0 <= delay < math.inf:
            raise invalid("polling", delay, "delay() must answer seconds, 0.0 or more")
        return delay

    def _refresh(self, deadline: Deadline) -> Progress:
        hidden = (self._request.prompt, self._request.negative_prompt) if self._request else ()
        ask = self._context.endpoints.progress
        progress = ask(self._id, deadline=deadline, hidden=hidden)
        elapsed = self._elapsed()
        self._progress = progress
        self._poll_count += 1
        self._polls.append(Poll(elapsed, progress))
        if progress.state is not State.QUEUED and self._queued is None:
            self._queued = elapsed
        if progress.state.ended and self._ended is None:
            self._ended = elapsed
        log.debug("task %s: %s %s", self._id, progress.state.value, progress.fraction)
        return progress

    def _after_failure(self, error: ImageLabsError, pause: float) -> float:
        """Seconds until the next poll, or the end of our patience."""
        self._failures += 1
        log.debug("task %s: poll failed, %d in a row: %s", self._id, self._failures, error)
        if is_permanent_poll_error(error):
            raise error
        if isinstance(error, ChallengeError) and self._failures >= _MAX_CHALLENGES:
            raise error
        if self._failures >= _MAX_FAILURES:
            raise JobStalledError(
                f"cannot reach the service: {self._failures} polls in a row failed, the last one: "
                f"{error.message}; the job may be healthy",
                waited=self._elapsed(),
            ) from error
        asked: float | None = getattr(error, "retry_after", None)
        return after_failures(self._failures, pause, asked or 0.0)

    def _raise_if_failed(self) -> None:
        if self._progress is None or self._progress.state is not State.FAILED:
            return
        word = self._progress.status
        message = f"the service says that the job failed: {word!r}"
        if word.lower() == "done":
            message = "the service says that the job is done and names no image"
        raise JobFailedError(message, status=word, waited=self._ended or 0.0)

    def _timeout_error(self) -> JobError:
        waited = self._elapsed()
        # A single poll cut off by the deadline says nothing about the service.
        lost = self._failures > (1 if self._progress else 0)
        how = "cannot reach the service" if lost else "the job is still running"
        return JobTimeoutError(
            f"{how} after {waited:.1f} s; it may yet finish: wait again, or ask for its id later",
            waited=waited,
        )
