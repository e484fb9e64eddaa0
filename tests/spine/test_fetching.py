"""Fetching an image: what is taken although HTTP is odd, what is not joined, what an error says."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from imagelabs_sdk import DownloadError, GeneratedImage
from tests import faulty
from tests.faulty import PNG, FaultyServer, message
from tests.spine.samples import encoded
from tests.spine.test_secrets import shown

Make = Callable[..., GeneratedImage]
LARGE, OTHER = encoded("PNG", size=(300, 200)), encoded("PNG", size=(301, 200))
ETAG, RANGES = ("ETag", '"v1"'), ("Accept-Ranges", "bytes")
KIND = ("Content-Type", "image/png")


@pytest.mark.parametrize("status", [201, 202, 203])
def test_a_whole_image_is_taken_with_any_status_of_success(image: Make, status: int) -> None:
    """A proxy that changes an answer says 203. The image's own structure says if it is whole."""
    assert image(faulty.reply(status, PNG)).read() == PNG


@pytest.mark.parametrize("named", [f"bytes 0-{len(PNG) - 1}/{len(PNG)}", "bytes 0-69/*", None])
def test_a_part_that_is_the_whole_is_taken(image: Make, named: str | None) -> None:
    """Some caches answer 206 to who has asked for no part."""
    headers = [("Content-Range", named)] if named else []
    assert image(faulty.reply(206, PNG, *headers)).read() == PNG


def test_a_part_that_nobody_asked_for_is_not_taken(server: FaultyServer, image: Make) -> None:
    """It would be half an image."""
    part = faulty.reply(206, PNG[8:], ("Content-Range", f"bytes 8-{len(PNG) - 1}/{len(PNG)}"))
    assert image(part, faulty.reply(200, PNG)).read() == PNG
    assert server.count("/image.png") == 2


def start(of: bytes, validator: tuple[str, str]) -> faulty.Answer:
    length = ("Content-Length", str(len(of)))
    return faulty.raw(message(200, of[:40_000], [RANGES, validator, length]))


def rest(of: bytes, *headers: tuple[str, str]) -> faulty.Answer:
    named = ("Content-Range", f"bytes 40000-{len(of) - 1}/{len(of)}")
    return faulty.reply(206, of[40_000:], named, *headers)


MODIFIED = ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (start(LARGE, ETAG), rest(LARGE[:-1] + b"!", ("ETag", '"v2"'))),
        (start(LARGE, MODIFIED), rest(LARGE[:-1] + b"!", ("Last-Modified", "Fri, 02 Jan 2026"))),
        (start(LARGE, ETAG), rest(OTHER)),
    ],
    ids=["another tag", "another date", "another size"],
)
def test_a_part_of_another_version_is_not_joined_whatever_the_server_does(
    image: Make, first: faulty.Answer, second: faulty.Answer
) -> None:
    """Caches that do not know If-Range serve the rest of what they have now."""
    assert image(first, second, faulty.reply(200, OTHER)).read() == OTHER


