"""Probes, against sockets that a test speaks for and against real servers."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trustme
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve, unix_serve

from wsrouter.backends.dial import Address, TlsClient
from wsrouter.backends.probes import FRAME_LIMIT, INTERIM_LIMIT, probe
from wsrouter.config.values import Check, CheckKind, Echo
from wsrouter.demo.backends import EchoService
from wsrouter.errors import DialError
from wsrouter.relay.loop import Relay
from wsrouter.wire.opening import accept_for

TCP = Check(CheckKind.TCP)
HTTP = Check(CheckKind.HTTP, "/health?deep=1")
WEBSOCKET = Check(CheckKind.WEBSOCKET, "/live")
CHAT = Check(CheckKind.WEBSOCKET, subprotocol="chat.v2")

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """A server's frame."""
    size = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + struct.pack("!H", len(payload))
    return bytes([0x80 | opcode]) + size + payload


class Probed:
    """A probe of a backend for which the test speaks."""

    def __init__(self, rig: Any, check: Check, server: Any = None, tls: TlsClient | None = None) -> None:
        self.rig = rig
        self.server = server or rig.server()
        self.outcome: list[Any] = []
        address = Address(self.server.family, self.server.getsockname())
        self.result = probe(rig.relay, check, [address], "app.example", tls)
        self.result.addBoth(self.outcome.append)
        assert not self.outcome

    def accept(self) -> list[str]:
        """Take the connection; returns the lines of the request's head."""
        self.rig.settle()
        self.peer = self.rig.accept(self.server)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.peer.recv(1)
        return head.decode().split("\r\n")[:-2]

    def open(self, *more: str, then: bytes = b"") -> None:
        """Take the connection and accept the opening handshake; ``then`` comes in the same segment as its end."""
        (key,) = [line[19:] for line in self.accept() if line.startswith("Sec-WebSocket-Key: ")]
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *more]
        if not any(line.startswith("Sec-WebSocket-Accept") for line in more):
            lines.append(f"Sec-WebSocket-Accept: {accept_for(key.encode()).decode()}")
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        self.say(head[:20])
        self.say(head[20:] + then)

    def say(self, data: bytes) -> None:
        self.peer.sendall(data)
        self.rig.settle()

    def frame(self) -> tuple[int, bytes]:
        """The client's next frame."""
        first, second = self._receive(2)
        assert first & 0x80
        assert second & 0x80
        mask = self._receive(4)
        return first & 15, bytes(byte ^ mask[at % 4] for at, byte in enumerate(self._receive(second & 127)))

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.peer.recv(size - len(data))
            assert more
            data += more
        return data

    def rest(self) -> bytes:
        """All that the client still says, up to its FIN or its reset."""
        data = b""
        try:
            while more := self.peer.recv(65536):
                data += more
        except ConnectionResetError:
            data += b"(reset)"
        return data

    @property
    def rtt(self) -> float:
        self.rig.until(lambda: self.outcome)
        (rtt,) = self.outcome
        assert isinstance(rtt, float), rtt
        return rtt

    @property
    def error(self) -> DialError:
        self.rig.until(lambda: self.outcome)
        (failure,) = self.outcome
        assert isinstance(failure, Failure)
        assert isinstance(failure.value, DialError), failure
        return failure.value

    def nothing_is_left(self) -> bool:
        """After a probe's end its leg is gone, at the latest when it has lingered."""
        self.rig.pass_time(2.1)
        self.rig.settle()
        return not self.rig.relay.members and not self.rig.getDelayedCalls()


# All kinds.


@pytest.mark.parametrize("check", [TCP, HTTP, WEBSOCKET])
def test_a_refused_connection_fails(rig, nobody, check):
    outcome: list[Any] = []
    probe(rig.relay, check, [nobody], "app.example").addErrback(outcome.append)
    rig.until(lambda: outcome)
    assert outcome[0].value.reason == "connection refused"
    assert not rig.relay.members


