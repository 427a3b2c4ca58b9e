"""The rates that one direction of a session is held to, and the walk over its frames that keeps to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wsrouter.policy.limits import TokenBucket
from wsrouter.wire.close import POLICY
from wsrouter.wire.policed import PolicyWalker

#: Who waits for bytes waits for as many as come in this time, in seconds: for fewer it is not worth to wake up.
_MOUTHFUL: Final = 0.25
#: But for no fewer than these, which hold any header and any control frame.
_LEAST: Final = 256
#: The smallest frame of a client, in bytes.
_SMALLEST: Final = 6


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


class MeteredWalk:
    """Lets a walker go as far as the tokens of ``meter`` last; ``seconds`` is the clock."""

    __slots__ = ("_meter", "_seconds", "_walker")

    def __init__(self, walker: PolicyWalker, meter: Meter, seconds: Callable[[], float]) -> None:
        self._walker = walker
        self._meter = meter
        self._seconds = seconds

    def walk(self, data: bytes | bytearray, count: int) -> int:
        """See FrameWalker.walk. The walker is ``starved`` where tokens ran out, those for bytes included."""
        walker, meter = self._walker, self._meter
        messages, bytes_ = meter.messages, meter.bytes
        now = self._seconds()
        begun = walker.begun
        if (messages is None or messages.has(count // _SMALLEST + 1, now)) and (
            bytes_ is None or bytes_.has(count, now)
        ):
            # Whatever these bytes hold, it is allowed.
            passed = walker.walk(data, count)
        else:
            passed = self._scant_walk(data, count, now)
        if messages is not None:
            messages.take(walker.begun - begun, now)
        if bytes_ is not None:
            bytes_.take(passed + walker.cut, now)
        return passed

    def wait(self, waiting: int) -> float | None:
        """What becomes of a starved walker: seconds until it is worth to go on with the ``waiting`` bytes behind it.

        None where rates are strict: the walker refuses them.
        """
        if self._meter.strict:
            self._walker.refuse("got more than the rate of the route", POLICY)
            return None
        return self._meter.wait(self._seconds(), waiting + len(self._walker.held))

    def _scant_walk(self, data: bytes | bytearray, count: int, now: float) -> int:
        """Walk where the tokens may not suffice."""
        walker, meter = self._walker, self._meter
        if meter.messages is not None:
            walker.ration(meter.messages.level(now))
        room = count if meter.bytes is None else min(count, meter.bytes.level(now))
        passed = 0
        if room:
            passed = walker.walk(data, room)
        else:
            walker.held = b""
        if room < count:
            walker.starved = walker.event = True
        walker.ration(None)
        return passed
