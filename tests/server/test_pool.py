"""Workers: real processes and threads, killed, hung and cancelled."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

from imagelabs_sdk import ImageRequest, InvalidRequestError
from imagelabs_sdk.provenance import read_provenance
from imagelabs_sdk.server import worker
from imagelabs_sdk.server.engines.base import EngineConfig, Recovery
from imagelabs_sdk.server.options import PoolOptions
from imagelabs_sdk.server.pool import WorkerPool
from imagelabs_sdk.server.store.jobs import JobStore
from imagelabs_sdk.server.store.records import JobState, JobStatus, Submission
from imagelabs_sdk.server.worker import Worker, start_thread
from tests.server.engines import Scripted

QUICK = PoolOptions(first_pause=0.01, longest_pause=0.05)


@attrs.frozen
class Rig:
    """A store and what its workers say."""

    store: JobStore
    folder: Path
    outcomes: list[str]
    batches: list[int]

    def submit(self, *prompts: str) -> list[str]:
        requests = [ImageRequest(p, width=64, height=48, seed=1, subseed=2) for p in prompts]
        return [self.store.submit(Submission(request=each)) for each in requests]

    def status(self, task_id: str) -> JobStatus:
        status = self.store.status(task_id)
        assert status is not None
        return status

    def ended(self, *ids: str) -> list[JobStatus]:
        eventually(lambda: all(self.status(each).state.ended for each in ids))
        return [self.status(each) for each in ids]

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @contextmanager
    def running(
        self,
        engine: Scripted,
        options: PoolOptions = QUICK,
        grace: float = 0.0,
        embed_prompts: bool = False,
    ) -> Iterator[WorkerPool]:
        pool = WorkerPool(
            self.store,
            engine,
            options=options,
            embed_prompts=embed_prompts,
            on_outcome=lambda kind, seconds: self.outcomes.append(kind),
            on_batch=lambda waited: self.batches.append(len(waited)),
        )
        pool.start()
        try:
            yield pool
        finally:
            pool.stop(grace)


def eventually(is_true: Callable[[], bool], within: float = 30.0) -> None:
    """A generous bound on a hang; nothing is measured."""
    until = time.monotonic() + within
    while not is_true():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        store = JobStore.in_memory()
        stack.callback(store.close)
        yield Rig(store, tmp_path, [], [])


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.parametrize("embed_prompts", [True, False])
def test_an_image_says_in_its_file_how_it_was_made_and_its_prompt_only_if_that_is_meant(
    rig: Rig, in_process: bool, embed_prompts: bool
) -> None:
    engine = Scripted(rig.folder, in_process=in_process)
    with rig.running(engine, grace=20.0, embed_prompts=embed_prompts):
        (task_id,) = rig.submit("draw a lighthouse")
        (status,) = rig.ended(task_id)
    data = rig.store.image(status) or b""
    found = read_provenance(data)
    assert found is not None
    assert found.source_type == "trainedAlgorithmicMedia"
    assert found.info == status.info
    assert (b"lighthouse" in data) is embed_prompts
    assert task_id.encode() not in data


def test_a_file_that_cannot_be_marked_arrives_as_it_is(rig: Rig) -> None:
    with rig.running(Scripted(rig.folder, in_process=True), grace=20.0):
        (task_id,) = rig.submit("odd")
        (status,) = rig.ended(task_id)
    assert status.state is JobState.DONE
    assert rig.store.image(status) == b"\xff\xd8\xff\xe1"


def test_a_back_end_that_is_gone_gives_the_job_back_and_the_worker_starts_again(rig: Rig) -> None:
    with rig.running(Scripted(rig.folder, in_process=True), grace=20.0):
        (task_id,) = rig.submit("lose")
        (status,) = rig.ended(task_id)
    assert status.state is JobState.DONE
    assert [line.split()[1] for line in rig.lines("renders")] == ["1", "2"]


@pytest.mark.parametrize("in_process", [True, False])
def test_what_an_engine_makes_arrives(rig: Rig, in_process: bool) -> None:
    """By a thread or by a process of its own: images, files, failures; and then it is closed."""
    engine = Scripted(rig.folder, in_process=in_process)
    prompts = ["draw", "file", "fail", "raise", "junk", "short", "draw"]
    with rig.running(engine, grace=20.0) as pool:
        ids = rig.submit(*prompts)
        draw, file, fail, broken, junk, short, last = rig.ended(*ids)
        assert pool.ready
    assert (rig.store.image(draw) or b"").startswith(b"\x89PNG")
    assert file.media_type == "image/jpeg"
    assert (fail.state, fail.detail) == (JobState.FAILED, "no such model")
    assert broken.detail == short.detail == "the engine failed"
    assert junk.detail == "the image cannot be encoded"
    assert last.info == {"attempt": 1}
    assert len(rig.lines("renders")) == len(prompts)
    assert sorted(rig.outcomes) == [*["done"] * 3, *["failed"] * 4]
    assert (rig.folder / "closed").exists()
    owner = {int(each) for each in rig.lines("loads")}
    assert (owner == {os.getpid()}) is in_process


def test_jobs_of_one_kind_share_a_batch(rig: Rig) -> None:
    """That is what a GPU wants."""
    ids = rig.submit(*["draw"] * 5)
    with rig.running(Scripted(rig.folder, max_batch=4, in_process=True)):
        rig.ended(*ids)
    assert rig.batches == [4, 1]


@pytest.mark.parametrize("word", ["die-once", "hang"])
def test_a_job_whose_worker_died_or_hung_is_rendered_again(rig: Rig, word: str) -> None:
    """By the next worker; and the front goes on."""
    options = attrs.evolve(QUICK, hang_timeout=1.5)
    with rig.running(Scripted(rig.folder), options):
        (task_id,) = rig.submit(word)
        (status,) = rig.ended(task_id)
    assert (status.state, status.info) == (JobState.DONE, {"attempt": 2})
    assert rig.outcomes == ["died", "done"]
    assert len(set(rig.lines("loads"))) == 2


@pytest.mark.parametrize("word", ["die", "segfault"])
def test_a_job_that_kills_every_worker_fails_and_harms_no_other(rig: Rig, word: str) -> None:
    """After three; the other of its batch is done at the second attempt."""
    poison, innocent = rig.submit(word, "draw")
    with rig.running(Scripted(rig.folder, max_batch=2)):
        bad, good = rig.ended(poison, innocent)
    assert "3 workers died" in bad.detail
    assert (good.state, good.info) == (JobState.DONE, {"attempt": 2})
    assert rig.outcomes.count("died") == 3


def test_what_cannot_be_repeated_fails_with_its_worker(rig: Rig) -> None:
    """It may have been made; nobody makes it twice."""
    with rig.running(Scripted(rig.folder, recovery=Recovery.NEITHER)):
        (task_id,) = rig.submit("die-once")
        (status,) = rig.ended(task_id)
    assert "may have been made" in status.detail
    assert len(rig.lines("renders")) == 1


def test_a_resumable_job_keeps_its_handle(rig: Rig) -> None:
    """By it the back end knows the job."""
    with rig.running(Scripted(rig.folder, recovery=Recovery.RESUMABLE)):
        (task_id,) = rig.submit("die-once")
        rig.ended(task_id)
    first, second = (line.split() for line in rig.lines("renders"))
    assert (first[1], second[1], first[3]) == ("1", "2", second[3])


def test_a_worker_that_is_killed_while_it_idles_is_started_again(rig: Rig) -> None:
    """Such as by the system, for its memory."""
    with rig.running(Scripted(rig.folder)) as pool:
        eventually(lambda: pool.ready)
        os.kill(int(rig.lines("loads")[0]), signal.SIGKILL)
        eventually(lambda: len(rig.lines("loads")) == 2)
        (task_id,) = rig.submit("draw")
        rig.ended(task_id)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_job_whose_worker_died_before_it_began_is_rendered_once(rig: Rig, how: int) -> None:
    """It was claimed and on its way through the pipe."""
    with rig.running(Scripted(rig.folder)) as pool:
        eventually(lambda: pool.ready)
        pid = int(rig.lines("loads")[0])
        os.kill(pid, signal.SIGSTOP)
        (task_id,) = rig.submit("draw")
        eventually(lambda: rig.status(task_id).state is JobState.RENDERING)
        os.kill(pid, how)
        os.kill(pid, signal.SIGCONT)
        (status,) = rig.ended(task_id)
    assert (status.state, status.info) == (JobState.DONE, {"attempt": 2})
    assert len(rig.lines("renders")) == 1


def test_a_worker_that_dies_while_it_encodes_gives_its_job_back(rig: Rig) -> None:
    """Its image was rendered, but nobody has it."""
    with rig.running(Scripted(rig.folder)):
        (task_id,) = rig.submit("die-encoding")
        (status,) = rig.ended(task_id)
    assert (status.state, status.info) == (JobState.DONE, {"attempt": 2})
    assert rig.outcomes == ["died", "done"]


def test_an_image_that_was_sent_is_kept_although_its_worker_died(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of its batch had been sent, the second was half in the pipe: that is made again."""
    finish, here, go_on = rig.store.finish, threading.Event(), threading.Event()

    def slow(*arguments: object) -> bool:
        here.set()
        assert go_on.wait(20.0)
        return finish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.store, "finish", slow)
    ids = rig.submit("huge", "huge")
    with rig.running(Scripted(rig.folder, max_batch=2)):
        assert here.wait(20.0)
        time.sleep(0.3)  # until the pipe is full
        os.kill(int(rig.lines("loads")[0]), signal.SIGKILL)
        go_on.set()
        found = rig.ended(*ids)
    assert {each.state for each in found} == {JobState.DONE}
    assert sorted(str(each.info) for each in found) == ["{'attempt': 1}", "{'attempt': 2}"]
    assert len(rig.lines("renders")) == 3


