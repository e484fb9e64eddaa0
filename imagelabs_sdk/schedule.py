"""Who does what next, when a few threads work on many jobs: polls, submits, pauses."""

import heapq
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs

from .checkpoint import Checkpoint
from .deadline import Deadline
from .endpoints import submit_retry_delay
from .errors import ImageLabsError, JobFailedError, RateLimitError, sanitize_text
from .images import GeneratedImage
from .jobs import ClientContext, Job
from .models import ImageRequest, Progress
from .validation import invalid, seconds

__all__ = ["Entry", "Outcome", "Schedule", "Settings"]

log = logging.getLogger(__name__)

_POLLS_PER_SUBMIT = 4  # while polls are late, so that these do not keep submits out for ever
_LEAST_HOLD = 1.0  # seconds without submits after one that may not be sent again
_LONGEST_HOLD = 3600.0  # seconds for which the service may hold back the submits of a batch
_LONGEST_REST = 86_400.0  # seconds; the wait for a lock has an end
_MOST_NAMED = 100  # jobs in one line of the log


@attrs.frozen
class Outcome:
    """What became of one item: a result or an error, one of the two.

    Attributes:
        index: The item's place, counted from 0.
        request: With the seeds used; `None` when the item was none.
        result: The image, not fetched yet.
        error: Why there is none. `InvalidRequestError`: the item cannot be used, nothing was
            sent. `SubmissionUnknownError`: it may have been accepted, perhaps for an earlier
            run of this checkpoint; it was not sent again. The others as in `ImageLabs.generate`.
        job: `None` if none is known to have been accepted. After a `JobTimeoutError` or a
            `JobStalledError` `job.wait()` goes on.
    """

    index: int
    request: ImageRequest | None
    result: GeneratedImage | None = None
    error: ImageLabsError | None = None
    job: Job | None = None


