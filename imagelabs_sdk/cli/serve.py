"""``imagelabs serve``: a service of your own behind a socket."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..server.options import bounds
from .engines import engine_from, engine_options
from .exits import require_extra
from .option_names import Command
from .options import debug_option
from .output import print_result, say

__all__ = ["serve"]

_Function = Callable[..., Any]


def _bounds(function: _Function) -> _Function:
    """Add an option for each bound of the server."""
    for fields in reversed(bounds().values()):
        for field in reversed(fields):
            option = click.option(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                show_default=True,
                help=field.metadata["help"],
            )
            function = option(function)
    return function


@click.command(
    cls=Command,
    short_help="Serve images over HTTP, as the service does.",
    epilog="Example: imagelabs serve --port 8000 --duration 2",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@click.option(
    "--duration",
    metavar="SECONDS",
    type=float,
    help="How long an image of the landscape engine takes.  [default: 4]",
)
@click.option(
    "--workers",
    metavar="N",
    type=int,
    help="Workers that render at once; diffusers: one for each GPU.",
)
@click.option(
    "--script",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Play the failures in this JSON file instead of drawing: a fake service for tests.",
)
@click.option(
    "--store",
    metavar="DIR",
    help="Where jobs and images are kept; 'memory': nowhere.  "
    "[default: a folder of yours for each port; with --port 0 'memory']",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=8.0,
    show_default=True,
    help="Longest time from SIGTERM or Ctrl-C to the exit.",
)
@click.option(
    "--public-url",
    default="",
    help="Beginning of each URL in an answer, such as https://a.example.",
)
@click.option(
    "--allow-host", multiple=True, help="Another host name that the server is reached by."
)
@click.option("--allow-origin", multiple=True, help="Origin of a web page that may send requests.")
@click.option(
    "--proxy", multiple=True, help="Address or network whose X-Forwarded-* headers are trusted."
)
@click.option(
    "--tokens",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Bearer tokens that clients need, one a line: name token [in-flight=N] [max-side=N].",
)
@click.option("--access-log/--no-access-log", default=False, help="Log a line for each request.")
@click.option("--embed-prompts", is_flag=True, help="Write the prompt into each image's file.")
@engine_options
@_bounds
@debug_option
def serve(**given: Any) -> None:
    """Serve images over HTTP, as the service does, until Ctrl-C.

    Without --engine the built-in engine paints landscapes, as a stand-in. The key of a
    --backend is read from the environment, IMAGELABS_BACKEND_API_KEY.
    """
    if given["script"] is not None:
        from ..testing.scenario import serve_scenario  # the kit for tests is loaded for this alone

        host, port = given["host"], given["port"]
        serve_scenario(given["script"], host=host, port=port, on_ready=_print_invitation)
        return
    with require_extra("server"):
        # They need an extra that the other commands do without.
        from ..server.access import AccessOptions, read_tokens
        from ..server.engines.landscape import renders  # noqa: F401 - workers do
        from ..server.service import ServeOptions
        from ..server.service import serve as run_server
        from ..server.store.database import StoreError
    if given["access_log"]:
        _log_requests()
    engine = engine_from(given)
    access = AccessOptions(
        public_url=given["public_url"],
        allow_hosts=given["allow_host"],
        allow_origins=given["allow_origin"],
        proxies=given["proxy"],
        tokens=read_tokens(given["tokens"]) if given["tokens"] else {},
    )
    limits, face, pool = (
        kind(**{field.name: given[field.name] for field in fields})
        for kind, fields in bounds().items()
    )
    options = ServeOptions(
        host=given["host"],
        port=given["port"],
        store=_store(given["store"], given["port"]),
        grace=given["grace"],
        limits=limits,
        face=face,
        pool=pool,
        access=access,
        embed_prompts=given["embed_prompts"],
    )
    try:
        run_server(engine, options, on_ready=_print_invitation)
    except StoreError as exc:
        raise click.ClickException(f"{exc} (--store chooses another)") from exc
    say("")  # a terminal has shown ^C without an end of line


def _store(given: str | None, port: int) -> Path | None:
    """Return the folder of the store; None: in memory."""
    if given == "memory" or (given is None and port == 0):
        return None
    return Path(given) if given else _state_folder() / f"serve-{port}"


def _state_folder() -> Path:
    if sys.platform.startswith("linux"):
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
        return Path(state) / "imagelabs"
    return Path(click.get_app_dir("imagelabs"))  # pragma: no cover - by the system


def _log_requests() -> None:
    import logging  # the other commands log nothing

    logger, handler = logging.getLogger("imagelabs_sdk.server.access"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _print_invitation(url: str) -> None:
    print_result(f"Serving on {url} (Ctrl-C stops). In another terminal:")
    print_result(f'  IMAGELABS_BASE_URL={url} imagelabs generate "a lighthouse" -o lighthouse.png')
