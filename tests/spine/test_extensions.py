"""Extensions of our own server: sent where they were announced, and nowhere else."""

from pathlib import Path
from typing import Any

import attrs
import pytest

import imagelabs_sdk
from imagelabs_sdk import (
    Adaptive,
    FixedInterval,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    ImageRequest,
    Job,
    JobFailedError,
    Ledger,
    NotSupportedError,
    PollingStrategy,
    SubmissionUnknownError,
)
from imagelabs_sdk.extensions import Features, known_features, remember_features
from imagelabs_sdk.testing import FakeService
from tests.our_server import our_server

SMALL = ImageRequest("a lighthouse", width=64, height=48, seed=1, subseed=2)
ALL = "long-poll=25, idempotency-key, cancel, priority, info"
BUSY = HttpResponse(503, {"retry-after": "0"})


@pytest.fixture
def service() -> FakeService:
    """One that announces all that there is."""
    return FakeService(features=ALL)


def known(service: FakeService, **settings: Any) -> ImageLabs:
    """A client that has heard what the service announces, by its first job."""
    client = service.client(**settings)
    client.submit(SMALL)
    return client


def sent(service: FakeService, header: str) -> list[str | None]:
    """Return this header of each request, in order; `None`: it had none."""
    return [one.request.headers.get(header) for one in service.sent]


# What is announced --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Features()),
        ("long-poll=25", Features(long_poll=25)),
        ("LONG-POLL=9999999, nonsense, ,", Features()),
        ("long-poll=5000", Features(long_poll=300)),
        ("long-poll=x,cancel", Features(cancel=True)),
        (ALL, Features(25, True, True, True)),
    ],
)
def test_an_announcement_is_read_leniently(text: str, expected: Features) -> None:
    """It comes from a peer: what makes no sense is ignored."""
    assert Features.parse(text) == expected


def test_what_is_remembered_is_bounded() -> None:
    """A program may speak to many services."""
    for n in range(300):
        remember_features(f"http://bound-{n}.test", {"imagelabs-features": "cancel"})
    assert not known_features("http://bound-0.test").cancel
    assert known_features("http://bound-299.test/api").cancel


def test_a_service_that_announces_nothing_is_sent_nothing() -> None:
    """The public service gets the headers of its known clients and no other."""
    service = FakeService()
    client = service.client()
    for _ in range(2):
        client.submit(SMALL).refresh()
    list(client.generate_many([SMALL], max_in_flight=1))
    assert len(service.sent) == 6
    for name in ("idempotency-key", "priority", "prefer", "if-none-match"):
        assert set(sent(service, name)) == {None}


def test_an_announcement_that_is_gone_is_forgotten(service: FakeService) -> None:
    """Another server may stand at the same address now."""
    client = known(service)
    service.features = ""
    client.submit(SMALL)
    client.submit(SMALL)
    assert [key is None for key in sent(service, "idempotency-key")] == [True, False, True]


# Idempotent submits -------------------------------------------------------------------


def test_a_submit_whose_answer_was_lost_is_sent_again_with_its_key(service: FakeService) -> None:
    """One key a call, however often it is sent; another call has another."""
    client = known(service)
    service.job().drops_connection().answers(HttpResponse(502), times=1)
    assert client.submit(SMALL).id == "task-2"
    client.submit(SMALL)
    first, *again, other = sent(service, "idempotency-key")
    assert first is None
    assert len(again) == 3
    assert len({*again, other}) == 2
    assert service.sent[1].request.repeatable


def test_without_retries_a_submit_is_sent_once_also_with_a_key(service: FakeService) -> None:
    """`max_retries=0` is the caller's word, also where sending again could not buy twice."""
    client = known(service, max_retries=0)
    service.job().drops_connection()
    with pytest.raises(SubmissionUnknownError):
        client.submit(SMALL)
    assert len(service.sent) == 2


def test_a_submit_that_stays_unclear_is_told_as_such(service: FakeService) -> None:
    """Also when the last attempt surely never arrived: the first one may have."""
    client = known(service)
    service.job().drops_connection().unreachable()
    with pytest.raises(SubmissionUnknownError):
        client.submit(SMALL)
    service.job().drops_connection().refuses(status=400)
    with pytest.raises(imagelabs_sdk.APIStatusError) as caught:
        client.submit(SMALL)
    assert caught.value.delivered == "yes"


