"""The service's JSON dialect, for client and server, without any I/O.

The only module that knows field names and reads status words. There is no official
specification: the fields are those on which several independent public clients agree.
"""

import json
import re
import string
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs

from ._json import Answer, parse_answer
from ._redact import sanitize_text
from .errors import APIResponseError, InvalidRequestError
from .models import ImageRequest, Progress, State

__all__ = [
    "decode_error",
    "decode_image_request",
    "decode_progress",
    "decode_progress_query",
    "decode_submission",
    "encode_error",
    "encode_image_request",
    "encode_progress",
    "encode_progress_query",
    "encode_submission",
    "find_task_id",
    "request_from_json",
    "request_to_json",
]

MAX_TASK_ID = 4096  # characters; the ids that were seen are far shorter
_PROGRESS = ("status", "progress", "current_image_url", "final_image_url")
_REASONS = ("error", "detail", "message", "status")
_MENTIONS_ID = re.compile(r"task.?id", re.IGNORECASE)
_FAILURE = re.compile(r"(failed|cancelled|canceled|rejected)\b", re.IGNORECASE)
_WAITING = re.compile(r"queue|pending|waiting|^\W*\d+\W*$", re.IGNORECASE)
_SEEDS = ("seed", "subseed")
_NAMED = tuple(
    f.name for f in attrs.fields(ImageRequest) if f.name not in ("aspect_ratio", "extra_body")
)


# The client's half -------------------------------------------------------------------


def encode_image_request(request: ImageRequest) -> bytes:
    """Return the body of ``POST /txt2img``. Seeds are text; `extra_body` is merged last."""
    body = {name: getattr(request, name) for name in _NAMED}
    body.update({name: str(body[name]) for name in _SEEDS if body[name] is not None})
    return _dump({**body, **request.extra_body})


def decode_submission(body: bytes) -> str:
    """Return the task id in the answer to ``POST /txt2img``, whatever stands around it.

    Raises:
        APIResponseError: There is none. ``delivered == "yes"`` when the answer is one JSON object
            that does not mention a task id, which is how the service refuses; ``"maybe"``
            otherwise.
    """
    answer = parse_answer(body, ["task_id"])
    task_id = _first_task_id(answer)
    if task_id is not None:
        return task_id
    if _is_refusal(answer):
        reason = decode_error(body) or "no reason given"
        raise APIResponseError(f"the service refused the request: {reason}", delivered="yes")
    raise APIResponseError(f"no usable task id in the answer: {_excerpt(answer.text)}")


def find_task_id(body: bytes) -> str | None:
    """Return the task id in any answer, or `None`."""
    return _first_task_id(parse_answer(body, ["task_id"]))


def encode_progress_query(task_id: str) -> bytes:
    """Return the body of ``POST /progress``."""
    return _dump({"task_id": task_id})


def decode_progress(body: bytes) -> Progress:
    """Return the state of a job, from the answer to ``POST /progress``.

    An image's URL means done, whatever the status says; "Done" without one is a failure. An
    unknown status means that the job is still running.

    Raises:
        APIResponseError: The answer says nothing about a job.
    """
    answer = parse_answer(body, _PROGRESS)
    found = [_progress(fields) for fields in answer.objects(stop_at="error")]
    useful = [each for each in found if each.status or each.fraction is not None or each.image_url]
    if not useful:
        raise APIResponseError(f"the answer says nothing about the job: {_excerpt(answer.text)}")
    return next((each for each in useful if each.image_url), useful[0])


def decode_error(body: bytes) -> str:
    """Return the service's own words in a refusal, shortened; empty when there are none."""
    for fields in parse_answer(body).objects():
        for name in _REASONS:
            if isinstance(fields.get(name), str):
                return sanitize_text(fields[name])
    return ""


# The server's half -------------------------------------------------------------------


def decode_image_request(body: bytes) -> ImageRequest:
    """Return the request in the body of ``POST /txt2img``; unknown fields go to `extra_body`.

    Raises:
        InvalidRequestError: The body is not a JSON object, or a field is wrong.
    """
    return request_from_json(_query(body))


def encode_submission(task_id: str) -> bytes:
    """Return the answer to an accepted ``POST /txt2img``."""
    return _dump({"task_id": task_id})


