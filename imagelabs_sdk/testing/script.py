"""What the fake service does with one job: steps in order, said in the caller's words."""

import enum
import json
import struct
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import quote

import attrs

from .. import validation, wire
from ..models import ImageRequest, Progress, State
from ..transports.base import HttpResponse
from ..validation import invalid

__all__ = [
    "Answer",
    "FakeJob",
    "Fault",
    "JobScript",
    "Stage",
    "Step",
    "as_answer",
    "png",
    "refusal",
]

Stage = Literal["submit", "progress", "preview", "image", "cancel"]
"""Which of a job's requests: ``POST /txt2img``, ``/progress`` or ``/cancel``, or the GET of its
unfinished or finished image."""

_CHALLENGE = b"<!DOCTYPE html><title>Just a moment...</title>"
_PAGE = b"<!DOCTYPE html><title>Maintenance</title><p>Back soon"
_MOST = 100_000  # steps that one word may add
_HTML = {"content-type": "text/html"}
_JSON = {"content-type": "application/json"}
_PNG = {"content-type": "image/png"}
_Self = TypeVar("_Self", bound="JobScript")


class Fault(enum.Enum):
    """What happens in place of a proper answer."""

    DROP = "drop"  # the request is read, then the connection closes
    HANG = "hang"  # the request is read, and nothing comes back
    REFUSE = "refuse"  # nobody listens: the request is not sent
    CUT = "cut"  # half of the body is sent, then the connection closes


@attrs.frozen
class Answer:
    """One answer of the fake service.

    Attributes:
        status: HTTP status.
        headers: By lower-case name.
        body: All of it, also when `fault` cuts it.
        fault: What goes wrong with it; `None`: nothing.
        error: Raised by the in-process transport instead; over a socket the connection is dropped.
    """

    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    fault: Fault | None = None
    error: BaseException | None = None


def as_answer(given: Mapping[str, Any] | HttpResponse | BaseException) -> Answer:
    """Return what `JobScript.answers` takes as an answer."""
    if isinstance(given, Mapping):
        return Answer(200, _JSON, json.dumps(dict(given)).encode())
    if isinstance(given, BaseException):
        return Answer(error=given)
    return Answer(given.status, given.headers, b"".join(given.iter_bytes()))


@attrs.define(eq=False)
class FakeJob:
    """One job at the fake service.

    Attributes:
        request: What was asked for.
        image: The bytes of its image.
        preview: Those of the unfinished one that the latest poll told; `None`: it told none.
        cancelled: True once it is.
        task_id: Its id, once it is accepted.
        accepted_at: When, in seconds of the service's clock.
        elapsed: Seconds since then.
        link: Number of the link that the next poll tells; it changes when one expires.
        asked_link: Number of the link that was asked for last.
    """

    request: ImageRequest
    image: bytes
    preview: bytes | None = None
    cancelled: bool = False
    task_id: str = ""
    accepted_at: float = 0.0
    elapsed: float = 0.0
    link: int = 1
    asked_link: int = 1

    def image_url(self, origin: str) -> str:
        """Return the image's current address at `origin`."""
        return f"{origin}/images/{quote(self.task_id, safe='')}-{self.link}.png"

    def preview_url(self, origin: str) -> str | None:
        """Return the address of the unfinished image, another for each; `None`: there is none."""
        if self.preview is None:
            return None
        return f"{origin}/previews/{quote(self.task_id, safe='')}?{zlib.crc32(self.preview):x}"


@attrs.frozen(eq=False)
class Step:
    """One step of a script.

    Attributes:
        at: Which of the job's requests it answers.
        say: Makes the answer, given the job and the origin that was asked.
        repeats: Whether it goes on for ever when it is the script's last step.
        until: Tells when it is over; `None`: after one answer.
    """

    at: Stage
    say: Callable[[FakeJob, str], Answer]
    repeats: bool = True
    until: Callable[[FakeJob], bool] | None = None


