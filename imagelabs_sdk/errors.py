"""Everything that can go wrong, as a tree that follows the way of the data.

::

    ImageLabsError
    ├── InvalidRequestError     (ValueError)       bad input; nothing was sent
    ├── APIConnectionError      (ConnectionError)  no answer came back
    │   ├── APITimeoutError     (TimeoutError)     ... in time
    │   └── ForbiddenAddressError                  the host is not on the public internet
    ├── APIStatusError                             an answer with an error status
    │   ├── RateLimitError                         429: too many requests
    │   └── ChallengeError                         a Cloudflare page stands in front
    ├── APIResponseError                           an answer that we cannot use
    ├── SubmissionUnknownError                     the job may or may not have been accepted
    ├── JobError
    │   ├── JobFailedError                         the service says that the job failed
    │   ├── JobTimeoutError     (TimeoutError)     still running when our patience ended
    │   └── JobStalledError                        the service cannot be reached to ask
    └── DownloadError                              the finished image could not be had

Every error pickles, compares by value and says the same on the other side. No message
holds a prompt, a cookie or a proxy's password; words of the server are shortened.
"""

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    from .jobs import Job

__all__ = [
    "APIConnectionError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "ChallengeError",
    "DownloadError",
    "ForbiddenAddressError",
    "ImageLabsError",
    "InvalidRequestError",
    "JobError",
    "JobFailedError",
    "JobStalledError",
    "JobTimeoutError",
    "RateLimitError",
    "SubmissionUnknownError",
]

log = logging.getLogger(__name__)

_TELLING = 12  # characters at the beginning of a secret that give it away
_TOO_SHORT = 4  # characters; what is shorter is in every other sentence
_WORDS = 100  # of a secret that are looked for

Delivered = Literal["no", "maybe", "yes"]
"""Did the service take the request up?

``"no"``: surely not, sending again cannot buy twice. ``"maybe"``: nobody can tell.
``"yes"``: it did, and answered.
"""


