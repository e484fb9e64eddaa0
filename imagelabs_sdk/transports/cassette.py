"""Record a conversation with a service into a file without secrets, and replay it strictly."""

import base64
import json
import logging
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from .. import validation
from .._files import atomic_write
from ..deadline import Deadline
from ..errors import APIConnectionError, APITimeoutError, ForbiddenAddressError
from ..formats import HEAD_SIZE, sniff
from ._secrets import Cleaner, Json
from .base import HttpRequest, HttpResponse, Transport

__all__ = ["CassetteError", "CassetteTransport"]

log = logging.getLogger(__name__)

_VERSION = 1
_ERRORS = {kind("").code: kind for kind in (APITimeoutError, ForbiddenAddressError)}


class CassetteError(AssertionError):
    """A replayed program did not ask for what was recorded.

    It is an `AssertionError`, so that no retry and no ``except ImageLabsError`` hides it.

    Attributes:
        message: What was asked and what was recorded.
        asked: The request, as a cassette holds it; `None`: none was.
        recorded: The recorded requests that it was compared with, or that nobody asked for.
    """

    def __init__(self, message: str, asked: Json | None, recorded: list[Json]) -> None:
        """See the attributes."""
        super().__init__(message, asked, recorded)
        self.message, self.asked, self.recorded = message, asked, recorded

    def __str__(self) -> str:
        return self.message


class CassetteTransport:
    """Records what another transport sends and receives, or replays it without a network.

    ``CassetteTransport("x.json", record=RequestsTransport())`` records into a new file;
    ``CassetteTransport("x.json")`` replays it. Threads may share it; it does not pickle.

    The file is JSON. It holds no cookie, no header of a request, no query of a URL and only
    headers of answers that are known to be harmless; values of cookies and keys that an answer
    quotes are replaced. Prompts are replaced too, unless they are to be kept, and texts are
    removed from images then. Host names, task ids and the image itself are in it.
    """

    def __init__(
        self,
        path: "str | os.PathLike[str]",
        *,
        record: Transport | None = None,
        keep_prompts: bool = False,
        ignore: Collection[str] = (),
    ) -> None:
        """Create the file, or read it.

        Args:
            path: The cassette. A recording never replaces a file: delete it to record again.
            record: Sends the requests that are recorded; closed with this. `None`: replay.
            keep_prompts: True: record prompts as they are. Replaying goes by the file.
            ignore: Fields of requests that need not be as recorded, such as ``"seed"``.

        Raises:
            InvalidRequestError: The file is there already, or is no cassette.
            OSError: It cannot be written or read.
        """
        self.path = Path(path)
        self._inner, self._ignore = record, frozenset(ignore)
        self._lock = threading.Lock()
        self._exchanges: list[Json] = []
        if record is not None:
            self._cleaner = Cleaner(keep_prompts)
            self._create()
        else:
            prompts, self._exchanges = _load(self.path)
            self._cleaner = Cleaner(prompts)

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Send and record `request`, or return its recorded answer.

        Raises:
            CassetteError: It is not the next recorded one with its method, URL and task id.
            APIConnectionError: No answer came, now or when it was recorded.
        """
        if self._inner is not None:
            return self._record(self._inner, request, deadline)
        if deadline.passed:
            raise APITimeoutError("no time was left to ask", delivered="no")
        with self._lock:
            return _replayed(self._next(self._asked(request)))

    def assert_all_used(self) -> None:
        """Raise `CassetteError` if a recorded request was not sent again."""
        if self._inner is None and self._exchanges:
            left = [exchange["request"] for exchange in self._exchanges]
            raise CassetteError(
                f"{self.path} has requests that were not sent:{_list(left)}", None, left
            )

    def close(self) -> None:
        """Write what was recorded and close the transport that recorded. May be called again.

        Raises:
            OSError: The file cannot be written.
        """
        if self._inner is not None:
            with self._lock:
                self._write()
            self._inner.close()

    def __enter__(self) -> "CassetteTransport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _asked(self, request: HttpRequest) -> Json:
        """Return the request as a cassette holds it: no header, no cookie, no query."""
        content = self._cleaner.request(request, _decoded(request.body))
        return {"method": request.method, **content}

    # Recording ----------------------------------------------------------------------------

    def _record(self, inner: Transport, request: HttpRequest, deadline: Deadline) -> HttpResponse:
        exchange: Json = {}
        with self._lock:
            exchange["request"] = self._asked(request)
            self._exchanges.append(exchange)
        try:
            response = inner.send(request, deadline=deadline)
        except APIConnectionError as error:
            self._finish(exchange, {"error": _fault(error)})
            raise
        tape = _Tape(response)

        def close() -> None:
            response.close()
            if "response" not in exchange:
                with self._lock:
                    answer = self._answer(response, bytes(tape.body))
                self._finish(exchange, {**answer, **tape.broken})

        return HttpResponse(response.status, response.headers, tape.chunks(), close)

    def _answer(self, response: HttpResponse, body: bytes) -> Json:
        """Return the answer as a cassette holds it."""
        is_image = sniff(body[:HEAD_SIZE]) is not None
        content = self._cleaner.response(response.headers, {} if is_image else _decoded(body))
        image = {"base64": _base64(self._cleaner.image(body))} if is_image else {}
        return {"status": response.status, **content, **image}

    def _finish(self, exchange: Json, response: Json) -> None:
        """Write the exchange; a failure is raised by `close`, the job goes on."""
        with self._lock:
            exchange["response"] = response
            try:
                self._write()
            except OSError as exc:
                log.warning("%s cannot be written now: %s", self.path, exc)

    def _create(self) -> None:
        try:
            with open(self.path, "xb"):
                pass
        except FileExistsError:
            remedy = (
                "is there already; delete it to record again, or leave out record= to replay it"
            )
            raise validation.invalid("path", str(self.path), remedy, code="conflict") from None
        self._write()

    def _write(self) -> None:
        """Write all finished exchanges, so that a killed process leaves a whole cassette."""
        content = {
            "imagelabs_cassette": _VERSION,
            "keeps_prompts": self._cleaner.keep_prompts,
            "exchanges": [each for each in self._exchanges if "response" in each],
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        with atomic_write(self.path) as draft:
            draft.file.write(text.encode("utf-8", "surrogatepass"))

    # Replaying ----------------------------------------------------------------------------

    def _next(self, asked: Json) -> Json:
        """Take out the next exchange of the request's kind and return its response."""
        for position, exchange in enumerate(self._exchanges):
            recorded = exchange["request"]
            if _kind(recorded) != _kind(asked):
                continue
            if differences := list(_differences(asked, recorded, self._ignore)):
                message = f"{_name(asked)} is not as {self.path} has it: {'; '.join(differences)}"
                raise CassetteError(message, asked, [recorded])
            del self._exchanges[position]
            response: Json = exchange["response"]
            return response
        left = [exchange["request"] for exchange in self._exchanges]
        message = f"{_name(asked)} is not, or not again, in {self.path}; not used yet:{_list(left)}"
        raise CassetteError(message, asked, left)


