"""Let SIGTERM and SIGHUP end a command like Ctrl-C, so that no task id is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["HangupError", "TerminatedError", "signals_as_exceptions"]


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: another program ends this one."""


class HangupError(KeyboardInterrupt):
    """SIGHUP: the terminal was closed."""


_ERRORS: dict[str, type[KeyboardInterrupt]] = {"SIGTERM": TerminatedError, "SIGHUP": HangupError}


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise an exception in the main thread for each of these signals while in ``with``.

    A signal that the parent process has ignored stays ignored, as under ``nohup``.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _ERRORS:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _: FrameType | None) -> NoReturn:
    raise _ERRORS[signal.Signals(number).name]
