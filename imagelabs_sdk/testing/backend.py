"""A fake service as a backend of ``settings.IMAGELABS``, with an outbox."""

from typing import Any, ClassVar

from ..deadline import Deadline
from ..models import ImageRequest
from ..polling import Adaptive, FixedInterval, PollingStrategy
from ..transports.base import HttpRequest, HttpResponse
from .script import Answer
from .service import FakeService
from .transport import FakeTransport

__all__ = ["FakeBackend", "outbox"]

outbox: list[ImageRequest] = []
"""What was accepted since `FakeBackend.reset`, as ``django.core.mail.outbox`` has the mails."""


class FakeBackend:
    """The backend for a Django project's tests.

    ``IMAGELABS = {"default": {"BACKEND": "imagelabs_sdk.testing.FakeBackend"}}``. All that have no
    service of their own share one; `reset` it before each test.

    Attributes:
        service: The shared service.
        client_options: Defaults for the client: the service's address, and a clock that nobody
            waits for.
    """

    service: ClassVar[FakeService] = FakeService()
    simulated: ClassVar[bool] = True  # as of the clock behind `now` and `sleep`

    def __init__(
        self, service: FakeService | None = None, poll_interval: float | None = None
    ) -> None:
        """Open nothing.

        Args:
            service: What answers; `None`: the shared one, whichever that is at the time.
            poll_interval: Seconds between polls, by the service's clock; `None`: `Adaptive`.
        """
        self._own = service
        if service is not None:
            service.on_accepted = outbox.append
        self._transport = FakeTransport(self._answer, self)
        polling: PollingStrategy = Adaptive(clock=self.now, sleep=self.sleep)
        if poll_interval is not None:
            polling = FixedInterval(poll_interval, clock=self.now, sleep=self.sleep)
        self.client_options: dict[str, Any] = {"base_url": self._service.url, "polling": polling}

    @classmethod
    def reset(cls) -> FakeService:
        """Empty the outbox and return a new shared service without a script."""
        outbox.clear()
        cls.service = FakeService()
        cls.service.on_accepted = outbox.append
        return cls.service

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Answer `request`; see `FakeTransport.send`."""
        return self._transport.send(request, deadline=deadline)

    def close(self) -> None:
        """Do nothing: no connection is open."""

    def now(self) -> float:
        """Return the time by the service's clock."""
        return self._service.clock.now()

    def sleep(self, seconds: float) -> None:
        """Sleep by the service's clock."""
        self._service.clock.sleep(seconds)

    def _answer(self, request: HttpRequest) -> Answer:
        return self._service.answer(request)

    @property
    def _service(self) -> FakeService:
        return self._own or self.service


FakeBackend.reset()
