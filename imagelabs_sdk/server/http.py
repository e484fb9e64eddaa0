"""The server's face: HTTP/1.1 on asyncio and h11, in front of any handler of requests.

The event loop only moves bytes: the handler, and with it the database, runs in a few threads. One
deadline bounds a request's head and body together, another the whole response. What cannot be
taken is answered with 503 and a Retry-After, never dropped; a request whose client has gone by the
time a thread is free is not begun. A parked answer holds no thread, and ends with its client.

A client that has sent everything may close its sending half (`shutdown`, as ``nc -N`` does) or the
whole connection. A server cannot tell the two apart until it sends something. So the first bytes of
the answer are sent before the request is begun, and it is begun only if the client's system
acknowledges them: that of a client that has closed everything resets the connection. TCP cannot
tell whether a program that has closed only its sending half will read the answer.
"""

import asyncio
import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
import h11

from .. import wire
from ..transports.base import HttpRequest, HttpResponse
from .app import PROGRESS_INTERVAL, Parked
from .options import FaceOptions
from .sockets import is_reset, network_of, unacknowledged

__all__ = ["Handler", "ParkingHandler", "Server", "running"]

log = logging.getLogger(__name__)
access_log = logging.getLogger("imagelabs_sdk.server.access")

T = TypeVar("T")

Handler = Callable[[HttpRequest], HttpResponse]
"""Such as a `LocalServer`."""

ParkingHandler = Callable[[HttpRequest, str], HttpResponse | Parked]
"""Gets the request and the peer's address; may return an answer that is not due yet."""

_BACKLOG = 1024  # connections that may wait to be accepted
_READ = 64 * 1024  # bytes
_LINGER = 2.0  # seconds for a client to read a refusal before its connection is closed
_LINGER_BYTES = 1024 * 1024  # read and dropped meanwhile
_MAX_REFUSALS = 100  # connections that are being refused at once; more are closed without a word
_BEGINNING = b"HTTP/1.1 "  # of every answer
_PROBES = 100  # checks whether the client's system has acknowledged what was sent
_PROBE_INTERVAL = 0.02  # seconds between them
_RETRY_AFTER = "1"
_TASK_ID = re.compile(r"[0-9a-f]{32}")
_HOST = re.compile(r"[^/?#\\]*")  # what ends it would hide the path that a proxy has let pass


@attrs.frozen
class _Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """A request that never reaches the handler."""

    status: int
    message: str


class Server:
    """Listens from the beginning; answers while `run` runs.

    Attributes:
        url: Where it listens, without a slash at the end.
    """

    def __init__(
        self,
        handler: ParkingHandler,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        options: FaceOptions | None = None,
        subscribe: Callable[[Callable[[str], None]], Callable[[], None]] | None = None,
        is_proxy: Callable[[str], bool] = lambda address: False,
    ) -> None:
        """Listen at the first address that `host` has.

        Args:
            handler: Answers; called in several threads at once.
            host: A name or an address; ``"0.0.0.0"``: every address of this machine.
            port: 0: any that is free.
            options: The bounds.
            subscribe: As `JobStore.subscribe`; needed only if the handler parks answers.
            is_proxy: Return True for an address whose connections are those of many clients.

        Raises:
            OSError: It cannot listen there.
        """
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        bound, number = self._listener.getsockname()[:2]
        self.url = f"http://[{bound}]:{number}" if ":" in bound else f"http://{bound}:{number}"
        self._handler, self._options = handler, options or FaceOptions()
        self._subscribe, self._is_proxy = subscribe, is_proxy
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._grace = 0.0

    def run(
        self,
        on_ready: Callable[[], object] = lambda: None,
        on_stopping: Callable[[], object] = lambda: None,
    ) -> None:
        """Answer until `stop`; then accept nothing new and finish what is under way. Once.

        Args:
            on_ready: Called in the event loop once connections are accepted.
            on_stopping: Called there once they are not any more.
        """
        try:
            if not self._stop.is_set():
                asyncio.run(self._main(on_ready, on_stopping))
        finally:
            self.close()

    def stop(self, grace: float = 5.0) -> None:
        """Let `run` return, from any thread, within `grace` seconds. May be called again."""
        self._grace = grace
        self._stop.set()
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(stopping.set)

    def close(self) -> None:
        """Stop listening; for a server that never runs. `run` does so by itself."""
        self._listener.close()

    async def _main(
        self, on_ready: Callable[[], object], on_stopping: Callable[[], object]
    ) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        face = _Face(self._handler, self._options, self.url, self._is_proxy)
        leave = self._subscribe(face.changed) if self._subscribe else lambda: None
        accepting = await self._loop.create_server(
            lambda: asyncio.StreamReaderProtocol(_Reader(), face.connected),
            sock=self._listener,
            backlog=_BACKLOG,
        )
        on_ready()
        try:
            if self._stop.is_set():  # `stop` came before there was a loop to tell
                return
            await self._stopping.wait()
        finally:
            accepting.close()
            on_stopping()
            await face.drain(self._grace)
            leave()


