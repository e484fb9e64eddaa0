"""Who takes the next step of a job: a page, a command, a queue. Their queues are only hints."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import timezone
from django_tasks_db.models import DBTaskResult

from imagelabs_sdk.contrib.django import django_tasks
from imagelabs_sdk.contrib.django.lifecycle import poll_now
from imagelabs_sdk.contrib.django.models import (
    ASLEEP,
    ImageJob,
    JobState,
    LeftoverFile,
    SweepChain,
)
from imagelabs_sdk.contrib.django.sweep import any_outstanding
from imagelabs_sdk.contrib.django.tasks import sweep as celery_sweep
from imagelabs_sdk.testing import FakeService, SentRequest
from tests.django.app.settings import HAS_REDIS
from tests.django.fixtures import IMAGE, files, needs_postgres, scripted, stored

ROOT = Path(__file__).parents[2]
Around = Callable[..., dict[str, str]]
POSTGRES = "postgres"
needs_redis = pytest.mark.skipif(not HAS_REDIS, reason="no Redis on 127.0.0.1:6379")


@pytest.fixture
def by_tasks(service: FakeService, media: Path, settings: Any) -> FakeService:
    settings.IMAGELABS = {"default": {**scripted(), "TASKS": "database"}}
    return service.done(IMAGE)


def due_now() -> None:
    ImageJob.objects.filter(next_poll_at__isnull=False).update(next_poll_at=timezone.now())


def planned() -> list[tuple[str, str]]:
    """The arguments of the tasks in the queue, in the order in which they came in."""
    tasks = DBTaskResult.objects.order_by("enqueued_at")
    return [tuple(task.args_kwargs["args"]) for task in tasks]


def work(task: tuple[str, str]) -> int:
    polls: int = django_tasks.sweep.func(*task)
    return polls


# A chain of django.tasks -------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_one_chain_of_sweeps_serves_all_jobs(by_tasks: FakeService) -> None:
    """A task per job and poll fills the queue with rows, and lags."""
    for _ in range(5):
        ImageJob.objects.start("a lighthouse")
    assert len(planned()) == 1
    due_now()
    assert work(planned()[0]) == 5
    assert {job.state for job in ImageJob.objects.all()} == {JobState.DONE}
    assert len(planned()) == 2


@pytest.mark.django_db(transaction=True)
def test_a_chain_ends_with_its_jobs_and_the_next_start_begins_another(
    by_tasks: FakeService,
) -> None:
    """An idle site has an empty queue."""
    ImageJob.objects.start("a lighthouse")
    due_now()
    work(planned()[0])
    assert work(planned()[1]) == 0
    assert len(planned()) == 2
    assert SweepChain.objects.get().at == ASLEEP
    ImageJob.objects.start("a pier")
    assert len(planned()) == 3


@pytest.mark.django_db(transaction=True)
def test_a_job_that_starts_while_its_chain_ends_is_not_forgotten(
    by_tasks: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last question for jobs and the end of the chain there is a moment."""
    ImageJob.objects.start("a lighthouse")
    ImageJob.objects.all().delete()
    answers = iter([False])

    def asked_before_the_start() -> bool:
        if next(answers, True):
            return any_outstanding()
        ImageJob.objects.start("a pier")
        return False

    monkeypatch.setattr(django_tasks, "any_outstanding", asked_before_the_start)
    work(planned()[0])
    assert len(planned()) == 2


