"""Who may ask for what: hosts, origins, content types, tokens; and public addresses."""

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import attrs

from ..errors import InvalidRequestError
from ..transports.base import HttpRequest, HttpResponse
from .app import ANYONE, Caller, Refusal

__all__ = ["AccessOptions", "Gate", "read_tokens"]

_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")
_LIMITS = {"in-flight": "max_in_flight", "max-side": "max_side"}
_PORTS = {"http": 80, "https": 443}
_HEADERS = "authorization, content-type, idempotency-key, if-none-match, prefer, priority"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def _networks(values: Sequence[str]) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(value) for value in values)
    except ValueError as exc:
        raise InvalidRequestError(
            f"proxy: {exc}; write an address or a network such as 10.0.0.0/8", field="proxy"
        ) from exc


def _base(url: str) -> str:
    try:
        usable = url == "" or (urlsplit(url).scheme in _PORTS and bool(_origin(url)[1]))
    except ValueError:
        usable = False
    if not usable:
        raise InvalidRequestError(
            'public_url: must be like "https://images.example/draw"', field="public_url"
        )
    return url.rstrip("/")


@attrs.frozen(kw_only=True)
class AccessOptions:
    """What is let in.

    Attributes:
        public_url: What every address in an answer begins with, such as
            ``"https://images.example/draw"``; empty: the address that was asked for.
        allow_hosts: Host names besides those of loopback and of `public_url`; ``"*"``: any.
        allow_origins: Origins of foreign web pages that may use the server.
        proxies: Addresses or networks whose ``X-Forwarded-*`` headers count.
        tokens: By the SHA-256 of a token, in hexadecimal: whose it is. Empty: none is asked for.
    """

    public_url: str = attrs.field(default="", converter=_base)
    allow_hosts: Sequence[str] = ()
    allow_origins: Sequence[str] = ()
    proxies: Sequence[Network] = attrs.field(default=(), converter=_networks)
    tokens: Mapping[str, Caller] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class Gate:
    """Checks each request before the application sees it.

    Attributes:
        options: What is let in.
        host: Where the server listens; a client may name it.
    """

    options: AccessOptions
    host: str = ""

    def admit(self, request: HttpRequest, peer: str) -> HttpRequest:
        """Return the request with the address that its client knows.

        Raises:
            Refusal: Its host is unknown, its page foreign, or its body of a kind that a web page
                can send anywhere.
        """
        request = attrs.evolve(request, url=self._asked(request, peer))
        self._check_host(request)
        self._check_origin(request)
        return request

    def caller(self, request: HttpRequest) -> Caller:
        """Return whose token came with a request.

        Raises:
            Refusal: There is none, or it is unknown.
        """
        if not self.options.tokens:
            return ANYONE
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        caller = self.options.tokens.get(digest) if scheme.lower() == "bearer" else None
        if caller is None:
            raise Refusal(
                401, "send a token as 'Authorization: Bearer …'", {"www-authenticate": "Bearer"}
            )
        return caller

    def preflight(self, request: HttpRequest) -> HttpResponse:
        """Answer a browser that asks what a foreign page may send; `admit` has let it in."""
        headers = {
            "access-control-allow-methods": "GET, HEAD, POST",
            "access-control-allow-headers": _HEADERS,
            "access-control-max-age": "600",
        }
        return self.shared(request, HttpResponse(204, headers))

    def shared(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Return a response that the allowed foreign page may read."""
        origin = request.headers.get("origin")
        if origin is None or origin not in self.options.allow_origins:
            return response
        headers = {
            **response.headers,
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "etag, imagelabs-features, preference-applied",
            "vary": "origin",
        }
        return attrs.evolve(response, headers=headers)

    # The address --------------------------------------------------------------------------

    def _asked(self, request: HttpRequest, peer: str) -> str:
        try:
            parts = urlsplit(request.url)
            usable = parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            usable = False
        if not usable:
            raise Refusal(400, "the address is malformed")
        if self.is_proxy(peer):
            parts = _forwarded(parts, request.headers)
        return parts.geturl()

    def local_path(self, url: str) -> str:
        """Return the path of an address without the prefix of `public_url`."""
        try:
            path = urlsplit(url).path
        except ValueError:
            return ""
        prefix = urlsplit(self.options.public_url).path
        return path.removeprefix(prefix) if path.startswith(prefix + "/") else path

    def public(self, url: str) -> str:
        """Return an address that was asked for, below `public_url` if there is one."""
        if not self.options.public_url:
            return url
        parts, base = urlsplit(url), urlsplit(self.options.public_url)
        path = parts.path
        if not path.startswith(base.path + "/"):  # else the proxy had left the prefix in place
            path = base.path + path
        return parts._replace(scheme=base.scheme, netloc=base.netloc, path=path).geturl()

    def is_proxy(self, peer: str) -> bool:
        """Return True for the address of a proxy that is trusted."""
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self.options.proxies)

    def _check_host(self, request: HttpRequest) -> None:
        name = (urlsplit(request.url).hostname or "").lower()
        known = {*self.options.allow_hosts, self.host, _origin(self.options.public_url)[1]}
        if not name or not ("*" in known or name in known or _is_loopback(name)):
            raise Refusal(421, "this host name is not served here (serve --allow-host adds one)")

    def _check_origin(self, request: HttpRequest) -> None:
        headers = request.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if request.method not in ("GET", "HEAD") and site in ("cross-site", "same-site"):
            origin = origin or "null"
        if origin is not None and not self._is_ours(origin, request.url):
            raise Refusal(403, "this web page may not use the server (serve --allow-origin)")
        from_page = origin is not None or site is not None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and from_page and kind != "application/json":
            raise Refusal(415, "a web page must send application/json")

    def _is_ours(self, origin: str, url: str) -> bool:
        if origin in self.options.allow_origins:
            return True
        try:
            named = _origin(origin)
            return bool(named[1]) and named in (_origin(url), _origin(self.options.public_url))
        except ValueError:
            return False


def _forwarded(parts: SplitResult, headers: Mapping[str, str]) -> SplitResult:
    """Apply what the nearest proxy says of scheme, host and prefix."""
    scheme = _last(headers, "x-forwarded-proto")
    host, prefix = _last(headers, "x-forwarded-host"), _last(headers, "x-forwarded-prefix")
    if scheme in _PORTS:
        parts = parts._replace(scheme=scheme)
    if re.fullmatch(r"[\w.:\[\]-]{1,255}", host):
        parts = parts._replace(netloc=host)
    if re.fullmatch(r"(/[\w.~-]+)+", prefix):
        parts = parts._replace(path=prefix + parts.path)
    return parts


def _last(headers: Mapping[str, str], name: str) -> str:
    """Return the last value: earlier ones may come from the client."""
    return headers.get(name, "").rpartition(",")[2].strip()


def _is_loopback(name: str) -> bool:
    if name in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def read_tokens(path: Path) -> dict[str, Caller]:
    """Read a file of tokens: a name and a token a line, perhaps ``in-flight=N max-side=N``.

    Empty lines and those that begin with ``#`` are skipped.

    Raises:
        InvalidRequestError: A line cannot be read; it is named by its number, never shown.
        OSError: The file cannot be read.
    """
    tokens: dict[str, Caller] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            token, caller = _token(line.split(), f"{path}, line {number}")
            tokens[hashlib.sha256(token.encode()).hexdigest()] = caller
    if not tokens:
        raise InvalidRequestError(f"{path}: holds no token", field="tokens")
    return tokens


def _token(words: Sequence[str], where: str) -> tuple[str, Caller]:
    remedy = "must be: name token [in-flight=N] [max-side=N], the token of 16 characters or more"
    limits: dict[str, int] = {}
    for word in words[2:]:
        name, _, value = word.partition("=")
        if name not in _LIMITS or not re.fullmatch("[1-9][0-9]{0,8}", value):
            raise InvalidRequestError(f"{where}: {remedy}", field="tokens")
        limits[_LIMITS[name]] = int(value)
    if len(words) < 2 or len(words[1]) < 16:
        raise InvalidRequestError(f"{where}: {remedy}", field="tokens")
    return words[1], Caller(words[0], **limits)
