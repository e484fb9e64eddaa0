"""``ImageJob.objects``: start jobs."""

import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
from asgiref.sync import sync_to_async
from django.core.exceptions import FieldDoesNotExist
from django.db import DataError, IntegrityError, models, router, transaction
from django.utils import timezone

from imagelabs_sdk import ImageRequest, InvalidRequestError

from .choices import JobState
from .clients import DEFAULT_ALIAS, clients, in_transaction, warn_of_transaction
from .lifecycle import MAX_REQUEST_TIME, SUBMIT_LEASE, advance, submit
from .signals import job_starting, jobs_outstanding

if TYPE_CHECKING:
    from .models import AbstractImageJob

__all__ = ["ImageJobManager"]

_REQUEST = {field.name for field in attrs.fields(ImageRequest)} - {"prompt"}
_APP_COLUMNS = {"seed", "width", "height"}  # filled in from the request
_RECHECK = 0.5  # seconds between reads of a row that another process may end
_T = TypeVar("_T", bound="AbstractImageJob")


class ImageJobManager(models.Manager[_T], Generic[_T]):
    """The manager of a model of jobs."""

    def start(
        self,
        prompt: str | ImageRequest | None = None,
        *,
        request: ImageRequest | None = None,
        alias: str = DEFAULT_ALIAS,
        id: uuid.UUID | None = None,  # noqa: A002 - the column's name
        **options: Any,
    ) -> _T:
        """Store a job, and submit it after the commit.

        In a transaction the request is sent after its end, and never if it is rolled back. The
        service's answer is in the row, also a refusal; a request whose fate is not known is never
        sent again. With ``"SUBMIT": "worker"`` a driver submits it.

        Args:
            prompt: What to draw; fields of `ImageRequest` may be among the `options` then.
            request: All that is asked for, instead of `prompt`.
            alias: The client, by its name in ``settings.IMAGELABS``.
            id: The row's key. A row that has it already is returned instead, and nothing is
                sent: give a form one, and sending it twice buys one image. `None`: a new one.
            **options: Columns of the model, such as ``owner=request.user``; beside a prompt also
                fields of `ImageRequest`, such as ``width=512``.

        Returns:
            The row: queued, running, failed, unknown, or, in a transaction, being submitted.

        Raises:
            InvalidRequestError: A value cannot be used; nothing was sent or stored.
            JobRefusedError: A receiver of `job_starting` refuses; nothing was sent or stored.
            SettingsError: There is no such alias.
        """
        asked, columns = self._split(prompt, request, options)
        by_worker = clients.submits_by_worker(alias)
        wait = timedelta(seconds=0.0 if by_worker else SUBMIT_LEASE)
        job = self.model(
            id=id or uuid.uuid4(),
            alias=alias,
            request=attrs.asdict(asked, recurse=False),
            seed=asked.seed,
            width=asked.width,
            height=asked.height,
            state=JobState.QUEUED if by_worker else JobState.SUBMITTING,
            next_poll_at=timezone.now() + wait,
            **columns,
        )
        using = self._db or router.db_for_write(self.model, instance=job)
        if id is not None and (known := self.using(using).filter(pk=id).first()) is not None:
            return known
        job_starting.send(sender=self.model, job=job)
        return self._insert(job, using)

    async def astart(self, *args: Any, **options: Any) -> _T:
        """Start a job as `start` does, from asynchronous code."""
        return await sync_to_async(self.start)(*args, **options)

    def generate_or_defer(
        self, prompt: str | ImageRequest | None = None, *, wait: float = 5.0, **options: Any
    ) -> _T:
        """Start a job as `start` does, and wait a little for its image.

        ::

            job = ImageJob.objects.generate_or_defer("a lighthouse", owner=request.user)
            return FileResponse(job.image.open()) if job.image else redirect(job)

        In a transaction nothing is sent before its end, so that there is nothing to wait for:
        decorate the view with ``transaction.non_atomic_requests``.

        Args:
            prompt: As in `start`.
            wait: Seconds after the submit, at most 20.
            **options: As in `start`.

        Returns:
            The row; ``image`` is set if it came in time.
        """
        job = self.start(prompt, **options)
        if in_transaction(job._state.db):
            warn_of_transaction("nothing is sent before its end, so there is nothing to wait for")
            return job
        until = time.monotonic() + min(wait, MAX_REQUEST_TIME)
        while job.is_outstanding:
            left = until - time.monotonic()
            pause = (
                _RECHECK if job.state == JobState.QUEUED else min(job.seconds_until_due, _RECHECK)
            )
            if pause >= left:
                break
            time.sleep(pause)
            _step_or_reload(job, left - pause)
        return job

    async def agenerate_or_defer(self, *args: Any, **options: Any) -> _T:
        """Start a job and wait a little as `generate_or_defer` does, from asynchronous code."""
        return await sync_to_async(self.generate_or_defer)(*args, **options)

    def _split(
        self,
        prompt: str | ImageRequest | None,
        request: ImageRequest | None,
        options: dict[str, Any],
    ) -> tuple[ImageRequest, dict[str, Any]]:
        """Return the request, with its seeds, and the columns of the model."""
        if isinstance(prompt, ImageRequest):
            prompt, request = None, prompt
        if request is None:
            asked = {name: options[name] for name in _REQUEST & options.keys()}
            columns = {name: value for name, value in options.items() if name not in asked}
            return _with_seeds(ImageRequest("" if prompt is None else prompt, **asked)), columns
        if prompt is not None:
            raise InvalidRequestError("prompt: give either a prompt or a request", field="prompt")
        for name in _REQUEST & options.keys():
            if not self._is_own_column(name):
                raise InvalidRequestError(f"{name}: give it in the ImageRequest", field=name)
        return _with_seeds(request), options

    def _is_own_column(self, name: str) -> bool:
        """Return True if the site's model, not this app, has a column of that name."""
        try:
            self.model._meta.get_field(name)
        except FieldDoesNotExist:
            return False
        return name not in _APP_COLUMNS

    def _insert(self, job: _T, using: str) -> _T:
        try:
            with transaction.atomic(using=using):
                job.save(force_insert=True, using=using)
        except (DataError, IntegrityError) as error:
            if (known := self.using(using).filter(pk=job.pk).first()) is not None:
                return known
            if not _has_odd_text(job.request):
                raise  # it is about a column of the site's own
            raise InvalidRequestError(
                "request: the database cannot store a NUL character or half of a character",
                field="prompt",
            ) from error
        # Robust: a failure after the commit is in the row, and stops no other request.
        transaction.on_commit(lambda: _begin(job), using=using, robust=True)
        return job


def _with_seeds(request: ImageRequest) -> ImageRequest:
    """Return the request with its seeds.

    Where both were left open, the subseed follows from the seed, as it does from a seed that is
    given: so the seed that a page shows is enough to repeat the image.
    """
    seeded = request.with_seeds()
    if request.seed is not None or request.subseed is not None:
        return seeded
    return attrs.evolve(seeded, subseed=None).with_seeds()


def _begin(job: "AbstractImageJob") -> None:
    if job.state == JobState.SUBMITTING:
        submit(job)
    jobs_outstanding.send_robust(sender=type(job), alias=job.alias)


def _step_or_reload(job: "AbstractImageJob", timeout: float) -> None:
    """Take the next step, unless a driver is to submit the job."""
    if job.state == JobState.QUEUED:
        job.refresh_from_db()
    else:
        advance(job, timeout=max(timeout, 0.1))


def _has_odd_text(value: Any) -> bool:
    """Return True if a text in a JSON value has a NUL character, or half of a character."""
    if isinstance(value, str):
        return any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, dict):
        return any(_has_odd_text(inner) for pair in value.items() for inner in pair)
    return isinstance(value, list | tuple) and any(map(_has_odd_text, value))
