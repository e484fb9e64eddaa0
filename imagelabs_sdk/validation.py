"""Checks of plain values, made where the values come in.

Light on purpose: making a client loads no more than this. The errors are loaded when there is one.
Each check returns the value that is to be used, or raises `InvalidRequestError` with one of the
codes ``not_text``, ``blank``, ``not_unicode``, ``not_number``, ``not_whole_number``, ``too_small``,
``too_large``, ``not_true_or_false``, ``not_mapping``, ``not_json``, ``too_deep``, ``not_callable``,
``unknown_option``, ``missing_extra``, ``conflict``, ``malformed`` and ``invalid``.
"""

import functools
import math
import operator
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from . import urls

if TYPE_CHECKING:
    from .errors import InvalidRequestError

__all__ = [
    "base_url",
    "boolean",
    "cookies",
    "count",
    "function",
    "headers",
    "invalid",
    "invalid_secret",
    "not_blank",
    "number",
    "plain_int",
    "proxy",
    "seconds",
    "text",
    "unknown_option",
    "validator",
    "verify",
    "without_locals",
]

_F = TypeVar("_F")
_P = ParamSpec("_P")
_R = TypeVar("_R")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


# The error ------------------------------------------------------------------------------


def invalid(
    field: str, value: object, remedy: str, *, code: str = "invalid", **params: Any
) -> "InvalidRequestError":
    """Return the error for one bad argument: it names field, value and what to write instead.

    Args:
        field: The argument's name.
        value: What was given; shown, so it must not be a secret.
        remedy: What to write instead.
        code: Stable, for programs; see the list at the head of this module.
        params: What the remedy speaks of, such as ``low=1, high=4096``.
    """
    from ._redact import sanitize_text

    try:
        shown = sanitize_text(repr(value), 60)
    except ValueError:  # a whole number with more digits than Python prints
        shown = f"<{type(value).__name__}>"
    return invalid_secret(field, remedy, f"{field}={shown}", code=code, **params)


def invalid_secret(
    field: str, remedy: str, label: str = "", *, code: str = "invalid", **params: Any
) -> "InvalidRequestError":
    """Return the same error without the value, which may be a secret or a prompt."""
    from .errors import InvalidRequestError

    return InvalidRequestError(f"{label or field}: {remedy}", field=field, code=code, params=params)


def unknown_option(name: str, known: Collection[str]) -> "InvalidRequestError":
    """Return the error for an argument that does not exist; it names the nearest one."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    return invalid_secret(
        name, f"there is no such option; {remedy}", code="unknown_option", nearest="".join(near)
    )


def without_locals(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function whose arguments are secrets or prompts, for the errors that it raises.

    The frames of their tracebacks, those of their causes included, keep their lines and lose their
    local variables, which error trackers show.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            import traceback

            cause: BaseException | None = error
            while cause is not None:
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__cause__
            raise

    return call


# Plain values ---------------------------------------------------------------------------


def validator(check: Callable[..., object], *limits: Any, **named: Any) -> Callable[..., None]:
    """Return an attrs validator that makes `check` of a field, with these limits."""

    def validate(_: object, field: Any, value: object) -> None:
        check(field.name, value, *limits, **named)

    return validate


def text(field: str, value: object) -> str:
    """Check text. It is never shown, and must be Unicode that can be sent.

    Raises:
        InvalidRequestError: It is not `str` (``not_text``) or holds a lone surrogate
            (``not_unicode``).
    """
    if not isinstance(value, str):
        kind = type(value).__name__
        raise invalid_secret(field, f"must be text, not {kind}", code="not_text", type=kind)
    if not value.isascii() and (found := re.search("[\ud800-\udfff]", value)):
        place = found.start()
        remedy = f"character {place} is a lone surrogate, which no encoding has: leave it out"
        raise invalid_secret(field, remedy, code="not_unicode", position=place)
    return value


def not_blank(field: str, value: str) -> str:
    """Check that there is more than white space (``blank``)."""
    if not value.strip():
        raise invalid(field, value, "must say what to draw", code="blank")
    return value


def boolean(field: str, value: object) -> bool:
    """Check that it is `True` or `False` (``not_true_or_false``)."""
    if not isinstance(value, bool):
        raise invalid(field, value, "must be True or False", code="not_true_or_false")
    return value


def function(field: str, value: _F | None) -> _F | None:
    """Check that it can be called, or is `None` (``not_callable``)."""
    if value is not None and not callable(value):
        raise invalid(field, value, "must be a function, or None", code="not_callable")
    return value


def plain_int(value: Any) -> Any:
    """Return a whole number of any library as an `int`, and anything else as it is."""
    if type(value) is int or isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def count(field: str, value: object, low: int, high: int | None = None, unit: str = "") -> int:
    """Check a whole number, of any library.

    Args:
        field: The argument's name.
        value: To be checked.
        low: The least.
        high: The greatest; `None`: no limit.
        unit: Such as ``"pixels"``, for the message.

    Raises:
        InvalidRequestError: It is not one (``not_whole_number``), or is not from `low` to
            `high` (``too_small``, ``too_large``).
    """
    whole = plain_int(value)
    if type(whole) is not int:
        code = "not_whole_number"
    elif whole < low:
        code = "too_small"
    elif high is not None and whole > high:
        code = "too_large"
    else:
        return whole
    limits = f"{low} or more" if high is None else f"{low} to {high}"
    remedy = f"must be a whole number, {limits} {unit}".rstrip()
    raise invalid(field, value, remedy, code=code, low=low, high=high, unit=unit)


def number(field: str, value: object, low: float, high: float) -> float:
    """Check a number from `low` to `high`.

    Raises:
        InvalidRequestError: ``not_number``, ``too_small`` or ``too_large``.
    """
    given = _float(value)
    if low <= given <= high:
        return given
    remedy = f"must be a number from {low:g} to {high:g}"
    raise invalid(field, value, remedy, code=_range_code(given, low), low=low, high=high)


def seconds(
    field: str,
    value: object,
    *,
    above: float = 0.0,
    least: float | None = None,
    most: float = math.inf,
) -> float:
    """Check a length of time.

    Args:
        field: The argument's name.
        value: To be checked.
        above: It must be longer than this many seconds.
        least: In place of `above`: it must be at least as long.
        most: It must not be longer; infinity: no limit.

    Raises:
        InvalidRequestError: ``not_number``, ``too_small`` or ``too_large``.
    """
    given = _float(value)
    if (above < given if least is None else least <= given) and given <= most:
        return given
    low = above if least is None else least
    limit = f"above {above:g}" if least is None else f"{least:g} or more"
    top = f" and at most {most:g}" if math.isfinite(most) else ""
    code = _range_code(given, low)
    raise invalid(field, value, f"must be a number of seconds, {limit}{top}", code=code, low=low)


def _float(value: object) -> float:
    """Return the number; NaN for what is not one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _range_code(given: float, low: float) -> str:
    if math.isnan(given):
        return "not_number"
    return "too_small" if given <= low else "too_large"


