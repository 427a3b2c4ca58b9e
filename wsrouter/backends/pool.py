"""A pool at work: its members, which of them is next, how they are, and how to reach one.

What a pool is made of comes from ``policy``: members, a balancer, a table of health, the sticky cookie. The pool holds
them together through reloads, so that a backend that stays in the configuration stays the same member, with its live
sessions and its health.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from zope.interface import classImplements

from wsrouter.backends.dial import Dial, dial
from wsrouter.backends.discovery import Discovery
from wsrouter.backends.health import HealthChecker
from wsrouter.backends.tls import PoolTls
from wsrouter.backends.waiting import Waiting, WaitingLine
from wsrouter.config.values import Pool
from wsrouter.errors import BackendError, DialError
from wsrouter.policy.balancing import balancer_for
from wsrouter.policy.dispatching import Dispatcher
from wsrouter.policy.health import Change, State
from wsrouter.policy.health_table import HealthTable
from wsrouter.policy.members import Member
from wsrouter.policy.sharing import Alone, Sharing, backend_gauge
from wsrouter.policy.stickiness import StickyCookie
from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import Relay

#: In these states a backend is gone for its live sessions, too; one ejected for failed openings may still serve those.
_GONE: Final = frozenset((State.DOWN, State.OFF))

#: How often at most a retired pool looks whether anybody needs it still, in seconds.
SHORTEST_LOOK: Final = 0.1


class BackendPool:
    """One ``[pool]`` of the configuration, running. Raises ConfigError for TLS files that cannot be used."""

    def __init__(
        self,
        relay: Relay,
        config: Pool,
        discovery: Discovery,
        keepalive: float | None = None,
        probes: bool = True,
        sharing: Sharing | None = None,
    ) -> None:
        self._sharing = sharing or Alone()
        self.relay = relay
        self.name = config.name
        #: It watches nobody any more, and nobody waits.
        self.stopped = False
        #: No configuration names it any more.
        self.retired = False
        self.discovery = discovery
        self.config = config
        self.keepalive = keepalive
        self.members = tuple([Member(backend) for backend in config.backends])
        self._share()
        self._clock = clock = cast(IReactorTime, relay.reactor)
        #: Retired, it looks again and again whether anybody needs it still.
        self._look: IDelayedCall | None = None
        self.tls = PoolTls.read(config)
        self._random = random.Random()
        self._balancer = balancer_for(config, self.members, self._random)
        self.sticky = _sticky_of(config, self.members)
        #: The health of every member, and what changes it.
        self.table = HealthTable(config, self.members, clock.seconds())
        self.line = WaitingLine(
            relay, self._pick_for_waiting, self.take, config.queue, config.queue_timeout, sharing is not None
        )
        #: Changes with what connections to the backends are made of.
        self.epoch = object()
        self._on_gone: list[Callable[[Member], None]] = []
        self._checker = HealthChecker(clock, self, self.table, probes=probes)
        self.table.observe(self._changed)

    def _share(self) -> None:
        """Have limits of backends hold for all processes."""
        for member in self.members:
            limited = member.backend.max_sessions is not None
            member.share(self._sharing.gauge(backend_gauge(self.name, member.label)) if limited else None)

    # Life.

    def start(self) -> None:
        """Watch over the backends, from now on."""
        self._checker.start()

    def stop(self) -> None:
        """Watch no more; who waits gets no backend."""
        self.stopped = True
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._checker.stop()
        self.line.dismiss()

    def retire(self) -> None:
        """No configuration names it any more: go on for those who wait or try already, and ``stop`` behind them."""
        self.retired = True
        self.discovery = self.discovery.detached(member.backend for member in self.members)
        self._look_later()

    def _look_later(self) -> None:
        pause = max(self.config.retry_time, SHORTEST_LOOK)
        self._look = self._clock.callLater(pause, self._look_for_anybody, bool(self.line.waiting))

    def _look_for_anybody(self, waited: bool) -> None:
        self._look = None
        if waited or self.line.waiting:
            self._look_later()
        else:
            # Nobody new has come for a whole retry_time, from outside or from the line: nobody tries any more.
            self.stop()

    def reconfigure(self, config: Pool, keepalive: float | None, tls: PoolTls) -> None:
        """Take over a reload; ``tls`` was read for ``config``."""
        now = self.relay.seconds()
        known = {member.backend.label: member for member in self.members}
        members = []
        for backend in config.backends:
            member = known.pop(backend.label, None)
            if member is None:
                member = Member(backend, since=now)
            members.append(member)
        before, self.config = self.config, config
        self.keepalive, self.tls, self.epoch = keepalive, tls, object()
        for member, backend in zip(members, config.backends, strict=True):
            member.reconfigure(backend)
        self.members = tuple(members)
        self._share()
        if (before.balance, before.key, before.slow_start, before.backends) != (
            config.balance,
            config.key,
            config.slow_start,
            config.backends,
        ):
            self._balancer = balancer_for(config, self.members, self._random)
        self.sticky = _sticky_of(config, self.members)
        self.line.size, self.line.timeout = config.queue, config.queue_timeout
        self.table.reconfigure(config, self.members, now)
        self._checker.reconfigure()
        for member in known.values():
            member.available = False
            self._tell_gone(member)
        self.line.move_up()

    def observe_gone(self, callback: Callable[[Member], None]) -> None:
        """Tell ``callback`` of each member that goes down, by its checks or by hand, or leaves the pool."""
        self._on_gone.append(callback)

    def told(self, label: str, rtt: float | None, reason: str, state: State, why: str) -> None:
        """Another process, which probes for this one too, has probed the backend of this label.

        It took ``rtt`` seconds; or failed for ``reason``; or it was not probed, if there is neither. ``state`` is what
        the backend is in there, and ``why``.
        """
        for member in self.members:
            if member.label == label:
                if rtt is not None or reason:
                    self._checker.tell(member, rtt, reason)
                self.table.take_over(member, self.relay.seconds(), state, why)

    def observe_probes(self, callback: Callable[[Member, float | None, str], None]) -> None:
        """Tell ``callback`` what every probe has found: a round-trip time in seconds, or None and what was wrong."""
        self._checker.found = callback

    def _changed(self, member: Member, change: Change) -> None:
        if change.new in _GONE:
            self._tell_gone(member)
        elif change.new is State.UP:
            self.line.move_up()

    def _tell_gone(self, member: Member) -> None:
        for callback in self._on_gone:
            callback(member)

    # Choosing.

    def pick(
        self, key: bytes | None = None, excluded: Collection[Member] = (), preferred: Member | None = None
    ) -> Member | None:
        """The member for one more session: the ``preferred`` one if it takes it, else the balancer's choice.

        ``key`` is what ``balance = hash`` looks at. None when all are excluded, down or full, or when others wait
        for a place already.
        """
        if self.line.waiting and not excluded:
            return None
        if preferred is not None and preferred.takes and preferred not in excluded:
            return preferred
        return self._balancer.pick(self.relay.seconds(), key, excluded)

    def dispatcher(self, first: Member | None = None) -> Dispatcher:
        """What chooses for the messages of one session that begins at ``first``; after a reload make a new one."""
        return Dispatcher(self.config, self.members, self._balancer, self._random, first)

    def _pick_for_waiting(self, key: bytes | None) -> Member | None:
        return self._balancer.pick(self.relay.seconds(), key)

    def wait(self, key: bytes | None, served: Callable[[Member | None], None]) -> Waiting | None:
        """Wait for a place, ``queue_timeout`` at most; ``served`` gets a member that is counted already, or None.

        None is returned, and ``served`` never called, where waiting is of no use: nobody may wait, or nobody is up.
        """
        if not self.config.queue or not self._any_up():
            return None
        return self.line.join(key, served)

    def _any_up(self) -> bool:
        return any(member.available and member.weight > 0 for member in self.members)

    def refusal(self) -> BackendError:
        """What a client gets when no backend could even be tried."""
        why = "is full" if self._any_up() else "is down"
        return BackendError(503, f"pool {self.name}: every backend {why}")

    def take(self, member: Member) -> None:
        """Count one use of ``member``; ``give_back`` must follow."""
        member.count(1)

    def give_back(self, member: Member) -> None:
        """One use has ended."""
        member.count(-1)
        if self.line.waiting:
            self.line.move_up()

    # What openings tell of backends.

    def failed(self, member: Member, error: DialError | BackendError) -> None:
        """An opening failed at ``member``; it is the backend's fault unless the attempt was cut short."""
        if isinstance(error, DialError) and error.cut_short:
            return
        self.table.failure(member, self.relay.seconds(), error.reason)

    def worked(self, member: Member) -> None:
        """The backend has answered."""
        self.table.success(member)

    # Reaching one.

    def dial(
        self,
        member: Member,
        connected: Callable[[Leg], None],
        failed: Callable[[DialError], None],
        preface: bytes = b"",
        timeout: float | None = None,
    ) -> Dial | None:
        """Connect to ``member``, with ``preface`` as its first bytes, then TLS where the pool has it.

        ``timeout`` shortens the pool's own. None: it is decided, and ``connected`` or ``failed`` was called.
        """
        if self.table.get(member) is None:
            # A reload has taken it out: how to speak to it, in TLS or in the clear, is not known any more.
            failed(DialError("it is not of the pool any more"))
            return None
        backend = member.backend
        addresses = self.discovery.addresses(backend)
        if not addresses:
            failed(DialError("its name does not resolve"))
            return None
        limit = self.config.connect_timeout
        if timeout is not None and timeout < limit:
            limit, failed = timeout, _cut_short(failed)
        return dial(
            self.relay,
            addresses,
            limit,
            connected,
            failed,
            self.tls.backends.get(backend) if self.tls.backends else None,
            self.keepalive,
            preface,
        )

    def endpoint(self, member: Member, preface: bytes = b"", timeout: float | None = None) -> IStreamClientEndpoint:
        """``member`` as a Twisted endpoint, for the HTTP client; ``preface`` and ``timeout`` are those of ``dial``."""
        return _DialEndpoint(self, member, preface, timeout)


