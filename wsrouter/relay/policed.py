"""A pump for sessions with policies: it slows a client down or refuses it, and puts the router's own pings in.

What passes at once passes as in ``FramePump``. The walker stops where a policy has a say, and ``_event`` goes on from
there: behind a pong that is taken out, or behind a ping that was put in. Where a rate is used up nothing more is read
until tokens are back; what was read already waits here, at most one read of it.
"""

from __future__ import annotations

from typing import Protocol

from wsrouter.relay.deadlines import Deadline
from wsrouter.relay.leg import Leg
from wsrouter.relay.meter import Meter, MeteredWalk
from wsrouter.relay.pump import Coupling, FramePump
from wsrouter.wire.policed import PolicyWalker


class PolicyCoupling(Coupling, Protocol):
    """What owns two such pumps."""

    def ping_answered(self, pump: FramePump) -> None:
        """The pump's source has answered a ping of the router's own; the answer is taken out."""


class PolicyPump(FramePump):
    """Relays frames under policies.

    ``throttled`` says that reading is paused for a rate, whatever the sink does.
    """

    #: For the compiler: what ``del`` may take away.
    __deletable__ = ["_owner"]
    __slots__ = (
        "_inner_walk",
        "_insert",
        "_metered",
        "_owner",
        "_policy",
        "_rest",
        "_stopping",
        "_timer",
        "throttled",
    )

    def __init__(
        self, coupling: PolicyCoupling, source: Leg, sink: Leg, walker: PolicyWalker, meter: Meter | None = None
    ) -> None:
        super().__init__(coupling, source, sink, walker)
        #: ``coupling`` and ``walker`` once more, as what they are here.
        self._owner = coupling
        self._policy = walker
        self.throttled = False
        self._metered = None if meter is None else MeteredWalk(walker, meter, source.relay.seconds)
        if self._metered is not None:
            self._walk = self._metered.walk
        #: The walk to go back to behind a frame that ``_insert`` waits for; None for the walker's own, as in ``_walk``.
        self._inner_walk = self._walk
        self._insert = b""
        #: What was read and has to wait for tokens, and what wakes it up.
        self._rest = b""
        self._timer: Deadline | None = None
        self._stopping = False

    def activity(self, *, data: bool) -> int:
        """See FramePump.activity; answers to the router's own pings are none."""
        if data:
            return self.passed - self.walker.control_bytes
        return self.bytes - self._policy.cut_bytes - len(self._policy.held)

    @property
    def passed(self) -> int:
        """Bytes that were passed on so far."""
        walker = self._policy
        return self.bytes - walker.cut_bytes - len(walker.held) - len(self._rest)

    @property
    def is_inserting(self) -> bool:
        """Whether a frame waits to be put in."""
        return bool(self._insert)

    def put_in(self, frame: bytes) -> None:
        """Give the sink a control frame of the router's own, now, or behind the frame that is passing."""
        if not self.at_boundary:
            self._insert = frame
            self._walk = self._walk_to_insert
            self._splicing = False
        elif self.sink is not None:
            self.sink.write(frame)

    def stop_at_boundary(self) -> None:
        """See FramePump.stop_at_boundary; rates do not hold any more."""
        self._relax()
        self._stopping = True
        super().stop_at_boundary()

    def divert(self) -> None:
        """See FramePump.divert; rates do not hold any more."""
        self._relax()
        super().divert()

    def dissolve(self) -> None:
        """See Pump.dissolve."""
        self._stop_waiting()
        self._rest = b""
        # Methods of this pump hold it in a cycle.
        self._walk = self._inner_walk = None
        del self._owner
        super().dissolve()

    def resume(self) -> None:
        """The sink has room again: what waits here comes first, and what the rate says goes before both."""
        if self.throttled:
            return
        if self._rest:
            rest, self._rest = self._rest, b""
            self._walk_bytes(self.walker.held + rest)
            if self.throttled or (self.sink is not None and self.sink.pending is not None):
                return
        super().resume()

    # Walking.

    def _walk_to_insert(self, data: bytes | bytearray, count: int) -> int:
        walker = self.walker
        some = min(count, walker.skip)
        passed = walker.walk(data, some) if self._inner_walk is None else self._inner_walk(data, some)
        if not walker.skip:
            self._walk = self._inner_walk
            walker.event = True
        return passed

    def _event(self, data: bytes | bytearray, passed: int, end: int) -> None:
        walker = self._policy
        while walker.close is None and walker.violation is None and not self._stopping:
            walker.event = False
            if self._insert and not walker.skip:
                frame, self._insert = self._insert, b""
                if self.sink is not None:
                    self.sink.write(frame)
            rest = bytes(data[passed + walker.cut + len(walker.held) : end])
            if walker.cut:
                walker.cut = 0
                self._owner.ping_answered(self)
            if walker.starved:
                walker.starved = False
                self._used_up(rest)
                return
            if not rest:
                return
            data = walker.held + rest
            end = len(data)
            passed = self._walked(data, end)
            if passed:
                self._pass_on(memoryview(data)[:passed])
            if not walker.event:
                return
        self.coupling.frames_event(self)

    # Rates.

    def _used_up(self, rest: bytes) -> None:
        assert self._metered is not None
        seconds = self._metered.wait(len(rest))
        if seconds is None:
            self.coupling.frames_event(self)
            return
        self._rest = rest
        self.throttled = True
        self.pause()
        self._timer = self.source.relay.deadlines.after(seconds, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self.throttled = False
        if self.sink is None or self.sink.pending is None:
            self.resume()

    def _relax(self) -> None:
        """No policy holds any more: the session is ending."""
        self._policy.relax()
        self._metered = None
        self._insert = b""
        self._walk = self._inner_walk = None
        if self.throttled or self._rest:
            # Not at once: what waits may hold a Close, and who calls is not done yet.
            self._stop_waiting()
            self.throttled = True
            self._timer = self.source.relay.deadlines.after(0, self._go_on)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
