"""What a request may ask of an engine beyond the protocol's own fields, and the operator's limits.

The fields travel in the request's `extra_body`, under the names that older clients of the
service use.
"""

import math

import attrs

from ...models import ImageRequest
from ...validation import invalid

__all__ = ["Limits", "Tuning", "ignored_fields", "read_tuning"]


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


def ignored_fields(request: ImageRequest, used: frozenset[str]) -> list[str]:
    """Return the names of what `request` asks for and an engine that knows `used` leaves out.

    Args:
        request: Its fields count when they differ from their defaults.
        used: Names of request fields and of fields of `Tuning` that have an effect.
    """
    set_fields = {
        "negative_prompt": bool(request.negative_prompt.strip()),
        "attention": request.attention != 0,
        "tiling": request.tiling,
        "reference_image": bool(request.reference_image),
    }
    known = {_NAMES.get(name, name) for name in used}
    asked = {name for name, is_set in set_fields.items() if is_set} | set(request.extra_body)
    return sorted(asked - known)
