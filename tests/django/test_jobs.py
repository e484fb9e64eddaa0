"""A job's row: bought once, polled by one at a time, settled once, whoever dies meanwhile."""

import logging
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zlib import crc32

import attrs
import pytest
from django.conf import settings
from django.db import DatabaseError, IntegrityError, transaction
from django.test import override_settings
from django.utils import timezone

from imagelabs_sdk import Deadline, ImageRequest, InvalidRequestError
from imagelabs_sdk.contrib.django.clients import clients
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
from imagelabs_sdk.testing import FakeService, SentRequest
from imagelabs_sdk.testing.script import png
from tests.django.app.models import Framed, Poster
from tests.django.app.storage import FailingStorage
from tests.django.fixtures import (
    ALIASES,
    COOKIE,
    IMAGE,
    KEY,
    PROMPT,
    at_once,
    counts,
    due,
    elsewhere,
    process,
    scripted,
    shared_databases,
    stored,
)

db = pytest.mark.django_db(transaction=True)
shared = pytest.mark.django_db(transaction=True, databases=["default", *ALIASES])


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


Say = Callable[[FakeService], object]
Around = Callable[[str], dict[str, str]]
POLL: dict[str, Any] = {"at": "progress"}
THRICE: dict[str, Any] = {"at": "progress", "times": 3}


def start(**options: Any) -> ImageJob:
    job: ImageJob = ImageJob.objects.start(PROMPT, **{"width": 8, "height": 8, **options})
    return job


def row(job: ImageJob) -> ImageJob:
    return type(job)._base_manager.using(job._state.db).get(pk=job.pk)


# From the wish to the row --------------------------------------------------------------------


@db
def test_an_image_comes_by_two_steps(
    service: FakeService, media: Path, heard: list[tuple[str, str]]
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
    assert job.image.read() == png(512, 256)
    assert job.image.name == f"imagelabs/{job.pk.hex[:2]}/{job.pk}.png"
    assert (job.percent, job.status, job.preview_url, job.error) == (100, "Done", "", "")
    assert (job.is_outstanding, job.is_due, job.seconds_until_due) == (False, False, 0.0)
    assert job.finished_at is not None
    job.image.close()
    assert heard == [("succeeded", "done")]
    assert counts(service) == (1, 1, 1)


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_the_row_is_committed_before_the_request_leaves(
    database: str, service: FakeService
) -> None:
    """If the process dies then, something must know that the image may be bought."""
    seen: list[str] = []

    def submitted(_: object) -> None:
        rows = ImageJob.objects.using(database)
        seen.append(elsewhere(lambda: rows.latest("created_at").state))

    service.on_request = submitted
    manager = ImageJob.objects.db_manager(database)
    manager.start("a lighthouse")
    with transaction.atomic(using=database):
        second = manager.start("a pier")
        assert second.state == JobState.SUBMITTING
    assert seen == ["submitting", "submitting"]
    assert second.state == JobState.RUNNING


@db
def test_what_is_rolled_back_is_never_sent(service: FakeService) -> None:
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
    service: FakeService, django_capture_on_commit_callbacks: Any
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
        ({"prompt": ImageRequest("x"), "tiling": True}, "tiling"),
    ],
)
def test_a_value_that_cannot_be_used_stores_and_sends_nothing(
    options: dict[str, Any], field: str, service: FakeService
) -> None:
    """The error names the field, so that a form can show it there."""
    with pytest.raises(InvalidRequestError) as raised:
        ImageJob.objects.start(**{"prompt": "x", **options})
    assert raised.value.field == field
    assert not ImageJob.objects.exists()
    assert counts(service) == (0, 0, 0)


