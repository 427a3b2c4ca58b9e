"""What the tests of the backends share: a relay that is turned by hand on a clock that stands still, and sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from websockets.sync.server import Server

from tests.turning import PATIENCE, Reactor, Turning
from wsrouter.backends.dial import Address


class Rig(Reactor, Turning):
    """A relay and the reactor that it believes in."""

    def __init__(self) -> None:
        Reactor.__init__(self)
        Turning.__init__(self, self)
        self.sockets: list[socket.socket] = []

    def server(self, backlog: int = 16) -> socket.socket:
        """A socket that listens on loopback and accepts nothing by itself."""
        server = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        server.settimeout(PATIENCE)
        self.sockets.append(server)
        return server

    def accept(self, server: socket.socket) -> socket.socket:
        peer, _ = server.accept()
        peer.settimeout(PATIENCE)
        self.sockets.append(peer)
        return peer

    def pass_time(self, seconds: float) -> None:
        self.advance(seconds)
        self.turn(2)

    def close(self) -> None:
        self.relay.stop()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def address() -> Callable[[socket.socket], Address]:
    """``address(server)``: where to dial it."""
    return lambda server: Address(server.family, server.getsockname())


@pytest.fixture
def nobody() -> Address:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Address(socket.AF_INET, server.getsockname())


@contextmanager
def _served(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture
def serving() -> Callable[[Server], AbstractContextManager[Server]]:
    """``with serving(server)``: a server of the websockets library runs in a thread of its own."""
    return _served
