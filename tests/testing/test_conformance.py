"""The promises of a transport: ours keep them, and each broken one is found and told.

A wrapper breaks one promise of a transport that keeps all; `check_transport` must say so.
"""

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import attrs
import pytest
import requests

from imagelabs_sdk import (
    APIConnectionError,
    APIStatusError,
    Deadline,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    InvalidRequestError,
    RequestsTransport,
)
from imagelabs_sdk.testing import PROMISES, check_transport
from imagelabs_sdk.transports.observed import ObservedTransport

Send = Callable[[HttpRequest, Deadline], HttpResponse]


def test_our_default_transport_keeps_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """The promises are those that it was built on; each has its line."""
    check_transport(RequestsTransport)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].split() for line in lines] == [["ok", name] for name in PROMISES]


def test_a_transport_that_reports_keeps_every_promise_of_the_one_inside() -> None:
    """Hooks may look on, and change nothing."""
    check_transport(
        lambda: ObservedTransport(RequestsTransport(), on_request=repr, on_response=repr)
    )


def test_a_session_of_ones_own_keeps_all_but_what_is_its_own() -> None:
    """Its cookie jar goes by names of hosts, without ports; and it is its owner's to close."""
    check_transport(
        lambda: RequestsTransport(session=requests.Session()),
        skip={"keeps_cookies_to_their_origin", "closes"},
    )


def test_a_function_as_a_transport_keeps_what_does_not_need_a_network() -> None:
    """Time, errors and threads are the same for everyone."""
    check_transport(
        lambda: HandlerTransport(echo),
        only={"serves_threads", "pickles", "sends_nothing_after_its_deadline"},
    )


def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, {}, request.body)


# One broken promise each ----------------------------------------------------------------


class Wrapper:
    """A transport that keeps every promise; those below break one each."""

    def __init__(self) -> None:
        self.inner = RequestsTransport()

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return self.inner.send(request, deadline=deadline)

    def close(self) -> None:
        self.inner.close()


