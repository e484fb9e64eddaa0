"""The service's JSON dialect, for client and server, without any I/O.

The only module that knows field names and reads status words. There is no official
specification: the fields are those on which several independent public clients agree.
"""

import enum
import functools
import hashlib
import json
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import attrs

from . import urls
from ._json import Answer, objects_in, parse_answer
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
    "fingerprint",
    "is_moderation",
    "is_object",
    "merge_progress",
    "progress_from_json",
    "progress_to_json",
    "request_from_json",
    "request_to_json",
]

MAX_TASK_ID = 4096  # characters; the ids that were seen are far shorter
_PROGRESS = ("status", "progress", "current_image_url", "final_image_url", "task_id")
_REASONS = ("error", "detail", "message", "status")
# An object with such a status and no image may only wrap the answer: look inside it.
_NO_WORDS = ("", "done")
_MENTIONS_ID = re.compile(r"task.?id", re.IGNORECASE)
_NUMBER = re.compile(
    r"\s*((?:[0-9]{1,400}(?:[.,][0-9]{0,400})?|[.,][0-9]{1,400})(?:e[+-]?[0-9]{1,3})?)\s*(%?)\s*",
    re.IGNORECASE,
)
_ROUNDING = 1e-6  # how far a sum of fractions may be over 1, also in single precision
_EXACT = 2**53  # larger whole numbers lose digits when they are read as floating point
# In an id: what no terminal and no log should be sent. Everything else may be part of one: emoji
# are joined by format characters, and new ones are unknown to an older Python.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WAITING = re.compile(r"queue|pending|waiting|^\W*\d+\W*$", re.IGNORECASE)
_MODERATION = re.compile(
    r"\b(moderat|nsfw|polic(y|ies)\b|safety|unsafe|censor|inappropriate|prohibited|blocked|flagged)",
    re.IGNORECASE,
)
_POSITION = re.compile(
    r"(?:position|queue|place)\D{0,20}?(\d{1,9})|^\W*(\d{1,9})\W*$", re.IGNORECASE
)
_MAX_RAW = 65_536  # bytes of an answer that is kept whole
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
        APIResponseError: There is none, or there are several beside each other, of which some may
            be somebody else's. ``delivered == "yes"`` when the answer is one JSON object that does
            not mention a task id, which is how the service refuses; ``"maybe"`` otherwise.
    """
    answer = parse_answer(body, ["task_id"])
    found = _task_ids(answer)
    if len(found) == 1:
        return found[0]
    if found:
        raise APIResponseError(f"several task ids: {sanitize_text(', '.join(map(repr, found)))}")
    if _is_refusal(answer):
        reason = decode_error(body) or "no reason given"
        raise APIResponseError(f"the service refused the request: {reason}", delivered="yes")
    raise APIResponseError(f"no usable task id in the answer: {_excerpt(answer.text)}")


def find_task_id(body: bytes) -> str | None:
    """Return the task id in any answer; `None`: there is none, or there are several."""
    found = _task_ids(parse_answer(body, ["task_id"]))
    return found[0] if len(found) == 1 else None


def is_object(body: bytes) -> bool:
    """Return True if a body is one whole JSON object."""
    answer = parse_answer(body)
    return answer.is_whole and isinstance(answer.values[0], dict)


def encode_progress_query(task_id: str) -> bytes:
    """Return the body of ``POST /progress``."""
    return _dump({"task_id": task_id})


def decode_progress(body: bytes, url: str = "", task_id: str = "") -> Progress:
    """Return the state of a job, from the answer to ``POST /progress``.

    An image's URL means done, whatever the status says; "Done" without one is a failure. An
    unknown status means that the job is still running. An object that names the job counts before
    those that name none, and one that names another job never does.

    Args:
        body: The answer.
        url: The one that answered, to which the URLs of images may be relative; empty: they
            must be absolute.
        task_id: The job that was asked for; empty: any.

    Raises:
        APIResponseError: The answer says nothing about the job.
    """
    answer = parse_answer(body, _PROGRESS)
    for objects in _about(task_id, answer):
        found = [each for fields in objects if _says_something(each := _progress(fields, url))]
        if found:
            told = next((each for each in found if each.image_url), found[0])
            return told if len(body) <= _MAX_RAW else attrs.evolve(told, raw={}, info=None)
    raise APIResponseError(f"the answer says nothing about the job: {_excerpt(answer.text)}")


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
    return request_from_json(_parse_strictly(body))


def encode_submission(task_id: str) -> bytes:
    """Return the answer to an accepted ``POST /txt2img``."""
    return _dump({"task_id": task_id})


def decode_progress_query(body: bytes) -> str:
    """Return the task id that ``POST /progress`` asks for.

    Raises:
        InvalidRequestError: There is none.
    """
    task_id = _task_id(_parse_strictly(body).get("task_id"))
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


# Requests and progress as JSON, for keeping ---------------------------------------


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


def fingerprint(request: ImageRequest) -> str:
    """Return a digest that is equal for equal requests, also in another process."""
    plain = json.dumps(request_to_json(request), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:32]


def progress_to_json(progress: Progress) -> dict[str, Any]:
    """Return what the next poll has to know of this one; `progress_from_json` is the inverse."""
    return {"status": progress.status, "progress": progress.fraction}


def progress_from_json(fields: Mapping[str, Any]) -> Progress:
    """Return the progress that a JSON object describes."""
    return _progress(fields, "")


# Reading what a peer says ---------------------------------------------------------------


def _dump(fields: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(fields).encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_ENCODER = json.JSONEncoder(separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _parse_strictly(body: bytes) -> dict[str, Any]:
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


def _task_ids(answer: Answer) -> list[str]:
    """Return the task ids that stand in no object with one of its own, each once."""

    def is_outermost(fields: Mapping[str, Any]) -> bool:
        return _is_error(fields) or _task_id(fields.get("task_id")) is not None

    named = [_task_id(each.get("task_id")) for each in answer.objects(stop_at=is_outermost)]
    found = dict.fromkeys(filter(None, named))
    return list(found) or list(filter(None, [_task_id(answer.loose.get("task_id"))]))


def _about(task_id: str, answer: Answer) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the objects that name a job, with those inside them, then all that may be about it.

    One that names another job is left out with all that is inside it.
    """
    loose = [answer.loose] if answer.loose and not _is_cut_among_several(answer.text) else []
    if not task_id or "task_id" not in answer.text:  # most answers name no job
        yield objects_in([*answer.values, *loose], stop_at=_says_all)
        return

    def name_of(fields: Mapping[str, Any]) -> str:
        return (_task_id(fields.get("task_id")) or "").lower()

    def is_other(fields: Mapping[str, Any]) -> bool:
        return name_of(fields) not in ("", task_id.lower())

    def usable(values: list[Any]) -> Iterator[dict[str, Any]]:
        found = objects_in(values, stop_at=lambda each: _says_all(each) or is_other(each))
        return (fields for fields in found if not is_other(fields))

    yield usable([each for each in answer.objects() if name_of(each) == task_id.lower()])
    # Loose fields of a text with several objects may be of several jobs.
    yield usable([*answer.values, *(loose if answer.text.count("{") == 1 else [])])


