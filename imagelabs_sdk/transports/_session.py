"""One `requests` session whose every wait ends at a deadline."""

import os
import ssl
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar, get_cookie_header
from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

from ..deadline import Deadline
from ..errors import APIConnectionError, APITimeoutError, ForbiddenAddressError, printable
from . import _sockets
from .base import HttpRequest, HttpResponse, origin_of

__all__ = ["TimedSession"]

_CHUNK = 65_536
_MAX_ORIGINS = 64
_TIMEOUTS = (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)
_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, zlib.error)


class TimedSession:
    """A session of ours, or the caller's own; for one thread at a time."""

    def __init__(self, own: requests.Session | None, proxy: str | None, verify: bool | str) -> None:
        self._own = own
        self._session = own or _bare_session()
        self._proxies = {"http": proxy, "https": proxy} if proxy else None
        self._verify = _bundle() if verify is True else verify
        self._environ: dict[tuple[str, str, int | None], dict[str, str]] = {}

    def send(self, request: HttpRequest, deadline: Deadline) -> HttpResponse:
        """Carry one request; see `Transport.send`."""
        if deadline.passed:
            raise APITimeoutError("no time was left to ask", delivered="no")
        exchange = _sockets.Exchange(deadline, request.public_only)
        token = _sockets.current.set(exchange)
        try:
            # What urllib3 is told hardly matters, our sockets ask the deadline; but adapters
            # of another kind have only this.
            limit = max(deadline.remaining(), 0.001)
            answer = (self._send_plain if self._own else self._send)(request, limit)
        except _sockets.PrivateAddressError as exc:
            raise ForbiddenAddressError(str(exc), delivered="no") from exc
        except _FAILURES as exc:
            raise _translated(exc, exchange, request.url) from exc
        finally:
            _sockets.current.reset(token)
        return HttpResponse(
            answer.status_code,
            answer.headers,
            _body(answer, exchange, request.url),
            on_close=answer.close,
            whole_by_length=_ends_by_length(answer, exchange),
        )

    def close(self) -> None:
        """Close what we opened; the caller's own session stays open."""
        if not self._own:
            self._session.close()

    def _send(self, request: HttpRequest, limit: float) -> requests.Response:
        """By our own session: only what differs from call to call is computed."""
        prepared = _prepared(request)
        adapter = self._session.get_adapter(request.url)
        proxies = self._proxies or self._environment_proxies(request.url)
        self._equip(adapter, request, proxies)
        if request.cookies is not None:
            held = get_cookie_header(self._session.cookies, prepared)
            _set_cookies(prepared, request.cookies, held)
        answer = adapter.send(
            prepared, stream=True, timeout=limit, verify=self._verify, proxies=proxies
        )
        if request.cookies is not None:
            extract_cookies_to_jar(self._session.cookies, prepared, answer.raw)
        return answer

    def _send_plain(self, request: HttpRequest, limit: float) -> requests.Response:
        """By the caller's session, with all that it does besides: auth, hooks, adapters.

        Its headers, cookies and auth go to the API alone, so a foreign host gets a request
        that the session has not prepared.
        """
        session = self._session
        if request.cookies is None:
            prepared = _prepared(request)
        else:
            prepared = session.prepare_request(_unprepared(request))
            _set_cookies(prepared, request.cookies, prepared.headers.get("Cookie"))
        settings = session.merge_environment_settings(request.url, {}, True, None, None)
        self._equip(session.get_adapter(request.url), request, settings["proxies"])
        return session.send(prepared, allow_redirects=False, timeout=limit, **settings)

    def _equip(self, adapter: Any, request: HttpRequest, proxies: Mapping[str, str]) -> None:
        """Make sure that the connections which will be used know deadline and guard."""
        proxy = select_proxy(request.url, dict(proxies))
        if proxy and request.public_only:
            _sockets.refuse_private_target(urlsplit(request.url).hostname or "")
        if isinstance(adapter, HTTPAdapter):
            proxy = proxy and prepend_scheme_if_needed(proxy, "http")
            _sockets.equip(adapter.proxy_manager_for(proxy) if proxy else adapter.poolmanager)

    def _environment_proxies(self, url: str) -> dict[str, str]:
        """What the standard variables say of this origin; read once, reading them is dear."""
        origin = origin_of(url)
        if origin not in self._environ:
            if len(self._environ) >= _MAX_ORIGINS:
                self._environ.clear()
            self._environ[origin] = get_environ_proxies(url)
        return self._environ[origin]


