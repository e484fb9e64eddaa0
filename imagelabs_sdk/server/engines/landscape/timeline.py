"""The landscape engine without threads: its jobs are computed when they are asked for."""

import functools
import threading
from collections.abc import Callable

import attrs

from ....provenance import SourceType, with_provenance
from ...encoding import encode
from ...store.jobs import JobStore
from ..base import RenderJob
from .engine import LandscapeEngine
from .renders import finished, info, unfinished

__all__ = ["Timeline"]


@attrs.define
class _Slot:
    """One of the engine's workers, as far as anybody can tell.

    Attributes:
        free_at: When it was or will be free, by the clock.
        job: What it renders; None: nothing.
        finishing: True while a thread paints the image.
    """

    free_at: float
    job: RenderJob | None = None
    finishing: bool = False


class Timeline:
    """Moves the jobs of a store on, whenever `advance` is called, as workers would have by then.

    Nothing runs in between. A finished image is painted in the thread that finds it finished; no
    more threads paint at once than the engine has workers.
    """

    def __init__(
        self, store: JobStore, engine: LandscapeEngine, clock: Callable[[], float]
    ) -> None:
        self._store, self._clock = store, clock
        self._engine = attrs.evolve(engine, max_batch=1, batch_wait=0.0)
        self._slots = [_Slot(clock()) for _ in range(engine.workers)]
        self._lock = threading.Lock()

    def advance(self) -> None:
        """Finish what is due, give free slots the next jobs, and report progress."""
        self.claim()
        while (slot := self._next_due()) is not None:
            self._finish(slot)
            self.claim()
        for slot in self._slots:
            self._report(slot.job, slot.free_at)

    def claim(self) -> None:
        """Give queued jobs to free slots: one that was idle starts now, others when they freed."""
        with self._lock:
            now = self._clock()
            for slot in sorted(self._slots, key=lambda slot: slot.free_at):
                if slot.job is None:
                    jobs = self._store.claim(self._engine).jobs
                    begin = slot.free_at if jobs and slot.finishing else now
                    slot.job, slot.finishing = (jobs[0] if jobs else None), False
                    slot.free_at = begin + self._engine.duration if jobs else now

    def _next_due(self) -> _Slot | None:
        """Return the slot whose image is finished first by now; the caller paints it."""
        with self._lock:
            now = self._clock()
            due = [s for s in self._slots if s.job and not s.finishing and s.free_at <= now]
            if not due:
                return None
            slot = min(due, key=lambda slot: slot.free_at)
            slot.finishing = True
            return slot

    def _finish(self, slot: _Slot) -> None:
        job = slot.job
        if job is not None and self._store.is_wanted(job):
            made = info(job.request, self._engine.duration)
            data = with_provenance(encode(finished(job.request)), SourceType.ALGORITHMIC, made)
            self._store.finish(job, data, "image/png", made)
        with self._lock:
            slot.job = None  # still marked as finishing: the next job began when this one ended

    def _report(self, job: RenderJob | None, free_at: float) -> None:
        if job is None or self._engine.duration == 0:
            return
        fraction = 1.0 - (free_at - self._clock()) / self._engine.duration
        if 0.0 <= fraction < 1.0:
            preview = functools.partial(_preview, job, fraction)
            self._store.progress(job, fraction, preview)


def _preview(job: RenderJob, fraction: float) -> bytes:
    return encode(unfinished(job.request, fraction))
