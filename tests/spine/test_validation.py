"""Checks of plain values: what is let through, what is refused, and by which code."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import InvalidRequestError, validation


class WholeNumber:
    """As NumPy's are."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("check", "code"),
    [
        (lambda: validation.count("n", 0, 1), "too_small"),
        (lambda: validation.count("n", 3, 1, 2), "too_large"),
        (lambda: validation.count("n", 1.0, 1), "not_whole_number"),
        (lambda: validation.count("n", True, 0), "not_whole_number"),
        (lambda: validation.count("n", "1", 0), "not_whole_number"),
        (lambda: validation.number("n", 2.0, 0.0, 1.0), "too_large"),
        (lambda: validation.number("n", -1, 0.0, 1.0), "too_small"),
        (lambda: validation.number("n", math.nan, 0.0, 1.0), "not_number"),
        (lambda: validation.number("n", False, 0.0, 1.0), "not_number"),
        (lambda: validation.seconds("n", 0), "too_small"),
        (lambda: validation.seconds("n", -1, least=0.0), "too_small"),
        (lambda: validation.seconds("n", 10**400, most=5.0), "too_large"),
        (lambda: validation.seconds("n", -(10**400)), "too_small"),
        (lambda: validation.seconds("n", "5"), "not_number"),
        (lambda: validation.verify("/no/such/bundle.pem"), "invalid"),
        (lambda: validation.verify(None), "invalid"),
        (lambda: validation.function("n", 7), "not_callable"),
        (lambda: validation.text("n", b"x"), "not_text"),
        (lambda: validation.not_blank("n", "\t"), "blank"),
        (lambda: validation.boolean("n", 0), "not_true_or_false"),
    ],
)
def test_a_value_that_cannot_be_used_has_a_code(check: Callable[[], Any], code: str) -> None:
    """Stable, and one for each kind of mistake."""
    with pytest.raises(InvalidRequestError) as caught:
        check()
    assert caught.value.code == code
    assert caught.value.field in ("n", "verify")


def test_what_can_be_used_comes_back_plain(tmp_path: Path) -> None:
    """Callers keep what the check returns."""
    assert validation.count("n", WholeNumber(), 1, 9) == 7
    assert type(validation.count("n", WholeNumber(), 1)) is int
    assert validation.seconds("n", 5) == 5.0
    assert validation.seconds("n", 0, least=0.0) == 0.0
    assert validation.seconds("n", 10**400) == math.inf
    assert validation.verify(tmp_path) == str(tmp_path)
    assert validation.function("n", None) is None
    assert validation.function("n", print) is print


def test_a_number_of_more_digits_than_python_prints_is_refused_in_words() -> None:
    """The message must not fail where the value did."""
    with pytest.raises(InvalidRequestError, match=r"^n=<int>: must be a whole number, 1 to 9$"):
        validation.count("n", 10**5000, 1, 9)


def test_a_secret_is_not_shown() -> None:
    """A proxy's password, a cookie, a prompt."""
    assert "hush" not in str(validation.invalid_secret("proxy", "must be a URL"))
