"""Items of unknown fate, where the service takes idempotency keys: settled without buying twice."""

import json
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest

from imagelabs_sdk import (
    APIConnectionError,
    FixedInterval,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    Outcome,
    SubmissionUnknownError,
)
from tests.batch.scripted import events, process
from tests.our_server import our_server

SMALL = {"width": 64, "height": 48}


@attrs.define
class KeyedService:
    """Gives a task to each key, and another one to each submit without one.

    Attributes:
        url: An origin of its own: what is announced is remembered for the process.
        announces: The header of each answer; empty: none.
        faults: By prompt, what comes instead of an answer, in order. An exception comes after the
            task was accepted, a response before.
        tasks: By key, or by number without one.
        submits: What was sent: prompt, key, body.
    """

    url: str
    announces: str = "idempotency-key"
    faults: dict[str, list[Any]] = attrs.Factory(dict)
    tasks: dict[object, str] = attrs.Factory(dict)
    submits: list[tuple[str, str | None, bytes]] = attrs.Factory(list)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not request.url.endswith("/txt2img"):
            return self._answer({"status": "Done", "final_image_url": "/x.png"})
        prompt, key = json.loads(request.body)["prompt"], request.headers.get("idempotency-key")
        self.submits.append((prompt, key, request.body))
        fault = self.faults[prompt].pop(0) if self.faults.get(prompt) else None
        if isinstance(fault, HttpResponse):
            return fault
        task = self.tasks.setdefault(key or len(self.submits), f"task-{len(self.tasks) + 1}")
        if fault is not None:
            raise fault
        return self._answer({"task_id": task})

    def _answer(self, fields: dict[str, Any]) -> HttpResponse:
        headers = {"imagelabs-features": self.announces} if self.announces else {}
        return HttpResponse(200, headers, json.dumps(fields).encode())

    def client(self) -> ImageLabs:
        polling = FixedInterval(0.01, sleep=lambda seconds: None)
        return ImageLabs(self.url, transport=HandlerTransport(self), polling=polling)

    def run(self, *items: Any, **more: Any) -> dict[int, Outcome]:
        """Return the outcomes by index; there is one worker, so that the submits have an order."""
        batch = self.client().generate_many(items, **{"workers": 1, "max_in_flight": 1, **more})
        return {outcome.index: outcome for outcome in batch}

    def sent(self, prompt: str) -> list[tuple[str | None, bytes]]:
        return [(key, body) for each, key, body in self.submits if each == prompt]


@pytest.fixture
def keyed(request: pytest.FixtureRequest) -> KeyedService:
    return KeyedService(f"http://{abs(hash(request.node.nodeid))}.test")


def crash() -> KeyboardInterrupt:
    """What ends a run while a submit waits for its answer."""
    return KeyboardInterrupt()


def begin_and_crash(service: KeyedService, path: Path) -> None:
    """End a run while its second item is submitted; the first one has told what is announced."""
    service.faults["b"] = [crash()]
    with pytest.raises(KeyboardInterrupt):
        service.run("a", "b", checkpoint=path)
    assert events(path)[-1] == (1, "sending")


def is_unknown(outcome: Outcome) -> bool:
    return isinstance(outcome.error, SubmissionUnknownError)


def test_a_run_that_was_killed_while_it_submitted_is_settled_without_buying_twice(
    path: Path,
) -> None:
    """At our own server, with a real kill -9 when it has accepted the job: one job an item."""
    code = """
        import sys
        from imagelabs_sdk import ImageLabs
        items = [{"prompt": each, "width": 64, "height": 48} for each in "abc"]
        batch = ImageLabs(sys.argv[1], poll_interval=0.02).generate_many(
            items, workers=1, max_in_flight=1, checkpoint=sys.argv[2])
        list(batch)
    """
    prompts: list[str] = []
    running: list[subprocess.Popen[str]] = []

    def kill(request: HttpRequest) -> None:
        if request.url.endswith("/txt2img"):
            prompts.append(json.loads(request.body)["prompt"])
            if len(prompts) == 2:
                running[0].send_signal(signal.SIGKILL)
                running[0].wait(20)

    with our_server(0.0, handled=kill) as server, ImageLabs(server.url) as client:
        with process(code, server.url, path) as program:
            running.append(program)
            program.wait(30)
        assert events(path)[-1] == (1, "sending")
        items = [{"prompt": each, **SMALL} for each in "abc"]
        first = list(client.generate_many(items, checkpoint=path))
        assert [outcome.index for outcome in first if is_unknown(outcome)] == [1]
        second = list(client.generate_many(items, checkpoint=path, unknown="retry"))
        assert all(outcome.result and outcome.result.read() for outcome in second)
        assert Counter(prompts) == {"a": 1, "b": 2, "c": 1}
        assert server.store.counts().kept == 3


