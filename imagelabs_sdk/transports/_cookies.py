"""Cookies that an origin has set: kept within a browser's limits, sent with the caller's."""

from collections.abc import Iterable, Mapping
from email.message import Message
from http.cookiejar import Cookie, CookieJar
from types import SimpleNamespace
from typing import Any
from urllib.request import Request

__all__ = ["held", "keep", "merge", "set_by"]

_MAX_COOKIE, _MAX_COOKIES = 4096, 50  # bytes of one, and how many; browsers keep no larger ones


def merge(given: Mapping[str, str], held: str | None) -> str:
    """Return the header with the caller's cookies and those that were set since, which win."""
    cookies = dict(given)
    for pair in (held or "").split("; "):
        name, _, value = pair.partition("=")
        if name:
            cookies[name] = value
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def keep(jar: CookieJar, fresh: Iterable[Any]) -> None:
    """Keep cookies within a browser's limits of size and number."""
    for cookie in fresh:
        if len(cookie.name) + len(cookie.value or "") <= _MAX_COOKIE and len(jar) < _MAX_COOKIES:
            jar.set_cookie(cookie)


def held(jar: CookieJar, url: str) -> str:
    """Return the header with the cookies that a jar has for a URL; empty: none."""
    asked = Request(url)  # noqa: S310 - nothing is opened
    jar.add_cookie_header(asked)
    return asked.get_header("Cookie", "")


def set_by(url: str, lines: Iterable[str]) -> Iterable[Cookie]:
    """Return the cookies that an answer of this URL sets, by its ``set-cookie`` headers."""
    head, fresh = Message(), CookieJar()
    for line in lines:
        head["Set-Cookie"] = line
    answer: Any = SimpleNamespace(info=lambda: head)
    fresh.extract_cookies(answer, Request(url))  # noqa: S310 - nothing is opened
    return fresh
