"""The scheduler: decides which job is submitted or polled next, and does it on a few threads."""

import heapq
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import Any, TypeAlias

import attrs

from .._redact import sanitize_text
from ..context import ClientContext
from ..deadline import STOP_INTERVAL, Deadline, Stop
from ..errors import (
    BatchStoppedError,
    ImageLabsError,
    InvalidRequestError,
    JobFailedError,
    JobStoppedError,
    JobTimeoutError,
    RateLimitError,
)
from ..extensions import new_key
from ..images import GeneratedImage
from ..jobs import Job, stalled_error
from ..models import ImageRequest, Progress
from ..validation import count, invalid, seconds, validator
from ..waiting import movement
from .admission import Admission, Attempts
from .checkpoint import Checkpoint

__all__ = ["BatchSettings", "Entry", "Outcome", "Scheduler"]

log = logging.getLogger(__name__)

_LOW_PRIORITY = 5  # 3 is normal: a batch must not starve a page on the same GPU
_POLLS_PER_SUBMIT = 4  # while polls are late: after so many of them one submit goes first
_MAX_WAIT = 86_400.0  # seconds; the wait for a lock is bounded
_MAX_SHOWN = 100  # jobs or items in one message


@attrs.frozen
class Outcome:
    """What became of one item: either a result or an error.

    Attributes:
        index: The image's position, counted from 0: ``item * n + variation``.
        request: With the seeds used; `None` when the item was not usable.
        result: The image, not fetched yet.
        error: Why there is no image. `InvalidRequestError`: the item cannot be used, nothing
            was sent. `SubmissionUnknownError`: it may have been accepted, perhaps in an earlier
            run with this checkpoint; it was not sent again. The others as in
            `ImageLabs.generate`.
        job: `None` if no job is known to have been accepted. After a `JobTimeoutError` or a
            `JobStalledError` `job.wait()` goes on.
        item: The item's position, counted from 0.
        variation: Which of the `n` images of the item it is, counted from 0.
        metadata: What the item had under ``"metadata"``; it was not sent.
        saved: True if an earlier run with this checkpoint has said that it saved the image; see
            `Batch.record_saved`.
    """

    index: int
    request: ImageRequest | None
    result: GeneratedImage | None = None
    error: ImageLabsError | None = None
    job: Job | None = None
    item: int = 0
    variation: int = 0
    metadata: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    saved: bool = False


_at_least_one = validator(count, 1)


def _seconds_or_deadline(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not (value is None or isinstance(value, Deadline)):
        seconds(field.name, value)


def _skip_or_retry(_: object, field: "attrs.Attribute[str]", value: object) -> None:
    if value not in ("skip", "retry"):
        raise invalid(field.name, value, 'must be "skip" or "retry"', code="unknown_option")


@attrs.frozen(kw_only=True)
class BatchSettings:
    """Limits of one batch; see `ImageLabs.generate_many`."""

    max_in_flight: int = attrs.field(validator=_at_least_one)
    workers: int = attrs.field(validator=_at_least_one)
    n: int = attrs.field(default=1, validator=_at_least_one)
    timeout: float | Deadline | None = attrs.field(default=None, validator=_seconds_or_deadline)
    min_interval: float = attrs.field(default=0.0, validator=validator(seconds, least=0.0))
    unknown: str = attrs.field(default="skip", validator=_skip_or_retry)
    stall_timeout: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(validator(seconds))
    )
    stop: Stop | None = None


@attrs.frozen
class Place:
    """Where an image belongs; the fields are those of `Outcome`."""

    index: int
    item: int
    variation: int
    metadata: Mapping[str, Any]

    def outcome(
        self,
        request: ImageRequest | None,
        result: GeneratedImage | None = None,
        error: ImageLabsError | None = None,
        job: Job | None = None,
    ) -> Outcome:
        """Return the outcome of this image."""
        where = (self.item, self.variation, self.metadata)
        return Outcome(self.index, request, result, error, job, *where)


