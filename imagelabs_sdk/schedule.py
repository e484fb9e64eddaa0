"""Who does what next, when a few threads work on many jobs: looks, submits, pauses."""

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
from .checks import invalid, seconds
from .deadline import Deadline
from .endpoints import resend_after
from .errors import ImageLabsError, JobFailedError, RateLimitError, printable
from .images import GeneratedImage
from .jobs import Job, Wiring
from .models import ImageRequest, Progress

__all__ = ["Entry", "Outcome", "Schedule", "Settings"]

log = logging.getLogger(__name__)

_LOOKS_PER_SUBMIT = 4  # while looks are late, so that these do not keep submits out for ever
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
        result: The picture, not fetched yet.
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
        wiring: Wiring,
        settings: Settings,
        checkpoint: Checkpoint | None,
        *,
        listens: bool,
    ) -> None:
        """Starts nothing.

        Args:
            wiring: The client's.
            settings: How much at once.
            checkpoint: Closed by `stop`; `None`: nothing is kept.
            listens: Whether somebody will ask what was `heard`.
        """
        self._wiring, self._settings, self._checkpoint = wiring, settings, checkpoint
        # A worker that sleeps looks after no job: submits are sent once here, and put back.
        self._endpoints = attrs.evolve(wiring.endpoints, max_retries=0)
        self._clock, self._listens, self._pid = wiring.polling.clock, listens, os.getpid()
        lock = threading.RLock()  # the collector may call `stop` where it is held
        self._turn = threading.Condition(lock)  # workers wait here for something to do
        self._news = threading.Condition(lock)  # the caller waits here for an outcome
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._broken: BaseException | None = None
        self._live: dict[int, Entry] = {}  # what went in and has not come out
        self._fresh: deque[Entry] = deque()  # to be submitted
        self._looks: list[tuple[float, int, Entry]] = []  # a heap, by the time when they are due
        self._ready: deque[Outcome] = deque()
        self._heard: dict[int, Progress] = {}
        self._streak = 0  # looks since the last submit
        self._sending = 0  # submits under way
        self._refusals = 0  # submits that were turned away in a row
        self._opens = -math.inf  # when the next submit may leave
        self._watched = math.inf  # until when a worker watches the clock

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
        with self._turn:
            self._live[entry.index] = entry
            if entry.job is None:
                self._fresh.append(entry)
            else:
                entry.deadline = self._wiring.deadline(self._settings.timeout)
                self._plan(entry)
            self._turn.notify()
        if len(self._threads) < self._settings.workers:
            name = f"imagelabs-batch-{len(self._threads) + 1}"
            # A daemon: who leaves an unfinished batch behind can still leave the program.
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def put(self, outcome: Outcome) -> None:
        """Let an outcome be taken."""
        with self._news:
            self._ready.append(outcome)
            self._news.notify()

    def take(self, *, wait: bool) -> Outcome | None:
        """An outcome; `None` if there is none now, or if something else ended the waiting.

        Raises:
            BaseException: What went wrong in a worker and is no item's own failure; once.
        """
        with self._news:
            while wait and not (self._ready or self._heard or self.idle):
                self._news.wait()
            if self._ready:
                outcome = self._ready.popleft()
                self._live.pop(outcome.index, None)
                self._heard.pop(outcome.index, None)
                return outcome
            broken, self._broken = self._broken, None
        if broken is not None:
            raise broken
        return None

    def heard(self) -> dict[int, Progress]:
        """The latest look at each job that was looked at since the last call, by index."""
        with self._news:
            heard, self._heard = self._heard, {}
        return heard

    def unfinished(self) -> dict[int, Job]:
        """By index, the jobs that were accepted and whose outcome was not taken."""
        with self._news:
            return {index: entry.job for index, entry in self._live.items() if entry.job}

    def farewell(self) -> str:
        """What to tell when `unfinished` are left behind; empty if none are."""
        names = [printable(job.id, 256) for job in self.unfinished().values()]
        if not names:
            return ""
        shown = ", ".join(names[:_MOST_NAMED]) + (", ..." if names[_MOST_NAMED:] else "")
        kept = f", {printable(self._checkpoint.path)} knows them" if self._checkpoint else ""
        return f"jobs that go on at the service{kept} ({len(names)}): task ids {shown}"

    def stop(self) -> None:
        """Let the workers finish the exchanges under way, and wait for their end."""
        if os.getpid() != self._pid:  # in the child of a fork, which has none of the threads
            return
        with self._turn:
            self._stop()
        if threading.current_thread() in self._threads:  # called by the collector
            return
        for thread in self._threads:
            thread.join()
        if self._checkpoint is not None:
            self._checkpoint.close()
        if farewell := self.farewell():
            log.warning("stopped early; %s", farewell)

    # What a worker does ------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (task := self._next()) is not None:
                act, entry = task
                act(entry)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            with self._turn:
                self._broken = error
                self._stop()

    def _submit(self, entry: Entry) -> None:
        self._note(entry, "sending", lambda: {"fingerprint": entry.fingerprint})
        deadline = self._wiring.deadline(self._settings.timeout)
        try:
            task_id = self._endpoints.submit(entry.request, deadline=deadline)
        except ImageLabsError as error:
            self._turned_down(entry, error)
            return
        job = Job(task_id, self._wiring, request=entry.request, first_look_now=False)
        entry.job, entry.deadline = job, deadline
        self._note(entry, "accepted", lambda: {"job": job.to_dict()})
        with self._turn:
            self._sending -= 1
            self._refusals = 0
            self._plan(entry)

    def _turned_down(self, entry: Entry, error: ImageLabsError) -> None:
        """Send it again later, if that cannot buy twice; or let its error be its outcome."""
        delivered = getattr(error, "delivered", "maybe")
        if delivered != "maybe":
            self._note(entry, "refused")
        with self._turn:
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
        pause = resend_after(error, self._refusals)
        self._hold(error, _LEAST_HOLD if pause is None else pause)
        return pause is not None and entry.attempts <= self._wiring.endpoints.max_retries

    def _look(self, entry: Entry) -> None:
        job = entry.job
        assert job is not None
        try:
            step = job.step(timeout=entry.deadline.remaining())
            image = job.image() if step.delay is None else None
        except ImageLabsError as error:
            self._end(entry, error=error)
            return
        if image is not None:
            self._end(entry, image)
            return
        with self._turn:
            if isinstance(step.error, RateLimitError):
                self._hold(step.error, _LEAST_HOLD)
            if self._listens and step.error is None and step.progress is not None:
                self._heard[entry.index] = step.progress
                self._news.notify()
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
        with self._turn:
            while not self._stopped:
                now = self._clock()
                if task := self._due(now):
                    self._turn.notify()  # who is woken does what else is due, or watches
                    return task
                self._rest(now)
        return None

    def _due(self, now: float) -> _Task | None:
        submit = self._may_submit and self._opens <= now
        look = bool(self._looks) and self._looks[0][0] <= now
        if look and not (submit and self._streak >= _LOOKS_PER_SUBMIT):
            self._streak += 1
            return self._look, heapq.heappop(self._looks)[-1]
        if not submit:
            return None
        entry = self._fresh.popleft()
        entry.probe = self._refusals > 0
        self._streak = 0
        self._sending += 1
        self._opens = now + self._settings.min_interval
        return self._submit, entry

    @property
    def _may_submit(self) -> bool:
        """Not while a probe is under way, which tells whether submits are taken again."""
        return bool(self._fresh) and not (self._refusals and self._sending)

    def _rest(self, now: float) -> None:
        """Wait for something to do. The first who waits also watches the clock."""
        until = self._looks[0][0] if self._looks else math.inf
        if self._may_submit:
            until = min(until, self._opens)
        if until >= self._watched:
            self._turn.wait()
            return
        self._watched = until
        self._pause(min(until - now, _LONGEST_REST))
        if self._watched == until:
            self._watched = math.inf

    def _pause(self, length: float) -> None:
        sleep = self._wiring.polling.sleep
        if sleep is time.sleep:
            self._turn.wait(length)
            return
        self._turn.release()  # a clock of the caller's own, which only its own sleep moves
        try:
            sleep(length)
        finally:
            self._turn.acquire()

    def _plan(self, entry: Entry) -> None:
        assert entry.job is not None
        due = min(self._clock() + entry.job.pause, entry.deadline.at)
        heapq.heappush(self._looks, (due, entry.index, entry))

    def _hold(self, error: ImageLabsError, least: float) -> None:
        """No submit for `least` seconds, or for as long as the service asks, within reason."""
        asked: float = getattr(error, "retry_after", None) or 0.0
        pause = max(least, min(asked, _LONGEST_HOLD))
        self._opens = max(self._opens, self._clock() + pause)

    def _stop(self) -> None:
        self._stopped = True
        self._turn.notify_all()
        self._news.notify_all()