@pytest.mark.parametrize(
    ("check", "missing"), [(TCP, "connection"), (HTTP, "answer"), (WEBSOCKET, "answer")], ids=["tcp", "http", "ws"]
)
def test_silence_has_an_end(rig, check, missing):
    server = rig.server(backlog=0)
    # A full queue lets nobody in.
    fill = [Probed(rig, TCP, server) for _ in range(2)] if check is TCP else []
    probed = Probed(rig, check, server)
    rig.settle()
    rig.pass_time(1.9)
    assert not probed.outcome
    rig.pass_time(0.2)
    assert probed.error.reason == f"no {missing} in time"
    assert probed.error.timed_out
    assert len(fill) == 0 or fill[0].rtt == 0.0
    assert probed.nothing_is_left()


@pytest.mark.parametrize("check", [TCP, HTTP, WEBSOCKET])
def test_a_backend_without_an_address_fails_at_once(rig, check):
    outcome: list[Any] = []
    probe(rig.relay, check, [], "app.example").addErrback(outcome.append)
    assert outcome[0].value.reason == "its name does not resolve"


@pytest.mark.parametrize("check", [TCP, HTTP, WEBSOCKET])
@pytest.mark.parametrize("connected", [False, True])
def test_a_cancelled_probe_leaves_nothing(rig, check, connected):
    probed = Probed(rig, check)
    if connected and check is not TCP:
        probed.accept()
    probed.result.cancel()
    (failure,) = probed.outcome
    assert failure.check(CancelledError)
    assert probed.nothing_is_left()
    if connected and check is not TCP:
        assert probed.rest() == b"(reset)"


@pytest.mark.parametrize("check", [HTTP, WEBSOCKET])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "the backend's answer: malformed status line"),
        (b"HTTP/1.1 200 OK\r\nbad\x01: 1\r\n\r\n", "the backend's answer: malformed head: Invalid header token"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20000, "the backend's answer: the head is too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * (INTERIM_LIMIT + 1), f"more than {INTERIM_LIMIT} interim answers"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "answered 503"),
    ],
)
def test_a_bad_answer_fails(rig, check, answer, reason):
    probed = Probed(rig, check)
    probed.accept()
    probed.say(answer)
    assert probed.error.reason == reason
    assert probed.error.nonsense
    assert probed.nothing_is_left()


@pytest.mark.parametrize("check", [HTTP, WEBSOCKET])
@pytest.mark.parametrize("reset", [False, True])
def test_a_backend_that_hangs_up_fails(rig, check, reset):
    probed = Probed(rig, check)
    probed.accept()
    if reset:
        probed.peer.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER
    probed.peer.close()
    told = "connection reset by peer" if reset else "connection closed"
    assert probed.error.reason == f"{told} before its answer"
    assert probed.nothing_is_left()


def test_the_end_of_the_relay_ends_a_probe(rig):
    probed = Probed(rig, HTTP)
    probed.accept()
    rig.relay.stop()
    assert probed.error.reason == "connection closed before its answer"


# TCP.


def test_a_connection_is_all_that_tcp_asks_for(rig):
    probed = Probed(rig, TCP)
    assert probed.rtt == 0.0
    probed.peer = rig.accept(probed.server)
    rig.settle()
    assert probed.rest() == b""
    assert probed.nothing_is_left()


# HTTP.


