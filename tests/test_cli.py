"""The command: one line per error, a code per class, clean pipes, and no job lost."""

import io
import json
import logging
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

import imagelabs_sdk
from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    FixedInterval,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    ImageLabsError,
    JobError,
    __main__,
    cli,
    cli_batch,
    contact_sheet,
    embedded,
)
from imagelabs_sdk.server import http
from imagelabs_sdk.server.app import App

from .conftest import FakeTime
from .faulty import PNG, QUEUED, RUNNING, FaultyServer, reply

Say = HttpResponse | BaseException


def ok(**fields: object) -> HttpResponse:
    return HttpResponse(200, {}, json.dumps(fields).encode())


def poll(status: str, progress: float | None = None, url: str | None = None) -> HttpResponse:
    return ok(status=status, progress=progress, final_image_url=url)


WAITING = poll("Queue position 2", 0)
HALF = poll("Render [bold]3/6[/bold]", 0.5)
DONE = poll("Done", 1, "/image.png")
CHALLENGE = HttpResponse(403, {"cf-mitigated": "challenge"})
REFUSED = APIConnectionError("refused", delivered="no")


@attrs.define
class Peer:
    """Answers each path by its own script, and keeps what it was asked. The last answer repeats."""

    submits: list[Say] = attrs.Factory(lambda: [ok(task_id="task-1")])
    polls: list[Say] = attrs.Factory(lambda: [WAITING, HALF, DONE])
    images: list[Say] = attrs.Factory(lambda: [HttpResponse(200, {}, PNG)])
    asked: list[HttpRequest] = attrs.Factory(list)
    settings: list[dict[str, Any]] = attrs.Factory(list)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.asked.append(request)
        path = request.url.rpartition("/")[2]
        script = {"txt2img": self.submits, "progress": self.polls}.get(path, self.images)
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.asked[0].body)
        return body


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch, time: FakeTime) -> Peer:
    """What every client of the command talks to, by a clock that nobody waits for."""
    peer = Peer()

    def client(base_url: str | None = None, **settings: Any) -> ImageLabs:
        peer.settings.append({"base_url": base_url, **settings})
        interval = settings.pop("poll_interval", None)
        interval = 1.0 if interval is None else interval
        polling = FixedInterval(interval, clock=time.clock, sleep=time.sleep)
        transport = HandlerTransport(peer)
        return ImageLabs(base_url, transport=transport, polling=polling, **settings)

    monkeypatch.setattr(cli, "ImageLabs", client)
    return peer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """`--debug` is meant for a process of its own."""
    logger = logging.getLogger("imagelabs_sdk")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])


# From a prompt to a file ----------------------------------------------------------------


def test_a_prompt_becomes_a_file_whose_path_is_the_whole_standard_output(peer: Peer) -> None:
    """So that ``open "$(imagelabs generate ...)"`` works; the rest is for the person."""
    result = run("generate", "a lighthouse", "-o", "x.png", "--seed", 7)
    assert result.exit_code == 0
    assert result.stdout == "x.png\n"
    assert Path("x.png").read_bytes() == PNG
    assert "seed 7, 1152x896 pixels, 3.0 s" in result.stderr


def test_every_option_reaches_the_service(peer: Peer) -> None:
    """An option that is swallowed costs an image that nobody wanted."""
    drawing = ("--negative", "fog", "--size", "512x640", "--seed", 7)
    run(
        "generate",
        "a [lighthouse]",
        "-o",
        "x.png",
        "--poll-interval",
        0.25,
        "--timeout",
        9,
        *drawing,
    )
    body = peer.body()
    assert (body["prompt"], body["negative_prompt"]) == ("a [lighthouse]", "fog")
    assert (body["width"], body["height"], body["seed"]) == (512, 640, "7")
    assert peer.settings == [{"base_url": None, "timeout": 9.0, "poll_interval": 0.25}]


def test_an_aspect_ratio_sets_the_size(peer: Peer) -> None:
    """Few people know which sides make 16:9."""
    result = run("generate", "x", "-o", "x.png", "--aspect-ratio", "1:1", "--json")
    assert json.loads(result.stdout)["width"] == json.loads(result.stdout)["height"] == 1016


def test_json_is_one_object_with_all_that_is_known(peer: Peer) -> None:
    """Scripts read it; a line of talk in it would break them."""
    result = run("generate", "x", "-o", "x", "--seed", 7, "--json")
    facts = json.loads(result.stdout)
    assert facts == {
        "path": "x.png",
        "task_id": "task-1",
        "url": "https://editor.imagelabs.net/image.png",
        "seed": 7,
        "subseed": int(peer.body()["subseed"]),
        "width": 1152,
        "height": 896,
        "timings": {"queued": 2.0, "running": 1.0, "total": 3.0, "polls": 3},
    }


