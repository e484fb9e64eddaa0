"""What the operator says about a server behind; light, and checks requests."""

import attrs

from ....models import ImageRequest
from ....validation import base_url, count, invalid, invalid_secret, seconds, validator
from ..base import Engine, OneByOne, Recovery
from ..references import check_reference
from ..tuning import Limits, read_tuning, refuse_fields
from .dialects import DIALECTS, Dialect

__all__ = ["OpenAIConfig"]


def _known(_: object, field: "attrs.Attribute[str]", value: object) -> None:
    if value not in DIALECTS:
        raise invalid(field.name, value, f"must be one of {', '.join(sorted(DIALECTS))}")


def _sendable_key(_: object, field: "attrs.Attribute[str]", value: object) -> None:
    usable = isinstance(value, str) and value.isascii() and (value.isprintable() or not value)
    if not usable or " " in str(value):
        raise invalid_secret(field.name, "must be printable ASCII without blanks")


@attrs.frozen(kw_only=True)
class OpenAIConfig(OneByOne):
    """A server that speaks the OpenAI images API: one POST an image, which may take minutes.

    What becomes of an image when the connection breaks is not known, so that the recovery is
    ``NEITHER``: a request is repeated only when it surely never left, or when the answer says
    that no work was done.

    Attributes:
        backend: Such as ``"http://127.0.0.1:8080/v1"``.
        model: Its name there; empty: the server has one.
        dialect: Which kind of server it is: a key of `DIALECTS`.
        api_key: Sent as a bearer token; empty: none. Not in any repr or error.
        timeout: Seconds for one image, waiting in the server's own queue included.
        workers: Requests under way at once.
        limits: What a request may ask for.
    """

    backend: str = attrs.field(converter=base_url)
    model: str = ""
    dialect: str = attrs.field(default="generic", validator=_known)
    api_key: str = attrs.field(default="", repr=False, validator=_sendable_key)
    timeout: float = attrs.field(default=600.0, validator=validator(seconds, most=86_400.0))
    workers: int = attrs.field(default=1, validator=validator(count, 1, 64))
    limits: Limits = attrs.field(factory=Limits)

    name = "openai"
    recovery = Recovery.NEITHER

    @property
    def kind(self) -> Dialect:
        """The dialect that `dialect` names."""
        return DIALECTS[self.dialect]

    def check(self, request: ImageRequest) -> None:
        """Refuse what this server cannot render, and prompts that carry commands for it.

        Raises:
            InvalidRequestError: Names the field.
        """
        self.kind.check_text(request)
        read_tuning(request, self.limits)
        reasons = {
            "tiling": "its API cannot ask for it",
            "subseed_strength": "its API cannot ask for it",
            "reference_image": f"the dialect {self.dialect} has no images/edits",
        }
        refuse_fields(request, self.name, self.kind.takes, reasons)
        check_reference(request)

    def load(self, worker: int) -> Engine:
        """Return the engine; no request is sent yet."""
        from ....transports.requests import RequestsTransport
        from ..backend import Backend
        from .engine import OpenAIEngine

        backend = Backend(self.backend, RequestsTransport(), self.api_key)
        return OpenAIEngine(backend, self.model, self.kind, self.timeout, self.limits)
