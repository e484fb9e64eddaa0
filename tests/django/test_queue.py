"""A local backlog: a driver submits what `start` has stored, at the service's pace, never twice."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from imagelabs_sdk import HttpResponse
from imagelabs_sdk.contrib.django.checks import check_settings
from imagelabs_sdk.contrib.django.clients import clients
from imagelabs_sdk.contrib.django.lifecycle import advance, claim, record_result, resubmit
from imagelabs_sdk.contrib.django.models import ImageJob, JobState
from imagelabs_sdk.contrib.django.poll import PollResult, final_columns
from imagelabs_sdk.contrib.django.signals import job_failed, jobs_outstanding
from imagelabs_sdk.contrib.django.sweep import Sweeper
from imagelabs_sdk.testing import FakeService
from tests.django.fixtures import (
    ALIASES,
    PROMPT,
    all_due,
    at_once,
    counts,
    due,
    scripted,
    shared_databases,
)

db = pytest.mark.django_db(transaction=True)
shared = pytest.mark.django_db(transaction=True, databases=["default", *ALIASES])


@pytest.fixture
def service(service: FakeService, media: Path, settings: Any) -> FakeService:
    configure(settings)
    return service


def configure(settings: Any, **entry: Any) -> None:
    settings.IMAGELABS = {"default": {**scripted(), "SUBMIT": "worker", **entry}}


def start(count: int = 1, using: str = "default") -> list[ImageJob]:
    manager = ImageJob.objects.db_manager(using)
    return [manager.start(PROMPT) for _ in range(count)]


def states(using: str = "default") -> list[str]:
    return sorted(ImageJob.objects.using(using).values_list("state", flat=True))


@db
def test_a_page_sends_no_request_that_is_a_drivers_to_send(
    service: FakeService, settings: Any, client: Client
) -> None:
    """It sends it where the site has no driver any more."""
    owner = User.objects.create_user("owner")
    client.force_login(owner)
    job = ImageJob.objects.start(PROMPT, owner=owner)
    assert b"Waiting to be sent" in client.get(job.get_absolute_url()).content
    assert service.count("submit") == 0
    configure(settings, SUBMIT="request")
    client.get(due(job).get_absolute_url())
    assert (due(job).state, service.count("submit")) == (JobState.RUNNING, 1)


@db
def test_a_request_that_a_driver_is_to_send_holds_no_web_thread(service: FakeService) -> None:
    """A slow service is the driver's business; the driver hears of it."""
    heard: list[str] = []

    def hear(*, alias: str, **_: object) -> None:
        heard.append(alias)

    jobs_outstanding.connect(hear)
    (job,) = start()
    jobs_outstanding.disconnect(hear)
    assert (job.state, job.is_due, heard) == (JobState.QUEUED, True, ["default"])
    assert counts(service) == (0, 0, 0)
    with Sweeper() as sweeper:
        sweeper.sweep(due_by=timezone.now())
    job.refresh_from_db()
    assert (job.state, job.task_id) == (JobState.RUNNING, "task-1")
    all_due()
    assert advance(due(job))
    assert states() == ["done"]
    assert counts(service) == (1, 1, 1)


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_four_drivers_submit_each_job_once(database: str, service: FakeService) -> None:
    """They know nothing of each other."""
    service.never_finishes()
    start(20, database)

    def sweep(_: int) -> int:
        with Sweeper(threads=4, using=database) as sweeper:
            return sweeper.sweep(stop=lambda: service.count("submit") >= 20)

    at_once(4, sweep)
    assert service.count("submit") == 20
    tasks = ImageJob.objects.using(database).values_list("task_id", flat=True)
    assert len(set(tasks)) == 20


@db
def test_a_driver_killed_between_claim_and_answer_leaves_an_unknown_job(
    service: FakeService,
) -> None:
    """The request may have been sent; it is not sent again."""
    (job,) = start()
    assert claim(job) is not None
    assert job.state == JobState.SUBMITTING
    job = due(job)  # the lease has ended
    assert advance(job)
    assert (job.state, job.error_code) == (JobState.UNKNOWN, "SubmissionUnknownError")
    assert counts(service) == (0, 0, 0)


@db
def test_what_a_busy_service_refuses_stays_queued_until_it_takes_it(service: FakeService) -> None:
    """A site's rush hour is no reason to fail anybody's job."""
    jobs = start(10)
    clock = service.clock
    with Sweeper(threads=4, clock=clock.now) as sweeper:
        with service.outage(HttpResponse(429, {"retry-after": "60"})):
            sweeper.sweep()
            refused = service.count("submit")
            assert refused <= 4  # those under way at the first refusal
            assert states() == ["queued"] * 10
            all_due()
            clock.advance(59)
            assert sweeper.sweep() == 0
            clock.advance(1)
            assert sweeper.sweep() == 1  # a probe
        clock.advance(60)
        all_due()
        sweeper.sweep(stop=lambda: service.count("submit") >= refused + 11)
    assert "queued" not in states()
    assert service.count("submit") == refused + 1 + len(jobs)


@db
def test_a_refusal_does_not_hold_up_polls(service: FakeService) -> None:
    """The jobs that the service has accepted go on."""
    service.job().done()
    service.rate_limited(60)
    (running_job,) = start()
    assert advance(running_job)
    start(2)
    clock = service.clock
    with Sweeper(threads=1, clock=clock.now) as sweeper:
        sweeper.sweep(due_by=timezone.now())
        all_due()
        sweeper.sweep(due_by=timezone.now())
    assert states() == ["done", "queued", "queued"]


