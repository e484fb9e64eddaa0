"""What the store keeps, through restarts, full disks and foreign files."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagelabs_sdk import ImageRequest, InvalidRequestError
from imagelabs_sdk.server.engines.base import Recovery, RenderJob
from imagelabs_sdk.server.options import StoreLimits
from imagelabs_sdk.server.store import jobs as store_jobs
from imagelabs_sdk.server.store.database import MIGRATIONS, Database, StoreError
from imagelabs_sdk.server.store.images import ImageFiles, MemoryImages
from imagelabs_sdk.server.store.jobs import JobStore
from imagelabs_sdk.server.store.records import (
    Claim,
    JobState,
    JobStatus,
    StoreFullError,
    Submission,
)
from imagelabs_sdk.testing import FakeClock
from tests.server.conftest import PNG, Easel

SMALL = ImageRequest("x", width=64, height=48, seed=1, subseed=2)
RESERVED = 3 * 64 * 48 + 64 * 1024


@pytest.fixture
def store(tmp_path: Path, time: FakeClock) -> Iterator[JobStore]:
    opened = JobStore.open(tmp_path / "store", clock=time.now)
    yield opened
    opened.close()


def reopen(store: JobStore, tmp_path: Path, time: FakeClock) -> JobStore:
    """As the next server does after this one was killed."""
    store.close()
    return JobStore.open(tmp_path / "store", clock=time.now)


def submit(store: JobStore, request: ImageRequest = SMALL, **fields: object) -> str:
    return store.submit(Submission(request=request, **fields))  # type: ignore[arg-type]


def claim(store: JobStore, engine: Easel | None = None) -> RenderJob:
    (job,) = store.claim(engine or Easel()).jobs
    return job


def finish(store: JobStore, job: RenderJob, data: bytes = PNG) -> None:
    assert store.finish(job, data, "image/png", {})


def state(store: JobStore, task_id: str) -> JobState | None:
    found = store.status(task_id)
    return None if found is None else found.state


def status(store: JobStore, task_id: str) -> JobStatus:
    found = store.status(task_id)
    assert found is not None
    return found


# Restarts -----------------------------------------------------------------------------


def test_jobs_and_images_survive_a_restart(
    store: JobStore, tmp_path: Path, time: FakeClock
) -> None:
    """Also their order and their seeds."""
    done, rendering, queued = (submit(store) for _ in range(3))
    finish(store, claim(store))
    begun = claim(store)
    again = reopen(store, tmp_path, time)
    assert again.image(status(again, done)) == PNG
    assert state(again, rendering) is state(again, queued) is JobState.QUEUED
    repeated = claim(again)
    assert repeated == attrs.evolve(begun, attempt=2)
    assert repeated.request == SMALL
    again.close()


@pytest.mark.parametrize(
    ("recovery", "expected"),
    [
        (Recovery.REPEATABLE, JobState.QUEUED),
        (Recovery.RESUMABLE, JobState.QUEUED),
        (Recovery.NEITHER, JobState.FAILED),
    ],
)
def test_what_rendered_at_a_crash_goes_on_as_its_engine_allows(
    store: JobStore, tmp_path: Path, time: FakeClock, recovery: Recovery, expected: JobState
) -> None:
    """What may have been made and cannot be asked for fails, and says why."""
    task_id = submit(store)
    claim(store, Easel(recovery=recovery))
    again = reopen(store, tmp_path, time)
    assert state(again, task_id) is expected
    if expected is JobState.FAILED:
        assert "may have been made" in status(again, task_id).detail
    again.close()


def test_only_the_engine_that_began_a_resumable_job_resumes_it(
    store: JobStore, tmp_path: Path, time: FakeClock
) -> None:
    """Another one does not know its handle, and would make it twice."""
    task_id, fresh = submit(store), submit(store)
    claim(store, Easel(recovery=Recovery.RESUMABLE))
    again = reopen(store, tmp_path, time)
    again.adopt(Easel(recovery=Recovery.RESUMABLE))
    assert state(again, task_id) is JobState.QUEUED
    again.adopt(Easel(name="other", recovery=Recovery.RESUMABLE))
    assert state(again, task_id) is JobState.FAILED
    assert state(again, fresh) is JobState.QUEUED
    again.close()


def test_a_server_that_is_killed_often_fails_no_job(
    store: JobStore, tmp_path: Path, time: FakeClock
) -> None:
    """Its end is no fault of what it rendered."""
    task_id = submit(store)
    for _ in range(5):
        claim(store)
        store = reopen(store, tmp_path, time)
    assert state(store, task_id) is JobState.QUEUED
    store.close()


def test_images_without_jobs_are_swept_and_jobs_without_images_fail(
    store: JobStore, tmp_path: Path, time: FakeClock
) -> None:
    """A crash may leave the one; the other says so instead of serving half an image."""
    whole, short = submit(store), submit(store)
    finish(store, claim(store))
    finish(store, claim(store))
    images = tmp_path / "store/images"
    (images / f"{short}.1.png").write_bytes(PNG[:5])
    (images / f"{'0' * 32}.1.png").write_bytes(PNG)
    (images / f"{'1' * 32}.1.png.part").write_bytes(PNG)
    again = reopen(store, tmp_path, time)
    assert [path.name for path in images.iterdir()] == [f"{whole}.1.png"]
    assert state(again, whole) is JobState.DONE
    assert "missing" in status(again, short).detail
    again.close()


def test_an_image_that_was_written_before_its_row_said_so_ends_its_job(
    store: JobStore, tmp_path: Path, time: FakeClock
) -> None:
    """It is whole, and a back end may have been paid for it; that of an earlier attempt is not."""
    kept, repeated = submit(store), submit(store)
    neither = Easel(recovery=Recovery.NEITHER)
    claim(store, neither)
    store.give_back(claim(store), died=True)
    claim(store)
    images = tmp_path / "store/images"
    (images / f"{kept}.1.jpg").write_bytes(b"\xff\xd8\xff whole")
    (images / f"{repeated}.1.png").write_bytes(PNG)
    again = reopen(store, tmp_path, time)
    found = status(again, kept)
    assert (found.state, found.media_type, found.info) == (JobState.DONE, "image/jpeg", None)
    assert again.image(found) == b"\xff\xd8\xff whole"
    assert state(again, repeated) is JobState.QUEUED
    assert [path.name for path in images.iterdir()] == [f"{kept}.1.jpg"]
    again.close()


def test_everything_is_for_the_owner_alone(store: JobStore, tmp_path: Path) -> None:
    """Prompts and images are private."""
    submit(store)
    finish(store, claim(store))
    folder = tmp_path / "store"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"jobs.db", "jobs.db-wal", "lock"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_second_server_is_refused(store: JobStore, tmp_path: Path) -> None:
    """Two would render each job twice."""
    with pytest.raises(StoreError, match="another server uses this store"):
        JobStore.open(tmp_path / "store")


@pytest.mark.parametrize("kind", ["text", "foreign", "newer", "torn"])
def test_a_file_that_is_no_store_is_refused_by_name_and_kept(tmp_path: Path, kind: str) -> None:
    """Overwriting it would lose what somebody else keeps there."""
    folder = tmp_path / "store"
    if kind in ("text", "foreign"):
        folder.mkdir()
    if kind == "text":
        (folder / "jobs.db").write_bytes(b"my diary\n" * 1000)
    elif kind == "foreign":
        with sqlite3.connect(folder / "jobs.db") as db:
            db.execute("CREATE TABLE diary (day TEXT)")
        db.close()
    else:
        store = JobStore.open(folder)
        for _ in range(50):
            submit(store)
        store.close()
        if kind == "newer":
            with sqlite3.connect(folder / "jobs.db") as db:
                db.execute("PRAGMA user_version = 99")
            db.close()
        else:
            data = (folder / "jobs.db").read_bytes()
            (folder / "jobs.db").write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    before = (folder / "jobs.db").read_bytes()
    with pytest.raises(StoreError, match=r"jobs\.db"):
        JobStore.open(folder)
    assert (folder / "jobs.db").read_bytes() == before


def test_a_store_whose_images_cannot_be_swept_is_let_go(tmp_path: Path) -> None:
    """The lock, too: it can be opened once somebody has mended the folder."""
    JobStore.open(tmp_path / "store").close()
    odd = tmp_path / f"store/images/{'0' * 32}.1.png"
    odd.mkdir()
    with pytest.raises(OSError, match=odd.name):
        JobStore.open(tmp_path / "store")
    odd.rmdir()
    JobStore.open(tmp_path / "store").close()


def test_setting_the_clock_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time within one run is counted by the monotonic clock."""
    store = JobStore.open(tmp_path / "store", StoreLimits(keep=60.0))
    task_id = submit(store)
    finish(store, claim(store))
    monkeypatch.setattr("time.time", lambda: 4e9)
    store.expire()
    assert state(store, task_id) is JobState.DONE
    store.close()


