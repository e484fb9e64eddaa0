"""The examples do what they say, as a newcomer runs them: in an empty folder, offline."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from imagelabs_sdk import FixedInterval, JobFailedError

from .faulty import PNG, FaultyServer, reply

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))
DRAWN = (768, 512)  # pixels


class Printed(NamedTuple):
    """What a program wrote to the standard output and to the standard error."""

    out: str
    err: str


Run = Callable[..., Printed]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example as a program, only faster; answers what it printed."""
    monkeypatch.setattr("imagelabs_sdk.embedded._DURATION", 0.2)
    monkeypatch.setattr("imagelabs_sdk.context.FixedInterval", lambda _: FixedInterval(0.05))
    monkeypatch.setattr("imagelabs_sdk.context.Adaptive", lambda **_: FixedInterval(0.05))
    monkeypatch.chdir(tmp_path)

    def program(name: str, *arguments: str) -> Printed:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return Printed(*capsys.readouterr())

    return program


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        width, height = image.size
    return width, height


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_leaves_an_image(run: Run, tmp_path: Path, name: str) -> None:
    """The one thing that every newcomer looks for; a prompt of one's own is the second."""
    prompt = [] if name == "submit_then_resume.py" else ["a sea at night"]
    printed = run(name, *prompt, "--embedded", "--out", "drawn.png").out
    assert size_of(tmp_path / "drawn.png") == DRAWN
    assert printed.splitlines()[-1].startswith("drawn.png")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_explains_itself(
    run: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Also in the table of the folder's README."""
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    assert "--embedded" in capsys.readouterr().out
    assert f"]({name})" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_progress_is_shown_with_previews(run: Run) -> None:
    """A preview's address is only there while the image is being drawn."""
    *polls, done, _ = run("watch_progress.py", "--embedded").out.splitlines()
    assert done == "done     100%"
    assert polls
    assert all("running" in poll and "%  http" in poll for poll in polls)


def test_a_job_is_kept_in_a_file_that_another_process_can_read(
    run: Run, tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs share nothing but the file."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", server.url)
    run("submit_then_resume.py", "submit", "a pier", "--job", "kept.json")
    kept = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    assert (kept["task_id"], kept["request"]["prompt"]) == ("task-1", "a pier")
    assert server.count("/progress") == 0
    run("submit_then_resume.py", "resume", "--job", "kept.json", "--out", "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes() == PNG
    assert server.count("/txt2img") == 1


def test_neither_half_of_a_job_is_guessed(run: Run) -> None:
    """A submit that nobody meant costs an image."""
    with pytest.raises(SystemExit):
        run("submit_then_resume.py")


def test_each_exchange_is_printed_also_a_refused_one(
    run: Run,
    server: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a wrapper shows must not depend on how the story ends."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", server.url)
    server.scripts["/progress"] = [reply(200, {"status": "Error: no memory"})]
    with pytest.raises(JobFailedError):
        run("own_transport.py")
    submit, poll = capsys.readouterr().out.splitlines()
    assert submit.startswith("POST /txt2img -> 200, ")
    assert poll.startswith("POST /progress -> 200, ")


def test_everything_goes_through_the_proxy(run: Run) -> None:
    """The proxy's own log is the witness."""
    logged = run("behind_a_proxy.py", "--embedded").err
    for asked in ("POST http://127.0.0.1:", "/txt2img", "/progress", "GET http://", "/image/"):
        assert asked in logged


def test_a_browsers_cookies_and_user_agent_are_sent(
    run: Run, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cloudflare wants both, of the same browser."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", server.url)
    run("behind_a_proxy.py", "--cookie", "cf_clearance=abc; session=1", "--user-agent", "Firefox")
    sent = {(asked.headers["cookie"], asked.headers["user-agent"]) for asked in server.asked}
    assert sent == {("cf_clearance=abc; session=1", "Firefox")}
