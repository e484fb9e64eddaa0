"""Hosts, origins, tokens, addresses behind proxies, health, metrics and the page."""

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import HttpRequest, HttpResponse, InvalidRequestError
from imagelabs_sdk.server.access import AccessOptions, Gate, read_tokens
from imagelabs_sdk.server.app import App, Parked
from imagelabs_sdk.server.metrics import Metrics
from imagelabs_sdk.server.options import StoreLimits
from imagelabs_sdk.server.site import Site
from tests.server.conftest import Rig

JSON = {"content-type": "application/json"}
PEER = "127.0.0.1"


def make_site(rig: Rig, ready: bool = True, **access: Any) -> Site:
    gate = Gate(AccessOptions(**access), "127.0.0.1")
    return Site(App(rig.store, rig.engine), gate, lambda: ready, Metrics(rig.store).response)


def ask(
    site: Site,
    url: str = "http://localhost:8000/txt2img",
    headers: dict[str, str] | None = None,
    *,
    method: str = "POST",
    body: Any = None,
    peer: str = PEER,
) -> HttpResponse:
    data = b"" if method == "GET" else json.dumps(body or {"prompt": "x"}).encode()
    request = HttpRequest(method=method, url=url, headers=headers or {}, body=data)
    response = site.handle(request, peer)
    assert isinstance(response, HttpResponse)
    return response


def image_url(site: Site, rig: Rig, url: str, headers: dict[str, str], peer: str = PEER) -> str:
    """The address that a finished job names to who asks by `url`."""
    task_id = rig.submit()
    rig.finish()
    response = ask(site, url, headers, body={"task_id": task_id}, peer=peer)
    found = json.loads(response.read(10_000))["final_image_url"]
    return str(found).replace(task_id, "ID")


