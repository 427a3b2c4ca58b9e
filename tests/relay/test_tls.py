from __future__ import annotations

import random
import ssl
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone

from wsrouter.relay import tls
from wsrouter.relay.leg import BUFFER_SIZE, LINGER, Leg
from wsrouter.relay.loop import BATCH, HEAVY_STEPS
from wsrouter.relay.tls import TlsLeg, reason_of

RECORD = 16 * 1024
FLOOD = b"0123456789abcdef" * (1 << 14)
#: One read takes FIRST of it, and then the last record stays with the leg, where no event tells of it.
HELD = FLOOD[: 6 * RECORD]
FIRST = 5 * RECORD


@pytest.fixture(autouse=True)
def empty(rig):
    """``empty()``: nothing lies in the BIOs that all legs share; checked at the end of each test, too."""

    def check() -> None:
        assert tls._INCOMING.pending == tls._OUTGOING.pending == 0

    yield check
    check()


def begun(
    rig: Any, *, server_side: bool = True, name: str | None = None, context: Any = None
) -> tuple[Any, Any, list[str]]:
    """A TLS leg whose handshake has begun, the bare peer, and what the leg tells of it."""
    near, far = rig.pair()
    context = context or (rig.server_context if server_side else rig.client_context)
    leg = TlsLeg(rig.relay, near, near.getpeername(), context, server_side=server_side, server_hostname=name)
    told: list[str] = []
    leg.handshake(lambda: told.append("done"), told.append)
    far.setblocking(False)
    return leg, far, told


def peer_of(rig: Any, far: Any, name: str | None) -> Any:
    """A TLS peer on a bare socket: a client that asks for ``name``, or a server."""
    peer_class = type(rig.tls_leg()[1])
    peer = peer_class(far, rig.client_context if name is not None else rig.server_context, name)
    rig.peers.append(peer)
    return peer


# Handshake.


def test_a_client_and_a_server_leg_agree(rig, recorder):
    for server_side in (True, False):
        leg, far, told = begun(rig, server_side=server_side, name=None if server_side else "leg.example")
        peer = peer_of(rig, far, "leg.example" if server_side else None)
        rig.until(lambda told=told, peer=peer: told and peer.open)
        assert told == ["done"]
        protocol = recorder()
        leg.attach(protocol)
        peer.send(b"ping")
        leg.write(b"pong")
        rig.until(lambda protocol=protocol, peer=peer: protocol.data == b"ping" and peer.plain == b"pong")