@db
def test_a_column_or_an_alias_that_is_not_there_stores_and_sends_nothing(
    service: FakeService,
) -> None:
    """A typing error in the code of a site."""
    with pytest.raises(TypeError, match="widht"):
        start(widht=8)
    with pytest.raises(SettingsError, match="nowhere"):
        start(alias="nowhere")
    assert not ImageJob.objects.exists()
    assert counts(service) == (0, 0, 0)


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
    database: str, service: FakeService
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
    first, second = (sent.fields for sent in service.sent)
    assert first == second
    assert (first["prompt"], first["seed"]) == (EVERY_FIELD["prompt"], "12")


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_nul_character_that_a_database_cannot_hold_is_refused(
    database: str, service: FakeService
) -> None:
    """PostgreSQL's JSON has none; a form's user sees why."""
    manager = ImageJob.objects.db_manager(database)
    odd = "a \0 lighthouse"
    if database != "postgres":
        assert row(manager.start(odd)).prompt == odd
        return
    with pytest.raises(InvalidRequestError, match="cannot store"):
        manager.start(odd)
    assert counts(service) == (0, 0, 0)
    assert not manager.exists()


@db
def test_a_request_that_is_nested_deeply_is_kept(service: FakeService) -> None:
    """What a request can hold, a row can hold."""
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"x": deep}
    assert row(start(extra_body=deep)).request["extra_body"] == deep


@db
def test_a_button_pressed_twice_buys_one_image(service: FakeService) -> None:
    """The form's id is the row's; what the second press asks for does not matter."""
    key = uuid4()
    first, second = start(id=key), ImageJob.objects.start("another", id=key)
    assert first == second
    assert second.prompt == PROMPT
    assert service.count("submit") == ImageJob.objects.count() == 1


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_button_pressed_by_eight_at_once_buys_one_image(
    database: str, service: FakeService
) -> None:
    """Impatient people, and proxies that repeat a request."""
    key = UUID(int=7)
    manager = ImageJob.objects.db_manager(database)
    jobs = at_once(8, lambda _: manager.start("a lighthouse", id=key).pk)
    assert set(jobs) == {key}
    assert service.count("submit") == manager.count() == 1


@db
def test_a_row_that_the_database_refuses_is_not_sent(service: FakeService) -> None:
    """A rule of the site's own, such as a title that is taken."""
    Poster.objects.start(PROMPT, title="The Pier")
    with pytest.raises(IntegrityError):
        Poster.objects.start(PROMPT, title="The Pier")
    assert service.count("submit") == 1


@db
def test_a_model_of_the_sites_own_has_columns_of_its_own(
    service: FakeService, media: Path, heard: list[tuple[str, str]]
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
    ("say", "state", "code"),
    [
        (lambda s: s.refuses("no such size"), "failed", "APIStatusError"),
        (lambda s: s.answers({"error": "no"}), "failed", "APIResponseError"),
        (lambda s: s.rate_limited(), "failed", "RateLimitError"),
        (lambda s: s.unreachable(), "failed", "APIConnectionError"),
        (lambda s: s.refuses(status=500), "unknown", "APIStatusError"),
        (lambda s: s.html(), "unknown", "SubmissionUnknownError"),
        (lambda s: s.drops_connection(), "unknown", "SubmissionUnknownError"),
    ],
)
def test_a_failed_submit_is_in_the_row_and_is_not_sent_again(
    say: Say, state: str, code: str, service: FakeService, heard: list[tuple[str, str]]
) -> None:
    """Refused, or surely never sent, is one thing; what is unclear may have been bought."""
    say(service)
    job = start()
    assert (job.state, job.error_code) == (state, code)
    assert job.error
    assert row(job).state == state
    assert heard == [(state, state)]
    assert not job.is_outstanding
    assert not advance(job)
    assert counts(service) == (1, 0, 0)


@db
def test_a_transport_that_fails_in_its_own_way_leaves_no_row_waiting(
    service: FakeService, caplog: pytest.LogCaptureFixture, heard: list[tuple[str, str]]
) -> None:
    """It may have sent the request before; others in the same transaction are sent all the same."""
    service.job().answers(ValueError("out of ideas"))
    with transaction.atomic():
        first, second = start(), start()
    assert (first.state, first.error_code, first.error) == ("unknown", "ValueError", "")
    assert second.state == "running"
    assert "out of ideas" in caplog.text
    assert heard == [("unknown", "unknown")]


