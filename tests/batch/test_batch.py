"""`Batch`: one outcome for each item, nothing left behind."""

import itertools
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    BatchStoppedError,
    HttpResponse,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    JobFailedError,
    JobStalledError,
    JobStoppedError,
    JobTimeoutError,
    Outcome,
    Progress,
    SubmissionUnknownError,
)
from imagelabs_sdk.models import LARGEST_INT
from imagelabs_sdk.testing import FakeService, SentRequest
from tests import faulty
from tests.batch.scripted import (
    DRAW,
    Connect,
    RunningClock,
    begin,
    client_of,
    fail_at,
    ids,
    kinds,
    make_service,
    one_done_others_running,
    process,
    run,
    submits,
    told,
    workers,
)
from tests.faulty import FaultyServer


def test_outcomes_come_in_the_order_in_which_jobs_end(service: FakeService) -> None:
    """What is ready can be used while the others are drawn."""
    service.job("slow").takes(9)
    service.job("quick").takes(1)
    outcomes = run(service, "slow", "quick", "usual")
    assert [outcome.index for outcome in outcomes] == [1, 2, 0]
    for outcome in outcomes:
        assert outcome.result is not None
        assert outcome.job is not None
        assert outcome.error is None
        assert outcome.result.request == outcome.request == outcome.job.request
        assert outcome.result.url == f"{service.url}/images/{outcome.job.id}-1.png"


def test_an_item_may_be_a_prompt_a_request_or_its_fields(service: FakeService) -> None:
    """Rows of a table become images without a loop of one's own."""
    fields: Any = {"width": 512, "height": 640, "seed": 7, "subseed": 8}
    outcomes = run(service, "a", ImageRequest("b", **fields), {"prompt": "c", **fields})
    requests = {outcome.index: outcome.request for outcome in outcomes}
    assert requests[1] == ImageRequest("b", **fields)
    assert requests[2] == ImageRequest("c", **fields)
    assert requests[0] is not None
    assert requests[0].seed is not None


def test_an_item_that_cannot_be_used_is_an_outcome_of_its_own(service: FakeService) -> None:
    """Row 5,000 of a table must not cost the 4,999 before it."""
    outcomes = run(service, " ", "a", 7, {"wdith": 1}, {"prompt": "x", "wdith": 1}, None, "b")
    found = kinds(outcomes)
    assert [found[index] for index in (1, 6)] == ["result"] * 2
    assert [found[index] for index in (0, 2, 3, 4, 5)] == [InvalidRequestError] * 5
    assert all(outcome.request is None for outcome in outcomes if outcome.error)
    assert sorted(submits(service)) == ["a", "b"]


def test_one_failure_stops_nothing(service: FakeService) -> None:
    """Each item answers for itself."""
    service.job("judged").refuses()
    service.job("unclear").refuses(status=500)
    service.job("cut").drops_connection()
    service.job("senseless").answers(HttpResponse(200, {}, b"{}"))
    service.job("forgotten").refuses("no such task", status=404, at="progress")
    service.job("failed").fails()
    service.job("hiccup").refuses(status=500, at="progress").rate_limited().done()
    service.job("long").never_finishes()
    names = [
        "judged",
        "unclear",
        "cut",
        "senseless",
        "forgotten",
        "failed",
        "hiccup",
        "long",
        "fine",
    ]
    outcomes = run(service, *names)
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
    assert Counter(submits(service)) == Counter(names)


def test_nothing_to_do_is_no_outcome(service: FakeService) -> None:
    """And no thread."""
    assert run(service) == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": True}, "max_in_flight"),
        ({"workers": 1.5}, "workers"),
        ({"timeout": 0}, "timeout"),
        ({"min_interval": -1}, "min_interval"),
        ({"min_interval": math.nan}, "min_interval"),
        ({"unknown": "buy"}, "unknown"),
        ({"items": "a lighthouse"}, "items"),
        ({"items": {"prompt": "x"}}, "items"),
        ({"items": ImageRequest("x")}, "items"),
    ],
)
def test_a_setting_that_cannot_be_used_is_said_at_once(
    service: FakeService, arguments: dict[str, Any], field: str
) -> None:
    """A single prompt, too: it would become an image for each of its letters."""
    with pytest.raises(InvalidRequestError) as caught:
        client_of(service).generate_many(**{"items": ["x"], **arguments})
    assert caught.value.field == field


