"""What goes into the store of jobs and what comes out of it."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ...models import ImageRequest
from ..engines.base import RenderJob

__all__ = [
    "Claim",
    "Counts",
    "JobState",
    "JobStatus",
    "KeyReusedError",
    "StoreFullError",
    "Submission",
]

_RETRY_AFTER = 5.0  # seconds until a full store is worth another try


class JobState(enum.Enum):
    """Where a job is on its way."""

    QUEUED = "queued"
    RENDERING = "rendering"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Return True for a state that never changes again."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class StoreFullError(Exception):
    """A job cannot be accepted now; `message` says why, `retry_after` in how many seconds."""

    def __init__(self, message: str, retry_after: float = _RETRY_AFTER) -> None:
        super().__init__(message)
        self.message, self.retry_after = message, retry_after


class KeyReusedError(Exception):
    """An idempotency key came again with another body."""


@attrs.frozen(kw_only=True)
class Submission:
    """One request to be stored.

    Attributes:
        request: Both seeds are set.
        priority: 0 (first) to 7 (last); 3 is normal.
        owner: Name of the token that sent it; empty: none.
        key: Idempotency key, unique for its owner; None: none was sent.
        digest: Of the body that came with the key.
    """

    request: ImageRequest
    priority: int = 3
    owner: str = ""
    key: str | None = None
    digest: str = ""


@attrs.frozen(kw_only=True)
class JobStatus:
    """How a job stands.

    Attributes:
        id: The task id.
        state: Where it is on its way.
        owner: Name of the token that submitted it; empty: none.
        detail: Why it failed; empty otherwise.
        attempt: How often it was claimed.
        position: Its place in the queue, from 1; None unless it is queued.
        fraction: How much is rendered, 0.0 to 1.0.
        version: Grows with each report of progress; starts anew with each attempt.
        has_preview: True if there is a preview now.
        media_type: Of the finished image; None unless it is done.
        size: Of the finished image, in bytes.
        info: How it was made; None unless it is done.
    """

    id: str
    state: JobState
    owner: str = ""
    detail: str = ""
    attempt: int = 0
    position: int | None = None
    fraction: float = 0.0
    version: int = 0
    has_preview: bool = False
    media_type: str | None = None
    size: int = 0
    info: Mapping[str, Any] | None = None


@attrs.frozen
class Claim:
    """What a worker gets.

    Attributes:
        jobs: To be rendered as one batch; perhaps none.
        retry_in: Seconds until a batch that waits for more jobs is worth another try; None: there
            is nothing to wait for but a new job.
        waited: Seconds that each of the jobs was queued.
    """

    jobs: Sequence[RenderJob] = ()
    retry_in: float | None = None
    waited: Sequence[float] = ()


@attrs.frozen
class Counts:
    """What a store holds now.

    Attributes:
        queued: Jobs that wait.
        rendering: Jobs that a worker has.
        kept: Jobs that have ended and are still known.
        image_bytes: Bytes of finished images.
        oldest: Seconds for which the first queued job has waited; 0.0 when none waits.
    """

    queued: int
    rendering: int
    kept: int
    image_bytes: int
    oldest: float