def _is_cut_among_several(text: str) -> bool:
    """Return True if an object is cut off that may be one of several, and be named behind that."""
    opened = text.count("{")
    is_list = "[" in text.partition("{")[0]
    return opened > text.count("}") and (opened > 1 or is_list)


def _task_id(value: object) -> str | None:
    """Return a task id that can be used in a request; its meaning is the service's."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    task_id = value.strip("\0" + string.whitespace) if _UNSAFE.search(value) else value
    usable = task_id.strip() and not _UNSAFE.search(task_id) and len(task_id) <= MAX_TASK_ID
    return task_id if usable else None


def _is_error(fields: Mapping[str, Any]) -> bool:
    return bool(fields.get("error"))


def _says_something(progress: Progress) -> bool:
    told = progress.status or progress.image_url or progress.refused
    return bool(told) or progress.fraction is not None


def _says_all(fields: Mapping[str, Any]) -> bool:
    """Return True if an object is the answer itself: those inside it are about other jobs."""
    waits = "final_image_url" in fields and not fields["final_image_url"]
    return _is_error(fields) or (waits and _status(fields.get("status")).lower() not in _NO_WORDS)


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
    """Return 0.0 to 1.0, or `None` for anything that is not such a number.

    A number over 1 and up to 100 is percent, and so is a text with ``%``. 1 is 100 %: the service
    counts from 0.0 to 1.0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    found = _NUMBER.fullmatch(value if isinstance(value, str) else repr(value))
    if found is None:
        return None
    number = float(found[1].replace(",", "."))
    fraction = number / 100 if found[2] or number > 1 + _ROUNDING else number
    return min(fraction, 1.0) if fraction <= 1 + _ROUNDING else None


