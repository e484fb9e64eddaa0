"""The scheduler: what is submitted or polled next, and the end of its threads."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic, sleep

import attrs
import pytest

from imagelabs_sdk import (
    APIStatusError,
    ChallengeError,
    ImageLabs,
    JobTimeoutError,
    RateLimitError,
)
from imagelabs_sdk.testing import FakeService, SentRequest
from tests import faulty
from tests.batch.scripted import (
    begin,
    client_of,
    kinds,
    one_done_others_running,
    process,
    run,
    submits,
    times,
    workers,
)
from tests.faulty import FaultyServer


def test_the_timeout_is_each_jobs_own(service: FakeService) -> None:
    """The last of a thousand has as much time as the first."""
    for name in "ab":
        service.job(name).never_finishes()
    outcomes = run(service, "a", "b", timeout=5, min_interval=50)
    assert times(service) == [0, 50]
    for outcome in outcomes:
        assert isinstance(outcome.error, JobTimeoutError)
        assert outcome.error.waited == 5
        assert outcome.job is outcome.error.job


def test_two_submits_keep_their_distance(service: FakeService) -> None:
    """A free account may ask every few minutes; polls go on meanwhile."""
    run(service, *"abc", min_interval=180)
    assert times(service) == [0, 180, 360]
    assert [one.at for one in service.sent[:4]] == ["submit", *["progress"] * 3]


def test_polls_that_are_due_go_before_submits(service: FakeService) -> None:
    """A finished image is worth more than one more in the queue."""
    service.job("a").takes(1.0)
    run(service, *"abc", min_interval=1.0)
    asked = [(one.at, one.task_id) for one in service.sent]
    assert asked[:3] == [("submit", "a"), ("progress", "a"), ("submit", "b")]


def test_late_polls_do_not_keep_submits_out_for_ever(service: FakeService) -> None:
    """Behind a slow line every poll is late: then each job is polled less often."""

    taken = threading.Event()

    def items() -> Iterator[str]:
        yield from "abcdefgh"
        taken.set()

    def slow(_: SentRequest) -> None:
        assert taken.wait(5)
        service.clock.advance(1.0)

    for name in "abcdefgh":
        service.job(name).takes(60.0)
    service.on_request = slow
    client = service.client(poll_interval=0.5)
    outcomes = list(client.generate_many(items(), workers=1))
    assert set(kinds(outcomes).values()) == {"result"}
    order = [one.at for one in service.sent]
    last = len(order) - order[::-1].index("submit")
    streaks = [len(list(group)) for what, group in itertools.groupby(order[:last])]
    assert max(streaks) == 4
    polls = Counter(one.task_id for one in service.sent[:last] if one.at == "progress")
    assert max(polls.values()) - polls["a"] <= 2  # nobody starves


def test_a_429_slows_everybody(service: FakeService) -> None:
    """The limit is the account's, not the item's."""
    service.job("b").rate_limited(30).rate_limited(20).takes(3)
    assert set(kinds(run(service, *"abcd", min_interval=0.25)).values()) == {"result"}
    assert submits(service) == ["a", "b", "b", "b", "c", "d"]
    assert times(service) == [0, 0.25, 30.25, 50.25, 50.5, 50.75]
    polled = next(one.time for one in service.sent if one.at == "progress")
    assert polled < 1010  # polls go on


def test_a_429_to_a_poll_slows_submits_too(service: FakeService) -> None:
    """Whatever we ask too often, asking for more images is not the cure."""
    service.job("a").rate_limited(7, at="progress").takes(3)
    run(service, *"ab", min_interval=2.0)
    assert times(service) == [0, 8]


def test_items_turned_away_together_do_not_lose_their_patience_together(
    service: FakeService,
) -> None:
    """Eight workers hit the limit at once; then one asks alone until the service takes it."""
    for name in "abcd":
        service.job(name).rate_limited(5, times=1)
    burst, another = threading.Barrier(4), threading.Event()
    numbers = itertools.count(1)

    def crowd(sent: SentRequest) -> None:
        if sent.at == "submit":
            number = next(numbers)
            if number <= 4:
                burst.wait(5)
            elif number == 5:
                assert not another.wait(0.1)
            else:
                another.set()

    service.on_request = crowd
    outcomes = run(service, *"abcd", client=client_of(service, max_retries=1), workers=4)
    assert set(kinds(outcomes).values()) == {"result"}
    assert times(service) == [0, 0, 0, 0, 5, 5, 5, 5]


def test_attempts_are_bounded_and_grow_rarer(service: FakeService) -> None:
    """A limit that never ends is said, item by item."""
    for name in "ab":
        service.job(name).rate_limited()
    outcomes = run(service, *"abc", client=client_of(service, max_retries=2))
    assert kinds(outcomes) == {0: RateLimitError, 1: RateLimitError, 2: "result"}
    assert submits(service) == [*"aaabbbc"]
    gaps = [after - before for before, after in itertools.pairwise(times(service))]
    assert all(0.7 * 0.5 * 2**n <= gap <= 8.0 for n, gap in enumerate(gaps[:5]))


def test_a_refusal_of_another_kind_shows_that_submits_are_taken_again(
    service: FakeService,
) -> None:
    """Then the next limit is a new one, with short pauses again."""
    service.job("a").rate_limited()
    service.job("b").refuses()
    service.job("c").rate_limited(times=1)
    outcomes = run(service, *"abc", client=client_of(service, max_retries=1))
    assert kinds(outcomes) == {0: RateLimitError, 1: APIStatusError, 2: "result"}
    assert times(service)[-1] - times(service)[-2] <= 0.5


def test_no_retries_means_none(service: FakeService) -> None:
    """`max_retries=0` is the caller's word."""
    service.job("a").rate_limited(3)
    outcomes = run(service, *"ab", client=client_of(service, max_retries=0))
    assert kinds(outcomes) == {0: RateLimitError, 1: "result"}
    assert times(service) == [0, 3]


