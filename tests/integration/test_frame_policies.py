"""What frame headers can decide, as both ends of a session of either kind see it: sizes, rates, pings, idleness.

A message session passes messages whole, with a mask of its own. Where a test is about what passes of a message that is
not whole, or about each byte, it is about relay sessions only.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as open_websocket

from tests.integration import sessions
from tests.integration.sessions import BINARY, CLOSE, PING, PONG, TEXT, both, ended
from tests.vanishing import vanish
from wsrouter.live.registry import Who
from wsrouter.policy.heartbeat import Heartbeat
from wsrouter.relay.leg import BUFFER_SIZE

configured = functools.partial(sessions.configured, close_timeout="5s")


@pytest.fixture(params=["relay", "message"])
def kind(request):
    """A line for the route: which kind of session it has."""
    return f"session = {request.param}\n"


relay_only = pytest.mark.parametrize("kind", ["relay"], indirect=True)
message_only = pytest.mark.parametrize("kind", ["message"], indirect=True)


@pytest.fixture
def start(router, backend, open_session, kind):
    """``start(route) -> running, client, peer``: a session on a route with these lines, both ends for the test."""

    def begin(route: str, **more):
        server = backend()
        running = router(configured(server.address, kind + route))
        ends = open_session(running, server, **more)
        running.until(lambda: running.opened)
        return running, *ends

    return begin


def round_trips(running, session) -> tuple[float | None, float | None]:
    """The round-trip times of the router's pings to client and backend, where there are any."""
    counts = running.call(session.counts)
    return counts.rtt, counts.backend_rtt


def hearing(running, side: str = "client"):
    """What hears that side in the one session: a pump, or a side of a message session."""
    (session,) = running.opened
    names = {"client": ("_up", "_client"), "backend": ("_down", "_backend")}[side]
    return getattr(session, names[0] if hasattr(session, names[0]) else names[1])


def codes(offender: str) -> tuple[int, Who]:
    """What the innocent side is told, and who is blamed."""
    return (1001, Who.CLIENT) if offender == "client" else (1011, Who.BACKEND)


# Live facts.


@relay_only
def test_facts_are_known_while_the_session_lives(start, frame) -> None:
    running, client, peer = start("")
    entry = running.opened[0]
    counts = running.call(entry.counts)
    assert (counts.frames_in, counts.frames_out, counts.largest_in, counts.largest_out) == (0, 0, 0, 0)
    up = frame(TEXT, b"hello") + frame(PING) + frame(BINARY, b"x" * 300) + frame(TEXT, b"bye")
    down = frame(TEXT, b"a" * 70_000, mask=False, fin=False) + frame(PONG, mask=False)
    client.send(up)
    peer.send(down)
    assert peer.recv_exactly(len(up)) == up
    assert client.recv_exactly(len(down)) == down
    counts = running.call(entry.counts)
    assert (counts.frames_in, counts.messages_in, counts.largest_in) == (4, 3, 300)
    assert (counts.frames_out, counts.messages_out, counts.largest_out) == (2, 0, 0)
    peer.send(frame(0, b"b" * 10, mask=False))
    client.recv_frame()
    counts = running.call(entry.counts)
    assert (counts.frames_out, counts.messages_out, counts.largest_out) == (3, 1, 70_010)
    assert (counts.rtt, counts.backend_rtt) == (None, None)
    assert running.call(entry.ending) is None
    client.send(frame(CLOSE, b"\x0f\xa0enough"))
    assert peer.recv_frame().code == 4000
    end = running.call(entry.ending)
    assert (end.who, end.code, end.reason) == (Who.CLIENT, 4000, "enough")
    assert running.live == 1


# Sizes.


