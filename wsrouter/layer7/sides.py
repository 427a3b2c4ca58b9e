"""The sides of a message session: Autobahn's server towards the client, its client towards the backend.

Autobahn's own opening handshake is held with heads that the router wrote; see ``side``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket import USES_NVX
from autobahn.websocket.compress import (
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
    PerMessageDeflateResponseAccept,
)

from wsrouter.layer7.side import Side
from wsrouter.wire.head import cut_response, parse_response
from wsrouter.wire.opening import accept_for

#: For the handshake with Autobahn: the sample of RFC 6455 1.3.
_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="

#: Autobahn unmasks, and checks UTF-8, in C. Without that, each 64 KB of a message take 5 ms.
IS_FAST: bool = USES_NVX


class ClientSide(Side, WebSocketServerProtocol):  # type: ignore[misc]
    """The side of the client. ``open`` comes first, once it is attached to its leg."""

    def open(self, offer: bytes | None) -> bytes | None:
        """Be open; returns the extension that is granted. ``offer`` is what ``own_answer`` made of the client's."""
        self.perMessageCompressionAccept = self._accept
        self._offer = offer or b""
        lines = [b"Sec-WebSocket-Extensions: %b\r\n" % offer] if offer else []
        answer = self.begin(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n" % (_KEY, b"".join(lines))
        )
        self.perMessageCompressionAccept = _refuse  # no method of its own, which would be a cycle
        assert cut_response(answer) == len(answer)
        return parse_response(answer).first(b"sec-websocket-extensions")

    def _accept(self, offers: Sequence[Any]) -> Any:
        (offer,) = offers
        assert isinstance(offer, PerMessageDeflateOffer)
        # A client that keeps no context of its own lets the router forget it, too (RFC 7692 7.1.1.2).
        return PerMessageDeflateOfferAccept(
            offer, request_no_context_takeover=b"client_no_context_takeover" in self._offer
        )


class BackendSide(Side, WebSocketClientProtocol):  # type: ignore[misc]
    """The side of the backend. ``open`` comes first, once it is attached to its leg."""

    websocket_key = _KEY

    def startHandshake(self) -> None:
        """It was done already."""

    def open(self, granted: bytes | None) -> None:
        """Be open. ``granted`` is what ``granted_to_us`` made of the backend's answer."""
        lines = [b"Sec-WebSocket-Extensions: %b\r\n" % granted] if granted else []
        self.begin(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept_for(_KEY), b"".join(lines))
        )


def factories(reactor: Any, limit: int) -> tuple[Any, Any]:
    """What Autobahn's protocols ask for their options, for messages of ``limit`` bytes: a server's and a client's.

    Each has ``options``, which a side takes over whole.
    """
    server = WebSocketServerFactory(reactor=reactor, server="")
    server.setProtocolOptions(**server_options(limit))
    server.options = {name: getattr(server, name) for name in WebSocketServerProtocol.CONFIG_ATTRS}
    client = WebSocketClientFactory(reactor=reactor)
    client.setProtocolOptions(**client_options(limit))
    client.options = {name: getattr(client, name) for name in WebSocketClientProtocol.CONFIG_ATTRS}
    return server, client


def server_options(limit: int) -> dict[str, Any]:
    """Every option of Autobahn's server: none is left to a default."""
    return {
        "versions": [13],
        "webStatus": False,
        "requireMaskedClientFrames": True,
        "maskServerFrames": False,
        "perMessageCompressionAccept": _refuse,
        "serveFlashSocketPolicy": False,
        "flashSocketPolicy": "",
        "allowedOrigins": ["*"],
        "allowNullOrigin": True,
        "maxConnections": 0,
        "trustXForwardedFor": 0,
        **_common_options(limit),
    }


def client_options(limit: int) -> dict[str, Any]:
    """Every option of Autobahn's client."""
    return {
        "version": 18,
        "acceptMaskedServerFrames": False,
        "maskClientFrames": True,
        "serverConnectionDropTimeout": 0,
        "perMessageCompressionOffers": [],
        "perMessageCompressionAccept": PerMessageDeflateResponseAccept,
        **_common_options(limit),
    }


def _common_options(limit: int) -> dict[str, Any]:
    # Deflating may make a message longer, and Autobahn compares what is on the wire as well. The sides hold to the
    # limit itself.
    room = limit + limit // 8 + 64
    return {
        "utf8validateIncoming": True,
        "applyMask": True,
        "maxFramePayloadSize": room,
        "maxMessagePayloadSize": room,
        "autoFragmentSize": 0,
        "failByDrop": False,
        "echoCloseCodeReason": True,
        # Time limits are the session's own.
        "openHandshakeTimeout": 0,
        "closeHandshakeTimeout": 0,
        "tcpNoDelay": True,
        "autoPingInterval": 0,
        "autoPingTimeout": 0,
        "autoPingSize": 12,
        "autoPingRestartOnAnyTraffic": False,
    }


def _refuse(offers: object) -> None:
    """No extension."""
