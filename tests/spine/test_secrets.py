"""What tools that print local variables see in the frames of a call that failed: no secret."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import requests
from rich.pretty import pretty_repr

import imagelabs_sdk
from imagelabs_sdk import ImageLabs, ImageLabsError, RequestsTransport
from tests import faulty
from tests.faulty import FaultyServer

ROOT = Path(imagelabs_sdk.__file__).parent
SECRETS = ("whisper", "murmur", "hush", "mumble", "sigh", "gasp", "groan")
CLOSED = "http://127.0.0.1:1"


def chain(error: BaseException) -> Iterator[BaseException]:
    waiting: list[BaseException | None] = [error]
    while waiting:
        if (each := waiting.pop()) is not None:
            yield each
            waiting += [each.__cause__, each.__context__]


def own_frames(error: BaseException) -> Iterator[FrameType]:
    for each in chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if Path(frame.f_code.co_filename).is_relative_to(ROOT):
                yield frame


def as_a_tracker_shows(value: object, depth: int = 5) -> str:
    """Containers element by element, anything else by its repr; as Sentry does."""
    if isinstance(value, str | bytes) or not depth:
        return repr(value)
    if isinstance(value, Mapping):
        return " ".join(as_a_tracker_shows(part, depth - 1) for part in [*value, *value.values()])
    if isinstance(value, Sequence | Set):
        return " ".join(as_a_tracker_shows(part, depth - 1) for part in value)
    return repr(value)


def shown(error: BaseException) -> dict[str, str]:
    """What is shown of each variable of each frame of ours, by where it stands."""
    return {
        f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name} {name}": (
            f"{pretty_repr(value)} {as_a_tracker_shows(value)}"
        )
        for frame in own_frames(error)
        for name, value in frame.f_locals.items()
    }


def generate(client: ImageLabs) -> ImageLabsError:
    with pytest.raises(ImageLabsError) as caught:
        client.generate(
            "a whisper",
            negative_prompt="a murmur",
            reference_image="a sigh",
            extra_body={"key": "a gasp"},
        )
    return caught.value


def refused(_: FaultyServer) -> ImageLabs:
    return ImageLabs(CLOSED, **settings())


def forbidden(server: FaultyServer) -> ImageLabs:
    server.scripts["/txt2img"] = [faulty.reply(403, {"error": "not this one"})]
    return ImageLabs(server.url, **settings())


def cut(server: FaultyServer) -> ImageLabs:
    server.scripts["/txt2img"] = [faulty.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{")]
    return ImageLabs(server.url, **settings())


def behind_a_proxy(_: FaultyServer) -> ImageLabs:
    return ImageLabs("http://h.test", proxy="http://u:groan@127.0.0.1:1", **settings())


def with_a_session(_: FaultyServer) -> ImageLabs:
    session = requests.Session()
    session.headers["x-key"] = "groan"
    session.proxies = {"http": "http://u:groan@127.0.0.1:1"}
    return ImageLabs(CLOSED, transport=RequestsTransport(session=session), **settings())


def settings() -> dict[str, Any]:
    return {
        "cookies": {"session": "hush"},
        "headers": {"authorization": "Bearer mumble"},
        "max_retries": 0,
    }


@pytest.mark.parametrize("make", [refused, forbidden, cut, behind_a_proxy, with_a_session])
def test_no_frame_of_a_refused_submit_shows_a_secret(
    make: Callable[[FaultyServer], ImageLabs], server: FaultyServer
) -> None:
    """Error trackers send local variables to places where no cookie and no prompt belongs."""
    with make(server) as client:
        variables = shown(generate(client))
    assert len(variables) > 10
    leaks = {
        where: secret for where, text in variables.items() for secret in SECRETS if secret in text
    }
    assert leaks == {}