def test_a_prefetched_hello_is_not_asked_for_again(rig):
    leg, far, told = begun(rig)
    peer = peer_of(rig, far, "leg.example")
    peer.greedy = False
    leg.pauseProducing()
    rig.turn()
    near, far = rig.pair()
    hello = ssl.MemoryBIO()
    client = rig.client_context.wrap_bio(incoming := ssl.MemoryBIO(), hello, server_hostname="leg.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    other = TlsLeg(rig.relay, near, near.getpeername(), rig.server_context, server_side=True)
    other.handshake(lambda: told.append("done"), told.append, hello.read())
    assert incoming.pending == 0
    assert far.recv(1 << 16)[:1] == b"\x16"


def test_a_hello_byte_by_byte_is_enough(rig):
    _, far, told = begun(rig)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = rig.client_context.wrap_bio(incoming, outgoing, server_hostname="leg.example")
    for _ in range(10):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        data = outgoing.read()
        for index in range(len(data)):
            far.send(data[index : index + 1])
            if index % 50 == 0:
                rig.turn()
        rig.settle()
        if told:
            break
        incoming.write(far.recv(1 << 16))
    assert told == ["done"]


def test_a_name_that_does_not_verify_fails_the_handshake(rig):
    leg, far, told = begun(rig, server_side=False, name="other.example")
    peer_of(rig, far, None)
    rig.until(lambda: told)
    assert "does not verify" in told[0]
    assert "mismatch" in told[0].lower()
    rig.advance(LINGER + 0.1)
    assert leg.fd not in rig.relay.members
    assert len(told) == 1


def test_garbage_fails_the_handshake_and_the_peer_gets_an_alert(rig):
    leg, far, told = begun(rig)
    far.send(b"\x16\x03\x01\x00\x05hello")
    rig.until(lambda: told)
    data = far.recv(100)
    assert data[:1] == b"\x15"
    rig.advance(LINGER + 0.1)
    assert leg.fd not in rig.relay.members
    assert told[1:] == []


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_peer_that_leaves_within_the_handshake_fails_it_once(rig, how):
    leg, far, told = begun(rig)
    far.send(b"\x16\x03")
    if how == "fin":
        far.close()
    else:
        far.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")
        far.close()
    rig.until(lambda: told)
    rig.settle()
    assert len(told) == 1
    assert leg.fd not in rig.relay.members


def test_an_abort_within_the_handshake_calls_nobody(rig):
    leg, _, told = begun(rig)
    leg.abortConnection()
    rig.settle()
    assert told == []


def test_a_stop_of_the_relay_within_the_handshake_calls_nobody(rig):
    leg, _, told = begun(rig)
    rig.relay.stop()
    assert told == []
    assert not leg.connected


def test_a_turn_does_few_handshakes(rig):
    hellos = []
    legs = []
    for _ in range(3 * BATCH):
        leg, far, told = begun(rig)
        outgoing = ssl.MemoryBIO()
        client = rig.client_context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="leg.example")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        hellos.append((far, outgoing.read()))
        legs.append((leg, told))
    for far, hello in hellos:
        far.send(hello)
    rig.rest()
    rig.relay.doRead()
    assert HEAVY_STEPS < rig.relay.heavy <= BATCH
    rounds = 1
    while rig.rest(0):
        rig.relay.doRead()
        rounds += 1
    assert rounds >= 3
    assert sum(bool(far.recv(1)) for far, _ in hellos) == len(hellos)


# Reading.


def test_data_that_comes_with_the_last_flight_of_the_handshake_is_not_lost(rig, recorder):
    for _ in range(5):
        protocol = recorder()
        rig.tls_leg(protocol, early=b"early")
        rig.until(lambda protocol=protocol: protocol.data == b"early")


def test_several_records_of_one_segment_all_arrive_without_another_event(rig, recorder):
    protocol = recorder()
    _, peer = rig.tls_leg(protocol)
    outgoing = peer.outgoing
    for number in range(50):
        peer.tls.write(b"%d," % number)
    peer.send_raw(outgoing.read())
    expected = b"".join(b"%d," % number for number in range(50))
    rig.until(lambda: protocol.data == expected)


def test_a_flood_arrives_whole(rig, recorder):
    protocol = recorder()
    _, peer = rig.tls_leg(protocol)
    peer.send(FLOOD)
    rig.until(lambda: len(protocol.data) == len(FLOOD))
    assert protocol.data == FLOOD
    rig.settle()
    assert not rig.spin()


def test_what_a_leg_holds_is_read_on_resume_though_no_event_comes(rig, recorder):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)
    protocol.on_data = lambda data: leg.pauseProducing()
    peer.send(HELD)
    rig.until(lambda: protocol.data)
    assert not rig.spin()
    assert protocol.data == HELD[:FIRST]
    leg.resumeProducing()
    rig.turn(2)
    assert protocol.data == HELD


def test_what_a_leg_holds_counts_as_unread(rig, recorder, empty):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)
    protocol.on_data = lambda data: leg.pauseProducing()
    peer.send(HELD)
    rig.until(lambda: protocol.data)
    empty()
    assert leg.has_unread()
    leg.resumeProducing()
    rig.until(lambda: protocol.data == HELD)
    assert not leg.has_unread()
    peer.send(b"three")
    rig.until(leg.has_unread)