def test_a_clock_that_was_set_back_makes_nobody_wait(tmp_path: Path) -> None:
    """A machine without a battery begins in 1970: a batch waited until the day was reached."""
    engine, limits = Easel(max_batch=2, batch_wait=0.5), StoreLimits(keep=60.0)
    store = JobStore.open(tmp_path / "store", limits, clock=FakeClock(1e9).now)
    ended, waiting = submit(store), submit(store)
    finish(store, claim(store))
    store.close()
    time = FakeClock(1000.0)
    again = JobStore.open(tmp_path / "store", limits, clock=time.now)
    time.advance(1.0)
    assert [job.id for job in again.claim(engine).jobs] == [waiting]
    assert state(again, ended) is JobState.DONE
    time.advance(60.0)
    assert state(again, ended) is None
    again.close()


# Limits -------------------------------------------------------------------------------


def memory_store(time: FakeClock, **limits: float) -> JobStore:
    return JobStore.in_memory(StoreLimits(**limits), clock=time.now)  # type: ignore[arg-type]


def test_finished_images_that_nobody_fetched_are_never_thrown_away(time: FakeClock) -> None:
    """New submits are refused instead, and say when to come again."""
    store = memory_store(time, max_image_bytes=3 * RESERVED)
    done = [submit(store) for _ in range(3)]
    for _ in done:
        finish(store, claim(store), PNG + b"x" * (RESERVED - 2000))
    with pytest.raises(StoreFullError, match="wait to be fetched"):
        submit(store)
    store.mark_fetched(done[1])
    submit(store)
    finish(store, claim(store), PNG + b"x" * (RESERVED - 2000))
    assert [state(store, each) is None for each in done] == [False, True, False]


