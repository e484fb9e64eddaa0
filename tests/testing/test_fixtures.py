"""The fixtures for pytest."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from imagelabs_sdk import ImageLabs, RateLimitError
from imagelabs_sdk.contrib.django import clients
from imagelabs_sdk.testing import FakeBackend, FakeService, outbox


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


@pytest.mark.parametrize("around", ["no Django", "not configured", "another app"])
def test_without_our_app_django_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, settings: Any, around: str, request: pytest.FixtureRequest
) -> None:
    """The kit is for every project."""
    before = settings.IMAGELABS
    if around == "no Django":
        monkeypatch.delitem(sys.modules, "django.conf")
    elif around == "not configured":
        unset = SimpleNamespace(settings=SimpleNamespace(configured=False))
        monkeypatch.setitem(sys.modules, "django.conf", unset)
    else:
        settings.INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
    service: FakeService = request.getfixturevalue("imagelabs_service")
    monkeypatch.undo()
    service.client().submit("a cat")
    assert before == settings.IMAGELABS


@pytest.fixture
def _nothing_is_left() -> Iterator[None]:
    yield
    assert FakeBackend.service.submits == []
    assert outbox == []


@pytest.mark.usefixtures("_nothing_is_left")  # set up before the service, so torn down after it
def test_the_next_test_finds_no_script_and_no_submit(imagelabs_service: FakeService) -> None:
    """Not even one that uses no fixture."""
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
