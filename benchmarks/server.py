"""The service to measure against: a process that keeps no state and never waits.

``POST /SECONDSxBYTES/txt2img`` names a job that runs so long and ends in an image of that size;
its id says all that ``/progress`` needs, by the monotonic clock that the processes of one machine
share. ``GET /image/BYTES.png`` is an image.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from imagelabs_sdk.testing.script import png

__all__ = ["Service", "ends_at", "running"]

ROOT = Path(__file__).parent.parent
_PIXEL = png(1, 1)
_PIXEL, _TAIL = _PIXEL[:-12], _PIXEL[-12:]  # before its end, and the end
_ZEROS = memoryview(bytes(1 << 20))
_numbers = itertools.count()


@attrs.frozen
class Service:
    """A server that runs.

    Attributes:
        origin: Such as ``"http://127.0.0.1:8000"``.
        bundle: The file of the authority that its certificate is from; `None`: no TLS.
        process: The process that serves.
    """

    origin: str
    bundle: str | None
    process: int

    def jobs_of(self, seconds: float, image: int = 100) -> str:
        """The base URL of jobs that run so long and end in an image of so many bytes."""
        return f"{self.origin}/{seconds}x{image}"

    def busy(self) -> float:
        """CPU seconds that it has used so far; 0.0 where ``/proc`` does not tell."""
        try:
            fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ends_at(task_id: str) -> float:
    """When a job's image is there, by `time.monotonic`."""
    start, seconds, _, _ = task_id.split("x")
    return float(start) + float(seconds)


@contextlib.contextmanager
def running(*, tls: bool = False) -> Iterator[Service]:
    """A server of its own process on 127.0.0.1, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        bundle, pair = _certificate(Path(folder)) if tls else (None, "")
        command = [sys.executable, "-m", "benchmarks.server", pair]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True) as process:
            try:
                assert process.stdout is not None
                port = int(process.stdout.readline())
                origin = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
                yield Service(origin, bundle, process.pid)
            finally:
                process.kill()


def _certificate(folder: Path) -> tuple[str, str]:
    import trustme  # of the extra "bench"; only TLS needs it

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    pair = authority.issue_cert("127.0.0.1")
    pair.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return str(folder / "authority.pem"), str(folder / "server.pem")


# In the server's process -----------------------------------------------------------------


def _submission(prefix: str) -> bytes:
    task_id = f"{time.monotonic():.6f}x{prefix}x{next(_numbers)}"
    return json.dumps({"task_id": task_id}).encode()


def _progress(query: bytes) -> bytes:
    start, seconds, image, _ = json.loads(query)["task_id"].split("x")
    elapsed = time.monotonic() - float(start)
    if elapsed < float(seconds):
        return b'{"status":"Running","progress":%.4f}' % (elapsed / float(seconds))
    address = f"/image/{image}.png"
    return json.dumps({"status": "Done", "progress": 1.0, "final_image_url": address}).encode()


class _Peer(asyncio.Protocol):
    """One connection: requests in turn, each with a ``Content-Length`` or without a body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._received = transport, b""
        self._left, self._paused = 0, False

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) > 3:
            head = self._received[:end]
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            whole = end + int(length or 0)
            if len(self._received) < whole:
                return
            body, self._received = self._received[end:whole], self._received[whole:]
            self._answer(head.split(b" ", 2)[1].decode(), body)

    def _answer(self, path: str, body: bytes) -> None:
        _, prefix, name = path.split("/")
        if prefix == "image":
            self._start_image(int(name.removesuffix(".png")))
        else:
            answer = _submission(prefix) if name == "txt2img" else _progress(body)
            self._transport.write(_head("application/json", len(answer)) + answer)

    def _start_image(self, size: int) -> None:
        # As large as asked by a private chunk of zeros, whose checksum no decoder looks at.
        start = _PIXEL + (size - len(_PIXEL) - len(_TAIL) - 12).to_bytes(4, "big") + b"fiLl"
        self._transport.write(_head("image/png", size) + start)
        self._left = size - len(start)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        while self._left and not self._paused:
            piece = _ZEROS[: self._left - len(_TAIL)] or _TAIL
            self._left -= len(piece)
            self._transport.write(piece)


def _head(kind: str, size: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n".encode()


async def _serve(pair: str) -> None:
    context = None
    if pair:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Peer, "127.0.0.1", 0, ssl=context, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Standard input ends with the process that started this one, however that ends.
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who measures
    asyncio.run(_serve(sys.argv[1]))
