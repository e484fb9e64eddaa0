"""A job's row: bought once, polled by one at a time, settled once, whoever dies meanwhile."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import attrs
import pytest
from django.db import DatabaseError, IntegrityError, transaction
from django.test import override_settings
from django.utils import timezone

from imagelabs_sdk import APIConnectionError, HttpResponse, ImageRequest, InvalidRequestError
from imagelabs_sdk.contrib.django.conf import SettingsError, sweep_settings
from imagelabs_sdk.contrib.django.lifecycle import (
    advance,
    claim,
    poll_now,
    record_result,
    submit,
)
from imagelabs_sdk.contrib.django.models import ImageJob, JobState
from imagelabs_sdk.contrib.django.poll import Lease, PollResult, poll
from imagelabs_sdk.contrib.django.signals import (
    job_failed,
    job_succeeded,
    job_unknown,
    jobs_outstanding,
)
from tests import faulty
from tests.django.app.models import Framed, Poster
from tests.django.app.storage import FailingStorage
from tests.django.fixtures import (
    ALIASES,
    COOKIE,
    KEY,
    PROMPT,
    URL,
    Service,
    answer,
    at_once,
    done,
    down,
    due,
    elsewhere,
    environment,
    process,
    running,
    settings_for,
    shared_databases,
    stored,
)
from tests.faulty import PNG, FaultyServer

db = pytest.mark.django_db(transaction=True)
shared = pytest.mark.django_db(transaction=True, databases=["default", *ALIASES])


@pytest.fixture
def service(settings: Any) -> Service:
    service = Service()
    settings.IMAGELABS = {"default": settings_for(service)}
    return service


@pytest.fixture
def storage(settings: Any, media: Path) -> Iterator[type[FailingStorage]]:
    yield FailingStorage
    FailingStorage.fails = None


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    """What the signals tell: which, and the state that others can read by then."""
    told: list[tuple[str, str]] = []

    def hear(name: str) -> Callable[..., None]:
        def receiver(*, sender: type, job: ImageJob, **_: object) -> None:
            rows = sender._base_manager.using(job._state.db)  # type: ignore[attr-defined]
            told.append((name, rows.get(pk=job.pk).state))

        return receiver

    signals = {"succeeded": job_succeeded, "failed": job_failed, "unknown": job_unknown}
    receivers = {name: hear(name) for name in signals}
    for name, one in signals.items():
        one.connect(receivers[name])
    yield told
    for name, one in signals.items():
        one.disconnect(receivers[name])


def start(**options: Any) -> ImageJob:
    job: ImageJob = ImageJob.objects.start(PROMPT, **options)
    return job


def row(job: ImageJob) -> ImageJob:
    return type(job)._base_manager.using(job._state.db).get(pk=job.pk)


# From the wish to the row --------------------------------------------------------------------


@db
def test_an_image_comes_by_two_steps(
    service: Service, media: Path, heard: list[tuple[str, str]]
) -> None:
    """The whole way, as a page goes it."""
    job = start(width=512, height=256, seed=7)
    assert (job.state, job.task_id, job.seed) == (JobState.RUNNING, "task-1", 7)
    assert (job.prompt, job.width, job.height) == (PROMPT, 512, 256)
    assert job.is_outstanding
    assert str(job) == f"{job.pk} (running)"
    assert job.get_absolute_url() == f"/images/{job.pk}/"
    job = due(job)
    assert advance(job)
    assert job.state == row(job).state == JobState.DONE
    assert job.image.read() == PNG
    assert job.image.name == f"imagelabs/{job.pk.hex[:2]}/{job.pk}.png"
    assert (job.percent, job.status, job.preview_url, job.error) == (100, "Done", "", "")
    assert (job.is_outstanding, job.is_due, job.seconds_until_due) == (False, False, 0.0)
    assert job.finished_at is not None
    job.image.close()
    assert heard == [("succeeded", "done")]
    assert service.counts == (1, 1, 1)


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_the_row_is_committed_before_the_request_leaves(database: str, service: Service) -> None:
    """If the process dies then, something must know that the image may be bought."""
    seen: list[str] = []

    def accept(task_id: str) -> HttpResponse:
        rows = ImageJob.objects.using(database)
        seen.append(elsewhere(lambda: rows.latest("created_at").state))
        return answer(task_id=task_id)

    service.submit = accept
    manager = ImageJob.objects.db_manager(database)
    manager.start("a lighthouse")
    with transaction.atomic(using=database):
        second = manager.start("a pier")
        assert second.state == JobState.SUBMITTING
    assert seen == ["submitting", "submitting"]
    assert second.state == JobState.RUNNING


@db
def test_what_is_rolled_back_is_never_sent(service: Service) -> None:
    """Nobody would know of the image; a savepoint is rolled back alone."""

    @transaction.atomic
    def fails() -> None:
        start()
        raise ZeroDivisionError

    with suppress(ZeroDivisionError):
        fails()
    with transaction.atomic():
        kept = start()
        with suppress(ZeroDivisionError):
            fails()
    assert service.count("submit") == 1
    assert list(ImageJob.objects.all()) == [kept]


@pytest.mark.django_db
def test_in_a_test_case_the_request_leaves_with_its_callbacks(
    service: Service, django_capture_on_commit_callbacks: Any
) -> None:
    """As for all that waits for a commit."""
    with django_capture_on_commit_callbacks(execute=True):
        job = start()
    assert service.count("submit") == 1
    assert row(job).state == JobState.RUNNING


@db
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"width": 0}, "width"),
        ({"height": 5000}, "height"),
        ({"aspect_ratio": "wide"}, "aspect_ratio"),
        ({"aspect_ratio": "1:1", "width": 8}, "width"),
        ({"seed": -1}, "seed"),
        ({"tiling": "yes"}, "tiling"),
        ({"reference_strength": 101}, "reference_strength"),
        ({"extra_body": {"model": float("nan")}}, "extra_body"),
        ({"prompt": ImageRequest("x"), "width": 8}, "width"),
    ],
)
def test_a_value_that_cannot_be_used_stores_and_sends_nothing(
    options: dict[str, Any], field: str, service: Service
) -> None:
    """The error names the field, so that a form can show it there."""
    with pytest.raises(InvalidRequestError) as raised:
        ImageJob.objects.start(**{"prompt": "x", **options})
    assert raised.value.field == field
    assert not ImageJob.objects.exists()
    assert service.counts == (0, 0, 0)


@db
def test_a_column_or_an_alias_that_is_not_there_stores_and_sends_nothing(
    service: Service,
) -> None:
    """A typing error in the code of a site."""
    with pytest.raises(TypeError, match="widht"):
        start(widht=8)
    with pytest.raises(SettingsError, match="nowhere"):
        start(alias="nowhere")
    assert not ImageJob.objects.exists()
    assert service.counts == (0, 0, 0)


EVERY_FIELD: dict[str, Any] = {
    "prompt": "a lighthouse 🗼\n" + 100_000 * "very ",
    "negative_prompt": "people 👩‍👩‍👧",
    "aspect_ratio": "16:9",
    "seed": 2**63 - 1,
    "subseed": 0,
    "attention": -3,
    "tiling": True,
    "reference_image": "data:image/png;base64,AAAA",
    "reference_image_type": "depth",
    "reference_strength": 0,
    "extra_body": {"model": "x", "pose": [1.5, None, {"deep": True}], "seed": "12"},
}


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_every_field_of_a_request_comes_back_from_the_database(
    database: str, service: Service
) -> None:
    """The job's next polls are taken by other processes, with what the row tells."""
    request = ImageRequest(**EVERY_FIELD)
    assert set(EVERY_FIELD) | {"width", "height"} == {
        field.name for field in attrs.fields(ImageRequest)
    }
    manager = ImageJob.objects.db_manager(database)
    by_request, by_name = manager.start(request), manager.start(**EVERY_FIELD)
    for job in (by_request, by_name):
        assert ImageRequest(**row(job).request) == request
        assert (job.width, job.height) == (request.width, request.height)
    assert service.wanted[0] == service.wanted[1]
    assert service.wanted[0]["prompt"] == EVERY_FIELD["prompt"]
    assert service.wanted[0]["seed"] == "12"


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_nul_character_that_a_database_cannot_hold_is_refused(
    database: str, service: Service
) -> None:
    """PostgreSQL's JSON has none; a form's user sees why."""
    manager = ImageJob.objects.db_manager(database)
    odd = "a \0 lighthouse"
    if database != "postgres":
        assert row(manager.start(odd)).prompt == odd
        return
    with pytest.raises(InvalidRequestError, match="cannot store"):
        manager.start(odd)
    assert service.counts == (0, 0, 0)
    assert not manager.exists()


