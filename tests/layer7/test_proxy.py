from __future__ import annotations

import hashlib
import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock, deferLater

from wsrouter.config.values import Backend, Sticky
from wsrouter.errors import DialError
from wsrouter.layer7.affinity import Affinity
from wsrouter.layer7.proxy import KEPT_SECONDS
from wsrouter.policy.members import Member
from wsrouter.policy.stickiness import StickyCookie
from wsrouter.relay.deadlines import Deadlines

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(method: bytes = b"GET", fields: bytes = b"", body: bytes = b"", target: bytes = b"/p") -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: h.example:81\r\nConnection: close\r\n%b\r\n%b" % (method, target, fields, body)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.fixture
def refusing() -> Iterator[Backend]:
    """A backend whose port is taken and refuses: bound, not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield Backend("127.0.0.1", bound.getsockname()[1])


@pytest.fixture
def through(stage: Any, raw: Any) -> Callable[..., Deferred[bytes]]:
    """``await through(answer, request)``: what a client gets from a backend that answers every request with that."""

    def talk(answer: bytes, asked: bytes, idle: float | None = 3600.0) -> Deferred[bytes]:
        backend = stage.backend(lambda head: answer)
        port = stage.serve(stage.proxy(backend.backend, idle=idle))
        return raw(port.getHost().port, asked)

    return talk


# What goes to the backend.


async def test_the_request_goes_on_as_it_came_but_for_hop_by_hop_fields(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    await raw(port, request(b"PROPFIND", b"X-One: 1\r\nTE: trailers\r\nx-ONE: 2\r\n", target=b"/a;b//c%2F?q=%7e&&"))
    lines = backend.heads[0].split(b"\r\n")
    assert lines[0] == b"PROPFIND /a;b//c%2F?q=%7e&& HTTP/1.1"
    assert b"Host: h.example:81" in lines
    assert [line for line in lines if line.lower().startswith(b"x-one")] == [b"X-One: 1", b"x-ONE: 2"]
    text = backend.heads[0].lower()
    for absent in (b"user-agent", b"accept-encoding", b"\r\nte:", b"connection:", b"content-length", b"chunked"):
        assert absent not in text
    assert b"x-forwarded-for: 192.0.2.1" in text


@pytest.mark.parametrize("target", [b"/p?", b"//p", b"/?x", b"/p;?;", b"/p?a%00"])
async def test_the_target_is_sent_byte_for_byte(stage: Any, raw: Any, target: bytes) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    await raw(port, request(target=target))
    assert backend.heads[0].startswith(b"GET %b HTTP/1.1\r\n" % target)


async def test_an_http_1_0_request_without_host_gets_one(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    assert (await raw(port, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\nok")
    assert b"\r\nHost: %b\r\n" % backend.backend.label.encode() in backend.heads[0]


@pytest.mark.parametrize(
    ("fields", "body", "framing", "sent"),
    [
        (b"Content-Length: 3\r\n", b"abc", b"Content-Length: 3", b"abc"),
        (b"Content-Length: 0\r\n", b"", b"Content-Length: 0", b""),
        (b"Transfer-Encoding: chunked\r\n", b"3;x\r\nabc\r\n0\r\n\r\n", b"Transfer-Encoding: chunked", b"abc"),
    ],
)
async def test_a_body_keeps_its_framing(
    stage: Any, raw: Any, fields: bytes, body: bytes, framing: bytes, sent: bytes
) -> None:
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    answer = raw(port, request(b"POST", fields, body))
    connection, head = await backend.arrived.get()
    assert framing + b"\r\n" in head
    backend.react = lambda one: None
    while sent not in connection.data or (b"chunked" in framing and not connection.data.endswith(b"0\r\n\r\n")):
        await deferLater(stage.reactor, 0)
    connection.transport.write(OK)
    assert status_of(await answer) == 200


async def test_100_continue_is_the_routers_own(stage: Any, raw: Any, beside: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    answer = await raw(port, request(b"POST", b"Content-Length: 1\r\nExpect: 100-continue\r\n", b""))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b"xpect" not in backend.heads[0]


# What comes back.


async def test_the_answer_comes_back_as_it_was_but_for_hop_by_hop_fields(through: Any) -> None:
    answer = await through(
        b"HTTP/1.1 418 Short and stout\r\nSet-Cookie: a=1\r\nServer: b\r\nSet-Cookie: b=2\r\nX-Hop: 1\r\n"
        b"Connection: X-Hop\r\nKeep-Alive: 5\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
        request(),
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 418 Short and stout"
    assert [line for line in lines if line.startswith(b"Set-Cookie")] == [b"Set-Cookie: a=1", b"Set-Cookie: b=2"]
    assert b"Server: b" in lines
    assert b"Content-Encoding: gzip" in lines
    assert b"X-Hop" not in head
    assert b"Keep-Alive" not in head
    assert b"Content-Type" not in head
    assert body == b"ok"


async def test_head_answers_keep_their_length(through: Any) -> None:
    answer = await through(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", request(b"HEAD"))
    assert b"\r\nContent-Length: 12345\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_answers_without_body_end_with_their_head(through: Any, answer: bytes) -> None:
    got = await through(answer, request())
    assert status_of(got) == status_of(answer)
    assert got.endswith(b"\r\n\r\n")


async def test_a_chunked_answer_is_chunked_again(through: Any) -> None:
    answer = await through(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", request()
    )
    assert answer.partition(b"\r\n\r\n")[2].endswith(b"0\r\n\r\n")
    assert answer.count(b"Transfer-Encoding") == 1


async def test_interim_answers_are_dropped(through: Any) -> None:
    answer = await through(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, request())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Link" not in answer


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\nX\x00: y\r\n\r\n",
    ],
    ids=["101", "ssh", "lf", "both", "two", "gzip", "long", "nul"],
)
async def test_nonsense_is_502_and_nothing_of_it_reaches_the_client(through: Any, answer: bytes) -> None:
    got = await through(answer, request())
    assert status_of(got) == 502
    assert got.endswith(b"\r\n\r\n502 Bad Gateway\n")


async def test_events_arrive_as_they_are_sent(stage: Any, beside: Any) -> None:
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    asked = beside(lambda: (client.request("GET", "/events"), client.getresponse())[1])
    connection, _ = await backend.arrived.get()
    connection.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    response = await asked
    assert response.getheader("Transfer-Encoding") == "chunked"
    for event in (b"data: 1\n", b"data: 2\n"):
        connection.transport.write(event)
        assert await beside(response.readline) == event
    connection.transport.loseConnection()
    assert await beside(response.read) == b""
    client.close()


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nab",
    ],
    ids=["length", "chunked", "close"],
)
async def test_an_answer_that_breaks_off_is_seen_to(stage: Any, raw: Any, begun: bytes) -> None:
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    answer = raw(port, request())
    connection, _ = await backend.arrived.get()
    connection.transport.write(begun)
    front = stage.factories[-1].connections[0]
    while not front.exchange.sent:
        await deferLater(stage.reactor, 0)
    connection.transport.abortConnection()
    got = await answer
    assert got.endswith(b"<RESET>")
    assert b"0\r\n\r\n" not in got


# Which backend, and which status.


async def test_a_refused_connection_goes_on_to_the_next_backend(stage: Any, raw: Any, refusing: Backend) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(refusing, backend.backend)).getHost().port
    answer = await raw(port, request(b"POST", b"Content-Length: 3\r\n", b"abc"))
    assert status_of(answer) == 200
    assert stage.pool.log == [
        ("taken", 0),
        ("given back", 0),
        ("failed", 0),
        ("taken", 1),
        ("worked", 1),
        ("given back", 1),
    ]


async def test_no_more_than_retries_other_backends_are_tried(stage: Any, raw: Any, refusing: Backend) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(refusing, backend.backend, retries=0)).getHost().port
    answer = await raw(port, request())
    assert status_of(answer) == 503
    assert b"\r\nRetry-After: 1\r\n" in answer
    assert backend.heads == []


async def test_no_backend_at_all_is_503(stage: Any, raw: Any) -> None:
    port = stage.serve(stage.proxy()).getHost().port
    assert status_of(await raw(port, request())) == 503


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DialError("refused"), 503),
        (DialError("slow", timed_out=True), 504),
        (DialError("tls", nonsense=True), 502),
        (ZeroDivisionError(), 502),
    ],
)
async def test_a_failed_dial_has_its_status(stage: Any, raw: Any, error: Exception, status: int) -> None:
    class Failing:
        def connect(self, factory: object) -> Deferred[None]:
            return fail(error)

    one = Backend("10.0.0.1", 80)
    port = stage.serve(stage.proxy(one, endpoint_for=lambda backend: Failing())).getHost().port
    assert status_of(await raw(port, request())) == status


@pytest.mark.parametrize(
    ("asked", "status", "tries"),
    [
        (request(), 200, 2),
        (request(b"POST", b"Content-Length: 1\r\n", b"x"), 502, 1),
        (request(b"POST", b"Content-Length: 0\r\n"), 502, 1),
        (request(b"PUT", b"Content-Length: 1\r\n", b"x"), 502, 1),
    ],
    ids=["GET", "POST", "empty POST", "PUT"],
)
async def test_only_a_request_without_effect_is_sent_again(
    stage: Any, raw: Any, asked: bytes, status: int, tries: int
) -> None:
    first, second = stage.backend(lambda head: None), stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(first.backend, second.backend)).getHost().port
    answer = raw(port, asked)
    connection, _ = await first.arrived.get()
    connection.transport.abortConnection()
    assert status_of(await answer) == status
    assert len(first.heads) + len(second.heads) == tries


async def test_a_reset_by_every_backend_is_502(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    answer = raw(port, request())
    connection, _ = await backend.arrived.get()
    connection.transport.abortConnection()
    assert status_of(await answer) == 502


async def test_a_silent_backend_is_504_when_the_idle_time_is_over(stage: Any, raw: Any) -> None:
    clock = Clock()
    backend, other = stage.backend(lambda head: None), stage.backend(lambda head: OK)
    handler = stage.proxy(backend.backend, other.backend, idle=100.0, deadlines=Deadlines(clock))
    answer = raw(stage.serve(handler).getHost().port, request())
    connection, _ = await backend.arrived.get()
    clock.pump([1] * 99)
    assert not answer.called
    clock.pump([1] * 40)
    assert status_of(await answer) == 504
    await connection.gone
    assert other.heads == []


async def test_a_backend_that_falls_silent_in_its_answer_ends_the_connection(stage: Any, raw: Any) -> None:
    clock = Clock()
    backend = stage.backend(lambda head: None)
    handler = stage.proxy(backend.backend, idle=100.0, deadlines=Deadlines(clock))
    port = stage.serve(handler)
    answer = raw(port.getHost().port, request())
    connection, _ = await backend.arrived.get()
    connection.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
    while not stage.factories[-1].connections[0].exchange.sent:
        await deferLater(stage.reactor, 0)
    clock.pump([1] * 140)
    assert (await answer).endswith(b"ab<RESET>")
    await connection.gone


async def test_a_backend_is_not_blamed_for_a_client_that_holds_back_its_body(stage: Any, beside: Any) -> None:
    clock = Clock()
    backend = stage.backend(lambda head: None)
    handler = stage.proxy(backend.backend, idle=10.0, deadlines=Deadlines(clock))
    port = stage.serve(handler).getHost().port
    client = await beside(socket.create_connection, ("127.0.0.1", port), 20)
    await beside(client.sendall, request(b"POST", b"Content-Length: 3\r\n", b"a"))
    connection, _ = await backend.arrived.get()
    clock.pump([1] * 100)
    await beside(client.sendall, b"bc")
    while b"abc" not in connection.data:
        await deferLater(stage.reactor, 0)
    connection.transport.write(OK)
    assert (await beside(client.recv, 65536)).startswith(b"HTTP/1.1 200")
    client.close()


# Life.


async def test_a_client_that_vanishes_ends_the_backends_part(stage: Any, beside: Any) -> None:
    backend, other = stage.backend(lambda head: None), stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend, other.backend)).getHost().port
    client = await beside(socket.create_connection, ("127.0.0.1", port), 20)
    await beside(client.sendall, request())
    connection, _ = await backend.arrived.get()
    client.close()
    await connection.gone
    assert other.heads == []
    # The client's doing is held against no backend.
    assert stage.pool.log == [("taken", 0), ("given back", 0)]


async def test_a_client_that_vanishes_in_an_answer_ends_the_backends_part(stage: Any, beside: Any) -> None:
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    client = await beside(socket.create_connection, ("127.0.0.1", port), 20)
    await beside(client.sendall, request())
    connection, _ = await backend.arrived.get()
    connection.transport.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
    assert await beside(client.recv, 100)
    client.close()
    await connection.gone
    assert stage.pool.log == [("taken", 0), ("worked", 0), ("given back", 0)]


async def test_a_client_that_vanishes_while_dialling_cancels_the_dial(stage: Any, beside: Any) -> None:
    cancelled: Deferred[None] = Deferred()
    dialled: Deferred[None] = Deferred()

    class Never:
        def connect(self, factory: object) -> Deferred[None]:
            dialled.callback(None)
            return Deferred(lambda _: cancelled.callback(None))

    port = stage.serve(stage.proxy(Backend("10.0.0.1", 80), endpoint_for=lambda backend: Never())).getHost().port
    client = await beside(socket.create_connection, ("127.0.0.1", port), 20)
    await beside(client.sendall, request())
    await dialled
    client.close()
    await cancelled


async def test_connections_are_kept_and_used_again(stage: Any, beside: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port

    def three() -> list[bytes]:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        bodies = []
        for _ in range(3):
            client.request("POST", "/", b"x")
            bodies.append(client.getresponse().read())
        client.close()
        return bodies

    def react(connection: Any) -> None:
        if connection.data.endswith(b"\r\n\r\nx"):
            connection.data = b""
            connection.transport.write(OK)

    backend.react = react
    assert await beside(three) == [b"ok"] * 3
    assert len(backend.connections) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close, x\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_that_the_backend_ends_is_not_kept(stage: Any, raw: Any, answer: bytes) -> None:
    backend = stage.backend(lambda head: answer)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    for _ in range(2):
        assert (await raw(port, request())).endswith(b"ok")
    assert len(backend.connections) == 2


@pytest.mark.parametrize(("method", "status"), [(b"GET", 200), (b"PATCH", 502)])
async def test_a_kept_connection_that_turns_out_dead(stage: Any, raw: Any, method: bytes, status: int) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend, retries=0)).getHost().port
    await raw(port, request())

    def die_once(connection: Any) -> None:
        del backend.react
        connection.transport.abortConnection()

    backend.react = die_once
    assert status_of(await raw(port, request(method))) == status
    assert len(backend.connections) == (2 if status == 200 else 1)


async def test_a_stopped_proxy_keeps_no_connection(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    answer = raw(port, request())
    connection, _ = await backend.arrived.get()
    await stage.proxies[0].stop()
    connection.transport.write(OK)
    assert status_of(await answer) == 200
    await connection.gone


async def test_a_reload_ends_the_kept_connections_and_leaves_nothing_of_them(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    for _ in range(3):
        await raw(port, request())
        stage.pool.epoch = object()
    await raw(port, request())
    assert len(backend.connections) == 4
    for connection in backend.connections[:3]:
        await connection.gone
    assert not backend.connections[3].gone.called
    assert len(stage.proxies[0]._connections._connections) == 1


async def test_a_connection_that_was_in_use_at_a_reload_is_not_kept(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    answer = raw(port, request())
    connection, _ = await backend.arrived.get()
    stage.pool.epoch = object()
    connection.transport.write(OK)
    assert status_of(await answer) == 200
    await connection.gone


@pytest.mark.parametrize("framing", [b"Content-Length: 900000\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_an_answer_before_the_end_of_the_body_reaches_the_client(stage: Any, raw: Any, framing: bytes) -> None:
    backend = stage.backend(lambda head: b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    answer = await raw(port, request(b"POST", framing))
    assert answer.startswith(b"HTTP/1.1 413 No\r\n")
    assert answer.endswith(b"\r\n\r\nno")
    await backend.connections[0].gone


async def turns_until_quiet(stage: Any, value: Callable[[], int]) -> int:
    """The value when it has not changed for many turns of the reactor."""
    last, same = value(), 0
    while same < 200:
        await deferLater(stage.reactor, 0)
        now = value()
        last, same = now, same + 1 if now == last else 0
    return last


async def test_a_slow_backend_slows_a_chunked_upload_down(stage: Any, beside: Any) -> None:
    content = bytes(range(256)) * 35_000
    backend = stage.backend(lambda head: None)
    port = stage.serve(stage.proxy(backend.backend))
    for listening in stage.ports:
        listening.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sent = 0

    def upload() -> bytes:
        nonlocal sent
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            client.settimeout(20)
            client.connect(("127.0.0.1", port.getHost().port))
            client.sendall(request(b"POST", b"Transfer-Encoding: chunked\r\n"))
            for start in range(0, len(content), 10_000):
                piece = content[start : start + 10_000]
                client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                sent += len(piece)
            client.sendall(b"0\r\n\r\n")
            return client.recv(65536)

    answer = beside(upload)
    connection, _ = await backend.arrived.get()
    connection.transport.pauseProducing()
    backend.react = lambda one: None
    front = stage.factories[-1].connections[0]
    await turns_until_quiet(stage, lambda: front.exchange.body.received)
    while front.exchange.body.wanting:
        await deferLater(stage.reactor, 0)
    assert front.exchange.body.received < 7_000_000
    assert sent < len(content)
    connection.transport.resumeProducing()
    while not connection.data.endswith(b"0\r\n\r\n"):
        await deferLater(stage.reactor, 0)
    assert decoded(connection.data) == hashlib.sha256(content).digest()
    connection.transport.write(OK)
    assert (await answer).startswith(b"HTTP/1.1 200 OK\r\n")


def decoded(data: bytes) -> bytes:
    digest = hashlib.sha256()
    while data:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        digest.update(data[:size])
        data = data[size + 2 :]
    return digest.digest()


async def test_a_slow_client_slows_the_backend_down(stage: Any, beside: Any) -> None:
    content = bytes(range(256)) * 80_000
    backend = stage.backend(lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
    port = stage.serve(stage.proxy(backend.backend))
    client = http.client.HTTPConnection("127.0.0.1", port.getHost().port, timeout=20)
    response = await beside(lambda: (client.request("GET", "/"), client.getresponse())[1])
    front = stage.factories[-1].connections[0]
    sent = await turns_until_quiet(stage, lambda: front.exchange.sent)
    assert sent < len(content)
    # What the kernel's buffers do not hold is held by the backend.
    assert len(backend.connections[0].transport.dataBuffer) > 5_000_000
    assert await beside(response.read) == content
    client.close()


# What the pool is asked and told.


async def test_the_choice_hears_of_the_key_and_of_the_preferred_member_and_a_further_one_of_the_key_alone(
    stage: Any, raw: Any, refusing: Backend
) -> None:
    backend = stage.backend(lambda head: OK)
    preferred = Member(refusing)
    handler = stage.proxy(refusing, backend.backend, affinity=Affinity(b"key", preferred))
    stage.pool.members[0] = preferred
    assert status_of(await raw(stage.serve(handler).getHost().port, request())) == 200
    assert stage.pool.asked == [(b"key", preferred), (b"key", None)]


async def test_failures_are_told_with_their_reason(stage: Any, raw: Any, refusing: Backend) -> None:
    backend = stage.backend(lambda head: b"nonsense\r\n\r\n")
    port = stage.serve(stage.proxy(refusing, backend.backend)).getHost().port
    assert status_of(await raw(port, request())) == 502
    assert [what for what, _ in stage.pool.log].count("failed") == 2
    assert "refused" in stage.pool.reasons[0]
    assert not any(member.live for member in stage.pool.members)


async def test_no_further_backend_is_tried_when_retry_time_is_over(stage: Any, raw: Any) -> None:
    clock = Clock()
    first, second = stage.backend(lambda head: None), stage.backend(lambda head: OK)
    handler = stage.proxy(first.backend, second.backend, deadlines=Deadlines(clock), clock=clock, retry_time=5.0)
    port = stage.serve(handler).getHost().port
    for seconds, status in ((4.0, 200), (6.0, 502)):
        answer = raw(port, request())
        connection, _ = await first.arrived.get()
        clock.advance(seconds)
        connection.transport.abortConnection()
        assert status_of(await answer) == status
    # The kept connection of the clock's pool ends with its time.
    clock.advance(KEPT_SECONDS + 1)


async def test_the_answer_binds_the_client_to_the_backend_that_gave_it(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: b"HTTP/1.1 200 OK\r\nSet-Cookie: own=1\r\nContent-Length: 2\r\n\r\nok")
    member = Member(backend.backend)
    sticky = StickyCookie(Sticky("wsr"), "app", [member])
    handler = stage.proxy(backend.backend, affinity=Affinity(sticky=sticky, secure=True))
    stage.pool.members[0] = member
    answer = await raw(stage.serve(handler).getHost().port, request())
    cookies = [line for line in answer.split(b"\r\n") if line.startswith(b"Set-Cookie: ")]
    assert cookies == [b"Set-Cookie: own=1", b"Set-Cookie: " + sticky.set_cookie(member, True)]


async def test_a_connection_that_speaks_for_one_client_is_used_once(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: OK)
    handler = stage.proxy(backend.backend, affinity=Affinity(preface=b"PROXY UNKNOWN\r\n"))
    port = stage.serve(handler).getHost().port
    for number in (1, 2):
        assert status_of(await raw(port, request())) == 200
        assert len(backend.connections) == number
        await backend.connections[-1].gone
    assert stage.pool.prefaces == [b"PROXY UNKNOWN\r\n"] * 2


async def test_a_kept_connection_is_not_used_under_other_rules_than_it_was_made(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend)).getHost().port
    for number in (1, 1, 2):
        if number == 2:
            stage.pool.epoch = object()
        assert status_of(await raw(port, request())) == 200
        assert len(backend.connections) == number


async def in_line(stage: Any, count: int) -> None:
    while len(stage.pool.line) != count:
        await deferLater(stage.reactor, 0)


async def test_a_request_waits_while_all_are_full_and_its_place_is_given_back_once(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend, queue=1, affinity=Affinity(b"key"))).getHost().port
    stage.pool.full = True
    answer = raw(port, request())
    await in_line(stage, 1)
    [(key, served)] = stage.pool.line
    (member,) = stage.pool.members
    stage.pool.take(member)
    served(member)
    assert status_of(await answer) == 200
    assert key == b"key"
    assert stage.pool.log == [("taken", 0), ("worked", 0), ("given back", 0)]


async def test_a_request_that_has_waited_in_vain_gets_503(stage: Any, raw: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend, queue=1)).getHost().port
    stage.pool.full = True
    answer = raw(port, request())
    await in_line(stage, 1)
    stage.pool.line[0][1](None)
    got = await answer
    assert status_of(got) == 503
    assert b"\r\nRetry-After: 1\r\n" in got
    assert stage.pool.log == []


async def test_a_client_that_vanishes_while_it_waits_leaves_the_line(stage: Any, beside: Any) -> None:
    backend = stage.backend(lambda head: OK)
    port = stage.serve(stage.proxy(backend.backend, queue=1)).getHost().port
    stage.pool.full = True
    client = await beside(socket.create_connection, ("127.0.0.1", port), 20)
    await beside(client.sendall, request())
    await in_line(stage, 1)
    client.close()
    await in_line(stage, 0)
    assert stage.pool.log == []


# Servers that others wrote.


@pytest.fixture
def plain_server() -> Iterator[Backend]:
    """The standard library's server, which speaks HTTP/1.1 and echoes bodies."""

    class Echo(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Backend("127.0.0.1", server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


async def test_the_standard_librarys_server_echoes_through_the_proxy(
    stage: Any, beside: Any, plain_server: Backend
) -> None:
    port = stage.serve(stage.proxy(plain_server)).getHost().port

    def talk() -> list[bytes]:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        got = []
        for size in (0, 1, 100_000, 3_000_000):
            client.request("POST", "/", b"x" * size)
            got.append(client.getresponse().read())
        client.close()
        return got

    assert [len(body) for body in await beside(talk)] == [0, 1, 100_000, 3_000_000]
    await stage.proxies[0].stop()
