"""Fixtures: the command with a scripted service, a folder of its own, real processes."""

import io
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from imagelabs_sdk.testing import FakeService, serve_in_thread
from tests.cli.command import Command
from tests.faulty import PNG

PROMPTS = """\
# landscapes
a lighthouse
  a [red] boat

a castle
"""
PROGRAM = (sys.executable, "-m", "imagelabs_sdk")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """`--debug` is meant for a process of its own."""
    logger = logging.getLogger("imagelabs_sdk")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture
def service() -> FakeService:
    """What the clients of the command talk to."""
    return FakeService()


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    """Where `service` listens, for a command in a process of its own."""
    with serve_in_thread(service) as url:
        yield url


@pytest.fixture
def imagelabs(service: FakeService) -> Command:
    """The command, with `service` behind it."""
    return Command(service)


@pytest.fixture
def gallery(imagelabs: Command, folder: Path) -> FakeService:
    """A service behind the command whose task ids are the prompts, with dashes; and their file."""
    Path("prompts.txt").write_text(PROMPTS)
    imagelabs.service = FakeService(make_id=lambda request: request.prompt.replace(" ", "-"))
    return imagelabs.service.progress(0.5).done(PNG)


@pytest.fixture
def screen(imagelabs: Command) -> io.StringIO:
    """What a terminal is sent."""
    file = io.StringIO()
    imagelabs.console = lambda: Console(file=file, force_terminal=True, width=80)
    return file


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command, which Ctrl-C interrupts even if the tests themselves ignore it."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **more: Any) -> subprocess.Popen[str]:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([*PROGRAM, *arguments], **{**pipes, **more}))
        signal.signal(signal.SIGINT, before)
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def place(url: str) -> tuple[str, ...]:
    return ("--base-url", url, "--poll-interval", "0.05")


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in a process of its own."""
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
