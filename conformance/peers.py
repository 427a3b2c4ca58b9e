"""The peer behind the router, which conforms itself: Autobahn on Twisted, as a process of its own.

    python -m conformance.peers server                      an echo server; the first line of its output is its port
    python -m conformance.peers client URL PORT AGENT [CA]  runs all cases of the fuzzing server, echoing

Told directly to each other, without a router, the suite finds no fault with either. Both negotiate permessage-deflate
in whatever form the suite asks for; ``server --plain`` never does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket.compress import (
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
    PerMessageDeflateResponse,
    PerMessageDeflateResponseAccept,
)
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorTCP, IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import react

#: What both ends are told. Without the first a fault would drop the connection, where the suite waits for a Close. The
#: suite builds its largest messages before it looks at its sockets again, which on a busy machine takes its time.
_PATIENCE = 60
_OPTIONS = {"failByDrop": False, "openHandshakeTimeout": _PATIENCE, "closeHandshakeTimeout": _PATIENCE}


class EchoServer(WebSocketServerProtocol):  # type: ignore[misc]
    """Sends every message back."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Echo."""
        self.sendMessage(payload, isBinary)


class Client(WebSocketClientProtocol):  # type: ignore[misc]
    """One session: ``answers`` are the messages that came; each is sent back, if this is a case."""

    def __init__(self, echoes: bool) -> None:
        super().__init__()
        self.ended: Deferred[list[bytes]] = Deferred()
        self._echoes = echoes
        self._answers: list[bytes] = []

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Echo, or keep the answer."""
        if self._echoes:
            self.sendMessage(payload, isBinary)
        else:
            self._answers.append(payload)

    def connectionLost(self, reason: Any) -> None:
        """The session is over."""
        super().connectionLost(reason)
        self.ended.callback(self._answers)


def serve(reactor: Any, plain: bool) -> Deferred[None]:
    """Echo on a port of the kernel's choice, for good."""
    factory = WebSocketServerFactory()
    factory.protocol = EchoServer
    factory.setProtocolOptions(**_OPTIONS, perMessageCompressionAccept=None if plain else _accept_offer)
    port = IReactorTCP(reactor).listenTCP(0, factory, interface="127.0.0.1")
    print(port.getHost().port, flush=True)  # type: ignore[attr-defined]
    return Deferred()


async def run_cases(reactor: Any, url: str, port: str, agent: str, authority: str | None) -> None:
    """Go through all cases of the fuzzing server as ``agent``, then let it write its report.

    ``url`` has the server's own port, for it takes no request whose Host has another; ``port`` is the router's, where
    the sessions are opened. ``authority`` is the file of the CA that a wss server's certificate is of.
    """
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, "127.0.0.1", int(port))
    if authority is not None:
        trusted = trustRootFromCertificates(  # type: ignore[no-untyped-call]
            [Certificate.loadPEM(Path(authority).read_bytes())]
        )
        endpoint = wrapClientTLS(optionsForClientTLS(str(urlsplit(url).hostname), trustRoot=trusted), endpoint)

    async def session(resource: str, echoes: bool = False) -> list[bytes]:
        factory = WebSocketClientFactory(url + resource)
        factory.protocol = lambda: Client(echoes)
        factory.setProtocolOptions(
            **_OPTIONS,
            serverConnectionDropTimeout=_PATIENCE,
            perMessageCompressionOffers=[PerMessageDeflateOffer()],
            perMessageCompressionAccept=_accept_response,
        )
        client = await endpoint.connect(factory)
        assert isinstance(client, Client)
        return await client.ended

    (count,) = await session("/getCaseCount")
    for number in range(1, int(count) + 1):
        await session(f"/runCase?case={number}&agent={agent}", echoes=True)
    await session(f"/updateReports?agent={agent}")


def _accept_offer(offers: Sequence[Any]) -> PerMessageDeflateOfferAccept | None:
    accepted = (PerMessageDeflateOfferAccept(one) for one in offers if isinstance(one, PerMessageDeflateOffer))
    return next(accepted, None)


def _accept_response(response: Any) -> PerMessageDeflateResponseAccept | None:
    return PerMessageDeflateResponseAccept(response) if isinstance(response, PerMessageDeflateResponse) else None


def main(reactor: Any, role: str, *words: str) -> Deferred[None]:
    """What the command line asks for."""
    if role == "server":
        return serve(reactor, "--plain" in words)
    url, port, agent, *more = words
    return Deferred.fromCoroutine(run_cases(reactor, url, port, agent, more[0] if more else None))


if __name__ == "__main__":
    react(main, sys.argv[1:])
