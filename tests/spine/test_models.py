"""The request: bad input is said before anything is sent, by field, value and remedy."""

import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagelabs_sdk import ImageRequest, InvalidRequestError, Progress, State
from imagelabs_sdk.models import MAX_SIDE, size_for


class Odd:
    """No JSON."""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("prompt", bad) for bad in ("", "  \n", None, 7, b"x", ["x"])],
        *[("negative_prompt", bad) for bad in (None, 7)],
        *[
            (side, bad)
            for side in ("width", "height")
            for bad in (0, -8, 512.0, "512", True, MAX_SIDE + 1, 10**9, math.nan)
        ],
        *[("aspect_ratio", b) for b in ("16x9", "0:1", "1:0", "9:1", ":", "a:b", "nan:1", 1.5, "")],
        *[(name, bad) for name in ("seed", "subseed") for bad in (-1, 1.5, "7", True, 2**63)],
        *[("attention", bad) for bad in (0.5, None, "0", 2**64)],
        *[("tiling", bad) for bad in (0, 1, None, "yes")],
        *[("reference_image", bad) for bad in (None, b"bytes")],
        *[("reference_image_type", bad) for bad in (7, b"x")],
        *[("reference_strength", bad) for bad in (-1, 101, 30.0, "30", None)],
        *[("extra_body", bad) for bad in (7, [("a", 1)], {1: 2}, {"a": Odd()}, {"a": math.nan})],
        pytest.param("extra_body", {"a": nested(100_000)}, id="deep"),
        pytest.param("seed", 10**5000, id="more digits than Python prints"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(field: str, value: Any) -> None:
    """Before any I/O: a job that cannot be drawn must not be bought."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageRequest(**{"prompt": "x", field: value})
    assert caught.value.field == field
    assert field in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_the_message_names_field_value_and_remedy() -> None:
    """One line must be enough to mend the call."""
    with pytest.raises(InvalidRequestError, match=r"^width=0: must be a whole number, 1 to 4096"):
        ImageRequest("x", width=0)


@pytest.mark.parametrize(
    ("ratio", "size"),
    [(None, (1152, 896)), ("1:1", (1016, 1016)), ("16:9", (1352, 760)), ("9:16", (760, 1352))],
)
def test_an_aspect_ratio_becomes_a_size(ratio: str | None, size: tuple[int, int]) -> None:
    """Known clients differ in size only in multiples of 8 at about the same area."""
    request = ImageRequest("x", aspect_ratio=ratio)
    assert (request.width, request.height) == size


@given(st.integers(1, 80), st.integers(1, 80))
def test_every_ratio_gives_multiples_of_8_near_the_default_area(across: int, down: int) -> None:
    """Also odd ones; and the ratio itself is kept as nearly as multiples of 8 allow."""
    if not 1 / 8 <= across / down <= 8:
        return
    width, height = size_for(f"{across}:{down}")
    assert width % 8 == height % 8 == 0
    assert 0.9 < width * height / (1152 * 896) < 1.1
    assert abs(width / height - across / down) / (across / down) < 0.02
    assert max(width, height) <= MAX_SIDE


@pytest.mark.parametrize("size", [{"width": 512}, {"height": 512}, {"width": 512, "height": 512}])
def test_a_size_and_a_ratio_contradict_each_other(size: Any) -> None:
    """Silently preferring one of them would draw what nobody asked for."""
    with pytest.raises(InvalidRequestError, match="not both"):
        ImageRequest("x", aspect_ratio="16:9", **size)


def test_open_seeds_are_picked_and_given_ones_kept() -> None:
    """An image can be drawn again only if its seeds are known."""
    picked = ImageRequest("x", seed=7).with_seeds()
    assert picked.seed == 7
    assert picked.subseed is not None
    assert 10**9 <= picked.subseed < 2**32
    assert picked.with_seeds() == picked
    assert ImageRequest("x").with_seeds() != ImageRequest("x").with_seeds()


def test_a_request_shows_no_texts() -> None:
    """A repr ends in logs, and what is drawn is the user's own business."""
    request = ImageRequest(
        "a secret", negative_prompt="hush", reference_image="data", extra_body={"k": "private"}
    )
    for text in ("secret", "hush", "data", "private"):
        assert text not in repr(request)


def test_a_request_is_frozen_and_hashable() -> None:
    """It is shared by job, result and log; also what the caller passed in stays apart from it."""
    extra = {"model": "m", "list": [1]}
    request = ImageRequest("x", extra_body=extra)
    extra["list"].append(2)  # type: ignore[attr-defined]
    assert request.extra_body == {"model": "m", "list": [1]}
    assert hash(request) == hash(ImageRequest("x", extra_body={"model": "n"}))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        request.width = 1  # type: ignore[misc]


def test_a_progress_shows_addresses_shortened() -> None:
    """An address comes from the server and may be as long as an answer."""
    progress = Progress(state=State.DONE, image_url="https://h/" + "x\x1b" * 5000)
    assert len(repr(progress)) < 500
    assert "\x1b" not in repr(progress)
