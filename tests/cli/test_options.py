"""Options reach the service, and bad values are refused before anything is bought."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imagelabs_sdk.cli.commands import cli
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, invoke, prompts


def test_every_option_reaches_the_service(imagelabs: Command, service: FakeService) -> None:
    """An option that is swallowed costs an image that nobody wanted."""
    words = "-o x.png --poll-interval 0.25 --timeout 9 --negative fog --size 512x640 --seed 7"
    imagelabs("generate", "a [lighthouse]", *words.split())
    service.assert_submitted_once(
        prompt="a [lighthouse]", negative_prompt="fog", width=512, height=640, seed=7
    )
    assert imagelabs.settings == [{"base_url": None, "timeout": 9.0, "poll_interval": 0.25}]


def test_an_aspect_ratio_sets_the_size(imagelabs: Command) -> None:
    """Few people know which sides make 16:9."""
    result = imagelabs("generate", "x", "-o", "x.png", "--aspect-ratio", "1:1", "--json")
    assert json.loads(result.stdout)["width"] == json.loads(result.stdout)["height"] == 1016


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--size", "big"], "'big' is not like 1152x896"),
        (["--size", "0x8"], "--size: width=0: must"),
        (["--width", "0"], "--width=0: must be a whole number"),
        (["--height=-1"], "--height=-1: must"),
        (["--size", "8x8", "--width", "8"], "Give either --size or --width"),
        (["--width", "8", "--aspect-ratio", "1:1"], "--width=8: give either"),
        (["--negative", "\ud800"], "--negative"),
        (["-o", "-", "--json"], "--output - does not go with --json"),
        (["-o", "-", "--no-wait"], "--output - does not go with --no-wait"),
        (["--size", "8x8", "--aspect-ratio", "1:1"], "not both"),
        (["--aspect-ratio", "wide"], "16:9"),
        (["--seed", "-1"], "--seed=-1: must"),
        (["--seed", "x"], "--seed"),
        (["--timeout", "nan"], "--timeout=nan"),
        (["--timeout", "0"], "--timeout=0"),
        (["--poll-interval", "0"], "--poll-interval"),
        (["--base-url", "ftp://x"], "--base-url='ftp://x'"),
        (["--embedded", "--no-wait"], "does not go with --no-wait"),
        (["--embedded", "--base-url", "http://x"], "does not go with --base-url"),
        (["--colour"], "--colour"),
        (["y"], "y"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line_and_exit_code_2(
    imagelabs: Command, service: FakeService, arguments: list[str], word: str
) -> None:
    """Whether click or the library finds it is not the user's business."""
    result = imagelabs("generate", "x", *arguments)
    assert result.exit_code == 2
    assert result.stdout == "" or "--json" in arguments
    assert re.fullmatch(r"imagelabs: .*\n", result.stderr)
    assert word in result.stderr
    assert not service.sent


def test_a_blank_prompt_is_exit_code_2(imagelabs: Command) -> None:
    """The library says so before anything is sent."""
    assert imagelabs("generate", " ").exit_code == 2


