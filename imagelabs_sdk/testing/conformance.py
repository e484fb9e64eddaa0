"""What a transport owes, checked over real sockets: for people who write one."""

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any
from unittest import mock

import attrs

from ..deadline import Deadline
from ..errors import (
    APIConnectionError,
    APIResponseError,
    APITimeoutError,
    ForbiddenAddressError,
)
from ..transports.base import HttpRequest, HttpResponse, Transport
from ..validation import invalid
from .peer import Peer

__all__ = ["PROMISES", "check_transport"]

_SOON = 0.3  # seconds: the deadline of a request that must not be answered in time
_LATE = 2.0  # seconds after its deadline by which it must have ended
_TIME = 8.0  # seconds: the deadline of all others
_LARGE = 8 * 1024 * 1024  # bytes; no transport should hold as much of a body at once
_THREADS, _ROUNDS = 8, 5


class _BrokenError(Exception):
    """A promise that was not kept, in plain words."""


@attrs.frozen
class _Scene:
    """What one check works with: a transport that nobody has used yet, and two servers."""

    transport: Transport
    peer: Peer
    other: Peer

    def send(
        self,
        path: str,
        *,
        seconds: float = _TIME,
        body: bytes = b"{}",
        to: str | None = None,
        method: str = "POST",
        **fields: Any,
    ) -> HttpResponse:
        request = HttpRequest(
            method=method,
            url=(self.peer.url if to is None else to) + path,
            headers={"content-type": "application/json"},
            body=b"" if method == "GET" else body,
            **{"cookies": {}, **fields},
        )
        return self.transport.send(request, deadline=Deadline.after(seconds))

    def read(self, path: str, **options: Any) -> bytes:
        with self.send(path, **options) as response:
            return response.read(1_000_000)

    def fail(self, path: str, **options: Any) -> APIConnectionError:
        """Return the error that a request, or the reading of its answer, ends with."""
        try:
            body = self.read(path, **options)
        except APIConnectionError as error:
            return error
        raise _BrokenError(f"it was answered with {body[:40]!r} instead of an APIConnectionError")

    def last_cookie(self, peer: Peer | None = None) -> str:
        return (peer or self.peer).received[-1].headers.get("cookie", "")


def _expect(kept: object, words: str) -> None:
    if not kept:
        raise _BrokenError(words)


# The promises: a name, a docstring in plain words, and how it is tried --------------------------


def answers(scene: _Scene) -> None:
    """Bring body and headers to the service, and the answer back, as they are."""
    with scene.send("/echo", body=b'{"a": "\xc3\xa4"}') as response:
        status, body = response.status, response.read(1000)
    (request,) = scene.peer.received
    _expect(request.body == b'{"a": "\xc3\xa4"}', f"the service got the body {request.body!r}")
    kind = request.headers.get("content-type")
    _expect(kind == "application/json", f"the service got the content-type {kind!r}")
    _expect((status, body) == (200, request.body), f"the caller got {status} and {body!r}")


def judges_nothing(scene: _Scene) -> None:
    """Return an answer with an error status like any other."""
    for status in (403, 404, 429, 500):
        with scene.send(f"/status/{status}") as response:
            got, body = response.status, response.read(1000)
            _expect(got == status, f"{status} became {got}")
            _expect(body == b'{"error": "words"}', f"the body of a {status} became {body!r}")
            _expect(response.headers.get("retry-after") == "7", f"headers of a {status} are lost")


def follows_no_redirect(scene: _Scene) -> None:
    """Return a redirect like any other answer, and ask nobody else."""
    with scene.send("/redirect") as response:
        status, location = response.status, response.headers.get("location")
        response.read(1000)
    _expect(not scene.peer.count("/target"), "it asked for the address that a redirect named")
    _expect((status, location) == (302, "/target"), f"the redirect became {status}, {location!r}")


def decodes(scene: _Scene) -> None:
    """Return a body free of content codings that the request allowed."""
    _expect(scene.read("/zipped") == b"plain text", "a gzip body came back as it was sent")


