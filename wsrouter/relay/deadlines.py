"""Deadlines: timers that are cheap to set and to cancel, because nearly all of them are cancelled.

Every connection sets several (sniffing, TLS, the request head, connecting, the handshake, closing), and in a
healthy router hardly one expires. The reactor's own timers cost a heap entry each and linger when cancelled.
Here deadlines that fall into the same slice of time share one set, and only the earliest slice has a
reactor timer. A deadline never fires early, and at most one slice late.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: The width of a slice, in seconds.
GRANULARITY: Final = 0.05

#: How many lengths of time are kept at hand. Most are of the configuration, and few.
RECENT: Final = 64

_log = Logger()


class Waiter:
    """Who waits for one thing at a time, until a deadline: the base of what connections go through.

    ``wait`` and ``stop_waiting`` are for the class itself; ``late`` is called once when the time is up.
    """

    __slots__ = ("_slice",)

    def __init__(self) -> None:
        #: All who wait for the same slice of time, or None.
        self._slice: set[Waiter] | None = None

    def wait(self, deadlines: Deadlines, seconds: float) -> None:
        """Wait ``seconds`` from now on, instead of whatever it has waited for."""
        if self._slice is not None:
            self._slice.discard(self)
        recent = deadlines.recent.get(seconds)
        if recent is not None and recent[1] <= deadlines.seconds() < recent[2]:
            slice_ = recent[0]
        else:
            slice_ = deadlines.slice_of(seconds)
        self._slice = slice_
        slice_.add(self)

    @property
    def is_waiting(self) -> bool:
        """Whether a deadline runs."""
        return self._slice is not None

    def stop_waiting(self) -> None:
        """Wait no more; harmless when it does not."""
        if self._slice is not None:
            self._slice.discard(self)
            self._slice = None

    def late(self) -> None:
        """The time is up."""
        raise NotImplementedError


class Deadline(Waiter):
    """One callback that waits for its time."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._slice = None
        self.callback = callback

    def cancel(self) -> None:
        """Forget it; harmless when it has fired or was cancelled already."""
        self.stop_waiting()

    def late(self) -> None:
        """Call back."""
        self.callback()


class Deadlines:
    """All deadlines of one process, on ``clock`` (seconds)."""

    def __init__(self, clock: IReactorTime, granularity: float = GRANULARITY) -> None:
        self._clock = clock
        #: The clock.
        self.seconds: Callable[[], float] = clock.seconds
        self._granularity = granularity
        self._slices: dict[int, set[Waiter]] = {}
        self._order: list[int] = []
        #: For lengths of time that were asked for lately: the slice, and from when until when it is the right one. A
        #: clock that is set back is before that.
        self.recent: dict[float, tuple[set[Waiter], float, float]] = {}
        self._call: IDelayedCall | None = None
        self._called_for = 0

    def after(self, seconds: float, callback: Callable[[], None]) -> Deadline:
        """Call ``callback`` once, ``seconds`` from now or up to one slice later."""
        deadline = Deadline(callback)
        deadline.wait(self, seconds)
        return deadline

    def slice_of(self, seconds: float) -> set[Waiter]:
        """Those who wait for about ``seconds`` from now; ``Waiter.wait`` looks into ``recent`` first."""
        now = self.seconds()
        tick = int((now + seconds) / self._granularity) + 1
        if tick * self._granularity <= now + seconds:
            tick += 1  # the quotient was rounded down
        slice_ = self._slices.get(tick)
        if slice_ is None:
            slice_ = self._slices[tick] = set()
            heapq.heappush(self._order, tick)
            if self._call is None or tick < self._called_for:
                self._schedule()
        if seconds >= 0:
            if len(self.recent) >= RECENT:
                self.recent.clear()
            self.recent[seconds] = slice_, now, tick * self._granularity - seconds
        return slice_

    def stop(self) -> None:
        """Forget all deadlines."""
        self._slices.clear()
        self.recent.clear()
        self._order.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._called_for = self._order[0]
        delay = self._called_for * self._granularity - self._clock.seconds()
        self._call = self._clock.callLater(max(0.0, delay), self._called)

    def _called(self) -> None:
        # Apart from the rest: for the compiler the attribute would be None up to the end of it (docs/compiled.md).
        self._call = None
        self._expire()

    def _expire(self) -> None:
        now = self._clock.seconds()
        self.recent.clear()  # no slice that is over may be asked for again
        # As in ``_schedule``: a quotient may be rounded to another side than a product, and the call would never end.
        while self._order and self._order[0] * self._granularity <= now:
            due = self._slices.pop(heapq.heappop(self._order))
            while due:
                waiter = due.pop()
                waiter._slice = None
                try:
                    waiter.late()
                except Exception:
                    _log.failure("What a deadline brings about failed")
        if self._order and self._call is None:
            self._schedule()
