"""The command in this process, and the scripted service that it talks to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from click.testing import CliRunner, Result
from rich.console import Console

from imagelabs_sdk import ImageLabs
from imagelabs_sdk.cli.commands import cli
from imagelabs_sdk.cli.runtime import Runtime
from imagelabs_sdk.testing import FakeService, JobScript

Script = Callable[[JobScript], JobScript]
"""Fills the script of a job."""


@attrs.define
class Command:
    """The command, whose clients talk to a scripted service and live by its clock.

    Attributes:
        service: What they talk to, whatever their address is.
        settings: Of each client that was made.
        console: Makes the terminal; `None`: there is none.
        second_ctrl_c: Whether somebody presses it when it is offered.
    """

    service: FakeService
    settings: list[dict[str, Any]] = attrs.Factory(list)
    console: Callable[[], Console] | None = None
    second_ctrl_c: bool = False

    def __call__(self, *arguments: object, stdin: str | None = None) -> Result:
        return invoke(arguments, self.runtime(), stdin)

    def runtime(self) -> Runtime:
        more: dict[str, Any] = {} if self.console is None else {"make_console": self.console}
        return Runtime(
            make_client=self._client,
            make_embedded_client=self._client,
            sleep=self._sleep,
            **more,
        )

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
        polling = self.service.clock.every(1.0 if interval is None else interval)
        return ImageLabs(base_url, transport=self.service.transport(), polling=polling, **settings)


def invoke(
    arguments: Sequence[object], runtime: Runtime | None = None, stdin: str | None = None
) -> Result:
    """Run the command in this process; without a runtime, with real clients."""
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli, words, obj=runtime, input=stdin)


def saved() -> list[str]:
    return sorted(path.name for path in Path("images").iterdir())


def prompts(service: FakeService) -> list[str]:
    """Those that were submitted, in order."""
    return [submit.request.prompt for submit in service.submits]