def test_a_pause_between_submits_may_be_none(service: FakeService) -> None:
    """It is the default, and what a value must be is said rightly."""
    assert run(service, "a", min_interval=0)[0].result is not None
    with pytest.raises(InvalidRequestError, match="0 or more"):
        run(service, "a", min_interval=-1)


def test_endless_items_are_taken_as_there_is_room(service: FakeService) -> None:
    """Waiting outcomes are work in flight as well, or memory would grow with a slow consumer."""
    most, taken = 5, 0
    crowd: list[int] = []
    prompts = (str(number) for number in itertools.count())
    service.on_request = lambda _: crowd.append(len(service.submits) - taken)
    client = client_of(service)
    with client.generate_many(prompts, max_in_flight=most, workers=3) as batch:
        for outcome in batch:
            assert outcome.result is not None
            taken += 1
            if taken == 60:
                break
    assert 1 < max(crowd) <= most
    assert int(next(prompts)) <= taken + most


def test_items_are_taken_in_the_callers_thread(service: FakeService) -> None:
    """A database's cursor or a framework's request may be no other thread's."""
    threads = []

    def prompts() -> Iterator[str]:
        for name in "abc":
            threads.append(threading.current_thread())
            yield name

    outcomes = list(client_of(service).generate_many(prompts(), max_in_flight=2))
    assert len(outcomes) == 3
    assert set(threads) == {threading.current_thread()}


def test_an_error_of_the_items_own_ends_the_batch(service: FakeService) -> None:
    """It is the caller's, and comes as it is; what was bought is told."""

    def prompts() -> Iterator[str]:
        yield "a"
        raise LookupError("the table is gone")

    service.job("a").never_finishes()
    batch = client_of(service).generate_many(prompts(), workers=1)
    with pytest.raises(LookupError, match="the table is gone"):
        list(batch)
    assert list(batch) == []


def test_progress_is_told_in_the_callers_thread(service: FakeService) -> None:
    """Bars and widgets belong to one thread; what comes too fast is skipped, never late."""
    seen: list[tuple[int, float | None]] = []

    def listen(index: int, progress: Progress) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((index, progress.fraction))

    service.job("a").takes(50.0)
    (outcome,) = run(service, "a", on_progress=listen)
    assert outcome.result is not None
    assert set(seen) <= {(0, part / 50) for part in range(50)}
    assert seen == sorted(seen)


def test_the_progress_that_is_told_is_the_latest() -> None:
    """While the caller is busy polls go on; what they saw before the last one is stale."""
    service = make_service(RunningClock())
    polled, heard = threading.Event(), threading.Event()
    seen: list[float] = []

    def hold_the_sixth_poll(_: SentRequest) -> None:
        if service.count("progress") == 6:
            polled.set()
            assert heard.wait(5)

    def busy() -> Iterator[str]:
        yield "a"
        assert polled.wait(5)

    def listen(index: int, progress: Progress) -> None:
        seen.append(progress.fraction or 0.0)
        if seen[-1] == 0.5:
            heard.set()

    service.job("a").takes(10.0)
    service.on_request = hold_the_sixth_poll
    assert len(list(client_of(service).generate_many(busy(), on_progress=listen))) == 1
    assert seen.index(0.5) <= 1  # one may have come before the caller was busy


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
    """Also while the client lives on; and polls take the connections that are open."""
    client = connect(server)
    assert len(list(client.generate_many(map(str, range(40)), workers=4))) == 40
    for thread in server.threads[1:]:
        thread.join(5)
        assert not thread.is_alive()
    # A submit takes a new one until the service has shown that it keeps connections.
    assert server.connections <= server.count("/txt2img") + 4


