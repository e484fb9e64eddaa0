"""Everything that can go wrong, as a tree that follows the way of the data.

    ImageLabsError                                 code
    ├── InvalidRequestError     (ValueError)       (several)           bad input; nothing was sent
    ├── APIConnectionError      (ConnectionError)  api_connection      no answer came back
    │   ├── APITimeoutError     (TimeoutError)     api_timeout         ... in time
    │   └── ForbiddenAddressError                  forbidden_address   a host that is not public
    ├── APIStatusError                             api_status          an error status
    │   ├── AuthenticationError                    authentication      401: no valid key
    │   ├── PermissionDeniedError                  permission_denied   403: not allowed
    │   ├── RateLimitError                         rate_limited        429: too many requests
    │   └── ChallengeError                         challenge           a Cloudflare check
    ├── APIResponseError                           api_response        an unusable answer
    ├── SubmissionUnknownError                     submission_unknown  accepted or not: unknown
    ├── BatchStoppedError                          batch_stopped       the service is down
    ├── JobError                                   job
    │   ├── JobFailedError                         job_failed          the service says so
    │   │   └── JobRefusedError                    job_refused         ... by moderation or policy
    │   ├── JobTimeoutError     (TimeoutError)     job_timeout         still running
    │   ├── JobStalledError                        job_stalled         cannot ask, or nothing moves
    │   └── JobStoppedError                        job_stopped         the caller asked to stop
    ├── NotSupportedError                          not_supported       the service cannot do that
    └── DownloadError                              download            no image could be fetched

Every error pickles, compares by value and reads the same in another process. No message holds a
prompt, a cookie or a proxy's password; text of the service is sanitized.
"""

import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import attrs

from ._redact import redact, sanitize_text

__all__ = [
    "APIConnectionError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "AcceptedJob",
    "AuthenticationError",
    "BatchStoppedError",
    "ChallengeError",
    "Delivered",
    "DownloadError",
    "FinishedImage",
    "ForbiddenAddressError",
    "ImageLabsError",
    "InvalidRequestError",
    "JobError",
    "JobFailedError",
    "JobRefusedError",
    "JobStalledError",
    "JobStoppedError",
    "JobTimeoutError",
    "NotSupportedError",
    "PermissionDeniedError",
    "RateLimitError",
    "SubmissionUnknownError",
    "attach_job",
]

log = logging.getLogger(__name__)

_FORBIDDEN = "forbidden_address"  # also the code of the download that was refused for it

Delivered = Literal["no", "maybe", "yes"]
"""Did the service accept the request?

``"no"``: no, so sending it again cannot buy an image twice. ``"maybe"``: nobody can tell.
``"yes"``: it did, or it judged the request and answered.
"""


class FinishedImage(Protocol):
    """What can be done with the image of an `AcceptedJob`; it is a `GeneratedImage`."""

    @property
    def url(self) -> str:
        """The image's URL."""
        ...  # pragma: no cover - a Protocol has no body

    def read(self) -> bytes:
        """Return the image's bytes."""
        ...  # pragma: no cover - a Protocol has no body

    def save(self, path: str) -> Path:
        """Write the image to a file."""
        ...  # pragma: no cover - a Protocol has no body


