"""A pool at work: which backend is next, how many sessions each has, and the attempt to reach one.

An attempt walks from backend to backend, never to the same one twice, until one answers or the pool's ``retries`` are
used up. The layer above may send it on (``retry``) when a backend that accepted the connection turns out to be no
good before anything of it has reached the client.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from wsrouter.backends.dial import Dial, TlsClient
from wsrouter.backends.discovery import Discovery
from wsrouter.backends.tls import backend_context, server_name
from wsrouter.config.values import Backend, Pool
from wsrouter.errors import BackendError, DialError
from wsrouter.policy.members import Member
from wsrouter.policy.turns import round_robin
from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import Relay


class BackendPool:
    """One ``[pool]`` of the configuration, running."""

    def __init__(self, relay: Relay, config: Pool, discovery: Discovery, keepalive: float | None = None) -> None:
        self.relay = relay
        self.config = config
        self.name = config.name
        self.discovery = discovery
        self.keepalive = keepalive
        self.members: list[Member] = []
        self._by_place: dict[tuple[str, int, str | None], Member] = {}
        self._down: list[Callable[[Member], None]] = []
        self._tls: dict[Backend, TlsClient] = {}
        self.reconfigure(config, keepalive)

    def reconfigure(self, config: Pool, keepalive: float | None) -> None:
        """Take over a reload, in place; ConfigError, and nothing changed, when TLS files cannot be used."""
        tls: dict[Backend, TlsClient] = {}
        if config.tls is not None:
            context = backend_context(config.tls)
            tls = {backend: TlsClient(context, server_name(config.tls, backend)) for backend in config.backends}
        self.config, self.keepalive, self._tls = config, keepalive, tls
        members = []
        for backend in config.backends:
            member = self._by_place.setdefault(_place(backend), Member(backend))
            member.reconfigure(backend)
            members.append(member)
        gone = [member for member in self.members if member not in members]
        self.members = members
        self._balancer = round_robin(members, config.slow_start or 0.0)
        for member in gone:
            self.goes_down(member)

    def goes_down(self, member: Member) -> None:
        """Tell the observers."""
        for observer in self._down:
            observer(member)

    def observe_down(self, callback: Callable[[Member], None]) -> None:
        """Call back with each member that goes down or is removed."""
        self._down.append(callback)

    def start(self) -> None:
        """Begin the checks."""

    def stop(self) -> None:
        """End the checks."""

    @property
    def live(self) -> dict[Backend, int]:
        """Live sessions, tunnels and requests of each backend, those being opened included."""
        return {member.backend: member.live for member in self.members}

    def pick(self, excluded: Collection[Backend] = ()) -> Backend | None:
        """The backend whose turn it is, or None when all are excluded or full."""
        member = self._balancer.pick(self.relay.seconds(), None, [self._by_place[_place(one)] for one in excluded])
        return None if member is None else member.backend

    def take(self, backend: Backend) -> None:
        """Count one use of ``backend``; ``give_back`` must follow."""
        self._by_place[_place(backend)].live += 1

    def give_back(self, backend: Backend) -> None:
        """One use has ended."""
        self._by_place[_place(backend)].live -= 1

    def dial(
        self, backend: Backend, connected: Callable[[Leg], None], failed: Callable[[DialError], None]
    ) -> Dial | None:
        """Connect to ``backend``, TLS included where the pool has it.

        None: it has no address, and ``failed`` was called.
        """
        addresses = self.discovery.addresses(backend)
        if not addresses:
            failed(DialError("its name does not resolve"))
            return None
        return Dial(
            self.relay,
            addresses,
            self.config.connect_timeout,
            connected,
            failed,
            self._tls.get(backend),
            self.keepalive,
        )

    def endpoint(self, backend: Backend) -> IStreamClientEndpoint:
        """``backend`` as a Twisted endpoint: for the HTTP client."""
        return _DialEndpoint(self, backend)


def _place(backend: Backend) -> tuple[str, int, str | None]:
    return backend.host, backend.port, backend.unix


class Attempt:
    """Reaches one backend of a pool for one client.

    ``connected(leg, backend)`` or ``failed(error)`` is called, once for ``start`` and once for each ``retry``; the
    one who got a leg owns it, and the backend's count until ``give_back``.
    """

    __slots__ = ("_backend", "_connected", "_dial", "_failed", "pool", "tried")

    def __init__(
        self,
        pool: BackendPool,
        connected: Callable[[Leg, Backend], None],
        failed: Callable[[BackendError], None],
    ) -> None:
        self.pool = pool
        self._connected = connected
        self._failed = failed
        self._dial: Dial | None = None
        self._backend: Backend | None = None
        #: The backends that were tried and did not serve, with the reason.
        self.tried: list[tuple[Backend, DialError]] = []

    def start(self) -> None:
        """Try the first backend."""
        self._next()

    def retry(self, error: DialError) -> None:
        """The backend that was reached is no good after all (``error``): give it back and try another."""
        backend = self._backend
        assert backend is not None
        self._backend = None
        self.pool.give_back(backend)
        self.tried.append((backend, error))
        self._next()

    def cancel(self) -> None:
        """The client is gone: stop dialling."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
            assert self._backend is not None
            self.pool.give_back(self._backend)
            self._backend = None

    def settle(self) -> None:
        """The backend that was reached serves: nothing more is asked of this attempt but its story."""
        # Its callbacks are bound methods of whoever holds the attempt: a cycle for every session.
        del self._connected, self._failed

    def story(self) -> str:
        """What was tried, for the log: ``127.0.0.1:2222 connection refused, 127.0.0.1:3333 no connection in time``."""
        if not self.tried:
            return ""
        return ", ".join(f"{backend.label} {error.reason}" for backend, error in self.tried)

    def _next(self) -> None:
        pool = self.pool
        backend = None
        if len(self.tried) <= pool.config.retries:
            backend = pool.pick([backend for backend, _ in self.tried])
        if backend is None:
            self._give_up()
            return
        self._backend = backend
        pool.take(backend)
        dial = pool.dial(backend, self._reached, self._unreached)
        if dial is not None:  # else it failed at once, and the next backend's dial may be under way already
            self._dial = dial

    def _reached(self, leg: Leg) -> None:
        self._dial = None
        assert self._backend is not None
        self._connected(leg, self._backend)

    def _unreached(self, error: DialError) -> None:
        self._dial = None
        self.retry(error)

    def _give_up(self) -> None:
        if not self.tried:
            self._failed(BackendError(503, f"pool {self.pool.name}: every backend is full"))
            return
        last = self.tried[-1][1]
        status = 504 if last.timed_out else 502 if last.nonsense else 503
        self._failed(BackendError(status, f"pool {self.pool.name}: no backend answers: {self.story()}"))


@implementer(IStreamClientEndpoint)
class _DialEndpoint:
    def __init__(self, pool: BackendPool, backend: Backend) -> None:
        self._pool = pool
        self._backend = backend

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Dial the backend and attach a protocol of the factory to the leg."""
        dial: Dial | None = None

        def cancelled(_: Deferred[IProtocol]) -> None:
            if dial is not None:
                dial.cancel()

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

        dial = self._pool.dial(self._backend, connected, result.errback)
        return result
