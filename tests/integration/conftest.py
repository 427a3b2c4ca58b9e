r"""What the tests with real sockets share: a running router, clients, backends, certificates.

A test function here that is not ``async`` runs in a thread beside the reactor, so it may block: it drives the client
and the backend in the order of its story. ``async`` tests run in the reactor's thread, as everywhere else, and take
blocking clients along with ``in_thread``. Everything that blocks has a deadline and fails the test when it passes.

The usual story::

    def test_a_tunnel_echoes(router, connect, backend):
        server = backend()
        running = router(f'''
            [listener main]
            endpoint = tcp:0:interface=127.0.0.1
            [tunnel all]
            match = any
            pool = app
            [pool app]
            backends = {server.address}
        ''')
        client = connect(running.port("main"))
        client.send(b"\0hello")
        peer = server.accept()
        assert peer.recv_exactly(6) == b"\0hello"
        client.close()
        running.until(lambda: running.closed)
        entry, end = running.closed[0]
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import hashlib
import inspect
import os
import queue
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_twisted
import trustme
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.internet.threads import blockingCallFromThread, deferToThread
from websockets.sync.server import Server, ServerConnection, serve

from tests.integration.process import RouterProcess
from wsrouter.config.reader import parse
from wsrouter.live.registry import Answer, End, Entry, Refusal
from wsrouter.service import RouterService

#: How long anything may take before the test fails, in seconds.
PATIENCE = 10.0

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Test functions that are not ``async`` run in a thread."""
    for item in items:
        if not isinstance(item, pytest.Function) or _HERE not in item.path.parents:
            continue
        if not inspect.iscoroutinefunction(item.obj):
            item.obj = _threaded(item.obj)