@pytest.mark.django_db(transaction=True)
def test_a_worker_killed_in_a_sweep_breaks_no_chain(
    by_tasks: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor is in the queue before anything can go wrong."""
    ImageJob.objects.start("a lighthouse")

    def killed() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(django_tasks, "sweep_briefly", killed)
    with pytest.raises(KeyboardInterrupt):
        work(planned()[0])
    assert len(planned()) == 2


@pytest.mark.django_db(transaction=True)
def test_a_message_that_comes_twice_begins_no_second_chain(by_tasks: FakeService) -> None:
    """Queues deliver at least once; each extra chain would go on as long as there are jobs."""
    ImageJob.objects.start("a lighthouse")
    first = planned()[0]
    work(first)
    assert work(first) == 0
    assert len(planned()) == 2


@pytest.mark.django_db(transaction=True)
def test_a_chain_that_was_lost_is_begun_anew_by_the_next_start(by_tasks: FakeService) -> None:
    """A broker that lost its messages says nothing."""
    ImageJob.objects.start("a lighthouse")
    DBTaskResult.objects.all().delete()
    ImageJob.objects.start("a lighthouse")
    assert planned() == []
    SweepChain.objects.update(at=timezone.now() - timedelta(minutes=2))
    ImageJob.objects.start("a lighthouse")
    assert len(planned()) == 1


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_fails_does_not_fail_the_start(
    by_tasks: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The image is bought and the row is there; any page or sweep goes on with it."""

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr("django_tasks_db.DatabaseBackend.enqueue", refuse)
    job = ImageJob.objects.start("a lighthouse")
    assert job.state == JobState.RUNNING
    assert "no broker" in caplog.text
    monkeypatch.undo()
    ImageJob.objects.start("a pier")
    assert len(planned()) == 1


@pytest.mark.django_db(transaction=True)
def test_jobs_that_live_in_another_process_keep_no_chain_alive(
    media: Path, settings: Any, by_tasks: FakeService
) -> None:
    """The embedded engine's jobs can be polled by their own process alone."""
    settings.IMAGELABS = {
        **settings.IMAGELABS,
        "embedded": {"BACKEND": "imagelabs_sdk.embedded.embedded_transport"},
    }
    ImageJob.objects.start("a lighthouse", alias="embedded")
    assert ImageJob.objects.get().is_outstanding
    assert not any_outstanding()
    due_now()
    assert celery_sweep() == 0


@pytest.mark.django_db(transaction=True)
def test_a_job_that_is_taken_up_again_wakes_the_chain(by_tasks: FakeService) -> None:
    """ "Poll now" in the admin is of no use to a queue that sleeps."""
    job = ImageJob.objects.start("a lighthouse")
    DBTaskResult.objects.all().delete()
    SweepChain.objects.update(at=ASLEEP)
    ImageJob.objects.update(state=JobState.FAILED, next_poll_at=None, finished_at=timezone.now())
    assert poll_now(ImageJob.objects.all()) == 1
    assert len(planned()) == 1
    assert work(planned()[0]) == 1
    job.refresh_from_db()
    assert job.state == JobState.DONE


# Processes -----------------------------------------------------------------------------------


@pytest.fixture
def project(by_tasks: FakeService, around: Around) -> dict[str, str]:
    """The environment of processes that share the PostgreSQL database of this test."""
    queue = f"imagelabs-{uuid.uuid4()}"
    return {**around(POSTGRES, TASKS="database"), "IMAGELABS_TEST_QUEUE": queue}


@contextmanager
def running(environment: dict[str, str], *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def start_many(count: int) -> None:
    objects = ImageJob.objects.db_manager(POSTGRES)
    for _ in range(count):
        objects.start("a lighthouse")


def until_all_are_done() -> list[ImageJob]:
    """The rows, once none is outstanding; bounded."""
    rows, end = ImageJob.objects.using(POSTGRES), monotonic() + 40
    while rows.filter(next_poll_at__isnull=False).exists():
        assert monotonic() < end, list(rows.values_list("state", "error"))
        sleep(0.05)
    return list(rows.all())


def assert_each_was_drawn_and_stored_once(service: FakeService, media: Path, count: int) -> None:
    jobs = until_all_are_done()
    assert [job.state for job in jobs] == [JobState.DONE] * count
    assert service.count("submit") == count
    assert [path.read_bytes() for path in files(media)] == [IMAGE] * count


@needs_postgres
@pytest.mark.django_db(transaction=True, databases=["default", POSTGRES])
def test_a_worker_of_django_tasks_brings_every_image(
    project: dict[str, str], service: FakeService, media: Path
) -> None:
    """The whole way, with the worker as it is run."""
    with override_settings(DATABASE_ROUTERS=["tests.django.test_drivers.ToPostgres"]):
        start_many(10)
        with running(project, "django", "db_worker", "--backend", "database", "--interval", "0.1"):
            assert_each_was_drawn_and_stored_once(service, media, 10)


class ToPostgres:
    """The queue's table and the chain's pulse belong to the database that the worker has."""

    def db_for_read(self, model: type, **_: object) -> str:
        return POSTGRES

    db_for_write = db_for_read


@needs_postgres
@needs_redis
@pytest.mark.django_db(transaction=True, databases=["default", POSTGRES])
def test_a_celery_worker_brings_every_image_though_one_is_killed(
    project: dict[str, str], service: FakeService, media: Path, settings: Any
) -> None:
    """A killed worker takes its message with it; the rows know better."""
    settings.IMAGELABS = {"default": scripted()}
    polled, killed = threading.Event(), threading.Event()

    def poll(sent: SentRequest) -> None:
        if sent.at == "progress":
            polled.set()
            assert killed.wait(60)

    service.on_request = poll
    worker = ["celery", "-A", "tests.django.app.celery", "worker", "--pool", "prefork"]
    worker += ["--concurrency", "1", "--without-gossip", "--without-mingle"]
    beat = ["celery", "-A", "tests.django.app.celery", "beat", "-s", str(media.parent / "beat")]
    start_many(10)
    ImageJob.objects.using(POSTGRES).update(next_poll_at=timezone.now())
    with running(project, *beat):
        with running(project, *worker) as first:
            assert polled.wait(40)
            children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
            for pid in [first.pid, *map(int, children)]:
                os.kill(pid, signal.SIGKILL)
        service.on_request = None
        killed.set()
        # Nobody waits two minutes here: the leases of the dead end now.
        ImageJob.objects.using(POSTGRES).update(next_poll_at=timezone.now())
        with running(project, *worker):
            assert_each_was_drawn_and_stored_once(service, media, 10)


# Pruning -----------------------------------------------------------------------------------


def finished(days: float, *, image: bool = True) -> ImageJob:
    when = timezone.now() - timedelta(days=days)
    job = ImageJob(
        request={"prompt": "x"}, seed=1, width=8, height=8, state=JobState.DONE, finished_at=when
    )
    if image:
        job.image.save("image.png", ContentFile(IMAGE), save=False)
    job.save()
    return job


def prune(*arguments: str) -> str:
    out = StringIO()
    call_command("imagelabs_prune", *arguments, stdout=out)
    return out.getvalue().strip()


@pytest.mark.django_db(transaction=True)
def test_old_jobs_go_with_their_images(media: Path) -> None:
    """An image without a row is never found again."""
    old, young = finished(31), finished(29)
    finished(40, image=False)
    outstanding = finished(50)
    ImageJob.objects.filter(pk=outstanding.pk).update(next_poll_at=timezone.now())
    assert prune("--dry-run") == "2 jobs would be deleted"
    assert prune() == "2 jobs deleted"
    assert set(ImageJob.objects.all()) == {young, outstanding}
    assert not Path(old.image.path).exists()
    assert Path(young.image.path).exists()


@pytest.mark.django_db(databases=["default", "file"])
def test_what_is_pruned_is_read_where_it_is_written(media: Path) -> None:
    """A replica may be behind, and takes no deletes."""
    finished(31)
    with override_settings(DATABASE_ROUTERS=["tests.django.test_jobs.Replicated"]):
        assert prune() == "1 jobs deleted"
    assert not ImageJob.objects.using("default").exists()


@pytest.mark.django_db(transaction=True)
def test_an_image_that_cannot_be_deleted_is_deleted_by_a_later_run(
    media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a deleted job stays for ever; the others go at once."""
    stuck, other = finished(31), finished(31)
    delete = FileSystemStorage.delete

    def fails(storage: FileSystemStorage, name: str) -> None:
        if name == stuck.image.name:
            raise OSError("read-only")
        delete(storage, name)

    monkeypatch.setattr(FileSystemStorage, "delete", fails)
    with pytest.raises(CommandError, match="1 files of deleted jobs"):
        prune()
    assert not ImageJob.objects.exists()
    assert [path.name for path in stored(media)] == [Path(str(stuck.image.name)).name]
    assert not Path(other.image.path).exists()
    monkeypatch.undo()
    assert prune() == "0 jobs deleted"
    assert stored(media) == []
    assert not LeftoverFile.objects.exists()


def test_days_that_make_no_sense_are_refused() -> None:
    """``--days -1`` would delete what ends tomorrow."""
    for days in ("-1", "nan", "40000"):
        with pytest.raises(CommandError, match="--days"):
            prune("--days", days)