def decode_progress_query(body: bytes) -> str:
    """Return the task id that ``POST /progress`` asks for.

    Raises:
        InvalidRequestError: There is none.
    """
    task_id = _task_id(_query(body).get("task_id"))
    if task_id is None:
        raise InvalidRequestError("task_id: must be text, not empty", field="task_id")
    return task_id


def encode_progress(progress: Progress, *, info: Mapping[str, Any] | None = None) -> bytes:
    """Return the answer to ``POST /progress``; `info` says how the image was made, if known."""
    answer = {
        "status": progress.status,
        "progress": progress.fraction,
        "current_image_url": progress.preview_url,
        "final_image_url": progress.image_url,
    }
    return _dump(answer if info is None else {**answer, "info": dict(info)})


def encode_error(message: str) -> bytes:
    """Return the body of a refusal."""
    return _dump({"error": message})


# A request as JSON, for the wire and for keeping ---------------------------------------


def request_to_json(request: ImageRequest) -> dict[str, Any]:
    """Return the request as a JSON object; `request_from_json` is the inverse."""
    answer: dict[str, Any] = json.loads(encode_image_request(request))
    return answer


def request_from_json(fields: Mapping[str, Any]) -> ImageRequest:
    """Return the request that a JSON object describes.

    Raises:
        InvalidRequestError: A field is wrong.
    """
    if "prompt" not in fields:
        raise InvalidRequestError("prompt: is required", field="prompt")
    named = {name: fields[name] for name in _NAMED if name in fields}
    named.update({name: _digits(name, named[name]) for name in _SEEDS if name in named})
    extra = {name: value for name, value in fields.items() if name not in _NAMED}
    return ImageRequest(**named, extra_body=extra)


# Reading what a peer says ---------------------------------------------------------------


def _dump(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _query(body: bytes) -> dict[str, Any]:
    """Parse what a client sends, strictly: it has not paid for anything yet."""
    try:
        fields = _DECODER.decode(body.decode(json.detect_encoding(body)))
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError("the body is not JSON") from exc
    if not isinstance(fields, dict):
        raise InvalidRequestError("the body is not a JSON object")
    return fields


def _excerpt(text: str) -> str:
    return repr(sanitize_text(text)) if text else "it is empty"


def _first_task_id(answer: Answer) -> str | None:
    ids = (_task_id(fields.get("task_id")) for fields in answer.objects(stop_at="error"))
    return next((task_id for task_id in ids if task_id is not None), None)


def _task_id(value: object) -> str | None:
    """Return a task id that can be used in a request; its meaning is the service's."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    task_id = value if value.isprintable() else value.strip("\0" + string.whitespace)
    usable = task_id.strip() and task_id.isprintable() and len(task_id) <= MAX_TASK_ID
    return task_id if usable else None


def _is_refusal(answer: Answer) -> bool:
    is_object = answer.is_whole and isinstance(answer.values[0], dict)
    return is_object and not _MENTIONS_ID.search(answer.text)


def _digits(name: str, value: object) -> object:
    """Return a seed as a number; it may be given as digits in a text or as a number."""
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,20}", value):
            raise InvalidRequestError(f"{name}: must be digits in a text", field=name)
        return int(value)
    return value


def _status(value: object) -> str:
    """Return the status as text; a bare number is a queue position."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return sanitize_text(value)
    return ""


def _fraction(value: object) -> float | None:
    """Return 0.0 to 1.0, also for ``"0.5"`` and ``"50%"``; `None` for anything else."""
    try:
        if isinstance(value, str):
            number = float(value[:-1]) / 100 if value.endswith("%") else float(value[:20])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return number if 0.0 <= number <= 1.0 else None


def _progress(fields: Mapping[str, Any]) -> Progress:
    status, fraction = _status(fields.get("status")), _fraction(fields.get("progress"))
    image_url = _address(fields.get("final_image_url"))
    return Progress(
        state=_state(status, fraction, image_url),
        status=status,
        fraction=fraction,
        preview_url=_address(fields.get("current_image_url")),
        image_url=image_url,
    )


def _address(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _state(status: str, fraction: float | None, image_url: str | None) -> State:
    if image_url:
        return State.DONE
    if status.lower() == "done" or "error" in status.lower() or _FAILURE.match(status):
        return State.FAILED
    if _WAITING.search(status) and not fraction:
        return State.QUEUED
    return State.RUNNING
