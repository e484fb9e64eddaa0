"""Warn of a name or an argument that a later version will not have."""

import sys
import warnings

__all__ = ["ImageLabsDeprecationWarning", "warn_deprecated"]

_PACKAGE = __name__.partition(".")[0]


class ImageLabsDeprecationWarning(DeprecationWarning):
    """Your code uses a name or an argument that a later version of this package will not have.

    Its text says which version, and what to write instead. As any `DeprecationWarning` it is shown
    by pytest and for a program's own file, and ignored elsewhere;
    ``pytest -W error::imagelabs_sdk.ImageLabsDeprecationWarning`` makes it an error.
    """


def warn_deprecated(name: str, *, removed_in: str, instead: str) -> None:
    """Warn that a name or an argument is going to be removed.

    The warning points at the line outside of this package that uses it, however deep the call is.

    Args:
        name: As users write it, such as ``"ImageLabs(poll=)"``.
        removed_in: The first version without it, such as ``"0.11"``.
        instead: What to write, such as ``"polling="``.
    """
    level, frame = 1, sys._getframe()
    while str(frame.f_globals.get("__name__")).partition(".")[0] == _PACKAGE and frame.f_back:
        level, frame = level + 1, frame.f_back
    message = f"{name} is deprecated and will be removed in {removed_in}: use {instead}"
    warnings.warn(message, ImageLabsDeprecationWarning, stacklevel=level)
