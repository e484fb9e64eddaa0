"""The checkpoint: nothing is bought twice, however a run ends."""

import errno
import fcntl
import json
import math
import os
import resource
import signal
import socket
import stat
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import (
    InvalidRequestError,
    JobTimeoutError,
    SubmissionUnknownError,
)
from imagelabs_sdk._journal import Journal
from imagelabs_sdk.testing import FakeService, SentRequest
from tests import faulty
from tests.batch.scripted import (
    DRAW,
    Connect,
    begin,
    client_of,
    complete,
    ids,
    kinds,
    one_done_others_running,
    process,
    run,
    submits,
    told,
)
from tests.faulty import PNG, FaultyServer


def test_a_second_run_tells_the_same_and_asks_nothing(service: FakeService, path: Path) -> None:
    """The seeds that were picked included, and the job that failed."""
    service.job("c").fails()
    first = run(service, *"abc", checkpoint=path)
    service.sent.clear()
    second = run(service, *"abc", checkpoint=path)
    assert not service.sent
    key = lambda outcome: outcome.index  # noqa: E731 - shorter than its name
    for before, after in zip(sorted(first, key=key), sorted(second, key=key), strict=True):
        assert after.request == before.request
        assert after.result == before.result
        assert str(after.error) == str(before.error)
        assert type(after.error) is type(before.error)
        assert after.job is not None
        assert before.job is not None
        assert after.job.id == before.job.id


def test_what_was_accepted_is_waited_for(service: FakeService, path: Path) -> None:
    """With a patience of its own, however long ago it was accepted."""
    service.job("a").takes(100.0)
    (before,) = run(service, "a", checkpoint=path, timeout=5)
    assert isinstance(before.error, JobTimeoutError)
    service.clock.advance(1000)
    (after,) = run(service, "a", checkpoint=path, timeout=5)
    assert after.result is not None
    assert after.request == before.request
    assert submits(service) == ["a"]


def test_new_items_may_be_added_at_the_end(service: FakeService, path: Path) -> None:
    """The list of tomorrow begins with that of today."""
    run(service, *"ab", checkpoint=path)
    assert len(run(service, *"abcd", checkpoint=path)) == 4
    assert submits(service) == [*"abcd"]


def test_what_was_surely_not_accepted_is_submitted_again(service: FakeService, path: Path) -> None:
    """And only that: what is unclear is not bought by a second run either."""
    service.job("limited").rate_limited(999)
    service.job("judged").refuses()
    service.job("unclear").drops_connection()
    service.job("page").refuses(status=502)
    names = ["limited", "judged", "unclear", "page"]
    run(service, *names, checkpoint=path)
    for name in names:
        service.job(name)
    for _ in range(2):
        again = kinds(run(service, *names, checkpoint=path))
        assert again == {
            0: "result",
            1: "result",
            2: SubmissionUnknownError,
            3: SubmissionUnknownError,
        }
    assert Counter(submits(service)) == {"limited": 2, "judged": 2, "unclear": 1, "page": 1}


