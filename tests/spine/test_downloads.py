"""Fetching: only images are taken, and the service does not decide where we connect."""

import gzip
import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import (
    DownloadError,
    FixedInterval,
    GeneratedImage,
    ImageLabs,
    JobStoppedError,
)
from imagelabs_sdk.testing import FakeClock, FakeService
from tests import faulty
from tests.faulty import PNG, FaultyServer, chunked, message
from tests.spine.samples import CUT, NO_IMAGES, encoded

Connect = Callable[..., ImageLabs]
Make = Callable[..., GeneratedImage]
CHUNKED = [("Transfer-Encoding", "chunked")]
squeezed = partial(gzip.compress, mtime=0)  # the same in every worker of the test runner


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_not_saved(
    server: FaultyServer, image: Make, tmp_path: Path, kind: str
) -> None:
    """Whatever its Content-Type claims; said at once, with the job at hand."""
    it = image(faulty.reply(200, NO_IMAGES[kind], ("Content-Type", "image/png")))
    for attempt in (lambda: it.save(tmp_path / "x.png"), it.read):
        with pytest.raises(DownloadError) as caught:
            attempt()
        assert caught.value.task_id == "task-1"
        assert caught.value.job == it.job
        assert caught.value.url == it.url
    assert list(tmp_path.iterdir()) == []
    assert server.count("/image.png") == 2


@pytest.mark.parametrize("kind", CUT)
def test_an_image_that_breaks_off_is_fetched_again(
    server: FaultyServer, image: Make, tmp_path: Path, kind: str
) -> None:
    """A GET may be repeated; half an image is none."""
    it = image(CUT[kind], faulty.reply(200, PNG))
    assert it.save(tmp_path / "x.png").read_bytes() == PNG
    assert server.count("/image.png") == 2


def test_a_passing_failure_is_outlasted(server: FaultyServer, image: Make, tmp_path: Path) -> None:
    """Five attempts; then the last error is told."""
    assert image(faulty.reply(503), faulty.reset(), faulty.reply(200, PNG)).read() == PNG
    server.asked.clear()
    with pytest.raises(DownloadError) as caught:
        image(faulty.reply(500)).read()
    assert caught.value.status_code == 500
    assert server.count("/image.png") == 5


@pytest.mark.parametrize("code", [400, 401, 402, 451])
def test_a_refused_image_is_said_at_once(server: FaultyServer, image: Make, code: int) -> None:
    """Asking on cannot help."""
    with pytest.raises(DownloadError, match=str(code)) as caught:
        image(faulty.reply(code)).read()
    assert caught.value.status_code == code
    assert server.count("/image.png") == 1


