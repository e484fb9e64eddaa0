"""What a person sees while waiting."""

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
import pyte
import pytest
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style

from imagelabs_sdk import APIConnectionError
from imagelabs_sdk.cli.commands import cli
from imagelabs_sdk.cli.display import ProgressDisplay, SmoothFraction
from imagelabs_sdk.cli.preview import half_blocks
from imagelabs_sdk.testing import FakeClock, FakeService
from imagelabs_sdk.testing.script import png
from tests.cli.command import Command
from tests.cli.conftest import Start, place
from tests.faulty import PNG


def test_a_pipe_gets_a_plain_line_per_change_of_state(
    imagelabs: Command, service: FakeService
) -> None:
    """A log file full of redrawn bars helps nobody."""
    service.queued(2).progress(0.4, 0.5, status="Render [bold]3/6[/bold]").done()
    result = imagelabs("generate", "x", "-o", "x.png")
    assert result.stderr.splitlines()[:-1] == [
        "task task-1: accepted",
        "task task-1: queued (Queue position 2)",
        "task task-1: running (Render [bold]3/6[/bold])",
        "task task-1: done",
    ]


def test_forced_colours_do_not_bring_the_bar_into_a_pipe(
    imagelabs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CI services set FORCE_COLOR, and keep what is written."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in imagelabs("generate", "x", "-o", "x.png").stderr


def test_a_terminal_sees_one_bar_for_a_batch(
    imagelabs: Command, gallery: FakeService, screen: io.StringIO
) -> None:
    """Failures are counted while they can still be looked into."""
    gallery.job("a castle").refuses()
    result = imagelabs.batch("--poll-interval", 1)
    drawn = screen.getvalue()
    assert "3 of 3" in drawn
    assert "1 failed" in drawn
    assert "of 3: images" not in result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_a_terminal_sees_a_bar(
    imagelabs: Command, service: FakeService, screen: io.StringIO
) -> None:
    """State, percentage and time; the service's words as they are, whatever they contain."""
    service.progress(0.5).queued().done()
    result = imagelabs("generate", "x", "-o", "x.png")
    for word in (" 50 %", "queued (Queue position 1)", "done", "100 %", "0:00:00"):
        assert word in shown(screen)  # each poll, however soon the next one comes
    assert result.stdout == "x.png\n"
    assert "queued" not in result.stderr


def test_the_words_of_the_service_are_no_markup(
    imagelabs: Command, service: FakeService, screen: io.StringIO
) -> None:
    """They would restyle the screen, or end the command with a markup error."""
    service.progress(0.5, status="Render [/] [link=http://x]:smile:").answers(KeyboardInterrupt())
    imagelabs("generate", "x", "-o", "x.png")
    assert "Render [/] [link=http://x]:s" in shown(screen)
    assert " 50 %" in shown(screen)


def test_without_a_fraction_there_is_no_percentage(
    imagelabs: Command, service: FakeService, screen: io.StringIO
) -> None:
    """Nobody knows how far it is."""
    service.answers({"status": "Working"}, at="progress").answers(KeyboardInterrupt())
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


def test_a_preview_is_drawn_in_the_terminal(service: FakeService, url: str, start: Start) -> None:
    """It is below the bar, and the finished image stays."""
    service.progress(0.5, 0.6, preview=png(64, 24)).done()
    words = ("generate", "a mill", "--size", "64x48", "--preview", "-o", "x.png", *place(url))
    drawn, _ = in_terminal(start, words)
    *during, end = frames(drawn)
    preview, image = ["▀" * 64] * 12, ["▀" * 56] * 21
    assert any("━" in frame[1] and frame[2:] == preview for frame in during if len(frame) > 2)
    assert [line for line in end if "▀" in line] == image
    assert not any("━" in line for line in end)


def test_an_image_has_two_pixels_in_a_character() -> None:
    """Above and below, in their own colours."""
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    image.putpixel((0, 1), (0, 0, 255))
    text = half_blocks(image, 2, 1)
    assert text.plain == "▀▀\n"
    style = text.spans[0].style
    assert isinstance(style, Style)
    assert style.color == Color.from_rgb(255, 0, 0)
    assert style.bgcolor == Color.from_rgb(0, 0, 255)
    for size in ((1, 999), (999, 1)):
        lines = half_blocks(Image.new("RGB", size), 10, 5).plain.splitlines()
        assert len(lines) <= 5
        assert max(map(len, lines)) <= 10


def test_a_preview_that_cannot_be_read_is_no_error(
    imagelabs: Command, service: FakeService
) -> None:
    """The image itself is what was paid for. In a pipe nothing is drawn."""
    file = io.StringIO()
    imagelabs.console = lambda: Console(file=file, force_terminal=True, color_system="truecolor")
    service.progress(0.4, 0.5, preview=PNG).refuses(status=404, at="preview", times=1).done()
    assert imagelabs("generate", "x", "-o", "x.png", "--preview").stdout == "x.png\n"
    assert "▀" in file.getvalue()
    imagelabs.console = None
    assert imagelabs("generate", "x", "-o", "y.png", "--preview").stdout == "y.png\n"
    assert service.count("preview") == 2


def test_a_log_and_a_bar_do_not_share_a_screen(imagelabs: Command, screen: io.StringIO) -> None:
    """The lines of the one would tear the other apart."""
    result = imagelabs("generate", "x", "-o", "x.png", "--debug")
    assert screen.getvalue() == ""
    assert "task task-1: done" in result.stderr


def test_a_real_terminal_is_drawn_on_and_left_as_it_was(
    service: FakeService, url: str, start: Start
) -> None:
    """The bar is gone at the end, the cursor is back, and a pipe got the path alone."""
    service.known_job("task-1").progress(0.4, 0.5).done()
    drawn, out = in_terminal(start, ("wait", "task-1", "-o", "x.png", *place(url)))
    assert out == "x.png\n"
    assert any("running (Processing)" in line for frame in frames(drawn) for line in frame)
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
    assert re.search(r"\x1b\[2K[0-9.]+ s\r\n$", drawn)


def in_terminal(
    start: Start, arguments: Sequence[str], *, stdout_too: bool = False
) -> tuple[str, str]:
    """Run the command; return what a terminal of 80 columns was sent, and what a pipe got."""
    terminal, theirs = pytest.importorskip("pty").openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start(
        *arguments,
        stdin=subprocess.DEVNULL,  # else the terminal of the tests would say the width
        stdout=theirs if stdout_too else subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    drawn = b""
    with suppress(OSError):  # how Linux says that nobody has it open any more
        while piece := os.read(terminal, 65536):
            drawn += piece
    os.close(terminal)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    return drawn.decode(), out or ""


def frames(drawn: str) -> list[list[str]]:
    """What the screen showed, each time before the bar was drawn again, and at the end."""
    screen = pyte.Screen(80, 24)
    stream, seen = pyte.Stream(screen), []
    for part in re.split(r"(?=\r(?!\n))", drawn):
        stream.feed(part)
        seen.append([line.rstrip() for line in screen.display if line.strip()])
    return seen


def shown(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_the_bar_moves_between_polls_and_never_back() -> None:
    """A job of four seconds that is polled four times shows more than four numbers."""
    clock, seen = FakeClock(), list[float]()
    fraction = SmoothFraction(clock.now)
    for reported in (0.25, 0.5, 0.45, 0.9):
        clock.advance(1.0)
        fraction.poll(reported)
        for _ in range(3):
            seen.append(fraction.estimate())
            clock.advance(0.1)
    assert seen == sorted(seen)
    assert len(set(seen[:6])) == 6
    clock.advance(3600.0)
    assert 0.9 < fraction.estimate() <= 0.99
    fraction.poll(1.0)
    assert fraction.estimate() == 1.0


def test_two_polls_at_once_tell_no_pace() -> None:
    """The bar would jump to its end."""
    clock = FakeClock()
    fraction = SmoothFraction(clock.now)
    clock.advance(0.001)
    fraction.poll(0.05)
    clock.advance(1.0)
    assert fraction.estimate() == 0.05


@pytest.mark.parametrize("stdout_too", [True, False])
def test_results_and_bar_share_a_terminal(
    service: FakeService, url: str, start: Start, stdout_too: bool
) -> None:
    """Each path has a line of its own, and no stale bar stays, wherever stdout leads."""
    Path("prompts.txt").write_text("a\nb\nc\n")
    service.progress(0.4, 0.5).done()
    words = ("generate", "--batch", "prompts.txt", "--out-dir", "images", *place(url))
    drawn, out = in_terminal(start, [*words, "--jobs", "1"], stdout_too=stdout_too)
    seen, paths = frames(drawn), ["images/0001.png", "images/0002.png", "images/0003.png"]
    assert seen[-1] == [*(paths if stdout_too else []), "3 saved"]
    assert out.split() == ([] if stdout_too else paths)
    assert any(re.search("━ . of 3", frame[-1]) for frame in seen if frame)
    assert not [line for frame in seen for line in frame if "image" in line and "━" in line]


@pytest.mark.parametrize("shared", [True, False])
def test_a_result_is_printed_above_the_bar_where_both_share_a_terminal(
    imagelabs: Command, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Written past the bar it would tear it; a pipe gets it as it is."""
    context = click.Context(cli, obj=imagelabs.runtime())
    with (
        open("terminal", "w") as terminal,
        open("pipe", "w") as pipe,
        monkeypatch.context() as patch,
        context,
        ProgressDisplay(1) as display,
    ):
        patch.setattr(sys, "stderr", terminal)
        patch.setattr(sys, "stdout", terminal if shared else pipe)
        display.print_result("images/0001.png")
    assert ("images/0001.png" in shown(screen)) is shared
    assert Path("pipe").read_text() == ("" if shared else "images/0001.png\n")


def test_a_person_who_watches_gets_polls_every_second_or_more_often(
    imagelabs: Command, screen: io.StringIO
) -> None:
    """The default strategy first polls after 2.4 s; with an interval that was given, it rules."""
    imagelabs("generate", "x", "-o", "x.png")
    imagelabs("generate", "x", "-o", "x.png", "--poll-interval", 3)
    assert imagelabs.settings[0]["polling"].maximum == 1.0
    assert "polling" not in imagelabs.settings[1]


def test_each_retry_is_said_once(imagelabs: Command, service: FakeService) -> None:
    """A minute without a word looks like a program that hangs."""
    script = service.job().unreachable(times=2).drops_connection(at="progress")
    script.done().drops_connection(times=1)
    result = imagelabs("generate", "x", "-o", "x.png")
    said = [line.partition(" in ")[0] for line in result.stderr.splitlines() if " s: " in line]
    assert said == [
        "not accepted, sending again",
        "not accepted, sending again",
        "poll failed, polling again",
        "fetching again",
    ]
    assert imagelabs("generate", "x", "-o", "x.png").stderr.count(" s: ") == 0


def test_a_retry_is_said_above_the_bar(
    imagelabs: Command, service: FakeService, screen: io.StringIO
) -> None:
    """On a terminal, too."""
    service.answers(APIConnectionError("[red]reset"), at="progress").done()
    result = imagelabs("generate", "x", "-o", "x.png")
    assert re.search(r"^.*polling again in [0-9.]+ s: .*\[red\]reset", shown(screen), re.MULTILINE)
    assert "polling again" not in result.stderr


@pytest.mark.parametrize("on_screen", [True, False])
def test_a_batch_says_its_retries(
    imagelabs: Command, gallery: FakeService, screen: io.StringIO, on_screen: bool
) -> None:
    """One line each, wherever its other lines go."""
    if not on_screen:
        imagelabs.console = None
    gallery.job("a castle").drops_connection(at="progress").progress(0.5).done(PNG)
    result = imagelabs.batch()
    told = shown(screen) if on_screen else result.stderr
    assert told.count("polling again") == 1


def test_debug_says_no_retry_twice(
    imagelabs: Command, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has it already."""
    service.drops_connection(at="progress").done()
    result = imagelabs("generate", "x", "-o", "x.png", "--debug")
    assert "polling again" in caplog.text
    assert "polling again" not in result.stderr


def test_the_bar_shows_when_the_job_probably_ends(
    imagelabs: Command, service: FakeService, screen: io.StringIO
) -> None:
    """A range, and nothing where nothing is known."""
    service.job().progress(0.25, 0.5).answers(KeyboardInterrupt())
    imagelabs("generate", "x", "-o", "x.png")
    assert re.search(r"[0-9]+ (to [0-9]+ )?s left", shown(screen))
    screen.truncate(0)
    service.answers({"status": "Working"}, at="progress").answers(KeyboardInterrupt())
    imagelabs("generate", "x", "-o", "y.png", "--base-url", "https://other.test")
    assert "s left" not in shown(screen)
