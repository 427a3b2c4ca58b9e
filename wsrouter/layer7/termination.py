"""Where a client's TLS ends: the handshake, in its own time limit; the front follows."""

from __future__ import annotations

from wsrouter.config import values
from wsrouter.layer7.certificates import CertificateStore, Choice, client_subject
from wsrouter.layer7.front import Front
from wsrouter.layer7.site import Site
from wsrouter.live.connection import Connection
from wsrouter.policy.admission import Admission
from wsrouter.relay.deadlines import Deadline
from wsrouter.relay.leg import Leg
from wsrouter.relay.tls import TlsLeg


class Termination:
    """One TLS handshake with a client, with the certificate that was chosen for its ClientHello.

    ``leg`` is the plain leg that the ClientHello was read from; its socket goes on as a leg with TLS.
    """

    __slots__ = ("_admission", "_choice", "_connection", "_deadline", "_leg", "_listener", "_site", "_store")

    def __init__(
        self,
        site: Site,
        listener: values.Listener,
        store: CertificateStore,
        admission: Admission,
        connection: Connection,
        leg: Leg,
        choice: Choice,
    ) -> None:
        self._site = site
        self._listener = listener
        self._store = store
        self._admission = admission
        self._connection = connection
        self._choice = choice
        home, leg.home = leg.home, None
        self._leg = TlsLeg(site.relay, leg.release(), leg.peername, choice.context, server_side=True)
        self._leg.home = home
        self._deadline: Deadline | None = site.relay.deadlines.after(listener.tls_timeout, self._late)

    def start(self, prefetch: bytes) -> None:
        """Do the handshake; ``prefetch`` holds the ClientHello."""
        self._leg.handshake(self._done, self._failed, prefetch)

    def _done(self) -> None:
        self._stop_waiting()
        connection = self._connection
        connection.secure = True
        if self._choice.client_auth:
            connection.client_subject = client_subject(self._leg.tls)
        front = Front(self._site, self._listener, self._store, self._admission, connection)
        self._leg.attach(front)
        front.await_head()

    def _failed(self, reason: str) -> None:
        self._stop_waiting()
        self._refuse(f"the handshake failed: {reason}")

    def _late(self) -> None:
        self._deadline = None
        self._refuse(f"no handshake in {self._listener.tls_timeout:g} s")
        self._leg.abortConnection()

    def _refuse(self, reason: str) -> None:
        self._site.refuse(self._connection, "tls", self._choice.name, None, reason)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
