"""``imagelabs serve``: the built-in service behind a socket."""

import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import click

from .. import HttpRequest, HttpResponse
from .exits import Command, require_extra
from .options import debug_option
from .output import print_result, say

__all__ = ["serve"]

log = logging.getLogger(__name__)


@click.command(
    cls=Command,
    short_help="Serve images over HTTP, as the service does.",
    epilog="Example: imagelabs serve --port 8000 --duration 2",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--duration",
    metavar="SECONDS",
    type=float,
    default=4.0,
    show_default=True,
    help="How long an image takes.",
)
@click.option(
    "--workers", metavar="N", type=int, default=2, show_default=True, help="Images drawn at once."
)
@click.option(
    "--script",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Play the failures in this JSON file instead of drawing: a fake service for tests.",
)
@debug_option
def serve(host: str, port: int, duration: float, workers: int, script: str | None) -> None:
    """Serve images of the built-in engine over HTTP, as the service does, until Ctrl-C."""
    if script is not None:
        from ..testing.scenario import serve_scenario  # the kit for tests is loaded for this alone

        serve_scenario(script, host=host, port=port, on_ready=_print_invitation)
        return
    with require_extra("server"):
        # They need an extra that the other commands do without.
        from ..server.engines.landscape import LandscapeEngine
        from ..server.http import serve as serve_http
        from ..server.local import LocalServer

        server = LocalServer(LandscapeEngine(duration=duration, workers=workers))
    serve_http(_with_request_log(server), host=host, port=port, on_ready=_print_invitation)
    say("")  # a terminal has shown ^C without an end of line


def _with_request_log(
    handle: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Return a handler that also logs each request, for ``--debug``; no prompt."""

    def logged(request: HttpRequest) -> HttpResponse:
        started = time.monotonic()
        response = handle(request)
        path, spent = urlsplit(request.url).path, 1000 * (time.monotonic() - started)
        log.debug("%s %s: %d in %.0f ms", request.method, path, response.status, spent)
        return response

    return logged


def _print_invitation(url: str) -> None:
    print_result(f"Serving on {url} (Ctrl-C stops). In another terminal:")
    print_result(f'  IMAGELABS_BASE_URL={url} imagelabs generate "a lighthouse" -o lighthouse.png')
