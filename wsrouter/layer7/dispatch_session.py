"""A session whose messages each get a backend that is chosen for them (``dispatch = message``).

The client has one WebSocket, ended by the router; towards the backends there are several (``branch``), opened when the
first message is for them. Messages of the backends go to the client in the order in which they come, each whole.

What belongs to no message is between the router and each of its peers: pings are answered here, and a backend that
closes, breaks a rule or vanishes ends its branch, not the session. That ends with its client, or when the router wants
it, or when no backend can be had for a message.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from twisted.internet.interfaces import IPushProducer
from zope.interface import classImplements

from wsrouter.backends.pool import BackendPool
from wsrouter.config import values
from wsrouter.config.values import IdleCounts
from wsrouter.errors import FrameError
from wsrouter.layer7.branch import Branch, Outgoing
from wsrouter.layer7.choice import Choice
from wsrouter.layer7.joining import Asked
from wsrouter.layer7.judged_session import JudgedSession
from wsrouter.layer7.keepalive import KeepAlive, Peer, client_keeper
from wsrouter.layer7.message_rules import MessageRules
from wsrouter.layer7.policies import client_policies
from wsrouter.layer7.side import SLOW, Side
from wsrouter.layer7.sides import ClientSide
from wsrouter.layer7.site import Site
from wsrouter.layer7.tally import Tally
from wsrouter.live.registry import Counts, End, Facts, Who
from wsrouter.policy.members import Member
from wsrouter.relay.leg import Leg
from wsrouter.wire.close import ABNORMAL, GOING_AWAY, INTERNAL, RESTART, TRY_AGAIN


class DispatchSession(JudgedSession):
    """One session, from the verified 101 to its end. ``run`` begins it. As a producer it feeds the client's leg."""

    __slots__ = (
        "_all",
        "_asked",
        "_branches",
        "_choice",
        "_client",
        "_closed",
        "_keeper",
        "_lost",
        "_owed",
        "_slow",
        "_tallies",
        "_told",
        "_turn",
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
        *,
        rules: MessageRules,
        asked: Asked,
    ) -> None:
        super().__init__(site, route, pool, number, facts, rules)
        self._asked = asked
        self._client = ClientSide(self, client, rules.limit, client_policies(route), rules.server_factory)
        self._keeper: KeepAlive | None = None
        self._choice = Choice(pool, asked, client, route.fan_out, member)
        #: Those that take messages, by their backends; and all whose connections are not gone.
        self._branches: dict[Member, Branch] = {}
        self._all: dict[Branch, None] = {}
        self._tallies: dict[str, Tally] = {}
        #: The client's own Close frame was heard.
        self._closed = False
        #: The router has sent the client a Close, or has given it up.
        self._told = False
        #: The client's connection is gone.
        self._lost = False
        #: The kernel does not take more for the client now.
        self._slow = False
        #: The payload of a ping that is answered when there is room (RFC 6455 5.5.3: only the last one is).
        self._owed: bytes | None = None
        #: Whose turn it is to go on when the client takes more.
        self._turn = 0
        self._grow(member)

    def run(
        self,
        server: Leg,
        from_client: bytes,
        answer: bytes,
        from_server: bytes,
        offer: bytes | None,
        granted: bytes | None,
    ) -> None:
        """Take the legs over, ``server`` from the first backend; see ``MessageSession.run``."""
        client = self._client
        self._welcome(client, answer, offer)
        (first,) = self._all
        backend = first.begin(server, granted)
        client.leg.registerProducer(self, True)
        self._go_live()
        to_client = Peer(client, client, client.policies.pings)
        self._keeper = client_keeper(self._route, self._site.relay, to_client, self.dead)
        if self._keeper is not None:
            self._keeper.start()
        if from_client:
            client.dataReceived(from_client)
        if from_server:
            backend.dataReceived(from_server)

    # Choosing.

    def _dispatch(self, message: Outgoing) -> None:
        """Hand a message to a branch, which may have to be opened for it."""
        member = self._choice.pick(message, self._branches)
        if member is None:
            self._unreachable(message)
            return
        branch = self._branches.get(member)
        if branch is not None:
            branch.take(message)
        else:
            self._pool.take(member)
            branch = self._grow(member)
            branch.take(message)
            branch.join(self._asked, self._choice.preface)
        if branch.is_full:
            self._client.hold(SLOW)
            self._client.sink = None if branch.side is None else branch.side.leg

    def _grow(self, member: Member) -> Branch:
        tally = self._tallies.setdefault(member.label, Tally(member.label))
        branch = Branch(self, self._pool, member, self._rules, self._route, self._client.leg, tally)
        self._branches[member] = branch
        self._all[branch] = None
        if self._slow:
            branch.hold()
        return branch

    def _unreachable(self, message: Outgoing) -> None:
        self._end = End(Who.BACKEND, TRY_AGAIN, f"no backend takes a message: {self._choice.story(message)}")
        self._tell(TRY_AGAIN)
        self._finish(GOING_AWAY)

    # What the branches report.

    def has_room(self) -> None:
        """A branch was full, and is not any more."""
        if not any(branch.is_full for branch in self._branches.values()):
            self._client.go_on(SLOW)

    def could_not_join(self, member: Member, reason: str, lasting: bool) -> None:
        """A backend is left alone for a while."""
        self._choice.failed(member, reason, lasting=lasting)

    def branch_over(self, branch: Branch, unsent: list[Outgoing]) -> None:
        """Nothing more comes of it: what it has not sent goes to others."""
        if self._branches.get(branch.member) is branch:
            del self._branches[branch.member]
        if self._end is None:
            self._dispatch_again(unsent)
        else:
            self._answer()

    def branch_gone(self, branch: Branch) -> None:
        """Its connection is gone."""
        del self._all[branch]
        self._finished()

    def _dispatch_again(self, unsent: list[Outgoing]) -> None:
        for message in unsent:
            if self._end is None:
                self._dispatch(message)
        self.has_room()

    # What the client's side reports; for messages see ``JudgedSession``.

    def _pass_on(self, side: Side, payload: bytes, is_binary: bool) -> None:
        if side is self._client:
            if not side.over:
                self._dispatch(Outgoing(payload, is_binary))
        elif not self._told and not self._lost:
            self._client.sendMessage(payload, is_binary)

    def _judged_last(self, side: Side) -> None:
        if side is self._client and not self._told and not self._lost:
            self.fin_came(side)

    def control_came(self, side: Side, is_ping: bool, payload: bytes) -> None:
        """A ping is answered here: no other end is the one that it is for."""
        if is_ping and not self._told:
            if self._slow:
                self._owed = payload
            else:
                side.sendPong(payload)

    def ping_answered(self, side: Side) -> None:
        """The client has answered a ping of the router's own."""
        assert self._keeper is not None
        self._keeper.answered()

    def dead(self, leg: Leg, how: str) -> None:
        """A peer was found dead."""
        if leg is self._client.leg:
            leg.abortConnection()
            self._client_gone(how)
            return
        for branch in list(self._all):
            if branch.side is not None and branch.side.leg is leg:
                branch.dead(how)

    def close_came(self, side: Side) -> None:
        """The client closes: so do the backends, and then it is answered."""
        close = side.walker.close
        assert close is not None
        self._closed = True
        self._end = End(Who.CLIENT, *close)
        self._finish(*close)
        self._answer()

    def failed(self, side: Side, error: FrameError) -> None:
        """The client broke a rule."""
        self._end_over(side, error.code, error.reason)

    def answer_came(self, side: Side) -> None:
        """The client was told to close, and has answered, or will not."""
        self._closed = self._closed or side.walker.close is not None
        side.leg.loseConnection()

    def fin_came(self, side: Side) -> None:
        """A FIN: fine behind a Close, else the client has vanished."""
        if self._closed and not self._told:
            return  # it may still read the answer to its Close
        if side in self._judging and not self._told:
            self._hurry(side, self._route.close_timeout)
            return
        self._client_gone("closed the connection without a Close frame")
        side.leg.loseConnection()

    def lost(self, side: Side, how: str) -> None:
        """The client's connection is gone."""
        self._client_gone(how)
        self._lost = True
        self._finished()

    # What the client's leg calls, which the branches feed.

    def pauseProducing(self) -> None:
        """The client is slow."""
        self._slow = True
        for branch in self._all:
            branch.hold()

    def resumeProducing(self) -> None:
        """The client takes more: each branch has its turn to be the first that goes on."""
        self._slow = False
        owed, self._owed = self._owed, None
        if owed is not None and not self._told:
            self._client.sendPong(owed)
        branches = list(self._all)
        self._turn += 1
        at = self._turn % len(branches) if branches else 0
        for branch in branches[at:] + branches[:at]:
            if self._slow:
                return
            branch.go_on()

    def stopProducing(self) -> None:
        """The connection is gone: the side tells of that."""

    # Ends.

    def end(self, code: int, reason: str) -> None:
        """Close all sides politely with ``code``: idle, a drain, or a filter that failed."""
        if self._end is None:
            self._end = End(Who.ROUTER, code, reason)
            self._tell(code)
            self._finish(code)

    def abort(self) -> None:
        """Cut all sides."""
        if self._end is None:
            self._end = End(Who.ROUTER, ABNORMAL, "cut")
        if not self._lost:
            self._client.leg.abortConnection()
        for branch in list(self._all):
            branch.abort()

    def branches(self) -> Collection[str]:
        """The backends that it has branches to."""
        return [member.label for member in self._branches]

    def leave(self, backend: str) -> None:
        """Be done with a backend that is gone; where there is no other, with the client, too."""
        for member, branch in list(self._branches.items()):
            if member.label != backend or self._end is not None:
                continue
            del self._branches[member]
            unsent = branch.withdraw()
            branch.finish(RESTART)
            if self._choice.is_left(self._branches):
                self._dispatch_again(unsent)
            else:
                self.end(RESTART, f"backend {backend} is gone")

    def _end_over(self, offender: Side, code: int, reason: str, told: str = "") -> None:
        if offender is self._client:
            if self._end is None:
                self._end = End(Who.CLIENT, code, reason)
            self._tell(code, told)
        else:
            if self._end is None:
                self._end = End(Who.BACKEND, code, reason)
            self._tell(INTERNAL)
            for branch in self._all:
                if branch.side is offender:
                    branch.finish(code, told)
        self._finish(GOING_AWAY)

    def _client_gone(self, how: str) -> None:
        """The client neither says nor hears anything more."""
        if self._end is None:
            self._end = End(Who.CLIENT, ABNORMAL, how)
        self._told = True
        self._client.ignore()
        self._finish(GOING_AWAY)

    def _tell(self, code: int, reason: str = "") -> None:
        """Send the router's Close to the client, once, and listen to nothing more of it but its answer."""
        if self._told or self._lost:
            return
        self._told = True
        client = self._client
        client.ignore()
        client.say_close(code, reason)
        if client.walker.event or client.leg.eof:
            self.answer_came(client)  # it has said its last word, or nothing that counts will follow

    def _answer(self) -> None:
        """Answer the client's Close once no backend has anything more to say to it."""
        if self._closed and not self._told and all(branch.is_over for branch in self._all):
            assert self._end is not None
            assert self._end.code is not None
            self._told = True
            self._client.say_close(self._end.code, self._end.reason)
            self._client.leg.close()

    def _finish(self, code: int, reason: str = "") -> None:
        """Close all branches, behind what waits in them; the client has the close timeout, too."""
        if self._keeper is not None:
            self._keeper.stop()
        if not self.is_waiting:
            self.wait(self._site.relay.deadlines, self._route.close_timeout)
        for branch in list(self._all):
            branch.finish(code, reason)

    def late(self) -> None:
        """The close handshake took too long."""
        client = self._client
        if self._lost:
            return
        if self._closed and not self._told:
            assert self._end is not None
            assert self._end.code is not None
            self._told = True
            client.say_close(self._end.code, self._end.reason)
        client.leg.give_up()

    def _finished(self) -> None:
        if self._all or not self._lost:
            return
        if self._keeper is not None:
            self._keeper.dissolve()
        self._conclude()
        self._client.dissolve()

    # What the registry and the idle sweeper ask.

    def counts(self) -> Counts:
        """What has come so far, whatever became of it; and what each backend has had of it."""
        client = self._client
        up = client.walker
        totals = self._totals()
        return Counts(
            client.bytes,
            sum([one.bytes for one in totals]),
            up.messages,
            sum([one.messages for one in totals]),
            up.frames,
            sum([one.frames for one in totals]),
            up.largest,
            max([one.largest for one in totals]),
            None if self._keeper is None else self._keeper.rtt,
            max([one.rtt for one in totals if one.rtt is not None], default=None),
            served=tuple([one.served() for one in totals]),
        )

    def _totals(self) -> list[Tally]:
        totals = {label: replace(tally) for label, tally in self._tallies.items()}
        for branch in self._all:
            if branch.side is not None:
                totals[branch.member.label].add(branch.side, self._route.idle_counts)
        return list(totals.values())

    def activity(self) -> int:
        """Grows with every frame of a peer's, or only with those of messages."""
        data = self._route.idle_counts is IdleCounts.DATA
        return self._client.activity(data=data) + sum([one.activity for one in self._totals()])


classImplements(DispatchSession, IPushProducer)
