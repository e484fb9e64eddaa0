"""Finished images: read, stream or save them."""

import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import attrs

from . import viewing
from ._files import atomic_write, is_writable
from ._redact import Secrets
from .deadline import Deadline, Stop
from .downloads import ImageDownloader, ImageLink
from .errors import AcceptedJob, DownloadError, ImageLabsError, JobStoppedError, attach_job
from .formats import ImageFormat, format_of_name, has_image_suffix
from .models import ImageRequest
from .sidecar import write_sidecar
from .urls import without_query
from .validation import invalid

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["GeneratedImage", "RequestedImage", "Timings"]

log = logging.getLogger(__name__)


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


@attrs.define(slots=False)
class _Known:
    """What fetching an image has told about it."""

    format: ImageFormat | None = None
    content: bytes | None = None  # only of an image that was shown

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "content": None}  # it can be fetched again


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
        info: How it was made (model, steps, seeds), if the service tells it; else `None`.
    """

    url: str = attrs.field(repr=lambda url: repr(without_query(url)))
    task_id: str
    request: ImageRequest | None
    timings: Timings
    job: AcceptedJob = attrs.field(eq=False, repr=False)
    info: Mapping[str, Any] | None = attrs.field(default=None, eq=False, repr=False)
    _downloader: ImageDownloader = attrs.field(eq=False, repr=False, alias="downloader")
    # `None`: the link is never refreshed; for a preview that would be another image's.
    _refresh: Callable[[Deadline], str | None] | None = attrs.field(
        default=None, eq=False, repr=False, alias="refresh"
    )
    _known: _Known = attrs.field(factory=_Known, eq=False, repr=False, init=False)

    @property
    def format(self) -> ImageFormat | None:
        """The format, by the image's bytes once it was fetched, until then by its URL's suffix.

        `None`: not known before the image is fetched.
        """
        return self._known.format or format_of_name(urlsplit(self.url).path)

    @property
    def media_type(self) -> str | None:
        """Such as ``"image/png"``; `None` as for `format`."""
        return self.format.media_type if self.format else None

    def read(self, *, timeout: float | Deadline | None = None, stop: Stop | None = None) -> bytes:
        """Return the image's bytes, checked as in `save`.

        Args:
            timeout: Seconds for everything, or a `Deadline`; `None`: the client's `timeout`;
                infinity: no limit.
            stop: A `threading.Event`, or a function that returns True: ends it within 0.1 s.

        Raises:
            DownloadError: It could not be fetched, or is not an image.
            JobStoppedError: `stop` ended it.
        """
        with self._fetching(timeout, stop) as deadline:
            buffer = io.BytesIO()
            self._download(buffer, deadline)
            return buffer.getvalue()

    def iter_bytes(
        self, *, timeout: float | Deadline | None = None, stop: Stop | None = None
    ) -> Iterator[bytes]:
        """Yield the image's bytes as they arrive; for passing on, not for keeping.

        The first piece comes after its format is known; a body that turns out to be cut
        raises `DownloadError` at its end.
        """
        with self._fetching(timeout, stop) as deadline:
            link = self._link()
            for piece in self._downloader.stream(link, deadline):
                self._known.format = link.format
                yield piece

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float | Deadline | None = None,
        stop: Stop | None = None,
        sidecar: bool | Literal["with_prompt"] = False,
    ) -> Path:
        """Write the image to `path` atomically.

        Only a whole PNG, JPEG, WebP, GIF or AVIF is an image. It is written beside `path` and
        renamed, so that what was there survives a failure.

        Args:
            path: Unless it ends with a suffix of the image's format, that of the format is added:
                ``"x"`` and ``"x.jpg"`` of a PNG become ``"x.png"`` and ``"x.jpg.png"``. Its
                folder must exist. A file that is there is replaced and its mode kept; a symbolic
                link is followed, and if its own name has the suffix, what it leads to gets
                none; a FIFO or a device is written to, under its own name.
            timeout: Seconds for everything, or a `Deadline`; `None`: the client's `timeout`;
                infinity: no limit.
            stop: A `threading.Event`, or a function that returns True: ends it within 0.1 s.
            sidecar: True: also write ``x.png.json`` with seeds, size, labels and `info`;
                ``"with_prompt"``: with the prompts, too. The task id is never in it.

        Returns:
            The path of the file, with the suffix that was added.

        Raises:
            InvalidRequestError: Nothing can be written at `path`; nothing was fetched.
            DownloadError: The image could not be fetched, or is not an image.
            JobStoppedError: `stop` ended it; what was at `path` is still there.
            OSError: The disk did not take it.
        """
        with self._fetching(timeout, stop) as deadline:
            target = Path(path)
            if not is_writable(target):
                raise invalid("path", str(path), "must be a file in a folder that exists")
            with atomic_write(target) as draft:
                found = self._download(draft.file, deadline)
                if not draft.in_place and format_of_name(target.name) != found:
                    draft.target = _with_extension(draft.target, found)
            if sidecar and not draft.in_place:
                self._write_sidecar(draft.target, prompt=sidecar == "with_prompt")
            return draft.target

    def to_pil(self) -> "PIL.Image.Image":
        """Return the image as Pillow has it, fetched once.

        Raises:
            ImportError: Pillow is not installed.
            DownloadError: As in `read`.
        """
        return viewing.open_with_pillow(self._content())

    def show(self) -> None:
        """Open the image in a window, with Pillow. Errors as in `to_pil`."""
        self.to_pil().show()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """Show the image and its facts in a notebook; what went wrong as text."""
        try:
            content = self._content()
        except ImageLabsError as error:
            return {"text/plain": f"{self!r} cannot be shown: {error}"}
        assert self.media_type is not None  # it has been fetched
        return viewing.mime_bundle(content, self.media_type, self._facts())

    def _content(self) -> bytes:
        if self._known.content is None:
            self._known.content = self.read()
        return self._known.content

    def _facts(self) -> dict[str, Any]:
        fields = viewing.request_fields(self.request)
        facts = {name: fields[name] for name in ("seed", "subseed", "width", "height") if fields}
        return {**facts, "seconds": round(self.timings.total, 1)}

    def _write_sidecar(self, path: Path, *, prompt: bool) -> None:
        labels = getattr(self.job, "metadata", {})  # a job of another kind may have none
        fields = viewing.request_fields(self.request)
        write_sidecar(path, fields, self.info, labels, prompt=prompt)

    def _download(self, file: IO[bytes], deadline: Deadline) -> ImageFormat:
        found = self._known.format = self._downloader.download(self._link(), file, deadline)
        return found

    @contextmanager
    def _fetching(self, timeout: float | Deadline | None, stop: Stop | None) -> Iterator[Deadline]:
        """Name the job in whatever goes wrong, and tell a stop from a failure."""
        downloader = self._downloader
        with attach_job(self.job):
            deadline = Deadline.from_timeout(
                timeout, default=downloader.settings.timeout, clock=downloader.clock, stop=stop
            )
            try:
                yield deadline
            except DownloadError as error:
                if deadline.stopped:
                    raise JobStoppedError(
                        "stopped by the caller; the image can be fetched again later"
                    ) from error
                raise

    def _link(self) -> ImageLink:
        request = self.request
        prompts = (request.prompt, request.negative_prompt) if request else ()
        return ImageLink(self.url, self._refresh and self._fresh_url, prompts=Secrets(prompts))

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


def _with_extension(target: Path, found: ImageFormat) -> Path:
    """Return the path with the suffix of the image's format added, unless it has one."""
    if format_of_name(target.name) == found:
        return target
    longer = target.with_name(target.name + found.extension)
    if has_image_suffix(target.name):
        log.warning("the image is a %s: saved as %s", found.name, longer)
    return longer
