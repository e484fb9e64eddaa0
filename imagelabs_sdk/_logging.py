"""Let ``IMAGELABS_LOG=debug`` or ``info`` show the log of a script that sets up no logging."""

import logging

from .validation import invalid

__all__ = ["show_log"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # a class only for checkers
    """The handler of this room; there is one at most."""


def show_log(level: str) -> None:
    """Write the log of the package to stderr from this level on.

    Args:
        level: ``"debug"`` or ``"info"``, in any case; another call changes it.

    Raises:
        InvalidRequestError: It is another word.
    """
    number = _LEVELS.get(level.strip().lower())
    if number is None:
        raise invalid("IMAGELABS_LOG", level, "must be debug or info")
    logger = logging.getLogger("imagelabs_sdk")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(number)