def test_ctrl_c_and_sigterm_to_the_whole_group_do_not_reach_a_worker(rig: Rig) -> None:
    """A terminal and a service manager signal everybody; the front decides alone."""
    with rig.running(Scripted(rig.folder)):
        (task_id,) = rig.submit("long")
        eventually(lambda: bool(rig.lines("renders")))
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(int(rig.lines("loads")[0]), each)
        (rig.folder / "go on").touch()
        (status,) = rig.ended(task_id)
    assert status.state is JobState.DONE
    assert "died" not in rig.outcomes


def test_a_worker_process_leaves_the_end_to_the_front(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process of the test above runs, here: it ends with its pipe alone, and yields."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.getsignal(each) for each in ending}
    niceness: list[int] = []
    monkeypatch.setattr("os.nice", niceness.append)
    here, there = multiprocessing.Pipe()
    here.send(("stop",))
    try:
        worker._process_main(there, Scripted(rig.folder), 0, embed_prompts=False)
        assert {signal.getsignal(each) for each in ending} == {signal.SIG_IGN}
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(ending)
    assert niceness == [5]
    assert here.recv() == ("ready",)
    here.close()


@pytest.mark.parametrize("in_process", [True, False])
def test_an_engine_that_cannot_be_loaded_keeps_its_jobs_waiting(
    rig: Rig, in_process: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody mends it; the jobs were accepted."""
    (task_id,) = rig.submit("draw")
    with rig.running(Scripted(rig.folder, load_fails=True, in_process=in_process)) as pool:
        eventually(lambda: len(rig.lines("loads")) >= 2)
        assert not pool.ready
        assert rig.status(task_id).state is JobState.QUEUED


@pytest.mark.parametrize("in_process", [True, False])
def test_progress_and_previews_arrive_and_a_cancelled_job_is_told(
    rig: Rig, in_process: bool
) -> None:
    """Between steps: no worker draws for nobody, and it takes the next job."""
    with rig.running(Scripted(rig.folder, in_process=in_process)):
        (task_id,) = rig.submit("long")
        eventually(lambda: rig.status(task_id).has_preview and rig.status(task_id).fraction > 0)
        assert (rig.store.preview(task_id) or b"").startswith(b"\x89PNG")
        assert rig.store.cancel(task_id)
        eventually((rig.folder / "ended").exists)
        (after,) = rig.submit("draw")
        rig.ended(after)
    assert rig.status(task_id).state is JobState.CANCELLED


def test_a_preview_that_comes_after_its_image_is_dropped(rig: Rig) -> None:
    """It is encoded beside it, and may take longer."""
    with rig.running(Scripted(rig.folder, in_process=True), grace=20.0):
        (task_id,) = rig.submit("late")
        (status,) = rig.ended(task_id)
        (rig.folder / "go on").touch()
        eventually((rig.folder / "encoded").exists)
        rig.ended(*rig.submit("draw"))
    assert (status.state, rig.status(task_id).has_preview) == (JobState.DONE, False)


def test_what_renders_is_finished_within_the_grace(rig: Rig) -> None:
    """Nothing new is begun meanwhile."""
    with rig.running(Scripted(rig.folder), grace=30.0) as pool:
        rendering, waiting = rig.submit("long", "draw")
        eventually(lambda: bool(rig.lines("renders")))
        (rig.folder / "go on").touch()
        pool.stop(30.0)
    assert rig.status(rendering).state is JobState.DONE
    assert rig.status(waiting).state is JobState.QUEUED


def test_what_is_not_finished_within_the_grace_goes_back(rig: Rig) -> None:
    """And counts no death: it was stopped on purpose."""
    with rig.running(Scripted(rig.folder)):
        (task_id,) = rig.submit("long")
        eventually(lambda: bool(rig.lines("renders")))
    assert rig.status(task_id).state is JobState.QUEUED
    (job,) = rig.store.claim(Scripted(rig.folder, max_batch=2)).jobs
    assert job.attempt == 2


def test_an_image_waits_for_a_full_disk_and_is_not_dropped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is rendered meanwhile, and it is not rendered twice."""
    finish, failures = rig.store.finish, iter([OSError(28, "full"), sqlite3.OperationalError()])

    def full(*arguments: object) -> bool:
        for failure in failures:
            raise failure
        return finish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.store, "finish", full)
    with rig.running(Scripted(rig.folder, in_process=True)):
        (task_id,) = rig.submit("draw")
        (status,) = rig.ended(task_id)
    assert status.state is JobState.DONE
    assert len(rig.lines("renders")) == 1


def test_a_store_that_cannot_be_read_for_a_while_stops_no_worker(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims are tried again."""
    claim, failures = rig.store.claim, iter([sqlite3.OperationalError("busy")])

    def busy(engine: Scripted) -> object:
        for failure in failures:
            raise failure
        return claim(engine)

    monkeypatch.setattr(rig.store, "claim", busy)
    with rig.running(Scripted(rig.folder, in_process=True)):
        (task_id,) = rig.submit("draw")
        rig.ended(task_id)
    assert "died" not in rig.outcomes


def test_what_the_engine_refuses_by_now_fails_in_its_words(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may be opened with another engine than before."""

    def refuse(self: Scripted, request: ImageRequest) -> None:
        raise InvalidRequestError("width: too wide for this model", field="width")

    monkeypatch.setattr(Scripted, "check", refuse)
    with rig.running(Scripted(rig.folder, in_process=True)):
        (task_id,) = rig.submit("draw")
        (status,) = rig.ended(task_id)
    assert status.detail.endswith("refused by now: width: too wide for this model")
    assert rig.lines("renders") == []


def test_a_worker_that_cannot_be_started_is_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as for want of memory."""
    failures = iter([OSError(12, "Cannot allocate memory"), ValueError("nobody thought of that")])

    def start(config: EngineConfig, index: int, **options: bool) -> Worker:
        for failure in failures:
            raise failure
        return start_thread(config, index, **options)

    monkeypatch.setattr("imagelabs_sdk.server.pool.start_thread", start)
    with rig.running(Scripted(rig.folder, in_process=True)):
        (task_id,) = rig.submit("draw")
        rig.ended(task_id)
    assert rig.outcomes == ["died", "died", "done"]


def test_a_pool_stops_although_an_image_cannot_be_stored(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job is rendered again after the next start."""
    tried = threading.Event()

    def full(*arguments: object) -> bool:
        tried.set()
        raise OSError(28, "full")

    monkeypatch.setattr(rig.store, "finish", full)
    with rig.running(Scripted(rig.folder, in_process=True)):
        (task_id,) = rig.submit("draw")
        assert tried.wait(20.0)
    assert rig.status(task_id).state is JobState.RENDERING


def test_a_pool_that_never_started_can_be_stopped(rig: Rig) -> None:
    """Cleaning up must not need to know how far it came."""
    WorkerPool(rig.store, Scripted(rig.folder)).stop()
