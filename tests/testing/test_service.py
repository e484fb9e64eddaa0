"""Jobs with scripts of their own, what is recorded, and what assertions say."""

import json
import threading

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    Deadline,
    FixedInterval,
    HttpRequest,
    HttpResponse,
    ImageRequest,
    JobFailedError,
    RateLimitError,
    State,
    SubmissionUnknownError,
)
from imagelabs_sdk.testing import FakeService, SentRequest
from imagelabs_sdk.testing.script import png


def ask(service: FakeService, path: str, body: bytes = b"") -> HttpResponse:
    """Send a request that the SDK would not send."""
    request = HttpRequest(method="POST", url=service.url + path, body=body)
    return service.transport().send(request, deadline=Deadline())


# Several jobs ---------------------------------------------------------------------------


def test_jobs_play_their_scripts_in_order() -> None:
    """The first call fails, the second one works: how a retry button is tested."""
    service = FakeService()
    service.job().fails("NSFW")
    service.job().progress(0.5).done()
    client = service.client()
    with pytest.raises(JobFailedError):
        client.generate("a cat")
    assert client.generate("a cat").timings.polls == 2
    assert client.generate("a cat").timings.polls == 1


def test_a_job_may_have_its_script_by_its_prompt() -> None:
    """Where jobs run at once, their order is nobody's."""
    service = FakeService().progress(0.5).done()
    service.job("a dog").fails("no dogs")
    outcomes = list(service.client().generate_many(["a cat", "a dog", "a bird"]))
    assert {outcome.index: outcome.error is None for outcome in outcomes} == {
        0: True,
        1: False,
        2: True,
    }


def test_a_job_that_is_sent_again_goes_on_with_its_script() -> None:
    """A refusal belongs to the job that was refused, also when others come between."""
    service = FakeService()
    service.job("a cat").rate_limited(retry_after=5).done()
    job = service.client().submit("a cat")
    assert job.id == "task-1"
    assert service.clock.now() == 1005
    service.assert_submitted_once(prompt="a cat")
    assert service.submits[0].times_sent == 2


def test_a_job_that_could_not_be_sent_is_still_the_same_one() -> None:
    """Nobody was there to accept it."""
    service = FakeService()
    service.job().unreachable().done()
    service.client().submit("a cat")
    service.assert_submitted_once(prompt="a cat")
    assert [(one.at, one.status) for one in service.sent] == [("submit", None), ("submit", 200)]


def test_a_job_that_was_perhaps_accepted_is_another_one_when_it_is_sent_again() -> None:
    """Somebody who sends it again buys it twice, and the assertion says so."""
    service = FakeService()
    service.job().drops_connection()
    client = service.client()
    with pytest.raises(SubmissionUnknownError):
        client.submit("a cat", seed=1, subseed=1)
    client.submit("a cat", seed=1, subseed=1)
    with pytest.raises(AssertionError, match="exactly one submit with prompt='a cat', but 2 came"):
        service.assert_submitted_once(prompt="a cat")


def test_an_answer_may_give_an_id_of_its_own() -> None:
    """Ids of the real service have forms that tests may care about."""
    service = FakeService()
    service.job().answers(HttpResponse(200, {}, b'{"task_id": "b7/42 {x}"}'))
    image = service.client().generate("a cat")
    assert image.task_id == "b7/42 {x}"
    assert image.read()


def test_an_id_may_be_made_of_what_was_asked_for() -> None:
    """It then tells which job a message is about."""
    service = FakeService(make_id=lambda request: f"job of {request.prompt}")
    assert service.client().submit("a cat").id == "job of a cat"


def test_a_job_may_have_been_accepted_before() -> None:
    """By another process, another day."""
    service = FakeService()
    service.known_job("task-77").progress(0.9).done()
    image = service.client().get_job("task-77").result()
    assert image.read()
    assert image.timings.polls == 2
    service.known_job("task-78", prompt="a dog").takes(60)
    assert service.client().get_job("task-78").result().timings.total >= 60
    service.assert_nothing_submitted()


