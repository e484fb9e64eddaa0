"""Everything that `imagelabs serve` answers: the application behind its gate, health, the page."""

import logging
import sqlite3
from collections.abc import Callable
from importlib import resources

import attrs

from ..transports.base import HttpRequest, HttpResponse
from .access import Gate
from .app import ANYONE, App, Parked, Refusal

__all__ = ["Site"]

log = logging.getLogger(__name__)

_ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_BROKEN = "the server cannot reach its store; try again"


@attrs.frozen
class Site:
    """Routes a request: health and metrics, the page, or the application.

    Attributes:
        app: The protocol.
        gate: Checks hosts, origins and tokens.
        is_ready: Return True while workers take jobs.
        metrics: Return the metrics.
    """

    app: App
    gate: Gate
    is_ready: Callable[[], bool]
    metrics: Callable[[], HttpResponse]

    def handle(self, request: HttpRequest, peer: str) -> HttpResponse | Parked:
        """Answer a request of `peer`, or return an answer that is not due yet."""
        try:
            return self._route(request, peer)
        except Refusal as refusal:
            return refusal.response()
        except (OSError, sqlite3.Error):
            log.exception("the store cannot be used")
            return Refusal(503, _BROKEN, {"retry-after": "5"}).response()

    def _route(self, request: HttpRequest, peer: str) -> HttpResponse | Parked:
        path = self.gate.local_path(request.url)
        if path == "/healthz":
            return _text(200, "ok")
        if path == "/readyz":
            return _text(200, "ready") if self.is_ready() else _text(503, "no worker is ready")
        request = self.gate.admit(request, peer)
        if request.method == "OPTIONS":
            return self.gate.preflight(request)
        if path == "/metrics":
            self.gate.caller(request)
            return self.metrics()
        if path in _ASSETS and request.method in ("GET", "HEAD"):
            return _asset(path, request.method)
        return self._protocol(request)

    def _protocol(self, request: HttpRequest) -> HttpResponse | Parked:
        """Hand a request to the application; images are open to whoever knows their address."""
        reads = request.method in ("GET", "HEAD")
        try:
            caller = ANYONE if reads else self.gate.caller(request)
        except Refusal as refusal:
            return self.gate.shared(request, refusal.response())
        inner = attrs.evolve(request, url=self.gate.public(request.url))
        answer = self.app.handle(inner, caller, can_park=True)
        if isinstance(answer, Parked):
            late = answer.answer
            return attrs.evolve(answer, answer=lambda: self.gate.shared(request, late()))
        return self.gate.shared(request, answer)


def _asset(path: str, method: str) -> HttpResponse:
    name, media_type = _ASSETS[path]
    body = (resources.files(__package__) / "page" / name).read_bytes()
    headers = {**_PAGE_HEADERS, "content-type": media_type, "content-length": str(len(body))}
    return HttpResponse(200, headers, b"" if method == "HEAD" else body)


def _text(status: int, text: str) -> HttpResponse:
    body = f"{text}\n".encode()
    headers = {"content-type": "text/plain", "content-length": str(len(body))}
    return HttpResponse(status, headers, body)
