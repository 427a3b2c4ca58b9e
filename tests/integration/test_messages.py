"""Message sessions as both ends see them on the wire: what passes, what is refused, and how sessions end.

A message goes on whole and in one frame, with a mask of the router's own, so frames are compared here unmasked.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import threading
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from websockets.sync.client import connect as open_websocket

from tests.integration import sessions
from tests.integration.sessions import (
    BINARY,
    CLOSE,
    MEGABYTE,
    PING,
    PONG,
    TEXT,
    are_over,
    both,
    ended,
    is_over,
    wired,
)
from wsrouter.live.registry import Who
from wsrouter.relay.leg import BUFFER_SIZE

DEFLATE = [("Sec-WebSocket-Extensions", "permessage-deflate")]


#: Policies that let everything pass: nothing may be different with them.
POLICIES = """
message_rate = 1000000/s
byte_rate = 1g/s
ping = 1h
backend_ping = 1h
"""
#: Policies that have a say in all that goes on; they need ``on_rate``.
TIGHT = """
message_rate = 1000/s burst=20
byte_rate = 100k/s burst=1k
ping = 100ms
backend_ping = 50ms
ping_timeout = 200ms
"""


@pytest.fixture(params=["plain", "policies", "tls"])
def wire(request, authority):
    """How the two legs are carried: arguments for the backend, for the client, lines for listener and pool, files."""
    return wired(request.param, authority)


def configured(address: str, route: str = "", *more: str, **named: str) -> str:
    return sessions.configured(address, f"session = message\n{route}", *more, **named)


@pytest.fixture
def start(router, backend, open_session):
    """``start(route="", close_timeout="60s") -> running, client, peer``: a session, both ends for the test."""

    def begin(route: str = "", close_timeout: str = "60s", **more):
        server = backend()
        running = router(configured(server.address, route, close_timeout=close_timeout))
        return running, *open_session(running, server, **more)

    return begin


@pytest.fixture
def start_on(router, backend, open_session, wire, request):
    """The same, on plain sockets, under policies, and on TLS."""
    policies = POLICIES if request.node.callspec.params["wire"] == "policies" else ""

    def begin(route: str = "", close_timeout: str = "60s"):
        for_backend, for_client, listener, pool, files = wire
        server = backend(**for_backend)
        running = router(configured(server.address, route + policies, listener, pool, close_timeout), files)
        return running, *open_session(running, server, **for_client)

    return begin


# What passes.


@pytest.mark.parametrize("sender", ["client", "backend"])
def test_messages_arrive_whole_and_in_one_frame_whatever_they_were_sent_in(start_on, frame, sender) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, sender)
    data = b"".join(
        [
            frame(TEXT, b"hello", mask=mask),
            frame(TEXT, b"", mask=mask),
            frame(TEXT, b"gr\xc3", mask=mask, fin=False),  # within a character
            frame(0, b"", mask=mask, fin=False),
            frame(PING, b"between", mask=mask),
            frame(0, b"\xbc\xc3\x9f", mask=mask),
            *(frame(BINARY, b"x" * size, mask=mask) for size in (0, 1, 125, 126, 65535, 65536, 300_000)),
            frame(PONG, b"unasked", mask=mask),
        ]
    )
    expected = [
        (TEXT, b"hello"),
        (TEXT, b""),
        (PING, b"between"),
        (TEXT, "gr\u00fc\u00df".encode()),
        *((BINARY, b"x" * size) for size in (0, 1, 125, 126, 65535, 65536, 300_000)),
        (PONG, b"unasked"),
    ]
    thread = threading.Thread(target=one.send, args=(data,))
    thread.start()
    for opcode, payload in expected:
        assert other.recv_frame() == (opcode, payload, True, 0, mask)
    thread.join()
    counts = running.call(running.opened[0].counts)
    assert (counts.messages_in, counts.messages_out) == ((10, 0) if mask else (0, 10))
    assert (counts.bytes_in, counts.bytes_out) == ((len(data), 0) if mask else (0, len(data)))


@pytest.mark.parametrize("sender", ["client", "backend"])
def test_frames_that_come_byte_by_byte_become_messages(start_on, frame, sender) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, sender)
    for byte in (
        frame(TEXT, b"a", mask=mask, fin=False)
        + frame(PING, b"ping", mask=mask)
        + frame(0, b"b" * 126, mask=mask)
        + frame(CLOSE, b"\x03\xe8bye", mask=mask)
    ):
        one.send(bytes([byte]))
        running.settle()
    assert other.recv_frame()[:2] == (PING, b"ping")
    assert other.recv_frame()[:2] == (TEXT, b"a" + b"b" * 126)
    assert other.recv_frame()[:2] == (CLOSE, b"\x03\xe8bye")


def test_ping_and_pong_pass_and_the_router_answers_none_itself(start, frame) -> None:
    running, client, peer = start()
    client.send(frame(PING, b"are you there?"))
    assert peer.recv_frame()[:2] == (PING, b"are you there?")
    running.settle()
    assert client.nothing_comes()
    peer.send(frame(PONG, b"are you there?", mask=False))
    assert client.recv_frame() == (PONG, b"are you there?", True, 0, False)
    peer.send(frame(PING, mask=False))
    assert client.recv_frame() == (PING, b"", True, 0, False)
    running.settle()
    assert peer.nothing_comes()


def test_frames_in_the_segments_of_the_handshake_are_delivered_once_and_in_order(
    router, connect, backend, frame
) -> None:
    server = backend()
    running = router(configured(server.address))
    client = connect(running.port())
    head = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    client.send(
        head
        + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        + frame(TEXT, b"early")
        + frame(TEXT, b"bird")
    )
    peer = server.accept()
    peer.send(peer.agreement(peer.recv_head()) + frame(TEXT, b"worm", mask=False))
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    assert client.recv_frame().payload == b"worm"
    assert [peer.recv_frame().payload for _ in range(2)] == [b"early", b"bird"]
    running.settle()
    assert client.nothing_comes()
    assert peer.nothing_comes()


# The handshake is one from end to end.


def test_key_subprotocol_cookies_and_fields_are_those_of_the_two_ends(router, backend, connect) -> None:
    server = backend()
    running = router(configured(server.address, "set_header = X-Told: {client_ip}"))
    client = connect(running.port())
    client.request(
        "/chat?room=1", headers=[("Sec-WebSocket-Protocol", "chat.v2, chat.v1"), ("Cookie", "a=b"), ("X-Own", "1")]
    )
    peer = server.accept()
    head = peer.answer(
        [("Sec-WebSocket-Protocol", "chat.v1"), ("Set-Cookie", "c=d"), ("Set-Cookie", "e=f"), ("X-Other", "2")]
    )
    lines = head.decode().split("\r\n")
    assert lines[0] == "GET /chat?room=1 HTTP/1.1"
    assert {f"Sec-WebSocket-Key: {client.key}", "Cookie: a=b", "X-Own: 1", "X-Told: 127.0.0.1"} <= set(lines)
    assert "Sec-WebSocket-Protocol: chat.v2, chat.v1" in lines
    answer = client.recv_head().decode().split("\r\n")
    assert answer[0] == "HTTP/1.1 101 Switching Protocols"
    accept = client.agreement(f"Sec-WebSocket-Key: {client.key}".join(["GET\r\n", "\r\n"]).encode()).decode()
    assert next(line for line in accept.split("\r\n") if "Accept" in line) in answer
    assert {"Sec-WebSocket-Protocol: chat.v1", "Set-Cookie: c=d", "Set-Cookie: e=f", "X-Other: 2"} <= set(answer)
    assert not any("extension" in line.lower() for line in [*lines, *answer])
    running.until(lambda: running.opened)
    assert running.opened[0].facts.subprotocol == "chat.v1"


@pytest.mark.parametrize("value", [b"a\x85X-Injected: 1", "\u0085X-Injected: 1".encode(), b"\xe4\xf6\xfc"])
def test_a_value_with_bytes_beyond_ascii_never_becomes_a_second_header(router, backend, connect, frame, value) -> None:
    server = backend()
    running = router(configured(server.address))
    client = connect(running.port())
    client.send(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Name: "
        + value
        + b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    peer = server.accept()
    head = peer.recv_head()
    assert b"\r\nX-Name: " + value + b"\r\n" in head
    assert b"\r\nX-Injected" not in head
    # The same in the backend's answer.
    peer.send(peer.agreement(head)[:-2] + b"X-Name: " + value + b"\r\n\r\n")
    answer = client.recv_head()
    assert b"\r\nX-Name: " + value + b"\r\n" in answer
    client.send(frame(TEXT, b"hello"))
    assert peer.recv_frame().payload == b"hello"


def test_a_refusal_reaches_the_client_as_the_backend_wrote_it(router, backend, connect) -> None:
    refusal = b"HTTP/1.1 403 Not You\r\nContent-Length: 5\r\nX-Why: because\r\n\r\nsorry"

    def script(peer) -> None:
        peer.recv_head()
        peer.send(refusal)

    running = router(configured(backend(script).address))
    client = connect(running.port())
    client.request()
    answer = client.recv_all()
    assert answer.startswith(b"HTTP/1.1 403 Not You\r\n")
    assert b"\r\nX-Why: because\r\n" in answer
    assert answer.endswith(b"\r\n\r\nsorry")
    assert running.refused[0].stage == "backend"


def test_a_101_that_grants_an_extension_which_the_router_did_not_offer_is_refused(router, backend, connect) -> None:
    running = router(
        configured(backend(lambda peer: peer.answer([("Sec-WebSocket-Extensions", "permessage-deflate")])).address)
    )
    client = connect(running.port())
    client.request(headers=DEFLATE)
    assert client.recv_head().startswith(b"HTTP/1.1 502 ")


def test_another_backend_is_tried_as_in_a_relay_session(router, backend, connect, refusing_address, frame) -> None:
    server = backend()
    running = router(configured(f"\n    {refusing_address}\n    {server.address}", pool="balance = first"))
    client = connect(running.port())
    client.request()
    peer = server.accept()
    peer.answer()
    client.recv_head()
    client.send(frame(TEXT, b"hello"))
    assert peer.recv_frame().payload == b"hello"
    assert running.opened[0].facts.tried == f"{refusing_address} connection refused"


# Violations.


def violations(frame) -> dict:
    """By name: what makes the bytes, given whether the sender must mask, and the close code that they get."""
    found = {
        "a wrong mask bit": (lambda mask: frame(TEXT, b"x", mask=not mask), 1002),
        "a long control frame": (lambda mask: frame(PING, b"x" * 126, mask=mask), 1002),
        "a fragmented ping": (lambda mask: frame(PING, b"x", fin=False, mask=mask), 1002),
        "an orphan continuation": (lambda mask: frame(0, b"x", mask=mask), 1002),
        "a message inside a message": (
            lambda mask: frame(TEXT, b"x", fin=False, mask=mask) + frame(TEXT, b"y", mask=mask),
            1002,
        ),
        "a top bit in the length": (
            lambda mask: frame(BINARY, b"x", length=b"\x7f\x80" + b"\0" * 7, mask=mask),
            1002,
        ),
        "5 bytes in 16 bits": (lambda mask: frame(BINARY, b"x" * 5, length=b"\x7e\0\x05", mask=mask), 1002),
        "200 bytes in 64 bits": (
            lambda mask: frame(BINARY, b"x" * 200, length=b"\x7f" + (200).to_bytes(8, "big"), mask=mask),
            1002,
        ),
        "a Close of 1 byte": (lambda mask: frame(CLOSE, b"\x03", mask=mask), 1002),
        "a Close reason that is no UTF-8": (lambda mask: frame(CLOSE, b"\x03\xe8\xff", mask=mask), 1007),
        "text that is no UTF-8": (lambda mask: frame(TEXT, b"ab\xff", mask=mask), 1007),
        "a surrogate": (lambda mask: frame(TEXT, b"\xed\xa0\x80", mask=mask), 1007),
        "text that ends within a character": (lambda mask: frame(TEXT, b"ab\xc3", mask=mask), 1007),
        "bad UTF-8 across fragments": (
            lambda mask: frame(TEXT, b"ab\xc3", fin=False, mask=mask) + frame(0, b"\x28", mask=mask),
            1007,
        ),
        "a declared length over the limit": (
            lambda mask: frame(BINARY, b"x", length=b"\x7e" + (1001).to_bytes(2, "big"), mask=mask),
            1009,
        ),
        "a huge declared length": (
            lambda mask: frame(BINARY, b"x", length=b"\x7f" + (1 << 60).to_bytes(8, "big"), mask=mask),
            1009,
        ),
        "fragments over the limit": (
            lambda mask: frame(TEXT, b"x" * 600, fin=False, mask=mask) + frame(0, b"x" * 401, fin=False, mask=mask),
            1009,
        ),
        "too many fragments": (
            lambda mask: frame(BINARY, fin=False, mask=mask) + frame(0, fin=False, mask=mask) * 50,
            1008,
        ),
    }
    for rsv in (1, 2, 4, 7):
        found[f"reserved bits {rsv:03b}"] = (lambda mask, rsv=rsv: frame(TEXT, b"x", rsv=rsv, mask=mask), 1002)
    for opcode in (3, 7, 11, 15):
        found[f"opcode {opcode}"] = (lambda mask, opcode=opcode: frame(opcode, b"x", mask=mask), 1002)
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535):
        found[f"close code {code}"] = (
            lambda mask, code=code: frame(CLOSE, code.to_bytes(2, "big") + b"x", mask=mask),
            1002,
        )
    return found


NAMES = list(violations(lambda *_, **__: b""))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("offender", ["client", "backend"])
def test_a_violation_is_told_to_both_sides_and_goes_no_further(start, frame, offender, name) -> None:
    make, code = violations(frame)[name]
    running, client, peer = start("max_message = 1000\nmax_fragments = 50")
    one, other, mask = both(client, peer, offender)
    one.send(frame(TEXT, b"good", mask=mask) + make(mask) + frame(TEXT, b"too late", mask=mask))
    assert other.recv_frame()[:2] == (TEXT, b"good")
    told = one.recv_frame()
    assert (told.opcode, told.code, told.masked) == (CLOSE, code, not mask)
    innocent = other.recv_frame()
    assert (innocent.opcode, innocent.code, innocent.masked) == (CLOSE, 1001 if mask else 1011, mask)
    other.send(frame(CLOSE, innocent.payload, mask=not mask))
    assert is_over(other)
    _, end = ended(running, other, one)
    assert (end.who, end.code) == (Who.CLIENT if mask else Who.BACKEND, code)


@pytest.mark.parametrize("offender", ["client", "backend"])
def test_who_was_refused_a_message_may_still_answer_the_close(start_on, frame, offender) -> None:
    running, client, peer = start_on("max_message = 1000")
    one, other, mask = both(client, peer, offender)
    one.send(frame(BINARY, b"x" * 1001, mask=mask))
    assert one.recv_frame().code == 1009
    one.send(frame(CLOSE, b"\x03\xf1", mask=mask))
    assert is_over(one)
    assert other.recv_frame().code == (1001 if mask else 1011)
    _, end = ended(running, client, peer)
    assert (end.code, end.reason) == (1009, "got a message of more than 1000 bytes")


@pytest.mark.parametrize("sender", ["client", "backend"])
def test_a_message_of_just_the_limit_passes(start, frame, sender) -> None:
    _, client, peer = start("max_message = 1000")
    one, other, mask = both(client, peer, sender)
    one.send(frame(BINARY, b"x" * 1000, mask=mask))
    one.send(b"".join(frame(0 if at else BINARY, b"y", fin=at == 999, mask=mask) for at in range(1000)))
    assert other.recv_frame().payload == b"x" * 1000
    assert other.recv_frame().payload == b"y" * 1000


# Ends in order.


@pytest.mark.parametrize("first", ["client", "backend"])
@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"\x03\xe8bye", 1000, "bye"),
        (b"\x0f\xa1" + "geh\u00f6rt".encode(), 4001, "geh\u00f6rt"),
        (b"", 1005, ""),
        *((code.to_bytes(2, "big"), code, "") for code in (1001, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 4999)),
    ],
)
def test_a_close_passes_to_the_other_side_and_its_answer_back(start_on, frame, first, payload, code, reason) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, first)
    one.send(frame(TEXT, b"last", mask=mask) + frame(CLOSE, payload, mask=mask) + frame(TEXT, b"behind", mask=mask))
    assert other.recv_frame()[:2] == (TEXT, b"last")
    assert other.recv_frame() == (CLOSE, payload, True, 0, mask)
    running.settle()
    assert running.live == 1
    other.send(frame(TEXT, b"one more", mask=not mask) + frame(CLOSE, payload, mask=not mask))
    assert one.recv_frame()[:2] == (TEXT, b"one more")
    assert one.recv_frame() == (CLOSE, payload, True, 0, not mask)
    assert are_over(client, peer)
    entry, end = ended(running, client, peer)
    assert (end.who, end.code, end.reason) == (Who.CLIENT if mask else Who.BACKEND, code, reason)
    counts = entry.counts()
    assert (counts.messages_in, counts.messages_out) == (1, 1)


def test_both_sides_may_close_at_once(start_on, frame) -> None:
    running, client, peer = start_on()
    running.call(lambda: (client.send(frame(CLOSE, b"\x03\xe8")), peer.send(frame(CLOSE, b"\x03\xe9", mask=False))))
    assert client.recv_frame().code == 1001
    assert peer.recv_frame().code == 1000
    assert are_over(client, peer)
    assert ended(running, client, peer)[1].code in (1000, 1001)


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_close_without_an_answer_ends_at_the_close_timeout(start_on, frame, first) -> None:
    running, client, peer = start_on(close_timeout="300ms")
    one, other, mask = both(client, peer, first)
    one.send(frame(CLOSE, b"\x03\xe8", mask=mask))
    assert other.recv_frame().code == 1000
    assert is_over(one)
    assert is_over(other)
    assert ended(running, one, other)[1].code == 1000


@pytest.mark.parametrize("first", ["client", "backend"])
def test_who_closes_tcp_right_behind_its_close_frame_ends_in_order(start_on, frame, first) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, first)
    one.send(frame(CLOSE, b"\x03\xe8", mask=mask))
    one.close()
    assert other.recv_frame().code == 1000
    other.send(frame(CLOSE, b"\x03\xe8", mask=not mask))
    if not mask:
        other.recv_all()
    end = ended(running, other)[1]
    assert (end.who, end.code) == (Who.CLIENT if mask else Who.BACKEND, 1000)


@pytest.mark.parametrize("part", ["whole", "half a message", "half a frame", "half a header"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("gone", ["client", "backend"])
def test_who_vanishes_is_reported_to_the_other_side(start_on, frame, gone, how, part) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, gone)
    rest = {
        "whole": b"",
        "half a message": frame(TEXT, b"half", fin=False, mask=mask),
        "half a frame": frame(TEXT, b"half" * 100, mask=mask)[:100],
        "half a header": frame(TEXT, b"half" * 100, mask=mask)[:1],
    }[part]
    one.send(frame(TEXT, b"whole", mask=mask) + rest)
    assert other.recv_frame().payload == b"whole"
    getattr(one, how)()
    told = other.recv_frame()
    assert (told.opcode, told.code, told.masked) == (CLOSE, 1001 if mask else 1011, mask)
    other.send(frame(CLOSE, told.payload, mask=not mask))
    assert is_over(other)
    _, end = ended(running, client, peer)
    assert (end.who, end.code) == (Who.CLIENT if mask else Who.BACKEND, 1006)


def test_an_idle_session_ends_with_1001_on_both_sides(start_on, frame) -> None:
    running, client, peer = start_on("idle_timeout = 200ms")
    for end, masked in ((client, False), (peer, True)):
        told = end.recv_frame()
        assert (told.opcode, told.code, told.masked) == (CLOSE, 1001, masked)
    client.send(frame(TEXT, b"too late") + frame(CLOSE, b"\x03\xe9"))
    assert is_over(client)
    peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
    assert is_over(peer)
    _, end = ended(running, client, peer)
    assert (end.who, end.code, end.reason) == (Who.ROUTER, 1001, "idle")


def test_a_drain_ends_it_with_its_code_and_on_down_with_1012(router, backend, open_session) -> None:
    server = backend()
    running = router(configured(server.address, pool="on_down = close\ndown_spread = 0s"))
    first, second = (open_session(running, server) for _ in range(2))
    running.call(running.opened[0].end, 1001, "the router is shutting down")
    assert [end.recv_frame().code for end in first] == [1001, 1001]
    running.call(running.service.parts.evictions.gone, running.service.pools["app"].config, server.address)
    assert [end.recv_frame().code for end in second] == [1012, 1012]
    for end in (*first, *second):
        end.close()
    running.until(lambda: len(running.closed) == 2)


def test_the_end_of_the_router_cuts_it(router, backend, open_session) -> None:
    server = backend()
    running = router(configured(server.address))
    client, _ = open_session(running, server)
    running.until(lambda: running.opened)
    running.call(running.opened[0].abort)
    client.recv_all()
    assert client.was_reset
    assert ended(running)[1].reason == "cut"


# Back-pressure.


@pytest.mark.parametrize("sender", ["client", "backend"])
def test_a_flood_to_a_peer_that_never_reads_is_held_back(start_on, frame, sender) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, sender)
    flood = (frame(PING, b"p" * 125, mask=mask) + frame(BINARY, b"m" * 1000, mask=mask)) * 50
    one.socket.settimeout(0.3)
    sent = 0
    try:
        while sent < 64 * MEGABYTE:
            sent += one.socket.send(flood)
    except TimeoutError:
        pass
    assert sent < 64 * MEGABYTE
    legs = running.call(lambda: [leg for leg in running.service.relay.members.values() if hasattr(leg, "pending")])
    assert sum(len(leg.pending or b"") for leg in legs) <= BUFFER_SIZE
    session = running.opened[0]
    assert len(session._client.data) + len(session._backend.data) <= BUFFER_SIZE
    assert other.recv_frame().payload == b"p" * 125


def exchange(end, data: bytes, count: int) -> bytes:
    """Send ``data`` while receiving ``count`` messages; the SHA-256 of what they held."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(end.send, data)
        for _ in range(count):
            digest.update(end.recv_frame().payload)
        sending.result(30)
    return digest.digest()