# Settings of a client ---------------------------------------------------------------------


def base_url(url: object) -> str:
    """Check a service's URL; return it without spaces around it and a slash at the end.

    Raises:
        InvalidRequestError: It is not http or https, or has more than scheme, host and path.
    """
    given = url.strip() if isinstance(url, str) else ""
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if usable and not given.isascii():
            given = urls.resolve(given, "")  # an international host's name as DNS knows it
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.query or parts.fragment:
        shown = "<hidden>" if "@" in str(url) else url
        raise invalid(
            "base_url",
            shown,
            'must be like "https://host", without user, query or fragment',
            code="malformed",
        )
    return given.rstrip("/")


def proxy(address: object) -> str:
    """Check a proxy's URL.

    Raises:
        InvalidRequestError: It cannot be used; the message does not show it.
    """
    try:
        parts = urlsplit(address if isinstance(address, str) else "")
        usable = parts.scheme in _PROXIES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not str(address).isascii():
        remedy = 'must be like "http://user:password@host:3128", in ASCII'
        raise invalid_secret("proxy", remedy, code="malformed")
    return str(address)


def verify(value: object) -> bool | str:
    """Check a setting for TLS: `True`, `False`, ``"system"``, or the path of a CA bundle.

    Raises:
        InvalidRequestError: It is something else, there is no such file, or the extra is missing
            that ``"system"`` needs.
    """
    if value == "system":
        from importlib.util import find_spec  # of no use to who does not ask for it

        if find_spec("truststore") is None:
            remedy = 'needs the extra: pip install "imagelabs_sdk[truststore]"'
            raise invalid("verify", value, remedy, code="missing_extra")
        return "system"
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(path, bool) or (isinstance(path, str) and os.path.exists(path)):  # noqa: PTH110
        return path
    raise invalid("verify", value, 'must be True, False, "system", or a CA bundle that exists')


def headers(
    given: Mapping[str, str | None] | None, field: str = "headers"
) -> dict[str, str | None]:
    """Check headers; return them by lower-case name.

    Raises:
        InvalidRequestError: A name or a value cannot be sent; values are not shown.
    """
    checked: dict[str, str | None] = {}
    if not isinstance(given or {}, Mapping):
        raise invalid_secret(field, "must be a mapping of names to values", code="not_mapping")
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise invalid(field, name, "is not the name of a header", code="malformed")
        if value is not None and not _sendable(value):
            remedy = "must be Latin-1 text without line breaks"
            raise invalid_secret(field, remedy, f"{field}[{name!r}]", code="malformed")
        checked[name.lower()] = value
    return checked


def cookies(given: Mapping[str, str] | str | None) -> dict[str, str]:
    """Check cookies, given by name or as a browser's header; return them by name.

    Raises:
        InvalidRequestError: A name or a value cannot be sent; neither is shown.
    """
    if isinstance(given, str):
        pairs = (pair.strip().partition("=") for pair in given.split(";") if pair.strip())
        given = {name.strip(): value.strip() for name, _, value in pairs}
    elif given is not None and not isinstance(given, Mapping):
        raise invalid_secret("cookies", "must be a mapping or text", code="not_mapping")
    for name, value in (given or {}).items():
        named = isinstance(name, str) and _HEADER_NAME.fullmatch(name)
        if not named or not _sendable(value) or ";" in value:
            remedy = "names and values must be plain text without ';'"
            raise invalid_secret("cookies", remedy, code="malformed")
    return dict(given or {})


def _sendable(value: object) -> bool:
    if not isinstance(value, str) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        return False
    return all(ord(character) < 256 for character in value)
