"""The same scripts over a real socket."""

import socket
import threading

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APITimeoutError,
    DownloadError,
    ImageLabs,
    JobFailedError,
    RateLimitError,
    SubmissionUnknownError,
)
from imagelabs_sdk.testing import FakeService, serve_in_thread
from imagelabs_sdk.testing.script import png


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "imagelabs-fake"]


def test_a_client_that_knows_nothing_of_the_fake_gets_its_image() -> None:
    """Any client, in any language, can be tested against it."""
    service = FakeService().queued().progress(0.5).done()
    with serve_in_thread(service) as url, ImageLabs(url, poll_interval=0.01) as client:
        image = client.generate("a cat", width=8, height=8)
        assert image.read() == png(8, 8)
        assert image.url.startswith(url)
        assert url.startswith("http://127.0.0.1:")
    service.assert_submitted_once(prompt="a cat")
    assert service.count("progress") == 3
    assert service.sent[0].request.headers["content-type"] == "application/json"
    assert not threads()


def test_failures_are_real() -> None:
    """Connections close, bodies break off, answers do not come."""
    service = FakeService()
    service.job().drops_connection()
    service.job().unreachable()
    service.job().answers(APIConnectionError("gone"))
    service.job().hangs()
    with serve_in_thread(service) as url, ImageLabs(url, request_timeout=0.5) as client:
        for timed_out in (False, False, False, True):
            with pytest.raises(SubmissionUnknownError) as caught:
                client.submit("a cat")
            assert isinstance(caught.value.__cause__, APITimeoutError) is timed_out
    assert [submit.task_id for submit in service.submits] == [None] * 4


def test_a_refusal_has_its_headers_and_words() -> None:
    """As the service would send them."""
    service = FakeService()
    service.job().rate_limited(retry_after=3)
    service.job().fails("NSFW")
    with (
        serve_in_thread(service) as url,
        ImageLabs(url, poll_interval=0.01, max_retries=0) as client,
    ):
        with pytest.raises(RateLimitError) as caught:
            client.submit("a cat")
        assert caught.value.retry_after == 3
        with pytest.raises(JobFailedError, match="NSFW"):
            client.generate("a cat")


def test_half_an_image_is_none() -> None:
    """Its length was told, so that everybody can see that it broke off."""
    service = FakeService().half_image()
    with (
        serve_in_thread(service) as url,
        ImageLabs(url, polling=service.clock.every(1)) as client,
        pytest.raises(DownloadError, match="broke off"),
    ):
        client.generate("a cat").read()


def test_an_idle_connection_does_not_keep_the_server_open() -> None:
    """A test ends when its block ends, whatever clients forget to close."""
    with serve_in_thread(FakeService()) as url:
        port = int(url.rpartition(":")[2])
        idle = socket.create_connection(("127.0.0.1", port))
        busy = ImageLabs(url)
        busy.submit("a cat")
    assert not threads()
    idle.close()
    busy.close()


def test_a_client_that_goes_away_is_no_event(capsys: pytest.CaptureFixture[str]) -> None:
    """The output of a test is its own."""
    with serve_in_thread(FakeService()) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"POST /txt2img HTTP/1.1\r\ncontent-length: many\r\n\r\n")
            assert sock.recv(1) == b""
    assert capsys.readouterr().err == ""
