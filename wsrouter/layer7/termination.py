"""Where a client's TLS ends: the handshake, in its own time limit; the front follows."""

from __future__ import annotations

from wsrouter.layer7.certificates import CertificateStore, Choice, client_subject
from wsrouter.layer7.front import Front
from wsrouter.layer7.site import Door
from wsrouter.live.connection import Connection
from wsrouter.relay.deadlines import Waiter
from wsrouter.relay.leg import Leg
from wsrouter.relay.tls import TlsLeg


class Termination(Waiter):
    """One TLS handshake with a client, with the certificate that was chosen for its ClientHello.

    ``leg`` is the plain leg that the ClientHello was read from; its socket goes on as a leg with TLS.
    """

    __slots__ = ("_choice", "_connection", "_door", "_leg", "_store", "_timeout")

    def __init__(
        self,
        door: Door,
        store: CertificateStore,
        connection: Connection,
        leg: Leg,
        choice: Choice,
    ) -> None:
        self._door = door
        self._store = store
        self._connection = connection
        self._choice = choice
        home, leg.home = leg.home, None
        relay = door.site.relay
        self._leg = TlsLeg(relay, leg.release(), leg.peername, choice.context, server_side=True)
        self._leg.home = home
        self._timeout = door.config.tls_timeout
        self._slice = None
        self.wait(relay.deadlines, self._timeout)

    def start(self, prefetch: bytes) -> None:
        """Do the handshake; ``prefetch`` holds the ClientHello."""
        self._leg.handshake(self._done, self._failed, prefetch)

    def _done(self) -> None:
        self.stop_waiting()
        connection = self._connection
        connection.secure = True
        if self._choice.client_auth:
            connection.client_subject = client_subject(self._leg.tls)
        front = Front(self._door, self._store, connection)
        self._leg.attach(front)
        if self._door.site.turning_away and not self._leg.has_unread():
            front.drain()
        else:
            front.await_head()

    def _failed(self, reason: str) -> None:
        self.stop_waiting()
        self._refuse(f"the handshake failed: {reason}")

    def late(self) -> None:
        """No handshake in time."""
        self._refuse(f"no handshake in {self._timeout:g} s")
        self._leg.abortConnection()

    def _refuse(self, reason: str) -> None:
        self._door.site.refuse(self._connection, "tls", self._choice.name, None, reason)
