"""Many jobs at once: one outcome for each item, nothing bought twice, nothing left behind."""

import itertools
import json
import logging
import math
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import attrs
import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    ChallengeError,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    JobFailedError,
    JobTimeoutError,
    Progress,
    RateLimitError,
    SubmissionUnknownError,
)
from imagelabs_sdk import schedule as schedule_room
from imagelabs_sdk.batch import Batch, Outcome

from . import faulty
from .conftest import FakeTime
from .faulty import PNG, FaultyServer

ROOT = Path(__file__).parent.parent
Say = HttpResponse | Exception
Connect = Callable[..., ImageLabs]


def ok(**fields: object) -> HttpResponse:
    return HttpResponse(200, {}, json.dumps(fields).encode())


def refused(status: int, **headers: str) -> HttpResponse:
    return HttpResponse(status, {k.replace("_", "-"): v for k, v in headers.items()}, b"{}")


@attrs.define
class Studio:
    """A service. A prompt is its task id; a job takes so many seconds of a clock.

    Attributes:
        time: The clock.
        lasts: Seconds for a job, by prompt; else 3.
        says: Answers to a prompt's submits, before it is accepted.
        polls: Answers to looks at a prompt's job, before the true one.
        asked: What came, with the time.
        opened: Until then nobody is answered.
    """

    time: FakeTime
    lasts: dict[str, float] = attrs.Factory(dict)
    says: dict[str, list[Say]] = attrs.Factory(dict)
    polls: dict[str, list[Say]] = attrs.Factory(dict)
    asked: list[tuple[str, str, float]] = attrs.Factory(list)
    began: dict[str, float] = attrs.Factory(dict)
    lock: threading.Lock = attrs.Factory(threading.Lock)
    opened: threading.Event = attrs.Factory(threading.Event)

    def visitors(self, items: Iterable[Any]) -> Iterator[Any]:
        """These items; the first request is answered when all of them are at the door."""
        yield from items
        self.opened.set()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        assert self.opened.wait(5)
        submit = request.url.endswith("/txt2img")
        task = str(json.loads(request.body)["prompt" if submit else "task_id"])
        with self.lock:
            self.asked.append(("submit" if submit else "poll", task, self.time.now))
            script = (self.says if submit else self.polls).get(task)
            answer = script.pop(0) if script else self._answer(submit, task)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer(self, submit: bool, task: str) -> HttpResponse:
        if submit:
            self.began[task] = self.time.now
            return ok(task_id=task)
        passed, lasts = self.time.now - self.began[task], self.lasts.get(task, 3.0)
        if passed < lasts:
            return ok(status="Processing", progress=passed / lasts)
        return ok(status="Done", progress=1, final_image_url=f"https://images.test/{task}.png")

    def submits(self) -> list[str]:
        return [task for what, task, _ in self.asked if what == "submit"]

    def times(self) -> list[float]:
        """When submits came, in seconds since the first."""
        times = [at for what, _, at in self.asked if what == "submit"]
        return [at - times[0] for at in times]


@pytest.fixture
def studio(time: FakeTime) -> Studio:
    return Studio(time)


def client_of(studio: Studio, **more: Any) -> ImageLabs:
    settings = {"polling": studio.time.every(1.0), "timeout": 60.0, **more}
    return ImageLabs(transport=HandlerTransport(studio), **settings)


def run(studio: Studio, *items: Any, client: ImageLabs | None = None, **more: Any) -> list[Outcome]:
    """All outcomes, by one worker: what it does then has an order."""
    return list(begin(studio, *items, client=client, **more))


def begin(studio: Studio, *items: Any, client: ImageLabs | None = None, **more: Any) -> Batch:
    client = client or client_of(studio)
    return client.generate_many(studio.visitors(items), **{"workers": 1, **more})


def kinds(outcomes: list[Outcome]) -> dict[int, object]:
    return {o.index: type(o.error) if o.error else "result" for o in outcomes}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """The promise of every test in here."""
    yield
    assert not workers()


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("imagelabs-batch")]


# Items in, outcomes out -----------------------------------------------------------------


def test_outcomes_come_in_the_order_in_which_jobs_end(studio: Studio) -> None:
    """What is ready can be used while the others are drawn."""
    studio.lasts = {"slow": 9.0, "quick": 1.0}
    outcomes = run(studio, "slow", "quick", "usual")
    assert [outcome.index for outcome in outcomes] == [1, 2, 0]
    for outcome in outcomes:
        assert outcome.result is not None
        assert outcome.job is not None
        assert outcome.error is None
        assert outcome.result.request == outcome.request == outcome.job.request
        assert outcome.result.url == f"https://images.test/{outcome.job.id}.png"


