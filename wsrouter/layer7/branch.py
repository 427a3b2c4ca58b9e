"""One branch of a session that chooses a backend for each message: its WebSocket to one of them.

A message is written only when the one before it has gone out whole. Till then messages wait in the branch, so that
those which the backend never saw can go to another one when it is lost. How many may wait is for the session to heed:
``is_full`` asks it to bring no more.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, NamedTuple, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import classImplements

from wsrouter.backends.pool import BackendPool
from wsrouter.config import values
from wsrouter.errors import FrameError
from wsrouter.layer7.joining import Asked, Joining
from wsrouter.layer7.keepalive import KeepAlive, Peer, backend_keeper
from wsrouter.layer7.message_rules import MessageRules
from wsrouter.layer7.policies import backend_policies
from wsrouter.layer7.side import SLOW, Side
from wsrouter.layer7.sides import BackendSide
from wsrouter.layer7.tally import Tally
from wsrouter.policy.members import Member
from wsrouter.relay.deadlines import Waiter
from wsrouter.relay.leg import Leg
from wsrouter.wire.head import ResponseHead
from wsrouter.wire.opening import granted_to_us

#: Bytes of messages that may wait for one backend; the message that exceeds them waits, too.
QUEUE: Final = 64 * 1024
#: What a message is counted with beyond its payload: empty ones take memory as well.
OVERHEAD: Final = 64


class Outgoing(NamedTuple):
    """A message of the client's on its way to some backend."""

    payload: bytes
    is_binary: bool
    #: The backends that could not be opened for it.
    tried: tuple[Member, ...] = ()


class State(enum.Enum):
    """Where a branch is in its life."""

    OPENING = "opening"
    OPEN = "open"
    #: The router's Close has gone out, and the backend's is awaited; its messages count until then.
    CLOSING = "closing"
    #: Nothing more comes of it but the end of the connection.
    OVER = "over"
    GONE = "gone"


class Owner(Protocol):
    """The session of a branch."""

    def message_came(self, side: Side, payload: bytes, is_binary: bool) -> None:
        """The backend sent a whole message."""

    def has_room(self) -> None:
        """The branch was full, and is not any more."""

    def could_not_join(self, member: Member, reason: str, lasting: bool) -> None:
        """The branch cannot be opened; ``branch_over`` follows."""

    def dead(self, leg: Leg, how: str) -> None:
        """The peer of ``leg``, the backend or the client, was found dead."""

    def branch_over(self, branch: Branch, unsent: list[Outgoing]) -> None:
        """Nothing more comes of it; called once. ``unsent`` is what the backend never saw."""

    def branch_gone(self, branch: Branch) -> None:
        """Its connection is gone; called once, behind ``branch_over``."""