@pytest.mark.parametrize("end", ["close_notify", "nonsense"])
def test_an_end_behind_what_was_read_is_told_on_resume_though_no_event_comes(rig, recorder, empty, end):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)
    protocol.on_data = lambda data: leg.pauseProducing()
    peer.tls.write(b"one")
    if end == "close_notify":
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        last = b""
    else:
        last = b"\x17\x03\x03\x00\x20" + bytes(32)
    peer.send_raw(peer.outgoing.read() + last + b"what lies behind the end counts for nothing")
    rig.until(lambda: protocol.data == b"one")
    assert not rig.spin()
    empty()
    assert leg.has_unread()
    assert not protocol.lost
    leg.resumeProducing()
    rig.turn(2)
    if end == "close_notify":
        peer.finish()
    rig.until(lambda: protocol.lost)
    assert isinstance(protocol.lost[0], ConnectionDone if end == "close_notify" else ssl.SSLError)


def test_half_a_record_counts_as_unread(rig, recorder):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)
    peer.tls.write(b"one")
    whole = peer.outgoing.read()
    peer.tls.write(b"two")
    half = peer.outgoing.read()
    peer.send_raw(whole + half[:7])
    rig.until(lambda: protocol.data == b"one")
    rig.settle()
    assert leg.has_unread()
    peer.send_raw(half[7:])
    rig.until(lambda: protocol.data == b"onetwo")
    assert not leg.has_unread()


def test_a_protocol_that_pauses_and_resumes_in_one_call_gets_all(rig, recorder):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)

    def wink(data: bytes) -> None:
        leg.pauseProducing()
        leg.resumeProducing()

    protocol.on_data = wink
    for number in range(20):
        peer.tls.write(b"%d," % number)
    peer.flush()
    rig.until(lambda: protocol.data.endswith(b"19,"))
    assert protocol.data == b"".join(b"%d," % number for number in range(20))


def test_what_a_leg_holds_goes_to_the_protocol_that_is_attached_meanwhile(rig, recorder):
    first, second = recorder(), recorder()
    leg, peer = rig.tls_leg(first)
    first.on_data = lambda data: leg.attach(second)
    peer.send(HELD)
    rig.until(lambda: second.data == HELD[FIRST:])
    assert first.data == HELD[:FIRST]


def test_a_protocol_that_closes_on_the_first_read_gets_no_more_and_its_answer_arrives(rig, recorder):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)

    def refuse(data: bytes) -> None:
        leg.write(b"refused")
        leg.loseConnection()

    protocol.on_data = refuse
    peer.send(HELD)
    rig.until(lambda: peer.ended)
    assert peer.plain == b"refused"
    assert peer.notified
    assert peer.fault is None
    assert len(protocol.data) == FIRST
    peer.send_raw(b"more that is dropped")
    rig.settle()
    assert not protocol.lost
    peer.finish()
    rig.until(lambda: protocol.lost)
    assert type(protocol.lost[0]) is ConnectionDone


def test_an_exception_in_a_protocol_ends_the_leg_even_when_it_came_from_a_drain(rig, recorder, logged_failures):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)
    protocol.on_data = lambda data: leg.pauseProducing()
    peer.send(HELD)
    rig.until(lambda: protocol.data)

    def fail(data: bytes) -> None:
        raise ZeroDivisionError

    protocol.on_data = fail
    leg.resumeProducing()
    rig.turn(2)
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
    assert protocol.lost


def all_of(leg: Any) -> list[bytes | Exception]:
    """What reads of a leg bring, up to the end or an error."""
    buffer = bytearray(BUFFER_SIZE)
    got: list[bytes | Exception] = []
    while not got or (got[-1] and not isinstance(got[-1], Exception)):
        try:
            got.append(bytes(buffer[: leg.recv_into(buffer)]))
        except BlockingIOError:
            if not Leg.has_unread(leg):
                break
        except OSError as error:
            got.append(error)
    return got


def test_full_records_are_read_at_once_with_what_ends_the_message(rig):
    leg, peer = rig.tls_leg()
    peer.send(FLOOD[: 4 * RECORD + 14])
    assert all_of(leg) == [FLOOD[: 4 * RECORD + 14]]
    assert not leg.has_unread()
    # As many as the buffer has room for.
    peer.send(FLOOD)
    got = all_of(leg)
    assert b"".join(got) == FLOOD
    assert len(got[0]) == BUFFER_SIZE


