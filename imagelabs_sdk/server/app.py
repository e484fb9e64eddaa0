"""The protocol's other end: a function from a request to a response."""

import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NoReturn
from urllib.parse import urljoin, urlsplit

import attrs

from .. import wire
from ..errors import InvalidRequestError
from ..models import Progress, State
from ..transports.base import HttpRequest, HttpResponse
from .engines.render import Engine, Render, RenderStatus

__all__ = ["MAX_BODY", "App"]

MAX_BODY = 32 * 1024 * 1024
"""No longer body of a request is read, in bytes; a reference image travels in it."""

_RETRY_AFTER = 5  # seconds, told to who comes when the house is full
_IMAGE = re.compile(r"/(?P<kind>image|preview)/(?P<task_id>[\w-]+)\.png\Z", re.ASCII)


@attrs.frozen
class _Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """Becomes an error response."""

    status: int
    message: str
    headers: Mapping[str, str] = attrs.field(factory=dict)


class App:
    """Answers `HttpRequest` with `HttpResponse`, wherever it is mounted.

    Only the end of a path counts, and the addresses of images are beside the one that was
    asked. Safe for threads, for one process: jobs are kept in memory. It does not pickle, for
    the same reason.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        keep: float = 3600.0,
        max_jobs: int = 1000,
        cache_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is opened.

        Args:
            engine: Draws.
            keep: Seconds for which a job is known after somebody saw that it had ended.
            max_jobs: No more are known at once; the one first seen to end makes room. If none
                has ended, a new request is answered with 429.
            cache_bytes: For finished images, so that they are not drawn at each request;
                0: none is kept.
            clock: A monotonic clock, in seconds.
        """
        self._engine = engine
        self._tasks = _Tasks(keep, max_jobs, clock)
        self._image_cache = _ImageCache(cache_bytes)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer a request. What an engine raises, besides `InvalidRequestError`, goes through."""
        try:
            response = self._answer(request)
        except _Refused as refusal:
            body = wire.encode_error(refusal.message)
            response = _json(body, refusal.status, refusal.headers)
        return attrs.evolve(response, chunks=b"") if request.method == "HEAD" else response

    def __reduce__(self) -> NoReturn:
        raise TypeError("an App cannot be pickled: its jobs are in this process")

    def _answer(self, request: HttpRequest) -> HttpResponse:
        path = _path(request.url)
        if path.endswith("/txt2img"):
            return _json(self._posted(request, self._submit))
        if path.endswith("/progress"):
            return _json(self._posted(request, self._progress))
        if found := _IMAGE.search(path):
            _allow(request, "GET", "HEAD")
            return _png(self._bytes(found["kind"], found["task_id"]))
        raise _Refused(404, "no such path; POST /txt2img and POST /progress are answered here")

    # Asking -----------------------------------------------------------------------------

    def _posted(self, request: HttpRequest, answer: Callable[[HttpRequest], bytes]) -> bytes:
        _allow(request, "POST")
        if len(request.body) > MAX_BODY:
            raise _Refused(413, f"the body is longer than {MAX_BODY} bytes")
        try:
            return answer(request)
        except InvalidRequestError as exc:
            raise _Refused(422 if exc.field else 400, exc.message) from exc

    def _submit(self, request: HttpRequest) -> bytes:
        wanted = wire.decode_image_request(request.body).with_seeds()
        return wire.encode_submission(self._tasks.add(lambda: self._engine.start(wanted)))

    def _progress(self, request: HttpRequest) -> bytes:
        task_id = wire.decode_progress_query(request.body)
        standing = self._tasks.standing(task_id)
        progress = Progress(
            state=standing.state,
            status=_status(standing),
            fraction=standing.fraction,
            preview_url=_preview_url(request.url, task_id, standing),
            image_url=_image_url(request.url, task_id, standing),
        )
        return wire.encode_progress(progress)

    # Fetching ---------------------------------------------------------------------------

    def _bytes(self, kind: str, task_id: str) -> bytes:
        if kind == "preview":
            data = self._tasks.get(task_id).drawing.preview()
            if data is None:
                raise _Refused(404, "there is no preview now")
            return data
        if self._tasks.standing(task_id).state is not State.DONE:
            raise _Refused(404, "there is no image (yet)")
        return self._make_image(task_id)

    def _make_image(self, task_id: str) -> bytes:
        """From the shelf, or drawn; who wants it meanwhile waits for that instead of drawing."""
        task = self._tasks.get(task_id)
        with task.drawn_by_one:
            data = self._image_cache.get(task_id)
            if data is None:
                data = task.drawing.image()
                self._image_cache.put(task_id, data)
        return data


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError as exc:
        raise _Refused(400, "the address is malformed") from exc


def _image_url(asked: str, task_id: str, standing: RenderStatus) -> str | None:
    done = standing.state is State.DONE
    return urljoin(asked, f"image/{task_id}.png") if done else None


def _preview_url(asked: str, task_id: str, standing: RenderStatus) -> str | None:
    """The percentage at its end lets a page see that there is something new to show."""
    percent = round(100 * (standing.fraction or 0.0))
    return urljoin(asked, f"preview/{task_id}.png?{percent}") if standing.has_preview else None


def _allow(request: HttpRequest, *methods: str) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise _Refused(405, f"use {allowed}", {"allow": allowed})


def _status(standing: RenderStatus) -> str:
    """The service's words; those of an engine must not be taken for a success or a failure."""
    if standing.state is State.DONE:
        return "Done"
    if standing.state is State.FAILED:
        return f"Error: {standing.words or 'the drawing failed'}"
    return standing.words or standing.state.value


