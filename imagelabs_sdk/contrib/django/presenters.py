"""What a page tells of a job, in words and numbers. Asks nobody."""

import hashlib
import math
from typing import Any

import attrs
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from .models import AbstractImageJob, JobState

__all__ = ["JobPresenter"]

_FASTEST, _SLOWEST = 1, 3  # seconds between two polls of a page at its row
_TROUBLE = 3  # polls that failed in a row before anybody is told

_RUNNING = {
    "submitting": _("Your request is on its way."),
    "waiting": _("Waiting for its turn."),
    "drawing": _("Being drawn."),
    "trouble": _("This takes longer than usual. We keep trying."),
}
_ENDED = {
    JobState.DONE: _("Your image is ready."),
    JobState.UNKNOWN: _(
        "We cannot tell whether the service took your request. It is not sent again by itself, "
        "so that nothing is drawn twice. Ask again if you do not mind that."
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
    "JobTimeoutError": _TOO_LONG,
    "JobStalledError": _UNREACHABLE,
    "DownloadError": _("It was drawn, but could not be fetched. Try again later."),
}
_OURS = _("Something went wrong on our side. Try again later.")


@attrs.frozen
class JobPresenter:
    """A job as ``imagelabs/_job.html`` shows it.

    The pages of its image and its preview are below its own: ``image/`` and ``preview/``.

    Attributes:
        job: Its row.
        seen: The phase that the page shows already; only another one is said aloud.
        shown: The `preview_key` of what it shows, which stays until the next is loaded.
    """

    job: AbstractImageJob
    seen: str = ""
    shown: str = ""

    @property
    def key(self) -> str:
        """The job's, as text."""
        return str(self.job.pk)

    @property
    def url(self) -> str:
        """The job's page."""
        return self.job.get_absolute_url()

    @property
    def image_url(self) -> str | None:
        """Of the finished image, on this site; `None` until it is stored."""
        return f"{self.url}image/" if self.job.image else None

    @property
    def preview_url(self) -> str | None:
        """Of the half-drawn image, on this site; another one when that has changed."""
        return f"{self.url}preview/?{self.preview_key}" if self.job.preview_url else None

    @property
    def preview_key(self) -> str:
        """Stands for the service's address of the preview, and does not tell it."""
        return hashlib.sha256(self.job.preview_url.encode()).hexdigest()[:16]

    @property
    def phase(self) -> str:
        """What a person can tell apart; the state, and while it runs, how."""
        job = self.job
        if job.state != JobState.RUNNING:
            return str(job.state)
        if job.failures >= _TROUBLE:
            return "trouble"
        return "drawing" if job.fraction else "waiting"

    @property
    def message(self) -> "str | Promise":
        """A sentence or two for people, with what they can do."""
        if self.job.state == JobState.FAILED:
            return _FAILED.get(self.job.error_code, _OURS)
        return _RUNNING.get(self.phase) or _ENDED[JobState(self.job.state)]

    @property
    def is_news(self) -> bool:
        """Whether the phase is another than the page shows."""
        return self.phase != self.seen

    @property
    def refresh(self) -> int | None:
        """Seconds until a page should ask again; `None`: nothing will change.

        Asking costs the service nothing: it is polled when the row says so.
        """
        if not self.job.is_outstanding:
            return None
        return math.ceil(min(max(self.job.seconds_until_due, _FASTEST), _SLOWEST))

    def to_json(self) -> dict[str, Any]:
        """For programs; the prompt is not repeated."""
        job = self.job
        return {
            "id": job.pk,
            "url": self.url,
            "state": job.state,
            "status": job.status,
            "percent": job.percent,
            "error_code": job.error_code,
            "message": self.message,
            "preview": self.preview_url,
            "image": self.image_url,
            "seed": job.seed,
            "width": job.width,
            "height": job.height,
            "created_at": job.created_at,
            "finished_at": job.finished_at,
            "refresh": self.refresh,
        }
