"""One image: submit the job, wait for it, save the image, report it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import (
    ChallengeError,
    Deadline,
    DownloadError,
    GeneratedImage,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    Job,
    JobStalledError,
    JobTimeoutError,
    Progress,
)
from .display import show_job
from .exits import exit_with_hint, report_error, require_extra
from .interrupts import cancel_jobs, offer_to_cancel
from .options import CommonOptions
from .output import (
    describe_image,
    image_facts,
    print_bytes,
    print_result,
    request_facts,
    say,
    to_json,
)
from .runtime import current_runtime

if TYPE_CHECKING:
    from .preview import PreviewPane

__all__ = ["generate_one", "wait_for_one"]

_RESUMABLE = (
    JobTimeoutError,
    JobStalledError,
    ChallengeError,
    DownloadError,
    InvalidRequestError,  # the output folder was removed meanwhile
    OSError,
)
"""Errors after which the service still has the job."""


def generate_one(
    request: ImageRequest, options: CommonOptions, *, no_wait: bool, labels: Mapping[str, str]
) -> None:
    """Submit one request, then save its image, or print the task id if `no_wait` is True."""
    request = request.with_seeds()
    options = options.with_output(f"imagelabs-{request.seed}")
    with options.make_client(one_job=True) as client:
        deadline = client.deadline(options.timeout)
        job = _submit(client, request, deadline, labels)
        say(f"task {job.id}: accepted")  # before anything else that may fail
        if no_wait:
            _report_accepted(job, options)
        else:
            _wait_and_save(job, options, deadline)


def wait_for_one(task_id: str, options: CommonOptions) -> None:
    """Save the image of a job that was submitted before."""
    options = options.with_output(time.strftime("imagelabs-%Y%m%d-%H%M%S"))
    with options.make_client(one_job=True) as client:
        deadline = client.deadline(options.timeout)
        _wait_and_save(client.get_job(task_id), options, deadline)


def _submit(
    client: ImageLabs, request: ImageRequest, deadline: Deadline, labels: Mapping[str, str]
) -> Job:
    hint = "No task id had arrived yet: it is unknown if the service accepted the job."
    with exit_with_hint(hint, KeyboardInterrupt), show_job("submitting"):
        return client.submit(request, timeout=deadline, metadata=labels)


def _report_accepted(job: Job, options: CommonOptions) -> None:
    facts = {"task_id": job.id, **request_facts(job.request), "metadata": dict(job.metadata)}
    say(options.resume_hint(job.id))
    print_result(to_json(facts) if options.as_json else job.id)


def _wait_and_save(job: Job, options: CommonOptions, deadline: Deadline) -> None:
    try:
        image, path = _wait(job, options, deadline)
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(_report_interrupt(error, job, options)) from error
    if path is not None:
        with exit_with_hint(f"The image is saved: {path}", OSError):
            print_result(to_json(image_facts(image, path)) if options.as_json else str(path))
    say(describe_image(image))


def _wait(
    job: Job, options: CommonOptions, deadline: Deadline
) -> tuple[GeneratedImage, Path | None]:
    resumable = not options.embedded
    pane = _preview_pane(options)
    with (
        exit_with_hint(options.resume_hint(job.id), *_RESUMABLE, resumable=resumable),
        show_job("waiting", job.id, pane.get_drawing if pane else None) as show,
    ):

        def show_poll(progress: Progress) -> None:
            show(progress)
            if pane is not None:
                pane.show_preview(job)

        image = job.result(timeout=deadline, on_progress=show_poll)
        path = _save(image, options)
    if pane is not None:
        pane.print_image(image)
    return image, path


def _preview_pane(options: CommonOptions) -> "PreviewPane | None":
    """Return where previews are drawn, if they are wanted and the terminal has colours."""
    if not options.preview:
        return None
    with require_extra("server"):
        from .preview import PreviewPane  # needs an extra that others do without
    console = current_runtime().bar_console()
    return None if console is None or console.color_system is None else PreviewPane(console)


def _report_interrupt(error: KeyboardInterrupt, job: Job, options: CommonOptions) -> int:
    """Report Ctrl-C or a signal, and cancel the job if the user wants that."""
    jobs = {} if options.embedded else {0: job}
    if options.cancel_on_interrupt and cancel_jobs(jobs):
        return report_error(error, hint="The job was cancelled: there is nothing to resume.")
    code = report_error(error, hint=options.resume_hint(job.id))
    if not options.cancel_on_interrupt and type(error) is KeyboardInterrupt:
        offer_to_cancel(jobs)
    return code


def _save(image: GeneratedImage, options: CommonOptions) -> Path | None:
    """Save the image; return its path, or `None` if it went to stdout."""
    assert options.output is not None
    if options.to_stdout:
        print_bytes(image.read())
        return None
    return image.save(options.output)
