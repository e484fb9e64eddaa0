"""Fetch an image from a URL that the service gave, which is not to be trusted."""

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO

import attrs

from ._answers import describe_answer
from ._redact import Secrets, redact
from .deadline import Deadline
from .errors import APIConnectionError, DownloadError, ForbiddenAddressError
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
_CONTENT_RANGE = re.compile(r"\s*bytes[ =]+(\d+)-(\d*)(?:/(\d+))?", re.ASCII | re.IGNORECASE)
_PROGRESS = 65_536  # bytes; an attempt that brings as many is no failure in a row
_LATER = "fetch it again later"
_NO_IMAGE = "fetch it again later, or open the URL in a browser"
_NO_LINK = "the link has expired or never worked: poll the job for another one"
_PRIVATE = "if it may be one of your own, give the client allow_private_hosts=True"
_TOO_LARGE = "if you want it all the same, raise max_image_bytes"
_REMEDIES = {401: "check image_headers", 429: "wait a while before the next request"}


class _FetchError(Exception):
    """Why one attempt has not brought the image; `ImageDownloader` makes a `DownloadError` of it.

    Attributes:
        reason: What came back, and what is wrong with it.
        url: What was asked for; empty: the link.
        status: The HTTP status, if that is the reason.
        remedy: What the caller can do.
        may_pass: True if another attempt may succeed.
    """

    def __init__(
        self,
        reason: str,
        url: str = "",
        *,
        status: int | None = None,
        remedy: str = _NO_LINK,
        may_pass: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.url, self.status = reason, url, status
        self.remedy, self.may_pass = remedy, may_pass


@attrs.define
class ImageLink:
    """Where an image is, as far as is known.

    Attributes:
        url: Its URL.
        refresh: Asks the service for a fresh URL when this one has expired, once;
            `None`: there is none to be had, or this one is fresh.
        format: The image's format, once its first bytes have told it.
        prompts: What a URL or an answer may quote and no message may show.
    """

    url: str
    refresh: Callable[[Deadline], str | None] | None = None
    format: ImageFormat | None = None
    prompts: Secrets = attrs.field(factory=lambda: Secrets(()))


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
        attempt, pauses = 0, iter(_PAUSES)
        while True:
            attempt, before = attempt + 1, transfer.received
            try:
                yield from self._attempt(link, transfer, deadline, restart)
                return
            except _FetchError as failure:
                error = self._described(failure, link, attempt)
                if not failure.may_pass:
                    raise error from failure.__cause__
                if transfer.received - before >= _PROGRESS:
                    pauses = iter(_PAUSES)
                pause = next(pauses, math.inf)
                lost = restart is None and transfer.received and not transfer.validator
                is_last = lost or pause >= deadline.remaining()
                # Whatever HTTP still waits for comes after the image's own end.
                enough = is_last or (transfer.parser.ended and attempt > 1)
                if transfer.parser.complete and enough:
                    log.debug("whole by its own structure, although %s", error)
                    return
                if is_last:
                    raise error from failure.__cause__
            log.info("fetching again in %.1f s: %s", pause, error)
            deadline.pause(pause, self.sleep)

    def _described(self, failure: _FetchError, link: ImageLink, attempt: int) -> DownloadError:
        """Return the error for a failed attempt: URL, answer, attempts, remedy; without secrets."""
        secrets = Secrets((*link.prompts, *self.settings.secrets))
        url = without_query(failure.url or link.url)
        endpoint, reason = f"GET {redact(url, secrets)}", redact(failure.reason, secrets)
        tried = "once" if attempt == 1 else f"{attempt} times"
        error = DownloadError(
            f"{endpoint} {reason} (tried {tried}); {failure.remedy}",
            endpoint=endpoint,
            url=url,
            status_code=failure.status,
        )
        if isinstance(failure.__cause__, ForbiddenAddressError):
            error.code = failure.__cause__.code
        return error

    def _attempt(
        self,
        link: ImageLink,
        transfer: "_Transfer",
        deadline: Deadline,
        restart: Callable[[], None] | None,
    ) -> Iterator[bytes]:
        """Yield what one response adds to the image."""
        with self._open_link(link, transfer, deadline) as response:
            try:
                if not transfer.goes_on_with(response):
                    if transfer.received and restart is None:
                        raise _FetchError("the image broke off and cannot be resumed")
                    if restart is not None:
                        restart()
                    transfer.restart(response)
                for piece in transfer.checked(response):
                    link.format = transfer.parser.format
                    yield piece
            except _FetchError as failure:
                failure.reason = f"{describe_answer(response)}: {failure.reason}"
                raise
            except APIConnectionError as exc:
                reason = f"{describe_answer(response)}: the image broke off: {exc.message}"
                raise _FetchError(reason, remedy=_LATER, may_pass=True) from exc

    def _open_link(
        self, link: ImageLink, transfer: "_Transfer", deadline: Deadline
    ) -> HttpResponse:
        try:
            return self._open(link.url, transfer, deadline)
        except _FetchError as failure:
            if link.refresh is None or failure.status not in _STALE:
                raise
            log.debug("the link is stale, asking for a fresh one")
            refresh, link.refresh = link.refresh, None
            fresh = refresh(deadline)
            if fresh is None:
                raise
        link.url = fresh
        return self._open(link.url, transfer, deadline)

    def _open(self, url: str, transfer: "_Transfer", deadline: Deadline) -> HttpResponse:
        """Return a response with an image's status, after redirects; the caller closes it."""
        url = self._resolve(url, self.settings.base_url + "/")
        named = origin_of(url)
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._get(url, named, transfer, deadline)
            if 200 <= response.status < 300:
                return self._check_length(response, url)
            response.close()
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or not location:
                raise self._refusal(response, url, transfer)
            try:
                url = self._resolve(from_header(location), url)
            except _FetchError as failure:
                failure.reason = f"{describe_answer(response)}: {failure.reason}"
                raise
        raise _FetchError(f"{describe_answer(response)}: it redirects without end", url)

    def _refusal(self, response: HttpResponse, url: str, transfer: "_Transfer") -> _FetchError:
        status = response.status
        may_pass = status >= 500 or status in (408, 416, 425, 429)
        if status == 416:
            transfer.validator = ""
        return _FetchError(
            describe_answer(response),
            url,
            status=status,
            remedy=_REMEDIES.get(status, _LATER if may_pass else _NO_LINK),
            may_pass=may_pass,
        )

    def _resolve(self, url: str, base: str) -> str:
        try:
            absolute = resolve(url, base)
        except RefusedURLError as exc:
            raise _FetchError(str(exc)) from exc
        if absolute.startswith("http:") and self.settings.base_url.startswith("https:"):
            reason = "the image's URL may not be http: where the service is https:"
            raise _FetchError(reason)
        return absolute

    def _headers(self, origin: Origin, named: Origin) -> Mapping[str, str]:
        """Return the headers that an origin gets; those that may hold secrets have one each.

        `named` is the origin that the service named. A redirect to a third one gets none of them.
        """
        settings = self.settings
        if origin == origin_of(settings.base_url):
            return settings.own_image_headers
        return settings.image_headers if origin == named else IMAGE_HEADERS

    def _get(
        self, url: str, named: Origin, transfer: "_Transfer", deadline: Deadline
    ) -> HttpResponse:
        settings = self.settings
        origin = origin_of(url)
        own = origin == origin_of(settings.base_url)
        request = HttpRequest(
            method="GET",
            url=url,
            headers={**self._headers(origin, named), **transfer.range_headers()},
            cookies=settings.cookies if own else None,
            jar=settings.jar,
            public_only=not own and not settings.allow_private_hosts,
            idle_timeout=settings.request_timeout,
        )
        try:
            return self.transport.send(request, deadline=deadline)
        except ForbiddenAddressError as exc:
            reason = f"the image is not fetched: {exc.message}"
            raise _FetchError(reason, url, remedy=_PRIVATE) from exc
        except APIConnectionError as exc:
            raise _FetchError(exc.message, url, remedy=_LATER, may_pass=True) from exc

    def _check_length(self, response: HttpResponse, url: str) -> HttpResponse:
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.settings.max_image_bytes:
            response.close()
            answer = describe_answer(response)
            reason = f"{answer}: the image is larger than {self.settings.max_image_bytes} bytes"
            raise _FetchError(reason, url, remedy=_TOO_LARGE)
        return response


@attrs.define
class _Transfer:
    """The state of one image that is fetched, over one or several responses.

    Attributes:
        max_bytes: Larger images are refused.
        received: Bytes that were handed out.
        validator: Names the version of the image that they belong to, if the server can resume
            it; else empty.
        size: Of that version, in bytes; `None`: not known.
        parser: Has seen these bytes.
    """

    max_bytes: int
    received: int = 0
    validator: str = ""
    size: int | None = None
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
        begin, _, size = _content_range(response.headers)
        return (
            response.status == 206
            and self.received > 0
            and begin == self.received
            and self.size in (None, size or self.size)
            and self._is_same_version(response.headers)
            and not response.headers.get("content-encoding")
        )

    def restart(self, response: HttpResponse) -> None:
        """Forget what was received; `response` starts from the beginning."""
        headers, asked = response.headers, bool(self.range_headers())
        begin, _, _ = _content_range(headers)
        if response.status == 206 and (begin or (begin is None and asked)):
            self.validator = ""
            raise APIConnectionError("another part came than was asked for")
        self.received, self.parser = 0, StructureParser()
        self.validator, self.size = _validator(headers), None
        if self.validator and response.status == 200:
            self.size = _number(headers.get("content-length", ""))

    def checked(self, response: HttpResponse) -> Iterator[bytes]:
        """Yield the body once its first bytes are an image's and while it is not too large."""
        held = b""
        for each in response.iter_bytes():
            self.parser.feed(each)
            if self.parser.rejected:
                del each, held  # a page may quote a prompt, and error trackers show variables
                raise _FetchError("what came is no image", remedy=_NO_IMAGE)
            if self.parser.format is None:
                held += each
                continue
            piece, held = held + each, b""
            self.received += len(piece)
            if self.received > self.max_bytes:
                reason = f"the image is larger than {self.max_bytes} bytes"
                raise _FetchError(reason, remedy=_TOO_LARGE)
            yield piece
            del each, piece  # not held while the next one comes in
        if not self.parser.complete:
            _, end, size = _content_range(response.headers)
            if response.status != 206 or end is None or size is None or end + 1 >= size:
                self.validator = ""  # HTTP takes it for whole: it would not send a rest
            raise APIConnectionError(f"it is cut short after {self.received + len(held)} bytes")

    def _is_same_version(self, headers: Mapping[str, str]) -> bool:
        """Return False if a part says that it is of another version, which some caches join."""
        name = "etag" if self.validator.startswith('"') else "last-modified"
        return headers.get(name, self.validator) == self.validator


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """Return first byte, last byte and size of the whole; `None` each: it is not said."""
    found = _CONTENT_RANGE.match(headers.get("content-range", ""))
    if found is None:
        return None, None, None
    begin, end, size = (_number(text or "") for text in found.groups())
    return begin, end, size


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _validator(headers: Mapping[str, str]) -> str:
    """Return what names this version of a resource in ``If-Range``; empty if nothing does."""
    if headers.get("accept-ranges", "").lower() != "bytes" or headers.get("content-encoding"):
        return ""
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    if etag:
        return etag if etag.startswith('"') else ""  # a weak one does not promise equal bytes
    return modified if modified != headers.get("date") else ""  # it may have changed within 1 s
