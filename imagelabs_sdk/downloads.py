"""Fetch an image from a URL that the service gave, which is not to be trusted."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO
from urllib.parse import urljoin, urlsplit

import attrs

from ._redact import sanitize_text
from .deadline import Deadline
from .errors import (
    APIConnectionError,
    APIStatusError,
    DownloadError,
    ForbiddenAddressError,
)
from .formats import HEAD_SIZE, AvifBoxes, ImageFormat, is_whole, sniff
from .transports.base import HttpRequest, HttpResponse, Transport, origin_of

__all__ = ["ImageDownloader", "ImageLink", "without_query"]

log = logging.getLogger(__name__)

_MAX_URL = 4096  # characters
_MAX_REDIRECTS = 5  # of one image
_TAIL = 16  # bytes, more than any format's end mark
_ATTEMPTS = 3  # to fetch one image; a GET may be repeated
_PAUSE = 0.5  # seconds between attempts, times the number of the attempt
_STALE = (403, 404, 410)  # the link has expired, or never worked
_REDIRECTS = (301, 302, 303, 307, 308)
_ODD = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]")  # what no URL needs unescaped
_HOST = re.compile(r"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")  # a name or an IPv6 literal


@attrs.define
class ImageLink:
    """Where an image is, as far as is known.

    Attributes:
        url: Its URL.
        refresh: Asks the service for a fresh URL when this one has expired, once;
            `None`: there is none to be had, or this one is fresh.
    """

    url: str
    refresh: Callable[[Deadline], str | None] | None = None


@attrs.frozen(kw_only=True)
class ImageDownloader:
    """Fetches images from URLs that the service gave.

    Attributes:
        transport: Carries the requests.
        base_url: The API's; images of its own origin get its headers and cookies, and may
            be on a private host.
        headers, cookies: Those of the API.
        foreign_headers: Those for every other host.
        allow_private_hosts: True if other hosts may be private, too.
        max_bytes: Larger images are refused.
        request_timeout: Seconds for one exchange, its body included.
        timeout: Seconds for everything about one image, unless the caller says otherwise.
        clock: A monotonic clock, in seconds.
        sleep: Waits so many seconds of it.
    """

    transport: Transport
    base_url: str
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    cookies: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    foreign_headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    allow_private_hosts: bool = False
    max_bytes: int = 64 * 1024 * 1024
    request_timeout: float = 30.0
    timeout: float = 300.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def absolute(self, url: str) -> str:
        """Return the URL as it is; a path alone belongs to the API's host."""
        return urljoin(self.base_url, url) if re.match("/[^/]", url) else url

    def download(self, link: ImageLink, file: IO[bytes], deadline: Deadline) -> ImageFormat:
        """Write the whole image to `file`, starting again after a failure that may pass.

        Raises:
            DownloadError: It could not be fetched, or is not an image.
        """
        for attempt in range(1, _ATTEMPTS):
            try:
                return self._write(link, file, deadline)
            except DownloadError as error:
                pause = _PAUSE * attempt
                if not _may_pass(error) or pause >= deadline.remaining():
                    raise
                log.debug("fetching again in %.1f s: %s", pause, error)
                self.sleep(pause)
                file.seek(0)
                file.truncate()
        return self._write(link, file, deadline)

    def stream(self, link: ImageLink, deadline: Deadline) -> Iterator[bytes]:
        """Yield the image piece by piece, the first one after its format is known.

        Raises:
            DownloadError: It could not be fetched, is not an image, or was cut.
        """
        try:
            with self._open_link(link, deadline) as response:
                yield from _checked_pieces(response, self.max_bytes)
        except APIConnectionError as exc:
            raise _failure(f"the image broke off: {exc.message}", link.url) from exc
        except DownloadError as error:
            error.url = error.url or without_query(link.url)
            raise

    def open(self, url: str, deadline: Deadline) -> HttpResponse:
        """Return a response with status 200 whose body may be an image; the caller closes it.

        Raises:
            DownloadError: There is none.
        """
        deadline = deadline.within(self.request_timeout)
        url = self.absolute(url)
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            response = self._get(url, deadline)
            if response.status == 200:
                return self._check_length(response, url)
            response.close()
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or not location:
                raise _failure(
                    f"the image's address answered {response.status}", url, response.status
                )
            with suppress(ValueError):  # malformed: the same URL again, until the limit
                url = urljoin(url, location)
        raise _failure("the image's address redirects without end", url)

    def _write(self, link: ImageLink, file: IO[bytes], deadline: Deadline) -> ImageFormat:
        head = b""
        for piece in self.stream(link, deadline):
            head = head or piece[:HEAD_SIZE]
            file.write(piece)
        found = sniff(head)
        assert found is not None  # stream has refused everything else
        return found

    def _open_link(self, link: ImageLink, deadline: Deadline) -> HttpResponse:
        try:
            return self.open(link.url, deadline)
        except DownloadError as error:
            if link.refresh is None or error.status_code not in _STALE:
                raise
            log.debug("the link is stale, asking for a fresh one: %s", error)
            refresh, link.refresh = link.refresh, None
            fresh = refresh(deadline)
            if fresh is None:
                raise
        link.url = fresh
        return self.open(link.url, deadline)

    def _get(self, url: str, deadline: Deadline) -> HttpResponse:
        own = origin_of(url) == origin_of(self.base_url)
        request = HttpRequest(
            method="GET",
            url=url,
            headers=self.headers if own else self.foreign_headers,
            cookies=self.cookies if own else None,
            public_only=not own and not self.allow_private_hosts,
        )
        try:
            return self.transport.send(request, deadline=deadline)
        except APIConnectionError as exc:
            raise _failure(f"the image cannot be fetched: {exc.message}", url) from exc

    def _check_length(self, response: HttpResponse, url: str) -> HttpResponse:
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            response.close()
            raise _failure(f"the image is larger than {self.max_bytes} bytes", url)
        return response

    def _check(self, url: str) -> None:
        """Refuse a URL that is not plain enough for every parser to read it the same way.

        The transport checks where its host leads to, when it connects.
        """
        try:
            parts, own = urlsplit(url), origin_of(self.base_url)
            scheme, host, _ = origin_of(url)
        except ValueError as exc:
            raise _failure("the image's address is malformed", url) from exc
        if scheme not in ("http", "https") or (scheme == "http" and own[0] == "https"):
            raise _failure(f"an image's address may not be {sanitize_text(scheme, 20)}:", url)
        if not host or parts.username is not None or parts.password is not None:
            raise _failure("an image's address needs a host and no credentials", url)
        if len(url) > _MAX_URL or _ODD.search(url) or not _HOST.fullmatch(host):
            raise _failure("the image's address is too long, or has odd characters", url)