@db
def test_a_request_that_is_nested_deeply_is_kept(service: Service) -> None:
    """What JSON can hold, a row can hold."""
    deep: dict[str, Any] = {}
    for _ in range(600):
        deep = {"x": deep}
    assert row(start(extra_body=deep)).request["extra_body"] == deep


@db
def test_a_button_pressed_twice_buys_one_image(service: Service) -> None:
    """The form's id is the row's; what the second press asks for does not matter."""
    key = uuid4()
    first, second = start(id=key), ImageJob.objects.start("another", id=key)
    assert first == second
    assert second.prompt == PROMPT
    assert service.count("submit") == ImageJob.objects.count() == 1


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_button_pressed_by_eight_at_once_buys_one_image(database: str, service: Service) -> None:
    """Impatient people, and proxies that repeat a request."""
    key = UUID(int=7)
    manager = ImageJob.objects.db_manager(database)
    jobs = at_once(8, lambda _: manager.start("a lighthouse", id=key).pk)
    assert set(jobs) == {key}
    assert service.count("submit") == manager.count() == 1


@db
def test_a_row_that_the_database_refuses_is_not_sent(service: Service) -> None:
    """A rule of the site's own, such as a title that is taken."""
    Poster.objects.start(PROMPT, title="The Pier")
    with pytest.raises(IntegrityError):
        Poster.objects.start(PROMPT, title="The Pier")
    assert service.count("submit") == 1


