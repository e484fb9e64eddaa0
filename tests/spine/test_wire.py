"""The JSON dialect: what is sent, and that nothing a peer says can surprise us."""

import json
from contextlib import suppress
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagelabs_sdk import APIResponseError, ImageRequest, InvalidRequestError, Progress, State, wire
from imagelabs_sdk.models import LARGEST_INT

words = st.text(max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
seeds = st.none() | st.integers(0, LARGEST_INT)
requests = st.builds(
    ImageRequest,
    prompt=st.text(min_size=1).filter(str.strip),
    negative_prompt=words,
    width=st.integers(1, 4096),
    height=st.integers(1, 4096),
    seed=seeds,
    subseed=seeds,
    attention=st.integers(-LARGEST_INT, LARGEST_INT),
    tiling=st.booleans(),
    reference_image=words,
    reference_image_type=st.none() | words,
    reference_strength=st.integers(0, 100),
    extra_body=st.dictionaries(words.map("x_".__add__), plain_json, max_size=3),
)
progress_answers = st.fixed_dictionaries(
    {},
    optional={
        "status": json_values | st.sampled_from(["Done", "error: x", "Queue position 3", "FAILED"]),
        "progress": json_values | st.sampled_from(["50%", "0.5", "nan", -1, 2, 1e999, 10**400]),
        "current_image_url": json_values,
        "final_image_url": json_values,
    },
)


def progress_of(**answer: Any) -> Progress:
    return wire.decode_progress(json.dumps(answer).encode(), "https://api.test/progress")


def test_the_body_is_the_reference_implementations() -> None:
    """There is no specification: what the known clients send is what is known to work."""
    request = ImageRequest("a lighthouse", seed=7, subseed=8)
    assert json.loads(wire.encode_image_request(request)) == {
        "prompt": "a lighthouse",
        "negative_prompt": "",
        "seed": "7",
        "subseed": "8",
        "attention": 0,
        "width": 1152,
        "height": 896,
        "tiling": False,
        "reference_image": "",
        "reference_image_type": None,
        "reference_strength": 30,
    }


def test_extra_fields_are_merged_last() -> None:
    """The door for fields that the SDK does not name must not be overruled by those it names."""
    request = ImageRequest("x", extra_body={"model": "m", "width": 7})
    body = json.loads(wire.encode_image_request(request))
    assert (body["model"], body["width"]) == ("m", 7)


@given(requests)
def test_a_request_survives_the_way_to_the_server(request: ImageRequest) -> None:
    """Both halves speak one dialect."""
    assert wire.decode_image_request(wire.encode_image_request(request)) == request


@given(requests)
def test_a_request_survives_being_kept(request: ImageRequest) -> None:
    """Jobs are stored as JSON and resumed another day."""
    kept = json.loads(json.dumps(wire.request_to_json(request)))
    assert wire.request_from_json(kept) == request


task_ids = st.text(min_size=1, max_size=300).filter(lambda t: t.strip() and t.isprintable())


@given(task_ids)
def test_a_task_id_survives_both_ways(task_id: str) -> None:
    """Whatever the service calls a task is what we ask for."""
    assert wire.decode_submission(wire.encode_submission(task_id)) == task_id
    assert wire.decode_progress_query(wire.encode_progress_query(task_id)) == task_id


@given(
    st.builds(
        Progress,
        state=st.just(State.RUNNING),
        status=st.just("Processing"),
        fraction=st.none() | st.floats(0, 1),
        preview_url=st.none() | st.just("https://host/preview.png"),
    )
)
def test_progress_survives_the_way_to_the_client(progress: Progress) -> None:
    """What our server says is what our client reads."""
    assert wire.decode_progress(wire.encode_progress(progress)) == progress


@given(st.binary() | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_a_value_or_one_of_our_errors(body: bytes) -> None:
    """A page, a cut answer or a hostile one must never escape as a stranger's exception."""
    for decode in (wire.decode_submission, wire.decode_progress):
        with suppress(APIResponseError):
            decode(body)
    for decode_query in (wire.decode_image_request, wire.decode_progress_query):
        with suppress(InvalidRequestError):
            decode_query(body)
    assert isinstance(wire.decode_error(body), str)


@given(progress_answers)
def test_any_progress_answer_is_sane_or_one_of_our_errors(answer: dict[str, Any]) -> None:
    """Who shows a bar must not have to check the numbers again."""
    try:
        progress = progress_of(**answer)
    except APIResponseError:
        return
    assert progress.fraction is None or 0.0 <= progress.fraction <= 1.0
    assert (progress.image_url is not None) == (progress.state is State.DONE)
    assert len(progress.status) <= 200
    assert progress.status.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"status":' * 100_000,
        b'{"progress":' + b"9" * 100_000 + b"}",
        b'{"progress": NaN}',
        b"\xff\xfe",
        b"",
        b"<html><title>Just a moment...</title>",
        b'"Done"',
        b"null",
        b"{}",
        b'{"status": null}',
        b'{"status": ["Done"]}',
        b'{"status": true}',
        b'{"final_image_url": ["https://host/x.png"]}',
    ],
)
def test_an_answer_without_meaning_is_an_error_of_ours(body: bytes) -> None:
    """It says nothing about the job, so it must not be taken for "still going" or "failed"."""
    with pytest.raises(APIResponseError, match="says nothing about the job"):
        wire.decode_progress(body)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ({"status": "Done", "final_image_url": "u.png"}, State.DONE),
        ({"status": "Processing", "final_image_url": "u.png"}, State.DONE),
        ({"status": "Some error", "final_image_url": "u.png"}, State.DONE),
        ({"final_image_url": "u.png"}, State.DONE),
        ({"status": "Done"}, State.FAILED),
        ({"status": "DONE", "final_image_url": ""}, State.FAILED),
        ({"status": "done", "final_image_url": None}, State.FAILED),
        ({"status": "Failed"}, State.FAILED),
        ({"status": "cancelled"}, State.FAILED),
        ({"status": "Canceled"}, State.FAILED),
        ({"status": "rejected: not allowed"}, State.FAILED),
        ({"status": "Queue position 3", "progress": 0}, State.QUEUED),
        ({"status": "pending"}, State.QUEUED),
        ({"status": 4}, State.QUEUED),
        ({"status": "queued", "progress": 0.1}, State.RUNNING),
        ({"status": "Processing"}, State.RUNNING),
        ({"status": "Painting the sky"}, State.RUNNING),
        ({"progress": 0.5}, State.RUNNING),
    ],
)
def test_a_status_is_read_once_for_all(answer: dict[str, Any], state: State) -> None:
    """A link means done whatever the word; an unknown word means still going."""
    assert progress_of(**answer).state is state