def test_what_is_unfinished_is_at_hand(service: FakeService) -> None:
    """By its place among the items, whatever ended the loop."""
    for name in "bc":
        service.job(name).takes(1000)
    client = client_of(service, timeout=math.inf)
    batch = begin(service, *"abc", client=client)
    with pytest.raises(LookupError) as caught, batch:
        fail_at(next(batch))
    left = batch.unfinished
    assert {index: job.id for index, job in left.items()} == {1: "b", 2: "c"}
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        assert note == "jobs that go on at the service (2): task ids b, c"
    assert left[1].result().task_id == "b"


def test_an_interrupt_names_the_unfinished(service: FakeService, tmp_path: Path) -> None:
    """Once, although it passes through two doors; a checkpoint is named in its place."""

    def interrupt(index: int, progress: Progress) -> None:
        raise KeyboardInterrupt

    service.job("a").never_finishes()
    path = tmp_path / "run.jsonl"
    batch = begin(service, "a", on_progress=interrupt, checkpoint=path, timeout=math.inf)
    with pytest.raises(KeyboardInterrupt) as caught, batch:
        list(batch)
    batch.close()
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        assert note == f"jobs that go on at the service, {path} knows them (1): task ids a"


def test_very_many_unfinished_are_not_all_named(service: FakeService) -> None:
    """A line of the log has an end."""
    names = [str(number) for number in range(150)]
    for name in names:
        service.job(name).never_finishes()
    batch = begin(service, *names, "x", max_in_flight=500)
    with pytest.raises(LookupError) as caught, batch:
        fail_at(next(batch))
    assert len(batch.unfinished) == 150
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__[0].endswith("98, 99, ...")


def test_outcomes_that_are_there_can_be_taken_after_the_end() -> None:
    """They were paid for."""
    service = make_service(RunningClock())
    taken, both = threading.Event(), threading.Event()

    def items() -> Iterator[str]:
        yield from "ab"
        taken.set()

    def tell_the_last(_: SentRequest) -> None:
        assert taken.wait(5)
        if len(service.sent) == 4:
            both.set()

    for name in "ab":
        service.job(name).takes(0.5)
    service.on_request = tell_the_last
    batch = client_of(service).generate_many(items(), workers=1)
    first = next(batch)
    assert both.wait(5)
    batch.close()  # waits for the exchange under way, whose outcome is the second
    (second,) = batch
    assert {first.index, second.index} == {0, 1}
    assert not batch.unfinished


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


def test_stop_iteration_out_of_a_callback_does_not_end_a_batch_in_silence(
    service: FakeService,
) -> None:
    """`next(iterator)` in a callback raises it, and a loop would take it for the end."""

    def careless(index: int, progress: Progress) -> None:
        next(iter(()))

    service.job("a").never_finishes()
    with pytest.raises(RuntimeError, match="a callback raised StopIteration"):
        run(service, "a", on_progress=careless, timeout=math.inf)
    assert not workers()


def test_a_batch_of_another_process_says_so(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork has inherited it without its threads."""
    batch = begin(service, "a")
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        for use in (lambda: next(batch), lambda: batch.unfinished):
            with pytest.raises(InvalidRequestError, match="make another one in this process"):
                use()
        batch.close()


@pytest.mark.parametrize(
    ("trouble", "is_unknown"),
    [
        (APIConnectionError("refused", delivered="no"), False),
        (HttpResponse(503, {"retry-after": "1"}), False),
        (HttpResponse(502), True),
    ],
)
def test_a_service_that_is_down_stops_a_batch_with_what_is_left(
    trouble: HttpResponse | Exception, is_unknown: bool, service: FakeService, tmp_path: Path
) -> None:
    """Each item would fail like those before it, and some may have been bought."""
    names = [str(number) for number in range(20)]
    for name in names:
        service.job(name).answers(trouble)
    service.job("first").never_finishes()
    items = ["first", *names]
    path = tmp_path / "run.jsonl"
    batch = begin(service, *items, checkpoint=path, timeout=math.inf)
    outcomes: list[Outcome] = []
    with pytest.raises(BatchStoppedError, match="the service is down") as caught:
        outcomes.extend(batch)
    burnt = {outcome.index for outcome in outcomes}
    assert len(submits(service)) == 1 + 6
    assert len(burnt) <= 6
    assert set(caught.value.unsubmitted) == set(range(1, 21)) - burnt
    assert "(counted from 0) and those behind them" in caught.value.message
    assert [job.id for job in batch.unfinished.values()] == ["first"]
    if sys.version_info >= (3, 11):
        assert "task ids first" in caught.value.__notes__[0]
    assert list(batch) == []
    recovered = make_service()
    recovered.known_job("first")
    again = kinds(run(recovered, *items, checkpoint=path))
    assert Counter(again.values())["result"] == 21 - (len(burnt) if is_unknown else 0)


def test_a_service_that_cannot_be_reached_stops_a_batch(connect: Connect) -> None:
    """Over a real socket that nobody listens to."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        client = ImageLabs(
            f"http://127.0.0.1:{nobody.getsockname()[1]}",
            polling=RunningClock().every(1.0),
        )
        with client, pytest.raises(BatchStoppedError) as caught:
            list(client.generate_many(map(str, itertools.count()), workers=4))
    assert isinstance(caught.value.__cause__, APIConnectionError)
    assert caught.value.unsubmitted[0] == 0


