"""Probes: one connection to one backend that shows whether it serves.

Three kinds, each saying more than the one before: the connection stands, TLS included where the check speaks it; an
HTTP request is answered; a WebSocket opens, a ping comes back as its pong, and the WebSocket is closed in order. A
server can well accept connections, and even answer GET, long after its WebSockets have died.

What a backend sends is bounded however it behaves: heads by the limits that all heads have, messages by not being
kept, frames by their number, and all of it by one absolute deadline. Autobahn speaks the frames. Of the opening
handshake it sees a 101 of our own words, once the backend's has proved itself: its parser knows no limit of size, and
raises at a byte that is no UTF-8.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from wsrouter.backends.dial import Address, Dial, TlsClient
from wsrouter.config.values import Check, CheckKind
from wsrouter.errors import BackendError, DialError
from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import Relay
from wsrouter.relay.tls import reason_of
from wsrouter.wire.head import ResponseHead, cut_response, parse_response
from wsrouter.wire.opening import Upgrade, accept_for, verify_answer

#: How the log of a backend shows where these requests come from.
USER_AGENT = "wsrouter-check"
#: The most interim answers (1xx) before the one that counts.
INTERIM_LIMIT = 8
#: The most frames that a backend may send before its pong: each costs Autobahn some time.
FRAME_LIMIT = 1000

_AUTOBAHN_DROPPED = "I dropped the WebSocket TCP connection: "


def probe(
    relay: Relay,
    check: Check,
    addresses: Sequence[Address],
    host: str,
    tls: TlsClient | None = None,
    preface: bytes = b"",
) -> Deferred[float]:
    """Probe the backend at ``addresses`` once, as ``check`` says, within ``check.timeout`` seconds overall.

    ``host`` is for the Host field, ``preface`` opens the connection. Fires, never at once but for a backend without an
    address, with the round-trip time in seconds: of connecting, of the request, or of the ping. Fails with a DialError
    whose reason is in few words. Cancelling it ends the connection.
    """
    if not addresses:
        return fail(DialError("its name does not resolve"))
    return _Probe(relay, check, addresses, host, tls, preface).result


class _Probe:
    """One probe under way. A conversation on its leg calls ``settle``, ``finish`` and ``fail``."""

    def __init__(
        self,
        relay: Relay,
        check: Check,
        addresses: Sequence[Address],
        host: str,
        tls: TlsClient | None,
        preface: bytes,
    ) -> None:
        self.relay = relay
        self.check = check
        self.host = host
        self.result: Deferred[float] = Deferred(self._cancelled)
        #: What is missing, for the log of a failure.
        self.awaits = "connection"
        self._over = False
        self._leg: Leg | None = None
        self._rtt: float | None = None
        self._began = relay.seconds()
        self._dial = Dial(relay, addresses, check.timeout, self._connected, self.fail, tls, preface=preface)
        self._deadline = relay.deadlines.after(check.timeout, self._expired)

    def asks(self, awaits: str) -> None:
        """What is sent now must be answered: a round trip begins."""
        self.awaits = awaits
        self._began = self.relay.seconds()

    def settle(self) -> None:
        """The answer is there: whatever comes now, the probe has passed. ``finish`` follows, or the deadline."""
        if self._rtt is None:
            self._rtt = self.relay.seconds() - self._began

    def finish(self) -> None:
        """It has passed, and there is nothing more to say: close in order."""
        self.settle()
        leg = self._end(abort=False)
        if leg is not None:
            leg.loseConnection()
            assert self._rtt is not None
            self.result.callback(self._rtt)

    def fail(self, error: DialError) -> None:
        """It has failed, unless it was settled before."""
        if self._rtt is not None:
            self.finish()
        elif not self._over:
            self._end()
            self.result.errback(error)

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""
        error = reason.value
        assert isinstance(error, Exception)
        how = "connection closed" if isinstance(error, ConnectionDone | ConnectionLost) else reason_of(error)
        self.fail(DialError(f"{how} before its {self.awaits}"))

    def _connected(self, leg: Leg) -> None:
        self._leg = leg
        if self.check.kind is CheckKind.TCP:
            self.finish()
        elif self.check.kind is CheckKind.HTTP:
            leg.attach(_Request(self, leg))
        else:
            leg.attach(_opening(self, leg))

    def _cancelled(self, _: Deferred[float]) -> None:
        self._end()

    def _expired(self) -> None:
        self.fail(DialError(f"no {self.awaits} in time", timed_out=True))

    def _end(self, *, abort: bool = True) -> Leg | None:
        """Hold on to nothing; returns the leg, if there is one."""
        self._over = True
        self._deadline.cancel()
        self._dial.cancel()
        leg, self._leg = self._leg, None
        if leg is not None and abort:
            leg.abortConnection()
        return leg


class _Answer:
    """Finds the head of the answer in what a backend sends, interim answers passed over."""

    def __init__(self) -> None:
        #: What has come and is no head yet; behind the head, the rest.
        self.data = bytearray()
        self._seen = 0
        self._interim = 0

    def feed(self, data: bytes) -> ResponseHead | None:
        """The head, once it is whole; BackendError for one that is malformed or too long."""
        self.data += data
        while True:
            end = cut_response(self.data, self._seen)
            if end is None:
                self._seen = len(self.data)
                return None
            head = parse_response(bytes(self.data[:end]))
            del self.data[:end]
            self._seen = 0
            if head.status >= 200 or head.status == 101:
                return head
            self._interim += 1
            if self._interim > INTERIM_LIMIT:
                raise BackendError(502, f"more than {INTERIM_LIMIT} interim answers")


class _Request(Protocol):
    """A GET, of whose answer only the head is read."""

    def __init__(self, probe: _Probe, leg: Leg) -> None:
        self._probe = probe
        self._leg = leg
        self._answer = _Answer()

    def connectionMade(self) -> None:
        """Ask."""
        self._probe.asks("answer")
        self._leg.write(_head(self._probe, "Connection: close"))

    def dataReceived(self, data: bytes) -> None:
        """Judge the answer by its status."""
        try:
            head = self._answer.feed(data)
        except BackendError as error:
            self._probe.fail(DialError(error.reason, nonsense=True))
            return
        if head is None:
            return
        if any(first <= head.status <= last for first, last in self._probe.check.statuses):
            self._probe.finish()
        else:
            self._probe.fail(DialError(f"answered {head.status}", nonsense=True))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The backend has left, before its answer or behind it."""
        self._probe.lost(reason)


