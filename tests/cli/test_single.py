"""One image, from a prompt to a file; and what can be resumed."""

import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result

from imagelabs_sdk.cli.runtime import Runtime
from imagelabs_sdk.embedded import embedded_client
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, invoke
from tests.faulty import PNG


def test_a_prompt_becomes_a_file_whose_path_is_the_whole_standard_output(
    imagelabs: Command, service: FakeService
) -> None:
    """So that ``open "$(imagelabs generate ...)"`` works; the rest is for the person."""
    service.queued().progress(0.5).done(PNG)
    result = imagelabs("generate", "a lighthouse", "-o", "x.png", "--seed", 7)
    assert result.exit_code == 0
    assert result.stdout == "x.png\n"
    assert Path("x.png").read_bytes() == PNG
    assert re.search(r"^seed 7, subseed \d+, 1152x896 pixels, 3.0 s$", result.stderr, re.M)


def test_json_is_one_object_with_all_that_is_known(
    imagelabs: Command, service: FakeService
) -> None:
    """Scripts read it; a line of talk in it would break them."""
    service.queued().progress(0.5).done()
    result = imagelabs("generate", "x", "-o", "x", "--seed", 7, "--json")
    facts = json.loads(result.stdout)
    assert facts == {
        "path": "x.png",
        "task_id": "task-1",
        "url": "https://editor.imagelabs.net/images/task-1-1.png",
        "seed": 7,
        "subseed": service.submits[0].request.subseed,
        "width": 1152,
        "height": 896,
        "timings": {"queued": 2.0, "running": 1.0, "total": 3.0, "polls": 3},
        "metadata": {},
    }


def test_no_wait_prints_the_task_id_and_how_to_go_on(
    imagelabs: Command, service: FakeService
) -> None:
    """The image can be brought by another command, another day."""
    result = imagelabs("generate", "x", "--no-wait", "-o", "x.png")
    assert (result.exit_code, result.stdout) == (0, "task-1\n")
    assert result.stderr.splitlines() == [
        "task task-1: accepted",
        "To resume: imagelabs wait task-1 -o x.png",
    ]
    assert [one.at for one in service.sent] == ["submit"]


def test_no_wait_tells_the_seeds_in_json(imagelabs: Command, service: FakeService) -> None:
    """Whoever brings the image later cannot ask the service for them."""
    facts = json.loads(imagelabs("generate", "x", "--no-wait", "--seed", 7, "--json").stdout)
    assert list(facts) == ["task_id", "seed", "subseed", "width", "height", "metadata"]
    assert (facts["task_id"], facts["seed"]) == ("task-1", 7)


def test_wait_brings_what_was_submitted_elsewhere(imagelabs: Command, service: FakeService) -> None:
    """The second half of ``--no-wait``, and of every interrupted command."""
    service.known_job("task-9").queued().progress(0.5).done()
    result = imagelabs("wait", "task-9", "-o", "x.png")
    assert result.stdout == "x.png\n"
    assert service.sent[0].fields == {"task_id": "task-9"}
    assert result.stderr.splitlines()[-1] == "2.0 s"


def test_wait_knows_no_seed(imagelabs: Command, service: FakeService) -> None:
    """`null` is honest; a guess would not draw the image again."""
    service.known_job("task-9")
    facts = json.loads(imagelabs("wait", "task-9", "-o", "x.png", "--json").stdout)
    assert [facts[name] for name in ("seed", "subseed", "width", "height")] == [None] * 4


def test_an_interrupt_before_the_task_id_says_what_is_not_known(
    imagelabs: Command, service: FakeService
) -> None:
    """There is nothing to resume, and perhaps something to pay for."""
    service.answers(KeyboardInterrupt())
    result = imagelabs("generate", "x", "-o", "x.png")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[0] == "imagelabs: interrupted"
    assert "it is unknown if the service accepted the job" in result.stderr


@pytest.mark.parametrize("task", ["task-1", "-n", "two words", "$(reboot)", "it's"])
def test_the_command_that_goes_on_can_be_pasted_into_a_shell(
    imagelabs: Command, service: FakeService, task: str
) -> None:
    """The task id comes from the server, and a shell obeys what is not quoted."""
    service.answers({"task_id": task}).answers(KeyboardInterrupt(), at="progress", times=1)
    url = "https://images.test/a'b"
    result = imagelabs("generate", "x", "-o", "my image.png", "--base-url", url)
    line = result.stderr.splitlines()[-1].removeprefix("To resume: ")
    program, *words = shlex.split(line)
    assert program == "imagelabs"
    assert imagelabs(*words).stdout == "my image.png\n"
    assert service.sent[2].fields == {"task_id": task}
    assert imagelabs.settings[-1]["base_url"] == url


def draw(duration: float, *arguments: object) -> Result:
    """Run the command with a built-in engine that takes `duration` seconds for an image."""
    client = partial(embedded_client, LandscapeEngine(duration=duration))
    small = ("--size", "64x48", "--poll-interval", 0.01)
    return invoke([*arguments, *small], Runtime(make_embedded_client=client))


def test_the_built_in_engine_needs_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing to try: no account, no network, and an environment that points nowhere."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", "http://127.0.0.1:1")
    result = draw(0.0, "generate", "a lighthouse", "--embedded", "-o", "x")
    assert (result.exit_code, result.stdout) == (0, "x.png\n")
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_of_the_built_in_engine_can_be_resumed() -> None:
    """A command that cannot work must not be suggested."""
    result = invoke(["generate", "x", "--embedded", "--size", "64x48", "--timeout", 0.05])
    assert result.exit_code == 7
    assert result.stderr.splitlines()[-1].endswith("there is nothing to resume.")


def test_the_hint_of_the_built_in_engine_does_not_contradict_its_error() -> None:
    """ "Ask for its id later" helps nobody when the job ends with the command."""
    result = draw(60.0, "generate", "x", "--embedded", "--timeout", 0.05)
    error, hint = result.stderr.splitlines()[-2:]
    assert re.fullmatch(r"imagelabs: the job was still running .*: give a longer --timeout", error)
    assert hint.endswith("there is nothing to resume.")


def test_the_hint_names_the_service_of_the_environment(
    imagelabs: Command, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted into another shell it must not ask another service."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", "https://images.test")
    service.answers(KeyboardInterrupt(), at="progress")
    result = imagelabs("generate", "x", "-o", "x.png")
    assert result.stderr.splitlines()[-1] == (
        "To resume: imagelabs wait task-1 -o x.png --base-url https://images.test"
    )