@pytest.mark.parametrize("offender", ["client", "backend"])
def test_a_message_over_the_limit_is_refused_before_any_of_it_passes(start, frame, offender) -> None:
    running, client, peer = start("max_message = 1k")
    one, other, mask = both(client, peer, offender)
    good = frame(BINARY, b"g" * 1024, mask=mask)
    one.send(good + frame(BINARY, b"b" * 1025, mask=mask))
    assert other.recv_frame().payload == b"g" * 1024
    told, blamed = codes(offender)
    assert one.recv_frame().code == 1009
    assert other.recv_frame().code == told
    _, end = ended(running, one, other)
    assert (end.who, end.code, end.reason) == (blamed, 1009, "got a message of more than 1024 bytes")


@relay_only
@pytest.mark.parametrize("offender", ["client", "backend"])
def test_fragments_are_summed_and_the_close_comes_between_them(start, frame, offender) -> None:
    running, client, peer = start("max_message = 1k")
    one, other, mask = both(client, peer, offender)
    good = (
        frame(BINARY, b"g" * 1000, mask=mask, fin=False)
        + frame(PING, mask=mask)
        + frame(0, b"g" * 24, mask=mask, fin=False)
    )
    one.send(good)
    assert other.recv_exactly(len(good)) == good
    # The header tells it: the payload need not come.
    one.send(frame(0, b"b", mask=mask)[:-1])
    assert one.recv_frame().code == 1009
    assert other.recv_frame().code == codes(offender)[0]
    assert ended(running, one, other)[1].code == 1009


@relay_only
def test_a_million_empty_fragments_end_with_1008_and_nothing_gathers(start, frame) -> None:
    running, client, peer = start("max_message = 1k\nmax_fragments = 5000")
    more = frame(0, fin=False)
    got = []

    def read() -> None:
        head = frame(TEXT, fin=False)
        got.append(peer.recv_exactly(len(head) + 4999 * len(more)))
        got.append(peer.recv_frame())

    reader = threading.Thread(target=read)
    reader.start()
    send_until_cut(client, frame(TEXT, fin=False) + more * 1_000_000)
    reader.join()
    assert got[0] == frame(TEXT, fin=False) + more * 4999
    assert (got[1].opcode, got[1].code) == (CLOSE, 1001)
    _, end = ended(running, client, peer)
    assert (end.who, end.code, end.reason) == (Who.CLIENT, 1008, "got a message of more than 5000 fragments")


@message_only
def test_a_message_of_a_million_empty_fragments_is_refused_and_nothing_of_it_passes(start, frame) -> None:
    running, client, peer = start("max_fragments = 5000")
    client.send(frame(TEXT, b"good"))
    send_until_cut(client, frame(TEXT, fin=False) + frame(0, fin=False) * 1_000_000)
    assert peer.recv_frame().payload == b"good"
    assert peer.recv_frame().code == 1001
    _, end = ended(running, client, peer)
    assert (end.who, end.code, end.reason) == (Who.CLIENT, 1008, "got a message of more than 5000 fragments")


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_library_is_told_1009_and_its_messages_within_the_limit_pass(router, echo_backend, compression, kind) -> None:
    server = echo_backend(compression=compression)
    running = router(configured(server.address, kind + "max_message = 100k"))
    with open_websocket(f"ws://127.0.0.1:{running.port()}/", compression=compression) as client:
        for size in (0, 125, 126, 65536, 100 * 1024 - 1000):
            data = os.urandom(size)
            client.send(data)
            assert client.recv(timeout=10) == data
        client.send(os.urandom(100 * 1024 + 1))
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert client.close_code == 1009
    assert server.closes.get(timeout=10)[0] == 1001
    assert ended(running)[1].code == 1009


# Rates.


def test_a_client_over_its_rate_is_slowed_down_and_loses_nothing(router, echo_backend, kind) -> None:
    server = echo_backend()
    running = router(configured(server.address, kind + "message_rate = 50/s burst=10"))
    with open_websocket(f"ws://127.0.0.1:{running.port()}/") as client:
        sent = [f"message {number}" for number in range(40)]
        for text in sent:
            client.send(text)
        assert [client.recv(timeout=10) for _ in sent] == sent
    assert ended(running)[1].code == 1000


