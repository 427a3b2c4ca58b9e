"""What the tests of the relay share: a relay without a reactor, legs on real sockets, and peers at their other ends.

The relay is turned by hand: ``rig.turn()`` is one turn of a reactor, ``rig.until(...)`` as many as are needed. Time is
a ``Clock``: it stands still unless the test moves it.
"""

from __future__ import annotations

import gc
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import trustme
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.turning import Reactor, Turning
from wsrouter.relay.leg import Leg
from wsrouter.relay.tls import TlsLeg


class FakeReactor(Reactor):
    """The same, telling what it was given to watch."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[object] = []

    def addReader(self, reader: object) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: object) -> None:
        self.readers.remove(reader)


class Recorder(Protocol):
    """Notes what its transport tells it; ``on_data``, ``on_made`` and ``on_lost`` may be replaced."""

    def __init__(self, on_data: Callable[[bytes], object] = lambda data: None) -> None:
        self.data = bytearray()
        self.lost: list[Exception] = []
        self.on_data = on_data
        self.on_made: Callable[[], object] = lambda: None
        self.on_lost: Callable[[], object] = lambda: None

    def connectionMade(self) -> None:
        self.on_made()

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.on_data(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        assert reason is not None
        self.lost.append(reason.value)
        self.on_lost()


@implementer(IHalfCloseableProtocol)
class HalfCloser(Recorder):
    """A recorder that goes on when its peer has finished writing."""

    def __init__(self) -> None:
        super().__init__()
        self.read_ended = 0

    def readConnectionLost(self) -> None:
        self.read_ended += 1

    def writeConnectionLost(self) -> None:
        pass


class Peer:
    """The far end of a leg: a non-blocking socket that is looked at in every turn."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self.received = bytearray()
        #: Set when the leg has ended its writing: None for a FIN.
        self.ended = False
        self.error: OSError | None = None
        self.greedy = True
        self._unsent = bytearray()

    def send(self, data: bytes) -> None:
        self._unsent += data
        self.step()

    def step(self) -> None:
        while self._unsent:
            try:
                sent = self.socket.send(self._unsent)
            except BlockingIOError:
                break
            except OSError as error:
                self.error = error
                break
            del self._unsent[:sent]
        while self.greedy and not self.ended and self.error is None:
            try:
                data = self.socket.recv(256 * 1024)
            except BlockingIOError:
                return
            except OSError as error:
                self.error = error
                return
            if not data:
                self.ended = True
            self.took(data)

    def took(self, data: bytes) -> None:
        self.received += data

    def finish(self) -> None:
        """Send a FIN."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        self.greedy = False

    def close(self) -> None:
        self.socket.close()
        self.greedy = False


class TlsPeer(Peer):
    """The same with TLS. ``notified`` says that a close_notify came."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        super().__init__(sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=name is None, server_hostname=name)
        self.open = False
        self.notified = False
        self.plain = bytearray()
        self.fault: ssl.SSLError | None = None
        self.early: bytes = b""

    def step(self) -> None:
        self.work()
        super().step()

    def took(self, data: bytes) -> None:
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()
        self.work()

    def work(self) -> None:
        try:
            if not self.open:
                self.tls.do_handshake()
                self.open = True
                if self.early:
                    # In one segment with the end of the handshake.
                    self.tls.write(self.early)
            while not self.notified:
                data = self.tls.read(65536)
                if not data:
                    self.notified = True
                self.plain += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.notified = True
        except ssl.SSLError as error:
            self.fault = error
        self.flush()

    def flush(self) -> None:
        data = self.outgoing.read()
        if data:
            self.send_raw(data)

    def send_raw(self, data: bytes) -> None:
        super().send(data)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        self.flush()

    def notify(self) -> None:
        """Send a close_notify."""
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass
        self.flush()


class Rig(Turning):
    """A relay, its clock, and what was made on it."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        self.reactor = FakeReactor()
        super().__init__(self.reactor)
        self.server_context = server
        self.client_context = client
        self.peers: list[Peer] = []
        self.sockets: list[socket.socket] = []

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            for peer in self.peers:
                peer.step()
            super().turn()

    def spin(self, turns: int = 50) -> int:
        """How many of so many turns found the relay awake, now that nothing should be left to do."""
        return sum(self.relay_awake() for _ in range(turns))

    def relay_awake(self) -> bool:
        awake = self.rest(0)
        self.turn()
        return awake

    def advance(self, seconds: float) -> None:
        """Let time pass, and then what it brings about."""
        self.reactor.advance(seconds)
        self.turn(2)

    # Connections.

    def pair(self, buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
        """Both ends of a TCP connection over loopback; ``buffer`` makes the first one's send buffer small."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            if buffer is not None:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            near = socket.socket()
            if buffer is not None:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            near.connect(server.getsockname())
            far, _ = server.accept()
        near.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets += [near, far]
        return near, far

    def leg(self, protocol: Protocol | None = None, buffer: int | None = None) -> tuple[Leg, Peer]:
        """A plain leg, with ``protocol`` attached if there is one, and its peer."""
        near, far = self.pair(buffer)
        leg = Leg(self.relay, near, near.getpeername())
        peer = Peer(far)
        self.peers.append(peer)
        if protocol is not None:
            leg.attach(protocol)
        return leg, peer

    def tls_leg(
        self, protocol: Protocol | None = None, buffer: int | None = None, early: bytes = b""
    ) -> tuple[TlsLeg, TlsPeer]:
        """A TLS leg on the server's side, its handshake done, and its peer."""
        near, far = self.pair(buffer)
        leg = TlsLeg(self.relay, near, near.getpeername(), self.server_context, server_side=True)
        peer = TlsPeer(far, self.client_context, "leg.example")
        peer.early = early
        self.peers.append(peer)
        done: list[bool] = []
        leg.handshake(lambda: done.append(True), pytest.fail)
        self.until(lambda: done and peer.open)
        if protocol is not None:
            leg.attach(protocol)
        return leg, peer

    def close(self) -> None:
        self.relay.stop()
        for peer in self.peers:
            peer.close()
        for sock in self.sockets:
            sock.close()


class Contexts(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def contexts() -> Contexts:
    """A server's context for ``leg.example``, and a client's that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("leg.example").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return Contexts(server, client)


@pytest.fixture
def rig(contexts: Contexts) -> Iterator[Rig]:
    """A relay that is turned by hand."""
    made = Rig(contexts.server, contexts.client)
    yield made
    made.close()


@pytest.fixture
def recorder() -> type[Recorder]:
    """The class ``Recorder``."""
    return Recorder


@pytest.fixture
def half_closer() -> type[HalfCloser]:
    """The class ``HalfCloser``."""
    return HalfCloser


@pytest.fixture
def without_gc() -> Iterator[None]:
    """The collector of cycles sleeps: what dies, dies of its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()