# Each status is a story that a service could tell; the words are split by spaces, underscores and
# camel case.
FAILED_AT_ONCE = [
    "Error: 0 bytes received",
    "Error: received 0 bytes",
    "NSFW content not allowed",
    "Failed: will not retry",
    "Error: won't retry",
    "error; max retry exceeded",
    "Errors were found",
    "Failed",
    "failed",
    "FAILED",
    "Failure",
    "fail",
    "error",
    "Error: out of memory",
    "ERROR_OOM",
    "Errored",
    "Aborted",
    "expired",
    "Timed out",
    "Timed-out after 30 s",
    "TIMED_OUT",
    "TimedOut",
    "Timeout",
    "rejected: not allowed",
    "Cancelled",
    "canceled by user",
    "Moderated",
    "Blocked by policy",
    "NSFW",
    "NSFWDetected",
    "nsfw content detected",
    "[ERROR] cuda",
    "❌ Failed",
    "FailedPermanently",
    "failed_permanently",
    "Error 500",
    "Error: no GPU available",
    "Failed: not enough memory",
    "Failed after 3 retries",
    "Failed after 3 attempts",
    "Failed, please try again later",
    "Error. Please retry",
    "Blocked: NSFW",
    "Error 0x80004005",
    "Failed: none of the workers is up",
    "Failed NSFW check",
    "failed (max retries exceeded)",
    "Failed - not retrying",
    "Error: another process uses the GPU",
]
FAILED_IF_REPEATED = [
    "Generation failed",
    "Internal ERROR",
    "JobFailed",
    "JOB_FAILED",
    "generation_error",
    "InternalServerError",
    "Request Moderated",
    "Content Moderated",
    "task aborted",
    "Job 17 failed",
    "status: failed",
    "An error occurred",
    "the request has timed out",
    "All attempts failed",
    "Job was cancelled",
    "Prompt rejected",
    "NSFW check failed",
    "Render timed out",
    "imageGenerationFailed",
    "renderTimedOut",
    "Attempt 3 of 3 failed",
    "Generation failed, please try again",
    "could not render (error)",
    "Your session expired",
    "Rendering failed: out of memory",
    "Generation failed, no more retries",
    "Generation failed after 2 retries",
]
GOING_ON = [
    "failed_attempts: 0",
    "error_count: 0",
    "errors so far: none",
    "NSFW content not detected",
    "nsfw_detected: false",
    "No NSFW content found",
    "is_failed: false",
    "rescheduled after timeout",
    "resubmitted after an error",
    "error, re-running",
    "Timeout, retrying…",
    "Error (will retry)",
    "retry in 5s after error",
    "",
    "Processing",
    "Terror scene: drawing",
    "errors: 0",
    "Errors=0",
    "0 errors",
    "no errors so far",
    "errors: none",
    "Error: none",
    "failed: 0",
    "NSFW check passed",
    "Checking for NSFW content",
    "nsfw: false",
    "NSFW filter: off",
    "NSFW filter is off",
    "Running NSFW check",
    "NSFW check",
    "2 jobs failed before yours",
    "attempt 1 failed, retrying",
    "Attempt 1/3 failed",
    "Failed once, retrying",
    "failed, will retry",
    "Error, retry 2/5",
    "Retrying after error",
    "RETRYING_AFTER_ERROR",
    "Recovered from error",
    "1 other job failed",
    "Another job was cancelled",
    "previous job failed, yours is next",
    "3 failed jobs ahead of you",
    "Queue position 3; 2 jobs failed before yours",
    "failure-free",
    "error-free",
    "Error diffusion dithering",
    "failover",
    "unblocked",
    "not failed",
    "has not failed yet",
    "did not fail",
    "without error",
    "terrorist attack",
    "mirrored",
    "Failed jobs before yours: 2",
    "Failed jobs: 2",
    "job before yours errored",
    "retry 1 failed",
    "Retry scheduled after failure",
    "Trying again after failure",
    "2 retries left after error",
    "Connection error - reattempting",
    "failed 0",
    "drawing 40% (errors: 0)",
    "first attempt failed",
    "errors 0 warnings 2",
    "Blockedges",
    "Failsafe mode",
    "other tasks were aborted",
    "error rate 0.01",
    "nsfw score 0.01",
    "NSFW: no",
    "nsfw=0",
    "Requeued after timeout",
    "re-queued after an error",
    "Restarting after failure",
]