def test_a_long_retry_after_is_told_and_obeyed_by_the_others(service: FakeService) -> None:
    """Nobody watches a run over night; within an hour it goes on."""
    service.job("a").rate_limited(900)
    service.job("b").rate_limited(99999)
    outcomes = run(service, *"abc")
    assert kinds(outcomes) == {0: RateLimitError, 1: RateLimitError, 2: "result"}
    assert times(service) == [0, 900, 4500]


def test_a_cloudflare_page_is_not_run_into_at_full_speed(service: FakeService) -> None:
    """Waiting does not pass it, but hammering makes it worse."""
    for name in "ab":
        service.job(name).challenge()
    outcomes = run(service, *"abc")
    assert kinds(outcomes) == {0: ChallengeError, 1: ChallengeError, 2: "result"}
    assert times(service) == [0, 1, 2]


def test_a_fault_in_a_worker_is_raised_in_the_callers_thread(service: FakeService) -> None:
    """A bug of a transport is no outcome of an item."""
    service.answers(ZeroDivisionError("a bug"), at="submit")
    batch = client_of(service).generate_many(["a", "b"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(batch)
    assert not workers()
    assert list(batch) == []


def test_of_the_faults_of_several_workers_the_first_is_raised(service: FakeService) -> None:
    """And only once: it is one bug, most likely."""
    both = threading.Barrier(2)
    service.job("a").answers(ZeroDivisionError("a bug"), at="submit")
    service.job("b").answers(LookupError("the same bug"), at="submit")

    def fail_one_after_the_other(sent: SentRequest) -> None:
        both.wait(20)
        until = monotonic() + 20
        while sent.fields["prompt"] == "b" and len(workers()) > 1 and monotonic() < until:
            sleep(0.001)

    service.on_request = fail_one_after_the_other
    batch = client_of(service).generate_many(["a", "b"], workers=2)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(batch)
    assert not workers()
    assert list(batch) == []


def test_a_batch_that_is_collected_by_its_own_worker_ends(service: FakeService) -> None:
    """The garbage collector runs in any thread, and no thread can wait for itself."""
    closed_by: list[threading.Thread] = []

    def closing(_: SentRequest) -> None:
        batch.close()
        closed_by.append(threading.current_thread())

    service.on_request = closing
    batch = begin(service, "a")
    assert list(batch) == []
    (worker,) = closed_by
    worker.join(5)
    assert [job.id for job in batch.unfinished.values()] == ["a"]


FORK = """
    import os, sys
    from imagelabs_sdk import ImageLabs
    batch = ImageLabs(sys.argv[1], poll_interval=0.02).generate_many(["a", "b"], workers=2)
    next(batch)
    child = os.fork()
    if child == 0:
        batch.close()
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_does_not_wait_for_threads_that_it_does_not_have(
    server: FaultyServer,
) -> None:
    """It inherits the batch, and perhaps a lock that no thread will release."""
    one_done_others_running(server)
    with process(FORK, server.url) as running:
        output, _ = running.communicate(timeout=20)
    assert output == "0\n"


def test_a_wait_by_the_real_clock_is_cut_short(server: FaultyServer) -> None:
    """Closing must not take as long as the pause between two polls."""
    server.scripts["/progress"] = [faulty.RUNNING]
    server.scripts["/txt2img"] = [faulty.ACCEPTED, faulty.reply(422, {})]
    with ImageLabs(server.url, poll_interval=500.0) as client:
        batch = client.generate_many(["a", "b"], workers=2)
        assert isinstance(next(batch).error, APIStatusError)
        batch.close()
        assert [job.id for job in batch.unfinished.values()] == ["task-1"]


@attrs.define
class Waits:
    """Seconds before each poll, one after the other, by the real clock.

    Attributes:
        waits: The seconds.
        idle: Set when a worker has scheduled a poll and has then found nothing that is due.
    """

    waits: Iterator[float]
    idle: threading.Event = attrs.Factory(threading.Event)
    sleep: Callable[[float], None] = sleep
    readings: int = 0  # of the clock, since the first poll was scheduled

    def clock(self) -> float:
        # The third one is that of the search for another task: its lock is released by waiting.
        self.readings += 1
        if self.readings == 3:
            self.idle.set()
        return monotonic()

    def delay(self, polls: object) -> float:
        if not self.idle.is_set():
            self.readings = 1
        return next(self.waits)


def test_a_job_that_is_due_earlier_is_polled_earlier(service: FakeService) -> None:
    """The second job is due before the first one, for which a worker is waiting already."""

    def hold_the_second(sent: SentRequest) -> None:
        if sent.fields.get("prompt") == "second":
            assert waits.idle.wait(5)

    def items() -> Iterator[str]:
        yield "first"
        while not service.submits:
            sleep(0.001)
        yield "second"

    for name in ("first", "second"):
        service.job(name)
    waits = Waits(itertools.chain([0.3], itertools.repeat(0.01)))
    service.on_request = hold_the_second
    batch = service.client(polling=waits).generate_many(items(), workers=2)
    assert [outcome.index for outcome in batch] == [1, 0]


def test_many_threads_share_the_real_clock(server: FaultyServer) -> None:
    """One watches it for all, and hands the watch on when it has something to do."""
    pieces = [faulty.RUNNING, *[server.done()] * 3]
    server.scripts["/progress"] = [*pieces * 10, server.done()]
    with ImageLabs(server.url, poll_interval=0.005) as client:
        outcomes = list(client.generate_many(map(str, range(60)), workers=6, max_in_flight=30))
    assert Counter(kinds(outcomes).values()) == {"result": 60}
    assert server.count("/txt2img") == 60
