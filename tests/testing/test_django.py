"""Rows of jobs that end without anybody waiting."""

from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from django.utils import timezone

from imagelabs_sdk.contrib.django.models import ImageJob, JobState
from imagelabs_sdk.testing import FakeBackend, FakeClock, FakeService
from imagelabs_sdk.testing.django import finish_jobs

PATH = "imagelabs_sdk.testing.FakeBackend"
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("media")]


@pytest.fixture(autouse=True)
def service(settings: Any) -> FakeService:
    settings.IMAGELABS = {"default": {"BACKEND": PATH}}
    return FakeBackend.reset()


def start(*prompts: str) -> list[ImageJob]:
    return [ImageJob.objects.start(prompt, width=8, height=8) for prompt in prompts]


def test_jobs_of_ten_minutes_end_in_milliseconds(service: FakeService, media: Path) -> None:
    """By the dates in their rows ten minutes have passed, and none afterwards."""
    service.takes(600)
    service.job("a dog").takes(60).fails("no dogs")
    began, real = timezone.now(), monotonic()
    start("a cat", "a dog", "a bird")
    polls = finish_jobs()
    assert polls == service.count("progress") < 150
    ends = {job.request["prompt"]: job for job in ImageJob.objects.all()}
    assert {prompt: job.state for prompt, job in ends.items()} == {
        "a cat": JobState.DONE,
        "a dog": JobState.FAILED,
        "a bird": JobState.DONE,
    }
    finished = ends["a cat"].finished_at
    assert finished is not None
    assert timedelta(seconds=600) <= finished - began < timedelta(seconds=720)
    assert len(list(media.rglob("*.png"))) == 2
    assert monotonic() - real < 60
    assert timezone.now() - began < timedelta(seconds=60)


def test_a_service_that_was_down_for_a_while_is_asked_again(service: FakeService) -> None:
    """The sweeper leaves it alone for some time, which passes, too."""
    service.drops_connection(at="progress", times=3).rate_limited(200, at="progress", times=1)
    start("a cat")
    assert finish_jobs() == 5
    assert service.clock.now() >= 1200
    assert ImageJob.objects.get().state == JobState.DONE


def test_jobs_that_do_not_end_fail_the_test(service: FakeService) -> None:
    """Without a limit the test would hang."""
    service.never_finishes()
    start("a cat")
    with pytest.raises(AssertionError, match="still outstanding after 300 s"):
        finish_jobs(within=300)


def test_another_services_clock_may_be_given(settings: Any) -> None:
    """Where a backend has a service of its own."""
    clock = FakeClock()
    own = FakeService(clock=clock).takes(50)
    settings.IMAGELABS = {"default": {"BACKEND": PATH, "OPTIONS": {"service": own}}}
    start("a cat")
    finish_jobs(clock)
    assert clock.elapsed >= 50


def test_without_jobs_nothing_is_done() -> None:
    """No time passes."""
    assert finish_jobs() == 0
    assert FakeBackend.service.clock.now() == 1000