@pytest.mark.parametrize("status", FAILED_AT_ONCE)
def test_a_failure_word_at_the_beginning_ends_the_job_at_once(status: str) -> None:
    """Nobody should wait for minutes for a job that has failed."""
    assert progress_of(status=status).state is State.FAILED


@pytest.mark.parametrize("status", FAILED_IF_REPEATED)
def test_a_failure_word_elsewhere_ends_the_job_when_the_next_poll_repeats_it(status: str) -> None:
    """One such status may be about a step that is tried again."""
    latest = progress_of(status=status)
    assert latest.state is State.RUNNING
    running = progress_of(status="Processing")
    assert wire.merge_progress(None, latest) == latest
    assert wire.merge_progress(running, latest).state is State.RUNNING
    assert wire.merge_progress(latest, running).state is State.RUNNING
    assert wire.merge_progress(latest, latest).state is State.FAILED


@pytest.mark.parametrize("status", GOING_ON)
def test_a_status_about_retries_about_no_failure_or_about_other_jobs_is_no_failure(
    status: str,
) -> None:
    """The image is being made: giving it up would lose it."""
    latest = progress_of(status=status, progress=0)
    assert not latest.state.ended
    assert not wire.merge_progress(latest, latest).state.ended


def test_every_failure_word_says_where_it_was_seen() -> None:
    """What nobody has seen at the service must not be presented as a fact."""
    assert all("ImageLabs" in seen for seen in wire.FAILURE_WORDS.values())
    for word in " ".join(wire.FAILURE_WORDS).split():
        assert progress_of(status=word).state is State.FAILED


def test_what_is_shown_never_goes_backwards() -> None:
    """A bar that jumps back says that the image is lost, which it is not."""
    shown, previous = [], None
    for fraction in (0.2, None, 0.1, 0.6, 0.0, None, 0.7):
        previous = wire.merge_progress(previous, progress_of(status="x", progress=fraction))
        shown.append(previous.fraction)
    assert shown == [0.2, 0.2, 0.2, 0.6, 0.6, 0.6, 0.7]


