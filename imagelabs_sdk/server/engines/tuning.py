"""What a request asks of an engine: which fields it honours, refuses or ignores, and the limits.

What goes beyond the protocol's own fields travels in the request's `extra_body`, under the names
that older clients of the service use.
"""

import math
from collections.abc import Mapping

import attrs

from ...models import ImageRequest
from ...validation import invalid, invalid_secret

__all__ = ["Limits", "Tuning", "ignored_fields", "read_tuning", "refuse_fields"]


@attrs.frozen(kw_only=True)
class Limits:
    """What the operator allows a request to ask for.

    Attributes:
        max_steps: Denoising steps at most; 1 or more.
        max_guidance: Guidance scale at most; 0.0 or more.
    """

    max_steps: int = 100
    max_guidance: float = 30.0


@attrs.frozen(kw_only=True)
class Tuning:
    """What one request asks for; `None` where it leaves the choice to the engine.

    Attributes:
        steps: Denoising steps, from ``extra_body["steps"]``.
        guidance: Guidance scale, from ``extra_body["cfg_scale"]``.
        subseed_strength: How far the noise moves from `seed` towards `subseed`, 0.0 to 1.0;
            0.0: `subseed` has no effect.
    """

    steps: int | None = None
    guidance: float | None = None
    subseed_strength: float = 0.0


_NAMES = {"steps": "steps", "guidance": "cfg_scale", "subseed_strength": "subseed_strength"}


def read_tuning(request: ImageRequest, limits: Limits) -> Tuning:
    """Return what `request` asks for.

    Raises:
        InvalidRequestError: A value is no number, or outside of `limits`.
    """
    body = request.extra_body
    steps = body.get("steps")
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and not (whole and 1 <= steps <= limits.max_steps):
        raise invalid("steps", steps, f"must be a whole number, 1 to {limits.max_steps}")
    return Tuning(
        steps=steps,
        guidance=_number("cfg_scale", body.get("cfg_scale"), limits.max_guidance),
        subseed_strength=_number("subseed_strength", body.get("subseed_strength"), 1.0) or 0.0,
    )


def _number(field: str, value: object, high: float) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0.0 <= value <= high or math.isnan(value):  # type: ignore[operator,arg-type]
        raise invalid(field, value, f"must be a number, 0 to {high:g}")
    return float(value)  # type: ignore[arg-type]


_OPTIONAL = (
    "negative_prompt",
    "attention",
    "tiling",
    "reference_image",
    "reference_image_type",
    "reference_strength",
)
_UNSET = {name: getattr(ImageRequest("x"), name) for name in _OPTIONAL}


def refuse_fields(
    request: ImageRequest, engine: str, takes: frozenset[str], reasons: Mapping[str, str]
) -> None:
    """Refuse what an engine cannot do and what makes another image when it is left out.

    Args:
        request: As it was submitted.
        engine: The engine's name.
        takes: Names of request fields and of fields of `Tuning` that it honours.
        reasons: Such fields, and why each cannot be honoured where `takes` does not name it.

    Raises:
        InvalidRequestError: Names the field.
    """
    for field, reason in reasons.items():
        if field in _asked(request) - takes:
            raise invalid_secret(field, f"the engine {engine} does not take it here: {reason}")


def ignored_fields(request: ImageRequest, takes: frozenset[str]) -> list[str]:
    """Return the names of what `request` asks for and an engine leaves out; `takes` as above."""
    return sorted(_asked(request) - {_NAMES.get(name, name) for name in takes})


def _asked(request: ImageRequest) -> set[str]:
    """Return the names of the fields that ask for something, besides prompt, size and seeds."""
    asked = {name for name in _OPTIONAL if getattr(request, name) != _UNSET[name]}
    nothing = {
        "negative_prompt": not request.negative_prompt.strip(),
        "subseed_strength": not request.extra_body.get("subseed_strength"),
    }
    return (asked | set(request.extra_body)) - {name for name, is_so in nothing.items() if is_so}
