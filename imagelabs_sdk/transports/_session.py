"""One `requests` session whose every wait ends at a deadline."""

import copy
import functools
import ssl
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any
from urllib.parse import urlsplit

import attrs
import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar, get_cookie_header
from requests.structures import CaseInsensitiveDict

from .._redact import sanitize_text
from ..deadline import Deadline
from ..errors import APIConnectionError, APITimeoutError, ForbiddenAddressError
from . import _addresses, _body, _connections, _cookies, _environment, _failures
from .base import HttpRequest, HttpResponse, origin_of

__all__ = ["DeadlineSession"]

_PIECE = 512 * 1024  # bytes read at once: large images cost less in large pieces
_HIDDEN = "x-imagelabs-location"
_MAX_ROUTES = 64
_SESSIONS = requests.sessions.merge_setting.__code__.co_filename
_ADAPTERS = HTTPAdapter.proxy_headers.__code__.co_filename
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
    """What requests to one URL have in common, cached because finding it out is expensive."""

    headers: Mapping[str, str] = attrs.field(repr=False)
    prepared: requests.PreparedRequest
    adapter: BaseAdapter
    proxies: dict[str, str] = attrs.field(repr=False)
    jar: RequestsCookieJar


class DeadlineSession:
    """A session for one thread at a time.

    Args:
        user_session: The caller's own session; `None`: one of ours.
        proxy, no_proxy, verify: As in `RequestsTransport`; for a session of ours only.
    """

    def __init__(
        self,
        user_session: requests.Session | None,
        proxy: str | None,
        verify: bool | str,
        no_proxy: bool,
    ) -> None:
        self._user_session = user_session
        from_system = verify == "system"
        self._session = user_session or _bare_session(from_system=from_system)
        self._proxy, self._no_proxy = proxy, no_proxy
        self._verify = True if from_system else _environment.ca_bundle(verify)
        self._routes: dict[tuple[str, str], _Route] = {}  # by URL and jar
        self._jars: dict[Hashable, RequestsCookieJar] = {}  # by origin and name

    def send(self, request: HttpRequest, deadline: Deadline) -> HttpResponse:
        """Send one request; see `Transport.send`."""
        if deadline.passed:
            raise APITimeoutError("no time was left to ask", delivered="no")
        has_params = self._user_session and self._user_session.params  # which it adds to the URL
        exact_url = request.url if "%" in request.url and not has_params else ""
        idle = request.idle_timeout
        exchange = _connections.Exchange(
            deadline if idle is None else deadline.within(idle),
            request.public_only,
            exact_url,
            request.repeatable,
        )
        token = _connections.current.set(exchange)
        try:
            answer = (self._send_with_user_session if self._user_session else self._send_own)(
                request, exchange
            )
        except _addresses.PrivateAddressError as exc:
            raise ForbiddenAddressError(str(exc), delivered="no") from exc
        except _FAILURES as exc:
            raise _translate(exc, exchange, request.url) from exc
        finally:
            _connections.current.reset(token)
        exchange.deadline, exchange.silence = deadline, idle
        return HttpResponse(
            answer.status_code,
            answer.headers,
            _stream(answer, exchange, request.url),
            on_close=functools.partial(_close, answer),
        )

    def close(self) -> None:
        """Close what we opened; the caller's own session stays open."""
        if not self._user_session:
            self._session.close()

    def _send_own(self, request: HttpRequest, exchange: _connections.Exchange) -> Any:
        """Send with a session of ours, computing only what changes from call to call.

        What `Session.send` does besides is decided elsewhere (redirects) or is not used in a
        session of ours (auth, hooks).
        """
        route = self._route(request, exchange)
        prepared, jar = copy.copy(route.prepared), route.jar
        prepared.headers = prepared.headers.copy()
        if request.body:
            prepared.body = request.body
            prepared.headers["Content-Length"] = str(len(request.body))
        if request.cookies is not None:
            _set_cookies(prepared, request.cookies, get_cookie_header(jar, prepared) if jar else "")
        send = route.adapter.send
        if _is_replaced():
            prepared.headers = CaseInsensitiveDict(prepared.headers)
            send = functools.partial(_send_apart, self._session)
        answer = send(
            prepared,
            stream=True,
            timeout=exchange.deadline.socket_timeout(),
            verify=self._verify,
            proxies=route.proxies,
        )
        if request.cookies is not None:
            _cookies.keep(jar, answer.cookies)
        return answer

    def _route(self, request: HttpRequest, exchange: _connections.Exchange) -> _Route:
        """Return the route of a URL; those of the API are cached, an image's is used once."""
        known = self._routes.get((request.url, request.jar))
        if known and known.headers is request.headers:
            return known
        adapter = self._session.get_adapter(request.url)
        proxies = _environment.proxies(request.url, self._proxy, no_proxy=self._no_proxy)
        _install_deadlines(adapter, request.url, proxies, exchange)
        prepared, jar = _unprepared(request, b"").prepare(), RequestsCookieJar()
        prepared.headers = _plain(prepared.headers)
        if request.cookies is None:
            return _Route(request.headers, prepared, adapter, proxies, jar)
        if max(len(self._routes), len(self._jars)) >= _MAX_ROUTES:
            self.close()
            self._routes.clear()
            self._jars.clear()
        jar = self._jars.setdefault((origin_of(request.url), request.jar), jar)
        route = _Route(request.headers, prepared, adapter, proxies, jar)
        if request.method == "POST" and not _is_replaced():  # an image's URL is used once
            self._routes[request.url, request.jar] = route
        return route

    def _send_with_user_session(
        self, request: HttpRequest, exchange: _connections.Exchange
    ) -> requests.Response:
        """Send with the caller's session and its auth, hooks and adapters.

        Its headers, cookies, auth and certificate are for the API only: a request to another
        host is not prepared by the session, and its cookies are not kept in it.
        """
        session = self._session
        settings: dict[str, Any] = {
            **session.merge_environment_settings(request.url, {}, True, None, None),
            "timeout": exchange.deadline.socket_timeout(),
        }
        adapter = session.get_adapter(request.url)
        try:
            _install_deadlines(adapter, request.url, settings["proxies"], exchange)
            if request.cookies is None:
                prepared = _unprepared(request, request.body).prepare()
                return _send_apart(session, prepared, **{**settings, "cert": None})
            prepared = session.prepare_request(_unprepared(request, request.body))
            _set_cookies(prepared, request.cookies, prepared.headers.get("Cookie"))
            prepared.register_hook("response", _hide_redirect)
            answer = session.send(prepared, allow_redirects=False, **settings)
        finally:
            del settings  # as in `_send_apart`
        _show_redirect(answer)
        return answer


