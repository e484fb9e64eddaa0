"""Django's settings become clients; what is wrong with them is said before anything is sent."""

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from django.core.checks import CheckMessage
from django.core.files.storage import FileSystemStorage
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import transaction
from django.test import override_settings

from imagelabs_sdk import GeneratedImage, RequestsTransport
from imagelabs_sdk.contrib.django import client, clients
from imagelabs_sdk.contrib.django.checks import check_settings
from imagelabs_sdk.contrib.django.clients import Client, SettingsError, in_transaction
from imagelabs_sdk.testing import FakeBackend, FakeService
from imagelabs_sdk.testing.script import png
from tests.django.fixtures import IMAGE, ROOT, counts, needs_postgres, scripted
from tests.faulty import PNG, FaultyServer

REQUESTS = "imagelabs_sdk.RequestsTransport"
EMBEDDED = "imagelabs_sdk.embedded.embedded_transport"
SECRETS = ("hunter2", "crumb")


def transport_of(alias: str) -> Any:
    return clients[alias]._transport


# Aliases, backends, options ----------------------------------------------------------------


def test_without_settings_there_is_a_client_by_default(settings: Any) -> None:
    """Adding the app is enough to begin with."""
    del settings.IMAGELABS
    assert list(clients) == ["default"]
    assert clients["default"].url == client.url == "https://editor.imagelabs.net"


def test_an_option_goes_to_the_backend_if_that_takes_it_else_to_the_client(
    service: FakeService, settings: Any
) -> None:
    """One mapping, so that nobody has to know whose an option is."""
    options = {"proxy": "http://127.0.0.1:3128", "timeout": 7, "base_url": service.url}
    settings.IMAGELABS["proxied"] = {"BACKEND": REQUESTS, "OPTIONS": options}
    transport, made = transport_of("proxied"), clients["proxied"]
    assert isinstance(transport, RequestsTransport)
    assert transport.proxy == options["proxy"]
    assert made.url == service.url
    assert 6 < made.deadline().remaining() <= 7


def test_an_alias_is_a_client_of_its_own_and_always_the_same(service: FakeService) -> None:
    """Connections and cookies are kept in it."""
    assert clients["default"] is clients["default"]
    assert clients["default"] is not clients["other"]
    assert isinstance(clients["default"], Client)
    image = client.generate("a lighthouse", width=8, height=8)
    assert image.read() == IMAGE
    assert counts(service) == (1, 1, 1)


def test_the_embedded_engine_draws_with_no_network(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So one develops on a train, and runs a project's tests."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    settings.IMAGELABS = {
        "default": {"BACKEND": EMBEDDED, "OPTIONS": {"duration": 0.0, "poll_interval": 0.01}}
    }
    monkeypatch.setattr(socket.socket, "connect", refuse)
    image = client.generate("a lighthouse", width=64, height=64)
    assert image.read().startswith(PNG[:8])
    assert clients.is_in_process("default")


