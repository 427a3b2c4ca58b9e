"""A message session: an upgraded WebSocket that the router ends on both legs, because something must see its messages.

The legs are two WebSockets of their own, each ended by Autobahn (``sides``). A message that came whole, and that the
filters let pass, goes out on the other side in one frame. Pings, pongs and Close frames are handed on too: whoever
asks gets the other end's answer, not the router's.

The ends are those of a relay session (``session``), and so are their codes. They are simpler here: what goes out are
whole frames, so a Close always fits, and a message that stays unfinished is not passed on at all.

One end is this session's alone: a peer may be gone while a filter still thinks about its last message. A reset, or an
unanswered ping, ends the session at once. Behind a FIN the message is still passed on, if the filter lets it pass
within ``close_timeout``.
"""

from __future__ import annotations

from collections.abc import Mapping

from wsrouter.backends.pool import BackendPool
from wsrouter.config import values
from wsrouter.config.values import IdleCounts
from wsrouter.errors import FrameError
from wsrouter.layer7.judged_session import JudgedSession
from wsrouter.layer7.keepalive import KeepAlive, Peer, keepers_for
from wsrouter.layer7.message_rules import MessageRules
from wsrouter.layer7.policies import backend_policies, client_policies
from wsrouter.layer7.side import Side
from wsrouter.layer7.sides import BackendSide, ClientSide
from wsrouter.layer7.site import Site
from wsrouter.live.registry import Counts, End, Facts, Who
from wsrouter.policy.members import Member
from wsrouter.relay.leg import Leg
from wsrouter.wire.close import ABNORMAL, GOING_AWAY, INTERNAL


