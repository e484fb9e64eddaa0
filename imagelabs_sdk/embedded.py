"""Both ends of the protocol in one process: a client that needs no network and no account."""

from typing import Any

from ._extras import needs_extra
from .client import ImageLabs
from .polling import PollingStrategy
from .server.engines.base import EngineConfig
from .server.engines.landscape import LandscapeEngine
from .server.local import LocalServer
from .transports.handler import HandlerTransport

__all__ = ["embedded_client", "embedded_transport"]

_DURATION = 2.0  # seconds per image: pleasant, and long enough for progress to be seen
_POLL_INTERVAL = 0.1  # seconds; asking costs next to nothing here


def embedded_transport(
    engine: EngineConfig | None = None, *, duration: float = _DURATION
) -> HandlerTransport:
    """Return a transport with a service of its own behind it.

    Args:
        engine: Renders; None: a `LandscapeEngine`.
        duration: Seconds per image of that one; not used with an engine of your own.
    """
    return HandlerTransport(_server(engine, duration))


def embedded_client(
    engine: EngineConfig | None = None,
    *,
    duration: float = _DURATION,
    base_url: str = "http://imagelabs.embedded",
    polling: PollingStrategy | None = None,
    poll_interval: float | None = None,
    **client_options: Any,
) -> ImageLabs:
    """Return a client with its own service behind it.

    The whole protocol is spoken, without a socket.

    Its jobs live in this process, so that neither the client nor its jobs pickle, and no
    other process can ask for them. `close` ends the threads of an engine that has some.

    Args:
        engine: Renders; None: a `LandscapeEngine`. Its images are a stand-in: no diffusion
            model is at work.
        duration: Seconds per image of the `LandscapeEngine`; not used with an engine of your own.
        base_url: What the addresses of images begin with; nobody else can open them.
        polling: When to poll. None: every `poll_interval`.
        poll_interval: Seconds between polls; None: 0.1, if there is no `polling`.
        **client_options: The other settings of `ImageLabs`, but for `transport`.

    Raises:
        InvalidRequestError: A setting cannot be used.
    """
    if polling is None and poll_interval is None:
        poll_interval = _POLL_INTERVAL
    return _EmbeddedClient(
        base_url,
        server=_server(engine, duration),
        polling=polling,
        poll_interval=poll_interval,
        **client_options,
    )


def _server(engine: EngineConfig | None, duration: float) -> LocalServer:
    with needs_extra("server"):  # Pillow
        return LocalServer(engine or LandscapeEngine(duration=duration))


class _EmbeddedClient(ImageLabs):
    """A client whose service ends with it."""

    def __init__(self, base_url: str, *, server: LocalServer, **options: Any) -> None:
        super().__init__(base_url, transport=HandlerTransport(server), **options)
        self._server = server

    def close(self) -> None:
        """Close the client, and its service with it; another call starts both again."""
        super().close()
        self._server.close()
