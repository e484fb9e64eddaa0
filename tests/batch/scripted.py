"""A scripted service for tests of batches, and what several of these files need."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from imagelabs_sdk import ImageLabs
from imagelabs_sdk.batch.batch import Batch
from imagelabs_sdk.batch.scheduler import Outcome
from imagelabs_sdk.testing import FakeClock, FakeService
from tests import faulty
from tests.faulty import FaultyServer

ROOT = Path(__file__).parent.parent.parent
Connect = Callable[..., ImageLabs]


class RunningClock(FakeClock):
    """Jumps whatever other threads do, as real time passes whatever they do."""

    simulated = False


def make_service(clock: FakeClock | None = None) -> FakeService:
    """A service whose jobs take three seconds, and whose task ids are the prompts."""
    return FakeService(clock=clock, make_id=lambda request: request.prompt).takes(3)


def client_of(service: FakeService, **more: Any) -> ImageLabs:
    return service.client(**{"poll_interval": 1.0, "timeout": 60.0, **more})


def run(
    service: FakeService, *items: Any, client: ImageLabs | None = None, **more: Any
) -> list[Outcome]:
    """Return all outcomes; there is one worker, so that the requests have an order."""
    return list(begin(service, *items, client=client, **more))


def begin(service: FakeService, *items: Any, client: ImageLabs | None = None, **more: Any) -> Batch:
    return (client or client_of(service)).generate_many(items, **{"workers": 1, **more})


def submits(service: FakeService) -> list[str]:
    """The prompts that were sent, in order."""
    return [str(one.fields["prompt"]) for one in service.sent if one.at == "submit"]


def times(service: FakeService) -> list[float]:
    """When submits came, in seconds since the first."""
    at = [one.time for one in service.sent if one.at == "submit"]
    return [time - at[0] for time in at]


def kinds(outcomes: list[Outcome]) -> dict[int, object]:
    return {o.index: type(o.error) if o.error else "result" for o in outcomes}


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("imagelabs-batch")]


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another Python, which Ctrl-C interrupts even if these tests ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-u", "-c", textwrap.dedent(code), *map(str, arguments)]
    pipes: Any = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as running:
        signal.signal(signal.SIGINT, before)
        try:
            yield running
        finally:
            running.kill()


DRAW = """
    import sys, threading
    from imagelabs_sdk import ImageLabs
    client = ImageLabs(sys.argv[1], poll_interval=0.02)
    batch = client.generate_many(["a", "b", "c"], workers=2, checkpoint=sys.argv[2])
    try:
        for outcome in batch:
            print(outcome.index)
    except KeyboardInterrupt as error:
        print(sorted(job.id for job in batch.unfinished.values()), threading.active_count())
        raise
"""


def ids(count: int) -> list[faulty.Answer]:
    return [faulty.reply(200, {"task_id": f"task-{number}"}) for number in range(1, count + 1)]


def told(answer: faulty.Answer, event: threading.Event) -> faulty.Answer:
    def both(wire: faulty.Wire) -> None:
        event.set()
        answer(wire)

    return both


def events(path: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [(line["index"], line["event"]) for line in lines]


def complete(data: bytes) -> list[bytes]:
    """Return the lines that were written completely, with or without their line break."""
    lines = data.split(b"\n")
    with suppress(ValueError):
        json.loads(lines[-1])
        return lines
    return lines[:-1]


def one_done_others_running(server: FaultyServer) -> None:
    """The first poll of any job finds it done, all later ones find it running."""
    ids = (faulty.reply(200, {"task_id": f"task-{number}"}) for number in range(1, 9))
    server.scripts["/txt2img"] = list(ids)
    server.scripts["/progress"] = [server.done(), faulty.RUNNING]


def fail_at(outcome: Outcome) -> None:
    raise LookupError(outcome.index)
