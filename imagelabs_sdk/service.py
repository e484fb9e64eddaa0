"""What a client does once it is asked to do something: its parts, wired together."""

import math
from collections.abc import Mapping
from typing import Any

import attrs

from . import validation, wire
from .deadline import Deadline
from .downloads import ImageDownloader
from .endpoints import Endpoints
from .jobs import ClientContext, Job
from .models import ImageRequest, pick_seeds
from .polling import Adaptive, FixedInterval, PollingStrategy
from .settings import USER_AGENT, Settings
from .transports.base import Transport
from .transports.requests import RequestsTransport

__all__ = ["Service"]

_KNOWN = {field.name for field in attrs.fields(ImageRequest)}


class Service:
    """One service, as `ImageLabs` uses it. Opens nothing by itself.

    Attributes:
        context: What its jobs share.
        owned: The transport that was made here, to be closed by the client; `None`: the caller's.
    """

    def __init__(
        self, settings: Settings, transport: Transport | None, polling: PollingStrategy | None
    ) -> None:
        self.owned = (
            RequestsTransport(proxy=settings.proxy, verify=settings.verify)
            if transport is None
            else None
        )
        self.context = _wired(settings, transport or self.owned, _pace(settings, polling))  # type: ignore[arg-type]

    def deadline(self, timeout: float | None) -> Deadline:
        """See `ImageLabs.deadline`."""
        if timeout is not None:
            validation.seconds("timeout", timeout)
        return self.context.deadline(timeout)

    def submit(
        self, prompt: str | ImageRequest, options: Mapping[str, Any], deadline: Deadline
    ) -> Job:
        """See `ImageLabs.submit`."""
        request = _request(prompt, options)
        task_id = self.context.endpoints.submit(request, deadline=deadline)
        return Job(task_id, self.context, request=request, first_poll_now=False)

    def job(
        self, task_id: object, request: ImageRequest | None = None, submitted_at: object = None
    ) -> Job:
        """See `ImageLabs.get_job`."""
        if not isinstance(task_id, str) or not task_id.strip():
            raise validation.invalid("task_id", task_id, "must be the text that the service gave")
        when = None if submitted_at is None else _moment(submitted_at)
        return Job(task_id, self.context, request=request, submitted_at=when)

    def job_from_dict(self, data: Mapping[str, Any]) -> Job:
        """See `ImageLabs.job_from_dict`."""
        if not isinstance(data, Mapping) or data.get("version") != 1:
            version = data.get("version") if isinstance(data, Mapping) else data
            raise validation.invalid("version", version, "must be 1, as Job.to_dict writes it")
        base, mine = data.get("base_url"), self.context.endpoints.base_url
        if base != mine:
            raise validation.invalid("base_url", base, f"the job is not of {mine}")
        when, request = _moment(data.get("submitted_at")), data.get("request")
        if request is not None and not isinstance(request, Mapping):
            raise validation.invalid("request", type(request).__name__, "must be an object or null")
        wanted = None if request is None else wire.request_from_json(request)
        return self.job(data.get("task_id"), wanted, when)


def _moment(when: object) -> float:
    number = isinstance(when, int | float) and not isinstance(when, bool)
    if not number or not math.isfinite(when):  # type: ignore[arg-type]
        raise validation.invalid("submitted_at", when, "must be seconds since 1970")
    return float(when)  # type: ignore[arg-type]


def _pace(settings: Settings, polling: PollingStrategy | None) -> PollingStrategy:
    if settings.poll_interval is not None:
        return FixedInterval(settings.poll_interval)
    return polling or Adaptive()


def _wired(settings: Settings, transport: Transport, polling: PollingStrategy) -> ClientContext:
    endpoints = Endpoints(
        base_url=settings.base_url,
        transport=transport,
        headers=settings.headers,
        cookies=settings.cookies,
        request_timeout=settings.request_timeout,
        max_retries=settings.max_retries,
        sleep=polling.sleep,
        log_prompts=settings.log_prompts,
    )
    downloader = ImageDownloader(
        transport=transport,
        base_url=settings.base_url,
        headers={k: v for k, v in settings.headers.items() if k != "content-type"},
        cookies=settings.cookies,
        foreign_headers={"accept": "image/*,*/*;q=0.8", "user-agent": USER_AGENT},
        allow_private_hosts=settings.allow_private_hosts,
        max_bytes=settings.max_image_bytes,
        request_timeout=settings.request_timeout,
        timeout=settings.timeout,
        clock=polling.clock,
        sleep=polling.sleep,
    )
    return ClientContext(
        endpoints=endpoints, downloader=downloader, polling=polling, timeout=settings.timeout
    )


def _request(prompt: str | ImageRequest, options: Mapping[str, Any]) -> ImageRequest:
    """The request with all its seeds. They are picked before it is made: a check costs, too."""
    if isinstance(prompt, ImageRequest):
        for name in options:
            raise validation.invalid_secret(name, "belongs into the ImageRequest")
        return prompt.with_seeds()
    for name in options.keys() - _KNOWN:
        raise validation.invalid_secret(
            name, "no such option; extra_body takes fields without a name here"
        )
    return ImageRequest(prompt, **{**options, **pick_seeds(options)})