@contextmanager
def failing_database() -> Iterator[None]:
    """Nothing can be written of what a step has found."""

    def gone(*_: object) -> None:
        raise DatabaseError("the server has gone away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagelabs_sdk.contrib.django.lifecycle._record_columns", gone)
        yield


@db
def test_a_database_that_fails_after_the_submit_leaves_the_task_in_the_log(
    service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """The image is bought; nobody else knows its name."""
    with failing_database():
        job = start()
    assert "task-1" in caplog.text
    assert row(job).state == JobState.SUBMITTING
    assert advance(due(job))
    assert row(job).state == JobState.UNKNOWN
    assert counts(service) == (1, 0, 0)


@db
def test_a_database_that_fails_after_a_poll_loses_nothing(
    service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    """The next poll finds what this one did; no task id has to be told."""
    job = start()
    with failing_database(), pytest.raises(DatabaseError):
        advance(due(job))
    assert "task-1" not in caplog.text
    assert advance(due(job))
    assert row(job).state == JobState.DONE


@db
def test_an_answer_that_comes_after_the_lease_is_taken_all_the_same(
    service: FakeService, heard: list[tuple[str, str]]
) -> None:
    """The row was given up as unknown; now it is known."""

    def late(_: object) -> None:
        assert advance(due(ImageJob.objects.get()))
        assert ImageJob.objects.get().state == JobState.UNKNOWN

    service.on_request = late
    job = start()
    assert (job.state, job.error, job.finished_at) == ("running", "", None)
    assert row(job).task_id == "task-1"
    assert row(job).is_outstanding
    assert counts(service) == (1, 0, 0)


@db
def test_a_row_that_has_its_task_is_not_overwritten_by_a_second_submit(
    service: FakeService,
) -> None:
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
    database: str, service: FakeService, media: Path, heard: list[tuple[str, str]]
) -> None:
    """Each has a connection of its own and has read the same row."""
    job = due(ImageJob.objects.db_manager(database).start(PROMPT, width=8, height=8))
    assert sum(in_eight_tabs(job)) == 1
    assert row(job).state == JobState.DONE
    assert heard == [("succeeded", "done")]
    assert [path.read_bytes() for path in stored(media)] == [IMAGE]
    assert counts(service) == (1, 1, 1)


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_a_model_that_shares_its_parents_table_is_polled_by_one_too(
    database: str, service: FakeService, media: Path
) -> None:
    """Django updates such a row in two statements, between which another could claim it."""
    service.never_finishes()
    job = due(Framed.objects.db_manager(database).start(PROMPT, title="The Pier"))
    for _ in range(5):
        assert sum(in_eight_tabs(job)) == 1
        job = due(job)
    assert job.attempts == service.count("progress") == 5


@db
def test_a_poll_again_before_it_is_due_costs_nothing(service: FakeService, media: Path) -> None:
    """A page may be loaded as often as one likes, before and after the end."""
    service.progress(0.25, preview=IMAGE).done()
    job = due(start())
    assert advance(job)
    assert (job.state, job.status, job.percent) == ("running", "Processing", 25)
    assert job.preview_url == f"{service.url}/previews/task-1?{crc32(IMAGE):x}"
    ImageJob.objects.update(next_poll_at=timezone.now() + timedelta(seconds=60))
    job = row(job)
    assert 50 < job.seconds_until_due <= 60
    assert not advance(job)
    job = due(job)
    assert advance(job)
    assert [advance(job), advance(row(job))] == [False, False]
    assert counts(service) == (1, 2, 1)


@db
def test_a_tab_that_came_too_late_sees_what_the_other_has_found(
    service: FakeService, media: Path
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
    service: FakeService, media: Path, heard: list[tuple[str, str]]
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
def test_whoever_outlives_the_lease_does_not_undo_another_claim(service: FakeService) -> None:
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
    service: FakeService,
) -> None:
    """The lease of a slow sender ends; its answer comes between the tab's reading and its step."""
    stale: list[ImageJob] = []

    def late(_: object) -> None:
        stale.append(due(ImageJob.objects.get()))

    service.on_request = late
    job = due(start())
    assert not advance(stale[0])
    assert (row(job).state, row(job).task_id) == ("running", "task-1")
    assert stale[0].task_id == "task-1"


@db
def test_a_job_that_was_put_to_rest_by_hand_stays_there(service: FakeService) -> None:
    """A site's own "cancel"; a tab that has read the row before must not wake it."""
    job = due(start())
    ImageJob.objects.update(next_poll_at=None)
    assert not advance(job)
    assert not row(job).is_outstanding
    assert counts(service) == (1, 0, 0)


@db
def test_a_claim_is_a_lease(service: FakeService) -> None:
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
    service: FakeService, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else may begin to store the same image any moment."""
    work = claim(due(start()))
    assert work is not None
    seen = poll(attrs.evolve(work, lease=Lease(0.0)), timeout=5)
    assert seen.columns["error_code"] == "TimeoutError"
    assert seen.columns["failures"] == 1
    assert stored(media) == []


@db
def test_a_poll_in_a_transaction_is_refused(service: FakeService) -> None:
    """Others would not see the claim, and would wait for the row as long as the service does."""
    job = due(start())
    with transaction.atomic(), pytest.raises(RuntimeError, match="in a transaction"):
        advance(job)
    assert counts(service) == (1, 0, 0)


@shared
def test_a_row_that_was_read_from_a_replica_is_claimed_where_rows_are_written(
    service: FakeService, media: Path
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
    service: FakeService, media: Path
) -> None:
    """Whoever deletes their job does not want its image kept where nobody finds it."""

    def delete(sent: SentRequest) -> None:
        if sent.at == "image":
            ImageJob.objects.all().delete()

    service.job().done()
    service.never_finishes()
    service.on_request = delete
    job = due(start())
    with pytest.raises(ImageJob.DoesNotExist):
        advance(job)
    assert stored(media) == []
    job = due(start())
    work = claim(job)
    assert work is not None
    ImageJob.objects.all().delete()
    with pytest.raises(ImageJob.DoesNotExist):
        record_result(job, poll(work, timeout=5))


# What ends a job, and what does not ----------------------------------------------------------


@db
@pytest.mark.parametrize(
    ("say", "code", "said"),
    [
        (lambda s: s.fails("too dark"), "JobFailedError", "too dark"),
        (lambda s: s.answers({"status": "Done"}, **POLL), "JobFailedError", "names no image"),
        (lambda s: s.refuses("no such task", status=404, **POLL), "APIStatusError", "no such task"),
    ],
)
def test_what_is_hopeless_ends_the_job(
    say: Say, code: str, said: str, service: FakeService, heard: list[tuple[str, str]]
) -> None:
    """Failed, done without an image, forgotten: no further poll would help."""
    say(service)
    job = due(start())
    assert advance(job)
    assert (row(job).state, row(job).error_code) == ("failed", code)
    assert said in job.error
    assert job.finished_at is not None
    assert heard == [("failed", "failed")]


@db
def test_a_failure_that_two_polls_report_ends_the_job(service: FakeService) -> None:
    """Each poll is a process of its own; the row remembers what the last one said."""
    service.answers({"status": "Generation failed"}, at="progress")
    job = due(start())
    assert advance(job)
    assert row(job).state == "running"
    job = due(job)
    assert advance(job)
    assert (row(job).state, row(job).error_code) == ("failed", "JobFailedError")


@db
@pytest.mark.parametrize(
    ("say", "code"),
    [
        (lambda s: s.drops_connection(**THRICE), "APIConnectionError"),
        (lambda s: s.refuses(status=503, **THRICE), "APIStatusError"),
        (lambda s: s.html(**THRICE), "APIResponseError"),
        (lambda s: s.challenge(**THRICE), "ChallengeError"),
    ],
)
def test_a_service_in_trouble_is_asked_later_and_later(
    say: Say, code: str, service: FakeService, media: Path, settings: Any
) -> None:
    """The job behind it is healthy, for all we know."""
    settings.IMAGELABS = {"default": scripted(poll_interval=2.0)}
    say(service)
    job, pauses = start(), []
    for failures in (1, 2, 3):
        job = due(job)
        assert advance(job)
        assert (job.state, job.failures, job.error_code) == ("running", failures, code)
        pauses.append(job.seconds_until_due)
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[2] <= 60
    job = due(job)
    assert advance(job)
    assert (job.state, job.failures, job.error_code, job.error) == ("done", 0, "", "")


@db
def test_a_poll_that_has_no_time_left_is_taken_later(service: FakeService) -> None:
    """It says nothing about the job."""
    job = due(start())
    assert advance(job, timeout=0)
    assert (job.state, job.error_code, job.failures) == ("running", "JobTimeoutError", 1)
    assert counts(service) == (1, 0, 0)


@db
def test_several_steps_share_a_deadline(service: FakeService) -> None:
    """By the client's own clock, which is the kit's here."""
    service.hangs(at="progress")
    first, second = start(), start()
    deadline = clients["default"].deadline(15)
    assert advance(due(first), timeout=deadline)
    assert service.clock.elapsed == pytest.approx(15)
    second = due(second)
    assert advance(second, timeout=deadline)
    assert (second.error_code, service.count("progress")) == ("JobTimeoutError", 1)


@db
def test_a_step_is_stopped_by_its_deadline(service: FakeService) -> None:
    """A worker that is to end; the job goes on."""
    service.hangs(at="progress")
    job = due(start())
    assert advance(job, timeout=clients["default"].deadline(stop=lambda: True))
    assert (job.state, job.error_code) == ("running", "JobStoppedError")
    assert service.count("progress") == 0


@db
@pytest.mark.parametrize("timeout", [math.inf, 1e9, Deadline()])
def test_no_step_takes_hours(timeout: float | Deadline, service: FakeService) -> None:
    """Its lease would outlast every process."""
    leases: list[Any] = []
    service.on_request = lambda _: leases.append(ImageJob.objects.get().next_poll_at)
    job = due(start())
    begun = timezone.now()
    assert advance(job, timeout=timeout)
    assert timedelta(0) < leases[-1] - begun < timedelta(minutes=6)


@db
@pytest.mark.parametrize("timeout", [-1, math.nan, "5"])
def test_a_timeout_that_makes_no_sense_claims_nothing(timeout: Any, service: FakeService) -> None:
    """It is said before anything is sent."""
    job = due(start())
    with pytest.raises(InvalidRequestError, match="timeout"):
        advance(job, timeout=timeout)
    assert row(job).attempts == 0


@db
def test_a_strategy_that_answers_nonsense_fails_no_job(service: FakeService, settings: Any) -> None:
    """It is a mistake in the settings; the job is healthy."""
    service.never_finishes()
    job = due(start())
    settings.IMAGELABS = {"default": scripted(poll_interval=None, polling=Nonsense())}
    assert advance(job)
    assert (job.state, job.error_code) == ("running", "InvalidRequestError")


class Nonsense:
    sleep = clock = staticmethod(lambda *_: 0.0)

    def delay(self, polls: object) -> float:
        return float("nan")


@db
def test_a_job_still_running_when_patience_ends_is_given_up(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever; the row says that it may yet finish."""
    service.never_finishes()
    job = due(start())
    monkeypatch.setattr(ImageJob, "give_up_after", timedelta(0))
    assert advance(job)
    assert (job.state, job.error_code, job.percent) == ("failed", "JobTimeoutError", 50)
    assert "may yet finish" in job.error


@db
def test_a_service_down_when_patience_ends_gives_the_job_up(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, heard: list[tuple[str, str]]
) -> None:
    """With the reason, which is not the job's."""
    service.drops_connection(at="progress")
    job = due(start())
    monkeypatch.setattr(ImageJob, "give_up_after", timedelta(0))
    assert advance(job)
    assert (job.state, job.error_code, job.failures) == ("failed", "APIConnectionError", 1)
    assert heard == [("failed", "failed")]


@db
def test_patience_may_have_no_end(
    service: FakeService, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timedelta.max` is how one says it."""
    monkeypatch.setattr(ImageJob, "give_up_after", timedelta.max)
    service.progress(0.5).drops_connection()
    job = due(start())
    assert advance(job)
    job = due(job)
    assert advance(job)
    assert job.state == JobState.RUNNING


@db
def test_a_preview_that_no_column_should_hold_is_left_out(service: FakeService) -> None:
    """The address comes from the service, and may be anything."""
    for odd in ("https://x.test/" + 5000 * "x", "https://x.test:port/", None):
        service.answers({"status": "Processing", "current_image_url": odd}, at="progress")
    job = start()
    for _ in range(3):
        job = due(job)
        assert advance(job)
        assert row(job).preview_url == ""


def poll_after(job: ImageJob, seconds: float) -> ImageJob:
    """The row after a poll that comes so many seconds after the submit."""
    submitted = timezone.now() - timedelta(seconds=seconds)
    ImageJob.objects.filter(pk=job.pk).update(submitted_at=submitted)
    assert advance(due(job))
    return row(job)


@db
def test_a_poll_knows_those_before_it_whoever_took_them(service: FakeService, media: Path) -> None:
    """Each may be another process's; the rest is extrapolated all the same."""
    service.progress(0.2, 0.4).done(IMAGE)
    job = poll_after(start(), 10)
    assert job.expected_at is None
    job = poll_after(job, 20)
    assert [poll[1:3] for poll in job.polls] == [["running", 0.2], ["running", 0.4]]
    assert job.expected_at is not None
    assert 27 < (job.expected_at - timezone.now()).total_seconds() < 33
    job = poll_after(job, 30)
    assert (job.state, job.polls, job.expected_at) == ("done", [], None)


@db
def test_a_row_keeps_the_first_polls_and_the_last(service: FakeService) -> None:
    """By the first ones the rest is extrapolated; a job of a day must not fill its row."""
    fractions = [number / 100 for number in range(1, 41)]
    service.progress(*fractions)
    job = start()
    for second in range(1, 41):
        job = poll_after(job, second)
    assert [poll[2] for poll in job.polls] == [*fractions[:8], *fractions[-8:]]


@db
def test_an_estimate_has_an_end(service: FakeService) -> None:
    """A service that moves by a millionth promises years."""
    service.progress(0.1, 0.100001)
    job = poll_after(poll_after(start(), 1000), 2000)
    assert job.expected_at is not None
    assert job.expected_at <= timezone.now() + timedelta(days=1)


@db
def test_jobs_are_polled_again_by_hand(service: FakeService, media: Path) -> None:
    """The service may have drawn what was given up; a poll under way is left alone."""
    service.job().refuses(status=404, at="progress", times=1)
    for _ in ("waiting", "polled"):
        service.job().done()
    service.job().refuses(status=500)
    service.job().refuses()
    given_up = due(start())
    advance(given_up)
    assert given_up.state == JobState.FAILED
    waiting, polled = start(), due(start())
    ImageJob.objects.filter(pk=waiting.pk).update(
        next_poll_at=timezone.now() + timedelta(seconds=30)
    )
    claim(polled)
    unknown, refused = start(), start()
    assert poll_now(ImageJob.objects.all()) == 2
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
    service: FakeService,
    storage: type[FailingStorage],
    media: Path,
    heard: list[tuple[str, str]],
) -> None:
    """A full disk must not cost the image. What a killed process left there is replaced."""
    job = due(start())
    left = media / "imagelabs" / job.pk.hex[:2] / f"{job.pk}.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(IMAGE[:20])
    storage.fails = what
    assert advance(job)
    assert (job.state, job.error_code, job.error) == ("running", "OSError", "")
    assert (job.failures, bool(job.image)) == (1, False)
    assert not job.is_due
    storage.fails = None
    job = due(job)
    assert advance(job)
    assert job.state == JobState.DONE
    assert [path.read_bytes() for path in stored(media)] == [IMAGE]
    assert heard == [("succeeded", "done")]
    assert counts(service) == (1, 2, 2)


@db
@pytest.mark.parametrize(
    "say",
    [
        lambda s: s.refuses(status=404, at="image", times=2),
        lambda s: s.refuses(status=403, at="image", times=2),
        lambda s: s.html(at="image", times=1),
    ],
)
def test_an_image_that_cannot_be_fetched_is_fetched_later(
    say: Say, service: FakeService, media: Path
) -> None:
    """The job is done; its image is worth another try."""
    say(service)
    job = due(start())
    assert advance(job)
    assert (job.state, job.error_code) == ("running", "DownloadError")
    job = due(job)
    assert advance(job)
    assert job.state == JobState.DONE
    assert [path.read_bytes() for path in stored(media)] == [IMAGE]


@db
def test_a_link_that_has_expired_is_asked_for_anew(service: FakeService, media: Path) -> None:
    """Within the same step."""
    service.link_expires()
    job = due(start())
    assert advance(job)
    assert job.state == JobState.DONE
    assert counts(service) == (1, 2, 2)


# Who is told, and of what --------------------------------------------------------------------


@db
def test_a_receiver_that_fails_harms_nobody(
    service: FakeService,
    media: Path,
    heard: list[tuple[str, str]],
    caplog: pytest.LogCaptureFixture,
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
def test_a_signal_waits_for_the_commit(service: FakeService, heard: list[tuple[str, str]]) -> None:
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
    service: FakeService, storage: type[FailingStorage], caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts, cookies and signed addresses, though the service and the storage quote them."""
    caplog.set_level(logging.DEBUG, logger="imagelabs_sdk")
    quoted = f"cannot draw {PROMPT} for {COOKIE}"
    signed = {"status": "Done", "final_image_url": f"/images/task-1-1.png?key={KEY}"}
    (
        service.job()
        .refuses(quoted, status=503, at="progress", times=1)
        .progress(0.5, status=f"Queue: {quoted}")
        .answers(signed, times=2)
        .refuses(quoted, status=404, at="image", times=2)
        .fails(quoted)
    )
    service.refuses(quoted)
    job = start()
    said = []
    for code in ("APIStatusError", "", "DownloadError", "JobFailedError"):
        job = due(job)
        assert advance(job)
        assert job.error_code == code
        said.append(f"{job.status} {job.error} {job.error_code}")
    refused = start()
    said.append(f"{refused.error} {refused!r}")
    told = "\n".join([*said, caplog.text])
    assert "cannot draw" in told
    assert not [secret for secret in (PROMPT, COOKIE, KEY) if secret in told]


@db
def test_what_a_foreign_error_says_is_not_shown(
    service: FakeService, storage: type[FailingStorage]
) -> None:
    """It may hold anything, and a row is shown to people; its class is enough."""
    storage.fails = "save"
    odd = type("An" + 100 * "Odd" + "Error", (Exception,), {})
    service.done().answers(odd(), at="progress")
    job = due(start())
    assert advance(job)
    assert (job.error_code, job.error) == ("OSError", "")
    job = due(job)
    assert advance(job)
    assert len(row(job).error_code) == 64


@db
def test_an_alias_that_has_left_the_settings_is_told_and_its_jobs_wait(
    service: FakeService, settings: Any, media: Path
) -> None:
    """A mistake in a deployment must not end jobs that are paid for."""
    job = due(start())
    settings.IMAGELABS = {"another": scripted()}
    assert advance(job)
    assert (job.state, job.error_code) == ("running", "SettingsError")
    settings.IMAGELABS = {"default": scripted()}
    job = due(job)
    assert advance(job)
    assert job.state == JobState.DONE


# Waiting a moment ----------------------------------------------------------------------------


@db
def test_an_image_that_comes_in_time_is_there_at_once(service: FakeService, media: Path) -> None:
    """A fast service needs no page in between."""
    service.progress(0.5, 0.9).done(IMAGE)
    job = ImageJob.objects.generate_or_defer(PROMPT, wait=10)
    assert job.image.read() == IMAGE
    job.image.close()
    assert counts(service) == (1, 3, 1)


@db
def test_an_image_that_takes_longer_is_left_to_its_page(service: FakeService) -> None:
    """The view answers when the wait is over, with a row that goes on."""
    service.never_finishes()
    job = ImageJob.objects.generate_or_defer(PROMPT, wait=0.1)
    assert (job.state, bool(job.image)) == ("running", False)
    assert job.is_outstanding
    assert row(job).attempts == service.count("progress") > 0


@db
@pytest.mark.parametrize("code", [422, 500])
def test_a_request_that_was_not_accepted_is_not_waited_for(code: int, service: FakeService) -> None:
    """Nothing will come."""
    service.refuses(status=code)
    job = ImageJob.objects.generate_or_defer(PROMPT, wait=20)
    assert not job.is_outstanding
    assert counts(service) == (1, 0, 0)


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_what_somebody_else_settles_meanwhile_is_seen(
    database: str, service: FakeService, media: Path
) -> None:
    """The same button, pressed in two tabs: the second waits for the first one's image."""
    manager, key = ImageJob.objects.db_manager(database), uuid4()

    def wait(_: int) -> str:
        job = manager.generate_or_defer(PROMPT, id=key, wait=20)
        return str(job.image.name)

    names = at_once(2, wait)
    assert names[0] == names[1] != ""
    assert counts(service) == (1, 1, 1)


@db
def test_in_a_transaction_there_is_nothing_to_wait_for(service: FakeService) -> None:
    """Nothing leaves before its end; a warning says what to do about it."""
    with transaction.atomic():
        with pytest.warns(RuntimeWarning, match="non_atomic_requests") as warned:
            job = ImageJob.objects.generate_or_defer(PROMPT, wait=20)
        assert counts(service) == (0, 0, 0)
    assert {warning.filename for warning in warned} == {__file__}
    assert job.state == JobState.RUNNING
    assert counts(service) == (1, 0, 0)


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


def killed(code: str, around: dict[str, str], service: FakeService, at: str | None = None) -> None:
    """Run `code` in a process that is killed when it asks `at`, at the latest."""
    with process(around, "-c", code) as child:

        def kill(sent: SentRequest) -> None:
            if sent.at == at:
                os.kill(child.pid, signal.SIGKILL)

        service.on_request = kill
        said, _ = child.communicate(timeout=30)
        service.on_request = None
    assert child.returncode == -signal.SIGKILL, said


@shared
@pytest.mark.parametrize("database", shared_databases)
@pytest.mark.parametrize("sent", [0, 1])
def test_a_sender_killed_leaves_a_row_that_nobody_sends_again(
    sent: int, database: str, service: FakeService, around: Around, heard: list[tuple[str, str]]
) -> None:
    """Between the row and the request, or between the request and its answer: who can tell?"""
    before = "RequestsTransport.send = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
    code = BEGIN + "from imagelabs_sdk import RequestsTransport\n" + ("" if sent else before)
    code += "ImageJob.objects.start('a lighthouse')"
    killed(code, around(database), service, "submit")
    job = ImageJob.objects.using(database).get()
    assert (job.state, job.is_due) == (JobState.SUBMITTING, False)
    job = due(job)  # the lease has ended
    assert advance(job)
    assert (row(job).state, row(job).error_code) == ("unknown", "SubmissionUnknownError")
    assert not job.is_outstanding
    assert not advance(job)
    assert heard == [("unknown", "unknown")]
    assert counts(service) == (sent, 0, 0)


@shared
@pytest.mark.parametrize("database", shared_databases)
@pytest.mark.parametrize("at", ["progress", "image", "storing"])
def test_a_process_killed_in_a_step_leaves_the_row_due_again(
    at: str, database: str, service: FakeService, around: Around, heard: list[tuple[str, str]]
) -> None:
    """Whoever comes next settles it once, with one whole image."""
    job = due(ImageJob.objects.db_manager(database).start("a lighthouse", width=8, height=8))
    code = BEGIN + (DIE_STORING if at == "storing" else "") + "advance(ImageJob.objects.get())"
    killed(code, around(database), service, at)
    left = row(job)
    assert (left.state, left.attempts, left.is_outstanding) == ("running", 1, True)
    assert not left.is_due
    job = due(job)  # the lease has ended
    assert advance(job)
    assert row(job).state == JobState.DONE
    assert [path.read_bytes() for path in stored(Path(settings.MEDIA_ROOT))] == [IMAGE]
    assert heard == [("succeeded", "done")]
    assert service.count("submit") == 1
