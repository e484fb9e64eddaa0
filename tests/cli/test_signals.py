"""SIGTERM and SIGHUP end a command like Ctrl-C."""

import signal
import subprocess
import threading

import pytest

from imagelabs_sdk.cli.signals import TerminatedError, signals_as_exceptions
from tests.cli.conftest import PROGRAM, Start, place
from tests.faulty import QUEUED, FaultyServer


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("SIGINT", 130, "interrupted"),
        ("SIGTERM", 143, "ended by SIGTERM"),
        ("SIGHUP", 129, "ended by SIGHUP"),
    ],
)
def test_a_signal_leaves_with_its_code_and_the_way_back(
    server: FaultyServer, start: Start, name: str, code: int, word: str
) -> None:
    """The one thing that must not be lost is the task id."""
    server.scripts["/progress"] = [QUEUED]
    process = start("generate", "x", "-o", "x.png", *place(server))
    assert process.stderr is not None
    assert any("queued" in line for line in process.stderr)
    process.send_signal(signal.Signals[name])
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (code, "")
    assert stderr.splitlines() == [
        f"imagelabs: {word}",
        f"To resume: python -m imagelabs_sdk wait task-1 -o x.png --base-url {server.url}",
    ]


def test_a_signal_while_nothing_was_bought_is_one_line(server: FaultyServer, start: Start) -> None:
    """click turns the exception into one of its own."""
    server.scripts["/progress"] = [lambda wire: wire.hang()]
    process = start("status", "task-1", *place(server)[:2])
    while not server.count("/progress"):
        pass
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=20)[1]
    assert (process.returncode, stderr.strip()) == (143, "imagelabs: ended by SIGTERM")


def test_a_signal_that_the_parent_ignores_stays_ignored(server: FaultyServer) -> None:
    """``nohup imagelabs generate ... &`` survives the end of its terminal."""
    server.scripts["/progress"] = [QUEUED, QUEUED, QUEUED, server.done()]
    words = [*PROGRAM, "generate", "x", "-o", "x.png", *place(server)]
    shell = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words]
    process = subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("queued" in line for line in process.stderr)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20)[0] == "x.png\n"
    assert process.returncode == 0


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