@attrs.define
class _Tape:
    """Keeps a response's body while somebody else reads it.

    Attributes:
        response: Is read.
        body: What was read of it.
        broken: How it broke off, as a cassette holds it; empty: it did not.
    """

    response: HttpResponse
    body: bytearray = attrs.field(factory=bytearray)
    broken: Json = attrs.field(factory=dict)

    def chunks(self) -> Iterator[bytes]:
        try:
            for chunk in self.response.iter_bytes():
                self.body += chunk
                yield chunk
        except APIConnectionError as error:
            self.broken = {"error": _fault(error)}
            raise


def _load(path: Path) -> tuple[bool, list[Json]]:
    """Return whether the cassette keeps prompts, and its exchanges."""
    data = path.read_bytes()
    try:
        content = json.loads(data)
        if content["imagelabs_cassette"] != _VERSION:
            raise ValueError
        exchanges: list[Json] = list(content["exchanges"])
        for exchange in exchanges:
            _check(exchange["request"], exchange["response"])
        return bool(content["keeps_prompts"]), exchanges
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        remedy = f"is no cassette of version {_VERSION}; record it again"
        raise validation.invalid("path", str(path), remedy, code="malformed") from None


def _check(request: Json, response: Json) -> None:
    """Raise an error if an exchange could not be replayed."""
    _kind(request)
    _body(response)
    if "status" in response:
        _replayed(response)
    if "error" in response or "status" not in response:
        _raised(response["error"])


def _replayed(recorded: Json) -> HttpResponse:
    """Return the recorded response; raise what was raised instead of one."""
    if "status" not in recorded:
        raise _raised(recorded["error"])

    def chunks() -> Iterator[bytes]:
        yield _body(recorded)
        if "error" in recorded:
            raise _raised(recorded["error"])

    return HttpResponse(recorded["status"], recorded["headers"], chunks())


def _fault(error: APIConnectionError) -> Json:
    """Return an error as it is recorded, without its message, which another transport wrote."""
    return {"code": error.code, "delivered": error.delivered}


def _raised(fault: Json) -> APIConnectionError:
    kind = _ERRORS.get(fault["code"], APIConnectionError)
    return kind(f"replayed: {fault['code']}", delivered=fault["delivered"])


def _decoded(body: bytes) -> Json:
    """Return a body in the most readable form that keeps it; empty: there is none."""
    if not body:
        return {}
    try:
        return {"json": json.loads(body)}
    except (ValueError, RecursionError):
        pass
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": _base64(body)}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _body(recorded: Json) -> bytes:
    if "json" in recorded:
        return json.dumps(recorded["json"], ensure_ascii=False).encode("utf-8", "surrogatepass")
    if "text" in recorded:
        return str(recorded["text"]).encode()
    return base64.b64decode(recorded.get("base64", ""), validate=True)


def _fields(request: Json) -> Json:
    """Return what is compared: the fields of a JSON object, or the body as a whole."""
    body = request.get("json")
    whole: Json = {name: request[name] for name in ("json", "text", "base64") if name in request}
    return body if isinstance(body, dict) else whole


def _kind(request: Json) -> tuple[Any, Any, Any]:
    return request["method"], request["url"], _fields(request).get("task_id")


def _differences(asked: Json, recorded: Json, ignore: Collection[str]) -> Iterator[str]:
    new, old = _fields(asked), _fields(recorded)
    for name in sorted({*new, *old} - set(ignore)):
        if new.get(name) != old.get(name):
            yield f"{name} is {new.get(name)!r}, recorded was {old.get(name)!r}"


def _name(request: Json) -> str:
    task = _fields(request).get("task_id")
    return f"{request['method']} {request['url']}" + (f" of task {task}" if task else "")


def _list(requests: list[Json]) -> str:
    return "".join(f"\n  {_name(each)}" for each in requests[:10]) or " nothing"
