"""One `requests` session whose every wait ends at a deadline."""

import os
import ssl
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs
import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.cookies import get_cookie_header
from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

from ..deadline import Deadline
from ..errors import APIConnectionError, APITimeoutError, ForbiddenAddressError, printable
from . import _sockets
from .base import HttpRequest, HttpResponse

__all__ = ["TimedSession"]

_CHUNK = 65_536
_MAX_ROUTES = 64
_TIMEOUTS = (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)
_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, zlib.error)


@attrs.frozen
class _Route:
    """What requests to one address have in common; found out once, as doing so is dear."""

    headers: Mapping[str, str]
    prepared: requests.PreparedRequest
    adapter: BaseAdapter
    proxies: dict[str, str]


class TimedSession:
    """A session of ours, or the caller's own; for one thread at a time."""

    def __init__(self, own: requests.Session | None, proxy: str | None, verify: bool | str) -> None:
        self._own = own
        self._session = own or _bare_session()
        self._proxies = {"http": proxy, "https": proxy} if proxy else None
        self._verify = _bundle() if verify is True else verify
        self._routes: dict[str, _Route] = {}

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
        """By our own session: only what changes from call to call is computed.

        What `Session.send` does besides is decided elsewhere (redirects) or has no place in a
        session that nobody else sees (auth, hooks).
        """
        route, jar = self._route(request), self._session.cookies
        prepared = route.prepared.copy()
        if request.body:
            prepared.prepare_body(request.body, None)
        if request.cookies is not None:
            _set_cookies(prepared, request.cookies, get_cookie_header(jar, prepared) if jar else "")
        answer = route.adapter.send(
            prepared, stream=True, timeout=limit, verify=self._verify, proxies=route.proxies
        )
        if request.cookies is not None and answer.cookies:
            jar.update(answer.cookies)
        return answer

    def _route(self, request: HttpRequest) -> _Route:
        """The API's two addresses are remembered, those of pictures are not: each has its own."""
        known = self._routes.get(request.url)
        if known and known.headers is request.headers:
            return known
        adapter = self._session.get_adapter(request.url)
        proxies = self._proxies or get_environ_proxies(request.url)
        self._equip(adapter, request, proxies)
        route = _Route(request.headers, _unprepared(request, b"").prepare(), adapter, proxies)
        if request.method == "POST" and len(self._routes) < _MAX_ROUTES:
            self._routes[request.url] = route
        return route

    def _send_plain(self, request: HttpRequest, limit: float) -> requests.Response:
        """By the caller's session, with all that it does besides: auth, hooks, adapters.

        Its headers, cookies and auth go to the API alone, so a foreign host gets a request
        that the session has not prepared.
        """
        session = self._session
        if request.cookies is None:
            prepared = _unprepared(request, request.body).prepare()
        else:
            prepared = session.prepare_request(_unprepared(request, request.body))
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


def _bare_session() -> requests.Session:
    session = requests.Session()
    session.headers.clear()  # what is sent is decided above the transport
    return session


def _bundle() -> bool | str:
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _unprepared(request: HttpRequest, body: bytes) -> requests.Request:
    # gzip is what we undo ourselves, in bounded steps; without a word requests would offer
    # whatever decoders happen to be installed.
    headers = {"accept-encoding": "gzip", **request.headers}
    return requests.Request(request.method, request.url, headers, data=body or None)


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