def test_an_unnamed_image_never_replaces_another(peer: Peer) -> None:
    """Two prompts with one seed are two images, and both were paid for."""
    paths = [run("generate", "x", "--seed", 7).stdout.strip() for _ in range(3)]
    assert paths == ["imagelabs-7.png", "imagelabs-7-2.png", "imagelabs-7-3.png"]


def test_the_service_names_no_file(peer: Peer) -> None:
    """A task id such as ``../../x`` must not become a path."""
    result = run("wait", "../../task")
    assert re.fullmatch(r"imagelabs-[0-9]{8}-[0-9]{6}\.png\n", result.stdout)


# In two steps ---------------------------------------------------------------------------


def test_no_wait_prints_the_task_id_and_how_to_go_on(peer: Peer) -> None:
    """The image can be brought by another command, another day."""
    result = run("generate", "x", "--no-wait", "-o", "x.png")
    assert (result.exit_code, result.stdout) == (0, "task-1\n")
    assert result.stderr == "To go on: imagelabs wait task-1 -o x.png\n"
    assert len(peer.asked) == 1


def test_no_wait_tells_the_seeds_in_json(peer: Peer) -> None:
    """Whoever brings the image later cannot ask the service for them."""
    facts = json.loads(run("generate", "x", "--no-wait", "--seed", 7, "--json").stdout)
    assert list(facts) == ["task_id", "seed", "subseed", "width", "height"]
    assert (facts["task_id"], facts["seed"]) == ("task-1", 7)


def test_wait_brings_what_was_submitted_elsewhere(peer: Peer) -> None:
    """The second half of ``--no-wait``, and of every interrupted command."""
    result = run("wait", "task-9", "-o", "x.png")
    assert result.stdout == "x.png\n"
    assert json.loads(peer.asked[0].body) == {"task_id": "task-9"}
    assert result.stderr.splitlines()[-1] == "2.0 s"


def test_wait_knows_no_seed(peer: Peer) -> None:
    """`null` is honest; a guess would not draw the image again."""
    facts = json.loads(run("wait", "task-9", "-o", "x.png", "--json").stdout)
    assert [facts[name] for name in ("seed", "subseed", "width", "height")] == [None] * 4


