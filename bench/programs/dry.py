"""The router's own code for relay sessions, over sockets that are none: ``dry.py WHAT ROUNDS SESSIONS``.

``WHAT`` is ``opened`` (in each round SESSIONS sessions open, pass one message each way, and close) or ``roundtrip`` (in
each round SESSIONS open sessions pass one message each way). The service is a whole one; what stands in for the kernel
takes part in every call that a connection makes, and hands the router what peers would have sent. See
``bench.instructions``.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed  # noqa: TID251 (a program of its own)

from wsrouter.backends import dial
from wsrouter.relay import acceptor
from wsrouter.relay.loop import EPOLLIN
from wsrouter.tap import Options, makeService
from wsrouter.wire.opening import accept_for

CONFIGURATION = """
[router]
access_log = off
[listener main]
endpoint = tcp:0:interface=127.0.0.1
[route app]
path = /
pool = app
[pool app]
backends = 127.0.0.1:1
"""
KEY = b"abcd"


def frame(opcode: int, payload: bytes, key: bytes = b"") -> bytes:
    """One frame of up to 125 bytes; with a key a client's (RFC 6455 5.2)."""
    masked = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload)) if key else payload
    return bytes([0x80 | opcode, (0x80 if key else 0) | len(payload)]) + key + masked


MESSAGE = bytes(125)
CODE = b"\x03\xe8"
CLIENT_MESSAGE, BACKEND_MESSAGE = frame(2, MESSAGE, KEY), frame(2, MESSAGE)
CLIENT_CLOSE, BACKEND_CLOSE = frame(8, CODE, KEY), frame(8, CODE)


def heads(number: int) -> tuple[bytes, bytes]:
    """An opening handshake, as many clients write it, and its answer."""
    key = base64.b64encode(hashlib.md5(b"%d" % number).digest())
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"Sec-WebSocket-Version: 13\r\n"
    answer = b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade
    return (
        request + b"Sec-WebSocket-Key: " + key + b"\r\n\r\n",
        answer + b"Sec-WebSocket-Accept: " + accept_for(key) + b"\r\n\r\n",
    )


class Socket:
    """A connected socket. ``inbox`` is what a read finds, None for nothing, empty for a FIN."""

    __slots__ = ("fd", "inbox", "sent")
    last = 1 << 20
    #: Those that were dialled and not asked for yet.
    dialled: list[Socket] = []

    def __init__(self, family: int, kind: int, protocol: int = 0, fd: int = -1) -> None:
        if fd < 0:
            fd = Socket.next_fd()
            Socket.dialled.append(self)
        self.fd = fd
        self.inbox: bytes | None = None
        self.sent: Any = b""

    @classmethod
    def next_fd(cls) -> int:
        """A descriptor that no other has."""
        cls.last += 1
        return cls.last

    def fileno(self) -> int:
        return self.fd

    def recv_into(self, buffer: bytearray, size: int = 0) -> int:
        data, self.inbox = self.inbox, None
        if data is None:
            raise BlockingIOError
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: Any, flags: int = 0) -> int:
        self.sent = data
        return len(data)

    def connect_ex(self, address: object) -> int:
        return 0

    def setblocking(self, flag: bool) -> None: ...
    def setsockopt(self, level: int, option: int, value: object) -> None: ...
    def shutdown(self, how: int) -> None: ...
    def close(self) -> None: ...


class Listening:
    """A listening socket at which ``waiting`` clients wait."""

    def __init__(self) -> None:
        self.waiting = 0

    def _accept(self) -> tuple[int, tuple[str, int]]:
        if not self.waiting:
            raise BlockingIOError
        self.waiting -= 1
        return Socket.next_fd(), ("127.0.0.1", 1024 + self.waiting)


class Epoll:
    """What the relay polls: told beforehand what to report."""

    def __init__(self) -> None:
        self.watched: set[int] = set()
        self.events: list[tuple[int, int]] = []

    def register(self, fd: int, events: int) -> None:
        self.watched.add(fd)

    def modify(self, fd: int, events: int) -> None: ...

    def unregister(self, fd: int) -> None:
        self.watched.remove(fd)

    def poll(self, timeout: float | None, most: int) -> list[tuple[int, int]]:
        events, self.events = self.events, []
        return events