def _json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return _response(status, "application/json", body, headers or {})


def _png(body: bytes) -> HttpResponse:
    return _response(200, "image/png", body, {})


def _response(status: int, kind: str, body: bytes, more: Mapping[str, str]) -> HttpResponse:
    headers = {"content-type": kind, "content-length": str(len(body)), "cache-control": "no-store"}
    return HttpResponse(status, {**headers, **more}, body)


# What is remembered -------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Task:
    """A drawing, and the lock under which its image is made."""

    drawing: Render
    drawn_by_one: threading.Lock = attrs.field(factory=threading.Lock)


class _Tasks:
    """The jobs, bounded in number and in time.

    An engine is never asked anything under `_lock`; submits wait for one another at `_submit_lock`.
    """

    def __init__(self, keep: float, most: int, clock: Callable[[], float]) -> None:
        self._keep, self._most, self._clock = keep, most, clock
        self._known: dict[str, _Task] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()  # when we first saw it, in order
        self._lock, self._submit_lock = threading.Lock(), threading.Lock()

    def add(self, start: Callable[[], Render]) -> str:
        """Start a drawing, if there is room for it, and give it a name nobody can guess."""
        task_id = secrets.token_hex(16)  # no dash in front that a shell would misread
        with self._submit_lock:
            self._make_room()
            task = _Task(start())
            with self._lock:
                self._known[task_id] = task
        return task_id

    def get(self, task_id: str) -> _Task:
        with self._lock:
            self._expire()
            if task_id not in self._known:
                raise _Refused(404, "no such task; it may have expired")
            return self._known[task_id]

    def standing(self, task_id: str) -> RenderStatus:
        return self._poll(task_id, self.get(task_id))

    def _poll(self, task_id: str, task: _Task) -> RenderStatus:
        standing = task.drawing.standing()
        with self._lock:
            if standing.state.ended and task_id in self._known:
                self._ended.setdefault(task_id, self._clock())
        return standing

    def _expire(self) -> None:
        now = self._clock()
        while self._ended and next(iter(self._ended.values())) + self._keep <= now:
            self._forget_one()

    def _forget_one(self) -> None:
        """The job that was first seen to have ended."""
        task_id, _ = self._ended.popitem(last=False)
        del self._known[task_id]

    def _make_room(self) -> None:
        with self._lock:
            self._expire()
            full = len(self._known) >= self._most and not self._ended
            unseen = dict(self._known) if full else {}
        for task_id, task in unseen.items():  # some may have ended with nobody asking
            self._poll(task_id, task)
        with self._lock:
            while len(self._known) >= self._most:
                if not self._ended:
                    headers = {"retry-after": str(_RETRY_AFTER)}
                    raise _Refused(429, "too many unfinished jobs", headers)
                self._forget_one()


class _ImageCache:
    """The latest images, bounded in bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, task_id: str) -> bytes | None:
        with self._lock:
            if task_id in self._images:
                self._images.move_to_end(task_id)
            return self._images.get(task_id)

    def put(self, task_id: str, data: bytes) -> None:
        if len(data) > self._most:
            return
        with self._lock:
            self._images[task_id] = data
            self._size += len(data)
            while self._size > self._most:
                self._size -= len(self._images.popitem(last=False)[1])
