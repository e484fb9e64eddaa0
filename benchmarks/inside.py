"""What runs in a fresh process, so that its peak of memory and its imports are its own.

Imports as little as it can before it measures.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["download", "generate_many", "peak", "thread_per_job"]

_EVERY = 0.05  # seconds between two glances at threads and sockets


def peak() -> float:
    """The most memory that this process has held, in MiB.

    Not by getrusage: that counts the process which started this one, too.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def forget_peak() -> None:
    """Let the peak begin anew, at what is held now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def download(name: str, warm: str, base: str, path: str) -> dict[str, float]:
    """One download, after a small one has paid for imports. The job before it is not counted."""
    from .ways import DOWNLOADS

    DOWNLOADS[name](warm)(path)
    bring = DOWNLOADS[name](base)
    forget_peak()
    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    bring(path)
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return {**spent, "growth": peak() - before, "size": float(Path(path).stat().st_size)}


class _Watch(threading.Thread):
    """Counts the most threads (but for this one) and sockets that the process had at once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.threads = self.sockets = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(_EVERY):
            self.threads = max(self.threads, threading.active_count() - 1)
            self.sockets = max(self.sockets, _sockets())


def _sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            count += str(link.readlink()).startswith("socket:")
    return count


@contextlib.contextmanager
def _timer_until(found: dict[str, Any]) -> Iterator[None]:
    """Put into `found` what happens in the block."""
    watch = _Watch()
    forget_peak()
    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    watch.start()
    yield
    found["cpu"], found["wall"] = time.process_time() - cpu, time.perf_counter() - wall
    found["growth"] = peak() - before
    watch.over.set()
    watch.join()
    found["threads"], found["sockets"] = watch.threads, watch.sockets


def generate_many(base: str, warm: str, jobs: int) -> dict[str, Any]:
    """All jobs at once, by this SDK."""
    from imagelabs_sdk import ImageLabs

    from .server import ends_at
    from .ways import PROMPT, ours

    ours(warm, None)()
    delays: list[float] = []
    found: dict[str, Any] = {"delays": delays}
    with _timer_until(found), ImageLabs(base) as client:
        items = (f"{PROMPT}, no. {number}" for number in range(jobs))
        for outcome in client.generate_many(items, max_in_flight=jobs, workers=8):
            if outcome.result is not None:
                delays.append(time.monotonic() - ends_at(outcome.result.task_id))
    return {**found, "failed": jobs - len(delays)}


def thread_per_job(base: str, warm: str, jobs: int) -> dict[str, Any]:
    """The same as one would write it: a thread per job, one `Session`, a poll a second."""
    from concurrent.futures import ThreadPoolExecutor

    from .server import ends_at
    from .ways import session_loop

    session_loop(warm, None)()
    delays: list[float] = []
    found: dict[str, Any] = {"delays": delays}

    def one(_: int) -> None:
        end = ends_at(str(job()))
        delays.append(time.monotonic() - end)

    with _timer_until(found), ThreadPoolExecutor(jobs) as pool:
        job = session_loop(base, None, time.sleep)
        futures = [pool.submit(one, number) for number in range(jobs)]
    found["failed"] = sum(future.exception() is not None for future in futures)
    return found
