"""Threads that take steps, and that a process may leave behind when it ends."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import attrs

__all__ = ["StepThreads"]


@attrs.frozen
class _Task:
    key: Any
    call: Callable[[], Any]


class StepThreads:
    """Run calls in up to so many threads; their results come back through one queue.

    The threads are daemons: those of `concurrent.futures` are joined when the interpreter ends,
    so that a service that hangs would keep a worker from stopping.
    """

    def __init__(self, count: int) -> None:
        """Start no thread yet.

        Args:
            count: How many threads there may be.
        """
        self._count = count
        self._threads: list[threading.Thread] = []
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._running = 0

    def start(self, key: object, call: Callable[[], Any]) -> None:
        """Run `call` in a thread; `finished` returns its result under `key`."""
        self._running += 1
        self._tasks.put(_Task(key, call))
        if len(self._threads) < min(self._running, self._count):
            name = f"imagelabs-sweep-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def finished(self, timeout: float) -> list[tuple[Any, Any]]:
        """Return the keys and results of calls that have ended; wait up to `timeout` for one.

        A call that raised has its exception for a result.
        """
        found = []
        try:
            found.append(self._results.get(timeout=timeout))
            while True:
                found.append(self._results.get_nowait())
        except queue.Empty:
            self._running -= len(found)
            return found

    def close(self) -> None:
        """Let the idle threads end, and wait for them; a thread that is busy is left behind."""
        for _ in self._threads:
            self._tasks.put(None)
        if not self._running:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                result = task.call()
            except BaseException as error:  # noqa: BLE001 - the caller's thread judges it
                result = error
            self._results.put((task.key, result))
