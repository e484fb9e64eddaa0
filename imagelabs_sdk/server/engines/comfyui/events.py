"""ComfyUI's websocket: progress and previews of one job. Without it, a job is polled alone."""

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
import websocket

__all__ = ["Event", "EventStream"]

_CONNECT = 5.0  # seconds
_FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


@attrs.frozen
class Event:
    """What a message says of the job.

    Attributes:
        fraction: How much of a node is done, 0.0 to 1.0; `None`: the message says nothing of it.
        preview: A JPEG or PNG, or `None`.
        ended: Whether the job has ended, one way or the other.
    """

    fraction: float | None = None
    preview: bytes | None = attrs.field(default=None, repr=False)
    ended: bool = False


class EventStream:
    """The messages of one job, for as long as the connection holds."""

    def __init__(
        self,
        url: str,
        handle: str,
        connect: Callable[..., Any] = websocket.create_connection,
    ) -> None:
        """Connect as the client `handle`, under which the job is submitted.

        Args:
            url: ComfyUI's address, http or https.
            handle: Of the job. A client of the same name that connects later replaces this one,
                so that a worker that takes the job over gets its messages.
            connect: Opens a connection.
        """
        self._handle = handle
        address = f"ws{url.removeprefix('http')}/ws?clientId={handle}"
        self._socket: Any = None
        with suppress(OSError, websocket.WebSocketException):
            self._socket = connect(address, timeout=_CONNECT)
            self._socket.send(json.dumps(_FLAGS))

    @property
    def is_open(self) -> bool:
        """False when there is no connection (any more)."""
        return self._socket is not None

    def next(self, timeout: float) -> Event | None:
        """Wait up to `timeout` seconds for a message; `None`: none came, or it says nothing."""
        try:
            self._socket.settimeout(timeout)
            message = self._socket.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (OSError, websocket.WebSocketException):
            self.close()
            return None
        return self._read(message)

    def close(self) -> None:
        """Close the connection. May be called again."""
        if self._socket is not None:
            with suppress(OSError, websocket.WebSocketException):
                self._socket.close(timeout=0)
            self._socket.shutdown()  # after the server's own goodbye, close() leaves it open
        self._socket = None

    def _read(self, message: str | bytes) -> Event | None:
        try:
            if isinstance(message, bytes):
                return self._binary(message)
            read: dict[str, Any] = json.loads(message)
            return self._text(read["type"], read["data"])
        except (ValueError, KeyError, TypeError, AttributeError, struct.error):
            return None  # a node of somebody's own may send anything

    def _text(self, kind: str, data: dict[str, Any]) -> Event | None:
        if data.get("prompt_id") != self._handle:
            return None
        if kind == "progress":
            return Event(fraction=_share(data))
        if kind == "progress_state":
            running = [n for n in data["nodes"].values() if n["state"] == "running"]
            return Event(fraction=max(map(_share, running), default=None))
        return Event(ended=True) if kind in _ENDS else None

    def _binary(self, message: bytes) -> Event | None:
        kind, number = struct.unpack(">II", message[:8])
        if kind == _PREVIEW:  # of the job that runs for this client: there is no other
            return Event(preview=message[8:])
        if kind != _PREVIEW_WITH_METADATA:
            return None
        metadata = json.loads(message[8 : 8 + number])
        return (
            Event(preview=message[8 + number :]) if metadata["prompt_id"] == self._handle else None
        )


def _share(data: dict[str, Any]) -> float:
    return min(1.0, max(0.0, data["value"] / data["max"])) if data["max"] else 0.0