def _threaded(function: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def in_a_thread(**arguments: Any) -> None:
        await deferToThread(function, **arguments)

    return in_a_thread


@pytest.fixture(scope="session", autouse=True)
def _what_twisted_keeps(reactor: Any) -> None:
    """The first port makes Twisted open a spare descriptor for good: it is no test's left-over."""
    port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
    pytest_twisted.blockon(maybeDeferred(port.stopListening))


# The router.


class Running:
    """A router that runs in this process. ``opened``, ``closed`` and ``refused`` hold what its registry told."""

    def __init__(self, reactor: Any, service: RouterService) -> None:
        self.reactor = reactor
        self.service = service
        self.opened: list[Entry] = []
        #: What ended, and how; the entry's ``counts()`` are final.
        self.closed: list[tuple[Entry, End]] = []
        self.refused: list[Refusal] = []
        self.answered: list[Answer] = []
        self._changed = threading.Event()

    def port(self, name: str = "main") -> int:
        """The port that the listener ``name`` is bound to."""
        return next(one.port for one in self.service.listeners if one.name == name)

    @property
    def live(self) -> int:
        """How many sessions and tunnels live."""
        return len(self.service.registry.entries)

    def in_use(self, pool: str) -> int:
        """How many sessions, tunnels and requests are counted at the backends of ``pool``."""
        return sum(member.live for member in self.service.pools[pool].members)

    @property
    def connections(self) -> int:
        """How many connections of clients are open, whatever they do."""
        return sum(one._acceptor.live for one in self.service.listeners if one._acceptor is not None)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` in the reactor's thread and return its result; for tests that run in a thread."""
        return blockingCallFromThread(self.reactor, function, *arguments)

    def settle(self) -> None:
        """Return once the router has handled all that its sockets had received; for tests that run in a thread."""
        # The first call may run in a turn that has polled already.
        for _ in range(2):
            self.call(lambda: None)

    def until(self, predicate: Callable[[], object], patience: float = PATIENCE) -> None:
        """Wait until ``predicate()`` is true; for tests that run in a thread.

        It is looked at after each event of the registry and every few milliseconds, for what is no event.
        """
        deadline = time.monotonic() + patience
        # The predicate may call the reactor's thread, which must never wait for this one: no lock is held.
        while not predicate():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {patience:g} s in vain: {self}")
            self._changed.wait(0.005)
            self._changed.clear()

    def reached(self, predicate: Callable[[], object], patience: float = PATIENCE) -> Deferred[None]:
        """The same for ``async`` tests: ``await running.reached(...)``."""
        return deferToThread(self.until, predicate, patience)

    def __str__(self) -> str:
        ends = [(entry.facts.rule, end) for entry, end in list(self.closed)]
        return f"{len(self.opened)} opened, {self.live} live, closed {ends}, refused {self.refused}"

    # What the registry calls.

    def _tell(self) -> None:
        self._changed.set()


class _Observer:
    def __init__(self, running: Running) -> None:
        self._running = running

    def opened(self, entry: Entry) -> None:
        self._running.opened.append(entry)
        self._running._tell()

    def closed(self, entry: Entry, end: End) -> None:
        self._running.closed.append((entry, end))
        self._running._tell()

    def refused(self, refusal: Refusal) -> None:
        self._running.refused.append(refusal)
        self._running._tell()

    def answered(self, answer: Answer) -> None:
        self._running.answered.append(answer)
        self._running._tell()


@pytest.fixture
def router(
    reactor: Any, tmp_path: Path, backend: object, echo_backend: object, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Running]]:
    """``router(ini_text, files={"tls/a.pem": b"..."}) -> Running``: a router that serves until the test is over.

    ``files`` are written below ``tmp_path`` first, which is also where relative paths of the configuration begin.
    Listeners bind ``tcp:0:interface=127.0.0.1``; ``running.port("main")`` gives the real port. May be called more than
    once.
    """
    started: list[Running] = []

    def begin(text: str, files: Mapping[str, str | bytes]) -> Running:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        service = RouterService(reactor, parse(textwrap.dedent(text), tmp_path / "router.ini"))
        service.prepare()
        running = Running(reactor, service)
        service.registry.observers.append(_Observer(running))
        started.append(running)
        service.privilegedStartService()
        service.startService()
        return running

    def start(text: str, files: Mapping[str, str | bytes] | None = None) -> Running:
        if threading.current_thread() is threading.main_thread():
            return begin(text, files or {})
        return blockingCallFromThread(reactor, begin, text, files or {})  # type: ignore[no-any-return]

    yield start
    for running in started:
        pytest_twisted.blockon(maybeDeferred(running.service.stopService))


@pytest.fixture
def in_thread() -> Callable[..., Deferred[Any]]:
    """``await in_thread(function, *arguments)``: a blocking function beside the reactor, for ``async`` tests."""
    return deferToThread


# Peers: one end of a connection, a client's or a backend's.


class Frame(NamedTuple):
    """One WebSocket frame (RFC 6455 5.2) as it was on the wire, the payload unmasked."""

    opcode: int
    payload: bytes
    fin: bool = True
    #: The three reserved bits, RSV1 highest: 4, 2, 1.
    rsv: int = 0
    masked: bool = False

    @property
    def code(self) -> int | None:
        """The close code of a Close frame; None when it has none."""
        return int.from_bytes(self.payload[:2], "big") if self.payload else None


def encode(
    opcode: int, payload: bytes = b"", *, mask: bool = True, fin: bool = True, rsv: int = 0, length: bytes | None = None
) -> bytes:
    """A frame's bytes. ``length`` replaces the length field (its first byte without the mask bit), to lie in it."""
    if length is None:
        size = len(payload)
        if size < 126:
            length = bytes([size])
        else:
            length = b"\x7e" + struct.pack("!H", size) if size <= 0xFFFF else b"\x7f" + struct.pack("!Q", size)
    head = bytes([fin << 7 | rsv << 4 | opcode, length[0] | mask << 7]) + length[1:]
    return head + _mask(payload) if mask else head + payload


def _mask(payload: bytes, key: bytes = b"\x12\x34\x56\x78") -> bytes:
    return key + _unmask(payload, key)


def _unmask(payload: bytes, key: bytes) -> bytes:
    pad = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(payload), "big")


class Peer:
    """A blocking socket (plain or TLS) with a buffer and a deadline of PATIENCE for each step."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE)
        #: What was received and not asked for yet.
        self.buffer = b""
        #: The other side ended the connection with a reset, not with a FIN. Known once ``recv_all`` has returned.
        self.was_reset = False

    # Bytes.

    def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        self.socket.sendall(data)

    def recv_exactly(self, count: int) -> bytes:
        """The next ``count`` bytes; the test fails when the connection ends before."""
        parts, have = [self.buffer], len(self.buffer)
        while have < count:
            data = self.socket.recv(max(65536, min(count - have, 1 << 20)))
            if not data:
                pytest.fail(f"expected {count} bytes, the connection ended after {b''.join(parts)[-1000:]!r}")
            parts.append(data)
            have += len(data)
        data = b"".join(parts)
        self.buffer = data[count:]
        return data[:count]

    def recv_until(self, mark: bytes) -> bytes:
        """Everything up to ``mark``, and it; the test fails when the connection ends before."""
        while mark not in self.buffer:
            data = self.socket.recv(65536)
            if not data:
                pytest.fail(f"expected {mark!r}, the connection ended after {self.buffer!r}")
            self.buffer += data
        end = self.buffer.index(mark) + len(mark)
        found, self.buffer = self.buffer[:end], self.buffer[end:]
        return found

    def recv_all(self) -> bytes:
        """Everything until the other side ends the connection; ``was_reset`` tells how it did."""
        parts = [self.buffer]
        self.buffer = b""
        try:
            while data := self.socket.recv(1 << 20):
                parts.append(data)
        except ConnectionResetError:
            self.was_reset = True
        except (ssl.SSLEOFError, ssl.SSLError) as error:
            # A TLS connection that ends without close_notify.
            if not isinstance(error, ssl.SSLEOFError) and "EOF" not in str(error):
                raise
            self.was_reset = True
        return b"".join(parts)

    def nothing_comes(self) -> bool:
        """Whether nothing lies in the receive buffer now. It does not wait: an event must tell when to look."""
        if self.buffer:
            return False
        self.socket.settimeout(0)
        try:
            self.buffer = self.socket.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        finally:
            self.socket.settimeout(PATIENCE)
        return False

    def finish(self) -> None:
        """End the sending side (FIN)."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the socket; may be called again."""
        self.socket.close()

    # HTTP and the opening handshake.

    def request(self, path: str = "/", host: str = "localhost", headers: Sequence[tuple[str, str]] = ()) -> None:
        """Send an opening handshake (RFC 6455 4.1) with ``headers`` added."""
        self.key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self.key}",
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in headers),
        ]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    def recv_head(self) -> bytes:
        """The next HTTP head, blank line included."""
        return self.recv_until(b"\r\n\r\n")

    def answer(self, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        """As a backend: read an opening handshake and agree with a 101; returns the request's head."""
        head = self.recv_head()
        self.send(self.agreement(head, headers))
        return head

    @staticmethod
    def agreement(head: bytes, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        """The 101 that answers the request ``head`` (RFC 6455 4.2.2)."""
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        key = next(value for name, value in fields.items() if name.lower() == b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    # Frames.

    def recv_frame(self) -> Frame:
        """The next frame."""
        first, second = self.recv_exactly(2)
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(self.recv_exactly(2 if size == 126 else 8), "big")
        key = self.recv_exactly(4) if second & 0x80 else b""
        payload = self.recv_exactly(size)
        return Frame(
            first & 0x0F,
            _unmask(payload, key) if key else payload,
            bool(first & 0x80),
            first >> 4 & 7,
            bool(key),
        )


@pytest.fixture
def connect() -> Iterator[Callable[..., Peer]]:
    """``connect(port_or_path, tls=None, name=None, receive=None) -> Peer``: a client's connection to the router.

    ``port_or_path`` is a port on 127.0.0.1 or the path of a unix socket. With ``tls``, an ``ssl.SSLContext``, TLS is
    begun with ``name`` as server name. ``receive`` limits the receive buffer, in bytes. What is still open is closed at
    the end of the test.
    """
    peers: list[Peer] = []

    def open_one(
        place: int | str, tls: ssl.SSLContext | None = None, name: str | None = None, receive: int | None = None
    ) -> Peer:
        sock = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
        peer = Peer(sock)
        peers.append(peer)
        if receive is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        sock.connect(place if isinstance(place, str) else ("127.0.0.1", place))
        if tls is not None:
            peer.socket = tls.wrap_socket(sock, server_hostname=name)
        return peer

    yield open_one
    for peer in peers:
        peer.close()


@pytest.fixture
def frame() -> Callable[..., bytes]:
    """``frame(opcode, payload=b"", mask=True, fin=True, rsv=0, length=None) -> bytes``; see ``encode``."""
    return encode


# Backends.


class Backend:
    """A listening socket. The test takes its connections with ``accept``, or ``script`` does in threads."""

    def __init__(self, script: Callable[[Peer], None] | None, tls: ssl.SSLContext | None, unix: str | None) -> None:
        self.tls = tls
        self._peers: list[Peer] = []
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        #: How many connections were accepted.
        self.count = 0
        if unix is None:
            self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
            self.port: int = self.socket.getsockname()[1]
            #: How the configuration names it.
            self.address = f"127.0.0.1:{self.port}"
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(unix)
            self.socket.listen(128)
            self.address = f"unix:{unix}"
        self.socket.settimeout(PATIENCE)
        if script is not None:
            self.socket.settimeout(None)
            self._run(self._serve, script)

    def accept(self) -> Peer:
        """The next connection; TLS is up when the backend has it."""
        sock, _ = self.socket.accept()
        self.count += 1
        peer = Peer(sock)
        self._peers.append(peer)
        if self.tls is not None:
            peer.socket = self.tls.wrap_socket(sock, server_side=True)
        return peer

    def was_contacted(self) -> bool:
        """Whether a connection waits to be accepted now, or was."""
        self.socket.settimeout(0)
        try:
            self.accept()
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(PATIENCE)
        return self.count > 0

    def close(self) -> None:
        """Close everything; connections then are refused."""
        # The shutdown wakes a thread that waits in accept; a close alone would not.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)
            peer.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a backend's thread does not end"

    def _serve(self, script: Callable[[Peer], None]) -> None:
        while True:
            try:
                sock, _ = self.socket.accept()
            except OSError:
                return
            self.count += 1
            self._run(self._handle, script, sock)

    def _handle(self, script: Callable[[Peer], None], sock: socket.socket) -> None:
        peer = Peer(sock)
        self._peers.append(peer)
        try:
            if self.tls is not None:
                peer.socket = self.tls.wrap_socket(sock, server_side=True)
            script(peer)
        except OSError:
            pass  # the router went away: the test looks at that from its own side
        except BaseException as error:
            self.errors.append(error)
        finally:
            peer.close()

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


@pytest.fixture
def backend() -> Iterator[Callable[..., Backend]]:
    """``backend(script=None, tls=None, unix=None) -> Backend``: a raw server on a port that the kernel chose.

    Without ``script`` the test itself drives each connection: ``peer = server.accept()``. With it, ``script(peer)``
    runs in a thread for each connection, which is closed when it returns; what it raises (but OSError) fails the test.
    ``tls`` is a server's context, ``unix`` the path of a unix socket. ``server.address`` is how the configuration names
    it.
    """
    made: list[Backend] = []

    def make(
        script: Callable[[Peer], None] | None = None, tls: ssl.SSLContext | None = None, unix: str | None = None
    ) -> Backend:
        made.append(Backend(script, tls, unix))
        return made[-1]

    yield make
    for one in made:
        one.close()
    for one in made:
        if one.errors:
            raise one.errors[0]


@pytest.fixture
def refusing_address() -> Iterator[str]:
    """An address where connections are refused: bound, so that nobody else gets it, but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


class EchoBackend:
    """An echo server of the ``websockets`` library that tells what it saw."""

    def __init__(self, tls: ssl.SSLContext | None, options: dict[str, Any]) -> None:
        #: ``requests.get(timeout=...)``: path and headers of the next session, as the backend saw them.
        self.requests: queue.Queue[Any] = queue.Queue()
        #: ``closes.get(timeout=...)``: the next session's close code and reason, as the backend saw them.
        self.closes: queue.Queue[tuple[int | None, str | None]] = queue.Queue()
        self._connections: set[ServerConnection] = set()
        if tls is not None:
            for_threads(tls)
        self._server: Server = serve(self._echo, "127.0.0.1", 0, ssl=tls, **options)
        self.port: int = self._server.socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _echo(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        self.requests.put(connection.request)
        try:
            for message in connection:
                connection.send(message)
        except Exception:
            pass  # the close code tells
        self.closes.put((connection.close_code, connection.close_reason))
        self._connections.discard(connection)

    def close(self) -> None:
        """Accept no more and end every session."""
        self._server.SHUTDOWN_POLLING_INTERVAL = 0.005  # type: ignore[misc]
        for connection in list(self._connections):
            connection.close_socket()
        self._server.shutdown()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "an echo backend does not end"


@pytest.fixture
def echo_backend() -> Iterator[Callable[..., EchoBackend]]:
    """``echo_backend(tls=None, **options) -> EchoBackend``: a WebSocket echo server of the ``websockets`` library.

    ``options`` are those of ``websockets.sync.server.serve``, such as ``subprotocols`` or ``compression``.
    """
    made: list[EchoBackend] = []

    def make(tls: ssl.SSLContext | None = None, **options: Any) -> EchoBackend:
        made.append(EchoBackend(tls, options))
        return made[-1]

    yield make
    if made:
        while made:
            made.pop().close()
        # The library leaves the closing of its epoll objects to the collector.
        gc.collect()


@pytest.fixture
def open_session(connect: Callable[..., Peer]) -> Callable[..., tuple[Peer, Peer]]:
    """``open_session(running, server, path="/", headers=(), answer=()) -> (client, peer)``: both raw ends of a session.

    ``server`` is a ``backend()`` without a script; ``headers`` go with the request, ``answer`` with the 101. Further
    arguments are those of ``connect``. The handshake is over on both sides.
    """

    def open_one(
        running: Running,
        server: Backend,
        path: str = "/",
        headers: Sequence[tuple[str, str]] = (),
        answer: Sequence[tuple[str, str]] = (),
        listener: str = "main",
        **more: Any,
    ) -> tuple[Peer, Peer]:
        client = connect(running.port(listener), **more)
        client.request(path, headers=headers)
        peer = server.accept()
        peer.answer(answer)
        head = client.recv_head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        return client, peer

    return open_one


# Certificates.


def for_threads(context: ssl.SSLContext) -> ssl.SSLContext:
    """Keep ``context`` to TLS 1.2, and return it.

    The standard library's TLS sockets do not bear a reader and a writer at once. In TLS 1.3 tickets come in just when
    the first request goes out: about one connection in 200 then hangs, whoever the peer is. With TLS 1.2 none did.
    """
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


class Authority:
    """A CA for one test session, and what it issues."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self._issued: dict[tuple[str, ...], trustme.LeafCert] = {}
        #: The CA's certificate, PEM.
        self.pem: bytes = self.ca.cert_pem.bytes()

    def issue(self, *names: str) -> bytes:
        """Chain and key for ``names`` (hosts, wildcards, addresses) in one PEM; the same names get the same one."""
        return self._leaf(names).private_key_and_cert_chain_pem.bytes()

    def server_context(self, *names: str, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """A server's context with a certificate for ``names``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._leaf(names).configure_cert(context)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def client_context(
        self, *, alpn: Sequence[str] = (), certificate: str | None = None, threads: bool = False
    ) -> ssl.SSLContext:
        """A client's context that trusts this CA; ``certificate`` names a client certificate to show.

        ``threads`` is for libraries that read and write in two threads, as ``websockets.sync`` does.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if threads:
            for_threads(context)
        self.ca.configure_trust(context)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if certificate is not None:
            self._leaf((certificate,)).configure_cert(context)
        return context

    def fingerprint(self, *names: str) -> bytes:
        """The SHA-256 of the certificate for ``names``, to compare with ``getpeercert(binary_form=True)``."""
        pem = self._leaf(names).cert_chain_pems[0].bytes().decode()
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()

    def _leaf(self, names: tuple[str, ...]) -> trustme.LeafCert:
        if names not in self._issued:
            self._issued[names] = self.ca.issue_cert(*names)
        return self._issued[names]


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The CA of the test session: PEMs from ``issue(*names)``; ``server_context`` and ``client_context`` for TLS."""
    return Authority()


# The router as a process.


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[Callable[..., RouterProcess]]:
    """``start_process(text, **more) -> RouterProcess``: a router run by ``twistd`` in ``tmp_path``, serving.

    ``more`` are the arguments of ``RouterProcess``. What still runs at the end of the test is killed.
    """
    started: list[RouterProcess] = []

    def start(text: str, **more: Any) -> RouterProcess:
        started.append(RouterProcess(tmp_path, text, **more))
        started[-1].begin()
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def nobody(tmp_path: Path) -> tuple[int, int]:
    """A user and a group without rights, who may enter the test's folder; skips unless this is root."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a router that gives up its rights")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    return 65534, 65534


@pytest.fixture
def nobody_with_python(nobody: tuple[int, int]) -> tuple[int, int]:
    """The same, who can run this Python with its modules; skips where the checkout lies in a closed folder."""
    user, group = nobody
    command = [sys.executable, "-P", "-c", "import wsrouter.workers"]
    try:
        tried = subprocess.run(
            command, cwd="/", user=user, group=group, extra_groups=(), stderr=subprocess.PIPE, text=True, check=False
        )
    except PermissionError as error:
        pytest.skip(f"other users cannot run {sys.executable}: {error}")
    if "PermissionError" in tried.stderr or "ModuleNotFoundError" in tried.stderr:
        pytest.skip(f"other users cannot run wsrouter from {sys.executable}: {tried.stderr}")
    assert tried.returncode == 0, tried.stderr
    return nobody


# The router as it ships.


class Shipped:
    """``etc/router.ini`` and its page on other ports, run by ``twistd`` in a process of its own."""

    def __init__(self, folder: Path, configure: Callable[[str], str] = str) -> None:
        numbers = (8080, 2222, 3333, 4444, 5555, 6443)
        #: The port that stands for one of the shipped file's: ``ports[8080]``.
        self.ports: dict[int, int] = dict(zip(numbers, _free_ports(len(numbers)), strict=True))
        self.port = self.ports[8080]
        self.folder = folder / "etc"
        shutil.copytree(_HERE.parent.parent / "etc", self.folder)
        #: The CA of the demonstration certificates, once the router has started.
        self.ca = folder / "cache" / "wsrouter" / "demo" / "ca.pem"
        text = re.sub(
            r"\b(8080|2222|3333|4444|5555|6443)\b",
            lambda found: str(self.ports[int(found[0])]),
            (self.folder / "router.ini").read_text(),
        )
        self._process = RouterProcess(
            self.folder,
            configure(text),
            cwd=folder,
            config="etc/router.ini",
            environment={"XDG_CACHE_HOME": str(folder / "cache")},
        )
        try:
            self._process.begin()
        except BaseException:
            self._process.close()
            raise

    def stop(self) -> None:
        """End it as an operator would; it must end in order."""
        self._process.signal()
        try:
            assert self._process.status() == 0, self._process.log
        finally:
            self._process.close()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def shipped_with(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Shipped]]:
    """``shipped_with(configure) -> Shipped``: the shipped router; ``configure`` changes its configuration's text."""
    started: list[Shipped] = []

    def start(configure: Callable[[str], str] = str) -> Shipped:
        started.append(Shipped(tmp_path_factory.mktemp("shipped"), configure))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def shipped(shipped_with: Callable[..., Shipped]) -> Shipped:
    """The router as it ships (``etc/router.ini`` on other ports), in a process of its own, for a module's tests."""
    return shipped_with()