@attrs.define(eq=False)
class Entry:
    """One image in work; at most one thread handles it at a time.

    Attributes:
        place: Where it belongs.
        request: What is asked for, with its seeds.
        fingerprint: Of the item as the caller gave it; empty without a checkpoint.
        job: `None` until it is accepted.
        recorded: True if the checkpoint has the job.
        deadline: When the wait for the job ends.
        attempts: Its submits so far.
        key: The idempotency key that all of them carry, where the service takes one; else empty.
        was_sent: True if an earlier run has sent it with this key and it may have been accepted.
        unknown: The error of this run's last submit with the key, if it left open whether it was
            accepted; else `None`.
        seen: What the last poll that was answered said of it.
        moved_at: When that changed, by the clock of polling.
    """

    place: Place
    request: ImageRequest
    fingerprint: str = ""
    job: Job | None = None
    recorded: bool = False
    deadline: Deadline = Deadline()  # noqa: RUF009 - frozen
    attempts: Attempts = attrs.Factory(Attempts)
    key: str = ""
    was_sent: bool = False
    unknown: ImageLabsError | None = None
    seen: object = None
    moved_at: float = 0.0

    @property
    def index(self) -> int:
        """The image's position."""
        return self.place.index

    @property
    def maybe_accepted(self) -> bool:
        """True if it was sent with its key before and may have been accepted."""
        return self.was_sent or self.unknown is not None


def _deadline_of_batch(settings: BatchSettings, clock: Callable[[], float]) -> Deadline:
    """Return when a batch has to end, by the clock of polling."""
    whole, left, stop = settings.timeout, math.inf, settings.stop
    if isinstance(whole, Deadline):
        left, stop = whole.remaining(), stop or whole.stop
    return Deadline.from_timeout(left, clock=clock, stop=stop)


def _sending(entry: Entry, *, keyed: bool) -> Mapping[str, Any]:
    """Return what a later run has to know to send the same again."""
    seeds = {"seed": entry.request.seed, "subseed": entry.request.subseed}
    key = {"key": entry.key, **seeds} if keyed else None
    return {"fingerprint": entry.fingerprint, "keyed": key}


def _naming(what: str, jobs: Collection[Job]) -> str:
    """Return what the jobs are and their ids; nothing if there are none."""
    ids = [sanitize_text(job.id, 4096) for job in islice(jobs, _MAX_SHOWN)]
    more = ", ..." if len(jobs) > _MAX_SHOWN else ""
    return f"{what} ({len(jobs)}): task ids {', '.join(ids)}{more}" if ids else ""


_Task: TypeAlias = tuple[Callable[[Entry], None], Entry]


