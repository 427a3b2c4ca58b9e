"""Frames of relayed sessions as both ends see them on the wire: what passes, what is refused, and how sessions end."""

from __future__ import annotations

import hashlib
import os
import select
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as open_websocket

from tests.integration.sessions import (
    BINARY,
    CLOSE,
    MEGABYTE,
    PING,
    PONG,
    TEXT,
    are_over,
    both,
    configured,
    ended,
    is_over,
    wired,
)
from tests.memory import resident
from wsrouter.live.registry import Who
from wsrouter.relay.leg import BUFFER_SIZE

DEFLATE = [("Sec-WebSocket-Extensions", "permessage-deflate")]


#: Policies that let everything pass: nothing may be different with them.
POLICIES = """
max_message = 1g
message_rate = 1000000/s
byte_rate = 1g/s
ping = 1h
backend_ping = 1h
"""


@pytest.fixture(params=["plain", "policies", "tls"])
def wire(request, authority):
    """How the two legs are carried: arguments for the backend, for the client, lines for listener and pool, files."""
    return wired(request.param, authority)


@pytest.fixture
def start(router, backend, open_session):
    """``start(route="", close_timeout="60s") -> running, client, peer``: a plain session, both ends for the test."""

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


def every_kind(frame, mask: bool) -> list[bytes]:
    """Well-formed frames of every kind and length form, control frames between fragments."""
    return [
        frame(TEXT, b"hello", mask=mask),
        frame(TEXT, b"", mask=mask),
        frame(PING, b"", mask=mask),
        frame(PING, b"p" * 125, mask=mask),
        frame(PONG, b"unasked", mask=mask),
        frame(TEXT, b"one ", mask=mask, fin=False),
        frame(PING, b"between", mask=mask),
        frame(0, b"", mask=mask, fin=False),
        frame(PONG, b"between", mask=mask),
        frame(0, b"two", mask=mask),
        *(frame(BINARY, b"x" * size, mask=mask) for size in (1, 124, 125, 126, 127, 65535, 65536, 300_000)),
        frame(BINARY, b"", mask=mask, fin=False),
        frame(0, b"y" * 70_000, mask=mask, fin=False),
        frame(0, b"", mask=mask),
    ]


@pytest.mark.parametrize("sender", ["client", "backend"])
def test_every_kind_of_frame_arrives_as_it_was_sent(start_on, frame, sender) -> None:
    running, client, peer = start_on()
    one, other = (client, peer) if sender == "client" else (peer, client)
    frames = every_kind(frame, sender == "client")
    data = b"".join(frames)
    thread = threading.Thread(target=one.send, args=(data,))
    thread.start()
    assert other.recv_exactly(len(data)) == data
    thread.join()
    # One at a time, too: each is passed on at once, not only when the next one comes.
    for single in frames:
        one.send(single)
        assert other.recv_exactly(len(single)) == single
    counts = running.call(running.opened[0].counts)
    messages = 2 * 12
    assert (counts.messages_in, counts.messages_out) == ((messages, 0) if sender == "client" else (0, messages))
    assert (counts.bytes_in, counts.bytes_out) == ((2 * len(data), 0) if sender == "client" else (0, 2 * len(data)))


@pytest.mark.parametrize("sender", ["client", "backend"])
def test_frames_that_come_byte_by_byte_arrive_as_they_were_sent(start_on, frame, sender) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, sender)
    data = b"".join(
        [
            frame(TEXT, b"hello", mask=mask),
            frame(PING, b"ping", mask=mask),
            frame(TEXT, b"a", mask=mask, fin=False),
            frame(0, b"b" * 126, mask=mask),
            frame(CLOSE, b"\x03\xe8bye", mask=mask),
        ]
    )
    for byte in data:
        one.send(bytes([byte]))
        running.settle()
    assert other.recv_exactly(len(data)) == data


