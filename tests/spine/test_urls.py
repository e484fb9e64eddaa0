"""URLs: read as browsers do, and refused where a person would not click."""

from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagelabs_sdk import (
    ImageLabs,
    InvalidRequestError,
    JobFailedError,
)
from imagelabs_sdk.testing import FakeService
from imagelabs_sdk.urls import (
    RefusedURLError,
    from_header,
    image_url,
    resolve,
    to_ascii_host,
    without_query,
)
from tests import faulty
from tests.faulty import FaultyServer

BASE = "https://api.test/v1/progress"


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("https://h.test/x.png", "https://h.test/x.png"),
        ("HTTPS://H.Test:8443/X.png", "https://h.test:8443/X.png"),
        ("http://h.test", "http://h.test"),
        ("/out/x.png", "https://api.test/out/x.png"),
        ("out/x.png", "https://api.test/v1/out/x.png"),
        ("x.png", "https://api.test/v1/x.png"),
        ("x.png?n=1", "https://api.test/v1/x.png?n=1"),
        ("./x", "https://api.test/v1/x"),
        ("../x", "https://api.test/x"),
        ("/out/../x.png", "https://api.test/x.png"),
        ("/./x.png", "https://api.test/x.png"),
        ("out/7", "https://api.test/v1/out/7"),
        ("//cdn.test/x.png", "https://cdn.test/x.png"),
        ("\\\\cdn.test\\a\\x.png", "https://cdn.test/a/x.png"),
        ("https:/h.test/x.png", "https://h.test/x.png"),
        ("HTTPS:/H.test:8443/x.png", "https://h.test:8443/x.png"),
        ("http:////h.test//x.png", "http://h.test//x.png"),
        ("https:\\h.test\\x.png", "https://h.test/x.png"),
        ("https:\\/h.test/x.png", "https://h.test/x.png"),
        ("///cdn.test/x.png", "https://cdn.test/x.png"),
        ("/\\cdn.test/x.png", "https://cdn.test/x.png"),
        ("/\t/cdn.test/x.png", "https://cdn.test/x.png"),
        ("ht\ntps:\r\n//h.\ttest/7", "https://h.test/7"),
        ("https://h.test/a%20b.png ", "https://h.test/a%20b.png"),
        ("%20/x.png", "https://api.test/v1/%20/x.png"),
        ("https://h.test\\@127.0.0.1/x.png", "https://h.test/@127.0.0.1/x.png"),
        ("/x.png?a=\\", "https://api.test/x.png?a=%5C"),
        (" \t\nhttps://h.test/a\tb.png\r\n", "https://h.test/ab.png"),
        ("a l\u00f6we.png", "https://api.test/v1/a%20l%C3%B6we.png"),
        ("https://h.test/\u0661.png", "https://h.test/%D9%A1.png"),
        ("https://h.test/%7e%2F%zz", "https://h.test/%7e%2F%zz"),
        ("https://h.test/x.png#part", "https://h.test/x.png"),
        ("https://b\u00fccher.test/x.png", "https://xn--bcher-kva.test/x.png"),
        ("https://\u043f\u0440\u0438\u043c\u0435\u0440.test/x", "https://xn--e1afmkfd.test/x"),
        ("https://stra\u00dfe.test/x", "https://xn--strae-oqa.test/x"),
        ("https://h\u3002test/x", "https://h.test/x"),
        ("https://h.test:/x", "https://h.test/x"),
        ("https://[2606:4700::1111]:8443/x", "https://[2606:4700::1111]:8443/x"),
        ("https://under_score.test/x", "https://under_score.test/x"),
    ],
)
def test_a_url_is_read_as_a_browser_reads_it(named: str, meant: str) -> None:
    """Against the URL that answered; reading it again changes nothing."""
    assert image_url(named, BASE) == meant
    assert resolve(meant, "") == meant


REFUSED = [
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    " java\nscript:alert(1)",
    "file:///etc/passwd",
    "data:text/html,<script>",
    "ftp://h.test/x.png",
    "blob:https://h.test/7",
    "//",
    "http://",
    "https:///",
    "http:/?x.png",
    "http:x.png",
    "https:/user@h.test/x.png",
    "https:\\\\user:hush@h.test/x.png",
    "https://user@h.test/x.png",
    "https://user:hush@h.test/x.png",
    "https://:@h.test/x.png",
    "https://h.test:port/x.png",
    "https://h.test:0/x.png",
    "https://h.test:99999/x.png",
    "https://[::1/x.png",
    "https://[::1%25lo]/x.png",
    "https://%31%32%37.0.0.1/x.png",
    "https://loca%6chost/x.png",
    "https://h test/x.png",
    "https://\u00ad/x.png",
    "https://h.test/\ud800.png",
    "https://h.test/" + "x" * 9000,
    "not ready yet",
    "pending",
    "see a / b",
    "?x.png",
    "#x.png",
]


@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_be_an_images_url_is_refused(named: str) -> None:
    """Said in few words, without a password."""
    with pytest.raises(RefusedURLError) as caught:
        image_url(named, BASE)
    assert "hush" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("https://user:hush@h.test/x.png", "may not have credentials: https://…@h.test/x.png"),
        ("javascript:alert(1)", "may not be javascript:"),
        ("not ready yet", "is not the URL of an image: not ready yet"),
        ("https:///", "needs a host"),
        ("http:x.png", "needs a host"),
        ("https://h.test:0/x.png", "has a port that is none"),
    ],
)
def test_a_refusal_says_why(named: str, reason: str) -> None:
    """In words for who has to ask the service about it."""
    with pytest.raises(RefusedURLError, match=reason):
        image_url(named, BASE)