def test_a_service_may_cancel_jobs() -> None:
    """As our own server does: it announces that first, and the job ends without an image."""
    service = FakeService(features="cancel").never_finishes()
    service.job("a dog").never_finishes().refuses(status=409, at="cancel")
    cat, dog = (service.client().submit(prompt) for prompt in ("a cat", "a dog"))
    assert cat.can_cancel
    assert [cat.cancel(), dog.cancel()] == [True, False]
    assert service.client().get_job(cat.id).refresh().state is State.FAILED
    assert not dog.refresh().state.ended
    assert service.count("cancel", cat.id) == 1


def test_a_submit_with_a_key_is_the_same_wish_again() -> None:
    """Where keys are announced a lost answer buys nothing twice."""
    service = FakeService(features="idempotency-key")
    client = service.client()
    client.submit("a cat")
    service.job().drops_connection(times=1)
    client.submit("a dog")
    service.job().drops_connection()
    with pytest.raises(SubmissionUnknownError):
        client.submit("a bird", seed=1)
    client.submit("a bird", seed=1)  # another call has another key
    assert [submit.times_sent for submit in service.submits] == [1, 2, 3, 1]
    assert [submit.task_id for submit in service.submits] == ["task-1", "task-2", None, "task-3"]


def test_a_new_service_has_announced_nothing() -> None:
    """Tests share an address, and none is to know what another one did."""
    FakeService(features="cancel").client().submit("a cat")
    assert not FakeService().client().get_job("task-1").can_cancel


def test_a_service_that_cannot_cancel_says_nothing_of_it() -> None:
    """The public one has no such path."""
    service = FakeService()
    job = service.client().submit("a cat")
    assert not job.can_cancel
    assert ask(service, "/cancel", b'{"task_id": "task-1"}').status == 404


def test_a_job_of_before_without_a_script_plays_the_services() -> None:
    """Many rows of another day share one fate."""
    service = FakeService().fails("NSFW")
    service.known_job("task-77")
    service.known_job("task-78", ImageRequest("a cat", width=8, height=8)).done()
    assert service.client().get_job("task-78").result().read() == png(8, 8)
    with pytest.raises(JobFailedError):
        service.client().get_job("task-77").result()


# The whole service ------------------------------------------------------------------------


def test_an_outage_lasts_as_long_as_its_block() -> None:
    """Every request is dropped, and recorded; no script goes on meanwhile."""
    service = FakeService().progress(0.5).done()
    client = service.client(max_retries=0)
    job = client.submit("a cat")
    with service.outage():
        assert isinstance(job.poll().error, APIConnectionError)
        with pytest.raises(SubmissionUnknownError):
            client.submit("a dog")
    progress = job.poll().progress
    assert progress is not None
    assert progress.fraction == 0.5
    assert [one.status for one in service.sent] == [200, None, None, 200]
    assert [submit.task_id for submit in service.submits] == ["task-1", None]


def test_an_outage_may_have_an_answer() -> None:
    """A page of maintenance, or what the site's own transport raises; one inside of another."""
    service = FakeService()
    service.known_job("task-1")
    job = service.client().get_job("task-1")
    with service.outage(HttpResponse(503)):
        assert isinstance(job.poll().error, APIStatusError)
        with service.outage(APIConnectionError("no route", delivered="no")):
            assert isinstance(job.poll().error, APIConnectionError)
        assert isinstance(job.poll().error, APIStatusError)
    assert job.poll().error is None


def test_somebody_may_come_between_a_request_and_its_answer() -> None:
    """With all that is recorded of it; others are answered meanwhile."""
    service, seen = FakeService(), list[tuple[str, str | None, int | None]]()
    client = service.client()

    def meanwhile(sent: SentRequest) -> None:
        seen.append((sent.at, sent.task_id, sent.status))
        if sent.task_id == "task-1":
            thread = threading.Thread(target=client.submit, args=("a dog",))
            thread.start()
            thread.join(20)
            assert not thread.is_alive()

    service.on_request = meanwhile
    assert client.submit("a cat").id == "task-1"
    assert seen == [("submit", "task-1", 200), ("submit", "task-2", 200)]


# What is recorded -------------------------------------------------------------------------


