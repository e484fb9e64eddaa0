"""The tables: the jobs, whose turn it is to submit, the chains of sweeps, files to be deleted."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from datetime import timezone as fixed_zone
from typing import Any, ClassVar

from django.apps import apps
from django.conf import settings
from django.db import models, router, transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .choices import JobState, is_due
from .clients import DEFAULT_ALIAS, SettingsError, clients
from .managers import ImageJobManager
from .poll import MAX_CODE, MAX_ERROR, MAX_STATUS
from .storage import image_name, image_storage, thumbnail_name

__all__ = [
    "ASLEEP",
    "AbstractImageJob",
    "ImageJob",
    "ImageJobManager",
    "JobState",
    "LeftoverFile",
    "SubmitTurn",
    "SweepChain",
    "is_full",
    "job_models",
]

ASLEEP = datetime(1970, 1, 1, tzinfo=fixed_zone.utc)
"""The time of a `SweepChain` that has ended."""


class AbstractImageJob(models.Model):
    """A job, for models of your own: add columns, such as an owner.

    Only this app writes the columns below; write yours with ``save(update_fields=[...])``, so that
    a running job is not set back. Deleting a row deletes its image, after the commit.

    Attributes:
        give_up_after: How long after its submit an unfinished job is given up. It may finish all
            the same: "poll now" in the admin resumes it.
        url_namespace: The namespace of the addresses of its pages; see `urls.job_urls`.
    """

    give_up_after: ClassVar[timedelta] = timedelta(hours=1)
    url_namespace: ClassVar[str] = "imagelabs"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    alias = models.CharField(_("client"), max_length=64, default=DEFAULT_ALIAS)
    task_id = models.CharField(_("task id"), max_length=4096, blank=True, default="")
    request = models.JSONField(_("request"), help_text=_("The fields of the request, seeds too."))
    seed = models.BigIntegerField(_("seed"))
    width = models.PositiveIntegerField(_("width"), help_text=_("Pixels."))
    height = models.PositiveIntegerField(_("height"), help_text=_("Pixels."))
    state = models.CharField(
        _("state"), max_length=16, choices=JobState.choices, default=JobState.SUBMITTING
    )
    status = models.CharField(
        _("status"), max_length=MAX_STATUS, blank=True, default="",
        help_text=_("The service's own word."),
    )  # fmt: skip
    fraction = models.FloatField(_("progress"), null=True, blank=True, help_text=_("0.0 to 1.0."))
    # The answered polls of a running job; the next one may be made by another process.
    polls = models.JSONField(default=list, blank=True, editable=False)
    expected_at = models.DateTimeField(
        _("expected"), null=True, blank=True,
        help_text=_("When it will probably be done; empty: not known."),
    )  # fmt: skip
    preview_url = models.TextField(
        _("preview"), blank=True, default="",
        help_text=_("Not for pages: its host would see who polls."),
    )  # fmt: skip
    image = models.FileField(
        _("image"), upload_to=image_name, storage=image_storage, max_length=255, blank=True,
        db_index=True,
    )  # fmt: skip
    thumbnail = models.FileField(
        _("thumbnail"), upload_to=thumbnail_name, storage=image_storage, max_length=255, blank=True,
        db_index=True,
    )  # fmt: skip
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
    # An index without a condition: MySQL has none with one, and a model's own Meta keeps this one.
    next_poll_at = models.DateTimeField(
        _("next poll"), null=True, blank=True, db_index=True,
        help_text=_("Empty: the job has ended."),
    )  # fmt: skip
    created_at = models.DateTimeField(_("created"), default=timezone.now, editable=False)
    submitted_at = models.DateTimeField(_("submitted"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    objects: ClassVar[ImageJobManager[Any]] = ImageJobManager()

    class Meta:
        """A model without a table."""

        abstract = True

    def __str__(self) -> str:
        return f"{self.pk} ({self.state})"

    def get_absolute_url(self) -> str:
        """Return the address of the job's page."""
        return reverse(f"{self.url_namespace}:job", args=[self.pk])

    @property
    def is_outstanding(self) -> bool:
        """True until the job has ended."""
        return self.next_poll_at is not None

    @property
    def seconds_until_due(self) -> float:
        """Seconds until the next poll; 0.0: it is due, or the job has ended."""
        if self.next_poll_at is None or self.is_due:
            return 0.0
        return max(0.0, (self.next_poll_at - timezone.now()).total_seconds())

    @property
    def is_due(self) -> bool:
        """True if it is time for the next poll."""
        return is_due(self.next_poll_at, timezone.now())

    @property
    def prompt(self) -> str:
        """What to draw. Half of a character, which no page can show, is replaced."""
        return str(self.request.get("prompt", "")).encode("utf-8", "replace").decode()

    @property
    def percent(self) -> int | None:
        """The progress, 0 to 100; `None`: not known."""
        return None if self.fraction is None else round(100 * self.fraction)

    @property
    def may_be_bought_already(self) -> bool:
        """True if the service may have drawn the image, so that asking again may buy it twice."""
        if self.state == JobState.FAILED:
            return bool(self.task_id) and self.error_code not in (
                "JobFailedError",
                "JobRefusedError",
            )
        return self.state == JobState.UNKNOWN

    @contextmanager
    def submit_turn(self) -> Iterator[bool]:
        """Yield True if this job may be submitted now, as far as ``MAX_IN_FLIGHT`` goes.

        The block is a transaction; other processes wait for their turn until it has ended.
        """
        if _limit(self.alias) is None:
            yield True
            return
        using = self._state.db or router.db_for_write(type(self), instance=self)
        turns = SubmitTurn.objects.using(using)
        turns.get_or_create(alias=self.alias)  # outside of the transaction: MySQL would deadlock
        with transaction.atomic(using=using):
            # An UPDATE locks the row in every database; only then are the jobs counted.
            turns.filter(alias=self.alias).update(taken_at=timezone.now())
            yield not is_full(self.alias, using)


