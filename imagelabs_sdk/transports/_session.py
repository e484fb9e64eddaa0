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
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar, get_cookie_header
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

from .. import validation
from ..deadline import Deadline
from ..errors import APIConnectionError, APITimeoutError, ForbiddenAddressError, sanitize_text
from . import _sockets
from .base import HttpRequest, HttpResponse, origin_of

__all__ = ["DeadlineSession"]

_PIECE = 1024 * 1024  # bytes read at once: large images cost less in large pieces
_CHUNK = 65_536  # bytes inflated at once: what is small may become large
_HIDDEN = "x-imagelabs-location"
_GZIP = b"\x1f\x8b"
_MAX_ROUTES = 64
_MAX_COOKIE, _MAX_COOKIES = 4096, 50  # bytes of one, and how many; browsers keep no larger ones
_TIMEOUTS = (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)
# ValueError: what http.client and urllib3 say to some numbers and encodings that make no sense.
_FAILURES = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
    zlib.error,
)


@attrs.frozen
class _Route:
    """What requests to one address have in common; found out once, as doing so is dear."""

    headers: Mapping[str, str]
    prepared: requests.PreparedRequest
    adapter: BaseAdapter
    proxies: dict[str, str]
    jar: RequestsCookieJar


class DeadlineSession:
    """A session of ours, or the caller's own; for one thread at a time."""

    def __init__(self, own: requests.Session | None, proxy: str | None, verify: bool | str) -> None:
        self._own = own
        self._session = own or _bare_session()
        self._proxies = {"http": proxy, "https": proxy} if proxy else None
        self._verify = _bundle() if verify is True else verify
        self._routes: dict[str, _Route] = {}
        self._jars: dict[tuple[str, str, int | None], RequestsCookieJar] = {}  # by origin

    def send(self, request: HttpRequest, deadline: Deadline) -> HttpResponse:
        """Carry one request; see `Transport.send`."""
        if deadline.passed:
            raise APITimeoutError("no time was left to ask", delivered="no")
        exchange = _sockets.Exchange(deadline, request.public_only)
        token = _sockets.current.set(exchange)
        try:
            answer = (self._send_with_user_session if self._own else self._send)(request, exchange)
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

    def _send(self, request: HttpRequest, exchange: _sockets.Exchange) -> requests.Response:
        """By our own session: only what changes from call to call is computed.

        What `Session.send` does besides is decided elsewhere (redirects) or has no place in a
        session that nobody else sees (auth, hooks).
        """
        route = self._route(request, exchange)
        prepared, jar = route.prepared.copy(), route.jar
        if request.body:
            prepared.body = request.body
            prepared.headers["Content-Length"] = str(len(request.body))
        if request.cookies is not None:
            _set_cookies(prepared, request.cookies, get_cookie_header(jar, prepared) if jar else "")
        answer = route.adapter.send(
            prepared,
            stream=True,
            timeout=exchange.deadline.socket_timeout(),
            verify=self._verify,
            proxies=route.proxies,
        )
        if request.cookies is not None:
            _keep(jar, answer.cookies)
        return answer

    def _route(self, request: HttpRequest, exchange: _sockets.Exchange) -> _Route:
        """The API's two addresses are remembered, those of images are not: each has its own."""
        known = self._routes.get(request.url)
        if known and known.headers is request.headers:
            return known
        adapter = self._session.get_adapter(request.url)
        proxies = self._proxies or get_environ_proxies(request.url)
        _install_deadlines(adapter, request.url, proxies, exchange)
        prepared, jar = _unprepared(request, b"").prepare(), RequestsCookieJar()
        prepared.headers = _Headers(prepared.headers)
        if request.cookies is None:
            return _Route(request.headers, prepared, adapter, proxies, jar)
        if len(self._routes) >= _MAX_ROUTES:
            self.close()
            self._routes.clear()
            self._jars.clear()
        jar = self._jars.setdefault(origin_of(request.url), jar)
        route = _Route(request.headers, prepared, adapter, proxies, jar)
        self._routes[request.url] = route
        return route

    def _send_with_user_session(
        self, request: HttpRequest, exchange: _sockets.Exchange
    ) -> requests.Response:
        """By the caller's session, with all that it does besides: auth, hooks, adapters.

        Its headers, cookies, auth and certificate go to the API alone, so a foreign host gets a
        request that the session has not prepared, and the session gets no cookie of it.
        """
        session = self._session
        settings: dict[str, Any] = {
            **session.merge_environment_settings(request.url, {}, True, None, None),
            "timeout": exchange.deadline.socket_timeout(),
        }
        adapter = session.get_adapter(request.url)
        _install_deadlines(adapter, request.url, settings["proxies"], exchange)
        if request.cookies is None:
            prepared = _unprepared(request, request.body).prepare()
            return adapter.send(prepared, **{**settings, "cert": None})
        prepared = session.prepare_request(_unprepared(request, request.body))
        _set_cookies(prepared, request.cookies, prepared.headers.get("Cookie"))
        prepared.register_hook("response", _hide_redirect)
        answer = session.send(prepared, allow_redirects=False, **settings)
        _show_redirect(answer)
        return answer


def _install_deadlines(
    adapter: BaseAdapter, url: str, proxies: Mapping[str, str], exchange: _sockets.Exchange
) -> None:
    """Make sure that the connections which will be used know deadline and guard."""
    proxy = select_proxy(url, dict(proxies))
    taught = isinstance(adapter, HTTPAdapter)
    if exchange.public_only and (proxy or not taught):
        _sockets.refuse_private_target(urlsplit(url).hostname or "")
    if proxy:
        # A proxy is the caller's own choice of host. It connects, not we.
        exchange.public_only = False
        proxy = validation.proxy(proxy if "://" in proxy else f"http://{proxy}")
        proxy = prepend_scheme_if_needed(proxy, "http")  # spells it as the adapter will
    if isinstance(adapter, HTTPAdapter):
        _sockets.install_deadlines(
            adapter.proxy_manager_for(proxy) if proxy else adapter.poolmanager
        )


