"""A listener: accepts connections and lets each say what it is; from there it goes to layer 4 or layer 7."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorFDSet

from wsrouter.config import values
from wsrouter.errors import RouterError
from wsrouter.layer4.tunnel import Layer4
from wsrouter.layer7.certificates import CertificateStore
from wsrouter.layer7.site import Site
from wsrouter.listener.port import Port, bind
from wsrouter.listener.preamble import Preamble
from wsrouter.live.connection import connection_of
from wsrouter.policy.admission import Admission
from wsrouter.policy.tunnels import TunnelTable
from wsrouter.relay.acceptor import Acceptor
from wsrouter.relay.leg import Leg


class Listener:
    """One ``[listener]`` of the configuration, running."""

    def __init__(
        self,
        config: values.Listener,
        store: CertificateStore | None,
        tunnels: TunnelTable,
        layer4: Layer4,
        site: Site,
    ) -> None:
        self.config = config
        self.name = config.name
        #: None: TLS is not ended here.
        self.store = store
        self.tunnels = tunnels
        self.layer4 = layer4
        self.site = site
        self.relay = site.relay
        #: Its lists, limits and what they have counted; a reload changes it in place.
        self.admission = Admission(config)
        #: Connections over a limit that are still given a chance to hear of it.
        self.courtesies = 0
        self._port: Port | None = None
        self._acceptor: Acceptor | None = None

    def bind(self, reactor: IReactorFDSet) -> None:
        """Bind the endpoint and queue connections.

        ``start`` serves them. Raises RouterError with a reason in one line.
        """
        try:
            self._port = bind(reactor, self.config.endpoint)
        except RouterError as error:
            raise RouterError(f"listener {self.name}: cannot listen on {self.config.endpoint}: {error}") from None

    @property
    def address(self) -> str:
        """The address that was bound, as in a URL: ``127.0.0.1:8080``, ``[::1]:8080``, ``unix:/run/x.sock``."""
        assert self._port is not None
        return self._port.address

    @property
    def port(self) -> int:
        """The number of the port that was bound; 0 for a unix socket."""
        assert self._port is not None
        return self._port.number

    @property
    def live(self) -> int:
        """Client connections that were accepted here and are still open, those of sessions included."""
        return 0 if self._acceptor is None else self._acceptor.live

    def start(self) -> None:
        """Accept connections."""
        assert self._port is not None
        self._acceptor = Acceptor(
            self.relay,
            self._port.socket.fileno(),
            self.name,
            self._accepted,
            self.config.max_connections,
            self.config.tcp_keepalive,
        )

    def stop(self) -> None:
        """Accept no more and close the port; live connections go on."""
        if self._acceptor is not None:
            # Whoever waits in the kernel's queue has been connected already; closing the port would reset them.
            self._acceptor.accept_waiting()
            self._acceptor.abort()
        port, self._port = self._port, None
        if port is not None:
            port.close()

    def _accepted(self, leg: Leg) -> None:
        connection = connection_of(leg, self.site.registry.number(), self.name)
        leg.attach(Preamble(self, connection))
