"""The fixtures for pytest."""

import subprocess
import sys

import pytest

from imagelabs_sdk import ImageLabs, RateLimitError
from imagelabs_sdk.testing import FakeBackend, FakeService


def test_a_client_and_its_service(imagelabs: ImageLabs, imagelabs_service: FakeService) -> None:
    """The shortest test of all."""
    imagelabs_service.rate_limited(retry_after=3)
    with pytest.raises(RateLimitError):
        imagelabs.generate("a cat")
    imagelabs_service.assert_submitted_once(prompt="a cat")


def test_the_backend_of_django_talks_to_the_same_service(imagelabs_service: FakeService) -> None:
    """A view's client and the test's script meet without further ado."""
    assert FakeBackend.service is imagelabs_service
    assert imagelabs_service.submits == []


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
