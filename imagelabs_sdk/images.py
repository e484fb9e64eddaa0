"""Finished images: fetching them safely, checking what came, saving it whole."""

import io
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import attrs

from .deadline import Deadline
from .errors import (
    APIConnectionError,
    APIStatusError,
    DownloadError,
    ForbiddenAddressError,
    ImageLabsError,
    attach_job,
    sanitize_text,
)
from .models import ImageRequest
from .transports.base import HttpRequest, HttpResponse, Transport, origin_of
from .validation import invalid, seconds

if TYPE_CHECKING:
    from .jobs import Job

__all__ = ["GeneratedImage", "ImageFetcher", "ImageFormat", "Timings", "sniff"]

log = logging.getLogger(__name__)

_MAX_URL = 4096  # characters
_MAX_HOPS = 5  # redirects of one image
_HEAD = 32  # bytes that tell an image's format
_TAIL = 16  # bytes, more than any format's end mark
_ATTEMPTS = 3  # to fetch one image; a GET may be repeated
_PAUSE = 0.5  # seconds between them, times the attempt
_STALE = (403, 404, 410)  # the link has expired, or never held
_ODD = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]")  # what no address needs unescaped

_HOST = re.compile(r"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")  # a name or an IPv6 literal


@attrs.frozen
class ImageFormat:
    """A kind of image.

    Attributes:
        name: Such as ``"PNG"``.
        extension: With its dot.
        media_type: Such as ``"image/png"``.
    """

    name: str
    extension: str
    media_type: str


_PNG = ImageFormat("PNG", ".png", "image/png")
_JPEG = ImageFormat("JPEG", ".jpg", "image/jpeg")
_WEBP = ImageFormat("WebP", ".webp", "image/webp")
_GIF = ImageFormat("GIF", ".gif", "image/gif")
_AVIF = ImageFormat("AVIF", ".avif", "image/avif")
_END_MARKS = {_PNG: b"IEND\xaeB`\x82", _JPEG: b"\xff\xd9", _GIF: b";"}