def _at_least_one(_: object, field: "attrs.Attribute[int]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(field.name, value, "must be a whole number, 1 or more")


def _seconds(_: object, field: "attrs.Attribute[Any]", value: float | None) -> None:
    # What the field holds by default needs no check: 0 seconds between submits, no timeout.
    if value != field.default:
        seconds(field.name, value)


@attrs.frozen(kw_only=True)
class Settings:
    """How much at once; see `ImageLabs.generate_many`."""

    max_in_flight: int = attrs.field(validator=_at_least_one)
    workers: int = attrs.field(validator=_at_least_one)
    timeout: float | None = attrs.field(default=None, validator=_seconds)
    min_interval: float = attrs.field(default=0.0, validator=_seconds)


@attrs.define(eq=False)
class Entry:
    """One item on its way; one thread at a time has it in hand.

    Attributes:
        index: Its place.
        request: What is asked for, with its seeds.
        fingerprint: Of the item as the caller gave it; empty without a checkpoint.
        job: `None` until it is accepted.
        deadline: When our patience with the job ends.
        attempts: How often it was sent, not counting those that were turned away together
            with another.
        probe: Whether it was sent alone, to see whether the service takes submits again.
    """

    index: int
    request: ImageRequest
    fingerprint: str = ""
    job: Job | None = None
    deadline: Deadline = Deadline()  # noqa: RUF009 - frozen
    attempts: int = 0
    probe: bool = False


_Task: TypeAlias = tuple[Callable[[Entry], None], Entry]


class Schedule:
    """Items go in and outcomes come out, in the caller's thread; workers do what is due.

    There is no thread besides the workers: one of those that wait watches the clock for all.
    """

    def __init__(
        self,
        context: ClientContext,
        settings: Settings,
        checkpoint: Checkpoint | None,
        *,
        listens: bool,
    ) -> None:
        """Starts nothing.

        Args:
            context: The client's.
            settings: How much at once.
            checkpoint: Closed by `stop`; `None`: nothing is kept.
            listens: Whether somebody will ask what was `heard`.
        """
        self._context, self._settings, self._checkpoint = context, settings, checkpoint
        # A worker that sleeps looks after no job: submits are sent once here, and put back.
        self._endpoints = attrs.evolve(context.endpoints, max_retries=0)
        self._clock, self._listens, self._pid = context.polling.clock, listens, os.getpid()
        lock = threading.RLock()  # the collector may call `stop` where it is held
        self._work_ready = threading.Condition(lock)  # workers wait here for something to do
        self._outcome_ready = threading.Condition(lock)  # the caller waits here for an outcome
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._broken: BaseException | None = None
        self._live: dict[int, Entry] = {}  # what went in and has not come out
        self._fresh: deque[Entry] = deque()  # to be submitted
        self._polls: list[tuple[float, int, Entry]] = []  # a heap, by the time when they are due
        self._ready: deque[Outcome] = deque()
        self._fresh_progress: dict[int, Progress] = {}
        self._polls_since_submit = 0  # polls since the last submit
        self._sending = 0  # submits under way
        self._refusals = 0  # submits that were turned away in a row
        self._next_submit_at = -math.inf  # when the next submit may leave
        self._timer_until = math.inf  # until when a worker watches the clock

    # The caller's side -----------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another item may come in; outcomes that wait to be taken need room, too."""
        return not self._stopped and len(self._live) < self._settings.max_in_flight

    @property
    def idle(self) -> bool:
        """Whether no outcome will come by itself."""
        return self._stopped or not self._live

    def add(self, entry: Entry) -> None:
        """Begin with an item, or go on with its job."""
        with self._work_ready:
            self._live[entry.index] = entry
            if entry.job is None:
                self._fresh.append(entry)
            else:
                entry.deadline = self._context.deadline(self._settings.timeout)
                self._plan(entry)
            self._work_ready.notify()
        if len(self._threads) < self._settings.workers:
            name = f"imagelabs-batch-{len(self._threads) + 1}"
            # A daemon: who leaves an unfinished batch behind can still leave the program.
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def put(self, outcome: Outcome) -> None:
        """Let an outcome be taken."""
        with self._outcome_ready:
            self._ready.append(outcome)
            self._outcome_ready.notify()

    def take(self, *, wait: bool) -> Outcome | None:
        """An outcome; `None` if there is none now, or if something else ended the waiting.

        Raises:
            BaseException: What went wrong in a worker and is no item's own failure; once.
        """
        with self._outcome_ready:
            while wait and not (self._ready or self._fresh_progress or self.idle):
                self._outcome_ready.wait()
            if self._ready:
                outcome = self._ready.popleft()
                self._live.pop(outcome.index, None)
                self._fresh_progress.pop(outcome.index, None)
                return outcome
            broken, self._broken = self._broken, None
        if broken is not None:
            raise broken
        return None

    def take_progress(self) -> dict[int, Progress]:
        """The latest poll of each job that was polled since the last call, by index."""
        with self._outcome_ready:
            heard, self._fresh_progress = self._fresh_progress, {}
        return heard

    def unfinished(self) -> dict[int, Job]:
        """By index, the jobs that were accepted and whose outcome was not taken."""
        with self._outcome_ready:
            return {index: entry.job for index, entry in self._live.items() if entry.job}

    def unfinished_message(self) -> str:
        """What to tell when `unfinished` are left behind; empty if none are."""
        names = [sanitize_text(job.id, 256) for job in self.unfinished().values()]
        if not names:
            return ""
        shown = ", ".join(names[:_MOST_NAMED]) + (", ..." if names[_MOST_NAMED:] else "")
        kept = f", {sanitize_text(self._checkpoint.path)} knows them" if self._checkpoint else ""
        return f"jobs that go on at the service{kept} ({len(names)}): task ids {shown}"

    def stop(self) -> None:
        """Let the workers finish the exchanges under way, and wait for their end."""
        if os.getpid() != self._pid:  # in the child of a fork, which has none of the threads
            return
        with self._work_ready:
            self._stop()
        if threading.current_thread() in self._threads:  # called by the collector
            return
        for thread in self._threads:
            thread.join()
        if self._checkpoint is not None:
            self._checkpoint.close()
        if unfinished_message := self.unfinished_message():
            log.warning("stopped early; %s", unfinished_message)

    # What a worker does ------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (task := self._next()) is not None:
                act, entry = task
                act(entry)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            with self._work_ready:
                self._broken = error
                self._stop()

    def _submit(self, entry: Entry) -> None:
        self._note(entry, "sending", lambda: {"fingerprint": entry.fingerprint})
        deadline = self._context.deadline(self._settings.timeout)
        try:
            task_id = self._endpoints.submit(entry.request, deadline=deadline)
        except ImageLabsError as error:
            self._turned_down(entry, error)
            return
        job = Job(task_id, self._context, request=entry.request, first_poll_now=False)
        entry.job, entry.deadline = job, deadline
        self._note(entry, "accepted", lambda: {"job": job.to_dict()})
        with self._work_ready:
            self._sending -= 1
            self._refusals = 0
            self._plan(entry)

    def _turned_down(self, entry: Entry, error: ImageLabsError) -> None:
        """Send it again later, if that cannot buy twice; or let its error be its outcome."""
        delivered = getattr(error, "delivered", "maybe")
        if delivered != "maybe":
            self._note(entry, "refused")
        with self._work_ready:
            self._sending -= 1
            again = delivered == "no" and self._slow_down(entry, error)
            if again:
                self._fresh.appendleft(entry)
            if delivered != "no":  # the service took it up: it takes submits again
                self._refusals = 0
        if not again:
            self._end(entry, error=error)

    def _slow_down(self, entry: Entry, error: ImageLabsError) -> bool:
        """Hold back all submits. Answers whether this one may be sent again."""
        # Those that left together are turned away together: only one of them counts.
        if entry.probe or not self._refusals:
            self._refusals += 1
            entry.attempts += 1
        pause = submit_retry_delay(error, self._refusals)
        self._hold(error, _LEAST_HOLD if pause is None else pause)
        return pause is not None and entry.attempts <= self._context.endpoints.max_retries

    def _poll(self, entry: Entry) -> None:
        job = entry.job
        assert job is not None
        try:
            result = job.poll(timeout=entry.deadline.remaining())
            image = job.image() if result.next_poll_in is None else None
        except ImageLabsError as error:
            self._end(entry, error=error)
            return
        if image is not None:
            self._end(entry, image)
            return
        with self._work_ready:
            if isinstance(result.error, RateLimitError):
                self._hold(result.error, _LEAST_HOLD)
            if self._listens and result.error is None and result.progress is not None:
                self._fresh_progress[entry.index] = result.progress
                self._outcome_ready.notify()
            self._plan(entry)

    def _end(
        self,
        entry: Entry,
        result: GeneratedImage | None = None,
        *,
        error: ImageLabsError | None = None,
    ) -> None:
        if result is not None:
            timings = attrs.astuple(result.timings)
            self._note(entry, "done", lambda: {"url": result.url, "timings": timings})
        elif isinstance(error, JobFailedError):
            facts = {name: getattr(error, name) for name in ("message", "status", "waited")}
            self._note(entry, "failed", lambda: facts)
        self.put(Outcome(entry.index, entry.request, result, error, entry.job))

    def _note(
        self, entry: Entry, event: str, facts: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        if self._checkpoint is not None:
            self._checkpoint.append(entry.index, event, facts())

    # When: with the lock held ----------------------------------------------------------------

    def _next(self) -> _Task | None:
        """What this worker does now; waits for it. `None`: it was the last."""
        with self._work_ready:
            while not self._stopped:
                now = self._clock()
                if task := self._due(now):
                    self._work_ready.notify()  # who is woken does what else is due, or watches
                    return task
                self._rest(now)
        return None

    def _due(self, now: float) -> _Task | None:
        submit = self._may_submit and self._next_submit_at <= now
        poll = bool(self._polls) and self._polls[0][0] <= now
        if poll and not (submit and self._polls_since_submit >= _POLLS_PER_SUBMIT):
            self._polls_since_submit += 1
            return self._poll, heapq.heappop(self._polls)[-1]
        if not submit:
            return None
        entry = self._fresh.popleft()
        entry.probe = self._refusals > 0
        self._polls_since_submit = 0
        self._sending += 1
        self._next_submit_at = now + self._settings.min_interval
        return self._submit, entry

    @property
    def _may_submit(self) -> bool:
        """Not while a probe is under way, which tells whether submits are taken again."""
        return bool(self._fresh) and not (self._refusals and self._sending)

    def _rest(self, now: float) -> None:
        """Wait for something to do. The first who waits also watches the clock."""
        until = self._polls[0][0] if self._polls else math.inf
        if self._may_submit:
            until = min(until, self._next_submit_at)
        if until >= self._timer_until:
            self._work_ready.wait()
            return
        self._timer_until = until
        self._pause(min(until - now, _LONGEST_REST))
        if self._timer_until == until:
            self._timer_until = math.inf

    def _pause(self, length: float) -> None:
        sleep = self._context.polling.sleep
        if sleep is time.sleep:
            self._work_ready.wait(length)
            return
        self._work_ready.release()  # a clock of the caller's own, which only its own sleep moves
        try:
            sleep(length)
        finally:
            self._work_ready.acquire()

    def _plan(self, entry: Entry) -> None:
        assert entry.job is not None
        due = min(self._clock() + entry.job.next_poll_in, entry.deadline.at)
        heapq.heappush(self._polls, (due, entry.index, entry))

    def _hold(self, error: ImageLabsError, least: float) -> None:
        """No submit for `least` seconds, or for as long as the service asks, within reason."""
        asked: float = getattr(error, "retry_after", None) or 0.0
        pause = max(least, min(asked, _LONGEST_HOLD))
        self._next_submit_at = max(self._next_submit_at, self._clock() + pause)

    def _stop(self) -> None:
        self._stopped = True
        self._work_ready.notify_all()
        self._outcome_ready.notify_all()