def test_an_item_may_be_a_prompt_a_request_or_its_fields(studio: Studio) -> None:
    """Rows of a table become images without a loop of one's own."""
    fields: Any = {"width": 512, "height": 640, "seed": 7, "subseed": 8}
    outcomes = run(studio, "a", ImageRequest("b", **fields), {"prompt": "c", **fields})
    requests = {outcome.index: outcome.request for outcome in outcomes}
    assert requests[1] == ImageRequest("b", **fields)
    assert requests[2] == ImageRequest("c", **fields)
    assert requests[0] is not None
    assert requests[0].seed is not None


def test_an_item_that_cannot_be_used_is_an_outcome_of_its_own(studio: Studio) -> None:
    """Row 5,000 of a table must not cost the 4,999 before it."""
    outcomes = run(studio, " ", "a", 7, {"wdith": 1}, {"prompt": "x", "wdith": 1}, None, "b")
    found = kinds(outcomes)
    assert [found[index] for index in (1, 6)] == ["result"] * 2
    assert [found[index] for index in (0, 2, 3, 4, 5)] == [InvalidRequestError] * 5
    assert all(outcome.request is None for outcome in outcomes if outcome.error)
    assert sorted(studio.submits()) == ["a", "b"]


def test_one_failure_stops_nothing(studio: Studio) -> None:
    """Each item answers for itself."""
    studio.says = {
        "judged": [refused(422)],
        "unclear": [refused(500)],
        "cut": [APIConnectionError("reset", delivered="maybe")],
        "senseless": [HttpResponse(200, {}, b"{}")],
    }
    studio.polls = {
        "forgotten": [refused(404)],
        "failed": [ok(status="Failed")],
        "hiccup": [refused(500), refused(429)],
    }
    studio.lasts = {"long": math.inf}
    names = [*studio.says, *studio.polls, "long", "fine"]
    outcomes = run(studio, *names)
    assert {names[index]: kind for index, kind in kinds(outcomes).items()} == {
        "judged": APIStatusError,
        "unclear": APIStatusError,
        "cut": SubmissionUnknownError,
        "senseless": APIResponseError,
        "forgotten": APIStatusError,
        "failed": JobFailedError,
        "hiccup": "result",
        "long": JobTimeoutError,
        "fine": "result",
    }
    accepted = {o.job.id for o in outcomes if o.job}
    assert accepted == {"forgotten", "failed", "hiccup", "long", "fine"}
    assert all(o.error.job is o.job for o in outcomes if o.error)
    assert Counter(studio.submits()) == Counter(names)


def test_nothing_to_do_is_no_outcome(studio: Studio) -> None:
    """And no thread."""
    assert run(studio) == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": True}, "max_in_flight"),
        ({"workers": 1.5}, "workers"),
        ({"timeout": 0}, "timeout"),
        ({"min_interval": -1}, "min_interval"),
        ({"min_interval": math.nan}, "min_interval"),
        ({"items": "a lighthouse"}, "items"),
        ({"items": {"prompt": "x"}}, "items"),
        ({"items": ImageRequest("x")}, "items"),
    ],
)
def test_a_setting_that_cannot_be_used_is_said_at_once(
    studio: Studio, arguments: dict[str, Any], field: str
) -> None:
    """A single prompt, too: it would become an image for each of its letters."""
    with pytest.raises(InvalidRequestError) as caught:
        client_of(studio).generate_many(**{"items": ["x"], **arguments})
    assert caught.value.field == field


def test_endless_items_are_taken_as_there_is_room(studio: Studio) -> None:
    """Waiting outcomes are work in flight as well, or memory would grow with a slow consumer."""
    most, taken = 5, 0
    crowd: list[int] = []
    prompts = (str(number) for number in itertools.count())

    def counting(request: HttpRequest) -> HttpResponse:
        answer = studio(request)
        crowd.append(len(studio.began) - taken)
        return answer

    client = ImageLabs(transport=HandlerTransport(counting), polling=studio.time.every(1.0))
    studio.opened.set()
    with client.generate_many(prompts, max_in_flight=most, workers=3) as batch:
        for outcome in batch:
            assert outcome.result is not None
            taken += 1
            if taken == 60:
                break
    assert 1 < max(crowd) <= most
    assert int(next(prompts)) <= taken + most


def test_items_are_taken_in_the_callers_thread(studio: Studio) -> None:
    """A database's cursor or a framework's request may be no other thread's."""
    threads = []

    def prompts() -> Iterator[str]:
        for name in "abc":
            threads.append(threading.current_thread())
            yield name

    studio.opened.set()
    outcomes = list(client_of(studio).generate_many(prompts(), max_in_flight=2))
    assert len(outcomes) == 3
    assert set(threads) == {threading.current_thread()}