def _sticky_of(config: Pool, members: tuple[Member, ...]) -> StickyCookie | None:
    return None if config.sticky is None else StickyCookie(config.sticky, config.name, members)


def _cut_short(failed: Callable[[DialError], None]) -> Callable[[DialError], None]:
    """Tell ``failed`` of a time that ran out as of one that was too short."""

    def tell(error: DialError) -> None:
        failed(DialError(error.reason, timed_out=True, cut_short=True) if error.timed_out else error)

    return tell


class _DialEndpoint:
    def __init__(self, pool: BackendPool, member: Member, preface: bytes, timeout: float | None) -> None:
        self._pool = pool
        self._member = member
        self._preface = preface
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Dial the backend and attach a protocol of the factory to the leg."""
        under_way: Dial | None = None

        def cancelled(_: Deferred[IProtocol]) -> None:
            if under_way is not None:
                under_way.cancel()

        result: Deferred[IProtocol] = Deferred(cancelled)

        def connected(leg: Leg) -> None:
            try:
                protocol = protocolFactory.buildProtocol(leg.getPeer())
                if protocol is None:
                    raise DialError("no protocol for the connection")
                leg.attach(protocol)
            except Exception:
                leg.abortConnection()
                result.errback()
                return
            result.callback(protocol)

        under_way = self._pool.dial(self._member, connected, result.errback, self._preface, self._timeout)
        return result


classImplements(_DialEndpoint, IStreamClientEndpoint)
