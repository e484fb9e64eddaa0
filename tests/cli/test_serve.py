"""`imagelabs serve`."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from imagelabs_sdk import ImageLabs, JobFailedError
from imagelabs_sdk.server import service
from imagelabs_sdk.server.engines.base import EngineConfig
from imagelabs_sdk.server.options import bounds
from imagelabs_sdk.server.service import ServeOptions
from imagelabs_sdk.server.store.jobs import JobStore
from imagelabs_sdk.testing import scenario
from tests.cli.command import Command, invoke
from tests.cli.conftest import Start


def test_serve_says_how_to_be_used(imagelabs: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line below can be pasted into another terminal."""
    served = []

    def serve(
        engine: EngineConfig, options: ServeOptions, *, on_ready: Callable[[str], object]
    ) -> None:
        served.append((engine, options))
        on_ready("http://here:81")

    monkeypatch.setattr(service, "serve", serve)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    result = imagelabs("serve", "--port", 81, "--duration", 0, "--workers", 3)
    assert result.exit_code == 0
    assert "IMAGELABS_BASE_URL=http://here:81 imagelabs generate" in result.stdout
    engine, options = served[0]
    assert (engine.workers, options.host, options.port) == (3, "127.0.0.1", 81)
    assert options.store == Path("/state/imagelabs/serve-81")
    for given, store in (("memory", None), ("kept", Path("kept"))):
        assert imagelabs("serve", "--store", given).exit_code == 0
        assert served[-1][1].store == store


def test_every_bound_is_an_option(imagelabs: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its default in the help; and what is set arrives."""
    served: list[ServeOptions] = []
    monkeypatch.setattr(service, "serve", lambda engine, options, on_ready: served.append(options))
    text = imagelabs("serve", "--help").stdout
    flat: list[Any] = [field for fields in bounds().values() for field in fields]
    for field in flat:
        assert f"--{field.name.replace('_', '-')} " in text
    given = [word for f in flat for word in (f"--{f.name.replace('_', '-')}", f.default * 2)]
    assert imagelabs("serve", "--port", 0, "--access-log", *given).exit_code == 0
    (options,) = served
    for part in (options.limits, options.face, options.pool):
        for field in attrs.fields(type(part)):
            assert getattr(part, field.name) == field.default * 2


def test_a_file_of_tokens_is_read_and_not_shown(imagelabs: Command, tmp_path: Path) -> None:
    """A line that cannot be read is exit code 2, by its number."""
    path = tmp_path / "tokens"
    path.write_text("alice short-secret\n")
    result = imagelabs("serve", "--port", 0, "--tokens", path)
    assert result.exit_code == 2
    assert "line 1" in result.stderr
    assert "short-secret" not in result.stderr


def test_a_store_that_is_used_is_a_line(imagelabs: Command, tmp_path: Path) -> None:
    """And says what to do."""
    store = JobStore.open(tmp_path)
    result = imagelabs("serve", "--port", 0, "--store", tmp_path)
    store.close()
    assert result.exit_code == 1
    assert "another server uses this store (--store chooses another)" in result.stderr


@pytest.mark.parametrize("bad", [("--duration", "-1"), ("--workers", "0"), ("--port", "70000")])
def test_what_cannot_be_served_is_exit_code_2(imagelabs: Command, bad: tuple[str, str]) -> None:
    """By whoever it is found."""
    assert imagelabs("serve", *bad).exit_code == 2


def test_a_port_that_is_taken_is_a_line(imagelabs: Command, url: str) -> None:
    """The commonest way for `serve` to fail."""
    result = imagelabs("serve", "--port", url.rpartition(":")[2], "--store", "memory")
    assert result.exit_code == 1
    assert result.stderr.startswith("imagelabs: Address already in use")


def test_what_is_served_can_be_asked_for_until_ctrl_c(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends over a real socket; to stop a server is no error."""
    process = start("serve", "--port", "0", "--duration", "0")
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    monkeypatch.setenv("IMAGELABS_BASE_URL", found[0])
    result = invoke(["generate", "x", "-o", "x.png", "--size", "64x48", "--poll-interval", 0.01])
    assert result.stdout == "x.png\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_script_is_played_until_ctrl_c(start: Start, tmp_path: Path) -> None:
    """A fake service for programs of any language; it needs no extra but the command's."""
    script = tmp_path / "scenario.json"
    script.write_text('{"every_job": [{"fails": "NSFW"}]}')
    process = start("serve", "--port", "0", "--script", str(script))
    assert process.stdout is not None
    found = re.search(r"http://[^ ]+", process.stdout.readline())
    assert found is not None
    with ImageLabs(found[0], poll_interval=0.01) as client, pytest.raises(JobFailedError) as caught:
        client.generate("a cat")
    assert caught.value.status == "Error: NSFW"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_script_is_played_where_it_is_told_to(
    imagelabs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, without a process; and nothing of the real server is started."""
    played: list[dict[str, Any]] = []

    def play(path: str, *, on_ready: Callable[[str], object], **place: Any) -> None:
        played.append(place)
        on_ready("http://here:81")

    monkeypatch.setattr(scenario, "serve_scenario", play)
    script = tmp_path / "scenario.json"
    script.write_text("{}")
    result = imagelabs("serve", "--script", script, "--host", "127.0.0.2", "--port", 81)
    assert result.exit_code == 0
    assert "IMAGELABS_BASE_URL=http://here:81 imagelabs generate" in result.stdout
    assert played == [{"host": "127.0.0.2", "port": 81}]


def test_a_script_that_makes_no_sense_is_exit_code_2(imagelabs: Command, tmp_path: Path) -> None:
    """With the place in the file."""
    script = tmp_path / "scenario.json"
    script.write_text('{"every_job": ["explode"]}')
    result = imagelabs("serve", "--script", script)
    assert result.exit_code == 2
    assert "every_job[0]='explode': must be a step: challenge, done" in result.stderr


def test_debug_shows_each_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody sees if a client has come through. Prompts stay out of it."""
    process = start("serve", "--port", "0", "--duration", "0", "--debug")
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    words = ["generate", "secret", "-o", "x.png", "--size", "64x48", "--poll-interval", 0.01]
    assert invoke([*words, "--base-url", found[0]]).exit_code == 0
    process.send_signal(signal.SIGINT)
    log = process.communicate(timeout=20)[1]
    assert re.search(r"POST /txt2img: 200 in \d+ ms", log)
    assert re.search(r"POST /progress: 200 in \d+ ms", log)
    assert "secret" not in log