@pytest.mark.parametrize("code", [401, 403, 404, 429, 503])
def test_a_refusal_in_front_of_the_service_does_not_settle_a_lost_answer(
    service: FakeService, code: int
) -> None:
    """The first attempt may be rendering behind it: nobody may be told to buy again."""
    client = known(service)
    service.job().drops_connection().answers(HttpResponse(code, {"retry-after": "0"}))
    with pytest.raises(SubmissionUnknownError) as caught:
        client.submit(SMALL)
    assert caught.value.delivered == "maybe"
    assert str(code) in str(caught.value)
    assert "nothing was bought" not in str(caught.value)


def test_a_batch_never_buys_again_what_a_busy_service_may_have_accepted(
    service: FakeService,
) -> None:
    """Another call would have another key."""
    client = known(service)
    service.job().drops_connection().answers(BUSY, times=3)
    [outcome] = client.generate_many([SMALL], max_in_flight=1)
    assert isinstance(outcome.error, SubmissionUnknownError)
    assert len({key for key in sent(service, "idempotency-key") if key}) == 1


def test_a_batch_sends_a_refused_item_again_with_its_key(service: FakeService) -> None:
    """Whoever refused it may stand in front of a service that has accepted it."""
    client = known(service)
    service.job().answers(BUSY, times=1)
    list(client.generate_many([SMALL, SMALL], max_in_flight=1))
    first, again, other = [key for key in sent(service, "idempotency-key") if key]
    assert first == again != other


def test_a_stop_after_a_lost_answer_does_not_say_that_nothing_was_submitted(
    service: FakeService,
) -> None:
    """Nor does the batch take the item for one that it may buy in its next run."""
    client = known(service)
    service.job().drops_connection()
    with pytest.raises(SubmissionUnknownError, match="may or may not have been accepted"):
        client.submit(SMALL, stop=lambda: len(service.sent) >= 2)
    assert len(service.sent) == 2


def test_without_an_announcement_a_lost_answer_stays_unknown(service: FakeService) -> None:
    """Sending again could buy twice."""
    service.drops_connection()
    with pytest.raises(SubmissionUnknownError):
        service.client().submit(SMALL)
    assert len(service.sent) == 1


def test_a_batch_is_less_urgent_than_a_page(service: FakeService) -> None:
    """It must not starve one on the same GPU."""
    list(known(service).generate_many([SMALL, SMALL], max_in_flight=1))
    submits = [one.request for one in service.sent if one.at == "submit"]
    assert [each.headers.get("priority") for each in submits] == [None, "u=5", "u=5"]


# Cancelling ---------------------------------------------------------------------------


def test_a_job_is_cancelled_where_that_was_announced(service: FakeService) -> None:
    """And it has ended then, for who waits."""
    job = service.never_finishes().client().submit(SMALL)
    assert job.cancel() is True
    assert service.count("cancel") == 1
    with pytest.raises(JobFailedError, match="Cancelled"):
        job.result()


def test_a_ledger_knows_that_a_job_was_cancelled(service: FakeService, tmp_path: Path) -> None:
    """It would be listed as unfinished for ever."""
    ledger = Ledger(tmp_path / "jobs.jsonl")
    job = service.never_finishes().client(ledger=ledger).submit(SMALL)
    assert job.cancel() is True
    assert [(entry.state, entry.message) for entry in ledger.entries()] == [("failed", "Cancelled")]


def test_a_job_that_has_ended_cannot_be_cancelled(service: FakeService) -> None:
    """409 is an answer; other errors are errors."""
    service.refuses(status=409, at="cancel", times=1).refuses(status=500, at="cancel")
    job = service.client().submit(SMALL)
    assert job.cancel() is False
    with pytest.raises(imagelabs_sdk.APIStatusError):
        job.cancel()


def test_elsewhere_it_says_so_before_anything_is_sent() -> None:
    """The public service knows no such request."""
    service = FakeService()
    job = service.client().submit(SMALL)
    with pytest.raises(NotSupportedError) as caught:
        job.cancel()
    assert caught.value.job == job
    assert caught.value.code == "not_supported"
    assert len(service.sent) == 1


