"""The service's JSON dialect, both halves, without any I/O.

The only room that knows field names and reads status words. There is no official
specification: what is here is what several independent public clients agree on.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs

from .errors import APIResponseError, InvalidRequestError, sanitize_text
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
    "request_from_json",
    "request_to_json",
]

MAX_TASK_ID = 256  # characters; the ids that were seen are far shorter
_FAILURE = re.compile(r"(failed|cancelled|canceled|rejected)\b", re.IGNORECASE)
_WAITING = re.compile(r"queue|pending|waiting|^\W*\d+\W*$", re.IGNORECASE)
_SEEDS = ("seed", "subseed")
_NAMED = tuple(
    f.name for f in attrs.fields(ImageRequest) if f.name not in ("aspect_ratio", "extra_body")
)


# The client's half -------------------------------------------------------------------


def encode_image_request(request: ImageRequest) -> bytes:
    """The body of ``POST /txt2img``. Seeds are digits in a text; `extra_body` wins."""
    body = {name: getattr(request, name) for name in _NAMED}
    body.update({name: str(body[name]) for name in _SEEDS if body[name] is not None})
    return _dump({**body, **request.extra_body})


def decode_submission(body: bytes) -> str:
    """The task id in the answer to ``POST /txt2img``.

    Raises:
        APIResponseError: There is none. ``delivered == "yes"`` when the service left it out,
            which is how it refuses; ``"maybe"`` when the answer cannot be understood.
    """
    answer = _object(body)
    if "task_id" not in answer:
        words = decode_error(body) or "no reason given"
        raise APIResponseError(f"the service refused the request: {words}", delivered="yes")
    return _task_id(answer["task_id"])


def encode_progress_query(task_id: str) -> bytes:
    """The body of ``POST /progress``."""
    return _dump({"task_id": task_id})


def decode_progress(body: bytes) -> Progress:
    """How the job stands, from the answer to ``POST /progress``.

    An image's address means done, whatever the status says; "Done" without one is a failure.
    An unknown status word means "still going".

    Raises:
        APIResponseError: The answer says nothing about a job.
    """
    answer = _object(body)
    status, fraction = _status(answer.get("status")), _fraction(answer.get("progress"))
    image_url = _address(answer.get("final_image_url"))
    if not status and fraction is None and image_url is None:
        raise APIResponseError("the answer says nothing about the job")
    return Progress(
        state=_state(status, fraction, image_url),
        status=status,
        fraction=fraction,
        preview_url=_address(answer.get("current_image_url")),
        image_url=image_url,
    )


def decode_error(body: bytes) -> str:
    """The service's own words in a refusal, shortened; empty when there are none."""
    try:
        answer = _object(body)
    except APIResponseError:
        return ""
    for name in ("error", "detail", "message", "status"):
        if isinstance(answer.get(name), str):
            return sanitize_text(answer[name])
    return ""


# The server's half -------------------------------------------------------------------


def decode_image_request(body: bytes) -> ImageRequest:
    """The request in the body of ``POST /txt2img``; unknown fields go to `extra_body`.

    Raises:
        InvalidRequestError: The body is no JSON object, or a field is wrong.
    """
    return request_from_json(_query(body))


def encode_submission(task_id: str) -> bytes:
    """The answer to an accepted ``POST /txt2img``."""
    return _dump({"task_id": task_id})


def decode_progress_query(body: bytes) -> str:
    """The task id that ``POST /progress`` asks for.

    Raises:
        InvalidRequestError: There is none.
    """
    try:
        return _task_id(_query(body).get("task_id"))
    except APIResponseError as exc:
        raise InvalidRequestError("task_id: must be text, not empty", field="task_id") from exc


def encode_progress(progress: Progress) -> bytes:
    """The answer to ``POST /progress``."""
    return _dump(
        {
            "status": progress.status,
            "progress": progress.fraction,
            "current_image_url": progress.preview_url,
            "final_image_url": progress.image_url,
        }
    )


def encode_error(message: str) -> bytes:
    """A refusal's body."""
    return _dump({"error": message})


# A request as JSON, for the wire and for keeping ---------------------------------------


def request_to_json(request: ImageRequest) -> dict[str, Any]:
    """The request as a JSON object, from which `request_from_json` makes an equal one."""
    answer: dict[str, Any] = json.loads(encode_image_request(request))
    return answer


def request_from_json(fields: Mapping[str, Any]) -> ImageRequest:
    """The request that a JSON object describes.

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


def _load(body: bytes) -> Any:
    """JSON or ValueError: the parser also answers deep nesting with RecursionError."""
    try:
        return _DECODER.decode(body.decode(json.detect_encoding(body)))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = _load(body)
    except ValueError as exc:
        raise APIResponseError(f"the answer is no JSON: {_glimpse(body)}") from exc
    if not isinstance(answer, dict):
        raise APIResponseError(f"the answer is no JSON object: {_glimpse(body)}")
    return answer


def _query(body: bytes) -> dict[str, Any]:
    try:
        fields = _load(body)
    except ValueError as exc:
        raise InvalidRequestError("the body is no JSON") from exc
    if not isinstance(fields, dict):
        raise InvalidRequestError("the body is no JSON object")
    return fields


def _glimpse(body: bytes) -> str:
    return repr(sanitize_text(body[:200].decode("utf-8", "replace"), 60)) if body else "it is empty"


def _task_id(value: object) -> str:
    """A task id that can be asked for; what the service means by it is its own business."""
    if not isinstance(value, str) or not value.strip():
        raise APIResponseError(f"the task id is no text: {sanitize_text(repr(value), 40)}")
    if len(value) > MAX_TASK_ID or not value.isprintable():
        raise APIResponseError(f"the task id cannot be used: {sanitize_text(value, 40)}")
    return value


def _digits(name: str, value: object) -> object:
    """Seeds travel as text; a number is taken too, as a lenient server would."""
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,20}", value):
            raise InvalidRequestError(f"{name}: must be digits in a text", field=name)
        return int(value)
    return value


def _status(value: object) -> str:
    """The status as text; a bare number is a queue position, anything else says nothing."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return sanitize_text(value)
    return ""


def _fraction(value: object) -> float | None:
    """0.0 to 1.0, also from ``"0.5"`` and ``"50%"``; `None` for what makes no sense."""
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
