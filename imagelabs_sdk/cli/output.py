"""Write results to stdout and messages to stderr; describe an image in words and in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from .. import GeneratedImage, ImageRequest, Progress

__all__ = [
    "describe_image",
    "describe_progress",
    "image_facts",
    "print_json",
    "print_path",
    "print_result",
    "request_facts",
    "say",
]


def say(line: str) -> None:
    """Write one line for a person to stderr; stdout is kept for results."""
    click.echo(line, err=True)


def print_result(line: str) -> None:
    """Write one line to stdout."""
    click.echo(line)


def print_path(path: Path) -> None:
    """Write a file's path to stdout."""
    print_result(click.format_filename(path))


def print_json(facts: Mapping[str, Any]) -> None:
    """Write one JSON object in one line to stdout."""
    print_result(json.dumps(facts))


def image_facts(image: GeneratedImage, path: Path) -> dict[str, Any]:
    """Return what ``--json`` prints about a saved image."""
    return {
        "path": str(path),
        "task_id": image.task_id,
        "url": image.url,
        **request_facts(image.request),
        "timings": attrs.asdict(image.timings),
    }


def request_facts(request: ImageRequest | None) -> dict[str, int | None]:
    """Return seeds and size; each is `None` when the job was submitted elsewhere."""
    return {name: getattr(request, name, None) for name in ("seed", "subseed", "width", "height")}


def describe_image(image: GeneratedImage) -> str:
    """Return seed, size and time in one line."""
    request, seconds = image.request, f"{image.timings.total:.1f} s"
    if request is None:
        return seconds
    return f"seed {request.seed}, {request.width}x{request.height} pixels, {seconds}"


def describe_progress(progress: Progress) -> str:
    """Return the job's state, and the service's own word where it says more."""
    state, word = progress.state.value, progress.status
    return state if word.lower() in ("", state) else f"{state} ({word})"
