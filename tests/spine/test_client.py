"""The facade: from a prompt to an image, bad input refused, nothing secret shown."""

import logging
import math
import traceback
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from imagelabs_sdk import (
    APITimeoutError,
    HttpResponse,
    ImageLabs,
    ImageLabsError,
    ImageRequest,
    InvalidRequestError,
    Job,
    Progress,
    RequestsTransport,
    State,
)
from imagelabs_sdk.testing import FakeService
from imagelabs_sdk.testing.script import png
from imagelabs_sdk.testing.transport import FakeTransport

# The way ------------------------------------------------------------------------------


def test_a_prompt_becomes_an_image() -> None:
    """The promise of the whole library, in one line of the caller's."""
    service = FakeService().queued().progress(0.5).done()
    seen: list[Progress] = []
    client = service.client(poll_interval=1)
    image = client.generate("a lighthouse", width=40, seed=7, on_progress=seen.append)
    assert [(p.state, p.fraction) for p in seen] == [
        (State.QUEUED, 0.0),
        (State.RUNNING, 0.5),
        (State.DONE, 1.0),
    ]
    assert image.url == "https://imagelabs.test/images/task-1-1.png"
    assert image.task_id == "task-1"
    assert attrs.astuple(image.timings) == (2.0, 1.0, 3.0, 3)
    assert image.request.seed == 7
    service.assert_submitted_once(prompt="a lighthouse", seed=7, subseed=image.request.subseed)
    assert service.sent[1].fields == {"task_id": "task-1"}
    assert image.read() == png(40, image.request.height)


def test_options_and_a_ready_request_are_the_same() -> None:
    """Whoever builds requests ahead should not have to take them apart."""
    options: Any = {"width": 512, "height": 640, "seed": 1, "subseed": 2, "negative_prompt": "fog"}
    service = FakeService()
    client = service.client()
    client.submit("x", **options)
    client.submit(ImageRequest("x", **options))
    assert service.sent[0].fields == service.sent[1].fields


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c: c.generate(" "), "prompt"),
        (lambda c: c.submit("x", wdith=512), "wdith"),
        (lambda c: c.submit("x", nonsense=1), "nonsense"),
        (lambda c: c.submit(ImageRequest("x"), width=512), "width"),
        (lambda c: c.generate("x", timeout=-1), "timeout"),
        (lambda c: c.generate("x", timeout="5"), "timeout"),
        (lambda c: c.submit("x", timeout=math.nan), "timeout"),
        (lambda c: c.get_job(""), "task_id"),
        (lambda c: c.get_job(None), "task_id"),
        (lambda c: c.get_job("t").wait(timeout=-1), "timeout"),
        (lambda c: c.get_job("t").wait(timeout=True), "timeout"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    call: Callable[[ImageLabs], object], field: str
) -> None:
    """A call that cannot succeed must not cost an image."""
    service = FakeService()
    with pytest.raises(InvalidRequestError) as caught:
        call(service.client())
    assert caught.value.field == field
    assert not service.sent


def test_no_time_at_all_buys_nothing() -> None:
    """0 seconds is a valid answer of a loop that has run out of time; the same rule everywhere."""
    service = FakeService()
    with pytest.raises(APITimeoutError) as caught:
        service.client().submit("x", timeout=0)
    assert (caught.value.delivered, caught.value.code) == ("no", "api_timeout")
    assert not service.sent


def test_a_transport_that_was_passed_in_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner closes it."""
    monkeypatch.setattr(FakeTransport, "close", lambda _: pytest.fail("it is not the client's"))
    with FakeService().client() as client:
        client.submit("x")


def test_the_reference_providers_names_are_there() -> None:
    """People who come from it look for these."""
    assert ImageLabs.url == "https://editor.imagelabs.net"
    assert ImageLabs.api_endpoint == "https://editor.imagelabs.net/txt2img"
    assert ImageLabs.working is True
    assert ImageLabs.default_model == ImageLabs.default_image_model == "sdxl-turbo"
    assert ImageLabs.models == ImageLabs.image_models == ["sdxl-turbo"]
    assert ImageLabs.get_model("dall-e-9") == "sdxl-turbo"


def test_a_client_shows_its_service_only() -> None:
    """A repr is for people."""
    assert repr(ImageLabs("https://h.test")) == "<ImageLabs https://h.test>"


# What is shown ------------------------------------------------------------------------

QUOTED = "a lighthouse at dusk"
ECHOES: list[HttpResponse] = [
    HttpResponse(400, {}, b'{"error": "bad prompt: A Lighthouse at dusk, cookie WHISPER"}'),
    HttpResponse(500, {}, b'{"error": "cookie session=whisper is stale"}'),
    HttpResponse(200, {}, b'{"error": "do not draw \'a lighthouse at dusk\'"}'),
    HttpResponse(200, {}, b"<html>a lighthouse at dusk is not allowed</html>"),
]


@pytest.mark.parametrize("echo", ECHOES)
def test_a_service_that_quotes_us_is_not_quoted(
    echo: HttpResponse, caplog: pytest.LogCaptureFixture
) -> None:
    """What it was told comes back in its words, and would end in our messages and logs."""
    caplog.set_level(logging.DEBUG)
    for service in (
        FakeService().answers(echo),
        FakeService().answers(echo, at="progress"),
        FakeService().fails("NSFW prompt 'a lighthouse at dusk'"),
    ):
        client = service.client(cookies={"session": "whisper"}, max_retries=0)
        with pytest.raises(ImageLabsError) as caught:
            client.generate(QUOTED, negative_prompt=QUOTED[:12])
        error = caught.value
        shown = f"{error!r} {error.args} {traceback.format_exception(error)} {caplog.text}"
        shown += repr(isinstance(error.job, Job) and error.job.progress)
        assert "lighthouse" not in shown.lower()
        assert "whisper" not in shown.lower()


def test_no_secret_is_shown_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    """Neither in a repr, nor in a log at any level, nor in an error."""
    caplog.set_level(logging.DEBUG)
    service = FakeService().progress(0.5).drops_connection().fails()
    client = service.client(cookies={"session": "hush"}, headers={"x-key": "hush"})
    with pytest.raises(ImageLabsError) as caught:
        client.generate("a whispered hush")
    job = caught.value.job
    assert isinstance(job, Job)
    shown: list[object] = [
        client,
        job,
        job.request,
        client._context,
        client._settings,
        service.sent[0].request,
        caught.value,
        caplog.text,
    ]
    shown.append(RequestsTransport(proxy="http://u:hush@h:1"))
    assert "hush" not in repr(shown)
    assert "16 characters" in caplog.text


def test_prompts_are_logged_only_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Some want to see what they draw."""
    caplog.set_level(logging.DEBUG)
    FakeService().client(log_prompts=True).generate("a lighthouse")
    assert "a lighthouse" in caplog.text


def test_the_log_has_two_lines_per_job_and_one_per_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Enough to follow a job; and what a request was, for those who look for trouble."""
    caplog.set_level(logging.DEBUG, "imagelabs_sdk")
    FakeService().progress(0.5).done().client(poll_interval=1).generate("a lighthouse")
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert lines == [
        "task task-1 accepted, prompt: 12 characters",
        "task task-1 done after 2.0 s, 2 polls",
    ]
    requests = [line for line in caplog.messages if line.startswith("POST")]
    base = "POST https://imagelabs.test"
    assert requests == [f"{base}/txt2img: 200", f"{base}/progress: 200", f"{base}/progress: 200"]
