"""A listener: accepts connections, waits for the verdict on their first bytes, hands them to layer 4 or layer 7.

One absolute deadline runs from the accept to the verdict, whatever arrives meanwhile. The bytes that were read for
the verdict, the prefetch, go on untouched, once: to the tunnel, to TLS, or to the front.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IListeningPort,
    IReactorFDSet,
    IReactorSocket,
    IReadDescriptor,
)
from twisted.internet.protocol import Factory, ServerFactory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from wsrouter.config import values
from wsrouter.config.endpoint import Address, bound_address
from wsrouter.config.values import Match
from wsrouter.errors import ListenError, SniffError
from wsrouter.layer4.tunnel import Layer4
from wsrouter.layer7.certificates import CertificateStore
from wsrouter.layer7.front import Front
from wsrouter.layer7.site import Site
from wsrouter.layer7.termination import Termination
from wsrouter.live.connection import Connection, connection_of
from wsrouter.policy.tunnels import TunnelTable
from wsrouter.relay.acceptor import Acceptor
from wsrouter.relay.deadlines import Deadline
from wsrouter.relay.leg import Leg
from wsrouter.sniff.sniffer import PREFETCH_LIMIT, alert, sniff
from wsrouter.sniff.verdict import Http, Opaque, Tls, Verdict

#: Connections that the kernel keeps until they are accepted; it cuts this to net.core.somaxconn.
BACKLOG = 4096

#: The first byte of a ClientHello's record (RFC 8446 5.1).
TLS_HANDSHAKE = 0x16

# TLS alerts (RFC 8446 6.2, RFC 6066 3).
HANDSHAKE_FAILURE = 40
MISSING_EXTENSION = 109
UNRECOGNIZED_NAME = 112


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
        #: What was bound, or is to be; after a reload that may not be what the configuration says.
        self.endpoint = config.endpoint
        #: None: TLS is not ended here.
        self.store = store
        self.tunnels = tunnels
        self.layer4 = layer4
        self.site = site
        self.relay = site.relay
        self._port: IListeningPort | None = None
        self._acceptor: Acceptor | None = None

    def bind(self, reactor: IReactorFDSet) -> None:
        """Bind the endpoint and queue connections.

        ``start`` serves them. Raises ListenError with a reason in one line.
        """
        results: list[IListeningPort | Failure] = []
        factory = Factory()
        factory.noisy = False
        try:
            listening: Deferred[IListeningPort] = serverFromString(  # type: ignore[no-untyped-call]
                reactor, self.config.endpoint
            ).listen(factory)
        except LookupError:
            raise ListenError(
                f"listener {self.name}: {self.config.endpoint}: systemd has passed no such socket"
            ) from None
        except (ValueError, OSError) as error:
            raise ListenError(
                f"listener {self.name}: cannot listen on {self.config.endpoint}: {error}", getattr(error, "errno", None)
            ) from None
        listening.addBoth(results.append)
        if not results:
            raise ListenError(f"listener {self.name}: {self.config.endpoint} cannot be bound at once")
        port = results[0]
        if isinstance(port, Failure):
            cause = _cause(port.value)
            raise ListenError(
                f"listener {self.name}: cannot listen on {self.config.endpoint}: {_why(cause)}",
                getattr(cause, "errno", None),
            ) from None
        self._take(reactor, port)
        if "backlog=" not in self.config.endpoint:
            # Linux lets a listening socket listen again, with another backlog; Twisted's default is 50.
            self.resume()

    def bind_over(self, reactor: IReactorFDSet, old: Sequence[Listener]) -> None:
        """Bind a TCP address of which ``old`` ones have a part; they are to be stopped, or to ``resume``.

        Both listen for a while where they belong to the same user (SO_REUSEPORT). Else the old ones are suspended
        just before the new one listens. Raises ListenError.
        """
        address = bound_address(self.endpoint)
        for one in old:
            one._share(True)
        try:
            try:
                sock = _listening(address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                for one in old:
                    one.suspend()
                sock = _listening(address)
        except OSError as error:
            raise ListenError(
                f"listener {self.name}: cannot listen on {self.endpoint}: {_why(error)}", error.errno
            ) from None
        finally:
            for one in old:
                one._share(False)
        factory = ServerFactory()
        factory.noisy = False
        with sock:
            self._take(reactor, cast(IReactorSocket, reactor).adoptStreamPort(sock.fileno(), sock.family, factory))

    def _take(self, reactor: IReactorFDSet, port: IListeningPort) -> None:
        # From now on the relay serves the socket, not the reactor.
        reactor.removeReader(cast(IReadDescriptor, port))
        self._port = port

    def _share(self, shared: bool) -> None:
        """Let another socket of this user have the port as well, or not."""
        with self._socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)

    @property
    def address(self) -> str:
        """The address that was bound, as in a URL: ``127.0.0.1:8080``, ``[::1]:8080``, ``unix:/run/x.sock``."""
        assert self._port is not None
        host: Any = self._port.getHost()
        if isinstance(host, UNIXAddress):
            return f"unix:{os.fsdecode(host.name or b'')}"
        return f"[{host.host}]:{host.port}" if isinstance(host, IPv6Address) else f"{host.host}:{host.port}"

    @property
    def port(self) -> int:
        """The number of the port that was bound; 0 for a unix socket."""
        assert self._port is not None
        return int(getattr(self._port.getHost(), "port", 0))

    @property
    def live(self) -> int:
        """Client connections that were accepted here and are still open, those of sessions included."""
        return 0 if self._acceptor is None else self._acceptor.live

    def start(self) -> None:
        """Accept connections."""
        port = self._port
        assert port is not None
        self._acceptor = Acceptor(
            self.relay,
            cast(IReadDescriptor, port).fileno(),
            self.name,
            self._accepted,
            self.config.max_connections,
            self.config.tcp_keepalive,
        )

    def reconfigure(self, config: values.Listener, store: CertificateStore | None, tunnels: TunnelTable) -> None:
        """Take over a reload, in place: connections that are accepted, or get their verdict, from now on follow it."""
        self.config = config
        self.name = config.name
        self.store = store
        self.tunnels = tunnels
        if self._acceptor is not None:
            self._acceptor.reconfigure(self.name, config.max_connections, config.tcp_keepalive)

    def suspend(self) -> None:
        """Leave the address to another listener, but keep the port bound, so that ``resume`` cannot fail.

        Linux takes a listening socket that is shut down out of listening. Who waits in its queue is accepted before.
        """
        if self._acceptor is not None:
            self._acceptor.accept_waiting()
        with self._socket() as bound:
            bound.shutdown(socket.SHUT_RDWR)

    def resume(self) -> None:
        """Listen again, behind ``suspend``."""
        with self._socket() as bound:
            bound.listen(BACKLOG)

    def _socket(self) -> socket.socket:
        """A duplicate of the listening socket."""
        return socket.socket(fileno=os.dup(cast(IReadDescriptor, self._port).fileno()))

    def stop(self) -> Deferred[None] | None:
        """Accept no more and close the port; live connections go on."""
        if self._acceptor is not None:
            # Whoever waits in the kernel's queue has been connected already; closing the port would reset them.
            self._acceptor.accept_waiting()
            self._acceptor.abort()
        return self._close()

    def discard(self) -> Deferred[None] | None:
        """Close the port of a listener that was not wanted after all, at once; who waits there is not served."""
        if self._acceptor is not None:
            self._acceptor.abort()
        return self._close()

    def _close(self) -> Deferred[None] | None:
        port = self._port
        if port is None:
            return None
        # Twisted closes a turn later: who came until then would wait, to be reset. The sockets of systemd are shared
        # with it, and not ours to shut down.
        if not self.endpoint.startswith("systemd:"):
            with contextlib.suppress(OSError), self._socket() as bound:
                bound.shutdown(socket.SHUT_RDWR)
        self._port = None
        return port.stopListening()

    def _accepted(self, leg: Leg) -> None:
        connection = connection_of(leg, self.site.registry.number(), self.name)
        leg.attach(Preamble(self, connection))


@implementer(IHalfCloseableProtocol)
class Preamble(TwistedProtocol):
    """The protocol on a client's leg until there is a verdict."""

    def __init__(self, listener: Listener, connection: Connection) -> None:
        self._listener = listener
        self._connection = connection
        self._received: bytes | bytearray = b""
        self._deadline: Deadline | None = listener.relay.deadlines.after(listener.config.sniff_timeout, self._late)

    def dataReceived(self, data: bytes) -> None:
        """Look at the first bytes until they tell what they are."""
        if self._received:
            if isinstance(self._received, bytes):
                self._received = bytearray(self._received)
            self._received += data
        else:
            self._received = data
        try:
            verdict = sniff(self._received)
        except SniffError as error:
            self._refuse(error.reason, error.alert)
            return
        if verdict is not None:
            self._decide(verdict)
        elif len(self._received) > PREFETCH_LIMIT:
            self._refuse(f"no verdict in {PREFETCH_LIMIT} bytes")

    def readConnectionLost(self) -> None:
        """A FIN before there was a verdict: a few bytes that could have become HTTP are opaque, then.

        Who said nothing, or left within a ClientHello, has changed its mind.
        """
        if self._received and self._received[0] != TLS_HANDSHAKE:
            self._decide(Opaque())
        else:
            self._stop_waiting()
            cast(Leg, self.transport).loseConnection()

    def writeConnectionLost(self) -> None:
        """The leg never says this."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client left before there was a verdict."""
        self._stop_waiting()

    def _decide(self, verdict: Verdict) -> None:
        self._stop_waiting()
        listener, connection = self._listener, self._connection
        leg = cast(Leg, self.transport)
        prefetch = bytes(self._received)
        match verdict:
            case Tls(sni, alpn):
                connection.sni = sni
                rule = listener.tunnels.choose(listener.name, Match.TLS, sni, alpn)
            case Http():
                rule = listener.tunnels.choose(listener.name, Match.HTTP)
            case Opaque(silent):
                rule = listener.tunnels.choose(listener.name, Match.SILENCE if silent else Match.OPAQUE)
        if rule is not None and listener.site.draining:
            self._refuse("draining")
        elif rule is not None:
            listener.layer4.open(leg, connection, rule, prefetch)
        elif isinstance(verdict, Tls):
            self._terminate(leg, prefetch)
        elif isinstance(verdict, Http):
            leg.attach(Front(listener.site, listener.config, listener.store, connection), prefetch)
        elif verdict.silent:
            self._refuse("silence, and no tunnel rule for it")
        else:
            self._refuse("neither TLS nor HTTP, and no tunnel rule for it")

    def _terminate(self, leg: Leg, prefetch: bytes) -> None:
        store = self._listener.store
        if store is None:
            self._refuse("TLS, and neither a certificate nor a tunnel rule for it", HANDSHAKE_FAILURE)
            return
        choice = store.choose(self._connection.sni)
        if choice is None:
            if self._connection.sni is None:
                self._refuse("TLS without a server name, and no default certificate", MISSING_EXTENSION)
            else:
                self._refuse("no certificate for the server name", UNRECOGNIZED_NAME)
            return
        listener = self._listener
        Termination(listener.site, listener.config, store, self._connection, leg, choice).start(prefetch)

    def _late(self) -> None:
        self._deadline = None
        if not self._received:
            self._decide(Opaque(silent=True))
        else:
            self._refuse(f"no verdict in {self._listener.config.sniff_timeout:g} s")

    def _refuse(self, reason: str, description: int | None = None) -> None:
        self._stop_waiting()
        self._listener.site.refuse(self._connection, "sniff", "", None, reason)
        leg = cast(Leg, self.transport)
        if description is not None:
            leg.write(alert(description))
        leg.loseConnection()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _listening(address: Address) -> socket.socket:
    """A socket that listens at a TCP address, together with others of this user that allow it at this moment."""
    sock = socket.socket(socket.AF_INET6 if address.kind == "tcp6" else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    except OSError:
        sock.close()
        raise
    return sock


def _cause(error: BaseException | None) -> BaseException | None:
    return error.socketError if isinstance(error, CannotListenError) else error


def _why(cause: BaseException | None) -> str:
    """Why a port cannot be bound, in few words."""
    if isinstance(cause, socket.gaierror | OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause)
