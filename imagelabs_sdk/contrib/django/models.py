"""The job that outlives the request: a row that tells all about it."""

import time
import uuid
from datetime import datetime, timedelta
from datetime import timezone as fixed_zone
from pathlib import PurePath
from typing import Any, ClassVar, Generic, TypeVar, cast

import attrs
from django.conf import settings
from django.core.files.storage import Storage, default_storage, storages
from django.core.signals import setting_changed
from django.db import DataError, IntegrityError, models, router, transaction
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import LazyObject, empty
from django.utils.translation import gettext_lazy as _

from imagelabs_sdk import ImageRequest, InvalidRequestError

from .choices import JobState
from .clients import DEFAULT_ALIAS, clients, in_transaction, warn_of_transaction
from .lifecycle import BRIEF, LEASE, advance, submit
from .poll import MAX_CODE, MAX_ERROR
from .signals import jobs_outstanding

__all__ = ["ASLEEP", "AbstractImageJob", "ImageJob", "ImageJobManager", "JobState", "SweepChain"]

_REQUEST = {field.name for field in attrs.fields(ImageRequest)} - {"prompt"}
_GLANCE = 0.5  # seconds between looks at a row that somebody else may settle
_T = TypeVar("_T", bound="AbstractImageJob")

ASLEEP = datetime(1970, 1, 1, tzinfo=fixed_zone.utc)
"""The time of a `SweepChain` that has ended."""


class _ImageStorage(LazyObject):  # type: ignore[type-arg]  # it takes none when it runs
    """``STORAGES["imagelabs"]`` if there is one, else the default storage."""

    def _setup(self) -> None:
        own = "imagelabs" in settings.STORAGES
        self._wrapped = storages["imagelabs"] if own else default_storage


_image_storage = _ImageStorage()


def image_storage() -> Storage:
    """Where images are kept; follows ``override_settings``."""
    return cast(Storage, _image_storage)


def _forget_storage(*, setting: str, **_: object) -> None:
    if setting == "STORAGES":
        _image_storage._wrapped = cast(Storage, empty)


setting_changed.connect(_forget_storage)


def image_name(job: "AbstractImageJob", filename: str) -> str:
    """A name of our own making; nothing of it comes from the service or the user."""
    return f"imagelabs/{job.pk.hex[:2]}/{job.pk}{PurePath(filename).suffix}"


class ImageJobManager(models.Manager[_T], Generic[_T]):
    """``ImageJob.objects``."""

    def start(
        self,
        prompt: str | ImageRequest,
        *,
        alias: str = DEFAULT_ALIAS,
        id: uuid.UUID | None = None,  # noqa: A002 - the column's name
        **options: Any,
    ) -> _T:
        """Ask for one image, and keep the job in a row.

        The row is committed before the request leaves: in a transaction the request waits for
        its end, and is never sent if it is rolled back. What the service answers is in the row,
        its refusal too; a request whose fate is not known is never sent again.

        Args:
            prompt: What to draw, or a whole `ImageRequest`.
            alias: The client, by its name in ``settings.IMAGELABS``.
            id: The row's key; a row that has it already is answered instead, and nothing is
                sent: give a form one, and pressing its button twice buys one image.
                `None`: a new one.
            **options: Fields of `ImageRequest`, such as ``width=512``; the others are columns
                of the row, such as ``owner=request.user``.

        Returns:
            The row: running, failed, or, in a transaction, being submitted.

        Raises:
            InvalidRequestError: A value cannot be used; nothing was sent or stored.
            SettingsError: There is no such alias.
        """
        request = _request(prompt, {name: options.pop(name) for name in _REQUEST & options.keys()})
        _ = clients[alias]
        job = self.model(
            id=id or uuid.uuid4(),
            alias=alias,
            request=attrs.asdict(request, recurse=False),
            seed=request.seed,
            width=request.width,
            height=request.height,
            next_poll_at=timezone.now() + LEASE,
            **options,
        )
        using = self._db or router.db_for_write(self.model, instance=job)
        try:
            with transaction.atomic(using=using):
                job.save(force_insert=True, using=using)
        except IntegrityError:
            if (known := self.using(using).filter(pk=job.pk).first()) is None:
                raise
            return known
        except DataError as error:
            raise InvalidRequestError(
                "request: the database cannot hold it, perhaps for a NUL character",
                field="request",
            ) from error
        # Robust: what fails after the commit is in the row, and holds up no other request.
        transaction.on_commit(lambda: _begin(job), using=using, robust=True)
        return job

    def generate_or_defer(
        self, prompt: str | ImageRequest, *, wait: float = 5.0, **options: Any
    ) -> _T:
        """`start`, and wait a moment: perhaps the image comes in time.

        ::

            job = ImageJob.objects.generate_or_defer("a lighthouse", owner=request.user)
            return FileResponse(job.image.open()) if job.image else redirect(job)

        In a transaction nothing leaves before its end, so that there is nothing to wait for:
        decorate the view with ``transaction.non_atomic_requests``.

        Args:
            prompt: As in `start`.
            wait: Seconds after the submit, at most 20.
            **options: As in `start`.

        Returns:
            The row: ``image`` is set if it came in time.
        """
        job = self.start(prompt, **options)
        if in_transaction(job._state.db):
            warn_of_transaction("nothing is sent before its end, so there is nothing to wait for")
            return job
        until = time.monotonic() + min(wait, BRIEF)
        while job.is_outstanding:
            left = until - time.monotonic()
            pause = min(job.seconds_until_due, _GLANCE)
            if pause >= left:
                break
            time.sleep(pause)
            advance(job, timeout=left)
        return job


