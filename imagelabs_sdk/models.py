"""The nouns of a job before and during its run: what to draw, and how it stands."""

import enum
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from .errors import InvalidRequestError, sanitize_text
from .validation import invalid

__all__ = ["ImageRequest", "Progress", "State"]

DEFAULT_SIZE = (1152, 896)
MAX_SIDE = 4096
LARGEST_INT = 2**63 - 1


def _hidden(text: object) -> str:
    """Stands in a repr for text that is the user's own business."""
    return f"<{len(text)} characters>" if isinstance(text, str) else f"<{type(text).__name__}>"


def _text(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InvalidRequestError(f"{field.name}: must be text, not {kind}", field=field.name)


def _not_blank(_: object, field: "attrs.Attribute[Any]", value: str) -> None:
    if not value.strip():
        raise invalid(field.name, value, "must say what to draw")


def _whole(low: int, high: int, unit: str = "") -> Callable[[Any, Any, Any], None]:
    def check(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise invalid(field.name, value, f"must be a whole number, {low} to {high}{unit}")

    return check


def _seed(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None:
        _whole(0, LARGEST_INT, " (None: the client picks one)")(_, field, value)


def _json_object(value: object) -> dict[str, Any]:
    """A copy of `value` that no later change of the caller's reaches."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        kind = type(value).__name__
        raise InvalidRequestError(
            f"extra_body: must be a mapping with text keys, not {kind}", field="extra_body"
        )
    if not value:
        return {}
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequestError(
            f"extra_body: must be plain JSON: {sanitize_text(exc)}", field="extra_body"
        ) from exc
    return copy


def size_for(aspect_ratio: str | None) -> tuple[int, int]:
    """Width and height in pixels for a ratio such as ``"16:9"``.

    Multiples of 8, as near to the ratio as these allow at about the area of the default size.
    `None` gives the default size.
    """
    if aspect_ratio is None:
        return DEFAULT_SIZE
    across, down = _ratio(aspect_ratio)
    area = DEFAULT_SIZE[0] * DEFAULT_SIZE[1]
    width = max(8, round(math.sqrt(area * across / down) / 8) * 8)
    height = max(8, round(width * down / across / 8) * 8)
    return width, height


def _ratio(text: object) -> tuple[float, float]:
    try:
        across, down = (float(part) for part in str(text).split(":"))
        # 8:1 either way: beyond it a side would be thinner than a service draws.
        usable = isinstance(text, str) and 1 / 8 <= across / down <= 8
    except (ValueError, ZeroDivisionError):
        usable = False
    if not usable:
        raise invalid("aspect_ratio", text, 'must be like "16:9", between "1:8" and "8:1"')
    return across, down


def _agrees_with_ratio(request: "ImageRequest", field: Any, value: int) -> None:
    if request.aspect_ratio is not None:
        expected = size_for(request.aspect_ratio)[0 if field.name == "width" else 1]
        if value != expected:
            raise invalid(field.name, value, "give either a size or an aspect_ratio, not both")


_side: list[Callable[[Any, Any, int], None]] = [_whole(1, MAX_SIDE, " pixels"), _agrees_with_ratio]


@attrs.frozen(kw_only=True)
class ImageRequest:
    """One image to be drawn. Checked when it is made: a bad value raises `InvalidRequestError`.

    The defaults are those of the service's known clients. ``repr()`` does not show the texts.

    Attributes:
        prompt: What to draw; not blank.
        negative_prompt: What to keep out.
        aspect_ratio: Such as ``"16:9"``: sets width and height, in multiples of 8 at about the
            default area. `None`: not used. Giving a different size as well is an error.
        width: In pixels, 1 to 4096.
        height: In pixels, 1 to 4096.
        seed: Start of the noise, 0 or more; `None` lets the client pick one, and the result
            tells which. Digits in a text on the wire.
        subseed: As `seed`, of the variation.
        attention: A whole number that the known clients send as 0; its meaning is not known.
        tiling: Whether the image shall repeat without a seam.
        reference_image: Passed through; which encoding the service wants is not known.
        reference_image_type: Passed through; the values are not known.
        reference_strength: In percent, 0 to 100.
        extra_body: Fields that this class does not name; merged into the JSON last.
    """

    prompt: str = attrs.field(validator=[_text, _not_blank], repr=_hidden, kw_only=False)
    negative_prompt: str = attrs.field(default="", validator=_text, repr=_hidden)
    # Only a way to say the size: two requests for the same pixels are the same request.
    aspect_ratio: str | None = attrs.field(default=None, eq=False)
    width: int = attrs.field(validator=_side)
    height: int = attrs.field(validator=_side)
    seed: int | None = attrs.field(default=None, validator=_seed)
    subseed: int | None = attrs.field(default=None, validator=_seed)
    attention: int = attrs.field(default=0, validator=_whole(-LARGEST_INT, LARGEST_INT))
    tiling: bool = attrs.field(default=False)
    reference_image: str = attrs.field(default="", validator=_text, repr=_hidden)
    reference_image_type: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_text)
    )
    reference_strength: int = attrs.field(default=30, validator=_whole(0, 100, " percent"))
    extra_body: Mapping[str, Any] = attrs.field(
        factory=dict, converter=_json_object, repr=lambda body: f"<{len(body)} fields>", hash=False
    )

    @width.default
    def _default_width(self) -> int:
        return size_for(self.aspect_ratio)[0]

    @height.default
    def _default_height(self) -> int:
        return size_for(self.aspect_ratio)[1]

    @tiling.validator
    def _is_bool(self, field: "attrs.Attribute[bool]", value: object) -> None:
        if not isinstance(value, bool):
            raise invalid(field.name, value, "must be True or False")

    def with_seeds(self) -> "ImageRequest":
        """This request with every seed that was left open picked at random."""
        picked = pick_seeds({"seed": self.seed, "subseed": self.subseed})
        return attrs.evolve(self, **picked) if picked else self


def pick_seeds(given: Mapping[str, Any]) -> dict[str, Any]:
    """A seed for each name under which none is given."""
    return {name: _ten_digits() for name in ("seed", "subseed") if given.get(name) is None}


def _ten_digits() -> int:
    """Ten digits, as the known clients send, and no more than 32 bits."""
    low, high = 10**9, 2**32
    return low + int.from_bytes(os.urandom(8), "big") % (high - low)


class State(enum.Enum):
    """Our reading of how a job stands; `Progress.status` keeps the service's own word."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether polling again cannot change it."""
        return self in (State.DONE, State.FAILED)


@attrs.frozen(kw_only=True)
class Progress:
    """How a job stands, by one poll.

    Attributes:
        state: Our reading.
        status: The service's own word, shortened; empty when it gave none.
        fraction: From 0.0 to 1.0, or `None` when the service did not say. It may stay 0.0
            while the job waits, and reach 1.0 before the image is there.
        preview_url: Address of a half-drawn image, or `None`.
        image_url: Address of the finished image; set if and only if `state` is ``DONE``.
    """

    state: State
    status: str = ""
    fraction: float | None = None
    preview_url: str | None = attrs.field(
        default=None, repr=lambda url: repr(url and sanitize_text(url))
    )
    image_url: str | None = attrs.field(
        default=None, repr=lambda url: repr(url and sanitize_text(url))
    )