class JobScript:
    """The steps of one job, in order; each method adds some and returns the script.

    A step answers one request. The last step of a script answers all that follow, unless `times`
    says how often. Requests without a step are answered well: the job is accepted, done at its
    first poll, and its image is whole.

    A failure strikes where the script stands: the submit before any word about progress, then the
    polls, and the image after `done`. Say ``at="submit"``, ``"progress"``, ``"preview"``,
    ``"image"`` or ``"cancel"`` to place it elsewhere. A bad value raises `InvalidRequestError`.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._image: bytes | None = None
        self._stage: Stage = "submit"

    # How the job goes on ------------------------------------------------------------------

    def queued(self: _Self, polls: int = 1) -> _Self:
        """Let so many polls find it in the queue, its position counting down to 1."""
        for position in range(validation.count("polls", polls, 1, _MOST), 0, -1):
            self._say_progress(State.QUEUED, f"Queue position {position}", 0.0)
        return self

    def progress(
        self: _Self, *fractions: float, status: str = "Processing", preview: bytes | None = None
    ) -> _Self:
        """Let one poll after the other find it at these fractions, 0.0 to 1.0.

        Args:
            fractions: Such as ``0.1, 0.6``.
            status: The service's word.
            preview: The bytes of the unfinished image; `None`: these polls tell none.
        """
        preview = _bytes("preview", preview)
        for fraction in fractions:
            checked = validation.number("fractions", fraction, 0.0, 1.0)
            self._say_progress(State.RUNNING, status, checked, preview)
        return self

    def takes(self: _Self, seconds: float) -> _Self:
        """Let it run for `seconds` of the service's clock after it was accepted."""
        validation.seconds("seconds", seconds)

        def say(job: FakeJob, _: str) -> Answer:
            return _progress(State.RUNNING, "Processing", min(job.elapsed / seconds, 1.0))

        return self._add("progress", say, 1, until=lambda job: job.elapsed >= seconds)

    def never_finishes(self: _Self) -> _Self:
        """Let every poll from here on find it half done."""

        def say(_: FakeJob, __: str) -> Answer:
            return _progress(State.RUNNING, "Processing", 0.5)

        return self._add("progress", say, 1, until=lambda _: False)

    def done(self: _Self, image: bytes | None = None) -> _Self:
        """Let it be finished.

        Args:
            image: The bytes of the image; `None`: a white PNG of the size that was asked for.
        """
        self._image = _bytes("image", image)
        self._add("progress", _done, None)
        self._stage = "image"
        return self

    def fails(self: _Self, reason: str = "the drawing failed") -> _Self:
        """Let the service say that the job failed: its status is ``Error: reason``."""
        return self._say_progress(State.FAILED, f"Error: {reason}", None)

    # What goes wrong around it ------------------------------------------------------------

    def rate_limited(
        self: _Self,
        retry_after: float | None = None,
        *,
        at: Stage | None = None,
        times: int | None = None,
    ) -> _Self:
        """Answer 429.

        Args:
            retry_after: Seconds that the service asks to wait; `None`: it does not say.
            at: Which request; `None`: where the script stands.
            times: How often; `None`: once, or for ever if it is the last step.
        """
        headers = {}
        if retry_after is not None:
            headers["retry-after"] = str(validation.number("retry_after", retry_after, 0.0, 1e9))
        return self._answer(refusal(429, "too many requests", headers), at, times)

    def refuses(
        self: _Self,
        reason: str = "not allowed",
        *,
        status: int = 422,
        at: Stage | None = None,
        times: int | None = None,
    ) -> _Self:
        """Answer `status` with `reason` in its body. Other arguments as in `rate_limited`."""
        validation.count("status", status, 300, 599)
        return self._answer(refusal(status, reason), at, times)

    def challenge(self: _Self, *, at: Stage | None = None, times: int | None = None) -> _Self:
        """Answer with a Cloudflare check. Arguments as in `rate_limited`."""
        headers = {**_HTML, "cf-mitigated": "challenge"}
        return self._answer(Answer(403, headers, _CHALLENGE), at, times)

    def html(self: _Self, *, at: Stage | None = None, times: int | None = None) -> _Self:
        """Answer 200 with a web page. Arguments as in `rate_limited`."""
        return self._answer(Answer(200, _HTML, _PAGE), at, times)

    def unreachable(self: _Self, *, at: Stage | None = None, times: int | None = None) -> _Self:
        """Refuse the connection: surely nothing was sent. Arguments as in `rate_limited`.

        Over a socket, where somebody has to listen, it is `drops_connection`.
        """
        return self._answer(Answer(fault=Fault.REFUSE), at, times)

    def drops_connection(
        self: _Self, *, at: Stage | None = None, times: int | None = None
    ) -> _Self:
        """Read the request and close the connection. Arguments as in `rate_limited`.

        Whether a submit was accepted is then unknown: the SDK does not send it again.
        """
        return self._answer(Answer(fault=Fault.DROP), at, times)

    def hangs(self: _Self, *, at: Stage | None = None, times: int | None = None) -> _Self:
        """Read the request and never answer. Arguments as in `rate_limited`."""
        return self._answer(Answer(fault=Fault.HANG), at, times)

    def answers(
        self: _Self,
        answer: Mapping[str, Any] | HttpResponse | BaseException,
        *,
        at: Stage | None = None,
        times: int | None = None,
    ) -> _Self:
        """Give any other answer.

        Args:
            answer: The JSON object of an answer with status 200, a whole response, or an exception
                that the in-process transport raises.
            at: As in `rate_limited`.
            times: As in `rate_limited`.
        """
        return self._answer(as_answer(answer), at, times)

    def link_expires(self: _Self, *, times: int = 1) -> _Self:
        """Let the image's link have expired (403); the link that the next poll tells works.

        Args:
            times: How many links in a row have expired when they are asked for.
        """
        validation.count("times", times, 1, _MOST)

        def say(job: FakeJob, _: str) -> Answer:
            job.link = job.asked_link + 1
            return refusal(403, "the link has expired")

        return self._add("image", say, 1, until=lambda job: job.asked_link > times)

    def half_image(self: _Self, *, times: int | None = None) -> _Self:
        """Break the image off halfway. `times` as in `rate_limited`."""

        def say(job: FakeJob, _: str) -> Answer:
            return attrs.evolve(_image(job.image), fault=Fault.CUT)

        return self._add("image", say, times)

    # How it is done -----------------------------------------------------------------------

    def _say_progress(
        self: _Self, state: State, status: str, fraction: float | None, preview: bytes | None = None
    ) -> _Self:
        def say(job: FakeJob, origin: str) -> Answer:
            job.preview = preview
            return _progress(state, status, fraction, job.preview_url(origin))

        return self._add("progress", say, None)

    def _answer(self: _Self, answer: Answer, at: Stage | None, times: int | None) -> _Self:
        if at is not None and at not in get_args(Stage):
            raise invalid("at", at, f"must be one of {', '.join(get_args(Stage))}")
        stage = self._stage if at is None else at
        return self._add(stage, lambda _, __: answer, times)

    def _add(
        self: _Self,
        at: Stage,
        say: Callable[[FakeJob, str], Answer],
        times: int | None,
        until: Callable[[FakeJob], bool] | None = None,
    ) -> _Self:
        for _ in range(1 if times is None else validation.count("times", times, 1, _MOST)):
            self._steps.append(Step(at, say, repeats=times is None, until=until))
        if at == "progress" and self._stage == "submit":
            self._stage = "progress"
        return self

    def begin(self, request: ImageRequest, *, otherwise: "JobScript | None" = None) -> "Run":
        """Return a new job's own way through this script; if it is empty, through `otherwise`."""
        script = self if self._steps or otherwise is None else otherwise
        image = script._image or png(request.width, request.height)
        return Run(FakeJob(request, image), deque(script._steps))