@pytest.mark.parametrize(
    "answer",
    [
        faulty.reply(200, PNG + bytes(1000)),
        faulty.raw(message(200, chunked(PNG, bytes(1000)), CHUNKED)),
        faulty.endless(
            b"10\r\n" + bytes(16) + b"\r\n", message(200, chunked(PNG, end=b""), CHUNKED)
        ),
        faulty.raw(b"HTTP/1.1 200 OK\r\n\r\n" + PNG + bytes(1000)),
        faulty.reply(200, squeezed(PNG + bytes(1000)), ("Content-Encoding", "gzip")),
    ],
)
def test_an_image_over_the_cap_is_not_taken(
    image: Make, tmp_path: Path, answer: faulty.Answer
) -> None:
    """Whether its length is announced, found out, or endless."""
    it = image(answer, max_image_bytes=len(PNG) + 500)
    with pytest.raises(DownloadError, match="larger than"):
        it.save(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_the_first_bytes_may_come_one_by_one(image: Make) -> None:
    """Piece sizes are the network's business."""
    pieces = chunked(*(bytes([byte]) for byte in PNG))
    assert image(faulty.raw(message(200, pieces, CHUNKED))).read() == PNG


def leading_to(address: str, server: FaultyServer, connect: Connect, **more: Any) -> GeneratedImage:
    server.scripts["/progress"] = [server.done(address)]
    return connect(server, **more).generate("x")


@pytest.mark.parametrize(
    "location", ["javascript:alert(1)", "http://u:hush@h.test/", "http://[::1"]
)
def test_a_redirect_to_an_odd_address_is_refused(
    server: FaultyServer, image: Make, location: str
) -> None:
    """Each hop is judged like the first address."""
    with pytest.raises(DownloadError, match="the image's URL") as caught:
        image(faulty.reply(302, b"", ("Location", location))).read()
    assert "hush" not in str(caught.value)
    assert server.count("/image.png") == 1


@pytest.mark.parametrize(
    ("named", "sent"),
    [
        ("/out/a l\u00f6we.png", "/out/a%20l%C3%B6we.png"),
        ("out/x.png", "/out/x.png"),
        ('/o|{x}"<>^`.png?q=a b', "/o%7C%7Bx%7D%22%3C%3E%5E%60.png?q=a%20b"),
        ("/a%20b.png?sig=%2f%3D+/&x=%c3%a9#part", "/a%20b.png?sig=%2f%3D+/&x=%c3%a9"),
        ("/100%.png?a=%zz%7E", "/100%.png?a=%zz%7E"),
        (" /x.png\n", "/x.png"),
    ],
)
def test_an_address_is_sent_as_a_browser_would(
    server: FaultyServer, connect: Connect, named: str, sent: str
) -> None:
    """What needs it is encoded, and what is encoded stays to the letter: it may be signed."""
    server.scripts[sent.partition("?")[0]] = [faulty.reply(200, PNG)]
    image = leading_to(named, server, connect)
    assert image.url == server.url + sent
    assert image.read() == PNG
    assert server.asked[-1].path == sent


def test_a_location_is_utf_8(server: FaultyServer, image: Make) -> None:
    """No standard allows it, and servers send it; other bytes are taken one by one."""
    server.scripts["/l%C3%B6we.png"] = [faulty.reply(200, PNG)]
    server.scripts["/l%F6we.png"] = [faulty.reply(200, PNG)]
    head = b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: "
    assert image(faulty.raw(head + "l\u00f6we.png\r\n\r\n".encode())).read() == PNG
    assert image(faulty.raw(head + b"/l\xf6we.png\r\n\r\n")).read() == PNG


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"])
def test_a_link_into_the_callers_network_is_refused(
    server: FaultyServer, other: FaultyServer, connect: Connect, host: str
) -> None:
    """The server must not make us ask the caller's neighbours."""
    with pytest.raises(DownloadError, match="not a public address"):
        leading_to(f"http://{host}:{other.port}/image.png", server, connect).read()
    assert other.connections == 0


@pytest.mark.parametrize("mangled", ["http:/", "http:\\\\", "///", "\n ht\ttp:////"])
def test_a_mangled_link_is_judged_by_where_it_leads(
    server: FaultyServer, other: FaultyServer, connect: Connect, mangled: str
) -> None:
    """The API's own origin gets its cookies, the caller's neighbours get nothing."""
    server.scripts["/image.png"] = [faulty.reply(200, PNG)]
    link = f"{mangled}127.0.0.1:{server.port}/image.png"
    assert leading_to(link, server, connect, cookies="session=hush").read() == PNG
    assert server.asked[-1].headers["cookie"] == "session=hush"
    link = f"{mangled}127.0.0.1:{other.port}/image.png"
    with pytest.raises(DownloadError, match="not a public address"):
        leading_to(link, server, connect).read()
    assert other.connections == 0


def test_a_link_that_must_not_be_followed_is_refused_at_once(
    server: FaultyServer, other: FaultyServer, connect: Connect
) -> None:
    """Waiting and asking again cannot help, also not in another process; a setting may."""
    pauses: list[float] = []
    polling = FixedInterval(0.01, sleep=pauses.append)
    image = leading_to(f"{other.url}/image.png", server, connect, polling=polling)
    pauses.clear()
    with pytest.raises(DownloadError, match="allow_private_hosts=True") as caught:
        image.read()
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.code, error.retryable) == ("forbidden_address", False)
    assert pauses == []
    assert server.count("/progress") == 1
    assert other.connections == 0


def test_a_redirect_into_the_callers_network_is_refused(
    server: FaultyServer, other: FaultyServer, image: Make
) -> None:
    """Every hop is checked again."""
    it = image(faulty.reply(302, b"", ("Location", f"{other.url}/image.png")))
    with pytest.raises(DownloadError, match="not a public address"):
        it.read()
    assert other.connections == 0