def test_who_is_slowed_down_costs_the_others_nothing(router, backend, open_session, frame, kind) -> None:
    server = backend()
    running = router(configured(server.address, kind + "message_rate = 1/m burst=2"))
    slow, slow_peer = open_session(running, server)
    slow.send(frame(TEXT, b"x") * 1000)
    running.until(lambda: running.opened and hearing(running).paused)
    assert [slow_peer.recv_frame().payload for _ in range(2)] == [b"x"] * 2
    client, peer = open_session(running, server)
    for _ in range(2):
        client.send(frame(TEXT, b"mine"))
        assert peer.recv_frame().payload == b"mine"
    slow_peer.send(frame(TEXT, b"down", mask=False) * 100)
    assert [slow.recv_frame().payload for _ in range(100)] == [b"down"] * 100
    assert slow_peer.nothing_comes()


def test_a_client_over_a_strict_rate_gets_1008(start, frame) -> None:
    running, client, peer = start("message_rate = 1/m burst=3\non_rate = close")
    client.send(frame(TEXT, b"x") * 4)
    assert [peer.recv_frame().payload for _ in range(3)] == [b"x"] * 3
    assert client.recv_frame().code == 1008
    assert peer.recv_frame().code == 1001
    _, end = ended(running, client, peer)
    assert (end.who, end.code) == (Who.CLIENT, 1008)


@relay_only
def test_a_client_over_a_strict_rate_of_bytes_is_cut_off_within_its_frame(start, frame) -> None:
    running, client, peer = start("byte_rate = 4k/h\non_rate = close")
    data = frame(BINARY, b"x" * 10_000)
    client.send(data)
    assert client.recv_frame().code == 1008
    # No Close frame within a frame.
    assert peer.recv_all() == data[:4096]
    assert ended(running, client, peer)[1].code == 1008


@message_only
def test_of_a_message_within_which_a_strict_rate_ends_nothing_passes(start, frame) -> None:
    running, client, peer = start("byte_rate = 4k/h\non_rate = close")
    client.send(frame(TEXT, b"good") + frame(BINARY, b"x" * 10_000))
    assert client.recv_frame().code == 1008
    assert peer.recv_frame().payload == b"good"
    assert peer.recv_frame().code == 1001
    assert ended(running, client, peer)[1].code == 1008


@message_only
def test_a_message_that_comes_at_its_rate_arrives_whole(start, frame) -> None:
    _, client, peer = start("byte_rate = 40k/s burst=1k\ncompression = client")
    payload = os.urandom(10_000)
    client.send(frame(BINARY, payload[:6000], fin=False) + frame(PING, b"between") + frame(0, payload[6000:]))
    assert peer.recv_frame().payload == b"between"
    assert peer.recv_frame()[:2] == (BINARY, payload)


def test_a_backend_is_not_held_to_the_rates_of_clients(start, frame) -> None:
    _, client, peer = start("message_rate = 1/h burst=1\nbyte_rate = 1k/h\non_rate = close")
    data = frame(BINARY, b"x" * 10_000, mask=False) * 10
    thread = threading.Thread(target=peer.send, args=(data,))
    thread.start()
    assert client.recv_exactly(len(data)) == data
    thread.join()


def test_a_session_that_is_slowed_down_ends_politely(start, frame) -> None:
    running, client, peer = start("message_rate = 1/h burst=1")
    client.send(frame(TEXT, b"x") * 3 + frame(CLOSE, b"\x03\xe8"))
    session = running.opened[0]
    running.until(lambda: hearing(running).paused)
    assert peer.recv_frame().payload == b"x"
    running.call(session.end, 1001, "drain")
    assert client.recv_frame().code == 1001
    assert peer.recv_frame().code == 1001
    peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
    # Its Close was behind what had to wait, and is its answer.
    assert client.recv_all() == b""
    assert peer.recv_all() == b""
    assert ended(running)[1].reason == "drain"


# The router's own pings.