class AcceptedJob(Protocol):
    """What can be done with the job of an error; it is a `Job`."""

    @property
    def id(self) -> str:
        """The service's name of the job."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def done(self) -> bool:
        """True when the job is known to have ended."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The labels that the caller gave it."""
        ...  # pragma: no cover - a Protocol has no body

    def wait(self) -> "AcceptedJob":
        """Go on waiting for the image."""
        ...  # pragma: no cover - a Protocol has no body

    def result(self) -> FinishedImage:
        """Wait and return the image."""
        ...  # pragma: no cover - a Protocol has no body

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain JSON."""
        ...  # pragma: no cover - a Protocol has no body


@attrs.define(slots=False, eq=False, str=False, repr=False)
class ImageLabsError(Exception):
    """The root: catch it to catch everything that this library raises on purpose.

    Attributes:
        message: One line for a person.
        code: A stable name of what happened, for programs, such as ``"api_timeout"``.
        job: The job that the error is about; `None` when none had been accepted.
            `job.wait()` goes on where the error happened.
        endpoint: Method and URL without its query, such as ``"POST https://host/progress"``;
            empty when no request was involved.
        task_id: The service's name of the job, also in another process; `None` without one.
        delivered: ``"no"``: no image was bought, sending again is safe; ``"maybe"``: nobody can
            tell; ``"yes"``: the service accepted or judged the request. `None`: no request was
            involved. With a `job` it is ``"yes"``: the job has been accepted.
        retry_after: Seconds that the service asks to wait, or `None`.
        request_id: The service's name of the exchange (``x-request-id`` or ``cf-ray``), to be
            quoted when you ask its people; `None` without one.
        body: The first 2 KB of the answer, sanitized; empty when there was none.
    """

    message: str
    code: str = attrs.field(default="error", kw_only=True)
    job: AcceptedJob | None = attrs.field(default=None, kw_only=True)
    endpoint: str = attrs.field(default="", kw_only=True)
    task_id: str | None = attrs.field(default=None, kw_only=True)
    delivered: Delivered | None = attrs.field(default=None, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    request_id: str | None = attrs.field(default=None, kw_only=True)
    body: str = attrs.field(default="", kw_only=True)

    @property
    def retryable(self) -> bool | None:
        """True: doing the same again can help, and buys no image twice. False: it cannot help.

        `None`: nobody knows, or it would buy another image. With a `job`, what is done again is to
        wait for it.
        """
        if self.job is not None:
            return True
        return {"no": True, "yes": False}.get(self.delivered or "")

    def to_curl(self) -> str | None:
        """Return a curl command for the request that failed; `None`: there was none.

        Cookies, keys and prompts are not in it. One for ``/txt2img`` buys an image.
        """
        from .curl import curl_command  # only wanted when somebody looks for a mistake

        url = getattr(self, "url", "")
        return curl_command(self.endpoint or (f"GET {url}" if url else ""), self.task_id)

    def attach_job(self, job: AcceptedJob) -> None:
        """Attach the job that this error is about, unless one is attached already."""
        if self.job is None:
            self.job, self.task_id, self.delivered = job, job.id, "yes"

    def redact(self, secrets: Iterable[str]) -> None:
        """Cut message and body where they reveal one of `secrets`."""
        self.body = redact(self.body, secrets)
        self.set_message(redact(self.message, secrets))

    def set_message(self, message: str) -> None:
        """Replace the message."""
        self.message = message
        self.args = (message,)

    def __str__(self) -> str:
        where = [self.endpoint] if self.endpoint and self.endpoint not in self.message else []
        if self.task_id:
            where.append(f"task {sanitize_text(self.task_id, 64)}")
        return f"{self.message} ({', '.join(where)})" if where else self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def _fields(self) -> dict[str, Any]:
        return {a.name: getattr(self, a.name) for a in attrs.fields(type(self))}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self.message))

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with positional arguments and loses the rest.
        extra = {k: v for k, v in self.__dict__.items() if k == "__notes__"}
        return _revive, (type(self), self._fields()), extra


class attach_job(AbstractContextManager[None]):  # noqa: N801 - used as a function is
    """Name the job in whatever is raised in the block, so that no accepted job is lost.

    Errors of this library get it attached; others, `KeyboardInterrupt` among them, get a note
    (from Python 3.11 on) and a line in the log.
    """

    def __init__(self, job: AcceptedJob) -> None:
        self._job = job

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ImageLabsError):
            error.attach_job(self._job)
        # A `GeneratorExit` says that the reader of a generator stopped reading.
        elif error is not None and not isinstance(error, GeneratorExit):
            note = f"the job goes on at the service: task id {sanitize_text(self._job.id, 4096)}"
            if sys.version_info >= (3, 11):  # pragma: no branch - by Python's version
                error.add_note(note)
            log.warning("interrupted by %s; %s", type(error).__name__, note)


def _revive(kind: type[ImageLabsError], fields: dict[str, Any]) -> ImageLabsError:
    return kind(**fields)


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class InvalidRequestError(ImageLabsError, ValueError):
    """A value that cannot be used was passed; nothing was sent.

    Attributes:
        field: The argument's name.
        code: Why, such as ``"too_small"``; the list is at the head of `imagelabs_sdk.validation`.
        params: What the message speaks of, such as ``{"low": 1, "high": 4096}``.
    """

    code: str = "invalid"
    delivered: Delivered | None = "no"
    field: str = ""
    params: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def retryable(self) -> bool:
        """False: the same value is refused again."""
        return False


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class APIConnectionError(ImageLabsError, ConnectionError):
    """No usable HTTP answer came back: refused, reset, cut off, or TLS failed.

    `delivered` is ``"no"`` (sending it again is safe) or ``"maybe"``.
    """

    code: str = "api_connection"
    delivered: Delivered | None = "maybe"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class APITimeoutError(APIConnectionError, TimeoutError):
    """The answer did not come in time."""

    code: str = "api_timeout"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class ForbiddenAddressError(APIConnectionError):
    """An image's host leads to an address that is not on the public internet; nothing was sent.

    If that is meant, give the client ``allow_private_hosts=True``.
    """

    code: str = _FORBIDDEN

    @property
    def retryable(self) -> bool:
        """False: the address stays where it leads."""
        return False


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class APIStatusError(ImageLabsError):
    """The answer has an error status.

    `delivered` is ``"no"`` when the request was refused before any work, ``"yes"`` when the service
    judged it, ``"maybe"`` when the status does not tell.

    Attributes:
        status_code: The HTTP status.
    """

    code: str = "api_status"
    delivered: Delivered | None = "maybe"
    status_code: int

    @property
    def retryable(self) -> bool | None:
        """False also for a poll that the service refuses, such as of a task that it forgot."""
        refused = 400 <= self.status_code < 500 and self.status_code not in (408, 425, 429)
        return False if refused else super().retryable


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class AuthenticationError(APIStatusError):
    """401: the service wants a valid `api_key`, cookie or header."""

    code: str = "authentication"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class PermissionDeniedError(APIStatusError):
    """403: the service knows who asks and does not allow it."""

    code: str = "permission_denied"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class RateLimitError(APIStatusError):
    """429: too many requests. `retry_after` is set if the service said for how long."""

    code: str = "rate_limited"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class ChallengeError(APIStatusError):
    """A Cloudflare check stands in front of the service.

    Pass the check in a browser and give the client its cookies (``cf_clearance``) and its
    exact ``user-agent``, or use `CurlTransport`, whose TLS handshake is a browser's.
    """

    code: str = "challenge"

    @property
    def retryable(self) -> bool:
        """False: a person has to pass the check first."""
        return False


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class APIResponseError(ImageLabsError):
    """An answer came that cannot be used: no JSON, no object, no task id, too large.

    `delivered` is as in `APIStatusError`.
    """

    code: str = "api_response"
    delivered: Delivered | None = "maybe"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class SubmissionUnknownError(ImageLabsError):
    """The request for an image may or may not have been accepted; it was not sent again.

    There is no task id to ask for. Sending again may buy the image twice: that is the
    caller's decision. The reason is the error's ``__cause__``. `delivered` is ``"maybe"``.
    """

    code: str = "submission_unknown"
    delivered: Delivered | None = "maybe"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class BatchStoppedError(ImageLabsError):
    """A batch stopped because the service answered none of several submits in a row.

    `Batch.unfinished` has the jobs that were accepted. The last failure is the ``__cause__``.

    Attributes:
        unsubmitted: Positions of the items that were taken and not submitted, counted from 0.
            The items behind them were not taken.
    """

    code: str = "batch_stopped"
    unsubmitted: tuple[int, ...] = ()


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class JobError(ImageLabsError):
    """An accepted job has not led to an image.

    Attributes:
        waited: Seconds since submit, by a monotonic clock.
        status: The service's latest word for how the job stands; empty before the first.
    """

    code: str = "job"
    delivered: Delivered | None = "yes"
    waited: float = 0.0
    status: str = ""

    @property
    def retryable(self) -> bool | None:
        """True: `job.wait()` goes on; the job may be healthy."""
        return True


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class JobFailedError(JobError):
    """The service says that the job failed, or that it is done and names no image."""

    code: str = "job_failed"

    @property
    def retryable(self) -> bool | None:
        """`None`: another submit may succeed, and buys another image."""
        return None


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class JobRefusedError(JobFailedError):
    """The service refused the job by moderation or policy: the same words are refused again."""

    code: str = "job_refused"

    @property
    def retryable(self) -> bool:
        """False: change the prompt."""
        return False


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class JobTimeoutError(JobError, TimeoutError):
    """The job was still running when the time was over; it may yet finish on the server.

    `job.wait()` goes on waiting; `client.get_job(error.task_id)` does so from another process.
    """

    code: str = "job_timeout"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class JobStalledError(JobError):
    """The service could not be asked how the job stands, or its answer did not change any more.

    Either many polls in a row failed, and the last failure is the ``__cause__``; or neither status
    nor progress moved for `stall_timeout`. The job may be healthy: `job.wait()` goes on.
    """

    code: str = "job_stalled"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class JobStoppedError(JobError):
    """The caller asked to stop with `stop`; nothing more was sent.

    The job goes on at the service and `job.wait()` goes on waiting. Without a `job` nothing had
    been accepted, and `delivered` is ``"no"``.
    """

    code: str = "job_stopped"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class NotSupportedError(ImageLabsError):
    """The service has not announced that it can do this; nothing was sent."""

    code: str = "not_supported"


@attrs.define(slots=False, eq=False, str=False, repr=False, kw_only=True)
class DownloadError(ImageLabsError):
    """The finished image could not be fetched, or what came is not an image.

    Attributes:
        code: ``"download"``; ``"forbidden_address"`` if its host must not be asked: then the
            cause is a `ForbiddenAddressError`.
        status_code: The HTTP status, or `None` when there was another reason.
        url: The image's URL, shortened; without its query, which may be a key.
    """

    code: str = "download"
    status_code: int | None = None
    url: str = ""

    @property
    def retryable(self) -> bool:
        """True unless its host refuses it (a fresh link was asked for already) or is not asked."""
        status = self.status_code or 0
        if self.code == _FORBIDDEN:
            return False
        return not 400 <= status < 500 or status in (408, 425, 429)
