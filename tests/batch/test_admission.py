"""Admission control: when the next submit may leave. Times are numbers; there is no thread."""

import math

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    ChallengeError,
    ImageLabsError,
    RateLimitError,
    SubmissionUnknownError,
)
from imagelabs_sdk.batch.admission import Admission, Attempts


def limited(retry_after: float | None = None) -> RateLimitError:
    return RateLimitError("429", status_code=429, delivered="no", retry_after=retry_after)


def admission(*, min_interval: float = 0.0, max_retries: int = 2) -> Admission:
    return Admission(min_interval=min_interval, max_retries=max_retries)


def test_the_first_submit_may_leave_at_once() -> None:
    """A batch without limits must not wait for anything."""
    assert admission(min_interval=60).next_submit_at == -math.inf


def test_submits_keep_the_minimum_interval() -> None:
    """Counted from when a submit leaves, however long its answer takes."""
    control = admission(min_interval=180)
    control.submitting(Attempts(), 1000)
    assert control.next_submit_at == 1180
    control.accepted()
    assert control.next_submit_at == 1180


def test_without_a_minimum_interval_many_submits_may_be_in_flight() -> None:
    """The limit of submits in flight is the number of workers."""
    control = admission()
    for now in (5, 5, 5):
        control.submitting(Attempts(), now)
        assert control.next_submit_at == 5


def test_a_refusal_holds_back_all_submits_for_as_long_as_the_service_asks() -> None:
    """A rate limit belongs to the account, not to the item."""
    control, attempts = admission(), Attempts()
    control.submitting(attempts, 10)
    assert control.failed(attempts, limited(30), 11)
    assert control.next_submit_at == 41


def test_after_a_refusal_one_submit_leaves_as_a_probe_and_no_other_with_it() -> None:
    """Eight workers would run into the same limit eight times."""
    control, first, second = admission(), Attempts(), Attempts()
    control.submitting(first, 0)
    control.failed(first, limited(5), 0)
    control.submitting(first, 5)
    assert first.is_probe
    assert control.next_submit_at == math.inf
    control.accepted()
    assert control.next_submit_at == 5
    control.submitting(second, 6)
    assert not second.is_probe


def test_submits_that_are_refused_together_count_once() -> None:
    """They say one thing: the limit is reached. No item loses its attempts to its neighbours."""
    control = admission(max_retries=1)
    crowd = [Attempts() for _ in range(4)]
    for attempts in crowd:
        control.submitting(attempts, 0)
    assert all(control.failed(attempts, limited(1), 0) for attempts in crowd)
    assert [attempts.failed for attempts in crowd] == [1, 0, 0, 0]


def test_a_probe_that_is_refused_too_often_is_not_sent_again() -> None:
    """`max_retries` bounds the attempts of each item."""
    control, attempts, results = admission(max_retries=2), Attempts(), []
    for now in (0, 100, 200):
        control.submitting(attempts, now)
        results.append(control.failed(attempts, limited(), now))
    assert results == [True, True, False]


def test_holds_grow_with_each_refused_probe() -> None:
    """A limit without a `Retry-After` is approached more and more slowly."""
    control, holds = admission(max_retries=9), []
    attempts = Attempts()
    for now in (0, 100, 200, 300, 400, 500):
        control.submitting(attempts, now)
        control.failed(attempts, limited(), now)
        holds.append(control.next_submit_at - now)
    for number, hold in enumerate(holds):
        assert 0.7 * min(0.5 * 2**number, 8) <= hold <= 8


def test_no_hold_is_longer_than_an_hour() -> None:
    """A `Retry-After` of a day must not stop a batch for a day."""
    control, attempts = admission(), Attempts()
    control.submitting(attempts, 0)
    assert not control.failed(attempts, limited(86_400), 0)
    assert control.next_submit_at == 3600


