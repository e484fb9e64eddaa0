"""Read URLs as browsers do: resolve and encode them, and refuse what cannot be fetched. No I/O."""

import re
from urllib.parse import quote_from_bytes, urljoin, urlsplit

from ._redact import sanitize_text

__all__ = [
    "RefusedURLError",
    "from_header",
    "image_url",
    "resolve",
    "to_ascii_host",
    "without_query",
]

_MAX_URL = 8192  # characters
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_IGNORED = re.compile(r"[\t\r\n]")  # browsers leave them out, wherever they stand
_AROUND = "".join(map(chr, range(0x21)))  # control characters and the space
_AUTHORITY = re.compile(r"(https?):/+([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_UNSAFE = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+")
_HOST = re.compile(r"[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]")  # a name or IPv6
_IMAGE = re.compile(
    r"\.(apng|avifs?|bmp|gif|heic|heif|jfif|jpe?g?|jxl|png|tiff?|webp)$", re.IGNORECASE
)
_NOTHING = ("", "-", "false", "n/a", "na", "nan", "nil", "none", "null", "true", "undefined")


class RefusedURLError(ValueError):
    """The text is not a URL that may be fetched. The message shows no query and no password."""


def image_url(value: object, base: str) -> str | None:
    """Return the URL of an image that a service named; `None` if it named none.

    A relative one needs a slash or an image's suffix, so that free text is not taken for one.

    Args:
        value: What the service sent, of any type.
        base: The URL that answered.

    Raises:
        RefusedURLError: The text cannot be the URL of an image.
    """
    reference = _trimmed(value) if isinstance(value, str) else ""
    if reference.lower() in _NOTHING:
        return None
    if not _SCHEME.match(reference) and not _is_path(reference):
        raise _refused("is not the URL of an image", reference)
    return resolve(reference, base)


def resolve(reference: str, base: str) -> str:
    """Return the absolute URL that a reference means, percent-encoded where it has to be.

    What is encoded already stays as it is, to the letter. A fragment is left out. Behind the scheme
    any number of slashes is two: programs that join paths turn ``https://`` into ``https:/``.

    Args:
        reference: A URL, absolute or relative.
        base: The URL of the answer that it stood in; empty: only absolute ones can be resolved.

    Raises:
        RefusedURLError: It is too long, not http or https, or has credentials or a host that
            is none.
    """
    text = _trimmed(reference).partition("#")[0]
    if len(text) > _MAX_URL:
        raise _refused(f"is longer than {_MAX_URL} characters", text)
    before, mark, query = text.partition("?")
    text = before.replace("\\", "/") + mark + query
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise _refused(f"may not be {scheme[1]}:", text)
    parts = _AUTHORITY.fullmatch(text if scheme else _joined(base, text))
    if parts is None:
        raise _refused("needs a host", text)
    return f"{parts[1].lower()}://{_authority(parts[2], text)}{_encoded(parts[3])}"


def to_ascii_host(host: str) -> str:
    """Return a host's name as DNS knows it: names beyond ASCII as A-labels (``xn--...``).

    Raises:
        RefusedURLError: It is no name that can be asked for.
    """
    if not host.isascii():
        import idna  # what requests uses; hardly ever needed

        try:
            host = idna.encode(host, uts46=True).decode()
        except UnicodeError as exc:
            raise _refused("has a host that is not a name", host) from exc
    if not _HOST.fullmatch(host):
        raise _refused("has a host that is not a name" if host else "needs a host", host)
    return host.lower()


def from_header(value: str) -> str:
    """Return a reference out of a header, whose bytes http.client reads as Latin-1.

    Servers send UTF-8 there; other bytes are encoded one by one.
    """
    try:
        raw = value.encode("latin-1")
    except UnicodeError:  # from a transport that has decoded them otherwise
        return value
    try:
        return raw.decode()
    except UnicodeError:
        return quote_from_bytes(raw, safe=bytes(range(0x80)))


def without_query(url: str) -> str:
    """Return a URL that may be shown: cut, without credentials and query, which may be secrets."""
    return sanitize_text(re.sub(r"//[^/?#]*@", "//…@", re.split(r"[?#]", url)[0]))


def _trimmed(reference: str) -> str:
    return _IGNORED.sub("", reference.strip(_AROUND))


def _joined(base: str, text: str) -> str:
    if text.startswith("//"):
        return f"{base.partition(':')[0]}:{text}"
    try:
        if text.startswith("/") and "/." not in text:  # as urljoin does, at a tenth of its cost
            scheme, host, *_ = urlsplit(base)
            return f"{scheme}://{host}{text}"
        return urljoin(base, text)
    except ValueError as exc:
        raise _refused("is malformed", text) from exc


def _is_path(reference: str) -> bool:
    path = re.split(r"[?#]", reference)[0].replace("\\", "/")
    if path.startswith(("/", "./", "../")) or _IMAGE.search(path):
        return True
    return "/" in path and not re.search(r"\s", path)


def _authority(text: str, url: str) -> str:
    if "@" in text:
        raise _refused("may not have credentials", url)
    host, _, port = text.rpartition(":") if re.search(r":[^\]]*$", text) else (text, "", "")
    if port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) <= 65_535):
        raise _refused("has a port that is none", url)
    return to_ascii_host(host) + (f":{port}" if port else "")


def _encoded(path: str) -> str:
    """Percent-encode what no URL holds as it is; never a ``%``, which may be an encoding."""
    try:
        return _UNSAFE.sub(lambda found: quote_from_bytes(found[0].encode()), path)
    except UnicodeError as exc:  # a lone surrogate
        raise _refused("has characters that no encoding takes", "") from exc


def _refused(reason: str, url: str) -> RefusedURLError:
    shown = sanitize_text(without_query(url), 80)
    return RefusedURLError(f"the image's URL {reason}" + (f": {shown}" if shown else ""))
