"""A render as the embedded server sees it: its status is computed when asked for."""

from typing import Protocol

import attrs

from ...models import ImageRequest, State

__all__ = ["Engine", "Render", "RenderStatus"]


@attrs.frozen
class RenderStatus:
    """How a drawing stands.

    Attributes:
        state: ``QUEUED``, ``RUNNING``, ``DONE`` or ``FAILED``; the last two are for good.
        words: For a person, such as ``"Queue position 2"``, or why it failed. Empty: the
            state says enough.
        fraction: How much of it is done, 0.0 to 1.0; `None`: not known.
        has_preview: Whether `Render.preview` has something to show.
    """

    state: State
    words: str = ""
    fraction: float | None = None
    has_preview: bool = False


class Render(Protocol):
    """One image on its way. Used by several threads at once, in no order."""

    def standing(self) -> RenderStatus:
        """How it stands now. Asked often: answers from memory, in milliseconds."""
        ...  # pragma: no cover - a Protocol has no body

    def preview(self) -> bytes | None:
        """What can be seen of it so far, as a PNG; `None`: nothing (any more). Soon answered."""
        ...  # pragma: no cover - a Protocol has no body

    def image(self) -> bytes:
        """The finished image, as a PNG; asked only when it is done.

        May take a second. The caller keeps a copy for a while, and may ask again, much later,
        for the same bytes; it never asks twice at once.
        """
        ...  # pragma: no cover - a Protocol has no body


class Engine(Protocol):
    """Draws images."""

    def start(self, request: ImageRequest) -> Render:
        """Take a request up, or put it into a queue, and answer at once.

        Both seeds of the request are set. Nobody says when a drawing is no longer wanted:
        the caller just forgets it.

        Raises:
            InvalidRequestError: This engine cannot draw that; its message is shown to the client.
        """
        ...  # pragma: no cover - a Protocol has no body
