"""The clients of a project, one per alias of ``settings.IMAGELABS``, made when first used.

::

    IMAGELABS = {
        "default": {"OPTIONS": {"cookies": os.environ["IMAGELABS_COOKIE"], "timeout": 20}},
        "drawn-here": {"BACKEND": "imagelabs_sdk.embedded.embedded_transport"},
    }

``BACKEND`` is the dotted path of a class or function that makes a `Transport`; the default is
`RequestsTransport`. An option goes to the backend if it has a parameter of that name, else to
`ImageLabs`; one that neither has is an error. A transport may have
``client_options``, the defaults for `ImageLabs`. ``TASKS`` is the alias of the backend of
``settings.TASKS`` whose workers poll jobs; without it, none does. ``SUBMIT`` is "request" (the
default: `start` submits) or "worker": a driver does, at most ``MAX_IN_FLIGHT`` jobs at a time.
Without ``IMAGELABS`` there is the alias "default" with the default of everything.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
from django.conf import settings
from django.core.signals import setting_changed
from django.db import connections
from django.utils.connection import ConnectionProxy
from django.utils.module_loading import import_string

from imagelabs_sdk import (
    HandlerTransport,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    RequestedImage,
    Transport,
)

from .conf import SettingsError, unknown_key

__all__ = [
    "DEFAULT_ALIAS",
    "Client",
    "Clients",
    "SettingsError",
    "client",
    "clients",
    "in_transaction",
    "warn_of_transaction",
]

DEFAULT_ALIAS = "default"
_KEYS = {"BACKEND", "MAX_IN_FLIGHT", "OPTIONS", "SUBMIT", "TASKS"}
_EMBEDDED_HINT = 'Run pip install "imagelabs_sdk[server]", which brings Pillow.'
_OPTIONS = set(inspect.signature(ImageLabs).parameters) - {"transport"}


class Client(ImageLabs):
    """`ImageLabs`, which warns when it would wait inside a database transaction."""

    if not TYPE_CHECKING:  # pragma: no branch - type checkers see `ImageLabs.generate`

        def generate(self, prompt: str | ImageRequest, **options: Any) -> RequestedImage:
            """Generate as `ImageLabs.generate` does; warn in a transaction.

            While it waits, the transaction would keep its connection and its locks from others.
            """
            if in_transaction():
                warn_of_transaction("generate() keeps its connection and its locks while it waits")
            return super().generate(prompt, **options)


def in_transaction(using: str | None = None) -> str | None:
    """Return the alias of a database in whose transaction this thread is; `None`: it is in none.

    Those of ``TestCase`` do not count.

    Args:
        using: Check this database alone; `None`: all of them.
    """
    for connection in connections.all(initialized_only=True):
        blocks = connection.atomic_blocks
        # Django's own rule for durable blocks.
        ours = not all(getattr(block, "_from_testcase", False) for block in blocks)
        if using in (None, connection.alias) and ours:
            return connection.alias
    return None


def warn_of_transaction(consequence: str) -> None:
    """Warn the code that waits for an image inside a transaction."""
    warnings.warn(
        f"in a transaction: {consequence}; call it outside (a view: decorate it with "
        "transaction.non_atomic_requests), or start a job instead",
        RuntimeWarning,
        stacklevel=3,
    )


@attrs.frozen
class _Made:
    client: Client
    transport: Transport | None

    def close(self) -> None:
        self.client.close()
        if self.transport is not None:
            self.transport.close()


class Clients:
    """The clients of ``settings.IMAGELABS`` by alias; one each per process.

    Threads may share them, forked workers may inherit them, and they follow
    ``override_settings``.
    """

    def __init__(self) -> None:
        self._made: dict[str, _Made] = {}

    def __getitem__(self, alias: str) -> Client:
        """Return the client of `alias`.

        Raises:
            SettingsError: It is not in the settings, or they cannot be used.
        """
        return self._get(alias).client

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def is_in_process(self, alias: str) -> bool:
        """Return True if the service is a function in this process.

        No other process can poll its jobs.
        """
        return isinstance(self._get(alias).transport, HandlerTransport)

    def tasks(self, alias: str) -> str | None:
        """Return the alias of the task backend whose workers poll the jobs; `None`: none does."""
        tasks: str | None = self._entry(alias).get("TASKS")
        return tasks

    def submits_by_worker(self, alias: str) -> bool:
        """Return True if `start` leaves the submit to a driver."""
        how = self._entry(alias).get("SUBMIT", "request")
        if how not in ("request", "worker"):
            raise SettingsError(
                f"IMAGELABS[{alias!r}]['SUBMIT'] = {how!r}",
                check="imagelabs.E003",
                hint='Use "request" or "worker".',
            )
        return bool(how == "worker")

    def max_in_flight(self, alias: str) -> int | None:
        """Return how many jobs drivers keep at the service at a time; `None`: any number."""
        most = self._entry(alias).get("MAX_IN_FLIGHT")
        if most is None:
            return None
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            hint = "Use a whole number, 1 or more, or leave it out."
        elif not self.submits_by_worker(alias):
            hint = 'It needs "SUBMIT": "worker".'
        else:
            return most
        where = f"IMAGELABS[{alias!r}]['MAX_IN_FLIGHT'] = {most!r}"
        raise SettingsError(where, check="imagelabs.E003", hint=hint)

    def clear(self) -> None:
        """Close all clients; each is made anew when it is next used."""
        made, self._made = self._made, {}
        for one in made.values():
            one.close()

    def _get(self, alias: str) -> _Made:
        # No lock, which a fork could inherit locked: the first client that was made stays.
        return self._made.get(alias) or self._made.setdefault(alias, self._make(alias))

    def _entries(self) -> Mapping[str, Any]:
        entries: Mapping[str, Any] = getattr(settings, "IMAGELABS", {DEFAULT_ALIAS: {}})
        return entries

    def _entry(self, alias: str) -> Mapping[str, Any]:
        try:
            entry: Mapping[str, Any] = self._entries()[alias]
        except KeyError:
            raise SettingsError(
                f"IMAGELABS has no alias {alias!r}",
                check="imagelabs.E002",
                hint=f"It has: {', '.join(self)}.",
            ) from None
        if not isinstance(entry, Mapping):
            raise SettingsError(
                f"IMAGELABS[{alias!r}] must be a mapping",
                check="imagelabs.E003",
                hint='Such as: IMAGELABS = {"default": {"OPTIONS": {"timeout": 20}}}.',
            )
        for key in entry.keys() - _KEYS:
            raise unknown_key(f"IMAGELABS[{alias!r}]", key, _KEYS)
        return entry

    def _make(self, alias: str) -> _Made:
        entry = self._entry(alias)
        make, own = _backend(alias, entry.get("BACKEND"))
        where, options = f"IMAGELABS[{alias!r}]['OPTIONS']", entry.get("OPTIONS", {})
        for name in options.keys() - own - _OPTIONS:
            raise unknown_key(where, name, own | _OPTIONS)
        try:
            transport = make(**{name: options[name] for name in options.keys() & own})
            given = {name: options[name] for name in options.keys() - own}
            defaults: Mapping[str, Any] = getattr(transport, "client_options", {})
            return _Made(Client(transport=transport, **{**defaults, **given}), transport)
        except (InvalidRequestError, TypeError) as error:
            raise SettingsError(
                f"{where}: {error}",
                check="imagelabs.E003",
                hint="Options are the arguments of the backend and of imagelabs_sdk.ImageLabs.",
            ) from error


def _backend(alias: str, path: str | None) -> tuple[Callable[..., Transport | None], set[str]]:
    """Return what makes the transport, and the names of its options."""
    if path is None:
        return (lambda: None), set()  # the client makes one
    try:
        backend: Callable[..., Transport] = import_string(path)
        return backend, set(inspect.signature(backend).parameters)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"IMAGELABS[{alias!r}]['BACKEND'] {path!r} cannot be used: {error}",
            check="imagelabs.E001",
            hint=_EMBEDDED_HINT
            if str(path).startswith("imagelabs_sdk.embedded")
            else "It is the dotted path of a class or function that makes a transport.",
        ) from error


clients = Clients()
client: Client = cast(Client, ConnectionProxy(cast(Any, clients), DEFAULT_ALIAS))
"""The client of the alias "default"."""


def _forget(*, setting: str, **_: object) -> None:
    if setting == "IMAGELABS":
        clients.clear()


setting_changed.connect(_forget)