@pytest.mark.parametrize("side", ["client", "backend"])
def test_the_router_pings_and_keeps_the_answer_to_itself(start, frame, side) -> None:
    running, client, peer = start(f"{'ping' if side == 'client' else 'backend_ping'} = 100ms")
    one, other, mask = both(client, peer, side)
    for _ in range(3):
        ping = one.recv_frame()
        assert (ping.opcode, ping.masked) == (PING, not mask)
        one.send(frame(PONG, ping.payload, mask=mask))
    one.send(frame(PONG, b"not ours", mask=mask))
    assert other.recv_frame()[:2] == (PONG, b"not ours")
    entry = running.opened[0]
    counts = running.call(entry.counts)
    rtt, none = (counts.rtt, counts.backend_rtt) if mask else (counts.backend_rtt, counts.rtt)
    assert 0 < rtt < 10
    assert none is None
    # Only what passed is counted as a frame.
    assert (counts.frames_in, counts.frames_out) == ((1, 0) if mask else (0, 1))
    one.send(frame(CLOSE, b"\x03\xe8", mask=mask))
    assert other.recv_frame().code == 1000
    other.send(frame(CLOSE, b"\x03\xe8", mask=not mask))
    entry, end = ended(running, client, peer)
    assert end.code == 1000
    assert (entry.counts().rtt if mask else entry.counts().backend_rtt) == pytest.approx(rtt, abs=10)


def test_pings_of_both_ends_pass_beside_those_of_the_router(start, frame) -> None:
    running, client, peer = start("ping = 100ms\nbackend_ping = 100ms")
    for number in range(5):
        payload = b"%d" % number
        for one, other, mask in ((client, peer, True), (peer, client, False)):
            one.send(frame(PING, payload, mask=mask))
            while (got := other.recv_frame()).payload != payload:
                assert (got.opcode, len(got.payload)) == (PING, 12)
                other.send(frame(PONG, got.payload, mask=not mask))
            assert got.opcode == PING
            other.send(frame(PONG, payload, mask=not mask))
            while (got := one.recv_frame()).payload != payload:
                assert (got.opcode, len(got.payload)) == (PING, 12)
                one.send(frame(PONG, got.payload, mask=mask))
            assert got.opcode == PONG
    assert running.live == 1


@relay_only
def test_a_ping_comes_between_fragments_but_never_within_a_frame(start, frame) -> None:
    _, client, peer = start("ping = 100ms")
    first = frame(BINARY, b"x" * 1000, mask=False, fin=False)
    peer.send(first)
    assert client.recv_frame().payload == b"x" * 1000
    assert client.recv_frame().opcode == PING
    # The next is due within this frame.
    client.send(frame(PING, b"alive"))
    assert peer.recv_frame().payload == b"alive"
    whole = frame(0, b"y" * 1000, mask=False)
    peer.send(whole[:500])
    assert client.recv_exactly(500) == whole[:500]
    client.socket.settimeout(0.4)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(10)
    peer.send(whole[500:])
    assert client.recv_exactly(len(whole) - 500) == whole[500:]
    assert client.recv_frame().opcode == PING


def test_libraries_answer_and_see_nothing_of_it(router, echo_backend, kind) -> None:
    server = echo_backend(ping_interval=None)
    running = router(configured(server.address, kind + "ping = 100ms\nbackend_ping = 100ms\nping_timeout = 5s"))
    with open_websocket(f"ws://127.0.0.1:{running.port()}/", ping_interval=None) as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"
        entry = running.opened[0]
        running.until(lambda: all(round_trips(running, entry)))
        assert client.ping(b"mine").wait(10)
        client.send("still here")
        assert client.recv(timeout=10) == "still here"
    assert server.closes.get(timeout=10)[0] == 1000
    assert ended(running)[1].code == 1000


# Who is dead.


