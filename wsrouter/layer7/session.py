"""A relay session: an upgraded WebSocket, relayed frame by frame with the payload untouched (RFC 6455).

While both peers behave the session does nothing: the pumps carry the frames. It acts at the ends:

- A peer closes: its Close frame passes like any other, so does the answer; then TCP is closed on both sides.
- A peer breaks the rules: it gets Close 1002; the innocent client gets 1011, the innocent backend 1001.
- A peer vanishes: the client of a vanished backend gets 1011, the backend of a vanished client 1001.
- A peer is found dead (it answers no ping): as if it had vanished, and its connection is cut.
- The router ends the session (idle, drain): both peers get the router's code.

A Close frame can go out at a frame boundary only; inside a frame it would be read as payload. Where the rest of the
frame is still coming the Close waits for it. Where it will never come, TCP is closed without a Close frame: the peer
sees 1006, and a cut-off message never looks whole.

Once a side was told to close by the router, nothing more is passed to it, and its own Close frame, which
answers the router's, is not passed on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from wsrouter.backends.pool import BackendPool
from wsrouter.config import values
from wsrouter.config.values import IdleCounts
from wsrouter.layer7.keepalive import KeepAlive, keepers_for
from wsrouter.layer7.pumps import pumps_for
from wsrouter.layer7.site import Site
from wsrouter.live.registry import BACKEND, CLIENT, Counts, End, Facts, Who
from wsrouter.policy.members import Member
from wsrouter.relay.deadlines import Waiter
from wsrouter.relay.leg import Leg
from wsrouter.relay.pump import FramePump
from wsrouter.relay.tls import reason_of
from wsrouter.wire.close import ABNORMAL, GOING_AWAY, INTERNAL, close_frame
from wsrouter.wire.frames import FrameWalker
from wsrouter.wire.head import new

_NO_KEEPERS: Mapping[object, KeepAlive] = {}


class RelaySession(Waiter):
    """One session, from the verified 101 to its end. ``run`` couples the legs."""

    __slots__ = (
        "_client",
        "_down",
        "_end",
        "_keepers",
        "_member",
        "_moved",
        "_owed",
        "_pool",
        "_route",
        "_server",
        "_site",
        "_told",
        "_up",
        "facts",
        "number",
    )

    def __init__(
        self,
        site: Site,
        route: values.Route,
        pool: BackendPool,
        member: Member,
        number: int,
        facts: Facts,
        client: Leg,
        server: Leg,
        deflate: bool,
    ) -> None:
        self._slice = None
        self.number = number
        self.facts = facts
        self._site = site
        self._route = route
        self._pool = pool
        self._member = member
        self._client: Leg | None = client
        self._server: Leg | None = server
        #: What pings client and backend, by the pump that hears them.
        self._keepers: Mapping[object, KeepAlive] = _NO_KEEPERS
        if route.polices:
            pumps = pumps_for(route, self, client, server, deflate=deflate)
            self._up, self._down = pumps.up, pumps.down
            if pumps.peers is not None:
                self._keepers = keepers_for(route, site.relay, *pumps.peers, self.dead)
        else:
            self._up = FramePump(self, client, server, FrameWalker(True, deflate))
            self._down = FramePump(self, server, client, FrameWalker(False, deflate))
        self._end: End | None = None
        #: The legs that the router has sent a Close to, or has given up.
        self._told: tuple[Leg, ...] = ()
        #: The Close that waits for a frame boundary, for each pump that it waits for.
        self._owed: dict[FramePump, int] | None = None
        #: How far the frames that a Close waits for had come when the deadline began; see ``_waited_for``.
        self._moved = 0

    def run(self, from_client: bytes, answer: bytes, from_server: bytes) -> None:
        """Couple the legs. ``answer`` is the 101; the other two are frames that came early, behind the heads."""
        client, server = self._client, self._server
        assert client is not None
        assert server is not None
        client.write(answer)
        client.couple(self, self._up, self._down)
        server.couple(self, self._down, self._up)
        self._site.registry.open(self)
        if self._route.idle_timeout is not None:
            self._site.sweeper.watch(self, self._route.idle_timeout)
        if self._keepers:
            for keeper in self._keepers.values():
                keeper.start()
        # A head that did not fit comes first: its flush resumes the pump.
        if client.pending is not None:
            self._down.pause()
        if server.pending is not None:
            self._up.pause()
        if from_client:
            self._up.inject(from_client)
        if from_server:
            self._down.inject(from_server)
        if not self._up.paused and not client.is_reading:
            client.resumeProducing()
        if not self._down.paused and not server.is_reading:
            server.resumeProducing()

    # What the pumps and legs report.

    def frames_event(self, pump: FramePump) -> None:
        """A Close, a violation, or the boundary that a Close of the router's waits for."""
        walker = pump.walker
        owed = self._owed
        if owed is not None and pump in owed:
            # It stopped at the boundary. The walker may be inside the next frame already, but that one is dropped.
            code = owed.pop(pump)
            walker.event = walker.close is not None or walker.violation is not None
            self._say_close(pump, code)
        leg = pump.source
        if walker.violation is not None:
            self._violated(pump)
        elif walker.close is not None:
            if leg in self._told:
                self._release(leg)
            else:
                self._closed(pump)

    def source_ended(self, pump: FramePump) -> None:
        """A FIN: fine behind a Close, else its peer has vanished."""
        if pump.walker.close is not None and pump.source not in self._told:
            if self._is_answered():
                pump.source.close()
            return  # else it may still read the answer to its Close
        back = self._back(pump)
        if back.failure is not None and back.failure.errno != errno.EPIPE:
            # A send has met the error, which is told once: what was read is no FIN.
            self._gone(pump.source, reason_of(back.failure))
        else:
            self._gone(pump.source, "closed the connection without a Close frame")
        pump.source.loseConnection()

    def leg_lost(self, leg: Leg, error: Exception | None) -> None:
        """A connection is gone."""
        if not self._is_answered():
            self._gone(leg, "vanished" if error is None else reason_of(error))
        if leg is self._client:
            self._client = None
        else:
            self._server = None
        if self._client is None and self._server is None:
            self._finished()

    def ping_answered(self, pump: FramePump) -> None:
        """The pump's source has answered a ping of the router's own."""
        self._keepers[pump].answered()

    def dead(self, leg: Leg, how: str) -> None:
        """The peer of ``leg`` was found dead."""
        leg.abortConnection()
        self._gone(leg, how)

    def _closed(self, pump: FramePump) -> None:
        """A peer's own Close frame was passed on."""
        close = pump.walker.close
        assert close is not None
        if self._end is None:
            self._end = new(End, (self._who(pump.source), close[0], close[1]))
            self._wait_for_answer()
        elif self._is_answered():
            # Both have had their last word (RFC 6455 5.5.1): nothing is left to linger for.
            if self._client is not None:
                self._client.close()
            # The backend closes first, being the server (7.1.1), within what is left of the close timeout: who does
            # keeps the connection's port busy for a minute, and the ports towards a backend are few.
            if self._server is not None and self._server.eof:
                self._server.close()

    def _is_answered(self) -> bool:
        """Whether both peers have sent their Close frame."""
        return self._up.walker.close is not None and self._down.walker.close is not None

    def _violated(self, pump: FramePump) -> None:
        violation = pump.walker.violation
        assert violation is not None
        offender = pump.source
        back = self._back(pump)
        if self._end is None:
            self._end = End(self._who(offender), violation.code, violation.reason)
        # Who already has the other's Close gets no second one.
        if offender not in self._told and back.walker.close is None:
            self._tell(offender, violation.code)
        other = self._other(offender)
        if other is not None and other not in self._told:
            self._tell(other, INTERNAL if other is self._client else GOING_AWAY)
        self._release(offender)
        self._wait_for_answer()

    def _gone(self, leg: Leg, how: str) -> None:
        """``leg`` neither says nor hears anything more: tell the other side, unless Close frames have told it."""
        pump, back = (self._up, self._down) if leg is self._client else (self._down, self._up)
        back.divert()
        if self._owed is not None:
            self._owed.pop(back, None)
        if self._end is None:
            where = "" if pump.at_boundary else ", in the middle of a frame"
            self._end = End(self._who(leg), ABNORMAL, how + where)
        if leg not in self._told:
            self._told += (leg,)
        other = self._other(leg)
        if other is None:
            return
        if pump.walker.close is not None:
            # The Close was passed on, and the other side is answering, or has answered.
            if back.walker.close is not None:
                other.loseConnection()
            else:
                self._told += (other,)
                self._wait_for_answer()
        elif other not in self._told:
            self._tell(other, INTERNAL if other is self._client else GOING_AWAY)
            self._wait_for_answer()
        elif self._owed is not None and self._owed.pop(pump, None) is not None:
            other.loseConnection()  # the frame's rest, behind which the Close had to wait, will not come

    # Ends that the router brings about.

    def end(self, code: int, reason: str) -> None:
        """Close both sides politely with ``code``: idle, or a drain."""
        if self._end is not None:
            return
        self._end = End(Who.ROUTER, code, reason)
        for leg in (self._client, self._server):
            if leg is not None:
                self._tell(leg, code)
        self._wait_for_answer()

    def idle(self) -> None:
        """No frame of either peer for ``idle_timeout``."""
        self.end(GOING_AWAY, "idle")

    def abort(self) -> None:
        """Cut both sides."""
        if self._end is None:
            self._end = End(Who.ROUTER, ABNORMAL, "cut")
        self._cut()

    def _tell(self, leg: Leg, code: int) -> None:
        """Send the router's Close to ``leg``, now or at the boundary, or close it where no boundary will come."""
        self._told += (leg,)
        into = self._down if leg is self._client else self._up
        if into.at_boundary:
            self._say_close(into, code)
        elif into.source in self._told_and_gone():
            into.divert()
            leg.loseConnection()
        else:
            if self._owed is None:
                self._owed = {}
            self._owed[into] = code
            into.stop_at_boundary()

    def _told_and_gone(self) -> tuple[Leg | None, ...]:
        """Legs from which no more frames will come, or none that may be passed on."""
        return tuple(
            pump.source
            for pump in (self._up, self._down)
            if pump.source.eof or not pump.source.connected or pump.walker.violation is not None
        )

    def _say_close(self, into: FramePump, code: int) -> None:
        leg = self._client if into is self._down else self._server
        back = self._back(into)
        into.divert()
        if leg is None:
            return
        leg.write(close_frame(code, mask=None if leg is self._client else os.urandom(4)))
        if back.walker.close is not None or back.walker.violation is not None:
            leg.loseConnection()

    def _release(self, leg: Leg) -> None:
        """Nothing more is expected of ``leg``: close it, once the Close it is owed has gone out."""
        into = self._down if leg is self._client else self._up
        if self._owed is None or into not in self._owed:
            leg.loseConnection()

    def _wait_for_answer(self) -> None:
        if self._keepers:
            for keeper in self._keepers.values():
                keeper.stop()
        if self._slice is None:
            self._moved = self._waited_for()
            self.wait(self._site.relay.deadlines, self._route.close_timeout)

    def _waited_for(self) -> int:
        """How many bytes came so far in the directions where a Close waits for a boundary."""
        return sum([pump.bytes for pump in self._owed]) if self._owed else 0

    def late(self) -> None:
        """The close handshake took too long."""
        if self._waited_for() != self._moved:
            # The frame under way goes on, or has ended meanwhile and the handshake begins only now.
            self._wait_for_answer()
            return
        for leg in (self._client, self._server):
            if leg is not None:
                leg.give_up()

    def _cut(self) -> None:
        for leg in (self._client, self._server):
            if leg is not None:
                leg.abortConnection()

    def _finished(self) -> None:
        self.stop_waiting()
        if self._route.idle_timeout is not None:
            self._site.sweeper.forget(self, self._route.idle_timeout)
        self._pool.give_back(self._member)
        assert self._end is not None
        self._site.registry.close(self, self._end)
        self._up.dissolve()
        self._down.dissolve()
        if self._keepers:
            for keeper in self._keepers.values():
                keeper.dissolve()

    def _who(self, leg: Leg) -> Who:
        return CLIENT if leg is self._client else BACKEND

    def _back(self, pump: FramePump) -> FramePump:
        """The pump of the other direction."""
        return self._down if pump is self._up else self._up

    def _other(self, leg: Leg) -> Leg | None:
        return self._server if leg is self._client else self._client

    # What the registry and the idle sweeper ask.

    def counts(self) -> Counts:
        """What has passed so far."""
        up, down = self._up, self._down
        rtt, backend_rtt = (self._keepers[pump].rtt if pump in self._keepers else None for pump in (up, down))
        return Counts(
            up.bytes,
            down.bytes,
            up.walker.messages,
            down.walker.messages,
            up.walker.frames,
            down.walker.frames,
            up.walker.largest,
            down.walker.largest,
            rtt,
            backend_rtt,
        )

    def ending(self) -> End | None:
        """How it ends, once that is known."""
        return self._end

    def activity(self) -> int:
        """Grows with every frame of a peer's, or only with those of messages."""
        data = self._route.idle_counts is IdleCounts.DATA
        return self._up.activity(data=data) + self._down.activity(data=data)