@contextmanager
def running(
    handler: Handler,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    options: FaceOptions | None = None,
) -> Iterator[str]:
    """Yield the address of a server that answers in a thread while the block lasts."""
    server = Server(lambda request, _: handler(request), host=host, port=port, options=options)
    thread = threading.Thread(target=server.run, name="imagelabs-server")
    thread.start()
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()


class _Reader(asyncio.StreamReader):
    """What a client sends; knows at once when there will be no more.

    Attributes:
        ended: True once the client has closed its sending half, or the connection is lost.
        news: Set then; whoever waits for this client may set and clear it, too.
    """

    def __init__(self) -> None:
        super().__init__(limit=_READ)
        self.ended, self.news = False, asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self._end()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._end()

    def _end(self) -> None:
        self.ended = True
        self.news.set()


@attrs.define(eq=False)
class _Address:
    """What one address has taken; all of its connections share this.

    Attributes:
        share: The part of each bound that it can take.
        connections: Open ones.
        bodies: Bytes of bodies under way.
        waiting: Requests that have a thread or wait for one.
        parked: Long polls.
    """

    share: float
    connections: int = 0
    bodies: int = 0
    waiting: int = 0
    parked: int = 0

    def is_full(self, taken: float, bound: float, least: float = 1) -> bool:
        """Return True if `taken` is over its share of a bound, which is `least` or more."""
        return taken > max(least, self.share * bound)