class Scene:
    """A service whose relay has no kernel below it."""

    def __init__(self, service: Any, sessions: int) -> None:
        self.sessions = sessions
        self.relay = relay = service.relay
        self.registry = service.registry
        (self.acceptor,) = (one for one in relay.members.values() if isinstance(one, acceptor.Acceptor))
        self.acceptor.socket = self.listening = Listening()
        self.epoll = relay._epoll = Epoll()
        relay.watch, relay.rewatch, relay.unwatch = self.epoll.register, self.epoll.modify, self.epoll.unregister
        self.epoll.register(self.acceptor.fd, EPOLLIN)

    def serve(self, *come: tuple[Any, bytes | None]) -> None:
        """Let the relay serve one batch: for each leg, what has come for it."""
        for leg, data in come:
            if leg is not self.acceptor:
                leg.socket.inbox = data
        self.epoll.events = [(leg.fd, EPOLLIN) for leg, _ in come if leg.fd in self.epoll.watched]
        self.relay._serve(0)

    def opened(self) -> tuple[list[Any], list[Any]]:
        """The legs of clients and of backends of as many sessions, open now."""
        members = self.relay.members
        before = set(members)
        self.listening.waiting = self.sessions
        self.serve((self.acceptor, None))
        clients = [members[fd] for fd in list(members) if fd not in before]
        said = [heads(number) for number in range(len(clients))]
        self.serve(*[(leg, request) for leg, (request, _) in zip(clients, said, strict=True)])
        backends = [members[socket.fd] for socket in Socket.dialled]
        Socket.dialled.clear()
        self.serve(*[(leg, answer) for leg, (_, answer) in zip(backends, said, strict=True)])
        if len(self.registry.entries) != self.sessions:
            raise RuntimeError(f"{len(self.registry.entries)} sessions are open instead of {self.sessions}")
        return clients, backends

    def pass_messages(self, clients: list[Any], backends: list[Any]) -> None:
        """A message of each client, and of each backend."""
        self.serve(*[(leg, CLIENT_MESSAGE) for leg in clients])
        self.serve(*[(leg, BACKEND_MESSAGE) for leg in backends])

    def close(self, clients: list[Any], backends: list[Any]) -> None:
        """The clients close."""
        self.serve(*[(leg, CLIENT_CLOSE) for leg in clients])
        self.serve(*[(leg, BACKEND_CLOSE) for leg in backends])
        for _ in range(2):
            self.serve(*[(leg, b"") for leg in (*backends, *clients)])
        if self.registry.entries:
            raise RuntimeError(f"{len(self.registry.entries)} sessions did not end")


def rounds(scene: Scene, what: str) -> Iterator[None]:
    """Do one round each time that it is asked."""
    if what == "opened":
        while True:
            legs = scene.opened()
            scene.pass_messages(*legs)
            scene.close(*legs)
            yield
    legs = scene.opened()
    while True:
        scene.pass_messages(*legs)
        yield


def main(what: str, count: int, sessions: int) -> None:
    """Run the service, and the rounds as soon as it listens; then the process ends at once."""
    reactor: Any = installed
    with tempfile.TemporaryDirectory(prefix="wsrouter-dry-") as folder:
        path = Path(folder) / "router.ini"
        path.write_text(CONFIGURATION)
        options = Options()
        options.parseOptions(["--config", str(path)])
        service: Any = makeService(options)
        service.privilegedStartService()
        service.startService()
    status = 1

    def run() -> None:
        nonlocal status
        try:
            acceptor.SocketType = dial.SocketType = Socket  # type: ignore[misc,assignment]
            dry = rounds(Scene(service, sessions), what)
            for _ in range(count):
                next(dry)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)

    reactor.callWhenRunning(lambda: reactor.callLater(0, run))
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
