"""The request: bad input is said before anything is sent, by field, value and remedy."""

import inspect
import math
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagelabs_sdk import ImageLabs, ImageRequest, InvalidRequestError, Progress, State
from imagelabs_sdk.models import MAX_SIDE, make_request, size_for


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
    assert picked.with_seeds() == picked
    requests = [ImageRequest("x").with_seeds() for _ in range(10)]
    seeds = {seed for each in requests for seed in (each.seed, each.subseed)}
    assert len(seeds) == 20
    assert all(seed is not None and 10**9 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(("seed", "subseed"), [(0, 1), (7, 8), (2**63 - 1, 0)])
def test_the_seed_alone_repeats_an_image(seed: int, subseed: int) -> None:
    """Whoever noted one number should get the same image by it, in every surface."""
    assert ImageRequest("x", seed=seed).with_seeds().subseed == subseed
    assert make_request("x", {"seed": seed}).subseed == subseed
    assert make_request(ImageRequest("x", seed=seed), {}).subseed == subseed


def test_a_seed_of_another_type_is_refused_before_the_subseed_follows_it() -> None:
    """By name, as any other value."""
    with pytest.raises(InvalidRequestError) as caught:
        make_request("x", {"seed": "7"})
    assert caught.value.field == "seed"


def test_a_subseed_that_is_given_is_kept() -> None:
    """Also without a seed, which is then picked."""
    assert make_request("x", {"seed": 7, "subseed": 5}).subseed == 5
    request = make_request("x", {"subseed": 5})
    assert request.subseed == 5
    assert request.seed is not None
    assert 10**9 <= request.seed < 2**32


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


@pytest.mark.parametrize("call", [ImageLabs.generate, ImageLabs.submit])
def test_generate_and_submit_take_every_field_of_a_request(call: Any) -> None:
    """The three signatures are written out for editors and type checkers, and must not drift."""
    fields = set(inspect.signature(ImageRequest).parameters)
    assert fields <= set(inspect.signature(call).parameters)
    assert fields - {"unknown"} == {field.name for field in attrs.fields(ImageRequest)}


def test_what_is_nested_is_taken_up_to_a_bound() -> None:
    """What one reader takes, another may not: a server's workers died of it."""
    body = {"a": nested(63)}
    assert pickle.loads(pickle.dumps(ImageRequest("x", extra_body=body))).extra_body == body


@pytest.mark.parametrize("name", ["widht", "Width", "with"])
def test_an_unknown_field_is_answered_with_the_nearest_one(name: str) -> None:
    """Whoever misspells it should not have to open the documentation."""
    with pytest.raises(InvalidRequestError, match="did you mean width") as caught:
        ImageRequest("x", **{name: 512})  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.params) == ("unknown_option", {"nearest": "width"})


def test_a_name_like_no_field_is_answered_with_all_of_them() -> None:
    """Then the list is the shortest way."""
    with pytest.raises(InvalidRequestError, match=r"known are aspect_ratio, .*width"):
        ImageRequest("x", qqqq=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "code", "params"),
    [
        ("prompt", " ", "blank", {}),
        ("prompt", 7, "not_text", {"type": "int"}),
        ("prompt", "a\ud800b", "not_unicode", {"position": 1}),
        ("width", 0, "too_small", {"low": 1, "high": 4096, "unit": "pixels"}),
        ("width", 9999, "too_large", {"low": 1, "high": 4096, "unit": "pixels"}),
        ("width", 1.5, "not_whole_number", {"low": 1, "high": 4096, "unit": "pixels"}),
        ("tiling", 1, "not_true_or_false", {}),
        ("aspect_ratio", "wide", "malformed", {"example": "16:9", "low": "1:8", "high": "8:1"}),
        ("extra_body", 7, "not_mapping", {}),
        ("extra_body", {"a": math.inf}, "not_json", {}),
        ("extra_body", {"a": nested(64)}, "too_deep", {"high": 64}),
    ],
)
def test_a_refused_value_has_a_code_and_its_limits(
    field: str, value: Any, code: str, params: dict[str, Any]
) -> None:
    """Pages translate by them; no text is parsed."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageRequest(**{"prompt": "x", field: value})
    assert (caught.value.code, caught.value.params) == (code, params)


class WholeNumber:
    """As NumPy's are."""

    def __index__(self) -> int:
        return 512


def test_whole_numbers_of_other_libraries_are_whole_numbers() -> None:
    """Sizes and seeds come out of arrays; what is kept is a plain number that goes into JSON."""
    request = ImageRequest("x", width=WholeNumber(), seed=WholeNumber())
    assert (type(request.width), request.width, request.seed) == (int, 512, 512)


@pytest.mark.parametrize(
    "texts",
    [
        {"negative_prompt": "\udfff"},
        {"reference_image": "\ud800"},
        {"reference_image_type": "\ud800"},
        {"extra_body": {"a": ["\ud800"]}},
        {"extra_body": {"\ud800": 1}},
    ],
)
def test_a_lone_surrogate_is_refused_by_name(texts: Any) -> None:
    """It comes from cut or wrongly decoded text, and no encoding can carry it."""
    with pytest.raises(InvalidRequestError, match="surrogate") as caught:
        ImageRequest("x", **texts)
    assert caught.value.field in texts
