"""The members of a pool: what balancing needs to know of each backend at this moment."""

from __future__ import annotations

from typing import Final

from wsrouter.config.values import Backend
from wsrouter.policy.sharing import Gauge

#: Stands for no limit of sessions.
UNLIMITED: Final = 1 << 62


class Member:
    """One backend of a pool, alive: how much it has to do, and whether it may get more.

    Balancers read members and never change them. A member outlives the configuration that named it first: a
    reload that keeps the backend keeps the member, with its live sessions and its health.
    """

    __slots__ = ("_gauge", "_room", "available", "backend", "label", "live", "since", "unanswered", "weight")

    def __init__(self, backend: Backend, since: float | None = None) -> None:
        self.backend = backend
        #: How logs name it.
        self.label = backend.label
        #: Sessions, tunnels and requests that live, those being opened included.
        self.live = 0
        #: Messages without an answer yet, of sessions that choose a backend for each message.
        self.unanswered = 0
        #: Whether new work may go here: not down, not ejected, not drained.
        self.available = True
        #: When it became available while the pool ran, on the reactor's clock: ``slow_start`` counts from here.
        #: None for a backend that was there when the pool began.
        self.since = since
        self.weight = backend.weight
        self._room = UNLIMITED if backend.max_sessions is None else backend.max_sessions
        #: What lives in other processes, where its limit holds for all.
        self._gauge: Gauge | None = None

    def share(self, gauge: Gauge | None) -> None:
        """What lives here counts in ``gauge`` from now on, and what that has of others counts here."""
        if self._gauge is not None:
            self._gauge.add(-self.live)
        self._gauge = gauge
        if gauge is not None:
            gauge.add(self.live)

    def count(self, change: int) -> None:
        """One more lives (1), or one less (-1)."""
        self.live += change
        if self._gauge is not None:
            self._gauge.add(change)

    def reconfigure(self, backend: Backend) -> None:
        """The same server, with other words behind it."""
        self.backend = backend
        self.weight = backend.weight
        self._room = UNLIMITED if backend.max_sessions is None else backend.max_sessions

    @property
    def takes(self) -> bool:
        """Whether one more session may go here now."""
        if not self.available or self.live >= self._room:
            return False
        return self._gauge is None or self.live + self._gauge.others() < self._room

    def __repr__(self) -> str:
        return f"<{self.label} live={self.live}{'' if self.available else ' unavailable'}>"
