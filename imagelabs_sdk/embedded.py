"""Both ends of the protocol in one process: a client that needs no network and no account."""

from typing import Any

from .client import ImageLabs
from .polling import PollingStrategy
from .server.app import App
from .server.engines.landscape import LandscapeEngine
from .server.engines.render import Engine
from .transports.handler import HandlerTransport

__all__ = ["embedded_client", "embedded_transport"]

_DURATION = 2.0  # seconds per image: pleasant, and long enough for progress to be seen
_POLL_INTERVAL = 0.1  # seconds; asking costs next to nothing here


def embedded_transport(
    engine: Engine | None = None, *, duration: float = _DURATION
) -> HandlerTransport:
    """A service of its own behind a transport, for who makes the client elsewhere.

    Args:
        engine: Draws; `None`: a `LandscapeEngine`.
        duration: Seconds per image of that one.
    """
    return HandlerTransport(App(engine or LandscapeEngine(duration=duration)))


def embedded_client(
    engine: Engine | None = None,
    *,
    base_url: str = "http://imagelabs.embedded",
    polling: PollingStrategy | None = None,
    poll_interval: float | None = None,
    **client_options: Any,
) -> ImageLabs:
    """A client with its own service behind it. The whole protocol is spoken, without a socket.

    Its jobs live in this process, so that neither the client nor its jobs pickle, and no
    other process can ask for them.

    Args:
        engine: Draws; `None`: a `LandscapeEngine` with 2 seconds per image. Its images
            are a stand-in: no diffusion model is at work.
        base_url: What the addresses of images begin with; nobody else can open them.
        polling: When to poll. `None`: every `poll_interval`.
        poll_interval: Seconds between polls; `None`: 0.1, if there is no `polling`.
        **client_options: The other settings of `ImageLabs`, but for `transport`.

    Raises:
        InvalidRequestError: A setting cannot be used.
    """
    if polling is None and poll_interval is None:
        poll_interval = _POLL_INTERVAL
    return ImageLabs(
        base_url,
        transport=embedded_transport(engine),
        polling=polling,
        poll_interval=poll_interval,
        **client_options,
    )
