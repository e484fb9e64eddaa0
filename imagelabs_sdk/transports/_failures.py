"""The error of an exchange that brought no answer."""

from urllib.parse import urlsplit

from .._redact import sanitize_text
from ..errors import APIConnectionError, APITimeoutError

__all__ = ["no_answer"]


def no_answer(
    url: str, reason: str | None, *, sent: bool, proxy: str = "", at_proxy: bool = False
) -> APIConnectionError:
    """Return the error, which names who has not answered, and why.

    Args:
        url: What was asked for.
        reason: Safe to show; `None`: time ran out.
        sent: False only if surely no byte of the request was sent.
        proxy: Host and port of the proxy between; empty: none.
        at_proxy: True: it was the proxy that failed.
    """
    peer = sanitize_text(urlsplit(url).netloc)
    if proxy:
        peer = f"the proxy {proxy}" if at_proxy else f"{peer} by proxy {proxy}"
    kind = APITimeoutError if reason is None else APIConnectionError
    words = "no answer in time" if reason is None else f"no answer ({reason})"
    return kind(f"{peer}: {words}", delivered="maybe" if sent else "no")
