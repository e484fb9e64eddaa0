"""A service that answers by script, and the command that talks to it."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import attrs
from click.testing import CliRunner, Result
from rich.console import Console

from imagelabs_sdk import (
    APIConnectionError,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
)
from imagelabs_sdk.cli.commands import cli
from imagelabs_sdk.cli.runtime import Runtime
from tests.conftest import FakeTime
from tests.faulty import PNG

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


def as_answer(say: Say) -> HttpResponse:
    if isinstance(say, BaseException):
        raise say
    return say


@attrs.define
class ScriptedService:
    """Answers each path by its own script and keeps what it was asked. The last answer repeats."""

    submits: list[Say] = attrs.Factory(lambda: [ok(task_id="task-1")])
    polls: list[Say] = attrs.Factory(lambda: [WAITING, HALF, DONE])
    images: list[Say] = attrs.Factory(lambda: [HttpResponse(200, {}, PNG)])
    asked: list[HttpRequest] = attrs.Factory(list)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.asked.append(request)
        path = request.url.rpartition("/")[2]
        script = {"txt2img": self.submits, "progress": self.polls}.get(path, self.images)
        return as_answer(script.pop(0) if len(script) > 1 else script[0])

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.asked[0].body)
        return body


@attrs.define
class Gallery:
    """A service that is done at the second poll; a prompt, with dashes, is its task id.

    No poll is answered before `crowd` jobs were submitted, and none of a task that is `held`
    before an image is fetched: a fake clock runs fast in other threads.
    """

    crowd: int = 0
    crowded: threading.Event = attrs.Factory(threading.Event)
    held: set[str] = attrs.Factory(set)
    fetching: threading.Event = attrs.Factory(threading.Event)
    refusals: dict[str, int | BaseException] = attrs.Factory(dict)
    images: dict[str, Say] = attrs.Factory(dict)
    polls: dict[str, list[Say]] = attrs.Factory(dict)
    submits: list[str] = attrs.Factory(list)
    bodies: list[dict[str, Any]] = attrs.Factory(list)
    fetched: list[str] = attrs.Factory(list)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        path = unquote(request.url.rpartition("/")[2])
        if path == "txt2img":
            return self._accept(json.loads(request.body))
        if path == "progress":
            assert self.crowded.wait(5)
            task = json.loads(request.body)["task_id"]
            assert task not in self.held or self.fetching.wait(5)
            script = self.polls.setdefault(task, [HALF])
            return as_answer(script.pop(0) if script else poll("Done", 1, "/" + quote(task)))
        self.fetched.append(path)
        self.fetching.set()
        return as_answer(self.images.get(path, HttpResponse(200, {}, PNG)))

    def _accept(self, body: dict[str, Any]) -> HttpResponse:
        self.bodies.append(body)
        self.submits.append(body["prompt"])
        if len(self.submits) >= self.crowd:
            self.crowded.set()
        status = self.refusals.get(body["prompt"], 200)
        if isinstance(status, BaseException):
            raise status
        if status != 200:
            return attrs.evolve(ok(error="refused"), status=status)
        return ok(task_id=body["prompt"].replace(" ", "-"))


@attrs.define
class Command:
    """The command in this process, with a service of the test's own and a fake clock."""

    handler: Callable[[HttpRequest], HttpResponse]
    time: FakeTime
    settings: list[dict[str, Any]] = attrs.Factory(list)
    console: Callable[[], Console] | None = None
    second_ctrl_c: bool = False

    def __call__(self, *arguments: object, stdin: str | None = None) -> Result:
        more: dict[str, Any] = {} if self.console is None else {"make_console": self.console}
        runtime = Runtime(
            make_client=self._client,
            make_embedded_client=self._client,
            sleep=self._sleep,
            **more,
        )
        return invoke(arguments, runtime, stdin)

    def batch(self, *arguments: object) -> Result:
        return self("generate", "--batch", "prompts.txt", "--out-dir", "images", *arguments)

    def _sleep(self, seconds: float) -> None:
        assert seconds <= 2.0
        if self.second_ctrl_c:
            raise KeyboardInterrupt

    def _client(self, base_url: str | None = None, **settings: Any) -> ImageLabs:
        self.settings.append({"base_url": base_url, **settings})
        settings.pop("polling", None)  # the test's clock is not the strategy's
        interval = settings.pop("poll_interval", None)
        polling = self.time.every(1.0 if interval is None else interval)
        transport = HandlerTransport(self.handler)
        return ImageLabs(base_url, transport=transport, polling=polling, **settings)


def invoke(
    arguments: Sequence[object], runtime: Runtime | None = None, stdin: str | None = None
) -> Result:
    """Run the command in this process; without a runtime, with real clients."""
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli, words, obj=runtime, input=stdin)


def saved() -> list[str]:
    return sorted(path.name for path in Path("images").iterdir())
