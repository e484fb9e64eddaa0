"""Lenient JSON: find what can be read in an answer, whatever else is wrong with it. No I/O.

An answer to a paid request must not be lost over a formality, so these are no obstacles: NaN and
Infinity, control characters in strings, bytes that are not UTF-8, a byte order mark, UTF-16,
duplicate keys, numbers of any length, nesting of any depth, JSON inside a JSON string, text before
and after the JSON, several objects, an object that is cut off. The time is linear in the length.
"""

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

__all__ = ["Answer", "objects_in", "parse_answer"]

_MAX_OBJECTS = 64  # places in a text at which an object is searched
_MAX_DIGITS = 400  # of a number; a longer one stays text, because converting it takes long
_JSON = ("{", "[", '"')  # how a value begins that may hold an object
_SCALAR = (
    r"""\s*[:=]\s*(?:"(?P<double>(?:[^"\\]|\\.){0,50000})"|'(?P<single>(?:[^'\\]|\\.){0,50000})'"""
    r"""|(?P<bare>-?[0-9][0-9.eE+-]{0,5000}(?=[\s,}\])])|true|false|null))"""
)


@attrs.frozen
class Answer:
    """What was found in an answer's body.

    Attributes:
        values: The JSON values, in the order of the text.
        is_whole: True if the body is exactly one JSON value.
        text: The decoded body.
        loose: Fields that were found by their names, where even the objects may not be parsed.
            They may be of several objects.
    """

    values: list[Any]
    is_whole: bool
    text: str
    loose: dict[str, Any] = attrs.field(factory=dict)

    def objects(
        self, *, stop_at: Callable[[dict[str, Any]], bool] = lambda _: False
    ) -> Iterator[dict[str, Any]]:
        """Yield all objects that were parsed; see `objects_in`."""
        return objects_in(self.values, stop_at=stop_at)


def objects_in(
    values: list[Any], *, stop_at: Callable[[dict[str, Any]], bool]
) -> Iterator[dict[str, Any]]:
    """Yield all objects in JSON values, outer ones before inner ones.

    Args:
        values: The values.
        stop_at: Returns True for an object whose inner ones are left out.
    """
    stack = values[::-1]
    while stack:
        value = stack.pop()
        inner: Iterable[Any] = ()
        if isinstance(value, dict):
            yield value
            inner = () if stop_at(value) else value.values()
        elif isinstance(value, list):
            inner = value
        if nested := [each for each in inner if isinstance(each, dict | list)]:
            stack.extend(nested[::-1])


def parse_answer(body: bytes, names: Iterable[str] = ()) -> Answer:
    """Parse the body of an answer.

    Args:
        body: As received.
        names: The fields to search for where even the objects cannot be parsed.
    """
    encoding = json.detect_encoding(body)
    text = _decode(body, encoding)
    texts = [text] if encoding.startswith("utf-8") else [text, _decode(body, "utf-8")]
    try:
        value = _DECODER.decode(text)
        if not isinstance(value, str):
            return Answer([value], True, text)
        while isinstance(value, str) and value.lstrip().startswith(_JSON):
            value = _DECODER.decode(value)  # JSON inside a JSON string
        if not isinstance(value, str):
            return Answer([value], False, text)
    except (ValueError, RecursionError):
        pass
    if "&quot;" in text:  # a page that shows JSON
        texts.append(html.unescape(text))
    for candidate in texts:
        values = list(_scan(candidate))
        fields = _loose_fields(candidate, names)
        if values or fields:
            return Answer(values, False, candidate, fields)
    return Answer([], False, text)


def _scan(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects that can be parsed, whatever text is around them."""
    position = -1
    for _ in range(_MAX_OBJECTS):
        position = text.find("{", position + 1)
        if position < 0:
            return
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as exc:
            # What was read up to here is not read again, or time would grow with the square.
            position = max(position, exc.pos - 1)
        except RecursionError:
            return
        else:
            position = end - 1
            yield value


def _loose_fields(text: str, names: Iterable[str]) -> dict[str, Any]:
    """Find fields with a plain value by their names; an empty value does not replace another."""
    fields: dict[str, Any] = {}
    for name in names:
        for found in re.finditer(f"[\"']{re.escape(name)}[\"']{_SCALAR}", text):
            value = _scalar(found)
            if value not in (None, ""):
                fields[name] = value
                break
    return fields


def _scalar(found: "re.Match[str]") -> Any:
    quoted = found["double"] if found["double"] is not None else found["single"]
    try:
        return _DECODER.decode(found["bare"] if quoted is None else f'"{quoted}"')
    except ValueError:
        return found["bare"] or quoted


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of duplicate keys the last one counts that is not empty."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        fields.update({name: value for name, value in pairs if value not in (None, "")})
    return fields


def _whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _decode(body: bytes, encoding: str) -> str:
    """Decode bytes that are not UTF-8 as Latin-1, the other encoding that servers use."""
    try:
        return body.decode(encoding)
    except UnicodeDecodeError:
        if not encoding.startswith("utf-8"):
            return body.decode(encoding, "replace")
        return body.decode(encoding, "surrogateescape").translate(_LATIN_1)


_LATIN_1 = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}  # from what surrogateescape makes
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_object, parse_int=_whole_number)
