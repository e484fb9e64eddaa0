"""Test doubles and tracers see every request, however they were put in."""

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_mock
import responses
import vcr  # type: ignore[import-untyped]

from imagelabs_sdk import ImageLabs, RequestsTransport
from tests import faulty
from tests.faulty import PNG, FaultyServer

Connect = Callable[..., ImageLabs]
BASE = "https://editor.imagelabs.net"
DONE = {"status": "Done", "final_image_url": "/x.png"}


@contextmanager
def by_responses() -> Iterator[Callable[[], int]]:
    with responses.RequestsMock() as mock:
        mock.post(f"{BASE}/txt2img", json={"task_id": "t"}, headers={"Set-Cookie": "c=1"})
        mock.post(f"{BASE}/progress", json=DONE)
        mock.get(f"{BASE}/x.png", body=PNG)
        yield lambda: len(mock.calls)


@contextmanager
def by_requests_mock() -> Iterator[Callable[[], int]]:
    with requests_mock.Mocker() as mock:
        mock.post(f"{BASE}/txt2img", json={"task_id": "t"}, headers={"Set-Cookie": "c=1"})
        mock.post(f"{BASE}/progress", json=DONE)
        mock.get(f"{BASE}/x.png", content=PNG)
        yield lambda: int(mock.call_count)


@pytest.mark.parametrize("double", [by_responses, by_requests_mock])
@pytest.mark.parametrize("with_session", [False, True])
def test_a_double_answers_everything(double: Any, with_session: bool) -> None:
    """Nothing goes past it, and buys an image in somebody's tests."""
    with double() as count, requests.Session() as session:
        transport = RequestsTransport(session=session if with_session else None)
        client = ImageLabs(poll_interval=0.01, transport=transport, max_retries=0)
        assert client.generate("x").read() == PNG
        assert count() == 3
        transport.close()


@pytest.mark.parametrize("double", [by_responses, by_requests_mock])
def test_a_client_that_has_sent_before_meets_the_double_too(
    server: FaultyServer, double: Any
) -> None:
    """And sends by itself again when the double is gone."""
    transport = RequestsTransport()
    real = ImageLabs(server.url, transport=transport, poll_interval=0.01)
    real.generate("x")
    with double():
        ImageLabs(poll_interval=0.01, transport=transport).generate("x").read()
    real.generate("x")
    assert server.count("/txt2img") == 2
    transport.close()


# vcrpy before 9, the newest for Python 3.10, leaves a socket to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cassette_is_recorded_and_played(
    server: FaultyServer, connect: Connect, tmp_path: Path
) -> None:
    """With vcrpy, which stands in for urllib3's connections; also after requests of our own."""
    client = connect(server)
    client.generate("x")
    for play in range(2):
        with vcr.use_cassette(str(tmp_path / "tape.yaml"), record_mode="once") as tape:
            assert client.generate("x").read() == PNG
            assert connect(server).get_job("task-1").result().read() == PNG
            assert tape.play_count == (0 if play == 0 else 5)
    assert server.count("/txt2img") == 2
    client.generate("x")
    assert server.count("/txt2img") == 3


def test_a_tracer_of_session_send_sees_each_request(
    server: FaultyServer, other: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And redirects, cookies and strangers are treated as ever."""
    seen: list[str] = []
    plain = requests.Session.send

    @functools.wraps(plain)
    def send(self: requests.Session, request: Any, **more: Any) -> requests.Response:
        seen.append(request.method)
        return plain(self, request, **more)

    monkeypatch.setattr(requests.Session, "send", send)
    kept = ("Set-Cookie", "kept=1; Path=/")
    server.scripts["/txt2img"] = [faulty.reply(200, {"task_id": "t"}, kept)]
    server.scripts["/image.png"] = [faulty.reply(302, b"", ("Location", f"{other.url}/image.png"))]
    other.scripts["/image.png"] = [faulty.reply(200, PNG, ("Set-Cookie", "spy=1; Path=/"))]
    for session in (None, requests.Session()):
        transport = RequestsTransport(session=session)
        client = ImageLabs(
            server.url, transport=transport, poll_interval=0.01, allow_private_hosts=True
        )
        seen.clear()
        assert client.generate("x").read() == PNG
        assert seen == ["POST", "POST", "GET", "GET"]
        client.submit("again")
        assert server.asked[-1].headers["cookie"] == "kept=1"
        assert "cookie" not in other.asked[-1].headers
        transport.close()
        if session:
            session.close()


class Transparent:
    """What tracers put around a function: it looks like that function, and is equal to it."""

    def __init__(self, wrapped: Any, seen: list[str]) -> None:
        self.wrapped, self.seen, self.__code__ = wrapped, seen, wrapped.__code__

    def __get__(self, owner: object, kind: type | None = None) -> "Transparent":
        return self if owner is None else Transparent(self.wrapped.__get__(owner), self.seen)

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.seen.append(self.wrapped.__name__)
        return self.wrapped(*args, **more)

    def __eq__(self, other: object) -> bool:
        return bool(self.wrapped == other)

    def __hash__(self) -> int:
        return hash(self.wrapped)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (requests.Session, "send"),
        (requests.Session, "get_adapter"),
        (requests.adapters.HTTPAdapter, "send"),
    ],
)
def test_a_wrapper_that_looks_like_what_it_wraps_is_seen(
    server: FaultyServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """Tracers of applications wrap with `wrapt`, whose proxies are all but the function itself."""
    client = connect(server)
    client.submit("before")
    seen: list[str] = []
    monkeypatch.setattr(owner, name, Transparent(owner.__dict__[name], seen))
    client.submit("x")
    assert name in seen


def test_a_double_may_make_its_answers_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything of urllib3's below."""

    def send(self: requests.Session, request: Any, **more: Any) -> requests.Response:
        answer = requests.Response()
        answer.status_code, answer._content = 200, b'{"task_id": "t"}'
        return answer

    monkeypatch.setattr(requests.Session, "send", send)
    assert ImageLabs().submit("x").id == "t"


PATCHED_FIRST = """
import requests
seen = []
def send(self, request, **more):
    seen.append(request.url)
    answer = requests.Response()
    answer.status_code, answer._content = 200, b'{"task_id": "t"}'
    return answer
requests.Session.send = send
from imagelabs_sdk import ImageLabs
assert ImageLabs().submit("x").id == "t"
assert seen == ["https://editor.imagelabs.net/txt2img"]
"""


def test_a_patch_that_came_before_our_import_is_seen() -> None:
    """We import requests late, so that most come before."""
    subprocess.run([sys.executable, "-c", PATCHED_FIRST], check=True, timeout=60)


def test_without_a_double_a_request_takes_the_short_way(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Session.send` costs a third of an exchange."""
    from imagelabs_sdk.transports import _session

    assert not _session._is_replaced()
    monkeypatch.setattr(requests.Session, "send", object())
    assert _session._is_replaced()