# Several images of an item, labels ----------------------------------------------------------


def test_several_images_of_each_item_have_seeds_of_their_own() -> None:
    """A seed that is given counts up, so that each image can be repeated."""
    service = FakeService()
    outcomes = {o.index: o for o in run(service, "a", {"prompt": "b", "seed": 7}, n=3)}
    assert sorted(outcomes) == [0, 1, 2, 3, 4, 5]
    places = [(outcomes[index].item, outcomes[index].variation) for index in range(6)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    requests = [outcomes[index].request for index in range(6)]
    assert len({request.seed for request in requests[:3] if request}) == 3
    assert [request.seed for request in requests[3:] if request] == [7, 8, 9]
    assert Counter(submits(service)) == {"a": 3, "b": 3}


def test_the_seed_after_the_largest_is_the_smallest() -> None:
    """A seed that cannot be sent would fail that image alone."""
    outcomes = {o.index: o for o in run(FakeService(), {"prompt": "a", "seed": LARGEST_INT}, n=2)}
    assert [o.request.seed for _, o in sorted(outcomes.items()) if o.request] == [LARGEST_INT, 0]


def test_several_images_of_an_item_are_kept_in_a_checkpoint(tmp_path: Path) -> None:
    """Each has its own line; another `n` means other images, which is refused."""
    service, path = FakeService(), tmp_path / "run.jsonl"
    first = run(service, *"ab", n=2, checkpoint=path)
    again = run(service, *"ab", n=2, checkpoint=path)
    assert len(submits(service)) == 4
    seeds = [{o.index: o.request and o.request.seed for o in each} for each in (first, again)]
    assert seeds[0] == seeds[1]
    with pytest.raises(InvalidRequestError, match="is not the one that had this place before"):
        run(service, *"ab", n=3, checkpoint=path)


def test_labels_of_an_item_come_back_with_its_outcome_and_are_not_sent(
    service: FakeService, tmp_path: Path
) -> None:
    """A row of a table is found again by its own key."""
    items = [
        {"prompt": "a", "metadata": {"row": 17}},
        {"prompt": "b"},
        {"prompt": " ", "metadata": {"row": 18}},
        {"prompt": "c", "metadata": 19},
    ]
    for _ in range(2):  # and again from the checkpoint
        outcomes = run(service, *items, checkpoint=tmp_path / "run.jsonl")
        found = {outcome.index: outcome.metadata for outcome in outcomes}
        assert found == {0: {"row": 17}, 1: {}, 2: {"row": 18}, 3: {}}
        jobs = {outcome.index: outcome.job for outcome in outcomes if outcome.job}
        assert jobs[0].metadata == {"row": 17}
        assert [kinds(outcomes)[index] for index in (2, 3)] == [InvalidRequestError] * 2
    assert not any("metadata" in one.fields for one in service.sent)


# Stopping from outside ----------------------------------------------------------------------


def test_another_thread_can_stop_a_batch(server: FaultyServer, connect: Connect) -> None:
    """While a poll waits for its answer: within 0.1 s, with the jobs at hand."""
    stop = threading.Event()
    server.scripts["/txt2img"] = ids(2)
    server.scripts["/progress"] = [told(faulty.hang(), stop)]
    batch = connect(server, request_timeout=30).generate_many([*"ab"], workers=2, stop=stop)
    start = monotonic()
    with pytest.raises(JobStoppedError, match=r"task ids task-\d") as caught:
        list(batch)
    assert monotonic() - start < 5
    assert caught.value.job is None
    assert {job.id for job in batch.unfinished.values()} <= {"task-1", "task-2"}
    assert not workers()


def test_a_submit_in_flight_finishes_first(server: FaultyServer, connect: Connect) -> None:
    """Its id would be lost otherwise. The caller's thread notices the stop meanwhile."""
    submitting, noticed = threading.Event(), threading.Event()

    def stop() -> bool:
        if submitting.is_set() and threading.current_thread() is threading.main_thread():
            noticed.set()
        return submitting.is_set()

    def accept(wire: faulty.Wire) -> None:
        submitting.set()
        assert noticed.wait(5)
        faulty.ACCEPTED(wire)

    server.scripts["/txt2img"] = [accept]
    batch = connect(server).generate_many([*"ab"], workers=1, stop=stop)
    with pytest.raises(JobStoppedError):
        next(batch)
    assert [job.id for job in batch.unfinished.values()] == ["task-1"]
    assert server.count("/txt2img") == 1


def test_a_batch_that_is_stopped_before_it_begins_sends_nothing(
    service: FakeService, tmp_path: Path
) -> None:
    """Outcomes that are there already can be taken; the checkpoint goes on another day."""
    path = tmp_path / "run.jsonl"
    with pytest.raises(JobStoppedError, match="no accepted job is unfinished"):
        run(service, *"ab", stop=lambda: True, checkpoint=path)
    assert not service.sent
    assert set(kinds(run(service, *"ab", checkpoint=path)).values()) == {"result"}


def test_a_submit_that_stop_kept_from_leaving_is_sent_another_day(
    service: FakeService, tmp_path: Path
) -> None:
    """The checkpoint knows that it surely was not sent."""
    path, asked = tmp_path / "run.jsonl", iter([False])

    def stop() -> bool:
        """Say so when the worker asks for the second time, just before it submits."""
        return threading.current_thread() is not threading.main_thread() and next(asked, True)

    batch = begin(
        service, "a", client=client_of(service, max_retries=0), stop=stop, checkpoint=path
    )
    with pytest.raises(JobStoppedError):
        next(batch)
    assert not service.sent
    assert set(kinds(run(service, "a", checkpoint=path)).values()) == {"result"}


def test_a_stop_that_cannot_be_asked_is_refused(service: FakeService) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidRequestError, match="stop="):
        client_of(service).generate_many(["a"], stop=True)  # type: ignore[arg-type]