def test_an_error_of_the_items_own_ends_the_batch(studio: Studio) -> None:
    """It is the caller's, and comes as it is; what was bought is told."""

    def prompts() -> Iterator[str]:
        yield "a"
        raise LookupError("the table is gone")

    studio.lasts["a"] = math.inf
    studio.opened.set()
    batch = client_of(studio).generate_many(prompts(), workers=1)
    with pytest.raises(LookupError, match="the table is gone"):
        list(batch)
    assert list(batch) == []


def test_progress_is_told_in_the_callers_thread(studio: Studio) -> None:
    """Bars and widgets belong to one thread; what comes too fast is skipped, never late."""
    seen: list[tuple[int, float | None]] = []

    def listen(index: int, progress: Progress) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((index, progress.fraction))

    studio.lasts = {"a": 50.0}
    (outcome,) = run(studio, "a", on_progress=listen)
    assert outcome.result is not None
    assert set(seen) <= {(0, part / 50) for part in range(50)}
    assert seen == sorted(seen)


def test_the_progress_that_is_told_is_the_latest(studio: Studio) -> None:
    """While the caller is busy polls go on; what they saw before the last one is stale."""
    looked, heard = threading.Event(), threading.Event()
    seen: list[float] = []

    def answer(request: HttpRequest) -> HttpResponse:
        if len(studio.asked) == 6:  # the sixth poll
            looked.set()
            assert heard.wait(5)
        return studio(request)

    def busy() -> Iterator[str]:
        yield "a"
        assert looked.wait(5)

    def listen(index: int, progress: Progress) -> None:
        seen.append(progress.fraction or 0.0)
        if seen[-1] == 0.5:
            heard.set()

    studio.opened.set()
    studio.lasts = {"a": 10.0}
    client = ImageLabs(transport=HandlerTransport(answer), polling=studio.time.every(1.0))
    assert len(list(client.generate_many(busy(), on_progress=listen))) == 1
    assert seen.index(0.5) <= 1  # one may have come before the caller was busy


# When -----------------------------------------------------------------------------------


def test_the_timeout_is_each_jobs_own(studio: Studio) -> None:
    """The last of a thousand has as much time as the first."""
    studio.lasts = dict.fromkeys("ab", math.inf)
    outcomes = run(studio, "a", "b", timeout=5, min_interval=50)
    assert studio.times() == [0, 50]
    for outcome in outcomes:
        assert isinstance(outcome.error, JobTimeoutError)
        assert outcome.error.waited == 5
        assert outcome.job is outcome.error.job


def test_two_submits_keep_their_distance(studio: Studio) -> None:
    """A free account may ask every few minutes; polls go on meanwhile."""
    run(studio, *"abc", min_interval=180)
    assert studio.times() == [0, 180, 360]
    assert [what for what, _, _ in studio.asked[:4]] == ["submit", "poll", "poll", "poll"]


def test_polls_that_are_due_go_before_submits(studio: Studio) -> None:
    """A finished image is worth more than one more in the queue."""
    studio.lasts = {"a": 1.0}
    run(studio, *"abc", min_interval=1.0)
    asked = [(what, task) for what, task, _ in studio.asked]
    assert asked[:3] == [("submit", "a"), ("poll", "a"), ("submit", "b")]


def test_late_polls_do_not_keep_submits_out_for_ever(studio: Studio) -> None:
    """Behind a slow line every poll is late: then each job is polled less often."""

    def slow(request: HttpRequest) -> HttpResponse:
        studio.time.now += 1.0
        return studio(request)

    studio.lasts = dict.fromkeys("abcdefgh", 60.0)
    client = ImageLabs(transport=HandlerTransport(slow), polling=studio.time.every(0.5))
    assert set(kinds(run(studio, *"abcdefgh", client=client)).values()) == {"result"}
    order = [what for what, _, _ in studio.asked]
    last = len(order) - order[::-1].index("submit")
    streaks = [len(list(group)) for what, group in itertools.groupby(order[:last])]
    assert max(streaks) == schedule_room._POLLS_PER_SUBMIT
    polls = Counter(task for what, task, _ in studio.asked[:last] if what == "poll")
    assert max(polls.values()) - polls["a"] <= 2  # nobody starves


def test_a_429_slows_everybody(studio: Studio) -> None:
    """The limit is the account's, not the item's."""
    studio.says = {"b": [refused(429, retry_after="30"), refused(429, retry_after="20")]}
    assert set(kinds(run(studio, *"abcd", min_interval=0.25)).values()) == {"result"}
    assert studio.submits() == ["a", "b", "b", "b", "c", "d"]
    assert studio.times() == [0, 0.25, 30.25, 50.25, 50.5, 50.75]
    assert next(at for what, _, at in studio.asked if what == "poll") < 1010  # polls go on


