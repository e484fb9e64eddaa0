"""``imagelabs doctor``: what stands between this machine and the service. It buys nothing."""

import os
import platform
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import attrs
import click

from .. import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    ChallengeError,
    ImageLabs,
    ImageLabsError,
    __version__,
)
from .exits import error_line, exit_code
from .option_names import Command
from .options import as_json_option, base_url_option, debug_option
from .output import print_result, say, to_json
from .runtime import current_runtime

__all__ = ["doctor"]

_PUBLIC = "https://editor.imagelabs.net"
_TIMEOUT = 10.0  # seconds for each step
_PACKAGES = ("requests", "urllib3", "attrs", "click", "rich", "Pillow")


@attrs.frozen
class Step:
    """One thing that was tried.

    Attributes:
        name: Such as ``"connect"``.
        seconds: How long it took.
        detail: What was seen.
        error: Why it failed; `None`: it did not.
        remedy: What to do about it.
    """

    name: str
    seconds: float
    detail: str = ""
    error: BaseException | None = None
    remedy: str = ""


@click.command(
    cls=Command,
    short_help="Find out why the service cannot be reached.",
    epilog="Example: imagelabs doctor --report report.txt",
)
@base_url_option
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a report without names, addresses and secrets, to paste into an issue.",
)
@as_json_option
@debug_option
def doctor(base_url: str | None, report: Path | None, as_json: bool) -> None:
    """Try each step on the way to the service, and say what to do about the one that fails.

    Resolves the name, connects, checks TLS and polls a task that cannot exist: it buys nothing.
    The exit code is that of the error, as for the other commands.
    """
    with current_runtime().make_client(base_url, timeout=_TIMEOUT) as client:
        say(f"trying {client.url}")
        steps = list(_steps(client))
    for step in steps:
        print_result(to_json(_facts(step)) if as_json else _line(step))
    failed = next((step for step in steps if step.error is not None), None)
    if report is not None:
        report.write_text("\n".join(_report(client, steps)) + "\n", encoding="utf-8")
        say(f"report: {report}")
    if failed is not None and failed.error is not None:
        say(f"To do: {failed.remedy}")
        raise click.exceptions.Exit(exit_code(failed.error))
    say("The service can be reached.")


def _steps(client: ImageLabs) -> Iterator[Step]:
    """Yield the steps, up to the first that fails."""
    service = urlsplit(client.url)
    proxy = _proxy(service)
    target = urlsplit(proxy) if proxy else service
    plan: list[tuple[str, Callable[[], str], str]] = [
        ("resolve", lambda: _resolve(target), "check the name, and the DNS of this machine"),
        ("connect", lambda: _connect(target), "check firewall, port and proxy"),
    ]
    if service.scheme == "https" and not proxy:
        remedy = "check the clock, REQUESTS_CA_BUNDLE, and what inspects TLS in this network"
        plan.append(("tls", lambda: _handshake(target), remedy))
    plan.append(("poll", lambda: _poll(client), "see the message"))
    if proxy:
        yield Step("proxy", 0.0, f"through {target.hostname}")
    for name, run, remedy in plan:
        started = time.monotonic()
        try:
            detail = run()
        except (OSError, ImageLabsError) as error:
            spent = time.monotonic() - started
            yield Step(name, spent, "", _as_error(error), _remedy(error, remedy))
            return
        yield Step(name, time.monotonic() - started, detail)


def _proxy(service: SplitResult) -> str:
    own = os.environ.get("IMAGELABS_PROXY")
    if own or proxy_bypass(service.hostname or ""):
        return own or ""
    proxies = getproxies()
    return proxies.get(service.scheme) or proxies.get("all") or ""


def _port(target: SplitResult) -> int:
    return target.port or (443 if target.scheme == "https" else 80)


def _resolve(target: SplitResult) -> str:
    found = socket.getaddrinfo(target.hostname, _port(target), type=socket.SOCK_STREAM)
    families = sorted({"IPv6" if item[0] == socket.AF_INET6 else "IPv4" for item in found})
    return f"addresses: {len(found)}, {', '.join(families)}"


def _connect(target: SplitResult) -> str:
    with socket.create_connection((target.hostname or "", _port(target)), timeout=_TIMEOUT):
        return f"port {_port(target)}"


def _handshake(target: SplitResult) -> str:
    host = target.hostname or ""
    context = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE"))
    with (
        socket.create_connection((host, _port(target)), timeout=_TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        return str(secured.version())


def _poll(client: ImageLabs) -> str:
    """Poll a task that cannot exist; return how the service refuses it."""
    job = client.get_job(f"doctor-{secrets.token_hex(8)}")
    try:
        progress = job.refresh(timeout=_TIMEOUT)
    except ChallengeError:
        raise
    except APIStatusError as error:
        if error.status_code in (400, 404, 410, 422):
            return f"the service answers: {error.status_code} for a task that does not exist"
        raise
    except APIResponseError:
        return "the service answers, without a word about a task that does not exist"
    return f"the service answers: {progress.state.value}"


def _as_error(error: OSError | ImageLabsError) -> ImageLabsError:
    """Return the error of the library that a program would have got."""
    return error if isinstance(error, ImageLabsError) else APIConnectionError(str(error))


def _remedy(error: OSError | ImageLabsError, remedy: str) -> str:
    if isinstance(error, ChallengeError):
        return (
            "pass the check in a browser, then set IMAGELABS_COOKIE to its cookies (cf_clearance) "
            "and IMAGELABS_USER_AGENT to its exact user-agent"
        )
    if isinstance(error, APIStatusError) and error.status_code in (401, 403):
        return "set IMAGELABS_API_KEY or IMAGELABS_COOKIE"
    return remedy


# The report --------------------------------------------------------------------------------------


def _line(step: Step) -> str:
    state = "ok" if step.error is None else "FAILED"
    words = step.detail or (error_line(step.error) if step.error else "")
    return f"{state:<8}{step.name:<9}{1000 * step.seconds:>6.0f} ms  {words}"


def _facts(step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "ok": step.error is None,
        "seconds": round(step.seconds, 3),
        "detail": step.detail,
        "message": error_line(step.error) if step.error else None,
        "hint": step.remedy or None,
    }


def _report(client: ImageLabs, steps: list[Step]) -> Iterator[str]:
    """Yield lines without names, addresses and secrets: classes and codes instead of messages."""
    public = client.url == _PUBLIC
    yield f"imagelabs_sdk {__version__}, Python {platform.python_version()}, {platform.system()}"
    yield f"{ssl.OPENSSL_VERSION}; {', '.join(_versions())}"
    yield f"service: {'the public one' if public else 'another one'}"
    for step in steps:
        detail = step.detail if step.name in ("resolve", "tls") else ""
        yield f"{step.name}: {1000 * step.seconds:.0f} ms {_anonymous(step) or detail}".rstrip()


def _anonymous(step: Step) -> str:
    """Return the class and codes of an error; its message may name what is private."""
    if step.error is None:
        return ""
    code = getattr(step.error, "code", "")
    status = getattr(step.error, "status_code", "")
    return f"FAILED {type(step.error).__name__} {code} {status}".rstrip()


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
