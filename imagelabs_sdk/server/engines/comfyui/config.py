"""What the operator says about ComfyUI servers; light, and checks requests."""

import attrs

from ....models import ImageRequest
from ....validation import base_url, invalid_secret, seconds, validator
from ..base import Engine, OneByOne, Recovery
from ..references import check_reference
from ..tuning import Limits, read_tuning, refuse_fields
from .workflow import Workflow

__all__ = ["ComfyUIConfig"]


def _urls(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(base_url, addresses))


def _at_least_one(_: object, field: "attrs.Attribute[tuple[str, ...]]", value: object) -> None:
    if not value:
        raise invalid_secret(field.name, "name at least one, such as http://127.0.0.1:8188")


_seconds = validator(seconds, most=86_400.0)


@attrs.frozen(kw_only=True)
class ComfyUIConfig(OneByOne):
    """One or more ComfyUI servers that run the same workflow, one worker each.

    A job goes to ComfyUI under our own handle, so that a worker, or another one after it, can
    ask for it again: the recovery is ``RESUMABLE``.

    Attributes:
        backends: Addresses such as ``"http://127.0.0.1:8188"``.
        workflow: What they run.
        limits: What a request may ask for.
        timeout: Seconds for one image, waiting in ComfyUI's own queue included.
        give_up_after: Seconds for which a server that does not answer is waited for; then its job
            goes back to the queue.
    """

    backends: tuple[str, ...] = attrs.field(converter=_urls, validator=_at_least_one)
    workflow: Workflow
    limits: Limits = attrs.field(factory=Limits)
    timeout: float = attrs.field(default=1800.0, validator=_seconds)
    give_up_after: float = attrs.field(default=30.0, validator=_seconds)

    name = "comfyui"
    recovery = Recovery.RESUMABLE

    @property
    def workers(self) -> int:
        """One for each server."""
        return len(self.backends)

    def check(self, request: ImageRequest) -> None:
        """Refuse what the workflow has no place for and cannot be left out.

        Raises:
            InvalidRequestError: Names the field.
        """
        read_tuning(request, self.limits)
        reasons = {
            "tiling": "the workflow decides that",
            "subseed_strength": "the workflow has no place mapped for it",
            "reference_image": "the workflow has no place mapped for it (image)",
        }
        refuse_fields(request, self.name, self.workflow.takes, reasons)
        check_reference(request)

    def load(self, worker: int) -> Engine:
        """Return the engine for server number `worker`; no request is sent yet."""
        from ....transports.requests import RequestsTransport
        from ..backend import Backend
        from .engine import ComfyUIEngine

        backend = Backend(self.backends[worker % len(self.backends)], RequestsTransport())
        return ComfyUIEngine(backend, self.workflow, self.limits, self.timeout, self.give_up_after)