def test_the_timeout_may_come_from_the_environment(
    imagelabs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the client; what is no number is a line of its own."""
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "7.5")
    imagelabs("generate", "x", "--no-wait")
    assert imagelabs.settings[0]["timeout"] == 7.5
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "long")
    assert imagelabs("generate", "x").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("generate", "either a PROMPT or --batch"),
        ("generate x --batch prompts.txt --out-dir y", "either a PROMPT or --batch"),
        ("generate --batch prompts.txt", "--batch needs --out-dir"),
        ("generate x --out-dir y", "--out-dir needs --batch"),
        ("generate x --jobs 4", "--jobs needs --batch"),
        ("generate x --checkpoint y", "--checkpoint needs --batch"),
        ("generate x --contact-sheet y.png", "--contact-sheet needs --batch"),
        (
            "generate --batch prompts.txt --out-dir y --unknown=retry",
            "--unknown needs --checkpoint",
        ),
        ("generate --batch empty.txt --out-dir y", "has no prompt in it"),
        ("generate --batch latin.txt --out-dir y", "is not text in UTF-8"),
        ("generate --batch none.txt --out-dir y", "does not exist"),
        ("generate --batch prompts.txt --out-dir prompts.txt", "is a file"),
        ("generate --batch prompts.txt --out-dir y --jobs 0", "--jobs"),
        ("generate --batch prompts.txt --out-dir y --no-wait", "does not go with --no-wait"),
        ("generate --batch prompts.txt --out-dir y -o x.png", "does not go with --output"),
        ("generate --batch prompts.txt --out-dir y --size 0x8", "width=0"),
        ("generate --batch prompts.txt --out-dir y --contact-sheet x.txt", "must end in .png"),
        ("generate --batch prompts.txt --out-dir y --contact-sheet z/x.png", "folder that exists"),
        ("generate --batch prompts.txt --out-dir y --checkpoint prompts.txt", "the same file"),
        (
            "generate --batch prompts.txt --out-dir y --embedded --checkpoint z",
            "does not go with --checkpoint",
        ),
    ],
)
def test_a_batch_that_cannot_be_is_refused_before_anything_is_bought(
    imagelabs: Command, gallery: FakeService, arguments: str, word: str
) -> None:
    """In one line, with exit code 2, as for one image."""
    Path("empty.txt").write_text("# nothing\n\n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    result = imagelabs(*arguments.split())
    assert result.exit_code == 2
    assert re.fullmatch(r"imagelabs: .*\n", result.stderr)
    assert word in result.stderr
    assert not gallery.sent


def test_debug_logs_no_prompt(imagelabs: Command, caplog: pytest.LogCaptureFixture) -> None:
    """A log is passed on more easily than a prompt."""
    imagelabs("generate", "my secret", "--negative", "my fear", "--debug")
    assert "task-1 accepted" in caplog.text
    assert "my " not in caplog.text


def test_width_and_height_are_options_of_their_own(
    imagelabs: Command, service: FakeService
) -> None:
    """Options are named like the fields of a request; one side alone keeps the other's default."""
    imagelabs("generate", "x", "--width", 512, "--negative-prompt", "fog", "-o", "x.png")
    service.assert_submitted_once(width=512, height=896, negative_prompt="fog")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IMAGELABS_TIMEOUT", "-1"),
        ("IMAGELABS_BASE_URL", "ftp://x"),
        ("IMAGELABS_COOKIE", "a=\x01"),
        ("IMAGELABS_PROXY", "nonsense"),
        ("IMAGELABS_USER_AGENT", "a\nb"),
    ],
)
def test_an_error_names_the_variable_that_gave_the_value(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody remembers what a profile has set."""
    monkeypatch.setenv(variable, value)
    result = invoke(["generate", "x", "-o", "x.png"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"imagelabs: {variable}")


def test_an_error_about_an_argument_names_it(imagelabs: Command) -> None:
    """As the usage line does."""
    assert imagelabs("generate", " ").stderr.startswith("imagelabs: PROMPT")
    assert imagelabs("wait", " ").stderr.startswith("imagelabs: TASK: task_id")


def test_wait_sends_either_an_image_or_json_to_stdout(imagelabs: Command) -> None:
    """Never both."""
    result = imagelabs("wait", "task-1", "-o", "-", "--json")
    assert result.exit_code == 2
    assert "--output - does not go with --json" in result.stderr


def test_prompts_may_come_from_stdin(imagelabs: Command, gallery: FakeService) -> None:
    """``generate_prompts | imagelabs generate --batch - --out-dir images``."""
    words = ["generate", "--batch", "-", "--out-dir", "images"]
    result = imagelabs(*words, stdin="one\ntwo\n")
    assert result.exit_code == 0
    assert sorted(prompts(gallery)) == ["one", "two"]


def test_an_image_does_not_go_to_a_terminal(
    imagelabs: Command,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its bytes would garble the screen; refused before the image is bought."""
    terminal, theirs = pytest.importorskip("pty").openpty()
    with open(theirs, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as caught:
            cli.main(args=["generate", "x", "-o", "-"], obj=imagelabs.runtime())
    os.close(terminal)
    assert caught.value.code == 2
    assert "redirect stdout" in capsys.readouterr().err
    assert not service.sent


def test_the_shell_can_complete_words() -> None:
    """As docs/command-line.md says for bash, zsh and fish."""
    code = "import sys; sys.argv = ['imagelabs']; import imagelabs_sdk.__main__ as m; m.main()"
    for shell in ("bash", "zsh", "fish"):
        environment = {**os.environ, "_IMAGELABS_COMPLETE": f"{shell}_source"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "imagelabs" in done.stdout
        assert done.returncode == 0


def test_a_header_reaches_the_service(imagelabs: Command, service: FakeService) -> None:
    """Some gateways in front of a service want one."""
    words = ("--header", "X-Team: blue", "--header", "x-empty:")
    imagelabs("generate", "x", "-o", "x.png", *words)
    imagelabs("status", "task-1", *words)
    sent = [one.request.headers for one in service.sent if one.at != "image"]
    assert {headers["x-team"] for headers in sent} == {"blue"}
    assert sent[-1]["x-empty"] == ""


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("Authorization: Bearer x1y2z3", "IMAGELABS_API_KEY"),
        ("cookie: x1y2z3", "IMAGELABS_COOKIE"),
        ("Proxy-Authorization: x1y2z3", "IMAGELABS_PROXY"),
        ("nonsense", "'NAME: VALUE'"),
        ("a b: c", "--header"),
    ],
)
def test_a_secret_is_refused_on_the_command_line(
    imagelabs: Command, service: FakeService, header: str, word: str
) -> None:
    """Every user of the machine sees it in the list of processes; and it stays unsaid."""
    result = imagelabs("generate", "x", "--header", header)
    assert result.exit_code == 2
    assert word in result.stderr
    assert "x1y2z3" not in result.stderr
    assert not service.sent
