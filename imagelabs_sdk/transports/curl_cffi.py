"""A transport with a browser's TLS handshake, by `curl_cffi`: the extra ``curl``."""

import os
import threading
import zlib
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from .. import validation
from .._extras import needs_extra
from .._redact import sanitize_text
from ..deadline import Deadline
from ..errors import APITimeoutError, ForbiddenAddressError
from ..settings import USER_AGENT
from . import _addresses, _body, _cookies, _environment, _failures
from .base import HttpRequest, HttpResponse, origin_of

with needs_extra("curl"):
    from curl_cffi import Curl, CurlECode, CurlError, CurlHttpVersion, CurlOpt, ffi
    from curl_cffi.requests.impersonate import resolve_latest_browser_type

    from ._libcurl import Connections, Transfer, TransferError

__all__ = ["CurlTransport"]

_MAX_IDLE = 20  # seconds; a connection idle for longer may be dead without our knowing
_MAX_KEPT = 32  # sets of kept connections: as many requests at once find one
_MAX_ORIGINS = 64
_CHECKED = "checked.invalid"  # stands for the addresses that were checked
_ENCODINGS = "gzip, deflate"  # what is decoded here in bounded steps; a browser offers more
_NAVIGATION = ("sec-fetch-user", "upgrade-insecure-requests")  # not sent by a page's own requests
_CLIENT_HINTS = ("sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform")
_ALWAYS = {
    CurlOpt.NOSIGNAL: 1,
    CurlOpt.PATH_AS_IS: 1,
    CurlOpt.PROTOCOLS_STR: "http,https",
    CurlOpt.SUPPRESS_CONNECT_HEADERS: 1,
}
_ANY_CERTIFICATE = {
    CurlOpt.SSL_VERIFYPEER: 0,
    CurlOpt.SSL_VERIFYHOST: 0,
    CurlOpt.PROXY_SSL_VERIFYPEER: 0,
    CurlOpt.PROXY_SSL_VERIFYHOST: 0,
}


