"""What a transport is: it sends one request and returns one response."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Protocol, TypeAlias
from urllib.parse import urlsplit

import attrs

from ..deadline import Deadline
from ..errors import APIResponseError

__all__ = [
    "HttpRequest",
    "HttpResponse",
    "Origin",
    "Transport",
    "origin_of",
]

_PORTS = {"http": 80, "https": 443}

Origin: TypeAlias = tuple[str, str, int | None]
"""Scheme, host and port."""


def origin_of(url: str) -> Origin:
    """Return scheme, host and port of a URL: URLs of one origin share all three.

    Raises:
        ValueError: The port is not a number.
    """
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _chunks(body: bytes | Iterable[bytes]) -> Iterable[bytes]:
    return (body,) if isinstance(body, bytes) else body


def _nothing() -> None:
    """Close a response that holds nothing open."""


@attrs.frozen(kw_only=True)
class HttpRequest:
    """One HTTP request. Its repr shows neither body nor cookies nor the query.

    Attributes:
        method: ``"GET"`` or ``"POST"``.
        url: Absolute, http or https.
        headers: By lower-case name.
        body: Empty for a GET.
        cookies: To be sent, besides those that earlier answers of the same origin have set.
            `None`: send no cookie and keep none, as for hosts other than the API's.
        jar: Whose cookies those that the service sets are: clients that share a transport have
            different ones, and no cookie goes from one to another.
        public_only: True: the transport must not connect to an address that is not on the
            public internet. It checks the very address that it connects to.
        repeatable: False: sending it twice does harm. It needs a new connection, or one of an
            origin that has proven to keep connections open: on one that the peer has just
            closed its fate would be unknown.
        idle_timeout: Seconds for connecting and the head of the answer together, and for each
            silence in its body, besides the deadline of the whole; `None`: the deadline alone.
    """

    method: str
    url: str = attrs.field(repr=lambda url: repr(url.partition("?")[0]))
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    body: bytes = attrs.field(default=b"", repr=lambda body: f"<{len(body)} bytes>")
    cookies: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    jar: str = ""
    public_only: bool = False
    repeatable: bool = True
    idle_timeout: float | None = None


@attrs.frozen
class HttpResponse:
    """One HTTP response; close it, or use it in a ``with``.

    Attributes:
        status: Such as 200. A redirect is a response like any other.
        headers: By lower-case name.
        chunks: The body, free of transfer and content codings: bytes, or an iterable that
            can be iterated once and raises `APIConnectionError` when the body breaks off.
        on_close: Releases what the response holds open.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict, converter=_lower, repr=False)
    chunks: Iterable[bytes] = attrs.field(default=b"", converter=_chunks, repr=False)
    on_close: Callable[[], None] = attrs.field(default=_nothing, repr=False)

    def iter_bytes(self) -> Iterator[bytes]:
        """Return the body as it arrives, piece by piece; can be iterated once."""
        return iter(self.chunks)

    def read(self, limit: int) -> bytes:
        """Return the whole body.

        Raises:
            APIResponseError: It is longer than `limit` bytes.
            APIConnectionError: It broke off.
        """
        body = bytearray()
        for chunk in self.chunks:
            body += chunk
            if len(body) > limit:
                raise APIResponseError(f"the answer is longer than {limit} bytes")
        return bytes(body)

    def close(self) -> None:
        """Release the connection. May be called again."""
        self.on_close()

    def __enter__(self) -> "HttpResponse":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Transport(Protocol):
    """Sends one request and returns one response.

    A transport does not judge the status: a 500 is a response like any other. It sends a
    request once and follows no redirect. It raises `APIConnectionError` only if there is no
    response to return, with ``delivered="no"`` if surely no byte of the request was sent. It
    ends by `deadline`, and so does reading the response's body. It keeps connections per
    process and thread, so that threads may share it and forks inherit it. It should pickle.
    """

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Send `request` before `deadline`; the caller closes the response."""
        ...  # pragma: no cover - a Protocol has no body

    def close(self) -> None:
        """Close the connections of all threads. Sending again opens new ones."""
        ...  # pragma: no cover - a Protocol has no body
