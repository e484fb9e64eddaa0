"""SIGTERM and SIGHUP end a command like Ctrl-C."""

import signal
import subprocess
import threading

import pytest

from imagelabs_sdk.cli.signals import TerminatedError, signals_as_exceptions
from imagelabs_sdk.testing import FakeService
from tests.cli.conftest import PROGRAM, Start, place


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("SIGINT", (130, "interrupted")),
        ("SIGTERM", (143, "ended by SIGTERM")),
        ("SIGHUP", (129, "ended by SIGHUP")),
    ],
)
def test_a_signal_leaves_with_its_code_and_the_way_back(
    service: FakeService, url: str, start: Start, name: str, end: tuple[int, str]
) -> None:
    """The one thing that must not be lost is the task id."""
    service.queued()
    process = start("generate", "x", "-o", "x.png", *place(url))
    assert process.stderr is not None
    assert any("queued" in line for line in process.stderr)
    process.send_signal(signal.Signals[name])
    stdout, stderr = process.communicate(timeout=20)
    code, word = end
    assert (process.returncode, stdout) == (code, "")
    assert stderr.splitlines() == [
        f"imagelabs: {word}",
        f"To resume: python -m imagelabs_sdk wait task-1 -o x.png --base-url {url}",
    ]


def test_a_signal_while_nothing_was_bought_is_one_line(
    service: FakeService, url: str, start: Start
) -> None:
    """click turns the exception into one of its own."""
    service.known_job("task-1").hangs(at="progress")
    process = start("status", "task-1", *place(url)[:2])
    while not service.count("progress"):
        pass
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=20)[1]
    assert (process.returncode, stderr.strip()) == (143, "imagelabs: ended by SIGTERM")


def test_a_signal_that_the_parent_ignores_stays_ignored(service: FakeService, url: str) -> None:
    """``nohup imagelabs generate ... &`` survives the end of its terminal."""
    service.queued(3).done()
    words = [*PROGRAM, "generate", "x", "-o", "x.png", *place(url)]
    shell = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words]
    process = subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("queued" in line for line in process.stderr)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20)[0] == "x.png\n"
    assert process.returncode == 0


def test_in_this_process_too_an_ignored_signal_stays_ignored() -> None:
    """As above, where coverage is measured."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals_as_exceptions():
        signal.raise_signal(signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


def test_handlers_are_as_before_at_the_end() -> None:
    """The command may run inside another program."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError), signals_as_exceptions():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_no_handler_is_set() -> None:
    """Python sets handlers in the main thread alone."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with signals_as_exceptions():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
