"""Fetch an image from a URL that the service gave, which is not to be trusted."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO

import attrs

from .deadline import Deadline
from .errors import (
    APIConnectionError,
    APIStatusError,
    DownloadError,
    ForbiddenAddressError,
)
from .formats import ImageFormat, StructureParser
from .settings import IMAGE_HEADERS, Settings
from .transports.base import HttpRequest, HttpResponse, Origin, Transport, origin_of
from .urls import RefusedURLError, from_header, resolve, without_query

__all__ = ["ImageDownloader", "ImageLink"]

log = logging.getLogger(__name__)

_MAX_REDIRECTS = 5  # of one image
_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between attempts to fetch one image
_STALE = (403, 404, 410)  # the link has expired, or never worked
_REDIRECTS = (301, 302, 303, 307, 308)


@attrs.define
class ImageLink:
    """Where an image is, as far as is known.

    Attributes:
        url: Its URL.
        refresh: Asks the service for a fresh URL when this one has expired, once;
            `None`: there is none to be had, or this one is fresh.
        format: The image's format, once its first bytes have told it.
    """

    url: str
    refresh: Callable[[Deadline], str | None] | None = None
    format: ImageFormat | None = None


@attrs.frozen
class ImageDownloader:
    """Fetches images from URLs that the service gave.

    Images of the API's own origin get its headers and cookies, and may be on a private host.
    The caller's headers for image hosts are sent to the origin that the service named; a host
    that only a redirect names gets a browser's plain ones.

    Attributes:
        settings: The client's: URL, headers, cookies, limits.
        transport: Sends the requests.
        clock: A monotonic clock, in seconds.
        sleep: Waits so many seconds of it.
    """

    settings: Settings
    transport: Transport
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def download(self, link: ImageLink, file: IO[bytes], deadline: Deadline) -> ImageFormat:
        """Write the whole image to `file`, trying again after a failure that may pass.

        Raises:
            DownloadError: It could not be fetched, or is not an image.
        """

        def restart() -> None:
            file.seek(0)
            file.truncate()

        for piece in self._attempts(
            link, _Transfer(self.settings.max_image_bytes), deadline, restart
        ):
            file.write(piece)
        assert link.format is not None  # there is a piece, and with it the format
        return link.format

    def stream(self, link: ImageLink, deadline: Deadline) -> Iterator[bytes]:
        """Yield the image piece by piece, the first one after its format is known.

        Raises:
            DownloadError: It could not be fetched, is not an image, or was cut.
        """
        return self._attempts(link, _Transfer(self.settings.max_image_bytes), deadline, None)

    def _attempts(
        self,
        link: ImageLink,
        transfer: "_Transfer",
        deadline: Deadline,
        restart: Callable[[], None] | None,
    ) -> Iterator[bytes]:
        """Yield the image from one or several responses.

        `restart` is called when pieces start again from the beginning; `None`: they cannot.
        """
        pauses = iter(_PAUSES)
        while True:
            try:
                yield from self._attempt(link, transfer, deadline, restart)
            except DownloadError as error:
                error.url = error.url or without_query(link.url)
                if not _may_pass(error):
                    raise
                pause = next(pauses, math.inf)
                lost = restart is None and transfer.received and not transfer.validator
                if lost or pause >= deadline.remaining():
                    if transfer.parser.complete:
                        log.debug("whole by its own structure, although %s", error.message)
                        return
                    raise
                log.info("fetching again in %.1f s: %s", pause, error)
            else:
                return
            deadline.pause(pause, self.sleep)

    def _attempt(
        self,
        link: ImageLink,
        transfer: "_Transfer",
        deadline: Deadline,
        restart: Callable[[], None] | None,
    ) -> Iterator[bytes]:
        """Yield what one response adds to the image."""
        try:
            with self._open_link(link, transfer, deadline) as response:
                if not transfer.goes_on_with(response):
                    if transfer.received and restart is None:
                        raise DownloadError("the image broke off and cannot be resumed")
                    if restart is not None:
                        restart()
                    transfer.restart(response)
                for piece in transfer.checked(response):
                    link.format = transfer.parser.format
                    yield piece
        except APIConnectionError as exc:
            raise _failure(f"the image broke off: {exc.message}", link.url) from exc

    def _open_link(
        self, link: ImageLink, transfer: "_Transfer", deadline: Deadline
    ) -> HttpResponse:
        try:
            return self._open(link.url, transfer, deadline)
        except DownloadError as error:
            if link.refresh is None or error.status_code not in _STALE:
                raise
            log.debug("the link is stale, asking for a fresh one: %s", error)
            refresh, link.refresh = link.refresh, None
            fresh = refresh(deadline)
            if fresh is None:
                raise
        link.url = fresh
        return self._open(link.url, transfer, deadline)

    def _open(self, url: str, transfer: "_Transfer", deadline: Deadline) -> HttpResponse:
        """Return a response with an image's status, after redirects; the caller closes it."""
        base = self.settings.base_url + "/"
        headers = self._headers_by_origin(self._resolve(url, base))
        for _ in range(_MAX_REDIRECTS + 1):
            base = url = self._resolve(url, base)
            response = self._get(url, headers, transfer, deadline)
            if response.status in (200, 206):
                return self._check_length(response, url)
            response.close()
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or not location:
                if response.status == 416:
                    transfer.validator = ""
                raise _failure(
                    f"the image's address answered {response.status}", url, response.status
                )
            url = from_header(location)
        raise _failure("the image's address redirects without end", url)

    def _resolve(self, url: str, base: str) -> str:
        try:
            absolute = resolve(url, base)
        except RefusedURLError as exc:
            raise _failure(str(exc), url) from exc
        if absolute.startswith("http:") and self.settings.base_url.startswith("https:"):
            raise _failure("the image's URL may not be http: where the service is https:", url)
        return absolute

    def _headers_by_origin(self, named: str) -> dict[Origin, Mapping[str, str]]:
        """Return the headers that may hold secrets, by the only origin that each is sent to.

        `named` is the URL that the service named. A redirect to a third origin gets none of them.
        """
        settings = self.settings
        return {
            origin_of(named): settings.image_headers,
            origin_of(settings.base_url): settings.own_image_headers,
        }

    def _get(
        self,
        url: str,
        headers: Mapping[Origin, Mapping[str, str]],
        transfer: "_Transfer",
        deadline: Deadline,
    ) -> HttpResponse:
        settings = self.settings
        origin = origin_of(url)
        own = origin == origin_of(settings.base_url)
        request = HttpRequest(
            method="GET",
            url=url,
            headers={**headers.get(origin, IMAGE_HEADERS), **transfer.range_headers()},
            cookies=settings.cookies if own else None,
            jar=settings.jar,
            public_only=not own and not settings.allow_private_hosts,
            idle_timeout=settings.request_timeout,
        )
        try:
            return self.transport.send(request, deadline=deadline)
        except ForbiddenAddressError as exc:
            error = _failure(
                f"the image is not fetched: {exc.message}; if it may be one of your own, give the "
                "client allow_private_hosts=True",
                url,
            )
            error.code = exc.code
            raise error from exc
        except APIConnectionError as exc:
            raise _failure(f"the image cannot be fetched: {exc.message}", url) from exc

    def _check_length(self, response: HttpResponse, url: str) -> HttpResponse:
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.settings.max_image_bytes:
            response.close()
            raise _failure(f"the image is larger than {self.settings.max_image_bytes} bytes", url)
        return response


