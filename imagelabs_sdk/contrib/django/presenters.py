"""What a page says of a job, in words and numbers. Sends no request."""

import hashlib
import math
import uuid
from typing import Any

import attrs
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .models import AbstractImageJob, JobState

__all__ = ["JobPresenter"]

_FASTEST, _SLOWEST = 1, 3  # seconds between two polls of a page at its row
_MINUTES_FROM = 90  # seconds
_TROUBLE = 3  # steps that failed in a row before the page says so

_RUNNING = {
    "queued": _("Waiting to be sent."),
    "submitting": _("Your request is on its way."),
    "waiting": _("Waiting for its turn."),
    "drawing": _("Being drawn."),
    "trouble": _("This takes longer than usual. We keep trying."),
}
_ENDED = {
    JobState.DONE: _("Your image is ready."),
    JobState.UNKNOWN: _(
        "We cannot tell whether the service took your request. It is not sent again by itself, "
        "so that nothing is drawn twice."
    ),
}
_UNREACHABLE = _("The service cannot be reached. Try again in a few minutes.")
_REFUSED = _("The service has refused this. Try again later.")
_TOO_LONG = _("It took too long and was given up. Try again later.")
_FAILED = {
    "APIConnectionError": _UNREACHABLE,
    "APITimeoutError": _UNREACHABLE,
    "APIStatusError": _REFUSED,
    "APIResponseError": _REFUSED,
    "ChallengeError": _REFUSED,
    "RateLimitError": _("The service has too much to do. Try again in a few minutes."),
    "InvalidRequestError": _("This cannot be drawn as it was asked for. Change it and try again."),
    "JobFailedError": _("The service could not draw this. Try again, perhaps in other words."),
    "JobRefusedError": _("The service could not draw this. Try again, perhaps in other words."),
    "AuthenticationError": _REFUSED,
    "PermissionDeniedError": _REFUSED,
    "JobTimeoutError": _TOO_LONG,
    "JobStalledError": _UNREACHABLE,
    "DownloadError": _("It was drawn, but could not be fetched. Try again later."),
}
_OURS = _("Something went wrong on our side. Try again later.")


@attrs.frozen
class JobPresenter:
    """A job as ``imagelabs/_job.html`` shows it.

    Attributes:
        job: Its row.
        seen: The phase that the page shows already; only another one is announced.
        shown: The `preview_key` of what it shows, which stays until the next is loaded.
    """

    job: AbstractImageJob
    seen: str = ""
    shown: str = ""

    @property
    def key(self) -> str:
        """The job's primary key as text."""
        return str(self.job.pk)

    @property
    def url(self) -> str:
        """The address of the job's page."""
        return self.job.get_absolute_url()

    def _url(self, name: str) -> str:
        return reverse(f"{self.job.url_namespace}:{name}", args=[self.job.pk])

    @property
    def image_url(self) -> str | None:
        """The address of the finished image on this site; `None` until it is stored."""
        return self._url("image") if self.job.image else None

    @property
    def thumbnail_url(self) -> str | None:
        """The address of the small image on this site; `None` until the image is stored."""
        return self._url("thumbnail") if self.job.image else None

    @property
    def preview_url(self) -> str | None:
        """The address of the unfinished image on this site; it changes with the image."""
        return f"{self._url('preview')}?{self.preview_key}" if self.job.preview_url else None

    @property
    def preview_key(self) -> str:
        """A digest of the service's address of the preview; empty without one."""
        url = self.job.preview_url
        return hashlib.sha256(url.encode()).hexdigest()[:16] if url else ""

    @property
    def again_url(self) -> str:
        """The address that starts the same job with another seed."""
        return self._url("again")

    @property
    def again_id(self) -> str:
        """A new token: a button that is pressed twice starts one job."""
        return uuid.uuid4().hex

    @property
    def resume_url(self) -> str | None:
        """The address that polls a job again which was given up; `None`: it would be in vain."""
        job = self.job
        given_up = job.state == JobState.FAILED and job.task_id and job.may_be_bought_already
        return self._url("resume") if given_up else None

    @property
    def delete_url(self) -> str:
        """The address that deletes the job with its image."""
        return self._url("delete")

    @property
    def change_url(self) -> str:
        """The address of the form, filled in with the job's request."""
        return f"{reverse(f'{self.job.url_namespace}:start')}?from={self.key}"

    @property
    def phase(self) -> str:
        """The state, and while the job runs, how it stands."""
        job = self.job
        if job.state not in (JobState.RUNNING, JobState.QUEUED):
            return str(job.state)
        if job.failures >= _TROUBLE:
            return "trouble"
        if job.state == JobState.QUEUED:
            return "queued"
        return "drawing" if job.fraction else "waiting"

    @property
    def message(self) -> "str | Promise":
        """A sentence or two for people, with what they can do."""
        if self.job.state == JobState.FAILED:
            return _FAILED.get(self.job.error_code, _OURS)
        return _RUNNING.get(self.phase) or _ENDED[JobState(self.job.state)]

    @property
    def seconds_left(self) -> int | None:
        """Seconds that the job will probably take yet; `None`: not known, or it has ended."""
        expected = self.job.expected_at
        if expected is None or self.phase == "trouble" or not self.job.is_outstanding:
            return None
        left = round((expected - timezone.now()).total_seconds())
        return left if left > 0 else None

    @property
    def time_left(self) -> str:
        """The same for people; empty when it is not known."""
        left = self.seconds_left
        if left is None:
            return ""
        if left > _MINUTES_FROM:
            return gettext("about %(minutes)d min left") % {"minutes": round(left / 60)}
        rounded = left if left <= 10 else 5 * round(left / 5)  # it is a guess
        return gettext("about %(seconds)d s left") % {"seconds": rounded}

    @property
    def is_news(self) -> bool:
        """True if the phase is another than the page shows."""
        return self.phase != self.seen

    @property
    def refresh(self) -> int | None:
        """Seconds until a page should ask again; `None`: nothing will change.

        It costs the service nothing: that is polled when the row is due.
        """
        if not self.job.is_outstanding:
            return None
        return math.ceil(min(max(self.job.seconds_until_due, _FASTEST), _SLOWEST))

    def to_json(self) -> dict[str, Any]:
        """Return the job for programs; the prompt is not repeated."""
        job = self.job
        return {
            "id": job.pk,
            "url": self.url,
            "state": job.state,
            "status": job.status,
            "percent": job.percent,
            "seconds_left": self.seconds_left,
            "error_code": job.error_code,
            "message": self.message,
            "preview": self.preview_url,
            "image": self.image_url,
            "thumbnail": self.thumbnail_url,
            "seed": job.seed,
            "width": job.width,
            "height": job.height,
            "created_at": job.created_at,
            "finished_at": job.finished_at,
            "refresh": self.refresh,
        }
