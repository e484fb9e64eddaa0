"""Take out of a conversation what a recording of it may not hold: secrets, and prompts.

Which headers, fields and parts of URLs count as secret is decided here alone.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from .._redact import redact
from ..provenance import without_metadata
from .base import HttpRequest

__all__ = ["Cleaner", "Json"]

_PROMPTS = ("prompt", "negative_prompt")
_PUBLIC_REQUEST = re.compile(  # headers whose values are no secrets; none of them is recorded
    "accept|accept-(encoding|language)|cache-control|content-type|if-none-match|if-range|origin|"
    "prefer|priority|range|referer|user-agent|x-requested-with"
)
_PUBLIC_RESPONSE = re.compile(  # headers that are recorded; a new one stays out until it is known
    "accept-ranges|cf-mitigated|cf-ray|content-range|content-type|date|etag|imagelabs-features|"
    "last-modified|location|preference-applied|retry-after|x-request-id"
)
_SECRET_FIELD = re.compile("api_?key|token|secret|password|authorization|cookie", re.IGNORECASE)
_SHORTEST = 6  # characters; a shorter secret or prompt occurs by chance
_HEAD = 16  # bytes that tell an image's format
_QUERY = re.compile(r"((?:https?://|^)[^\s\"'<>?]+\?)(?!redacted=[0-9a-f]{8}(?!\S))([^\s\"'<>#]+)")
_DATA_URL = re.compile(r"data:(?!redacted,)[^\s\"'<>]{8,}")
_USER = re.compile(r"//[^/\s@\"'<>]+@")
_SET_COOKIE = re.compile(r"(?:^|,\s*)[^=;,\s]+=\"?([^;,\s\"]+)")

Json = dict[str, Any]


@attrs.define(eq=False, repr=False)
class Cleaner:
    """Takes out of requests and answers what a cassette may not hold, each time alike.

    Attributes:
        keep_prompts: False: prompts become ``prompt-1``, ``prompt-2`` in the order they are seen.
    """

    keep_prompts: bool
    _prompts: dict[str, str] = attrs.field(factory=dict)
    _secrets: set[str] = attrs.field(factory=set)

    def request(self, request: HttpRequest, content: Json) -> Json:
        """Return the URL and the content of a request, without queries; learn its secrets.

        Args:
            request: Its headers and cookies hold secrets that an answer may quote.
            content: Its body, as it would be recorded.
        """
        self._learn(
            value for n, value in request.headers.items() if not _PUBLIC_REQUEST.fullmatch(n)
        )
        self._learn((request.cookies or {}).values())
        body = content.get("json")
        if isinstance(body, dict) and not self.keep_prompts:
            content = {"json": {**body, **self._numbered(body)}}
        return {"url": self._clean(request.url), **self._clean(content)}

    def response(self, headers: Mapping[str, str], content: Json) -> Json:
        """Return the headers of an answer that are harmless, and its content; learn its cookies."""
        self._learn(_SET_COOKIE.findall(headers.get("set-cookie", "")))
        kept = {n: value for n, value in headers.items() if _PUBLIC_RESPONSE.fullmatch(n)}
        return {"headers": self._clean(kept), **self._clean(content, quoting=True)}

    def image(self, data: bytes) -> bytes:
        """Return an image without the texts in it; only its head, if these cannot be removed."""
        if self.keep_prompts:
            return data
        try:
            image = without_metadata(data)
        except ValueError:
            return data[:_HEAD]
        told = any(p.encode() in image for p in self._prompts if len(p) >= _SHORTEST)
        return data[:_HEAD] if told else image

    def _numbered(self, body: Json) -> Json:
        """Return the fields of a request that are prompts, with a number in place of each."""
        prompts = {name: body[name] for name in _PROMPTS if isinstance(body.get(name), str)}
        for prompt in filter(None, prompts.values()):
            self._prompts.setdefault(prompt, f"prompt-{len(self._prompts) + 1}")
        return {name: self._prompts.get(prompt, "") for name, prompt in prompts.items()}

    def _clean(self, value: Any, *, quoting: bool = False) -> Any:
        """Return a JSON value with every text in it cleaned.

        `quoting`: True for answers, whose sentences may quote a prompt in part.
        """
        if isinstance(value, dict):
            return {
                name: "redacted"
                if _SECRET_FIELD.search(name) and isinstance(part, str)
                else self._clean(part, quoting=quoting)
                for name, part in value.items()
            }
        if isinstance(value, list):
            return [self._clean(part, quoting=quoting) for part in value]
        return self._text(value, quoting) if isinstance(value, str) else value

    def _text(self, text: str, quoting: bool) -> str:
        text = _QUERY.sub(lambda found: f"{found[1]}redacted={_digest(found[2])}", text)
        text = _DATA_URL.sub(lambda found: f"data:redacted,{_digest(found[0])}", text)
        text = _USER.sub("//redacted@", text)
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "redacted")
        for prompt in sorted(self._prompts, key=len, reverse=True):
            if text == prompt or len(prompt) >= _SHORTEST:
                for written in (prompt, json.dumps(prompt)[1:-1]):  # and escaped, in broken JSON
                    text = text.replace(written, self._prompts[prompt])
        return redact(text, self._prompts) if quoting and " " in text else text

    def _learn(self, values: Iterable[str]) -> None:
        words = (word for value in values for word in (value, *value.split()))
        self._secrets.update(word for word in words if len(word) >= _SHORTEST)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