def test_ping_and_pong_pass_and_the_router_answers_none_itself(start, frame) -> None:
    running, client, peer = start()
    client.send(frame(PING, b"are you there?"))
    assert peer.recv_frame()[:2] == (PING, b"are you there?")
    running.settle()
    assert client.nothing_comes()
    peer.send(frame(PONG, b"are you there?", mask=False))
    assert client.recv_frame() == (PONG, b"are you there?", True, 0, False)
    peer.send(frame(PING, b"and you?", mask=False))
    assert client.recv_frame()[:2] == (PING, b"and you?")
    running.settle()
    assert peer.nothing_comes()


@pytest.mark.parametrize("size", [0, 5, 200, 100_000])
def test_frames_behind_the_101_are_delivered_once(router, connect, backend, frame, size) -> None:
    early = frame(TEXT, b"e" * size, mask=False)

    def script(peer) -> None:
        peer.send(peer.agreement(peer.recv_head()) + early)
        peer.recv_all()

    running = router(configured(backend(script).address))
    client = connect(running.port())
    client.request()
    client.recv_head()
    assert client.recv_exactly(len(early)) == early
    running.settle()
    assert client.nothing_comes()


def test_a_backend_that_ends_right_behind_its_101_is_heard_out(router, connect, backend, frame) -> None:
    last = frame(TEXT, b"last words", mask=False)
    running = router(configured(backend(lambda peer: peer.send(peer.agreement(peer.recv_head()) + last)).address))
    client = connect(running.port())
    client.request()
    client.recv_head()
    assert client.recv_exactly(len(last)) == last
    assert client.recv_frame().code == 1011
    assert ended(running, client)[1].who is Who.BACKEND


