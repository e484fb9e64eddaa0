"""A client's settings: arguments first, then the environment, then defaults; all checked."""

import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from . import validation

__all__ = ["BASE_URL", "USER_AGENT", "Settings"]

BASE_URL = "https://editor.imagelabs.net"
USER_AGENT = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
)
_TIMEOUT = 300.0  # seconds


class Settings(NamedTuple):
    """What `ImageLabs` was given; `ImageLabs.__init__` says what each field means.

    A named tuple, because attrs is too expensive to import when a client is made.
    """

    base_url: str
    timeout: float
    poll_interval: float | None
    request_timeout: float
    max_retries: int
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    proxy: str | None
    verify: bool | str
    allow_private_hosts: bool
    max_image_bytes: int
    log_prompts: bool

    def __repr__(self) -> str:
        return f"<settings for {self.base_url}>"  # cookies, headers and proxy are secrets

    @classmethod
    def of(
        cls,
        *,
        base_url: str | None,
        timeout: float | None,
        poll_interval: float | None,
        request_timeout: float,
        max_retries: int,
        headers: Mapping[str, str | None] | None,
        cookies: Mapping[str, str] | str | None,
        proxy: str | None,
        verify: bool | str,
        allow_private_hosts: bool,
        max_image_bytes: int,
        log_prompts: bool,
    ) -> "Settings":
        """Return the settings for these arguments and the environment of now.

        Raises:
            InvalidRequestError: One cannot be used.
        """
        base = validation.base_url(base_url or os.environ.get("IMAGELABS_BASE_URL") or BASE_URL)
        sent = {**_default_headers(base), **validation.headers(headers)}
        given = os.environ.get("IMAGELABS_COOKIE") if cookies is None else cookies
        all_cookies = {**validation.cookies(sent.pop("cookie", None)), **validation.cookies(given)}
        return cls(
            base_url=base,
            timeout=validation.seconds("timeout", _timeout() if timeout is None else timeout),
            poll_interval=None
            if poll_interval is None
            else validation.seconds("poll_interval", poll_interval),
            request_timeout=validation.seconds("request_timeout", request_timeout),
            max_retries=validation.count("max_retries", max_retries, 0, 100),
            headers={name: value for name, value in sent.items() if value is not None},
            cookies=all_cookies,
            proxy=validation.proxy(proxy) if proxy else None,
            verify=validation.verify(verify),
            allow_private_hosts=allow_private_hosts,
            max_image_bytes=validation.count("max_image_bytes", max_image_bytes, 1, 2**40),
            log_prompts=log_prompts,
        )


def _default_headers(base: str) -> dict[str, str | None]:
    """Return the headers of the reference implementation."""
    parts = urlsplit(base)
    origin = f"{parts.scheme}://{parts.netloc}"
    return {
        "accept": "*/*",
        "accept-language": "en-US,en;q=0.9",
        "cache-control": "no-cache",
        "content-type": "application/json",
        "origin": origin,
        "referer": origin + "/",
        "x-requested-with": "XMLHttpRequest",
        **validation.headers({"user-agent": os.environ.get("IMAGELABS_USER_AGENT") or USER_AGENT}),
    }


def _timeout() -> float:
    text = os.environ.get("IMAGELABS_TIMEOUT")
    if not text:
        return _TIMEOUT
    try:
        return float(text)
    except ValueError:
        remedy = "must be a number of seconds"
        raise validation.invalid("IMAGELABS_TIMEOUT", text, remedy, code="not_number") from None
