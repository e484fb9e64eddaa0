"""Without the packages of an extra."""

import subprocess
import sys

import pytest

from imagelabs_sdk._extras import MissingExtraError, needs_extra


@pytest.mark.parametrize(
    ("code", "package", "extra"),
    [
        ("from imagelabs_sdk.transports.curl_cffi import CurlTransport", "curl_cffi", "curl"),
        ("from imagelabs_sdk.contrib.celery import save_image", "celery", "celery"),
        ("from imagelabs_sdk.contrib.django import client", "django", "django"),
        ("from imagelabs_sdk.embedded import embedded_client as f; f()", "PIL", "server"),
        ("from imagelabs_sdk.embedded import embedded_transport as f; f()", "PIL", "server"),
    ],
)
def test_the_error_says_what_to_install(code: str, package: str, extra: str) -> None:
    """The name of a package that one has never heard of is no help."""
    program = f"""
import sys
sys.modules["{package}"] = None
try:
    {code}
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert package in done.stdout
    assert done.stdout.endswith(f': pip install "imagelabs_sdk[{extra}]"\n')
    assert done.stdout.count("pip install") == 1


def test_one_remedy_is_enough() -> None:
    """That of the room which needs the package, whoever has asked for the room."""
    with (
        pytest.raises(MissingExtraError) as caught,
        needs_extra("server"),
        needs_extra("diffusers"),
    ):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    remedy = 'pip install "imagelabs_sdk[diffusers]"'
    assert str(caught.value) == f"No module named 'torch': {remedy}"
    assert caught.value.name == "torch"
