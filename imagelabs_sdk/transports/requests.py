"""The default transport: `requests`, imported with the first request and not before."""

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
        self.mine = threading.local()
        self.lock = threading.Lock()
        self.all: weakref.WeakSet[DeadlineSession] = weakref.WeakSet()

    def close(self) -> None:
        with self.lock:
            sessions = list(self.all)
        for session in sessions:
            session.close()


@attrs.frozen(kw_only=True)
class RequestsTransport:
    """Carries requests with `requests`, one session per process and thread, made on first use.

    One transport may be shared by threads and inherited over a fork: no connection is shared.
    Every wait, down to a single byte of a header, ends at the deadline; name resolution alone
    is bounded by the system. Nothing is ever sent twice, and no redirect is followed.

    Attributes:
        proxy: Such as ``"http://user:password@host:3128"``, for every request. `None`: the
            standard variables (``HTTPS_PROXY``, ``NO_PROXY``, ...), as `requests` reads them.
        verify: `True`: the usual certificate authorities, or those that ``REQUESTS_CA_BUNDLE``
            names; a path: those in this file or folder; `False`: any certificate (dangerous).
        session: A session of your own, with its headers, cookies, proxies, hooks, auth and
            adapters; it stays yours to close and is shared by all threads that use this
            transport. With it, `proxy` and `verify` are the session's own. Its pools are taught
            the deadline; an adapter that is no `requests.adapters.HTTPAdapter` is left alone,
            and then the deadline is checked between the pieces of a body only.
    """

    proxy: str | None = attrs.field(
        default=None, repr=False, converter=attrs.converters.optional(validation.proxy)
    )
    verify: bool | str = attrs.field(default=True, converter=validation.verify)
    session: "requests.Session | None" = None
    _sessions: _ProcessSessions = attrs.field(
        factory=_ProcessSessions, init=False, eq=False, repr=False
    )

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Carry `request` before `deadline`; the caller closes the response.

        Raises:
            APIConnectionError: No response came; ``delivered`` tells whether it left.
        """
        return self._mine().send(request, deadline)

    def close(self) -> None:
        """Close the sessions of all threads of this process. Sending again opens anew."""
        self._sessions.close()

    def _mine(self) -> "DeadlineSession":
        """This thread's session."""
        if self._sessions.pid != os.getpid():  # a fork: what the parent opened stays the parent's
            object.__setattr__(
                self, "_sessions", _ProcessSessions()
            )  # pragma: no cover - in a child only
        opened = self._sessions
        session: Any = getattr(opened.mine, "session", None)
        if session is None:
            from ._session import DeadlineSession  # not before the first request: it costs 0.2 s

            session = opened.mine.session = DeadlineSession(self.session, self.proxy, self.verify)
            with opened.lock:
                opened.all.add(session)
        mine: DeadlineSession = session
        return mine

    def __getstate__(self) -> dict[str, Any]:
        return {"proxy": self.proxy, "verify": self.verify, "session": self.session}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in {**state, "_sessions": _ProcessSessions()}.items():
            object.__setattr__(self, name, value)