class ImageJob(AbstractImageJob):
    """A job, with or without an owner. It is deleted with its owner."""

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        verbose_name=_("owner"),
        null=True,
        blank=True,
        db_index=False,  # the index below serves it, too
        related_name="+",
    )

    class Meta:
        """The newest comes first."""

        verbose_name = _("image job")
        verbose_name_plural = _("image jobs")
        ordering = ("-created_at",)
        indexes: ClassVar = [
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


class SubmitTurn(models.Model):
    """Whose turn it is to submit to a service whose jobs ``MAX_IN_FLIGHT`` bounds.

    Attributes:
        alias: The client's.
        taken_at: When somebody took the turn last.
    """

    alias = models.CharField(primary_key=True, max_length=64)
    taken_at = models.DateTimeField(default=ASLEEP)


class LeftoverFile(models.Model):
    """A file whose row is deleted, and which the storage would not delete.

    ``manage.py imagelabs_prune`` tries again.

    Attributes:
        model: The label of the model of its row, such as ``"imagelabs.imagejob"``.
        field: The model's file field.
        name: Its name in the field's storage.
    """

    model = models.CharField(max_length=200)
    field = models.CharField(max_length=64)
    name = models.CharField(max_length=255)
    created_at = models.DateTimeField(default=timezone.now)


def job_models() -> list[type[AbstractImageJob]]:
    """Return all models of jobs, the site's own included; each row is of one of them."""
    models = [model for model in apps.get_models() if issubclass(model, AbstractImageJob)]
    return [model for model in models if model._meta.get_field("attempts").model is model]


def is_full(alias: str, using: str) -> bool:
    """Return True if as many jobs of a client are at its service as may be, by the rows there."""
    limit = _limit(alias)
    if limit is None:
        return False
    states = (JobState.SUBMITTING, JobState.RUNNING)
    there = models.Q(alias=alias, state__in=states, next_poll_at__isnull=False)
    counts = (
        model._base_manager.using(using).filter(there).count()
        for model in job_models()
        if router.allow_migrate_model(using, model)
    )
    return sum(counts) >= limit


def _limit(alias: str) -> int | None:
    try:
        return clients.max_in_flight(alias)
    except SettingsError:  # a mistake is the check's to report; the jobs wait
        return 0
