"""The protocol's other end: a function from a request to a response, over a store of jobs."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn
from urllib.parse import urljoin, urlsplit

import attrs

from .. import wire
from ..errors import InvalidRequestError
from ..models import Progress, State
from ..transports.base import HttpRequest, HttpResponse
from .engines.base import EngineConfig
from .store.images import EXTENSIONS
from .store.jobs import JobStore
from .store.records import JobState, JobStatus, KeyReusedError, StoreFullError, Submission

__all__ = ["ANYONE", "FEATURES", "LONG_POLL", "MAX_BODY", "App", "Caller", "Parked", "Refusal"]

MAX_BODY = 32 * 1024 * 1024
"""The longest body of a request, in bytes; a reference image travels in it."""

LONG_POLL = 25
"""The longest that a poll is parked, in seconds."""

FEATURES = ("idempotency-key", "cancel", "priority", "info")
"""What is announced besides long polls."""

PROGRESS_INTERVAL = 0.25
"""Seconds for which news of progress alone is held back."""

_IMAGE = re.compile(
    rf"/(?P<kind>image|preview)/(?P<task_id>[0-9a-f]{{32}})\.(?:{'|'.join(EXTENSIONS.values())})\Z",
    re.ASCII,
)
_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})")
_WITH_PROGRESS = re.compile(r"(?:^|[,;\s])progress\s*(?:$|[,;])")
_URGENCY = re.compile(r"(?:^|[,\s])u\s*=\s*([0-7])\b")
_ETAG = re.compile(r'"([\w.]{1,40})-(\d{1,18})"')
_NORMAL = 3
_CHUNK = 256 * 1024  # bytes of an image that are sent at once
_STATES = {
    JobState.QUEUED: State.QUEUED,
    JobState.RENDERING: State.RUNNING,
    JobState.DONE: State.DONE,
    JobState.FAILED: State.FAILED,
    JobState.CANCELLED: State.FAILED,
}


@attrs.frozen
class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """Becomes an error response.

    Attributes:
        status: Such as 404.
        message: For a person; the client shows it.
        headers: Sent besides the usual ones.
    """

    status: int
    message: str
    headers: Mapping[str, str] = attrs.field(factory=dict)

    def response(self) -> HttpResponse:
        """Return it as a response."""
        return _json(wire.encode_error(self.message), self.status, self.headers)


@attrs.frozen
class Caller:
    """Who sent a request.

    Attributes:
        name: Of its token; empty: none is needed.
        max_in_flight: Unfinished jobs that it may have; None: no limit of its own.
        max_side: The longest side of an image that it may ask for, in pixels; None: no limit.
    """

    name: str = ""
    max_in_flight: int | None = None
    max_side: int | None = None


ANYONE = Caller()
"""The caller of a server that asks for no token."""


@attrs.frozen
class Parked:
    """An answer to a poll that is not due yet.

    Attributes:
        task_id: The job that is waited for.
        seconds: After which it is answered whatever has happened.
        read: Return how the job stands; asked once for all who wait for it, after each change.
        is_due: Return True once there is something to tell, by what `read` has returned and the
            seconds since it was parked; asked after each change of the job and when
            `PROGRESS_INTERVAL` is over.
        answer: Return the response.
    """

    task_id: str
    seconds: float
    read: Callable[[], JobStatus | None]
    is_due: Callable[[JobStatus | None, float], bool]
    answer: Callable[[], HttpResponse]


class App:
    """Turns an `HttpRequest` into an `HttpResponse`, wherever it is mounted.

    Only the end of a path counts, and the addresses of images are relative to the one that was
    asked. Safe for threads. It never waits for a render.
    """

    def __init__(
        self,
        store: JobStore,
        engine: EngineConfig,
        *,
        features: tuple[str, ...] = FEATURES,
        max_body: int = MAX_BODY,
    ) -> None:
        """Keep the store and the engine's settings; neither is closed by the App.

        Args:
            store: Where jobs are kept.
            engine: Judges requests; workers load it elsewhere.
            features: What is announced; `handle` adds long polls where the caller can park.
            max_body: Bytes of a longer body are refused.
        """
        self._store, self._engine, self._features = store, engine, features
        self._max_body = max_body

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer a request at once."""
        response = self.handle(request)
        return response if isinstance(response, HttpResponse) else response.answer()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an App cannot be pickled: its jobs are in this process")

    def handle(
        self, request: HttpRequest, caller: Caller = ANYONE, *, can_park: bool = False
    ) -> HttpResponse | Parked:
        """Answer a request, or return a parked answer if the caller can wait for one.

        What the store raises on a broken disk (`OSError`, `sqlite3.Error`) goes through.
        """
        features = (f"long-poll={LONG_POLL}",) * can_park + self._features
        try:
            answer = self._route(request, caller, can_park)
        except Refusal as refusal:
            answer = refusal.response()
        if isinstance(answer, Parked):
            late = answer.answer
            return attrs.evolve(answer, answer=lambda: _with_features(late(), features))
        if request.method == "HEAD":
            answer = attrs.evolve(answer, chunks=b"")
        return _with_features(answer, features)

    def _route(self, request: HttpRequest, caller: Caller, can_park: bool) -> HttpResponse | Parked:
        path = _path(request.url)
        if path.endswith("/txt2img"):
            return self._posted(request, lambda: self._submit(request, caller))
        if path.endswith("/progress"):
            return self._posted(request, lambda: self._progress(request, caller, can_park))
        if path.endswith("/cancel"):
            return self._posted(request, lambda: self._cancel(request, caller))
        if found := _IMAGE.search(path):
            _allow(request, "GET", "HEAD")
            return self._fetch(found["kind"], found["task_id"])
        raise Refusal(404, "no such path; POST /txt2img and POST /progress are answered here")

    def _posted(
        self, request: HttpRequest, answer: Callable[[], HttpResponse | Parked]
    ) -> HttpResponse | Parked:
        _allow(request, "POST")
        if len(request.body) > self._max_body:
            raise Refusal(413, f"the body is longer than {self._max_body} bytes")
        try:
            return answer()
        except InvalidRequestError as exc:
            raise Refusal(422 if exc.field else 400, exc.message) from exc

    # Submitting ---------------------------------------------------------------------------

    def _submit(self, request: HttpRequest, caller: Caller) -> HttpResponse:
        wanted = wire.decode_image_request(request.body).with_seeds()
        self._engine.check(wanted)
        limit = caller.max_side
        if limit is not None and max(wanted.width, wanted.height) > limit:
            raise Refusal(422, f"width, height: your token allows {limit} pixels a side")
        submission = Submission(
            request=wanted,
            priority=_priority(request.headers),
            owner=caller.name,
            key=_key(request.headers),
            digest=hashlib.sha256(request.body).hexdigest(),
        )
        try:
            task_id = self._store.submit(submission, max_in_flight=caller.max_in_flight)
        except StoreFullError as exc:
            raise Refusal(429, exc.message, _retry_after(exc.retry_after)) from exc
        except KeyReusedError as exc:
            raise Refusal(422, "idempotency-key: it came with another body before") from exc
        return _json(wire.encode_submission(task_id))

    # Polling ------------------------------------------------------------------------------

    def _progress(
        self, request: HttpRequest, caller: Caller, can_park: bool
    ) -> HttpResponse | Parked:
        task_id = wire.decode_progress_query(request.body)
        status = self._status(task_id, caller)
        prefer = request.headers.get("prefer", "")
        wait = _WAIT.search(prefer)
        if wait is None or not can_park:
            return self._answer(request, status)
        known = _ETAG.fullmatch(request.headers.get("if-none-match", "").strip())
        applied = {"preference-applied": "wait"}
        if known is None and status.state.ended:
            return self._answer(request, status, applied)
        news = _News(
            known[1] if known else _state_tag(status),
            int(known[2]) if known else status.version,
            bool(_WITH_PROGRESS.search(prefer)),
        )
        if news.is_due(status, 0.0):
            return self._answer(request, status, applied)
        return Parked(
            task_id,
            min(float(wait[1]), LONG_POLL),
            lambda: self._store.status(task_id),
            news.is_due,
            lambda: self._answer_again(request, task_id, applied),
        )

    def _answer_again(
        self, request: HttpRequest, task_id: str, headers: Mapping[str, str]
    ) -> HttpResponse:
        try:
            return self._answer(request, self._status(task_id), headers)
        except Refusal as refusal:
            return refusal.response()

    def _answer(
        self, request: HttpRequest, status: JobStatus, headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        if status.state in (JobState.FAILED, JobState.CANCELLED):
            self._store.mark_fetched(status.id)  # there is nothing more to fetch
        progress = Progress(
            state=_STATES[status.state],
            status=_words(status),
            fraction=status.fraction,
            preview_url=_preview_url(request.url, status),
            image_url=_image_url(request.url, status),
        )
        body = wire.encode_progress(progress, info=status.info)
        return _json(body, 200, {"etag": _etag(status), **(headers or {})})

    def _cancel(self, request: HttpRequest, caller: Caller) -> HttpResponse:
        task_id = wire.decode_progress_query(request.body)
        self._status(task_id, caller)
        cancelled = self._store.cancel(task_id)
        response = self._answer(request, self._status(task_id))
        return response if cancelled else attrs.evolve(response, status=409)

    def _status(self, task_id: str, caller: Caller = ANYONE) -> JobStatus:
        """Return how a job stands. Who knows an image's address knows its task id, too."""
        status = self._store.status(task_id)
        if status is None or (caller.name and status.owner not in ("", caller.name)):
            raise Refusal(404, "no such task; it may have expired")
        return status

    # Fetching -----------------------------------------------------------------------------

    def _fetch(self, kind: str, task_id: str) -> HttpResponse:
        status = self._status(task_id)
        if kind == "preview":
            data = self._store.preview(task_id)
            if data is None:
                raise Refusal(404, "there is no preview now")
            return _response(200, "image/png", len(data), data)
        if self._store.image(status, 0, 0) is None or status.media_type is None:
            raise Refusal(404, "there is no image (yet)")
        return _response(200, status.media_type, status.size, self._sent_whole(status))

    def _sent_whole(self, status: JobStatus) -> Iterator[bytes]:
        """Yield an image piece by piece, and then note that it was fetched.

        Each is read when the one before has been sent: who reads slowly holds no more than one.
        """
        for start in range(0, status.size, _CHUNK):
            piece = self._store.image(status, start, _CHUNK)
            if piece is None or len(piece) < min(_CHUNK, status.size - start):
                raise OSError("the image was removed while it was sent")
            yield piece
        self._store.mark_fetched(status.id)


@attrs.frozen
class _News:
    """What a long poll waits for.

    Attributes:
        state: The state that the client knows, or that it found when it asked.
        version: The progress that it knows.
        with_progress: True if news of progress alone are wanted.
    """

    state: str
    version: int
    with_progress: bool

    def is_due(self, status: JobStatus | None, waited: float) -> bool:
        """Return True if the client should be answered, `waited` seconds after it asked."""
        if status is None:
            return True
        if self.state != _state_tag(status):
            return True
        moved = status.version != self.version
        return self.with_progress and moved and waited >= PROGRESS_INTERVAL


def _state_tag(status: JobStatus) -> str:
    return f"{status.state.value}.{status.attempt}"


def _etag(status: JobStatus) -> str:
    return f'"{_state_tag(status)}-{status.version}"'


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError as exc:
        raise Refusal(400, "the address is malformed") from exc


def _image_url(asked: str, status: JobStatus) -> str | None:
    if status.media_type is None:
        return None
    return urljoin(asked, f"image/{status.id}.{EXTENSIONS[status.media_type]}")


def _preview_url(asked: str, status: JobStatus) -> str | None:
    """The version at its end lets a page see that there is something new to show."""
    if not status.has_preview:
        return None
    return urljoin(asked, f"preview/{status.id}.png?{round(100 * status.fraction)}")


def _allow(request: HttpRequest, *methods: str) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise Refusal(405, f"use {allowed}", {"allow": allowed})


def _priority(headers: Mapping[str, str]) -> int:
    """Return the urgency of RFC 9218; what cannot be read is normal."""
    found = _URGENCY.search(headers.get("priority", ""))
    return int(found[1]) if found else _NORMAL


def _key(headers: Mapping[str, str]) -> str | None:
    key = headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise Refusal(400, "idempotency-key: must be 1 to 200 printable ASCII characters")
    return key


def _words(status: JobStatus) -> str:
    """Return the protocol's word; an engine's words must not be taken for success or failure."""
    if status.state is JobState.FAILED:
        return f"Error: {status.detail}"
    if status.position is not None:
        return f"Queue position {status.position}"
    return {
        JobState.DONE: "Done",
        JobState.CANCELLED: "Cancelled",
    }.get(status.state, "Processing")


def _retry_after(seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(seconds))}


def _json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return _response(status, "application/json", len(body), body, headers)


def _response(
    status: int,
    media_type: str,
    length: int,
    body: bytes | Iterator[bytes],
    more: Mapping[str, str] | None = None,
) -> HttpResponse:
    headers = {
        "content-type": media_type,
        "content-length": str(length),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }
    return HttpResponse(status, {**headers, **(more or {})}, body)


def _with_features(response: HttpResponse, features: tuple[str, ...]) -> HttpResponse:
    if not features:
        return response
    headers = {**response.headers, "imagelabs-features": ", ".join(features)}
    return attrs.evolve(response, headers=headers)