def test_a_challenge_is_not_sent_again_but_holds_back_the_next_submit() -> None:
    """Waiting does not pass the check, and requests at full speed make it worse."""
    control, attempts = admission(), Attempts()
    control.submitting(attempts, 0)
    page = ChallengeError("a check", status_code=403, delivered="no")
    assert not control.failed(attempts, page, 0)
    assert control.next_submit_at == 1


def test_a_submit_that_the_service_has_judged_ends_the_probing() -> None:
    """It shows that the service takes submits."""
    control, refused, judged = admission(), Attempts(), Attempts()
    control.submitting(refused, 0)
    control.failed(refused, limited(1), 0)
    control.submitting(judged, 1)
    error = APIStatusError("422", status_code=422, delivered="yes")
    assert not control.failed(judged, error, 2)
    control.submitting(refused, 3)
    assert not refused.is_probe
    assert control.next_submit_at == 3


OUTAGES = [
    APIConnectionError("refused", delivered="no"),
    APIConnectionError("reset", delivered="maybe"),
    SubmissionUnknownError("a page", delivered="maybe"),
    ChallengeError("a check", status_code=403, delivered="no"),
    APIStatusError("502", status_code=502, delivered="maybe"),
    APIStatusError("503", status_code=503, delivered="no", retry_after=1.0),
]


@pytest.mark.parametrize("error", OUTAGES)
def test_a_service_that_answers_no_submit_is_down_after_a_few(error: ImageLabsError) -> None:
    """One alone after the first ones, with pauses, so that little is at stake."""
    control, crowd = admission(max_retries=99), [Attempts() for _ in range(8)]
    for attempts in crowd:
        control.submitting(attempts, 0)
    for attempts in crowd:
        control.failed(attempts, error, 0)
    assert not control.is_down
    submits, now = 1, 0.0
    while not control.is_down:
        assert control.next_submit_at >= now + 0.3
        now = control.next_submit_at
        control.submitting(crowd[0], now)
        assert control.next_submit_at == math.inf
        control.failed(crowd[0], error, now)
        submits += 1
    assert submits == 6
    assert now <= 20


@pytest.mark.parametrize("error", OUTAGES)
def test_an_answer_in_between_shows_that_the_service_is_up(error: ImageLabsError) -> None:
    """Single failures, however many in a day, must not stop a batch."""
    control = admission()
    for now in range(0, 1000, 100):
        control.submitting(Attempts(), now)
        control.failed(Attempts(), error, now)
        control.submitting(Attempts(), now + 50)
        control.accepted()
    assert not control.is_down


def test_an_item_does_not_lose_its_attempts_to_a_service_that_is_down() -> None:
    """It surely was not accepted: it waits for the end of the outage."""
    control, attempts = admission(max_retries=1), Attempts()
    for now in (0, 100, 200, 300):
        control.submitting(attempts, now)
        assert control.failed(attempts, APIConnectionError("refused", delivered="no"), now)
    control = admission(max_retries=0)
    control.submitting(attempts, 0)
    assert not control.failed(attempts, APIConnectionError("refused", delivered="no"), 0)


def test_a_hold_never_shortens_another_one() -> None:
    """A poll that is rate limited must not release submits."""
    control = admission(min_interval=60)
    control.submitting(Attempts(), 0)
    control.hold(limited(7), 0)
    assert control.next_submit_at == 60
    control.hold(limited(90), 0)
    assert control.next_submit_at == 90


def test_a_submit_of_unknown_fate_is_sent_again_with_its_key_alone_and_not_at_once() -> None:
    """Also after an answer that says nothing of the service as a whole."""
    lost = APIStatusError("408", status_code=408, delivered="maybe")
    results: list[bool] = []
    for keyed in (False, True):
        control, attempts = admission(max_retries=1), Attempts()
        for now in (0, 10):
            control.submitting(attempts, now)
            results.append(control.failed(attempts, lost, now, keyed=keyed))
        assert control.next_submit_at == (11 if keyed else 10)
    assert results == [False, False, True, False]