class Branch(Waiter):
    """A WebSocket to ``member``, which is counted already, and given back at the end.

    ``begin`` or ``join`` starts it.
    """

    def __init__(
        self,
        owner: Owner,
        pool: BackendPool,
        member: Member,
        rules: MessageRules,
        route: values.Route,
        client: Leg,
        tally: Tally,
    ) -> None:
        super().__init__()
        self.member = member
        self.tally = tally
        self.side: BackendSide | None = None
        self._owner = owner
        self._pool = pool
        self._rules = rules
        self._route = route
        self._client = client
        self._keeper: KeepAlive | None = None
        self._state = State.OPENING
        self._joining: Joining | None = None
        self._queue: deque[Outgoing] = deque()
        self._queued = 0
        #: The kernel does not take more for the backend now.
        self._slow = False
        #: The client does not.
        self._held = False
        self._unanswered = 0
        #: The payload of a ping that is answered when there is room (RFC 6455 5.5.3: only the last one is).
        self._owed: bytes | None = None
        #: The Close that goes out behind all that waits.
        self._farewell: tuple[int, str] | None = None

    # What the session asks for.

    def begin(self, leg: Leg, granted: bytes | None) -> BackendSide:
        """Be open: the backend has sent its 101; ``granted`` is for ``BackendSide.open``."""
        self._state = State.OPEN
        rules, route = self._rules, self._route
        policies = backend_policies(route)
        self.side = side = BackendSide(self, leg, rules.limit, policies, rules.client_factory)
        side.sink = self._client
        leg.attach(side)
        side.open(granted)
        self._keeper = backend_keeper(route, self._pool.relay, Peer(side, side, policies.pings), self._owner.dead)
        if self._keeper is not None:
            self._keeper.start()
        if self._held:
            side.hold(SLOW)
        leg.registerProducer(self, True)
        return side

    def join(self, asked: Asked, preface: bytes) -> None:
        """Open it: dial, and hold an opening handshake."""
        self._joining = Joining(self._pool, self.member, asked, self._joined, self._failed)
        self._joining.start(preface)

    @property
    def is_full(self) -> bool:
        """Whether it has enough to send."""
        return self._queued >= QUEUE

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self._state in (State.OVER, State.GONE)

    def take(self, message: Outgoing) -> None:
        """Send a message, in its turn."""
        self._unanswered += 1
        self.member.unanswered += 1
        if self._can_send() and not self._queue:
            self._send(message)
        else:
            self._queue.append(message)
            self._queued += len(message.payload) + OVERHEAD

    def withdraw(self) -> list[Outgoing]:
        """Take back the messages that wait."""
        unsent = list(self._queue)
        self._queue.clear()
        self._queued = 0
        self._settle(len(unsent))
        return unsent

    def finish(self, code: int, reason: str = "") -> None:
        """Close it behind what waits, within the close timeout."""
        if self._farewell is not None or self.is_over:
            return
        self._farewell = code, reason
        self._wait_for_end()
        if self._state is State.OPENING and not self._queue:
            self._give_up()
        else:
            self._send_queue()

    def abort(self) -> None:
        """Cut it."""
        if self.side is None:
            self._give_up()
        else:
            self.side.leg.abortConnection()

    def hold(self) -> None:
        """The client is slow: read nothing more of the backend."""
        self._held = True
        if self.side is not None:
            self.side.hold(SLOW)

    def go_on(self) -> None:
        """The client takes more."""
        self._held = False
        if self.side is not None:
            self.side.go_on(SLOW)

    # The opening.

    def _joined(self, leg: Leg, response: ResponseHead, rest: bytes) -> None:
        self._joining = None
        side = self.begin(leg, granted_to_us(response))
        self._send_queue()
        if rest:
            side.dataReceived(rest)

    def _failed(self, reason: str, lasting: bool) -> None:
        self._joining = None
        self._owner.could_not_join(self.member, reason, lasting)
        unsent = [one._replace(tried=(*one.tried, self.member)) for one in self.withdraw()]
        self._end(reason, unsent)
        self._gone()

    def _give_up(self) -> None:
        joining, self._joining = self._joining, None
        if joining is not None:
            joining.cancel()
            self._end("", self.withdraw())
            self._gone()

    def dead(self, how: str) -> None:
        """The backend was found dead."""
        assert self.side is not None
        self.side.ignore()
        self.side.leg.abortConnection()
        self._end(how, self.withdraw())

    # Sending.

    def _can_send(self) -> bool:
        return self._state is State.OPEN and not self._slow and self.side is not None and self.side.leg.connected

    def _send(self, message: Outgoing) -> None:
        assert self.side is not None
        self.tally.sent += 1
        self.side.sendMessage(message.payload, message.is_binary)

    def _send_queue(self) -> None:
        was_full = self.is_full
        while self._queue and self._can_send():
            message = self._queue.popleft()
            self._queued -= len(message.payload) + OVERHEAD
            self._send(message)
        if self._farewell is not None and not self._queue and self._state is State.OPEN:
            self._state = State.CLOSING
            assert self.side is not None
            self.side.say_close(*self._farewell)
        if was_full and not self.is_full:
            self._owner.has_room()

    # What its leg calls, which this feeds.

    def pauseProducing(self) -> None:
        """The backend is slow."""
        self._slow = True

    def resumeProducing(self) -> None:
        """The backend takes more."""
        self._slow = False
        owed, self._owed = self._owed, None
        if owed is not None and self.side is not None and self._state is State.OPEN:
            self.side.sendPong(owed)
        self._send_queue()

    def stopProducing(self) -> None:
        """The connection is gone: the side tells of that."""

    # What its side reports.

    def message_came(self, side: Side, payload: bytes, is_binary: bool) -> None:
        """An answer, as far as one can know."""
        self._settle(1)
        self._owner.message_came(side, payload, is_binary)

    def control_came(self, side: Side, is_ping: bool, payload: bytes) -> None:
        """A ping is answered here: no other end is the one that it is for."""
        if is_ping and self._state is State.OPEN:
            if self._slow:
                self._owed = payload
            else:
                side.sendPong(payload)

    def ping_answered(self, side: Side) -> None:
        """The backend has answered a ping of the router's own."""
        assert self._keeper is not None
        self._keeper.answered()
        self.tally.rtt = self._keeper.rtt

    def close_came(self, side: Side) -> None:
        """The backend closes, or answers the router's Close."""
        close = side.walker.close
        assert close is not None
        if self._state is State.OPEN:
            side.say_close(*close)
        # The backend, being the server, closes TCP first (RFC 6455 7.1.1).
        self._end(f"closed with {close[0]}" + (f": {close[1]}" if close[1] else ""), self.withdraw())

    def failed(self, side: Side, error: FrameError) -> None:
        """The backend broke a rule: that ends the branch, and no more."""
        side.ignore()
        if self._state is State.OPEN:
            side.say_close(error.code)
        self._end(error.reason, self.withdraw())
        if side.walker.event:
            self.answer_came(side)

    def answer_came(self, side: Side) -> None:
        """It has answered the Close that it got for breaking a rule, or will not."""
        side.leg.loseConnection()

    def fin_came(self, side: Side) -> None:
        """The backend sends nothing more."""
        if side.walker.close is not None and not side.over:
            side.leg.close()
            return
        side.ignore()
        self._end("closed the connection without a Close frame", self.withdraw())
        side.leg.loseConnection()

    def lost(self, side: Side, how: str) -> None:
        """The connection is gone."""
        side.ignore()
        self._end(how, self.withdraw())
        self._gone()

    # The end.

    def _settle(self, count: int) -> None:
        """So many messages are not waited for any more; a backend may well send more than it was asked."""
        count = min(count, self._unanswered)
        self._unanswered -= count
        self.member.unanswered -= count

    def _end(self, how: str, unsent: list[Outgoing]) -> None:
        """Nothing more comes of it."""
        if self.is_over:
            return
        self._state = State.OVER
        self._settle(self._unanswered)
        if self._farewell is None:
            self.tally.lost = how
        self._wait_for_end()
        self._owner.branch_over(self, unsent)

    def _wait_for_end(self) -> None:
        if self._keeper is not None:
            self._keeper.stop()
        if not self.is_waiting:
            self.wait(self._pool.relay.deadlines, self._route.close_timeout)

    def late(self) -> None:
        """The end took too long."""
        if self.side is None:
            self._give_up()
        else:
            self.side.leg.give_up()

    def _gone(self) -> None:
        self._state = State.GONE
        self.stop_waiting()
        if self._keeper is not None:
            self._keeper.dissolve()
        if self.side is not None:
            self.tally.add(self.side, self._route.idle_counts)
            self.side.dissolve()
        self._pool.give_back(self.member)
        self._owner.branch_gone(self)


classImplements(Branch, IPushProducer)