def test_big_messages_flow_both_ways_at_once(start, frame) -> None:
    _, client, peer = start("max_message = 4m")
    payloads = [os.urandom(4 * MEGABYTE) for _ in range(4)]
    digest = hashlib.sha256(b"".join(payloads)).digest()
    with ThreadPoolExecutor(2) as threads:
        up, down = (b"".join(frame(BINARY, one, mask=mask) for one in payloads) for mask in (True, False))
        at_client = threads.submit(exchange, client, up, 4)
        at_peer = threads.submit(exchange, peer, down, 4)
        assert at_client.result(30) == digest
        assert at_peer.result(30) == digest


def test_a_close_arrives_behind_what_is_pending_for_a_slow_reader(start, frame) -> None:
    running, client, peer = start()
    messages = frame(BINARY, b"x" * MEGABYTE, mask=False) * 16
    writer = threading.Thread(target=peer.send, args=(messages + frame(CLOSE, b"\x03\xe8done", mask=False),))
    writer.start()
    running.until(lambda: running.opened[0]._backend._held)
    for _ in range(16):
        assert client.recv_frame().payload == b"x" * MEGABYTE
    assert client.recv_frame().code == 1000
    writer.join()
    client.send(frame(CLOSE, b"\x03\xe8"))
    assert peer.recv_frame().code == 1000
    assert is_over(client)
    assert ended(running, client, peer)[1].reason == "done"


