"""Items of unknown fate, where the service takes idempotency keys: settled without buying twice."""

import json
import math
import re
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    BatchStoppedError,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    JobStoppedError,
    Outcome,
    SubmissionUnknownError,
)
from imagelabs_sdk.testing import FakeService
from tests.batch.scripted import begin, client_of, events, kinds, process, run
from tests.our_server import our_server

BUSY = HttpResponse(503, {"retry-after": "0"})
SMALL = {"width": 64, "height": 48}


@pytest.fixture
def keyed() -> FakeService:
    return FakeService(features="idempotency-key")


def outcomes_of(service: FakeService, *items: str, **more: Any) -> dict[int, Outcome]:
    """Return the outcomes of a run by index."""
    return {outcome.index: outcome for outcome in run(service, *items, max_in_flight=1, **more)}


def sent(service: FakeService, prompt: str) -> list[tuple[str | None, bytes]]:
    """Return key and body of each submit with this prompt."""
    submits = [one.request for one in service.sent if one.fields.get("prompt") == prompt]
    return [(request.headers.get("idempotency-key"), request.body) for request in submits]


def begin_and_crash(service: FakeService, path: Path) -> None:
    """End a run while its second item is submitted; the first one has told what is announced."""
    service.job().done()
    service.job().answers(KeyboardInterrupt(), times=1)
    with pytest.raises(KeyboardInterrupt):
        run(service, "a", "b", max_in_flight=1, checkpoint=path)
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
    keyed: FakeService, path: Path
) -> None:
    """With its key and the seeds that were picked: another body with that key is refused."""
    begin_and_crash(keyed, path)
    outcomes = outcomes_of(keyed, "a", "b", checkpoint=path, unknown="retry")
    assert outcomes[1].result is not None
    first, again = sent(keyed, "b")
    assert first == again
    assert first[0] is not None
    assert len(keyed.submits) == 2


def test_skip_sends_nothing_and_says_what_retry_would_do(keyed: FakeService, path: Path) -> None:
    """The server may have forgotten its keys with its jobs: that is for a person to decide."""
    begin_and_crash(keyed, path)
    outcomes = outcomes_of(keyed, "a", "b", checkpoint=path)
    assert is_unknown(outcomes[1])
    assert "with its idempotency key" in str(outcomes[1].error)
    assert len(sent(keyed, "b")) == 1


def test_a_submit_that_went_without_a_key_is_not_said_to_have_one(
    keyed: FakeService, path: Path
) -> None:
    """The first of a process does not know yet that the service takes keys."""
    keyed.job().answers(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(keyed, "a", checkpoint=path)
    (outcome,) = outcomes_of(keyed, "a", checkpoint=path).values()
    assert "which may buy the image twice" in str(outcome.error)
    outcomes_of(keyed, "a", checkpoint=path, unknown="retry")
    assert [key for key, _ in sent(keyed, "a")] == [None, None]


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
    keyed: FakeService, path: Path, fault: HttpResponse | Exception
) -> None:
    """The earlier submit may be rendering: only its task settles it, in whichever run."""
    begin_and_crash(keyed, path)
    with keyed.outage(fault):
        outcomes = outcomes_of(keyed, "a", "b", checkpoint=path, unknown="retry")
    judged = isinstance(fault, HttpResponse) and fault.status in (400, 422)
    assert is_unknown(outcomes[1]) is not judged
    assert outcomes[1].error is not None
    before = sent(keyed, "b")
    assert is_unknown(outcomes_of(keyed, "a", "b", checkpoint=path)[1])
    assert sent(keyed, "b") == before
    assert outcomes_of(keyed, "a", "b", checkpoint=path, unknown="retry")[1].result is not None
    assert len(set(sent(keyed, "b"))) == 1
    assert len(keyed.submits) == 2


def test_the_key_is_sent_although_this_process_was_told_of_none(
    keyed: FakeService, path: Path
) -> None:
    """The origin had announced keys to the run before; a first answer would come too late."""
    begin_and_crash(keyed, path)
    keyed.features = ""
    outcomes_of(keyed, "a", checkpoint=path.with_name("other.jsonl"))  # takes the announcement back
    with keyed.outage():  # the file keeps the key all the same
        outcomes_of(keyed, "a", "b", checkpoint=path, unknown="retry")
    outcomes_of(keyed, "a", "b", "c", checkpoint=path, unknown="retry")
    assert len(sent(keyed, "b")) > 2
    assert len(set(sent(keyed, "b"))) == 1
    assert sent(keyed, "c")[0][0] is None