@pytest.mark.parametrize("sender", ["client", "backend"])
@pytest.mark.parametrize(
    ("payload", "code", "told"), [(b"\x03\xe8", 1000, 1000), (b"\x03", 1002, None)], ids=["a Close", "a violation"]
)
def test_an_end_that_comes_with_the_handshake_ends_the_session(
    router, connect, backend, frame, sender, payload, code, told
) -> None:
    server = backend()
    running = router(configured(server.address))
    mask = sender == "client"
    early = frame(TEXT, b"hello", mask=mask) + frame(CLOSE, payload, mask=mask)
    client = connect(running.port())
    if mask:
        # One segment for the head and the frames behind it.
        head = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        client.send(head + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n" + early)
        peer = server.accept()
        peer.answer()
    else:
        client.request()
        peer = server.accept()
        peer.send(peer.agreement(peer.recv_head()) + early)
    client.recv_head()
    one, other = (client, peer) if mask else (peer, client)
    assert other.recv_frame().payload == b"hello"
    assert other.recv_frame().code == (told or (1001 if mask else 1011))
    if told is None:
        assert one.recv_frame().code == code
    other.send(frame(CLOSE, payload if told else b"", mask=not mask))
    if told is not None:
        assert one.recv_frame().code == code
        assert are_over(client, peer)
    else:
        assert is_over(one)
        assert is_over(other)
    end = ended(running, client, peer)[1]
    assert (end.who, end.code) == (Who.CLIENT if mask else Who.BACKEND, code)


# Compression.


@pytest.mark.parametrize("wire", ["plain", "tls for threads"], indirect=True)
def test_messages_are_compressed_from_end_to_end(router, echo_backend, connect, wire) -> None:
    for_backend, for_client, listener, pool, files = wire
    server = echo_backend(compression="deflate", **for_backend)
    running = router(configured(server.address, "", listener, pool), files)
    texts = ["hello " * 10_000, "", "x", "hello " * 10_000]
    sock = connect(running.port(), **for_client).socket
    with open_websocket("ws://outer.example/", sock=sock, compression="deflate") as client:
        assert [extension.name for extension in client.protocol.extensions] == ["permessage-deflate"]
        for text in texts:
            client.send(text)
            assert client.recv(timeout=10) == text
        client.send(iter(["hello ", "fragments " * 1000, "end"]))
        assert client.recv(timeout=10) == "hello " + "fragments " * 1000 + "end"
    assert server.closes.get(timeout=10) == (1000, "")
    entry, end = ended(running)
    assert (end.who, end.code) == (Who.CLIENT, 1000)
    counts = entry.counts()
    assert (counts.messages_in, counts.messages_out) == (5, 5)
    assert counts.bytes_in < 5000
    assert counts.bytes_out < 5000


def test_the_first_frame_of_a_message_may_be_marked_as_compressed_where_that_was_agreed(start, frame) -> None:
    _, client, peer = start(headers=DEFLATE, answer=DEFLATE)
    data = frame(TEXT, b"zz", rsv=4, fin=False) + frame(PING) + frame(0, b"z") + frame(TEXT, b"plain")
    client.send(data)
    assert peer.recv_exactly(len(data)) == data


@pytest.mark.parametrize(
    "parts",
    [[(TEXT, 4, False), (0, 4, True)], [(PING, 4, True)], [(TEXT, 2, True)], [(TEXT, 5, True)]],
    ids=["a continuation", "a ping", "RSV2", "RSV1 and RSV3"],
)
def test_other_reserved_bits_are_refused_where_compression_was_agreed(start, frame, parts) -> None:
    running, client, peer = start(headers=DEFLATE, answer=DEFLATE)
    client.send(b"".join(frame(opcode, b"z", rsv=rsv, fin=fin) for opcode, rsv, fin in parts))
    assert client.recv_frame().code == 1002
    assert ended(running, client, peer)[1].code == 1002


# Violations.


def violations(frame) -> dict:
    """By name: what makes the bytes, given whether the sender must mask, and the close code that they get."""
    found = {
        "a wrong mask bit": (lambda mask: frame(TEXT, b"x", mask=not mask), 1002),
        "a wrong mask bit on a ping": (lambda mask: frame(PING, b"x", mask=not mask), 1002),
        "a long control frame": (lambda mask: frame(PING, b"x" * 126, mask=mask), 1002),
        "a long Close": (lambda mask: frame(CLOSE, b"\x03\xe8" + b"x" * 124, mask=mask), 1002),
        "a fragmented ping": (lambda mask: frame(PING, b"x", fin=False, mask=mask), 1002),
        "a fragmented Close": (lambda mask: frame(CLOSE, b"\x03\xe8", fin=False, mask=mask), 1002),
        "an orphan continuation": (lambda mask: frame(0, b"x", mask=mask), 1002),
        "an orphan fragment": (lambda mask: frame(0, b"x", fin=False, mask=mask), 1002),
        "a top bit in the length": (
            lambda mask: frame(BINARY, b"x", length=b"\x7f\x80" + b"\0" * 7, mask=mask),
            1002,
        ),
        "5 bytes in 16 bits": (lambda mask: frame(BINARY, b"x" * 5, length=b"\x7e\0\x05", mask=mask), 1002),
        "125 bytes in 16 bits": (lambda mask: frame(BINARY, b"x" * 125, length=b"\x7e\0\x7d", mask=mask), 1002),
        "200 bytes in 64 bits": (
            lambda mask: frame(BINARY, b"x" * 200, length=b"\x7f" + (200).to_bytes(8, "big"), mask=mask),
            1002,
        ),
        "a Close of 1 byte": (lambda mask: frame(CLOSE, b"\x03", mask=mask), 1002),
        "a Close reason that is no UTF-8": (lambda mask: frame(CLOSE, b"\x03\xe8\xff", mask=mask), 1007),
        "a Close reason cut inside a character": (lambda mask: frame(CLOSE, b"\x03\xe8\xc3", mask=mask), 1007),
    }
    for rsv in (1, 2, 4, 7):
        found[f"reserved bits {rsv:03b}"] = (lambda mask, rsv=rsv: frame(TEXT, b"x", rsv=rsv, mask=mask), 1002)
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
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
    running, client, peer = start()
    one, other, mask = both(client, peer, offender)
    good = frame(TEXT, b"good", mask=mask)
    one.send(good + make(mask) + frame(TEXT, b"too late", mask=mask))
    assert other.recv_exactly(len(good)) == good
    told = one.recv_frame()
    assert (told.opcode, told.code, told.masked) == (CLOSE, code, not mask)
    innocent = other.recv_frame()
    assert (innocent.opcode, innocent.code, innocent.masked) == (CLOSE, 1001 if mask else 1011, mask)
    other.send(frame(CLOSE, innocent.payload, mask=not mask))
    assert is_over(other)
    assert is_over(one)
    entry, end = ended(running, other, one)
    assert (end.who, end.code) == (Who.CLIENT if mask else Who.BACKEND, code)
    counts = entry.counts()
    assert (counts.messages_in, counts.messages_out) == ((1, 0) if mask else (0, 1))


@pytest.mark.parametrize("offender", ["client", "backend"])
def test_a_new_message_inside_a_fragmented_one_is_a_violation(start_on, frame, offender) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, offender)
    begun = frame(TEXT, b"begun", fin=False, mask=mask)
    one.send(begun + frame(TEXT, b"another", mask=mask))
    assert other.recv_exactly(len(begun)) == begun
    assert other.recv_frame().code == (1001 if mask else 1011)
    assert one.recv_frame().code == 1002
    assert is_over(one)
    entry, end = ended(running, client, peer)
    assert (end.who, end.code) == (Who.CLIENT if mask else Who.BACKEND, 1002)
    assert entry.counts().messages_in == entry.counts().messages_out == 0


