"""How long it may still take: a range that is right in eight of ten cases, or nothing."""

import random
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from benchmarks.simulation import LAWS, SHAPES, Render, draw
from imagelabs_sdk import Adaptive, Eta, InvalidRequestError, Poll, Progress, State
from imagelabs_sdk.eta import estimate, recent_renders, remember_render
from imagelabs_sdk.testing import FakeService

RENDERS = [float(n) for n in range(1, 21)]  # seconds


def running(elapsed: float, fraction: float | None = None) -> Poll:
    return Poll(elapsed, Progress(state=State.RUNNING, fraction=fraction))


def queued(elapsed: float, position: int | None = None) -> Poll:
    return Poll(elapsed, Progress(state=State.QUEUED, queue_position=position))


def polls_of(job: Render, shape: str, dice: random.Random) -> Iterator[list[Poll]]:
    """The polls so far, each time that one was answered, until the job is done."""
    polls: list[Poll] = []
    now = Adaptive().delay(polls)
    while now < job.queued + job.service:
        done = (now - job.queued) / job.service
        polls = [*polls, queued(now) if done < 0 else running(now, SHAPES[shape](done, dice))]
        yield polls
        now += Adaptive().delay(polls)


@pytest.mark.parametrize("law", LAWS)
def test_the_truth_lies_in_the_range_in_eight_of_ten_cases(law: str) -> None:
    """However long renders take, and over all ways in which progress is reported."""
    dice, right, told = random.Random(3), 0, 0
    for shape in SHAPES:
        renders: list[float] = []
        for job in draw(law, 150, 5):
            for polls in polls_of(job, shape, dice):
                now = polls[-1].elapsed
                eta = estimate(polls, now, renders)
                if eta is not None:
                    told += 1
                    right += eta.low <= job.queued + job.service - now <= eta.high
            renders = [*renders[-63:], job.service]
    assert told > 1000
    assert right / told >= 0.8


@pytest.mark.parametrize(
    ("polls", "renders"),
    [
        ([], RENDERS),
        ([running(2.0)], []),
        ([running(2.0)], RENDERS[:7]),
        ([running(19.0)], RENDERS),  # longer than almost all before it
        ([running(2.0, 0.5)], []),  # one reading may be anything
        ([running(2.0, 0.3), running(4.0, 0.3)], []),
        ([running(2.0, 0.3), running(4.0, 0.2)], []),
        ([running(2.0, 0.5), running(4.0, 1.0)], []),
        ([queued(2.0)], RENDERS),
        ([queued(2.0, 5), queued(4.0, 5)], RENDERS),
        ([queued(2.0, 5), queued(4.0, 3)], []),
        ([running(2.0, 0.3), Poll(4.0, Progress(state=State.FAILED))], RENDERS),
    ],
)
def test_where_nothing_honest_can_be_said_nothing_is_said(
    polls: list[Poll], renders: list[float]
) -> None:
    """A number that is made up is worse than none."""
    assert estimate(polls, polls[-1].elapsed if polls else 0.0, renders) is None


def test_progress_alone_is_extrapolated() -> None:
    """For the first job of a process."""
    eta = estimate([running(2.0, 0.2), running(4.0, 0.4)], 4.0, [])
    assert eta is not None
    assert eta.low < 6.0 < eta.high
    later = estimate([running(2.0, 0.2), running(4.0, 0.4)], 5.0, [])
    assert later is not None
    assert later.high == eta.high - 1.0


def test_earlier_renders_and_progress_narrow_each_other_down() -> None:
    """And where they contradict each other the job's own progress counts."""
    polls = [running(2.0, 0.2), running(4.0, 0.4)]
    both, alone = estimate(polls, 4.0, RENDERS), estimate(polls, 4.0, [])
    assert both is not None
    assert alone is not None
    assert both.high - both.low < alone.high - alone.low
    assert estimate(polls, 4.0, [500.0] * 20) == alone


