"""What to install when an optional package is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["MissingExtraError", "needs_extra"]


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is missing or too old; the message says what to install."""


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Turn an `ImportError` into a `MissingExtraError` that names the extra to install."""
    try:
        yield
    except MissingExtraError:
        raise
    except ImportError as error:
        remedy = f'pip install "imagelabs_sdk[{name}]"'
        raise MissingExtraError(f"{error}: {remedy}", name=error.name) from error