def test_a_violation_is_told_at_the_end_of_the_frame_that_is_under_way(start_on, frame) -> None:
    """The backend is in the middle of a frame towards the client who offends."""
    running, client, peer = start_on()
    under_way = frame(BINARY, b"x" * 1000, mask=False)
    peer.send(under_way[:500])
    assert client.recv_exactly(500) == under_way[:500]
    client.send(frame(3))
    assert peer.recv_frame().code == 1001
    running.settle()
    assert client.nothing_comes()
    peer.send(under_way[500:] + frame(TEXT, b"too late", mask=False))
    assert client.recv_exactly(504) == under_way[500:]
    assert client.recv_frame().code == 1002
    assert is_over(client)
    peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
    assert is_over(peer)
    assert ended(running, client, peer)[1].code == 1002


def test_a_frame_that_takes_longer_than_the_close_timeout_arrives_whole_and_the_close_behind_it(start, frame) -> None:
    running, client, peer = start(close_timeout="400ms")
    data = frame(BINARY, b"x" * 1000, mask=False)
    peer.send(data[:4])
    client.recv_exactly(4)
    running.call(running.opened[0].end, 1001, "drained")
    assert peer.recv_frame().code == 1001
    # One byte after the other, so that none comes long after the one before it.
    began = time.monotonic()
    at = 4
    while time.monotonic() - began < 1:
        peer.send(data[at : at + 1])
        client.recv_exactly(1)
        at += 1
        select.select([client.socket], [], [], 0.005)
    peer.send(data[at:])
    client.recv_exactly(len(data) - at)
    assert client.recv_frame().code == 1001
    client.send(frame(CLOSE, b"\x03\xe9"))
    peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
    assert is_over(client)
    assert ended(running, client, peer)[1].reason == "drained"


