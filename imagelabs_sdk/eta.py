"""How long a job may still take: a range in seconds, or nothing if nothing is known."""

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence

from .models import Eta, State
from .polling import Poll

__all__ = ["estimate", "recent_renders", "remember_render"]

_MAX_RENDERS = 64  # of one service that are remembered
_MAX_SERVICES = 256
_ENOUGH = 8  # renders that say something about the next one
_LEAST_SHARE, _MOST_SHARE = 0.2, 3.0  # of the extrapolated rest, between which the truth lies
_SLACK = 1.0  # seconds by which polls may be late


def estimate(polls: Sequence[Poll], elapsed: float, renders: Sequence[float]) -> Eta | None:
    """Return how long a job may still take; `None`: nothing is known about it.

    It is the range of what earlier renders of the same service took from here on, cut to what the
    reported fraction promises. Simulated (`benchmarks.simulation`), the truth lies in it in more
    than 8 of 10 cases for every law of render times; less often where a render of a minute or
    more reports a progress that is much faster at its beginning or at its end.

    Args:
        polls: Those that were answered, oldest first.
        elapsed: Seconds since the submit, now.
        renders: How many seconds the latest renders of the same service took.
    """
    if not polls or polls[-1].progress.state.ended:
        return None
    if polls[-1].progress.state is State.QUEUED:
        return _from_queue(polls, elapsed, renders)
    since = elapsed - _begun(polls)
    usual, extrapolated = _from_renders(renders, since), _from_progress(polls, elapsed)
    if usual is None or extrapolated is None:
        return usual or extrapolated
    low, high = max(usual.low, extrapolated.low), min(usual.high, extrapolated.high)
    return Eta(low, high) if low <= high else extrapolated


def _begun(polls: Sequence[Poll]) -> float:
    """Return when rendering began, in seconds since the submit: between two polls."""
    queued = [poll.elapsed for poll in polls if poll.progress.state is State.QUEUED]
    if not queued:
        return 0.0
    first = next(p.elapsed for p in polls if p.elapsed > queued[-1])
    return (queued[-1] + first) / 2.0


def _from_renders(renders: Sequence[float], since: float) -> Eta | None:
    """Return the middle of what those renders still took that had gone on for as long."""
    left = sorted(each - since for each in renders if each > since)
    if len(renders) < _ENOUGH or len(left) < _ENOUGH // 2:
        return None
    low, high = left[len(left) // 20], left[-1 - len(left) // 20]
    return Eta(max(low - _SLACK, 0.0), high + _SLACK)


def _from_progress(polls: Sequence[Poll], elapsed: float) -> Eta | None:
    """Return what the reported fraction promises, if it moves."""
    moving = [poll for poll in polls if 0.0 < (poll.progress.fraction or 0.0) < 1.0]
    if len(moving) < 2 or moving[-1] is not polls[-1]:
        return None
    # The later half, because progress may be faster at its beginning or at its end.
    first, last = moving[(len(moving) - 1) // 2], moving[-1]
    before, now = first.progress.fraction or 0.0, last.progress.fraction or 0.0
    if now <= before or now == moving[-2].progress.fraction:
        return None
    rest = (1.0 - now) * (last.elapsed - first.elapsed) / (now - before)
    since = elapsed - last.elapsed
    low, high = rest * _LEAST_SHARE - since, rest * _MOST_SHARE - since + _SLACK
    return Eta(max(low, 0.0), max(high, _SLACK))


def _from_queue(polls: Sequence[Poll], elapsed: float, renders: Sequence[float]) -> Eta | None:
    """Return the time for those ahead, as fast as they have gone so far, and one render."""
    own = _from_renders(renders, 0.0)
    placed = [poll for poll in polls if poll.progress.queue_position is not None]
    if own is None or len(placed) < 2:
        return None
    first, last = placed[0], placed[-1]
    gone = (first.progress.queue_position or 0) - (last.progress.queue_position or 0)
    if gone <= 0:
        return None
    wait = (last.progress.queue_position or 0) * (last.elapsed - first.elapsed) / gone
    wait -= elapsed - last.elapsed
    return Eta(max(wait * 0.5, 0.0) + own.low, max(wait * 2.0, 0.0) + own.high)


_renders: "OrderedDict[str, deque[float]]" = OrderedDict()
_lock = threading.Lock()


def recent_renders(base_url: str) -> Sequence[float]:
    """Return how long the latest renders of a service took, as this process has seen them."""
    with _lock:
        return tuple(_renders.get(base_url, ()))


def remember_render(base_url: str, seconds: float) -> None:
    """Remember how long a render took."""
    with _lock:
        _renders.setdefault(base_url, deque(maxlen=_MAX_RENDERS)).append(seconds)
        _renders.move_to_end(base_url)
        if len(_renders) > _MAX_SERVICES:
            _renders.popitem(last=False)
