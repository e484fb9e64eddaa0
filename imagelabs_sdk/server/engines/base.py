"""The contract between the server and what renders images.

An `EngineConfig` lives in the server's front process: it is light and picklable, and checks
requests. Its `load` runs in a worker and returns the `Engine`, which renders. Neither knows HTTP,
the store or other workers.
"""

import enum
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from ...models import ImageRequest
from ...provenance import SourceType

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "BackendLostError",
    "Engine",
    "EngineConfig",
    "OneByOne",
    "Recovery",
    "RenderError",
    "RenderJob",
    "RenderMonitor",
    "RenderedImage",
]


class Recovery(enum.Enum):
    """What becomes of a job whose worker died."""

    REPEATABLE = "repeatable"
    """The same request renders the same image: it is rendered again."""

    RESUMABLE = "resumable"
    """The back end knows the job by its handle: it is asked for."""

    NEITHER = "neither"
    """It may have been made: the job fails and says so."""


@attrs.frozen
class RenderJob:
    """One claimed job, as an engine sees it.

    Attributes:
        id: The task id.
        request: What to render; both seeds are set.
        handle: A canonical lower-case UUID, minted at submit. A resumable engine gives it to its
            back end, and asks for it when `attempt` is more than 1.
        attempt: More than 1 after a worker died on the job.
    """

    id: str
    request: ImageRequest
    handle: str
    attempt: int = 1


@attrs.frozen
class RenderedImage:
    """One finished image.

    Attributes:
        image: Pixels, which the worker encodes outside the rendering thread; or a finished
            file (PNG, JPEG or WebP).
        info: How it was made, as plain JSON values: engine, model, steps, guidance, seed,
            subseed, width, height, ignored (names of request fields without effect), seconds.
            The worker writes it into the file, too, so that it must not hold the prompt.
        source_type: How the file is marked: made by a trained model, or by arithmetic.
    """

    image: "Image.Image | bytes" = attrs.field(repr=False)
    info: Mapping[str, Any]
    source_type: SourceType = SourceType.TRAINED


class RenderError(Exception):
    """The failure of one job.

    Attributes:
        message: One line that is shown to the client. It must not quote the prompt.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BackendLostError(Exception):
    """Raised by `Engine.render`: the back end is gone, and the jobs may be rendered elsewhere.

    The worker gives the jobs of the batch back to the queue once, with one more attempt, as if
    it had died on them; its message is for the log.
    """


class RenderMonitor(Protocol):
    """Given to `Engine.render` by the worker. Safe to call from the rendering thread."""

    def progress(
        self, job_id: str, fraction: float, preview: "Image.Image | bytes | None" = None
    ) -> None:
        """Report how much of a job is done, 0.0 to 1.0, perhaps with a preview."""
        ...  # pragma: no cover - a Protocol has no body

    def wants_preview(self, job_id: str) -> bool:
        """Return True if a preview of this job would be shown. Previews cost time."""
        ...  # pragma: no cover - a Protocol has no body

    def is_cancelled(self, job_id: str) -> bool:
        """Return True if nobody wants this job any more. Ask between steps."""
        ...  # pragma: no cover - a Protocol has no body


class OneByOne:
    """What the configurations of engines share that wait for another server, an image at a time."""

    max_batch = 1
    batch_wait = 0.0
    in_process = True

    def batch_key(self, request: ImageRequest) -> Hashable:
        """Return the same for all: there are no batches."""
        return None


class Engine(Protocol):
    """Renders images, in a worker, one batch at a time."""

    def render(
        self, batch: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        """Render a batch of jobs with equal batch keys; one outcome a job, in their order.

        A cancelled job may end with any outcome. What this method raises fails the whole batch,
        with the words "the engine failed"; `BackendLostError` gives it back to the queue.
        """
        ...  # pragma: no cover - a Protocol has no body

    def close(self) -> None:
        """Release what `load` acquired. `render` is not called again."""
        ...  # pragma: no cover - a Protocol has no body


class EngineConfig(Protocol):
    """Describes an engine, in the server's front process. Frozen, light to import, picklable."""

    @property
    def name(self) -> str:
        """What the engine is called in logs and in `info`."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def recovery(self) -> Recovery:
        """What becomes of a job whose worker died."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def max_batch(self) -> int:
        """No batch has more jobs; 1 or more."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def batch_wait(self) -> float:
        """Seconds to wait for more jobs of the same batch key; 0.0: start at once."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def workers(self) -> int:
        """How many workers load the engine; 1 or more."""
        ...  # pragma: no cover - a Protocol has no body

    @property
    def in_process(self) -> bool:
        """True: a thread of the front is enough (I/O only). False: each worker is a process."""
        ...  # pragma: no cover - a Protocol has no body

    def check(self, request: ImageRequest) -> None:
        """Refuse what the engine cannot render, before the job is accepted. No I/O.

        Raises:
            InvalidRequestError: Its message is shown to the client.
        """
        ...  # pragma: no cover - a Protocol has no body

    def batch_key(self, request: ImageRequest) -> Hashable:
        """Return what requests must have in common to be rendered in one batch."""
        ...  # pragma: no cover - a Protocol has no body

    def load(self, worker: int) -> Engine:
        """Load the engine, in worker number `worker` (from 0). It imports its extra here."""
        ...  # pragma: no cover - a Protocol has no body