@pytest.mark.parametrize("cut", [1, 2, 3, 10, 100])
def test_the_frame_behind_the_one_under_way_does_not_get_through_in_pieces(start_on, frame, cut) -> None:
    """The end of the frame under way comes together with the beginning of the next."""
    running, client, peer = start_on()
    under_way, following = (frame(BINARY, letter * 1000, mask=False) for letter in (b"x", b"y"))
    peer.send(under_way[:500])
    assert client.recv_exactly(500) == under_way[:500]
    running.call(running.opened[0].end, 1001, "drained")
    assert peer.recv_frame().code == 1001
    peer.send(under_way[500:] + following[:cut])
    running.settle()
    peer.send(following[cut:])
    assert client.recv_exactly(504) == under_way[500:]
    assert client.recv_frame().code == 1001
    client.send(frame(CLOSE, b"\x03\xe9"))
    assert is_over(client)
    peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
    assert is_over(peer)
    _, end = ended(running, client, peer)
    assert (end.who, end.code, end.reason) == (Who.ROUTER, 1001, "drained")


def test_where_the_frame_under_way_never_ends_the_offender_gets_no_close_frame(start_on, frame) -> None:
    running, client, peer = start_on()
    under_way = frame(BINARY, b"x" * 1000, mask=False)
    peer.send(under_way[:500])
    assert client.recv_exactly(500) == under_way[:500]
    client.send(frame(3))
    assert peer.recv_frame().code == 1001
    peer.close()
    assert client.recv_all() == b""
    assert ended(running, client)[1].code == 1002


def test_a_violation_leaves_other_sessions_alone(router, backend, open_session, connect, frame) -> None:
    server = backend()
    running = router(configured(server.address))
    sessions = [open_session(running, server) for _ in range(5)]
    for number, (client, peer) in enumerate(sessions):
        (client if number < 2 else peer).send(frame(TEXT, b"warm", mask=number < 2))
        (peer if number < 2 else client).recv_frame()
    sessions[0][0].send(b"\xff" * 1000)
    sessions[4][1].send(b"\xff" * 1000)
    assert sessions[0][0].recv_frame().code == 1002
    assert sessions[4][1].recv_frame().code == 1002
    for client, peer in sessions[1:4]:
        client.send(frame(TEXT, b"up"))
        assert peer.recv_frame().payload == b"up"
        peer.send(frame(TEXT, b"down", mask=False))
        assert client.recv_frame().payload == b"down"
    assert running.live >= 3


# Ends in order.


@pytest.mark.parametrize("first", ["client", "backend"])
@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [(b"\x03\xe8bye", 1000, "bye"), (b"\x0f\xa1" + "gehört".encode(), 4001, "gehört"), (b"", 1005, "")],
)
def test_a_close_passes_to_the_other_side_and_its_answer_back(start_on, frame, first, payload, code, reason) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, first)
    question = frame(TEXT, b"last", mask=mask) + frame(CLOSE, payload, mask=mask)
    one.send(question + frame(TEXT, b"behind the close", mask=mask))
    assert other.recv_exactly(len(question)) == question
    running.settle()
    assert running.live == 1
    answer = frame(TEXT, b"one more", mask=not mask) + frame(CLOSE, payload, mask=not mask)
    other.send(answer)
    assert one.recv_exactly(len(answer)) == answer
    assert are_over(client, peer)
    entry, end = ended(running, client, peer)
    assert (end.who, end.code, end.reason) == (Who.CLIENT if mask else Who.BACKEND, code, reason)
    counts = entry.counts()
    assert (counts.messages_in, counts.messages_out) == (1, 1)


def test_both_sides_may_close_at_once(start_on, frame) -> None:
    running, client, peer = start_on()
    # Neither has seen the other's.
    running.call(lambda: (client.send(frame(CLOSE, b"\x03\xe8")), peer.send(frame(CLOSE, b"\x03\xe9", mask=False))))
    assert client.recv_frame().code == 1001
    assert peer.recv_frame().code == 1000
    assert are_over(client, peer)
    assert ended(running, client, peer)[1].code in (1000, 1001)


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_close_without_an_answer_ends_at_the_close_timeout(start_on, frame, first) -> None:
    running, client, peer = start_on(close_timeout="300ms")
    one, other = (client, peer) if first == "client" else (peer, client)
    began = time.monotonic()
    one.send(frame(CLOSE, b"\x03\xe8", mask=first == "client"))
    assert other.recv_frame().code == 1000
    assert is_over(one)
    assert is_over(other)
    assert 0.3 <= time.monotonic() - began < 2
    assert ended(running, one, other)[1].code == 1000


