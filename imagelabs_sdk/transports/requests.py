"""The default transport: `requests`, imported on the first request."""

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import attrs

from .. import validation
from ..deadline import Deadline
from .base import HttpRequest, HttpResponse

if TYPE_CHECKING:
    import requests

    from ._session import DeadlineSession

__all__ = ["RequestsTransport"]


class _ProcessSessions:
    """The sessions of one process, one per thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.local = threading.local()
        self.lock = threading.Lock()
        self.all: weakref.WeakSet[DeadlineSession] = weakref.WeakSet()

    def close(self) -> None:
        with self.lock:
            sessions = list(self.all)
        for session in sessions:
            session.close()


@attrs.frozen(kw_only=True)
class RequestsTransport:
    """Sends requests with `requests`, one session per process and thread, made on first use.

    Threads may share a transport and a fork may inherit it: connections are never shared.
    Every wait, down to a single byte of a header, ends at the deadline; only resolving a name
    takes the system's own time. Nothing is sent twice, and no redirect is followed.

    Attributes:
        proxy: Such as ``"http://user:password@host:3128"``, for every request. `None`: the
            standard variables (``HTTPS_PROXY``, ``NO_PROXY``, ...), as `requests` reads them.
        no_proxy: True: `proxy` is not used for hosts that ``NO_PROXY`` names.
        verify: `True`: the usual certificate authorities, or those that ``REQUESTS_CA_BUNDLE``,
            ``CURL_CA_BUNDLE``, ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` names; a path: those in this
            file or folder; ``"system"``: those that the operating system trusts, as behind a
            company's proxy (extra ``truststore``); `False`: any certificate (dangerous).
        session: A session of your own, with its headers, cookies, proxies, hooks, auth and
            adapters; it stays yours to close and is shared by all threads that use this
            transport. With it, `proxy` and `verify` are the session's own. Its connection
            pools are made to honour the deadline; with an adapter that is not a
            `requests.adapters.HTTPAdapter` the deadline is checked only between the pieces of
            a body.
    """

    proxy: str | None = attrs.field(
        default=None, repr=False, converter=attrs.converters.optional(validation.proxy)
    )
    verify: bool | str = attrs.field(default=True, converter=validation.verify)
    session: "requests.Session | None" = None
    no_proxy: bool = False
    _sessions: _ProcessSessions = attrs.field(
        factory=_ProcessSessions, init=False, eq=False, repr=False
    )

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Send `request` before `deadline`; the caller closes the response.

        Raises:
            APIConnectionError: No response came; ``delivered`` says if it may have been sent.
        """
        return self._thread_session().send(request, deadline)

    def close(self) -> None:
        """Close the sessions of all threads of this process. Sending again opens anew."""
        self._sessions.close()

    def _thread_session(self) -> "DeadlineSession":
        """Return this thread's session, made on first use."""
        if self._sessions.pid != os.getpid():  # after a fork the parent's stay the parent's
            object.__setattr__(
                self, "_sessions", _ProcessSessions()
            )  # pragma: no cover - in a child only
        sessions = self._sessions
        if not hasattr(sessions.local, "session"):
            from ._session import DeadlineSession  # not before the first request: it costs 0.2 s

            session = DeadlineSession(self.session, self.proxy, self.verify, self.no_proxy)
            sessions.local.session = session
            with sessions.lock:
                sessions.all.add(session)
        return sessions.local.session  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        names = ("proxy", "verify", "session", "no_proxy")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in {**state, "_sessions": _ProcessSessions()}.items():
            object.__setattr__(self, name, value)