def test_every_request_is_recorded() -> None:
    """With its time, and what it was answered."""
    service = FakeService().drops_connection(at="progress").progress(0.5).done()
    image = service.client(poll_interval=2, cookies={"session": "crumb"}).generate("a cat")
    image.read()
    seen = [(one.at, one.status, one.task_id, one.time - 1000) for one in service.sent]
    assert seen == [
        ("submit", 200, "task-1", 0),
        ("progress", None, "task-1", 2),
        ("progress", 200, "task-1", 4),
        ("progress", 200, "task-1", 6),
        ("image", 200, "task-1", 6),
    ]
    assert service.sent[0].fields["prompt"] == "a cat"
    assert service.sent[0].request.cookies == {"session": "crumb"}
    assert service.sent[-1].fields == {}
    assert service.count("progress") == 3
    assert service.count("progress", "task-2") == 0


def test_who_wants_to_know_hears_of_each_job_that_is_accepted() -> None:
    """A refused one was not bought."""
    service, accepted = FakeService(), list[str]()
    service.on_accepted = lambda request: accepted.append(request.prompt)
    service.job("a dog").refuses()
    client = service.client()
    client.submit("a cat")
    with pytest.raises(APIStatusError):
        client.submit("a dog")
    assert accepted == ["a cat"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/txt2img", b"{", 422),
        ("/txt2img", b'{"prompt": ""}', 422),
        ("/progress", b"{}", 422),
        ("/progress", b'{"task_id": "task-9"}', 404),
        ("/images/task-9-1.png", b"", 404),
        ("/previews/task-9", b"", 404),
        ("/elsewhere", b"", 404),
    ],
)
def test_an_odd_request_is_refused(path: str, body: bytes, status: int) -> None:
    """Other clients than ours may be under test."""
    service = FakeService()
    response = ask(service, path, body)
    assert response.status == status
    assert json.loads(response.read(1000))["error"]
    assert [one.task_id for one in service.sent] == [None]
    service.assert_nothing_submitted()


def test_many_threads_share_a_service() -> None:
    """Each job has an id of its own, and nothing is lost."""
    service = FakeService()
    client = service.client()
    threads = [threading.Thread(target=client.generate, args=(f"cat {n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert {submit.task_id for submit in service.submits} == {f"task-{n}" for n in range(1, 17)}


def test_a_strategy_of_ones_own_is_used() -> None:
    """Its clock, too."""
    service, slept = FakeService(), list[float]()
    polling = FixedInterval(3, clock=lambda: 0.0, sleep=slept.append)
    service.client(polling=polling).generate("a cat")
    assert slept == [3]


# What assertions say ----------------------------------------------------------------------


def test_what_was_submitted_is_asserted_by_its_fields() -> None:
    """Those that are named, and no others; extra ones as well."""
    service = FakeService()
    client = service.client()
    service.assert_nothing_submitted()
    client.submit("a cat", width=512, height=512, extra_body={"style": "ink"})
    service.assert_submitted_once()
    service.assert_submitted_once(prompt="a cat", width=512, style="ink")
    client.submit("a dog")
    service.assert_submitted(prompt="a dog")
    service.assert_submitted(style="ink")


def test_an_assertion_that_fails_says_what_was_sent_instead() -> None:
    """Nobody should have to run the test again to find out."""
    service = FakeService()
    with pytest.raises(AssertionError) as caught:
        service.assert_submitted_once(prompt="a cat")
    assert str(caught.value) == (
        "expected exactly one submit with prompt='a cat', but nothing was submitted"
    )
    service.job("a dog").rate_limited()
    client = service.client()
    client.submit("a cat")
    with pytest.raises(RateLimitError):
        client.submit("a dog", width=512, height=512)
    with pytest.raises(AssertionError) as caught:
        service.assert_submitted(width=640, style="ink")
    assert str(caught.value) == (
        "expected a submit with width=640, style='ink', but 2 came:\n"
        "  1. prompt='a cat', width=1152, style was not sent (accepted as task-1)\n"
        "  2. prompt='a dog', width=512, style was not sent (not accepted, sent 3 times)"
    )
    with pytest.raises(AssertionError, match="expected no submit, but 2 came"):
        service.assert_nothing_submitted()