class _Face:
    """Everything that lives in the event loop."""

    def __init__(
        self,
        handler: ParkingHandler,
        options: FaceOptions,
        url: str,
        is_proxy: Callable[[str], bool],
    ) -> None:
        self.options, self.url = options, url
        self.draining = False
        self.bodies = 0
        self._handler, self._is_proxy = handler, is_proxy
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(options.threads, "imagelabs-request")
        self._waiting = 0
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._addresses: dict[str, _Address] = {}
        self._refusals = 0
        self._parked: dict[str, set[asyncio.Event]] = {}
        self._parked_count = 0
        self._statuses: dict[str, asyncio.Task[Any]] = {}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, or refuse it in words."""
        assert isinstance(reader, _Reader)
        name = writer.get_extra_info("peername")
        peer = str(name[0]) if isinstance(name, tuple) else ""
        network = network_of(peer)
        address = self._addresses.get(network) or _Address(
            1.0 if self._is_proxy(peer) else self.options.address_share
        )
        connection = _Connection(self, reader, writer, peer, address)
        refusal = self._refusal(address)
        if refusal is not None:
            await self._refuse(connection, refusal)
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = connection
        self._addresses[network] = address
        address.connections += 1
        try:
            await connection.serve()
        finally:
            del self._connections[task]
            address.connections -= 1
            if not address.connections:
                del self._addresses[network]

    def _refusal(self, address: _Address) -> _Refused | None:
        """Return why there is no room for a connection, or `None`."""
        bound = self.options.max_connections
        if len(self._connections) >= bound:
            return _Refused(503, "too many connections")
        if address.is_full(address.connections + 1, bound):
            return _Refused(429, "too many connections from your address")
        return None

    async def _refuse(self, connection: "_Connection", refusal: _Refused) -> None:
        """Refuse a connection; waiting until its client has read that takes room, too."""
        if self._refusals >= _MAX_REFUSALS:
            connection.abort()
            return
        self._refusals += 1
        try:
            await connection.refuse(refusal)
        finally:
            self._refusals -= 1

    async def drain(self, grace: float) -> None:
        """Close idle connections, answer what is parked, finish the rest within `grace` seconds."""
        self.draining = True
        for events in self._parked.values():
            for event in events:
                event.set()
        for connection in self._connections.values():
            connection.close_if_idle()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=grace)
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=1.0)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # The handler --------------------------------------------------------------------------

    async def answer(self, request: HttpRequest, client: "_Connection") -> HttpResponse | None:
        """Have a thread answer; None if the client had gone before one was free.

        Raises:
            _Refused: Too many requests wait already.
        """
        address, bound = client.address, self.options.max_waiting
        if self._waiting >= bound:
            raise _Refused(503, "too many requests at once")
        if address.is_full(address.waiting + 1, bound):
            raise _Refused(429, "too many requests at once from your address")
        address.waiting += 1
        try:
            response = await self._begin(request, client)
        finally:
            address.waiting -= 1
        return await self._wait_for(response, client) if isinstance(response, Parked) else response

    async def _begin(
        self, request: HttpRequest, client: "_Connection"
    ) -> HttpResponse | Parked | None:
        """Call the handler in a thread, unless the client has gone by then."""

        def begin(has_gone: Callable[[], bool]) -> HttpResponse | Parked | None:
            return None if has_gone() else self._handler(request, client.peer)

        response = await self.in_thread(partial(begin, client.has_ended))
        if response is None and await client.takes_an_answer():
            response = await self.in_thread(partial(begin, client.is_lost))
        return response

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what may block outside the event loop."""
        self._waiting += 1
        try:
            return await self._loop.run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    # Parked answers -----------------------------------------------------------------------

    def changed(self, task_id: str) -> None:
        """Wake who waits for this job; from any thread."""
        if task_id in self._parked:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._wake, task_id)

    def _wake(self, task_id: str) -> None:
        self._statuses.pop(task_id, None)
        for event in self._parked.get(task_id, ()):
            event.set()

    async def _wait_for(self, parked: Parked, client: "_Connection") -> HttpResponse:
        address, bound = client.address, self.options.max_parked
        full = address.is_full(address.parked + 1, bound, least=0)
        if self._parked_count < bound and not full:
            event = client.news
            self._parked.setdefault(parked.task_id, set()).add(event)
            self._parked_count += 1
            address.parked += 1
            try:
                await self._until_due(parked, client)
            finally:
                self._parked_count -= 1
                address.parked -= 1
                self._parked[parked.task_id].discard(event)
                if not self._parked[parked.task_id]:
                    del self._parked[parked.task_id]
                    self._statuses.pop(parked.task_id, None)
        return await self.in_thread(parked.answer)

    async def _status(self, parked: Parked) -> Any:
        """Read how a job stands, once for all who wait for it, until it changes."""
        status = self._statuses.get(parked.task_id)
        if status is None:
            status = self._loop.create_task(self.in_thread(parked.read))
            self._statuses[parked.task_id] = status
        try:
            return await asyncio.shield(status)
        except Exception:
            self._statuses.pop(parked.task_id, None)
            raise

    async def _until_due(self, parked: Parked, client: "_Connection") -> None:
        begin = self._loop.time()
        while not (self.draining or client.has_ended()):
            client.news.clear()
            waited = self._loop.time() - begin
            if waited >= parked.seconds:
                return
            if parked.is_due(await self._status(parked), waited):
                return
            pause = parked.seconds - waited
            if waited < PROGRESS_INTERVAL:  # progress may be told after it, without another change
                pause = min(pause, PROGRESS_INTERVAL - waited)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(client.news.wait(), max(pause, 0.001))