def without_query(url: str) -> str:
    """Return a URL that may be shown: without its query, which may be a key, and cut."""
    return sanitize_text(url.partition("?")[0])


def _failure(message: str, url: str, status: int | None = None) -> DownloadError:
    return DownloadError(message, url=without_query(url), status_code=status)


def _may_pass(error: DownloadError) -> bool:
    """Return True if another attempt may succeed."""
    cause, status = error.__cause__, error.status_code or 0
    if isinstance(cause, APIConnectionError):
        return not isinstance(cause, ForbiddenAddressError)
    return isinstance(cause, APIStatusError) or status >= 500 or status in (408, 425, 429)


def _checked_pieces(response: HttpResponse, max_bytes: int) -> Iterator[bytes]:
    """Yield the body once its first bytes are an image's and as long as it is not too large."""
    pieces = response.iter_bytes()
    head, piece = b"", None
    for piece in pieces:
        head += piece
        if len(head) >= HEAD_SIZE:
            break
    found = sniff(head)
    if found is None:
        raise DownloadError("what came is no image" if head else "nothing came")
    piece, head = head, head[:HEAD_SIZE]  # the first piece may be large: it is released as well
    total, tail, boxes = 0, b"", AvifBoxes()
    while piece is not None:
        total += len(piece)
        if total > max_bytes:
            raise DownloadError(f"the image is larger than {max_bytes} bytes")
        tail = piece[-_TAIL:] if len(piece) >= _TAIL else (tail + piece)[-_TAIL:]
        boxes.feed(piece)
        yield piece
        piece = next(pieces, None)
    if not (response.whole_by_length or is_whole(found, head, tail, total, boxes)):
        raise APIConnectionError("it lacks its end")