def _progress(fields: Mapping[str, Any], url: str) -> Progress:
    status, fraction = _status(fields.get("status")), _fraction(fields.get("progress"))
    image_url, refused = _image_url(fields.get("final_image_url"), url)
    preview_url, _ = _image_url(fields.get("current_image_url"), url)
    state, info = _state(status, fraction, image_url), fields.get("info")
    return Progress(
        state=state,
        status=status,
        fraction=fraction,
        preview_url=preview_url,
        image_url=image_url,
        refused=refused,
        queue_position=_queue_position(fields, status) if state is State.QUEUED else None,
        info=info if isinstance(info, dict) else None,
        raw=fields,
    )


def _queue_position(fields: Mapping[str, Any], status: str) -> int | None:
    """Return the place in the queue, from a field of its own or from the status."""
    for name in ("queue_position", "position"):
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    found = _POSITION.search(status)
    return int(found[1] or found[2]) if found else None


def _image_url(value: object, base: str) -> tuple[str | None, str]:
    """Return an image's URL, `None` if there is none, and why the one named was refused."""
    try:
        return urls.image_url(value, base), ""
    except urls.RefusedURLError as exc:
        return None, str(exc)


def _state(status: str, fraction: float | None, image_url: str | None) -> State:
    if image_url:
        return State.DONE
    if status.lower() == "done" or _failure(status) is _Failure.CERTAIN:
        return State.FAILED
    if _WAITING.search(status) and not fraction:
        return State.QUEUED
    return State.RUNNING


# Status words -----------------------------------------------------------------------------
#
# The set of words is not known. A word that is not listed here means that the job is running.


FAILURE_WORDS = {
    # word: where it was seen
    "error errors errored": "ImageLabs: the reference client fails on a status with `error`",
    "fail failed fails failure failures": "ImageLabs: the reference client never saw it as an end",
    "cancelled canceled": "our own server; not seen at ImageLabs",
    "abort aborted": "not seen at ImageLabs; common at services of this kind",
    "expired": "not seen at ImageLabs; common at services of this kind",
    "timeout timeouts": "not seen at ImageLabs; common at services of this kind",
    "rejected": "not seen at ImageLabs; common at services of this kind",
    "moderated": "not seen at ImageLabs; common at services of this kind",
    "blocked": "not seen at ImageLabs; common at services of this kind",
    "nsfw": "not seen at ImageLabs; common at services of this kind",
}
"""The words that may say that a job failed, and where each of them was seen."""

_FAILURES = {word for words in FAILURE_WORDS for word in words.split()}
# "no" and "clear" in "no errors", "NSFW: clear"; "passed" and "check" in "NSFW check: passed";
# "checking" in "checking for errors"; "none" in "errors found: none", "0" in "errors: 0".
_NOUNS = {"error", "errors", "failure", "failures", "timeout", "nsfw"}
_NEGATIONS = {"no", "not", "non", "none", "nothing", "never", "cannot", "without", "free", "zero",
              "0"}  # fmt: skip