SENSELESS: list[object] = [
    -0.1, -1, 100.5, 101, "x", "", "%", "-1%", "101%", "1 2", "nan", "inf", [], {}, 10**400,
    "1e999", "9" * 5000, float("nan"), float("inf"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("told", "fraction"),
    [(0, 0.0), (1, 1.0), (1.0, 1.0), (0.25, 0.25), ("0.5", 0.5), ("50%", 0.5), (True, None)]
    + [(told, 0.45) for told in (45, 45.0, "45", "45%", " 45 % ", 0.45, "0.45", "0,45", "45.0%")]
    + [("1", 1.0), ("1%", 0.01), ("0.5%", 0.005), (100, 1.0), ("100%", 1.0), (2, 0.02)]
    + [(1e-7, 1e-7), (None, None)]
    + [(bad, None) for bad in SENSELESS],
)
def test_a_fraction_is_between_0_and_1_or_not_known(told: object, fraction: float | None) -> None:
    """Services give a fraction or percent, as a number or as text."""
    found = progress_of(status="Processing", progress=told).fraction
    assert found == (fraction and pytest.approx(fraction))


def test_the_servers_word_is_kept_but_made_safe_to_print() -> None:
    """A status ends in terminals and logs; it must not steer either."""
    word = progress_of(status="Pain\x1b[2Jting\r\nnow " + "x" * 5000).status
    assert word.startswith("Pain [2Jting now x")
    assert len(word) == 200


@pytest.mark.parametrize(
    ("body", "delivered"),
    [
        (b'{"error": "no more today"}', "yes"),
        (b'{"status": "busy"}', "yes"),
        (b"{}", "yes"),
        (b'\xef\xbb\xbf {"error": "no more today"}\r\n', "yes"),
        (b'{"error": "no more\ntoday", "left": NaN}', "yes"),
        (b'{"task_id": null}', "maybe"),
        (b'{"task_id": ""}', "maybe"),
        (b'{"task_id": " "}', "maybe"),
        (b'{"task_id": true}', "maybe"),
        (b'{"task_id": 0.5}', "maybe"),
        (b'{"task_id": ["x"]}', "maybe"),
        (b'{"taskId": "x"}', "maybe"),
        (b'{"task_id": "a\\u0000b"}', "maybe"),
        (b'{"task_id": "%s"}' % (b"x" * 4097), "maybe"),
        (b'{"error": "no"}{"error": "no"}', "maybe"),
        (b'Warning: slow\n{"error": "no more today"}', "maybe"),
        (b'{"error": "no more today"}\0', "maybe"),
        (b'{"error": "busy", "running": [{"task_id": "of somebody else"}]}', "maybe"),
        (b'[{"error": "no"}]', "maybe"),
        (b'"{\\"error\\": \\"no\\"}"', "maybe"),
        (b"[]", "maybe"),
        (b"<html>", "maybe"),
        (b"", "maybe"),
    ],
)
def test_an_answer_without_a_usable_task_id_is_said_at_once(body: bytes, delivered: str) -> None:
    """The reference client polls for `null` without end. Junk is no proof of a refusal."""
    with pytest.raises(APIResponseError) as caught:
        wire.decode_submission(body)
    assert caught.value.delivered == delivered
    assert len(str(caught.value)) < 300


def test_an_answer_that_cannot_be_read_is_shown() -> None:
    """A person may find the id in it."""
    with pytest.raises(APIResponseError, match="your ticket is A-17"):
        wire.decode_submission(b"Thank you, your ticket is A-17\x1b[2J")


NESTED = b'{"task_id":"t1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "task_id"),
    [
        (b'{"task_id":"t1","eta":NaN}', "t1"),
        (b'{"task_id":"t1","eta":-Infinity,"left":1e999}', "t1"),
        (b'{"task_id":"t1","prompt":"caf\xc3"}', "t1"),
        (b'{"task_id":"t1","prompt":"caf\xe9"}', "t1"),
        (b'{"task_id":"j\xf6b"}', "jöb"),
        ('{"task_id":"jöb","prompt":"caf'.encode() + b'\xc3"}', "jöb"),
        (b'{"task_id":"t1","prompt":"two\nlines\x00"}', "t1"),
        (b'{"task_id":12345}', "12345"),
        (b'{"task_id":12345678901234567890123}', "12345678901234567890123"),
        (b'{"task_id":' + b"7" * 4096 + b"}", "7" * 4096),
        (b'{"task_id":12345.0}', "12345"),
        (b'{"task_id":"t1\\n"}', "t1"),
        (b'{"task_id":"%s"}' % (b"x" * 4096), "x" * 4096),
        (b'{"task_id":"t1","seed":' + b"9" * 9000 + b"}", "t1"),
        (b'{"task_id":"t1","task_id":null}', "t1"),
        (b'{"task_id":"","task_id":"t1","task_id":""}', "t1"),
        (b'{"task_id":"t1","eta":1,"eta":2}', "t1"),
        (NESTED, "t1"),
        (b'\xef\xbb\xbf{"task_id":"t1"}', "t1"),
        ('{"task_id":"jöb"}'.encode("utf-16"), "jöb"),
        ('{"task_id":"jöb"}'.encode("utf-16-le"), "jöb"),
        ('{"task_id":"jöb"}'.encode("utf-32"), "jöb"),
        (b'{"task_id":"t1"}\0', "t1"),
        (b'\0\0{"task_id":"t1"}', "t1"),
        (b'Warning: undefined index {x} on line 3\n{"task_id":"t1"}', "t1"),
        (b'{"notice":"slow today"}\n{"task_id":"t1"}', "t1"),
        (b'{"task_id":null}{"task_id":"t1"}', "t1"),
        (b'{"task_id":"t1"}</body></html>', "t1"),
        (b')]}\',\n{"task_id":"t1"}', "t1"),
        (b'data: {"task_id":"t1"}\n\n', "t1"),
        (b'callback({"task_id":"t1"});', "t1"),
        (b'[{"task_id":"t1"}]', "t1"),
        (b'{"code":0,"message":"ok","error":null,"data":{"task_id":"t1"}}', "t1"),
        (b'"{\\"task_id\\":\\"t1\\"}"', "t1"),
        (b'{"task_id":"t1","list":[1,2,],}', "t1"),
        (b"{'task_id': 't1', 'reference': None}", "t1"),
        (b'{"task_id":12345,"reference":undefined}', "12345"),
        (b'{"task_id":null,"x":undefined,"task_id":"t1"}', "t1"),
        (b"{'task_id': 't\\q1', 'x': None}", "t\\q1"),
        (b'{"task_id":"t1","prompt":"a lighth', "t1"),
        (b'{"prompt":"{\\"task_id\\": \\"evil\\"}","task_id":"t1"}', "t1"),
    ],
)
def test_a_task_id_is_read_whatever_else_is_wrong_with_the_answer(
    body: bytes, task_id: str
) -> None:
    """It is paid for. A formality must not cost the image."""
    assert wire.decode_submission(body) == task_id
    assert wire.find_task_id(body) == task_id