def test_records_that_come_together_are_read_together(rig):
    leg, peer = rig.tls_leg()
    for size in (10, RECORD, 10, 20, RECORD - 1):
        peer.tls.write(FLOOD[:size])
    # The socket has as much as is asked for only where the records are full.
    sealed = peer.outgoing.read()
    peer.send_raw(sealed)
    got = all_of(leg)
    assert b"".join(got) == FLOOD[:10] + FLOOD[:RECORD] + FLOOD[:10] + FLOOD[:20] + FLOOD[: RECORD - 1]
    assert len(got) == 1


def test_a_record_whose_rest_is_on_its_way_waits(rig):
    leg, peer = rig.tls_leg()
    view = memoryview(FLOOD)[: 2 * RECORD]
    while view:
        view = view[peer.tls.write(view) :]
    sealed = peer.outgoing.read()
    peer.send_raw(sealed[:-1])
    assert all_of(leg) == [FLOOD[:RECORD]]
    assert leg.has_unread()
    peer.send_raw(sealed[-1:])
    assert all_of(leg) == [FLOOD[RECORD : 2 * RECORD]]


@pytest.mark.parametrize("end", ["close_notify", "fin", "nonsense"])
def test_what_ends_a_connection_is_told_behind_the_records_before_it(rig, end):
    leg, peer = rig.tls_leg()
    peer.send(FLOOD[: 2 * RECORD])
    if end == "close_notify":
        peer.notify()
    elif end == "fin":
        peer.finish()
    else:
        peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))
    first, last = all_of(leg)
    assert first == FLOOD[: 2 * RECORD]
    if end == "nonsense":
        assert isinstance(last, ssl.SSLError)
        rig.until(lambda: peer.fault)  # the alert
    else:
        assert last == b""


def test_records_without_data_behind_a_full_one_do_not_keep_others_waiting(rig):
    leg, peer = rig.tls_leg()
    asked = []

    def read(size: int, buffer: Any) -> int:
        # What OpenSSL does with very many KeyUpdates (RFC 8446 4.6.3).
        asked.append(len(tls._INCOMING.read()))
        if len(asked) == 1:
            return RECORD
        raise ssl.SSLWantReadError

    leg.tls = SimpleNamespace(read=read, pending=lambda: 0, unwrap=leg.tls.unwrap)
    peer.send_raw(bytes(1 << 18))
    assert leg.recv_into(bytearray(BUFFER_SIZE)) == RECORD
    assert len(asked) == 2
    with pytest.raises(BlockingIOError):
        leg.recv_into(bytearray(BUFFER_SIZE))
    assert len(asked) == 3


def test_a_reset_that_came_with_full_records_is_noticed_by_who_waits_for_the_end(rig, recorder):
    protocol = recorder()
    leg, _ = rig.tls_leg(protocol)

    class Reset:
        def recv_into(self, buffer: Any) -> int:
            raise ConnectionResetError

        def __getattr__(self, name: str) -> Any:
            return getattr(sock, name)

    sock, leg.socket = leg.socket, Reset()
    leg.tls = SimpleNamespace(read=lambda size, buffer: RECORD, pending=lambda: 0, unwrap=leg.tls.unwrap)
    leg._read_on(bytearray(BUFFER_SIZE), RECORD, True)
    assert isinstance(leg._late, ConnectionResetError)
    leg.await_end()
    rig.until(lambda: protocol.lost)
    assert isinstance(protocol.lost[0], ConnectionResetError)


def test_answers_of_openssl_to_a_peer_that_never_reads_have_an_end(rig, recorder):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol, 16384)
    peer.greedy = False

    def answering(size: int, buffer: Any) -> int:
        # What OpenSSL does with a KeyUpdate that asks for one in return (RFC 8446 4.6.3).
        tls._INCOMING.read()
        tls._OUTGOING.write(bytes(1000))
        raise ssl.SSLWantReadError

    leg.tls = SimpleNamespace(read=answering, unwrap=leg.tls.unwrap)
    for _ in range(5000):
        if protocol.lost:
            break
        peer.send_raw(b"x" * 100)
        rig.turn()
        assert len(leg.pending or b"") < 256 * 1024


