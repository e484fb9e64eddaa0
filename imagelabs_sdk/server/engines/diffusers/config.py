"""What the operator says about a model; light, and checks requests without loading anything."""

import re
from collections.abc import Hashable
from typing import TypeVar

import attrs

from ....models import ImageRequest
from ....validation import count, invalid, number, seconds, validator
from ..base import Engine, Recovery
from ..references import check_reference
from ..tuning import Limits, Tuning, read_tuning, refuse_fields
from .models import ModelCard

__all__ = ["DiffusersConfig"]

Number = TypeVar("Number", int, float)
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?")
_DTYPES = ("auto", "float32", "float16", "bfloat16")


def _device(_: object, field: "attrs.Attribute[str]", value: str) -> None:
    if not _DEVICE.fullmatch(value):
        raise invalid(field.name, value, 'must be "auto", "cpu", "mps", "cuda" or "cuda:N"')


def _dtype(_: object, field: "attrs.Attribute[str]", value: str) -> None:
    if value not in _DTYPES:
        raise invalid(field.name, value, f"must be one of {', '.join(_DTYPES)}")


@attrs.frozen(kw_only=True)
class DiffusersConfig:
    """A text-to-image model, rendered in worker processes of its own, one a GPU.

    The same request gives the same image, so that the recovery is ``REPEATABLE``. Its bytes are
    the same only in a batch of the same shape: images of a batch differ by up to 1 of 255 from
    single ones.

    Attributes:
        model: Its name or folder, as the operator gave it; told in `info`.
        card: What its index says.
        device: ``"auto"``: a GPU if there is one. Worker number N uses GPU number N.
        dtype: ``"auto"``: half precision on a GPU, 32 bits on a CPU.
        steps: Denoising steps; `None`: the model's default.
        guidance: Guidance scale; `None`: the model's default.
        limits: What a request may ask for.
        max_batch: Images in one forward pass at most. A batch that does not fit into memory is
            halved, and the size that fits is remembered.
        batch_wait: Seconds to wait for more requests of the same shape.
        workers: How many processes load the model.
    """

    model: str
    card: ModelCard
    device: str = attrs.field(default="auto", validator=_device)
    dtype: str = attrs.field(default="auto", validator=_dtype)
    steps: int | None = None
    guidance: float | None = None
    limits: Limits = attrs.field(factory=Limits)
    max_batch: int = attrs.field(default=8, validator=validator(count, 1, 256))
    batch_wait: float = attrs.field(
        default=0.02, validator=validator(seconds, least=0.0, most=10.0)
    )
    workers: int = attrs.field(default=1, validator=validator(count, 1, 64))

    name = "diffusers"
    recovery = Recovery.REPEATABLE
    in_process = False

    def __attrs_post_init__(self) -> None:
        if self.steps is not None:
            count("steps", self.steps, 1, self.limits.max_steps)
        if self.guidance is not None:
            number("guidance", self.guidance, 0.0, self.limits.max_guidance)

    def tuning(self, request: ImageRequest) -> Tuning:
        """Return what a request is rendered with: its own wish, the operator's, the model's."""
        asked, defaults = read_tuning(request, self.limits), self.card.defaults
        return attrs.evolve(
            asked,
            steps=_first(asked.steps, self.steps, defaults.steps),
            guidance=_first(asked.guidance, self.guidance, defaults.guidance),
        )

    def check(self, request: ImageRequest) -> None:
        """Refuse what this model cannot render.

        Raises:
            InvalidRequestError: Names the field.
        """
        read_tuning(request, self.limits)
        takes: set[str] = set()
        if self.card.has_convolutions:
            takes |= {"tiling"} if request.reference_image else {"tiling", "subseed_strength"}
        if self.card.image_to_image:
            takes.add("reference_image")
        reasons = {
            "tiling": f"{self.card.pipeline} has no convolutions to wrap",
            "subseed_strength": "it needs a model with a UNet, and no reference_image",
            "reference_image": f"{self.card.pipeline} cannot start from an image",
        }
        refuse_fields(request, self.name, frozenset(takes), reasons)
        check_reference(request)

    def batch_key(self, request: ImageRequest) -> Hashable:
        """Return what requests must share to be rendered in one forward pass."""
        tuning = self.tuning(request)
        reference = request.reference_strength if request.reference_image else None
        size = request.width, request.height
        return size, tuning.steps, tuning.guidance, request.tiling, reference

    def load(self, worker: int) -> Engine:
        """Load the model, which takes seconds to minutes."""
        from .engine import load_engine

        return load_engine(
            self.card,
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            tuning=self.tuning,
            worker=worker,
        )


def _first(*values: Number | None) -> Number | None:
    return next((value for value in values if value is not None), None)