class _PerProcess:
    """What a transport keeps in one process, for all threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.kept: list[Connections] = []
        self.proxies: dict[Hashable, str] = {}  # by origin: to read the environment is expensive
        self.jars: dict[Hashable, CookieJar] = {}

    def take(self) -> Connections:
        """Return connections that nobody else uses; the latest used first."""
        with self.lock:
            return self.kept.pop() if self.kept else Connections()

    def give_back(self, transfer: Transfer, kept: list[Connections]) -> None:
        """End a transfer, and keep its connections unless `close` was called meanwhile.

        `kept` is where they were taken from. May be called again.
        """
        connections = transfer.end()
        if connections is None:
            return
        with self.lock:
            if transfer.has_ended and kept is self.kept and len(kept) < _MAX_KEPT:
                kept.append(connections)
                return
        connections.close()

    def jar(self, request: HttpRequest) -> CookieJar:
        key = origin_of(request.url), request.jar
        with self.lock:
            if key not in self.jars and len(self.jars) >= _MAX_ORIGINS:
                self.jars.clear()
            return self.jars.setdefault(key, CookieJar())

    def close(self) -> None:
        with self.lock:
            kept, self.kept = self.kept, []
        for connections in kept:
            connections.close()


def _browser(name: object) -> str:
    """Check the name of a browser, and return it."""
    if isinstance(name, str) and Curl().impersonate(resolve_latest_browser_type(name)) == 0:
        return name
    remedy = 'must be a browser that curl_cffi knows, such as "chrome", "firefox" or "safari"'
    raise validation.invalid("impersonate", name, remedy)


def _authorities(verify: object) -> bool | str:
    if verify == "system":
        raise validation.invalid("verify", verify, "libcurl takes True, False or a CA bundle")
    return validation.verify(verify)


@attrs.frozen(kw_only=True)
class CurlTransport:
    """Sends requests with libcurl and a browser's TLS handshake, HTTP/2 settings and headers.

    For services behind a check that tells programs by their handshake. It runs no JavaScript:
    a page that has to be passed in a browser is answered with `ChallengeError` as ever.

    Threads may share a transport and a fork may inherit it: each request has connections of its
    own while it lasts. Every wait ends at the deadline, and within 0.1 s when the caller asks to
    stop; only resolving a name may take the system's own time: it does for a host whose address
    has to be public (`HttpRequest.public_only`), and for all with `curl_cffi` before 0.17.
    No redirect is followed. No POST is sent twice; a GET, only if an HTTP/2 server says that it has
    not processed it: libcurl then repeats it up to five times. A GET, and a submit without an
    idempotency key, go over a new connection each: libcurl repeats what it can when a kept one
    turns out dead.

    The caller's headers win. Without a user-agent of the caller's own (argument or
    ``IMAGELABS_USER_AGENT``) the browser's is sent; with one, the browser's client hints
    (``sec-ch-ua``) are left out, which would contradict it.

    Attributes:
        impersonate: The browser: ``"chrome"``, ``"firefox"``, ``"safari"``, ``"edge"`` for the
            latest that `curl_cffi` knows, or one of its targets such as ``"chrome146"``.
        proxy: Such as ``"http://user:password@host:3128"`` or ``"socks5h://host:1080"``, for
            every request. `None`: the standard variables (``HTTPS_PROXY``, ``NO_PROXY``, ...).
        no_proxy: True: `proxy` is not used for hosts that ``NO_PROXY`` names.
        verify: `True`: the usual certificate authorities, or those that ``REQUESTS_CA_BUNDLE``,
            ``CURL_CA_BUNDLE``, ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` names; a path: those in this
            file or folder; `False`: any certificate (dangerous).
    """

    impersonate: str = attrs.field(default="chrome", converter=_browser)
    proxy: str | None = attrs.field(
        default=None, repr=False, converter=attrs.converters.optional(validation.proxy)
    )
    verify: bool | str = attrs.field(default=True, converter=_authorities)
    no_proxy: bool = False
    _process: _PerProcess = attrs.field(factory=_PerProcess, init=False, eq=False, repr=False)

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Send `request` before `deadline`; the caller closes the response.

        Raises:
            APIConnectionError: No response came; ``delivered`` says if it may have been sent.
        """
        if deadline.passed:
            raise APITimeoutError("no time was left to ask", delivered="no")
        process = self._own_process()
        exchange = _Exchange(request, deadline, self._proxy(request.url, process.proxies), process)
        exchange.start(resolve_latest_browser_type(self.impersonate), self.verify)
        return exchange.response()

    def close(self) -> None:
        """Close the connections of this process; those in use, when their response ends."""
        self._own_process().close()

    def _proxy(self, url: str, known: dict[Hashable, str]) -> str:
        proxy = known.get(origin_of(url))
        if proxy is None:
            proxies = _environment.proxies(url, self.proxy, no_proxy=self.no_proxy)
            proxy = _environment.chosen_proxy(url, proxies)
            if len(known) >= _MAX_ORIGINS:
                known.clear()
            known[origin_of(url)] = proxy
        return proxy

    def _own_process(self) -> _PerProcess:
        if self._process.pid != os.getpid():  # after a fork the parent's stay the parent's
            object.__setattr__(self, "_process", _PerProcess())  # pragma: no cover - in a child
        return self._process

    def __getstate__(self) -> dict[str, Any]:
        names = ("impersonate", "proxy", "verify", "no_proxy")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in {**state, "_process": _PerProcess()}.items():
            object.__setattr__(self, name, value)


class _Exchange:
    """One request and its response."""

    def __init__(
        self, request: HttpRequest, deadline: Deadline, proxy: str, process: _PerProcess
    ) -> None:
        self.request, self.deadline, self.proxy, self.process = request, deadline, proxy, process
        self.jar = CookieJar() if request.cookies is None else process.jar(request)

    def start(self, browser: str, verify: bool | str) -> None:
        """Hand the request to libcurl. Nothing is sent yet."""
        request, url = self.request, self.request.url
        try:
            route, connect_to = _route(request, self.proxy)
            headers = _header_lines(request, self.jar)
        except _addresses.PrivateAddressError as exc:
            raise ForbiddenAddressError(str(exc), delivered="no") from exc
        except (OSError, ValueError) as exc:  # a name that is unknown, a header that is none
            raise _failures.no_answer(url, _described(exc), sent=False) from exc
        options = _request_options(request, self.proxy)
        self.kept = self.process.kept
        try:
            self.transfer = Transfer(
                self.process.take(),
                browser=browser,
                options={**_ALWAYS, **options, **_tls(verify), **route},
                headers=headers,
                connect_to=connect_to,
                body=request.body,
            )
        except CurlError:  # its text may hold a secret
            reason = "libcurl does not take the request"
            raise _failures.no_answer(url, reason, sent=False) from None

    def response(self) -> HttpResponse:
        """Return the response as soon as its head is there."""
        try:
            with self._translated():
                self.transfer.read_head(self._next_read())
        except BaseException:
            self.release()
            raise
        status, headers = self.transfer.status, _joined(self.transfer.headers)
        if self.request.cookies is not None and "set-cookie" in headers:
            lines = [value for name, value in self.transfer.headers if name == "set-cookie"]
            _cookies.keep(self.jar, _cookies.set_by(self.request.url, lines))
        return HttpResponse(status, headers, self._chunks(headers), on_close=self.release)

    def release(self) -> None:
        """End it, and let the next one have the connections. May be called again."""
        self.process.give_back(self.transfer, self.kept)

    def _next_read(self) -> Deadline:
        idle = self.request.idle_timeout
        return self.deadline if idle is None else self.deadline.within(idle)

    def _chunks(self, headers: Mapping[str, str]) -> Iterator[bytes]:
        try:
            with self._translated():
                yield from _body.decode(self.transfer.read_body(self._next_read), headers)
        finally:
            self.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what ends a transfer early into `APIConnectionError`."""
        transfer = self.transfer
        try:
            yield
        except (TransferError, OSError, zlib.error) as exc:
            timed_out = isinstance(exc, TimeoutError) or (
                isinstance(exc, TransferError) and exc.code == CurlECode.OPERATION_TIMEDOUT
            )
            raise _failures.no_answer(
                self.request.url,
                None if timed_out else _described(exc),
                sent=transfer.is_sent,
                proxy=_environment.without_credentials(self.proxy),
                at_proxy=not (transfer.is_sent or transfer.is_tunnelled),
            ) from exc


# What libcurl is told ---------------------------------------------------------------------


def _request_options(request: HttpRequest, proxy: str) -> dict[CurlOpt, Any]:
    """Return the options for method, URL and connection.

    libcurl repeats a request over a kept connection that closes without an answer, unless it has
    a body: that can be read once. So only what has one may go over a kept connection.
    """
    may_reuse = bool(request.repeatable and request.body and not request.public_only)
    options: dict[CurlOpt, Any] = {
        CurlOpt.URL: request.url,
        CurlOpt.FRESH_CONNECT: not may_reuse,
        CurlOpt.MAXAGE_CONN: _MAX_IDLE,
    }
    parts = urlsplit(request.url)
    if parts.scheme == "http":  # else libcurl offers to change to HTTP/2
        options[CurlOpt.HTTP_VERSION] = CurlHttpVersion.V1_1
    if "%" in parts.path and not (proxy and parts.scheme == "http"):
        # libcurl would rewrite the escapes
        target = parts._replace(scheme="", netloc="", fragment="").geturl()
        options[CurlOpt.REQUEST_TARGET] = target
    if request.method == "GET":
        return {**options, CurlOpt.HTTPGET: 1, CurlOpt.FORBID_REUSE: 1}
    return {**options, CurlOpt.POST: 1, CurlOpt.POSTFIELDSIZE_LARGE: len(request.body)}


def _tls(verify: bool | str) -> dict[CurlOpt, Any]:
    path = _environment.ca_path(verify)
    if path is None:
        return _ANY_CERTIFICATE
    if Path(path).is_dir():
        no_file = {CurlOpt.CAINFO: ffi.NULL, CurlOpt.PROXY_CAINFO: ffi.NULL}
        return {**no_file, CurlOpt.CAPATH: path, CurlOpt.PROXY_CAPATH: path}
    return {CurlOpt.CAINFO: path, CurlOpt.PROXY_CAINFO: path}


def _route(request: HttpRequest, proxy: str) -> tuple[dict[CurlOpt, Any], str]:
    """Return options for the route, and the place to connect to; empty: where the URL leads.

    With `public_only` the place stands for the addresses that were checked, and for no other.
    libcurl is told the proxy, so that it does not read the environment by itself.

    Raises:
        PrivateAddressError: One is not public.
        OSError, UnicodeError: The name cannot be resolved.
    """
    via = {CurlOpt.PROXY: proxy, CurlOpt.NOPROXY: ""}
    if not request.public_only:
        return via, ""
    _, host, port = origin_of(request.url)
    if proxy:  # which connects to the host, and we to the proxy, which is the caller's choice
        _addresses.refuse_private_target(host)
        return via, ""
    found = _addresses.resolve_public(host, port or 0)
    addresses = ",".join(dict.fromkeys(f"[{info[4][0]}]" for info in found))
    return {**via, CurlOpt.RESOLVE: [f"+{_CHECKED}:{port}:{addresses}"]}, f"{_CHECKED}:{port}"


def _header_lines(request: HttpRequest, jar: CookieJar) -> list[bytes]:
    """Return the headers as libcurl reads them; without a value: not to be sent.

    Raises:
        ValueError: One cannot be sent.
    """
    sent: dict[str, str | None] = {
        **dict.fromkeys((*_NAVIGATION, "content-type", "expect")),
        "sec-fetch-site": "cross-site" if request.cookies is None else "same-origin",
        "sec-fetch-mode": "no-cors" if request.method == "GET" else "cors",
        "sec-fetch-dest": "image" if request.method == "GET" else "empty",
        "accept-encoding": _ENCODINGS,
    }
    own = {name.lower(): value for name, value in request.headers.items()}
    if own.get("user-agent") == USER_AGENT:  # of the default settings
        del own["user-agent"]
    if "user-agent" in own:
        sent |= dict.fromkeys(_CLIENT_HINTS)
    if request.cookies is not None:
        sent["cookie"] = _cookies.merge(request.cookies, _cookies.held(jar, request.url)) or None
    lines = [_line(name, value) for name, value in {**sent, **own}.items()]
    if any(set(line) & set("\r\n\0") for line in lines):
        raise ValueError("a header must not hold a line break")
    return [line.encode("latin-1") for line in lines]


def _line(name: str, value: str | None) -> str:
    if value is None:
        return f"{name}:"
    return f"{name}: {value}" if value else f"{name};"


# What comes back --------------------------------------------------------------------------


def _joined(headers: list[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _described(exc: Exception) -> str:
    if not isinstance(exc, TransferError):
        return f"{type(exc).__name__}: {sanitize_text(exc)}"
    if exc.code == CurlECode.PEER_FAILED_VERIFICATION:
        return f"the certificate is not trusted: {sanitize_text(exc)}"
    return sanitize_text(exc)