def test_fetched_images_go_first_and_only_when_their_bytes_are_needed(time: FakeClock) -> None:
    """Who comes back for one finds it as long as possible; the oldest goes first."""
    store = memory_store(time, max_image_bytes=3 * RESERVED)
    done = []
    for _ in range(5):
        done.append(submit(store))
        finish(store, claim(store), PNG + b"x" * (RESERVED - 2000))
        store.mark_fetched(done[-1])
        time.advance(1.0)
    assert [state(store, each) is None for each in done] == [True, True, False, False, False]


def test_max_jobs_counts_unfinished_jobs_only(time: FakeClock) -> None:
    """Finished ones wait to be fetched and take nobody's place in the queue."""
    store = memory_store(time, max_jobs=2)
    for _ in range(5):
        submit(store)
        finish(store, claim(store))
    submit(store)
    submit(store)
    with pytest.raises(StoreFullError, match="too many unfinished jobs"):
        submit(store)


def test_requests_are_bounded_in_bytes(time: FakeClock) -> None:
    """Reference images of 30 MB each fill the memory long before a thousand jobs do."""
    store = memory_store(time, max_request_bytes=100_000)
    large = attrs.evolve(SMALL, reference_image="x" * 60_000)
    submit(store, large)
    with pytest.raises(StoreFullError, match="requests are too large together"):
        submit(store, large)
    submit(store)
    finish(store, claim(store))
    submit(store, large)


