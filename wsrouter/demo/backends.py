"""The demonstration backends: WebSocket servers that echo, each telling which one it is.

Each port of an ``[echo NAME]`` section is one backend on 127.0.0.1. The text message ``hi`` sent to port 2222
comes back as ``2222: hi``; binary messages come back unchanged; a plain GET gets a line of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import txaio
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from twisted.application.service import Service
from twisted.internet import ssl
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.python.failure import Failure

from wsrouter.config.values import Echo

#: The largest message and frame, in bytes; also after decompression.
MAX_MESSAGE = 1024 * 1024
#: How long, in seconds, a client may take to go when the service stops.
STOP_TIMEOUT = 1.0
_BACKLOG = 1024
_GOING_AWAY = 1001
_TOO_BIG = 1009


class EchoProtocol(WebSocketServerProtocol):  # type: ignore[misc]
    """One client of one backend."""

    factory: EchoFactory
    closeHandshakeTimeoutCall: Any

    def connectionMade(self) -> None:
        """Join the factory's live clients."""
        super().connectionMade()
        self.factory.clients.add(self)

    def connectionLost(self, reason: Failure) -> None:
        """Leave the factory's live clients."""
        super().connectionLost(reason)
        if self.closeHandshakeTimeoutCall is not None:  # Autobahn leaves this timer running
            self.closeHandshakeTimeoutCall.cancel()
            self.closeHandshakeTimeoutCall = None
        self.factory.gone(self)

    def onConnect(self, request: Any) -> str | None:
        """Accept the subprotocol that the client named first."""
        return next(filter(None, request.protocols), None)

    def onOpen(self) -> None:
        """Read no more from a client than it takes back: without this, a flood is kept in memory."""
        self.registerProducer(self.transport, True)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Echo; text says which backend it was."""
        answer = payload if isBinary else self.factory.prefix + payload
        if len(answer) > MAX_MESSAGE:  # Autobahn would raise
            self.sendCloseFrame(_TOO_BIG, b"the answer would be too big")
        else:
            self.sendMessage(answer, isBinary)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Answer what is no opening handshake; 426 is Autobahn's word for a plain GET, which gets the page."""
        if code != 426:
            super().failHandshake(reason, code, responseHeaders)
            return
        self.wasClean = True
        self._respond("200 OK", self.factory.page)
        self.dropConnection(abort=False)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        """Refuse with the status alone: Autobahn's reasons repeat the client's input and its answers have no length."""
        allow = [("Allow", "GET")] if code == 405 else []
        self._respond(f"{code} Refused", "not a WebSocket opening handshake\n", [*allow, *(responseHeaders or [])])

    def _respond(self, status: str, text: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        body = text.encode()
        fields = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *headers,
        ]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        self.sendData(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)

    def leave(self) -> None:
        """Close politely: a Close frame if the session is open, then the connection."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(_GOING_AWAY, b"the backend is stopping")
        self.unregisterProducer()
        self.transport.loseConnection()


class EchoFactory(WebSocketServerFactory):  # type: ignore[misc]
    """One backend. :meth:`listens_on` completes it once its port is known."""

    protocol = EchoProtocol
    noisy = False

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor=reactor, server="")
        self.setProtocolOptions(
            webStatus=False,  # it would redirect to wherever the query says
            utf8validateIncoming=True,
            requireMaskedClientFrames=True,
            maskServerFrames=False,
            maxFramePayloadSize=MAX_MESSAGE,
            maxMessagePayloadSize=MAX_MESSAGE,
            autoFragmentSize=0,
            failByDrop=False,
            echoCloseCodeReason=True,
            openHandshakeTimeout=5,
            closeHandshakeTimeout=2,
            tcpNoDelay=True,
            perMessageCompressionAccept=_accept_deflate,
            autoPingInterval=0,
            autoPingTimeout=0,
            serveFlashSocketPolicy=False,
            allowedOrigins=["*"],
            allowNullOrigin=True,
            maxConnections=0,
            trustXForwardedFor=0,
        )
        self.clients: set[EchoProtocol] = set()
        self.prefix = b""
        self.page = ""
        self._empty: list[Deferred[None]] = []

    def listens_on(self, port: int) -> None:
        """Take the name of the port that this backend answers on."""
        self.prefix = b"%d: " % port
        self.page = f"wsrouter demonstration backend on port {port}\n"

    def gone(self, client: EchoProtocol) -> None:
        """Forget a client whose connection has ended."""
        self.clients.discard(client)
        if not self.clients:
            waiting, self._empty = self._empty, []
            for deferred in waiting:
                deferred.callback(None)

    def when_empty(self) -> Deferred[None]:
        """Fires once no client is left."""
        deferred: Deferred[None] = Deferred()
        if self.clients:
            self._empty.append(deferred)
        else:
            deferred.callback(None)
        return deferred


def _accept_deflate(offers: Sequence[Any]) -> Any:
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer, max_message_size=MAX_MESSAGE)
    return None


def _tls(certificate: Path) -> ssl.CertificateOptions:
    """Server options from one PEM file with key and chain; without ALPN every browser would be refused."""
    options = ssl.CertificateOptions(raiseMinimumTo=ssl.TLSVersion.TLSv1_2, acceptableProtocols=[b"http/1.1"])
    context = options.getContext()  # one for all connections; CertificateOptions itself takes deprecated objects only
    context.use_certificate_chain_file(str(certificate))
    context.use_privatekey_file(str(certificate))
    return options


class EchoService(Service):
    """The backends of one ``[echo NAME]`` section.

    Starting binds every port or none: a port in use raises ``CannotListenError`` from the start. With a
    ``certificate`` (PEM, key and chain) the backends speak TLS. ``reactor`` provides TCP, SSL and time.
    """

    def __init__(self, reactor: Any, echo: Echo, certificate: Path | None) -> None:
        self._reactor = reactor
        self._echo = echo
        self._certificate = certificate
        self._listening: list[tuple[IListeningPort, EchoFactory, int]] = []

    @property
    def ports(self) -> tuple[int, ...]:
        """The port numbers in use, in the order of the section; empty unless started."""
        return tuple(number for _, _, number in self._listening)

    def privilegedStartService(self) -> None:
        """Bind while the process may still bind low ports."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self._bind()

    def startService(self) -> None:
        """Bind, unless that was done already."""
        if not self._listening:
            self._bind()
        super().startService()  # type: ignore[no-untyped-call]

    def retire(self) -> None:
        """Stop listening for good; live sessions go on."""
        listening, self._listening = self._listening, []
        for port, _, _ in listening:
            port.stopListening()

    def stopService(self) -> Deferred[None]:
        """Stop listening and close every session; fires when the last one is gone, within about a second."""
        super().stopService()  # type: ignore[no-untyped-call]
        listening, self._listening = self._listening, []
        ended: list[Deferred[Any]] = [maybeDeferred(port.stopListening) for port, _, _ in listening]
        factories = [factory for _, factory, _ in listening]
        for client in _clients(factories):
            client.leave()
        ended += [factory.when_empty() for factory in factories]
        abort: IDelayedCall = self._reactor.callLater(STOP_TIMEOUT, _abort, factories)
        stopped = DeferredList(ended, fireOnOneErrback=True)
        return stopped.addBoth(_cancel, abort)

    def _bind(self) -> None:
        txaio.config.loop = self._reactor
        options = None if self._certificate is None else _tls(self._certificate)
        try:
            for number in self._echo.ports:
                factory = EchoFactory(self._reactor)
                if options is None:
                    port = self._reactor.listenTCP(number, factory, _BACKLOG, "127.0.0.1")
                else:
                    port = self._reactor.listenSSL(number, factory, options, _BACKLOG, "127.0.0.1")
                bound: int = port.getHost().port  # the number asked for may be 0: any
                factory.listens_on(bound)
                self._listening.append((port, factory, bound))
        except BaseException:
            listening, self._listening = self._listening, []
            for port, _, _ in listening:
                port.stopListening()
            raise


def _clients(factories: Sequence[EchoFactory]) -> list[EchoProtocol]:
    return [client for factory in factories for client in factory.clients]


def _abort(factories: Sequence[EchoFactory]) -> None:
    for client in _clients(factories):
        client.transport.abortConnection()


def _cancel(result: object, call: IDelayedCall) -> Any:
    if call.active():
        call.cancel()
    return result if isinstance(result, Failure) else None