@attrs.define
class _Transfer:
    """The state of one image that is fetched, over one or several responses.

    Attributes:
        max_bytes: Larger images are refused.
        received: Bytes that were handed out.
        validator: Names the version of the image that they belong to, if the server can resume
            it; else empty.
        parser: Has seen these bytes.
    """

    max_bytes: int
    received: int = 0
    validator: str = ""
    parser: StructureParser = attrs.field(factory=StructureParser)

    def range_headers(self) -> dict[str, str]:
        """Return the headers that ask for the rest of the same version."""
        if not (self.received and self.validator):
            return {}
        return {
            "range": f"bytes={self.received}-",
            "if-range": self.validator,
            "accept-encoding": "identity",
        }

    def goes_on_with(self, response: HttpResponse) -> bool:
        """Return True if `response` holds the rest of what was received."""
        start = f"bytes {self.received}-"
        return (
            response.status == 206
            and self.received > 0
            and response.headers.get("content-range", "").lower().startswith(start)
            and not response.headers.get("content-encoding")
        )

    def restart(self, response: HttpResponse) -> None:
        """Forget what was received; `response` starts from the beginning."""
        if response.status == 206:
            self.validator = ""
            raise APIConnectionError("another part came than was asked for")
        self.received, self.parser = 0, StructureParser()
        self.validator = _validator(response.headers)

    def checked(self, response: HttpResponse) -> Iterator[bytes]:
        """Yield the body once its first bytes are an image's and while it is not too large."""
        held = b""
        for each in response.iter_bytes():
            self.parser.feed(each)
            if self.parser.rejected:
                raise DownloadError("what came is no image")
            if self.parser.format is None:
                held += each
                continue
            piece, held = held + each, b""
            self.received += len(piece)
            if self.received > self.max_bytes:
                raise DownloadError(f"the image is larger than {self.max_bytes} bytes")
            yield piece
            del each, piece  # not held while the next one comes in
        if not self.parser.complete:
            self.validator = ""  # HTTP takes it for whole: it would not send a rest
            raise APIConnectionError(f"it is cut short after {self.received + len(held)} bytes")


def _validator(headers: Mapping[str, str]) -> str:
    """Return what names this version of a resource in ``If-Range``; empty if nothing does."""
    if headers.get("accept-ranges", "").lower() != "bytes" or headers.get("content-encoding"):
        return ""
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    if etag:
        return etag if etag.startswith('"') else ""  # a weak one does not promise equal bytes
    return modified if modified != headers.get("date") else ""  # it may have changed within 1 s


def _failure(message: str, url: str, status: int | None = None) -> DownloadError:
    return DownloadError(message, url=without_query(url), status_code=status)


def _may_pass(error: DownloadError) -> bool:
    """Return True if another attempt may succeed."""
    cause, status = error.__cause__, error.status_code or 0
    if isinstance(cause, APIConnectionError):
        return not isinstance(cause, ForbiddenAddressError)
    return isinstance(cause, APIStatusError) or status >= 500 or status in (408, 416, 425, 429)