def test_a_429_to_a_poll_slows_submits_too(studio: Studio) -> None:
    """Whatever we ask too often, asking for more images is not the cure."""
    studio.polls = {"a": [refused(429, retry_after="7")]}
    run(studio, *"ab", min_interval=2.0)
    assert studio.times() == [0, 8]


def test_items_turned_away_together_do_not_lose_their_patience_together(studio: Studio) -> None:
    """Eight workers hit the limit at once; then one asks alone until the service takes it."""
    burst, alone = threading.Barrier(4), []
    under_way: list[str] = []

    def crowded(request: HttpRequest) -> HttpResponse:
        if not request.url.endswith("/txt2img"):
            return studio(request)
        with studio.lock:
            under_way.append("x")
            number = len(studio.submits()) + len(under_way)
            first = number <= 4
        if first:
            burst.wait(5)
            with studio.lock:
                under_way.clear()
                studio.asked.append(("submit", "burst", studio.time.now))
            return refused(429, retry_after="5")
        with studio.lock:
            alone.append(len(under_way))
            under_way.clear()
        return studio(request)

    client = ImageLabs(
        transport=HandlerTransport(crowded), polling=studio.time.every(1.0), max_retries=1
    )
    outcomes = run(studio, *"abcd", client=client, workers=4)
    assert set(kinds(outcomes).values()) == {"result"}
    assert alone[0] == 1


def test_attempts_are_bounded_and_grow_rarer(studio: Studio) -> None:
    """A limit that never ends is said, item by item."""
    studio.says = {name: [refused(429)] * 9 for name in "ab"}
    outcomes = run(studio, *"abc", client=client_of(studio, max_retries=2))
    assert kinds(outcomes) == {0: RateLimitError, 1: RateLimitError, 2: "result"}
    assert studio.submits() == [*"aaabbbc"]
    gaps = [after - before for before, after in itertools.pairwise(studio.times())]
    assert all(0.7 * 0.5 * 2**n <= gap <= 8.0 for n, gap in enumerate(gaps[:5]))


def test_a_refusal_of_another_kind_shows_that_submits_are_taken_again(studio: Studio) -> None:
    """Then the next limit is a new one, with short pauses again."""
    studio.says = {"a": [refused(429)] * 3, "b": [refused(422)], "c": [refused(429)]}
    outcomes = run(studio, *"abc", client=client_of(studio, max_retries=1))
    assert kinds(outcomes) == {0: RateLimitError, 1: APIStatusError, 2: "result"}
    assert studio.times()[-1] - studio.times()[-2] <= 0.5


def test_no_retries_means_none(studio: Studio) -> None:
    """`max_retries=0` is the caller's word."""
    studio.says = {"a": [refused(429, retry_after="3")]}
    outcomes = run(studio, *"ab", client=client_of(studio, max_retries=0))
    assert kinds(outcomes) == {0: RateLimitError, 1: "result"}
    assert studio.times() == [0, 3]


def test_a_long_retry_after_is_told_and_obeyed_by_the_others(studio: Studio) -> None:
    """Nobody watches a run over night; within an hour it goes on."""
    studio.says = {"a": [refused(429, retry_after="900")], "b": [refused(429, retry_after="99999")]}
    outcomes = run(studio, *"abc")
    assert kinds(outcomes) == {0: RateLimitError, 1: RateLimitError, 2: "result"}
    assert studio.times() == [0, 900, 4500]


def test_a_cloudflare_page_is_not_run_into_at_full_speed(studio: Studio) -> None:
    """Waiting does not pass it, but hammering makes it worse."""
    studio.says = {name: [refused(403, cf_mitigated="challenge")] for name in "ab"}
    outcomes = run(studio, *"abc")
    assert kinds(outcomes) == {0: ChallengeError, 1: ChallengeError, 2: "result"}
    assert studio.times() == [0, 1, 2]


# Stopping -------------------------------------------------------------------------------


def one_done_others_running(server: FaultyServer) -> None:
    """The first poll of any job finds it done, all later ones find it running."""
    ids = (faulty.reply(200, {"task_id": f"task-{number}"}) for number in range(1, 9))
    server.scripts["/txt2img"] = list(ids)
    server.scripts["/progress"] = [server.done(), faulty.RUNNING]


