"""A relay that is turned by hand on a clock that stands still, and the far ends of its legs."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import Relay

#: How long anything may take before the test fails, in seconds.
PATIENCE = 5.0


class Reactor(Clock):
    """A clock that a relay takes for a reactor."""

    def addReader(self, reader: object) -> None: ...

    def removeReader(self, reader: object) -> None: ...


class Turning:
    """The relay, and its turns."""

    def __init__(self, clock: Reactor) -> None:
        self.clock = clock
        self.relay = Relay(clock)  # type: ignore[arg-type]
        self.relay.start()

    def turn(self, times: int = 1) -> None:
        """The reactor's turn: serve, and call what is due."""
        for _ in range(times):
            self.relay.doRead()
            self.clock.advance(0)

    def until(self, predicate: Callable[[], object]) -> None:
        """Turn until ``predicate()`` is true."""
        end = time.monotonic() + PATIENCE
        self.turn()
        while not predicate():
            if time.monotonic() > end:
                pytest.fail("waited in vain")
            self.rest(0.005)
            self.turn()

    def rest(self, seconds: float = 0.02) -> bool:
        """Wait until the relay's descriptor is readable, at most ``seconds``; tell whether it is."""
        if self.relay.fileno() < 0:
            return False
        return bool(select.select([self.relay.fileno()], [], [], seconds)[0])

    def settle(self) -> None:
        """Turn until the relay sleeps; a relay that is woken without end fails the test."""
        for _ in range(200):
            self.turn()
            if not self.rest():
                return
        pytest.fail("the relay does not come to rest")

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        """Let so much time pass, in steps, and what happens in each of them."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.turn()
        self.settle()


class FarEnd:
    """The other end of a leg: a socket that is read, unless it is not ``greedy``, whenever ``read`` is called."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self.received = b""
        #: How the leg has ended: "fin" or "reset".
        self.ended = ""
        self.greedy = True

    def read(self) -> None:
        while self.greedy and not self.ended and self.socket.fileno() >= 0:
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.ended = "reset"
                return
            if not data:
                self.ended = "fin"
            self.received += data

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Meeting(Turning):
    """Legs and their far ends, which are read in every turn."""

    def __init__(self) -> None:
        super().__init__(Reactor())
        self.peers: list[FarEnd] = []

    def leg(self) -> tuple[Leg, FarEnd]:
        """A leg on one end of a TCP connection, and the other end."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
        near.setblocking(False)
        self.peers.append(FarEnd(far))
        return Leg(self.relay, near, near.getpeername()), self.peers[-1]

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            super().turn()
            for peer in self.peers:
                peer.read()

    def close(self) -> None:
        """The end: nothing is left open."""
        self.relay.stop()
        for peer in self.peers:
            peer.socket.close()