@message_only
def test_pings_pass_beside_compressed_messages(router, echo_backend, kind) -> None:
    server = echo_backend(ping_interval=None)
    policies = "ping = 100ms\nbackend_ping = 100ms\nmessage_rate = 100/s\nbyte_rate = 1m/s\ncompression = both"
    running = router(configured(server.address, kind + policies))
    with open_websocket(f"ws://127.0.0.1:{running.port()}/", ping_interval=None) as client:
        assert client.protocol.extensions
        for _ in range(3):
            client.send("hello" * 1000)
            assert client.recv(timeout=10) == "hello" * 1000
            running.until(lambda: all(round_trips(running, running.opened[0])))
        counts = running.call(running.opened[0].counts)
    assert counts.bytes_in < 1000
    assert ended(running)[1].code == 1000


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_a_client_whose_packets_are_lost_is_found_and_the_backend_gets_1001(
    router, backend, open_session, authority, frame, busy, tls, kind
) -> None:
    server = backend()
    listener = "certificates = outer.pem" if tls else ""
    text = configured(server.address, kind + "ping = 500ms\nping_timeout = 500ms", listener)
    running = router(text, {"outer.pem": authority.issue("outer.example")})
    more = {"tls": authority.client_context(), "name": "outer.example"} if tls else {}
    client, peer = open_session(running, server, **more)
    client.send(frame(TEXT, b"last words"))
    assert peer.recv_frame().payload == b"last words"
    vanish(client)
    if busy:
        # What the backend sends meanwhile is no sign of life of the client's.
        peer.send(frame(BINARY, b"x" * 1000, mask=False))
    told = peer.recv_frame()
    assert (told.opcode, told.code) == (CLOSE, 1001)
    peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
    assert peer.recv_all() == b""
    _, end = ended(running, peer)
    assert (end.who, end.code, end.reason) == (Who.CLIENT, 1006, "did not answer a ping within 0.5 s")


def test_a_backend_whose_packets_are_lost_is_found_and_the_client_gets_1011(start, frame) -> None:
    running, client, peer = start("backend_ping = 500ms\nping_timeout = 500ms")
    vanish(peer)
    told = client.recv_frame()
    assert (told.opcode, told.code) == (CLOSE, 1011)
    _, end = ended(running, client)
    assert (end.who, end.code, end.reason) == (Who.BACKEND, 1006, "did not answer a ping within 0.5 s")


@relay_only
def test_a_client_that_is_lost_within_a_frame_ends_the_backend_without_a_close(start, frame) -> None:
    running, client, peer = start("ping = 500ms\nping_timeout = 500ms")
    half = frame(BINARY, b"x" * 1000)[:600]
    client.send(half)
    assert peer.recv_exactly(600) == half
    vanish(client)
    assert peer.recv_all() == b""
    _, end = ended(running, peer)
    assert end.reason == "did not answer a ping within 0.5 s, in the middle of a frame"


@message_only
def test_half_a_message_of_a_client_that_is_lost_is_dropped_and_the_backend_gets_1001(start, frame) -> None:
    running, client, peer = start("ping = 500ms\nping_timeout = 500ms")
    client.send(frame(TEXT, b"whole") + frame(BINARY, b"x" * 1000)[:600])
    assert peer.recv_frame().payload == b"whole"
    vanish(client)
    assert peer.recv_frame().code == 1001
    _, end = ended(running, peer)
    assert end.reason == "did not answer a ping within 0.5 s"


FROZEN_CLIENT = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], ping_interval=None) as client:
    client.send("hello")
    print(client.recv(), flush=True)
    client.recv()
"""
FROZEN_BACKEND = """
from websockets.sync.server import serve
def handle(session):
    for message in session:
        session.send(message)
with serve(handle, "127.0.0.1", 0, ping_interval=None) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


@pytest.fixture
def program():
    """``program(code, *arguments) -> process``: Python in a process of its own, killed at the end."""
    started = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("busy", [False, True])
