"""The ledger: what was submitted and how it ended, whatever becomes of the process."""

import json
import logging
import os
import pickle
import signal
import stat
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    JobFailedError,
    Ledger,
    SubmissionUnknownError,
)
from imagelabs_sdk.testing import FakeService
from tests import faulty
from tests.batch.scripted import process
from tests.faulty import FaultyServer

PROMPT = "a secret lighthouse"
Script = Callable[[FakeService], FakeService]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.jsonl"


def events(path: Path) -> list[str]:
    return [json.loads(line).get("event", "") for line in path.read_text().splitlines()][1:]


def test_each_submit_and_each_end_is_recorded(path: Path) -> None:
    """In one file, for its owner alone; and no prompt is in it."""
    client = FakeService().client(ledger=path)
    client.generate(PROMPT, seed=7)
    client.submit(PROMPT, seed=8)
    assert events(path) == ["sending", "accepted", "done", "sending", "accepted"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "lighthouse" not in path.read_text()
    assert client.ledger is not None
    unfinished, done = client.ledger.entries()  # the unfinished ones first
    facts = [(entry.task_id, entry.state, entry.unfinished) for entry in (unfinished, done)]
    assert facts == [("task-2", "accepted", True), ("task-1", "done", False)]
    assert unfinished.base_url == client.url
    assert unfinished.request is None
    assert unfinished.fingerprint != done.fingerprint


def test_prompts_are_kept_if_the_caller_says_so(path: Path) -> None:
    """Then the whole request can be read again."""
    ledger = Ledger(path, prompts=True)
    job = FakeService().client(ledger=ledger).submit(PROMPT, width=512)
    (entry,) = ledger.entries()
    assert entry.request == job.request
    assert PROMPT not in repr(entry)


@pytest.mark.parametrize(
    ("script", "error", "state", "message"),
    [
        (lambda s: s.refuses("too large"), APIStatusError, "refused", "too large"),
        (lambda s: s.unreachable(), APIConnectionError, "refused", "was refused"),
        (lambda s: s.refuses(status=500), APIStatusError, "sending", ""),
        (lambda s: s.drops_connection(), SubmissionUnknownError, "sending", ""),
        (lambda s: s.answers(KeyboardInterrupt()), KeyboardInterrupt, "sending", ""),
    ],
)
def test_a_submit_that_fails_is_recorded_as_what_it_is(
    script: Script, error: type[BaseException], state: str, message: str, path: Path
) -> None:
    """Refused: nothing was bought. Else nobody knows, and somebody may want to look."""
    client = script(FakeService()).client(ledger=path)
    with pytest.raises(error):
        client.submit(PROMPT)
    (entry,) = Ledger(path).entries()
    assert (entry.state, entry.task_id) == (state, None)
    assert message in entry.message
    with pytest.raises(InvalidRequestError, match="none is known"):
        entry.to_dict()


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (lambda s: s.fails("too dark"), JobFailedError),
        (lambda s: s.refuses("too dark", status=404, at="progress"), APIStatusError),
    ],
)
def test_a_job_that_fails_is_recorded_with_the_reason(
    script: Script, error: type[Exception], path: Path
) -> None:
    """The service's own words, without the prompt."""
    client = script(FakeService()).client(ledger=path)
    with pytest.raises(error):
        client.generate(PROMPT)
    (entry,) = Ledger(path).entries()
    assert (entry.task_id, entry.state) == ("task-1", "failed")
    assert "too dark" in entry.message


def test_a_job_that_is_resumed_elsewhere_ends_in_the_same_ledger(path: Path) -> None:
    """With all that is known of it."""
    service = FakeService()
    service.known_job("of another day")
    client = service.client(ledger=Ledger(path, prompts=True))
    client.submit(PROMPT)
    again = pickle.loads(pickle.dumps(Ledger(path)))
    (entry,) = again.entries()
    client.job_from_dict(entry.to_dict()).wait()
    client.get_job("of another day").wait()
    known, other = again.entries()
    if known.task_id != "task-1":
        known, other = other, known
    assert (known.state, known.request) == ("done", entry.request)
    assert (other.task_id, other.state, other.submitted_at) == ("of another day", "done", 0.0)


def test_what_cannot_be_recorded_is_not_bought(path: Path) -> None:
    """The file is checked before the request leaves."""
    service = FakeService()
    path.write_text('{"version":1,"base_url":"https://editor.imagelabs.net"}\n')
    for place, error in (
        (path, InvalidRequestError),
        (path.parent / "nowhere" / "jobs.jsonl", FileNotFoundError),
        (Path("/dev/null"), InvalidRequestError),
    ):
        with pytest.raises(error):
            service.client(ledger=place).submit(PROMPT)
    assert not service.sent


