"""A service that plays scripts, records what it was sent, and asserts about it."""

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs

from .. import wire
from ..client import ImageLabs
from ..errors import InvalidRequestError
from ..extensions import HEADER, Features, remember_features
from ..models import ImageRequest
from ..polling import Adaptive, FixedInterval
from ..transports.base import HttpRequest, HttpResponse
from .clock import FakeClock
from .script import Answer, Fault, JobScript, Run, Stage, as_answer, refusal
from .transport import FakeTransport

__all__ = ["FakeService", "SentRequest", "Submit"]

_IMAGE = re.compile(r"/images/(?P<task_id>.+)-(?P<link>[0-9]+)\.png\Z")
_DROPPED = Answer(fault=Fault.DROP)
_PREVIEW = re.compile(r"/previews/(?P<task_id>.+)\Z")


@attrs.frozen
class SentRequest:
    """One request that reached the service.

    Attributes:
        at: What it asked for.
        request: As it came.
        task_id: The job's id; `None` for a submit that was not accepted, and for odd requests.
        status: What was answered; `None`: nothing.
        time: When, in seconds of the service's clock.
    """

    at: Stage
    request: HttpRequest
    task_id: str | None
    status: int | None
    time: float

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON object in its body; empty if there is none."""
        answer: dict[str, Any] = json.loads(self.request.body or b"{}")
        return answer


@attrs.frozen
class Submit:
    """One wish for an image, however often it was sent until it was accepted or given up.

    Attributes:
        request: What was asked for.
        task_id: The job's id; `None`: it was not accepted, or the sender was not told.
        times_sent: 1, and 1 more for each time that it was sent again after a refusal.
    """

    request: ImageRequest
    task_id: str | None
    times_sent: int


class FakeService(JobScript):
    """An ImageLabs service for tests, in this process.

    Its own script, said with the methods of `JobScript`, is that of every job; `job` gives single
    jobs scripts of their own. Without a script each job is accepted and is done at its first poll.
    Safe for threads.

    Attributes:
        clock: What its jobs, and the clients that `client` makes, measure time by.
        url: The base address of these clients.
        sent: Every request that came, in order.
        submits: Every wish for an image, in order.
        features: What it announces beyond the protocol, such as ``"cancel, idempotency-key"``;
            empty: nothing, as the public service. It cancels jobs, and a submit with a key that
            it knows is the same wish again; it parks no polls.
        on_accepted: Called with the request of each job that is accepted; `None`: nobody is.
        on_request: Called with each request while its sender waits for the answer, which is
            decided by then; `None`: nobody is. For what has to happen in the middle of a poll.
    """

    def __init__(
        self,
        *,
        clock: FakeClock | None = None,
        url: str = "https://imagelabs.test",
        make_id: Callable[[ImageRequest], str] | None = None,
        features: str = "",
    ) -> None:
        """Start nothing.

        Args:
            clock: `None`: a `FakeClock`, by which no test waits.
            url: The base address of its clients.
            make_id: Makes the task id of an accepted job; `None`: ``task-1``, ``task-2``, ...
            features: As `imagelabs serve` announces them; empty: none, as the public service.
        """
        super().__init__()
        self.clock = FakeClock() if clock is None else clock
        self.url = url
        self.sent: list[SentRequest] = []
        self.submits: list[Submit] = []
        self.features = features
        self.on_accepted: Callable[[ImageRequest], object] | None = None
        self.on_request: Callable[[SentRequest], object] | None = None
        self._make_id = make_id
        self._outage: Answer | None = None
        self._in_order: deque[JobScript] = deque()
        self._by_prompt: dict[str, JobScript] = {}
        # Wishes that may be sent again, by key or body, with their places in `submits`.
        self._again: dict[bytes, tuple[Run, int]] = {}
        self._jobs: dict[str, Run] = {}
        self._before: dict[str, tuple[JobScript, ImageRequest]] = {}
        self._lock = threading.RLock()
        remember_features(url, {})  # what the service of an earlier test has announced is over

    def job(self, prompt: str | None = None) -> JobScript:
        """Return the script of a single job, to be filled by its methods.

        Args:
            prompt: Of every job with this prompt; `None`: of the next job that has none by its
                prompt. Scripts without a prompt are used once each, in order.
        """
        script = JobScript()
        with self._lock:
            if prompt is None:
                self._in_order.append(script)
            else:
                self._by_prompt[prompt] = script
        return script

    def known_job(self, task_id: str, prompt: str | ImageRequest = "an image") -> JobScript:
        """Return the script of a job that was accepted before, for `ImageLabs.get_job`.

        As long as it is empty, the job plays the service's own.

        Args:
            task_id: Its id.
            prompt: What was asked for, or all of the request.
        """
        script = JobScript()
        request = prompt if isinstance(prompt, ImageRequest) else ImageRequest(prompt)
        with self._lock:
            self._before[task_id] = script, request
        return script

    @contextmanager
    def outage(
        self, answer: Mapping[str, Any] | HttpResponse | BaseException | None = None
    ) -> Iterator[None]:
        """Let the service be out of order while the block lasts; no script goes on meanwhile.

        Args:
            answer: What each request gets, as in `answers`; `None`: its connection is dropped.
        """
        before, self._outage = self._outage, _DROPPED if answer is None else as_answer(answer)
        try:
            yield
        finally:
            self._outage = before

    def client(self, **options: Any) -> ImageLabs:
        """Return a client of this service, by its clock.

        Args:
            **options: The settings of `ImageLabs`, but for `base_url` and `transport`. A strategy
                given as `polling` brings its own clock.
        """
        interval, clock = options.pop("poll_interval", None), self.clock
        if interval is not None:
            options["polling"] = FixedInterval(interval, clock=clock.now, sleep=clock.sleep)
        options.setdefault("polling", Adaptive(clock=clock.now, sleep=clock.sleep))
        return ImageLabs(self.url, transport=self.transport(), **options)

    def transport(self) -> FakeTransport:
        """Return a transport to this service. It opens no socket."""
        return FakeTransport(self.answer, self.clock)

    # Answering ----------------------------------------------------------------------------

    def answer(self, request: HttpRequest) -> Answer:
        """Answer one request and record it."""
        with self._lock:
            at, task_id, answer = self._decide(urlsplit(request.url).path, request)
            told = answer.error is None and answer.fault in (None, Fault.CUT)
            status = answer.status if told else None
            sent = SentRequest(at, request, task_id, status, self.clock.now())
            self.sent.append(sent)
        if self.on_request is not None:  # not locked: others are answered meanwhile
            self.on_request(sent)
        if self.features:
            return attrs.evolve(answer, headers={**answer.headers, HEADER: self.features})
        return answer

    def _decide(self, path: str, request: HttpRequest) -> tuple[Stage, str | None, Answer]:
        if path.endswith("/txt2img"):
            return "submit", *self._submit(request)
        if path.endswith("/progress"):
            return "progress", *self._asked("progress", request)
        if path.endswith("/cancel") and Features.parse(self.features).cancel:
            return "cancel", *self._asked("cancel", request)
        if found := _PREVIEW.search(path):
            return "preview", *self._about(unquote(found["task_id"]), "preview", request)
        return "image", *self._image_of(path, request)

    def _submit(self, request: HttpRequest) -> tuple[str | None, Answer]:
        try:
            wanted = wire.decode_image_request(request.body)
        except InvalidRequestError as error:
            return None, refusal(422, error.message)
        key = request.headers.get("idempotency-key", "")
        wish = key.encode() or request.body
        run, place = self._again.pop(wish, (None, len(self.submits)))
        if run is None:
            run = self._script_of(wanted).begin(wanted)
            self.submits.append(Submit(wanted, None, 0))
        run.job.task_id = self._next_id(wanted)
        answer = self._outage or run.answer("submit", _origin(request))
        task_id = None if answer.fault or answer.error else wire.find_task_id(answer.body)
        before = self.submits[place]
        self.submits[place] = Submit(wanted, task_id, before.times_sent + 1)
        if task_id is not None:
            self._accept(run, task_id)
        elif key or _is_refusal(answer):
            self._again[wish] = run, place
        return task_id, answer

    def _next_id(self, wanted: ImageRequest) -> str:
        return f"task-{len(self._jobs) + 1}" if self._make_id is None else self._make_id(wanted)

    def _script_of(self, wanted: ImageRequest) -> JobScript:
        if wanted.prompt in self._by_prompt:
            return self._by_prompt[wanted.prompt]
        return self._in_order.popleft() if self._in_order else self

    def _accept(self, run: Run, task_id: str) -> None:
        run.job.task_id, run.job.accepted_at = task_id, self.clock.now()
        self._jobs[task_id] = run
        if self.on_accepted is not None:
            self.on_accepted(run.job.request)

    def _asked(self, at: Stage, request: HttpRequest) -> tuple[str | None, Answer]:
        try:
            task_id = wire.decode_progress_query(request.body)
        except InvalidRequestError as error:
            return None, refusal(422, error.message)
        return self._about(task_id, at, request)

    def _image_of(self, path: str, request: HttpRequest) -> tuple[str | None, Answer]:
        found = _IMAGE.search(path)
        if found is None:
            return None, refusal(404, "no such path")
        task_id = unquote(found["task_id"])
        if run := self._run(task_id):
            run.job.asked_link = int(found["link"])
        return self._about(task_id, "image", request)

    def _about(self, task_id: str, at: Stage, request: HttpRequest) -> tuple[str | None, Answer]:
        if self._outage is not None:
            return task_id, self._outage
        run = self._run(task_id)
        if run is None:
            return None, refusal(404, "no such task")
        run.job.elapsed = self.clock.now() - run.job.accepted_at
        return task_id, run.answer(at, _origin(request))

    def _run(self, task_id: str) -> Run | None:
        if task_id in self._before:
            script, request = self._before.pop(task_id)
            self._jobs[task_id] = run = script.begin(request, otherwise=self)
            run.job.task_id, run.job.accepted_at = task_id, self.clock.now()
        return self._jobs.get(task_id)

    # Asserting ----------------------------------------------------------------------------

    def count(self, at: Stage, task_id: str | None = None) -> int:
        """Return how many requests came.

        Args:
            at: Which ones.
            task_id: Of this job; `None`: of all.
        """
        return sum(one.at == at and task_id in (None, one.task_id) for one in self.sent)

    def assert_submitted_once(self, **fields: object) -> None:
        """Check that exactly one wish for an image came, and that it has these fields.

        One that was refused and sent again counts once. One that was sent again although it may
        have been accepted counts twice.

        Args:
            **fields: Of `ImageRequest`, such as ``prompt="a cat"``, or of its `extra_body`.

        Raises:
            AssertionError: It says what was sent instead.
        """
        if len(self.submits) != 1 or not _has(self.submits[0], fields):
            raise AssertionError(self._instead("exactly one submit", fields))

    def assert_submitted(self, **fields: object) -> None:
        """Check that some wish for an image with these fields came; see `assert_submitted_once`."""
        if not any(_has(submit, fields) for submit in self.submits):
            raise AssertionError(self._instead("a submit", fields))

    def assert_nothing_submitted(self) -> None:
        """Check that no wish for an image came; see `assert_submitted_once`."""
        if self.submits:
            raise AssertionError(self._instead("no submit", {}))

    def _instead(self, expected: str, fields: Mapping[str, object]) -> str:
        wanted = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        first = f"expected {expected}{' with ' * bool(fields)}{wanted}, but"
        if not self.submits:
            return f"{first} nothing was submitted"
        names = ["prompt", *(name for name in fields if name != "prompt")]
        lines = (f"  {n}. {_shown(s, names)}" for n, s in enumerate(self.submits, 1))
        return "\n".join([f"{first} {len(self.submits)} came:", *lines])


_ABSENT = object()


def _value(submit: Submit, name: str) -> object:
    return getattr(submit.request, name, submit.request.extra_body.get(name, _ABSENT))


def _has(submit: Submit, fields: Mapping[str, object]) -> bool:
    return all(_value(submit, name) == value for name, value in fields.items())


def _shown(submit: Submit, names: list[str]) -> str:
    values = ((name, _value(submit, name)) for name in names)
    parts = [f"{name} was not sent" if v is _ABSENT else f"{name}={v!r}" for name, v in values]
    times = f", sent {submit.times_sent} times" if submit.times_sent > 1 else ""
    end = f"accepted as {submit.task_id}" if submit.task_id else "not accepted"
    return f"{', '.join(parts)} ({end}{times})"


def _origin(request: HttpRequest) -> str:
    parts = urlsplit(request.url)
    return f"{parts.scheme}://{parts.netloc}"


def _is_refusal(answer: Answer) -> bool:
    """Return True if the sender can be sure that nothing was accepted."""
    if answer.error is not None:
        return getattr(answer.error, "delivered", None) == "no"
    if answer.fault is not None:
        return answer.fault is Fault.REFUSE
    return 400 <= answer.status < 500 or answer.status == 503
