"""A scripted service for tests of batches, and what several of these files need."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from imagelabs_sdk import (
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
)
from imagelabs_sdk.batch.batch import Batch
from imagelabs_sdk.batch.scheduler import Outcome
from tests import faulty
from tests.conftest import FakeTime
from tests.faulty import FaultyServer

ROOT = Path(__file__).parent.parent.parent
Say = HttpResponse | Exception
Connect = Callable[..., ImageLabs]


def ok(**fields: object) -> HttpResponse:
    return HttpResponse(200, {}, json.dumps(fields).encode())


def refused(status: int, **headers: str) -> HttpResponse:
    return HttpResponse(status, {k.replace("_", "-"): v for k, v in headers.items()}, b"{}")


@attrs.define
class ScriptedService:
    """A service whose task ids are the prompts.

    Attributes:
        time: The clock.
        render_times: Seconds that a job takes, by prompt; 3 for the others.
        submit_answers: Answers to submits of a prompt, given before it is accepted.
        poll_answers: Answers to polls of a prompt's job, given before the true ones.
        received: What came: "submit" or "poll", the prompt, the time.
        started: When each prompt was accepted.
        open: No request is answered until it is set.
    """

    time: FakeTime
    render_times: dict[str, float] = attrs.Factory(dict)
    submit_answers: dict[str, list[Say]] = attrs.Factory(dict)
    poll_answers: dict[str, list[Say]] = attrs.Factory(dict)
    received: list[tuple[str, str, float]] = attrs.Factory(list)
    started: dict[str, float] = attrs.Factory(dict)
    lock: threading.Lock = attrs.Factory(threading.Lock)
    open: threading.Event = attrs.Factory(threading.Event)

    def hold_until_taken(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items; no request is answered until the batch has taken all of them."""
        yield from items
        self.open.set()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        assert self.open.wait(5)
        submit = request.url.endswith("/txt2img")
        task = str(json.loads(request.body)["prompt" if submit else "task_id"])
        with self.lock:
            self.received.append(("submit" if submit else "poll", task, self.time.now))
            script = (self.submit_answers if submit else self.poll_answers).get(task)
            answer = script.pop(0) if script else self._answer(submit, task)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer(self, submit: bool, task: str) -> HttpResponse:
        if submit:
            self.started[task] = self.time.now
            return ok(task_id=task)
        passed, needed = self.time.now - self.started[task], self.render_times.get(task, 3.0)
        if passed < needed:
            return ok(status="Processing", progress=passed / needed)
        return ok(status="Done", progress=1, final_image_url=f"https://images.test/{task}.png")

    def submits(self) -> list[str]:
        return [task for what, task, _ in self.received if what == "submit"]

    def times(self) -> list[float]:
        """When submits came, in seconds since the first."""
        times = [at for what, _, at in self.received if what == "submit"]
        return [at - times[0] for at in times]


def client_of(service: ScriptedService, **more: Any) -> ImageLabs:
    settings = {"polling": service.time.every(1.0), "timeout": 60.0, **more}
    return ImageLabs(transport=HandlerTransport(service), **settings)


def run(
    service: ScriptedService, *items: Any, client: ImageLabs | None = None, **more: Any
) -> list[Outcome]:
    """Return all outcomes; there is one worker, so that the requests have an order."""
    return list(begin(service, *items, client=client, **more))


def begin(
    service: ScriptedService, *items: Any, client: ImageLabs | None = None, **more: Any
) -> Batch:
    client = client or client_of(service)
    return client.generate_many(service.hold_until_taken(items), **{"workers": 1, **more})


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
