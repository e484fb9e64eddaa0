"""Ctrl-C can cancel jobs at the service, where it can, so that no GPU draws for nobody."""

import pytest

from imagelabs_sdk.cli.signals import TerminatedError
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, Script
from tests.faulty import PNG

URL = "https://cancels.test"  # what a service announces is remembered for its origin
HINT = f"To resume: imagelabs wait task-1 -o x.png --base-url {URL}"
CANCEL = "--cancel-on-interrupt"


@pytest.fixture
def service() -> FakeService:
    """One that can cancel."""
    return FakeService(features="cancel")


def generate(imagelabs: Command, *more: str) -> list[str]:
    result = imagelabs("generate", "x", "-o", "x.png", "--base-url", URL, *more)
    assert result.exit_code in (130, 143)
    return result.stderr.splitlines()


def test_an_interrupt_cancels_the_job_if_it_is_told_to(
    imagelabs: Command, service: FakeService
) -> None:
    """Then there is nothing to resume."""
    for number, error in enumerate([KeyboardInterrupt(), TerminatedError()], 1):
        service.job().answers(error, at="progress")
        lines = generate(imagelabs, CANCEL)
        assert lines[-1] == "The job was cancelled: there is nothing to resume."
        assert "1 cancelled at the service." in lines
        assert service.count("cancel", f"task-{number}") == 1


@pytest.mark.parametrize(
    ("script", "word"),
    [
        (lambda s: s.refuses(status=409, at="cancel"), None),
        (lambda s: s.refuses(status=404, at="cancel"), "Not cancelled: "),
        (lambda s: s.drops_connection(at="cancel"), "Not cancelled: "),
        (lambda s: s.answers(KeyboardInterrupt(), at="cancel"), "Not cancelled: interrupted"),
    ],
)
def test_a_job_that_was_not_cancelled_can_be_resumed(
    imagelabs: Command, service: FakeService, script: Script, word: str | None
) -> None:
    """It has ended meanwhile, or nobody knows; another Ctrl-C ends the asking."""
    script(service.answers(KeyboardInterrupt(), at="progress"))
    lines = generate(imagelabs, CANCEL)
    assert lines[-1] == HINT
    assert service.count("cancel") == 1
    assert word is None or any(line.startswith(word) for line in lines)


def test_a_service_that_cannot_cancel_is_not_asked(
    imagelabs: Command, service: FakeService
) -> None:
    """The public one has no such endpoint."""
    service.features = ""
    service.answers(KeyboardInterrupt(), at="progress")
    lines = generate(imagelabs, CANCEL)
    assert any(line.startswith("Not cancelled: ") for line in lines)
    assert lines[-1] == HINT
    assert [one.at for one in service.sent] == ["submit", "progress"]


@pytest.mark.usefixtures("screen")
def test_a_second_ctrl_c_cancels_at_a_terminal(imagelabs: Command, service: FakeService) -> None:
    """It is offered only there, only where it works, and only after Ctrl-C."""
    offer = "To cancel at the service: Ctrl-C again, now."
    service.answers(KeyboardInterrupt(), at="progress")
    imagelabs.second_ctrl_c = True
    assert generate(imagelabs)[-2:] == [offer, "1 cancelled at the service."]
    assert service.count("cancel", "task-1") == 1
    imagelabs.second_ctrl_c = False
    assert generate(imagelabs)[-1] == offer
    service.job().answers(TerminatedError(), at="progress")
    assert generate(imagelabs)[-1] == HINT.replace("task-1", "task-3")
    assert service.count("cancel") == 1


def test_in_a_pipe_nothing_is_offered(imagelabs: Command, service: FakeService) -> None:
    """Nobody would press a key; and what the library logs of it is said already."""
    service.answers(KeyboardInterrupt(), at="progress")
    assert generate(imagelabs) == ["task task-1: accepted", "imagelabs: interrupted", HINT]


@pytest.mark.usefixtures("screen")
def test_a_finished_job_is_not_cancelled(imagelabs: Command, service: FakeService) -> None:
    """Ctrl-C came while its image was fetched: only that is left to do."""
    service.answers(KeyboardInterrupt(), at="image")
    assert generate(imagelabs)[-1] == HINT


def test_an_interrupted_batch_cancels_its_jobs(imagelabs: Command, gallery: FakeService) -> None:
    """Those that could not be cancelled are listed as ever."""
    gallery.features = "cancel"
    gallery.job("a lighthouse").done(PNG).answers(KeyboardInterrupt(), times=1)
    gallery.job("a castle").never_finishes().refuses(status=409, at="cancel")
    gallery.job("a [red] boat").never_finishes()
    result = imagelabs.batch(CANCEL, "--base-url", URL)
    assert result.exit_code == 130
    asked = sorted(str(one.task_id) for one in gallery.sent if one.at == "cancel")
    assert asked == ["a-[red]-boat", "a-castle", "a-lighthouse"]
    assert "2 cancelled at the service." in result.stderr
    assert result.stderr.count("To resume: ") == 1