# What all legs share.


def test_what_lies_behind_a_close_notify_is_dropped_and_the_end_is_told_once(rig, half_closer, empty):
    protocol = half_closer()
    leg, peer = rig.tls_leg(protocol)
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    peer.send_raw(peer.outgoing.read() + bytes(100))
    rig.until(lambda: leg.eof)
    rig.settle()
    assert not leg.has_unread()
    assert protocol.read_ended + len(protocol.lost) <= 1


def test_what_lies_behind_a_bad_record_reaches_nobody(rig, recorder, empty):
    protocol = recorder()
    _, peer = rig.tls_leg(protocol)
    peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32) + bytes(100))
    rig.until(lambda: protocol.lost)
    empty()


class Client:
    """A bare client whose bytes go and come in pieces of any size; it expects ``message`` back."""

    def __init__(self, rig: Any, dice: random.Random, context: ssl.SSLContext) -> None:
        self.near, self.far = rig.pair()
        self.far.setblocking(False)
        self.dice = dice
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="leg.example")
        self.message = dice.randbytes(dice.choice([1, 100, RECORD, 40_000]))
        self.unsent = b""
        self.got = b""
        self.is_open = False

    def step(self) -> None:
        size = self.dice.choice([1, 30, 600, 20_000])
        try:
            self.incoming.write(self.far.recv(size))
        except BlockingIOError:
            pass
        try:
            if not self.is_open:
                self.tls.do_handshake()
                self.is_open = True
                for start in range(0, len(self.message), RECORD):
                    self.tls.write(self.message[start : start + RECORD])
            while True:
                self.got += self.tls.read(RECORD)
        except ssl.SSLWantReadError:
            pass
        self.unsent += self.outgoing.read()
        try:
            self.unsent = self.unsent[self.far.send(self.unsent[:size]) :]
        except BlockingIOError:
            pass


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("seed", range(4))
def test_legs_that_work_by_turns_do_not_mix_their_bytes(rig, recorder, empty, contexts, version, seed):
    dice = random.Random(seed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=contexts.client.get_ca_certs(binary_form=True)[0])
    context.maximum_version = version
    clients = [Client(rig, dice, context) for _ in range(16)]
    legs = []

    def begin(client: Client) -> None:
        leg = TlsLeg(rig.relay, client.near, client.near.getpeername(), rig.server_context, server_side=True)
        echo = recorder()
        echo.on_data = leg.write
        leg.handshake(lambda: leg.attach(echo), lambda reason: None)
        legs.append(leg)

    for client in clients:
        begin(client)
    # Some vanish in the midst of it, on this side or on that.
    ends = {dice.randrange(16): (dice.randrange(2, 60), dice.randrange(2)) for _ in range(5)}
    for turn in range(100_000):
        for number, client in enumerate(clients):
            when, side = ends.get(number, (0, 0))
            if turn < when or not when:
                client.step()
            elif turn == when and side:
                legs[number].abortConnection()
            elif turn == when:
                client.far.close()
            rig.turn()
            empty()
        waited_for = [client for number, client in enumerate(clients) if number not in ends]
        if all(len(client.got) == len(client.message) for client in waited_for):
            break
    for client in waited_for:
        assert client.got == client.message


@pytest.mark.parametrize("what", ["read", "write", "handshake"])
def test_what_a_failed_call_leaves_behind_reaches_nobody(rig, recorder, empty, what, logged_failures):
    def fail(*_: Any) -> int:
        tls._OUTGOING.write(b"secret")
        raise MemoryError

    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)
    other, reader = rig.tls_leg(recorder())
    shaking, far, _ = begun(rig)
    shaking.tls = SimpleNamespace(do_handshake=fail)
    leg.tls = SimpleNamespace(read=fail, write=fail, unwrap=leg.tls.unwrap)
    if what == "read":
        peer.send(b"x")
    elif what == "write":
        with pytest.raises(MemoryError):
            leg.write(b"x")
        with pytest.raises(MemoryError):
            leg.send(memoryview(b"x"))
    else:
        far.send(b"\x16")
    rig.settle()
    empty()
    other.write(b"not secret")
    rig.until(lambda: reader.plain == b"not secret")
    logged_failures.flush(MemoryError)