def test_many_small_frames_in_one_read_let_other_sessions_have_their_turn(router, backend, open_session, frame) -> None:
    server = backend()
    running = router(configured(server.address))
    (client, peer), (other_client, other_peer) = open_session(running, server), open_session(running, server)
    client.send(frame(BINARY, b"") * 10_000)
    other_client.send(frame(TEXT, b"me too"))
    assert other_peer.recv_frame().payload == b"me too"
    for _ in range(10_000):
        assert peer.recv_frame()[:2] == (BINARY, b"")


# The router's own faults.


class Injected(Exception):
    """Raised on purpose."""


@pytest.mark.parametrize("side", ["_client", "_backend"])
def test_an_exception_within_one_session_ends_that_one_and_the_router_serves_on(
    router, backend, open_session, frame, logged_failures, side
) -> None:
    server = backend()
    running = router(configured(server.address))
    (client, peer), (client_2, peer_2) = open_session(running, server), open_session(running, server)

    def fail(*_) -> None:
        raise Injected

    running.call(setattr, getattr(running.opened[0], side), "processData", fail)
    (client if side == "_client" else peer).send(frame(TEXT, b"x", mask=side == "_client"))
    told = (peer if side == "_client" else client).recv_frame()
    assert told.code == (1001 if side == "_client" else 1011)
    client.close()
    peer.close()
    running.until(lambda: running.closed)
    assert len(logged_failures.flush(Injected)) == 1
    client_2.send(frame(TEXT, b"still here"))
    assert peer_2.recv_frame().payload == b"still here"


