"""What a client was given: headers, cookies, the environment; and what is refused."""

import math
import pickle
from typing import Any

import pytest

from imagelabs_sdk import (
    FixedInterval,
    HttpRequest,
    ImageLabs,
    InvalidRequestError,
    RequestsTransport,
)
from imagelabs_sdk.settings import USER_AGENT
from imagelabs_sdk.testing import FakeService


def sent_by(**settings: Any) -> HttpRequest:
    """Return the submit that a client with these settings sends."""
    service = FakeService()
    ImageLabs(transport=service.transport(), **settings).submit("x")
    return service.sent[0].request


def test_settings_are_equal_by_value_and_show_no_secret() -> None:
    """Jobs of two equal clients are equal; and tools print what they find."""
    client = ImageLabs(cookies="a=hush", proxy="http://u:hush@h:1", api_key="hush")
    settings = client._settings
    assert settings == pickle.loads(pickle.dumps(settings))
    assert hash(settings) == hash(pickle.loads(pickle.dumps(settings)))
    assert settings != ImageLabs()._settings
    assert settings != "settings"
    assert repr(settings) == "<Settings for https://editor.imagelabs.net>"


def test_the_headers_are_the_reference_implementations() -> None:
    """What is known to pass is what is sent."""
    assert sent_by().headers == {
        "accept": "*/*",
        "accept-language": "en-US,en;q=0.9",
        "cache-control": "no-cache",
        "content-type": "application/json",
        "origin": "https://editor.imagelabs.net",
        "referer": "https://editor.imagelabs.net/",
        "x-requested-with": "XMLHttpRequest",
        "user-agent": USER_AGENT,
    }


def test_every_header_can_be_replaced_added_or_left_out() -> None:
    """Names in any case; `None` leaves one out."""
    headers = sent_by(headers={"User-Agent": "mine/1", "Referer": None, "X-Key": "k"}).headers
    assert headers["user-agent"] == "mine/1"
    assert "referer" not in headers
    assert headers["x-key"] == "k"


@pytest.mark.parametrize(
    "settings",
    [
        {"cookies": {"a": "1", "b": "2"}},
        {"cookies": "a=1; b=2"},
        {"cookies": "a=1;b=2;"},
        {"headers": {"Cookie": "a=1; b=2"}},
        {"headers": {"cookie": "a=9; b=2"}, "cookies": {"a": "1"}},
    ],
)
def test_cookies_come_as_mapping_text_or_header(settings: Any) -> None:
    """A browser shows them as one line."""
    request = sent_by(**settings)
    assert request.cookies == {"a": "1", "b": "2"}
    assert "cookie" not in request.headers


def test_the_environment_gives_defaults_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read when a client is made; what is asked for explicitly is obeyed."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", "http://127.0.0.1:9/base/")
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "12.5")
    monkeypatch.setenv("IMAGELABS_COOKIE", "cf_clearance=x")
    monkeypatch.setenv("IMAGELABS_USER_AGENT", "browser/1")
    monkeypatch.setenv("IMAGELABS_PROXY", "http://proxy.test:3128")
    client = ImageLabs()
    assert client.url == "http://127.0.0.1:9/base"
    assert client.api_endpoint == "http://127.0.0.1:9/base/txt2img"
    context = client._context
    assert context.settings.timeout == 12.5
    assert context.settings.cookies == {"cf_clearance": "x"}
    assert context.settings.headers["user-agent"] == "browser/1"
    assert context.settings.headers["origin"] == "http://127.0.0.1:9"
    proxied = RequestsTransport(proxy="http://proxy.test:3128", no_proxy=True)
    assert context.transport == proxied
    explicit = ImageLabs(
        "https://h.test",
        timeout=5,
        cookies={},
        proxy="http://p.test:1",
        headers={"user-agent": "x"},
    )._context
    assert (explicit.settings.timeout, explicit.settings.cookies) == (5.0, {})
    assert explicit.transport == RequestsTransport(proxy="http://p.test:1")
    assert explicit.settings.headers["user-agent"] == "x"


