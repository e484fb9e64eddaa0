"""The nouns of a job before and during its run: what to draw, and how it stands."""

import enum
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex

import attrs

from ._redact import sanitize_text
from .reference_images import ReferenceImage, encoded_if_no_text
from .validation import (
    boolean,
    count,
    invalid,
    invalid_secret,
    not_blank,
    plain_int,
    text,
    unknown_option,
    validator,
    without_locals,
)

__all__ = ["Eta", "ImageRequest", "Progress", "State"]

DEFAULT_SIZE = (1152, 896)
_MAX_FILE = 256 * 1024 * 1024  # bytes of an image file that are read for its metadata
MAX_SIDE = 4096
_MAX_LEVELS = 64  # of lists and objects in each other: what is read here can be read everywhere
LARGEST_INT = 2**63 - 1


def _hidden(text: object) -> str:
    """Stand in a repr for text that is the user's own business."""
    return f"<{len(text)} characters>" if isinstance(text, str) else f"<{type(text).__name__}>"


def plain_json(field: str, value: object) -> dict[str, Any]:
    """Return a copy of a mapping of plain JSON, which no later change by the caller reaches.

    Raises:
        InvalidRequestError: It is something else (``not_mapping``, ``not_json``), or nested in
            more than 64 levels (``too_deep``).
    """
    if type(value) is dict and not value:  # the common case
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        remedy = f"must be a mapping with text keys, not {type(value).__name__}"
        raise invalid_secret(field, remedy, code="not_mapping")
    try:
        encoded = json.dumps(dict(value), allow_nan=False, ensure_ascii=False)
        copy: dict[str, Any] = json.loads(encoded)
    except (TypeError, ValueError, RecursionError) as exc:
        remedy = f"must be plain JSON: {sanitize_text(exc)}"
        raise invalid_secret(field, remedy, code="not_json") from exc
    text(field, encoded)
    if _is_deep(copy):
        remedy = f"must not be nested in more than {_MAX_LEVELS} levels"
        raise invalid_secret(field, remedy, code="too_deep", high=_MAX_LEVELS)
    return copy


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(_MAX_LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _extra_body(value: object) -> dict[str, Any]:
    return plain_json("extra_body", value)


def size_for(aspect_ratio: str | None) -> tuple[int, int]:
    """Return width and height in pixels for a ratio such as ``"16:9"``.

    They are multiples of 8, as near to the ratio as these allow at about the area of the default
    size. `None` gives the default size.
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
        remedy = 'must be like "16:9", between "1:8" and "8:1"'
        raise invalid(
            "aspect_ratio", text, remedy, code="malformed", example="16:9", low="1:8", high="8:1"
        )
    return across, down


def _agrees_with_ratio(request: "ImageRequest", field: Any, value: int) -> None:
    if request.aspect_ratio is not None:
        expected = size_for(request.aspect_ratio)[0 if field.name == "width" else 1]
        if value != expected:
            remedy = "give either a size or an aspect_ratio, not both"
            raise invalid(field.name, value, remedy, code="conflict", other="aspect_ratio")


_seed = attrs.validators.optional(
    validator(count, 0, LARGEST_INT, "(None: the client picks one)"),
)
_side = [validator(count, 1, MAX_SIDE, "pixels"), _agrees_with_ratio]


@attrs.frozen(kw_only=True, init=False)
class ImageRequest:
    """One image to generate. Bad values raise `InvalidRequestError` when it is constructed.

    The defaults are those of the service's known clients. ``repr()`` does not show the texts.
    Whole numbers may be those of another library, such as NumPy.

    Attributes:
        prompt: What to draw; not blank.
        negative_prompt: What to keep out.
        aspect_ratio: Such as ``"16:9"``: sets width and height, in multiples of 8 at about the
            default area. `None`: not used. Giving a different size as well is an error.
        width: In pixels, 1 to 4096.
        height: In pixels, 1 to 4096.
        seed: Start of the noise, 0 or more. `None`: the client picks one; the result has it.
            It is sent as digits in a text.
        subseed: As `seed`, of the variation. `None`: the number after a given `seed`, so that
            the seed alone repeats an image; else picked, too.
        attention: A whole number that the known clients send as 0; its meaning is not known.
        tiling: True: the image repeats without a seam.
        reference_image: An image to start from. A text is passed through: which encoding the
            public service wants is not known. A path, bytes or an image of Pillow become a
            ``data:`` URI, which our own server takes.
        reference_image_type: Passed through; the values are not known.
        reference_strength: In percent, 0 to 100.
        extra_body: Fields that this class does not name; merged into the JSON last.
    """

    prompt: str = attrs.field(validator=[validator(text), validator(not_blank)], repr=_hidden)
    negative_prompt: str = attrs.field(default="", validator=validator(text), repr=_hidden)
    # Only a way to say the size: two requests for the same pixels are the same request.
    aspect_ratio: str | None = attrs.field(default=None, eq=False)
    width: int = attrs.field(converter=plain_int, validator=_side)
    height: int = attrs.field(converter=plain_int, validator=_side)
    seed: int | None = attrs.field(default=None, converter=plain_int, validator=_seed)
    subseed: int | None = attrs.field(default=None, converter=plain_int, validator=_seed)
    attention: int = attrs.field(
        default=0, converter=plain_int, validator=validator(count, -LARGEST_INT, LARGEST_INT)
    )
    tiling: bool = attrs.field(default=False, validator=validator(boolean))
    reference_image: str = attrs.field(
        default="", converter=encoded_if_no_text, validator=validator(text), repr=_hidden
    )
    reference_image_type: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(validator(text))
    )
    reference_strength: int = attrs.field(
        default=30, converter=plain_int, validator=validator(count, 0, 100, "percent")
    )
    extra_body: Mapping[str, Any] = attrs.field(
        factory=dict,
        converter=_extra_body,
        repr=lambda body: f"<{len(body)} fields>",
        hash=False,
    )

    def __init__(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        aspect_ratio: str | None = None,
        width: SupportsIndex | None = None,
        height: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        subseed: SupportsIndex | None = None,
        attention: SupportsIndex = 0,
        tiling: bool = False,
        reference_image: ReferenceImage = "",
        reference_image_type: str | None = None,
        reference_strength: SupportsIndex = 30,
        extra_body: Mapping[str, Any] | None = None,
        **unknown: NoReturn,
    ) -> None:
        """Check the values; `None` is each one's default.

        Raises:
            InvalidRequestError: A value cannot be used, or there is no such field.
        """
        for name in unknown:
            raise unknown_option(name, FIELDS)
        default_width, default_height = size_for(aspect_ratio)
        self.__attrs_init__(
            prompt=prompt,
            negative_prompt=negative_prompt,
            aspect_ratio=aspect_ratio,
            width=default_width if width is None else width,
            height=default_height if height is None else height,
            seed=seed,
            subseed=subseed,
            attention=attention,
            tiling=tiling,
            reference_image=reference_image,
            reference_image_type=reference_image_type,
            reference_strength=reference_strength,
            extra_body={} if extra_body is None else extra_body,
        )

    @classmethod
    @without_locals
    def from_image(
        cls, path: "str | os.PathLike[str]", *, prompt: str | None = None
    ) -> "ImageRequest":
        """Return the request that an image file was made with, as far as the file tells.

        Read are the JSON of `GeneratedImage.save(sidecar=True)` beside the file, and what our own
        server, the AUTOMATIC1111 tools and ComfyUI write into it. The same request gives the same
        pixels only with the same engine and model.

        Args:
            path: A PNG, JPEG or WebP file.
            prompt: In place of the prompt in the file; our server writes none unless it is told to.

        Raises:
            InvalidRequestError: The file does not tell how it was made, or holds no prompt.
            OSError: It cannot be read.
        """
        # They cost time that most programs do without.
        from .parameters import read_parameters
        from .sidecar import read_sidecar

        with open(path, "rb") as file:
            found = read_parameters(file.read(_MAX_FILE))
        beside = read_sidecar(Path(path))["request"]
        if found is None and not beside:
            raise invalid("path", os.fspath(path), "does not say how it was made", code="unknown")
        known = {**(found.fields if found else {}), **beside}
        fields = {**known, **({} if prompt is None else {"prompt": prompt})}
        if not fields.get("prompt"):
            raise invalid_secret("prompt", "the file holds none: give it", code="blank")
        return cls(**fields)

    def with_seeds(self) -> "ImageRequest":
        """Return this request with both seeds set; one that was left open is picked."""
        picked = pick_seeds({"seed": self.seed, "subseed": self.subseed})
        return attrs.evolve(self, **picked) if picked else self


# Not a decorator: with one, mypy would not take the class for one of attrs.
ImageRequest.__init__ = without_locals(ImageRequest.__init__)  # type: ignore[method-assign]

FIELDS = tuple(field.name for field in attrs.fields(ImageRequest))


@without_locals
def make_request(prompt: str | ImageRequest, options: Mapping[str, Any]) -> ImageRequest:
    """Return the request, with all its seeds, that a prompt and keyword arguments mean.

    Args:
        prompt: What to draw, or a whole request; then `options` must be empty.
        options: Fields of `ImageRequest` by name; `None` means not given.

    Raises:
        InvalidRequestError: A value cannot be used, or a name is unknown.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(prompt, ImageRequest):
        for name in given:
            raise invalid_secret(name, "give it in the ImageRequest", code="conflict")
        return prompt.with_seeds()
    # Seeds are picked before the request is made: checking it twice would cost CPU.
    return ImageRequest(prompt, **{**given, **pick_seeds(given)})


def pick_seeds(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for each of the two seeds that is not given.

    A subseed that is not given is the number after a given seed, so that the seed alone is enough
    to repeat an image; after the largest seed it is 0. Without a seed, both are picked at random.
    """
    seed, subseed = plain_int(given.get("seed")), given.get("subseed")
    if seed is None:
        seed, following = _two_seeds()
        return {"seed": seed} if subseed is not None else {"seed": seed, "subseed": following}
    if subseed is None and type(seed) is int:  # any other type is refused with the request
        return {"subseed": (seed + 1) % (LARGEST_INT + 1)}
    return {}


def _two_seeds() -> tuple[int, int]:
    """Return numbers of ten digits, as the known clients send, and no more than 32 bits."""
    low, high, dice = 10**9, 2**32, os.urandom(16)  # asked once: with threads each call may wait
    first, second = (
        low + int.from_bytes(part, "big") % (high - low) for part in (dice[:8], dice[8:])
    )
    return first, second


class State(enum.Enum):
    """Our reading of how a job stands; `Progress.status` keeps the service's own word."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """True when polling again cannot change it."""
        return self in (State.DONE, State.FAILED)


@attrs.frozen
class Eta:
    """The seconds until a job ends, which probably lie between `low` and `high`."""

    low: float
    high: float


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
        refused: Why the address that the service gave for the finished image cannot be used;
            empty if it can, or there is none.
        queue_position: The place in the queue, if the service tells it and the job waits.
        info: How the image was made (model, steps, seeds), if the service tells it.
        eta: How long it may still take, at the time of the poll; `None`: nothing is known.
        raw: The whole answer as the service sent it, with fields that are not read here, too;
            prompts and cookies that it quotes are redacted. Empty for an answer over 64 KiB.
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
    refused: str = ""
    queue_position: int | None = None
    info: Mapping[str, Any] | None = attrs.field(default=None, hash=False)
    eta: Eta | None = attrs.field(default=None, eq=False)
    raw: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False)