def test_a_frozen_client_is_found_though_its_kernel_takes_everything(
    router, backend, frame, program, busy, kind
) -> None:
    server = backend()
    running = router(configured(server.address, kind + "ping = 200ms\nping_timeout = 1s"))
    process = program(FROZEN_CLIENT, f"ws://127.0.0.1:{running.port()}/")
    peer = server.accept()
    peer.answer()
    assert peer.recv_frame().payload == b"hello"
    peer.send(frame(TEXT, b"hello", mask=False))
    assert process.stdout.readline() == "hello\n"
    process.send_signal(signal.SIGSTOP)
    if busy:
        peer.send(frame(TEXT, b"news", mask=False))
    assert peer.recv_frame().code == 1001
    _, end = ended(running, peer)
    assert (end.who, end.code) == (Who.CLIENT, 1006)


def test_a_frozen_backend_is_found_and_the_client_is_told(router, program, kind) -> None:
    process = program(FROZEN_BACKEND)
    running = router(
        configured(f"127.0.0.1:{process.stdout.readline().strip()}", kind + "backend_ping = 200ms\nping_timeout = 1s")
    )
    with open_websocket(f"ws://127.0.0.1:{running.port()}/", ping_interval=None) as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert client.close_code == 1011
    _, end = ended(running)
    assert (end.who, end.reason) == (Who.BACKEND, "did not answer a ping within 1 s")


@pytest.fixture
def looks(monkeypatch):
    """A list that grows with each look of a heartbeat: whether reading was held then."""
    seen = []
    look = Heartbeat.look

    def counted(self, now, heard, held, stuck):
        seen.append(held)
        return look(self, now, heard, held, stuck)

    monkeypatch.setattr(Heartbeat, "look", counted)
    return seen


def test_while_a_slow_backend_holds_reading_no_client_is_taken_for_dead(start, frame, looks) -> None:
    running, client, peer = start("ping = 100ms\nping_timeout = 1s")
    ping = client.recv_frame()
    assert ping.opcode == PING
    data = frame(BINARY, b"x" * (1 << 20)) * 16
    # The answer lies behind what the backend does not take.
    writer = threading.Thread(target=client.send, args=(data + frame(PONG, ping.payload),))
    writer.start()
    running.until(lambda: hearing(running).paused)
    looks.clear()
    # Looks come every 50 ms at most: these take far longer than ping and ping_timeout together.
    running.until(lambda: sum(looks) > 40)
    assert running.live == 1
    # Unmasking all that here could take longer than an answer may.
    assert len(peer.recv_exactly(len(data))) == len(data)
    writer.join()
    pong = frame(PONG, client.recv_frame().payload)
    client.send(pong)
    running.until(lambda: running.call(running.opened[0].counts).rtt)
    assert running.live == 1


def test_a_backend_that_takes_nothing_for_ten_timeouts_is_given_up(start, frame) -> None:
    running, client, peer = start("ping = 200ms\nping_timeout = 200ms")
    data = frame(BINARY, b"x" * (1 << 20)) * 16
    writer = threading.Thread(target=send_until_cut, args=(client, data))
    writer.start()
    while (got := client.recv_frame()).opcode == PING:
        pass
    assert got.code == 1011
    _, end = ended(running, client, peer)
    writer.join()
    assert (end.who, end.reason) == (Who.BACKEND, "has taken nothing for 2 s")


def send_until_cut(peer, data: bytes) -> None:
    try:
        peer.send(data)
    except OSError:
        pass


def test_a_rate_that_holds_reading_is_no_ones_death(start, frame, looks) -> None:
    running, client, peer = start("message_rate = 1/h burst=1\nping = 200ms\nping_timeout = 500ms")
    client.send(frame(TEXT, b"x") * 2)
    assert peer.recv_frame().payload == b"x"
    running.until(lambda: sum(looks) > 30)
    assert running.live == 1


