"""The preamble of a connection: what it must show before anybody serves it.

First comes its PROXY header, where the listener requires one. Then it is known who the client is, and whether he may
come in. Then its first bytes are read until they tell what they are, and it goes to a tunnel, to TLS or to the front.
One absolute deadline runs from the accept to that verdict, whatever arrives meanwhile. The bytes that were read for the
verdict, the prefetch, go on untouched, once.

Who is turned away costs little, for there may be many: a connection that may never come in is closed on the spot. One
that is over a limit may be a good client in a hurry, so some at a time are listened to for a moment, and hear
429 if they speak HTTP. The others are closed on the spot as well, which resets those that have sent something.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import Final, Protocol

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import classImplements

from wsrouter.config import values
from wsrouter.config.values import Match
from wsrouter.errors import HttpError, SniffError
from wsrouter.layer4.tunnel import Layer4
from wsrouter.layer7.front import Front
from wsrouter.layer7.site import Door as HttpDoor
from wsrouter.layer7.termination import Termination
from wsrouter.live.connection import Announced, Connection
from wsrouter.policy.tunnels import TunnelTable
from wsrouter.relay.lease import Lease
from wsrouter.relay.leg import Leg
from wsrouter.relay.protocol import LegProtocol
from wsrouter.sniff.proxy_protocol import read_header
from wsrouter.sniff.sniffer import PREFETCH_LIMIT, alert, sniff
from wsrouter.sniff.verdict import Http, Opaque, Tls, Verdict
from wsrouter.wire.answer import answer

#: The first byte of a ClientHello's record (RFC 8446 5.1).
TLS_HANDSHAKE: Final = 0x16

# TLS alerts (RFC 8446 6.2, RFC 6066 3).
HANDSHAKE_FAILURE: Final = 40
MISSING_EXTENSION: Final = 109
UNRECOGNIZED_NAME: Final = 112

#: How many connections over a limit are listened to at a time, for each listener, and how long, in seconds.
COURTESIES: Final = 64
COURTESY: Final = 1.0


class Door(HttpDoor, Protocol):
    """What a preamble asks of its listener."""

    tunnels: TunnelTable
    layer4: Layer4
    courtesies: int


class Stage(enum.Enum):
    """What a preamble waits for."""

    #: The PROXY header.
    HEADER = "header"
    #: The first bytes of the client.
    VERDICT = "verdict"
    #: The same, but only to say in HTTP that a limit is reached.
    COURTEOUS = "courteous"
    #: Nothing: the connection went on, or ends.
    OVER = "over"


#: Members of enumerations at hand; see ``live.registry``.
HEADER: Final = Stage.HEADER
VERDICT: Final = Stage.VERDICT
COURTEOUS: Final = Stage.COURTEOUS
OVER: Final = Stage.OVER
MATCH_TLS: Final = Match.TLS
MATCH_HTTP: Final = Match.HTTP
MATCH_OPAQUE: Final = Match.OPAQUE


class Preamble(LegProtocol):
    """The protocol on a client's leg until there is a verdict."""

    __slots__ = ("_connection", "_door", "_limit", "_received", "_stage")

    def __init__(self, door: Door, connection: Connection) -> None:
        self._door = door
        self._connection = connection
        self._stage = VERDICT
        self._received: bytes | bytearray = b""
        self._slice = None
        #: Why the connection is turned away, until the log was told.
        self._limit: HttpError | None = None

    # What the leg calls.

    def makeConnection(self, transport: Leg) -> None:
        """The connection was accepted: begin, or turn it away at once."""
        self.transport = transport
        door = self._door
        if door.config.proxy_protocol:
            if not door.admission.announces(self._connection.ip):
                self._turn_away("proxy", "a peer that is not trusted must not send PROXY headers")
                return
            self._stage = HEADER
        elif door.admission.guarded and not self._enter():
            return
        self.wait(door.site.relay.deadlines, door.config.sniff_timeout)

    def dataReceived(self, data: bytes) -> None:
        """Look at the first bytes until they tell what they are."""
        if self._received:
            if isinstance(self._received, bytes):
                self._received = bytearray(self._received)
            self._received += data
        else:
            self._received = data
        if self._stage is not HEADER or self._announced():
            self._look()

    def readConnectionLost(self) -> None:
        """A FIN before there was a verdict: a few bytes that could have become HTTP are opaque, then.

        Who said nothing, or left within a ClientHello, has changed its mind.
        """
        if self._stage is HEADER and self._received:
            self._refuse("the connection ended within its PROXY header")
        elif self._received and self._received[0] != TLS_HANDSHAKE:
            self._decide(Opaque())
        else:
            self._finish()

    def writeConnectionLost(self) -> None:
        """The leg never says this."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client left before there was a verdict."""
        self._leave()

    # Who it is, and whether he may come in.

    def _announced(self) -> bool:
        """Read the PROXY header; True once the client's own bytes may be looked at, if there are any."""
        try:
            found = read_header(self._received)
        except SniffError as error:
            self._refuse(error.reason)
            return False
        if found is None:
            return False
        header, size = found
        self._received = bytes(self._received[size:])
        connection = self._connection
        connection.announced = Announced(connection.ip, header.destination, header.tlvs)
        if header.source is not None:
            connection.ip, connection.port = header.source
        self._stage = VERDICT
        if self._door.admission.guarded and not self._enter():
            return False
        return bool(self._received)

    def _enter(self) -> bool:
        """Whether the client may come in; if not, it was turned away, or is listened to out of courtesy."""
        door, leg = self._door, self.transport
        admission = door.admission
        try:
            key = admission.enter(self._connection.ip, door.site.relay.seconds())
        except HttpError as error:
            if error.status != 429 or door.courtesies >= COURTESIES:
                self._turn_away("accept", error.reason)
            else:
                self._be_courteous(error)
            return False
        if key is not None:
            Lease(leg, partial(admission.leave, key))
        return True

    def _turn_away(self, stage: str, reason: str) -> None:
        """Close at once."""
        self._leave()
        self._tell(stage, reason)
        self.transport.close()

    def _be_courteous(self, error: HttpError) -> None:
        """Listen for a moment, to answer HTTP with ``error``."""
        self._stage = COURTEOUS
        self._limit = error
        self._door.courtesies += 1
        # Not a method of this preamble: it would hold itself in a cycle.
        Lease(self.transport, partial(_end_courtesy, self._door))
        self.wait(self._door.site.relay.deadlines, COURTESY)
        if self._received:
            self._look()

    def _tell(self, stage: str, reason: str, status: int | None = None) -> None:
        """Tell of a refusal that comes before anything was looked at."""
        site, connection = self._door.site, self._connection
        told = self._door.admission.told(connection.ip, site.relay.seconds())
        site.refuse(connection, stage, "", status, reason, repeated=told)

    # What it speaks, and where it goes.

    def _look(self) -> None:
        try:
            verdict = sniff(self._received)
        except SniffError as error:
            self._refuse(error.reason, error.alert)
            return
        if verdict is not None:
            self._decide(verdict)
        elif len(self._received) > PREFETCH_LIMIT:
            self._refuse(f"no verdict in {PREFETCH_LIMIT} bytes")

    def _decide(self, verdict: Verdict) -> None:
        if self._stage is COURTEOUS:
            self._answer(verdict)
            return
        self._leave()
        door, connection = self._door, self._connection
        connection.listener = door.name  # a reload may have changed it meanwhile
        if isinstance(verdict, Tls):
            connection.sni = verdict.sni
        received = self._received
        prefetch = received if isinstance(received, bytes) else bytes(received)
        rule = None if door.tunnels.empty else self._rule_for(verdict)
        if rule is not None:
            self._tunnel(rule, prefetch)
        elif isinstance(verdict, Http):
            self.transport.attach(Front(door, door.store, connection), prefetch)
        elif isinstance(verdict, Tls):
            self._terminate(self.transport, prefetch)
        elif verdict.silent:
            self._refuse("silence, and no tunnel rule for it")
        else:
            self._refuse("neither TLS nor HTTP, and no tunnel rule for it")

    def _rule_for(self, verdict: Verdict) -> values.Tunnel | None:
        tunnels, name = self._door.tunnels, self._door.name
        if isinstance(verdict, Tls):
            return tunnels.choose(name, MATCH_TLS, verdict.sni, verdict.alpn)
        if isinstance(verdict, Http):
            return tunnels.choose(name, MATCH_HTTP)
        return tunnels.choose(name, Match.SILENCE if verdict.silent else MATCH_OPAQUE)

    def _tunnel(self, rule: values.Tunnel, prefetch: bytes) -> None:
        door, connection = self._door, self._connection
        if not door.tunnels.admits(rule, connection.ip):
            door.site.refuse(connection, "tunnel", rule.name, None, "this address is not allowed here")
            self.transport.loseConnection()
        elif door.site.turning_away:
            self._refuse("draining")
        else:
            door.layer4.open(self.transport, connection, rule, prefetch)

    def _terminate(self, leg: Leg, prefetch: bytes) -> None:
        door, connection = self._door, self._connection
        if door.store is None:
            self._refuse("TLS, and neither a certificate nor a tunnel rule for it", HANDSHAKE_FAILURE)
            return
        choice = door.store.choose(connection.sni)
        if choice is None:
            if connection.sni is None:
                self._refuse("TLS without a server name, and no default certificate", MISSING_EXTENSION)
            else:
                self._refuse("no certificate for the server name", UNRECOGNIZED_NAME)
            return
        Termination(door, door.store, connection, leg, choice).start(prefetch)

    def _answer(self, verdict: Verdict) -> None:
        """Say in HTTP that a limit is reached; whoever speaks something else is closed."""
        error, self._limit = self._limit, None
        assert error is not None
        if isinstance(verdict, Http):
            self._tell("accept", error.reason, error.status)
            self.transport.write(answer(error.status, error.reason, error.headers))
        else:
            self._tell("accept", error.reason)
        self._finish()

    # The end.

    def late(self) -> None:
        """No verdict in time."""
        seconds = self._door.config.sniff_timeout
        if self._stage is COURTEOUS:
            self._finish()
        elif self._stage is HEADER:
            self._refuse(f"no whole PROXY header in {seconds:g} s")
        elif not self._received:
            self._decide(Opaque(silent=True))
        else:
            self._refuse(f"no verdict in {seconds:g} s")

    def _refuse(self, reason: str, description: int | None = None) -> None:
        """Refuse what was read, with a TLS alert if it was TLS."""
        if self._stage is COURTEOUS:
            self._finish()
            return
        stage = "proxy" if self._stage is HEADER else "sniff"
        self._door.site.refuse(self._connection, stage, "", None, reason)
        if description is not None:
            self.transport.write(alert(description))
        self._finish()

    def _finish(self) -> None:
        """Close in order."""
        self._leave()
        self.transport.loseConnection()

    def _leave(self) -> None:
        """Wait for nothing any more."""
        self._stage = OVER
        self.stop_waiting()
        error, self._limit = self._limit, None
        if error is not None:
            self._tell("accept", error.reason)


classImplements(Preamble, IHalfCloseableProtocol)


def _end_courtesy(door: Door) -> None:
    """A connection that was listened to out of courtesy has ended."""
    door.courtesies -= 1