def _install_deadlines(
    adapter: BaseAdapter, url: str, proxies: Mapping[str, str], exchange: _connections.Exchange
) -> None:
    """Make the connections that will be used honour the deadline and the address check."""
    proxy = _environment.chosen_proxy(url, proxies)
    checks_address = isinstance(adapter, HTTPAdapter)
    if exchange.public_only and (proxy or not checks_address):
        _addresses.refuse_private_target(urlsplit(url).hostname or "")
    if proxy:
        # The proxy connects to the host, and we to the proxy, which is the caller's choice.
        exchange.public_only = False
        exchange.proxy = _environment.without_credentials(proxy)
    if isinstance(adapter, HTTPAdapter):
        _connections.install_deadlines(
            adapter.proxy_manager_for(proxy) if proxy else adapter.poolmanager
        )


def _is_replaced() -> bool:
    """Return True if a test double or a tracer stands in for what requests ships.

    It sees only what goes through `Session.send`; that may have been replaced at any time.
    """
    session = requests.Session
    return not (
        _is_written_in(session.send, _SESSIONS)
        and _is_written_in(session.get_adapter, _SESSIONS)
        and _is_written_in(HTTPAdapter.send, _ADAPTERS)
    )


def _is_written_in(function: Any, file: str) -> bool:
    # What tracers wrap around a function shows the code of that function as its own.
    return type(function) is FunctionType and function.__code__.co_filename == file


