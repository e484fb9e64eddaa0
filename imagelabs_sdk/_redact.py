"""Make text from peers safe to show: sanitize it, and take secrets out of it."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["Secrets", "redact", "redact_json", "sanitize_text"]

_TELLING = 12  # characters at the start of a secret that give it away
_TOO_SHORT = 4  # characters; a shorter text occurs in ordinary sentences
_MAX_WORDS = 100  # words of one secret that are searched for


def sanitize_text(text: object, limit: int = 200) -> str:
    """Return text from a peer with control characters removed, cut to `limit` characters."""
    raw = str(text)[: 4 * limit]
    words = " ".join("".join(c if c.isprintable() else " " for c in raw).split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


class Secrets:
    """Texts that must not be shown. Its repr does not, and it is no sequence to be printed."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without anything that reveals one of `secrets`.

    The text is cut at the first occurrence of a secret's first 12 characters. Words of six
    characters or more that a secret holds are replaced, since services quote in part.
    """
    for secret in secrets:
        telling = sanitize_text(secret)[:_TELLING]
        if len(telling) >= _TOO_SHORT:
            text = re.sub(f"(?is){re.escape(telling)}.*", "…", text)
        for word in re.findall(r"\w{6,}", secret)[:_MAX_WORDS]:
            text = re.sub(f"(?i){re.escape(word)}", "…", text)
    return text


def redact_json(value: Any, secrets: Iterable[str]) -> Any:
    """Return a JSON value with every text in it redacted."""
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, list):
        return [redact_json(part, secrets) for part in value]
    if isinstance(value, dict):
        return {redact(name, secrets): redact_json(part, secrets) for name, part in value.items()}
    return value