def test_settings_are_followed_and_old_clients_closed(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that overrides them must not leave connections behind, or use those of others."""
    before, closed = clients["default"], list[bool]()
    monkeypatch.setattr(transport_of("default"), "close", lambda: closed.append(True))
    other = scripted(base_url="https://other.test")
    with override_settings(IMAGELABS={"default": other}):
        assert client.url == "https://other.test"
        assert closed == [True]
    assert clients["default"] is not before
    assert client.url == service.url


def test_a_client_that_opens_its_own_connections_closes_them(imagelabs_server: str) -> None:
    """Without a backend the transport is the client's."""
    with override_settings(IMAGELABS={"default": {"OPTIONS": {"base_url": imagelabs_server}}}):
        client.submit("a lighthouse")
        assert transport_of("default") is None
    # An open socket would be a warning when it is collected, and warnings fail.


def slow_backend(barrier: threading.Barrier) -> FakeBackend:
    """Made by all threads at once."""
    barrier.wait(20)
    return FakeBackend()


def test_thirty_two_threads_get_one_client(service: FakeService, settings: Any) -> None:
    """Each would open connections and learn cookies of its own."""
    slow = {"BACKEND": f"{__name__}.slow_backend", "OPTIONS": {"barrier": threading.Barrier(32)}}
    settings.IMAGELABS = {"default": slow}

    def get(_: int) -> Client:
        return clients["default"]

    with ThreadPoolExecutor(32) as pool:
        assert len(set(map(id, pool.map(get, range(32))))) == 1
        images = list(pool.map(lambda _: client.generate("x").read(), range(32)))
    assert images == [png(1152, 896)] * 32
    assert counts(service) == (32, 32, 32)


APPLICATION = """
import os
import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path
from imagelabs_sdk.testing import FakeService
from tests.django.app import settings as project

settings.configure(
    **{name: getattr(project, name) for name in dir(project) if name.isupper()}
    | {"ROOT_URLCONF": __name__}
)
django.setup()
from django.core.wsgi import get_wsgi_application
from imagelabs_sdk.contrib.django import client

assert client.generate("before the fork").read()

def view(request):
    body = client.generate("after it").read()
    return HttpResponse(body, headers={"X-Worker": str(os.getpid())})

urlpatterns = [path("", view)]
application = get_wsgi_application()
"""


def test_a_client_made_before_the_fork_works_in_each_worker(
    server: FaultyServer,
    tmp_path: Path,  # which tells connections apart
) -> None:
    """gunicorn with preload: what the parent has opened must stay the parent's."""
    (tmp_path / "prefork.py").write_text(APPLICATION)
    options = json.dumps({"default": {"OPTIONS": {"base_url": server.url, "poll_interval": 0.05}}})
    command = [sys.executable, "-m", "gunicorn", "prefork:application", "--preload"]
    command += ["--workers=2", "--bind=127.0.0.1:0", "--graceful-timeout=2"]
    command += ["--no-control-socket"] if _has_control_socket() else []
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "IMAGELABS_TEST_SETTINGS": options},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if "Listening at: " in line)
            url = said.partition("Listening at: ")[2].split()[0]
            workers: set[str] = set()
            end = monotonic() + 30
            while len(workers) < 2:  # who gets a request is the kernel's choice
                assert monotonic() < end
                with ThreadPoolExecutor(4) as pool:
                    answers = list(pool.map(_get, [url] * 4))
                assert {body for body, _ in answers} == {PNG}
                workers |= {worker for _, worker in answers}
        finally:
            process.terminate()
            process.communicate(timeout=10)
    by_parent = {asked.connection for asked in server.asked[:3]}
    assert not by_parent & {asked.connection for asked in server.asked[3:]}


def _get(url: str) -> tuple[bytes, str]:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read(), answer.headers["X-Worker"]


