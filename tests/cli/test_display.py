"""What a person sees while waiting."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.cli.conftest import Start, place
from tests.cli.service import DONE, HALF, WAITING, Command, Gallery, ScriptedService, poll
from tests.faulty import RUNNING, FaultyServer


def test_a_pipe_gets_a_plain_line_per_change_of_state(
    imagelabs: Command, service: ScriptedService
) -> None:
    """A log file full of redrawn bars helps nobody."""
    service.polls = [WAITING, WAITING, HALF, HALF, DONE]
    result = imagelabs("generate", "x", "-o", "x.png", "--seed", 7)
    assert result.stderr.splitlines() == [
        "task task-1: accepted",
        "task task-1: queued (Queue position 2)",
        "task task-1: running (Render [bold]3/6[/bold])",
        "task task-1: done",
        "seed 7, 1152x896 pixels, 5.0 s",
    ]


def test_forced_colours_do_not_bring_the_bar_into_a_pipe(
    imagelabs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CI services set FORCE_COLOR, and keep what is written."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in imagelabs("generate", "x", "-o", "x.png").stderr


def test_a_terminal_sees_one_bar_for_a_batch(
    imagelabs: Command, gallery: Gallery, screen: io.StringIO
) -> None:
    """Failures are counted while they can still be looked into."""
    gallery.refusals = {"a castle": 422}
    result = imagelabs.batch("--poll-interval", 1)
    drawn = screen.getvalue()
    assert "3 of 3" in drawn
    assert "1 failed" in drawn
    assert "of 3: images" not in result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_a_terminal_sees_a_bar(
    imagelabs: Command, service: ScriptedService, screen: io.StringIO
) -> None:
    """State, percentage and time; the service's words as they are, whatever they contain."""
    service.polls = [HALF, WAITING, DONE]
    result = imagelabs("generate", "x", "-o", "x.png")
    assert "done" in shown(screen)
    assert "100 %" in shown(screen)
    assert "0:00:00" in shown(screen)
    assert result.stdout == "x.png\n"
    assert "queued" not in result.stderr


def test_the_words_of_the_service_are_no_markup(
    imagelabs: Command, service: ScriptedService, screen: io.StringIO
) -> None:
    """They would restyle the screen, or end the command with a markup error."""
    service.polls = [poll("Render [/] [link=http://x]:smile:", 0.5), KeyboardInterrupt()]
    imagelabs("generate", "x", "-o", "x.png")
    assert "Render [/] [link=http://x]:s" in shown(screen)
    assert " 50 %" in shown(screen)


def test_without_a_fraction_there_is_no_percentage(
    imagelabs: Command, service: ScriptedService, screen: io.StringIO
) -> None:
    """Nobody knows how far it is."""
    service.polls = [poll("Working"), KeyboardInterrupt()]
    imagelabs("generate", "x", "-o", "x.png")
    assert "running (Working)" in shown(screen)
    assert "%" not in shown(screen)


def test_no_color_is_respected(
    imagelabs: Command, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://no-color.org: the bar stays, its colours go."""
    monkeypatch.setenv("NO_COLOR", "1")
    imagelabs("generate", "x", "-o", "x.png")
    assert "done" in shown(screen)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m|\x1b\[[0-9;]*38;", screen.getvalue())


def test_a_log_and_a_bar_do_not_share_a_screen(imagelabs: Command, screen: io.StringIO) -> None:
    """The lines of the one would tear the other apart."""
    result = imagelabs("generate", "x", "-o", "x.png", "--debug")
    assert screen.getvalue() == ""
    assert "task task-1: done" in result.stderr


def test_a_real_terminal_is_drawn_on_and_left_as_it_was(server: FaultyServer, start: Start) -> None:
    """The bar is gone at the end, the cursor is back, and a pipe got the path alone."""
    server.scripts["/progress"] = [RUNNING, RUNNING, server.done()]
    terminal, theirs = pytest.importorskip("pty").openpty()
    environment = {**os.environ, "TERM": "xterm"}
    options = ("wait", "task-1", "-o", "x.png", *place(server))
    process = start(*options, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = "".join(pieces(terminal))
    assert process.communicate(timeout=20)[0] == "x.png\n"
    assert "running (Processing)" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
    assert re.search(r"\x1b\[2K[0-9.]+ s\r\n$", drawn)


def pieces(terminal: int) -> Iterator[str]:
    """What is written to it, until nobody has it open any more."""
    with suppress(OSError):  # how Linux says so
        while piece := os.read(terminal, 65536):
            yield piece.decode()
    os.close(terminal)


def shown(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
