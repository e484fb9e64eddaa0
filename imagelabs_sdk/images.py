"""Finished images: read, stream or save them."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from ._files import atomic_write, is_writable
from .deadline import Deadline
from .downloads import ImageDownloader, ImageLink, without_query
from .errors import AcceptedJob, ImageLabsError, attach_job
from .models import ImageRequest
from .validation import invalid

__all__ = ["GeneratedImage", "RequestedImage", "Timings"]


@attrs.frozen
class Timings:
    """How long a job took, in seconds since submit, as far as the polls could tell.

    Attributes:
        queued: Until the first poll that saw it running.
        running: From then until a poll saw it finished.
        total: Both.
        polls: How many polls were answered.
    """

    queued: float
    running: float
    total: float
    polls: int


@attrs.frozen(kw_only=True)
class GeneratedImage:
    """A finished image; fetched when it is read or saved, not before.

    It outlives its client, pickles, and can be read again and again as long as the service
    keeps the image. When its link has expired, a fresh one is asked for, once.

    Attributes:
        url: The image's URL.
        task_id: The service's name of the job.
        request: What was asked for, with the seeds used; `None` if that is not known here.
        timings: How long it took.
        job: The job that made it.
    """

    url: str = attrs.field(repr=lambda url: repr(without_query(url)))
    task_id: str
    request: ImageRequest | None
    timings: Timings
    job: AcceptedJob = attrs.field(eq=False, repr=False)
    _downloader: ImageDownloader = attrs.field(eq=False, repr=False, alias="downloader")
    # `None`: the link is never refreshed; for a preview that would be another image's.
    _refresh: Callable[[Deadline], str | None] | None = attrs.field(
        default=None, eq=False, repr=False, alias="refresh"
    )

    def read(self, *, timeout: float | Deadline | None = None) -> bytes:
        """Return the image's bytes, checked as in `save`.

        Args:
            timeout: Seconds for everything, or a `Deadline`; `None`: the client's `timeout`;
                infinity: no limit.

        Raises:
            DownloadError: It could not be fetched, or is not an image.
        """
        with attach_job(self.job):
            buffer = io.BytesIO()
            self._downloader.download(self._link(), buffer, self._deadline(timeout))
            return buffer.getvalue()

    def iter_bytes(self, *, timeout: float | Deadline | None = None) -> Iterator[bytes]:
        """Yield the image's bytes as they arrive; for passing on, not for keeping.

        The first piece comes after its format is known; a body that turns out to be cut
        raises `DownloadError` at its end.
        """
        with attach_job(self.job):
            yield from self._downloader.stream(self._link(), self._deadline(timeout))

    def save(
        self, path: str | os.PathLike[str], *, timeout: float | Deadline | None = None
    ) -> Path:
        """Write the image to `path` atomically.

        Only a whole PNG, JPEG, WebP, GIF or AVIF is an image. It is written beside `path` and
        renamed, so that what was there survives a failure.

        Args:
            path: If it has no extension, the one of the image's format is added. Its folder
                must exist. A file that is there is replaced.
            timeout: Seconds for everything, or a `Deadline`; `None`: the client's `timeout`;
                infinity: no limit.

        Returns:
            The path of the file.

        Raises:
            InvalidRequestError: Nothing can be written at `path`; nothing was fetched.
            DownloadError: The image could not be fetched, or is not an image.
            OSError: The disk did not take it.
        """
        with attach_job(self.job):
            target, deadline = Path(path), self._deadline(timeout)
            if not is_writable(target):
                raise invalid("path", str(path), "must be a file in a folder that exists")
            with atomic_write(target) as draft:
                found = self._downloader.download(self._link(), draft.file, deadline)
                if not target.suffix:
                    draft.target = target.with_name(target.name + found.extension)
            return draft.target

    def _deadline(self, timeout: float | Deadline | None) -> Deadline:
        downloader = self._downloader
        return Deadline.from_timeout(timeout, default=downloader.timeout, clock=downloader.clock)

    def _link(self) -> ImageLink:
        return ImageLink(self.url, self._refresh and self._fresh_url)

    def _fresh_url(self, deadline: Deadline) -> str | None:
        """Return a fresh link, the old one if the service names none; `None` on failure."""
        assert self._refresh is not None
        try:
            return self._refresh(deadline) or self.url
        except ImageLabsError:
            return None


@attrs.frozen(kw_only=True)
class RequestedImage(GeneratedImage):
    """A finished image whose `request` is known, such as the one that `generate` returns."""

    request: ImageRequest
