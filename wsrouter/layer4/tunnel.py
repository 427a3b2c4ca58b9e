"""A tunnel: a client's connection and a backend's, coupled byte for byte.

Half-closes are passed on, and the other direction finishes in its own time. A reset is passed on as a reset: turned
into an orderly end, it would make cut-off data look whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsrouter.backends.attempt import Attempt
from wsrouter.backends.pool import BackendPool
from wsrouter.config import values
from wsrouter.errors import BackendError
from wsrouter.live.connection import Connection
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import BACKEND, CLIENT, Counts, End, Facts, Kind, Refusal, Registry, Who
from wsrouter.policy.members import Member
from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import Relay
from wsrouter.relay.pump import FramePump, Pump
from wsrouter.relay.tls import reason_of


@dataclass(frozen=True, slots=True)
class Layer4:
    """What all tunnels share."""

    relay: Relay
    registry: Registry
    pools: dict[str, BackendPool]
    idle: IdleSweeper

    def open(self, leg: Leg, connection: Connection, rule: values.Tunnel, prefetch: bytes) -> None:
        """Tunnel ``leg``, whose first bytes are ``prefetch``, to a backend of the rule's pool."""
        Tunnel(self, leg, connection, rule, prefetch).start()


class Tunnel:
    """One tunnel, from the verdict to its end."""

    __slots__ = (
        "_attempt",
        "_client",
        "_connection",
        "_down",
        "_end",
        "_leg",
        "_member",
        "_opened",
        "_pool",
        "_prefetch",
        "_room",
        "_rule",
        "_tried",
        "_up",
        "number",
    )

    def __init__(self, room: Layer4, client: Leg, connection: Connection, rule: values.Tunnel, prefetch: bytes) -> None:
        self.number = connection.number
        self._room = room
        self._client: Leg | None = client
        self._connection = connection
        self._rule = rule
        self._prefetch = prefetch
        self._leg: Leg | None = None
        self._member: Member | None = None
        self._end: End | None = None
        self._up: Pump | None = None
        self._down: Pump | None = None
        self._pool = pool = room.pools[rule.pool]
        self._attempt: Attempt | None = Attempt(
            pool,
            self._connected,
            self._failed,
            None if pool.config.key is None else _key_of(pool.config.key, connection),
            None,
            b"" if pool.config.send_proxy is None else connection.preface(pool.config.send_proxy, client.getHost()),
        )
        client.protocol = None
        client.coupling = self

    @property
    def facts(self) -> Facts:
        """What is known of it, once it is open. Made when somebody asks: most of its life nobody does."""
        connection, member = self._connection, self._member
        assert member is not None
        return Facts(
            kind=Kind.TUNNEL,
            client_ip=connection.ip,
            client=connection.client,
            listener=connection.listener,
            rule=self._rule.name,
            pool=self._rule.pool,
            backend=member.label,
            opened=self._opened,
            sni=connection.sni or "",
            tried=self._tried,
        )

    def start(self) -> None:
        """Look for a backend."""
        attempt, client = self._attempt, self._client
        assert attempt is not None
        assert client is not None
        attempt.start()
        if self._attempt is not None:  # else it is decided already
            client.await_end()

    def _connected(self, leg: Leg, member: Member) -> None:
        client, attempt = self._client, self._attempt
        assert client is not None
        assert attempt is not None
        attempt.settle()
        self._pool.worked(member)
        self._attempt = None
        self._leg = leg
        self._member = member
        self._up = up = Pump(self, client, leg)
        self._down = down = Pump(self, leg, client)
        client.couple(self, up, down)
        leg.couple(self, down, up)
        room = self._room
        self._opened = room.relay.seconds()
        self._tried = attempt.story()
        room.registry.open(self)
        if self._rule.idle_timeout is not None:
            room.idle.watch(self, self._rule.idle_timeout)
        prefetch, self._prefetch = self._prefetch, b""
        if prefetch:
            up.inject(prefetch)
        if client.eof:
            self.source_ended(up)
        elif not up.paused:
            client.resumeProducing()
        leg.resumeProducing()

    def _failed(self, error: BackendError) -> None:
        self._attempt = None
        self._refuse(error.reason)
        if self._client is not None:
            self._client.loseConnection()

    def _refuse(self, reason: str) -> None:
        connection = self._connection
        self._room.registry.refuse(
            Refusal(self.number, connection.client, connection.listener, "tunnel", self._rule.name, reason)
        )

    # What the pumps and legs report.

    def source_ended(self, pump: Pump) -> None:
        """A FIN: pass it on. But the end of a connection that could not be written to is a reset."""
        back = self._down if pump is self._up else self._up
        if back is not None and back.failure is not None:
            pump.source.lose(back.failure)
            return
        self._ended_by(pump.source, "closed")
        if pump.sink is not None:
            pump.sink.finish_writing()

    def frames_event(self, pump: FramePump) -> None:
        """Tunnels know no frames."""

    def leg_lost(self, leg: Leg, error: Exception | None) -> None:
        """One side is gone: the other follows, in the same manner."""
        self._ended_by(leg, "closed" if error is None else reason_of(error))
        if leg is self._client:
            self._client, other = None, self._leg
        else:
            self._leg, other = None, self._client
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
            self._refuse("the client left before a backend was reached")
        elif other is None:
            self._finished()
        elif error is None:
            other.loseConnection()
        else:
            other.abortConnection()

    def _ended_by(self, leg: Leg, reason: str) -> None:
        if self._end is None:
            self._end = End(CLIENT if leg is self._client else BACKEND, None, reason)

    def _finished(self) -> None:
        if self._member is None:
            return  # it never lived
        room = self._room
        self._pool.give_back(self._member)
        if self._rule.idle_timeout is not None:
            room.idle.forget(self, self._rule.idle_timeout)
        assert self._end is not None
        room.registry.close(self, self._end)
        for pump in (self._up, self._down):
            if pump is not None:
                pump.dissolve()

    # What the registry and the idle sweeper use.

    def counts(self) -> Counts:
        """Bytes that have passed so far."""
        assert self._up is not None
        assert self._down is not None
        return Counts(self._up.bytes, self._down.bytes)

    def ending(self) -> End | None:
        """How it ends, once that is known."""
        return self._end

    def activity(self) -> int:
        """Grows with every byte."""
        counts = self.counts()
        return counts.bytes_in + counts.bytes_out

    def idle(self) -> None:
        """No byte either way for ``idle_timeout``."""
        self._end = self._end or End(Who.ROUTER, None, "idle")
        for leg in (self._client, self._leg):
            if leg is not None:
                leg.loseConnection()

    def end(self, code: int, reason: str) -> None:
        """A tunnel's bytes have no polite end that the router could put in: it goes on until it is aborted."""

    def abort(self) -> None:
        """Cut both sides."""
        self._end = self._end or End(Who.ROUTER, None, "cut")
        for leg in (self._client, self._leg):
            if leg is not None:
                leg.abortConnection()


def _key_of(key: values.BalanceKey, connection: Connection) -> bytes:
    """What ``balance = hash`` looks at; the configuration lets a tunnel's pool ask for nothing else."""
    return (connection.sni or "" if key.source is values.KeySource.SNI else connection.ip).encode()