def test_what_unfinished_jobs_may_need_is_reserved(time: FakeClock) -> None:
    """An image that has been rendered must find its room."""
    store = memory_store(time, max_image_bytes=2 * RESERVED - 1)
    submit(store)
    with pytest.raises(StoreFullError, match="wait to be fetched"):
        submit(store)


def test_an_image_that_could_never_be_kept_is_refused_for_good(time: FakeClock) -> None:
    """Coming again later would not help."""
    store = memory_store(time, max_image_bytes=RESERVED)
    submit(store)
    with pytest.raises(InvalidRequestError, match="would not fit"):
        submit(store, attrs.evolve(SMALL, width=4096, height=4096))


def test_jobs_are_forgotten_some_time_after_their_end(time: FakeClock) -> None:
    """Their images with them; unfinished ones stay, however long it takes."""
    store = memory_store(time, keep=60.0)
    waiting, done = submit(store, priority=7), submit(store)
    job = claim(store)
    time.advance(1000.0)
    finish(store, job)
    finished = status(store, done)
    time.advance(59.0)
    store.expire()
    assert state(store, done) is JobState.DONE
    time.advance(1.0)
    assert state(store, done) is None
    store.expire()
    assert store.image(finished) is None
    assert state(store, waiting) is JobState.QUEUED


def kept(database: Database) -> tuple[int, ...]:
    """What has ended, counted anew."""
    row = database.connection.execute(
        "SELECT COUNT(*), TOTAL(size), COUNT(*) FILTER (WHERE fetched),"
        " TOTAL(size) FILTER (WHERE fetched) FROM jobs WHERE ended_at IS NOT NULL"
    ).fetchone()
    return tuple(map(int, row))


@given(st.lists(st.sampled_from(["submit", "finish", "fail", "cancel", "fetch", "later"])))
def test_what_is_kept_is_counted_along(steps: list[str]) -> None:
    """Counting it anew for each submit took longer with each job that was kept."""
    time, database = FakeClock(), Database.in_memory()
    limits = StoreLimits(max_image_bytes=3 * RESERVED, keep=60.0)
    store = JobStore(database, MemoryImages(), limits, clock=time.now)
    ids: list[str] = []
    for number, step in enumerate(steps):
        with contextlib.suppress(StoreFullError):
            if step == "submit":
                ids.append(submit(store))
            elif step in ("finish", "fail"):
                for job in store.claim(Easel()).jobs:
                    whole = step == "finish"
                    store.finish(job, PNG * number, "image/png", {}) if whole else store.fail(
                        job, ""
                    )
            elif step == "later":
                time.advance(40.0)
                store.expire()
            elif ids and step == "cancel":
                store.cancel(ids[-1])
            elif ids:
                store.mark_fetched(ids[number % len(ids)])
        totals = database.connection.execute("SELECT * FROM totals").fetchone()
        assert tuple(totals) == kept(database)


def test_jobs_that_are_kept_cost_a_submit_nothing() -> None:
    """With half a million of them, it and each image took a fifth of a second."""

    def steps(count: int) -> int:
        """The instructions of SQLite's for one more job, in thousands."""
        database, taken = Database.in_memory(), [0]
        store = JobStore(database, MemoryImages())
        for _ in range(count):
            store.cancel(submit(store))

        def tick() -> None:
            taken[0] += 1

        database.connection.set_progress_handler(tick, 100)
        submit(store)
        finish(store, claim(store))
        store.counts()
        return taken[0]

    assert steps(1500) <= steps(15) + 2


