"""Ctrl-C can cancel jobs at the service, where it can, so that no GPU draws for nobody."""

import json

import attrs
import pytest

from imagelabs_sdk import (
    APIConnectionError,
    Deadline,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    Transport,
)
from imagelabs_sdk.cli.signals import TerminatedError
from imagelabs_sdk.testing import FakeService
from tests.cli.service import Command, ScriptedService, poll
from tests.faulty import PNG

ABLE = {"imagelabs-features": "cancel"}
CANCELLED = attrs.evolve(poll("Cancelled"), headers=ABLE)
HINT = "To resume: imagelabs wait task-1 -o x.png"


@attrs.define
class Canceller:
    """A service that announces that it can cancel, in front of another."""

    inner: Transport
    answers: list[HttpResponse | BaseException]
    cancelled: list[str] = attrs.Factory(list)

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        if not request.url.endswith("/cancel"):
            return attrs.evolve(self.inner.send(request, deadline=deadline), headers=ABLE)
        self.cancelled.append(json.loads(request.body)["task_id"])
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def url() -> str:
    """What a service announces is kept for its origin: here each test has one of its own."""
    return f"https://{id(object())}.test"


def generate(imagelabs: Command, url: str, *more: str) -> list[str]:
    result = imagelabs("generate", "x", "-o", "x.png", "--base-url", url, *more)
    assert result.exit_code in (130, 143)
    return result.stderr.splitlines()


def test_an_interrupt_cancels_the_job_if_it_is_told_to(
    imagelabs: Command, service: ScriptedService, url: str
) -> None:
    """Then there is nothing to resume."""
    for number, error in enumerate([KeyboardInterrupt(), TerminatedError()]):
        imagelabs.transport = canceller = Canceller(HandlerTransport(service), [CANCELLED])
        service.polls = [error]
        lines = generate(imagelabs, f"{url}/{number}", "--cancel-on-interrupt")
        assert canceller.cancelled == ["task-1"]
        assert lines[-1] == "The job was cancelled: there is nothing to resume."
        assert "1 cancelled at the service." in lines


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (HttpResponse(409), None),
        (HttpResponse(404), "Not cancelled: "),
        (APIConnectionError("reset"), "Not cancelled: "),
        (KeyboardInterrupt(), "Not cancelled: interrupted"),
    ],
)
def test_a_job_that_was_not_cancelled_can_be_resumed(
    imagelabs: Command,
    service: ScriptedService,
    url: str,
    answer: HttpResponse | BaseException,
    word: str | None,
) -> None:
    """It has ended meanwhile, or nobody knows; another Ctrl-C ends the asking."""
    imagelabs.transport = Canceller(HandlerTransport(service), [answer])
    service.polls = [KeyboardInterrupt()]
    lines = generate(imagelabs, url, "--cancel-on-interrupt")
    assert lines[-1] == f"{HINT} --base-url {url}"
    assert word is None or any(line.startswith(word) for line in lines)


def test_a_service_that_cannot_cancel_is_not_asked(
    imagelabs: Command, service: ScriptedService, url: str
) -> None:
    """The public one has no such endpoint."""
    service.polls = [KeyboardInterrupt()]
    lines = generate(imagelabs, url, "--cancel-on-interrupt")
    assert any(line.startswith("Not cancelled: ") for line in lines)
    assert lines[-1].startswith(HINT)
    assert not [request for request in service.asked if request.url.endswith("/cancel")]


@pytest.mark.usefixtures("screen")
def test_a_second_ctrl_c_cancels_at_a_terminal(
    imagelabs: Command, service: ScriptedService, url: str
) -> None:
    """It is offered only there, only where it works, and only after Ctrl-C."""
    imagelabs.transport = canceller = Canceller(HandlerTransport(service), [CANCELLED])
    service.polls = [KeyboardInterrupt()]
    imagelabs.second_ctrl_c = True
    lines = generate(imagelabs, url)
    assert lines[-2:] == [
        "To cancel at the service: Ctrl-C again, now.",
        "1 cancelled at the service.",
    ]
    assert canceller.cancelled == ["task-1"]
    imagelabs.second_ctrl_c = False
    assert generate(imagelabs, url)[-1] == "To cancel at the service: Ctrl-C again, now."
    service.polls = [TerminatedError()]
    assert generate(imagelabs, url)[-1].startswith(HINT)


def test_in_a_pipe_nothing_is_offered(
    imagelabs: Command, service: ScriptedService, url: str
) -> None:
    """Nobody would press a key."""
    imagelabs.transport = Canceller(HandlerTransport(service), [])
    service.polls = [KeyboardInterrupt()]
    assert generate(imagelabs, url)[-1].startswith(HINT)


def test_an_interrupted_batch_cancels_its_jobs(
    imagelabs: Command, gallery: FakeService, url: str
) -> None:
    """Those that could not be cancelled are listed as ever."""
    answers = [CANCELLED, HttpResponse(409), CANCELLED]
    imagelabs.transport = canceller = Canceller(gallery.transport(), list(answers))
    gallery.job("a lighthouse").done(PNG).answers(KeyboardInterrupt(), times=1)
    for prompt in ("a castle", "a [red] boat"):
        gallery.job(prompt).never_finishes()
    result = imagelabs.batch("--cancel-on-interrupt", "--base-url", url)
    assert result.exit_code == 130
    assert sorted(canceller.cancelled) == ["a-[red]-boat", "a-castle", "a-lighthouse"]
    assert "2 cancelled at the service." in result.stderr
    assert result.stderr.count("To resume: ") == 1