@db
def test_a_model_of_the_sites_own_has_columns_of_its_own(
    service: Service, media: Path, heard: list[tuple[str, str]]
) -> None:
    """Which job belongs to whom is the site's business."""
    job = due(Poster.objects.start(PROMPT, title="The Pier"))
    assert isinstance(job, Poster)
    assert advance(job)
    poster = Poster.objects.get()
    assert (poster.title, poster.state) == ("The Pier", "done")
    assert heard == [("succeeded", "done")]
    assert not ImageJob.objects.exists()


# What the service answers to the request -----------------------------------------------------


@db
@pytest.mark.parametrize(
    ("reply", "state", "code"),
    [
        (lambda _: answer(422, error="no such size"), "failed", "APIStatusError"),
        (lambda _: answer(200, error="no"), "failed", "APIResponseError"),
        (lambda _: answer(429), "failed", "RateLimitError"),
        (lambda _: answer(500), "unknown", "APIStatusError"),
        (lambda _: HttpResponse(200, {}, b"<html>"), "unknown", "SubmissionUnknownError"),
        (down, "unknown", "SubmissionUnknownError"),
    ],
)
def test_a_failed_submit_is_in_the_row_and_is_not_sent_again(
    reply: Callable[[str], HttpResponse],
    state: str,
    code: str,
    service: Service,
    heard: list[tuple[str, str]],
) -> None:
    """Refused is one thing; what is unclear may have been bought."""
    service.submit = reply
    job = start()
    assert (job.state, job.error_code) == (state, code)
    assert job.error
    assert row(job).state == state
    assert heard == [(state, state)]
    assert not job.is_outstanding
    assert not advance(job)
    assert service.counts == (1, 0, 0)


@db
def test_a_request_that_surely_never_left_has_failed(service: Service) -> None:
    """It may be asked for again with no risk."""

    def refuse(_: str) -> HttpResponse:
        raise APIConnectionError("connection refused", delivered="no")

    service.submit = refuse
    job = start()
    assert (job.state, job.error_code) == ("failed", "APIConnectionError")


@db
def test_a_transport_that_fails_in_its_own_way_leaves_no_row_waiting(
    service: Service, caplog: pytest.LogCaptureFixture, heard: list[tuple[str, str]]
) -> None:
    """It may have sent the request before; others in the same transaction are sent all the same."""

    def crash(task_id: str) -> HttpResponse:
        if task_id == "task-1":
            raise ValueError("out of ideas")
        return answer(task_id=task_id)

    service.submit = crash
    with transaction.atomic():
        first, second = start(), start()
    assert (first.state, first.error_code, first.error) == ("unknown", "ValueError", "")
    assert second.state == "running"
    assert "out of ideas" in caplog.text
    assert heard == [("unknown", "unknown")]