def test_a_store_of_an_earlier_version_is_counted_when_it_is_opened(tmp_path: Path) -> None:
    """Its rows are from before there were totals."""
    path = tmp_path / "jobs.db"
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(MIGRATIONS[0] + f"PRAGMA application_id = {0x494D4C53};")
        old.execute("PRAGMA user_version = 1")
        columns = "id, handle, owner, priority, request, request_bytes, reserved, submitted_at"
        values = [("a", 10, 5.0, 0), ("b", 20, 5.0, 1), ("c", 0, None, 0)]
        for task_id, size, ended_at, fetched in values:
            old.execute(
                f"INSERT INTO jobs ({columns}, state, ended_at, size, fetched)"
                " VALUES (?, '', '', 3, '', 1, 1, 1.0, 'failed', ?, ?, ?)",
                (task_id, ended_at, size, fetched),
            )
        old.commit()
    database = Database.open(tmp_path)
    assert tuple(database.connection.execute("SELECT * FROM totals").fetchone()) == kept(database)
    assert kept(database) == (2, 30, 1, 20)
    changes = (
        "size = 7 WHERE id = 'b'",
        "fetched = 0 WHERE id = 'b'",
        "ended_at = 1 WHERE id = 'c'",
    )
    for change in changes:
        database.connection.execute(f"UPDATE jobs SET {change}")
        totals = database.connection.execute("SELECT * FROM totals").fetchone()
        assert tuple(totals) == kept(database)
    database.close()


# Claiming -----------------------------------------------------------------------------


def test_a_batch_is_of_one_kind_and_keeps_the_order(time: FakeClock) -> None:
    """The first in the queue chooses the kind; nobody else is rendered before."""
    store, engine = memory_store(time), Easel(max_batch=3)
    wide = attrs.evolve(SMALL, width=128)
    sizes = [SMALL, wide, SMALL, wide, SMALL, SMALL]
    ids = [submit(store, request) for request in sizes]
    batches = [[ids.index(job.id) for job in store.claim(engine).jobs] for _ in range(3)]
    assert batches == [[0, 2, 4], [1, 3], [5]]
    assert store.claim(engine) == Claim()


def test_a_batch_waits_for_more_but_not_for_long(time: FakeClock) -> None:
    """A full one starts at once."""
    store, engine = memory_store(time), Easel(max_batch=2, batch_wait=1.0)
    submit(store)
    assert store.claim(engine) == Claim(retry_in=1.0)
    time.advance(0.75)
    assert store.claim(engine) == Claim(retry_in=0.25)
    time.advance(0.25)
    assert len(store.claim(engine).jobs) == 1
    submit(store)
    submit(store)
    assert len(store.claim(engine).jobs) == 2


def test_a_job_that_cannot_be_read_any_more_fails_and_blocks_nobody() -> None:
    """Another version may have written it; it would be the next one for ever."""
    database = Database.in_memory()
    store = JobStore(database, MemoryImages())
    first, middle, last = (submit(store) for _ in range(3))
    again = JobStore(database, MemoryImages())  # which has not seen the requests before
    heard: list[str] = []
    again.subscribe(heard.append)
    broken = ("{", '{"prompt": " "}')
    for task_id, text in zip((first, middle), broken, strict=True):
        database.connection.execute("UPDATE jobs SET request = ? WHERE id = ?", (text, task_id))
    assert [job.id for job in again.claim(Easel(max_batch=3)).jobs] == [last]
    assert {state(again, each) for each in (first, middle)} == {JobState.FAILED}
    assert "refused by now" in status(again, middle).detail
    assert heard == [first, middle, last]


def test_what_cannot_share_a_batch_any_more_is_left_out_of_it(time: FakeClock) -> None:
    """Also when it is not the first in the queue."""
    store = memory_store(time)
    good, wide = submit(store), submit(store, attrs.evolve(SMALL, width=2048))
    assert [job.id for job in store.claim(Easel(max_batch=2, widest=1024)).jobs] == [good]
    assert state(store, wide) is JobState.FAILED