def test_the_submit_that_is_sent_again_is_the_same_to_the_byte(
    keyed: KeyedService, path: Path
) -> None:
    """With its key and the seeds that were picked: another body with that key is refused."""
    begin_and_crash(keyed, path)
    outcomes = keyed.run("a", "b", checkpoint=path, unknown="retry")
    assert outcomes[1].result is not None
    first, again = keyed.sent("b")
    assert first == again
    assert first[0] is not None
    assert len(keyed.tasks) == 2


def test_skip_sends_nothing_and_says_what_retry_would_do(keyed: KeyedService, path: Path) -> None:
    """The server may have forgotten its keys with its jobs: that is for a person to decide."""
    begin_and_crash(keyed, path)
    outcomes = keyed.run("a", "b", checkpoint=path)
    assert is_unknown(outcomes[1])
    assert "with its idempotency key" in str(outcomes[1].error)
    assert len(keyed.sent("b")) == 1


def test_a_submit_that_went_without_a_key_is_not_said_to_have_one(
    keyed: KeyedService, path: Path
) -> None:
    """The first of a process does not know yet that the service takes keys."""
    keyed.faults["a"] = [crash()]
    with pytest.raises(KeyboardInterrupt):
        keyed.run("a", checkpoint=path)
    (outcome,) = keyed.run("a", checkpoint=path).values()
    assert "which may buy the image twice" in str(outcome.error)
    keyed.run("a", checkpoint=path, unknown="retry")
    assert [key for key, _ in keyed.sent("a")] == [None, None]


@pytest.mark.parametrize(
    "fault",
    [
        HttpResponse(400),
        HttpResponse(404),
        HttpResponse(422, {}, b'{"error": "it came with another body before"}'),
        HttpResponse(429, {"retry-after": "0"}),
        HttpResponse(503, {"retry-after": "0"}),
        HttpResponse(502),
        APIConnectionError("refused", delivered="no"),
    ],
)
def test_whatever_the_retry_is_answered_the_item_is_never_taken_for_refused(
    keyed: KeyedService, path: Path, fault: HttpResponse | Exception
) -> None:
    """The earlier submit may be rendering: only its task settles it, in whichever run."""
    begin_and_crash(keyed, path)
    keyed.faults["b"] = [fault] * 9
    outcomes = keyed.run("a", "b", checkpoint=path, unknown="retry")
    judged = isinstance(fault, HttpResponse) and fault.status in (400, 422)
    assert is_unknown(outcomes[1]) is not judged
    assert outcomes[1].error is not None
    keyed.faults["b"] = []
    sent = len(keyed.sent("b"))
    assert is_unknown(keyed.run("a", "b", checkpoint=path)[1])
    assert len(keyed.sent("b")) == sent
    assert keyed.run("a", "b", checkpoint=path, unknown="retry")[1].result is not None
    assert len(set(keyed.sent("b"))) == 1
    assert len(keyed.tasks) == 2


def test_the_key_is_sent_although_this_process_was_told_of_none(
    keyed: KeyedService, path: Path
) -> None:
    """The origin had announced keys to the run before; a first answer would come too late."""
    begin_and_crash(keyed, path)
    keyed.announces = ""
    keyed.run("a", checkpoint=path.with_name("other.jsonl"))  # takes the announcement back
    keyed.run("a", "b", "c", checkpoint=path, unknown="retry")
    assert len(set(keyed.sent("b"))) == 1
    assert keyed.sent("c")[0][0] is None


def test_a_service_without_keys_gets_none(keyed: KeyedService, path: Path) -> None:
    """Nor does the file hold one."""
    keyed.announces = ""
    begin_and_crash(keyed, path)
    keyed.run("a", "b", checkpoint=path, unknown="retry")
    assert {key for _, key, _ in keyed.submits} == {None}
    assert '"key"' not in path.read_text()
