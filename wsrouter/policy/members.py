"""The members of a pool: what balancing needs to know of each backend at this moment."""

from __future__ import annotations

from typing import Final

from wsrouter.config.values import Backend

#: Stands for no limit of sessions.
UNLIMITED: Final = 1 << 62


class Member:
    """One backend of a pool, alive: how much it has to do, and whether it may get more.

    Balancers read members and never change them. A member outlives the configuration that named it first: a
    reload that keeps the backend keeps the member, with its live sessions and its health.
    """

    __slots__ = ("_room", "available", "backend", "label", "live", "since", "unanswered", "weight")

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

    def reconfigure(self, backend: Backend) -> None:
        """The same server, with other words behind it."""
        self.backend = backend
        self.weight = backend.weight
        self._room = UNLIMITED if backend.max_sessions is None else backend.max_sessions

    @property
    def takes(self) -> bool:
        """Whether one more session may go here now."""
        return self.available and self.live < self._room

    def __repr__(self) -> str:
        return f"<{self.label} live={self.live}{'' if self.available else ' unavailable'}>"
