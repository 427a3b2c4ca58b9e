"""An Autobahn server and an Autobahn client for each session, coupled in the shortest way, on Twisted's own transports.

    python autobahn_pair.py PORT BACKEND_PORT

The measure for the router's message sessions: what the libraries cost by themselves. Autobahn's defaults hold, as does
back-pressure: without that a slow reader would fill the memory.
"""

from __future__ import annotations

import sys
from typing import Any

import txaio

txaio.use_twisted()

from autobahn.twisted.websocket import (  # noqa: E402
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from twisted.internet.defer import Deferred  # noqa: E402
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint  # noqa: E402
from twisted.internet.task import react  # noqa: E402


class Client(WebSocketServerProtocol):  # type: ignore[misc]  # Autobahn is not typed
    """The client's side, which dials the backend before it accepts."""

    backend: Backend | None = None

    def onConnect(self, request: Any) -> Deferred[None]:
        dialled: Deferred[Backend] = self.factory.backend_endpoint.connect(self.factory.backends)
        return dialled.addCallback(self._dialled)

    def _dialled(self, backend: Backend) -> Deferred[None]:
        self.backend = backend
        backend.client = self
        return backend.opened

    def onOpen(self) -> None:
        if self.backend is not None:
            self.transport.registerProducer(self.backend.transport, True)
            self.backend.transport.registerProducer(self.transport, True)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.backend is not None:
            self.backend.sendMessage(payload, isBinary)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self.backend is not None:
            self.backend.transport.unregisterProducer()
            self.backend.sendClose()
            self.backend.client = None


class Backend(WebSocketClientProtocol):  # type: ignore[misc]
    """The backend's side."""

    client: Client | None = None

    def __init__(self) -> None:
        super().__init__()
        self.opened: Deferred[None] = Deferred()

    def onOpen(self) -> None:
        self.opened.callback(None)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.client is not None:
            self.client.sendMessage(payload, isBinary)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self.client is not None:
            self.client.transport.unregisterProducer()
            self.client.sendClose()
            self.client.backend = None


def main(reactor: Any, port: str, backend_port: str) -> Deferred[None]:
    """Listen; the result never comes."""
    clients = WebSocketServerFactory()
    clients.protocol = Client
    clients.backends = WebSocketClientFactory(f"ws://127.0.0.1:{backend_port}/")
    clients.backends.protocol = Backend
    clients.backend_endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", int(backend_port))
    endpoint: Any = TCP4ServerEndpoint(reactor, int(port), backlog=4096, interface="127.0.0.1")  # type: ignore[no-untyped-call]
    forever: Deferred[None] = Deferred()
    listening: Deferred[Any] = endpoint.listen(clients)
    return listening.addCallback(lambda _port: forever)


if __name__ == "__main__":
    react(main, sys.argv[1:])