# Hosts and origins --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("127.8.8.8:1", 200),
        ("[::1]:8000", 200),
        ("images.example", 200),
        ("other.example", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("192.168.1.5", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[::1", 400),
        ("localhost:port", 400),
        ("evil.example@localhost", 400),
    ],
)
def test_only_known_hosts_are_served(rig: Rig, host: str, status: int) -> None:
    """A name of somebody else's that leads here would make their page ours."""
    site = make_site(rig, public_url="https://images.example/", allow_hosts=["other.example"])
    assert ask(site, f"http://{host}/txt2img").status == status


def test_any_host_may_be_allowed(rig: Rig) -> None:
    """For who stands behind something that checks it."""
    assert ask(make_site(rig, allow_hosts=["*"]), "http://any.example/txt2img").status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/x-www-form-urlencoded"}, 200),
        ({**JSON, "origin": "http://localhost:8000"}, 200),
        ({**JSON, "origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}, 200),
        ({**JSON, "origin": "https://friend.example"}, 200),
        ({**JSON, "origin": "https://friend.example", "sec-fetch-site": "cross-site"}, 200),
        ({**JSON, "origin": "https://evil.example"}, 403),
        ({**JSON, "origin": "http://localhost:8001"}, 403),
        ({**JSON, "origin": "null"}, 403),
        ({**JSON, "origin": "http://[::1"}, 403),
        ({**JSON, "sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain", "origin": "https://evil.example"}, 403),
        ({"content-type": "text/plain", "origin": "http://localhost:8000"}, 415),
        ({"content-type": "text/plain", "sec-fetch-site": "none"}, 415),
        ({"sec-fetch-site": "same-origin"}, 415),
    ],
)
def test_no_foreign_web_page_can_submit(rig: Rig, headers: dict[str, str], status: int) -> None:
    """Neither directly nor by a form; plain curl, which is no web page, goes on working."""
    site = make_site(rig, allow_origins=["https://friend.example"])
    assert ask(site, headers=headers).status == status
    assert rig.store.counts().queued == (status == 200)


def test_an_allowed_page_may_read_the_answers(rig: Rig) -> None:
    """A browser asks first, and hides what is not allowed."""
    site = make_site(rig, allow_origins=["https://friend.example"])
    origin = {"origin": "https://friend.example"}
    preflight = ask(site, headers=origin, method="OPTIONS")
    assert preflight.status == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    answer = ask(site, headers={**JSON, **origin})
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    task_id = json.loads(answer.read(1000))["task_id"]
    parked = site.handle(
        HttpRequest(
            method="POST",
            url="http://localhost/progress",
            headers={**JSON, **origin, "prefer": "wait=1"},
            body=json.dumps({"task_id": task_id}).encode(),
        ),
        PEER,
    )
    assert isinstance(parked, Parked)
    assert parked.answer().headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-origin" not in ask(site).headers


# Addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("public", "asked", "expected"),
    [
        ("", "http://localhost:8000/progress", "http://localhost:8000/image/ID.png"),
        ("https://x.example", "http://127.0.0.1/progress", "https://x.example/image/ID.png"),
        (
            "https://x.example/draw/",
            "http://127.0.0.1/progress",
            "https://x.example/draw/image/ID.png",
        ),
        (
            "https://x.example/draw",
            "http://127.0.0.1/draw/progress",
            "https://x.example/draw/image/ID.png",
        ),
    ],
)
def test_addresses_begin_with_the_public_one(
    rig: Rig, public: str, asked: str, expected: str
) -> None:
    """Whether the proxy takes the prefix away or leaves it."""
    assert image_url(make_site(rig, public_url=public), rig, asked, {}) == expected


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        ("10.1.2.3", {}, "http://localhost/image/ID.png"),
        (
            "10.1.2.3",
            {"x-forwarded-proto": "https", "x-forwarded-host": "evil.example, x.example"},
            "https://x.example/image/ID.png",
        ),
        (
            "10.1.2.3",
            {"x-forwarded-host": "x.example", "x-forwarded-prefix": "/draw"},
            "http://x.example/draw/image/ID.png",
        ),
        (
            "10.1.2.3",
            {"x-forwarded-host": "x/../y", "x-forwarded-proto": "ftp", "x-forwarded-prefix": "//z"},
            "http://localhost/image/ID.png",
        ),
        ("10.9.9.9", {"x-forwarded-host": "x.example"}, "http://localhost/image/ID.png"),
        ("", {"x-forwarded-host": "x.example"}, "http://localhost/image/ID.png"),
    ],
)
def test_only_named_proxies_say_what_was_asked_for(
    rig: Rig, peer: str, headers: dict[str, str], expected: str
) -> None:
    """Anybody can send such a header; of several values the nearest proxy's is the last."""
    site = make_site(rig, proxies=["10.1.0.0/16"], allow_hosts=["x.example"])
    assert image_url(site, rig, "http://localhost/progress", headers, peer) == expected


