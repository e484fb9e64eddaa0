"""A fake service as a file of JSON, for `imagelabs serve --script`.

    {
        "every_job": [{"queued": 2}, {"progress": [0.1, 0.6]}, "done"],
        "jobs": [
            {"prompt": "a cat", "script": [{"fails": "NSFW"}]},
            {"script": [{"rate_limited": {"retry_after": 3}}]}
        ]
    }

A step is the name of a method of `JobScript`; or an object with that name and its argument: a
list for several, an object for named ones.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import InvalidRequestError
from ..validation import invalid
from .clock import SystemClock
from .script import JobScript
from .service import FakeService
from .sockets import serve_in_thread

__all__ = ["load_scenario", "serve_scenario"]

_WORDS = {
    *("queued", "progress", "takes", "never_finishes", "done", "fails", "rate_limited", "refuses"),
    *("challenge", "html", "drops_connection", "hangs", "link_expires", "half_image"),
}


def serve_scenario(
    path: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], object],
) -> None:
    """Play the script in a file over HTTP until Ctrl-C.

    Args:
        path: Of the file.
        host: Where to listen.
        port: 0: any that is free.
        on_ready: Called with the address, once it is listening.

    Raises:
        InvalidRequestError: The file is no script.
        OSError: It cannot be read, or the address cannot be listened at.
    """
    service = load_scenario(path)
    with suppress(KeyboardInterrupt), serve_in_thread(service, host=host, port=port) as url:
        on_ready(url)
        while True:
            time.sleep(60)


def load_scenario(path: str | os.PathLike[str]) -> FakeService:
    """Return the service that a file describes, by real time.

    Raises:
        InvalidRequestError: It is no script; the message says where.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        try:
            told = json.load(file)
        except ValueError as exc:
            raise InvalidRequestError(f"script: is no JSON: {exc}", field="script") from exc
    service = FakeService(clock=SystemClock())
    fields = _object("script", told, {"every_job", "jobs"})
    _play(service, "every_job", fields.get("every_job", []))
    for number, entry in enumerate(_list("jobs", fields.get("jobs", []))):
        where = f"jobs[{number}]"
        job = _object(where, entry, {"prompt", "script"})
        prompt = job.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            raise invalid(f"{where}.prompt", prompt, "must be text")
        _play(service.job(prompt), f"{where}.script", job.get("script", []))
    return service


def _play(script: JobScript, where: str, steps: object) -> None:
    for number, step in enumerate(_list(where, steps)):
        _add(script, f"{where}[{number}]", step)


def _add(script: JobScript, where: str, step: object) -> None:
    name, argument = step, None
    if isinstance(step, Mapping) and len(step) == 1:
        name, argument = next(iter(step.items()))
    if not isinstance(name, str) or name not in _WORDS:
        raise invalid(where, step, f"must be a step: {', '.join(sorted(_WORDS))}")
    named = argument if isinstance(argument, Mapping) else {}
    given = argument if isinstance(argument, list) else [argument]
    try:
        getattr(script, name)(*([] if named or argument is None else given), **named)
    except TypeError as exc:
        raise invalid(where, step, f"does not take that: {exc}") from exc
    except InvalidRequestError as exc:
        raise InvalidRequestError(f"{where}: {exc.message}", field=where) from exc


def _object(where: str, value: object, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise invalid(where, value, "must be an object")
    for name in value.keys() - known:
        raise invalid(where, name, f"has only {', '.join(sorted(known))}")
    return value


def _list(where: str, value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        raise invalid(where, value, "must be a list")
    return value