junk = st.binary(max_size=200).filter(lambda data: b"task" not in data and b"\0" not in data)


@given(junk, task_ids, json_values, junk)
def test_junk_around_an_answer_never_hides_its_task_id(
    before: bytes, task_id: str, more: object, after: bytes
) -> None:
    """Warnings, pages, halves of other answers: none of it is worth a paid image."""
    answer = json.dumps({"task_id": task_id, "more": more}, ensure_ascii=False)
    body = before + b"\n" + answer.encode("utf-8", "surrogatepass") + after
    assert wire.decode_submission(body) == task_id


MIB = 1024 * 1024


@pytest.mark.parametrize(
    "piece",
    [
        b"{", b"[", b"\xff", b'"', b"\\", b"9", b"{}", b'{"', b'{"a":', b'{"a":1,', b'{"task_id":',
        b'"task_id":"', b'"task_id":\'', b"'task_id':\"", b'"task_id": ', b'"task_id":"\\',
        b'{"task_id":null},', b'{"a":[1,', b'{"status":"', b"\0{", b'"status":"x',
    ],
)  # fmt: skip
def test_a_hostile_answer_takes_no_more_than_seconds(piece: bytes) -> None:
    """The time grows with the length, not with its square: that would be hours."""
    start = process_time()
    for body in (piece * (MIB // len(piece)), b'{"a":[' * 60 + piece * (MIB // len(piece))):
        for decode in (wire.decode_submission, wire.decode_progress):
            with suppress(APIResponseError):
                decode(body)
        wire.decode_error(body)
    assert process_time() - start < 30


@pytest.mark.parametrize(
    "body",
    [
        b'{"status":"Processing","progress":0.5,"eta":NaN}',
        b'Warning: slow\n{"status":"Processing","progress":0.5}',
        b'{"status":"Processing","progress":0.5,"word":"caf\xe9\n"}\0',
        b'{"data":{"status":"Processing","progress":0.5}}',
        b"{'status': 'Processing', 'progress': 0.5, 'final_image_url': None}",
        '{"status":"Processing","progress":0.5}'.encode("utf-16"),
    ],
)
def test_progress_is_read_as_leniently(body: bytes) -> None:
    """NaN beside a good status is a good status."""
    assert wire.decode_progress(body) == Progress(
        state=State.RUNNING, status="Processing", fraction=0.5
    )


def test_of_several_objects_the_one_with_the_image_counts() -> None:
    """Some services stream an answer line by line."""
    lines = b'{"status":"Processing"}\n{"status":"Done","final_image_url":"https://host/x.png"}'
    assert wire.decode_progress(lines).image_url == "https://host/x.png"


def test_a_refusal_carries_the_services_own_words() -> None:
    """ "Refused" alone leaves the user guessing."""
    with pytest.raises(APIResponseError, match="no more today"):
        wire.decode_submission(b'{"error": "no more\\u0007 today"}')
    assert wire.decode_error(wire.encode_error("too large")) == "too large"
    assert wire.decode_error(b'{"error": {"message": "quota exceeded"}}') == "quota exceeded"
    assert wire.decode_error(b'{"detail": {"x": 1}}') == ""
    assert wire.decode_error(b"<html>") == ""


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "prompt"),
        (b"[]", ""),
        (b"nonsense", ""),
        (b'{"prompt": " "}', "prompt"),
        (b'{"prompt": "x", "extra": NaN}', ""),
        (b'{"prompt": "x", "seed": "7x"}', "seed"),
        (b'{"prompt": "x", "seed": "-7"}', "seed"),
        (b'{"prompt": "x", "seed": true}', "seed"),
        (b'{"prompt": "x", "width": "512"}', "width"),
        (b'{"prompt": "x", "width": 0}', "width"),
    ],
)
def test_the_server_names_the_field_that_is_wrong(body: bytes, field: str) -> None:
    """Whoever writes a client against it should not have to guess."""
    with pytest.raises(InvalidRequestError) as caught:
        wire.decode_image_request(body)
    assert caught.value.field == field


