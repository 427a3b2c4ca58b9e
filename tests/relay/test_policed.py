"""Pumps with policies, on real sockets and a clock that moves when the test says so."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from wsrouter.config.values import Rate
from wsrouter.policy.limits import TokenBucket
from wsrouter.relay.leg import BUFFER_SIZE, Leg
from wsrouter.relay.meter import Meter
from wsrouter.relay.policed import PolicyPump
from wsrouter.relay.pump import FramePump, Pump
from wsrouter.wire.policed import OwnPings, PolicyWalker

TOKEN = b"8 bytes!"
PING = b"\x89\x00"
CLOSE = b"\x88\x80\0\0\0\0"


class Couple:
    """Two coupled legs; it notes what it is told."""

    def __init__(self) -> None:
        self.lost: list[tuple[Leg, Exception | None]] = []
        self.ended: list[Pump] = []
        self.events: list[FramePump] = []
        self.answers = 0

    def source_ended(self, pump: Pump) -> None:
        self.ended.append(pump)

    def frames_event(self, pump: FramePump) -> None:
        self.events.append(pump)
        pump.walker.event = False

    def ping_answered(self, pump: FramePump) -> None:
        self.answers += 1

    def leg_lost(self, leg: Leg, error: Exception | None) -> None:
        self.lost.append((leg, error))


class Ends(NamedTuple):
    couple: Couple
    #: The peers of the legs: ``out`` goes from left to right, masked, under policies; ``back`` has pings only.
    left: Any
    right: Any
    out: PolicyPump
    back: PolicyPump


def coupled(
    rig: Any,
    *,
    messages: Rate | None = None,
    bytes_: Rate | None = None,
    strict: bool = False,
    pings: OwnPings | None = None,
    buffer: int | None = None,
    tls: bool = False,
) -> Ends:
    make = rig.tls_leg if tls else rig.leg
    (left, left_peer), (right, right_peer) = make(None, buffer), make(None, buffer)
    couple = Couple()
    meter = None
    if messages or bytes_:
        meter = Meter(messages and TokenBucket(messages), bytes_ and TokenBucket(bytes_), strict)
    walker = PolicyWalker(True, pings=pings)
    out = PolicyPump(couple, left, right, walker, meter)
    back = PolicyPump(couple, right, left, PolicyWalker(False))
    left.couple(couple, out, back)
    right.couple(couple, back, out)
    left.resumeProducing()
    right.resumeProducing()
    return Ends(couple, left_peer, right_peer, out, back)


def message(payload: bytes, *, masked: bool = True) -> bytes:
    """A binary message in one frame; the mask is zero."""
    mask, key = (0x80, bytes(4)) if masked else (0, b"")
    if len(payload) < 126:
        return bytes((0x82, mask | len(payload))) + key + payload
    return bytes((0x82, mask | 126)) + len(payload).to_bytes(2, "big") + key + payload


def own_pong(number: int) -> bytes:
    return b"\x8a\x8c\0\0\0\0" + TOKEN + number.to_bytes(4, "big")


def plain(peer: Any) -> bytes:
    return bytes(getattr(peer, "plain", peer.received))


# Messages.


@pytest.mark.parametrize("tls", [False, True])
def test_a_burst_passes_and_then_as_many_messages_as_the_rate_lets(rig, tls):
    ends = coupled(rig, messages=Rate(10.0, 5), tls=tls)
    whole = [message(b"%03d" % number) for number in range(40)]
    ends.left.send(b"".join(whole))
    rig.until(lambda: plain(ends.right) == b"".join(whole[:5]))
    assert ends.out.throttled
    for seconds in range(1, 5):
        for _ in range(10):
            rig.advance(0.1)
        rig.settle()
        count = len(plain(ends.right)) // len(whole[0])
        # A deadline comes up to one slice of 50 ms late.
        assert 5 + 9 * seconds - seconds <= count <= 5 + 10 * seconds
    assert plain(ends.right) == b"".join(whole)[: len(plain(ends.right))]


def test_nothing_is_woken_while_a_rate_holds_and_at_most_one_read_waits(rig):
    ends = coupled(rig, messages=Rate(1.0, 1))
    ends.left.send(message(b"x" * 100) * 20_000)
    rig.until(lambda: ends.out.throttled)
    rig.turn()
    assert not rig.spin()
    read = ends.out.bytes
    assert read <= BUFFER_SIZE
    rig.turn(20)
    assert ends.out.bytes == read
    assert len(ends.right.received) == len(message(b"x" * 100))


def test_who_is_within_the_rate_is_never_held(rig):
    ends = coupled(rig, messages=Rate(10.0, 5), bytes_=Rate(1024.0, 1024))
    for number in range(50):
        ends.left.send(message(b"%03d" % number))
        rig.until(lambda number=number: len(ends.right.received) == 9 * (number + 1))
        assert not ends.out.throttled
        rig.advance(0.1)


def test_the_other_direction_flows_while_a_rate_holds(rig):
    ends = coupled(rig, messages=Rate(1.0, 1))
    ends.left.send(message(b"x") * 10)
    rig.until(lambda: ends.out.throttled)
    rig.turn()
    ends.right.send(message(b"heard", masked=False))
    rig.until(lambda: ends.left.received == message(b"heard", masked=False))


def test_pings_count_as_messages_and_fragments_as_one(rig):
    ends = coupled(rig, messages=Rate(1.0, 3))
    fragments = b"\x02\x81\0\0\0\0a" + b"\x00\x81\0\0\0\0b" * 50 + b"\x80\x81\0\0\0\0c"
    ends.left.send(fragments + b"\x89\x80\0\0\0\0" * 2 + message(b"late"))
    rig.until(lambda: ends.out.throttled)
    rig.turn()
    assert ends.right.received == fragments + b"\x89\x80\0\0\0\0" * 2


def test_a_close_frame_behind_what_waits_comes_in_its_turn(rig):
    ends = coupled(rig, messages=Rate(1.0, 1))
    ends.left.send(message(b"1") + message(b"2") + CLOSE)
    rig.until(lambda: ends.out.throttled)
    rig.turn()
    assert not ends.couple.events
    rig.advance(1.1)
    rig.until(lambda: ends.couple.events)
    rig.turn()
    assert ends.right.received == message(b"1") + message(b"2") + CLOSE


def test_the_end_of_a_source_is_seen_behind_what_waits(rig):
    ends = coupled(rig, messages=Rate(1.0, 1))
    ends.left.send(message(b"1") + message(b"2"))
    ends.left.finish()
    rig.until(lambda: ends.out.throttled)
    rig.turn()
    rig.settle()
    assert not ends.couple.ended
    rig.advance(1.1)
    rig.until(lambda: ends.couple.ended)
    assert ends.right.received == message(b"1") + message(b"2")


def test_a_strict_rate_is_a_violation_behind_what_it_allows(rig):
    ends = coupled(rig, messages=Rate(1.0, 3), strict=True)
    ends.left.send(message(b"x") * 4)
    rig.until(lambda: ends.couple.events)
    rig.turn()
    assert ends.right.received == message(b"x") * 3
    violation = ends.out.walker.violation
    assert (violation.code, violation.reason) == (1008, "got more than the rate of the route")
    assert ends.out.at_boundary


# Bytes.


@pytest.mark.parametrize("tls", [False, True])
def test_bytes_pass_at_their_rate_within_one_frame_too(rig, tls):
    ends = coupled(rig, bytes_=Rate(4096.0, 8192), tls=tls)
    whole = message(b"x" * 60_000)
    ends.left.send(whole)
    rig.until(lambda: len(plain(ends.right)) == 8192)
    rig.settle()
    assert ends.out.throttled
    for quarters in range(1, 45):
        rig.advance(0.25)
        rig.settle()
        count = len(plain(ends.right))
        assert count <= 8192 + 1024 * quarters
        assert count >= 8192 + 800 * quarters - 1024
    assert plain(ends.right) == whole[:count]


def test_small_frames_that_are_cut_by_a_rate_of_bytes_come_out_whole_and_in_order(rig):
    ends = coupled(rig, bytes_=Rate(1024.0, 1024))
    whole = b"".join(message(b"%04d" % number) + b"\x8a\x84\0\0\0\0pong" for number in range(300))
    ends.left.send(whole)
    for _ in range(40):
        rig.advance(0.1)
        rig.settle()
        assert whole.startswith(bytes(ends.right.received))
    rig.until(lambda: len(ends.right.received) > 4000)
    for _ in range(40):
        rig.advance(0.1)
        rig.settle()
    assert ends.right.received == whole
    assert (ends.out.walker.messages, ends.out.walker.control) == (300, 300)


def test_a_strict_rate_of_bytes_cuts_a_frame_off(rig):
    ends = coupled(rig, bytes_=Rate(1024.0, 1024), strict=True)
    ends.left.send(message(b"x" * 5000))
    rig.until(lambda: ends.couple.events)
    rig.turn()
    assert len(ends.right.received) == 1024
    assert ends.out.walker.violation.code == 1008
    assert not ends.out.at_boundary


# Rates and back-pressure at once.


def test_a_slow_sink_and_a_rate_together_lose_nothing(rig):
    ends = coupled(rig, messages=Rate(1000.0, 1000), buffer=16384)
    ends.right.greedy = False
    whole = [message(b"%05d" % number + b"x" * 995) for number in range(3000)]
    ends.left.send(b"".join(whole))
    for _ in range(60):
        rig.advance(0.05)
        rig.turn(3)
        pending = ends.out.sink.pending
        assert len(pending or b"") <= BUFFER_SIZE
    assert ends.out.paused
    assert not rig.spin()
    ends.right.greedy = True
    for _ in range(80):
        rig.advance(0.05)
        rig.settle()
    assert ends.right.received == b"".join(whole)
    assert not ends.out.paused


@pytest.mark.parametrize("how", ["divert", "stop"])
def test_what_waits_for_tokens_is_looked_at_without_them_once_the_session_ends(rig, how):
    ends = coupled(rig, messages=Rate(0.001, 1), bytes_=Rate(1.0, 1024))
    big = message(b"x" * 3000)
    ends.left.send(big + message(b"dropped") + CLOSE)
    rig.until(lambda: ends.out.throttled)
    rig.turn()
    assert len(ends.right.received) == 1024
    (ends.out.divert if how == "divert" else ends.out.stop_at_boundary)()
    rig.advance(0.1)
    rig.until(lambda: ends.couple.events)
    if how == "stop":
        assert ends.right.received == big
        ends.out.divert()
        ends.left.send(CLOSE)
    rig.until(lambda: ends.out.walker.close is not None)
    assert len(ends.right.received) == (len(big) if how == "stop" else 1024)


def test_a_pump_that_is_dissolved_leaves_no_deadline(rig):
    ends = coupled(rig, messages=Rate(0.001, 1))
    ends.left.send(message(b"x") * 2)
    rig.until(lambda: ends.out.throttled)
    rig.turn()
    ends.out.source.abortConnection()
    ends.out.dissolve()
    rig.advance(2000)
    assert not rig.reactor.getDelayedCalls()


# Frames that are put in, and pongs that are taken out.


def test_a_ping_goes_out_at_once_at_a_boundary_and_between_fragments(rig):
    ends = coupled(rig)
    ends.back.put_in(PING)
    first = b"\x02\x05hello"
    ends.right.send(first)
    rig.until(lambda: ends.left.received == PING + first)
    ends.back.put_in(PING)
    assert not ends.back.is_inserting
    rig.until(lambda: ends.left.received == PING + first + PING)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("cut", [1, 3, 4, 500, 1003])
def test_a_ping_waits_for_the_end_of_the_frame_that_is_passing(rig, cut, tls):
    ends = coupled(rig, tls=tls)
    whole = message(b"x" * 1000, masked=False)
    ends.right.send(whole[:cut])
    rig.settle()
    waits = cut > 3
    ends.back.put_in(PING)
    assert ends.back.is_inserting is waits
    if not waits:
        # An unfinished header is not passed on, so there is a boundary before it.
        rig.until(lambda: plain(ends.left) == PING)
    ends.right.send(whole[cut:] + whole[:700])
    expected = whole + PING + whole if waits else PING + whole + whole
    rig.until(lambda: len(plain(ends.left)) == len(expected) - 304)
    ends.right.send(whole[700:])
    rig.until(lambda: plain(ends.left) == expected)
    assert not ends.back.is_inserting
    assert ends.back.walker.messages == 2


def test_a_ping_is_put_in_before_a_close_that_follows_the_frame(rig):
    ends = coupled(rig)
    whole = message(b"x" * 1000, masked=False)
    close = b"\x88\x02\x03\xe8"
    ends.right.send(whole[:500])
    rig.settle()
    ends.back.put_in(PING)
    ends.right.send(whole[500:] + close)
    rig.until(lambda: ends.couple.events)
    rig.until(lambda: ends.left.received == whole + PING + close)


def test_a_ping_that_waits_within_a_throttled_frame_comes_at_its_end(rig):
    ends = coupled(rig, bytes_=Rate(1024.0, 1024))
    ping = b"\x89\x80\0\0\0\0"
    whole = message(b"x" * 3000)
    ends.left.send(whole + message(b"next"))
    rig.until(lambda: ends.out.throttled)
    rig.turn()
    ends.out.put_in(ping)
    for _ in range(40):
        rig.advance(0.1)
        rig.settle()
    assert ends.right.received == whole + ping + message(b"next")


@pytest.mark.parametrize("tls", [False, True])
def test_our_pongs_are_taken_out_wherever_they_stand(rig, tls):
    pings = OwnPings(TOKEN)
    ends = coupled(rig, pings=pings, tls=tls)
    pings.sent = 10
    theirs = b"\x8a\x84\0\0\0\0pong"
    for number, (before, behind) in enumerate(
        [(b"", b""), (message(b"a"), message(b"b")), (theirs, theirs), (b"", CLOSE)]
    ):
        ends.left.send(before + own_pong(number + 1) + behind)
        rig.until(lambda number=number: ends.couple.answers == number + 1)
    rig.until(lambda: ends.couple.events)
    rig.turn()
    assert plain(ends.right) == message(b"a") + message(b"b") + theirs + theirs + CLOSE


def test_a_pong_that_comes_byte_by_byte_is_taken_out_and_is_no_activity(rig):
    pings = OwnPings(TOKEN)
    ends = coupled(rig, pings=pings)
    pings.make()
    for byte in own_pong(1):
        ends.left.send(bytes((byte,)))
        rig.turn(2)
        assert ends.out.activity(data=False) == ends.out.activity(data=True) == 0
    rig.until(lambda: ends.couple.answers)
    assert ends.right.received == b""
    assert (ends.out.bytes, ends.out.passed) == (18, 0)
    assert ends.out.activity(data=False) == 0


def test_control_frames_are_activity_unless_data_alone_counts(rig):
    ends = coupled(rig)
    ends.left.send(b"\x89\x80\0\0\0\0")
    rig.until(lambda: ends.right.received)
    assert (ends.out.activity(data=False), ends.out.activity(data=True)) == (6, 0)
    ends.left.send(b"\x02\x80\0\0\0\0")
    rig.until(lambda: ends.out.activity(data=True))
    assert (ends.out.activity(data=False), ends.out.activity(data=True)) == (12, 6)


def test_our_pong_is_taken_out_of_what_a_slow_sink_has_to_wait_for(rig):
    pings = OwnPings(TOKEN)
    ends = coupled(rig, pings=pings, buffer=16384)
    pings.make()
    ends.right.greedy = False
    flood = message(b"x" * 30_000) * 20
    ends.left.send(flood[: len(flood) // 2] + own_pong(1) + flood[len(flood) // 2 :])
    rig.until(lambda: ends.out.paused)
    ends.right.greedy = True
    rig.until(lambda: len(ends.right.received) == len(flood))
    assert ends.right.received == flood
    assert ends.couple.answers == 1
