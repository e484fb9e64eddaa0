"""The facade: settings come in here, and everything is wired together here."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import attrs

from . import wire
from .deadline import Deadline
from .endpoints import Endpoints
from .errors import InvalidRequestError
from .images import GeneratedImage, ImageFetcher
from .jobs import Job, OnProgress, Wiring
from .models import ImageRequest, invalid
from .polling import Adaptive, FixedInterval, Polling, seconds
from .transports.base import Transport
from .transports.requests import RequestsTransport

if TYPE_CHECKING:
    from .batch import Batch, Item, OnBatchProgress

__all__ = ["ImageLabs"]

BASE_URL = "https://editor.imagelabs.net"
TIMEOUT = 300.0  # seconds
USER_AGENT = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class ImageLabs:
    """A client of the ImageLabs text-to-image service.

    Opens nothing until the first request. May be shared by threads and inherited over a fork,
    and pickles (with its cookies and proxy, so treat the pickle as a secret).

    The class attributes are the names that the reference provider shows its users.
    """

    url: str = BASE_URL
    api_endpoint: str = BASE_URL + "/txt2img"
    working: ClassVar[bool] = True
    default_model: ClassVar[str] = "sdxl-turbo"
    default_image_model: ClassVar[str] = default_model
    image_models: ClassVar[list[str]] = [default_image_model]
    models: ClassVar[list[str]] = image_models

    def __init__(
        self,
        base_url: str | None = None,
        *,
        transport: Transport | None = None,
        polling: Polling | None = None,
        timeout: float | None = None,
        poll_interval: float | None = None,
        request_timeout: float = 30.0,
        max_retries: int = 2,
        headers: Mapping[str, str | None] | None = None,
        cookies: Mapping[str, str] | str | None = None,
        proxy: str | None = None,
        verify: bool | str = True,
        allow_private_hosts: bool = False,
        max_image_bytes: int = 64 * 1024 * 1024,
        log_prompts: bool = False,
    ) -> None:
        """Settings; what is `None` comes from the environment, now, or has a default.

        Args:
            base_url: Where the service is; ``IMAGELABS_BASE_URL``; default
                ``https://editor.imagelabs.net``.
            transport: How requests travel; it stays yours to close. `None`:
                `RequestsTransport` with `proxy` and `verify`.
            polling: When to look; also the clock of everything. `None`: `Adaptive()`.
            timeout: Seconds for a whole job, submit included; ``IMAGELABS_TIMEOUT``;
                default 300; infinity: no limit.
            poll_interval: Seconds between looks; short for ``polling=FixedInterval(...)``.
            request_timeout: Seconds for one HTTP exchange, the answer's body included.
            max_retries: How often a submit that surely was not accepted is sent again; 0: never.
            headers: Replace those sent by default, by name in any case; `None` leaves one out.
                They go to `base_url`'s origin alone.
            cookies: By name, or as a browser's ``cookie`` header; ``IMAGELABS_COOKIE``. They go
                to `base_url`'s origin alone.
            proxy: Such as ``"http://user:password@host:3128"``; ``IMAGELABS_PROXY``; without
                either, the standard variables.
            verify: `True`, or the path of a CA bundle; `False`: any certificate (dangerous).
            allow_private_hosts: Whether pictures may come from hosts that are not public.
                The API's own origin always may be private.
            max_image_bytes: No larger picture is taken; default 64 MiB.
            log_prompts: Whether the log may show prompts; else their length alone.

        Raises:
            InvalidRequestError: A setting cannot be used.
        """
        base = _base_url(base_url or os.environ.get("IMAGELABS_BASE_URL") or BASE_URL)
        proxy = proxy if transport else proxy or os.environ.get("IMAGELABS_PROXY")
        if transport is not None and (proxy or verify is not True):
            raise InvalidRequestError(
                "transport: has its own proxy and verify; give them to the transport",
                field="transport",
            )
        if polling is not None and poll_interval is not None:
            raise InvalidRequestError(
                "poll_interval: give either polling or poll_interval", field="poll_interval"
            )
        if poll_interval is not None:
            polling = FixedInterval(seconds("poll_interval", poll_interval))
        polling = polling or Adaptive()
        self._owned = None if transport else RequestsTransport(proxy=proxy or None, verify=verify)
        carrier: Transport = transport or self._owned  # type: ignore[assignment]
        sent = {**_default_headers(base), **_headers(headers)}
        crumbs = {
            **_cookies(sent.pop("cookie", None)),
            **_cookies(cookies if cookies is not None else os.environ.get("IMAGELABS_COOKIE")),
        }
        api_headers = {name: value for name, value in sent.items() if value is not None}
        endpoints = Endpoints(
            base_url=base,
            transport=carrier,
            headers=api_headers,
            cookies=crumbs,
            request_timeout=seconds("request_timeout", request_timeout),
            max_retries=_count("max_retries", max_retries, 0, 100),
            sleep=polling.sleep,
            log_prompts=log_prompts,
        )
        whole = seconds("timeout", _timeout() if timeout is None else timeout)
        fetcher = ImageFetcher(
            transport=carrier,
            base_url=base,
            headers={k: v for k, v in api_headers.items() if k != "content-type"},
            cookies=crumbs,
            foreign_headers={"accept": "image/*,*/*;q=0.8", "user-agent": USER_AGENT},
            allow_private_hosts=allow_private_hosts,
            max_bytes=_count("max_image_bytes", max_image_bytes, 1, 2**40),
            request_timeout=endpoints.request_timeout,
            timeout=whole,
            clock=polling.clock,
            sleep=polling.sleep,
        )
        self._wiring = Wiring(endpoints=endpoints, fetcher=fetcher, polling=polling, timeout=whole)
        self.url = base
        self.api_endpoint = base + "/txt2img"

    # From a prompt to a picture --------------------------------------------------------

    def generate(
        self,
        prompt: str | ImageRequest,
        *,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> GeneratedImage:
        """Ask for one picture and wait until it is there.

        Args:
            prompt: What to draw, or a whole `ImageRequest`.
            timeout: Seconds for submit and wait together; `None`: the client's; infinity: no
                limit.
            on_progress: Called with each look that was answered.
            **options: The other fields of `ImageRequest`, such as ``width=512``.

        Raises:
            InvalidRequestError: A value cannot be used; nothing was sent.
            SubmissionUnknownError: The job may or may not have been accepted.
            APIConnectionError, APIStatusError, APIResponseError: It was not accepted; or, with
                `job` set, the service refuses to tell how it stands.
            JobFailedError, JobTimeoutError, JobStalledError: It was accepted and came to no
                picture (yet); `job` is set.
        """
        deadline = self.deadline(timeout)
        job = self._submit(prompt, options, deadline)
        return job.wait_until(deadline, on_progress).image()

    def submit(
        self, prompt: str | ImageRequest, *, timeout: float | None = None, **options: Any
    ) -> Job:
        """Ask for one picture and do not wait. Arguments and errors as in `generate`."""
        return self._submit(prompt, options, self.deadline(timeout))

    def generate_many(
        self,
        items: "Iterable[Item]",
        *,
        max_in_flight: int = 64,
        workers: int = 8,
        timeout: float | None = None,
        min_interval: float = 0.0,
        on_progress: "OnBatchProgress | None" = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> "Batch":
        """Ask for many pictures; iterate over their outcomes, in the order in which they end.

        One failure stops nothing: it is the outcome of its item. A 429 holds back the submits
        of all. Ctrl-C, an exception or `Batch.close` stop at once; `Batch.unfinished` then has
        the jobs that go on at the service.

        Args:
            items: Prompts, requests, or mappings of a request's fields. Taken one by one, in
                the thread that iterates, each when there is room for it; they may be endless.
            max_in_flight: How many items are at work at most, waiting outcomes included.
            workers: How many threads send requests, each over a connection of its own.
            timeout: Seconds for each job, from the submit that was accepted, or from when it
                was taken up again; `None`: the client's; infinity: no limit.
            min_interval: Seconds between two submits; 0: none.
            on_progress: Called with an item's index and the latest look at its job, in the
                thread that iterates, while it waits for outcomes.
            checkpoint: A file in which each submit and each end is kept, durably. With the same
                items, and new ones at the end, a later call goes on where this one ended, even
                by kill -9: what is finished is told again, what was accepted is waited for,
                nothing is bought twice. It holds the prompts, is created for its owner alone,
                and is for one call at a time. `None`: nothing is kept.

        Raises:
            InvalidRequestError: A setting or the checkpoint cannot be used.
            OSError: The checkpoint cannot be opened.
        """
        from .batch import Batch  # costs time and memory that single pictures do without
        from .schedule import Settings

        settings = Settings(
            max_in_flight=max_in_flight,
            workers=workers,
            timeout=timeout,
            min_interval=min_interval,
        )
        return Batch(
            items,
            self._wiring,
            job_from_dict=self.job_from_dict,
            settings=settings,
            on_progress=on_progress,
            checkpoint=checkpoint,
        )

    def get_job(self, task_id: str) -> Job:
        """A job that was submitted before, perhaps elsewhere. Asks nobody."""
        if not isinstance(task_id, str) or not task_id.strip():
            raise invalid("task_id", task_id, "must be the text that the service gave")
        return Job(task_id, self._wiring)

    def job_from_dict(self, data: Mapping[str, Any]) -> Job:
        """The job that `Job.to_dict` described. Asks nobody.

        Raises:
            InvalidRequestError: It is of another version or service, or no such description.
        """
        if not isinstance(data, Mapping) or data.get("version") != 1:
            version = data.get("version") if isinstance(data, Mapping) else data
            raise invalid("version", version, "must be 1, as Job.to_dict writes it")
        if data.get("base_url") != self.url:
            raise invalid("base_url", data.get("base_url"), f"the job is not of {self.url}")
        when, request = data.get("submitted_at"), data.get("request")
        if isinstance(when, bool) or not isinstance(when, int | float) or not math.isfinite(when):
            raise invalid("submitted_at", when, "must be seconds since 1970")
        if request is not None and not isinstance(request, Mapping):
            raise invalid("request", type(request).__name__, "must be an object or null")
        return Job(
            self.get_job(data.get("task_id")).id,  # type: ignore[arg-type]  # checked there
            self._wiring,
            request=None if request is None else wire.request_from_json(request),
            submitted_at=when,
        )

    # Its own life ----------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections that this client opened, of all threads. May be called again.

        Jobs and pictures go on working; they open new ones.
        """
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> "ImageLabs":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ImageLabs {self.url}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageLabs):
            return NotImplemented
        return self._wiring == other._wiring

    def __hash__(self) -> int:
        return hash(self.url)

    @classmethod
    def get_model(cls, model: str) -> str:
        """The model that will draw: the default one, whatever is asked for."""
        return cls.default_model

    def deadline(self, timeout: float | None = None) -> Deadline:
        """The deadline of a job that begins now, for loops of your own.

        Args:
            timeout: Seconds; `None`: the client's; infinity: no limit.
        """
        if timeout is not None:
            seconds("timeout", timeout)
        return self._wiring.deadline(timeout)

    # How it is done --------------------------------------------------------------------

    def _submit(
        self, prompt: str | ImageRequest, options: Mapping[str, Any], deadline: Deadline
    ) -> Job:
        request = _request(prompt, options).with_seeds()
        task_id = self._wiring.endpoints.submit(request, deadline=deadline)
        return Job(task_id, self._wiring, request=request, first_look_now=False)


