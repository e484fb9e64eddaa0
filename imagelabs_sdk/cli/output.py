"""Write results to stdout and messages to stderr; describe an image in words and in JSON."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import attrs

from .. import GeneratedImage, ImageRequest, Progress

__all__ = [
    "describe_image",
    "describe_progress",
    "escape_unencodable",
    "image_facts",
    "print_bytes",
    "print_result",
    "request_facts",
    "say",
    "to_json",
]


def escape_unencodable() -> None:
    """Let stdout and stderr escape characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        # A stream that was replaced may lack the method; one that was closed is None.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Write one line for a person to stderr; do nothing if stderr is closed or full.

    A message that nobody can read must not end a command that has bought an image.
    """
    with suppress(OSError):
        _write(sys.stderr, line + "\n")


def print_result(line: str) -> None:
    """Write one line to stdout.

    Raises:
        OSError: It cannot be written; the error's `filename` is ``"stdout"``.
    """
    _write_result(sys.stdout, line + "\n")


def print_bytes(content: bytes) -> None:
    """Write an image's bytes to stdout. Errors as in `print_result`."""
    if sys.stdout is not None:
        _write_result(sys.stdout.buffer, content)


def _write_result(stream: IO[Any] | None, content: str | bytes) -> None:
    try:
        _write(stream, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error


def _write(stream: IO[Any] | None, content: str | bytes) -> None:
    if stream is None:  # closed by the parent process, which wants none of it
        return
    try:
        stream.write(content)
        stream.flush()
    except OSError:
        _discard(stream)
        raise


def _discard(stream: IO[Any]) -> None:
    """Send what is left in the buffer to the null device, or Python fails again at its exit."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


# An image in words and in JSON ----------------------------------------------------------------


def to_json(facts: Mapping[str, Any]) -> str:
    """Return one JSON object in one line."""
    return json.dumps(facts)


def image_facts(image: GeneratedImage, path: Path) -> dict[str, Any]:
    """Return what ``--json`` prints about a saved image."""
    return {
        "path": str(path),
        "task_id": image.task_id,
        "url": image.url,
        **request_facts(image.request),
        "timings": attrs.asdict(image.timings),
        "metadata": dict(image.job.metadata),
    }


def request_facts(request: ImageRequest | None) -> dict[str, int | None]:
    """Return seeds and size; each is `None` when the job was submitted elsewhere."""
    return {name: getattr(request, name, None) for name in ("seed", "subseed", "width", "height")}


def describe_image(image: GeneratedImage) -> str:
    """Return seeds, size and time in one line."""
    request, seconds = image.request, f"{image.timings.total:.1f} s"
    if request is None:
        return seconds
    seeds = f"seed {request.seed}, subseed {request.subseed}"
    return f"{seeds}, {request.width}x{request.height} pixels, {seconds}"


def describe_progress(progress: Progress) -> str:
    """Return the job's state, and the service's own word where it says more."""
    state, word = progress.state.value, progress.status
    return state if word.lower() in ("", state) else f"{state} ({word})"
