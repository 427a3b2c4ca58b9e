"""A listener: accepts connections and lets each say what it is; from there it goes to layer 4 or layer 7."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from socket import socket

from twisted.internet.interfaces import IReactorFDSet

from wsrouter.config import values
from wsrouter.config.endpoint import bound_address
from wsrouter.errors import ListenError
from wsrouter.layer4.tunnel import Layer4
from wsrouter.layer7.certificates import CertificateStore
from wsrouter.layer7.site import Site
from wsrouter.listener.port import Port, bind, bind_over
from wsrouter.listener.preamble import Preamble
from wsrouter.live.connection import connection_of
from wsrouter.policy.admission import Admission
from wsrouter.policy.sharing import Alone, Gauge, Sharing, listener_gauge
from wsrouter.policy.tunnels import TunnelTable
from wsrouter.relay.acceptor import Acceptor
from wsrouter.relay.deadlines import Deadline
from wsrouter.relay.leg import Leg

#: How long a listener that is given up still takes in who is on the way, in seconds: a round trip, over most of the
#: world. Who comes meanwhile has to ask again, so it is no longer than that.
GRACE = 0.25


class Listener:
    """One ``[listener]`` of the configuration, running."""

    def __init__(
        self,
        config: values.Listener,
        store: CertificateStore | None,
        tunnels: TunnelTable,
        layer4: Layer4,
        site: Site,
        accepts: bool = True,
        sharing: Sharing | None = None,
    ) -> None:
        self._sharing = sharing or Alone()
        self.config = config
        #: No: the port is bound for other processes, and nobody is accepted in this one.
        self.accepts = accepts
        self.name = config.name
        #: What was bound, or is to be; after a reload that may not be what the configuration says.
        self.endpoint = config.endpoint
        #: None: TLS is not ended here.
        self.store = store
        self.tunnels = tunnels
        self.layer4 = layer4
        self.site = site
        self.relay = site.relay
        #: Its lists, limits and what they have counted; a reload changes it in place.
        self.admission = Admission(config, sharing)
        #: Another object whenever who comes in has to show something else: older connections end with their request.
        self.epoch = object()
        #: Connections over a limit that are still given a chance to hear of it.
        self.courtesies = 0
        self._port: Port | None = None
        self._acceptor: Acceptor | None = None
        #: Runs while it is given up and takes in the last ones.
        self._grace: Deadline | None = None

    def bind(self, reactor: IReactorFDSet) -> None:
        """Bind the endpoint and queue connections.

        ``start`` serves them. Raises ListenError with a reason in one line.
        """
        with self._named_in_errors():
            self._port = bind(reactor, self.endpoint)

    def adopt(self, port: Port) -> None:
        """Use a port that is bound already."""
        self._port = port

    def bind_over(self, old: Sequence[Listener]) -> None:
        """Bind a TCP address of which ``old`` ones have a part; they are to be stopped, or to ``resume``.

        Both listen for a while where they belong to the same user. Else the old ones are suspended just before the new
        one listens. Raises ListenError.
        """

        def suspend() -> None:
            for one in old:
                one._suspend()

        with self._named_in_errors():
            ports = [one._port for one in old if one._port is not None]
            self._port = bind_over(bound_address(self.endpoint), ports, suspend)

    @contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        try:
            yield
        except ListenError as error:
            raise ListenError(
                f"listener {self.name}: cannot listen on {self.endpoint}: {error}", error.number
            ) from None

    @property
    def socket(self) -> socket:
        """The socket that was bound."""
        assert self._port is not None
        return self._port.socket

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
    def stopped(self) -> bool:
        """Whether the port is closed."""
        return self._port is None

    @property
    def live(self) -> int:
        """Client connections that were accepted here and are still open, those of sessions included."""
        return 0 if self._acceptor is None else self._acceptor.live

    def start(self) -> None:
        """Accept connections."""
        assert self._port is not None
        if not self.accepts:
            return
        self._acceptor = Acceptor(
            self.relay,
            self._port.socket.fileno(),
            self.name,
            self._accepted,
            self.config.max_connections,
            self.config.tcp_keepalive,
            self._gauge(),
        )

    def _gauge(self) -> Gauge | None:
        """What counts who lives in other processes that accept here too."""
        return self._sharing.gauge(listener_gauge(self.name))

    def reconfigure(self, config: values.Listener, store: CertificateStore | None, tunnels: TunnelTable) -> None:
        """Take over a reload, in place: connections that are accepted, or get their verdict, from now on follow it."""
        if _demands(self.config, self.store) != _demands(config, store):
            self.epoch = object()
        self.config = config
        self.name = config.name
        self.store = store
        self.tunnels = tunnels
        self.admission.reconfigure(config)
        if self._acceptor is not None:
            self._acceptor.reconfigure(self.name, config.max_connections, config.tcp_keepalive, self._gauge())

    def _suspend(self) -> None:
        """Leave the address to another listener, but keep the port bound."""
        assert self._port is not None
        self._port.turn_away()
        if self._acceptor is not None:
            self._acceptor.accept_waiting()
        self._port.suspend()

    def resume(self) -> None:
        """Listen again, where another listener has had the address for a moment."""
        assert self._port is not None
        self._port.resume()

    def leave(self) -> None:
        """Stop in a moment: whose connection is on its way still comes in, and the port is closed behind the last.

        ``stop`` cuts the moment short; it has to be called where other processes accept.
        """
        self.epoch = object()
        if self._port is None:
            return
        self._port.turn_away()
        if self._acceptor is not None:
            self._grace = self.relay.deadlines.after(GRACE, self.stop)
        elif self.accepts:
            self.stop()

    def stop(self) -> None:
        """Accept no more and close the port; live sessions and tunnels go on, and so does what is being asked for."""
        self.epoch = object()
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if self._port is not None and self._acceptor is not None:
            # Whoever waits in the kernel's queue has been connected already; closing the port would reset them.
            self._port.turn_away()
            self._acceptor.accept_waiting()
        self.discard()

    def discard(self) -> None:
        """Close the port of a listener that was not wanted after all, at once; who waits there is not served."""
        if self._acceptor is not None:
            self._acceptor.abort()
        port, self._port = self._port, None
        if port is not None:
            port.close()

    def _accepted(self, leg: Leg) -> None:
        connection = connection_of(leg, self.site.registry.number(), self.name, self.epoch)
        leg.attach(Preamble(self, connection))


def _demands(config: values.Listener, store: CertificateStore | None) -> tuple[object, ...]:
    """What a client has to be, or to show, when it connects, and is not asked for again."""
    certificates = {} if store is None else store.demands
    return config.allow, config.deny, config.plain, config.proxy_protocol, config.tls_min, certificates