@pytest.mark.parametrize(
    "bad", [{"public_url": "ftp://x"}, {"public_url": "https://["}, {"proxies": ["10.0.0.1/8"]}]
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    """Before anything listens."""
    with pytest.raises(InvalidRequestError):
        AccessOptions(**bad)


@pytest.mark.parametrize("bad", [{"max_jobs": 0}, {"keep": "long"}, {"max_jobs": True}])
def test_a_bound_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    """By its name."""
    with pytest.raises(InvalidRequestError) as caught:
        StoreLimits(**bad)
    assert caught.value.field in bad


# Tokens -------------------------------------------------------------------------------


def tokens(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "tokens"
    path.write_text(text)
    return read_tokens(path)


def test_tokens_come_from_a_file_with_their_limits(rig: Rig, tmp_path: Path) -> None:
    """Images stay open to whoever knows their address: a page shows them."""
    known = tokens(
        tmp_path, "# who\n\nalice aaaaaaaaaaaaaaaa in-flight=1 max-side=512\nbob bbbbbbbbbbbbbbbb\n"
    )
    site = make_site(rig, tokens=known)
    alice, bob = ({"authorization": f"Bearer {letter * 16}"} for letter in "ab")
    small = {"prompt": "x", "width": 64, "height": 64}
    assert ask(site, headers=alice, body={**small, "width": 1024}).status == 422
    assert ask(site, headers=alice, body=small).status == 200
    assert ask(site, headers=alice, body=small).status == 429
    assert ask(site, headers=bob).status == 200
    for bad in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {'a' * 16}"}):
        refused = ask(site, headers=bad)
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    job = rig.finish()
    assert ask(site, f"http://localhost/image/{job.id}.png", method="GET").status == 200
    assert ask(site, "http://localhost/metrics", method="GET").status == 401
    assert ask(site, "http://localhost/metrics", alice, method="GET").status == 200
    assert "aaaa" not in repr(site)


def test_a_job_is_for_the_token_that_submitted_it(rig: Rig, tmp_path: Path) -> None:
    """Who is shown an image knows its address, and with it the task id."""
    earlier = rig.submit()  # when the server asked for no tokens
    site = make_site(rig, tokens=tokens(tmp_path, f"alice {'a' * 16}\nbob {'b' * 16}\n"))
    alice, bob = ({"authorization": f"Bearer {letter * 16}"} for letter in "ab")
    submitted = ask(site, headers=alice)
    hers = json.loads(submitted.read(1000))["task_id"]

    def statuses(path: str, task_id: str) -> list[int]:
        url, body = f"http://localhost/{path}", {"task_id": task_id}
        return [ask(site, url, who, body=body).status for who in (bob, alice)]

    assert statuses("progress", hers) == [404, 200]
    assert statuses("cancel", hers) == [404, 200]
    assert statuses("progress", earlier) == [200, 200]
    assert ask(make_site(rig), "http://localhost/progress", body={"task_id": hers}).status == 200


@pytest.mark.parametrize(
    "line", ["alice", "alice short", "alice secret-secret-secret in-flight=0", "a b c d", ""]
)
def test_a_file_of_tokens_that_cannot_be_read_is_refused_without_showing_it(
    tmp_path: Path, line: str
) -> None:
    """By the number of the line."""
    with pytest.raises(InvalidRequestError) as caught:
        tokens(tmp_path, line)
    assert "secret" not in str(caught.value)
    assert ("line 1" in str(caught.value)) is bool(line)


# Health, metrics, page ----------------------------------------------------------------


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
def test_health_is_told_to_whoever_asks(rig: Rig, ready: bool, status: int) -> None:
    """A probe knows no host name and has no token."""
    site = make_site(rig, ready)
    assert ask(site, "http://10.0.0.7/healthz", method="GET").status == 200
    assert ask(site, "http://10.0.0.7/readyz", method="GET").status == status


def test_metrics_count_what_a_server_does(rig: Rig) -> None:
    """In Prometheus' own format."""
    metrics = Metrics(rig.store)
    rig.submit()
    metrics.batch([0.5, 1.5])
    metrics.outcome("done", 2.0)
    metrics.outcome("died", 0.0)
    text = metrics.response().read(100_000).decode()
    for line in (
        "imagelabs_queued_jobs 1.0",
        'imagelabs_jobs_total{outcome="done"} 1.0',
        "imagelabs_worker_deaths_total 1.0",
        "imagelabs_batch_size_sum 2.0",
        "imagelabs_queued_seconds_sum 2.0",
    ):
        assert line in text.splitlines()


def test_the_page_needs_no_other_host_and_no_inline_code(rig: Rig) -> None:
    """Its policy forbids both."""
    site = make_site(rig, public_url="https://x.example/draw")
    page = ask(site, "http://localhost/", method="GET")
    text = page.read(100_000).decode()
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    assert not re.search(r"https?://|<script>|<style|\son\w+=|\sstyle=", text)
    for name in re.findall(r'(?:src|href)="(page\.\w+)"', text):
        assert ask(site, f"http://localhost/draw/{name}", method="GET").read(100_000)
    assert ask(site, "http://localhost/", method="HEAD").read(10) == b""
    assert ask(site, "http://localhost/page.py", method="GET").status == 404


@pytest.mark.parametrize("failure", [OSError(28, "full"), sqlite3.OperationalError("full")])
def test_a_broken_disk_is_a_503_that_says_when_to_come_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """The submit was surely not taken."""

    def broken(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(rig.store, "submit", broken)
    response = ask(make_site(rig))
    assert (response.status, response.headers["retry-after"]) == (503, "5")