def test_http_asks_and_reads_the_status(rig):
    probed = Probed(rig, HTTP)
    assert probed.accept() == [
        "GET /health?deep=1 HTTP/1.1",
        "Host: app.example",
        "User-Agent: wsrouter-check",
        "Connection: close",
    ]
    rig.advance(0.25)
    probed.say(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 20")
    assert not probed.outcome
    probed.say(b"0 OK\r\nContent-Length: 100000\r\n\r\nthe body is not waited for")
    assert probed.rtt == 0.25
    assert probed.rest() == b""
    assert probed.nothing_is_left()


@pytest.mark.parametrize(
    ("statuses", "status", "passes"),
    [
        (HTTP.statuses, 200, True),
        (HTTP.statuses, 399, True),
        (HTTP.statuses, 400, False),
        (HTTP.statuses, 101, False),
        (((204, 204), (401, 403)), 403, True),
        (((204, 204), (401, 403)), 200, False),
    ],
)
def test_the_statuses_of_the_check_pass(rig, statuses, status, passes):
    probed = Probed(rig, Check(CheckKind.HTTP, statuses=statuses))
    probed.accept()
    probed.say(b"HTTP/1.1 %d Whatever\r\n\r\n" % status)
    if passes:
        assert probed.rtt == 0.0
    else:
        assert probed.error.reason == f"answered {status}"
    assert probed.nothing_is_left()


# WebSocket.


def test_a_websocket_opens_sees_a_pong_and_closes(rig):
    probed = Probed(rig, CHAT)
    probed.open("Sec-WebSocket-Protocol: chat.v2", "Server: caf\xe9")
    opcode, payload = probed.frame()
    assert (opcode, len(payload)) == (PING, 8)
    rig.advance(0.5)
    probed.say(frame(PONG, payload))
    assert probed.frame() == (CLOSE, b"\x03\xe8")
    assert not probed.outcome
    rig.advance(1.0)
    probed.say(frame(CLOSE, b"\x03\xe8"))
    assert probed.rtt == 0.5
    assert probed.rest() == b""
    assert probed.nothing_is_left()


def test_the_opening_handshake_is_what_a_client_would_send(rig):
    probed = Probed(rig, CHAT)
    lines = probed.accept()
    assert [line for line in lines if not line.startswith("Sec-WebSocket-Key: ")] == [
        "GET / HTTP/1.1",
        "Host: app.example",
        "User-Agent: wsrouter-check",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: chat.v2",
    ]
    probed.result.cancel()


@pytest.mark.parametrize("end", ["silence", "a FIN", "a violation"])
def test_after_the_pong_nothing_spoils_it(rig, end):
    probed = Probed(rig, WEBSOCKET)
    probed.open()
    probed.say(frame(PONG, probed.frame()[1]))
    if end == "silence":
        rig.pass_time(2.1)
    elif end == "a FIN":
        probed.peer.close()
    else:
        probed.say(b"\xff\xff")
    assert probed.rtt == 0.0
    assert probed.nothing_is_left()


@pytest.mark.parametrize(
    ("check", "lines", "reason"),
    [
        (
            WEBSOCKET,
            ["Sec-WebSocket-Accept: bm90aGluZw=="],
            "the backend's 101 has no, or a wrong, Sec-WebSocket-Accept",
        ),
        (CHAT, ["Sec-WebSocket-Protocol: other"], "the backend chose a subprotocol that was not offered"),
        (CHAT, [], "did not choose the subprotocol chat.v2"),
        (WEBSOCKET, ["Sec-WebSocket-Protocol: other"], "the backend chose a subprotocol that was not offered"),
        (
            WEBSOCKET,
            ["Sec-WebSocket-Extensions: permessage-deflate"],
            "the backend chose an extension that was not offered",
        ),
    ],
)
def test_a_101_that_does_not_fit_fails(rig, check, lines, reason):
    probed = Probed(rig, check)
    probed.open(*lines)
    assert probed.error.reason == reason
    assert probed.nothing_is_left()


@pytest.mark.parametrize("pong", [b"", b"unasked"])
def test_a_pong_that_answers_another_ping_is_none(rig, pong):
    probed = Probed(rig, WEBSOCKET)
    probed.open()
    probed.say(frame(PONG, pong))
    rig.pass_time(2.1)
    assert probed.error.reason == "no pong in time"
    assert probed.error.timed_out
    assert probed.nothing_is_left()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(CLOSE, b"\x03\xf4"), "closed with code 1012 before its pong"),
        (frame(CLOSE), "closed with code 1005 before its pong"),
        (frame(CLOSE, b"\x00\x01"), "invalid close code 1"),
        (b"\x81\x80\x00\x00\x00\x00", "masked server-to-client frame"),
        (b"\xc1\x00", "RSV = 4 and no extension negotiated"),
        (frame(BINARY) * (FRAME_LIMIT + 1), f"more than {FRAME_LIMIT} frames before its pong"),
    ],
)
def test_frames_that_break_the_rules_fail(rig, data, reason):
    probed = Probed(rig, WEBSOCKET)
    probed.open()
    probed.say(data)
    assert probed.error.reason == reason
    assert probed.nothing_is_left()


