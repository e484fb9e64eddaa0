"""Fixtures of the transports."""

from pathlib import Path
from typing import Any

import pytest
import trustme

from imagelabs_sdk import Deadline, HttpRequest, RequestsTransport


@pytest.fixture
def carry() -> Any:
    transport = RequestsTransport()

    def send(request: HttpRequest, seconds: float = 5.0) -> tuple[int, bytes]:
        with transport.send(request, deadline=Deadline.after(seconds)) as response:
            return response.status, response.read(10**6)

    yield send
    transport.close()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cassette.json"
