"""Answers of services that nobody has seen yet: ids of any script, numbers, words of a status."""

import html
import json

import pytest

from imagelabs_sdk import APIResponseError, State, wire
from tests.spine.test_wire import progress_of

IDS = {
    "joined emoji": "\N{WOMAN}\u200d\N{ROCKET}-1",
    "an emoji of next year": "t\U0001fadf",
    "spaces of other scripts": "job\u00a01\u30002",
    "a soft hyphen": "t\u00ad1",
    "private use": "t\ue000",
    "all that JSON escapes": 'a"b\\c/d',
}


@pytest.mark.parametrize("kind", IDS)
def test_an_id_may_hold_any_character_that_harms_no_terminal(kind: str) -> None:
    """What Python calls printable depends on its age, and leaves out what joins emoji."""
    task_id = IDS[kind]
    assert wire.decode_submission(json.dumps({"task_id": task_id}).encode()) == task_id
    assert wire.decode_progress_query(wire.encode_progress_query(task_id)) == task_id


@pytest.mark.parametrize("character", "\x1b\x07\x9b\u2028\u202e\u2066\ud800")
def test_an_id_that_would_steer_a_terminal_is_shown_and_not_used(character: str) -> None:
    """A person may find it in the error."""
    with pytest.raises(APIResponseError, match="no usable task id"):
        wire.decode_submission(json.dumps({"task_id": f"a{character}b"}).encode())


def test_an_id_that_has_lost_digits_is_not_used() -> None:
    """As a floating-point number it would be the id of another job."""
    with pytest.raises(APIResponseError, match=r"1234567890123456789\.0"):
        wire.decode_submission(b'{"task_id": 1234567890123456789.0}')
    assert wire.decode_submission(b'{"task_id": 9007199254740991.0}') == "9007199254740991"


def quoted(times: int) -> bytes:
    text = json.dumps({"task_id": "t1"})
    for _ in range(times):
        text = json.dumps(text)
    return text.encode()


@pytest.mark.parametrize(
    "body",
    [
        quoted(1),
        quoted(4),
        f"<pre>{html.escape(json.dumps({'task_id': 't1'}))}</pre>".encode(),
        f"&quot; <p>{html.escape(json.dumps([{'task_id': 't1'}]))}".encode(),
    ],
)
def test_a_task_id_is_read_however_often_it_was_wrapped(body: bytes) -> None:
    """In strings of JSON, and in a page that shows JSON."""
    assert wire.decode_submission(body) == "t1"


@pytest.mark.parametrize("body", [b'"x"', b"9" * 500, b'"9"', b'"{"', b'"\\"x\\""'])
def test_a_string_without_an_object_has_no_id(body: bytes) -> None:
    """Unwrapping ends."""
    with pytest.raises(APIResponseError) as caught:
        wire.decode_submission(body)
    assert caught.value.delivered == "maybe"


@pytest.mark.parametrize(
    ("told", "fraction"),
    [
        ("45\u00a0%", 0.45),
        ("45\u202f%", 0.45),
        (".45", 0.45),
        (",45", 0.45),
        ("٤٥%", None),
        ("3/6", None),
        (1.0000000000000002, 1.0),
        (1.0000001192092896, 1.0),
        (100.00000000000001, 1.0),
        (1.001, 0.01001),
    ],
)
def test_a_fraction_is_read_as_it_is_written_and_computed(
    told: object, fraction: float | None
) -> None:
    """With the spaces that languages put before a percent sign, and with what sums are off by."""
    found = progress_of(status="x", progress=told).fraction
    assert found == (fraction and pytest.approx(fraction))


AT_ONCE = [
    "\N{COLLISION SYMBOL} Failed",
    "**Failed**",
    "\u00a1Error!",
    "\u00abFailed\u00bb",
    "Failed\u2026",
    "error=oom",
    "Failed: [OOM]",
    "Error: {}: no such model",
    "Error - out of memory",
    "Failed. Not retried.",
    "Failed fast",
    "Error: not enough memory",
    "Rejected: not safe for work",
]
REPEATED = [
    "GENERATION-FAILED",
    "job.failed",
    "Your image was rejected",
    "1 error",
    "server_error",
    "Sorry, generation failed \N{CRYING FACE}",
    "No luck: it failed",
    "Nothing came of it, error",
]
GOING_ON = [
    "hasn\u2019t failed",
    "hasn`t failed",
    "isn\u2019t blocked",
    "cannot fail",
    "nothing failed",
    "none failed",
    "Non-NSFW content",
    "without a single failure",
    "free of errors",
    "not flagged as NSFW",
    "errors: []",
    "errors: {}",
    "error: ''",
    'error: ""',
    "error=n/a",
    "error: N/A, step 3",
    "errors: -",
    "error: undefined",
    '{"error": "", "state": "running"}',
    "Failed over to backup node",
    "Fail-over in progress",
    "failing over",
    "fail-safe mode",
    "fail fast: on",
    "Moderated: passed",
    "Moderated: approved",
    "NSFW: safe",
    "nsfw_probability=0.01",
    "NSFW confidence 3%",
    "NSFW level: 0",
    "2nd attempt failed",
    "Next try in 5 s (error)",
    "re-trying after error",
    "Re-tried after error",
    "trying once more after error",
    "backing off after error",
    "back-off 5 s after error",
    "reconnecting after error",
    "Reassigned to gpu-2 after failure",
    "Re-dispatched after timeout",
    "Resent after timeout",
    "Relaunched after error",
    "Reloading model after error",
    "Blocked by 3 jobs ahead",
    "blocked by 3 other jobs",
    "Errors in other jobs: 3",
    "someone else's job was cancelled",
]


@pytest.mark.parametrize("status", AT_ONCE)
def test_a_failure_at_the_beginning_ends_the_job_at_once(status: str) -> None:
    """Whatever signs stand around the word."""
    assert progress_of(status=status).state is State.FAILED


@pytest.mark.parametrize("status", REPEATED)
def test_a_failure_elsewhere_ends_it_when_it_is_repeated(status: str) -> None:
    """A negation further away is about something else."""
    latest = progress_of(status=status)
    assert latest.state is State.RUNNING
    assert wire.merge_progress(latest, latest).state is State.FAILED


@pytest.mark.parametrize("status", GOING_ON)
def test_no_failure_is_seen_where_there_is_none(status: str) -> None:
    """Negations with any apostrophe, empty fields of a log, checks that passed, other jobs."""
    latest = progress_of(status=status, progress=0)
    assert not latest.state.ended
    assert not wire.merge_progress(latest, latest).state.ended


@pytest.mark.parametrize(
    "body",
    [
        b'[{"final_image_url": "/t2.png", "status": "x"',
        b'{"data": {"final_image_url": "/t2.png", "status": "x"',
        b'{"a": {}, "jobs": [{"status": "Done", "final_image_url": "/t2.png"',
    ],
)
def test_an_object_that_is_cut_before_its_name_is_of_nobody(body: bytes) -> None:
    """It may be another job's, and its image somebody else's."""
    with pytest.raises(APIResponseError):
        wire.decode_progress(body, "https://h.test/", "t1")