def test_a_ledger_that_fails_after_the_submit_does_not_lose_the_id(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is paid for: it is returned, and it is in the log."""
    sync, count = os.fsync, iter(range(99))

    def full(handle: int) -> None:
        if next(count) >= 3:  # behind the header, the folder and the first line
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.ERROR):
        assert FakeService().client(ledger=path).generate(PROMPT).task_id == "task-1"
    assert "ledger not written, accepted; task task-1: " in caplog.text
    assert "No space left on device" in caplog.text


def test_an_interrupt_while_the_id_is_recorded_does_not_lose_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C may come at any moment; the caller gets no job then."""
    sync, count = os.fsync, iter(range(99))

    def interrupt(handle: int) -> None:
        if next(count) == 3:  # behind the header, the folder and the first line
            raise KeyboardInterrupt
        sync(handle)

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        FakeService().client(ledger=path).submit(PROMPT)
    assert "ledger not written, accepted; task task-1" in caplog.text


def test_the_environment_names_a_ledger(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For programs that nobody wants to change; an empty argument means none."""
    monkeypatch.setenv("IMAGELABS_LEDGER", str(path))
    FakeService().client().submit(PROMPT)
    assert len(Ledger(path).entries()) == 1
    assert ImageLabs(ledger="").ledger is None
    with pytest.raises(InvalidRequestError, match="ledger=7: must be the path of a file"):
        ImageLabs(ledger=7)  # type: ignore[arg-type]


def test_a_ledger_that_is_not_there_yet_is_empty(path: Path) -> None:
    """Asking does not create it."""
    assert Ledger(path).entries() == []
    assert not path.exists()


def test_a_torn_line_costs_that_line_alone(path: Path) -> None:
    """A process may die while it writes; the others go on."""
    client = FakeService().client(ledger=path)
    client.submit(PROMPT)
    with path.open("a") as file:
        file.write('{"event":"sending","key":"to')
    client.submit(PROMPT)
    assert [entry.task_id for entry in Ledger(path).entries()] == ["task-1", "task-2"]


def test_a_batch_is_recorded_as_well(path: Path) -> None:
    """Every way to submit is."""
    client = FakeService().client(ledger=path)
    assert len(list(client.generate_many(["a", "b"], workers=2))) == 2
    assert Counter(events(path)) == {"sending": 2, "accepted": 2, "done": 2}
    assert {entry.state for entry in Ledger(path).entries()} == {"done"}


GENERATE = """
    import sys
    from imagelabs_sdk import ImageLabs
    with ImageLabs(sys.argv[1], poll_interval=0.02, ledger=sys.argv[2]) as client:
        for number in range(int(sys.argv[3])):
            client.generate("a lighthouse", seed=number)
"""


def test_kill_9_inside_generate_loses_no_task_id(
    server: FaultyServer, connect: Callable[..., ImageLabs], path: Path
) -> None:
    """A real one, while the job is rendered."""
    polled = threading.Event()

    def poll(wire: faulty.Wire) -> None:
        polled.set()
        faulty.RUNNING(wire)

    server.scripts["/txt2img"] = [faulty.ACCEPTED]
    server.scripts["/progress"] = [poll]
    with process(GENERATE, server.url, path, 1) as running:
        assert polled.wait(20)
        running.send_signal(signal.SIGKILL)
        running.wait(20)
    (entry,) = Ledger(path).entries()
    assert (entry.state, entry.task_id) == ("accepted", "task-1")
    server.scripts["/progress"] = [server.done()]
    image = connect(server).job_from_dict(entry.to_dict()).result()
    assert image.task_id == "task-1"


def test_several_processes_share_a_ledger(server: FaultyServer, path: Path) -> None:
    """No line is lost, and none is torn."""
    server.scripts["/txt2img"] = [
        *(faulty.reply(200, {"task_id": f"task-{number}"}) for number in range(40))
    ]
    server.scripts["/progress"] = [server.done()]
    with (
        process(GENERATE, server.url, path, 10) as one,
        process(GENERATE, server.url, path, 10) as two,
        process(GENERATE, server.url, path, 10) as three,
    ):
        for running in (one, two, three):
            _, complaint = running.communicate(timeout=60)
            assert running.returncode == 0, complaint
    entries = Ledger(path).entries()
    assert len(entries) == 30
    assert {entry.state for entry in entries} == {"done"}
    assert len(events(path)) == 90


def test_a_request_has_one_fingerprint(path: Path) -> None:
    """Also in another process, so that equal jobs are found."""
    request = ImageRequest(PROMPT, seed=7, subseed=8)
    ledger = Ledger(path)
    for task_id in ("t1", "t2"):
        with ledger.submitting(request, "https://service.test") as submit:
            submit.task_id = task_id
    first, second = ledger.entries()
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 32