def test_a_line_is_on_disk_before_its_request_leaves(
    service: FakeService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill in between would buy twice."""
    on_disk: list[int] = []
    sync = os.fsync

    def record(handle: int) -> None:
        sync(handle)
        lines = map(json.loads, complete(path.read_bytes())[1:])  # another may be in the making
        on_disk[:] = [line["index"] for line in lines if line["event"] == "sending"]

    def check(sent: SentRequest) -> None:
        assert sent.at != "submit" or int(sent.fields["prompt"]) in on_disk

    monkeypatch.setattr(os, "fsync", record)
    service.on_request = check
    outcomes = run(service, *map(str, range(20)), checkpoint=path, workers=4)
    assert set(kinds(outcomes).values()) == {"result"}


def test_wherever_the_file_is_torn_nothing_is_bought_twice(
    service: FakeService, path: Path
) -> None:
    """A process dies at any byte; what was about to be sent by then is not sent again."""
    run(service, *"ab", checkpoint=path)
    whole = path.read_bytes()
    ends = [number for number, byte in enumerate(whole, 1) if byte == 10]
    for cut in sorted({end + shift for end in [0, *ends] for shift in (0, 1, 30, -1)}):
        kept = whole[: max(0, cut)]
        path.write_bytes(kept)
        known = {line["index"]: line["event"] for line in map(json.loads, complete(kept)[1:])}
        service.sent.clear()
        outcomes = run(service, *"ab", checkpoint=path)
        assert set(submits(service)) == {"ab"[index] for index in (0, 1) if index not in known}
        for outcome in outcomes:
            unknown = known.get(outcome.index) == "sending"
            assert isinstance(outcome.error, SubmissionUnknownError) is unknown


@pytest.mark.parametrize("point", ["submit", "poll"])
def test_a_killed_run_is_taken_up_without_buying_twice(
    server: FaultyServer, connect: Connect, path: Path, point: str
) -> None:
    """A real kill -9, while a submit or a poll waits for its answer."""
    reached, polled = threading.Event(), threading.Event()
    held = told(faulty.hang(), reached)

    def poll(wire: faulty.Wire) -> None:
        if reached.is_set():  # by the one worker that is left, which has written down all it did
            polled.set()
        faulty.RUNNING(wire)

    server.scripts["/txt2img"] = [*ids(2), held] if point == "submit" else ids(3)
    server.scripts["/progress"] = [poll] if point == "submit" else [*[poll] * 9, held, poll]
    with process(DRAW, server.url, path) as running:
        assert reached.wait(20)
        assert polled.wait(20)
        running.send_signal(signal.SIGKILL)
        running.wait(20)
    assert server.count("/txt2img") == 3
    server.scripts["/progress"] = [server.done()]
    outcomes = list(connect(server).generate_many([*"abc"], checkpoint=path))
    assert server.count("/txt2img") == 3
    if point == "poll":
        assert sorted(o.job.id for o in outcomes if o.job) == ["task-1", "task-2", "task-3"]
    else:
        assert Counter(kinds(outcomes).values()) == {"result": 2, SubmissionUnknownError: 1}
    assert all(o.result.read() == PNG for o in outcomes if o.result)


def test_a_changed_item_is_refused_before_anything_is_bought(
    service: FakeService, path: Path
) -> None:
    """A line put in at the top would shift, and buy, all that follow."""
    run(service, *"abc", checkpoint=path)
    service.sent.clear()
    with pytest.raises(InvalidRequestError, match=r"item 0 .* is not the one that"):
        run(service, *"xabc", checkpoint=path)
    with pytest.raises(InvalidRequestError, match="item 1 "):
        run(service, "a", {"prompt": "b", "seed": 7}, "c", checkpoint=path)
    assert not service.sent


def test_two_runs_at_once_are_refused(service: FakeService, path: Path) -> None:
    """Both would buy the same images."""
    first = begin(service, "a", checkpoint=path)
    with pytest.raises(InvalidRequestError, match="another run uses it"):
        begin(service, "a", checkpoint=path)
    assert len(list(first)) == 1
    assert len(run(service, "a", checkpoint=path)) == 1


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("a lighthouse", "it is not a checkpoint"),
        ("a lighthouse\na boat\n", "it is not a checkpoint"),
        ("[1]\n", "it is not a checkpoint"),
        (
            '{"version":2,"base_url":"https://imagelabs.test"}\n',
            "of this version",
        ),
        ('{"version":1,"base_url":"https://other.test"}\n', "another service, https://other.test"),
        ("HEADER\nnonsense\n", "its line 2 is not a JSON object"),
        ('HEADER\n{"index":0,"event":"eaten"}\n', "its line 2 is not a line"),
        (
            'HEADER\n{"index":0,"event":"sending","fingerprint":""}\n{"event":"refused"}\n',
            "its line 3 is not a line",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(
    service: FakeService, path: Path, content: str, word: str
) -> None:
    """A list of prompts given by mistake must not be overwritten."""
    header = '{"version":1,"base_url":"https://imagelabs.test"}'
    content = content.replace("HEADER", header)
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=word) as caught:
        run(service, "a", checkpoint=path)
    assert caught.value.field == "checkpoint"
    assert path.read_text() == content


def test_the_file_is_the_owners_alone_and_holds_no_secret(service: FakeService, path: Path) -> None:
    """Prompts are in it; cookies are not."""
    client = client_of(service, cookies={"cf_clearance": "secret"}, headers={"x-key": "secret"})
    run(service, "a lighthouse", client=client, checkpoint=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "a lighthouse" in path.read_text()
    assert "secret" not in path.read_text()


def test_a_folder_that_is_missing_is_said_at_once(service: FakeService, tmp_path: Path) -> None:
    """By the system's own word."""
    with pytest.raises(FileNotFoundError):
        run(service, "a", checkpoint=tmp_path / "nowhere" / "run.jsonl")


def test_a_full_disk_ends_the_run_before_the_next_request(
    service: FakeService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written down must not be bought; what was, is at hand."""

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    batch = client_of(service).generate_many([*"ab"], workers=1, checkpoint=path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        next(batch)
    assert submits(service) == []


def limit_file_size(size: int) -> None:
    """Let every write beyond `size` bytes fail in this process, as on a full disk; -1: none."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_job_that_the_full_disk_did_not_record_is_named(service: FakeService, path: Path) -> None:
    """Its id is nowhere else; and half a line must not spoil the file."""
    batch = begin(service, "a", "b", max_in_flight=1, checkpoint=path)

    def fill_the_disk(sent: SentRequest) -> None:
        limit_file_size(path.stat().st_size + 50)

    service.on_request = fill_the_disk
    try:
        with pytest.raises(OSError, match="job a was accepted and is not in the check") as caught:
            next(batch)
    finally:
        limit_file_size(-1)
    assert caught.value.errno == errno.EFBIG
    assert list(batch.unrecorded) == [0]
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        assert note == f"jobs that go on at the service, {path} lacks them (1): task ids a"
    assert path.read_bytes().endswith(b"}\n")
    service.on_request = None
    assert kinds(run(service, "a", "b", checkpoint=path)) == {
        0: SubmissionUnknownError,
        1: "result",
    }
    assert submits(service) == ["a", "b"]


def test_a_job_that_was_recorded_is_not_called_lost(
    service: FakeService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the batch is another line; the message tells the two apart."""
    service.job("a").never_finishes()
    full = OSError(errno.ENOSPC, "No space left on device")

    def check(sent: SentRequest) -> None:
        if sent.at == "submit" and sent.fields["prompt"] == "b":
            monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(full))

    service.on_request = check
    batch = begin(service, "a", "b", checkpoint=path)
    with pytest.raises(OSError, match="job b was accepted and is not") as caught:
        next(batch)
    assert set(batch.unfinished) == {0, 1}
    assert set(batch.unrecorded) == {1}
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        known, lost = note.split("; ")
        assert known.endswith("knows them (1): task ids a")
        assert lost.endswith("lacks them (1): task ids b")


def test_after_a_failed_sync_no_line_is_called_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports a failure once, and then success, although the lines are lost."""
    journal = Journal(path, {"version": 1, "base_url": ""}, field="checkpoint")

    def full(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="Input/output error"):
            journal.append({})
    with pytest.raises(OSError, match="an earlier line could not be synced"):
        journal.append({})
    journal.close()


def test_an_image_that_was_recorded_as_saved_is_known_to_later_runs(
    service: FakeService, path: Path
) -> None:
    """What was only finished, or has failed, is not."""
    service.job("c").fails()
    batch = begin(service, *"abc", checkpoint=path)
    for outcome in batch:
        assert not outcome.saved
        if outcome.index != 1:
            batch.record_saved(outcome)
            batch.record_saved(outcome)
    batch.record_saved(outcome)  # the file is closed
    for _ in range(2):
        again = {each.index: each.saved for each in run(service, *"abc", checkpoint=path)}
        assert again == {0: True, 1: False, 2: False}
    assert submits(service) == [*"abc"]


def test_without_a_checkpoint_nothing_is_recorded(service: FakeService) -> None:
    """The same loop runs with and without one."""
    batch = begin(service, "a")
    batch.record_saved(next(batch))
    assert not batch.unrecorded
    batch.close()


# Lines that no run has written --------------------------------------------------------------


@pytest.mark.parametrize("index", [0.0, "0", -1, False, None, [0], {}, 2**63, 10**30])
@pytest.mark.parametrize("event", ["sending", "accepted", "done"])
def test_an_index_that_is_none_is_refused(
    service: FakeService, path: Path, event: str, index: object
) -> None:
    """The item would count as one that was never sent, and be bought again."""
    assert "index=" in refusal_of(service, path, event, {"index": index})


@pytest.mark.parametrize(
    ("event", "change", "words"),
    [
        ("done", {"timings": [1]}, "timings: must be 4 numbers"),
        ("done", {"timings": {"a": 1}}, "timings: must be 4 numbers"),
        ("done", {"timings": None}, "timings: must be 4 numbers"),
        ("done", {"timings": ["a", 1, 1, 1]}, "timings='a'"),
        ("done", {"timings": [math.nan, 1, 1, 1]}, "timings=nan"),
        ("done", {"url": None}, "url: must be text"),
        ("done", {"url": "javascript:alert(1)"}, "may not be javascript:"),
        ("done", {"url": "file:///etc/passwd"}, "may not be file:"),
        ("done", {"url": "a.png"}, "needs a host"),
        ("accepted", {"job": None}, "job: must not be NoneType"),
        ("failed", {"message": None}, "message: must not be NoneType"),
        ("failed", {"status": 5}, "status: must not be int"),
        ("failed", {"waited": "x"}, "waited='x'"),
        ("failed", {"waited": 10**400}, "waited="),
        ("sending", {"keyed": 1}, "keyed: must not be int"),
        ("sending", {"keyed": {"seed": 1, "subseed": 1}}, "key: must not be NoneType"),
        ("sending", {"keyed": {"key": "x", "seed": 1}}, "subseed=None"),
        ("sending", {"keyed": {"key": "x", "seed": -1, "subseed": 1}}, "seed=-1"),
    ],
)
def test_a_field_that_is_none_is_refused(
    service: FakeService, path: Path, event: str, change: dict[str, object], words: str
) -> None:
    """By file and line; an address as everywhere else."""
    assert words in refusal_of(service, path, event, change)


def refusal_of(service: FakeService, path: Path, event: str, change: Mapping[str, object]) -> str:
    """Change the first line of an event of an earlier run; return how the next run refuses it."""
    service.job("b").fails()
    run(service, *"ab", checkpoint=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number, line = next((n, x) for n, x in enumerate(lines, 1) if x.get("event") == event)
    line.update(change)
    error = refused(service, path, lines)
    assert f"checkpoint {path}: its line {number} is not a line of a checkpoint: " in error
    return error


def refused(service: FakeService, path: Path, lines: Sequence[object]) -> str:
    """Return why these lines are refused: before anything is sent, and the file is kept."""
    content = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(content)
    service.sent.clear()
    with pytest.raises(InvalidRequestError) as caught:
        run(service, *"abc", checkpoint=path)
    assert caught.value.field == "checkpoint"
    assert path.read_text() == content
    assert not service.sent
    return str(caught.value)


def test_a_line_that_is_missing_is_noticed(service: FakeService, path: Path) -> None:
    """Without its "accepted" an image that is there would be bought again."""
    run(service, "a", checkpoint=path)
    header, sending, accepted, done = map(json.loads, path.read_text().splitlines())
    sent_no = {"index": 0, "event": "refused"}
    saved = {"index": 0, "event": "saved"}
    for lines, words in (
        ([sending, done], "line 3 says 'done' of item 0 (counted from 0), after 'sending': a line"),
        ([accepted, done], "line 2 says 'accepted' of item 0 (counted from 0), after nothing"),
        ([sent_no], "line 2 says 'refused'"),
        ([sending, accepted, sent_no], "line 4 says 'refused'"),
        ([sending, accepted, done, sending], "line 5 says 'sending'"),
        ([sending, accepted, saved], "line 4 says 'saved'"),
    ):
        assert words in refused(service, path, [header, *lines])


def test_a_job_that_cannot_be_used_is_refused_with_the_name_of_the_file(
    service: FakeService, path: Path
) -> None:
    """Of another service, say."""
    run(service, "a", checkpoint=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["job"]["base_url"] = "https://other.test"
    error = refused(service, path, lines)
    assert f"checkpoint {path}: its job of item 0 cannot be used: base_url=" in error


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", b"a", 5, None])
def test_what_is_no_path_is_refused(service: FakeService, name: Any) -> None:
    """As any other argument."""
    if name is None:
        name = object()
    with pytest.raises(InvalidRequestError) as caught:
        run(service, "a", checkpoint=name)
    assert caught.value.field == "checkpoint"


# The file on a real system ------------------------------------------------------------------


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("change", [delete, replace, truncate])
def test_a_checkpoint_that_is_changed_under_a_run_ends_it_before_the_next_submit(
    service: FakeService, path: Path, change: Callable[[Path], None]
) -> None:
    """The next run would not know of what is bought from now on, and buy it again."""

    def items() -> Iterator[str]:
        yield "a"
        change(path)
        yield "b"

    for name in "ab":
        service.job(name).takes(1.0)
    batch = client_of(service).generate_many(items(), workers=1, max_in_flight=1, checkpoint=path)
    assert next(batch).result is not None
    with pytest.raises(OSError, match="the checkpoint was deleted or replaced"):
        next(batch)
    assert submits(service) == ["a"]


def test_a_checkpoint_is_still_found_after_a_change_of_the_working_directory(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means what it meant at the start."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    batch = begin(service, "a", checkpoint="run.jsonl")
    monkeypatch.chdir(tmp_path / "other")
    assert len(list(batch)) == 1


@pytest.mark.parametrize("kind", ["a directory", "a pipe", "a device", "a socket"])
def test_what_is_no_file_is_refused_by_name(
    service: FakeService, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/dev/zero` has no end, a pipe hangs."""
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    names: list[str | Path] = [Path("special")]
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "a directory":
            Path("special").mkdir()
        elif kind == "a pipe":
            os.mkfifo("special")
        elif kind == "a socket":
            listener.bind("special")
        else:
            names = ["/dev/zero", "/dev/null"]
        for name in names:
            with pytest.raises(InvalidRequestError, match=f"{name}: it is {kind}") as caught:
                run(service, "a", checkpoint=name)
            assert caught.value.field == "checkpoint"
    assert not service.sent


def test_the_mode_of_an_existing_checkpoint_is_tightened(service: FakeService, path: Path) -> None:
    """It holds prompts; an editor or a copy may have opened it to all."""
    run(service, "a", checkpoint=path)
    path.chmod(0o644)
    run(service, "a", checkpoint=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_mode_that_cannot_be_tightened_is_logged(
    service: FakeService,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file system without modes is no reason to stop."""
    run(service, "a", checkpoint=path)
    path.chmod(0o644)

    def refuse(handle: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    assert len(run(service, "a", checkpoint=path)) == 1
    assert "may be read by others" in caplog.text


def test_the_file_of_somebody_else_keeps_its_mode(service: FakeService, path: Path) -> None:
    """A list of prompts given by mistake is left as it is."""
    path.write_text("a lighthouse\n")
    path.chmod(0o644)
    with pytest.raises(InvalidRequestError):
        run(service, "a", checkpoint=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def with_bom(data: bytes) -> bytes:
    return b"\xef\xbb\xbf" + data


def with_crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def without_last_break(data: bytes) -> bytes:
    return data[:-1]


def with_spaces(data: bytes) -> bytes:
    return data.replace(b'":', b'": ').replace(b',"base_url"', b', "base_url"') + b"\n\n"


@pytest.mark.parametrize("edit", [with_bom, with_crlf, without_last_break, with_spaces])
def test_a_checkpoint_that_an_editor_has_saved_is_read(
    service: FakeService, path: Path, edit: Callable[[bytes], bytes]
) -> None:
    """What it says is the same."""
    run(service, *"ab", checkpoint=path)
    path.write_bytes(edit(path.read_bytes()))
    for items in ("ab", "abc", "abc"):
        assert len(run(service, *items, checkpoint=path)) == len(items)
    assert submits(service) == [*"abc"]


def test_a_line_without_end_is_refused_in_bounded_memory(service: FakeService, path: Path) -> None:
    """A file of zeros with a good first line: nothing of it is read into memory whole."""
    run(service, "a", checkpoint=path)
    os.truncate(path, 4 * 1024**3)  # sparse
    with pytest.raises(InvalidRequestError, match="it has a line of more than"):
        run(service, "a", checkpoint=path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EWOULDBLOCK, "another run uses it"),
        (errno.EACCES, "another run uses it"),
        (errno.ENOLCK, r"it cannot be locked \(No locks available\); use a file on a local disk"),
    ],
)
def test_a_lock_that_fails_says_why(
    service: FakeService,
    path: Path,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network disk without locks is not "in use"."""

    def fail(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(InvalidRequestError, match=words):
        run(service, "a", checkpoint=path)


def test_an_item_of_unknown_fate_is_sent_again_if_the_caller_says_so(
    service: FakeService, path: Path
) -> None:
    """Only a person can look whether it was bought."""
    service.job("a").drops_connection()
    run(service, *"ab", checkpoint=path)
    (error,) = [o.error for o in run(service, *"ab", checkpoint=path, unknown="skip") if o.error]
    assert isinstance(error, SubmissionUnknownError)
    assert 'unknown="retry" sends it again, which may buy the image twice' in error.message
    service.job("a")
    outcomes = run(service, *"ab", checkpoint=path, unknown="retry")
    assert set(kinds(outcomes).values()) == {"result"}
    assert Counter(submits(service)) == {"a": 2, "b": 1}


FORK = """
    import os, signal, sys
    from imagelabs_sdk import ImageLabs, InvalidRequestError
    batch = ImageLabs(sys.argv[1], poll_interval=0.02).generate_many(
        ["a", "b"], workers=2, checkpoint=sys.argv[2])
    next(batch)
    child = os.fork()
    if child == 0:
        for use in (lambda: next(batch), lambda: batch.unfinished):
            try:
                use()
            except InvalidRequestError as error:
                print(error.code, flush=True)
        batch.close()
        print("child", flush=True)
        sys.stdin.read()  # goes on living
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_forked_child_fails_clearly_and_does_not_keep_the_lock(
    server: FaultyServer, connect: Connect, path: Path
) -> None:
    """It has none of the threads; and the lock is shared with it, so that it would outlive us."""
    one_done_others_running(server)
    with process(FORK, server.url, path) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(3)]
        running.wait(20)
        server.scripts["/progress"] = [server.done()]
        outcomes = list(connect(server).generate_many([*"ab"], checkpoint=path))
        assert running.stdin is not None
        running.stdin.close()
    assert lines == ["wrong_process\n", "wrong_process\n", "child\n"]
    assert set(kinds(outcomes).values()) == {"result"}
