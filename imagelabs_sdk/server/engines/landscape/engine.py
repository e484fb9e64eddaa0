"""The landscape engine: light settings in the front, painting in a worker."""

from collections.abc import Hashable
from typing import TYPE_CHECKING

import attrs

from ....models import ImageRequest
from ....validation import count, seconds, validator
from ..base import Recovery
from ..tuning import refuse_fields
from .scene import TAKES

if TYPE_CHECKING:
    from .renders import LandscapeRenderer

__all__ = ["LandscapeEngine"]


_seconds = validator(seconds, least=0.0, most=86_400.0)
_at_least_one = validator(count, 1)


@attrs.frozen
class LandscapeEngine:
    """Paints landscapes, each of which takes `duration` seconds as a model would.

    Attributes:
        duration: Seconds for a batch; 0: as fast as it can be painted.
        workers: How many workers render at once.
        max_batch: Requests of one size that are rendered together.
        batch_wait: Seconds to wait for more of them.
        in_process: True: its workers are threads of the server; False: processes.
    """

    duration: float = attrs.field(default=4.0, validator=_seconds)
    workers: int = attrs.field(default=2, validator=_at_least_one)
    max_batch: int = attrs.field(default=1, validator=_at_least_one, kw_only=True)
    batch_wait: float = attrs.field(default=0.0, validator=_seconds, kw_only=True)
    in_process: bool = attrs.field(default=False, kw_only=True)
    name: str = attrs.field(default="landscape", init=False)
    recovery: Recovery = attrs.field(default=Recovery.REPEATABLE, init=False)

    def check(self, request: ImageRequest) -> None:
        """Accept any size; refuse a reference image, from which nothing can be painted.

        Raises:
            InvalidRequestError: Names the field.
        """
        reason = "it paints by arithmetic; choose another with serve --engine"
        refuse_fields(request, self.name, TAKES, {"reference_image": reason})

    def batch_key(self, request: ImageRequest) -> Hashable:
        """Return the size, as a model's batch has one."""
        return request.width, request.height

    def load(self, worker: int) -> "LandscapeRenderer":
        """Return the painter; it needs Pillow."""
        from .renders import LandscapeRenderer  # the front does without Pillow

        return LandscapeRenderer(self.duration)
