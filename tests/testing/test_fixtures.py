"""The fixtures for pytest."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from imagelabs_sdk import ImageLabs, RateLimitError, RequestsTransport
from imagelabs_sdk.contrib.django import clients
from imagelabs_sdk.testing import FakeBackend, FakeService, outbox
from imagelabs_sdk.transports.curl_cffi import CurlTransport

PATH = "imagelabs_sdk.testing.FakeBackend"


def test_a_client_and_its_service(imagelabs: ImageLabs, imagelabs_service: FakeService) -> None:
    """The shortest test of all."""
    imagelabs_service.rate_limited(retry_after=3)
    with pytest.raises(RateLimitError):
        imagelabs.generate("a cat")
    imagelabs_service.assert_submitted_once(prompt="a cat")


def test_clients_of_django_talk_to_the_same_service(
    settings: Any, request: pytest.FixtureRequest
) -> None:
    """With the options of production, as far as they mean something without a network."""
    options = {"cookies": "session=crumb", "proxy": "http://proxy.test:3128", "timeout": 60}
    settings.IMAGELABS = {"default": {"OPTIONS": options}, "other": {}}
    service: FakeService = request.getfixturevalue("imagelabs_service")
    assert clients["default"].generate("a cat").read()
    clients["other"].submit("a dog")
    assert [submit.request.prompt for submit in service.submits] == ["a cat", "a dog"]
    assert service.sent[0].request.cookies == {"session": "crumb"}
    assert [one.prompt for one in outbox] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "entry",
    [
        {
            "BACKEND": "imagelabs_sdk.embedded.embedded_transport",
            "OPTIONS": {"duration": 6, "poll_interval": 0.5},
        },
        {
            "BACKEND": "imagelabs_sdk.transports.curl_cffi.CurlTransport",
            "OPTIONS": {"impersonate": "chrome", "no_proxy": True, "timeout": 20},
        },
    ],
)
def test_options_of_another_backend_are_left_out(
    settings: Any, entry: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """They mean nothing without it; those of docs/django.md are the first that are copied."""
    settings.IMAGELABS = {"default": entry}
    service: FakeService = request.getfixturevalue("imagelabs_service")
    assert clients["default"].generate("a cat").read()
    service.assert_submitted_once(prompt="a cat")


def test_an_alias_that_is_fake_already_keeps_its_service(
    settings: Any, request: pytest.FixtureRequest
) -> None:
    """Settings of the tests may have given it one."""
    own = FakeService()
    settings.IMAGELABS = {"default": {"BACKEND": PATH, "OPTIONS": {"service": own}}}
    request.getfixturevalue("imagelabs_service")
    clients["default"].submit("a cat")
    own.assert_submitted_once(prompt="a cat")


def test_clients_of_django_are_faked_without_our_app(
    settings: Any, request: pytest.FixtureRequest
) -> None:
    """`contrib.django.client` does not need it; a test must not buy an image because of that."""
    settings.INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
    service: FakeService = request.getfixturevalue("imagelabs_service")
    clients["default"].submit("a cat")
    service.assert_submitted_once(prompt="a cat")


@pytest.mark.parametrize("around", ["no Django", "not configured"])
def test_where_no_django_runs_it_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, settings: Any, around: str, request: pytest.FixtureRequest
) -> None:
    """The kit is for every project."""
    before = settings.IMAGELABS
    if around == "no Django":
        monkeypatch.delitem(sys.modules, "django.conf")
    else:
        unset = SimpleNamespace(settings=SimpleNamespace(configured=False))
        monkeypatch.setitem(sys.modules, "django.conf", unset)
    service: FakeService = request.getfixturevalue("imagelabs_service")
    monkeypatch.undo()
    service.client().submit("a cat")
    assert before == settings.IMAGELABS


BEFORE = ImageLabs()
"""As a module under test makes it, when it is imported."""


def made_in_the_code() -> ImageLabs:
    return ImageLabs()


def made_for_curl() -> ImageLabs:
    return ImageLabs(transport=CurlTransport())


def made_for_another_host() -> ImageLabs:
    return ImageLabs("http://images.test:8000")


@pytest.mark.parametrize(
    "make", [lambda: BEFORE, made_in_the_code, made_for_curl, made_for_another_host]
)
def test_no_client_of_the_process_gets_out(
    make: Callable[[], ImageLabs],
    imagelabs_service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code that was not given the fake fails at once, where it would have bought an image.

    It is no error that the code under test might catch.
    """
    for name in ("http_proxy", "https_proxy"):  # should the fixture be broken, nothing is bought
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client = make()
    with pytest.raises(pytest.fail.Exception) as caught:
        client.generate("a secret cat")
    assert f"POST {client.url}/txt2img was not sent: " in str(caught.value)
    assert "imagelabs_server" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert imagelabs_service.sent == []


def test_the_fixtures_need_no_extra() -> None:
    """Where `curl_cffi` is not installed, nothing goes out by it."""
    code = (
        "import sys; sys.modules['curl_cffi'] = None;"
        "from imagelabs_sdk.testing.fixtures import _only_to_this_machine as guard;"
        "from imagelabs_sdk import ImageLabs, RequestsTransport;"
        "before = RequestsTransport.send\n"
        "with guard(): print(RequestsTransport.send is before)\n"
        "print(RequestsTransport.send is before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue\n"


@pytest.fixture
def _nothing_is_left() -> Iterator[None]:
    before = RequestsTransport.send, CurlTransport.send
    yield
    assert FakeBackend.service.submits == []
    assert outbox == []
    assert before == (RequestsTransport.send, CurlTransport.send)


@pytest.mark.usefixtures("_nothing_is_left")  # set up before the service, so torn down after it
def test_the_next_test_finds_no_script_and_no_submit(imagelabs_service: FakeService) -> None:
    """Not even one that uses no fixture, and which may send what it likes."""
    imagelabs_service.client().submit("a cat")
    assert FakeBackend.service is imagelabs_service


def test_code_that_makes_its_own_client_finds_the_server(
    imagelabs_server: str, imagelabs_service: FakeService
) -> None:
    """By the environment, as in production."""
    with ImageLabs(poll_interval=0.01) as client:
        assert client.url == imagelabs_server
        assert client.generate("a cat").read()
    imagelabs_service.assert_submitted_once(prompt="a cat")


def test_who_does_not_test_loads_no_kit() -> None:
    """Neither the package nor a client has any use for it."""
    code = (
        "import sys; from imagelabs_sdk import ImageLabs; ImageLabs().get_job('task-1');"
        "print([name for name in sys.modules if 'testing' in name or 'pytest' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_kit_needs_no_extra() -> None:
    """It is there with the package; pytest and Django are loaded by their own modules alone."""
    code = (
        "import sys; import imagelabs_sdk.testing;"
        "print({'requests', 'pytest', 'django', 'waitress', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