def _bare_session() -> requests.Session:
    session = requests.Session()
    session.headers.clear()  # what is sent is decided above the transport
    return session


def _bundle() -> bool | str:
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _unprepared(request: HttpRequest) -> requests.Request:
    # gzip is what we undo ourselves, in bounded steps; without a word requests would offer
    # whatever decoders happen to be installed.
    headers = {"accept-encoding": "gzip", **request.headers}
    return requests.Request(request.method, request.url, headers, data=request.body or None)


def _prepared(request: HttpRequest) -> requests.PreparedRequest:
    return _unprepared(request).prepare()


def _set_cookies(
    prepared: requests.PreparedRequest, given: Mapping[str, str], held: str | None
) -> None:
    """Send what the caller gave and what the service has set since; the newer one wins."""
    cookies = dict(given)
    for pair in (held or "").split("; "):
        name, _, value = pair.partition("=")
        if name:
            cookies[name] = value
    if cookies:
        prepared.headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in cookies.items())


# The body -----------------------------------------------------------------------------


def _body(answer: requests.Response, exchange: _sockets.Exchange, url: str) -> Iterator[bytes]:
    try:
        yield from _decoded(_raw(answer, exchange.deadline), answer.headers)
    except _FAILURES as exc:
        raise _translated(exc, exchange, url) from exc
    finally:
        answer.close()


def _raw(answer: requests.Response, deadline: Deadline) -> Iterator[bytes]:
    """The body as it is on the wire, free of chunking only."""
    count = 0
    for chunk in answer.raw.stream(_CHUNK, decode_content=False):
        deadline.socket_timeout()  # for adapters whose sockets we could not teach
        count += len(chunk)
        yield chunk
    expected = answer.headers.get("content-length", "")
    if expected.isdecimal() and count < int(expected[:20]):  # pragma: no cover - urllib3 2 says so
        raise urllib3.exceptions.ProtocolError(f"{count} bytes of {expected[:20]} came")


def _decoded(chunks: Iterable[bytes], headers: Mapping[str, str]) -> Iterator[bytes]:
    """Undo gzip in bounded steps: no answer can blow up in memory."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        yield from chunks
    elif encoding in ("gzip", "x-gzip", "deflate"):
        inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # finds out which of the two
        for chunk in chunks:
            left = chunk
            while left and not inflate.eof:
                yield inflate.decompress(left, _CHUNK)
                left = inflate.unconsumed_tail
        if not inflate.eof:
            raise zlib.error("the compressed body is cut short")
    else:
        raise zlib.error(f"unknown content-encoding {printable(encoding, 40)}")


def _ends_by_length(answer: requests.Response, exchange: _sockets.Exchange) -> bool:
    """Whether HTTP tells a cut body from a whole one. Bodies made in process are whole."""
    chunked = getattr(answer.raw, "chunked", False)
    return not exchange.sent or "content-length" in answer.headers or bool(chunked)


# Failures -----------------------------------------------------------------------------


def _translated(exc: Exception, exchange: _sockets.Exchange, url: str) -> APIConnectionError:
    root, peer = _root(exc), printable(urlsplit(url).netloc)
    timed_out = any(isinstance(each, _TIMEOUTS) for each in (exc, root))
    kind = APITimeoutError if timed_out else APIConnectionError
    words = "no answer in time" if timed_out else f"no answer ({_words(root)})"
    return kind(f"{peer}: {words}", delivered="no" if _never_left(exc, exchange) else "maybe")


def _never_left(exc: Exception, exchange: _sockets.Exchange) -> bool:
    """Whether surely no byte of the request went out."""
    if exchange.dialled:
        return not exchange.sent
    # A connection that is not ours tells by the exception alone. requests says ValueError for
    # an address, a header or a proxy that it cannot use.
    reason = getattr(exc.args[0] if exc.args else None, "reason", None)
    refused = isinstance(reason, urllib3.exceptions.NewConnectionError)
    unsent = isinstance(exc, requests.ConnectTimeout | ValueError)
    return not exchange.sent and (refused or unsent)


def _root(exc: BaseException) -> BaseException:
    """The first cause; requests and urllib3 keep it in `reason`, `__cause__` or an argument."""
    for inner in (getattr(exc, "reason", None), exc.__cause__, *exc.args):
        if isinstance(inner, BaseException):
            return _root(inner)
    return exc


def _words(root: BaseException) -> str:
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {printable(root.verify_message)}"
    return f"{type(root).__name__}: {printable(root)}"