def test_a_queue_that_moves_is_followed() -> None:
    """The wait for those ahead, and a render."""
    eta = estimate([queued(10.0, 8), queued(20.0, 3)], 20.0, RENDERS)
    assert eta is not None
    assert eta.low < 6.0 + 10.0 < eta.high


def test_a_queue_before_the_render_is_no_part_of_it() -> None:
    """Renders are compared with renders."""
    waited = estimate([queued(98.0), running(100.0)], 100.0, RENDERS)
    fresh = estimate([running(1.0)], 1.0, RENDERS)
    assert waited == fresh


def test_a_job_and_its_callbacks_have_the_same_range() -> None:
    """One number for a bar, a page and a log."""
    service = FakeService(url="http://eta-1.test").queued().progress(0.2, 0.5)
    client = service.client()
    job = client.submit("x")
    assert job.eta() is None
    seen = []
    for _ in range(3):
        service.clock.advance(2.0)
        seen.append(job.poll())
    assert [result.eta for result in seen[:2]] == [None, None]
    assert seen[2].progress is not None
    assert seen[2].eta == seen[2].progress.eta == job.eta()
    assert isinstance(job.eta(), Eta)
    assert client.get_job("t").eta() is None


def test_renders_of_this_process_are_remembered_by_service() -> None:
    """Not those whose beginning or end was not seen."""
    service = FakeService(url="http://eta-2.test").queued().progress(0.5).done()
    service.known_job("t")
    client = service.client(poll_interval=1)
    client.generate("x")
    client.get_job("t").result()
    rarely = client.submit("x")
    for _ in range(3):
        service.clock.advance(60)
        rarely.refresh()
    assert rarely.done
    assert recent_renders("http://eta-2.test") == (1.0,)
    assert recent_renders("http://eta-3.test") == ()


def test_a_job_that_is_taken_up_again_with_its_polls_goes_on_where_it_was() -> None:
    """Each poll may be another process's, as in Django; the last one sees the end in time."""
    service = FakeService(url="http://eta-4.test").queued().progress(0.2, 0.4, 0.6).done()
    client = service.client(poll_interval=1)
    begun, whole, parts = time.time(), client.submit("x"), client.submit("x")
    polls: tuple[Poll, ...] = ()
    while not parts.done:
        service.clock.advance(1)
        with mock.patch("time.time", return_value=begun + service.clock.elapsed):
            parts = client.get_job(parts.id, submitted_at=begun, polls=polls)
        whole.refresh()
        parts.refresh()
        polls = parts.polls
        assert [poll.elapsed for poll in polls] == pytest.approx([p.elapsed for p in whole.polls])
        assert parts.eta() == whole.eta()
    assert parts.image().timings.queued == pytest.approx(whole.image().timings.queued)
    assert recent_renders("http://eta-4.test") == pytest.approx((3.0, 3.0))


def test_polls_of_machines_with_other_clocks_are_left_out() -> None:
    """One in the future, or before the one before it, has no meaning here."""
    service = FakeService()
    kept = [queued(2.0), running(5.0, 0.1), running(4.0, 0.2), running(6.0, 0.3), running(99.0)]
    job = service.client().get_job("t", submitted_at=time.time() - 10, polls=kept)
    assert [poll.elapsed for poll in job.polls] == [2.0, 5.0, 6.0]
    assert job.progress == kept[-1].progress


def test_polls_that_are_none_are_refused() -> None:
    """Such as the numbers that somebody kept of them."""
    with pytest.raises(InvalidRequestError, match="polls"):
        FakeService().client().get_job("t", polls=[0.5])  # type: ignore[list-item]


def test_what_is_remembered_is_bounded() -> None:
    """A process may live for months and talk to many services."""
    for number in range(300):
        remember_render(f"http://eta-{number}.test", 1.0)
    for number in range(100):
        remember_render("http://eta-299.test", float(number))
    assert recent_renders("http://eta-0.test") == ()
    assert len(recent_renders("http://eta-299.test")) == 64