def test_private_hosts_may_be_allowed(
    server: FaultyServer, other: FaultyServer, connect: Connect
) -> None:
    """A self-hosted service keeps its images where it likes; cookies stay at home."""
    image = leading_to(
        f"{other.url}/image.png",
        server,
        connect,
        allow_private_hosts=True,
        cookies="session=hush",
        headers={"x-key": "hush", "user-agent": "mine"},
    )
    assert image.read() == PNG
    assert "hush" in str(server.asked[0].headers)
    asked = other.asked[0].headers
    assert "hush" not in str(asked)
    assert not {"cookie", "origin", "referer", "x-requested-with", "content-type"} & set(asked)


def test_cookies_do_not_travel_with_a_redirect(
    server: FaultyServer, other: FaultyServer, connect: Connect
) -> None:
    """The API's own origin gets them, the next hop does not, and sets none either."""
    other.scripts["/image.png"] = [faulty.reply(200, PNG, ("Set-Cookie", "spy=1; Path=/"))]
    server.scripts["/image.png"] = [faulty.reply(302, b"", ("Location", f"{other.url}/image.png"))]
    client = connect(server, allow_private_hosts=True, cookies="session=hush")
    assert client.generate("x").read() == PNG
    client.submit("again")
    assert server.asked[2].headers["cookie"] == "session=hush"
    assert "cookie" not in other.asked[0].headers
    assert server.asked[-1].headers["cookie"] == "session=hush"


def test_a_relative_link_belongs_to_the_api(server: FaultyServer, connect: Connect) -> None:
    """Nobody has shown one, but it has one sensible meaning."""
    image = leading_to("/image.png", server, connect)
    assert image.url == f"{server.url}/image.png"
    assert image.read() == PNG


def test_redirects_are_followed_but_not_without_end(server: FaultyServer, image: Make) -> None:
    """Relative ones too."""
    server.scripts["/there.png"] = [faulty.reply(200, PNG)]
    assert image(faulty.reply(307, b"", ("Location", "there.png"))).read() == PNG
    with pytest.raises(DownloadError, match="without end"):
        image(faulty.reply(302, b"", ("Location", "/image.png"))).read()
    with pytest.raises(DownloadError, match="302"):
        image(faulty.reply(302)).read()
    with pytest.raises(DownloadError):
        image(faulty.reply(302, b"", ("Location", "http://[::1"))).read()


def test_https_does_not_fall_back_to_http() -> None:
    """What was asked for over TLS does not come in the clear."""
    answer = {"status": "Done", "final_image_url": "http://h.test/x.png"}
    image = FakeService().answers(answer, at="progress").client().generate("x")
    with pytest.raises(DownloadError, match="http:"):
        image.read()


# Short, broken off, resumed -----------------------------------------------------------

LARGE = encoded("PNG", size=(400, 300))
OTHER = LARGE[:150_000] + bytes([LARGE[150_000] ^ 1]) + LARGE[150_001:]  # alike, by its structure


def test_a_short_image_is_fetched_again_with_growing_pauses(
    server: FaultyServer, connect: Connect
) -> None:
    """The service says that it is done before its disk has all of it."""
    half, empty = faulty.reply(200, PNG[:40]), faulty.reply(200, b"")
    server.scripts["/image.png"] = [half, empty, half, half, faulty.reply(200, PNG)]
    clock = FakeClock()
    assert connect(server, polling=clock.every(0.01)).generate("x").read() == PNG
    assert clock.slept[-4:] == [0.5, 1.0, 2.0, 4.0]


def test_an_image_that_stays_short_is_an_error(server: FaultyServer, image: Make) -> None:
    """Whatever HTTP says of its length; after five attempts."""
    with pytest.raises(DownloadError, match="cut short after 40 bytes") as caught:
        image(faulty.reply(200, PNG[:40])).read()
    assert caught.value.url == f"{server.url}/image.png"
    assert server.count("/image.png") == 5


def test_a_wrong_length_does_not_cost_a_whole_image(server: FaultyServer, image: Make) -> None:
    """HTTP says that more was to come; by its own structure the image is there."""
    wrong = faulty.raw(message(200, PNG, [("Content-Length", "9999")]))
    assert image(wrong).read() == PNG
    assert b"".join(image(wrong).iter_bytes()) == PNG