def test_the_server_takes_numbers_for_seeds_and_keeps_unknown_fields() -> None:
    """Other clients of the service send them so."""
    request = wire.decode_image_request(b'{"prompt": "x", "seed": 7, "model": "general"}')
    assert request.seed == 7
    assert request.extra_body == {"model": "general"}
    assert wire.decode_progress_query(b'{"task_id": 7}') == "7"
    with pytest.raises(InvalidRequestError, match="task_id"):
        wire.decode_progress_query(b'{"task_id": true}')


@pytest.mark.parametrize(
    ("answer", "image"),
    [
        ('{"status":"Processing","final_image_url":null,"recent":[%s]}', None),
        ('{"status":"Processing","progress":0.3,"final_image_url":"","before":%s}', None),
        ('{"status":"Done","final_image_url":null,"result":%s}', "https://host.test/a.png"),
        ('{"status":"ok","data":%s}', "https://host.test/a.png"),
        ('{"status":"Processing","final_image_url":null}\n%s', "https://host.test/a.png"),
    ],
)
def test_the_image_of_another_job_inside_an_answer_is_not_taken(
    answer: str, image: str | None
) -> None:
    """A job that renders says that it has no image yet; an envelope does not, and is opened."""
    body = answer % '{"status":"Done","final_image_url":"/a.png"}'
    progress = wire.decode_progress(body.encode(), "https://host.test/progress")
    assert progress.image_url == image
    assert progress.state is (State.DONE if image else State.RUNNING)


# Answers that name jobs -----------------------------------------------------------------

OURS, THEIRS = "https://host.test/ours.png", "https://host.test/theirs.png"


def ours(**fields: Any) -> dict[str, Any]:
    return {"task_id": "t1", **fields}


def theirs(**fields: Any) -> dict[str, Any]:
    return {"task_id": "t2", "status": "Done", "final_image_url": THEIRS, **fields}


