"""One image: submit the job, wait for it, save the image, report it."""

import time

from .. import (
    ChallengeError,
    Deadline,
    DownloadError,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    Job,
    JobStalledError,
    JobTimeoutError,
)
from .display import StateLines, show_bar
from .exits import exit_with_hint
from .options import CommonOptions
from .output import (
    describe_image,
    image_facts,
    print_json,
    print_path,
    print_result,
    request_facts,
    say,
)

__all__ = ["generate_one", "wait_for_one"]

_RESUMABLE = (
    KeyboardInterrupt,
    JobTimeoutError,
    JobStalledError,
    ChallengeError,
    DownloadError,
    InvalidRequestError,  # the output folder was removed meanwhile
    OSError,
)
"""Errors after which the service still has the job."""


def generate_one(request: ImageRequest, options: CommonOptions, *, no_wait: bool) -> None:
    """Submit one request, then save its image, or print the task id if `no_wait` is True."""
    request = request.with_seeds()
    options = options.with_output(f"imagelabs-{request.seed}")
    deadline = Deadline.after(options.timeout)
    with options.make_client() as client:
        job = _submit(client, request, options)
        if no_wait:
            _report_accepted(job, options)
        else:
            say(f"task {job.id}: accepted")
            _wait_and_save(job, options, deadline)


def wait_for_one(task_id: str, options: CommonOptions) -> None:
    """Save the image of a job that was submitted before."""
    options = options.with_output(time.strftime("imagelabs-%Y%m%d-%H%M%S"))
    deadline = Deadline.after(options.timeout)
    with options.make_client() as client:
        _wait_and_save(client.get_job(task_id), options, deadline)


def _submit(client: ImageLabs, request: ImageRequest, options: CommonOptions) -> Job:
    hint = "No task id had arrived yet: it is unknown if the service accepted the job."
    with exit_with_hint(hint, KeyboardInterrupt), show_bar("submitting"):
        return client.submit(request, timeout=options.timeout)


def _report_accepted(job: Job, options: CommonOptions) -> None:
    if options.as_json:
        print_json({"task_id": job.id, **request_facts(job.request)})
    else:
        print_result(job.id)
    say(options.resume_hint(job.id))


def _wait_and_save(job: Job, options: CommonOptions, deadline: Deadline) -> None:
    assert options.output is not None
    with exit_with_hint(options.resume_hint(job.id), *_RESUMABLE), show_bar("waiting") as show:
        left = deadline.remaining()
        image = job.result(timeout=left, on_progress=show or StateLines(job.id))
        path = image.save(options.output)
    if options.as_json:
        print_json(image_facts(image, path))
    else:
        print_path(path)
        say(describe_image(image))
