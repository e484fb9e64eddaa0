"""How often the command polls: the service tells it when a job ends, where it can."""

import os
import subprocess
from collections.abc import Iterator

import attrs
import pytest

from imagelabs_sdk import HttpRequest, wire
from imagelabs_sdk.server.store.records import JobState
from tests.cli.conftest import PROGRAM
from tests.our_server import OurServer, our_server


def on_a_terminal(server: OurServer, *options: str) -> None:
    """Run the command for one image, its messages on a pseudo-terminal."""
    terminal, theirs = pytest.importorskip("pty").openpty()
    words = ["generate", "x", "-o", "x.png", "--size", "64x48", "--base-url", server.url, *options]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        for _ in pieces(terminal):
            pass
    assert process.returncode == 0


def pieces(terminal: int) -> Iterator[bytes]:
    """Yield what is written to a terminal until nobody has it open."""
    try:
        while piece := os.read(terminal, 65_536):
            yield piece
    except OSError:  # how Linux says so
        pass
    finally:
        os.close(terminal)


@attrs.frozen
class Polled:
    """One poll.

    Attributes:
        prefer: How it wants to be parked; `None`: not at all.
        state: Of its job, when it came.
    """

    prefer: str | None
    state: JobState


def polls_of(duration: float, *options: str) -> list[Polled]:
    """Return the polls of one image that takes `duration` seconds."""
    polls: list[Polled] = []

    def note(request: HttpRequest) -> None:
        if request.url.endswith("/progress"):
            status = server.store.status(wire.decode_progress_query(request.body))
            assert status is not None
            polls.append(Polled(request.headers.get("prefer"), status.state))

    with our_server(duration, note) as server:
        on_a_terminal(server, *options)
    return polls


def test_a_service_that_can_tells_the_command_of_progress_and_of_the_end() -> None:
    """Each poll waits there for news, which is told every quarter of a second at most."""
    polls = polls_of(1.0)
    assert {poll.prefer for poll in polls} == {"wait=25, progress"}
    assert {poll.state for poll in polls} <= {JobState.QUEUED, JobState.RENDERING}
    assert 2 <= len(polls) <= 6


def test_with_an_interval_of_ones_own_the_command_polls_plainly() -> None:
    """It was asked to."""
    polls = polls_of(0.5, "--poll-interval", "0.1")
    assert {poll.prefer for poll in polls} == {None}
    assert polls[-1].state is JobState.DONE
