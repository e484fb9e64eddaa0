"""What has arrived is not lost over a formality of HTTP."""

import gzip
import zlib
from collections.abc import Callable

import pytest
import requests

from imagelabs_sdk import (
    DownloadError,
    ImageLabs,
    ImageLabsError,
    RequestsTransport,
    SubmissionUnknownError,
)
from tests import faulty
from tests.faulty import PNG, FaultyServer, message
from tests.spine.samples import encoded
from tests.spine.test_secrets import shown
from tests.transports.peers import squeezed

Connect = Callable[..., ImageLabs]

ACCEPTED = b'{"task_id": "t1"}'
WRONG_CHECKSUM = squeezed(ACCEPTED)[:-8] + b"\0" * 8
CODED = {
    "gzip that is not named": ("", squeezed(ACCEPTED)),
    "gzip that is named deflate": ("deflate", squeezed(ACCEPTED)),
    "zlib that is named gzip": ("gzip", zlib.compress(ACCEPTED)),
    "gzip twice, named once": ("gzip", squeezed(squeezed(ACCEPTED))),
    "gzip twice, named twice": ("gzip, gzip", squeezed(squeezed(ACCEPTED))),
    "plain, named deflate": ("deflate", ACCEPTED),
    "plain, named twice": ("deflate, gzip", ACCEPTED),
    "plain, named zstd": ("zstd", ACCEPTED),
    "a page that looks like zlib, named gzip": ("gzip", b"xx" + ACCEPTED),
    "a wrong checksum": ("gzip", WRONG_CHECKSUM),
    "no checksum": ("gzip", squeezed(ACCEPTED)[:-8]),
    "gzip cut after the id": ("gzip", gzip.compress(ACCEPTED + bytes(range(256)) * 9)[:-200]),
}