@pytest.mark.parametrize(
    ("answer", "line", "facts"),
    [
        (HALF, "running (Render [bold]3/6[/bold]), 50 %", ["running", 50.0]),
        (poll("queued"), "queued", ["queued", None]),
        (poll("Failed"), "failed", ["failed", None]),
        (DONE, "done, 100 %", ["done", 100.0]),
    ],
)
def test_status_is_one_poll(peer: Peer, answer: Say, line: str, facts: list[object]) -> None:
    """A job that failed is an answer as well: the command itself did what it should."""
    peer.polls = [answer]
    result, told = run("status", "task-9"), run("status", "task-9", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (0, line + "\n", "")
    about = json.loads(told.stdout)
    assert list(about) == ["task_id", "state", "status", "percent"]
    assert [about["state"], about["percent"]] == facts
    assert len(peer.asked) == 2


# Nothing is bought in vain ----------------------------------------------------------------


@pytest.mark.parametrize("path", ["nowhere/x.png", ".", "", "-", "/dev/null", "a-file/x.png"])
def test_a_file_that_cannot_be_is_refused_before_the_job_is_bought(peer: Peer, path: str) -> None:
    """An image that cannot be saved is an image lost."""
    Path("a-file").touch()
    result = run("generate", "x", "-o", path)
    assert result.exit_code == 2
    assert "must be a file in a folder that exists" in result.stderr
    assert not peer.asked


def test_a_name_that_becomes_too_long_is_refused_before_the_job_is_bought(peer: Peer) -> None:
    """Its extension comes last."""
    result = run("generate", "x", "-o", "x" * 252)
    assert result.exit_code == 1
    assert "cannot be written: File name too long" in result.stderr
    assert not peer.asked


def test_a_folder_that_is_not_ours_is_refused_before_the_job_is_bought(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run of what `save` does, as permissions alone do not tell."""

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for arguments in (["-o", "x.png"], []):
        result = run("generate", "x", *arguments)
        assert result.exit_code == 1
        assert "cannot be written: Permission denied" in result.stderr
    assert not peer.asked


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--size", "big"], "'big' is not like 1152x896"),
        (["--size", "0x8"], "width=0"),
        (["--size", "8x8", "--aspect-ratio", "1:1"], "not both"),
        (["--aspect-ratio", "wide"], "16:9"),
        (["--seed", "-1"], "seed=-1"),
        (["--seed", "x"], "--seed"),
        (["--timeout", "nan"], "timeout=nan"),
        (["--timeout", "0"], "timeout=0"),
        (["--poll-interval", "0"], "interval=0"),
        (["--base-url", "ftp://x"], "base_url='ftp://x'"),
        (["--embedded", "--no-wait"], "does not go with --no-wait"),
        (["--embedded", "--base-url", "http://x"], "does not go with --base-url"),
        (["--colour"], "--colour"),
        (["y"], "y"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line_and_exit_code_2(
    peer: Peer, arguments: list[str], word: str
) -> None:
    """Whether click or the library finds it is not the user's business."""
    result = run("generate", "x", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"imagelabs: .*\n", result.stderr)
    assert word in result.stderr
    assert not peer.asked


def test_a_blank_prompt_is_exit_code_2(peer: Peer) -> None:
    """The library says so before anything is sent."""
    assert run("generate", " ").exit_code == 2


def test_the_timeout_may_come_from_the_environment(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the client; what is no number is a line of its own."""
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "7.5")
    run("generate", "x", "--no-wait")
    assert peer.settings[0]["timeout"] == 7.5
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "long")
    assert run("generate", "x").exit_code == 2


# Many images --------------------------------------------------------------------------

PROMPTS = """\
# landscapes
a lighthouse
  a [red] boat

a castle
"""


@attrs.define
class Gallery:
    """A service that draws at the second poll; a prompt, with dashes, is its task id.

    No poll is answered before `crowd` jobs were submitted, and none at a task that is `held`
    before an image is fetched: a clock that nobody waits for runs fast in other threads.
    """

    crowd: int = 0
    crowded: threading.Event = attrs.Factory(threading.Event)
    held: set[str] = attrs.Factory(set)
    fetching: threading.Event = attrs.Factory(threading.Event)
    refusals: dict[str, int] = attrs.Factory(dict)
    images: dict[str, Say] = attrs.Factory(dict)
    polls: dict[str, list[Say]] = attrs.Factory(dict)
    submits: list[str] = attrs.Factory(list)
    fetched: list[str] = attrs.Factory(list)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        path = request.url.rpartition("/")[2]
        if path == "txt2img":
            self.submits.append(json.loads(request.body)["prompt"])
            if len(self.submits) >= self.crowd:
                self.crowded.set()
            status = self.refusals.get(self.submits[-1], 200)
            return attrs.evolve(ok(task_id=self.submits[-1].replace(" ", "-")), status=status)
        if path == "progress":
            assert self.crowded.wait(5)
            task = json.loads(request.body)["task_id"]
            assert task not in self.held or self.fetching.wait(5)
            script = self.polls.setdefault(task, [HALF])
            answer = script.pop(0) if script else poll("Done", 1, f"/{task}")
        else:
            self.fetched.append(path)
            self.fetching.set()
            answer = self.images.get(path, HttpResponse(200, {}, PNG))
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def gallery(peer: Peer, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Gallery:
    Path("prompts.txt").write_text(PROMPTS)
    gallery = Gallery()
    monkeypatch.setattr(Peer, "__call__", lambda _, request: gallery(request))
    return gallery


def batch(*arguments: object) -> Result:
    return run("generate", "--batch", "prompts.txt", "--out-dir", "images", *arguments)


def saved() -> list[str]:
    return sorted(path.name for path in Path("images").iterdir())


def test_a_file_of_prompts_becomes_a_folder_of_images(gallery: Gallery) -> None:
    """Their paths are the standard output; numbers, no names of the server's, name them."""
    result = batch("--seed", 7, "--size", "512x640", "--jobs", 2)
    assert result.exit_code == 0
    assert sorted(gallery.submits) == ["a [red] boat", "a castle", "a lighthouse"]
    assert saved() == ["0001.png", "0002.png", "0003.png"]
    assert sorted(result.stdout.split()) == [f"images/{name}" for name in saved()]
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *(f"{n} of 3" for n in (1, 2, 3)),
        "3 saved",
    ]


def test_a_batch_tells_json_line_by_line(gallery: Gallery) -> None:
    """Also of what failed."""
    gallery.refusals = {"a castle": 422}
    result = batch("--json", "--seed", 7)
    facts = {each["line"]: each for each in map(json.loads, result.stdout.splitlines())}
    assert sorted(facts) == [2, 3, 5]
    assert facts[3]["path"] == "images/0002.png"
    assert facts[3]["seed"] == 7
    assert facts[5]["task_id"] is None
    assert "answered 422" in facts[5]["error"]


def test_what_failed_is_told_at_the_end_with_its_line_and_reason(gallery: Gallery) -> None:
    """Among a thousand lines that scrolled by nobody finds it."""
    gallery.refusals = {"a castle": 422}
    gallery.images = {"a-lighthouse": HttpResponse(200, {}, b"<html>" * 99)}
    result = batch()
    assert result.exit_code == 8  # of the first one in the file
    assert "line 5 (0003) failed" in result.stderr
    *_, counts, first, second = result.stderr.splitlines()
    assert counts == "1 saved, 2 failed:"
    assert first.startswith("  line 2 (0001): what came is no image")
    assert second.startswith("  line 5 (0003): the service answered 422")
    assert saved() == ["0002.png"]


def test_the_same_command_again_brings_what_is_missing(gallery: Gallery) -> None:
    """Nothing is bought twice, and images that are there are not even fetched."""
    gallery.refusals = {"a castle": 422}
    assert batch("--checkpoint", "run.jsonl").exit_code == 4
    gallery.refusals.clear()
    gallery.fetched.clear()
    Path("images/0001.png").unlink()
    result = batch("--checkpoint", "run.jsonl")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "2 saved, 1 there already"
    assert len(result.stdout.splitlines()) == 3
    assert sorted(gallery.fetched) == ["a-castle", "a-lighthouse"]
    assert sorted(gallery.submits) == ["a [red] boat", "a castle", "a castle", "a lighthouse"]


def test_a_batch_never_replaces_the_images_of_another(gallery: Gallery) -> None:
    """Without the checkpoint that drew them, they are somebody else's."""
    assert batch().exit_code == 0
    Path("images/0001.png").unlink()
    for more in ((), ("--checkpoint", "new.jsonl")):
        result = batch(*more)
        assert result.exit_code == 2
        assert "'images/0002.png' is there already" in result.stderr
    assert len(gallery.submits) == 3


def test_changed_prompts_are_refused_with_their_checkpoint(gallery: Gallery) -> None:
    """Places count: a line put in at the top would buy everything again."""
    batch("--checkpoint", "run.jsonl")
    Path("prompts.txt").write_text("new\n" + PROMPTS)
    result = batch("--checkpoint", "run.jsonl")
    assert result.exit_code == 2
    assert "item 0" in result.stderr
    assert len(gallery.submits) == 3


def test_an_interrupted_batch_names_what_goes_on(gallery: Gallery) -> None:
    """Each line can be pasted; the image in hand is not forgotten either."""
    gallery.crowd = 3
    gallery.polls = {"a-castle": [HALF] * 999, "a-[red]-boat": [HALF] * 999}
    gallery.held = {"a-castle", "a-[red]-boat"}
    gallery.images = {"a-lighthouse": KeyboardInterrupt()}
    result = batch()
    assert result.exit_code == 130
    lines = result.stderr.splitlines()
    assert lines[0] == "imagelabs: interrupted"
    assert lines[1] == "0 saved, 3 not finished"
    assert sorted(lines[2:]) == [
        "To go on: imagelabs wait 'a-[red]-boat' -o images/0002",
        "To go on: imagelabs wait a-castle -o images/0003",
        "To go on: imagelabs wait a-lighthouse -o images/0001",
    ]


def test_an_interrupted_batch_with_a_checkpoint_is_resumed_by_the_same_command(
    gallery: Gallery,
) -> None:
    """Which needs no list of ids."""
    gallery.images = {"a-lighthouse": KeyboardInterrupt()}
    result = batch("--checkpoint", "run.jsonl")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        "To go on: the same command again; run.jsonl knows what was bought."
    )
    gallery.images.clear()
    assert batch("--checkpoint", "run.jsonl").exit_code == 0
    assert saved() == ["0001.png", "0002.png", "0003.png"]
    assert len(gallery.submits) == 3


def test_an_interrupt_before_anything_was_accepted_has_nothing_to_resume(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome without a job may be in hand."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    gallery.refusals = dict.fromkeys(["a lighthouse", "a [red] boat", "a castle"], 422)
    monkeypatch.setattr(cli, "bring", interrupt)
    result = batch()
    assert result.stderr == "imagelabs: interrupted\n0 saved, 3 not finished\n"


def test_a_full_disk_ends_a_batch(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buying on would be images for nobody."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagelabs_sdk.GeneratedImage, "save", full)
    result = batch()
    assert result.exit_code == 1
    assert result.stderr.startswith("imagelabs: No space left on device")
    assert "To go on: imagelabs wait " in result.stderr


def test_an_embedded_batch_needs_no_service_and_leaves_nothing_to_resume(folder: Path) -> None:
    """The whole way in one process, as for one image."""
    Path("prompts.txt").write_text("a\nb\n")
    result = batch("--embedded", "--size", "16x16", "--poll-interval", 0.01, "--timeout", 0.05)
    assert result.exit_code == 7
    assert result.stderr.splitlines()[-3] == "0 saved, 2 failed:"


def test_an_interrupted_embedded_batch_has_nothing_to_resume(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its service ends with the process."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    Path("prompts.txt").write_text("a\n")
    monkeypatch.setattr(cli_batch.ProgressDisplay, "poll", interrupt)
    result = batch("--embedded", "--size", "16x16", "--poll-interval", 0.01)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("there is nothing to resume.")


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
        ("generate --batch empty.txt --out-dir y", "has no prompt in it"),
        ("generate --batch latin.txt --out-dir y", "is no text in UTF-8"),
        ("generate --batch none.txt --out-dir y", "does not exist"),
        ("generate --batch prompts.txt --out-dir prompts.txt", "is a file"),
        ("generate --batch prompts.txt --out-dir y --jobs 0", "--jobs"),
        ("generate --batch prompts.txt --out-dir y --no-wait", "does not go with --no-wait"),
        ("generate --batch prompts.txt --out-dir y -o x.png", "does not go with --output"),
        ("generate --batch prompts.txt --out-dir y --size 0x8", "width=0"),
        ("generate --batch prompts.txt --out-dir y --contact-sheet x.txt", "must end in .png"),
        ("generate --batch prompts.txt --out-dir y --contact-sheet z/x.png", "folder that exists"),
        ("generate --batch prompts.txt --out-dir y --checkpoint prompts.txt", "no checkpoint of"),
        (
            "generate --batch prompts.txt --out-dir y --embedded --checkpoint z",
            "does not go with --checkpoint",
        ),
    ],
)
def test_a_batch_that_cannot_be_is_refused_before_anything_is_bought(
    gallery: Gallery, arguments: str, word: str
) -> None:
    """In one line, with exit code 2, as for one image."""
    Path("empty.txt").write_text("# nothing\n\n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert re.fullmatch(r"imagelabs: .*\n", result.stderr)
    assert word in result.stderr
    assert not gallery.submits


def test_a_contact_sheet_shows_all_that_is_there(gallery: Gallery) -> None:
    """Also what an earlier run has drawn, and whatever cannot be read as an empty frame."""
    gallery.images = {"a-castle": HttpResponse(200, {}, b"GIF89a" + b"x" * 40 + b";")}
    assert batch("--checkpoint", "run.jsonl").exit_code == 0
    result = batch("--checkpoint", "run.jsonl", "--contact-sheet", "sheet.png")
    assert result.stderr.splitlines()[-1] == "contact sheet: sheet.png"
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 2 * 320
        assert len(sheet.getcolors(99999) or ()) > 10


def test_without_any_image_there_is_no_contact_sheet(gallery: Gallery) -> None:
    """An empty sheet would look like a success."""
    gallery.refusals = dict.fromkeys(["a lighthouse", "a [red] boat", "a castle"], 422)
    assert batch("--contact-sheet", "sheet.png").exit_code == 4
    assert not Path("sheet.png").exists()


def test_without_pillow_a_contact_sheet_is_refused_before_anything_is_bought(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the remedy, as for the embedded engine."""
    monkeypatch.setitem(sys.modules, "imagelabs_sdk.contact_sheet", None)
    monkeypatch.delattr(imagelabs_sdk, "contact_sheet", raising=False)
    result = batch("--contact-sheet", "sheet.png")
    assert result.exit_code == 1
    assert 'pip install "imagelabs_sdk[server]"' in result.stderr
    assert not gallery.submits


@pytest.mark.parametrize(("count", "widest"), [(1, 5000), (30, 5000), (30, 1000), (30, 90)])
def test_a_contact_sheet_has_a_size_that_can_be_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, widest: int
) -> None:
    """Many tiles become smaller; long texts and words are cut."""
    monkeypatch.setattr(contact_sheet, "_WIDEST_SHEET", widest)
    Path("x.png").write_bytes(PNG)
    texts = ["short", "many words " * 30, "w" * 300, "two lines of words, just a little too long"]
    tiles = [
        contact_sheet.Tile(Path("x.png"), f"{number:04}", texts[number % len(texts)])
        for number in range(count)
    ]
    sheet = contact_sheet.draw_sheet(tiles)
    assert min(widest, 320) / 2 <= sheet.width <= widest
    assert sheet.height <= sheet.width * 2


# Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "resumable"),
    [
        ({"submits": [REFUSED]}, 3, False),
        ({"submits": [HttpResponse(400, {}, b'{"error": "no"}')]}, 4, False),
        ({"submits": [HttpResponse(429, {"retry-after": "999"})]}, 4, False),
        ({"submits": [CHALLENGE]}, 4, False),
        ({"submits": [ok(error="no")]}, 4, False),
        ({"submits": [APIConnectionError("reset")]}, 5, False),
        ({"polls": [HttpResponse(404)]}, 4, False),
        ({"polls": [CHALLENGE]}, 4, True),
        ({"polls": [poll("error: [red]out of memory[/red]")]}, 6, False),
        ({"polls": [APIConnectionError("reset")]}, 3, True),
        ({"images": [HttpResponse(200, {}, b"<html>")]}, 8, True),
        ({"images": [OSError(28, "No space left on device")]}, 1, True),
        ({"polls": [KeyboardInterrupt()]}, 130, True),
        ({"images": [KeyboardInterrupt()]}, 130, True),
        ({"polls": [ZeroDivisionError("oops")]}, 1, False),
    ],
)
def test_each_bad_end_has_its_code_and_its_line(
    peer: Peer, script: dict[str, list[Say]], code: int, resumable: bool
) -> None:
    """A script goes by the code, a person by the line; a job that lives on is named."""
    for path, answers in script.items():
        setattr(peer, path, answers)
    result = run("generate", "x", "-o", "x.png", "--timeout", 600)
    lines = result.stderr.splitlines()
    end = next(n for n, line in enumerate(lines) if line.startswith("imagelabs: "))
    assert result.exit_code == code
    assert result.stdout == ""
    hint = ["To go on: imagelabs wait task-1 -o x.png"] if resumable else []
    assert lines[end + 1 :] == hint
    assert "Traceback" not in result.stderr
    assert not Path("x.png").exists()


def test_running_out_of_time_has_its_own_code(peer: Peer) -> None:
    """The job may yet finish: the same command with `wait` is the remedy."""
    peer.polls = [WAITING]
    result = run("generate", "x", "-o", "x.png", "--timeout", 3)
    assert result.exit_code == 7
    assert "imagelabs: the job is still running after 3.0 s" in result.stderr
    assert result.stderr.endswith("To go on: imagelabs wait task-1 -o x.png\n")


def kinds(base: type[ImageLabsError]) -> Iterator[type[ImageLabsError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("kind", [kind for kind in kinds(ImageLabsError) if kind is not JobError])
def test_no_error_of_the_library_is_anything_else(kind: type[ImageLabsError]) -> None:
    """A new class of error needs a row in the table."""
    extra: dict[str, Any] = {"status_code": 500} if issubclass(kind, APIStatusError) else {}
    code = next(code for code, _, of in cli.EXIT_CODES if isinstance(kind("x", **extra), of))
    assert code not in (1, 130)


def test_the_help_shows_the_table_and_an_example(peer: Peer) -> None:
    """Nobody reads the source to learn what 5 means."""
    result = run("--help")
    assert result.exit_code == 0
    for code, meaning, _ in cli.EXIT_CODES:
        assert re.search(rf"^ +{code} +{re.escape(meaning)}$", result.stdout, re.MULTILINE)
    assert run().stdout == result.stdout
    for command in cli.cli.commands:
        assert "Example: imagelabs " + command in run(command, "--help").stdout


def test_the_words_of_a_challenge_name_the_variables(peer: Peer) -> None:
    """There is no client object that cookies could be given to."""
    peer.submits = [CHALLENGE]
    assert "IMAGELABS_COOKIE and IMAGELABS_USER_AGENT" in run("generate", "x").stderr


def test_an_interrupt_before_the_task_id_says_what_is_not_known(peer: Peer) -> None:
    """There is nothing to resume, and perhaps something to pay for."""
    peer.submits = [KeyboardInterrupt()]
    result = run("generate", "x", "-o", "x.png")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[0] == "imagelabs: interrupted"
    assert "whether the service accepted the job is not known" in result.stderr


def test_an_interrupt_elsewhere_is_a_line_too(peer: Peer) -> None:
    """Also where nothing was going on."""
    peer.polls = [KeyboardInterrupt()]
    result = run("status", "task-1")
    assert result.exit_code == 130
    assert "imagelabs: interrupted" in result.stderr


@pytest.mark.parametrize("task", ["task-1", "-n", "two words", "$(reboot)", "it's"])
def test_the_command_that_goes_on_can_be_pasted_into_a_shell(peer: Peer, task: str) -> None:
    """The task id comes from the server, and a shell obeys what is not quoted."""
    peer.submits, peer.polls = [ok(task_id=task)], [KeyboardInterrupt()]
    url = "https://images.test/a'b"
    result = run("generate", "x", "-o", "my image.png", "--base-url", url)
    line = result.stderr.splitlines()[-1].removeprefix("To go on: ")
    program, *words = shlex.split(line)
    peer.asked.clear()
    peer.polls = [DONE]
    assert program == "imagelabs"
    assert run(*words).stdout == "my image.png\n"
    assert json.loads(peer.asked[0].body) == {"task_id": task}
    assert peer.settings[-1]["base_url"] == url


def test_debug_shows_the_way_to_an_error(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """Before or after the command, as people type it."""
    peer.polls = [ZeroDivisionError("oops")]
    for arguments in (["--debug", "generate", "x"], ["generate", "x", "--debug"]):
        caplog.clear()
        result = run(*arguments)
        assert result.exit_code == 1
        assert "imagelabs: unexpected ZeroDivisionError: oops" in result.stderr
        assert "Traceback" in caplog.text


def test_debug_logs_no_prompt(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """A log is passed on more easily than a prompt."""
    run("generate", "my secret", "--negative", "my fear", "--debug")
    assert "task-1 accepted" in caplog.text
    assert "my " not in caplog.text


# What is seen ---------------------------------------------------------------------------


def test_a_pipe_gets_a_plain_line_per_change_of_state(peer: Peer) -> None:
    """A log file full of redrawn bars helps nobody."""
    peer.polls = [WAITING, WAITING, HALF, HALF, DONE]
    result = run("generate", "x", "-o", "x.png", "--seed", 7)
    assert result.stderr.splitlines() == [
        "task task-1: accepted",
        "task task-1: queued (Queue position 2)",
        "task task-1: running (Render [bold]3/6[/bold])",
        "task task-1: done",
        "seed 7, 1152x896 pixels, 5.0 s",
    ]


def test_forced_colours_do_not_bring_the_bar_into_a_pipe(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CI services set FORCE_COLOR, and keep what is written."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in run("generate", "x", "-o", "x.png").stderr


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is sent."""
    file = io.StringIO()

    def console() -> Console:
        return Console(file=file, force_terminal=True, width=80)

    monkeypatch.setattr(cli, "_console", console)
    return file


def shown(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_a_terminal_sees_one_bar_for_a_batch(gallery: Gallery, screen: io.StringIO) -> None:
    """Failures are counted while they can still be looked into."""
    gallery.refusals = {"a castle": 422}
    result = batch("--poll-interval", 1)
    drawn = screen.getvalue()
    assert "3 of 3" in drawn
    assert "1 failed" in drawn
    assert "of 3: images" not in result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_a_terminal_sees_a_bar(peer: Peer, screen: io.StringIO) -> None:
    """State, percentage and time; the service's words as they are, whatever they contain."""
    peer.polls = [HALF, WAITING, DONE]
    result = run("generate", "x", "-o", "x.png")
    assert "done" in shown(screen)
    assert "100 %" in shown(screen)
    assert "0:00:00" in shown(screen)
    assert result.stdout == "x.png\n"
    assert "queued" not in result.stderr


def test_the_words_of_the_service_are_no_markup(peer: Peer, screen: io.StringIO) -> None:
    """They would restyle the screen, or end the command with a markup error."""
    peer.polls = [poll("Render [/] [link=http://x]:smile:", 0.5), KeyboardInterrupt()]
    run("generate", "x", "-o", "x.png")
    assert "Render [/] [link=http://x]:s" in shown(screen)
    assert " 50 %" in shown(screen)


def test_without_a_fraction_there_is_no_percentage(peer: Peer, screen: io.StringIO) -> None:
    """Nobody knows how far it is."""
    peer.polls = [poll("Working"), KeyboardInterrupt()]
    run("generate", "x", "-o", "x.png")
    assert "running (Working)" in shown(screen)
    assert "%" not in shown(screen)


def test_no_color_is_respected(
    peer: Peer, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://no-color.org: the bar stays, its colours go."""
    monkeypatch.setenv("NO_COLOR", "1")
    run("generate", "x", "-o", "x.png")
    assert "done" in shown(screen)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m|\x1b\[[0-9;]*38;", screen.getvalue())


def test_a_log_and_a_bar_do_not_share_a_screen(peer: Peer, screen: io.StringIO) -> None:
    """The lines of the one would tear the other apart."""
    result = run("generate", "x", "-o", "x.png", "--debug")
    assert screen.getvalue() == ""
    assert "task task-1: done" in result.stderr


# The built-in engine ----------------------------------------------------------------------

SMALL = ("--size", "64x48", "--poll-interval", "0.01")


def test_the_built_in_engine_needs_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing to try: no account, no network, and an environment that points nowhere."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(embedded, "_DURATION", 0.0)
    result = run("generate", "a lighthouse", "--embedded", "-o", "x", *SMALL)
    assert (result.exit_code, result.stdout) == (0, "x.png\n")
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_of_the_built_in_engine_can_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that cannot work must not be suggested."""
    monkeypatch.setattr(embedded, "_DURATION", 60.0)
    result = run("generate", "x", "--embedded", "--timeout", 0.05, *SMALL)
    assert result.exit_code == 7
    assert result.stderr.splitlines()[-1].endswith("there is nothing to resume.")


@pytest.mark.parametrize(
    ("arguments", "room"),
    [(("generate", "x", "--embedded"), "embedded"), (("serve",), "server.http")],
)
def test_without_pillow_the_remedy_is_named(
    arguments: tuple[str, ...], room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has an extra of its own: a client needs no Pillow."""
    line = r"imagelabs: .*\b{}\b.*: pip install .imagelabs_sdk\[server\].\n"
    code = "import sys; sys.modules['PIL'] = None; import imagelabs_sdk.__main__ as m; m.main()"
    done = python(code, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(line.format("PIL"), done.stderr)
    monkeypatch.setitem(sys.modules, f"imagelabs_sdk.{room}", None)
    result = run(*arguments)
    assert result.exit_code == 1
    assert re.fullmatch(line.format(room), result.stderr)


def test_serve_says_how_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line below can be pasted into another terminal."""
    served = []

    def serve(app: App, *, host: str, port: int, on_ready: Callable[[str], object]) -> None:
        served.append((app, host, port))
        on_ready("http://here:81")

    monkeypatch.setattr(http, "serve", serve)
    result = run("serve", "--port", 81, "--duration", 0, "--workers", 3)
    assert result.exit_code == 0
    assert "IMAGELABS_BASE_URL=http://here:81 imagelabs generate" in result.stdout
    assert served[0][1:] == ("127.0.0.1", 81)


@pytest.mark.parametrize("bad", [("--duration", "-1"), ("--workers", "0"), ("--port", "70000")])
def test_what_cannot_be_served_is_exit_code_2(bad: tuple[str, str]) -> None:
    """By whoever it is found."""
    assert run("serve", *bad).exit_code == 2


def test_a_port_that_is_taken_is_a_line(server: FaultyServer) -> None:
    """The commonest way for `serve` to fail."""
    result = run("serve", "--port", server.port)
    assert result.exit_code == 1
    assert result.stderr.startswith("imagelabs: Address already in use")


# A process of its own -------------------------------------------------------------------

PROGRAM = (sys.executable, "-m", "imagelabs_sdk")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
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


def place(server: FaultyServer) -> tuple[str, ...]:
    return ("--base-url", server.url, "--poll-interval", "0.05")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_the_package_is_the_command() -> None:
    """`python -m imagelabs_sdk` works where scripts are not on the path."""
    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"imagelabs {imagelabs_sdk.__version__}\n"


def test_the_module_runs_as_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, within the process that measures coverage."""
    monkeypatch.setattr(sys, "argv", ["imagelabs", "--version"])
    monkeypatch.delitem(sys.modules, "imagelabs_sdk.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("imagelabs_sdk", run_name="__main__")
    assert not caught.value.code


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_the_command_names_the_remedy(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line: a traceback would look like a bug of ours."""
    code = (
        f"import sys; sys.modules['{missing}'] = None; import imagelabs_sdk.__main__ as m; m.main()"
    )
    line = f'imagelabs: {missing} is not installed: pip install "imagelabs_sdk[cli]"'
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "imagelabs_sdk.cli")
    monkeypatch.delattr(imagelabs_sdk, "cli")
    with pytest.raises(SystemExit, match=re.escape(line)):
        __main__.main()


def test_another_missing_module_is_not_blamed_on_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The remedy would not help."""
    monkeypatch.setitem(sys.modules, "attrs", None)
    monkeypatch.delitem(sys.modules, "imagelabs_sdk.cli")
    monkeypatch.delattr(imagelabs_sdk, "cli")
    with pytest.raises(ImportError, match="attrs"):
        __main__.main()


def test_ctrl_c_leaves_with_130_and_the_way_back(
    server: FaultyServer, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """The one thing that must not be lost is the task id."""
    server.scripts["/progress"] = [QUEUED]
    process = start("generate", "x", "-o", "x.png", *place(server))
    assert process.stderr is not None
    assert any("queued" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines() == [
        "imagelabs: interrupted",
        f"To go on: python -m imagelabs_sdk wait task-1 -o x.png --base-url {server.url}",
    ]


def test_debug_writes_to_stderr(server: FaultyServer) -> None:
    """The log and the traceback; a pipe stays clean."""
    server.scripts["/progress"] = [reply(404, {"error": "no such task"})]
    arguments = ("status", "task-1", "--json", "--debug", "--base-url", server.url)
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "APIStatusError" in done.stderr
    assert "Traceback" in done.stderr


def test_a_reader_that_has_gone_is_no_traceback(server: FaultyServer) -> None:
    """``imagelabs status ... | true``."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PROGRAM, "status", "task-1", "--base-url", server.url],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_is_served_can_be_asked_for_until_ctrl_c(
    start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends over a real socket; to stop a server is no error."""
    process = start("serve", "--port", "0", "--duration", "0")
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    monkeypatch.setenv("IMAGELABS_BASE_URL", found[0])
    result = run("generate", "x", "-o", "x.png", *SMALL)
    assert result.stdout == "x.png\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_real_terminal_is_drawn_on_and_left_as_it_was(
    server: FaultyServer, start: Callable[..., subprocess.Popen[str]]
) -> None:
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