def test_tokens_take_turns(time: FakeClock) -> None:
    """Who submits a thousand jobs does not starve who submits one."""
    store = memory_store(time)
    owners = [*["alice"] * 3, "bob", "bob", ""]
    ids = {submit(store, owner=owner): owner for owner in owners}
    assert [ids[claim(store).id] for _ in owners] == ["alice", "bob", "", "alice", "bob", "alice"]


@pytest.mark.parametrize("first", [0, 7], ids=["as the first", "as a mate"])
def test_a_job_on_which_a_worker_died_takes_no_healthy_one_with_it(
    time: FakeClock, first: int
) -> None:
    """Whichever of the two is due first."""
    store = memory_store(time)
    poison = submit(store, priority=first)
    store.give_back(claim(store), died=True)
    healthy = submit(store)
    pair = Easel(max_batch=2)
    batches = [[job.id for job in store.claim(pair).jobs] for _ in range(2)]
    assert batches == ([[poison], [healthy]] if first == 0 else [[healthy], [poison]])


def test_a_job_on_which_workers_die_is_rendered_alone_and_fails_in_the_end(time: FakeClock) -> None:
    """It must not take others with it; after three it is to blame."""
    store, engine = memory_store(time), Easel(max_batch=2)
    poison, innocent = submit(store), submit(store)
    for job in store.claim(engine).jobs:
        store.give_back(job, died=True)
    alone = store.claim(engine).jobs
    assert [job.id for job in alone] == [poison]
    store.give_back(alone[0], died=True)
    (alone,) = [store.claim(engine).jobs]
    store.give_back(alone[0], died=True)
    assert "3 workers died" in status(store, poison).detail
    (job,) = store.claim(engine).jobs
    assert job.id == innocent
    finish(store, job)
    assert status(store, innocent).attempt == 2


def test_the_outcome_of_an_earlier_attempt_changes_nothing(store: JobStore, tmp_path: Path) -> None:
    """A worker that was given up may still deliver; the later attempt counts."""
    task_id = submit(store)
    early = claim(store)
    store.give_back(early, died=True)
    late = claim(store)
    assert not store.finish(early, b"early", "image/png", {})
    assert not store.fail(early, "late words")
    store.give_back(early, died=True)
    store.progress(early, 0.5)
    finish(store, late)
    assert store.image(status(store, task_id)) == PNG
    assert os.listdir(tmp_path / "store/images") == [f"{task_id}.2.png"]  # noqa: PTH208


def test_progress_never_goes_backwards(time: FakeClock) -> None:
    """What is shown to a person only grows."""
    store = memory_store(time)
    task_id = submit(store)
    job = claim(store)
    for fraction in (0.5, 0.25, 7.0):
        store.progress(job, fraction)
    assert status(store, task_id).fraction == 1.0
    assert status(store, task_id).version == 3
    finish(store, job)
    store.progress(job, 0.5)
    assert (status(store, task_id).fraction, status(store, task_id).version) == (1.0, 0)


def test_what_the_store_holds_can_be_counted(time: FakeClock) -> None:
    """For metrics and for who watches the queue."""
    store = memory_store(time)
    assert store.counts().oldest == 0.0
    for _ in range(3):
        submit(store)
    finish(store, claim(store))
    claim(store)
    time.advance(5.0)
    counts = store.counts()
    assert (counts.queued, counts.rendering, counts.kept) == (1, 1, 1)
    assert (counts.image_bytes, counts.oldest) == (len(PNG), 5.0)


def test_a_listener_hears_of_every_change_until_it_leaves(time: FakeClock) -> None:
    """Workers and parked polls wait for it."""
    store, heard = memory_store(time), list[str]()
    leave = store.subscribe(heard.append)
    task_id = submit(store)
    job = claim(store)
    store.progress(job, 0.5)
    finish(store, job)
    assert heard == [task_id] * 4
    leave()
    leave()
    submit(store)
    assert len(heard) == 4


