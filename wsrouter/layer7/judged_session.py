"""What sessions that the router ends on both sides have in common: filters see each message before it goes on."""

from __future__ import annotations

import functools

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from wsrouter.layer7.filters import Broken, Message, Refused, Verdict
from wsrouter.layer7.message_rules import MessageRules
from wsrouter.layer7.side import JUDGED, Side
from wsrouter.live.registry import Facts
from wsrouter.policy.filtering import Direction, Drop
from wsrouter.relay.deadlines import Deadline
from wsrouter.wire.close import INTERNAL

_log = Logger()


class JudgedSession:
    """The base of such a session, which says where messages go, and how it ends."""

    __slots__ = ("_judging", "_patience", "_rules", "facts")

    def __init__(self, rules: MessageRules, facts: Facts) -> None:
        self.facts = facts
        self._rules = rules
        #: What filters are still thinking about, by the side that it came from.
        self._judging: dict[Side, Deferred[Verdict]] = {}
        #: How long filters may still think about what somebody said last who has ended the connection.
        self._patience: Deadline | None = None

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
