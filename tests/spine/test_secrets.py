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
from imagelabs_sdk import (
    FixedInterval,
    ImageLabs,
    ImageLabsError,
    ImageRequest,
    InvalidRequestError,
    RequestsTransport,
)
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


def leaks(error: BaseException) -> dict[str, str]:
    variables = shown(error)
    return {
        where: secret for where, text in variables.items() for secret in SECRETS if secret in text
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


def garbled(server: FaultyServer) -> ImageLabs:
    body = b"\x1f\x8b\x08 a whisper"
    server.scripts["/txt2img"] = [faulty.reply(200, body, ("content-encoding", "gzip"))]
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


@pytest.mark.parametrize("make", [refused, forbidden, cut, garbled, behind_a_proxy, with_a_session])
def test_no_frame_of_a_refused_submit_shows_a_secret(
    make: Callable[[FaultyServer], ImageLabs], server: FaultyServer
) -> None:
    """Error trackers send local variables to places where no cookie and no prompt belongs."""
    with make(server) as client:
        error = generate(client)
    assert len(shown(error)) > 10
    assert leaks(error) == {}


INVALID_SETTINGS: list[dict[str, Any]] = [
    {"proxy": "http//u:groan@127.0.0.1"},
    {"proxy": "http://u:groan@127.0.0.1:1", "max_retries": -1},
    {"base_url": "http://u:groan@h.test"},
    {"headers": {"authorization": "Bearer groan\n"}},
    {"headers": {"cookie": "a=groan;b=sigh"}, "timeout": -1},
    {"cookies": {"session": "hush", "other": "groan;"}},
    {"cookies": "session=hush; other=gro\nan"},
    {"cookies": "session=hush", "api_key": "mumble", "timeout": -1},
    {"api_key": "groan\n"},
    {"api_key": "groan", "headers": {"authorization": "mumble"}},
    {"image_headers": {"cookie": "groan"}},
    {"image_headers": {"referer": "http://h.test/?key=groan"}, "verify": "nowhere"},
    {"api_key": "groan", "poll_interval": 1, "polling": FixedInterval(1)},
    {"api_key": "groan", "ledger": 5},
    {"api_key": "groan", "no_such": 5},
]


@pytest.mark.parametrize("given", INVALID_SETTINGS)
def test_no_frame_of_a_refused_setting_shows_a_secret(given: dict[str, Any]) -> None:
    """A client is made at a program's start, where its error trackers already listen."""
    with pytest.raises((ValueError, TypeError)) as caught:
        ImageLabs(**{"cookies": {"session": "hush"}, **given})
    assert leaks(caught.value) == {}


@pytest.mark.parametrize(
    "given",
    [
        {"headers": {"x-key": "groan", "cookie": "hush"}},
        {"cookies": "session=hush", "timeout": -1},
        {"api_key": "groan\n"},
    ],
)
def test_no_frame_of_a_refused_option_shows_a_secret(given: dict[str, Any]) -> None:
    """As for a new client."""
    client = ImageLabs(CLOSED)
    with pytest.raises(InvalidRequestError) as caught:
        client.with_options(**given)
    assert leaks(caught.value) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"seed": -1},
        {"tiling": 1},
        {"no_such": 1},
        {"aspect_ratio": "1:99"},
        {"aspect_ratio": "1:1", "width": 8},
        {"negative_prompt": "a murmur \ud800"},
        {"reference_image": b"a sigh"},
        {"reference_image": "a sigh \ud800"},
        {"extra_body": {"key": "a gasp", "other": {"hush"}}},
        {"extra_body": ["a gasp"]},
        {"metadata": {"key": {1}}},
    ],
)
def test_no_frame_of_an_invalid_request_shows_a_prompt(wrong: dict[str, Any]) -> None:
    """Whoever makes it: the request itself, a client, or a batch."""
    given = {"negative_prompt": "a murmur", "reference_image": "a sigh", **wrong}
    client = ImageLabs(CLOSED)
    outcome = next(iter(client.generate_many([{"prompt": "a whisper", **given}])))
    assert isinstance(outcome.error, InvalidRequestError)
    assert leaks(outcome.error) == {}
    for make in (ImageRequest, client.submit, client.generate):
        with pytest.raises(InvalidRequestError) as caught:
            make("a whisper", **given)
        assert leaks(caught.value) == {}


def test_an_error_keeps_the_lines_and_what_the_caller_was_handling() -> None:
    """Only the variables of the calls that failed are gone."""

    def outer() -> BaseException:
        mine = "of the caller"
        try:
            raise KeyError(mine)
        except KeyError:
            with pytest.raises(InvalidRequestError) as caught:
                ImageRequest("a whisper", width=0)
            return caught.value

    error = outer()
    functions = [frame.f_code.co_name for frame in own_frames(error)]
    assert functions[:2] == ["call", "__init__"]
    assert functions[-1] == "count"
    assert isinstance(error.__context__, KeyError)
    frame, _ = next(traceback.walk_tb(error.__context__.__traceback__))
    assert frame.f_locals["mine"] == "of the caller"
