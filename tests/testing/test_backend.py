"""The backend for a Django project's tests, and its outbox."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command

from imagelabs_sdk import JobTimeoutError, RateLimitError
from imagelabs_sdk.contrib.django import client, clients
from imagelabs_sdk.testing import FakeBackend, FakeService, outbox
from imagelabs_sdk.testing.script import png

PATH = "imagelabs_sdk.testing.FakeBackend"


@pytest.fixture(autouse=True)
def _own_outbox() -> None:
    FakeBackend.reset()


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    def configure(**options: object) -> None:
        settings.IMAGELABS = {"default": {"BACKEND": PATH, "OPTIONS": options}}

    return configure


def test_what_was_accepted_is_in_the_outbox(settings: Any) -> None:
    """One line in the settings of the tests is enough."""
    settings.IMAGELABS = {"default": {"BACKEND": PATH}}
    assert client.generate("a cat", width=8, height=8).read() == png(8, 8)
    assert [(request.prompt, request.width) for request in outbox] == [("a cat", 8)]
    FakeBackend.reset()
    assert outbox == []


def test_a_script_may_come_after_the_client(configure: Callable[..., None]) -> None:
    """Clients live as long as the process, scripts as long as a test."""
    configure(cookies={"session": "crumb"})
    client.generate("a cat")
    FakeBackend.reset().rate_limited(retry_after=3)
    with pytest.raises(RateLimitError):
        client.generate("a dog")
    assert outbox == []
    FakeBackend.service.assert_submitted_once(prompt="a dog")
    assert FakeBackend.service.sent[0].request.cookies == {"session": "crumb"}


@pytest.mark.parametrize("pace", [{}, {"poll_interval": 60}])
def test_no_test_waits(configure: Callable[..., None], pace: dict[str, float]) -> None:
    """Also not with the poll interval of production."""
    configure(timeout=600, **pace)
    service = FakeBackend.reset().never_finishes()
    with pytest.raises(JobTimeoutError):
        client.generate("a cat")
    assert service.clock.now() == pytest.approx(1600, abs=1)
    assert not pace or service.count("progress") == 10


def test_a_backend_may_have_a_service_of_its_own(settings: Any) -> None:
    """Two accounts, two scripts."""
    own = FakeService(url="http://127.0.0.1:1").hangs()
    settings.IMAGELABS = {
        "default": {"BACKEND": PATH},
        "other": {"BACKEND": PATH, "OPTIONS": {"service": own, "base_url": own.url}},
    }
    clients["default"].generate("a cat")
    with pytest.raises(Exception, match="may or may not"):
        clients["other"].generate("a dog")
    own.assert_submitted_once(prompt="a dog")
    assert own.clock.now() > 1000
    assert len(outbox) == 1


@pytest.mark.django_db
def test_the_checks_have_nothing_to_say(settings: Any) -> None:
    """`manage.py test` runs them."""
    settings.IMAGELABS = {"default": {"BACKEND": PATH}}
    call_command("check", fail_level="WARNING")
    clients.clear()