_FILLERS = {"a", "an", "any", "as", "of", "single", "the"}  # between a negation and its word
_NOTHING_AT_ALL = {"0", "none", "null", "nil", "false", "nothing", "undefined"}
_NOTHING = {*_NOTHING_AT_ALL, "no", "off", "ok", "clear", "clean", "safe", "passed", "approved",
            "accepted", "allowed"}  # fmt: skip
_ABSENT = {"passed", "ok", "clear", "clean", "negative", "off", "disabled", "ignored", "fixed",
           "resolved", "skipped"}  # fmt: skip
_COMPOUNDS = {"check", "checks", "checking", "checker", "filter", "filtering", "scan", "scanning",
              "detection", "detector", "score", "test", "classifier", "free", "rate", "handling",
              "correction", "diffusion", "map", "margin", "tolerance", "probability", "confidence",
              "likelihood", "level", "rating"}  # fmt: skip
_SEARCHES = {"checking", "check", "scanning", "testing", "looking", "filtering", "detecting",
             "handling", "fixing", "ignoring", "skipping", "avoiding"}  # fmt: skip
# "Error, retrying", "timeout: attempt 2 of 3", "retries left: 1"; but not "Error, please retry",
# "failed at attempt 3 of 3", "retries exhausted".
_RETRYING = re.compile(
    r"\b(?<!please )(?<!not )(?<!no )(?<!no more )(?<!never )(?<!without )(?<!max )"
    r"(?<!maximum )(?:retry|retrying|retried|retries (?:left|remaining)|recover(?:y|ed|ing)"
    r"|resuming|re ?(?:queue(?:d|ing)|queuing|start(?:ed|ing)|submitt(?:ed|ing)|schedul(?:ed|ing)"
    r"|running|attempt(?:ed|ing)?|try(?:ing)?|tried|connect(?:ed|ing)|assign(?:ed|ing)"
    r"|dispatch(?:ed|ing)|launch(?:ed|ing)|load(?:ed|ing)|rout(?:ed|ing)|sending|sent)"
    r"|trying (?:again|once more)|(?:will|going to) try again|falling back|fallback"
    r"|back(?:ing)? ?off)\b(?! later| limit| exhausted| exceeded)"
    r"|\b(?:attempt|try) (\d+)\b(?! (?:of )?\1\b)"
    r"|\b(?:first|second|third|previous|earlier|next|one|an) (?:attempt|try)\b"
    r"|^\d+(?:st|nd|rd|th) (?:attempt|try)\b"
)
# "2 jobs failed", "previous task failed", "failed jobs ahead of yours".
_OTHERS_BEFORE = re.compile(
    r"\b(?:others?|another|previous|earlier|preceding|prior) (?:\w+ )?"
    r"(?:jobs?|tasks?|requests?|ones?|users?|images?|workers?|nodes?|steps?)\b"
    r"|\b(?:jobs|tasks|requests|workers|nodes|users|others?)\b"
    r"|\b\d+ (?:job|task|request|worker|node|user)\b"
    r"|\b(?:job|task|request|one) (?:before|ahead|in front)\b|\b(?:someone|somebody) else\b"
)
_OTHERS_AFTER = re.compile(
    r"^(?:jobs|tasks|requests|workers|nodes|users)\b|\b(?:before|ahead of|in front of) "
    r"(?:you|yours|your|this|it|us)\b|\b(?:jobs?|tasks?|requests?) (?:before|ahead|in front)\b"
    r"|^(?:by|in|of) (?:\d+ )?(?:other|another|previous) (?:jobs?|tasks?|requests?)\b"
)
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_")
_TIMED_OUT = re.compile(r"\btimed?[\s-]*out\b")
_NOT = re.compile("n['`\u00b4\u2019]t\\b")  # hasn't, with any apostrophe
_NO_FAILURE = re.compile(r"\bfail(?:s|ed|ing)?[\s-]*over\b|\bfail[\s-]*(?:safe|fast)\b")
_EMPTY = re.compile(r"""[:=]\s*(?:\[\s*\]|\{\s*\}|""|''|-+|n/?a)(?=\s*(?:[,;|)}\]]|$))""")
_CLAUSE_END = re.compile(r"[,;|()\[\]{}\n]|[.!?](?=\s|$)|\s[-\u2013\u2014]\s")
_WORD = re.compile(r"[^\W\d_]+|\d\w*")