def test_a_bad_number_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote it must find it."""
    monkeypatch.setenv("IMAGELABS_TIMEOUT", "soon")
    with pytest.raises(InvalidRequestError, match="IMAGELABS_TIMEOUT='soon'"):
        ImageLabs()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        *[
            ({"base_url": bad}, "base_url")
            for bad in ("h.test", "ftp://h", "https://", "http://h:x")
        ],
        *[
            ({"base_url": f"https://h{bad}"}, "base_url")
            for bad in ("/?a=1", "/#x", ":0", ":99999")
        ],
        ({"base_url": "https://user:hush@h"}, "base_url"),
        ({"base_url": 7}, "base_url"),
        *[({"proxy": bad}, "proxy") for bad in ("h:hush@x", "ftp://u:hush@h", "http://", 7)],
        ({"proxy": "http://u:hush@h:port"}, "proxy"),
        ({"transport": FakeService().transport(), "proxy": "http://h:1"}, "transport"),
        ({"transport": FakeService().transport(), "verify": False}, "transport"),
        ({"polling": FixedInterval(), "poll_interval": 1}, "poll_interval"),
        *[({"poll_interval": bad}, "poll_interval") for bad in (0, -1, "1", math.nan)],
        *[({"timeout": bad}, "timeout") for bad in (0, -1, "1", True)],
        *[({"request_timeout": bad}, "request_timeout") for bad in (0, None)],
        *[({"max_retries": bad}, "max_retries") for bad in (-1, 1.0, True, 101)],
        *[({"max_image_bytes": bad}, "max_image_bytes") for bad in (0, 1.5)],
        *[
            ({"headers": bad}, "headers")
            for bad in ({"a b": "x"}, {7: "x"}, {"a": "hush\r\nb: c"}, ["hush"])
        ],
        *[({"headers": {"a": bad}}, "headers") for bad in ("hush\x00", "hush\u2603", 7)],
        *[({"cookies": bad}, "cookies") for bad in (7, {"a": "hush;b"}, {"a b": "hush"}, {"a": 7})],
        ({"cookies": "a=hush\nb"}, "cookies"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings: Any, field: str) -> None:
    """When the client is made, not in the first request; and secrets are not shown."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageLabs(**settings)
    assert caught.value.field == field
    assert "hush" not in str(caught.value)


# Hosts of images, and internationalized ones ---------------------------------------------


def test_headers_for_image_hosts_go_there_alone() -> None:
    """Some hosts of images want a referer or a key of their own."""
    elsewhere = {"status": "Done", "final_image_url": "https://images.test/images/task-1-1.png"}
    service = FakeService().answers(elsewhere, at="progress")
    headers = {"Referer": "https://gallery.test/", "x-key": "k"}
    service.client(image_headers=headers).generate("x").read()
    submit, *_, image = (one.request for one in service.sent)
    assert image.url == "https://images.test/images/task-1-1.png"
    assert image.headers["referer"] == "https://gallery.test/"
    assert image.headers["x-key"] == "k"
    assert "x-key" not in submit.headers


def test_a_cookie_for_image_hosts_is_refused() -> None:
    """No cookie leaves the API's origin."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageLabs(image_headers={"Cookie": "a=hush"})
    assert caught.value.field == "image_headers"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (" https://h.test/base/ \n", "https://h.test/base"),
        ("https://bücher.test:8443/x", "https://xn--bcher-kva.test:8443/x"),
        ("https://пример.test", "https://xn--e1afmkfd.test"),
        ("https://straße.test", "https://xn--strae-oqa.test"),
    ],
)
def test_an_address_is_read_as_browsers_read_it(given: str, url: str) -> None:
    """Copied with spaces around it, or in letters of any language; the origin is its A-label."""
    client = ImageLabs(given)
    assert client.url == url
    assert client._settings.headers["origin"] == "/".join(url.split("/")[:3])


def test_a_host_that_is_no_name_is_refused() -> None:
    """Before any request."""
    with pytest.raises(InvalidRequestError, match="base_url") as caught:
        ImageLabs("https://ü..test")
    assert caught.value.code == "malformed"