class Run:
    """One job's way through its script.

    Attributes:
        job: The job.
    """

    def __init__(self, job: FakeJob, steps: "deque[Step]") -> None:
        self.job = job
        self._last = steps[-1] if steps else None
        self._steps: dict[Stage, deque[Step]] = {
            stage: deque(step for step in steps if step.at == stage) for stage in get_args(Stage)
        }

    def answer(self, at: Stage, origin: str) -> Answer:
        """Return the answer to the next request of this stage."""
        if at == "progress" and self.job.cancelled:
            return _CANCELLED
        steps = self._steps[at]
        while steps and steps[0].until is not None and steps[0].until(self.job):
            steps.popleft()
        if not steps:
            return self._well(at, origin)
        step = steps[0]
        stays = step.until is not None or (step is self._last and step.repeats)
        if not stays:
            steps.popleft()
        return step.say(self.job, origin)

    def _well(self, at: Stage, origin: str) -> Answer:
        if at == "submit":
            return Answer(200, _JSON, wire.encode_submission(self.job.task_id))
        if at == "image":
            return _image(self.job.image)
        if at == "preview":
            return _image(self.job.preview)
        if at == "cancel":
            self.job.cancelled = True
            return _CANCELLED
        return _done(self.job, origin)


def _bytes(name: str, value: bytes | None) -> bytes | None:
    if value is not None and not isinstance(value, bytes):
        raise invalid(name, type(value).__name__, "must be bytes")
    return value


def _progress(
    state: State, status: str, fraction: float | None, preview_url: str | None = None
) -> Answer:
    told = Progress(state=state, status=status, fraction=fraction, preview_url=preview_url)
    return Answer(200, _JSON, wire.encode_progress(told))


_CANCELLED = _progress(State.FAILED, "Cancelled", None)


def _done(job: FakeJob, origin: str) -> Answer:
    url = job.image_url(origin)
    done = Progress(state=State.DONE, status="Done", fraction=1.0, image_url=url)
    return Answer(200, _JSON, wire.encode_progress(done))


def refusal(status: int, reason: str, headers: Mapping[str, Any] | None = None) -> Answer:
    """Return an error with `reason` in its JSON."""
    headers = headers or {}
    return Answer(status, {**_JSON, **headers}, json.dumps({"error": reason}).encode())


def _image(content: bytes | None) -> Answer:
    return refusal(404, "no such image") if content is None else Answer(200, _PNG, content)


def png(width: int, height: int) -> bytes:
    """Return a white PNG of this size, in one bit a pixel."""
    row = b"\0" + b"\xff" * ((width + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(row * height, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