# The end.


def test_a_close_notify_is_an_end_in_order(rig, recorder):
    protocol = recorder()
    _, peer = rig.tls_leg(protocol)
    peer.send(b"last")
    peer.notify()
    rig.until(lambda: protocol.lost)
    assert protocol.data == b"last"
    assert type(protocol.lost[0]) is ConnectionDone
    rig.until(lambda: peer.ended)
    assert peer.notified


def test_a_leg_says_close_notify_behind_what_is_pending(rig, recorder):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol, 16384)
    peer.greedy = False
    leg.write(FLOOD)
    assert leg.pending
    leg.loseConnection()
    leg.write(b"late")
    peer.greedy = True
    rig.until(lambda: peer.ended)
    assert peer.plain == FLOOD
    assert peer.notified
    peer.finish()
    rig.until(lambda: protocol.lost)


def test_there_is_no_half_close(rig, half_closer):
    protocol = half_closer()
    leg, peer = rig.tls_leg(protocol)
    leg.loseWriteConnection()
    rig.until(lambda: peer.notified and peer.ended)
    assert leg.disconnecting
    peer.finish()
    rig.until(lambda: protocol.lost)


def test_a_close_while_paused_and_with_data_in_the_leg_is_in_order(rig, recorder):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)
    protocol.on_data = lambda data: leg.pauseProducing()
    peer.send(HELD)
    rig.until(lambda: protocol.data)
    leg.write(b"answer")
    leg.loseConnection()
    rig.until(lambda: peer.ended)
    assert peer.plain == b"answer"
    assert peer.notified
    peer.finish()
    rig.until(lambda: protocol.lost)
    assert protocol.data == HELD[:FIRST]


def test_a_write_to_a_reset_connection_is_an_end(rig, recorder):
    protocol = recorder()
    leg, peer = rig.tls_leg(protocol)
    leg.pauseProducing()
    peer.reset()
    for _ in range(3):
        leg.write(b"x")
    assert not protocol.lost
    rig.until(lambda: protocol.lost)


def test_streaming_producers_are_paused_by_a_slow_tls_peer(rig, recorder):
    calls = []

    class Producer:
        pauseProducing = staticmethod(lambda: calls.append("pause"))
        resumeProducing = staticmethod(lambda: calls.append("resume"))
        stopProducing = staticmethod(lambda: calls.append("stop"))

    leg, peer = rig.tls_leg(recorder(), 16384)
    leg.registerProducer(Producer(), True)
    peer.greedy = False
    leg.write(FLOOD)
    assert calls == ["pause"]
    peer.greedy = True
    rig.until(lambda: len(peer.plain) == len(FLOOD))
    assert calls == ["pause", "resume"]


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("how", ["abort", "notify", "records", "lose", "failed"])
def test_an_ended_leg_frees_openssl_without_the_collector(rig, recorder, how):
    protocol = recorder()
    told = protocol.lost
    if how == "failed":
        leg, far, told = begun(rig)
        far.send(b"garbage that is no hello")
        far.close()
    else:
        leg, peer = rig.tls_leg(protocol)
        if how == "abort":
            leg.abortConnection()
        elif how == "lose":
            leg.loseConnection()
            rig.advance(LINGER + 0.1)
        else:
            if how == "records":
                peer.tls.write(FLOOD[:RECORD])
                peer.outgoing.write(b"\x17\x03\x03\x00\x20" + bytes(32))
                peer.flush()
            peer.notify()
    rig.until(lambda: told)
    rig.settle()
    assert leg.fd not in rig.relay.members
    dead = weakref.ref(leg.tls)
    told.clear()
    rig.sockets.remove(leg.socket)
    del leg, protocol
    assert dead() is None


def test_reasons_are_short():
    assert reason_of(ConnectionResetError(104, "Connection reset by peer")) == "connection reset by peer"
    assert reason_of(ValueError()) == "ValueError"
