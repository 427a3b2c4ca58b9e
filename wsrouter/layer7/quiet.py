"""How long a peer may stay silent.

A timer that every byte pushes back would be cancelled and set thousands of times a second. Here a byte only
clears a counter, and a coarse tick counts: what is told is told a little late instead, never early.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

_TICKS = 4


class Handle(Protocol):
    """A deadline that waits."""

    def cancel(self) -> object:
        """Forget it."""
        ...


class Deadlines(Protocol):
    """What ``wsrouter.relay.deadlines.Deadlines`` offers."""

    def after(self, seconds: float, callback: Callable[[], None]) -> Handle:
        """Call ``callback`` once, ``seconds`` from now or a little later."""
        ...


class Quiet:
    """Calls ``expired`` once when ``touch`` was not called for ``seconds``, or up to a quarter of them longer.

    ``seconds`` of None is no limit. It waits from ``start`` on, and no more after ``stop`` or when it has expired.
    """

    __slots__ = ("_deadlines", "_expired", "_handle", "_seconds", "_ticks")

    def __init__(self, deadlines: Deadlines, seconds: float | None, expired: Callable[[], None]) -> None:
        self._deadlines = deadlines
        self._seconds = seconds
        self._expired = expired
        self._handle: Handle | None = None
        self._ticks = 0

    def start(self) -> None:
        """Wait from now on; nothing happens when it waits already."""
        if self._handle is None and self._seconds is not None:
            self._ticks = 0
            self._handle = self._deadlines.after(self._seconds / _TICKS, self._tick)

    def touch(self) -> None:
        """The peer has moved."""
        self._ticks = 0

    def stop(self) -> None:
        """Wait no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        assert self._seconds is not None
        self._handle = None
        self._ticks += 1
        # The first tick may have come right behind the last touch.
        if self._ticks > _TICKS:
            self._expired()
        else:
            self._handle = self._deadlines.after(self._seconds / _TICKS, self._tick)