# Long polls ---------------------------------------------------------------------------


def test_a_wait_needs_two_or_three_polls() -> None:
    """And ends with the job instead of at the next poll of a strategy."""
    seen: list[HttpRequest] = []
    with our_server(0.5, seen.append) as server, ImageLabs(server.url) as client:
        image = client.generate(SMALL, timeout=30)
    assert image.timings.polls <= 3
    polls = [each for each in seen if each.url.endswith("/progress")]
    assert all(each.headers["prefer"] == "wait=25" for each in polls)
    assert ["if-none-match" in each.headers for each in polls] == [n > 0 for n in range(len(polls))]


def test_progress_comes_as_it_is_made_to_who_asks_for_it() -> None:
    """`on_progress` and `events` see the image grow."""
    fractions: list[float | None] = []
    with our_server(1.5) as server, ImageLabs(server.url) as client:
        client.generate(SMALL, timeout=30, on_progress=lambda p: fractions.append(p.fraction))
        seen = list(client.submit(SMALL).events(timeout=30))
    assert len(fractions) > 3
    assert fractions == sorted(fractions, key=lambda each: each or 0.0)
    assert any(each.preview_url for each in seen)


@pytest.mark.parametrize(
    "settings",
    [
        {"poll_interval": 0.01},
        {"polling": FixedInterval(0.01)},
        {"polling": Adaptive(minimum=0.01, maximum=0.01)},
        {"request_timeout": 2},
    ],
)
def test_who_chose_how_to_poll_gets_that(settings: dict[str, Any]) -> None:
    """Nor is a poll parked for which a request has no time; nor is `refresh` or `poll`."""
    seen: list[HttpRequest] = []
    with our_server(0.05, seen.append) as server, ImageLabs(server.url, **settings) as client:
        client.generate(SMALL, timeout=30)
        job = client.submit(SMALL)
        job.poll()
        job.refresh()
    assert not [each for each in seen if "prefer" in each.headers]


@attrs.frozen
class Parking(FixedInterval):
    """A strategy of somebody else."""

    long_polls: bool = True


@pytest.mark.parametrize("polling", [Adaptive(long_polls=True), Parking(0.01)])
def test_a_strategy_says_itself_that_polls_may_be_parked(polling: PollingStrategy) -> None:
    """It knows what its pauses are for; most of them are not needed then."""
    seen: list[HttpRequest] = []
    with our_server(0.05, seen.append) as server, ImageLabs(server.url, polling=polling) as client:
        client.generate(SMALL, timeout=30)
    polls = [each for each in seen if each.url.endswith("/progress")]
    assert all(each.headers["prefer"] == "wait=25" for each in polls)


def test_a_wait_ends_at_its_deadline_although_its_poll_is_parked() -> None:
    """The time left bounds what is asked for."""
    seen: list[HttpRequest] = []
    with our_server(60.0, seen.append) as server, ImageLabs(server.url) as client:
        job = client.submit(SMALL)
        with pytest.raises(imagelabs_sdk.JobTimeoutError):
            job.wait(timeout=1.5)
    waits = [each.headers["prefer"] for each in seen if "prefer" in each.headers]
    assert set(waits) <= {"wait=1"}


def parked(service: FakeService) -> Job:
    """A job whose polls may be parked."""
    clock = service.clock
    polling = Adaptive(long_polls=True, clock=clock.now, sleep=clock.sleep)
    return service.client(polling=polling).submit(SMALL)


def test_after_two_parked_polls_that_failed_it_polls_plainly(service: FakeService) -> None:
    """Something on the way cuts them; the job is none the worse for it."""
    job = parked(service.drops_connection(at="progress", times=2).progress(0.1, 0.2).done())
    assert len(list(job.events())) == 3
    _, *prefers = sent(service, "prefer")
    assert [each is None for each in prefers] == [False, False, True, True, True]


def test_a_service_that_does_not_park_after_all_is_polled_by_schedule(
    service: FakeService,
) -> None:
    """An answer that comes at once and says nothing new must not start a storm."""
    events = parked(service.never_finishes()).events()
    for _ in range(4):
        next(events)
    _, *prefers = sent(service, "prefer")
    assert [each is not None for each in prefers] == [True, False, True, False]