def test_a_reader_who_has_had_enough_leaves_no_thread_and_no_socket(
    server: FaultyServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """`break` is how most loops end early; the log says what goes on at the service."""
    one_done_others_running(server)
    client = connect(server)
    with caplog.at_level(logging.WARNING, "imagelabs_sdk"):
        for outcome in client.generate_many(["a", "b", "c"], workers=3):
            assert outcome.result is not None
            break
    assert not workers()
    assert "jobs that go on at the service (2): task ids task-" in caplog.text
    for thread in server.threads[1:]:  # those that serve a connection, as long as it is open
        thread.join(5)
        assert not thread.is_alive()


def test_a_finished_batch_leaves_no_socket(server: FaultyServer, connect: Connect) -> None:
    """Also while the client lives on; and each worker has had one connection."""
    client = connect(server)
    assert len(list(client.generate_many(map(str, range(40)), workers=4))) == 40
    for thread in server.threads[1:]:
        thread.join(5)
        assert not thread.is_alive()
    assert server.connections <= 4


def fail_at(outcome: Outcome) -> None:
    raise LookupError(outcome.index)


def test_what_is_unfinished_is_at_hand(studio: Studio) -> None:
    """By its place among the items, whatever ended the loop."""
    studio.lasts = dict.fromkeys("bc", math.inf)
    client = client_of(studio, timeout=math.inf)
    batch = begin(studio, *"abc", client=client)
    with pytest.raises(LookupError) as caught, batch:
        fail_at(next(batch))
    left = batch.unfinished
    assert {index: job.id for index, job in left.items()} == {1: "b", 2: "c"}
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        assert note == "jobs that go on at the service (2): task ids b, c"
    studio.lasts.clear()
    assert left[1].result().task_id == "b"


def test_an_interrupt_names_the_unfinished(studio: Studio, tmp_path: Path) -> None:
    """Once, although it passes through two doors; a checkpoint is named in its place."""

    def interrupt(index: int, progress: Progress) -> None:
        raise KeyboardInterrupt

    studio.lasts = {"a": math.inf}
    path = tmp_path / "run.jsonl"
    batch = begin(studio, "a", on_progress=interrupt, checkpoint=path, timeout=math.inf)
    with pytest.raises(KeyboardInterrupt) as caught, batch:
        list(batch)
    batch.close()
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        assert note == f"jobs that go on at the service, {path} knows them (1): task ids a"


def test_very_many_unfinished_are_not_all_named(studio: Studio) -> None:
    """A line of the log has an end."""
    studio.lasts = dict.fromkeys(map(str, range(150)), math.inf)
    batch = begin(studio, *studio.lasts, "x", max_in_flight=500)
    with pytest.raises(LookupError) as caught, batch:
        fail_at(next(batch))
    assert len(batch.unfinished) == 150
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__[0].endswith("98, 99, ...")


def test_outcomes_that_are_there_can_be_taken_after_the_end(studio: Studio) -> None:
    """They were paid for."""
    both = threading.Event()

    def slow_to_leave(request: HttpRequest) -> HttpResponse:
        answer = studio(request)
        if len(studio.asked) == 4:
            both.set()
        return answer

    studio.lasts = dict.fromkeys("ab", 0.5)
    client = ImageLabs(transport=HandlerTransport(slow_to_leave), polling=studio.time.every(1.0))
    batch = begin(studio, *"ab", client=client)
    first = next(batch)
    assert both.wait(5)
    batch.close()  # waits for the exchange under way, whose outcome is the second
    (second,) = batch
    assert {first.index, second.index} == {0, 1}
    assert not batch.unfinished


def test_a_fault_in_a_worker_is_raised_in_the_callers_thread(studio: Studio) -> None:
    """A bug of a transport is no outcome of an item."""

    def broken(request: HttpRequest) -> HttpResponse:
        raise ZeroDivisionError("a bug")

    client = ImageLabs(transport=HandlerTransport(broken), polling=studio.time.every(1.0))
    batch = client.generate_many(["a", "b"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(batch)
    assert not workers()
    assert list(batch) == []


def test_a_batch_that_is_collected_by_its_own_worker_ends(studio: Studio) -> None:
    """The collector runs in any thread, and none can wait for itself."""
    closed: list[Batch] = []

    def closing(request: HttpRequest) -> HttpResponse:
        answer = studio(request)
        batch.close()
        closed.append(batch)
        return answer

    client = ImageLabs(transport=HandlerTransport(closing), polling=studio.time.every(1.0))
    batch = begin(studio, "a", client=client)
    assert list(batch) == []
    for thread in batch._schedule._threads:
        thread.join(5)
    assert len(closed) == 1
    assert [job.id for job in batch.unfinished.values()] == ["a"]


def test_the_child_of_a_fork_does_not_wait_for_threads_it_has_not(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It inherits the batch, and perhaps a lock that nobody will ever open."""
    batch = client_of(studio).generate_many(["a"], workers=1)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        batch._schedule._work_ready = None  # type: ignore[assignment]
        batch.close()


def test_a_wait_by_the_real_clock_is_cut_short(server: FaultyServer) -> None:
    """Closing must not take as long as the pause between two polls."""
    server.scripts["/progress"] = [faulty.RUNNING]
    server.scripts["/txt2img"] = [faulty.ACCEPTED, faulty.reply(422, {})]
    with ImageLabs(server.url, poll_interval=500.0) as client:
        batch = client.generate_many(["a", "b"], workers=2)
        assert isinstance(next(batch).error, APIStatusError)
        batch.close()
        assert [job.id for job in batch.unfinished.values()] == ["task-1"]


@attrs.frozen
class Waits:
    """Seconds before each poll, one after the other, by the real clock."""

    waits: Iterator[float]
    clock: Callable[[], float] = monotonic
    sleep: Callable[[float], None] = sleep

    def delay(self, polls: object) -> float:
        return next(self.waits)


def test_who_watches_the_clock_may_be_overtaken(studio: Studio) -> None:
    """The second job is due before the first one, for which a worker is waiting already."""

    def answer(request: HttpRequest) -> HttpResponse:
        while b'"second"' in request.body and math.isinf(batch._schedule._timer_until):
            sleep(0.001)
        return studio(request)

    def items() -> Iterator[str]:
        yield "first"
        while "first" not in studio.began:
            sleep(0.001)
        yield "second"

    studio.opened.set()
    studio.lasts = dict.fromkeys(["first", "second"], 0.0)
    waits = Waits(itertools.chain([0.1], itertools.repeat(0.01)))
    client = ImageLabs(transport=HandlerTransport(answer), polling=waits)
    batch = client.generate_many(items(), workers=2)
    assert [outcome.index for outcome in batch] == [1, 0]


def test_many_threads_share_the_real_clock(server: FaultyServer) -> None:
    """One watches it for all, and hands the watch on when it has something to do."""
    pieces = [faulty.RUNNING, *[server.done()] * 3]
    server.scripts["/progress"] = [*pieces * 10, server.done()]
    with ImageLabs(server.url, poll_interval=0.005) as client:
        outcomes = list(client.generate_many(map(str, range(60)), workers=6, max_in_flight=30))
    assert Counter(kinds(outcomes).values()) == {"result": 60}
    assert server.count("/txt2img") == 60


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another Python, which Ctrl-C interrupts even if these tests ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-u", "-c", textwrap.dedent(code), *map(str, arguments)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as running:
        signal.signal(signal.SIGINT, before)
        try:
            yield running
        finally:
            running.kill()


DRAW = """
    import sys, threading
    from imagelabs_sdk import ImageLabs
    client = ImageLabs(sys.argv[1], poll_interval=0.02)
    batch = client.generate_many(["a", "b", "c"], workers=2, checkpoint=sys.argv[2])
    try:
        for outcome in batch:
            print(outcome.index)
    except KeyboardInterrupt as error:
        print(sorted(job.id for job in batch.unfinished.values()), threading.active_count())
        raise
"""


def ids(count: int) -> list[faulty.Answer]:
    return [faulty.reply(200, {"task_id": f"task-{number}"}) for number in range(1, count + 1)]


def told(answer: faulty.Answer, event: threading.Event) -> faulty.Answer:
    def both(wire: faulty.Wire) -> None:
        event.set()
        answer(wire)

    return both


def test_ctrl_c_stops_cleanly(server: FaultyServer, tmp_path: Path) -> None:
    """A real one: threads are gone, the jobs are named, the exit is that of an interrupt."""
    busy = threading.Event()
    server.scripts["/txt2img"] = ids(3)
    server.scripts["/progress"] = [*[faulty.RUNNING] * 6, told(faulty.RUNNING, busy)]
    with process(DRAW, server.url, tmp_path / "run.jsonl") as running:
        assert busy.wait(20)
        running.send_signal(signal.SIGINT)
        said, complaint = running.communicate(timeout=20)
    assert said == "['task-1', 'task-2', 'task-3'] 1\n"
    assert "jobs that go on at the service, " in complaint
    assert running.returncode == -signal.SIGINT


def test_a_program_can_end_with_a_batch_left_behind(server: FaultyServer) -> None:
    """No thread of ours keeps it alive."""
    server.scripts["/txt2img"] = [*ids(1), faulty.reply(422, {})]
    server.scripts["/progress"] = [faulty.RUNNING]
    code = """
        import sys
        from imagelabs_sdk import ImageLabs
        batch = ImageLabs(sys.argv[1], poll_interval=600).generate_many(["a", "b"], workers=1)
        next(batch)
    """
    with process(code, server.url) as running:
        _, complaint = running.communicate(timeout=20)
    assert running.returncode == 0
    assert complaint == "stopped early; jobs that go on at the service (1): task ids task-1\n"


# A checkpoint ---------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def events(path: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [(line["index"], line["event"]) for line in lines]


def test_a_second_run_tells_the_same_and_asks_nothing(studio: Studio, path: Path) -> None:
    """The seeds that were picked included, and the job that failed."""
    studio.polls = {"c": [ok(status="Failed")]}
    first = run(studio, *"abc", checkpoint=path)
    studio.asked.clear()
    second = run(studio, *"abc", checkpoint=path)
    assert not studio.asked
    key = lambda outcome: outcome.index  # noqa: E731 - shorter than its name
    for before, after in zip(sorted(first, key=key), sorted(second, key=key), strict=True):
        assert after.request == before.request
        assert after.result == before.result
        assert str(after.error) == str(before.error)
        assert type(after.error) is type(before.error)
        assert after.job is not None
        assert before.job is not None
        assert after.job.id == before.job.id


def test_what_was_accepted_is_waited_for(studio: Studio, path: Path) -> None:
    """With a patience of its own, however long ago it was accepted."""
    studio.lasts = {"a": 100.0}
    (before,) = run(studio, "a", checkpoint=path, timeout=5)
    assert isinstance(before.error, JobTimeoutError)
    studio.time.now += 1000
    (after,) = run(studio, "a", checkpoint=path, timeout=5)
    assert after.result is not None
    assert after.request == before.request
    assert studio.submits() == ["a"]


def test_new_items_may_be_added_at_the_end(studio: Studio, path: Path) -> None:
    """The list of tomorrow begins with that of today."""
    run(studio, *"ab", checkpoint=path)
    assert len(run(studio, *"abcd", checkpoint=path)) == 4
    assert studio.submits() == [*"abcd"]


def test_what_was_surely_not_accepted_is_submitted_again(studio: Studio, path: Path) -> None:
    """And only that: what is unclear is not bought by a second run either."""
    studio.says = {
        "limited": [refused(429, retry_after="999")],
        "judged": [refused(422)],
        "unclear": [APIConnectionError("reset", delivered="maybe")],
        "page": [refused(502)],
    }
    names = list(studio.says)
    run(studio, *names, checkpoint=path)
    for _ in range(2):
        again = kinds(run(studio, *names, checkpoint=path))
        assert again == {
            0: "result",
            1: "result",
            2: SubmissionUnknownError,
            3: SubmissionUnknownError,
        }
    assert Counter(studio.submits()) == {"limited": 2, "judged": 2, "unclear": 1, "page": 1}


def test_a_line_is_on_disk_before_its_request_leaves(
    studio: Studio, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill in between would buy twice."""
    on_disk: list[int] = []
    sync = os.fsync

    def record(handle: int) -> None:
        sync(handle)
        lines = map(json.loads, complete(path.read_bytes())[1:])  # another may be in the making
        on_disk[:] = [line["index"] for line in lines if line["event"] == "sending"]

    def check(request: HttpRequest) -> HttpResponse:
        if request.url.endswith("/txt2img"):
            assert int(json.loads(request.body)["prompt"]) in on_disk
        return studio(request)

    monkeypatch.setattr(os, "fsync", record)
    client = ImageLabs(transport=HandlerTransport(check), polling=studio.time.every(1.0))
    outcomes = run(studio, *map(str, range(20)), client=client, checkpoint=path, workers=4)
    assert set(kinds(outcomes).values()) == {"result"}


def test_wherever_the_file_is_torn_nothing_is_bought_twice(studio: Studio, path: Path) -> None:
    """A process dies at any byte; what was about to be sent by then is not sent again."""
    run(studio, *"ab", checkpoint=path)
    whole = path.read_bytes()
    ends = [number for number, byte in enumerate(whole, 1) if byte == 10]
    for cut in sorted({end + shift for end in [0, *ends] for shift in (0, 1, 30, -1)}):
        kept = whole[: max(0, cut)]
        path.write_bytes(kept)
        known = {line["index"]: line["event"] for line in map(json.loads, complete(kept)[1:])}
        studio.asked.clear()
        outcomes = run(studio, *"ab", checkpoint=path)
        assert set(studio.submits()) == {"ab"[index] for index in (0, 1) if index not in known}
        for outcome in outcomes:
            unknown = known.get(outcome.index) == "sending"
            assert isinstance(outcome.error, SubmissionUnknownError) is unknown


def complete(data: bytes) -> list[bytes]:
    return data.split(b"\n")[:-1]


@pytest.mark.parametrize("point", ["submit", "poll"])
def test_a_killed_run_is_taken_up_without_buying_twice(
    server: FaultyServer, connect: Connect, path: Path, point: str
) -> None:
    """A real kill -9, while a submit or a poll waits for its answer."""
    reached, looked = threading.Event(), threading.Event()
    held = told(faulty.hang(), reached)

    def poll(wire: faulty.Wire) -> None:
        if reached.is_set():  # by the one worker that is left, which has written down all it did
            looked.set()
        faulty.RUNNING(wire)

    server.scripts["/txt2img"] = [*ids(2), held] if point == "submit" else ids(3)
    server.scripts["/progress"] = [poll] if point == "submit" else [*[poll] * 9, held, poll]
    with process(DRAW, server.url, path) as running:
        assert reached.wait(20)
        assert looked.wait(20)
        running.send_signal(signal.SIGKILL)
        running.wait(20)
    assert server.count("/txt2img") == 3
    server.scripts["/progress"] = [server.done()]
    outcomes = list(connect(server).generate_many([*"abc"], checkpoint=path))
    assert server.count("/txt2img") == 3
    if point == "poll":
        assert sorted(o.job.id for o in outcomes if o.job) == ["task-1", "task-2", "task-3"]
    else:
        assert Counter(kinds(outcomes).values()) == {"result": 2, SubmissionUnknownError: 1}
    assert all(o.result.read() == PNG for o in outcomes if o.result)


def test_a_changed_item_is_refused_before_anything_is_bought(studio: Studio, path: Path) -> None:
    """A line put in at the top would shift, and buy, all that follow."""
    run(studio, *"abc", checkpoint=path)
    studio.asked.clear()
    with pytest.raises(InvalidRequestError, match=r"item 0 .* is not the one that"):
        run(studio, *"xabc", checkpoint=path)
    with pytest.raises(InvalidRequestError, match="item 1 "):
        run(studio, "a", {"prompt": "b", "seed": 7}, "c", checkpoint=path)
    assert not studio.asked


def test_two_runs_at_once_are_refused(studio: Studio, path: Path) -> None:
    """Both would buy the same images."""
    first = begin(studio, "a", checkpoint=path)
    with pytest.raises(InvalidRequestError, match="another run uses it"):
        begin(studio, "a", checkpoint=path)
    assert len(list(first)) == 1
    assert len(run(studio, "a", checkpoint=path)) == 1


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("a lighthouse", "it is no checkpoint"),
        ("a lighthouse\na boat\n", "no checkpoint of this version"),
        ("[1]\n", "no checkpoint of this version"),
        ('{"version":2,"base_url":"https://editor.imagelabs.net"}\n', "of this version"),
        ('{"version":1,"base_url":"https://other.test"}\n', "another service, https://other.test"),
        ("HEADER\nnonsense\n", "its line 2 is no line"),
        ('HEADER\n{"index":0,"event":"eaten"}\n', "its line 2 is no line"),
        ('HEADER\n{"index":0,"event":"refused"}\n{"event":"refused"}\n', "its line 3 is no line"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(
    studio: Studio, path: Path, content: str, word: str
) -> None:
    """A list of prompts given by mistake must not be overwritten."""
    header = '{"version":1,"base_url":"https://editor.imagelabs.net"}'
    content = content.replace("HEADER", header)
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=word) as caught:
        run(studio, "a", checkpoint=path)
    assert caught.value.field == "checkpoint"
    assert path.read_text() == content


def test_the_file_is_the_owners_alone_and_holds_no_secret(studio: Studio, path: Path) -> None:
    """Prompts are in it; cookies are not."""
    client = client_of(studio, cookies={"cf_clearance": "secret"}, headers={"x-key": "secret"})
    run(studio, "a lighthouse", client=client, checkpoint=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "a lighthouse" in path.read_text()
    assert "secret" not in path.read_text()


def test_a_folder_that_is_missing_is_said_at_once(studio: Studio, tmp_path: Path) -> None:
    """By the system's own word."""
    with pytest.raises(FileNotFoundError):
        run(studio, "a", checkpoint=tmp_path / "nowhere" / "run.jsonl")


def test_a_full_disk_ends_the_run_before_the_next_request(
    studio: Studio, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written down must not be bought; what was, is at hand."""

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    batch = client_of(studio).generate_many([*"ab"], workers=1, checkpoint=path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        next(batch)
    assert studio.submits() == []
