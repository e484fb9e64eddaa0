"""The clients of a project, one per alias of ``settings.IMAGELABS``, made when first used.

::

    IMAGELABS = {
        "default": {"OPTIONS": {"cookies": os.environ["IMAGELABS_COOKIE"], "timeout": 20}},
        "drawn-here": {"BACKEND": "imagelabs_sdk.embedded.embedded_transport"},
    }

``BACKEND`` is the path of what makes a `Transport`; without it, requests travel by
`RequestsTransport`. An option goes to the backend if that takes one of its name, else to
`ImageLabs`; one that neither knows is an error. A transport may have ``client_options``, the
defaults for `ImageLabs`. ``TASKS`` is the alias of the backend of
``settings.TASKS`` whose workers look after jobs; without it, none does. Without
``IMAGELABS`` there is the alias "default", all by default.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
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
_KEYS = {"BACKEND", "OPTIONS", "TASKS"}
_OPTIONS = set(inspect.signature(ImageLabs).parameters) - {"transport"}


class SettingsError(ImproperlyConfigured):
    """``settings.IMAGELABS`` cannot be used.

    Attributes:
        check: The id under which ``manage.py check`` reports it.
        hint: What to write instead.
    """

    def __init__(self, message: str, *, check: str, hint: str) -> None:
        super().__init__(message)
        self.check, self.hint = check, hint


class Client(ImageLabs):
    """`ImageLabs`, with an eye on the database."""

    if not TYPE_CHECKING:  # type checkers see the arguments of `ImageLabs.generate`

        def generate(self, prompt: str | ImageRequest, **options: Any) -> RequestedImage:
            """`ImageLabs.generate`, with a warning inside of a transaction.

            While it waits, the transaction would keep its connection and its locks from others.
            """
            if in_transaction():
                warn_of_transaction("generate() keeps its connection and its locks while it waits")
            return super().generate(prompt, **options)


def in_transaction(using: str | None = None) -> str | None:
    """The alias of a database in whose transaction this thread is; `None`: it is in none.

    Those of ``TestCase`` do not count. `using`: ask about this database alone.
    """
    for connection in connections.all(initialized_only=True):
        blocks = connection.atomic_blocks
        # Django's own rule for durable blocks.
        ours = not all(getattr(block, "_from_testcase", False) for block in blocks)
        if using in (None, connection.alias) and ours:
            return connection.alias
    return None


def warn_of_transaction(consequence: str) -> None:
    """Warn the caller's caller, who waits for an image inside a transaction."""
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
    """By alias, the clients that ``settings.IMAGELABS`` describes; one each per process.

    They may be shared by threads and inherited by forked workers, and follow
    ``override_settings``.
    """

    def __init__(self) -> None:
        self._made: dict[str, _Made] = {}

    def __getitem__(self, alias: str) -> Client:
        """The client of `alias`.

        Raises:
            SettingsError: It is not in the settings, or they cannot be used.
        """
        return self._get(alias).client

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def is_in_process(self, alias: str) -> bool:
        """Whether the service is a function in this process, whose jobs no other can look at."""
        return isinstance(self._get(alias).transport, HandlerTransport)

    def tasks(self, alias: str) -> str | None:
        """The alias of the task backend whose workers look after the jobs; `None`: none does."""
        tasks: str | None = self._entry(alias).get("TASKS")
        return tasks

    def clear(self) -> None:
        """Close all clients; they are made anew when they are asked for."""
        made, self._made = self._made, {}
        for one in made.values():
            one.close()

    def _get(self, alias: str) -> _Made:
        # Without a lock, which a fork could inherit locked: the first that was made stays.
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
            raise _unknown(f"IMAGELABS[{alias!r}]", key, _KEYS)
        return entry

    def _make(self, alias: str) -> _Made:
        entry = self._entry(alias)
        make, own = _backend(alias, entry.get("BACKEND"))
        where, options = f"IMAGELABS[{alias!r}]['OPTIONS']", entry.get("OPTIONS", {})
        for name in options.keys() - own - _OPTIONS:
            raise _unknown(where, name, own | _OPTIONS)
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
    """What makes the transport, and the options that are its own."""
    if path is None:
        return (lambda: None), set()  # the client makes one
    try:
        backend: Callable[..., Transport] = import_string(path)
        return backend, set(inspect.signature(backend).parameters)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"IMAGELABS[{alias!r}]['BACKEND'] {path!r} cannot be used: {error}",
            check="imagelabs.E001",
            hint="It is the dotted path of a class or function that makes a transport.",
        ) from error


def _unknown(where: str, name: str, known: set[str]) -> SettingsError:
    return SettingsError(
        f"{where} has an unknown key {name!r}",
        check="imagelabs.E002",
        hint=f"Known are: {', '.join(sorted(known))}.",
    )


clients = Clients()
client: Client = cast(Client, ConnectionProxy(cast(Any, clients), DEFAULT_ALIAS))
"""That of the alias "default"."""


def _forget(*, setting: str, **_: object) -> None:
    if setting == "IMAGELABS":
        clients.clear()


setting_changed.connect(_forget)
