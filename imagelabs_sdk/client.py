"""The facade: settings come in here, and jobs and images come out.

Light on purpose: what it needs to make requests is loaded when the client is first used.
"""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, SupportsIndex

from . import validation
from .reference import ReferenceProvider
from .settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

    from .batch.batch import Batch, Item, OnBatchProgress
    from .context import ClientContext
    from .deadline import Deadline, Stop
    from .images import RequestedImage
    from .jobs import Job, OnProgress
    from .ledger import Ledger
    from .models import ImageRequest, Progress
    from .polling import Poll, PollingStrategy
    from .reference_images import ReferenceImage
    from .transports.base import Transport
    from .transports.observed import OnRequest, OnResponse

__all__ = ["ImageLabs"]


class ImageLabs(ReferenceProvider):
    """A client of the ImageLabs text-to-image service.

    Opens nothing until the first request. May be shared by threads and inherited over a fork,
    and pickles (with its cookies and proxy, so treat the pickle as a secret).
    """

    @validation.without_locals
    def __init__(
        self,
        base_url: str | None = None,
        *,
        transport: "Transport | None" = None,
        polling: "PollingStrategy | None" = None,
        timeout: float | None = None,
        poll_interval: float | None = None,
        request_timeout: float = 30.0,
        max_retries: int = 2,
        headers: Mapping[str, str | None] | None = None,
        cookies: Mapping[str, str] | str | None = None,
        api_key: str | None = None,
        image_headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str = True,
        allow_private_hosts: bool = False,
        max_image_bytes: int = 64 * 1024 * 1024,
        log_prompts: bool = False,
        on_request: "OnRequest | None" = None,
        on_response: "OnResponse | None" = None,
        ledger: "Ledger | str | os.PathLike[str] | None" = None,
    ) -> None:
        """Set up a client; what is `None` comes from the environment, now, or has a default.

        Args:
            base_url: Where the service is; ``IMAGELABS_BASE_URL``; default
                ``https://editor.imagelabs.net``.
            transport: Sends the requests; you close it. `None`:
                `RequestsTransport` with `proxy` and `verify`.
            polling: When to poll; also the clock of everything. `None`:
                ``Adaptive(long_polls=True)``.
            timeout: Seconds for a whole job, submit included; ``IMAGELABS_TIMEOUT``;
                default 300; infinity: no limit.
            poll_interval: Seconds between polls; short for ``polling=FixedInterval(...)``.
            request_timeout: Seconds for one request to the API, its answer included; for an
                image: until the head of the answer is there, and for each silence after it.
            max_retries: How often a submit is sent again, where that cannot buy twice: it surely
                was not accepted, or it has an idempotency key (our own server's); 0: never.
            headers: Replace or add to the default ones, by name in any case; `None` leaves one
                out. They are sent to `base_url`'s origin alone.
            cookies: By name, or as a browser's ``cookie`` header; ``IMAGELABS_COOKIE``. They are
                sent to `base_url`'s origin alone.
            api_key: For servers that want one: sent as ``authorization: Bearer ...`` to
                `base_url`'s origin alone; ``IMAGELABS_API_KEY``.
            image_headers: Replace or add to the headers for hosts of images other than
                `base_url`'s origin, such as a ``referer`` or a key of that host. A redirect
                to another origin is followed without them.
            proxy: Such as ``"http://user:password@host:3128"``; ``IMAGELABS_PROXY``,
                except for hosts that ``NO_PROXY`` names; without either, the standard variables.
            verify: `True`, or the path of a CA bundle; ``"system"``: what the operating system
                trusts (extra ``truststore``); `False`: any certificate (dangerous).
            allow_private_hosts: True: images may come from hosts that are not public. The API's
                own origin always may be private.
            max_image_bytes: Larger images are refused; default 64 MiB.
            log_prompts: True: the log may show prompts. False: only their length.
            on_request: Called with a `RequestInfo` before each HTTP request, in its thread.
            on_response: Called with a `ResponseInfo` after each one, also if it failed.
            ledger: A file in which each submit and each end is recorded durably, so that not even
                kill -9 loses the id of a job; ``IMAGELABS_LEDGER``. Any number of processes may
                share it. It holds fingerprints of the requests and the labels of the jobs; with
                ``Ledger(path, prompts=True)`` the requests. `None` or empty: nothing is recorded.

        Raises:
            InvalidRequestError: A setting cannot be used.
        """
        if transport is not None and (proxy or verify is not True):
            raise validation.invalid_secret(
                "transport", "give proxy and verify to the transport itself"
            )
        if polling is not None and poll_interval is not None:
            raise validation.invalid_secret("poll_interval", "give either polling or poll_interval")
        no_proxy = transport is None and not proxy
        if no_proxy:
            proxy = os.environ.get("IMAGELABS_PROXY")
        if level := os.environ.get("IMAGELABS_LOG"):
            from ._logging import show_log  # most programs set up their own logging

            show_log(level)
        self._transport, self._polling = transport, polling
        self._settings = Settings(
            base_url=base_url,
            timeout=timeout,
            poll_interval=poll_interval,
            request_timeout=request_timeout,
            max_retries=max_retries,
            headers=headers,
            cookies=cookies,
            api_key=api_key,
            image_headers=image_headers,
            proxy=proxy,
            no_proxy=no_proxy,
            verify=verify,
            allow_private_hosts=allow_private_hosts,
            max_image_bytes=max_image_bytes,
            log_prompts=log_prompts,
            on_request=on_request,
            on_response=on_response,
            ledger=ledger,
        )
        self.url = self._settings.base_url
        self.api_endpoint = self.url + "/txt2img"

    # From a prompt to an image --------------------------------------------------------

    def generate(
        self,
        prompt: "str | ImageRequest",
        *,
        negative_prompt: str | None = None,
        aspect_ratio: str | None = None,
        width: SupportsIndex | None = None,
        height: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        subseed: SupportsIndex | None = None,
        attention: SupportsIndex | None = None,
        tiling: bool | None = None,
        reference_image: "ReferenceImage | None" = None,
        reference_image_type: str | None = None,
        reference_strength: SupportsIndex | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: "float | Deadline | None" = None,
        on_progress: "OnProgress | None" = None,
        stop: "Stop | None" = None,
        stall_timeout: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        **unknown: NoReturn,
    ) -> "RequestedImage":
        """Submit a job for one image and wait until the image is there.

        Args:
            prompt: What to draw, or a whole `ImageRequest`; with one, the next twelve must not
                be given.
            negative_prompt: What to keep out.
            aspect_ratio: Such as ``"16:9"``, in place of width and height.
            width: In pixels, 1 to 4096.
            height: In pixels, 1 to 4096.
            seed: Start of the noise, 0 or more; `None`: picked at random, the result has it.
            subseed: As `seed`, of the variation; `None`: the number after a given `seed`.
            attention: Passed through; its meaning is not known.
            tiling: True: the image repeats without a seam.
            reference_image: An image to start from. A text is passed through; a path, bytes or
                an image of Pillow become a ``data:`` URI, which our own server takes.
            reference_image_type: Passed through; the values are not known.
            reference_strength: In percent, 0 to 100.
            extra_body: Fields without a name here; merged into the JSON last.
            timeout: Seconds for submit and wait together, or a `Deadline`; `None`: the client's;
                infinity: no limit.
            on_progress: Called with each poll that was answered.
            stop: A `threading.Event`, or a function that returns True: ends the call within 0.1 s.
                A submit in flight finishes first, so that its id is known; the job goes on at the
                service.
            stall_timeout: Seconds after which the wait ends if neither status nor progress has
                changed; `None`: never.
            metadata: Labels of yours, as plain JSON: `Job.metadata` and `Job.to_dict` have them.
                They are never sent.
            **unknown: Not accepted: a misspelt name raises.

        Raises:
            InvalidRequestError: A value cannot be used; nothing was sent.
            SubmissionUnknownError: The job may or may not have been accepted.
            APIConnectionError, APIStatusError, APIResponseError: It was not accepted; or, with
                `job` set, the service refuses to tell how it stands.
            JobFailedError, JobTimeoutError, JobStalledError: It was accepted and has led to no
                image (yet); `job` is set.
            JobStoppedError: `stop` ended it; without a `job` nothing had been accepted.
        """
        from .images import RequestedImage  # loaded with the context, on first use
        from .jobs import Job
        from .models import make_request

        try:
            request = make_request(prompt, {
                "negative_prompt": negative_prompt, "aspect_ratio": aspect_ratio, "width": width,
                "height": height, "seed": seed, "subseed": subseed, "attention": attention,
                "tiling": tiling, "reference_image": reference_image,
                "reference_image_type": reference_image_type,
                "reference_strength": reference_strength, "extra_body": extra_body, **unknown,
            })  # fmt: skip
        finally:
            # Error trackers show the local variables of each frame: none may hold a prompt.
            del prompt, negative_prompt, reference_image, extra_body, unknown
        if stall_timeout is not None:
            validation.seconds("stall_timeout", stall_timeout)
        deadline = self.deadline(timeout, stop=stop)
        job = Job.submit(self._context, request, deadline, metadata)
        image = job.result(timeout=deadline, on_progress=on_progress, stall_timeout=stall_timeout)
        assert isinstance(image, RequestedImage)  # the job has its request
        return image

    def submit(
        self,
        prompt: "str | ImageRequest",
        *,
        negative_prompt: str | None = None,
        aspect_ratio: str | None = None,
        width: SupportsIndex | None = None,
        height: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        subseed: SupportsIndex | None = None,
        attention: SupportsIndex | None = None,
        tiling: bool | None = None,
        reference_image: "ReferenceImage | None" = None,
        reference_image_type: str | None = None,
        reference_strength: SupportsIndex | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: "float | Deadline | None" = None,
        stop: "Stop | None" = None,
        metadata: Mapping[str, Any] | None = None,
        **unknown: NoReturn,
    ) -> "Job":
        """Submit a job for one image and do not wait. Arguments and errors as in `generate`."""
        from .jobs import Job  # loaded with the context, on first use
        from .models import make_request

        try:
            request = make_request(prompt, {
                "negative_prompt": negative_prompt, "aspect_ratio": aspect_ratio, "width": width,
                "height": height, "seed": seed, "subseed": subseed, "attention": attention,
                "tiling": tiling, "reference_image": reference_image,
                "reference_image_type": reference_image_type,
                "reference_strength": reference_strength, "extra_body": extra_body, **unknown,
            })  # fmt: skip
        finally:
            # Error trackers show the local variables of each frame: none may hold a prompt.
            del prompt, negative_prompt, reference_image, extra_body, unknown
        return Job.submit(self._context, request, self.deadline(timeout, stop=stop), metadata)

    def generate_many(
        self,
        items: "Iterable[Item]",
        *,
        n: int = 1,
        max_in_flight: int = 64,
        workers: int = 8,
        timeout: "float | Deadline | None" = None,
        min_interval: float = 0.0,
        on_progress: "OnBatchProgress | None" = None,
        checkpoint: str | os.PathLike[str] | None = None,
        unknown: Literal["skip", "retry"] = "skip",
        stop: "Stop | None" = None,
        stall_timeout: float | None = None,
    ) -> "Batch":
        """Ask for many images; iterate over their outcomes, in the order in which they end.

        One failure stops nothing: it is the outcome of its item. A 429 holds back the submits
        of all. A service that answers none of several submits in a row stops the batch with
        `BatchStoppedError`. Ctrl-C, an exception or `Batch.close` stop at once. Then
        `Batch.unfinished` has the jobs that go on at the service.

        Args:
            items: Prompts, requests, or mappings of a request's fields. Taken one by one, in
                the thread that iterates, each when there is room for it; they may be endless.
                A mapping may hold ``"metadata"``, labels of yours for `Outcome.metadata`, which
                are not sent.
            n: How many images of each item, each with a seed of its own: a seed that an item has
                counts up. `Outcome.item` and `Outcome.variation` say which one it is.
            max_in_flight: How many items are at work at most, waiting outcomes included.
            workers: How many threads send requests, each over a connection of its own.
            timeout: Seconds for each job, from the submit that was accepted, or from when it
                was taken up again; `None`: the client's; infinity: no limit. A `Deadline` is one
                for the whole batch: when it passes, a request in flight is cut off, nothing more
                is sent, and the next outcome is a `JobTimeoutError`, raised; `Batch.unfinished`
                has the jobs that go on at the service.
            min_interval: Seconds between two submits; 0: none.
            on_progress: Called with an item's index and the latest poll of its job, in the
                thread that iterates, while it waits for outcomes.
            checkpoint: A file in which each submit and each end is kept, durably. With the same
                items, and new ones at the end, a later call goes on where this one ended, even
                by kill -9: finished items have the same outcomes again, accepted ones are waited
                for, nothing is bought twice. It holds the prompts, is readable for its owner
                alone, and is for one call at a time. `None`: nothing is kept.
            unknown: What to do with an item that an earlier run with this checkpoint was
                submitting when it ended, so that nobody knows whether it was accepted.
                ``"skip"``: nothing is sent, its outcome is `SubmissionUnknownError`; an image that
                was bought is lost. ``"retry"``: it is submitted again; an image that was bought
                before is bought twice, except where the service had announced idempotency keys to
                that run: the same request with the same key is answered with the same job, as
                long as the service keeps that.
            stop: A `threading.Event`, or a function that returns True: the next outcome then is a
                `JobStoppedError`, raised within 0.1 s. A submit in flight finishes first, so that
                its id is known; `Batch.unfinished` has the jobs that go on at the service.
            stall_timeout: Seconds after which the wait for a job ends with a `JobStalledError` if
                neither its status nor its progress has changed; `None`: never.

        Raises:
            InvalidRequestError: A setting or the checkpoint cannot be used.
            OSError: The checkpoint cannot be opened.
        """
        from .batch.batch import Batch  # costs time and memory that single images do without
        from .batch.scheduler import BatchSettings

        settings = BatchSettings(
            max_in_flight=max_in_flight,
            workers=workers,
            timeout=timeout,
            min_interval=min_interval,
            unknown=unknown,
            n=n,
            stop=stop,
            stall_timeout=stall_timeout,
        )
        return Batch(
            items,
            self._context,
            job_from_dict=self.job_from_dict,
            settings=settings,
            on_progress=on_progress,
            checkpoint=checkpoint,
        )

    def get_job(
        self,
        task_id: str,
        *,
        request: "ImageRequest | None" = None,
        submitted_at: float | None = None,
        progress: "Progress | None" = None,
        polls: "Sequence[Poll]" = (),
    ) -> "Job":
        """Return a job that was submitted before, perhaps elsewhere. Makes no request.

        Args:
            task_id: As the service gave it.
            request: The request, if you kept it; `None`: the image's `request` is `None`, too.
            submitted_at: When it was submitted, in seconds since 1970; the polling strategy uses
                the age of a job. `None`: now.
            progress: The latest progress, if you kept it: what is shown then does not go
                backwards, and a failure that two polls report is recognised. `None`: that of the
                last of the `polls`.
            polls: `Job.polls`, if you kept them: the polling strategy and `Job.eta` go on from
                there, in place of starting anew.
        """
        from .jobs import Job  # loaded with the context, on first use

        return Job.restore(
            self._context,
            task_id,
            request=request,
            submitted_at=submitted_at,
            progress=progress,
            polls=polls,
        )

    def job_from_dict(self, data: Mapping[str, Any]) -> "Job":
        """Return the job that `Job.to_dict` described. Makes no request.

        Raises:
            InvalidRequestError: It is of another version or service, or not such a description.
        """
        from .jobs import Job  # loaded with the context, on first use

        return Job.from_dict(self._context, data)

    @validation.without_locals
    def with_options(
        self,
        *,
        polling: "PollingStrategy | None" = None,
        timeout: float | None = None,
        request_timeout: float | None = None,
        max_retries: int | None = None,
        headers: Mapping[str, str | None] | None = None,
        cookies: Mapping[str, str] | str | None = None,
        api_key: str | None = None,
    ) -> "Self":
        """Return a client with other settings that shares the transport and its connections.

        For tenants, or one call with other limits. The original client closes the connections, and
        the cookies that the service sets for one of them are never sent for another one.

        Args:
            polling: Replaces the polling strategy. This and the following: `None` keeps what
                this client has.
            timeout: Seconds for a whole job.
            request_timeout: Seconds for one HTTP exchange.
            max_retries: How often a submit is sent again, where that cannot buy twice.
            headers: Replace or add to this client's, by name; a value of `None` leaves one out.
            cookies: Replace all cookies.
            api_key: Replaces the key.

        Raises:
            InvalidRequestError: A setting cannot be used.
        """
        client = copy.copy(self)
        client._settings = self._settings.with_options(
            timeout=timeout,
            request_timeout=request_timeout,
            max_retries=max_retries,
            headers=headers,
            cookies=cookies,
            api_key=api_key,
            fixed_pace=polling is None,
        )
        client._transport = self._context.base_transport
        client._polling = polling or self._polling
        return client

    # Closing and comparing -------------------------------------------------------------

    def close(self) -> None:
        """Close the connections that this client opened, of all threads. May be called again.

        Jobs and images go on working; they open new ones.
        """
        made: ClientContext | None = self.__dict__.get("_made")
        if made is not None and self._transport is None:  # the transport is the client's own
            made.transport.close()

    def __enter__(self) -> "Self":
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
        return self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def ledger(self) -> "Ledger | None":
        """The file in which submits and ends are recorded; `None`: there is none."""
        return self._settings.ledger

    def deadline(
        self, timeout: "float | Deadline | None" = None, *, stop: "Stop | None" = None
    ) -> "Deadline":
        """Return a deadline that several calls can share, each as its `timeout`.

        Args:
            timeout: Seconds from now, or a `Deadline`, which is returned as it is; `None`: the
                client's; infinity: no limit.
            stop: A `threading.Event`, or a function that returns True: ends those calls early.
        """
        return self._context.deadline(timeout, stop)

    # How it is done --------------------------------------------------------------------

    @property
    def _context(self) -> "ClientContext":
        """Built on first use. Two threads may build one each; the first one stays."""
        if "_made" not in self.__dict__:
            from .context import ClientContext  # costs more than all the rest of making a client

            made = ClientContext.of(self._settings, self._transport, self._polling)
            self.__dict__.setdefault("_made", made)
        context: ClientContext = self.__dict__["_made"]
        return context

    def _value(self) -> tuple[Any, ...]:
        return self._settings, self._transport, self._polling

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_made"}
