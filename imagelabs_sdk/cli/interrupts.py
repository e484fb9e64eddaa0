"""After Ctrl-C: cancel jobs at the service, where it can, if the user wants that."""

from collections.abc import Mapping

from .. import ImageLabsError, Job
from .output import say
from .runtime import current_runtime

__all__ = ["cancel_jobs", "offer_to_cancel"]

_TIMEOUT = 5.0  # seconds for one request that cancels
_OFFER = 2.0  # seconds for a second Ctrl-C


def cancel_jobs(jobs: Mapping[int, Job]) -> set[int]:
    """Ask the service to cancel these jobs; return the keys of those that are cancelled.

    Another Ctrl-C ends the asking. What cannot be cancelled is said once.
    """
    cancelled = set()
    for key, job in jobs.items():
        try:
            if job.cancel(timeout=_TIMEOUT):
                cancelled.add(key)
        except (ImageLabsError, KeyboardInterrupt) as error:
            say(f"Not cancelled: {str(error) or 'interrupted'}")
            break
    if cancelled:
        say(f"{len(cancelled)} cancelled at the service.")
    return cancelled


def offer_to_cancel(jobs: Mapping[int, Job]) -> None:
    """Let a person at a terminal cancel the jobs with a second Ctrl-C, where the service can."""
    able = {key: job for key, job in jobs.items() if job.can_cancel and not job.done}
    if not able or current_runtime().bar_console() is None:
        return
    try:
        say("To cancel at the service: Ctrl-C again, now.")
        current_runtime().sleep(_OFFER)
    except KeyboardInterrupt:
        cancel_jobs(able)
