"""Checks of plain values, made where the values come in.

Light on purpose: making a client loads no more than this. The errors are loaded when there is one.
"""

import math
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from .errors import InvalidRequestError

__all__ = ["base_url", "cookies", "count", "headers", "invalid", "proxy", "seconds", "verify"]

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


def invalid(field: str, value: object, remedy: str) -> "InvalidRequestError":
    """The error for one bad argument: names the field, the value and what to write instead."""
    from .errors import sanitize_text

    try:
        shown = sanitize_text(repr(value), 60)
    except ValueError:  # a whole number of more digits than Python prints
        shown = f"<{type(value).__name__}>"
    return invalid_secret(field, remedy, f"{field}={shown}")


def invalid_secret(field: str, remedy: str, label: str = "") -> "InvalidRequestError":
    """The same about a value that may hold a secret."""
    from .errors import InvalidRequestError

    return InvalidRequestError(f"{label or field}: {remedy}", field=field)


def seconds(field: str, value: object, *, above: float = 0.0, most: float = math.inf) -> float:
    """Check a length of time.

    Raises:
        InvalidRequestError: It is no number, not above `above`, or over `most`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not above < float(value) <= most:  # type: ignore[arg-type]
        limit = f" and at most {most:g}" if math.isfinite(most) else ""
        raise invalid(field, value, f"must be a number of seconds above {above:g}{limit}")
    return float(value)  # type: ignore[arg-type]


def count(field: str, value: object, low: int, high: int) -> int:
    """Check a whole number.

    Raises:
        InvalidRequestError: It is none, or not from `low` to `high`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(field, value, f"must be a whole number, {low} to {high}")
    return value


def base_url(url: object) -> str:
    """Check a service's address; answers it without a slash at the end.

    Raises:
        InvalidRequestError: It is not http or https, or has more than scheme, host and path.
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.query or parts.fragment:
        shown = "<hidden>" if "@" in str(url) else url
        raise invalid(
            "base_url", shown, 'must be like "https://host", without user, query or fragment'
        )
    return str(url).rstrip("/")


def proxy(address: object) -> str:
    """Check a proxy's address.

    Raises:
        InvalidRequestError: It cannot be used; the message does not show it.
    """
    try:
        parts = urlsplit(address if isinstance(address, str) else "")
        usable = parts.scheme in _PROXIES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not str(address).isascii():
        raise invalid_secret("proxy", 'must be like "http://user:password@host:3128", in ASCII')
    return str(address)


def verify(value: object) -> bool | str:
    """Check a setting for TLS: `True`, `False`, or the path of a CA bundle that is there.

    Raises:
        InvalidRequestError: It is something else.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(path, bool) or (isinstance(path, str) and os.path.exists(path)):  # noqa: PTH110
        return path
    raise invalid("verify", value, "must be True, False, or a CA bundle that exists")


def headers(given: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Check headers; answers them by lower-case name.

    Raises:
        InvalidRequestError: A name or a value cannot be sent; values are not shown.
    """
    checked: dict[str, str | None] = {}
    if not isinstance(given or {}, Mapping):
        raise invalid_secret("headers", "must be a mapping of names to values")
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise invalid("headers", name, "is no header's name")
        if value is not None and not _sendable(value):
            remedy = "must be Latin-1 text without line breaks"
            raise invalid_secret("headers", remedy, f"headers[{name!r}]")
        checked[name.lower()] = value
    return checked


def cookies(given: Mapping[str, str] | str | None) -> dict[str, str]:
    """Check cookies, given by name or as a browser's header; answers them by name.

    Raises:
        InvalidRequestError: A name or a value cannot be sent; neither is shown.
    """
    if isinstance(given, str):
        pairs = (pair.strip().partition("=") for pair in given.split(";") if pair.strip())
        given = {name.strip(): value.strip() for name, _, value in pairs}
    elif given is not None and not isinstance(given, Mapping):
        raise invalid_secret("cookies", "must be a mapping or text")
    for name, value in (given or {}).items():
        named = isinstance(name, str) and _HEADER_NAME.fullmatch(name)
        if not named or not _sendable(value) or ";" in value:
            raise invalid_secret("cookies", "names and values must be plain text without ';'")
    return dict(given or {})


def _sendable(value: object) -> bool:
    if not isinstance(value, str) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        return False
    return all(ord(character) < 256 for character in value)