def in_parts(data: bytes, validator: tuple[str, str], broken: int, more: Any = ()) -> faulty.Answer:
    """Honours ranges as a file server does; the first `broken` answers end after 100,000 bytes."""
    left = [broken]

    def answer(wire: faulty.Wire) -> None:
        asked = wire.asked.headers
        start = 0
        headers = [("Accept-Ranges", "bytes"), validator, *more]
        if "range" in asked and asked["if-range"] == validator[1]:
            start = int(asked["range"].removeprefix("bytes=").rstrip("-"))
            headers.append(("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"))
        body = data[start:]
        headers.append(("Content-Length", str(len(body))))
        if left[0]:
            left[0] -= 1
            wire.send(message(206 if start else 200, body[:100_000], headers))
            wire.close()
        else:
            wire.send(message(206 if start else 200, body, headers))

    return answer


ETAG = ("ETag", '"v1"')


def ranges(server: FaultyServer) -> list[str | None]:
    return [each.headers.get("range") for each in server.asked if each.method == "GET"]


@pytest.mark.parametrize(
    "validator", [ETAG, ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")], ids=str
)
def test_a_broken_download_goes_on_where_it_broke_off(
    server: FaultyServer, image: Make, tmp_path: Path, validator: tuple[str, str]
) -> None:
    """Where the server offers it; also while streaming, where nothing can be taken back."""
    it = image(in_parts(LARGE, validator, 2))
    assert it.save(tmp_path / "x.png").read_bytes() == LARGE
    assert ranges(server) == [None, "bytes=100000-", "bytes=200000-"]
    assert b"".join(image(in_parts(LARGE, validator, 2)).iter_bytes()) == LARGE


def test_a_part_of_another_version_is_not_joined(
    server: FaultyServer, image: Make, tmp_path: Path
) -> None:
    """The server sends the new version from its beginning."""
    new = LARGE[:-1] + b"!"
    it = image(in_parts(LARGE, ETAG, 1), in_parts(new, ("ETag", '"v2"'), 0))
    assert it.save(tmp_path / "x.png").read_bytes() == new


@pytest.mark.parametrize(
    ("validator", "more"),
    [
        (("ETag", 'W/"v1"'), ()),
        (("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT"),
         [("Date", "Thu, 01 Jan 2026 00:00:00 GMT")]),
        (ETAG, [("Content-Encoding", "identity")]),
    ],
)  # fmt: skip
def test_what_is_not_surely_the_same_is_fetched_from_the_start(
    server: FaultyServer, image: Make, validator: tuple[str, str], more: Any
) -> None:
    """A weak validator does not promise equal bytes, nor does a file of this very second."""
    assert image(in_parts(LARGE, validator, 1, more)).read() == LARGE
    assert ranges(server) == [None, None]
    with pytest.raises(DownloadError, match="broke off"):
        list(image(in_parts(LARGE[:-1], validator, 1, more)).iter_bytes())


@pytest.mark.parametrize(
    "odd",
    [
        faulty.reply(416),
        faulty.reply(206, OTHER[100_000:], ("Content-Range", "bytes 7-9/9")),
        faulty.reply(206, LARGE),
        faulty.reply(503),
    ],
)
def test_an_odd_answer_to_a_range_is_outlasted(
    server: FaultyServer, image: Make, odd: faulty.Answer
) -> None:
    """Then from the start; nothing is joined that does not fit."""
    it = image(in_parts(LARGE, ETAG, 1), odd, in_parts(LARGE, ETAG, 0))
    assert it.read() == LARGE


def test_a_stream_is_not_begun_twice(server: FaultyServer, image: Make) -> None:
    """A server that offers a range and then sends all would repeat what was handed out."""
    it = image(in_parts(LARGE, ETAG, 1), faulty.reply(200, LARGE))
    with pytest.raises(DownloadError, match="cannot be resumed"):
        list(it.iter_bytes())


def test_a_stream_outlasts_what_fails_before_it(server: FaultyServer, image: Make) -> None:
    """As long as nothing was handed out it may begin again."""
    it = image(faulty.reply(503), faulty.reply(200, PNG[:5]), faulty.reply(200, PNG))
    assert b"".join(it.iter_bytes()) == PNG


# Time limits --------------------------------------------------------------------------


def test_a_steady_image_may_take_longer_than_one_request(
    server: FaultyServer, image: Make, tmp_path: Path
) -> None:
    """`request_timeout` bounds silence; the whole is the caller's."""
    steady = faulty.drip(PNG, message(200, b"", [("Content-Length", str(len(PNG)))]), every=0.02)
    path = image(steady, request_timeout=0.5).save(tmp_path / "x.png", timeout=30)
    assert path.read_bytes() == PNG
    assert server.count("/image.png") == 1


@pytest.mark.parametrize(
    "silence",
    [faulty.hang(), faulty.hang(message(200, PNG[:40], [("Content-Length", "70")]))],
    ids=["before the first byte", "in the body"],
)
def test_silence_ends_an_attempt_and_not_the_download(
    server: FaultyServer, image: Make, silence: faulty.Answer
) -> None:
    """The next attempt may do better."""
    it = image(silence, faulty.reply(200, PNG), request_timeout=0.2)
    assert it.read(timeout=30) == PNG
    assert server.count("/image.png") == 2


def test_a_head_that_drips_is_bounded_as_silence_is(server: FaultyServer, image: Make) -> None:
    """It has no end of its own."""
    endless = faulty.drip(b"z" * 2000, b"HTTP/1.1 200 OK\r\nX-Y: ", every=0.02)
    it = image(endless, faulty.reply(200, PNG), request_timeout=0.3)
    assert it.read(timeout=30) == PNG


@pytest.mark.parametrize(
    "script",
    [
        [faulty.hang()],
        [faulty.drip(PNG, message(200, b"", [("Content-Length", "70")]))],
        [faulty.reply(503)],
    ],
    ids=["silence", "a slow body", "a pause"],
)
def test_a_download_can_be_stopped(
    server: FaultyServer, image: Make, tmp_path: Path, script: list[faulty.Answer]
) -> None:
    """Wherever it stands, with the job at hand; and nothing is left behind."""
    it = image(*script, polling=FixedInterval(0.02))
    stop = threading.Event()
    timer = threading.Timer(0.1, stop.set)
    timer.start()
    with pytest.raises(JobStoppedError) as caught:
        it.save(tmp_path / "x.png", timeout=60, stop=stop)
    timer.join()
    assert caught.value.task_id == "task-1"
    assert list(tmp_path.iterdir()) == []


def test_a_preview_may_have_been_kept_with_an_odd_address(
    server: FaultyServer, connect: Connect
) -> None:
    """By another version, say: fetching it says what is wrong."""
    preview = connect(server).get_job("t").preview("javascript:x")
    assert preview is not None
    with pytest.raises(DownloadError, match="may not be javascript:"):
        preview.read()


def test_headers_for_an_image_host_do_not_follow_a_redirect(
    server: FaultyServer, other: FaultyServer, connect: Connect
) -> None:
    """A key for the host that the poll named is not shown to a host that a redirect names."""
    server.scripts["/image.png"] = [faulty.reply(200, PNG)]
    other.scripts["/start.png"] = [faulty.reply(302, b"", ("Location", "/next.png"))]
    other.scripts["/next.png"] = [
        faulty.reply(302, b"", ("Location", f"http://localhost:{other.port}/away.png"))
    ]
    other.scripts["/away.png"] = [faulty.reply(302, b"", ("Location", f"{other.url}/back.png"))]
    other.scripts["/back.png"] = [faulty.reply(200, PNG)]
    image = leading_to(
        f"{other.url}/start.png",
        server,
        connect,
        allow_private_hosts=True,
        image_headers={"x-key": "hush", "referer": "https://gallery.test/"},
    )
    assert image.read() == PNG
    sent = {asked.path: asked.headers for asked in other.asked}
    assert [name for name in sent if "x-key" in sent[name]] == [
        "/start.png",
        "/next.png",
        "/back.png",
    ]
    assert "hush" not in str(sent["/away.png"])
    assert "referer" not in sent["/away.png"]
    assert sent["/away.png"]["accept"].startswith("image/")


def test_headers_for_image_hosts_do_not_follow_a_redirect_away_from_the_service(
    server: FaultyServer, other: FaultyServer, image: Make
) -> None:
    """Here the poll named the service itself, so no other host gets them."""
    redirect = faulty.reply(302, b"", ("Location", f"{other.url}/image.png"))
    it = image(redirect, allow_private_hosts=True, image_headers={"x-key": "hush"})
    assert it.read() == PNG
    assert "hush" not in str([asked.headers for asked in (*server.asked, *other.asked)])