def test_a_slow_reader_is_not_taken_for_dead_while_its_ping_is_on_the_way(start, frame, looks, monkeypatch) -> None:
    excused = []
    excuse = Heartbeat.excuse

    def noted(self, *arguments, **more):
        excused.append(excuse(self, *arguments, **more))
        return excused[-1]

    monkeypatch.setattr(Heartbeat, "excuse", noted)
    running, client, peer = start("ping = 500ms\nping_timeout = 500ms", receive=4096)
    writer = threading.Thread(target=send_until_cut, args=(peer, frame(BINARY, b"x" * 1000, mask=False) * 20_000))
    writer.start()
    running.until(lambda: hearing(running, "backend").paused)
    while len(excused) < 3:
        # A little at each look: what lies before the ping takes far longer than the ping timeout.
        seen = len(looks)
        running.until(lambda seen=seen: len(looks) > seen)
        assert [client.recv_frame().opcode for _ in range(6)] == [BINARY] * 6
    while (got := client.recv_frame()).opcode != PING:
        pass
    client.send(frame(PONG, got.payload))
    running.until(lambda: hearing(running).walker.cut_bytes)
    assert all(excused)
    vanish(client)
    assert peer.recv_frame().code == 1001
    writer.join()
    assert ended(running, peer)[1].who is Who.CLIENT


# Idleness.


def test_the_routers_own_pings_and_their_answers_keep_no_session_from_being_idle(router, echo_backend, kind) -> None:
    server = echo_backend(ping_interval=None)
    running = router(configured(server.address, kind + "ping = 50ms\nbackend_ping = 50ms\nidle_timeout = 400ms"))
    with open_websocket(f"ws://127.0.0.1:{running.port()}/", ping_interval=None) as client:
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert client.close_code == 1001
    entry, end = ended(running)
    assert (end.who, end.reason) == (Who.ROUTER, "idle")
    assert entry.counts().rtt > 0
    assert entry.counts().backend_rtt > 0


@pytest.mark.parametrize("side", ["client", "backend"])
def test_pings_of_a_peer_keep_no_session_alive_where_data_alone_counts(start, frame, side) -> None:
    running, client, peer = start("idle_timeout = 400ms\nidle_counts = data")
    one, other = (client, peer) if side == "client" else (peer, client)
    ping = frame(PING, mask=side == "client")
    send_until_cut(one, ping)
    while (got := other.recv_frame()).opcode == PING:
        send_until_cut(one, ping)
    assert got.code == 1001
    assert ended(running, client, peer)[1].reason == "idle"


def test_messages_and_fragments_keep_a_session_alive_where_data_alone_counts(start, frame) -> None:
    running, client, peer = start("idle_timeout = 400ms\nidle_counts = data")
    client.socket.settimeout(0.1)
    for _ in range(4):
        for data in (frame(TEXT, fin=False), frame(0)):
            client.send(data)
            with pytest.raises(TimeoutError):
                client.socket.recv(1)
        while not peer.recv_frame().fin:
            pass
    assert running.live == 1


# Floods.


@pytest.mark.parametrize("offender", ["client", "backend"])
def test_pings_without_end_to_one_who_never_reads_are_held_back(start, frame, offender) -> None:
    running, client, peer = start("ping = 1h\nbackend_ping = 1h\nmax_message = 1m")
    one, other, mask = both(client, peer, offender)
    ping = frame(PING, b"p" * 125, mask=mask)
    flood = ping * 500
    one.socket.settimeout(0.2)
    sent = 0
    try:
        while sent < 64 << 20:
            sent += one.socket.send(flood[sent % len(ping) :])
    except TimeoutError:
        pass
    assert sent < 64 << 20
    legs = running.call(lambda: [leg for leg in running.service.relay.members.values() if hasattr(leg, "pending")])
    assert sum(len(leg.pending or b"") for leg in legs) <= BUFFER_SIZE + 131
    assert other.recv_frame()[:2] == (PING, b"p" * 125)


def test_pings_without_end_are_held_to_the_rate(start, frame) -> None:
    running, client, peer = start("message_rate = 1/h burst=5")
    client.send(frame(PING) * 100)
    running.until(lambda: hearing(running).paused)
    assert [peer.recv_frame().opcode for _ in range(5)] == [PING] * 5
    running.settle()
    assert peer.nothing_comes()
