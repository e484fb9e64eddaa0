"""What the jobs of one client share."""

import attrs

from .deadline import Deadline, Stop
from .downloads import ImageDownloader
from .endpoints import Endpoints
from .polling import Adaptive, FixedInterval, PollingStrategy
from .settings import Settings
from .transports.base import Transport
from .transports.observed import ObservedTransport
from .transports.requests import RequestsTransport

__all__ = ["ClientContext"]


@attrs.frozen
class ClientContext:
    """The parts of a client, put together when it is first used. Opens nothing by itself.

    Attributes:
        settings: What the client was given.
        transport: Sends the requests.
        polling: When to poll; also the clock of everything.
        endpoints: The service's endpoints.
        downloader: Fetches finished images.
    """

    settings: Settings
    transport: Transport
    polling: PollingStrategy
    endpoints: Endpoints = attrs.field(init=False, eq=False, repr=False)
    downloader: ImageDownloader = attrs.field(init=False, eq=False, repr=False)

    @classmethod
    def of(
        cls, settings: Settings, transport: Transport | None, polling: PollingStrategy | None
    ) -> "ClientContext":
        """Return the context for what a client was given; `None` has the default of `ImageLabs`."""
        if transport is None:
            transport = RequestsTransport(
                proxy=settings.proxy, verify=settings.verify, no_proxy=settings.no_proxy
            )
        if settings.on_request or settings.on_response:
            transport = ObservedTransport(transport, settings.on_request, settings.on_response)
        if settings.poll_interval is not None:
            polling = FixedInterval(settings.poll_interval)
        return cls(settings, transport, polling or Adaptive(long_polls=True))

    @endpoints.default
    def _make_endpoints(self) -> Endpoints:
        return Endpoints(self.settings, self.transport, self.polling.sleep)

    @downloader.default
    def _make_downloader(self) -> ImageDownloader:
        clock, sleep = self.polling.clock, self.polling.sleep
        return ImageDownloader(self.settings, self.transport, clock, sleep)

    @property
    def base_transport(self) -> Transport:
        """The transport without the hooks around it, to be shared with other clients."""
        given = self.transport
        return given.transport if isinstance(given, ObservedTransport) else given

    def deadline(self, timeout: float | Deadline | None, stop: Stop | None = None) -> Deadline:
        """Return the deadline of a call; `None`: after the client's own `timeout`."""
        return Deadline.from_timeout(
            timeout, default=self.settings.timeout, clock=self.polling.clock, stop=stop
        )
