"""What a side of a message session may take of the bytes of its peer.

The walker that judges the frames of relay sessions does so here too, with the same policies: so both kinds of session
refuse the same. It takes out the pongs to the router's own pings, and stops where a rate is used up: what was read
already then waits here, at most one read of it.
"""

from __future__ import annotations

from collections.abc import Callable

from wsrouter.layer7.policies import Policies
from wsrouter.relay.meter import MeteredWalk


class Inlet:
    """Walks the frames of one peer. ``masked`` and ``deflate`` are as for FrameWalker; ``seconds`` is the clock.

    To be read after each call that takes:

    - ``wait``: seconds until more may be taken of what waits here, None when nothing does. No more may come meanwhile;
    - ``answered``: whether a pong to a ping of the router's own was taken out; whoever reads it sets it back.
    """

    __slots__ = ("_metered", "_rest", "_walk", "answered", "wait", "walker")

    def __init__(self, policies: Policies, *, masked: bool, deflate: bool, seconds: Callable[[], float]) -> None:
        #: Its counts are the session's; its ``event`` says that nothing will be taken any more.
        self.walker = policies.walker(masked, deflate)
        self._metered = None if policies.meter is None else MeteredWalk(self.walker, policies.meter, seconds)
        self._walk: Callable[[bytes, int], int] = self.walker.walk
        if self._metered is not None:
            self._walk = self._metered.walk
        self._rest = b""
        self.wait: float | None = None
        self.answered = False

    def take(self, data: bytes) -> bytes:
        """What may be taken, now that ``data`` has come: whole headers, and as much payload as there is."""
        walker = self.walker
        taken = b""
        while True:
            if walker.held:
                data = walker.held + data
            end = self._walk(data, len(data))
            taken += data if end == len(data) else data[:end]
            if not walker.event or walker.close is not None or walker.violation is not None:
                return taken
            walker.event = False
            data = data[end + walker.cut + len(walker.held) :]
            if walker.cut:
                walker.cut = 0
                self.answered = True
            if walker.starved:
                walker.starved = False
                assert self._metered is not None
                self.wait = self._metered.wait(len(data))
                if self.wait is not None:
                    self._rest = data
                return taken
            if not data:
                return taken

    def take_rest(self) -> bytes:
        """What may be taken of what waits, after ``wait``."""
        rest, self._rest = self._rest, b""
        self.wait = None
        return self.take(rest)

    def relax(self) -> None:
        """Hold nothing back any more, and drop what waits; ``walker.event`` tells whether a Close was in it."""
        self.walker.relax()
        self._walk = self.walker.walk
        if self.wait is not None:
            self.take_rest()

    def activity(self, came: int, *, data: bool) -> int:
        """A number that grows with every frame of the peer's, or with messages only: with ``data``.

        ``came`` is how many bytes have come. Answers to the router's own pings are no activity.
        """
        walker = self.walker
        came -= walker.cut_bytes + len(walker.held)
        return came - len(self._rest) - walker.control_bytes if data else came