def _request(prompt: str | ImageRequest, options: Mapping[str, Any]) -> ImageRequest:
    if isinstance(prompt, ImageRequest):
        if options:
            raise InvalidRequestError(
                f"{next(iter(options))}: belongs into the ImageRequest", field=next(iter(options))
            )
        return prompt
    known = {field.name for field in attrs.fields(ImageRequest)}
    for name in options:
        if name not in known:
            raise InvalidRequestError(
                f"{name}: no such option; extra_body takes fields that have no name here",
                field=name,
            )
    return ImageRequest(prompt, **options)


# Settings -----------------------------------------------------------------------------


def _default_headers(base: str) -> dict[str, str | None]:
    """Those of the reference implementation."""
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
        **_headers({"user-agent": os.environ.get("IMAGELABS_USER_AGENT") or USER_AGENT}),
    }


def _base_url(url: object) -> str:
    remedy = 'must be like "https://host", without user, query or fragment'
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.query or parts.fragment:
        shown = "<hidden>" if "@" in str(url) else url
        raise invalid("base_url", shown, remedy)
    return str(url).rstrip("/")


def _timeout() -> float:
    text = os.environ.get("IMAGELABS_TIMEOUT")
    if not text:
        return TIMEOUT
    try:
        return float(text)
    except ValueError:
        raise invalid("IMAGELABS_TIMEOUT", text, "must be a number of seconds") from None