@pytest.mark.parametrize("named", [None, 7, [], {}, "", "  ", "null", "None", "N/A", "undefined"])
def test_no_url_is_no_url(named: object) -> None:
    """Services have many words for nothing."""
    assert image_url(named, BASE) is None


@given(st.text(max_size=60) | st.sampled_from(REFUSED), st.sampled_from(["", BASE, "http://h/"]))
def test_any_text_is_a_plain_url_or_refused(text: str, base: str) -> None:
    """What comes out every parser reads in the same way, and once is enough."""
    try:
        url = resolve(text, base)
    except RefusedURLError:
        return
    assert url.isascii()
    assert url.isprintable()
    assert url.startswith(("http://", "https://"))
    assert not set(url) & set(' <>#"\\^`{|}')
    assert resolve(url, base) == url


slashes = st.text("/\\", min_size=1, max_size=5)
ignored = st.text("\t\r\n", max_size=2)
hosts = st.sampled_from(["h.test", "10.0.0.1", "[::1]", "2130706433", "localhost", "h.test:81"])
paths = st.text(st.sampled_from("ab/.%2 \u00f6"), max_size=8).map("/a".__add__)


@given(st.sampled_from(["http", "https", ""]), slashes, hosts, paths, st.data())
def test_a_url_that_was_mangled_on_the_way_means_what_it_meant(
    scheme: str, mangled: str, host: str, path: str, data: st.DataObject
) -> None:
    """And the host that is checked is the one that is asked, however it is spelled."""
    marks = f"{scheme}:" if scheme else ""
    if not scheme and len(mangled) == 1:  # a path
        mangled += "/"
    begin = data.draw(st.sampled_from([marks + mangled + host, (marks + mangled + host).upper()]))
    around = st.text(" \t\n\x01", max_size=2)
    text = data.draw(ignored).join(begin) + path.replace("/", mangled[-1])
    url = image_url(data.draw(around) + text + data.draw(around), BASE)
    assert url == resolve(f"{scheme or 'https'}://{host}{path}", "")
    assert urlsplit(url).netloc == host


def test_a_relative_url_needs_a_base() -> None:
    """Without one it leads nowhere."""
    for named in ("/x.png", "x.png", "//h.test/x.png"):
        with pytest.raises(RefusedURLError):
            resolve(named, "")
    with pytest.raises(RefusedURLError, match="malformed"):
        resolve("x.png", "http://[bad")


def test_a_header_is_utf_8_or_bytes() -> None:
    """http.client reads it as Latin-1; another library may have read it as what it is."""
    assert from_header("l\u00f6we".encode().decode("latin-1")) == "l\u00f6we"
    assert from_header("/l\xf6we?%20") == "/l%F6we?%20"
    assert from_header("/\u0661") == "/\u0661"


def test_what_is_shown_of_a_url_holds_no_secret() -> None:
    """Neither a password nor a signature."""
    shown = without_query("https://user:hush@h.test/x.png?sig=hush#hush")
    assert shown == "https://\u2026@h.test/x.png"


def test_a_host_that_is_none_is_refused() -> None:
    """Nobody could be asked."""
    for host in ("", "a b", "\u00ad", "h/test"):
        with pytest.raises(RefusedURLError):
            to_ascii_host(host)


# What a job makes of them ---------------------------------------------------------------


@pytest.mark.parametrize("named", REFUSED[:3] + REFUSED[11:14] + ["not ready yet"])
def test_done_with_such_an_address_is_a_failed_job(
    server: FaultyServer, connect: Any, named: str
) -> None:
    """Not an image whose URL somebody puts into a page. Without its password."""
    server.scripts["/progress"] = [server.done(named)]
    with pytest.raises(JobFailedError, match="done, but the image's URL") as caught:
        connect(server).generate("x")
    assert "hush" not in str(caught.value)
    assert caught.value.task_id == "task-1"


def test_such_an_address_before_the_end_means_nothing(server: FaultyServer, connect: Any) -> None:
    """The job goes on; such a preview is none."""
    early = {"status": "Processing", "final_image_url": "javascript:x", "current_image_url": "null"}
    preview = {"status": "Processing", "current_image_url": "file:///x.png"}
    server.scripts["/progress"] = [
        faulty.reply(200, early),
        faulty.reply(200, preview),
        server.done(),
    ]
    seen: list[Any] = []
    image = connect(server).generate("x", on_progress=seen.append)
    assert image.url == f"{server.url}/image.png"
    assert [each.preview_url for each in seen] == [None, None, None]


def test_what_is_quoted_of_an_address_holds_no_prompt(server: FaultyServer, connect: Any) -> None:
    """A service may name a file by the prompt."""
    named = "ftp://h.test/a-secret-lighthouse.png"
    server.scripts["/progress"] = [server.done(named)]
    with pytest.raises(JobFailedError) as caught:
        connect(server).generate("a secret lighthouse")
    assert "lighthouse" not in str(caught.value)


@pytest.mark.parametrize(
    "named", [" https://b\u00fccher.test/v1/\n", "https://xn--bcher-kva.test/v1"]
)
def test_a_base_url_may_have_an_international_host(named: str) -> None:
    """Its origin header must be ASCII."""
    service = FakeService(url=named)
    service.client().submit("x")
    (submit,) = service.sent
    assert submit.request.url == "https://xn--bcher-kva.test/v1/txt2img"
    assert submit.request.headers["origin"].isascii()


def test_a_base_url_whose_host_is_no_name_is_refused() -> None:
    """By name, before anything is sent."""
    with pytest.raises(InvalidRequestError, match="base_url"):
        ImageLabs("https://\u00ad/")