def _has_control_socket() -> bool:
    command = [sys.executable, "-m", "gunicorn", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "--no-control-socket" in said


# What is wrong ------------------------------------------------------------------------------


def backend_of_two(one: str, two: str) -> None:
    raise AssertionError(f"{one} {two}")


WRONG: dict[str, tuple[Any, str, str, str]] = {
    "no such module": ({"BACKEND": "no.such.Transport"}, "E001", "'BACKEND'", "dotted path"),
    "no such name": ({"BACKEND": "imagelabs_sdk.Nothing"}, "E001", "'BACKEND'", "dotted path"),
    "no callable": ({"BACKEND": "os.path"}, "E001", "'os.path'", "class or function"),
    "no path": ({"BACKEND": RequestsTransport}, "E001", "'BACKEND'", "dotted path"),
    "unknown key": ({"TIMEOUT": 7}, "E002", "'TIMEOUT'", "SUBMIT, TASKS"),
    "unknown option": ({"OPTIONS": {"tmeout": 7}}, "E002", "'tmeout'", "timeout"),
    "not the backend's": (
        {"BACKEND": EMBEDDED, "OPTIONS": {"verfy": False}}, "E002", "'verfy'", "duration",
    ),
    "transport": ({"OPTIONS": {"transport": None}}, "E002", "'transport'", "base_url"),
    "bad value": ({"OPTIONS": {"timeout": -1}}, "E003", "timeout=-1", "arguments"),
    "bad address": ({"OPTIONS": {"base_url": "nowhere"}}, "E003", "base_url=", "arguments"),
    "bad value of the backend": (
        {"BACKEND": REQUESTS, "OPTIONS": {"proxy": "hunter2"}}, "E003", "proxy", "arguments",
    ),
    "lacks an argument": (
        {"BACKEND": f"{__name__}.backend_of_two", "OPTIONS": {"one": "hunter2"}},
        "E003", "'two'", "arguments",
    ),
    "no mapping": ("hunter2", "E003", "must be a mapping", "OPTIONS"),
    "cookies": ({"OPTIONS": {"cookies": {"session": "crumb;"}}}, "E003", "cookies", "arguments"),
    "headers": (
        {"OPTIONS": {"headers": {"authorization": "hunter2\n"}}}, "E003", "headers", "arguments",
    ),
    "proxy": ({"OPTIONS": {"proxy": "x://me:hunter2@host"}}, "E003", "proxy", "arguments"),
    "user in address": (
        {"OPTIONS": {"base_url": "https://me:hunter2@host"}}, "E003", "base_url", "arguments",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_named_with_a_remedy_and_no_secret(name: str, settings: Any) -> None:
    """By ``manage.py check``, and again by who asks for the client."""
    entry, number, named, hinted = WRONG[name]
    settings.IMAGELABS = {"default": {}, "bad": entry}
    with pytest.raises(SettingsError) as raised:
        _ = clients["bad"]
    assert "'bad'" in str(raised.value)
    assert named in str(raised.value)
    assert hinted in raised.value.hint
    (message,) = check_settings()
    assert (message.id, message.msg) == (f"imagelabs.{number}", str(raised.value))
    assert message.hint == raised.value.hint
    said = f"{raised.value!r} {message!r} {message}"
    assert not [secret for secret in SECRETS if secret in said]
    assert clients["default"].url


def test_an_alias_that_is_not_there_is_named_with_those_that_are(service: FakeService) -> None:
    """A typing error shows at once."""
    with pytest.raises(SettingsError, match="no alias 'drawn-here'") as raised:
        _ = clients["drawn-here"]
    assert raised.value.hint == "It has: default, other."


def test_no_repr_tells_a_secret(settings: Any) -> None:
    """Error pages and logs show reprs."""
    options = {"cookies": "session=crumb", "proxy": "http://me:hunter2@127.0.0.1:1"}
    settings.IMAGELABS = {
        "default": {"OPTIONS": options},
        "named": {"BACKEND": REQUESTS, "OPTIONS": options},
    }
    for alias in clients:
        said = f"{clients[alias]!r} {transport_of(alias)!r} {clients!r} {clients._made!r}"
        assert not [secret for secret in SECRETS if secret in said]
    assert check_settings() == []


# manage.py check ----------------------------------------------------------------------------


def found() -> list[str | None]:
    return [message.id for message in check_settings()]


def only() -> CheckMessage:
    (message,) = check_settings()
    return message


def test_settings_that_are_fine_are_passed_over(service: FakeService, settings: Any) -> None:
    """A check that cries at everything is switched off."""
    settings.IMAGELABS = {
        "default": {},
        "plain": {"BACKEND": EMBEDDED},
        "tasks": {"OPTIONS": {"base_url": "http://127.0.0.1:8080"}, "TASKS": "database"},
        "here": {"OPTIONS": {"base_url": "http://[::1]:8080"}},
    }
    assert check_settings() == []
    call_command("check", "--tag", "imagelabs", "--fail-level", "WARNING")


def test_manage_py_knows_the_checks(settings: Any) -> None:
    """They are registered, under a tag of their own."""
    settings.IMAGELABS = {"default": {"BACKEND": "no.such.Transport"}}
    with pytest.raises(SystemCheckError, match=r"imagelabs\.E001"):
        call_command("check", "--tag", "imagelabs")


@pytest.mark.parametrize("address", ["http://imagelabs.test", "http://10.0.0.7:80"])
def test_an_address_that_encrypts_nothing_is_a_warning(address: str, settings: Any) -> None:
    """Prompts and cookies would travel in the open."""
    settings.IMAGELABS = {"default": {"OPTIONS": {"base_url": address}}}
    message = only()
    assert (message.id, message.level) == ("imagelabs.W001", 30)
    assert address in message.msg
    assert "https" in str(message.hint)


@pytest.mark.parametrize(
    ("storages", "root", "expected"),
    [
        ({}, "", ["imagelabs.W002"]),
        ({}, "/srv/media", []),
        ({"imagelabs": {"BACKEND": "django.core.files.storage.InMemoryStorage"}}, "", []),
        ({"imagelabs": {"location": "/srv/images"}}, "", []),
        ({"default": {"location": "/srv/media"}}, "", []),
        ({"imagelabs": {}}, "", ["imagelabs.W002"]),
        ({"default": None}, "", []),
    ],
)
def test_images_that_have_no_place_are_a_warning(
    storages: dict[str, Any], root: str, expected: list[str], settings: Any
) -> None:
    """They would land in the directory that the process happens to run in."""
    files = "django.core.files.storage.FileSystemStorage"
    settings.MEDIA_ROOT = root
    settings.STORAGES = {
        alias: entry if "BACKEND" in entry else {"BACKEND": files, "OPTIONS": entry}
        for alias, entry in {"default": {}, **storages}.items()
        if entry is not None
    }
    assert found() == expected


@pytest.mark.parametrize(
    ("backend", "expected"),
    [("database", None), ("nowhere", "imagelabs.E004"), ("default", "imagelabs.E005")],
)
def test_a_task_backend_that_cannot_sweep_later_is_an_error(
    backend: str, expected: str | None, settings: Any
) -> None:
    """Jobs would start, and nobody would ever look at them."""
    settings.IMAGELABS = {"default": {"TASKS": backend}}
    assert found() == ([expected] if expected else [])
    for message in check_settings():
        assert repr(backend) in message.msg
        assert "imagelabs_sweep" in str(message.hint)


def test_a_task_backend_without_django_tasks_is_an_error(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with Django 6.0, and with the backport."""
    monkeypatch.setitem(sys.modules, "imagelabs_sdk.contrib.django.django_tasks", None)
    settings.IMAGELABS = {"default": {"TASKS": "database"}}
    assert only().id == "imagelabs.E004"


# Waiting in a view --------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_waiting_in_a_transaction_is_a_warning(service: FakeService) -> None:
    """It keeps a connection and its locks from everybody else; the image comes all the same."""
    with transaction.atomic(), pytest.warns(RuntimeWarning, match="generate") as warned:
        image = client.generate("a lighthouse")
    assert image.read() == png(1152, 896)
    assert {warning.filename for warning in warned} == {__file__}


@pytest.mark.django_db(transaction=True)
def test_waiting_outside_of_a_transaction_is_none(service: FakeService) -> None:
    """Warnings fail here."""
    assert isinstance(client.generate("a lighthouse"), GeneratedImage)


@pytest.mark.django_db
def test_the_transaction_of_a_test_case_does_not_count(service: FakeService) -> None:
    """It is not there when the code runs; one within it is."""
    client.generate("a lighthouse")
    with transaction.atomic(), pytest.warns(RuntimeWarning, match="generate"):
        client.generate("a lighthouse")


@needs_postgres
@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
def test_a_transaction_is_known_by_its_database(service: FakeService) -> None:
    """Of several, the one that holds locks may not be the one of the jobs."""
    assert in_transaction() is None
    with transaction.atomic(using="postgres"):
        assert in_transaction() == in_transaction("postgres") == "postgres"
        assert in_transaction("default") is None


def test_a_storage_that_is_overridden_is_followed(
    service: FakeService, settings: Any, tmp_path: Path
) -> None:
    """A model's field is made once; the settings of a test come later."""
    from imagelabs_sdk.contrib.django.storage import image_storage

    files = "django.core.files.storage.FileSystemStorage"
    for place in ("one", "two"):
        own = {"BACKEND": files, "OPTIONS": {"location": str(tmp_path / place)}}
        with override_settings(STORAGES={**settings.STORAGES, "imagelabs": own}):
            storage = image_storage()
            assert isinstance(storage, FileSystemStorage)
            assert storage.path("x") == str(tmp_path / place / "x")


def test_a_service_in_the_process_names_the_extra_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """It draws with Pillow."""
    for name in [name for name in sys.modules if name.startswith("imagelabs_sdk.embedded")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "imagelabs_sdk.embedded", None)
    settings.IMAGELABS = {
        "default": {"BACKEND": "imagelabs_sdk.embedded.embedded_transport"},
    }
    message = only()
    assert message.id == "imagelabs.E001"
    assert "imagelabs_sdk[server]" in str(message.hint)


def test_images_below_a_public_address_are_a_warning(settings: Any, tmp_path: Path) -> None:
    """Whoever guesses an address sees an image of somebody else's."""
    files = "django.core.files.storage.FileSystemStorage"
    settings.MEDIA_ROOT, settings.MEDIA_URL = str(tmp_path), "/media/"
    settings.STORAGES = {"default": {"BACKEND": files}}
    assert only().id == "imagelabs.W003"
    own = {"BACKEND": files, "OPTIONS": {"location": str(tmp_path / "private")}}
    settings.STORAGES = {"default": {"BACKEND": files}, "imagelabs": own}
    assert only().id == "imagelabs.W003"
    settings.MEDIA_ROOT = str(tmp_path / "public")
    assert found() == []
    settings.STORAGES = {}
    assert found() == []