@pytest.mark.parametrize("kind", CODED)
def test_a_task_id_is_read_whatever_was_done_to_the_body(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """Proxies compress what is compressed, and name what they do not do."""
    coding, body = CODED[kind]
    headers = [("Content-Encoding", coding)] if coding else []
    server.scripts["/txt2img"] = [faulty.reply(200, body, *headers)]
    assert connect(server).submit("x").id == "t1"


def test_a_broken_body_is_no_image(server: FaultyServer, connect: Connect) -> None:
    """Leniency ends where the bytes do not make a whole image."""
    body = squeezed(PNG)[:-20]
    server.scripts["/image.png"] = [faulty.reply(200, body, ("Content-Encoding", "gzip"))]
    with pytest.raises(DownloadError):
        connect(server).generate("x").read(timeout=0.3)


HELD_OPEN = {
    "a length that is too large": [("Content-Length", "500")],
    "no length": [("Connection", "keep-alive")],
}


@pytest.mark.parametrize("kind", HELD_OPEN)
def test_a_task_id_is_kept_when_the_rest_never_comes(
    server: FaultyServer, connect: Connect, kind: str
) -> None:
    """What is there already must not wait for what is announced, and die with it."""
    whole = message(200, ACCEPTED, HELD_OPEN[kind])
    head = whole.replace(b"Content-Length: 17\r\n", b"")
    server.scripts["/txt2img"] = [faulty.hang(head)]
    assert connect(server, request_timeout=0.5).submit("x").id == "t1"


def test_an_answer_without_an_id_is_still_unknown_then(
    server: FaultyServer, connect: Connect
) -> None:
    """Half an id would be another job's."""
    head = message(200, b'{"task_id": "t', [("Content-Length", "500")])
    server.scripts["/txt2img"] = [faulty.hang(head)]
    with pytest.raises(SubmissionUnknownError):
        connect(server, request_timeout=0.3).submit("x")


def test_what_came_before_a_silence_is_not_asked_for_again(
    server: FaultyServer, connect: Connect
) -> None:
    """A line that breaks often would never bring a large image otherwise."""
    whole = encoded("PNG", size=(300, 200))
    tag = ("ETag", '"v1"')
    announced = [("Content-Length", str(len(whole))), ("Accept-Ranges", "bytes"), tag]
    rest = ("Content-Range", f"bytes 40000-{len(whole) - 1}/{len(whole)}")
    server.scripts["/image.png"] = [
        faulty.hang(message(200, whole[:40_000], announced)),
        faulty.reply(206, whole[40_000:], rest, tag),
    ]
    assert connect(server, request_timeout=0.5).generate("x").read() == whole
    assert server.asked[-1].headers["range"] == "bytes=40000-"


def test_a_connection_of_the_caller_reads_as_ever(server: FaultyServer) -> None:
    """Whoever reads so many bytes from a session of their own gets as many."""
    session = requests.Session()
    transport = RequestsTransport(session=session)
    ImageLabs(server.url, transport=transport, poll_interval=0.01).submit("x")
    server.scripts["/slow"] = [faulty.drip(b"slowly", message(200, b"", [("Content-Length", "6")]))]
    with session.get(server.url + "/slow", stream=True) as answer:
        assert answer.raw.read(6) == b"slowly"
    session.close()


LONGER = [("Content-Length", "500"), ("Content-Type", "application/json")]


@pytest.mark.parametrize("end", [faulty.raw, faulty.hang], ids=["closed", "held open"])
def test_a_poll_whose_answer_is_whole_is_read_although_more_was_announced(
    server: FaultyServer, connect: Connect, end: Callable[[bytes], faulty.Answer]
) -> None:
    """A wrong length is wrong each time: the finished image would never be seen."""
    done = b'{"status": "Done", "final_image_url": "/image.png"}'
    server.scripts["/progress"] = [end(message(200, done, LONGER))]
    assert connect(server, request_timeout=0.3).generate("x").read() == PNG
    assert server.count("/progress") == 1


def test_half_an_answer_to_a_poll_is_none(server: FaultyServer, connect: Connect) -> None:
    """ "Done" without the link, which is yet to come, would be a failure."""
    half = b'{"status": "Done", "final_image_url": "/ima'
    server.scripts["/progress"] = [faulty.raw(message(200, half, LONGER)), server.done()]
    assert connect(server).generate("x").read() == PNG


def test_the_error_of_a_submit_whose_answer_breaks_off_says_what_came(
    server: FaultyServer, connect: Connect
) -> None:
    """A person may find the id in it. Neither the error nor a frame quotes the prompt."""
    body = b'{"prompt": "a whisper", "ticket": "A-17", "x": "'
    server.scripts["/txt2img"] = [faulty.raw(message(200, body, LONGER))]
    with pytest.raises(SubmissionUnknownError, match="answered 200 application/json") as caught:
        connect(server).submit("a whisper")
    assert "which broke off: " in str(caught.value)
    assert "whisper" not in f"{caught.value} {caught.value.body}"
    assert [where for where, text in shown(caught.value).items() if "whisper" in text] == []


@pytest.mark.parametrize(
    "answer",
    [
        faulty.reply(500, b'{"error": "whisper"}'),
        faulty.reply(200, b'{"error": "whisper"}'),
        faulty.reply(200, b"no whisper"),
        faulty.reply(200, b"<title>Just a moment...</title>whisper"),
    ],
)
def test_no_frame_shows_an_answer_that_quotes_a_prompt(
    server: FaultyServer, connect: Connect, answer: faulty.Answer
) -> None:
    """Error trackers send local variables to places where no prompt belongs."""
    server.scripts["/txt2img"] = [answer]
    with pytest.raises(ImageLabsError) as caught:
        connect(server).submit("whisper")
    assert [where for where, text in shown(caught.value).items() if "whisper" in text] == []


def test_an_id_in_an_error_that_breaks_off_is_kept(server: FaultyServer, connect: Connect) -> None:
    """The status says that something went wrong, and the id that it was accepted before."""
    server.scripts["/txt2img"] = [faulty.raw(message(500, ACCEPTED, LONGER))]
    with pytest.raises(ImageLabsError) as caught:
        connect(server).submit("x")
    assert caught.value.task_id == "t1"
