from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor  # noqa: TID251
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from wsrouter.config.values import Echo
from wsrouter.demo.backends import MAX_MESSAGE, EchoService
from wsrouter.demo.certificates import DemoCertificates

T = TypeVar("T")


@pytest.fixture(scope="module", autouse=True)
def first_port() -> None:
    """Twisted's first listening port opens /dev/null, in reserve, for the rest of the process."""
    reactor.listenTCP(0, Factory(), interface="127.0.0.1").stopListening()


@asynccontextmanager
async def running(ports: tuple[int, ...] = (0,), certificate: Path | None = None) -> AsyncIterator[EchoService]:
    service = EchoService(reactor, Echo("demo", ports), certificate)
    service.privilegedStartService()
    service.startService()
    try:
        yield service
    finally:
        await service.stopService()


async def talk(service: EchoService, story: Callable[[ClientConnection], T], **options: object) -> T:
    """Run ``story`` with a real client, in a thread beside the reactor."""

    def run() -> T:
        with connect(f"ws://127.0.0.1:{service.ports[0]}/", proxy=None, **options) as client:  # type: ignore[arg-type]
            return story(client)

    return await deferToThread(run)


async def raw(service: EchoService, data: bytes) -> bytes:
    def run() -> bytes:
        with socket.create_connection(("127.0.0.1", service.ports[0]), timeout=10) as client:
            client.sendall(data)
            answer = b""
            while chunk := client.recv(4096):
                answer += chunk
            return answer

    return await deferToThread(run)


def exchange(client: ClientConnection, message: str | bytes) -> str | bytes:
    client.send(message)
    return client.recv(timeout=10)


def closing(client: ClientConnection) -> tuple[int | None, str | None]:
    with pytest.raises(ConnectionClosed):
        client.recv(timeout=10)
    return client.close_code, client.close_reason


def open_and_flood(port: int) -> socket.socket:
    """A session whose client sends until nothing is taken any more, and reads nothing."""
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
    client.settimeout(0.3)
    frame = b"\x82\xff" + (65536).to_bytes(8, "big") + bytes(4 + 65536)
    sent = 0
    try:
        while sent < 512 * MAX_MESSAGE:
            sent += client.send(frame)
    except TimeoutError:
        return client
    raise AssertionError("the backend reads without end")


@ensureDeferred
async def test_text_comes_back_with_the_port_in_front() -> None:
    async with running() as service:
        answer = await talk(service, lambda client: exchange(client, "grüße"))
        assert answer == f"{service.ports[0]}: grüße"


@ensureDeferred
async def test_binary_comes_back_unchanged() -> None:
    async with running() as service:
        assert await talk(service, lambda client: exchange(client, b"\x00\xff")) == b"\x00\xff"


@ensureDeferred
async def test_each_port_of_a_section_is_a_backend_of_its_own() -> None:
    async with running((0, 0)) as service:
        first, second = service.ports
        assert first != second

        def run() -> str | bytes:
            with connect(f"ws://127.0.0.1:{second}/", proxy=None) as client:
                return exchange(client, "hi")

        assert await deferToThread(run) == f"{second}: hi"


@ensureDeferred
async def test_a_message_at_the_limit_passes() -> None:
    async with running() as service:
        data = b"x" * MAX_MESSAGE
        assert await talk(service, lambda client: exchange(client, data), compression=None) == data


@pytest.mark.parametrize("compression", [None, "deflate"])
@ensureDeferred
async def test_a_message_over_the_limit_is_closed_with_1009(compression: str | None) -> None:
    async with running() as service:

        def too_much(client: ClientConnection) -> int | None:
            client.send(b"\x00" * (MAX_MESSAGE + 1))
            return closing(client)[0]

        assert await talk(service, too_much, compression=compression) == 1009


@ensureDeferred
async def test_text_that_leaves_no_room_for_the_port_is_closed_with_1009() -> None:
    async with running() as service:

        def full(client: ClientConnection) -> int | None:
            client.send("x" * MAX_MESSAGE)
            return closing(client)[0]

        assert await talk(service, full, compression=None) == 1009


@ensureDeferred
async def test_deflate_is_accepted() -> None:
    async with running() as service:
        extensions = await talk(service, lambda client: [e.name for e in client.protocol.extensions])
        assert extensions == ["permessage-deflate"]


@ensureDeferred
async def test_the_first_subprotocol_is_accepted() -> None:
    async with running() as service:
        assert await talk(service, lambda client: client.subprotocol, subprotocols=["b", "a"]) == "b"
        assert await talk(service, lambda client: client.subprotocol) is None