def _send_apart(
    session: requests.Session, prepared: requests.PreparedRequest, **settings: Any
) -> requests.Response:
    """Send through `Session.send`, and let the session neither follow a redirect nor keep cookies.

    It reads cookies out of urllib3's response, which is taken away for that moment.
    """
    held: list[Any] = []

    def hide(answer: requests.Response, **_: Any) -> None:
        with suppress(AttributeError):  # not urllib3's
            held.append(answer.raw._original_response)
            answer.raw._original_response = None

    prepared.hooks = {"response": [_hide_redirect, hide]}
    try:
        answer = session.send(prepared, allow_redirects=False, **settings)
    finally:
        del settings  # error trackers show local variables: a proxy's password may be in there
    with suppress(AttributeError, IndexError):
        answer.raw._original_response = held[0]
    _show_redirect(answer)
    return answer


def _hide_redirect(answer: requests.Response, **_: Any) -> None:
    """Keep `Session.send` from following a redirect: it would read the body without limit."""
    if "location" in answer.headers:
        answer.headers[_HIDDEN] = answer.headers.pop("location")


def _show_redirect(answer: requests.Response) -> None:
    if _HIDDEN in answer.headers:
        answer.headers["location"] = answer.headers.pop(_HIDDEN)


def _plain(headers: Mapping[str, str]) -> Any:
    """Return headers as a dict, which copies faster; only the adapter of ours reads them.

    It looks for two of them by a name in title case.
    """
    titles = {"content-length": "Content-Length", "cookie": "Cookie"}
    return {titles.get(name.lower(), name): value for name, value in headers.items()}


def _lower_case(headers: Any) -> Any:
    """Return urllib3's headers as a plain dict by lower-case name."""
    return {name.lower(): value for name, value in headers.itermerged()}


class _Answer:
    """What is used here of a `requests.Response`, which is expensive to construct."""

    content = b""  # nobody else has read it

    def __init__(self, request: requests.PreparedRequest, raw: Any) -> None:
        self.raw, self.status_code, self.headers = raw, raw.status, _lower_case(raw.headers)
        self.cookies: Iterable[Any] = ()
        if "set-cookie" in self.headers:
            jar = RequestsCookieJar()
            extract_cookies_to_jar(jar, request, raw)
            self.cookies = jar

    def close(self) -> None:
        self.raw.close()
        self.raw.release_conn()


class _Adapter(HTTPAdapter):
    """An adapter without three expensive steps that are not needed here.

    It finds the connection pool and the CA bundle of an API URL once instead of every time, and
    makes no `requests.Response`.

    Args:
        context: For TLS, in place of CA bundles.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context: dict[str, Any] = {} if context is None else {"ssl_context": context}
        super().__init__()
        self._pools: dict[str, Any] = {}

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **more: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **self._context, **more)

    def proxy_manager_for(self, proxy: Any, **more: Any) -> Any:
        return super().proxy_manager_for(proxy, **self._context, **more)

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        url = str(request.url)
        pool = self._pools.get(url)
        if pool is None or pool.pool is None:  # never seen, or closed since
            if self._context:  # requests before 2.32.5 puts its own in the place of ours
                proxy = _environment.chosen_proxy(url, proxies or {})
                manager = self.proxy_manager_for(proxy) if proxy else self.poolmanager
                pool = manager.connection_from_url(url)
            else:
                pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
                super().cert_verify(pool, url, verify, cert)  # type: ignore[no-untyped-call]
            if request.method == "POST":  # an image has an address of its own
                self._pools[url] = pool
        return pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do nothing: done when the pool was found, as a session of ours has one bundle."""

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return super().request_url(request, proxies) if proxies else str(request.path_url)

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> Any:
        is_double = not isinstance(resp, urllib3.BaseHTTPResponse)  # vcrpy's, before 9
        return (
            super().build_response(req, resp) if is_double or _is_replaced() else _Answer(req, resp)
        )

    def close(self) -> None:
        super().close()
        self._pools.clear()


