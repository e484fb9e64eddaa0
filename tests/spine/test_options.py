"""Clients that share connections, keys, labels, refusals and raw answers."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    ChallengeError,
    DownloadError,
    FixedInterval,
    ForbiddenAddressError,
    ImageLabs,
    ImageLabsError,
    InvalidRequestError,
    JobFailedError,
    JobRefusedError,
    JobStalledError,
    JobStoppedError,
    JobTimeoutError,
    PermissionDeniedError,
    Progress,
    RateLimitError,
    SubmissionUnknownError,
)
from imagelabs_sdk.testing import FakeClock, FakeService
from tests import faulty
from tests.faulty import FaultyServer
from tests.spine.test_settings import sent_by

Connect = Callable[..., ImageLabs]


# with_options -------------------------------------------------------------------------------


def test_a_client_with_other_options_shares_the_connections(
    server: FaultyServer, connect: Connect
) -> None:
    """Thousands of tenants must not cost thousands of handshakes."""
    server.scripts["/txt2img"] = [faulty.reply(200, {"task_id": "t"})]
    parent = connect(server, cookies="session=parent", headers={"x-key": "parent"})
    parent.get_job("t").refresh()
    tenant = parent.with_options(cookies="session=tenant", headers={"X-Key": "tenant"})
    tenant.get_job("t").refresh()
    assert server.connections == 1
    assert [asked.headers["cookie"] for asked in server.asked] == [
        "session=parent",
        "session=tenant",
    ]
    assert server.asked[1].headers["x-key"] == "tenant"
    assert server.asked[1].headers["x-requested-with"] == "XMLHttpRequest"


@pytest.mark.parametrize("other", [{"cookies": "session=b"}, {"api_key": "b"}, {"cookies": ""}])
def test_a_cookie_that_the_service_sets_stays_with_its_client(
    other: dict[str, str], server: FaultyServer, connect: Connect
) -> None:
    """Else one tenant would act as another one."""
    server.scripts["/progress"] = [
        faulty.reply(200, {"status": "Processing"}, ("Set-Cookie", "login=secret-of-a; Path=/")),
        faulty.reply(200, {"status": "Processing"}),
    ]
    first = connect(server, cookies="session=a")
    second = first.with_options(**other)  # type: ignore[arg-type]
    for client in (first, second, first, second):
        client.get_job("t").refresh()
    sent = [asked.headers.get("cookie", "") for asked in server.asked]
    assert ["secret-of-a" in cookies for cookies in sent] == [False, False, True, False]


def test_other_options_are_the_other_clients_alone() -> None:
    """And what is not named stays."""
    clock = FakeClock()
    client = ImageLabs(polling=clock.every(1.0), timeout=60, max_retries=1)
    other = client.with_options(
        timeout=5, request_timeout=3, max_retries=7, polling=clock.every(2.0)
    )
    mine, theirs = client._context.settings, other._context.settings
    assert (theirs.timeout, theirs.request_timeout, theirs.max_retries) == (5.0, 3.0, 7)
    assert (mine.timeout, mine.request_timeout, mine.max_retries) == (60.0, 30.0, 1)
    assert (other._context.polling, client._context.polling) == (clock.every(2.0), clock.every(1.0))
    assert theirs.headers == mine.headers
    assert client.with_options()._context.polling == client._context.polling


def test_another_strategy_replaces_the_poll_interval() -> None:
    """Of two ways to say the pace the later one counts."""
    client, other = ImageLabs(poll_interval=9.0), FixedInterval(2.0)
    assert client.with_options(timeout=1)._context.polling == FixedInterval(9.0)
    assert client.with_options(polling=other)._context.polling == other


def test_closing_the_other_client_closes_nothing(server: FaultyServer, connect: Connect) -> None:
    """The connections are the first one's."""
    parent = connect(server, on_request=print)
    with parent.with_options(timeout=5) as tenant:
        tenant.get_job("t").refresh()
    parent.get_job("t").refresh()
    assert server.connections == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout": 0}, "timeout"),
        ({"request_timeout": "1"}, "request_timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"headers": {"cookie": "a=hush"}}, "headers"),
        ({"headers": {"authorization": "hush"}, "api_key": "hush"}, "api_key"),
        ({"cookies": 7}, "cookies"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options: Any, field: str) -> None:
    """As when a client is made."""
    if options.get("api_key"):
        with pytest.raises(InvalidRequestError) as caught:
            ImageLabs(**options)
    else:
        with pytest.raises(InvalidRequestError) as caught:
            ImageLabs().with_options(**options)
    assert caught.value.field == field
    assert "hush" not in str(caught.value)


# api_key --------------------------------------------------------------------------------------


def test_a_key_is_sent_as_a_bearer_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the argument, or the environment; a later key replaces it."""
    assert sent_by(api_key="k-1").headers["authorization"] == "Bearer k-1"
    monkeypatch.setenv("IMAGELABS_API_KEY", "k-2")
    assert sent_by().headers["authorization"] == "Bearer k-2"
    assert sent_by(api_key="k-1").headers["authorization"] == "Bearer k-1"
    other = ImageLabs(api_key="k-1").with_options(api_key="k-3")
    assert other._settings.headers["authorization"] == "Bearer k-3"


def test_a_key_stays_with_the_api_and_out_of_sight() -> None:
    """Neither a host of images nor a message gets it."""
    elsewhere = {"status": "Done", "final_image_url": "https://images.test/x.png"}
    service = FakeService().answers(elsewhere, at="progress")
    client = service.client(api_key="hush-hush-hush")
    with pytest.raises(DownloadError):
        client.generate("x").read()
    assert service.sent[-1].request.url == "https://images.test/x.png"
    assert "authorization" not in service.sent[-1].request.headers
    quoting = FakeService().refuses("key hush-hush-hush is not known", status=401)
    with pytest.raises(AuthenticationError) as caught:
        quoting.client(api_key="hush-hush-hush").submit("x")
    assert "hush" not in f"{caught.value} {caught.value.body} {client!r} {client._settings!r}"


@pytest.mark.parametrize("bad", ["a\nb", "ü", 7])
def test_a_key_that_cannot_be_sent_is_refused(bad: Any) -> None:
    """When the client is made; it is not shown."""
    with pytest.raises(InvalidRequestError, match=r"^api_key: must be printable") as caught:
        ImageLabs(api_key=bad)
    assert caught.value.field == "api_key"


# metadata ---------------------------------------------------------------------------------------


def test_labels_stay_with_the_job_and_are_never_sent() -> None:
    """An order number must be found again in another process."""
    service = FakeService()
    client = service.client()
    labels: dict[str, Any] = {"order": 7, "tags": ["a"]}
    job = client.submit("x", metadata=labels)
    labels["tags"].append("b")
    assert job.metadata == {"order": 7, "tags": ["a"]}
    assert b"order" not in service.sent[0].request.body
    again = client.job_from_dict(json.loads(json.dumps(job.to_dict())))
    assert again == job
    assert again.metadata == job.metadata
    assert client.generate("x", metadata=labels).job.metadata == labels
    assert client.get_job("task-1").metadata == {}
    assert "metadata" not in client.submit("x").to_dict()


@pytest.mark.parametrize("bad", [7, ["a"], {1: 2}, {"a": math.nan}, {"a": object()}])
def test_labels_that_are_no_json_are_refused(bad: Any) -> None:
    """Before an image is bought that could not be kept."""
    service = FakeService()
    with pytest.raises(InvalidRequestError) as caught:
        service.client().generate("x", metadata=bad)
    assert caught.value.field == "metadata"
    assert not service.sent


# Refusals and what can be done again ------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "error: NSFW content", "Failed: violates our content policy", "moderated",
        "ContentModerationFailed", "Blocked", "error: prompt flagged", "failed (safety)",
    ],
)  # fmt: skip
def test_a_refusal_is_told_from_a_failure(word: str) -> None:
    """The same words are refused again; a person has to change them."""
    with pytest.raises(JobRefusedError) as caught:
        FakeService().progress(0.5).answers({"status": word}).client().generate("x")
    assert (caught.value.code, caught.value.retryable) == ("job_refused", False)


@pytest.mark.parametrize("word", ["error: out of memory", "Failed", "aborted", "timed out"])
def test_a_failure_is_no_refusal(word: str) -> None:
    """Another submit may succeed."""
    with pytest.raises(JobFailedError) as caught:
        FakeService().answers({"status": word}, at="progress").client().generate("x")
    assert type(caught.value) is JobFailedError
    assert caught.value.retryable is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [(401, AuthenticationError), (403, PermissionDeniedError), (400, APIStatusError)],
)
def test_credentials_have_errors_of_their_own(code: int, kind: type[APIStatusError]) -> None:
    """Both are an `APIStatusError`."""
    with pytest.raises(APIStatusError) as caught:
        FakeService().refuses(status=code).client().submit("x")
    assert type(caught.value) is kind


JOB = ImageLabs().get_job("task-1")
RETRYABLE: list[tuple[ImageLabsError, bool | None]] = [
    (InvalidRequestError("x"), False),
    (APIConnectionError("x", delivered="no"), True),
    (APIConnectionError("x"), None),
    (APIConnectionError("x", job=JOB), True),
    (ForbiddenAddressError("x"), False),
    (APIStatusError("x", status_code=503, delivered="no"), True),
    (APIStatusError("x", status_code=502), None),
    (APIStatusError("x", status_code=502, job=JOB), True),
    (APIStatusError("x", status_code=404, delivered="yes"), False),
    (APIStatusError("x", status_code=404, job=JOB), False),
    (RateLimitError("x", status_code=429, delivered="no"), True),
    (ChallengeError("x", status_code=403, delivered="no"), False),
    (APIResponseError("x"), None),
    (APIResponseError("x", delivered="yes"), False),
    (APIResponseError("x", job=JOB), True),
    (SubmissionUnknownError("x"), None),
    (JobFailedError("x"), None),
    (JobRefusedError("x"), False),
    (JobTimeoutError("x"), True),
    (JobStalledError("x"), True),
    (JobStoppedError("x", delivered="no"), True),
    (DownloadError("x"), True),
    (DownloadError("x", status_code=404), False),
    (DownloadError("x", code="forbidden_address"), False),
    (DownloadError("x", status_code=503), True),
    (ImageLabsError("x"), None),
]


@pytest.mark.parametrize(("error", "retryable"), RETRYABLE)
def test_each_error_says_whether_doing_it_again_can_help(
    error: ImageLabsError, retryable: bool | None
) -> None:
    """One rule for loops, queues and people; `None` where it would buy another image."""
    assert error.retryable is retryable


# Raw answers --------------------------------------------------------------------------------------


def polled(**answer: object) -> Progress:
    """Return what one poll says that is answered with this JSON."""
    return FakeService().answers(answer, at="progress").client().submit("x").refresh()


def test_an_answer_is_kept_with_what_is_not_read() -> None:
    """The protocol is not documented: tomorrow's fields must not be lost."""
    progress = polled(status="Queued", progress=0, queue_position=4, worker={"name": "gpu-7"})
    assert progress.raw["worker"] == {"name": "gpu-7"}
    assert progress.queue_position == 4


def test_what_an_answer_quotes_is_redacted_everywhere() -> None:
    """Also in fields that nobody knows."""
    words = "a lighthouse at dusk"
    answer = {"status": "Running", "echo": [{"prompt": words, words: 1}], "info": {"prompt": words}}
    progress = FakeService().answers(answer, at="progress").client().submit(words).refresh()
    assert "lighthouse" not in f"{progress.raw} {progress.info}"


@pytest.mark.parametrize(
    ("fields", "position"),
    [
        ({"status": "Queue position 2"}, 2),
        ({"status": "3"}, 3),
        ({"status": 5}, 5),
        ({"status": "queued (place 12 of 40)"}, 12),
        ({"status": "queued", "position": 6}, 6),
        ({"status": "queued", "position": True}, None),
        ({"status": "queued"}, None),
        ({"status": "Processing", "progress": 0.5, "queue_position": 1}, None),
    ],
)
def test_the_place_in_the_queue_is_read(fields: dict[str, Any], position: int | None) -> None:
    """From a field, or from the words; only while the job waits."""
    assert polled(**fields).queue_position == position


def test_an_image_tells_how_it_was_made() -> None:
    """If the service does."""
    made = {"model": "sdxl-turbo", "steps": 4, "seed": 7}
    answer = {"status": "Done", "final_image_url": "/x.png", "info": made}
    image = FakeService().answers(answer, at="progress").client().generate("x")
    assert image.info == made
    assert FakeService().client().generate("x").info is None
    assert polled(status="Processing", info="fast").info is None


def test_a_very_long_answer_is_not_kept() -> None:
    """A job remembers many polls."""
    progress = polled(status="Processing", progress=0.5, junk="x" * 70_000, info={"a": 1})
    assert (progress.raw, progress.info, progress.fraction) == ({}, None, 0.5)