def _head(probe: _Probe, *lines: str) -> bytes:
    return "\r\n".join(
        [
            f"GET {probe.check.path} HTTP/1.1",
            f"Host: {probe.host}",
            f"User-Agent: {USER_AGENT}",
            *lines,
            "\r\n",
        ]
    ).encode()


class _Mute:
    """Stands for Autobahn's logger, which tells of every failure at its own length: the check tells it, once."""

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    trace = debug = info = warn = error = _ignore


class _Conversation(WebSocketClientProtocol):  # type: ignore[misc]
    """A WebSocket that opens, sees a ping answered, and closes."""

    log = _Mute()
    websocket_key: bytes

    def __init__(self, probe: _Probe, leg: Leg) -> None:
        super().__init__()
        self._probe = probe
        self._leg = leg
        self._answer: _Answer | None = _Answer()
        self._subprotocols = () if probe.check.subprotocol is None else (probe.check.subprotocol,)
        self._payload = secrets.token_bytes(8)
        self._frames = 0

    # The opening handshake.

    def startHandshake(self) -> None:
        """Ask. Autobahn would always put a port into Host."""
        self.websocket_key = base64.b64encode(secrets.token_bytes(16))
        lines = [
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self.websocket_key.decode()}",
            "Sec-WebSocket-Version: 13",
            *[f"Sec-WebSocket-Protocol: {name}" for name in self._subprotocols],
        ]
        self._probe.asks("answer")
        self._leg.write(_head(self._probe, *lines))

    def dataReceived(self, data: bytes) -> None:
        """Hold the answer's head back until it is whole and proved; Autobahn gets the frames behind it."""
        if self._answer is not None:
            try:
                if not self._opened(self._answer, data):
                    return
            except BackendError as error:
                self._refuse(error.reason)
                return
            data, self._answer = bytes(self._answer.data), None
            super().dataReceived(self._canonical())
        if data:
            super().dataReceived(data)

    def _opened(self, answer: _Answer, data: bytes) -> bool:
        head = answer.feed(data)
        if head is None:
            return False
        if head.status != 101:
            raise BackendError(502, f"answered {head.status}")
        granted = verify_answer(head, Upgrade(self.websocket_key, self._subprotocols, ()))
        if self._subprotocols and granted.subprotocol is None:
            raise BackendError(502, f"did not choose the subprotocol {self._subprotocols[0]}")
        return True

    def _canonical(self) -> bytes:
        return b"HTTP/1.1 101 .\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n" % (
            accept_for(self.websocket_key)
        )

    # The ping, and the end.

    def onOpen(self) -> None:
        """The handshake is over: ask for a sign of life."""
        self._probe.asks("pong")
        self.sendPing(self._payload)

    def onPong(self, payload: bytes) -> None:
        """It lives, if this is our own ping's: others may come unasked (RFC 6455 5.5.3)."""
        if payload == self._payload:
            self._probe.settle()
            self.sendClose(1000)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool | None:
        """The backend answers our Close, or will not wait for it."""
        over: bool | None = super().onCloseFrame(code, reasonRaw)
        self._probe.fail(DialError(f"closed with code {code or 1005} before its pong"))
        return over

    def onFrameBegin(self) -> None:
        """No backend has to say so much."""
        self._frames += 1
        if self._frames > FRAME_LIMIT:
            self._refuse(f"more than {FRAME_LIMIT} frames before its pong")
        super().onFrameBegin()

    # Nobody reads the messages: they are dropped as they come.

    def onMessageBegin(self, isBinary: bool) -> None: ...

    def onMessageFrameBegin(self, length: int) -> None: ...

    def onMessageFrameData(self, payload: bytes) -> None: ...

    def onMessageFrameEnd(self) -> None: ...

    def onMessageEnd(self) -> None: ...

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Autobahn has ended the connection, or ``connectionLost`` has told already."""

    def dropConnection(self, abort: bool = False) -> None:
        """Autobahn gives up: it saw a violation."""
        self._probe.fail(DialError(str(self.wasNotCleanReason).removeprefix(_AUTOBAHN_DROPPED), nonsense=True))
        super().dropConnection(abort)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The backend has left, before its pong or behind it."""
        super().connectionLost(reason)
        self._probe.lost(reason)

    def _refuse(self, reason: str) -> None:
        self._probe.fail(DialError(reason, nonsense=True))
        self.dropConnection(abort=True)


def _opening(probe: _Probe, leg: Leg) -> IProtocol:
    """A protocol with a factory of its own, every option set: no limit and no timer is left to chance."""
    factory = WebSocketClientFactory(reactor=probe.relay.reactor, useragent=USER_AGENT)
    factory.setProtocolOptions(
        version=18,
        utf8validateIncoming=False,
        acceptMaskedServerFrames=False,
        maskClientFrames=True,
        applyMask=True,
        maxFramePayloadSize=0,  # nothing of a message is kept
        maxMessagePayloadSize=0,
        autoFragmentSize=0,
        failByDrop=True,
        echoCloseCodeReason=False,
        serverConnectionDropTimeout=0,  # one deadline bounds the whole probe
        openHandshakeTimeout=0,
        closeHandshakeTimeout=0,
        tcpNoDelay=True,
        perMessageCompressionOffers=[],
        perMessageCompressionAccept=_accept_nothing,
        autoPingInterval=0,
        autoPingTimeout=0,
    )
    protocol: Any = _Conversation(probe, leg)
    protocol.factory = factory
    return protocol  # type: ignore[no-any-return]


def _accept_nothing(response: object) -> None:
    """No extension was offered."""
