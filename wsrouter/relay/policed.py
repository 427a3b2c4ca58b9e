"""A pump for sessions with policies: it slows a client down or refuses it, and puts the router's own pings in.

What passes at once passes as in ``FramePump``. The walker stops where a policy has a say, and ``_event`` goes on from
there: behind a pong that is taken out, or behind a ping that was put in. Where a rate is used up nothing more is read
until tokens are back; what was read already waits here, at most one read of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wsrouter.policy.limits import TokenBucket
from wsrouter.relay.deadlines import Deadline
from wsrouter.relay.leg import Leg
from wsrouter.relay.pump import Coupling, FramePump
from wsrouter.wire.close import POLICY
from wsrouter.wire.policed import PolicyWalker

#: Who waits for bytes waits for as many as come in this time, in seconds: for fewer it is not worth to wake up.
_MOUTHFUL = 0.25
#: But for no fewer than these, which hold any header and any control frame.
_LEAST = 256
#: The smallest frame of a client, in bytes.
_SMALLEST = 6


class PolicyCoupling(Coupling, Protocol):
    """What owns two such pumps."""

    def ping_answered(self, pump: FramePump) -> None:
        """The pump's source has answered a ping of the router's own; the answer is taken out."""


@dataclass(slots=True)
class Meter:
    """The rates of one direction; ``strict`` ends a session that is over them, else it is slowed down."""

    messages: TokenBucket | None
    bytes: TokenBucket | None
    strict: bool

    def wait(self, now: float, waiting: int) -> float:
        """Seconds until it is worth to go on with ``waiting`` bytes."""
        seconds = 0.0
        if self.messages is not None:
            seconds = self.messages.wait(1, now)
        if self.bytes is not None:
            rate = self.bytes.rate
            count = min(waiting, rate.burst, max(_LEAST, int(rate.per_second * _MOUTHFUL)))
            seconds = max(seconds, self.bytes.wait(count, now))
        return seconds


class PolicyPump(FramePump):
    """Relays frames under policies.

    ``throttled`` says that reading is paused for a rate, whatever the sink does.
    """

    __slots__ = (
        "_inner_walk",
        "_insert",
        "_meter",
        "_rest",
        "_seconds",
        "_short",
        "_stopping",
        "_timer",
        "throttled",
    )

    coupling: PolicyCoupling
    walker: PolicyWalker

    def __init__(
        self, coupling: PolicyCoupling, source: Leg, sink: Leg, walker: PolicyWalker, meter: Meter | None = None
    ) -> None:
        super().__init__(coupling, source, sink, walker)
        self.throttled = False
        self._meter = meter
        self._seconds = source.relay.seconds
        if meter is not None:
            self._walk = self._metered_walk
        #: The walk to go back to behind a frame that ``_insert`` waits for.
        self._inner_walk = self._walk
        self._insert = b""
        #: What was read and has to wait for tokens, and what wakes it up.
        self._rest = b""
        self._timer: Deadline | None = None
        #: The last walk was cut short for want of tokens for bytes.
        self._short = False
        self._stopping = False

    def activity(self, *, data: bool) -> int:
        """See FramePump.activity; answers to the router's own pings are none."""
        if data:
            return self.passed - self.walker.control_bytes
        return self.bytes - self.walker.cut_bytes - len(self.walker.held)

    @property
    def passed(self) -> int:
        """Bytes that were passed on so far."""
        walker = self.walker
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
        self._walk = self._inner_walk = self.walker.walk
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

    def _metered_walk(self, data: bytes | bytearray, count: int) -> int:
        walker, meter = self.walker, self._meter
        assert meter is not None
        messages, bytes_ = meter.messages, meter.bytes
        now = self._seconds()
        begun = walker.begun
        if (messages is None or messages.has(count // _SMALLEST + 1, now)) and (
            bytes_ is None or bytes_.has(count, now)
        ):
            # Whatever these bytes hold, it is allowed.
            passed = walker.walk(data, count)
        else:
            passed = self._scant_walk(meter, data, count, now)
        if messages is not None:
            messages.take(walker.begun - begun, now)
        if bytes_ is not None:
            bytes_.take(passed + walker.cut, now)
        return passed

    def _scant_walk(self, meter: Meter, data: bytes | bytearray, count: int, now: float) -> int:
        """Walk where the tokens may not suffice."""
        walker = self.walker
        if meter.messages is not None:
            walker.ration(meter.messages.level(now))
        room = count if meter.bytes is None else min(count, meter.bytes.level(now))
        passed = 0
        if room:
            passed = walker.walk(data, room)
        else:
            walker.held = b""
        if room < count:
            self._short = walker.event = True
        walker.ration(None)
        return passed

    def _walk_to_insert(self, data: bytes | bytearray, count: int) -> int:
        walker = self.walker
        passed = self._inner_walk(data, min(count, walker.skip))
        if not walker.skip:
            self._walk = self._inner_walk
            walker.event = True
        return passed

    def _event(self, data: bytes | bytearray, passed: int, end: int) -> None:
        walker = self.walker
        while walker.close is None and walker.violation is None and not self._stopping:
            walker.event = False
            if self._insert and not walker.skip:
                frame, self._insert = self._insert, b""
                if self.sink is not None:
                    self.sink.write(frame)
            rest = bytes(data[passed + walker.cut + len(walker.held) : end])
            if walker.cut:
                walker.cut = 0
                self.coupling.ping_answered(self)
            if walker.starved or self._short:
                walker.starved = self._short = False
                self._used_up(rest)
                return
            if not rest:
                return
            data = walker.held + rest
            end = len(data)
            passed = self._walk(data, end)
            if passed:
                self._pass_on(memoryview(data)[:passed])
            if not walker.event:
                return
        self.coupling.frames_event(self)

    # Rates.

    def _used_up(self, rest: bytes) -> None:
        meter = self._meter
        assert meter is not None
        if meter.strict:
            self.walker.refuse("got more than the rate of the route", POLICY)
            self.coupling.frames_event(self)
            return
        self._rest = rest
        self.throttled = True
        self.pause()
        seconds = meter.wait(self._seconds(), len(rest) + len(self.walker.held))
        self._timer = self.source.relay.deadlines.after(seconds, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self.throttled = False
        if self.sink is None or self.sink.pending is None:
            self.resume()

    def _relax(self) -> None:
        """No policy holds any more: the session is ending."""
        self.walker.relax()
        self._meter = None
        self._insert = b""
        self._walk = self._inner_walk = self.walker.walk
        if self.throttled or self._rest:
            # Not at once: what waits may hold a Close, and who calls is not done yet.
            self._stop_waiting()
            self.throttled = True
            self._timer = self.source.relay.deadlines.after(0, self._go_on)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