def sends_once(scene: _Scene) -> None:
    """Send a request once, whatever happens to it."""
    for path in ("/close", "/reset", "/status/500"):
        with suppress(APIConnectionError):
            scene.read(path)
        times = scene.peer.count(path)
        _expect(
            times == 1, f"a server that answered with {_DOES[path]} read the POST {times} times"
        )


def sends_once_over_a_kept_connection(scene: _Scene) -> None:
    """Send a request once, also when a connection that was used before breaks under it."""
    scene.read("/echo")
    scene.fail("/close")
    times = scene.peer.count("/close")
    _expect(times == 1, f"a server that read the POST and closed had it {times} times")


def says_that_nothing_was_delivered(scene: _Scene) -> None:
    """Say ``delivered="no"`` when the request surely never left."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    error = scene.fail("/", to=f"http://127.0.0.1:{port}")
    _expect(error.delivered == "no", f"a refused connection became delivered={error.delivered!r}")


def says_that_it_may_have_been_delivered(scene: _Scene) -> None:
    """Say ``delivered="maybe"`` when the request left and no answer came."""
    for path, seconds in (("/close", _TIME), ("/reset", _TIME), ("/silent", _SOON)):
        told = scene.fail(path, seconds=seconds).delivered
        _expect(told == "maybe", f"a server that answered with {_DOES[path]} became {told!r}")


def sends_nothing_after_its_deadline(scene: _Scene) -> None:
    """Send nothing when no time is left, and say so."""
    error = scene.fail("/echo", seconds=0.0)
    _expect(not scene.peer.received, "the request was sent although its deadline had passed")
    _expect(isinstance(error, APITimeoutError), f"it raised {_named(error)}, no APITimeoutError")
    _expect(error.delivered == "no", f"it said delivered={error.delivered!r}")


def ends_in_time_when_nobody_answers(scene: _Scene) -> None:
    """End at the deadline when the service reads the request and stays silent."""
    _in_time(scene, "/silent")


def ends_in_time_when_headers_drip(scene: _Scene) -> None:
    """End at the deadline when headers come byte by byte."""
    _in_time(scene, "/drip-head")


def ends_in_time_when_the_body_drips(scene: _Scene) -> None:
    """End the reading of a body at the deadline when it comes byte by byte."""
    _in_time(scene, "/drip-body")


def does_not_read_ahead(scene: _Scene) -> None:
    """Return before the body is there, so that the caller can stop at its own limit."""
    try:
        with scene.send("/endless", method="GET", seconds=1.0) as response:
            response.read(1_000_000)
    except APIResponseError:
        return
    except APITimeoutError as error:
        raise _BrokenError("a body without end was read until the deadline") from error
    raise _BrokenError("a body without end came to an end")


def inflates_in_steps(scene: _Scene) -> None:
    """Return a compressed body in pieces of bounded size."""
    with scene.send("/bomb", method="GET") as response:
        size = max((len(piece) for piece in response.iter_bytes()), default=0)
    _expect(size < _LARGE, f"64 kB became one piece of {size} bytes")


def notices_a_cut_body(scene: _Scene) -> None:
    """Raise `APIConnectionError` when a body breaks off."""
    scene.fail("/cut")
    scene.fail("/cut-chunks")


def reads_a_body_without_length(scene: _Scene) -> None:
    """Return a body that only the end of the connection ends."""
    body = scene.read("/until-close")
    _expect(body == b"all of it", f"it became {body!r}")


def sends_cookies(scene: _Scene) -> None:
    """Send the cookies of the request, and those that the origin has set since."""
    scene.read("/cookie", cookies={"own": "1"})
    _expect(scene.last_cookie() == "own=1", f"the cookies sent were {scene.last_cookie()!r}")
    scene.read("/echo", cookies={"own": "1"})
    sent = set(scene.last_cookie().split("; "))
    _expect("own=1" in sent, "the request's own cookie was not sent")
    _expect("crumb=fresh" in sent, "a cookie that the service had set was not sent back to it")


def keeps_cookies_to_their_origin(scene: _Scene) -> None:
    """Send no cookie that one origin has set to another one, which a port makes."""
    scene.read("/cookie")
    scene.read("/echo", to=scene.other.url)
    sent = scene.last_cookie(scene.other)
    _expect(not sent, f"another origin got the cookies {sent!r}")


def sends_no_cookies_to_strangers(scene: _Scene) -> None:
    """With ``cookies=None`` send no cookie, and keep none."""
    scene.read("/cookie", cookies=None)
    scene.read("/echo")
    sent = scene.last_cookie()
    _expect(not sent, f"the cookies of an answer to cookies=None were kept: {sent!r}")
    scene.read("/cookie")
    scene.read("/echo", cookies=None)
    _expect(not scene.last_cookie(), f"cookies=None sent {scene.last_cookie()!r}")


def guards_addresses(scene: _Scene) -> None:
    """With ``public_only`` connect to no private address; raise `ForbiddenAddressError`."""
    for host in ("127.0.0.1", "localhost"):
        where = f"http://{host}:{scene.peer.port}"
        try:
            scene.read("/echo", to=where, public_only=True, method="GET", cookies=None)
        except ForbiddenAddressError as error:
            _expect(error.delivered == "no", f"it said delivered={error.delivered!r}")
        except APIConnectionError as error:
            raise _BrokenError(f"{host} became {_named(error)}") from error
        _expect(not scene.peer.connections, f"it connected to {host}")


def guards_kept_connections(scene: _Scene) -> None:
    """With ``public_only`` use no connection to a private address that is open already."""
    scene.read("/echo")
    error = scene.fail("/guarded", public_only=True, method="GET", cookies=None)
    _expect(isinstance(error, ForbiddenAddressError), f"it raised {_named(error)}")
    _expect(not scene.peer.count("/guarded"), "the request went over the kept connection")


def survives_a_body_left_unread(scene: _Scene) -> None:
    """Answer the next request rightly after a response that was closed half read, and twice."""
    response = scene.send("/endless", method="GET")
    next(response.iter_bytes())
    response.close()
    response.close()
    _expect(scene.read("/echo", body=b"next") == b"next", "the next answer was not its own")


def serves_threads(scene: _Scene) -> None:
    """Give each of many threads its own answers."""
    wrong: list[str] = []

    def ask(name: str) -> None:
        for number in range(_ROUNDS):
            body = f"{name}-{number}".encode()
            try:
                if scene.read("/echo", body=body) != body:
                    wrong.append("a thread got the answer of another")
            except Exception as error:  # noqa: BLE001 - told in the thread that checks
                wrong.append(f"a thread got {_named(error)}")

    threads = [threading.Thread(target=ask, args=(f"thread-{n}",)) for n in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _expect(not wrong, wrong[0] if wrong else "")


def pickles(scene: _Scene) -> None:
    """Pickle, and work on the other side, also after use."""
    scene.read("/echo")
    try:
        twin: Transport = pickle.loads(pickle.dumps(scene.transport))  # noqa: S301 - our own
    except Exception as error:
        raise _BrokenError(f"pickle says: {error}") from error
    try:
        body = attrs.evolve(scene, transport=twin).read("/echo", body=b"twin")
    finally:
        twin.close()
    _expect(body == b"twin", f"the unpickled transport brought {body!r}")


def closes(scene: _Scene) -> None:
    """Close the connections of all threads, and open new ones when used again."""
    thread = threading.Thread(target=scene.read, args=("/echo",))
    thread.start()
    thread.join()
    scene.read("/echo")
    scene.transport.close()
    until = time.monotonic() + _LATE
    while scene.peer.open_connections and time.monotonic() < until:
        time.sleep(0.01)
    left = scene.peer.open_connections
    _expect(not left, f"{left} connections were still open after close()")
    _expect(scene.read("/echo", body=b"again") == b"again", "it does not work after close()")


_DOES = {
    "/close": "the end of the connection",
    "/reset": "a reset",
    "/silent": "silence",
    "/status/500": "500",
}


def _in_time(scene: _Scene, path: str) -> None:
    begin, error = time.monotonic(), None
    with suppress(_BrokenError):
        error = scene.fail(path, seconds=_SOON)
    took = time.monotonic() - begin
    _expect(took < _SOON + _LATE, f"with a deadline of {_SOON} s it took {took:.1f} s")
    if not isinstance(error, APITimeoutError):
        told = "it was answered" if error is None else f"it raised {_named(error)}"
        raise _BrokenError(f"{told}, no APITimeoutError")


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


_CHECKS: tuple[Callable[[_Scene], None], ...] = (
    answers,
    judges_nothing,
    follows_no_redirect,
    decodes,
    sends_once,
    sends_once_over_a_kept_connection,
    says_that_nothing_was_delivered,
    says_that_it_may_have_been_delivered,
    sends_nothing_after_its_deadline,
    ends_in_time_when_nobody_answers,
    ends_in_time_when_headers_drip,
    ends_in_time_when_the_body_drips,
    does_not_read_ahead,
    inflates_in_steps,
    notices_a_cut_body,
    reads_a_body_without_length,
    sends_cookies,
    keeps_cookies_to_their_origin,
    sends_no_cookies_to_strangers,
    guards_addresses,
    guards_kept_connections,
    survives_a_body_left_unread,
    serves_threads,
    pickles,
    closes,
)

PROMISES: Mapping[str, str] = {check.__name__: check.__doc__ or "" for check in _CHECKS}
"""What `check_transport` checks: the name of each promise, and what it says."""


def check_transport(
    transport_factory: Callable[[], Transport],
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    time_limit: float = 30.0,
) -> None:
    """Check that a transport keeps every promise, over real sockets on 127.0.0.1.

    Prints a line for each promise. Takes some seconds.

    Args:
        transport_factory: Makes a transport; called once for each promise, and closed after it.
        only: Names in `PROMISES`: check these alone; empty: all.
        skip: Names in `PROMISES`: leave these out.
        time_limit: Seconds for each promise: one that hangs is broken.

    Raises:
        AssertionError: Some are broken; it says which, and how.
        InvalidRequestError: There is no promise of that name.
    """
    for name in {*only, *skip} - PROMISES.keys():
        raise invalid("only" if name in only else "skip", name, f"known are {', '.join(PROMISES)}")
    broken = []
    with mock.patch.dict(os.environ, {"NO_PROXY": "*", "no_proxy": "*"}):
        for check in _CHECKS:
            name = check.__name__
            if (only and name not in only) or name in skip:
                continue
            reason = _try(check, transport_factory, time_limit)
            print(f"{'FAIL' if reason else 'ok':6}{name}: {reason or PROMISES[name]}")  # noqa: T201
            if reason:
                broken.append(f"- {name}: {PROMISES[name]}\n  But {reason}.")
    if broken:
        raise AssertionError("\n".join([f"broken promises ({len(broken)}):", *broken]))


def _try(
    check: Callable[[_Scene], None], factory: Callable[[], Transport], time_limit: float
) -> str:
    """Return how the promise was broken; empty if it was kept."""
    reasons: list[str] = []
    scene = _Scene(factory(), Peer(), Peer())

    def run() -> None:
        try:
            check(scene)
        except _BrokenError as broken:
            reasons.append(str(broken))
        except Exception as error:  # noqa: BLE001 - a foreign error is a broken promise
            reasons.append(f"it raised {_named(error)}")

    # A thread of its own, so that a transport that hangs does not hang the suite.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(time_limit)
    if thread.is_alive():
        reasons.append(f"it had not ended after {time_limit:g} s")
    scene.peer.close()
    scene.other.close()
    scene.transport.close()
    return reasons[0] if reasons else ""
