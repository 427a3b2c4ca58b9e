"""When a peer is pinged, and when one that does not answer is dead.

Like idleness this is found out by looking at a counter now and then, so that the relay's bytes touch no timer. A ping
is sent after a time of silence only: who sends bytes of its own lives. Once pinged, any byte is an answer.

Silence is no proof where the peer cannot be heard or reached. While reading is held (a slow sink on the other side, a
rate), what the peer says lies in the kernel: the deadline waits. While the ping itself is still on its way, behind
bytes that the peer does take, the deadline waits as well: a slow reader is no dead one.
"""

from __future__ import annotations

import enum

#: How often a peer is looked at within the interval of its pings.
LOOKS = 4
#: For how many ping timeouts a sink may stand still while a peer cannot be heard because of it.
STALL = 10


class Verdict(enum.Enum):
    """What is to be done."""

    WAIT = "wait"
    #: Send a ping and tell by ``pinged``.
    PING = "ping"
    #: The time for an answer is over: ask ``excuse``.
    LATE = "late"
    #: Reading has been held for so long that whoever holds it is stuck.
    STALLED = "stalled"


class Heartbeat:
    """Watches over one peer. Times are seconds of one clock; counts are of bytes.

    ``rtt`` is the last ping's round-trip time, None before the first answer.
    """

    __slots__ = (
        "_acked",
        "_behind",
        "_heard",
        "_held",
        "_interval",
        "_late",
        "_looked",
        "_pinged",
        "_since",
        "_timeout",
        "rtt",
    )

    def __init__(self, interval: float, timeout: float, now: float, heard: int) -> None:
        self._interval = interval
        self._timeout = timeout
        self._heard = heard
        #: The last look, the latest time at which the peer was surely heard, and since when reading is held.
        self._looked = now
        self._since = now
        self._held: float | None = None
        #: The unanswered ping: since when its time runs; what was given to the peer up to it, and taken by the peer.
        self._pinged: float | None = None
        self._behind: int | None = None
        self._acked = 0
        self._late = False
        self.rtt: float | None = None

    def look(self, now: float, heard: int, held: bool, stuck: bool) -> Verdict:
        """Judge by how many bytes were ``heard`` of the peer so far.

        ``held`` says that reading from it is paused, ``stuck`` that it is for the sake of a sink that takes nothing.
        """
        if heard != self._heard:
            # It spoke some time between the looks: at the earlier one, for nobody is to be found too late.
            self._heard = heard
            self._since = max(self._since, self._looked)
            self._pinged = self._held = None
        self._looked = now
        if not stuck:
            self._held = None
        elif self._held is None:
            self._held = now
        elif now - self._held >= STALL * self._timeout:
            return Verdict.STALLED
        if held:
            if self._pinged is not None:
                self._pinged = now
            return Verdict.WAIT
        if self._pinged is None:
            return Verdict.PING if now >= self._since + self._interval else Verdict.WAIT
        return Verdict.LATE if now >= self._pinged + self._timeout else Verdict.WAIT

    def wait(self, now: float) -> float:
        """Seconds until the next look."""
        due = self._since + self._interval if self._pinged is None else self._pinged + self._timeout
        longest = self._interval / LOOKS
        return min(due - now, longest) if due > now else longest

    def pinged(self, now: float, given: int, outstanding: int, *, put_in: bool) -> None:
        """A ping goes to the peer: behind ``given`` bytes, if it is ``put_in`` already.

        ``outstanding`` of the given bytes have not been taken by the peer.
        """
        self._pinged = now
        self._behind = given if put_in else None
        self._acked = given - outstanding
        self._late = False

    def answered(self, now: float, seconds: float | None) -> None:
        """The pong came, ``seconds`` after its ping; None if that cannot be told."""
        if seconds is not None:
            self.rtt = seconds
        self._since = now
        self._pinged = None

    def excuse(self, given: int, outstanding: int, *, put_in: bool) -> bool:
        """Tell whether the peer may be alive though it is late: it could not get the ping yet, but takes bytes.

        Arguments are as for ``pinged``. If it may, the time for the answer runs anew.
        """
        acked = given - outstanding
        progress = acked > self._acked
        self._acked = acked
        if not put_in:
            # Within a frame whose rest is still to come: who has nothing to take owes no answer.
            excused = progress or not outstanding
        else:
            if self._behind is None:
                self._behind, self._late = given, True
            # One that has got the ping at last has all of its time to answer.
            excused = (progress and acked < self._behind) or (acked >= self._behind and self._late)
            self._late = acked < self._behind
        if excused:
            self._pinged = self._looked
        return excused