def test_a_job_that_does_not_move_ends_after_the_stall_timeout(service: FakeService) -> None:
    """It holds a place that others could use; it goes on at the service."""
    service.job("stuck").never_finishes()
    service.job("slow").takes(60)
    outcomes = run(service, "stuck", "slow", stall_timeout=5, timeout=500)
    assert kinds(outcomes) == {0: JobStalledError, 1: "result"}
    (stuck,) = [outcome for outcome in outcomes if outcome.error]
    assert stuck.job is not None
    assert stuck.error is not None
    assert stuck.error.job is stuck.job
    assert "neither status nor progress has changed for 5 s" in str(stuck.error)
    polls = [one.time for one in service.sent if (one.at, one.task_id) == ("progress", "stuck")]
    assert 4 <= polls[-1] - polls[0] <= 6


def test_the_stall_timeout_does_not_wait_for_the_next_poll(service: FakeService) -> None:
    """A strategy that polls once a minute must not make a minute of five seconds."""
    service.job("stuck").never_finishes()
    client = client_of(service, poll_interval=60.0)
    (outcome,) = run(service, "stuck", client=client, stall_timeout=5, timeout=500)
    assert isinstance(outcome.error, JobStalledError)
    submit, *polls = service.sent
    assert polls[-1].time - submit.time <= 15