def sanitize_text(text: object, limit: int = 200) -> str:
    """Text from a peer, made safe to show: control characters out, cut at `limit`."""
    raw = str(text)[: 4 * limit]
    words = " ".join("".join(c if c.isprintable() else " " for c in raw).split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def without(text: str, secrets: Iterable[str]) -> str:
    """`text` with nothing in it that gives one of `secrets` away: services quote what they got.

    It ends where a secret begins; of one that is quoted in part, the longer words are left out.
    """
    for secret in secrets:
        telling = sanitize_text(secret)[:_TELLING]
        if len(telling) >= _TOO_SHORT:
            text = re.sub(f"(?is){re.escape(telling)}.*", "…", text)
        for word in re.findall(r"\w{6,}", secret)[:_WORDS]:
            text = re.sub(f"(?i){re.escape(word)}", "…", text)
    return text


@attrs.define(slots=False, eq=False, str=False, repr=False)
class ImageLabsError(Exception):
    """The root: catch it to catch everything this library raises on purpose.

    Attributes:
        message: One line for a person.
        job: The job that the error is about; `None` when none had been accepted.
            `job.wait()` goes on where the error struck.
        endpoint: Such as ``"POST /progress"``; empty when no request was involved.
        task_id: The service's name of the job, also in another process; `None` without one.
    """

    message: str
    job: "Job | None" = attrs.field(default=None, kw_only=True)
    endpoint: str = attrs.field(default="", kw_only=True)
    task_id: str | None = attrs.field(default=None, kw_only=True)

    def attach_job(self, job: "Job") -> None:
        """Attach the job that this error is about, unless one is attached already."""
        if self.job is None:
            self.job, self.task_id = job, job.id

    def redact(self, secrets: Iterable[str]) -> None:
        """Cut the message off where it gives one of `secrets` away."""
        self.message = without(self.message, secrets)
        self.args = (self.message,)

    def __str__(self) -> str:
        where = [self.endpoint] if self.endpoint else []
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


@contextmanager
def attach_job(job: "Job") -> Iterator[None]:
    """Whatever goes wrong in here names the job, so that what was accepted is not lost.

    Errors of ours get it attached; those of others, Ctrl-C among them, get a note (from Python
    3.11 on) and a line in the log.
    """
    try:
        yield
    except GeneratorExit:  # a reader who has had enough
        raise
    except ImageLabsError as error:
        error.attach_job(job)
        raise
    except BaseException as error:
        note = f"the job goes on at the service: task id {sanitize_text(job.id, 4096)}"
        if sys.version_info >= (3, 11):  # pragma: no branch - by Python's version
            error.add_note(note)
        log.warning("interrupted by %s; %s", type(error).__name__, note)
        raise


def _revive(kind: type[ImageLabsError], fields: dict[str, Any]) -> ImageLabsError:
    return kind(**fields)


@attrs.define(slots=False, eq=False, str=False, repr=False)
class InvalidRequestError(ImageLabsError, ValueError):
    """A value that cannot be used was passed; nothing was sent.

    Attributes:
        field: The argument's name.
    """

    field: str = attrs.field(default="", kw_only=True)


@attrs.define(slots=False, eq=False, str=False, repr=False)
class APIConnectionError(ImageLabsError, ConnectionError):
    """No usable HTTP answer came back: refused, reset, cut off, or TLS failed.

    Attributes:
        delivered: Whether the request may have reached the service: ``"no"`` (sending it
            again is safe) or ``"maybe"``.
    """

    delivered: Delivered = attrs.field(default="maybe", kw_only=True)


@attrs.define(slots=False, eq=False, str=False, repr=False)
class APITimeoutError(APIConnectionError, TimeoutError):
    """The answer did not come in time."""


@attrs.define(slots=False, eq=False, str=False, repr=False)
class ForbiddenAddressError(APIConnectionError):
    """An image's host leads to an address that is not on the public internet; nothing was sent.

    If that is meant, give the client ``allow_private_hosts=True``.
    """


@attrs.define(slots=False, eq=False, str=False, repr=False)
class APIStatusError(ImageLabsError):
    """The answer has an error status.

    Attributes:
        status_code: The HTTP status.
        retry_after: Seconds that the service asks us to wait, or `None`.
        delivered: ``"no"`` when it was turned away before any work, ``"yes"`` when the
            service judged it, ``"maybe"`` when the status does not tell.
    """

    status_code: int = attrs.field(kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    delivered: Delivered = attrs.field(default="maybe", kw_only=True)


@attrs.define(slots=False, eq=False, str=False, repr=False)
class RateLimitError(APIStatusError):
    """429: too many requests. `retry_after` says for how long, if the service said so."""


@attrs.define(slots=False, eq=False, str=False, repr=False)
class ChallengeError(APIStatusError):
    """A Cloudflare check stands in front of the service.

    Pass the check in a browser and give the client its cookies (``cf_clearance``) and its
    exact ``user-agent``, or use a transport whose TLS handshake is a browser's.
    """


@attrs.define(slots=False, eq=False, str=False, repr=False)
class APIResponseError(ImageLabsError):
    """An answer came that we cannot use: no JSON, no object, no task id, too large.

    Attributes:
        delivered: As in `APIStatusError`.
    """

    delivered: Delivered = attrs.field(default="maybe", kw_only=True)


@attrs.define(slots=False, eq=False, str=False, repr=False)
class SubmissionUnknownError(ImageLabsError):
    """The request for an image may or may not have been accepted; it was not sent again.

    There is no task id to ask for. Sending again may buy the image twice: that is the
    caller's decision. The reason is the error's ``__cause__``.

    Attributes:
        delivered: Always ``"maybe"``.
    """

    delivered: Delivered = attrs.field(default="maybe", kw_only=True)


@attrs.define(slots=False, eq=False, str=False, repr=False)
class JobError(ImageLabsError):
    """A job that was accepted has not come to an image.

    Attributes:
        waited: Seconds since submit, by a monotonic clock.
    """

    waited: float = attrs.field(default=0.0, kw_only=True)


@attrs.define(slots=False, eq=False, str=False, repr=False)
class JobFailedError(JobError):
    """The service says that the job failed, or that it is done and names no image.

    Attributes:
        status: The service's own word, shortened.
    """

    status: str = attrs.field(default="", kw_only=True)


@attrs.define(slots=False, eq=False, str=False, repr=False)
class JobTimeoutError(JobError, TimeoutError):
    """The job was still running when our patience ended; it may yet finish on the server.

    `job.wait()` goes on waiting; `client.get_job(error.task_id)` does so from another process.
    """


@attrs.define(slots=False, eq=False, str=False, repr=False)
class JobStalledError(JobError):
    """The service could not be reached to ask how the job stands, many times in a row.

    The job itself may be healthy: `job.wait()` goes on. The last failure is the ``__cause__``.
    """


@attrs.define(slots=False, eq=False, str=False, repr=False)
class DownloadError(ImageLabsError):
    """The finished image could not be fetched, or what came is no image.

    Attributes:
        status_code: The HTTP status, or `None` when the trouble was another.
        url: The image's address, shortened; without its query, which may be a key.
    """

    status_code: int | None = attrs.field(default=None, kw_only=True)
    url: str = attrs.field(default="", kw_only=True)