def test_a_service_without_keys_gets_none(keyed: FakeService, path: Path) -> None:
    """Nor does the file hold one."""
    keyed.features = ""
    begin_and_crash(keyed, path)
    outcomes_of(keyed, "a", "b", checkpoint=path, unknown="retry")
    assert {key for key, _ in sent(keyed, "a") + sent(keyed, "b")} == {None}
    assert '"key"' not in path.read_text()


# In one run ---------------------------------------------------------------------------


def test_a_worker_does_not_sleep_until_a_lost_submit_may_be_sent_again(keyed: FakeService) -> None:
    """It is put back with its key; meanwhile the jobs that were accepted are polled."""
    keyed.job().takes(30)
    keyed.job().drops_connection(times=2)
    outcomes = run(keyed, "a", "b", client=client_of(keyed, poll_interval=0.1), max_in_flight=2)
    assert set(kinds(outcomes).values()) == {"result"}
    stages = "".join(one.at[0] for one in keyed.sent)
    assert re.fullmatch("sp*sp+sp+sp+", stages)
    assert len(set(sent(keyed, "b"))) == 1
    assert sent(keyed, "b")[0][0] is not None


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_lost_submit_is_sent_again_as_often_as_the_client_says(
    keyed: FakeService, retries: int
) -> None:
    """Then it is told, and the others go on."""
    keyed.job().done()
    keyed.job().answers(HttpResponse(408))
    outcomes = outcomes_of(keyed, "a", "b", "c", client=client_of(keyed, max_retries=retries))
    assert outcomes[1].error is not None
    assert outcomes[1].error.delivered == "maybe"
    assert outcomes[2].result is not None
    assert len(sent(keyed, "b")) == 1 + retries


def test_a_refusal_of_the_request_settles_a_lost_submit(keyed: FakeService, path: Path) -> None:
    """Then it is known not to be bought, in the next run, too."""
    keyed.job().done()
    keyed.job().drops_connection().refuses(status=400)
    outcomes = outcomes_of(keyed, "a", "b", checkpoint=path)
    assert outcomes[1].error is not None
    assert outcomes[1].error.delivered == "yes"
    assert events(path)[-1] == (1, "refused")


def test_a_ledger_has_one_line_of_a_submit_that_was_lost_and_sent_again(
    keyed: FakeService, path: Path
) -> None:
    """Nobody has to ask what became of the first one."""
    keyed.job().done()
    keyed.job().answers(BUSY, times=1).drops_connection(times=1)
    client = client_of(keyed, ledger=path)
    run(keyed, "a", "b", client=client, max_in_flight=1)
    assert client.ledger is not None
    entries = client.ledger.entries()
    assert [(entry.state, entry.message) for entry in entries] == [("done", "")] * 2


@pytest.mark.parametrize("end", [JobStoppedError, BatchStoppedError])
def test_what_was_to_be_sent_again_when_a_batch_ends_has_an_outcome(
    keyed: FakeService, end: type[Exception]
) -> None:
    """It may have been accepted: it must not be taken for one that was never sent."""
    keyed.job().done()
    keyed.drops_connection(at="submit")
    client = client_of(keyed, max_retries=9, poll_interval=0.1)
    limit = 0.6 if end is JobStoppedError else math.inf  # the first pause is a second
    batch = begin(
        keyed,
        "a",
        "b",
        "c",
        client=client,
        max_in_flight=1,
        stop=lambda: keyed.clock.elapsed > limit,
    )
    next(batch)
    assert is_unknown(next(batch))
    with pytest.raises(end) as caught:
        next(batch)
    assert getattr(caught.value, "unsubmitted", ()) == ()
    assert len(set(sent(keyed, "b"))) == 1


def test_a_submit_that_is_lost_after_its_batch_was_closed_has_an_outcome(
    keyed: FakeService,
) -> None:
    """Nothing is sent any more, and that one may have been accepted."""
    keyed.job().done()
    keyed.drops_connection(at="submit")
    batch, closed_by = begin(keyed, "a", "b", max_in_flight=1), list[threading.Thread]()
    next(batch)

    def close(_: object) -> None:
        batch.close()
        closed_by.append(threading.current_thread())

    keyed.on_request = close
    outcomes = list(batch)
    closed_by[0].join(5)
    assert [is_unknown(outcome) for outcome in [*outcomes, *batch]] == [True]
    assert len(sent(keyed, "b")) == 1