def _hide_redirect(answer: requests.Response, **_: Any) -> None:
    """Keep `Session.send` from looking where it leads: it would read the body, without bound."""
    if "location" in answer.headers:
        answer.headers[_HIDDEN] = answer.headers.pop("location")


def _show_redirect(answer: requests.Response) -> None:
    if _HIDDEN in answer.headers:
        answer.headers["location"] = answer.headers.pop(_HIDDEN)


class _Adapter(HTTPAdapter):
    """Leaves out what costs as much as all our checks and nobody here needs.

    That is: looking up the pool of the same two addresses again and again, looking for the CA
    bundle on the disk each time, and guessing an answer's character set.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pools: dict[str, Any] = {}

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        url = str(request.url)
        pool = self._pools.get(url)
        if pool is None or pool.pool is None:  # never seen, or closed since
            pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
            super().cert_verify(pool, url, verify, cert)  # type: ignore[no-untyped-call]
            if request.method == "POST":  # an image has an address of its own
                self._pools[url] = pool
        return pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Was done when the pool was found: a session of ours has one bundle all its life."""

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return super().request_url(request, proxies) if proxies else str(request.path_url)

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        answer = requests.Response()
        answer.status_code, answer.headers = resp.status, CaseInsensitiveDict(resp.headers)
        answer.request, answer.raw, answer.url = req, resp, str(req.url)
        if "set-cookie" in answer.headers:
            extract_cookies_to_jar(answer.cookies, req, resp)
        return answer

    def close(self) -> None:
        super().close()
        self._pools.clear()


class _Headers(CaseInsensitiveDict[str]):
    """Those of a request, which are copied and walked for each exchange.

    Their own way asks for each value by its name, and for the name in lower case before that.
    """

    _store: dict[str, tuple[str, str]]  # what was given, by lower-case name

    def copy(self) -> "_Headers":
        twin = _Headers()
        twin._store = self._store.copy()
        return twin

    def items(self) -> Any:
        return self._store.values()


def _bare_session() -> requests.Session:
    session = requests.Session()
    session.headers.clear()  # what is sent is decided above the transport
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter())
    return session


def _bundle() -> bool | str:
    path = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return validation.verify(path) if path else True


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


def _keep(jar: RequestsCookieJar, fresh: RequestsCookieJar) -> None:
    """Keep cookies as a browser does: not too large ones, and not too many."""
    for cookie in fresh:
        if len(cookie.name) + len(cookie.value or "") <= _MAX_COOKIE and len(jar) < _MAX_COOKIES:
            jar.set_cookie(cookie)


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
    for chunk in answer.raw.stream(_PIECE, decode_content=False):
        deadline.socket_timeout()  # for adapters whose sockets we could not teach
        count += len(chunk)
        yield chunk
    expected = answer.headers.get("content-length", "")
    if expected.isdecimal() and count < int(expected[:20]):  # pragma: no cover - urllib3 2 says so
        raise urllib3.exceptions.ProtocolError(f"{count} bytes of {expected[:20]} came")


def _decoded(chunks: Iterable[bytes], headers: Mapping[str, str]) -> Iterator[bytes]:
    """Undo gzip in bounded steps: no answer can blow up in memory."""
    names = [name.strip() for name in headers.get("content-encoding", "").lower().split(",")]
    # Once each: some proxies repeat the header that they pass on.
    codings = list(dict.fromkeys(name for name in names if name not in ("identity", "")))
    if not codings:
        yield from chunks
    elif codings[0] in ("gzip", "x-gzip", "deflate") and len(codings) == 1:
        yield from _inflated(chunks)
    else:
        raise zlib.error(f"unknown content-encoding {sanitize_text(', '.join(codings), 40)}")


def _inflated(chunks: Iterable[bytes]) -> Iterator[bytes]:
    inflate = None
    for chunk in chunks:
        left = chunk
        while left:
            if inflate is None:
                inflate = _inflater(left)
            elif inflate.eof:
                if not left.startswith(_GZIP):
                    break  # what follows the last member is nobody's business
                inflate = _inflater(left)
            yield inflate.decompress(left, _CHUNK)
            left = inflate.unconsumed_tail or inflate.unused_data
    if inflate is None or not inflate.eof:
        raise zlib.error("the compressed body is cut short")


def _inflater(head: bytes) -> "zlib._Decompress":
    """For gzip, zlib, or what some servers call deflate: neither, and without a header."""
    headed = head.startswith(_GZIP) or head[0] & 0x0F == zlib.DEFLATED
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32 if headed else -zlib.MAX_WBITS)


def _ends_by_length(answer: requests.Response, exchange: _sockets.Exchange) -> bool:
    """Whether HTTP tells a cut body from a whole one. Bodies made in process are whole."""
    chunked = getattr(answer.raw, "chunked", False)
    length = answer.headers.get("content-length", "")
    return not exchange.sent or length.isdecimal() or bool(chunked)


# Failures -----------------------------------------------------------------------------


def _translated(exc: Exception, exchange: _sockets.Exchange, url: str) -> APIConnectionError:
    root, peer = _root(exc), sanitize_text(urlsplit(url).netloc)
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
        return f"the certificate is not trusted: {sanitize_text(root.verify_message)}"
    return f"{type(root).__name__}: {sanitize_text(root)}"