class ChangesBodies(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return super().send(attrs.evolve(request, body=request.body + b" "), deadline=deadline)


class ChangesHeaders(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        changed = attrs.evolve(request, headers={"content-type": "text/plain"})
        return super().send(changed, deadline=deadline)


class ChangesStatuses(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return attrs.evolve(super().send(request, deadline=deadline), status=201)


class LosesHeaders(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return attrs.evolve(super().send(request, deadline=deadline), headers={})


class Judges(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        response = super().send(request, deadline=deadline)
        if response.status >= 400:
            raise APIStatusError("refused", status_code=response.status)
        return response


class FollowsRedirects(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        response = super().send(request, deadline=deadline)
        if response.status == 302:
            url = request.url.replace("/redirect", response.headers["location"])
            return super().send(attrs.evolve(request, url=url), deadline=deadline)
        return response


class LeavesCodings(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        response = super().send(request, deadline=deadline)
        if "content-encoding" in response.headers:
            return attrs.evolve(response, chunks=gzip.compress(response.read(1000)))
        return response


class SendsTwice(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        try:
            return super().send(request, deadline=deadline)
        except APIConnectionError:
            return super().send(request, deadline=deadline)


class SendsTwiceWhatWasRefused(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        response = super().send(request, deadline=deadline)
        return super().send(request, deadline=deadline) if response.status >= 500 else response


class SendsTwiceOnceItWasUsed(SendsTwice):
    used = False

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        if self.used:
            return super().send(request, deadline=deadline)
        self.used = True
        return self.inner.send(request, deadline=deadline)


class IsNeverSure(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        try:
            return super().send(request, deadline=deadline)
        except APIConnectionError as error:
            error.delivered = "maybe"
            raise


class IsAlwaysSure(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        try:
            return super().send(request, deadline=deadline)
        except APIConnectionError as error:
            error.delivered = "no"
            raise


class KnowsNoDeadline(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return super().send(request, deadline=Deadline())


class SaysTimeoutsAreConnections(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        try:
            return super().send(request, deadline=deadline)
        except APIConnectionError as error:
            raise APIConnectionError("gone", delivered=error.delivered) from error


class RaisesWhatItLikes(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        try:
            return super().send(request, deadline=deadline)
        except APIConnectionError as error:
            raise OSError("gone") from error


class ReadsAhead(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        response = super().send(request, deadline=deadline)
        return attrs.evolve(response, chunks=b"".join(response.iter_bytes()))


class CutsWithoutAWord(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        response = super().send(request, deadline=deadline)
        return attrs.evolve(response, chunks=self.quiet(response.iter_bytes()))

    def quiet(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        with suppress(APIConnectionError):
            yield from pieces


class EndsEndlessBodies(CutsWithoutAWord):
    def quiet(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield next(pieces)


class NeedsALength(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        response = super().send(request, deadline=deadline)
        known = "content-length" in response.headers
        return response if known else attrs.evolve(response, chunks=b"")


class ForgetsCookies(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return RequestsTransport().send(request, deadline=deadline)


class SendsNoCookies(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return super().send(attrs.evolve(request, cookies=None), deadline=deadline)


class SpreadsCookies(Wrapper):
    jar: dict[str, str] = {}  # noqa: RUF012 - replaced, not changed

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        if request.cookies is not None:
            request = attrs.evolve(request, cookies={**request.cookies, **self.jar})
        response = super().send(request, deadline=deadline)
        if "set-cookie" in response.headers:
            name, _, value = response.headers["set-cookie"].partition(";")[0].partition("=")
            self.jar = {name: value}
        return response


class SendsCookiesToStrangers(Wrapper):
    used = False

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        if request.cookies is None and self.used:
            request = attrs.evolve(request, cookies={})
        self.used = True
        return super().send(request, deadline=deadline)


class KeepsCookiesOfStrangers(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return super().send(attrs.evolve(request, cookies=request.cookies or {}), deadline=deadline)


class ConnectsAnywhere(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        return super().send(attrs.evolve(request, public_only=False), deadline=deadline)


class RefusesAfterConnecting(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        if request.public_only:
            plain = attrs.evolve(request, public_only=False)
            super().send(plain, deadline=deadline).close()
        return super().send(request, deadline=deadline)


class MixesAnswersUp(Wrapper):
    left: Iterator[bytes] | None = None

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        if self.left is not None:
            return HttpResponse(200, {}, self.left)
        response = super().send(request, deadline=deadline)
        self.left = response.iter_bytes()
        return attrs.evolve(response, chunks=self.left, on_close=lambda: None)


class MixesThreadsUp(Wrapper):
    def __init__(self) -> None:
        super().__init__()
        self.together = threading.Barrier(8)

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        self.request = request
        self.together.wait(5)
        return super().send(self.request, deadline=deadline)


class FailsInThreads(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        if b"thread-3" in request.body:
            raise RuntimeError("one thread only")
        return super().send(request, deadline=deadline)


class DoesNotPickle(Wrapper):
    def __reduce__(self) -> Any:
        raise TypeError("not me")


class PicklesAWreck(Wrapper):
    def __reduce__(self) -> Any:
        return HandlerTransport, (wreck,)


def wreck(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200)


class StaysOpen(Wrapper):
    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def close(self) -> None:
        if self.closed:
            super().close()
        self.closed = True


class IsGoneAfterClose(Wrapper):
    gone = False

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        if self.gone:
            raise RuntimeError("closed")
        return super().send(request, deadline=deadline)

    def close(self) -> None:
        self.gone = True
        super().close()


BROKEN: list[tuple[type[Wrapper], str, str]] = [
    (ChangesBodies, "answers", "the service got the body"),
    (ChangesHeaders, "answers", "the service got the content-type 'text/plain'"),
    (ChangesStatuses, "answers", "the caller got 201"),
    (Judges, "judges_nothing", "it raised APIStatusError: refused"),
    (ChangesStatuses, "judges_nothing", "403 became 201"),
    (NeedsALength, "reads_a_body_without_length", "it became b''"),
    (LosesHeaders, "judges_nothing", "headers of a 403 are lost"),
    (FollowsRedirects, "follows_no_redirect", "it asked for the address that a redirect named"),
    (LosesHeaders, "follows_no_redirect", "the redirect became 302, None"),
    (LeavesCodings, "decodes", "a gzip body came back as it was sent"),
    (SendsTwice, "sends_once", "the end of the connection read the POST 2 times"),
    (SendsTwiceWhatWasRefused, "sends_once", "answered with 500 read the POST 2 times"),
    (SendsTwiceOnceItWasUsed, "sends_once_over_a_kept_connection", "closed had it 2 times"),
    (IsNeverSure, "says_that_nothing_was_delivered", "refused connection became .*'maybe'"),
    (IsAlwaysSure, "says_that_it_may_have_been_delivered", "end of the connection became 'no'"),
    (KnowsNoDeadline, "sends_nothing_after_its_deadline", "answered with b'{}' instead of"),
    (SaysTimeoutsAreConnections, "sends_nothing_after_its_deadline", "no APITimeoutError"),
    (IsNeverSure, "sends_nothing_after_its_deadline", "it said delivered='maybe'"),
    (KnowsNoDeadline, "ends_in_time_when_nobody_answers", r"it took [45]\.\d s"),
    (KnowsNoDeadline, "ends_in_time_when_headers_drip", r"it took [45]\.\d s"),
    (KnowsNoDeadline, "ends_in_time_when_the_body_drips", r"it took [45]\.\d s"),
    (SaysTimeoutsAreConnections, "ends_in_time_when_nobody_answers", "no APITimeoutError"),
    (CutsWithoutAWord, "ends_in_time_when_the_body_drips", "it was answered, no APITimeoutError"),
    (RaisesWhatItLikes, "ends_in_time_when_headers_drip", "it raised OSError: gone"),
    (ReadsAhead, "does_not_read_ahead", "was read until the deadline"),
    (EndsEndlessBodies, "does_not_read_ahead", "a body without end came to an end"),
    (ReadsAhead, "inflates_in_steps", "64 kB became one piece of 67108864 bytes"),
    (CutsWithoutAWord, "notices_a_cut_body", "answered with b'half' instead of"),
    (SendsNoCookies, "sends_cookies", "the cookies sent were ''"),
    (ForgetsCookies, "sends_cookies", "that the service had set was not sent back to it"),
    (SpreadsCookies, "keeps_cookies_to_their_origin", "another origin got .*crumb=fresh"),
    (SendsCookiesToStrangers, "sends_no_cookies_to_strangers", "cookies=None sent 'crumb=fresh'"),
    (KeepsCookiesOfStrangers, "sends_no_cookies_to_strangers", "were kept: 'crumb=fresh'"),
    (ConnectsAnywhere, "guards_addresses", "answered|it connected to 127.0.0.1"),
    (RefusesAfterConnecting, "guards_addresses", "it connected to 127.0.0.1"),
    (IsNeverSure, "guards_addresses", "it said delivered='maybe'"),
    (SaysTimeoutsAreConnections, "guards_addresses", "127.0.0.1 became APIConnectionError: gone"),
    (ConnectsAnywhere, "guards_kept_connections", "answered with b'' instead of"),
    (RefusesAfterConnecting, "guards_kept_connections", "the request went over the kept"),
    (SaysTimeoutsAreConnections, "guards_kept_connections", "it raised APIConnectionError"),
    (MixesAnswersUp, "survives_a_body_left_unread", "the next answer was not its own|longer than"),
    (MixesThreadsUp, "serves_threads", "a thread got the answer of another"),
    (FailsInThreads, "serves_threads", "a thread got RuntimeError: one thread only"),
    (DoesNotPickle, "pickles", "pickle says: not me"),
    (PicklesAWreck, "pickles", "the unpickled transport brought b''"),
    (StaysOpen, "closes", "[12] connections were still open after close"),
    (IsGoneAfterClose, "closes", "it raised RuntimeError: closed"),
]


@pytest.mark.parametrize(
    ("transport", "promise", "words"),
    BROKEN,
    ids=[f"{transport.__name__}-{promise}" for transport, promise, _ in BROKEN],
)
def test_a_broken_promise_is_found_and_told(
    transport: type[Wrapper], promise: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words that say what was seen, once in a line and once in the error."""
    with pytest.raises(AssertionError, match=words) as caught:
        check_transport(transport, only={promise})
    assert str(caught.value).startswith(f"broken promises (1):\n- {promise}: {PROMISES[promise]}")
    assert capsys.readouterr().out.startswith(f"FAIL  {promise}: ")


def test_each_promise_was_broken_once() -> None:
    """A check that nobody has seen fail holds nothing."""
    assert {promise for _, promise, _ in BROKEN} == set(PROMISES)


def test_a_wrapper_that_breaks_nothing_keeps_all() -> None:
    """What is found above is found because of what each wrapper does."""
    check_transport(Wrapper, skip={"answers"})


class AsksForNoCodings(Wrapper):
    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        headers = {**request.headers, "accept-encoding": "identity"}
        return super().send(attrs.evolve(request, headers=headers), deadline=deadline)


def test_a_transport_without_gzip_has_nothing_to_inflate() -> None:
    """Codings are the transport's own choice."""
    check_transport(AsksForNoCodings, only={"decodes", "inflates_in_steps"})


def test_a_transport_that_hangs_does_not_hang_the_suite() -> None:
    """Somebody will write one."""
    released = threading.Event()

    class Hangs(Wrapper):
        def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
            released.wait(20)
            return super().send(request, deadline=deadline)

    try:
        with pytest.raises(AssertionError, match=r"it had not ended after 0\.2 s"):
            check_transport(Hangs, only={"answers"}, time_limit=0.2)
    finally:
        released.set()


@pytest.mark.parametrize("argument", ["only", "skip"])
def test_a_promise_that_does_not_exist_is_refused(argument: str) -> None:
    """A misspelt name would leave a promise unchecked."""
    with pytest.raises(InvalidRequestError, match="known are answers, judges_nothing"):
        check_transport(RequestsTransport, **{argument: {"send_once"}})  # type: ignore[arg-type]