def test_a_backend_that_does_not_close_tcp_behind_its_close_frame_is_waited_for_within_the_close_timeout(
    start_on, frame
) -> None:
    running, client, peer = start_on(close_timeout="300ms")
    began = time.monotonic()
    client.send(frame(CLOSE, b"\x03\xe8"))
    assert peer.recv_frame().code == 1000
    peer.send(frame(CLOSE, b"\x03\xe8", mask=False))
    assert client.recv_frame().code == 1000
    assert is_over(client)
    assert is_over(peer)
    assert time.monotonic() - began >= 0.3
    assert ended(running, client, peer)[1].code == 1000


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


# Peers that vanish.


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("gone", ["client", "backend"])
def test_who_vanishes_between_frames_is_reported_to_the_other_side(start_on, frame, gone, how) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, gone)
    one.send(frame(TEXT, b"whole", mask=mask))
    assert other.recv_frame().payload == b"whole"
    getattr(one, how)()
    told = other.recv_frame()
    assert (told.opcode, told.code, told.masked) == (CLOSE, 1001 if mask else 1011, mask)
    other.send(frame(CLOSE, told.payload, mask=not mask))
    assert is_over(other)
    entry, end = ended(running, client, peer)
    assert (end.who, end.code) == (Who.CLIENT if mask else Who.BACKEND, 1006)
    assert "middle" not in end.reason
    assert (entry.counts().messages_in or entry.counts().messages_out) == 1


@pytest.mark.parametrize("gone", ["client", "backend"])
def test_who_vanishes_between_fragments_does_not_make_the_message_whole(start_on, frame, gone) -> None:
    running, client, peer = start_on()
    one, other, mask = both(client, peer, gone)
    one.send(frame(TEXT, b"half", mask=mask, fin=False))
    half = other.recv_frame()
    assert (half.payload, half.fin) == (b"half", False)
    one.close()
    assert other.recv_frame().opcode == CLOSE
    counts = ended(running, other)[0].counts()
    assert counts.messages_in == counts.messages_out == 0


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("gone", ["client", "backend"])
def test_a_frame_that_was_cut_off_never_looks_whole(start_on, frame, gone, how) -> None:
    running, client, peer = start_on()
    one, other = (client, peer) if gone == "client" else (peer, client)
    data = frame(BINARY, b"x" * 1000, mask=gone == "client")[:600]
    one.send(data)
    assert other.recv_exactly(600) == data
    getattr(one, how)()
    assert other.recv_all() == b""
    _, end = ended(running, client, peer)
    assert (end.who, end.code) == (Who.CLIENT if gone == "client" else Who.BACKEND, 1006)
    assert end.reason.endswith("in the middle of a frame")


def test_half_a_header_is_not_passed_on(start_on, frame) -> None:
    """So there is a boundary, and the other side gets its Close frame."""
    running, client, peer = start_on()
    peer.send(frame(BINARY, b"x" * 1000, mask=False)[:3])
    running.settle()
    assert client.nothing_comes()
    peer.close()
    assert client.recv_frame().code == 1011
    assert ended(running, client)[1].who is Who.BACKEND


def test_a_backend_that_is_killed_while_the_client_is_within_a_frame_is_reported(start_on, frame) -> None:
    running, client, peer = start_on()
    client.send(frame(BINARY, b"x" * 1000)[:600])
    peer.recv_exactly(600)
    peer.reset()
    assert client.recv_frame().code == 1011
    # The client may still send the rest; nobody wants it.
    client.send(b"x" * 408 + frame(CLOSE, b"\x03\xf3"))
    assert is_over(client)
    assert ended(running, client, peer)[1].who is Who.BACKEND


