"""Many jobs over few threads and several processes: none lost, none twice, none in the way."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import attrs
import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, OperationalError, connections
from django.test import override_settings
from django.utils import timezone

from imagelabs_sdk.contrib.django import lifecycle
from imagelabs_sdk.contrib.django.checks import check_settings
from imagelabs_sdk.contrib.django.conf import sweep_settings
from imagelabs_sdk.contrib.django.health import ServiceHealth
from imagelabs_sdk.contrib.django.management.commands import imagelabs_sweep
from imagelabs_sdk.contrib.django.models import ImageJob, JobState, job_models
from imagelabs_sdk.contrib.django.signals import job_failed, job_succeeded
from imagelabs_sdk.contrib.django.sweep import (
    Sweeper,
    any_outstanding,
    sweep_briefly,
)
from imagelabs_sdk.contrib.django.threads import StepThreads
from imagelabs_sdk.testing import FakeService, SentRequest
from tests.django.app.models import Album, Framed, Own, Poster
from tests.django.app.storage import FailingStorage
from tests.django.fixtures import (
    ALIASES,
    IMAGE,
    all_due,
    at_once,
    counts,
    known,
    needs_postgres,
    process,
    scripted,
    shared_databases,
    stored,
)

db = pytest.mark.django_db(transaction=True)
shared = pytest.mark.django_db(transaction=True, databases=["default", *ALIASES])
Around = Callable[..., dict[str, str]]
EMBEDDED = {"BACKEND": "imagelabs_sdk.embedded.embedded_transport"}


def accepted(count: int, using: str = "default", **columns: Any) -> list[ImageJob]:
    """Rows that are due, of jobs that the service has taken up."""
    for number in range(1, count + 1):
        known(f"task-{number}")
    now = timezone.now()
    common = {"state": JobState.RUNNING, "submitted_at": now, "next_poll_at": now, "seed": 1}
    rows = [
        ImageJob(
            request={"prompt": "x"},
            width=8,
            height=8,
            task_id=f"task-{number}",
            **{**common, **columns},
        )
        for number in range(1, count + 1)
    ]
    return ImageJob.objects.using(using).bulk_create(rows)


def states(using: str = "default") -> Counter[str]:
    return Counter(ImageJob.objects.using(using).values_list("state", flat=True))


# All of them, once ---------------------------------------------------------------------------

SWEEP_AND_TELL = """
import django
django.setup()
from django.core.management import call_command
from imagelabs_sdk.contrib.django.signals import job_failed, job_succeeded

def tell(*, job, **_):
    print(job.task_id, flush=True)