def test_a_server_may_send_less_than_was_asked_for(server: FaultyServer, image: Make) -> None:
    """Then the next part is asked for, as often as it goes on."""

    def piece(wire: faulty.Wire) -> None:
        begin = int(wire.asked.headers.get("range", "bytes=0-")[6:-1])
        part, size = LARGE[begin : begin + 70_000], len(LARGE)
        if begin == 0:
            wire.send(message(200, part, [RANGES, ETAG, ("Content-Length", str(size))]))
            wire.close()
        else:
            named = ("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{size}")
            wire.send(message(206, part, [named, ETAG]))

    assert image(piece).read() == LARGE
    asked = [one.headers.get("range", "bytes=0-") for one in server.asked if "/image" in one.path]
    begins = [int(text[6:-1]) for text in asked]
    assert [b - a for a, b in pairwise(begins)] == [70_000] * (len(LARGE) // 70_000)


def test_a_line_that_breaks_often_brings_the_image_as_long_as_it_brings_more(
    server: FaultyServer, image: Make
) -> None:
    """Five attempts in vain are too many; five that each bring a part are not."""
    huge = encoded("PNG", size=(800, 300))

    def piece(wire: faulty.Wire) -> None:
        begin = int(wire.asked.headers.get("range", "bytes=0-")[6:-1])
        status = 206 if begin else 200
        headers = [RANGES, ETAG, ("Content-Length", str(len(huge) - begin))]
        headers += [("Content-Range", f"bytes {begin}-{len(huge) - 1}/{len(huge)}")] * bool(begin)
        wire.send(message(status, huge[begin : begin + 70_000], headers))
        wire.close()

    assert image(piece).read() == huge
    assert server.count("/image.png") > 7


def test_what_is_whole_is_not_waited_for_again_and_again(server: FaultyServer, image: Make) -> None:
    """A length that is too large: the rest never comes."""
    endless = faulty.hang(message(200, PNG, [("Content-Length", "500")]))
    assert image(endless, request_timeout=0.3).read() == PNG
    assert server.count("/image.png") == 2


GIVEN_UP = {
    "a page": (faulty.reply(200, b"<html>a", ("Content-Type", "text/html; charset=utf-8")),
               r"answered 200 text/html: what came is no image \(tried once\); fetch it again "),
    "half": (faulty.reply(200, PNG[:40], KIND),
             r"answered 200 image/png: the image broke off: it is cut short after 40 bytes "
             r"\(tried 5 times\); fetch it again later"),
    "nothing": (faulty.reply(200, b"", KIND), r"answered 200 image/png: .* after 0 bytes"),
    "an error": (faulty.reply(500, b"", ("Content-Type", "text/plain")),
                 r"answered 500 text/plain \(tried 5 times\); fetch it again later"),
    "no link": (faulty.reply(404), r"answered 404 \(tried once\); the link has expired"),
    "no key": (faulty.reply(401), r"answered 401 \(tried once\); check image_headers"),
    "a limit": (faulty.reply(429), r"answered 429 \(tried 5 times\); wait a while"),
    "a refusal": (faulty.reply(418), r"answered 418 \(tried once\); the link has expired"),
    "reset": (faulty.reset(), r"127.0.0.1:\d+: no answer .* \(tried 5 times\); fetch it again"),
    "large": (faulty.raw(message(200, PNG, [KIND, ("Content-Length", "9" * 15)])),
              r"answered 200 image/png: .* larger than .* raise max_image_bytes"),
    "odd redirect": (faulty.reply(302, b"", ("Location", "file:///x")),
                     r"answered 302: the image's URL may not be file:"),
    "no redirect": (faulty.reply(302), r"answered 302 \(tried once\)"),
    "a loop": (faulty.reply(302, b"", ("Location", "/image.png?sig=hush")),
               r"answered 302: it redirects without end"),
}  # fmt: skip


@pytest.mark.parametrize("kind", GIVEN_UP)
def test_the_error_says_what_was_asked_what_came_how_often_and_what_to_do(
    server: FaultyServer, image: Make, kind: str
) -> None:
    """One line in a log has to be enough; without the query, which may be a key."""
    answer, words = GIVEN_UP[kind]
    with pytest.raises(DownloadError) as caught:
        image(answer).read()
    assert caught.value.endpoint == f"GET {server.url}/image.png"
    assert re.match(f"GET {re.escape(server.url)}/image.png {words}", str(caught.value))
    assert str(caught.value).endswith("(task task-1)")
    assert "hush" not in str(caught.value)


def test_a_file_named_by_the_prompt_does_not_show_it(server: FaultyServer, connect: Any) -> None:
    """Neither does an answer that quotes it."""
    named = f"{server.url}/a-whispering-lighthouse.png"
    server.scripts["/progress"] = [server.done(named)]
    kind = ("Content-Type", "text/whispering")
    server.scripts["/a-whispering-lighthouse.png"] = [faulty.reply(404, b"", kind)]
    with pytest.raises(DownloadError) as caught:
        connect(server).generate("a whispering lighthouse").read()
    assert "whisper" not in f"{caught.value} {caught.value!r} {caught.value.endpoint}"


def test_no_frame_of_a_failed_download_shows_a_header_or_a_cookie(
    server: FaultyServer, connect: Any
) -> None:
    """It is what fails most often; error trackers send the local variables of its frames."""
    client = connect(server, api_key="hush", headers={"x-key": "mumble"}, cookies={"a": "sigh"})
    for answer in (faulty.reply(404), faulty.reply(200, b"<html>a groan")):
        server.scripts["/image.png"] = [answer]
        with pytest.raises(DownloadError) as caught:
            client.generate("x").read()
        for where, text in shown(caught.value).items():
            assert not re.search("hush|mumble|sigh|groan", text), where