def test_websocket_libraries_see_the_codes_of_an_end(router, backend, frame) -> None:
    server = backend()
    running = router(configured(server.address))
    with open_killed(running, server, frame(TEXT, b"whole", mask=False)) as client:
        assert client.recv(timeout=10) == "whole"
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert client.close_code == 1011
    with open_killed(running, server, frame(BINARY, b"x" * 1000, mask=False)[:600]) as client:
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert client.close_code == 1006
    running.until(lambda: len(running.closed) == 2)


def open_killed(running, server, data: bytes):
    """A library's session with a backend that sends ``data`` and is gone."""

    def serve() -> None:
        peer = server.accept()
        peer.answer()
        peer.send(data)
        peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    client = open_websocket(f"ws://127.0.0.1:{running.port()}/", compression=None)
    thread.join()
    return client


# Idleness.


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


def test_an_idle_session_whose_ends_do_not_answer_is_closed_all_the_same(start_on) -> None:
    running, client, peer = start_on("idle_timeout = 100ms", "200ms")
    assert client.recv_frame().code == 1001
    assert peer.recv_frame().code == 1001
    assert is_over(client)
    assert is_over(peer)
    assert ended(running, client, peer)[1].reason == "idle"


def test_a_ping_now_and_then_keeps_a_session_alive(start, frame) -> None:
    running, client, peer = start("idle_timeout = 300ms")
    client.socket.settimeout(0.1)
    for _ in range(6):
        peer.send(frame(PING, mask=False))
        assert client.socket.recv(100) == frame(PING, mask=False)
        with pytest.raises(TimeoutError):
            client.socket.recv(100)
    assert running.live == 1


def test_an_idle_session_within_a_frame_gets_no_close_frame_there(start_on, frame) -> None:
    running, client, peer = start_on("idle_timeout = 200ms", "200ms")
    data = frame(BINARY, b"x" * 1000, mask=False)[:600]
    peer.send(data)
    assert peer.recv_frame().code == 1001
    assert client.recv_all() == data
    assert ended(running, client, peer)[1].reason == "idle"


# Much at once.


def exchange(end, data: bytes, count: int, may_read: threading.Event) -> bytes:
    """Send ``data`` while receiving ``count`` bytes, once ``may_read`` is set; the SHA-256 of what came.

    In one thread: the standard library's TLS sockets do not bear a reader and a writer at once.
    """
    sock, digest = end.socket, hashlib.sha256(end.buffer)
    count -= len(end.buffer)
    sock.setblocking(False)
    while data or count:
        reading = count > 0 and may_read.is_set()
        moved = False
        try:
            if data:
                data = data[sock.send(data[:MEGABYTE]) :]
                moved = True
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        try:
            if reading:
                piece = sock.recv(min(count, MEGABYTE))
                assert piece, f"the end, with {count} bytes still to come"
                digest.update(piece)
                count -= len(piece)
                moved = True
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        if not moved:
            select.select([sock] if reading else [], [sock] if data else [], [], 0.01)
    return digest.digest()


def test_big_messages_flow_both_ways_at_once_between_slow_readers(start_on, frame) -> None:
    running, client, peer = start_on()
    up = frame(BINARY, os.urandom(8 * MEGABYTE)) * 2
    down = frame(BINARY, os.urandom(8 * MEGABYTE), mask=False) * 2
    may_read = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        at_client = threads.submit(exchange, client, up, len(down), may_read)
        at_peer = threads.submit(exchange, peer, down, len(up), may_read)
        try:
            # Nobody has read anything: both directions come to a halt.
            session = running.opened[0]
            running.until(lambda: session._up.paused and session._down.paused)
        finally:
            may_read.set()
        assert at_client.result(30) == hashlib.sha256(down).digest()
        assert at_peer.result(30) == hashlib.sha256(up).digest()
    counts = running.call(session.counts)
    assert (counts.messages_in, counts.messages_out) == (2, 2)
    assert (counts.bytes_in, counts.bytes_out) == (len(up), len(down))