job_succeeded.connect(tell)
job_failed.connect(tell)
call_command("imagelabs_sweep", "--once")
"""


@needs_postgres
@shared
def test_four_sweepers_bring_two_hundred_images_once_each(
    service: FakeService, around: Around, media: Path
) -> None:
    """Looked at, stored and told once; the sweepers know nothing of each other."""
    accepted(200, "postgres")
    sweepers = [process(around("postgres"), "-c", SWEEP_AND_TELL) for _ in range(4)]
    told: list[str] = []
    for sweeper in sweepers:
        said, _ = sweeper.communicate(timeout=60)
        assert sweeper.returncode == 0, said
        told += said.split()
    everyone = sorted(f"task-{number}" for number in range(1, 201))
    assert sorted(told) == everyone
    assert states("postgres") == {"done": 200}
    assert [path.read_bytes() for path in stored(media)] == [IMAGE] * 200
    asked = Counter((sent.at, sent.task_id) for sent in service.sent)
    assert (len(asked), set(asked.values())) == (400, {1})
    attempts = ImageJob.objects.using("postgres").values_list("attempts", flat=True)
    assert set(attempts) == {1}


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_sweepers_in_threads_do_not_meet_either(
    database: str, service: FakeService, media: Path
) -> None:
    """A worker may have a pool of threads; SQLite lets one write at a time."""
    accepted(60, database)
    told: Counter[str] = Counter()

    def hear(*, job: ImageJob, **_: object) -> None:
        told[job.task_id] += 1

    def sweep(_: int) -> int:
        with Sweeper(threads=4, using=database) as sweeper:
            return sweeper.sweep()

    job_succeeded.connect(hear)
    job_failed.connect(hear)
    try:
        assert sum(at_once(4, sweep)) == 60
    finally:
        job_succeeded.disconnect(hear)
        job_failed.disconnect(hear)
    asked = Counter((sent.at, sent.task_id) for sent in service.sent)
    assert set(told.values()) == set(asked.values()) == {1}
    assert len(told) == len(stored(media)) == 60
    assert states(database) == {"done": 60}


@db
def test_threads_of_a_sweep_open_no_connection_to_the_database(
    service: FakeService, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads in each of ten processes would use up a server's connections."""
    opened: list[object] = []
    threads = set()
    save = FailingStorage._save

    def watched(storage: FailingStorage, name: str, content: Any) -> str:
        opened.extend(connections.all(initialized_only=True))
        return save(storage, name, content)

    monkeypatch.setattr(FailingStorage, "_save", watched)

    def asked(_: object) -> None:
        threads.add(threading.get_ident())
        opened.extend(connections.all(initialized_only=True))

    service.on_request = asked
    accepted(20)
    service.known_job("task-1").drops_connection(at="progress")
    with Sweeper(threads=4) as sweeper:
        assert sweeper.sweep(due_by=timezone.now()) == 20
    assert opened == []
    assert threads
    assert threading.get_ident() not in threads
    assert states() == {"done": 19, "running": 1}


@db
def test_what_becomes_due_meanwhile_is_taken_though_a_poll_hangs(
    service: FakeService, media: Path
) -> None:
    """One slow answer must not hold up all jobs."""
    slow, quick = accepted(2)
    ImageJob.objects.filter(pk=quick.pk).update(
        next_poll_at=timezone.now() + timedelta(seconds=0.3)
    )
    taken = threading.Event()

    def poll(sent: SentRequest) -> None:
        if sent.task_id == slow.task_id:
            assert taken.wait(20)
        else:
            taken.set()

    service.on_request = poll
    with Sweeper(threads=2) as sweeper:
        assert sweeper.sweep() == 2
    assert states() == {"done": 2}


@db
def test_a_sweep_of_what_is_due_by_now_ends_though_jobs_are_due_again(service: FakeService) -> None:
    """Else one that a clock starts each minute would never end, and the next one join it."""
    service.never_finishes()
    accepted(20)
    now = timezone.now()
    with Sweeper(threads=4) as sweeper:
        assert sweeper.sweep(due_by=now) == 20
        sleep(0.02)  # all are due again
        assert sweeper.sweep(due_by=now) == 0
        assert sweeper.sweep(stop=lambda: service.count("progress") > 30)
    assert service.count("progress") > 30


@db
def test_a_sweep_that_is_stopped_finishes_what_is_under_way(
    service: FakeService, media: Path
) -> None:
    """And leaves the others as they are, due."""
    accepted(20)
    with Sweeper(threads=2) as sweeper:
        taken = sweeper.sweep(stop=lambda: service.count("progress") >= 4)
    assert 4 <= taken == service.count("progress") < 8
    assert states() == {"done": taken, "running": 20 - taken}
    assert (
        ImageJob.objects.filter(attempts=0, next_poll_at__lte=timezone.now()).count() == 20 - taken
    )


@shared
def test_rows_are_read_where_they_are_written(service: FakeService, media: Path) -> None:
    """A replica lags behind, and shows as due what was settled long ago."""
    accepted(1)
    with override_settings(DATABASE_ROUTERS=["tests.django.test_jobs.Replicated"]):
        assert any_outstanding()
        with Sweeper() as sweeper:
            assert sweeper.sweep() == 1
    assert states() == {"done": 1}
    assert not any_outstanding()


