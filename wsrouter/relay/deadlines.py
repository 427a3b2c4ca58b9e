"""Deadlines: timers that are cheap to set and to cancel, because nearly all of them are cancelled.

Every connection sets several (sniffing, TLS, the request head, connecting, the handshake, closing), and in a
healthy router hardly one expires. The reactor's own timers cost a heap entry each and linger when cancelled.
Here deadlines that fall into the same slice of time share one set, and only the earliest slice has a
reactor timer. A deadline never fires early, and at most one slice late.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: The width of a slice, in seconds.
GRANULARITY = 0.05

_log = Logger()


class Deadline:
    """One callback that waits for its time."""

    __slots__ = ("_slice", "callback")

    def __init__(self, callback: Callable[[], None], slice_: set[Deadline]) -> None:
        self.callback = callback
        self._slice: set[Deadline] | None = slice_
        slice_.add(self)

    def cancel(self) -> None:
        """Forget it; harmless when it has fired or was cancelled already."""
        if self._slice is not None:
            self._slice.discard(self)
            self._slice = None


class Deadlines:
    """All deadlines of one process, on ``clock`` (seconds)."""

    def __init__(self, clock: IReactorTime, granularity: float = GRANULARITY) -> None:
        self._clock = clock
        self._granularity = granularity
        self._slices: dict[int, set[Deadline]] = {}
        self._order: list[int] = []
        self._call: IDelayedCall | None = None
        self._called_for = 0

    def after(self, seconds: float, callback: Callable[[], None]) -> Deadline:
        """Call ``callback`` once, ``seconds`` from now or up to one slice later."""
        tick = int((self._clock.seconds() + seconds) / self._granularity) + 1
        slice_ = self._slices.get(tick)
        if slice_ is None:
            slice_ = self._slices[tick] = set()
            heapq.heappush(self._order, tick)
            if self._call is None or tick < self._called_for:
                self._schedule()
        return Deadline(callback, slice_)

    def stop(self) -> None:
        """Forget all deadlines."""
        self._slices.clear()
        self._order.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._called_for = self._order[0]
        delay = self._called_for * self._granularity - self._clock.seconds()
        self._call = self._clock.callLater(max(0.0, delay), self._expire)

    def _expire(self) -> None:
        self._call = None
        now = self._clock.seconds() / self._granularity
        while self._order and self._order[0] <= now:
            due = self._slices.pop(heapq.heappop(self._order))
            while due:
                deadline = due.pop()
                deadline._slice = None
                try:
                    deadline.callback()
                except Exception:
                    _log.failure("A deadline's callback failed")
        if self._order and self._call is None:
            self._schedule()
