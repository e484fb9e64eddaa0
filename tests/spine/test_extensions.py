"""Extensions of our own server: sent where they were announced, and nowhere else."""

import json
from typing import Any

import attrs
import pytest

import imagelabs_sdk
from imagelabs_sdk import (
    Adaptive,
    APIConnectionError,
    FixedInterval,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    ImageRequest,
    JobFailedError,
    NotSupportedError,
    PollingStrategy,
    SubmissionUnknownError,
)
from imagelabs_sdk.extensions import Features, known_features, remember_features
from tests.our_server import our_server

SMALL = ImageRequest("a lighthouse", width=64, height=48, seed=1, subseed=2)
ALL = "long-poll=25, idempotency-key, cancel, priority, info"


@attrs.define
class Service:
    """Answers every submit with a task and every poll with `status`, and takes notes.

    Attributes:
        announces: The header of each answer; empty: none.
        faults: Raised or answered instead, in order; None: no fault.
    """

    url: str
    announces: str = ALL
    status: str = "Processing"
    faults: list[Any] = attrs.Factory(list)
    seen: list[HttpRequest] = attrs.Factory(list)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.seen.append(request)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, int):
            return HttpResponse(fault, {"retry-after": "0"}, b"{}")
        body = {"task_id": "t1"} if request.url.endswith("/txt2img") else {"status": self.status}
        headers = {"imagelabs-features": self.announces} if self.announces else {}
        return HttpResponse(200, {**headers, "etag": '"a-1"'}, json.dumps(body).encode())

    def client(self, **settings: Any) -> ImageLabs:
        return ImageLabs(self.url, transport=HandlerTransport(self), **settings)

    def sent(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.seen]


@pytest.fixture
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service at an origin of its own: what is announced is remembered for the process."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Service(f"http://{abs(hash(request.node.name))}.test")


def lost() -> APIConnectionError:
    return APIConnectionError("the answer was lost", delivered="maybe")


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


def test_a_service_that_announces_nothing_is_sent_nothing(service: Service) -> None:
    """The public service gets the headers of its known clients and no other."""
    service.announces = ""
    client = service.client()
    for _ in range(2):
        client.submit(SMALL).refresh()
    list(client.generate_many([], max_in_flight=1))
    for name in ("idempotency-key", "priority", "prefer", "if-none-match"):
        assert set(service.sent(name)) == {None}


def test_an_announcement_that_is_gone_is_forgotten(service: Service) -> None:
    """Another server may stand at the same address now."""
    client = service.client()
    client.submit(SMALL)
    service.announces = ""
    client.submit(SMALL)
    client.submit(SMALL)
    assert [key is None for key in service.sent("idempotency-key")] == [True, False, True]


# Idempotent submits -------------------------------------------------------------------


def test_a_submit_whose_answer_was_lost_is_sent_again_with_its_key(service: Service) -> None:
    """One key a call, however often it is sent; another call has another."""
    client = service.client(max_retries=0)
    client.submit(SMALL)
    service.faults = [lost(), 502]
    assert client.submit(SMALL).id == "t1"
    client.submit(SMALL)
    first, *again, other = service.sent("idempotency-key")
    assert first is None
    assert len(again) == 3
    assert len({*again, other}) == 2
    assert service.seen[1].repeatable


def test_a_submit_that_stays_unclear_is_told_as_such(service: Service) -> None:
    """Also when the last attempt surely never arrived: the first one may have."""
    client = service.client(max_retries=0)
    client.submit(SMALL)
    gone = [APIConnectionError("refused", delivered="no") for _ in range(3)]
    service.faults = [lost(), *gone]
    with pytest.raises(SubmissionUnknownError):
        client.submit(SMALL)
    service.faults = [lost(), 400]
    with pytest.raises(imagelabs_sdk.APIStatusError) as caught:
        client.submit(SMALL)
    assert caught.value.delivered == "yes"


@pytest.mark.parametrize("code", [401, 403, 404, 429, 503])
def test_a_refusal_in_front_of_the_service_does_not_settle_a_lost_answer(
    service: Service, code: int
) -> None:
    """The first attempt may be rendering behind it: nobody may be told to buy again."""
    client = service.client(max_retries=0)
    client.submit(SMALL)
    service.faults = [lost(), *[code] * 3]
    with pytest.raises(SubmissionUnknownError) as caught:
        client.submit(SMALL)
    assert caught.value.delivered == "maybe"
    assert str(code) in str(caught.value)
    assert "nothing was bought" not in str(caught.value)