def test_each_row_is_of_one_model() -> None:
    """Proxies, and models that share their parent's table, would make each row two."""
    assert job_models() == [ImageJob, Poster, Album, Own]


@db
def test_rows_of_all_models_are_polled(service: FakeService, media: Path) -> None:
    """A site's own need no command of their own."""
    service.done(IMAGE)
    ImageJob.objects.start("a lighthouse")
    Poster.objects.start("a pier", title="The Pier")
    Framed.objects.start("a boat", title="The Boat")
    for model in (ImageJob, Poster):
        model._base_manager.update(next_poll_at=timezone.now())
    with Sweeper() as sweeper:
        assert sweeper.sweep() == 3
    assert {job.state for model in (ImageJob, Framed) for job in model._base_manager.all()} == {
        "done"
    }
    assert counts(service) == (3, 3, 3)


# What goes wrong -----------------------------------------------------------------------------


@db
def test_no_job_is_in_the_way_of_others(
    service: FakeService, media: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Whatever is odd about one: its engine, its row, its alias, its end."""
    jobs = accepted(30)
    odd = {
        "crashes": jobs[0], "deleted": jobs[1], "no alias": jobs[2], "from the future": jobs[3],
        "unsettled": jobs[4], "unsent": jobs[5], "no object": jobs[6],
    }  # fmt: skip
    change = ImageJob.objects.filter
    change(pk=odd["no alias"].pk).update(alias="gone")
    change(pk=odd["from the future"].pk).update(request={"prompt": "x", "style": "oil"})
    change(pk=odd["unsent"].pk).update(task_id="", state=JobState.SUBMITTING)
    change(pk=odd["no object"].pk).update(request=["x"])

    def record_result(job: ImageJob, seen: Any) -> bool:
        if job == odd["deleted"]:
            ImageJob.objects.filter(pk=job.pk).delete()
        if job == odd["unsettled"]:
            raise DatabaseError("deadlock detected")
        return lifecycle.record_result(job, seen)

    service.known_job(odd["crashes"].task_id).answers(ZeroDivisionError(), at="progress")
    monkeypatch.setattr(f"{Sweeper.__module__}.record_result", record_result)
    with Sweeper(threads=4) as sweeper:
        assert sweeper.sweep(due_by=timezone.now()) == 30
    assert states() == {"done": 23, "running": 5, "unknown": 1}
    assert "deadlock detected" in caplog.text
    assert "DoesNotExist" not in caplog.text  # to delete one's job is no error
    waiting = ImageJob.objects.filter(state="running")
    assert set(waiting.values_list("error_code", flat=True)) == {
        "ZeroDivisionError", "SettingsError", "InvalidRequestError", "TypeError", "",
    }  # fmt: skip
    assert not waiting.filter(next_poll_at__lte=timezone.now()).exists()
    assert len(stored(media)) == 24  # the unsettled one's is replaced by the next poll


@db
def test_a_service_that_is_down_is_probed_and_found_again(
    service: FakeService, media: Path
) -> None:
    """A thousand jobs that all ask in vain do not help it up."""
    accepted(40)
    clock = service.clock
    with Sweeper(threads=4, clock=clock.now) as sweeper:
        with service.outage():
            first = sweeper.sweep()
            assert 4 <= first <= 8  # the first to fail, and those under way then
            assert sweeper.sweep() == 0
            for _ in range(8):
                clock.advance(30.0)  # no pause is longer
                assert sweeper.sweep() == 1
                assert sweeper.sweep() == 0
        assert states() == {"running": 40}
        assert service.count("progress") == first + 8
        clock.advance(30.0)
        all_due()
        assert sweeper.sweep() == 40
    assert states() == {"done": 40}


@db
def test_a_service_may_be_down_for_days(service: FakeService) -> None:
    """Powers of two outgrow every number."""
    service.drops_connection(at="progress")
    accepted(3)
    clock = service.clock
    health = {"default": ServiceHealth(clock=clock.now, failures=100_000)}
    with Sweeper(health=health, clock=clock.now) as sweeper:
        assert sweeper.sweep() == 1
    assert health["default"].polls_from == clock.now() + 30.0


@db
def test_one_service_that_is_down_does_not_hold_up_another(
    service: FakeService, media: Path, settings: Any
) -> None:
    """Each alias has a health of its own."""
    there = FakeService()
    settings.IMAGELABS = {**settings.IMAGELABS, "there": scripted(service=there)}
    accepted(20, alias="there")
    accepted(20)
    with there.outage(), Sweeper(threads=2, clock=service.clock.now) as sweeper:
        sweeper.sweep()
    assert states() == {"done": 20, "running": 20}
    assert there.count("progress") <= 4


@db
def test_a_service_that_asks_for_a_pause_gets_it_for_all_jobs(service: FakeService) -> None:
    """Also when another poll, which was under way, fails in another way afterwards."""
    both = threading.Barrier(2)

    def poll(sent: SentRequest) -> None:
        both.wait(20)
        if sent.task_id == "task-2":
            sleep(0.1)  # lands after the other

    accepted(2)
    service.known_job("task-1").rate_limited(60, at="progress")
    service.known_job("task-2").refuses(status=500, at="progress")
    service.on_request = poll
    clock = service.clock
    with Sweeper(threads=2, clock=clock.now) as sweeper:
        assert sweeper.sweep() == 2
        service.on_request = None
        accepted(1)
        clock.advance(59)
        assert sweeper.sweep() == 0
        clock.advance(1)
        assert sweeper.sweep(due_by=timezone.now())


@db
def test_the_health_of_a_service_is_shared_by_the_sweepers_of_a_process(
    service: FakeService,
) -> None:
    """A queue makes one for each message; each would try a service that is down anew."""
    service.drops_connection(at="progress")
    accepted(40)
    health: dict[str, ServiceHealth] = {}
    clock = service.clock
    for expected in (True, False, False):
        with Sweeper(threads=4, health=health, clock=clock.now) as sweeper:
            assert bool(sweeper.sweep()) is expected
    assert 4 <= health["default"].failures <= 8


@db
def test_an_image_that_cannot_be_fetched_says_nothing_of_the_service(
    service: FakeService, media: Path
) -> None:
    """Images that cannot be fetched are the matter of another host."""
    service.refuses(status=404, at="image")
    accepted(20)
    with Sweeper(threads=2) as sweeper:
        assert sweeper.sweep(due_by=timezone.now()) == 20
    assert set(ImageJob.objects.values_list("error_code", flat=True)) == {"DownloadError"}


@db
def test_a_database_that_fails_is_told_and_what_was_under_way_is_settled_next(
    service: FakeService, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller decides how long to wait; the images that were fetched are not lost."""
    claims = []

    def claim(job: ImageJob) -> Any:
        claims.append(job)
        if len(claims) == 2:
            raise OperationalError("the server has gone away")
        return lifecycle.claim(job)

    monkeypatch.setattr(f"{Sweeper.__module__}.claim", claim)
    accepted(2)
    with Sweeper(threads=2) as sweeper:
        with pytest.raises(OperationalError):
            sweeper.sweep()
        assert sweeper.sweep() == 2
    assert states() == {"done": 2}
    assert counts(service) == (0, 2, 2)


# Jobs that live in another process -----------------------------------------------------------


@db
def test_a_queue_leaves_alone_what_only_another_process_can_poll_at(
    service: FakeService, media: Path, settings: Any
) -> None:
    """The embedded engine's jobs are in the memory of the process that started them."""
    settings.IMAGELABS = {**settings.IMAGELABS, "embedded": EMBEDDED}
    accepted(2)
    accepted(3, alias="embedded")
    assert sweep_briefly() == 2
    assert ImageJob.objects.filter(alias="embedded", attempts=0).count() == 3
    assert not any_outstanding()


# The command ---------------------------------------------------------------------------------


@pytest.fixture
def handlers() -> Iterator[None]:
    """Whoever calls the command gets its own ways with signals back."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@db
def test_once_takes_what_is_due_and_ends(service: FakeService, media: Path, handlers: None) -> None:
    """For cron, and for tests of a site."""

    def poll(_: object) -> None:
        sleep(0.02)  # the first are due again before the last are polled
        if service.count("progress") > 10:
            os.kill(os.getpid(), signal.SIGTERM)

    service.never_finishes().on_request = poll
    accepted(10)
    call_command("imagelabs_sweep", "--once", "--threads", "1")
    assert counts(service) == (0, 10, 0)


@db
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_goes_on_until_a_signal(
    number: int, service: FakeService, media: Path, handlers: None
) -> None:
    """One sweep after another; jobs that are due again are polled again."""

    def poll(_: object) -> None:
        if service.count("progress") == 5:
            os.kill(os.getpid(), number)

    service.never_finishes().on_request = poll
    accepted(1)
    call_command("imagelabs_sweep", "--interval", "0.03", "--threads", "1")
    assert 5 <= service.count("progress") <= 6
    assert states() == {"running": 1}


@db
def test_the_command_outlives_a_database_that_fails(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: Any, handlers: None
) -> None:
    """A restart of the database must not need one of the worker."""
    answers: Iterator[Callable[[], int]] = iter([_gone, lambda: 0, _terminate])
    monkeypatch.setattr(Sweeper, "sweep", lambda *_, **__: next(answers)())
    monkeypatch.setattr(imagelabs_sweep, "_AFTER_FAILURE", 0.01)
    call_command("imagelabs_sweep", "--interval", "0.01")
    assert next(answers, None) is None
    assert "the server has gone away" in caplog.text


def _gone() -> int:
    raise OperationalError("the server has gone away")


def _terminate() -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return 0


@pytest.mark.parametrize(
    "arguments", [("--threads", "0"), ("--interval", "0"), ("--interval", "nan")]
)
def test_a_sweep_that_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    """With no thread it would do nothing, with no interval nothing else."""
    with pytest.raises(CommandError, match="--threads"):
        call_command("imagelabs_sweep", *arguments)


@db
def test_a_worker_says_that_it_cannot_poll_into_the_web_process(
    service: FakeService, media: Path, settings: Any, handlers: None
) -> None:
    """It would wait in silence for ever; with another alias beside, it serves that."""
    settings.IMAGELABS = {"default": EMBEDDED}
    with pytest.raises(CommandError, match="imagelabs serve"):
        call_command("imagelabs_sweep", "--once")
    settings.IMAGELABS = {"default": EMBEDDED, "other": scripted()}
    accepted(1)
    accepted(1, alias="other")
    call_command("imagelabs_sweep", "--once")
    assert states() == {"running": 1, "done": 1}


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_worker_that_is_told_to_end_settles_what_is_under_way(
    database: str, service: FakeService, around: Around
) -> None:
    """A deployment sends SIGTERM; the other rows are as they were, due."""
    polled, told = threading.Event(), threading.Event()

    def poll(_: object) -> None:
        polled.set()
        assert told.wait(20)

    service.on_request = poll
    accepted(3, database)
    command = ["-m", "django", "imagelabs_sweep", "--threads", "1"]
    with process(around(database), *command) as worker:
        assert polled.wait(20)
        worker.terminate()
        sleep(0.2)  # the signal is there before the answer is
        told.set()
        said, _ = worker.communicate(timeout=20)
    assert (worker.returncode, said) == (0, "")
    assert states(database) == {"done": 1, "running": 2}
    rows = ImageJob.objects.using(database)
    assert rows.filter(attempts=0, next_poll_at__lte=timezone.now()).count() == 2


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_worker_killed_in_the_middle_loses_and_repeats_nothing(
    database: str, service: FakeService, around: Around, media: Path
) -> None:
    """Whoever sweeps next, once its leases have ended, brings the rest."""
    accepted(12, database)
    hanging, ended = threading.Event(), threading.Event()

    def poll(sent: SentRequest) -> None:
        if sent.at == "progress" and service.count("progress") > 6:
            hanging.set()
            assert ended.wait(60)

    service.on_request = poll
    command = ["-m", "django", "imagelabs_sweep"]
    with process(around(database), *command, "--threads", "3") as worker:
        assert hanging.wait(20)
        end = monotonic() + 20
        while states(database)["done"] < 6:
            assert monotonic() < end
            sleep(0.02)
        worker.send_signal(signal.SIGKILL)
        worker.communicate(timeout=20)
    ended.set()
    service.on_request = None
    before = service.count("progress")
    rows = ImageJob.objects.using(database)
    assert not rows.exclude(attempts=0).filter(next_poll_at__lte=timezone.now()).exists()
    all_due(database)  # the leases have ended
    with process(around(database), *command, "--once") as after:
        said, _ = after.communicate(timeout=40)
    assert (after.returncode, said) == (0, "")
    assert service.count("progress") == before + 6
    assert states(database) == {"done": 12}
    assert [path.read_bytes() for path in stored(media)] == [IMAGE] * 12
    assert service.count("submit") == 0


# Killed and stopped --------------------------------------------------------------------------


@db
def test_a_sweep_renews_the_leases_of_what_it_holds(service: FakeService, media: Path) -> None:
    """A download that takes longer than the lease is not begun by another process, too."""
    accepted(1)
    renewed = threading.Event()

    def slow(sent: SentRequest) -> None:
        assert sent.at == "progress" or renewed.wait(20)

    service.on_request = slow
    leases: list[Any] = []

    def stop() -> bool:
        leases.append(ImageJob.objects.get().next_poll_at)
        if len(set(leases)) > 2:  # as it was, the claim, the renewal
            renewed.set()
        service.clock.advance(4)  # a third of the lease
        return False

    with Sweeper(threads=1, clock=service.clock.now) as sweeper:
        assert sweeper.sweep(stop=stop, due_by=timezone.now()) == 1
    assert states() == {"done": 1}


class AllAtOnce:
    """Threads whose steps all end at the same moment."""

    def __init__(self, count: int) -> None:
        self.steps: list[tuple[object, Callable[[], Any]]] = []

    def start(self, key: object, call: Callable[[], Any]) -> None:
        self.steps.append((key, call))

    def finished(self, timeout: float) -> list[tuple[Any, Any]]:
        steps, self.steps = self.steps, []
        return [(key, call()) for key, call in steps]

    def close(self) -> None:
        """There are none."""


@db
def test_a_receiver_that_takes_long_costs_no_other_job_its_lease(
    service: FakeService, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail for each of eight images is longer than a lease."""
    held: list[int] = []

    def slow(**_: object) -> None:
        service.clock.advance(5)

    monkeypatch.setattr(f"{Sweeper.__module__}.StepThreads", AllAtOnce)
    monkeypatch.setattr(f"{Sweeper.__module__}.renew", lambda steps: held.append(len(steps)))
    accepted(3)
    job_succeeded.connect(slow)
    try:
        with Sweeper(threads=3, clock=service.clock.now) as sweeper:
            assert sweeper.sweep() == 3
    finally:
        job_succeeded.disconnect(slow)
    assert held == [2, 1, 0]


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_lease_here_never_outlasts_that_in_the_row(database: str, service: FakeService) -> None:
    """A database may take its time: what counts is when the UPDATE was sent."""
    sent: list[float] = []

    def slowly(execute: Callable[..., Any], sql: str, *more: Any) -> Any:
        if sql.startswith("UPDATE"):
            sent.append(monotonic())
            sleep(0.001)
        return execute(sql, *more)

    (job,) = accepted(1, database)
    with connections[database].execute_wrapper(slowly):
        claimed = lifecycle.claim(job)
        assert claimed is not None
        assert claimed.lease.until <= sent[-1] + 12
        claimed.lease.until = 0.0
        lifecycle.renew([(job, claimed)])
    assert 0.0 < claimed.lease.until <= sent[-1] + 12


@db
def test_a_lease_that_another_process_has_taken_is_not_renewed(
    service: FakeService, media: Path
) -> None:
    """Its job is theirs; what is found here must not be stored."""
    mine, theirs = accepted(2)
    held = []
    for job in (mine, theirs):
        claimed = lifecycle.claim(job)
        assert claimed is not None
        held.append((job, claimed))
    ImageJob.objects.filter(pk=theirs.pk).update(attempts=2)
    before = [claimed.lease.until for _, claimed in held]
    sleep(0.01)
    lifecycle.renew(held)
    assert held[0][1].lease.until > before[0]
    assert held[1][1].lease.until == before[1]


@db
def test_a_worker_that_is_to_stop_does_not_wait_for_a_service_that_hangs(
    service: FakeService, media: Path
) -> None:
    """Its jobs are due at once for the next worker; what it still finds is not recorded."""
    accepted(2)
    polled, answered = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        if service.count("progress") == 2:
            polled.set()
        assert answered.wait(20)

    service.on_request = hang
    with Sweeper(threads=2, drain_timeout=0.0) as sweeper:
        assert sweeper.sweep(stop=polled.is_set) == 0
        rows = ImageJob.objects.filter(attempts=1, next_poll_at__lte=timezone.now())
        assert rows.count() == 2
        answered.set()
        assert sweeper.sweep(due_by=timezone.now()) == 2
    assert states() == {"done": 2}


@db
def test_a_worker_that_is_to_stop_gives_slow_steps_some_time(
    service: FakeService, media: Path
) -> None:
    """What ends within it is settled."""
    accepted(2)
    polled, first, second = threading.Event(), threading.Event(), threading.Event()

    def slow(sent: SentRequest) -> None:
        if service.count("progress") == 2:
            polled.set()
        assert (first if sent.task_id == "task-1" else second).wait(20)

    def stop() -> bool:
        if polled.is_set():
            first.set()
        if states() == {"done": 1, "running": 1}:
            second.set()
        return polled.is_set()

    service.on_request = slow
    with Sweeper(threads=2, drain_timeout=20.0) as sweeper:
        assert sweeper.sweep(stop=stop) == 2
    assert states() == {"done": 2}


def test_a_step_under_way_is_left_behind_at_the_end() -> None:
    """It may hang; the process ends all the same."""
    threads, answered = StepThreads(1), threading.Event()
    threads.start("step", lambda: answered.wait(20))
    threads.close()
    answered.set()
    assert threads.finished(20) == [("step", True)]


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_worker_ends_on_sigterm_though_the_service_hangs(
    database: str, service: FakeService, around: Around
) -> None:
    """Docker kills after ten seconds."""
    polled = threading.Event()
    service.hangs(at="progress").on_request = lambda _: polled.set()
    accepted(1, database)
    with process(around(database), "-m", "django", "imagelabs_sweep") as worker:
        assert polled.wait(20)
        worker.terminate()
        said, _ = worker.communicate(timeout=8)
    assert (worker.returncode, said) == (0, "")
    row = ImageJob.objects.using(database).get()
    assert (row.state, row.is_due) == ("running", True)


@db
def test_a_step_that_ends_in_no_ordinary_way_leaves_its_row_to_the_lease(
    service: FakeService, media: Path, caplog: Any
) -> None:
    """A transport may call `sys.exit`; the other jobs go on."""
    accepted(2)
    service.known_job("task-1").answers(SystemExit(), at="progress")
    with Sweeper(threads=1) as sweeper:
        assert sweeper.sweep(due_by=timezone.now()) == 2
    assert states() == {"done": 1, "running": 1}
    assert "the step failed" in caplog.text


# For operators -------------------------------------------------------------------------------


@db
def test_the_log_says_when_a_service_goes_down_and_comes_back_once(
    service: FakeService, media: Path, caplog: Any
) -> None:
    """Not once for each of a thousand jobs."""
    caplog.set_level("INFO", logger="imagelabs_sdk.contrib.django.sweep")
    accepted(10)
    clock = service.clock
    with Sweeper(threads=2, clock=clock.now) as sweeper:
        with service.outage():
            for _ in range(4):
                sweeper.sweep()
                clock.advance(60)
                all_due()
        sweeper.sweep()
    said = [record.message for record in caplog.records if "the service is" in record.message]
    assert said == [
        "default: the service is down (APIConnectionError); it is probed",
        "default: the service is back",
    ]


@db
def test_the_command_says_when_it_starts_and_stops(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: Any, handlers: None
) -> None:
    """And counts its steps each minute, for who turns the log up."""
    caplog.set_level("DEBUG", logger="imagelabs_sdk.contrib.django.sweep")
    monkeypatch.setattr(imagelabs_sweep, "_REPORT_EVERY", 0.0)
    answers: Iterator[Callable[[], int]] = iter([lambda: 7, _terminate])
    monkeypatch.setattr(Sweeper, "sweep", lambda *_, **__: next(answers)())
    call_command("imagelabs_sweep", "--interval", "0.01")
    said = [record.message for record in caplog.records]
    assert said[0] == "sweeping image jobs"
    assert "7 steps in the last minute" in said
    assert said[-1] == "stopped sweeping image jobs"


@db
def test_the_status_is_fit_for_a_health_check(
    service: FakeService, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit code says whether a sweep runs."""
    call_command("imagelabs_sweep", "--status")
    assert "outstanding: 0" in capsys.readouterr().out
    accepted(2, failures=3)
    call_command("imagelabs_sweep", "--status")
    said = capsys.readouterr().out
    assert "outstanding: 2" in said
    assert "services with failing polls: default" in said
    ImageJob.objects.update(next_poll_at=timezone.now() - timedelta(seconds=90))
    with pytest.raises(CommandError, match="does a sweep run"):
        call_command("imagelabs_sweep", "--status")
    call_command("imagelabs_sweep", "--status", "--max-overdue", "120")


@db
def test_the_command_can_be_called_in_a_thread(service: FakeService, media: Path) -> None:
    """Python lets only the main thread handle signals."""
    raised: list[ValueError] = []

    def call() -> None:
        try:
            call_command("imagelabs_sweep", "--once")
        except ValueError as error:  # of `signal.signal`
            raised.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(30)
    assert raised == []


def test_the_sweep_takes_its_settings(settings: Any) -> None:
    """Those that are not given have their defaults."""
    usual = sweep_settings()
    settings.IMAGELABS = {"default": {}}
    settings.IMAGELABS_SWEEP = {"THREADS": 3, "STEP_TIMEOUT": 2.5}
    assert check_settings() == []
    assert sweep_settings() == attrs.evolve(usual, threads=3, step_timeout=2.5)


@pytest.mark.parametrize(
    "given",
    [
        "8",
        {"THREADS": 0},
        {"THREADS": 1.5},
        {"LEASE": 1},
        {"LEASE": "12"},
        {"STEP_TIMEOUT": True},
        {"LEASES": 12},
    ],
)
def test_settings_of_the_sweep_that_cannot_work_are_named(given: Any, settings: Any) -> None:
    """By the check, and by the command."""
    settings.IMAGELABS = {"default": {}}
    settings.IMAGELABS_SWEEP = given
    (message,) = check_settings()
    assert message.id in ("imagelabs.E002", "imagelabs.E003")
    assert message.hint
    with pytest.raises(CommandError, match="IMAGELABS_SWEEP"):
        call_command("imagelabs_sweep", "--once")