def test_a_failure_in_a_turn_of_its_own_ends_the_session_too(start, frame, logged_failures) -> None:
    running, client, peer = start()
    running.until(lambda: running.opened)
    side = running.opened[0]._client
    steps = iter(range(300))
    take = side.processData

    def fail_later() -> bool:
        if next(steps) == 280:
            raise Injected
        return take()

    running.call(setattr, side, "processData", fail_later)
    client.send(frame(BINARY) * 1000)
    while (found := peer.recv_frame()).opcode != CLOSE:
        pass
    assert found.code == 1001
    ended(running, client, peer)
    assert len(logged_failures.flush(Injected)) == 1


@pytest.mark.parametrize("seed", range(40))
def test_whatever_two_peers_do_their_session_ends_and_leaves_nothing(start, frame, seed) -> None:
    rng = random.Random(seed)
    policies = "" if seed % 2 else TIGHT + f"on_rate = {'close' if seed % 4 else 'slow'}"
    running, *peers = start("compression = both\n" + policies, headers=DEFLATE, answer=DEFLATE)
    running.until(lambda: running.opened)
    deflated = zlib.compress(b"hello" * 500, wbits=-15)
    open_ends = [0, 1]
    for _ in range(rng.randrange(1, 15)):
        at = rng.choice(open_ends)
        mask = at == 0
        what = rng.choice(
            [
                frame(TEXT, b"hello" * rng.randrange(500), mask=mask),
                frame(TEXT, b"half", fin=False, mask=mask),
                frame(0, b"rest", mask=mask),
                frame(TEXT, deflated, rsv=4, mask=mask),
                frame(PING, b"p", mask=mask) * rng.randrange(1, 400),
                frame(BINARY, b"", mask=mask) * rng.randrange(1, 400),
                frame(CLOSE, b"\x03\xe8", mask=mask),
                frame(TEXT, b"\xff", mask=mask),
                frame(BINARY, os.urandom(3000), mask=mask)[: rng.randrange(3000)],
                os.urandom(50),
                "finish",
                "end",
                "settle",
            ]
        )
        try:
            if what == "settle":
                running.settle()
            elif what == "end":
                running.call(running.opened[0].end, 1001, "drained")
            elif what == "finish":
                peers[at].finish()
                open_ends.remove(at)
            else:
                peers[at].send(what)
        except OSError:
            break
        if not open_ends:
            break
    for peer in rng.sample(peers, 2):
        (peer.reset if rng.random() < 0.5 else peer.close)()
    _, end = ended(running)
    assert end.reason is not None


