"""The public names and their signatures, as text: `python -m tests.public_api --write`.

Also their table at the head of docs/api.md.
"""

import enum
import importlib
import inspect
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import imagelabs_sdk

_DEPRECATED = "  # deprecated"
LISTING = Path(__file__).parent / "public_api.txt"
REFERENCE = Path(__file__).parents[1] / "docs" / "api.md"
PACKAGES = (
    "imagelabs_sdk",
    "imagelabs_sdk.embedded",
    "imagelabs_sdk.testing",
    "imagelabs_sdk.transports.curl_cffi",
    "imagelabs_sdk.contrib.celery",
    "imagelabs_sdk.contrib.g4f",
)
_TABLE = re.compile(r"(?<=^## All names\n\n).*?(?=^## )", re.M | re.S)


def describe(package: types.ModuleType = imagelabs_sdk) -> str:
    """Return the listing of what stands in the code now.

    A name is marked as deprecated if reading it warns, or if its docstring has a line that begins
    so.
    """
    names = sorted(package.__all__)
    return "".join(f"{line}\n" for name in names for line in _lines(name, package))


def reference() -> str:
    """Return docs/api.md with the table of the names that stand in the code now."""
    rows = [
        f"| `{place}` | `{name}` | {(inspect.getdoc(value) or '').splitlines()[0]} |\n"
        for place in PACKAGES
        for name, value in _callables(importlib.import_module(place))
    ]
    table = "".join(["| from | import | |\n|---|---|---|\n", *rows, "\n"])
    return _TABLE.sub(lambda _: table, REFERENCE.read_text(encoding="utf-8"), count=1)


def _callables(package: types.ModuleType) -> Iterator[tuple[str, object]]:
    values = {name: getattr(package, name) for name in sorted(package.__all__)}
    return ((name, value) for name, value in values.items() if callable(value))


def _lines(name: str, package: types.ModuleType) -> Iterator[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = getattr(package, name)
    mark = _DEPRECATED if caught else _mark(value)
    if not inspect.isclass(value):
        kind = _signature(value) if callable(value) else f": {type(value).__name__}"
        yield f"{name}{kind}{mark}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases}){'' if _is_plain(value) else _signature(value)}{mark}"
    if issubclass(value, enum.Enum):
        yield from (f"    {name}.{member.name} = {member.value!r}" for member in value)
    for attribute, member in sorted(vars(value).items()):
        if not attribute.startswith("_"):
            yield from (f"{line}{_mark(member)}" for line in _member(name, attribute, member))


def _mark(value: object) -> str:
    return _DEPRECATED if re.search(r"(?m)^\s*Deprecated\b", value.__doc__ or "") else ""


def _is_plain(value: type) -> bool:
    return issubclass(value, enum.Enum) or getattr(value, "_is_protocol", False)


def _member(owner: str, attribute: str, member: object) -> Iterator[str]:
    if isinstance(member, classmethod | staticmethod):
        member = member.__func__
    if isinstance(member, property):
        yield f"    {owner}.{attribute}: property"
    elif inspect.isfunction(member):
        yield f"    {owner}.{attribute}{_signature(member)}"


def _signature(value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    # An object's address, and where a type is defined, are no part of the promise.
    text = re.sub(r" at 0x[0-9a-f]+|\b(?:[A-Za-z_]\w*\.)+(?=\w)", "", text)
    return re.sub(r"'([^']+)'", r"\1", text)


if __name__ == "__main__":
    if "--write" in sys.argv:
        LISTING.write_text(describe(), encoding="utf-8")
        REFERENCE.write_text(reference(), encoding="utf-8")
    else:
        print(describe(), end="")  # noqa: T201 - what the program is for