def _bare_session(*, from_system: bool) -> requests.Session:
    session = requests.Session()
    session.headers.clear()  # the endpoints decide which are sent
    context = None
    if from_system:
        from ._system_trust import system_context  # needs an extra that others do without

        context = system_context()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(context))
    return session


def _unprepared(request: HttpRequest, body: bytes) -> requests.Request:
    # Only gzip, which is decoded here in bounded steps: by default requests offers whatever
    # decoders happen to be installed.
    headers = {"accept-encoding": "gzip", **request.headers}
    return requests.Request(request.method, request.url, headers, data=body or None)


def _set_cookies(
    prepared: requests.PreparedRequest, given: Mapping[str, str], held: str | None
) -> None:
    if header := _cookies.merge(given, held):
        prepared.headers["Cookie"] = header


# The body -----------------------------------------------------------------------------


def _stream(
    answer: "requests.Response | _Answer", exchange: _connections.Exchange, url: str
) -> Iterator[bytes]:
    try:
        if (answer.raw is None or answer.raw.closed) and answer.content:
            yield answer.content  # a hook has read it, or a test double made it
        else:
            yield from _body.decode(_raw(answer, exchange.deadline), answer.headers)
    except _FAILURES as exc:
        raise _translate(exc, exchange, url) from exc
    finally:
        _close(answer)


def _close(answer: "requests.Response | _Answer") -> None:
    if answer.raw is not None:  # a test double's may be
        answer.close()


def _raw(answer: "requests.Response | _Answer", deadline: Deadline) -> Iterator[bytes]:
    """Yield the body as it is on the wire, without chunked framing."""
    count = 0
    for chunk in answer.raw.stream(_PIECE, decode_content=False):
        deadline.socket_timeout()  # for adapters whose sockets ignore the deadline
        count += len(chunk)
        yield chunk
        del chunk  # an answer may quote a prompt, and error trackers show local variables
    expected = answer.headers.get("content-length", "")
    if expected.isdecimal() and count < int(expected[:20]):  # pragma: no cover - urllib3 2 says so
        raise urllib3.exceptions.ProtocolError(f"{count} bytes of {expected[:20]} came")


# Failures -----------------------------------------------------------------------------


def _translate(exc: Exception, exchange: _connections.Exchange, url: str) -> APIConnectionError:
    root = _first_cause(exc)
    timed_out = any(isinstance(each, _TIMEOUTS) for each in (exc, root))
    return _failures.no_answer(
        url,
        None if timed_out else _describe(root),
        sent=not _surely_unsent(exc, exchange),
        proxy=exchange.proxy,
        at_proxy=not (exchange.sent or exchange.tunnelled),
    )


def _surely_unsent(exc: Exception, exchange: _connections.Exchange) -> bool:
    """Return True if surely no byte of the request went out."""
    if exchange.connected:
        return not exchange.sent
    # Of a connection that is not ours only the exception tells. requests raises ValueError for
    # a URL, a header or a proxy that it cannot use.
    reason = getattr(exc.args[0] if exc.args else None, "reason", None)
    refused = isinstance(reason, urllib3.exceptions.NewConnectionError)
    unsent = isinstance(exc, requests.ConnectTimeout | ValueError)
    return not exchange.sent and (refused or unsent)


def _first_cause(exc: BaseException) -> BaseException:
    """Return the first cause, which requests and urllib3 keep in one of several places."""
    for inner in (getattr(exc, "reason", None), exc.__cause__, *exc.args):
        if isinstance(inner, BaseException):
            return _first_cause(inner)
    return exc


def _describe(root: BaseException) -> str:
    if isinstance(root, ssl.SSLCertVerificationError):
        words = sanitize_text(root.verify_message)
        return (
            f"the certificate is not trusted: {words}; verify= takes a CA bundle, or "
            '"system" for the authorities of this machine'
        )
    return f"{type(root).__name__}: {sanitize_text(root)}"