# Real clients.


@pytest.mark.parametrize("wire", ["plain", "tls for threads"], indirect=True)
def test_the_websockets_library_exchanges_messages(router, echo_backend, connect, wire) -> None:
    for_backend, for_client, listener, pool, files = wire
    server = echo_backend(**for_backend)
    running = router(configured(server.address, "", listener, pool), files)
    with open_websocket("ws://outer.example/", sock=connect(running.port(), **for_client).socket) as client:
        assert client.protocol.extensions == []
        for text in ("hello", "", "gr\u00fc\u00df", "x" * 100_000):
            client.send(text)
            assert client.recv(timeout=10) == text
        client.send(iter(["in ", "three ", "parts"]))
        assert client.recv(timeout=10) == "in three parts"
        assert client.ping().wait(10)
        client.close(3333, "enough")
    assert server.closes.get(timeout=10) == (3333, "enough")
    assert ended(running)[1].code == 3333


def test_aiohttp_exchanges_messages(router, echo_backend) -> None:
    server = echo_backend(subprotocols=["chat.v2"])
    running = router(configured(server.address, "compression = both"))

    async def visit() -> None:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{running.port()}") as session,
            session.ws_connect("/ws", protocols=["chat.v2"], compress=12) as socket,
        ):
            assert socket.protocol == "chat.v2"
            assert socket.compress
            await socket.send_str("hello")
            assert await socket.receive_str(timeout=10) == "hello"
            await socket.send_bytes(b"x" * 100_000)
            assert await socket.receive_bytes(timeout=10) == b"x" * 100_000
            await socket.close(code=1000, message=b"bye")

    asyncio.run(visit())
    assert server.closes.get(timeout=10) == (1000, "bye")
    assert ended(running)[1].reason == "bye"


@pytest.mark.parametrize("how", ["close", "vanish", "violate", "end", "abort"])
def test_an_ended_session_is_freed_without_the_collector(start, frame, how) -> None:
    running, client, peer = start(f"compression = client\n{POLICIES}", headers=DEFLATE)
    running.until(lambda: running.opened)
    session = running.opened[0]
    dead = [weakref.ref(one) for one in (session._client, session._backend)]
    gc.collect()
    gc.disable()
    try:
        if how == "close":
            client.send(frame(CLOSE, b"\x03\xe8"))
            peer.recv_frame()
            peer.send(frame(CLOSE, b"\x03\xe8", mask=False))
        elif how == "violate":
            client.send(frame(3))
        elif how != "vanish":
            running.call(*((session.end, 1001, "drained") if how == "end" else (session.abort,)))
        del session
        ended(running, client, peer)
        running.opened.clear()
        running.closed.clear()
        running.until(lambda: [one() for one in dead] == [None, None])
    finally:
        gc.enable()
