"""Images that Celery workers save (extra ``celery``), for projects without Django.

The caller submits, once; a task polls the job and saves its image:

    from imagelabs_sdk.contrib.celery import save_image

    job = client.submit("a lighthouse")
    work = job.to_dict(), "/srv/1.png"
    result = save_image.apply_async(work, countdown=job.next_poll_in)
    result.get()  # "/srv/1.png"

There is no task that submits: its message may be delivered twice, and would buy twice.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from imagelabs_sdk import (
    APIStatusError,
    ChallengeError,
    DownloadError,
    ImageLabs,
    ImageLabsError,
    Job,
    JobError,
    JobTimeoutError,
    after_failures,
)
from imagelabs_sdk._extras import needs_extra

with needs_extra("celery"):
    from celery import Task, shared_task

__all__ = ["ImageTask", "save_image"]

_MAX_CHALLENGES = 2  # since the last answered poll: waiting does not pass its check
_MAX_DOWNLOADS = 4  # failures in a row, when it is the finished image that cannot be had
_PAUSE = 2.0  # seconds after a failed download; also what a direct call has if it is late


class ImageTask(Task):  # type: ignore[type-arg]  # Celery 5.4 cannot subscribe it
    """The base of `save_image`. No log, event or monitor is shown its arguments.

    A client with settings of its own is given to it in Celery's way; workers may inherit it:

        app.conf.task_annotations = {"imagelabs.save_image": {"client": ImageLabs(timeout=900)}}
    """

    @cached_property
    def client(self) -> ImageLabs:
        """Has the settings of the environment, ``IMAGELABS_*``, as of a process's first task."""
        return ImageLabs()

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Send the message, as any task's; also `delay`, links and retries come through here."""
        hidden = {"argsrepr": "(...)", "kwargsrepr": "{...}"}  # a retry forgets the caller's
        return super().apply_async(*args, **{**hidden, **options})


@shared_task(
    bind=True,
    base=ImageTask,
    name="imagelabs.save_image",
    max_retries=None,
    acks_late=True,
    reject_on_worker_lost=True,
)
def save_image(  # noqa: D417 - Celery passes self
    self: ImageTask, job: dict[str, Any], path: str, failures: int = 0, challenges: int = 0
) -> str:
    """Poll once; save the image if it is there, else plan the next poll by ``retry``.

    It ends when the client's `timeout` has passed since the submit; a message that comes later
    still polls once. So `job` is worth sending again, after any error, on any day. A message
    that is delivered twice buys nothing: it polls, saves the same file and calls links again.
    To revoke it ends our polls alone: the service cannot cancel. Called directly or eagerly, it
    waits where it is. In JSON, an error of ours keeps its class and its text, which names the
    job; no more.

    Limits: each poll is a message; that suits hundreds of images at a time, not thousands.
    Between polls a worker holds it in memory (``worker_eta_task_limit``), by default for up to
    15 seconds, 60 if the service asks. The broker's visibility timeout must be longer, or
    messages multiply; it is also what Redis (by default an hour) and SQS wait after a kill -9.
    Time limits must leave room for a poll and three attempts to fetch the image, each of up
    to `request_timeout`. Polling sees the latest poll alone: `Backoff` does not grow.

    Args:
        job: As `Job.to_dict` gives it, of the service that the worker's client uses. It holds
            the prompt, and so do the broker and, with ``result_extended``, the results.
        path: As in `GeneratedImage.save`, on the worker's machine. The result is where it is.
        failures: How many polls in a row have failed; for retries alone.
        challenges: How many of them Cloudflare answered; for retries alone.

    Raises:
        JobFailedError, JobTimeoutError: As in `Job.wait`.
        JobError: The service refuses to tell (it has forgotten the task, say).
        DownloadError: The image could not be fetched, several times in a row.
        InvalidRequestError: `job` is of another service, or `path` cannot be written.
        OSError: The disk did not take it.
    """
    with _fit_for_results():
        accepted = self.client.job_from_dict(job)
        left = _left(self.client, accepted)
        if self.request.called_directly or self.request.is_eager:
            return str(accepted.result(timeout=max(left, _PAUSE)).save(path))
        trouble: ImageLabsError | None
        try:
            result = accepted.poll()
            if result.next_poll_in is None:
                return str(accepted.image().save(path))
            pause, trouble = result.next_poll_in, result.error
        except DownloadError as error:
            pause, trouble = _PAUSE, error
        failures = 0 if trouble is None else failures + 1
        challenges = min(challenges, failures) + isinstance(trouble, ChallengeError)
        _raise_if_over(accepted, left, trouble, failures, challenges)
    if trouble is not None:
        pause, trouble = after_failures(failures, pause, 0.0), _fit(trouble)
    message, pause = (accepted.to_dict(), path), min(pause, left)
    counts = {"failures": failures, "challenges": challenges}
    raise self.retry(message, counts, exc=trouble, countdown=pause)


def _left(client: ImageLabs, job: Job) -> float:
    """Seconds of the client's `timeout` that are left of those since the submit."""
    return client.deadline().remaining() - max(0.0, time.time() - job.submitted_at)


def _raise_if_over(
    job: Job, left: float, trouble: ImageLabsError | None, failures: int, challenges: int
) -> None:
    if isinstance(trouble, ChallengeError) and challenges >= _MAX_CHALLENGES:
        raise trouble
    if isinstance(trouble, DownloadError) and (failures >= _MAX_DOWNLOADS or left <= 0.0):
        raise trouble
    if left <= 0.0:
        waited = time.time() - job.submitted_at
        how = f"cannot reach the service ({trouble.message})" if trouble else "still running"
        text = f"{how} after {waited:.0f} s; it may yet finish: send the job's description again"
        raise JobTimeoutError(text, task_id=job.id, waited=waited) from trouble


def _fit(error: ImageLabsError) -> ImageLabsError:
    """Without the job, which knows cookies; from JSON, errors are made anew by `args` alone."""
    error.job, error.args = None, (str(error),)
    return error


@contextmanager
def _fit_for_results() -> Iterator[None]:
    try:
        yield
    except APIStatusError as error:  # it needs a status, too, to be made anew
        raise _fit(JobError(error.message, task_id=error.task_id)) from error
    except ImageLabsError as error:
        raise _fit(error)  # noqa: B904 - it is the same error