class _Failure(enum.Enum):
    """What a status says about a failure of the job."""

    NONE = enum.auto()
    SUSPECTED = enum.auto()
    CERTAIN = enum.auto()


def is_moderation(status: str) -> bool:
    """Return True if the words of a failure speak of moderation or policy."""
    return bool(_MODERATION.search(_CAMEL_CASE.sub(" ", status)))


def merge_progress(previous: Progress | None, latest: Progress) -> Progress:
    """Return the latest progress of a job in the light of the poll before it.

    The fraction never goes backwards. A status with a failure word that does not stand at its
    beginning ("Generation failed") is a failure when two polls in a row have one.
    """
    if previous is None:
        return latest
    state, fraction = latest.state, latest.fraction
    if previous.fraction is not None and (fraction is None or fraction < previous.fraction):
        fraction = previous.fraction
    if not state.ended and all(_failure(p.status) is not _Failure.NONE for p in (previous, latest)):
        state = State.FAILED
    if state is latest.state and fraction == latest.fraction:
        return latest
    return attrs.evolve(latest, fraction=fraction, state=state)


@functools.lru_cache(maxsize=64)  # most polls have the status of the one before
def _failure(status: str) -> _Failure:
    text = _NOT.sub(" not", _CAMEL_CASE.sub(" ", status).lower())
    text = _EMPTY.sub(" none", _NO_FAILURE.sub("", _TIMED_OUT.sub("timeout", text)))
    clauses = [_WORD.findall(clause) for clause in _CLAUSE_END.split(text)]
    words = [word for clause in clauses for word in clause]
    if _FAILURES.isdisjoint(words) or _RETRYING.search(" ".join(words)):
        return _Failure.NONE
    position = 0
    for clause in clauses:
        for number, word in enumerate(clause):
            if word in _FAILURES and not _is_negated(clause, number):
                before, after = " ".join(words[: position + number]), words[position + number + 1 :]
                if not (_OTHERS_BEFORE.search(before) or _OTHERS_AFTER.search(" ".join(after))):
                    return _Failure.SUSPECTED if before else _Failure.CERTAIN
        position += len(clause)
    return _Failure.NONE


def _is_negated(clause: list[str], number: int) -> bool:
    """Return True if a clause says that there is no failure, or looks for one."""
    word, before, after = clause[number], clause[:number], clause[number + 1 :]
    telling = [word for word in before if word not in _FILLERS]
    if not _NEGATIONS.isdisjoint(telling[-2:]):  # "no errors", "not flagged as NSFW"
        return True
    # "NSFW: clear"; "errors found so far: none"
    if 1 <= len(after) <= 4 and after[-1] in (_NOTHING if len(after) == 1 else _NOTHING_AT_ALL):
        return True
    if after[:1] == ["0"] and word.endswith("s"):  # "errors 0 of 5"
        return True
    if word not in _NOUNS:
        return False
    # "NSFW check passed", "error has been fixed"
    absent = not _ABSENT.isdisjoint(after[:3]) or re.search("not (found|detected)", " ".join(after))
    return bool(absent or not _SEARCHES.isdisjoint(before) or not _COMPOUNDS.isdisjoint(after[:1]))