class _Connection:
    """One connection: a request at a time."""

    def __init__(
        self,
        face: _Face,
        reader: _Reader,
        writer: asyncio.StreamWriter,
        peer: str,
        address: _Address,
    ) -> None:
        self.peer, self.address = peer, address
        self._face, self._reader, self._writer = face, reader, writer
        self._options = face.options
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=face.options.max_head)
        # asyncio does it only where a socket says that it is TCP; an accepted one does not.
        self._socket: socket.socket = writer.get_extra_info("socket")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.news = reader.news
        self._idle, self._has_begun = True, False
        self._received = 0

    def close_if_idle(self) -> None:
        """Close a connection that is between requests."""
        if self._idle:
            self._writer.close()

    def abort(self) -> None:
        """Close at once, without an answer."""
        self._writer.transport.abort()

    async def refuse(self, refusal: _Refused) -> None:
        """Answer with an error whatever was asked, and close."""
        with contextlib.suppress(OSError, h11.ProtocolError, asyncio.TimeoutError):
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                response = _error(refusal.status, refusal.message)
                await asyncio.wait_for(self._send(response, last=True), self._options.send_timeout)
                await self._linger()
        await self._close()

    async def serve(self) -> None:
        """Answer requests until the client leaves, is too slow, or breaks the protocol."""
        try:
            while await self._serve_one():
                self._http.start_next_cycle()
        except (OSError, h11.RemoteProtocolError, asyncio.TimeoutError):
            log.debug("a connection ended early", exc_info=True)
        except Exception:
            log.exception("a response could not be sent")
        finally:
            await self._close()

    async def _serve_one(self) -> bool:
        """Answer one request; return False when it was the last."""
        if not await self._wait_for_data():
            return False
        self._idle = False
        try:
            receiving = self._receive()
            request = await asyncio.wait_for(receiving, self._options.receive_timeout)
            answered = await self._answer(request)
        except asyncio.TimeoutError:
            refusal = _Refused(408, "the request came too slowly")
        except h11.RemoteProtocolError as exc:
            refusal = _Refused(exc.error_status_hint, "the request is malformed")
        except _Refused as exc:
            refusal = exc
        else:
            self._idle = True
            return answered and self._http.our_state is self._http.their_state is h11.DONE
        finally:
            self._face.bodies -= self._received
            self.address.bodies -= self._received
            self._received = 0
        await self.refuse(refusal)
        return False

    async def _answer(self, request: HttpRequest) -> bool:
        """Answer a request; return False if its client has left."""
        begin = time.monotonic()
        try:
            response = await self._face.answer(request, self)
        except _Refused:
            raise
        except Exception:
            log.exception("a request failed")
            response = _error(500, "the server failed; its log says why")
        if response is None:
            return False
        await asyncio.wait_for(self._send(response), self._options.send_timeout)
        self._log(request, response, time.monotonic() - begin)
        return True

    # Whether there is somebody ----------------------------------------------------------------

    def has_ended(self) -> bool:
        """Return True if the client has closed its sending half, and perhaps all."""
        return self._reader.ended

    def is_lost(self) -> bool:
        """Return True if nothing can reach the client any more."""
        return self._writer.is_closing() or is_reset(self._socket)

    async def takes_an_answer(self) -> bool:
        """Send the beginning of the answer to a client that has ended; True: its system took it."""
        if self.is_lost():
            return False
        self._has_begun = True
        self._writer.write(_BEGINNING)
        for _ in range(_PROBES):
            await asyncio.sleep(_PROBE_INTERVAL)
            if self.is_lost():
                return False
            if unacknowledged(self._socket) == 0:
                return True
        return False

    # Receiving ----------------------------------------------------------------------------

    async def _wait_for_data(self) -> bool:
        """Wait for the first byte of a request; return False if none comes."""
        if self._http.trailing_data[0]:
            return True
        if self._face.draining:
            return False
        try:
            data = await asyncio.wait_for(self._reader.read(_READ), self._options.idle_timeout)
        except asyncio.TimeoutError:
            return False
        self._http.receive_data(data)
        return bool(data)

    async def _receive(self) -> HttpRequest:
        """Read one request; h11 raises when the client leaves in the middle of it."""
        head = await self._next_event()
        assert isinstance(head, h11.Request)
        url = self._url(head)
        self._check_length(head)
        if self._http.they_are_waiting_for_100_continue:
            going_on = h11.InformationalResponse(status_code=100, headers=[])
            self._writer.write(self._http.send(going_on))
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            self._count(len(event.data))
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        return HttpRequest(
            method=head.method.decode("ascii"),
            url=url,
            headers=_headers(head.headers),
            body=bytes(body),
        )

    async def _next_event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_READ))
        return event

    def _url(self, head: h11.Request) -> str:
        """Return the address that was asked for, as the client wrote it."""
        if head.method == b"CONNECT":
            raise _Refused(501, "this is no proxy")
        target = head.target.decode("ascii", "replace")
        if target.startswith("/"):
            hosts = [value for name, value in head.headers if name == b"host"]
            host = hosts[0].decode("latin-1") if hosts else urlsplit(self._face.url).netloc
            target = f"http://{host}{target}"
            malformed = not _HOST.fullmatch(host)
        else:
            malformed = not re.match("https?://", target)
        if malformed or not _is_readable(target):
            raise _Refused(400, "the address is malformed")
        return target

    def _check_length(self, head: h11.Request) -> None:
        names = [name for name, _ in head.headers]
        if b"content-length" in names and b"transfer-encoding" in names:
            raise _Refused(400, "a body has one length")  # a proxy may have understood the other
        if int(dict(head.headers).get(b"content-length", b"0")) > self._options.max_body:
            raise _Refused(413, f"the body is longer than {self._options.max_body} bytes")

    def _count(self, more: int) -> None:
        """Count bytes of a body that have come: what is only announced takes nobody's room."""
        if self._received + more > self._options.max_body:
            raise _Refused(413, f"the body is longer than {self._options.max_body} bytes")
        bound = self._options.max_bodies
        if self._face.bodies + more > bound:
            raise _Refused(503, "too many bodies under way")
        if self.address.is_full(self.address.bodies + more, bound, self._options.max_body):
            raise _Refused(429, "too many bodies under way from your address")
        self._face.bodies += more
        self.address.bodies += more
        self._received += more

    # Sending ------------------------------------------------------------------------------

    async def _send(self, response: HttpResponse, *, last: bool = False) -> None:
        with response:
            headers = [*response.headers.items(), ("date", formatdate(usegmt=True))]
            if last or self._face.draining:
                headers.append(("connection", "close"))
            reason = HTTPStatus(response.status).phrase.encode()
            head = h11.Response(status_code=response.status, headers=headers, reason=reason)
            data = self._http.send(head) or b""
            if self._has_begun:
                data, self._has_begun = data.removeprefix(_BEGINNING), False
            async for chunk in self._chunks(response.chunks):
                data += self._http.send(h11.Data(data=chunk)) or b""
                await self._write(data)
                data = b""
            await self._write(data + (self._http.send(h11.EndOfMessage()) or b""))

    async def _chunks(self, chunks: Iterable[bytes]) -> Any:
        """Yield what is at hand at once; take what is made piece by piece in a thread."""
        if isinstance(chunks, tuple):
            for chunk in chunks:
                yield chunk
            return
        pieces = iter(chunks)
        while (piece := await self._face.in_thread(lambda: next(pieces, None))) is not None:
            yield piece

    async def _write(self, data: bytes) -> None:
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def _linger(self) -> None:
        """Read what the client still sends: closing on it would destroy the answer on its way."""
        self._writer.write_eof()
        left = _LINGER_BYTES

        async def drop() -> None:
            nonlocal left
            while left > 0 and (data := await self._reader.read(_READ)):
                left -= len(data)

        await asyncio.wait_for(drop(), _LINGER)

    async def _close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), _LINGER)

    def _log(self, request: HttpRequest, response: HttpResponse, seconds: float) -> None:
        """Log a line without prompts, and with no task id that would open an image."""
        path = _TASK_ID.sub(lambda found: found[0][:8] + "…", urlsplit(request.url).path)
        access_log.info(
            "%s %s: %d in %.0f ms, %s bytes, from %s",
            request.method,
            path[:200],
            response.status,
            1000 * seconds,
            response.headers.get("content-length", "?"),
            self.peer,
        )


def _is_readable(url: str) -> bool:
    try:
        urlsplit(url)
    except ValueError:
        return False
    return True


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by lower-case name; what comes several times is joined."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _error(status: int, message: str) -> HttpResponse:
    body = wire.encode_error(message)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    if status in (408, 429, 503):
        headers["retry-after"] = _RETRY_AFTER
    return HttpResponse(status, headers, body)
