"""Recording a conversation and replaying it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import (
    APIConnectionError,
    APITimeoutError,
    CassetteError,
    CassetteTransport,
    Deadline,
    FixedInterval,
    ForbiddenAddressError,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    InvalidRequestError,
    RequestsTransport,
)
from tests import faulty
from tests.faulty import PNG, FaultyServer
from tests.transports.recordings import PROMPT, answer, client_of, play, record, send


def test_a_conversation_over_sockets_is_replayed(server: FaultyServer, path: Path) -> None:
    """The same program gets the same image, and the server hears of it once."""
    server.scripts["/image.png"] = [faulty.reply(200, PNG)]
    with CassetteTransport(path, record=RequestsTransport()) as transport:
        client = ImageLabs(server.url, transport=transport, polling=FixedInterval(0.01))
        image = client.generate("a cat", seed=1)
        assert image.read() == PNG
    asked = len(server.asked)
    with CassetteTransport(path) as replay:
        client = ImageLabs(server.url, transport=replay, polling=FixedInterval(0.01))
        again = client.generate("a cat", seed=1)
        with pytest.raises(CassetteError, match=r"not sent:\n  GET .*/image\.png"):
            replay.assert_all_used()
        assert again.read() == image.read()
        replay.assert_all_used()
    assert len(server.asked) == asked + 1  # the image was read twice while it was recorded


def test_another_request_says_what_was_asked_and_recorded(path: Path) -> None:
    """It is no error of the library, so that no retry and no handler of those hides it."""
    record(path)
    with pytest.raises(CassetteError) as caught:
        client_of(CassetteTransport(path, ignore=["reference_image"])).generate(
            "x", seed=1, subseed=9
        )
    assert "POST https://api.test/txt2img is not as" in str(caught.value)
    assert "subseed is '9', recorded was '2'" in str(caught.value)
    assert caught.value.asked is not None
    assert caught.value.asked["json"]["subseed"] == "9"
    assert caught.value.recorded[0]["json"]["subseed"] == "2"


def test_an_unknown_request_is_refused_with_what_is_left(path: Path) -> None:
    """A poll of another task is of another kind."""
    record(path)
    replay = CassetteTransport(path)
    with pytest.raises(CassetteError, match="progress of task other is not") as caught:
        client_of(replay).get_job("other").poll()
    assert "of task task-1" in str(caught.value)
    with pytest.raises(CassetteError, match="nothing"):
        send(play(path.with_name("empty.json")))


def test_fields_may_be_ignored(path: Path) -> None:
    """A client picks new seeds where none are given."""
    record(path)
    replay = CassetteTransport(path, ignore=["seed", "subseed", "reference_image"])
    client_of(replay).generate("x")


@pytest.mark.parametrize("kind", [APIConnectionError, APITimeoutError, ForbiddenAddressError])
def test_a_failure_is_replayed(path: Path, kind: type[APIConnectionError]) -> None:
    """With what it says about the request's fate, and without its words."""
    replay = play(path, kind("proxy hush", delivered="no"))
    assert "hush" not in path.read_text()
    with pytest.raises(kind) as caught:
        send(replay)
    assert type(caught.value) is kind
    assert caught.value.delivered == "no"


def test_a_body_that_breaks_off_does_so_again(path: Path) -> None:
    """After the same bytes."""

    def half() -> Iterator[bytes]:
        yield b"half"
        raise APIConnectionError("broke off", delivered="maybe")

    replay = play(path, HttpResponse(200, {}, half()))
    response = replay.send(
        HttpRequest(method="GET", url="https://h.test/x"), deadline=Deadline.after(5)
    )
    pieces = response.iter_bytes()
    assert next(pieces) == b"half"
    with pytest.raises(APIConnectionError):
        next(pieces)


@pytest.mark.parametrize(
    "body", [b"", b"plain text", b"\xff\xfe\x00", b'{"a": "\xc3\xb6"}', b"[1, 2]"]
)
def test_any_body_is_kept(path: Path, body: bytes) -> None:
    """As JSON, as text or as base64."""
    assert send(play(path, HttpResponse(200, {}, body))) == body


def test_a_response_may_be_closed_twice_and_unread(path: Path) -> None:
    """It is recorded once."""
    with CassetteTransport(path, record=HandlerTransport(answer)) as transport:
        response = transport.send(
            HttpRequest(method="GET", url="https://h.test/x"), deadline=Deadline.after(5)
        )
        response.close()
        response.close()
    replay = CassetteTransport(path)
    assert send(replay) == b""
    replay.assert_all_used()


def test_a_recording_replaces_no_file(path: Path) -> None:
    """It may have been bought."""
    path.write_text("mine")
    with pytest.raises(InvalidRequestError, match="delete it to record again"):
        CassetteTransport(path, record=HandlerTransport(answer))
    assert path.read_text() == "mine"


EXCHANGE = {"request": {"method": "GET", "url": "u"}, "response": {"status": 200, "headers": {}}}


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        {},
        {"imagelabs_cassette": 2},
        {"exchanges": [{}]},
        {"exchanges": [{**EXCHANGE, "request": {"method": "GET"}}]},
        {"exchanges": [{**EXCHANGE, "response": {}}]},
        {"exchanges": [{**EXCHANGE, "response": {"status": 200}}]},
        {"exchanges": [{**EXCHANGE, "response": {"error": {"code": "x"}}}]},
        {"exchanges": [{**EXCHANGE, "response": {"status": 200, "headers": {}, "base64": "ü"}}]},
    ],
)
def test_what_is_no_cassette_is_refused(path: Path, content: Any) -> None:
    """When it is opened, not in the middle of a test."""
    whole = {"imagelabs_cassette": 1, "keeps_prompts": True}
    path.write_text(content if isinstance(content, str) else json.dumps({**whole, **content}))
    with pytest.raises(InvalidRequestError, match="is no cassette"):
        CassetteTransport(path)


def test_a_disk_that_is_full_costs_no_job(tmp_path: Path) -> None:
    """The image comes; closing the cassette says that it is not written."""
    folder = tmp_path / "gone"
    folder.mkdir()
    transport = CassetteTransport(folder / "x.json", record=HandlerTransport(answer))
    (folder / "x.json").unlink()
    folder.rmdir()
    assert client_of(transport).generate(PROMPT).read()
    with pytest.raises(FileNotFoundError):
        transport.close()


def test_no_time_left_means_that_nothing_is_replayed(path: Path) -> None:
    """As for every transport."""
    replay = play(path, HttpResponse(200, {}, b"x"))
    with pytest.raises(APITimeoutError):
        replay.send(HttpRequest(method="GET", url="https://h.test/x"), deadline=Deadline.after(0))
    assert send(replay) == b"x"
