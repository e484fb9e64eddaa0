"""Fixtures of the spine."""

from collections.abc import Callable
from typing import Any

import pytest

from imagelabs_sdk import GeneratedImage, ImageLabs
from tests import faulty
from tests.faulty import FaultyServer

Connect = Callable[..., ImageLabs]


@pytest.fixture
def image(server: FaultyServer, connect: Connect) -> Callable[..., GeneratedImage]:
    """A finished image whose address answers by the given script."""

    def make(*script: faulty.Answer, **settings: Any) -> GeneratedImage:
        server.scripts["/image.png"] = list(script)
        return connect(server, **settings).generate("x")

    return make