@ensureDeferred
async def test_a_close_is_answered_with_its_own_code_and_reason() -> None:
    async with running() as service:

        def close(client: ClientConnection) -> object:
            client.close(4321, "enough")
            return client.protocol.close_rcvd

        received = await talk(service, close)
        assert (received.code, received.reason) == (4321, "enough")  # type: ignore[attr-defined]


@ensureDeferred
async def test_bad_utf8_is_closed_with_1007() -> None:
    async with running() as service:

        def bad(client: ClientConnection) -> int | None:
            client.send(b"\xff", text=True)
            return closing(client)[0]

        assert await talk(service, bad) == 1007


@ensureDeferred
async def test_a_plain_get_is_told_which_backend_it_is() -> None:
    async with running() as service:
        answer = await raw(service, b"GET /any?redirect=http://evil.example HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nContent-Length: %d\r\n" % len(body) in head
        assert body == b"wsrouter demonstration backend on port %d\n" % service.ports[0]


@pytest.mark.parametrize(
    ("request_line", "status", "field"),
    [
        (b"POST / HTTP/1.1", b"405", b"Allow: GET"),
        (b"GET /<script> HTTP/1.0", b"505", b"Connection: close"),
        (b"GET / HTTP/1.1\r\nUpgrade: <script>", b"400", b"Connection: close"),
    ],
)
@ensureDeferred
async def test_other_requests_are_refused_without_repeating_them(
    request_line: bytes, status: bytes, field: bytes
) -> None:
    async with running() as service:
        answer = await raw(service, request_line + b"\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert b"\r\n" + field + b"\r\n" in answer
        assert b"script" not in answer
        assert answer.endswith(b"\r\n\r\nnot a WebSocket opening handshake\n")


# Over TLS the client is websockets' asyncio one: its threaded client reads and writes one SSLSocket from two threads,
# which CPython 3.11 does not guard, and now and then loses what it sends.


@ensureDeferred
async def test_with_a_certificate_it_speaks_tls_with_alpn(tmp_path: Path) -> None:
    certificates = DemoCertificates.load(["localhost"], tmp_path, now=datetime.now(UTC))
    trust = ssl.create_default_context(cafile=str(certificates.ca))
    trust.set_alpn_protocols(["h2", "http/1.1"])

    async def story(port: int) -> tuple[str | bytes, str | None, str | None]:
        async with connect_async(f"wss://127.0.0.1:{port}/", ssl=trust, proxy=None) as client:
            await client.send("hi")
            tls = client.transport.get_extra_info("ssl_object")
            return await client.recv(), tls.version(), tls.selected_alpn_protocol()

    async with running(certificate=certificates.file_for("localhost")) as service:
        port = service.ports[0]
        assert await deferToThread(lambda: asyncio.run(story(port))) == (f"{port}: hi", "TLSv1.3", "http/1.1")


@pytest.mark.parametrize("secure", [False, True])
@ensureDeferred
async def test_stopping_closes_sessions_with_1001(tmp_path: Path, secure: bool) -> None:
    certificates = DemoCertificates.load(["localhost"], tmp_path, now=datetime.now(UTC)) if secure else None
    trust = ssl.create_default_context(cafile=str(certificates.ca)) if certificates else None
    opened: Deferred[None] = Deferred()

    async def story(port: int) -> tuple[int | None, str | None]:
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{port}/"
        async with connect_async(url, ssl=trust, proxy=None) as client:
            await client.send("hi")
            await client.recv()
            reactor.callFromThread(opened.callback, None)
            await client.wait_closed()
            return client.close_code, client.close_reason

    async with running(certificate=certificates.file_for("localhost") if certificates else None) as service:
        port = service.ports[0]
        ended = deferToThread(lambda: asyncio.run(story(port)))
        await DeferredList([opened, ended], fireOnOneCallback=True, fireOnOneErrback=True)
        await service.stopService()
        assert await ended == (1001, "the backend is stopping")
        assert service.ports == ()


@ensureDeferred
async def test_stopping_does_not_wait_for_a_client_that_never_reads() -> None:
    async with running() as service:
        client = await deferToThread(open_and_flood, service.ports[0])
        await service.stopService()
        await deferToThread(client.close)


@ensureDeferred
async def test_a_second_start_after_a_stop_listens_again() -> None:
    service = EchoService(reactor, Echo("demo", (0,)), None)
    for _ in range(2):
        service.startService()
        assert await talk(service, lambda client: exchange(client, "hi")) == f"{service.ports[0]}: hi"
        await service.stopService()


@ensureDeferred
async def test_a_port_in_use_raises_and_leaves_none_bound() -> None:
    async with running() as holder:
        service = EchoService(reactor, Echo("demo", (0, holder.ports[0])), None)
        with pytest.raises(CannotListenError):
            service.startService()
        assert service.ports == ()
        assert not service.running
