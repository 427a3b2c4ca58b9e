"""What sessions that the router ends on both sides have in common: filters see each message before it goes on."""

from __future__ import annotations

import functools

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from wsrouter.backends.pool import BackendPool
from wsrouter.config import values
from wsrouter.layer7.filters import Broken, Message, Refused, Verdict
from wsrouter.layer7.message_rules import MessageRules
from wsrouter.layer7.side import JUDGED, Side
from wsrouter.layer7.sides import ClientSide
from wsrouter.layer7.site import Site
from wsrouter.live.registry import Counts, End, Facts
from wsrouter.policy.filtering import Direction, Drop
from wsrouter.relay.deadlines import Deadline, Waiter
from wsrouter.wire.close import GOING_AWAY, INTERNAL
from wsrouter.wire.forwarding import with_field

_log = Logger()


class JudgedSession(Waiter):
    """The base of such a session, which says where messages go, and how it ends."""

    __slots__ = ("_end", "_judging", "_patience", "_pool", "_route", "_rules", "_site", "facts", "number")

    def __init__(
        self, site: Site, route: values.Route, pool: BackendPool, number: int, facts: Facts, rules: MessageRules
    ) -> None:
        super().__init__()
        self.number = number
        self.facts = facts
        self._site = site
        self._route = route
        self._pool = pool
        self._rules = rules
        self._end: End | None = None
        #: What filters are still thinking about, by the side that it came from.
        self._judging: dict[Side, Deferred[Verdict]] = {}
        #: How long filters may still think about what somebody said last who has ended the connection.
        self._patience: Deadline | None = None

    def _welcome(self, client: ClientSide, answer: bytes, offer: bytes | None) -> None:
        """Take the client over. ``answer`` is its 101, without extensions; ``offer`` is for ``ClientSide.open``."""
        client.leg.attach(client)
        extension = client.open(offer)
        if extension is not None:
            answer = with_field(answer, (b"Sec-WebSocket-Extensions", extension))
        client.leg.write(answer)

    def _go_live(self) -> None:
        """Be known to the registry, and watched for idleness."""
        self._site.registry.open(self)
        if self._route.idle_timeout is not None:
            self._site.sweeper.watch(self, self._route.idle_timeout)

    def _conclude(self) -> None:
        """All connections are gone: nothing is waited for any more, and the registry knows."""
        self.stop_waiting()
        self._judge_no_more()
        if self._route.idle_timeout is not None:
            self._site.sweeper.forget(self, self._route.idle_timeout)
        assert self._end is not None
        self._site.registry.close(self, self._end)

    def idle(self) -> None:
        """No frame of any peer for ``idle_timeout``."""
        self.end(GOING_AWAY, "idle")

    def ending(self) -> End | None:
        """How it ends, once that is known."""
        return self._end

    def message_came(self, side: Side, payload: bytes, is_binary: bool) -> None:
        """A message is whole: judge it, and pass it on."""
        if not self._rules.filters:
            self._pass_on(side, payload, is_binary)
            return
        direction = Direction.CLIENT if side.factory.isServer else Direction.BACKEND
        verdict = self._rules.filters.judge(Message(direction, self.facts, payload, is_binary))
        if not isinstance(verdict, Deferred):
            self._judged(verdict, side, is_binary)
            return
        side.hold(JUDGED)
        # Noted first: it may have fired already.
        self._judging[side] = verdict
        verdict.addCallback(self._judged_late, side, is_binary).addErrback(self._broke)

    def _judged_late(self, verdict: Verdict, side: Side, is_binary: bool) -> None:
        self._judging.pop(side, None)
        self._judged(verdict, side, is_binary)
        side.go_on(JUDGED)
        if side.leg.eof:
            self._judged_last(side)

    def _hurry(self, side: Side, seconds: float) -> None:
        """``side`` has ended the connection: filters may think so long about what it said last."""
        side.leg.await_end()
        self._patience = side.leg.relay.deadlines.after(seconds, functools.partial(self._give_up_judging, side))

    def _give_up_judging(self, side: Side) -> None:
        verdict = self._judging.get(side)
        if verdict is not None:
            verdict.cancel()

    def _broke(self, failure: Failure) -> None:
        _log.failure("A message session failed in the router itself and is ended", failure)
        self.abort()

    def _judged(self, verdict: Verdict, side: Side, is_binary: bool) -> None:
        match verdict:
            case bytes():
                self._pass_on(side, verdict, is_binary)
            case Drop():
                pass
            case Refused(name, close):
                if not side.over:
                    self._end_over(side, close.code, f"filter {name}: {close.reason}", close.reason)
            case Broken(name):
                self.end(INTERNAL, f"filter {name} failed")

    def _judge_no_more(self) -> None:
        """The session has ended: what filters still think about is dropped."""
        if self._patience is not None:
            self._patience.cancel()
        for waiting in list(self._judging.values()):
            waiting.cancel()

    # What a session says.

    def _pass_on(self, side: Side, payload: bytes, is_binary: bool) -> None:
        """Send a message of ``side`` to where it belongs."""
        raise NotImplementedError

    def _judged_last(self, side: Side) -> None:
        """Nothing more is to be judged of ``side``, which has ended the connection."""
        raise NotImplementedError

    def _end_over(self, offender: Side, code: int, reason: str, told: str = "") -> None:
        """End the session over what a peer sent; ``told`` is the reason that it gets with ``code``."""
        raise NotImplementedError

    def end(self, code: int, reason: str) -> None:
        """Close all sides politely with ``code``."""
        raise NotImplementedError

    def abort(self) -> None:
        """Cut all sides."""
        raise NotImplementedError

    def counts(self) -> Counts:
        """What has come so far, whatever became of it."""
        raise NotImplementedError

    def activity(self) -> int:
        """Grows with every frame of a peer's, or only with those of messages."""
        raise NotImplementedError