def _count(field: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(field, value, f"must be a whole number, {low} to {high}")
    return value


def _headers(headers: Mapping[str, str | None] | None) -> dict[str, str | None]:
    checked: dict[str, str | None] = {}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise invalid("headers", name, "is no header's name")
        if value is not None and not _sendable(value):
            # Not shown: a header's value may be a secret.
            raise InvalidRequestError(
                f"headers[{name!r}]: must be Latin-1 text without line breaks", field="headers"
            )
        checked[name.lower()] = value
    return checked


def _cookies(cookies: Mapping[str, str] | str | None) -> dict[str, str]:
    if isinstance(cookies, str):
        pairs = (pair.strip().partition("=") for pair in cookies.split(";") if pair.strip())
        cookies = {name.strip(): value.strip() for name, _, value in pairs}
    elif cookies is not None and not isinstance(cookies, Mapping):
        raise InvalidRequestError("cookies: must be a mapping or text", field="cookies")
    for name, value in (cookies or {}).items():
        named = isinstance(name, str) and _HEADER_NAME.fullmatch(name)
        if not named or not _sendable(value) or ";" in value:
            raise InvalidRequestError(
                "cookies: names and values must be plain text without ';'", field="cookies"
            )
    return dict(cookies or {})


def _sendable(value: object) -> bool:
    if not isinstance(value, str) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        return False
    return all(ord(character) < 256 for character in value)
