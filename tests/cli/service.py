"""A service that answers by script, and the command that talks to it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from click.testing import CliRunner, Result
from rich.console import Console

from imagelabs_sdk import (
    APIConnectionError,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    PollingStrategy,
    Transport,
)
from imagelabs_sdk.cli.commands import cli
from imagelabs_sdk.cli.runtime import Runtime
from imagelabs_sdk.testing import FakeService
from tests.faulty import PNG

Say = HttpResponse | BaseException


def ok(**fields: object) -> HttpResponse:
    return HttpResponse(200, {}, json.dumps(fields).encode())


def poll(status: str, progress: float | None = None, url: str | None = None) -> HttpResponse:
    return ok(status=status, progress=progress, final_image_url=url)


WAITING = poll("Queue position 2", 0)
RENDER = "Render [bold]3/6[/bold]"
HALF = poll(RENDER, 0.5)
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


def make_gallery() -> FakeService:
    """A service for batches: done at the second poll; a prompt, with dashes, is its task id."""
    service = FakeService(make_id=lambda request: request.prompt.replace(" ", "-"))
    return service.progress(0.5, status=RENDER).done(PNG)


def bodies(service: FakeService) -> list[dict[str, Any]]:
    """The submits that were sent, in order."""
    return [one.fields for one in service.sent if one.at == "submit"]


def submits(service: FakeService) -> list[str]:
    """Their prompts."""
    return [str(body["prompt"]) for body in bodies(service)]


def fetched(service: FakeService) -> list[str]:
    """The task ids of the images that were fetched, in order."""
    return [str(one.task_id) for one in service.sent if one.at == "image"]


@attrs.define
class Command:
    """The command in this process, with a service of the test's own and a fake clock.

    Attributes:
        transport: The way to the service.
        every: Makes a strategy by the clock, from seconds.
        settings: Of each client that was made.
        console: Makes the terminal; `None`: there is none.
    """

    transport: Transport
    every: Callable[[float], PollingStrategy]
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
        polling = self.every(1.0 if interval is None else interval)
        return ImageLabs(base_url, transport=self.transport, polling=polling, **settings)


def invoke(
    arguments: Sequence[object], runtime: Runtime | None = None, stdin: str | None = None
) -> Result:
    """Run the command in this process; without a runtime, with real clients."""
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli, words, obj=runtime, input=stdin)


def saved() -> list[str]:
    return sorted(path.name for path in Path("images").iterdir())
