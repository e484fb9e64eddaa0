"""Each word of a script, as a client meets it."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    ChallengeError,
    DownloadError,
    HttpResponse,
    ImageLabsError,
    InvalidRequestError,
    JobFailedError,
    JobStalledError,
    JobTimeoutError,
    RateLimitError,
    SubmissionUnknownError,
)
from imagelabs_sdk.testing import FakeService, JobScript
from imagelabs_sdk.testing.script import png


def told(service: FakeService) -> list[tuple[str, float | None]]:
    """What polls find, one after the other."""
    events = service.client().submit("a cat").events()
    return [(progress.status, progress.fraction) for progress in events]


def test_without_a_script_a_job_is_done_at_its_first_poll() -> None:
    """The shortest test needs no script."""
    assert told(FakeService()) == [("Done", 1.0)]


def test_the_steps_of_a_job_come_in_their_order() -> None:
    """A script reads like the story of the job."""
    service = FakeService().queued(2).progress(0.1).progress(0.6, status="Upscaling").done()
    assert told(service) == [
        ("Queue position 2", 0.0),
        ("Queue position 1", 0.0),
        ("Processing", 0.1),
        ("Upscaling", 0.6),
        ("Done", 1.0),
    ]


def test_a_failed_job_says_why() -> None:
    """The words of the script are in the error that the SDK raises."""
    with pytest.raises(JobFailedError) as caught:
        FakeService().queued().fails("NSFW").client().generate("a cat")
    assert caught.value.status == "Error: NSFW"


@pytest.mark.parametrize(
    "service",
    [FakeService().never_finishes().done(), FakeService().queued(), FakeService().progress(0.2)],
)
def test_a_job_may_run_for_ever(service: FakeService) -> None:
    """Said so, or because the last step goes on."""
    with pytest.raises(JobTimeoutError):
        service.client(timeout=30).generate("a cat")


def test_a_job_may_take_its_time() -> None:
    """By the service's clock, with progress to match."""
    service = FakeService().takes(600)
    image = service.client(poll_interval=150, timeout=1000).generate("a cat")
    assert (image.timings.total, image.timings.polls) == (600, 4)
    assert told(FakeService().takes(2))[0][1] == pytest.approx(1.0, abs=0.99)


def test_the_image_has_the_size_that_was_asked_for() -> None:
    """Code that makes thumbnails gets something to work on."""
    service = FakeService()
    data = service.client().generate("a cat", width=30, height=20).read()
    assert data == png(30, 20)
    assert struct.unpack(">II", data[16:24]) == (30, 20)
    size = int.from_bytes(data[33:37], "big")
    assert len(zlib.decompress(data[41 : 41 + size])) == 20 * (1 + 4)


def test_an_image_of_ones_own_is_given_back() -> None:
    """As it is, whatever it is."""
    assert FakeService().done(png(1, 1)).client().generate("a cat").read() == png(1, 1)


def test_a_poll_may_name_an_unfinished_image() -> None:
    """Pages draw it while the job runs; a later poll may name another, or none any more."""
    service = FakeService().progress(0.1).progress(0.3, preview=png(1, 1))
    service.progress(0.6, preview=png(2, 1)).progress(0.9).done()
    job, seen, urls = service.client().submit("a cat"), list[bytes | None](), set[str | None]()
    for _ in range(5):
        urls.add(job.refresh().preview_url)
        preview = job.preview()
        seen.append(None if preview is None else preview.read())
    assert seen == [None, png(1, 1), png(2, 1), None, None]
    assert len(urls) == 3
    assert service.count("preview") == 2


def test_a_preview_may_be_gone() -> None:
    """Services delete it when they have the next one."""
    service = FakeService().progress(0.3, preview=png(1, 1)).refuses(status=404, at="preview")
    job = service.client().submit("a cat")
    job.refresh()
    preview = job.preview()
    assert preview is not None
    with pytest.raises(DownloadError):
        preview.read()
    assert job.result().read() == png(1152, 896)


# Failures: where they strike, and for how long ------------------------------------------------