def test_a_batch_never_buys_again_what_a_busy_service_may_have_accepted(service: Service) -> None:
    """Another call would have another key."""
    client = service.client(polling=FixedInterval(0.001))
    client.submit(SMALL)
    service.faults = [lost(), 503, 503, 503]
    [outcome] = client.generate_many([SMALL], max_in_flight=1)
    assert isinstance(outcome.error, SubmissionUnknownError)
    assert len({key for key in service.sent("idempotency-key") if key}) == 1


def test_a_batch_sends_a_refused_item_again_with_its_key(service: Service) -> None:
    """Whoever refused it may stand in front of a service that has accepted it."""
    client = service.client(polling=FixedInterval(0.001))
    client.submit(SMALL)
    service.faults = [503]
    service.status = "Error: x"
    list(client.generate_many([SMALL, SMALL], max_in_flight=1))
    first, again, other = [key for key in service.sent("idempotency-key") if key]
    assert first == again != other


def test_a_stop_after_a_lost_answer_does_not_say_that_nothing_was_submitted(
    service: Service,
) -> None:
    """Nor does the batch take the item for one that it may buy in its next run."""
    client = service.client()
    client.submit(SMALL)
    service.faults = [lost()]
    with pytest.raises(SubmissionUnknownError, match="may or may not have been accepted"):
        client.submit(SMALL, stop=lambda: len(service.seen) >= 2)
    assert len(service.seen) == 2


def test_without_an_announcement_a_lost_answer_stays_unknown(service: Service) -> None:
    """Sending again could buy twice."""
    service.faults = [lost()]
    with pytest.raises(SubmissionUnknownError):
        service.client().submit(SMALL)
    assert len(service.seen) == 1


def test_a_batch_is_less_urgent_than_a_page(service: Service) -> None:
    """It must not starve one on the same GPU."""
    client = service.client(polling=FixedInterval(0.001))
    client.submit(SMALL)
    service.status = "Error: x"
    list(client.generate_many([SMALL, SMALL], max_in_flight=1))
    submits = [each for each in service.seen if each.url.endswith("/txt2img")]
    assert [each.headers.get("priority") for each in submits] == [None, "u=5", "u=5"]


# Cancelling ---------------------------------------------------------------------------


def test_a_job_is_cancelled_where_that_was_announced(service: Service) -> None:
    """And it has ended then, for who waits."""
    job = service.client().submit(SMALL)
    service.status = "Cancelled"
    assert job.cancel() is True
    assert service.seen[-1].url.endswith("/cancel")
    with pytest.raises(JobFailedError, match="Cancelled"):
        job.result()


def test_a_job_that_has_ended_cannot_be_cancelled(service: Service) -> None:
    """409 is an answer; other errors are errors."""
    job = service.client().submit(SMALL)
    service.faults = [409, 500]
    assert job.cancel() is False
    with pytest.raises(imagelabs_sdk.APIStatusError):
        job.cancel()


def test_elsewhere_it_says_so_before_anything_is_sent(service: Service) -> None:
    """The public service knows no such request."""
    service.announces = ""
    job = service.client().submit(SMALL)
    with pytest.raises(NotSupportedError) as caught:
        job.cancel()
    assert caught.value.job == job
    assert caught.value.code == "not_supported"
    assert len(service.seen) == 1


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


def test_after_two_parked_polls_that_failed_it_polls_plainly(service: Service) -> None:
    """Something on the way cuts them; the job is none the worse for it."""
    client = service.client()
    job = client.submit(SMALL)
    service.faults = [lost(), lost()]
    for number, _ in enumerate(job.events(timeout=60)):
        if number == 2:
            service.status = "Error: enough"
            break
    prefers = service.sent("prefer")[1:]
    assert [each is None for each in prefers[:5]] == [False, False, True, True, True]


def test_a_service_that_does_not_park_after_all_is_polled_by_schedule(service: Service) -> None:
    """An answer that comes at once and says nothing new must not start a storm."""
    job = service.client().submit(SMALL)
    events = job.events(timeout=60)
    for _ in range(4):
        next(events)
    prefers = [each is not None for each in service.sent("prefer")[1:]]
    assert prefers == [True, False, True, False]
