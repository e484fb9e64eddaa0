"""Fixtures: servers on loopback, an environment of our own."""

import gc
import os
import signal
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

import hypothesis
import pytest
import trustme

from imagelabs_sdk import FixedInterval, ImageLabs
from tests.faulty import FaultyServer

pytest_plugins = ["imagelabs_sdk.testing.fixtures"]

# Examples that a busy machine slows down are no failures.
hypothesis.settings.register_profile("plain", deadline=None, max_examples=60)
hypothesis.settings.load_profile("plain")

# Under nohup and a shell's ampersand they do nothing, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers() -> int:
    """Two workers for each core: tests wait for sockets and processes more than they compute."""
    return min(2 * (os.cpu_count() or 1), 16)


gc.collect()
gc.freeze()  # what is loaded by now stays; the collections below look at the rest only


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine sets must not steer a test."""
    for name in ("BASE_URL", "PROXY", "TIMEOUT", "COOKIE", "USER_AGENT", "LEDGER", "LOG"):
        monkeypatch.delenv(f"IMAGELABS_{name}", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def media(tmp_path: Path, settings: Any) -> Path:
    """Where Django stores the images of this test."""
    settings.MEDIA_ROOT = str(tmp_path / "media")
    return tmp_path / "media"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    running = FaultyServer()
    yield running
    running.close()
    gc.collect()  # a socket that only the collector closes is a warning, and warnings fail
    gc.freeze()  # what is left is not walked again after the next test


@pytest.fixture
def other() -> Iterator[FaultyServer]:
    """A second host, so to speak: another origin."""
    running = FaultyServer()
    yield running
    running.close()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[FaultyServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    running = FaultyServer(context)
    yield running
    running.close()


def nap(seconds: float) -> None:
    """Sleep, but never for long: the pauses after failures are tested with a clock of our own."""
    sleep(min(seconds, 0.02))


@pytest.fixture
def connect() -> Iterator[Callable[..., ImageLabs]]:
    """Makes clients that poll every 20 ms, and closes them."""
    clients: list[ImageLabs] = []

    def make(server: FaultyServer, **settings: object) -> ImageLabs:
        settings.setdefault("polling", FixedInterval(0.02, sleep=nap))
        client = ImageLabs(server.url, **{"timeout": 10, **settings})  # type: ignore[arg-type]
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