# Disks --------------------------------------------------------------------------------


def test_an_image_that_cannot_be_written_leaves_nothing_and_may_be_tried_again(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is mended by somebody; the image is in the worker's hands till then."""
    task_id = submit(store)
    job = claim(store)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.finish(job, PNG, "image/png", {})
    assert list((tmp_path / "store/images").iterdir()) == []
    assert state(store, task_id) is JobState.RENDERING
    finish(store, job)
    assert state(store, task_id) is JobState.DONE


def test_a_submit_that_cannot_be_written_is_not_accepted() -> None:
    """All of a change or nothing of it; and when there is room again, it goes on."""
    database = Database.in_memory()
    store = JobStore(database, MemoryImages())
    database.connection.execute("PRAGMA max_page_count = 20")
    large = attrs.evolve(SMALL, reference_image="x" * 100_000)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        submit(store, large)
    assert store.counts().queued == 0
    database.connection.execute("PRAGMA max_page_count = 100000")
    submit(store, large)
    assert store.counts().queued == 1


def test_a_fetched_image_on_a_full_disk_is_kept_for_longer(time: FakeClock) -> None:
    """It was sent as a whole; and a failed job is told of as ever."""
    database = Database.in_memory()
    store = JobStore(database, MemoryImages(), clock=time.now)
    done = submit(store)
    finish(store, claim(store))
    database.connection.execute("PRAGMA query_only = 1")
    store.mark_fetched(done)
    database.connection.execute("PRAGMA query_only = 0")
    assert kept(database)[2] == 0
    store.mark_fetched(done)
    assert kept(database)[2] == 1


def test_a_store_that_cannot_be_written_when_it_is_opened_says_so_and_is_let_go(
    store: JobStore, tmp_path: Path, time: FakeClock
) -> None:
    """In a line, such as on a full disk; it is opened once there is room."""
    submit(store)
    claim(store)
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "store/jobs.db")) as db:
        db.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON jobs"
            " BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
        with pytest.raises(StoreError, match=r"store: cannot be used .* disk is full"):
            JobStore.open(tmp_path / "store")
        db.execute("DROP TRIGGER full")
    JobStore.open(tmp_path / "store").close()


def test_images_in_memory_and_in_files_behave_alike(tmp_path: Path) -> None:
    """One contract, two places."""
    a, b, c = (f"{letter * 32}.1.png" for letter in "abc")
    for images in (MemoryImages(), ImageFiles(tmp_path)):
        images.write(a, b"1")
        images.write(b, b"22")
        assert (images.read(b), images.size(b), images.read(c), images.size(c)) == (
            b"22",
            2,
            None,
            None,
        )
        assert (images.read(b, 1, 9), images.read(b, 0, 0), images.read(c, 0, 0)) == (
            b"2",
            b"",
            None,
        )
        images.delete(c)
        assert images.sweep({b}) == 1
        assert images.read(a) is None
        images.delete(b)
        assert images.size(b) is None


def test_a_store_removes_no_file_of_somebody_else(tmp_path: Path) -> None:
    """`--store .` beside a folder of images that a user has bought: they must survive."""
    images = tmp_path / "images"
    (images / "holiday").mkdir(parents=True)
    (images / "cat.png").write_bytes(PNG)
    orphan = images / f"{'0' * 32}.1.png.part"
    orphan.write_bytes(PNG)
    JobStore.open(tmp_path).close()
    assert (images / "cat.png").read_bytes() == PNG
    assert (images / "holiday").is_dir()
    assert not orphan.exists()


def test_three_strikes_are_what_the_words_say() -> None:
    """The message names the number."""
    assert str(store_jobs.MAX_DEATHS) in store_jobs.DIED_ON_IT