@db
def test_a_database_that_fails_after_the_submit_leaves_the_task_in_the_log(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The image is bought; nobody else knows its name."""

    def gone(*_: object) -> None:
        raise DatabaseError("the server has gone away")

    module = "imagelabs_sdk.contrib.django.lifecycle"
    monkeypatch.setattr(f"{module}._record_columns", gone)
    job = start()
    monkeypatch.undo()
    assert "task-1" in caplog.text
    assert row(job).state == JobState.SUBMITTING
    assert advance(due(job))
    assert row(job).state == JobState.UNKNOWN
    assert service.counts == (1, 0, 0)


@db
def test_an_answer_that_comes_after_the_lease_is_taken_all_the_same(
    service: Service, heard: list[tuple[str, str]]
) -> None:
    """The row was given up as unknown; now it is known."""

    def late(task_id: str) -> HttpResponse:
        assert advance(due(ImageJob.objects.get()))
        assert ImageJob.objects.get().state == JobState.UNKNOWN
        return answer(task_id=task_id)

    service.submit = late
    job = start()
    assert (job.state, job.error, job.finished_at) == ("running", "", None)
    assert row(job).task_id == "task-1"
    assert row(job).is_outstanding
    assert service.counts == (1, 0, 0)


@db
def test_a_row_that_has_its_task_is_not_overwritten_by_a_second_submit(service: Service) -> None:
    """Whoever calls `submit` again by mistake has bought twice, but loses no job."""
    job = start()
    submit(job)
    assert row(job).task_id == job.task_id == "task-1"


# One poll ------------------------------------------------------------------------------------


def in_eight_tabs(job: ImageJob) -> list[bool]:
    """Which of them took the step; all had read the same row."""
    tabs = [row(job) for _ in range(8)]
    return at_once(8, lambda number: advance(tabs[number]))


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_eight_tabs_at_once_cost_one_poll(
    database: str, service: Service, media: Path, heard: list[tuple[str, str]]
) -> None:
    """Each has a connection of its own and has read the same row."""
    job = due(ImageJob.objects.db_manager(database).start(PROMPT))
    assert sum(in_eight_tabs(job)) == 1
    assert row(job).state == JobState.DONE
    assert heard == [("succeeded", "done")]
    assert [path.read_bytes() for path in stored(media)] == [PNG]
    assert service.counts == (1, 1, 1)


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_model_that_shares_its_parents_table_is_polled_by_one_too(
    database: str, service: Service, media: Path
) -> None:
    """Django updates such a row in two statements, between which another could claim it."""
    service.progress = lambda _: running()
    job = due(Framed.objects.db_manager(database).start(PROMPT, title="The Pier"))
    for _ in range(5):
        assert sum(in_eight_tabs(job)) == 1
        job = due(job)
    assert job.attempts == service.count("progress") == 5


@db
def test_a_poll_again_before_it_is_due_costs_nothing(service: Service, media: Path) -> None:
    """A page may be loaded as often as one likes, before and after the end."""
    service.progress = lambda _: running(0.25, current_image_url="https://images.test/half.png")
    job = due(start())
    assert advance(job)
    assert (job.state, job.status, job.percent) == ("running", "Processing", 25)
    assert job.preview_url == "https://images.test/half.png"
    ImageJob.objects.update(next_poll_at=timezone.now() + timedelta(seconds=60))
    job = row(job)
    assert 50 < job.seconds_until_due <= 60
    assert not advance(job)
    service.progress = done
    job = due(job)
    assert advance(job)
    assert [advance(job), advance(row(job))] == [False, False]
    assert service.counts == (1, 2, 1)


@db
def test_a_tab_that_came_too_late_sees_what_the_other_has_found(
    service: Service, media: Path
) -> None:
    """Its page shows the image, not the poll that it did not get."""
    job = due(start())
    stale = row(job)
    advance(job)
    assert not advance(stale)
    assert stale.state == JobState.DONE
    assert stale.image.name == job.image.name


@db
def test_whoever_outlives_the_lease_settles_and_tells_nothing(
    service: Service, media: Path, heard: list[tuple[str, str]]
) -> None:
    """A process that hung must not overwrite what another has found meanwhile."""
    job = due(start())
    assert claim(job) is not None
    assert claim(row(job)) is None
    other = due(job)  # the lease has ended
    assert advance(other)
    assert not record_result(job, PollResult({"state": JobState.FAILED, "next_poll_at": None}))
    assert row(job).state == job.state == JobState.DONE
    assert heard == [("succeeded", "done")]


@db
def test_whoever_outlives_the_lease_does_not_undo_another_claim(service: Service) -> None:
    """Its answer is older than the one that is on its way."""
    job = due(start())
    claim(job)
    other = due(job)
    assert claim(other) is not None
    later = timezone.now() + timedelta(hours=1)
    assert not record_result(job, PollResult({"fraction": 0.1, "next_poll_at": later}))
    assert row(job).next_poll_at == other.next_poll_at
    assert record_result(other, PollResult({"fraction": 0.2, "next_poll_at": later}))


@db
def test_a_tab_that_saw_the_job_being_submitted_does_not_take_its_task_away(
    service: Service,
) -> None:
    """The lease of a slow sender ends; its answer comes between the tab's reading and its step."""
    stale: list[ImageJob] = []

    def late(task_id: str) -> HttpResponse:
        stale.append(due(ImageJob.objects.get()))
        return answer(task_id=task_id)

    service.submit = late
    job = due(start())
    assert not advance(stale[0])
    assert (row(job).state, row(job).task_id) == ("running", "task-1")
    assert stale[0].task_id == "task-1"


@db
def test_a_job_that_was_put_to_rest_by_hand_stays_there(service: Service) -> None:
    """A site's own "cancel"; a tab that has read the row before must not wake it."""
    job = due(start())
    ImageJob.objects.update(next_poll_at=None)
    assert not advance(job)
    assert not row(job).is_outstanding
    assert service.counts == (1, 0, 0)


@db
def test_a_claim_is_a_lease(service: Service) -> None:
    """If the process dies, the row is due again by itself, and not before."""
    job = due(start())
    before = timezone.now()
    work = claim(job)
    assert work is not None
    kept = row(job)
    assert kept.attempts == 1
    assert kept.next_poll_at is not None
    assert kept.next_poll_at >= before + sweep_settings().lease_time
    assert not work.lease.has_ended
    assert not kept.is_due
    assert KEY not in repr(work)
    assert PROMPT not in repr(work)


@db
def test_when_the_lease_is_over_nothing_is_stored(
    service: Service, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else may begin to store the same image any moment."""
    work = claim(due(start()))
    assert work is not None
    seen = poll(attrs.evolve(work, lease=Lease(0.0)), timeout=5)
    assert seen.columns["error_code"] == "TimeoutError"
    assert seen.columns["failures"] == 1
    assert stored(media) == []


@db
def test_a_poll_in_a_transaction_is_refused(service: Service) -> None:
    """Others would not see the claim, and would wait for the row as long as the service does."""
    job = due(start())
    with transaction.atomic(), pytest.raises(RuntimeError, match="in a transaction"):
        advance(job)
    assert service.counts == (1, 0, 0)


@shared
def test_a_row_that_was_read_from_a_replica_is_claimed_where_rows_are_written(
    service: Service, media: Path
) -> None:
    """A replica is read-only, or worse: it is not."""
    job = due(start())
    job._state.db = "file"
    with override_settings(DATABASE_ROUTERS=["tests.django.test_jobs.Replicated"]):
        assert advance(job)
        job._state.db = "file"
        assert not advance(job)
    assert row(job).state == JobState.DONE


class Replicated:
    def db_for_read(self, model: type, **_: object) -> str:
        return "file"

    def db_for_write(self, model: type, **_: object) -> str:
        return "default"


@db
def test_a_row_deleted_in_the_middle_of_a_poll_leaves_no_image(
    service: Service, media: Path
) -> None:
    """Whoever deletes their job does not want its image kept where nobody finds it."""

    def delete(_: str) -> HttpResponse:
        ImageJob.objects.all().delete()
        return HttpResponse(200, {}, PNG)

    job = due(start())
    service.image = delete
    with pytest.raises(ImageJob.DoesNotExist):
        advance(job)
    assert stored(media) == []
    service.progress = lambda _: running()
    job = due(start())
    work = claim(job)
    assert work is not None
    ImageJob.objects.all().delete()
    with pytest.raises(ImageJob.DoesNotExist):
        record_result(job, poll(work, timeout=5))


# What ends a job, and what does not ----------------------------------------------------------


@db
@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (lambda _: answer(status="Error: too dark"), "JobFailedError", "too dark"),
        (lambda _: answer(status="Done"), "JobFailedError", "names no image"),
        (lambda _: answer(404, error="no such task"), "APIStatusError", "no such task"),
    ],
)
def test_what_is_hopeless_ends_the_job(
    reply: Callable[[str], HttpResponse],
    code: str,
    said: str,
    service: Service,
    heard: list[tuple[str, str]],
) -> None:
    """Failed, done without an image, forgotten: no further poll would help."""
    service.progress = reply
    job = due(start())
    assert advance(job)
    assert (row(job).state, row(job).error_code) == ("failed", code)
    assert said in job.error
    assert job.finished_at is not None
    assert heard == [("failed", "failed")]


@db
def test_a_failure_that_two_polls_report_ends_the_job(service: Service) -> None:
    """Each poll is a process of its own; the row remembers what the last one said."""
    service.progress = lambda _: answer(status="Generation failed")
    job = due(start())
    assert advance(job)
    assert row(job).state == "running"
    job = due(job)
    assert advance(job)
    assert (row(job).state, row(job).error_code) == ("failed", "JobFailedError")


@db
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (down, "APIConnectionError"),
        (lambda _: answer(503), "APIStatusError"),
        (lambda _: HttpResponse(200, {}, b"<html>"), "APIResponseError"),
        (lambda _: HttpResponse(403, {"cf-mitigated": "challenge"}), "ChallengeError"),
    ],
)
def test_a_service_in_trouble_is_asked_later_and_later(
    reply: Callable[[str], HttpResponse], code: str, service: Service, media: Path, settings: Any
) -> None:
    """The job behind it is healthy, for all we know."""
    settings.IMAGELABS = {"default": settings_for(service, poll_interval=2.0)}
    service.progress = reply
    job, pauses = start(), []
    for failures in (1, 2, 3):
        job = due(job)
        assert advance(job)
        assert (job.state, job.failures, job.error_code) == ("running", failures, code)
        pauses.append(job.seconds_until_due)
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[2] <= 60
    service.progress = done
    job = due(job)
    assert advance(job)
    assert (job.state, job.failures, job.error_code, job.error) == ("done", 0, "", "")


@db
def test_a_poll_that_has_no_time_left_is_taken_later(service: Service) -> None:
    """It says nothing about the job."""
    job = due(start())
    assert advance(job, timeout=1e-9)
    assert (job.state, job.error_code, job.failures) == ("running", "JobTimeoutError", 1)
    assert service.counts == (1, 0, 0)


@db
def test_a_strategy_that_answers_nonsense_fails_no_job(service: Service, settings: Any) -> None:
    """It is a mistake in the settings; the job is healthy."""
    job = due(start())
    settings.IMAGELABS = {"default": settings_for(service, poll_interval=None, polling=Nonsense())}
    service.progress = lambda _: running()
    assert advance(job)
    assert (job.state, job.error_code) == ("running", "InvalidRequestError")


class Nonsense:
    sleep = clock = staticmethod(lambda *_: 0.0)

    def delay(self, polls: object) -> float:
        return float("nan")


@db
def test_a_job_still_running_when_patience_ends_is_given_up(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever; the row says that it may yet finish."""
    service.progress = lambda _: running()
    job = due(start())
    monkeypatch.setattr(ImageJob, "give_up_after", timedelta(0))
    assert advance(job)
    assert (job.state, job.error_code, job.percent) == ("failed", "JobTimeoutError", 50)
    assert "may yet finish" in job.error


@db
def test_a_service_down_when_patience_ends_gives_the_job_up(
    service: Service, monkeypatch: pytest.MonkeyPatch, heard: list[tuple[str, str]]
) -> None:
    """With the reason, which is not the job's."""
    service.progress = down
    job = due(start())
    monkeypatch.setattr(ImageJob, "give_up_after", timedelta(0))
    assert advance(job)
    assert (job.state, job.error_code, job.failures) == ("failed", "APIConnectionError", 1)
    assert heard == [("failed", "failed")]


@db
def test_patience_may_have_no_end(
    service: Service, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timedelta.max` is how one says it."""
    monkeypatch.setattr(ImageJob, "give_up_after", timedelta.max)
    service.progress = lambda _: running()
    job = due(start())
    assert advance(job)
    service.progress = down
    job = due(job)
    assert advance(job)
    assert job.state == JobState.RUNNING


@db
def test_a_preview_that_no_column_should_hold_is_left_out(service: Service) -> None:
    """The address comes from the service, and may be anything."""
    job = start()
    for odd in ("https://x.test/" + 5000 * "x", "https://x.test:port/", None):
        service.progress = lambda _, odd=odd: running(current_image_url=odd)  # type: ignore[misc]
        job = due(job)
        assert advance(job)
        assert row(job).preview_url == ""


@db
def test_jobs_are_polled_again_by_hand(service: Service, media: Path) -> None:
    """The service may have drawn what was given up; a poll under way is left alone."""
    service.progress = lambda _: answer(404)
    given_up = due(start())
    advance(given_up)
    assert given_up.state == JobState.FAILED
    waiting, polled = start(), due(start())
    ImageJob.objects.filter(pk=waiting.pk).update(
        next_poll_at=timezone.now() + timedelta(seconds=30)
    )
    claim(polled)
    service.submit = lambda _: answer(500)
    unknown = start()
    service.submit = lambda _: answer(422)
    refused = start()
    assert poll_now(ImageJob.objects.all()) == 2
    service.progress = done
    due_now = [job for job in ImageJob.objects.all() if job.is_due]
    assert {job.pk for job in due_now} == {given_up.pk, waiting.pk}
    for job in due_now:
        assert advance(job)
    assert {row(job).state for job in (given_up, waiting)} == {"done"}
    assert row(given_up).error_code == ""
    assert (row(unknown).state, row(refused).state) == ("unknown", "failed")


# Fetching and storing ------------------------------------------------------------------------


@db
@pytest.mark.parametrize("what", ["exists", "save"])
def test_a_storage_that_fails_gets_the_image_later_and_once(
    what: str,
    service: Service,
    storage: type[FailingStorage],
    media: Path,
    heard: list[tuple[str, str]],
) -> None:
    """A full disk must not cost the image. What a killed process left there is replaced."""
    job = due(start())
    left = media / "imagelabs" / job.pk.hex[:2] / f"{job.pk}.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(PNG[:20])
    storage.fails = what
    assert advance(job)
    assert (job.state, job.error_code, job.error) == ("running", "OSError", "")
    assert (job.failures, bool(job.image)) == (1, False)
    assert not job.is_due
    storage.fails = None
    job = due(job)
    assert advance(job)
    assert job.state == JobState.DONE
    assert [path.read_bytes() for path in stored(media)] == [PNG]
    assert heard == [("succeeded", "done")]
    assert service.counts == (1, 2, 2)


@db
@pytest.mark.parametrize(
    "reply",
    [lambda _: answer(404), lambda _: HttpResponse(200, {}, b"<html>"), lambda _: answer(403)],
)
def test_an_image_that_cannot_be_fetched_is_fetched_later(
    reply: Callable[[str], HttpResponse], service: Service, media: Path
) -> None:
    """The job is done; its image is worth another try."""
    service.image = reply
    job = due(start())
    assert advance(job)
    assert (job.state, job.error_code) == ("running", "DownloadError")
    service.image = lambda _: HttpResponse(200, {}, PNG)
    job = due(job)
    assert advance(job)
    assert job.state == JobState.DONE
    assert [path.read_bytes() for path in stored(media)] == [PNG]


@db
def test_a_link_that_has_expired_is_asked_for_anew(service: Service, media: Path) -> None:
    """Within the same step."""
    links = iter([f"{URL}/stale.png", f"{URL}/fresh.png"])
    service.progress = lambda _: answer(status="Done", final_image_url=next(links))
    service.image = lambda name: answer(403) if name == "stale" else HttpResponse(200, {}, PNG)
    job = due(start())
    assert advance(job)
    assert job.state == JobState.DONE
    assert service.counts == (1, 2, 2)


# Who is told, and of what --------------------------------------------------------------------


@db
def test_a_receiver_that_fails_harms_nobody(
    service: Service, media: Path, heard: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """The image is stored; a mail that cannot be sent does not change that."""

    def fail(**_: object) -> None:
        raise ValueError("no mail server")

    for told in (jobs_outstanding, job_succeeded):
        told.connect(fail)
    try:
        job = due(start())
        assert advance(job)
    finally:
        for told in (jobs_outstanding, job_succeeded):
            told.disconnect(fail)
    assert row(job).state == JobState.DONE
    assert heard == [("succeeded", "done")]
    assert "no mail server" in caplog.text


@db
def test_a_signal_waits_for_the_commit(service: Service, heard: list[tuple[str, str]]) -> None:
    """Whoever settles in a transaction may yet roll it back."""
    job = due(start())
    work = claim(job)
    assert work is not None
    with transaction.atomic():
        assert record_result(job, PollResult({"state": JobState.FAILED, "next_poll_at": None}))
        assert heard == []
    assert heard == [("failed", "failed")]


@db
def test_no_secret_is_told_by_a_row_or_a_log(
    service: Service, storage: type[FailingStorage], caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts, cookies and signed addresses, though the service and the storage quote them."""
    caplog.set_level(logging.DEBUG, logger="imagelabs_sdk")
    quoted = f"cannot draw {PROMPT} for {COOKIE}"
    replies: list[Callable[[str], HttpResponse]] = [
        lambda _: answer(503, error=quoted),
        lambda _: answer(status=f"Queue: {quoted}"),
        done,
        lambda _: answer(status=f"Error: {quoted}"),
    ]
    service.image = lambda _: answer(404, error=quoted)
    job = start()
    said = []
    for reply in replies:
        service.progress = reply
        job = due(job)
        assert advance(job)
        said.append(f"{job.status} {job.error} {job.error_code}")
    service.submit = lambda _: answer(422, error=quoted)
    refused = start()
    said.append(f"{refused.error} {refused!r}")
    told = "\n".join([*said, caplog.text])
    assert "cannot draw" in told
    assert not [secret for secret in (PROMPT, COOKIE, KEY) if secret in told]


@db
def test_what_a_foreign_error_says_is_not_shown(
    service: Service, storage: type[FailingStorage]
) -> None:
    """It may hold anything, and a row is shown to people; its class is enough."""
    storage.fails = "save"
    job = due(start())
    assert advance(job)
    assert (job.error_code, job.error) == ("OSError", "")
    odd = type("An" + 100 * "Odd" + "Error", (Exception,), {})

    def fail(_: str) -> HttpResponse:
        raise odd

    service.progress = fail
    job = due(job)
    assert advance(job)
    assert len(row(job).error_code) == 64


@db
def test_an_alias_that_has_left_the_settings_is_told_and_its_jobs_wait(
    service: Service, settings: Any, media: Path
) -> None:
    """A mistake in a deployment must not end jobs that are paid for."""
    job = due(start())
    settings.IMAGELABS = {"another": settings_for(service)}
    assert advance(job)
    assert (job.state, job.error_code) == ("running", "SettingsError")
    settings.IMAGELABS = {"default": settings_for(service)}
    job = due(job)
    assert advance(job)
    assert job.state == JobState.DONE


# Waiting a moment ----------------------------------------------------------------------------


@db
def test_an_image_that_comes_in_time_is_there_at_once(service: Service, media: Path) -> None:
    """A fast service needs no page in between."""
    replies = iter([running(0.5), running(0.9)])
    service.progress = lambda task_id: next(replies, None) or done(task_id)
    job = ImageJob.objects.generate_or_defer(PROMPT, wait=10)
    assert job.image.read() == PNG
    job.image.close()
    assert service.counts == (1, 3, 1)


@db
def test_an_image_that_takes_longer_is_left_to_its_page(service: Service) -> None:
    """The view answers when the wait is over, with a row that goes on."""
    service.progress = lambda _: running(0.5)
    job = ImageJob.objects.generate_or_defer(PROMPT, wait=0.1)
    assert (job.state, bool(job.image)) == ("running", False)
    assert job.is_outstanding
    assert row(job).attempts == service.count("progress") > 0


@db
@pytest.mark.parametrize("code", [422, 500])
def test_a_request_that_was_not_accepted_is_not_waited_for(code: int, service: Service) -> None:
    """Nothing will come."""
    service.submit = lambda _: answer(code)
    job = ImageJob.objects.generate_or_defer(PROMPT, wait=20)
    assert not job.is_outstanding
    assert service.counts == (1, 0, 0)


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_what_somebody_else_settles_meanwhile_is_seen(
    database: str, service: Service, media: Path
) -> None:
    """The same button, pressed in two tabs: the second waits for the first one's image."""
    manager, key = ImageJob.objects.db_manager(database), uuid4()

    def wait(_: int) -> str:
        job = manager.generate_or_defer(PROMPT, id=key, wait=20)
        return str(job.image.name)

    names = at_once(2, wait)
    assert names[0] == names[1] != ""
    assert service.counts == (1, 1, 1)


@db
def test_in_a_transaction_there_is_nothing_to_wait_for(service: Service) -> None:
    """Nothing leaves before its end; a warning says what to do about it."""
    with transaction.atomic():
        with pytest.warns(RuntimeWarning, match="non_atomic_requests") as warned:
            job = ImageJob.objects.generate_or_defer(PROMPT, wait=20)
        assert service.counts == (0, 0, 0)
    assert {warning.filename for warning in warned} == {__file__}
    assert job.state == JobState.RUNNING
    assert service.counts == (1, 0, 0)


# Processes that are killed -------------------------------------------------------------------

BEGIN = """
import os, signal, sys
import django
django.setup()
from django.core.files.storage import FileSystemStorage
from imagelabs_sdk.contrib.django.lifecycle import advance
from imagelabs_sdk.contrib.django.models import ImageJob
"""
DIE_STORING = """
def _save(storage, name, content):
    path = storage.path(name)
    os.makedirs(os.path.dirname(path))
    open(path, "wb").write(content.read()[:20])
    os.kill(os.getpid(), signal.SIGKILL)
FileSystemStorage._save = _save
"""


def killed(code: str, around: dict[str, str], server: FaultyServer, at: str = "") -> None:
    """Run `code` in a process that is killed when it asks `at`, at the latest."""
    with process(around, "-c", code) as child:

        def kill(wire: faulty.Wire) -> None:
            os.kill(child.pid, signal.SIGKILL)
            wire.hang()

        if at:
            before, server.scripts[at] = server.scripts[at], [kill]
        said, _ = child.communicate(timeout=30)
        if at:
            server.scripts[at] = before
    assert child.returncode == -signal.SIGKILL, said


@pytest.fixture
def served(server: FaultyServer, settings: Any) -> FaultyServer:
    options = {"base_url": server.url, "allow_private_hosts": True, "poll_interval": 0.01}
    settings.IMAGELABS = {"default": {"OPTIONS": options}}
    return server


@shared
@pytest.mark.parametrize("database", shared_databases)
@pytest.mark.parametrize("sent", [0, 1])
def test_a_sender_killed_leaves_a_row_that_nobody_sends_again(
    sent: int, database: str, served: FaultyServer, media: Path, heard: list[tuple[str, str]]
) -> None:
    """Between the row and the request, or between the request and its answer: who can tell?"""
    before = "RequestsTransport.send = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
    code = BEGIN + "from imagelabs_sdk import RequestsTransport\n" + ("" if sent else before)
    code += "ImageJob.objects.start('a lighthouse')"
    killed(code, environment(database, served, media), served, "/txt2img")
    job = ImageJob.objects.using(database).get()
    assert (job.state, job.is_due) == (JobState.SUBMITTING, False)
    job = due(job)  # the lease has ended
    assert advance(job)
    assert (row(job).state, row(job).error_code) == ("unknown", "SubmissionUnknownError")
    assert not job.is_outstanding
    assert not advance(job)
    assert heard == [("unknown", "unknown")]
    assert served.count("/txt2img") == sent
    assert served.count("/progress") == 0


@shared
@pytest.mark.parametrize("database", shared_databases)
@pytest.mark.parametrize("at", ["/progress", "/image.png", "storing"])
def test_a_process_killed_in_a_step_leaves_the_row_due_again(
    at: str, database: str, served: FaultyServer, media: Path, heard: list[tuple[str, str]]
) -> None:
    """Whoever comes next settles it once, with one whole image."""
    job = due(ImageJob.objects.db_manager(database).start("a lighthouse"))
    code = BEGIN + (DIE_STORING if at == "storing" else "") + "advance(ImageJob.objects.get())"
    path = "" if at == "storing" else at
    killed(code, environment(database, served, media), served, path)
    left = row(job)
    assert (left.state, left.attempts, left.is_outstanding) == ("running", 1, True)
    assert not left.is_due
    job = due(job)  # the lease has ended
    assert advance(job)
    assert row(job).state == JobState.DONE
    assert [path.read_bytes() for path in stored(media)] == [PNG]
    assert heard == [("succeeded", "done")]
    assert served.count("/txt2img") == 1