@pytest.mark.parametrize(
    ("say", "kind"),
    [
        (lambda s: s.rate_limited(retry_after=3), RateLimitError),
        (lambda s: s.rate_limited(), RateLimitError),
        (lambda s: s.refuses("no such size"), APIStatusError),
        (lambda s: s.refuses("overloaded", status=500), APIStatusError),
        (lambda s: s.challenge(), ChallengeError),
        (lambda s: s.html(), SubmissionUnknownError),
        (lambda s: s.drops_connection(), SubmissionUnknownError),
        (lambda s: s.hangs(), SubmissionUnknownError),
        (lambda s: s.unreachable(), APIConnectionError),
        (lambda s: s.answers({"error": "limit"}), APIResponseError),
        (lambda s: s.answers(HttpResponse(204)), SubmissionUnknownError),
        (lambda s: s.answers(APIConnectionError("refused", delivered="no")), APIConnectionError),
    ],
)
def test_a_failure_strikes_the_submit_if_nothing_is_said_before(
    say: Callable[[FakeService], FakeService], kind: type[ImageLabsError]
) -> None:
    """Each becomes the error that the real service would have caused."""
    service = FakeService()
    assert say(service) is service
    with pytest.raises(kind):
        service.client().generate("a cat")
    assert service.count("progress") == 0


def test_the_time_that_the_service_asks_for_is_told() -> None:
    """A page can say when to come back."""
    with pytest.raises(RateLimitError) as caught:
        FakeService().rate_limited(retry_after=3).client(max_retries=0).generate("a cat")
    assert caught.value.retry_after == 3
    assert caught.value.delivered == "no"


def test_a_failure_strikes_a_poll_after_words_about_progress() -> None:
    """One bad poll does not end a wait, and does not repeat when something follows."""
    service = FakeService().queued().rate_limited(retry_after=7).progress(0.5).done()
    assert [fraction for _, fraction in told(service)] == [0.0, 0.5, 1.0]
    assert service.count("progress") == 4


def test_a_failure_strikes_the_image_after_it_is_done() -> None:
    """And is over after as many times as are said."""
    service = FakeService().done().html(times=1)
    image = service.client().generate("a cat")
    with pytest.raises(DownloadError):
        image.read()
    assert image.read()


def test_the_place_of_a_failure_can_be_said() -> None:
    """Most scripts are one word long."""
    service = FakeService().drops_connection(at="progress")
    with pytest.raises(JobStalledError):
        service.client().generate("a cat")
    assert service.count("progress") == 10
    assert told(FakeService().drops_connection(at="progress").done()) == [("Done", 1.0)]
    assert told(FakeService().drops_connection(at="progress", times=2)) == [("Done", 1.0)]


def test_a_poll_may_be_answered_in_the_words_of_the_service() -> None:
    """Fields and words that only some services know."""
    service = FakeService().queued().answers({"status": "Upscaling", "progress": 0.9}).done()
    assert told(service)[1] == ("Upscaling", 0.9)


def test_a_link_that_has_expired_is_replaced_by_the_next_poll() -> None:
    """The usual fate of an image that is fetched a day later."""
    service = FakeService().link_expires()
    assert service.client().generate("a cat").read()
    assert (service.count("progress"), service.count("image")) == (2, 2)
    service = FakeService().link_expires(times=2)
    with pytest.raises(DownloadError) as caught:
        service.client().generate("a cat").read()
    assert caught.value.status_code == 403


def test_an_image_may_break_off() -> None:
    """For ever, or as often as is said."""
    with pytest.raises(DownloadError):
        FakeService().half_image().client().generate("a cat").read()
    assert FakeService().half_image(times=2).client().generate("a cat").read()


BAD: list[tuple[Callable[[JobScript], object], str]] = [
    (lambda s: s.queued(0), "polls"),
    (lambda s: s.progress(1.5), "fractions"),
    (lambda s: s.progress(True), "fractions"),
    (lambda s: s.progress(0.5, preview="an image"), "preview"),  # type: ignore[arg-type]
    (lambda s: s.takes(0), "seconds"),
    (lambda s: s.rate_limited(-1), "retry_after"),
    (lambda s: s.refuses(status=200), "status"),
    (lambda s: s.html(times=0), "times"),
    (lambda s: s.link_expires(times=0), "times"),
    (lambda s: s.progress(0.5, preview=True), "preview"),  # type: ignore[arg-type]
    (lambda s: s.done("an image"), "image"),  # type: ignore[arg-type]
    (lambda s: s.hangs(at="download"), "at"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("say", "field"), BAD)
def test_a_word_with_a_bad_value_is_refused(say: Callable[[JobScript], Any], field: str) -> None:
    """A test that says something else than it means would hold nothing."""
    with pytest.raises(InvalidRequestError) as caught:
        say(JobScript())
    assert caught.value.field == field