class MessageSession(JudgedSession):
    """One session, from the verified 101 to its end. ``run`` begins it."""

    __slots__ = ("_backend", "_client", "_closed", "_keepers", "_lost", "_member", "_told")

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
        *,
        rules: MessageRules,
    ) -> None:
        super().__init__(site, route, pool, number, facts, rules)
        self._member = member
        self._client = ClientSide(self, client, rules.limit, client_policies(route), rules.server_factory)
        self._backend = BackendSide(self, server, rules.limit, backend_policies(route), rules.client_factory)
        self._client.sink, self._backend.sink = server, client
        #: What pings client and backend, by their sides.
        self._keepers: Mapping[object, KeepAlive] = {}
        #: The sides that the router has sent a Close to, or has given up.
        self._told: tuple[Side, ...] = ()
        #: The sides whose own Close frame has been heard.
        self._closed: tuple[Side, ...] = ()
        #: The sides whose connection is gone.
        self._lost: tuple[Side, ...] = ()

    def run(
        self, from_client: bytes, answer: bytes, from_server: bytes, offer: bytes | None, granted: bytes | None
    ) -> None:
        """Take the legs over. ``answer`` is the 101, without extensions; the next two are frames that came early.

        ``offer`` and ``granted`` are what the client offers and the backend has granted, for ``ClientSide.open`` and
        ``BackendSide.open``.
        """
        client, backend = self._client, self._backend
        backend.leg.attach(backend)
        backend.open(granted)
        self._welcome(client, answer, offer)
        client.leg.registerProducer(backend, True)
        backend.leg.registerProducer(client, True)
        self._go_live()
        to_client, to_backend = (Peer(side, side, side.policies.pings) for side in (client, backend))
        self._keepers = keepers_for(self._route, self._site.relay, to_client, to_backend, self._dead)
        for keeper in self._keepers.values():
            keeper.start()
        for side, early in ((client, from_client), (backend, from_server)):
            if early:
                side.dataReceived(early)

    # What the sides report.

    def control_came(self, side: Side, is_ping: bool, payload: bytes) -> None:
        """A ping or a pong is for the other end."""
        other = self._other(side)
        if other not in self._told and other not in self._lost:
            if is_ping:
                other.sendPing(payload)
            else:
                other.sendPong(payload)

    def ping_answered(self, side: Side) -> None:
        """A peer has answered a ping of the router's own."""
        self._keepers[side].answered()

    def close_came(self, side: Side) -> None:
        """A peer's own Close frame."""
        close = side.walker.close
        assert close is not None
        self._closed += (side,)
        other = self._other(side)
        if other not in self._told and other not in self._lost:
            other.say_close(*close)
        if self._end is None:
            self._end = End(self._who(side), *close)
            self._wait_for_answer()
            if other.leg.eof and other not in self._closed:
                self._left(other)  # it can answer no more, whatever a filter thinks of what it said last
        elif self._is_answered():
            # As in a relay session: nothing is left to linger for, and the backend closes first.
            if self._client not in self._lost:
                self._client.leg.close()
            if self._backend not in self._lost and self._backend.leg.eof:
                self._backend.leg.close()

    def failed(self, side: Side, error: FrameError) -> None:
        """A peer broke a rule."""
        self._end_over(side, error.code, error.reason)

    def answer_came(self, side: Side) -> None:
        """A peer that was told to close has answered, or says what nobody listens to."""
        if side.walker.close is not None and side not in self._closed:
            self._closed += (side,)
        side.leg.loseConnection()

    def fin_came(self, side: Side) -> None:
        """A FIN: fine behind a Close, else its peer has vanished."""
        if side in self._closed and side not in self._told:
            if self._is_answered():
                side.leg.close()
            return  # else it may still read the answer to its Close
        if side in self._judging and side not in self._told:
            self._hurry(side, self._route.close_timeout)
            return
        self._left(side)

    def lost(self, side: Side, how: str) -> None:
        """A connection is gone."""
        if not self._is_answered():
            self._gone(side, how)
        side.ignore()
        self._lost += (side,)
        if len(self._lost) == 2:
            self._finished()

    def _judged_last(self, side: Side) -> None:
        if side not in self._told and side not in self._lost:
            self.fin_came(side)

    def _pass_on(self, side: Side, payload: bytes, is_binary: bool) -> None:
        other = self._other(side)
        # Behind its own Close a peer may still read; who was told to close gets nothing more.
        if not side.over and other not in self._told and other not in self._lost:
            other.sendMessage(payload, is_binary)

    # Ends.

    def _is_answered(self) -> bool:
        """Whether both peers have sent their Close frame."""
        return len(self._closed) == 2

    def _end_over(self, offender: Side, code: int, reason: str, told: str = "") -> None:
        """End the session over what a peer sent; ``told`` is the reason that it gets with ``code``."""
        if self._end is None:
            self._end = End(self._who(offender), code, reason)
        other = self._other(offender)
        self._tell(offender, code, told)
        self._tell_innocent(other)
        self._wait_for_answer()

    def _left(self, side: Side) -> None:
        self._gone(side, "closed the connection without a Close frame")
        side.leg.loseConnection()

    def _gone(self, side: Side, how: str) -> None:
        """``side`` neither says nor hears anything more: tell the other, unless Close frames have told it."""
        if self._end is None:
            self._end = End(self._who(side), ABNORMAL, how)
        if side not in self._told:
            self._told += (side,)
        side.ignore()
        other = self._other(side)
        if other in self._lost:
            return
        if side not in self._closed:
            self._tell_innocent(other)
            self._wait_for_answer()
            return
        # The Close was passed on, and the other side is answering, or has answered.
        other.ignore()
        if other.walker.event:
            self.answer_came(other)
        else:
            if other not in self._told:
                self._told += (other,)
            self._wait_for_answer()

    def end(self, code: int, reason: str) -> None:
        """Close both sides politely with ``code``: idle, a drain, or a filter that failed."""
        if self._end is not None:
            return
        self._end = End(Who.ROUTER, code, reason)
        for side in (self._client, self._backend):
            self._tell(side, code)
        self._wait_for_answer()

    def abort(self) -> None:
        """Cut both sides."""
        if self._end is None:
            self._end = End(Who.ROUTER, ABNORMAL, "cut")
        for side in (self._client, self._backend):
            if side not in self._lost:
                side.leg.abortConnection()

    def _dead(self, leg: Leg, how: str) -> None:
        """The peer of ``leg`` was found dead."""
        leg.abortConnection()
        self._gone(self._client if leg is self._client.leg else self._backend, how)

    def _tell_innocent(self, side: Side) -> None:
        self._tell(side, INTERNAL if side is self._client else GOING_AWAY)

    def _tell(self, side: Side, code: int, reason: str = "") -> None:
        """Send the router's Close to ``side``, once, and listen to nothing more of it but its answer."""
        if side in self._told or side in self._lost:
            return
        self._told += (side,)
        side.ignore()
        side.say_close(code, reason)
        if side.walker.event or side.leg.eof:
            self.answer_came(side)  # it has said its last word, or nothing that counts will follow

    def _wait_for_answer(self) -> None:
        for keeper in self._keepers.values():
            keeper.stop()
        if not self.is_waiting:
            self.wait(self._site.relay.deadlines, self._route.close_timeout)

    def late(self) -> None:
        """The close handshake took too long."""
        for side in (self._client, self._backend):
            if side not in self._lost:
                side.leg.give_up()

    def _finished(self) -> None:
        for keeper in self._keepers.values():
            keeper.dissolve()
        self._pool.give_back(self._member)
        self._conclude()
        self._client.dissolve()
        self._backend.dissolve()

    def _who(self, side: Side) -> Who:
        return Who.CLIENT if side is self._client else Who.BACKEND

    def _other(self, side: Side) -> Side:
        return self._backend if side is self._client else self._client

    # What the registry and the idle sweeper ask.

    def counts(self) -> Counts:
        """What has come so far, whatever became of it."""
        client, backend = self._client, self._backend
        up, down = client.walker, backend.walker
        rtt, backend_rtt = (self._keepers[side].rtt if side in self._keepers else None for side in (client, backend))
        return Counts(
            client.bytes,
            backend.bytes,
            up.messages,
            down.messages,
            up.frames,
            down.frames,
            up.largest,
            down.largest,
            rtt,
            backend_rtt,
        )

    def activity(self) -> int:
        """Grows with every frame of a peer's, or only with those of messages."""
        data = self._route.idle_counts is IdleCounts.DATA
        return self._client.activity(data=data) + self._backend.activity(data=data)