@db
def test_a_service_that_cannot_be_reached_gets_the_request_later(service: FakeService) -> None:
    """The request surely never left."""
    service.unreachable(times=1)
    (job,) = start()
    assert advance(job)
    assert (job.state, job.failures, job.error_code) == ("queued", 1, "APIConnectionError")
    assert not job.is_due
    job = due(job)
    assert advance(job)
    assert (job.state, job.failures, job.error) == ("running", 0, "")


@db
def test_a_submit_that_was_stopped_before_it_left_is_queued_again(service: FakeService) -> None:
    """Nothing was sent; the next driver sends it."""
    (job,) = start()
    assert advance(job, timeout=clients["default"].deadline(stop=lambda: True))
    assert (job.state, job.error_code) == ("queued", "JobStoppedError")
    assert counts(service) == (0, 0, 0)


@db
@pytest.mark.parametrize(("code", "state"), [(422, "failed"), (500, "unknown")])
def test_what_is_refused_for_good_or_unclear_is_not_queued_again(
    code: int, state: str, service: FakeService
) -> None:
    """The one is hopeless; the other may have been bought."""
    service.refuses(status=code)
    (job,) = start()
    assert advance(job)
    assert (job.state, job.is_outstanding) == (state, False)


@db
def test_a_job_is_not_queued_for_ever(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it any more."""
    service.rate_limited()
    monkeypatch.setattr(ImageJob, "give_up_after", timedelta(0))
    heard: list[str] = []

    def hear(*, job: ImageJob, **_: object) -> None:
        heard.append(job.error_code)

    job_failed.connect(hear)
    (job,) = start()
    assert advance(job)
    job_failed.disconnect(hear)
    assert (job.state, heard) == ("failed", ["RateLimitError"])


@db
def test_no_more_jobs_are_at_the_service_than_may_be(service: FakeService, settings: Any) -> None:
    """A free account has a limit; the others wait in the table."""
    configure(settings, MAX_IN_FLIGHT=2)
    service.takes(60)
    start(5)
    with Sweeper(threads=4) as sweeper:
        sweeper.sweep(due_by=timezone.now())
        assert states() == ["queued"] * 3 + ["running"] * 2
        for _ in range(5):
            service.clock.advance(60)
            all_due()
            sweeper.sweep(due_by=timezone.now())
    assert states() == ["done"] * 5
    assert service.count("submit") == 5


@shared
@pytest.mark.parametrize("database", shared_databases)
def test_drivers_that_claim_at_once_do_not_exceed_the_limit(
    database: str, service: FakeService, settings: Any
) -> None:
    """Each counts before it claims; between the two nobody else may."""
    configure(settings, MAX_IN_FLIGHT=3)
    service.never_finishes()
    for more in (3, 2, 1):
        jobs = start(8, database)
        assert sum(at_once(8, lambda number: advance(jobs[number]))) == more  # noqa: B023
        ImageJob.objects.using(database).filter(state="queued").delete()
        for running in ImageJob.objects.using(database).filter(state="running")[: more - 1]:
            assert record_result(running, PollResult(final_columns(JobState.FAILED)))
    assert service.count("submit") == 6


@db
def test_a_job_of_an_alias_that_has_left_the_settings_stays_queued(
    service: FakeService, settings: Any
) -> None:
    """A mistake in a deployment must not end it."""
    (job,) = start()
    settings.IMAGELABS = {"another": scripted()}
    assert not advance(job)
    assert job.state == JobState.QUEUED


@db
def test_a_queue_that_is_full_is_not_in_the_way_of_polls(
    service: FakeService, settings: Any
) -> None:
    """However long it is, and however old."""
    configure(settings, MAX_IN_FLIGHT=1)
    (job,) = start()
    assert advance(job)
    start(250)
    ImageJob.objects.filter(state="queued").update(
        next_poll_at=timezone.now() - timedelta(minutes=5)
    )
    ImageJob.objects.filter(pk=job.pk).update(next_poll_at=timezone.now())
    with Sweeper(threads=1) as sweeper:
        sweeper.sweep(stop=lambda: service.count("image") > 0)
    job.refresh_from_db()
    assert job.state == JobState.DONE


@db
def test_what_was_never_sent_is_queued_again_by_hand(service: FakeService) -> None:
    """It cannot buy twice; what may have been accepted is left alone."""
    service.job().refuses(times=1)
    service.job().refuses(status=500)
    service.job().refuses(status=404, at="progress")
    refused, unknown, forgotten = start(3)
    for job in (refused, unknown, forgotten, due(forgotten)):
        advance(due(job))
    assert resubmit(ImageJob.objects.all()) == 1
    refused.refresh_from_db()
    assert (refused.state, refused.is_due) == ("queued", True)
    assert advance(refused)
    assert refused.state == "running"


@db
def test_a_wait_for_a_queued_job_leaves_the_submit_to_the_driver(service: FakeService) -> None:
    """The web request must not send it."""
    job = ImageJob.objects.generate_or_defer(PROMPT, wait=0.6)
    assert job.state == JobState.QUEUED
    assert counts(service) == (0, 0, 0)


@pytest.mark.parametrize(
    "entry",
    [
        {"SUBMIT": "later"},
        {"MAX_IN_FLIGHT": 2},
        {"SUBMIT": "worker", "MAX_IN_FLIGHT": 0},
        {"SUBMIT": "worker", "MAX_IN_FLIGHT": True},
        {"SUBMIT": "worker", "BACKEND": "imagelabs_sdk.embedded.embedded_transport"},
    ],
)
def test_a_setting_that_cannot_work_is_an_error(entry: dict[str, Any], settings: Any) -> None:
    """Named by the check, with what to write instead."""
    settings.IMAGELABS = {"default": entry}
    (message,) = check_settings()
    assert message.id == "imagelabs.E003"
    assert message.hint