@pytest.mark.parametrize(
    ("answer", "status", "image"),
    [
        ([theirs(), ours(status="Processing")], "Processing", None),
        ([ours(status="Processing"), theirs()], "Processing", None),
        ([theirs(), ours(status="Done", final_image_url=OURS)], "Done", OURS),
        ({"jobs": [theirs(), ours(status="Processing", progress=0.5)]}, "Processing", None),
        ({"mine": ours(data={"status": "Done", "final_image_url": OURS})}, "Done", OURS),
        ([ours(), {"status": "Processing"}, theirs()], "Processing", None),
        ([{"task_id": None, "status": "Processing"}, theirs()], "Processing", None),
        ([theirs(), {"task_id": "T1", "status": "Processing"}], "Processing", None),
        (theirs(previous=ours(status="Processing")), "Processing", None),
        (ours(status="Done", result={"task_id": "x", "final_image_url": THEIRS}), "Done", None),
    ],
)
def test_the_object_that_names_the_job_counts(answer: Any, status: str, image: str | None) -> None:
    """A list of jobs may hold those of other people."""
    progress = wire.decode_progress(json.dumps(answer).encode(), "", "t1")
    assert (progress.status, progress.image_url) == (status, image)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(theirs()).encode(),
        json.dumps([theirs(), theirs(task_id=7)]).encode(),
        json.dumps({"data": theirs()}).encode(),
        b"{'task_id': 't2', 'final_image_url': 'https://host.test/theirs.png'}",
        b'[{"task_id":"t1","status":undefined},{"final_image_url":"https://host.test/theirs.png",',
    ],
)
def test_an_answer_about_other_jobs_is_not_usable(body: bytes) -> None:
    """The next poll may be answered rightly; somebody else's image is never handed out."""
    with pytest.raises(APIResponseError, match="says nothing about the job") as caught:
        wire.decode_progress(body, "", "t1")
    assert caught.value.delivered == "maybe"


fields = st.permutations(["task_id", "status", "final_image_url", "progress"])
jobs = st.lists(st.sampled_from(["t1", "t2", "t3", None]), min_size=1, max_size=4, unique=True)


@given(jobs, fields, st.integers(0, 400), st.sampled_from(["{}", '{"data": {}}', "!{}", "{}!"]))
def test_no_image_of_another_job_is_taken(
    named: list[str | None], order: list[str], end: int, around: str
) -> None:
    """Wherever the answer is cut, whatever stands around it."""
    answer = []
    for task_id in named:
        facts = {"task_id": task_id, "status": "x", "progress": 0.5}
        facts["final_image_url"] = f"/{task_id}.png" if task_id != "t1" else None
        answer.append({name: facts[name] for name in order if task_id or name != "task_id"})
    if None in named:
        answer[named.index(None)].pop("final_image_url")
    body = around.replace("{}", json.dumps(answer)).encode()
    with suppress(APIResponseError):
        assert wire.decode_progress(body[:end], "https://h.test/", "t1").image_url is None


@pytest.mark.parametrize(
    "body",
    [
        b'[{"task_id":"t1"},{"task_id":"t2"}]',
        b'{"mine":{"task_id":"t1"},"before":{"task_id":"t2"}}',
        b'{"task_id":"t1"}\n{"task_id":"t2"}',
    ],
)
def test_a_submit_that_is_answered_with_several_task_ids_is_told_with_all_of_them(
    body: bytes,
) -> None:
    """One is paid for, the others may be somebody else's: a person can look."""
    with pytest.raises(APIResponseError, match="several task ids: 't1', 't2'") as caught:
        wire.decode_submission(body)
    assert caught.value.delivered == "maybe"
    assert wire.find_task_id(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b'[{"task_id":"t1"},{"task_id":"t1"}]',
        b'{"task_id":"t1","queue":[{"task_id":"t2"},{"task_id":"t3"}]}',
        b'{"data":{"task_id":"t1","before":{"task_id":"t2"}}}',
        b'[{"task_id":null},{"task_id":"t1"}]',
        b'{"task_id":"t1","queue":[{"task_id":"t2"},{"task_',
        b'[{"error":"busy","running":{"task_id":"t2"}},{"task_id":"t1"}]',
    ],
)
def test_the_id_of_a_submit_is_the_outermost(body: bytes) -> None:
    """What stands inside it is about other jobs."""
    assert wire.decode_submission(body) == "t1"