def test_a_backend_that_leaves_before_its_pong_fails(rig):
    probed = Probed(rig, WEBSOCKET)
    probed.open()
    probed.frame()
    probed.peer.close()
    assert probed.error.reason == "connection closed before its pong"
    assert probed.nothing_is_left()


def test_what_the_backend_has_to_say_is_dropped_and_its_pings_are_answered(rig):
    probed = Probed(rig, WEBSOCKET)
    probed.open(then=frame(TEXT, b"welcome") + frame(PING, b"there?"))
    ping, answer = probed.frame(), probed.frame()
    assert answer == (PONG, b"there?")
    (leg,) = rig.relay.members.values()
    probed.say(frame(BINARY, b"x" * 60000) + frame(PONG, ping[1]))
    assert probed.frame()[0] == CLOSE
    # A frame of a gigabyte begins, and no byte of it is kept.
    probed.say(b"\x82\x7f" + struct.pack("!Q", 1 << 30) + b"x" * 60000)
    assert len(leg.protocol.data) == 0
    rig.pass_time(2.1)
    assert probed.rtt == 0.0
    assert probed.nothing_is_left()


# Real servers.


@pytest.fixture
def closes() -> list[Any]:
    """How each of the server's sessions ended."""
    return []


@pytest.fixture
def handler(closes: list[Any]) -> Callable[[Any], None]:
    def handle(session: Any) -> None:
        # A probe may be over before the handler has begun.
        with suppress(ConnectionClosed):
            session.send("welcome")
            session.recv()
        closes.append((session.request.path, session.subprotocol, session.close_code))

    return handle


@pytest.mark.parametrize("check", [TCP, WEBSOCKET, CHAT, HTTP], ids=["tcp", "ws", "subprotocol", "http"])
def test_a_real_server_passes(rig, serving, handler, closes, check):
    def answer_http(session: Any, request: Any) -> Any:
        return session.respond(200, "fine\n") if request.path.startswith("/health") else None

    with serving(
        serve(handler, "127.0.0.1", 0, subprotocols=["chat.v2"] if check is CHAT else None, process_request=answer_http)
    ) as server:
        assert Probed(rig, check, server.socket).rtt == 0.0
        if check.kind is CheckKind.WEBSOCKET:
            rig.until(lambda: closes)
            assert closes == [(check.path, check.subprotocol, 1000)]
        rig.pass_time(2.1)


def test_a_real_server_on_a_unix_socket_passes(rig, serving, handler, closes, tmp_path):
    with serving(unix_serve(handler, str(tmp_path / "s"))) as server:
        assert Probed(rig, WEBSOCKET, server.socket).rtt == 0.0
        rig.until(lambda: closes)
        rig.pass_time(2.1)


@pytest.mark.parametrize("check", [TCP, WEBSOCKET], ids=["tcp", "ws"])
@pytest.mark.parametrize("trusted", [True, False])
def test_a_real_server_with_tls_must_verify(rig, serving, handler, closes, check, trusted):
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("app.example").configure_cert(theirs)
    (authority if trusted else trustme.CA()).configure_trust(ours)
    with serving(serve(handler, "127.0.0.1", 0, ssl=theirs)) as server:
        probed = Probed(rig, check, server.socket, TlsClient(ours, "app.example"))
        if trusted:
            assert probed.rtt == 0.0
        else:
            assert probed.error.reason.startswith("TLS: certificate does not verify")
        rig.settle()
        rig.pass_time(2.1)


async def test_a_demonstration_backend_passes_in_real_time(reactor):
    service = EchoService(reactor, Echo("demo", (0,)), None)
    service.startService()
    relay = Relay(reactor)
    relay.start()
    try:
        address = Address(2, ("127.0.0.1", service.ports[0]))
        for check in (TCP, HTTP, WEBSOCKET):
            result: Deferred[float] = probe(relay, check, [address], "app.example")
            assert await result >= 0.0
    finally:
        relay.stop()
        await service.stopService()