def sniff(head: bytes) -> ImageFormat | None:
    """The format of an image by its first 32 bytes; `None` when they are no image's."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _PNG
    if head.startswith(b"\xff\xd8\xff"):
        return _JPEG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _WEBP
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _GIF
    if head[4:8] == b"ftyp" and (b"avif" in head[8:_HEAD] or b"avis" in head[8:_HEAD]):
        return _AVIF
    return None


class _Boxes:
    """Follows an AVIF, a row of boxes that say their sizes, and tells whether the last is whole."""

    def __init__(self) -> None:
        self._total = self._next = 0  # bytes seen, and where the next box begins
        self._head = b""

    def watch(self, piece: bytes) -> None:
        start, self._total = self._total, self._total + len(piece)
        while True:
            here = max(self._next + len(self._head) - start, 0)
            self._head += piece[here : max(self._next + 8 - start, 0)]
            if len(self._head) < 8:
                return
            self._next += max(int.from_bytes(self._head[:4], "big"), 8)
            self._head = b""

    @property
    def whole(self) -> bool:
        return self._total == self._next


def is_whole(found: ImageFormat, head: bytes, tail: bytes, total: int, boxes: _Boxes) -> bool:
    """Whether an image of `total` bytes ended where its format says, if HTTP does not tell."""
    if found is _AVIF:
        return boxes.whole
    if found is _WEBP:
        return total >= 8 + int.from_bytes(head[4:8], "little")
    return tail.endswith(_END_MARKS[found])


@attrs.frozen
class Timings:
    """How long a job took, in seconds since submit, as far as our polls could tell.

    Attributes:
        queued: Until the first poll that saw it drawn.
        running: From then until a poll saw it finished.
        total: Both.
        polls: How often we asked.
    """

    queued: float
    running: float
    total: float
    polls: int


@attrs.frozen(kw_only=True)
class ImageFetcher:
    """Fetches what an address from the server points to, without being steered by it.

    Attributes:
        transport: Carries the requests.
        base_url: The API's; images of its own origin get its headers and cookies, and may
            be on a private host.
        headers, cookies: Those of the API.
        foreign_headers: Those for every other host.
        allow_private_hosts: Whether other hosts may be private, too.
        max_bytes: No larger image is taken.
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
        """The address as it is; a path alone is one of the API's host."""
        return urljoin(self.base_url, url) if re.match("/[^/]", url) else url

    def open(self, url: str, deadline: Deadline) -> HttpResponse:
        """A response with status 200 whose body may be an image; the caller closes it.

        Raises:
            DownloadError: There is none.
        """
        deadline = deadline.within(self.request_timeout)
        url = self.absolute(url)
        for _ in range(_MAX_HOPS + 1):
            self._check(url)
            response = self._get(url, deadline)
            if response.status == 200:
                return self._of_sane_length(response, url)
            response.close()
            location = response.headers.get("location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                raise _failure(
                    f"the image's address answered {response.status}", url, response.status
                )
            with suppress(ValueError):  # malformed: the same address again, until the hops end
                url = urljoin(url, location)
        raise _failure("the image's address redirects without end", url)

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

    def _of_sane_length(self, response: HttpResponse, url: str) -> HttpResponse:
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            response.close()
            raise _failure(f"the image is larger than {self.max_bytes} bytes", url)
        return response

    def _check(self, url: str) -> None:
        """Refuse an address that is not plain enough for every parser to read it the same way.

        Where its host leads to is the transport's to check, when it connects.
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


@attrs.frozen(kw_only=True)
class GeneratedImage:
    """A finished image; fetched when it is read or saved, not before.

    It outlives its client, pickles, and can be read again and again as long as the service
    keeps the image. A link that has expired meanwhile is asked for anew, once.

    Attributes:
        url: The image's address.
        task_id: The service's name of the job.
        request: What was asked for, with the seeds used; `None` if that is not known here.
        timings: How long it took.
        job: Where it came from.
    """

    url: str = attrs.field(repr=lambda url: repr(_shown(url)))
    task_id: str
    request: ImageRequest | None
    timings: Timings
    job: "Job" = attrs.field(eq=False, repr=False)
    _fetcher: ImageFetcher = attrs.field(eq=False, repr=False, alias="fetcher")
    _final: bool = attrs.field(default=True, eq=False, repr=False, alias="final")

    def read(self, *, timeout: float | None = None) -> bytes:
        """The image's bytes, checked as in `save`.

        Args:
            timeout: Seconds for everything; `None`: the client's `timeout`; infinity: no limit.

        Raises:
            DownloadError: It could not be had, or is no image.
        """
        with attach_job(self.job):
            buffer = io.BytesIO()
            self._fetch_into(buffer, self._deadline(timeout))
            return buffer.getvalue()

    def iter_bytes(self, *, timeout: float | None = None) -> Iterator[bytes]:
        """The image's bytes, piece by piece, as they arrive; for passing on, not for keeping.

        The first piece comes after its format is known; a body that turns out to be cut
        raises `DownloadError` at its end.
        """
        with attach_job(self.job):
            yield from self._pieces(self._link(), self._deadline(timeout))

    def save(self, path: str | os.PathLike[str], *, timeout: float | None = None) -> Path:
        """Write the image to `path`, whole or not at all.

        Only the whole body of a PNG, JPEG, WebP, GIF or AVIF is an image. It is written beside
        `path` and renamed, so that what was there survives a failure.

        Args:
            path: If it has no extension, the one of the image's format is added. Its folder
                must exist. A file that is there is replaced.
            timeout: Seconds for everything; `None`: the client's `timeout`; infinity: no limit.

        Returns:
            Where it is now.

        Raises:
            InvalidRequestError: Nothing can be written at `path`; nothing was fetched.
            DownloadError: The image could not be had, or is none.
            OSError: The disk did not take it.
        """
        with attach_job(self.job):
            target, deadline = Path(path), self._deadline(timeout)
            if not _can_be_written(target):
                raise invalid("path", str(path), "must be a file in a folder that exists")
            with _written_beside(target) as draft:
                found = self._fetch_into(draft.file, deadline)
                if not target.suffix:
                    draft.target = target.with_name(target.name + found.extension)
            return draft.target

    def _deadline(self, timeout: float | None) -> Deadline:
        allowed = self._fetcher.timeout if timeout is None else seconds("timeout", timeout)
        return Deadline.after(allowed, self._fetcher.clock)

    def _link(self) -> "_Link":
        """A preview's is never asked for anew: that would be another image's."""
        return _Link(self.url, is_fresh=not self._final)

    def _fetch_into(self, file: IO[bytes], deadline: Deadline) -> ImageFormat:
        """Write the whole image, starting again after a failure that may pass."""
        link = self._link()
        for attempt in range(1, _ATTEMPTS):
            try:
                return self._write_into(file, link, deadline)
            except DownloadError as error:
                pause = _PAUSE * attempt
                if not _may_pass(error) or pause >= deadline.remaining():
                    raise
                log.debug("fetching again in %.1f s: %s", pause, error)
                self._fetcher.sleep(pause)
                file.seek(0)
                file.truncate()
        return self._write_into(file, link, deadline)

    def _write_into(self, file: IO[bytes], link: "_Link", deadline: Deadline) -> ImageFormat:
        head = b""
        for piece in self._pieces(link, deadline):
            head = head or piece[:_HEAD]
            file.write(piece)
        found = sniff(head)
        assert found is not None  # _pieces has refused everything else
        return found

    def _pieces(self, link: "_Link", deadline: Deadline) -> Iterator[bytes]:
        try:
            with self._open(link, deadline) as response:
                yield from _checked_pieces(response, self._fetcher.max_bytes)
        except APIConnectionError as exc:
            raise _failure(f"the image broke off: {exc.message}", link.url) from exc
        except DownloadError as error:
            error.url = error.url or _shown(link.url)
            raise

    def _open(self, link: "_Link", deadline: Deadline) -> HttpResponse:
        try:
            return self._fetcher.open(link.url, deadline)
        except DownloadError as error:
            if link.is_fresh or error.status_code not in _STALE:
                raise
            log.debug("the link of task %s is stale, asking anew", self.task_id)
            link.renew(self._fresh_url(deadline, error))
            return self._fetcher.open(link.url, deadline)

    def _fresh_url(self, deadline: Deadline, stale: DownloadError) -> str:
        try:
            return self.job.fresh_url(deadline) or self.url
        except ImageLabsError:
            raise stale from None


@attrs.define
class _Link:
    """Where an image is, as far as we know; asked for anew once at most."""

    url: str
    is_fresh: bool = False

    def renew(self, url: str) -> None:
        self.url, self.is_fresh = url, True


def _shown(url: str) -> str:
    """An address without its query, which may be a key."""
    return sanitize_text(url.partition("?")[0])


def _failure(message: str, url: str, status: int | None = None) -> DownloadError:
    return DownloadError(message, url=_shown(url), status_code=status)


def _may_pass(error: DownloadError) -> bool:
    cause, status = error.__cause__, error.status_code or 0
    if isinstance(cause, APIConnectionError):
        return not isinstance(cause, ForbiddenAddressError)
    return isinstance(cause, APIStatusError) or status >= 500 or status in (408, 425, 429)


def _checked_pieces(response: HttpResponse, max_bytes: int) -> Iterator[bytes]:
    """The body, once its first bytes are an image's and as long as it is not too large."""
    pieces = response.iter_bytes()
    head, piece = b"", None
    for piece in pieces:
        head += piece
        if len(head) >= _HEAD:
            break
    found = sniff(head)
    if found is None:
        raise DownloadError("what came is no image" if head else "nothing came")
    piece, head = head, head[:_HEAD]  # the first piece may be large: it is let go like the others
    total, tail, boxes = 0, b"", _Boxes()
    while piece is not None:
        total += len(piece)
        if total > max_bytes:
            raise DownloadError(f"the image is larger than {max_bytes} bytes")
        tail = piece[-_TAIL:] if len(piece) >= _TAIL else (tail + piece)[-_TAIL:]
        boxes.watch(piece)
        yield piece
        piece = next(pieces, None)
    if not (response.whole_by_length or is_whole(found, head, tail, total, boxes)):
        raise APIConnectionError("it lacks its end")


# Writing ------------------------------------------------------------------------------


def _can_be_written(target: Path) -> bool:
    named = bool(target.name) and "\0" not in target.name
    try:
        return named and target.parent.is_dir() and not target.is_dir()
    except (ValueError, OSError):  # a character, or a length, that no path may have
        return False


@attrs.define
class _Draft:
    file: IO[bytes]
    target: Path


@contextmanager
def _written_beside(target: Path) -> Iterator[_Draft]:
    """A file that takes its target's place when the block ends well, and is gone otherwise."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            draft = _Draft(file, target)
            yield draft
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(draft.target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the rename durable; a system that cannot open a folder does it by itself."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
