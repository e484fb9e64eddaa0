"""Every bound of a server, in one place: `imagelabs serve` has an option for each field."""

from typing import Any

import attrs

from ..validation import invalid

__all__ = ["FaceOptions", "PoolOptions", "StoreLimits", "bounds"]


def _bound(default: float, text: str, least: float = 1) -> Any:
    def check(_: object, field: "attrs.Attribute[float]", value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise invalid(field.name, value, f"must be a number, {least:g} or more")

    return attrs.field(default=default, validator=check, metadata={"help": text})


@attrs.frozen(kw_only=True)
class StoreLimits:
    """What a store may hold. An image that nobody has fetched is never removed for its bytes."""

    max_jobs: int = _bound(1000, "Jobs that have not ended.")
    max_request_bytes: int = _bound(256 * 1024**2, "Bytes of these jobs' requests together.")
    max_image_bytes: int = _bound(
        10 * 1024**3, "Bytes of finished images; fetched ones are removed first."
    )
    keep: float = _bound(86_400.0, "Seconds from a job's end until it is forgotten.")


@attrs.frozen(kw_only=True)
class FaceOptions:
    """Bounds of HTTP. What is over them is answered with 429 or 503 and Retry-After, or 413."""

    max_connections: int = _bound(1000, "Open connections.")
    address_share: float = _bound(
        0.5,
        "Share of connections, bodies, waiting requests and long polls that one address can "
        "take (IPv6: a /64; a --proxy: all).",
        least=0.01,
    )
    idle_timeout: float = _bound(75.0, "Seconds that a connection is kept between requests.")
    receive_timeout: float = _bound(
        30.0, "Seconds for a request's head and body together.", least=0.1
    )
    send_timeout: float = _bound(300.0, "Seconds for a whole response.", least=0.1)
    max_head: int = _bound(64 * 1024, "Bytes of a request's head.", least=1024)
    max_body: int = _bound(32 * 1024**2, "Bytes of one body.")
    max_bodies: int = _bound(256 * 1024**2, "Bytes of all bodies under way.")
    max_waiting: int = _bound(512, "Requests that have a thread or wait for one.")
    max_parked: int = _bound(1000, "Long polls that wait; more are answered at once.", least=0)
    threads: int = _bound(4, "Threads that answer requests.")


@attrs.frozen(kw_only=True)
class PoolOptions:
    """How workers are supervised."""

    hang_timeout: float = _bound(
        300.0, "Seconds of silence while rendering until a worker is killed.", least=0.1
    )
    load_timeout: float = _bound(1800.0, "The same while an engine loads.", least=0.1)
    first_pause: float = _bound(
        0.5, "Seconds until a dead worker is started again; doubles each time.", least=0.001
    )
    longest_pause: float = _bound(60.0, "The longest of these pauses.", least=0.001)


def bounds() -> dict[type, tuple["attrs.Attribute[Any]", ...]]:
    """Return the fields of each class of bounds; ``metadata["help"]`` says what one means."""
    return {each: attrs.fields(each) for each in (StoreLimits, FaceOptions, PoolOptions)}