def test_a_close_arrives_behind_what_is_pending_for_a_slow_reader(start, frame) -> None:
    running, client, peer = start()
    message = frame(BINARY, b"x" * (16 * MEGABYTE), mask=False)
    data = message + frame(CLOSE, b"\x03\xe8done", mask=False)
    writer = threading.Thread(target=peer.send, args=(data,))
    writer.start()
    running.until(lambda: running.opened[0]._down.paused)
    assert client.recv_exactly(len(data)) == data
    writer.join()
    client.send(frame(CLOSE, b"\x03\xe8"))
    assert peer.recv_frame().code == 1000
    assert is_over(client)
    assert ended(running, client, peer)[1].reason == "done"


@pytest.mark.parametrize("offender", ["client", "backend"])
def test_a_flood_of_pings_to_a_peer_that_never_reads_is_held_back(start_on, frame, offender) -> None:
    running, client, peer = start_on()
    one, other = (client, peer) if offender == "client" else (peer, client)
    ping = frame(PING, b"p" * 125, mask=offender == "client")
    flood = ping * 500
    before = resident()
    one.socket.settimeout(0.2)
    sent = 0
    try:
        while sent < 64 * MEGABYTE:
            sent += one.socket.send(flood[sent % len(flood) :])
    except TimeoutError:
        pass
    assert sent < 64 * MEGABYTE
    assert resident() - before < 8 * MEGABYTE
    legs = running.call(lambda: [leg for leg in running.service.relay.members.values() if hasattr(leg, "pending")])
    # One read, and what TLS makes of it.
    assert sum(len(leg.pending or b"") for leg in legs) <= BUFFER_SIZE + 1024
    assert other.recv_exactly(len(ping)) == ping


# Faults of the router itself.


class Injected(Exception):
    """Raised on purpose."""


@pytest.mark.parametrize("direction", ["_up", "_down"])
def test_an_exception_within_one_session_ends_that_one_and_the_router_serves_on(
    router, backend, open_session, frame, logged_failures, monkeypatch, direction
) -> None:
    server = backend()
    running = router(configured(server.address))
    (client, peer), (client_2, peer_2) = open_session(running, server), open_session(running, server)

    def fail(*_):
        raise Injected

    pump = getattr(running.opened[0], direction)
    running.call(setattr, pump, "_walk", fail)
    (client if direction == "_up" else peer).send(frame(TEXT, b"x", mask=direction == "_up"))
    told = (peer if direction == "_up" else client).recv_frame()
    assert told.code == (1001 if direction == "_up" else 1011)
    peer.close()
    client.close()
    running.until(lambda: running.closed)
    ((entry, _),) = running.closed
    assert entry is running.opened[0]
    assert len(logged_failures.flush(Injected)) == 1
    client_2.send(frame(TEXT, b"still here"))
    assert peer_2.recv_frame().payload == b"still here"
    client_3, peer_3 = open_session(running, server)
    peer_3.send(frame(TEXT, b"new", mask=False))
    assert client_3.recv_frame().payload == b"new"


@pytest.mark.parametrize("event", ["opened", "closed"])
def test_an_observer_that_fails_harms_no_session_and_no_other_observer(
    router, backend, open_session, frame, logged_failures, event
) -> None:
    server = backend()
    running = router(configured(server.address))

    class Broken:
        """Hears everything, before the others, and fails at one event."""

        def __getattr__(self, name: str):
            return self.fail if name == event else lambda *_: None

        def fail(self, *_) -> None:
            raise Injected

    running.call(running.service.registry.observers.insert, 0, Broken())
    client, peer = open_session(running, server)
    client.send(frame(TEXT, b"up"))
    assert peer.recv_frame().payload == b"up"
    client.reset()
    assert peer.recv_frame().code == 1001
    ended(running, peer)
    assert len(running.opened) == 1
    assert len(logged_failures.flush(Injected)) == 1
