"""Those who wait because every backend of their pool is full.

First come, first served. A place that becomes free goes to who has waited longest, and is counted as taken before
anybody hears of it, so that no newcomer can slip in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from wsrouter.policy.members import Member
from wsrouter.relay.deadlines import Deadline, Waiter
from wsrouter.relay.loop import Relay

#: How often a line looks for places that other processes have left, in seconds.
LOOK: Final = 0.1


class Waiting(Waiter):
    """One client that waits. ``cancel`` when it leaves."""

    __slots__ = ("_line", "key", "served")

    def __init__(self, line: WaitingLine, key: bytes | None, served: Callable[[Member | None], None]) -> None:
        super().__init__()
        self._line = line
        self.key = key
        #: Called once: with the member that was taken for it, or with None when the time was up.
        self.served = served
        self.wait(line.relay.deadlines, line.timeout)

    def cancel(self) -> None:
        """It waits no more, and is not told."""
        if self.is_waiting:
            self.stop_waiting()
            self._line.waiting.remove(self)

    def tell(self, member: Member | None) -> None:
        """It has left the line: its wait is over."""
        self.stop_waiting()
        self.served(member)

    def late(self) -> None:
        """It has waited in vain."""
        self._line.waiting.remove(self)
        self.served(None)


class WaitingLine:
    """The line before one pool.

    ``pick(key)`` chooses a member that takes one more, or None; ``take`` counts it. ``size`` is how many may wait,
    ``timeout`` for how long, in seconds. ``shared``: places become free in other processes too, which tell nobody.
    """

    def __init__(
        self,
        relay: Relay,
        pick: Callable[[bytes | None], Member | None],
        take: Callable[[Member], None],
        size: int,
        timeout: float,
        shared: bool = False,
    ) -> None:
        self.relay = relay
        self.size = size
        self.timeout = timeout
        self.waiting: deque[Waiting] = deque()
        self._pick = pick
        self._take = take
        self._moving = False
        self._shared = shared
        self._look: Deadline | None = None

    def __len__(self) -> int:
        return len(self.waiting)

    def join(self, key: bytes | None, served: Callable[[Member | None], None]) -> Waiting | None:
        """Wait at the end of the line; None when it is too long already."""
        if len(self.waiting) >= self.size:
            return None
        waiting = Waiting(self, key, served)
        self.waiting.append(waiting)
        if self._shared and self._look is None:
            self._look = self.relay.deadlines.after(LOOK, self._look_elsewhere)
        return waiting

    def _look_elsewhere(self) -> None:
        """Look whether there is room by now, and again while anybody waits."""
        self._look = None
        if self.waiting:
            self.move_up()
            self._look = self.relay.deadlines.after(LOOK, self._look_elsewhere)

    def move_up(self) -> None:
        """There may be room: serve who can be served, at the end of the batch, once for all that ended in it."""
        if self.waiting and not self._moving:
            self._moving = True
            self.relay.later(self._serve)

    def dismiss(self) -> None:
        """Nobody will be served any more."""
        while self.waiting:
            self.waiting.popleft().tell(None)

    def _serve(self) -> None:
        self._moving = False
        while self.waiting:
            member = self._pick(self.waiting[0].key)
            if member is None:
                return
            self._take(member)
            self.waiting.popleft().tell(member)