class Scheduler:
    """Runs entries on worker threads; entries go in and outcomes come out in the caller's thread.

    There is no thread besides the workers: one of the idle workers waits for the next due time
    and wakes another one when it has something to do itself.
    """

    def __init__(
        self,
        context: ClientContext,
        settings: BatchSettings,
        checkpoint: Checkpoint | None,
        *,
        wants_progress: bool,
    ) -> None:
        """Start no thread yet.

        Args:
            context: The client's.
            settings: The limits.
            checkpoint: Closed by `stop`; `None`: nothing is recorded.
            wants_progress: True if the caller will call `take_progress`.
        """
        self._context, self._settings, self._checkpoint = context, settings, checkpoint
        self._admission = Admission(
            min_interval=settings.min_interval, max_retries=context.settings.max_retries
        )
        self._clock, self._wants_progress = context.polling.clock, wants_progress
        self._batch_deadline = _deadline_of_batch(settings, self._clock)
        self._max_wait = _MAX_WAIT if self._batch_deadline.stop is None else STOP_INTERVAL
        self._stall = math.inf if settings.stall_timeout is None else settings.stall_timeout
        self._pid = os.getpid()
        lock = threading.RLock()  # the garbage collector may call `stop` while it is held
        self._work_ready = threading.Condition(lock)  # workers wait here for something to do
        self._outcome_ready = threading.Condition(lock)  # the caller waits here for an outcome
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._worker_error: BaseException | None = None
        self._entries: dict[int, Entry] = {}  # those whose outcome was not taken yet
        self._submit_queue: deque[Entry] = deque()
        self._poll_queue: list[tuple[float, int, Entry]] = []  # a heap, by due time
        self._outcomes: deque[Outcome] = deque()
        self._progress: dict[int, Progress] = {}  # not taken yet
        self._polls_since_submit = 0
        self._timer_until = math.inf  # the due time for which an idle worker waits
        # A simulated clock jumps: it may do so only when no thread has anything else to do.
        clock_owner = getattr(context.polling.sleep, "__self__", None)
        self._simulated: bool = getattr(clock_owner, "simulated", False)
        self._resting = 0  # workers that wait for work
        self._caller_waits = False

    # The caller's side -----------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """True if another entry may be added; an outcome that was not taken counts as one."""
        return not self._stopped and len(self._entries) < self._settings.max_in_flight

    @property
    def idle(self) -> bool:
        """True if no further outcome will come."""
        return self._stopped or not self._entries

    def add(self, entry: Entry) -> None:
        """Submit an entry, or poll the job that it has."""
        with self._work_ready:
            self._entries[entry.index] = entry
            if entry.job is None:
                self._submit_queue.append(entry)
            else:
                self._begin_wait(entry, self._deadline())
                self._schedule_poll(entry)
            self._work_ready.notify()
        if len(self._threads) < self._settings.workers:
            name = f"imagelabs-batch-{len(self._threads) + 1}"
            # A daemon, so that a program can end with an unfinished batch.
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)  # first, so that it knows itself
            thread.start()

    def put(self, outcome: Outcome) -> None:
        """Add an outcome to those that `take` returns."""
        with self._outcome_ready:
            self._outcomes.append(outcome)
            self._outcome_ready.notify()

    def take(self, *, wait: bool) -> Outcome | None:
        """Return an outcome; `None` if there is none now, or if progress ended the wait.

        Raises:
            BaseException: A worker's failure that is not one of a single item; once.
        """
        with self._outcome_ready:
            while wait and not (self._outcomes or self._progress or self.idle):
                if self._batch_deadline.stopped:
                    self._stop_early()
                else:
                    self._wait_for_outcome()
            if self._outcomes:
                outcome = self._outcomes.popleft()
                self._entries.pop(outcome.index, None)
                self._progress.pop(outcome.index, None)
                return outcome
            error, self._worker_error = self._worker_error, None
        if error is not None:
            raise error
        return None

    def take_progress(self) -> dict[int, Progress]:
        """Return by index the latest poll of each job that was polled since the last call."""
        with self._outcome_ready:
            progress, self._progress = self._progress, {}
        return progress

    def check_process(self) -> None:
        """Make sure that this is the process that made the batch.

        Raises:
            InvalidRequestError: It is a forked child, which has none of the threads, and in
                which no thread will release the lock.
        """
        if os.getpid() != self._pid:
            raise InvalidRequestError(
                f"batch: it belongs to process {self._pid}; make another one in this process",
                field="batch",
                code="wrong_process",
            )

    def unfinished(self) -> dict[int, Job]:
        """Return by index the jobs that were accepted and whose outcome was not taken."""
        self.check_process()
        with self._outcome_ready:
            return {index: entry.job for index, entry in self._entries.items() if entry.job}

    def unrecorded(self) -> dict[int, Job]:
        """Return by index those of `unfinished` that the checkpoint lacks; without one: none."""
        jobs = self.unfinished() if self._checkpoint is not None else {}
        return {index: job for index, job in jobs.items() if not self._entries[index].recorded}

    def unfinished_message(self) -> str:
        """Return one line that names the unfinished jobs; empty if there are none here."""
        if os.getpid() != self._pid:
            return ""
        jobs, lost = self.unfinished(), self.unrecorded()
        if self._checkpoint is None:
            return _naming("jobs that go on at the service", jobs.values())
        path = sanitize_text(self._checkpoint.path)
        kept = [job for index, job in jobs.items() if index not in lost]
        lines = (
            _naming(f"jobs that go on at the service, {path} knows them", kept),
            _naming(f"jobs that go on at the service, {path} lacks them", lost.values()),
        )
        return "; ".join(filter(None, lines))

    def stop(self) -> None:
        """Let the workers finish the exchanges in progress, and wait until they have ended."""
        if os.getpid() != self._pid:  # a forked child has none of the threads
            return
        with self._work_ready:
            self._stop()
        if threading.current_thread() in self._threads:  # called by the garbage collector
            return
        for thread in self._threads:
            if thread.ident is not None:  # pragma: no branch - Ctrl-C before it was started
                thread.join()
        if self._checkpoint is not None:
            self._checkpoint.close()
        if unfinished_message := self.unfinished_message():
            log.warning("stopped early; %s", unfinished_message)

    # What a worker does ------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (task := self._next_task()) is not None:
                act, entry = task
                act(entry)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            with self._work_ready:
                if not self._stopped:  # only the first failure is raised, and only once
                    self._worker_error = error
                    self._stop()

    def _submit(self, entry: Entry) -> None:
        keyed = entry.maybe_accepted or self._context.endpoints.features.idempotency_key
        if keyed:
            entry.key = entry.key or new_key()
        self._record(entry, "sending", lambda: _sending(entry, keyed=keyed))
        deadline = self._deadline()
        # A worker that sleeps polls no job: a submit is sent once here, and put back with its key.
        try:
            task_id = self._context.endpoints.submit(
                entry.request,
                deadline=deadline,
                max_retries=0,
                priority=_LOW_PRIORITY,
                key=entry.key if keyed else None,
                maybe_accepted=entry.maybe_accepted,
                metadata=entry.place.metadata,
            )
        except JobStoppedError:
            self._record(entry, "refused")  # nothing was sent
            with self._work_ready:
                self._submit_queue.appendleft(entry)
                self._stop_early()
            return
        except ImageLabsError as error:
            self._submit_failed(entry, error, keyed=keyed)
            return
        job = Job(
            task_id,
            self._context,
            request=entry.request,
            is_new=True,
            metadata=entry.place.metadata,
        )
        entry.job, entry.unknown = job, None
        self._begin_wait(entry, deadline)
        try:
            self._record(entry, "accepted", lambda: {"job": job.to_dict()})
        except OSError as exc:
            what = f"job {sanitize_text(job.id, 4096)} was accepted and is not in the checkpoint"
            raise OSError(exc.errno, f"{what}: {exc.strerror or exc}", exc.filename) from exc
        entry.recorded = True
        with self._work_ready:
            self._admission.accepted()
            self._schedule_poll(entry)

    def _submit_failed(self, entry: Entry, error: ImageLabsError, *, keyed: bool) -> None:
        """Send it again later, if that cannot buy twice; otherwise the error is its outcome."""
        # A refusal says nothing of what an earlier run has sent: it may be of another body, too.
        if error.delivered != "maybe" and not entry.was_sent:
            self._record(entry, "refused")
        with self._work_ready:
            send_again = self._admission.failed(entry.attempts, error, self._clock(), keyed=keyed)
            if error.delivered == "maybe":
                entry.unknown = error if send_again else None
                send_again = send_again and not self._stopped  # else its outcome is now
            if send_again:
                self._submit_queue.appendleft(entry)
            if self._admission.is_down and not self._stopped:
                self._worker_error = self._stopped_error(error)
                self._stop()
        if send_again:
            log.info("not accepted, sending again: %s", error)
        else:
            self._finish(entry, error=error)

    def _stopped_error(self, error: ImageLabsError) -> BatchStoppedError:
        left = tuple(sorted(entry.index for entry in self._submit_queue if not entry.unknown))
        shown = ", ".join(map(str, left[:_MAX_SHOWN])) + (", ..." if left[_MAX_SHOWN:] else "")
        stopped = BatchStoppedError(
            "the service is down: several submits in a row failed, the last one: "
            f"{error.message}; not submitted: items {shown or 'none'} (counted from 0) and those "
            "behind them",
            unsubmitted=left,
        )
        stopped.__cause__ = error
        return stopped

    def _poll(self, entry: Entry) -> None:
        job = entry.job
        assert job is not None
        try:
            result = job.poll(timeout=entry.deadline)
            image = job.image() if result.next_poll_in is None else None
        except JobStoppedError:
            with self._work_ready:
                self._stop_early()
            return
        except ImageLabsError as error:
            self._finish(entry, error=error)
            return
        if image is not None:
            self._finish(entry, image)
            return
        if movement(result.progress) != entry.seen:
            entry.seen, entry.moved_at = movement(result.progress), self._clock()
        elif self._clock() - entry.moved_at >= self._stall:
            self._finish(entry, error=stalled_error(job, self._stall))
            return
        with self._work_ready:
            if isinstance(result.error, RateLimitError):
                self._admission.hold(result.error, self._clock())
            if self._wants_progress and result.error is None and result.progress is not None:
                self._progress[entry.index] = result.progress
                self._outcome_ready.notify()
            self._schedule_poll(entry)

    def _deadline(self) -> Deadline:
        if isinstance(self._settings.timeout, Deadline):
            return self._batch_deadline
        return self._context.deadline(self._settings.timeout, self._settings.stop)

    def _begin_wait(self, entry: Entry, deadline: Deadline) -> None:
        assert entry.job is not None
        entry.deadline = deadline
        entry.seen, entry.moved_at = movement(entry.job.progress), self._clock()

    def _finish(
        self,
        entry: Entry,
        result: GeneratedImage | None = None,
        *,
        error: ImageLabsError | None = None,
    ) -> None:
        if result is not None:
            timings = attrs.astuple(result.timings)
            self._record(entry, "done", lambda: {"url": result.url, "timings": timings})
        elif isinstance(error, JobFailedError):
            facts = {name: getattr(error, name) for name in ("message", "status", "waited")}
            self._record(entry, "failed", lambda: facts)
        self.put(entry.place.outcome(entry.request, result, error, entry.job))

    def _record(
        self, entry: Entry, event: str, facts: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        if self._checkpoint is not None:
            self._checkpoint.append(entry.index, event, facts())

    # What is due: with the lock held ------------------------------------------------------

    def _next_task(self) -> _Task | None:
        """Wait for the next task of this worker; return `None` when the scheduler was stopped."""
        with self._work_ready:
            while not self._stopped:
                if self._batch_deadline.stopped or self._batch_deadline.passed:
                    self._stop_early()
                    return None
                now = self._clock()
                if task := self._due_task(now):
                    self._work_ready.notify()  # another worker checks what else is due, or waits
                    return task
                self._wait_until_due(now)
        return None

    def _due_task(self, now: float) -> _Task | None:
        submit = bool(self._submit_queue) and self._admission.next_submit_at <= now
        poll = bool(self._poll_queue) and self._poll_queue[0][0] <= now
        if poll and not (submit and self._polls_since_submit >= _POLLS_PER_SUBMIT):
            self._polls_since_submit += 1
            return self._poll, heapq.heappop(self._poll_queue)[-1]
        if not submit:
            return None
        entry = self._submit_queue.popleft()
        self._polls_since_submit = 0
        self._admission.submitting(entry.attempts, now)
        return self._submit, entry

    def _wait_until_due(self, now: float) -> None:
        """Wait for something to do. The first worker that waits also waits for the due time."""
        until = now + self._batch_deadline.remaining()
        if self._poll_queue:
            until = min(until, self._poll_queue[0][0])
        if self._submit_queue:
            until = min(until, self._admission.next_submit_at)
        if until >= self._timer_until or (self._simulated and not self._all_rest):
            self._resting += 1
            self._work_ready.wait()
            self._resting -= 1
            return
        self._timer_until = until
        self._sleep(min(until - now, self._max_wait))
        if self._timer_until == until:
            self._timer_until = math.inf

    @property
    def _all_rest(self) -> bool:
        """True if the worker that asks is the only thread that could do anything."""
        caller_rests = self._caller_waits and not (self._outcomes or self._progress)
        return caller_rests and self._resting == len(self._threads) - 1

    def _wait_for_outcome(self) -> None:
        self._caller_waits = True
        if self._simulated:
            self._work_ready.notify()  # one of the workers lets the time pass
        try:
            self._outcome_ready.wait(self._max_wait)
        finally:
            self._caller_waits = False

    def _sleep(self, length: float) -> None:
        sleep = self._context.polling.sleep
        if sleep is time.sleep:
            self._work_ready.wait(length)
            return
        self._work_ready.release()  # the caller's own clock, which only its own sleep advances
        try:
            sleep(length)
        finally:
            self._work_ready.acquire()

    def _schedule_poll(self, entry: Entry) -> None:
        assert entry.job is not None
        due = self._clock() + entry.job.next_poll_in
        due = min(due, entry.deadline.at, entry.moved_at + self._stall)
        heapq.heappush(self._poll_queue, (due, entry.index, entry))

    def _stop_early(self) -> None:
        """Stop for the caller's `stop` or for the deadline of the batch."""
        if not self._stopped:
            what = self.unfinished_message() or "no accepted job is unfinished"
            self._worker_error = (
                JobStoppedError(f"stopped by the caller; {what}")
                if self._batch_deadline.stopped
                else JobTimeoutError(f"the deadline of the batch has passed; {what}")
            )
            self._stop()

    def _stop(self) -> None:
        self._stopped = True
        for entry in self._submit_queue:
            if entry.unknown is not None:  # it was to be sent again; it may have been accepted
                self.put(entry.place.outcome(entry.request, error=entry.unknown))
        self._submit_queue.clear()
        self._work_ready.notify_all()
        self._outcome_ready.notify_all()
