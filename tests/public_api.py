"""The public names and their signatures, as text: `python -m tests.public_api --write`."""

import enum
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import imagelabs_sdk

LISTING = Path(__file__).parent / "public_api.txt"


def describe() -> str:
    """Return the listing of what stands in the code now."""
    return "\n".join(line for name in sorted(imagelabs_sdk.__all__) for line in _lines(name)) + "\n"


def _lines(name: str) -> Iterator[str]:
    value = getattr(imagelabs_sdk, name)
    if not inspect.isclass(value):
        yield f"{name}{_signature(value)}" if callable(value) else f"{name}: {type(value).__name__}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases}){'' if _is_plain(value) else _signature(value)}"
    if issubclass(value, enum.Enum):
        yield from (f"    {name}.{member.name} = {member.value!r}" for member in value)
    for attribute, member in sorted(vars(value).items()):
        if not attribute.startswith("_"):
            yield from _member(name, attribute, member)


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
    else:
        print(describe(), end="")  # noqa: T201 - what the program is for
