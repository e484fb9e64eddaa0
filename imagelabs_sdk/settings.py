"""A client's settings: arguments first, then the environment, then defaults; all checked."""

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from . import validation

if TYPE_CHECKING:
    from .ledger import Ledger
    from .transports.observed import OnRequest, OnResponse

__all__ = ["BASE_URL", "IMAGE_HEADERS", "USER_AGENT", "Settings"]

BASE_URL = "https://editor.imagelabs.net"
USER_AGENT = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
)
IMAGE_HEADERS = {"accept": "image/*,*/*;q=0.8", "user-agent": USER_AGENT}
"""What every host of images gets that is not the API's."""

_TIMEOUT = 300.0  # seconds


class Settings:
    """What `ImageLabs` was given, checked; `ImageLabs.__init__` says what each field means.

    Not to be changed. A plain class: attrs is too expensive to import when a client is made, and a
    tuple would be shown element by element by tools that print local variables.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        timeout: float | None,
        poll_interval: float | None,
        request_timeout: float,
        max_retries: int,
        headers: Mapping[str, str | None] | None,
        cookies: Mapping[str, str] | str | None,
        api_key: str | None,
        image_headers: Mapping[str, str] | None,
        proxy: str | None,
        no_proxy: bool,
        verify: bool | str,
        allow_private_hosts: bool,
        max_image_bytes: int,
        log_prompts: bool,
        on_request: "OnRequest | None",
        on_response: "OnResponse | None",
        ledger: "Ledger | str | os.PathLike[str] | None" = None,
    ) -> None:
        """Check the arguments; what is `None` comes from the environment of now.

        Raises:
            InvalidRequestError: One cannot be used.
        """
        given = base_url or os.environ.get("IMAGELABS_BASE_URL") or BASE_URL
        self.base_url = validation.base_url(given)
        sent = {**_default_headers(self.base_url), **validation.headers(headers)}
        from_headers = validation.cookies(sent.pop("cookie", None))
        cookies = os.environ.get("IMAGELABS_COOKIE") if cookies is None else cookies
        self.cookies = {**from_headers, **validation.cookies(cookies)}
        api_key = api_key or os.environ.get("IMAGELABS_API_KEY")
        self.headers = _with_key(sent, api_key)
        self.image_headers = _image_headers(image_headers)
        self.timeout = validation.seconds("timeout", _timeout() if timeout is None else timeout)
        self.poll_interval = (
            None if poll_interval is None else validation.seconds("poll_interval", poll_interval)
        )
        self.request_timeout = validation.seconds("request_timeout", request_timeout)
        self.max_retries = validation.count("max_retries", max_retries, 0, 100)
        self.proxy = validation.proxy(proxy) if proxy else None
        self.no_proxy = no_proxy  # True: `proxy` is from the environment, as NO_PROXY is
        self.verify = validation.verify(verify)
        self.allow_private_hosts = allow_private_hosts
        self.max_image_bytes = validation.count("max_image_bytes", max_image_bytes, 1, 2**40)
        self.log_prompts = log_prompts
        self.on_request = validation.function("on_request", on_request)
        self.on_response = validation.function("on_response", on_response)
        self.ledger = _ledger(os.environ.get("IMAGELABS_LEDGER") if ledger is None else ledger)
        self.secrets = self._find_secrets()
        self.jar = ""  # whose cookies those that the service sets are

    def with_options(
        self,
        *,
        timeout: float | None,
        request_timeout: float | None,
        max_retries: int | None,
        headers: Mapping[str, str | None] | None,
        cookies: Mapping[str, str] | str | None,
        api_key: str | None,
        fixed_pace: bool,
    ) -> "Settings":
        """Return these settings with other ones; see `ImageLabs.with_options`.

        `fixed_pace`: False drops the poll interval, because there is another strategy.
        """
        other = copy.copy(self)
        other.jar = os.urandom(8).hex()
        if timeout is not None:
            other.timeout = validation.seconds("timeout", timeout)
        if request_timeout is not None:
            other.request_timeout = validation.seconds("request_timeout", request_timeout)
        if max_retries is not None:
            other.max_retries = validation.count("max_retries", max_retries, 0, 100)
        if cookies is not None:
            other.cookies = validation.cookies(cookies)
        if not fixed_pace:
            other.poll_interval = None
        kept = {**self.headers, **validation.headers(headers)}
        if "cookie" in kept:
            raise validation.invalid_secret("headers", "give cookies as cookies", code="conflict")
        if api_key is not None:
            kept.pop("authorization", None)
        other.headers = _with_key(kept, api_key)
        other.secrets = other._find_secrets()
        return other

    @property
    def own_image_headers(self) -> dict[str, str]:
        """The headers for images of the API's own origin."""
        return {name: value for name, value in self.headers.items() if name != "content-type"}

    def _find_secrets(self) -> tuple[str, ...]:
        """Return what no message may show: cookies, and headers that the reference has not."""
        default = _default_headers(self.base_url)
        own = [value for name, value in self.headers.items() if name not in default]
        return (*self.cookies.values(), *own, *(value.removeprefix("Bearer ") for value in own))

    def __repr__(self) -> str:
        return f"<Settings for {self.base_url}>"  # cookies, headers and proxy are secrets

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Settings):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(self.base_url)


def _with_key(headers: Mapping[str, str | None], api_key: str | None) -> dict[str, str]:
    """Return the headers that are sent, with the key among them."""
    sent = {name: value for name, value in headers.items() if value is not None}
    if api_key is None:
        return sent
    if not isinstance(api_key, str) or not api_key.isprintable() or not api_key.isascii():
        remedy = "must be printable ASCII text"
        raise validation.invalid_secret("api_key", remedy, code="malformed")
    if "authorization" in sent:
        remedy = "give either api_key or an authorization header"
        raise validation.invalid_secret("api_key", remedy, code="conflict")
    return {**sent, "authorization": f"Bearer {api_key}"}


def _image_headers(given: Mapping[str, str] | None) -> dict[str, str]:
    """Return what is sent to a host of images other than the API's that the service named."""
    sent = {**IMAGE_HEADERS, **validation.headers(given, "image_headers")}
    if "cookie" in sent:
        raise validation.invalid_secret("image_headers", "must not hold a cookie", code="conflict")
    return {name: value for name, value in sent.items() if value is not None}


def _ledger(given: object) -> "Ledger | None":
    if given is None or given == "":
        return None
    from .ledger import Ledger  # loads attrs and the models

    if isinstance(given, Ledger):
        return given
    if not isinstance(given, str | os.PathLike):
        raise validation.invalid("ledger", given, "must be the path of a file, or a Ledger")
    return Ledger(given)


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
