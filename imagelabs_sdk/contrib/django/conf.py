"""Read and check what the sweeps take from the settings.

::

    IMAGELABS_SWEEP = {"THREADS": 8, "LEASE": 12, "STEP_TIMEOUT": 60, "DRAIN_TIMEOUT": 5}
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import attrs
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

__all__ = ["SettingsError", "SweepSettings", "sweep_settings", "unknown_key"]

_NAME = "IMAGELABS_SWEEP"


class SettingsError(ImproperlyConfigured):
    """``settings.IMAGELABS`` or ``settings.IMAGELABS_SWEEP`` cannot be used.

    Attributes:
        check: The id under which ``manage.py check`` reports it.
        hint: What to write instead.
    """

    def __init__(self, message: str, *, check: str, hint: str) -> None:
        super().__init__(message)
        self.check, self.hint = check, hint


@attrs.frozen
class SweepSettings:
    """How jobs are polled in the background.

    Attributes:
        threads: Submits and polls that one process runs at once, 1 to 256.
        lease: Seconds for which a claimed job belongs to one process, 5 to 300. A sweep renews
            the leases of all that it holds; the jobs of a killed process are due after it.
        step_timeout: Seconds for one step of a sweep: a submit, or a poll with its download.
        drain_timeout: Seconds for which a command that was told to stop waits for the steps under
            way; what is unfinished then is due again at once.
    """

    threads: int = 8
    lease: float = 12.0
    step_timeout: float = 60.0
    drain_timeout: float = 5.0

    @property
    def lease_time(self) -> timedelta:
        """The lease as a `timedelta`."""
        return timedelta(seconds=self.lease)


_LIMITS = {
    "THREADS": (1, 256),
    "LEASE": (5, 300),
    "STEP_TIMEOUT": (1, 3600),
    "DRAIN_TIMEOUT": (0, 3600),
}


def sweep_settings() -> SweepSettings:
    """Return the settings of the sweeps.

    Raises:
        SettingsError: A key is unknown, or a value cannot be used.
    """
    given = getattr(settings, _NAME, {})
    if not isinstance(given, Mapping):
        raise _bad_value(f"{_NAME} must be a mapping", "Such as: IMAGELABS_SWEEP = {'LEASE': 12}.")
    for key, value in given.items():
        if key not in _LIMITS:
            raise unknown_key(_NAME, key, set(_LIMITS))
        _check_number(key, value)
    return SweepSettings(**{key.lower(): value for key, value in given.items()})


def _check_number(key: str, value: object) -> None:
    least, most = _LIMITS[key]
    whole = key == "THREADS"
    kinds: Any = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "whole number" if whole else "number of seconds"
        raise _bad_value(f"{_NAME}[{key!r}] = {value!r}", f"Use a {kind}, {least} to {most}.")


def _bad_value(message: str, hint: str) -> SettingsError:
    return SettingsError(message, check="imagelabs.E003", hint=hint)


def unknown_key(where: str, name: str, known: set[str]) -> SettingsError:
    """Return the error for a key that nobody reads."""
    return SettingsError(
        f"{where} has an unknown key {name!r}",
        check="imagelabs.E002",
        hint=f"Known are: {', '.join(sorted(known))}.",
    )