class AbstractImageJob(models.Model):
    """A job, for models of your own: add columns, such as an owner, or keep other names.

    The columns below are written by this app alone; write yours with
    ``save(update_fields=[...])``, so that a job in motion is not set back.

    Attributes:
        give_up_after: How long after its submit an unfinished job is given up. It may finish all
            the same: "poll now" in the admin takes it up again.
    """

    give_up_after: ClassVar[timedelta] = timedelta(hours=1)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    alias = models.CharField(_("client"), max_length=64, default=DEFAULT_ALIAS)
    task_id = models.CharField(_("task id"), max_length=256, blank=True, default="")
    request = models.JSONField(_("request"), help_text=_("The fields of the request, seeds too."))
    seed = models.BigIntegerField(_("seed"))
    width = models.PositiveIntegerField(_("width"), help_text=_("Pixels."))
    height = models.PositiveIntegerField(_("height"), help_text=_("Pixels."))
    state = models.CharField(
        _("state"), max_length=16, choices=JobState.choices, default=JobState.SUBMITTING
    )
    status = models.CharField(
        _("status"), max_length=200, blank=True, default="", help_text=_("The service's own word.")
    )
    fraction = models.FloatField(_("progress"), null=True, blank=True, help_text=_("0.0 to 1.0."))
    preview_url = models.TextField(
        _("preview"), blank=True, default="",
        help_text=_("Not for pages: its host would see who polls."),
    )  # fmt: skip
    image = models.FileField(
        _("image"), upload_to=image_name, storage=image_storage, max_length=255, blank=True
    )
    error_code = models.CharField(
        _("error"), max_length=MAX_CODE, blank=True, default="",
        help_text=_("The latest error's class; cleared by a poll that succeeds."),
    )  # fmt: skip
    error = models.CharField(_("error's text"), max_length=MAX_ERROR, blank=True, default="")
    attempts = models.PositiveIntegerField(
        _("attempts"), default=0, help_text=_("How often it was polled.")
    )
    failures = models.PositiveIntegerField(
        _("failures"), default=0, help_text=_("Polls that failed in a row.")
    )
    next_poll_at = models.DateTimeField(
        _("next poll"), null=True, blank=True, help_text=_("Empty when nobody polls any more.")
    )
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    submitted_at = models.DateTimeField(_("submitted"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    objects: ClassVar[ImageJobManager[Any]] = ImageJobManager()

    class Meta:
        """A small index of what is due, whatever the table's size."""

        abstract = True
        indexes: ClassVar = [
            models.Index(
                fields=["next_poll_at"],
                condition=Q(next_poll_at__isnull=False),
                name="%(app_label)s_%(class)s_due",
            )
        ]

    def __str__(self) -> str:
        return f"{self.pk} ({self.state})"

    def get_absolute_url(self) -> str:
        """The job's page, if ``imagelabs_sdk.contrib.django.urls`` is included."""
        return reverse("imagelabs:job", args=[self.pk])

    @property
    def is_outstanding(self) -> bool:
        """Whether somebody is still to look at it."""
        return self.next_poll_at is not None

    @property
    def seconds_until_due(self) -> float:
        """Until the next poll; 0.0: now, or never."""
        if self.next_poll_at is None:
            return 0.0
        return max(0.0, (self.next_poll_at - timezone.now()).total_seconds())

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next poll."""
        return self.is_outstanding and self.seconds_until_due <= 0.0

    @property
    def prompt(self) -> str:
        """What to draw."""
        return str(self.request.get("prompt", ""))

    @property
    def percent(self) -> int | None:
        """The progress, 0 to 100; `None`: not known."""
        return None if self.fraction is None else round(100 * self.fraction)


class ImageJob(AbstractImageJob):
    """A job of somebody's, or of nobody's."""

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        verbose_name=_("owner"),
        null=True,
        blank=True,
        db_index=False,  # the index below serves it, too
        related_name="+",
    )

    class Meta(AbstractImageJob.Meta):
        """The newest first."""

        verbose_name = _("image job")
        verbose_name_plural = _("image jobs")
        ordering = ("-created_at",)
        indexes: ClassVar = [
            *AbstractImageJob.Meta.indexes,
            models.Index(fields=["owner", "-created_at"], name="imagelabs_imagejob_owner"),
        ]


class SweepChain(models.Model):
    """The chain of sweeps of one backend of ``django.tasks``; see `django_tasks`.

    Attributes:
        backend: Its alias in ``settings.TASKS``.
        at: When the chain's next task is to run. A task with an earlier time belongs to a chain
            that was taken for dead; it ends without a sweep.
    """

    backend = models.CharField(primary_key=True, max_length=64)
    at = models.DateTimeField(default=ASLEEP)

    @classmethod
    def claim(cls, backend: str, until: datetime, *, at: datetime) -> bool:
        """Set the time of the chain's next task to `at`, unless it is later than `until`.

        Return True if this call changed it.
        """
        mine = cls.objects.filter(backend=backend, at__lte=until)
        return bool(mine.update(at=at))


def _request(prompt: str | ImageRequest, options: dict[str, Any]) -> ImageRequest:
    if not isinstance(prompt, ImageRequest):
        return ImageRequest(prompt, **options).with_seeds()
    for name in options:
        raise InvalidRequestError(f"{name}: belongs into the ImageRequest", field=name)
    return prompt.with_seeds()


def _begin(job: AbstractImageJob) -> None:
    submit(job)
    jobs_outstanding.send_robust(sender=type(job), alias=job.alias)
