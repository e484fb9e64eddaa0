"""A job that the service has accepted: polling, waiting, its result."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from . import job_errors, wire
from ._redact import sanitize_text
from .context import ClientContext
from .deadline import Deadline, Stop
from .endpoints import is_permanent_poll_error, job_log
from .errors import (
    ChallengeError,
    ImageLabsError,
    JobStalledError,
    JobStoppedError,
    JobTimeoutError,
    attach_job,
)
from .eta import estimate, recent_renders, remember_render
from .extensions import LongPoll
from .images import GeneratedImage, RequestedImage, Timings
from .models import Eta, ImageRequest, Progress, State, plain_json
from .polling import Poll, after_failures
from .validation import invalid, seconds
from .waiting import Parking, movement

__all__ = ["Job", "OnProgress", "PollResult", "stalled_error"]

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], object]
"""Called with each poll that was answered; what it returns is ignored."""

_MAX_FAILURES = 10  # polls that may fail in a row before a wait gives up
_MAX_CHALLENGES = 2  # of them that may be Cloudflare pages: waiting does not pass its check
_TIMELY, _TIMELY_SHARE = 3.0, 0.15  # seconds, or share of a job's time: as late an end is noticed
_MAX_POLLS = 64  # the latest polls, which a strategy gets
_LAST_POLL = 0.5  # seconds before the deadline, if the strategy would poll after it


@attrs.frozen
class PollResult:
    """What one poll of a job brought.

    Attributes:
        progress: The latest that is known; `None` when no poll has been answered yet.
        next_poll_in: Seconds until the next poll is due; `None` when the job is done.
        error: Why this poll failed, if it did; the job may be healthy all the same.
    """

    progress: Progress | None
    next_poll_in: float | None
    error: ImageLabsError | None = None

    @property
    def eta(self) -> Eta | None:
        """How long the job may still take, as of the latest answer; `None`: nothing is known."""
        return self.progress.eta if self.progress else None


class Job:
    """One accepted job, from `ImageLabs.submit`, `get_job` or `job_from_dict`.

    For one thread at a time. It pickles, and its id is all that another process needs.
    """

    def __init__(
        self,
        task_id: str,
        context: ClientContext,
        *,
        request: ImageRequest | None = None,
        submitted_at: float | None = None,
        is_new: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._id = task_id
        self._context = context
        self._request = request
        self._metadata = plain_json("metadata", metadata or {})
        wall = time.time()
        self._submitted_at = wall if submitted_at is None else submitted_at
        self._progress: Progress | None = None
        self._polls: deque[Poll] = deque(maxlen=_MAX_POLLS)
        self._poll_count = 0
        self._failures = self._challenges = 0  # since the last poll that was answered
        self._is_followed = is_new  # since its submit, here or by who kept its polls
        self._was_queued = False
        self._queued_seconds: float | None = None
        self._ended: float | None = None
        now = self._now()
        self._origin = now - max(0.0, wall - self._submitted_at)
        # Not yet asked of the strategy: it may be the caller's own, and fail.
        self._due: float | None = None if is_new else now

    @classmethod
    def submit(
        cls,
        context: ClientContext,
        request: ImageRequest,
        deadline: Deadline,
        metadata: Mapping[str, Any] | None = None,
    ) -> "Job":
        """Ask for one image; see `ImageLabs.submit`. Every seed of `request` is set."""
        kept = plain_json("metadata", metadata or {})
        task_id = context.endpoints.submit(request, deadline=deadline, metadata=kept)
        return cls(task_id, context, request=request, is_new=True, metadata=kept)

    @classmethod
    def restore(
        cls,
        context: ClientContext,
        task_id: object,
        *,
        request: ImageRequest | None,
        submitted_at: object,
        progress: Progress | None = None,
        polls: Sequence[Poll] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> "Job":
        """Return a job that was submitted before; see `ImageLabs.get_job`."""
        if not isinstance(task_id, str) or not task_id.strip():
            raise invalid(
                "task_id", task_id, "must be the text that the service gave", code="blank"
            )
        when = None if submitted_at is None else _moment(submitted_at)
        job = cls(task_id, context, request=request, submitted_at=when, metadata=metadata)
        job._recall(polls)
        job._progress = progress or (polls[-1].progress if polls else None)
        return job

    @classmethod
    def from_dict(cls, context: ClientContext, data: Mapping[str, Any]) -> "Job":
        """Return the job that `to_dict` described; see `ImageLabs.job_from_dict`."""
        version = data.get("version") if isinstance(data, Mapping) else data
        if not isinstance(data, Mapping) or version != 1:
            raise invalid("version", version, "must be 1, as Job.to_dict writes it")
        base, own = data.get("base_url"), context.settings.base_url
        if base != own:
            raise invalid("base_url", base, f"the job is not of {own}", code="conflict")
        when, request = _moment(data.get("submitted_at")), data.get("request")
        if request is not None and not isinstance(request, Mapping):
            remedy = "must be an object or null"
            raise invalid("request", type(request).__name__, remedy, code="not_mapping")
        wanted = None if request is None else wire.request_from_json(request)
        seen = data.get("progress")
        progress = wire.progress_from_json(seen) if isinstance(seen, Mapping) else None
        task_id, metadata = data.get("task_id"), data.get("metadata")
        return cls.restore(
            context,
            task_id,
            request=wanted,
            submitted_at=when,
            progress=progress,
            metadata=metadata,
        )

    # What is known ---------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The service's name of the job."""
        return self._id

    @property
    def request(self) -> ImageRequest | None:
        """The request, with the seeds used; `None` if it is not known here."""
        return self._request

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The labels that were given with the job; they are kept here and never sent."""
        return self._metadata

    @property
    def progress(self) -> Progress | None:
        """The latest answer; `None` before the first. Makes no request."""
        return self._progress

    @property
    def polls(self) -> tuple[Poll, ...]:
        """The latest 64 polls that were answered, oldest first. Makes no request.

        Kept beside the id, they let another process go on: `ImageLabs.get_job` takes them.
        """
        return tuple(self._polls)

    @property
    def done(self) -> bool:
        """True when the job is known to have ended, with or without an image. No request."""
        return self._progress is not None and self._progress.state.ended

    @property
    def submitted_at(self) -> float:
        """When it was submitted (or first heard of here), in seconds since 1970."""
        return self._submitted_at

    @property
    def next_poll_in(self) -> float:
        """The seconds until the next poll is due, by the polling strategy; 0.0: now. No request.

        Raises:
            InvalidRequestError: The strategy does not return a number of seconds.
        """
        with attach_job(self):
            if self._due is None:
                self._due = self._origin + self._delay()
            return max(0.0, self._due - self._now())

    def eta(self) -> Eta | None:
        """Return how many seconds the job may still take, now. Makes no request.

        From the reported progress, the place in the queue and what earlier jobs of this process
        took. `None`: nothing is known, such as of the first job before its progress moves.
        """
        renders = recent_renders(self._context.settings.base_url)
        return estimate(self._polls, self._elapsed(), renders)

    def __repr__(self) -> str:
        state = self._progress.state.value if self._progress else "not yet polled"
        return f"<Job {sanitize_text(self._id, 64)}: {state}>"

    # Polling ---------------------------------------------------------------------------

    def refresh(
        self, *, timeout: float | Deadline | None = None, stop: Stop | None = None
    ) -> Progress:
        """Poll once and return how the job stands, also if it failed; `poll` raises then.

        It polls a job that has ended, too, which brings a fresh link of the image.

        Raises:
            APIConnectionError, APIStatusError, APIResponseError: No usable answer; the job
                may be healthy.
            JobStoppedError: `stop` ended it.
        """
        with attach_job(self):
            try:
                progress = self._refresh(self._context.deadline(timeout, stop))
            except ImageLabsError as error:
                self._poll_in(after_failures(1, self._delay(), error.retry_after or 0.0))
                raise
            self._poll_in(self._delay())
            return progress

    def poll(
        self, *, timeout: float | Deadline | None = None, stop: Stop | None = None
    ) -> PollResult:
        """Poll once, without ever sleeping, and say when to poll next. A done job is not polled.

        For loops, queues and sweeps of your own. A single failed poll is not raised: see
        `PollResult.error`.

        Raises:
            JobFailedError: The service says that it failed.
            JobTimeoutError: No time was left to poll.
            JobStalledError: Too many polls failed in a row.
            JobStoppedError: `stop` ended it.
            APIStatusError: The service refuses to tell (it has forgotten the task, say).
        """
        with attach_job(self):
            return self._poll(self._context.deadline(timeout, stop))

    def wait(
        self,
        *,
        timeout: float | Deadline | None = None,
        on_progress: OnProgress | None = None,
        stop: Stop | None = None,
        stall_timeout: float | None = None,
    ) -> "Job":
        """Wait until the image is there, and return the job itself.

        Args:
            timeout: Seconds, or a `Deadline`; `None`: the client's `timeout`; 0: do not wait;
                infinity: no limit.
            on_progress: Called with each answered poll.
            stop: A `threading.Event`, or a function that returns True: ends the wait within 0.1 s,
                and the job goes on at the service.
            stall_timeout: Seconds after which it ends if neither status nor progress has changed;
                `None`: never.

        Raises:
            JobFailedError, JobTimeoutError, JobStalledError, APIStatusError: As in `poll`.
            JobStalledError: Also after `stall_timeout`.
            JobStoppedError: `stop` ended it.
        """
        shown = on_progress is not None
        for progress in self._watch(timeout, stop, stall_timeout, with_progress=shown):
            if on_progress is not None:
                with attach_job(self):
                    on_progress(progress)
        return self

    def result(
        self,
        *,
        timeout: float | Deadline | None = None,
        on_progress: OnProgress | None = None,
        stop: Stop | None = None,
        stall_timeout: float | None = None,
    ) -> GeneratedImage:
        """Wait, and return the image. Arguments and errors as in `wait`."""
        return self.wait(
            timeout=timeout, on_progress=on_progress, stop=stop, stall_timeout=stall_timeout
        ).image()

    def events(
        self,
        *,
        timeout: float | Deadline | None = None,
        stop: Stop | None = None,
        stall_timeout: float | None = None,
    ) -> Iterator[Progress]:
        """Yield each answered poll while waiting, the last one included. Arguments as in `wait`."""
        return self._watch(timeout, stop, stall_timeout, with_progress=True)

    @property
    def can_cancel(self) -> bool:
        """True if the service has announced, to this process, that it can cancel jobs."""
        return self._context.endpoints.features.cancel

    def cancel(self, *, timeout: float | Deadline | None = None) -> bool:
        """Ask the service to stop the job; only our own server can.

        Returns:
            True if it is cancelled, now or before; False if it has ended otherwise.

        Raises:
            NotSupportedError: The service has not announced that it can; nothing was sent.
            APIConnectionError, APIStatusError, APIResponseError: No usable answer; ask again.
        """
        with attach_job(self):
            endpoints, deadline = self._context.endpoints, self._context.deadline(timeout)
            progress = endpoints.cancel(self._id, deadline=deadline, request=self._request)
        if progress is not None:
            self._progress = progress
            if self._ended is None:
                self._note_end(progress, self._elapsed(), 0.0)
        return progress is not None

    def image(self) -> GeneratedImage:
        """Return the image of a job that is known to be done. Makes no request.

        Raises:
            JobFailedError: It has ended without one.
            JobTimeoutError: It is not known to be done; `result` waits for it.
        """
        with attach_job(self):
            self._raise_if_failed()
            if self._progress is None or self._progress.image_url is None:
                raise job_errors.not_done(self._progress, self._elapsed())
            return self.image_at(
                self._progress.image_url, self._timings(), info=self._progress.info
            )

    def preview(self, url: str | None = None) -> GeneratedImage | None:
        """Return the unfinished image that a poll named; it is read or saved like a finished one.

        Makes no request. The service may delete it at any time: then reading it raises
        `DownloadError`.

        Args:
            url: The address, if it was kept from another poll (`Progress.preview_url`); `None`:
                that of the latest poll.

        Returns:
            `None` if there is none.
        """
        latest = self._progress.preview_url if self._progress else None
        address = url or latest
        return self.image_at(address, self._timings(), final=False) if address else None

    def image_at(
        self,
        url: str,
        timings: Timings,
        *,
        final: bool = True,
        info: Mapping[str, Any] | None = None,
    ) -> GeneratedImage:
        """Return the image of this job at `url`. Makes no request.

        Args:
            url: As a poll gave it.
            timings: How long it took.
            final: False: a preview, whose link is never refreshed.
            info: How it was made, if a poll told it.
        """
        downloader = self._context.downloader
        known: dict[str, Any] = {
            "url": url,
            "task_id": self._id,
            "timings": timings,
            "job": self,
            "info": info,
            "downloader": downloader,
            "refresh": self._fresh_url if final else None,
        }
        if self._request is None:
            return GeneratedImage(request=None, **known)
        return RequestedImage(request=self._request, **known)

    def _fresh_url(self, deadline: Deadline) -> str | None:
        """Poll once for the image's current URL: links expire."""
        endpoints = self._context.endpoints
        return endpoints.progress(self._id, deadline=deadline, request=self._request).image_url

    def _timings(self) -> Timings:
        queued, total = self._queued_seconds or 0.0, self._ended or 0.0
        return Timings(queued, total - queued, total, self._poll_count)

    # Keeping ---------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain JSON for `ImageLabs.job_from_dict`, in any process, on any day.

        It holds the request with its prompt, the `metadata` and the latest progress of a job that
        has not ended, and no cookie, header or proxy.
        """
        job = {
            "version": 1,
            "task_id": self._id,
            "base_url": self._context.settings.base_url,
            "submitted_at": self._submitted_at,
            "request": self._request and wire.request_to_json(self._request),
        }
        if self._progress is not None and not self.done:
            job["progress"] = wire.progress_to_json(self._progress)
        if self._metadata:
            job["metadata"] = self._metadata
        return job

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        return self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._id)

    def _value(self) -> tuple[Any, ...]:
        known = self._id, self._request, self._submitted_at, self._progress, self._metadata
        return (self._context, *known)

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

    def _watch(
        self,
        timeout: float | Deadline | None,
        stop: Stop | None,
        stall_timeout: float | None,
        *,
        with_progress: bool,
    ) -> Iterator[Progress]:
        with attach_job(self):
            deadline = self._context.deadline(timeout, stop)
            stall = math.inf if stall_timeout is None else seconds("stall_timeout", stall_timeout)
        return self._events(deadline, stall, Parking(self._context, with_progress))

    def _events(self, deadline: Deadline, stall: float, parking: Parking) -> Iterator[Progress]:
        with attach_job(self):
            self._raise_if_failed()
        seen, moved_at = movement(self._progress), self._now()
        while not self.done:
            with attach_job(self):
                stalled_at = moved_at + stall
                if self._failures or not parking.is_open:
                    self._sleep_until_due(deadline, stalled_at)
                long_poll = parking.next_poll(min(deadline.remaining(), stalled_at - self._now()))
                result = self._poll(deadline, parking, long_poll)
                if movement(self._progress) != seen:
                    seen, moved_at = movement(self._progress), self._now()
                elif self._now() - moved_at >= stall and not self.done:
                    raise stalled_error(self, stall)
            if result.error is None and result.progress is not None:
                yield result.progress

    def _sleep_until_due(self, deadline: Deadline, stalled_at: float) -> None:
        pause, left = self.next_poll_in, deadline.remaining()
        if pause >= left:  # too late to be of use: poll a last time while it is
            pause = left - _LAST_POLL if left > _LAST_POLL else left
        pause = min(pause, stalled_at - self._now())
        if pause > 0:
            deadline.pause(pause, self._context.polling.sleep)

    def _poll(
        self,
        deadline: Deadline,
        parking: Parking | None = None,
        long_poll: LongPoll | None = None,
    ) -> PollResult:
        if self.done:
            self._raise_if_failed()
            return PollResult(self._progress, None)
        self._raise_if_stopped(deadline)
        if deadline.passed:
            raise self._timeout_error()
        try:
            progress = self._refresh(deadline, parking, long_poll)
        except JobStoppedError:
            raise
        except ImageLabsError as error:
            if parking is not None and long_poll is not None:
                parking.record_failure()
            delay = self._after_failure(error, self._delay())
            result = PollResult(self._progress, delay, error)
        else:
            self._raise_if_failed()
            if self.done:
                return PollResult(progress, None)
            delay = self._delay()
            result = PollResult(progress, delay)
        self._poll_in(delay)
        return result

    def _poll_in(self, delay: float) -> None:
        self._due = self._now() + delay

    def _delay(self) -> float:
        delay = self._context.polling.delay(self._polls)
        number = isinstance(delay, int | float) and not isinstance(delay, bool)
        if not number or not 0.0 <= delay < math.inf:
            raise invalid("polling", delay, "delay() must return seconds, 0.0 or more")
        return delay

    def _refresh(
        self,
        deadline: Deadline,
        parking: Parking | None = None,
        long_poll: LongPoll | None = None,
    ) -> Progress:
        endpoints, known = self._context.endpoints, self._request
        try:
            if parking is None or long_poll is None:
                latest = endpoints.progress(self._id, deadline=deadline, request=known)
            else:
                begun = self._now()
                latest, etag = endpoints.long_poll(
                    self._id, long_poll, deadline=deadline, request=known
                )
                parking.record_answer(latest, etag, self._now() - begun)
        except ImageLabsError as error:
            self._raise_if_stopped(deadline, error)
            raise
        return self._record_answer(latest)

    def _record_answer(self, latest: Progress) -> Progress:
        """Take over what a poll brought; return the progress as it is known now."""
        elapsed = self._elapsed()
        self._progress = progress = wire.merge_progress(self._progress, latest)
        self._failures = self._challenges = 0
        self._poll_count += 1
        unseen = elapsed - self._polls[-1].elapsed if self._polls else 0.0
        self._polls.append(Poll(elapsed, latest))
        self._note_state(elapsed, progress.state)
        if progress.state.ended and self._ended is None:
            self._note_end(progress, elapsed, unseen)
        if not progress.state.ended and (eta := self.eta()) is not None:
            self._progress = progress = attrs.evolve(progress, eta=eta)
        log.debug("task %s: %s %s", self._id, progress.state.value, progress.fraction)
        return progress

    def _note_state(self, elapsed: float, state: State) -> None:
        if state is not State.QUEUED and self._queued_seconds is None:
            # A job that was never seen queued may have waited for nothing at all.
            self._queued_seconds = elapsed if self._was_queued else 0.0
        self._was_queued = self._was_queued or state is State.QUEUED

    def _note_end(self, progress: Progress, elapsed: float, unseen: float) -> None:
        self._ended = elapsed
        failed = progress.state is State.FAILED
        # The end of a job that is polled rarely says little about its render.
        if self._is_followed and not failed and unseen <= max(_TIMELY, _TIMELY_SHARE * elapsed):
            base_url = self._context.settings.base_url
            remember_render(base_url, elapsed - (self._queued_seconds or 0.0))
        self._record_end((progress.status or "failed") if failed else "")
        polls, state = self._poll_count, progress.state.value
        job_log.info("task %s %s after %.1f s, %d polls", self._id, state, elapsed, polls)

    def _recall(self, polls: Sequence[Poll]) -> None:
        """Take earlier polls over, but for what machines with other clocks put in disorder."""
        now, latest = self._elapsed(), -1.0
        for poll in polls:
            if not isinstance(poll, Poll):
                raise invalid("polls", type(poll).__name__, "must hold what Job.polls has")
            if latest < poll.elapsed < now:
                latest = poll.elapsed
                self._polls.append(poll)
                self._note_state(poll.elapsed, poll.progress.state)
        self._is_followed = bool(self._polls)

    def _after_failure(self, error: ImageLabsError, pause: float) -> float:
        """Return the seconds until the next poll; raise when there is no hope in polling on."""
        self._failures += 1
        if is_permanent_poll_error(error):
            self._record_end(error.message)
            raise error
        if isinstance(error, ChallengeError):
            self._challenges += 1
            if self._challenges >= _MAX_CHALLENGES:
                raise error
        if self._failures >= _MAX_FAILURES:
            raise job_errors.unreachable(
                self._progress, self._elapsed(), failures=self._failures, last=error
            ) from error
        delay = after_failures(self._failures, pause, error.retry_after or 0.0)
        log.info("poll failed, polling again in %.1f s: %s", delay, error)
        return delay

    def _record_end(self, message: str) -> None:
        settings = self._context.settings
        if settings.ledger is not None:
            settings.ledger.ended(self._id, settings.base_url, message)

    def _raise_if_failed(self) -> None:
        if self._progress is not None and self._progress.state is State.FAILED:
            raise job_errors.failed(self._progress, self._ended or 0.0)

    def _raise_if_stopped(self, deadline: Deadline, error: ImageLabsError | None = None) -> None:
        if deadline.stopped:
            raise job_errors.stopped(self._progress, self._elapsed()) from error

    def _timeout_error(self) -> JobTimeoutError:
        # A single poll cut off by the deadline says nothing about the service.
        lost = self._failures > (1 if self._progress else 0)
        return job_errors.timed_out(self._progress, self._elapsed(), lost=lost)


def stalled_error(job: Job, stall: float) -> JobStalledError:
    """Return the error for a job that has not moved for `stall` seconds."""
    error = job_errors.not_moving(job.progress, job._elapsed(), seconds=stall)
    error.attach_job(job)
    return error


def _moment(when: object) -> float:
    number = isinstance(when, int | float) and not isinstance(when, bool)
    if not number or not math.isfinite(when):  # type: ignore[arg-type]
        raise invalid("submitted_at", when, "must be seconds since 1970", code="not_number")
    return float(when)  # type: ignore[arg-type]
