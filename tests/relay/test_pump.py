from __future__ import annotations

import ssl
from typing import Any, NamedTuple

import pytest

from wsrouter.relay.leg import BUFFER_SIZE, FEW, VIEWS, Leg
from wsrouter.relay.pump import FramePump, Pump
from wsrouter.wire.frames import FrameWalker

FLOOD = b"0123456789abcdef" * (1 << 16)


class Couple:
    """Two coupled legs that pass half-closes and ends on, as a tunnel does; it notes what it is told."""

    def __init__(self) -> None:
        self.lost: list[tuple[Leg, Exception | None]] = []
        self.ended: list[Pump] = []
        self.events: list[FramePump] = []
        self.on_event: Any = lambda pump: None

    def source_ended(self, pump: Pump) -> None:
        self.ended.append(pump)
        if pump.sink is not None:
            pump.sink.finish_writing()

    def frames_event(self, pump: FramePump) -> None:
        self.events.append(pump)
        self.on_event(pump)

    def leg_lost(self, leg: Leg, error: Exception | None) -> None:
        self.lost.append((leg, error))


class Ends(NamedTuple):
    couple: Couple
    left: Any
    right: Any
    out: Any
    back: Any


def join(rig: Any, left: Leg, right: Leg, *, frames: bool = False) -> tuple[Couple, Any, Any]:
    couple = Couple()
    out: Pump
    back: Pump
    if frames:
        out = FramePump(couple, left, right, FrameWalker(True))
        back = FramePump(couple, right, left, FrameWalker(False))
    else:
        out, back = Pump(couple, left, right), Pump(couple, right, left)
    left.couple(couple, out, back)
    right.couple(couple, back, out)
    left.resumeProducing()
    right.resumeProducing()
    return couple, out, back


def coupled(rig: Any, *, frames: bool = False, buffer: int | None = None) -> Ends:
    """Two plain legs; ``left`` and ``right`` are their peers, ``out`` goes from left to right."""
    left, left_peer = rig.leg(None, buffer)
    right, right_peer = rig.leg(None, buffer)
    return Ends(*((one := join(rig, left, right, frames=frames))[:1]), left_peer, right_peer, *one[1:])


def message(payload: bytes, *, masked: bool = False) -> bytes:
    """A binary message in one frame; the mask is zero."""
    mask, key = (0x80, bytes(4)) if masked else (0, b"")
    if len(payload) < 126:
        return bytes((0x82, mask | len(payload))) + key + payload
    return bytes((0x82, mask | 126)) + len(payload).to_bytes(2, "big") + key + payload


# Bytes.


def test_bytes_pass_both_ways_and_are_counted(rig):
    ends = coupled(rig)
    ends.left.send(b"question")
    ends.right.send(b"answer!")
    rig.until(lambda: ends.right.received == b"question" and ends.left.received == b"answer!")
    assert (ends.out.bytes, ends.back.bytes) == (8, 7)


def test_what_was_read_before_the_coupling_comes_first(rig):
    left, left_peer = rig.leg()
    right, right_peer = rig.leg()
    left_peer.send(b"second")
    couple = Couple()
    out, back = Pump(couple, left, right), Pump(couple, right, left)
    left.couple(couple, out, back)
    right.couple(couple, back, out)
    out.inject(b"first ")
    left.resumeProducing()
    rig.until(lambda: right_peer.received == b"first second")
    assert out.bytes == 12


@pytest.mark.parametrize("frames", [False, True])
def test_a_slow_reader_costs_one_read(rig, frames):
    ends = coupled(rig, frames=frames, buffer=16384)
    ends.right.greedy = False
    flood = message(FLOOD[:60000], masked=True) * 40 if frames else FLOOD
    ends.left.send(flood)
    for _ in range(50):
        rig.turn()
        pending = ends.out.sink.pending
        assert pending is None or len(pending) <= BUFFER_SIZE
    assert ends.out.paused
    assert not rig.spin()
    read = ends.out.bytes
    rig.turn(5)
    assert ends.out.bytes == read
    ends.right.greedy = True
    rig.until(lambda: len(ends.right.received) == len(flood))
    assert ends.right.received == flood
    assert not ends.out.paused


def test_a_gigabyte_for_one_who_never_reads_stays_with_its_sender(rig):
    ends = coupled(rig)
    ends.right.greedy = False
    for _ in range(200):
        ends.left.send(FLOOD[: 1 << 20] if not ends.left._unsent else b"")
        rig.turn()
    assert ends.out.paused
    assert len(ends.out.sink.pending) <= BUFFER_SIZE
    assert ends.left._unsent


def test_the_other_direction_flows_while_one_is_congested(rig):
    ends = coupled(rig, buffer=16384)
    ends.right.greedy = False
    ends.left.send(FLOOD)
    rig.settle()
    ends.right.send(b"still heard")
    rig.until(lambda: ends.left.received == b"still heard")


def test_bytes_behind_what_is_pending_wait_their_turn(rig):
    left, _ = rig.leg()
    right, right_peer = rig.leg(None, 16384)
    right_peer.greedy = False
    couple = Couple()
    out, back = Pump(couple, left, right), Pump(couple, right, left)
    left.couple(couple, out, back)
    right.couple(couple, back, out)
    right.write(FLOOD)
    out.inject(b"last")
    assert out.paused
    right_peer.greedy = True
    rig.until(lambda: right_peer.received == FLOOD + b"last")
    assert not out.paused


def test_a_half_close_is_passed_on_behind_the_bytes_and_the_other_way_lives(rig):
    ends = coupled(rig, buffer=16384)
    ends.right.greedy = False
    ends.left.send(FLOOD)
    rig.until(lambda: not ends.left._unsent or ends.out.paused)
    ends.right.greedy = True
    rig.until(lambda: len(ends.right.received) == len(FLOOD))
    ends.left.finish()
    rig.until(lambda: ends.right.ended)
    assert ends.right.received == FLOOD
    assert not rig.spin()
    ends.right.send(b"late answer")
    rig.until(lambda: ends.left.received == b"late answer")
    assert not ends.couple.lost
    ends.right.finish()
    rig.until(lambda: ends.left.ended)
    rig.until(lambda: ends.couple.lost)


def test_both_fins_and_a_slow_reader_wake_nobody(rig):
    ends = coupled(rig, buffer=16384)
    ends.left.greedy = False
    ends.left.finish()
    ends.right.send(FLOOD)
    ends.right.step()
    rig.settle()
    while ends.right._unsent:
        ends.left.greedy = True
        rig.turn()
    ends.right.finish()
    ends.left.greedy = False
    rig.turn(5)
    assert not rig.spin()
    ends.left.greedy = True
    rig.until(lambda: ends.left.ended)
    assert ends.left.received == FLOOD


def test_a_reset_of_the_source_is_reported_once(rig):
    ends = coupled(rig)
    source = ends.out.source
    ends.left.reset()
    rig.until(lambda: ends.couple.lost)
    rig.settle()
    assert [leg for leg, _ in ends.couple.lost] == [source]
    assert isinstance(ends.couple.lost[0][1], ConnectionResetError)


@pytest.mark.parametrize("frames", [False, True])
def test_a_sink_that_is_gone_is_reported_as_lost_itself(rig, frames):
    ends = coupled(rig, frames=frames)
    sink = ends.out.sink
    sink.pauseProducing()
    ends.right.reset()
    for _ in range(3):
        ends.left.send(message(b"x", masked=True))
        rig.turn(2)
    rig.until(lambda: ends.couple.lost)
    assert ends.couple.lost[0][0] is sink
    assert isinstance(ends.couple.lost[0][1], OSError)


def test_an_event_behind_a_pause_reads_nothing(rig):
    for frames in (False, True):
        ends = coupled(rig, frames=frames)
        ends.left.send(b"\x82\x80\0\0\0\0")
        ends.out.pause()
        ends.out.run()
        assert not ends.out.bytes
        ends.out.resume()
        rig.until(lambda ends=ends: ends.right.received)


def test_pauses_and_resumes_are_idempotent(rig):
    ends = coupled(rig)
    ends.out.pause()
    ends.out.pause()
    ends.out.resume()
    ends.out.resume()
    ends.left.send(b"x")
    rig.until(lambda: ends.right.received == b"x")


def test_an_exception_in_a_coupling_ends_that_leg(rig, logged_failures):
    ends = coupled(rig)

    def fail(pump: Pump) -> None:
        raise ZeroDivisionError

    ends.couple.source_ended = fail
    source = ends.out.source
    ends.left.finish()
    rig.until(lambda: ends.couple.lost)
    assert ends.couple.lost[0][0] is source
    rig.settle()
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


# Frames.


def test_frames_pass_untouched_and_messages_are_counted(rig):
    ends = coupled(rig, frames=True)
    data = b"".join(message(b"x" * size, masked=True) for size in (0, 1, 125, 126, 5000)) + b"\x89\x80abcd"
    ends.left.send(data)
    rig.until(lambda: ends.right.received == data)
    assert ends.out.walker.messages == 5
    assert ends.out.at_boundary


def test_frames_pass_when_they_come_byte_by_byte(rig):
    ends = coupled(rig, frames=True)
    data = message(b"hello", masked=True) + message(b"x" * 200, masked=True) + b"\x8a\x82\0\0\0\0hi"
    for index in range(len(data)):
        ends.left.send(data[index : index + 1])
        rig.turn()
    rig.until(lambda: ends.right.received == data)
    assert ends.out.walker.messages == 2
    assert ends.out.bytes == len(data)


def test_a_close_frame_passes_and_is_reported_and_nothing_behind_it_passes(rig):
    ends = coupled(rig, frames=True)
    close = b"\x88\x82\0\0\0\0\x03\xe8"
    ends.left.send(message(b"last", masked=True) + close + message(b"behind", masked=True))
    rig.until(lambda: ends.couple.events)
    rig.settle()
    assert ends.right.received == message(b"last", masked=True) + close
    assert ends.out.walker.close == (1000, "")


def test_a_violation_is_reported_and_does_not_pass(rig):
    ends = coupled(rig, frames=True)
    ends.left.send(message(b"good", masked=True) + message(b"unmasked"))
    rig.until(lambda: ends.couple.events)
    rig.until(lambda: ends.right.received == message(b"good", masked=True))
    assert ends.out.walker.violation.code == 1002


def test_a_frame_that_was_held_by_the_coupling_is_walked_too(rig):
    left, _ = rig.leg()
    right, right_peer = rig.leg()
    couple = Couple()
    out = FramePump(couple, left, right, FrameWalker(True))
    back = FramePump(couple, right, left, FrameWalker(False))
    left.couple(couple, out, back)
    right.couple(couple, back, out)
    data = message(b"abc", masked=True)
    for index in range(len(data)):
        out.inject(data[index : index + 1])
    rig.until(lambda: right_peer.received == data)
    out.inject(b"\x88\x80\0\0\0\0")
    assert couple.events == [out]


def test_a_diverted_pump_reads_on_and_sees_the_close(rig):
    ends = coupled(rig, frames=True, buffer=16384)
    ends.right.greedy = False
    ends.left.send(message(FLOOD[:60000], masked=True) * 20)
    rig.until(lambda: ends.out.paused)
    ends.out.divert()
    assert not ends.out.paused
    ends.left.send(b"\x88\x80\0\0\0\0")
    rig.until(lambda: ends.couple.events)
    assert ends.out.walker.close == (1005, "")
    ends.right.greedy = True
    rig.settle()
    assert b"\x88\x80" not in ends.right.received


def half_a_frame(rig: Any) -> tuple[Ends, bytes, bytes]:
    ends = coupled(rig, frames=True)
    frame = message(b"A" * 1000, masked=True)
    ends.left.send(frame[:500])
    rig.until(lambda: len(ends.right.received) == 500)
    assert not ends.out.at_boundary
    ends.out.stop_at_boundary()
    return ends, frame[500:], frame


def test_a_boundary_is_reported_when_the_frame_has_passed(rig):
    ends, rest, frame = half_a_frame(rig)
    ends.left.send(rest[:100])
    rig.until(lambda: len(ends.right.received) == 600)
    assert not ends.couple.events
    ends.left.send(rest[100:])
    rig.until(lambda: ends.couple.events and ends.right.received == frame)
    assert ends.out.at_boundary


@pytest.mark.parametrize("behind", [1, 5, 14, 500])
def test_nothing_of_the_next_frame_passes_behind_the_boundary(rig, behind):
    ends, rest, frame = half_a_frame(rig)
    following = message(b"B" * 1000, masked=True)
    ends.couple.on_event = lambda pump: pump.divert()
    ends.left.send(rest + following[:behind])
    rig.until(lambda: ends.couple.events)
    ends.left.send(following[behind:] + b"\x88\x80\0\0\0\0")
    rig.until(lambda: ends.out.walker.close)
    rig.settle()
    assert ends.right.received == frame


def test_a_close_right_behind_the_boundary_is_seen(rig):
    ends, rest, frame = half_a_frame(rig)
    ends.left.send(rest + b"\x88\x80\0\0\0\0")
    rig.until(lambda: ends.couple.events)
    assert ends.out.walker.close == (1005, "")
    rig.until(lambda: ends.right.received == frame)


# TLS on one side or both.


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_a_flood_passes_through_tls_legs_whole_and_bounded(rig, sides, frames):
    left, left_peer = (rig.leg if sides == "right" else rig.tls_leg)(None, 16384)
    right, right_peer = (rig.leg if sides == "left" else rig.tls_leg)(None, 16384)
    couple, out, _ = join(rig, left, right, frames=frames)
    right_peer.greedy = False
    flood = message(FLOOD[:60000], masked=True) * 10 if frames else FLOOD[:600000]
    left_peer.send(flood)
    for _ in range(30):
        rig.turn()
        assert len(right.pending or b"") <= BUFFER_SIZE + 4096
    assert out.paused
    assert not rig.spin()
    right_peer.greedy = True
    rig.until(lambda: len(_plain(right_peer)) == len(flood))
    assert _plain(right_peer) == flood
    assert not couple.lost


def _plain(peer: Any) -> bytes:
    return bytes(getattr(peer, "plain", peer.received))


def test_a_close_notify_is_the_end_of_a_source(rig):
    left, left_peer = rig.tls_leg()
    right, right_peer = rig.leg()
    couple, out, _ = join(rig, left, right)
    left_peer.send(b"last")
    left_peer.notify()
    rig.until(lambda: couple.ended)
    assert couple.ended == [out]
    rig.until(lambda: right_peer.ended)
    assert right_peer.received == b"last"


def test_what_lies_behind_a_close_notify_is_nothing(rig):
    # OpenSSL leaves it where it is; read on and on, it would keep everybody else waiting.
    left, left_peer = rig.tls_leg()
    right, right_peer = rig.leg()
    couple, out, _ = join(rig, left, right)
    left_peer.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        left_peer.tls.unwrap()
    left_peer.greedy = False
    left_peer.send_raw(left_peer.outgoing.read() + b"x" * 10)

    def ended(pump: Pump) -> None:
        # As a session whose Close was not answered yet, it leaves the leg as it is.
        couple.ended.append(pump)
        assert len(couple.ended) == 1

    couple.source_ended = ended  # type: ignore[method-assign]
    rig.until(lambda: couple.ended)
    rig.settle()
    assert couple.ended == [out]
    assert right_peer.received == b"last"


def test_a_fin_towards_a_tls_leg_becomes_a_close_notify(rig):
    left, left_peer = rig.leg()
    right, right_peer = rig.tls_leg()
    join(rig, left, right)
    left_peer.send(b"last")
    rig.until(lambda: right_peer.plain == b"last")
    left_peer.finish()
    rig.until(lambda: right_peer.notified)
    assert right_peer.fault is None


def test_garbage_from_a_tls_peer_ends_that_leg_with_an_alert(rig):
    left, left_peer = rig.tls_leg()
    right, _ = rig.leg()
    couple, _, _ = join(rig, left, right)
    left_peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))
    rig.until(lambda: couple.lost)
    assert couple.lost[0][0] is left
    assert isinstance(couple.lost[0][1], ssl.SSLError)


def test_a_tls_leg_that_is_closed_over_a_violation_drops_what_it_holds_and_lingers(rig):
    left, left_peer = rig.tls_leg()
    right, _ = rig.leg()
    couple, _, _ = join(rig, left, right, frames=True)

    def refuse(pump: FramePump) -> None:
        left.write(b"\x88\x02\x03\xea")
        left.loseConnection()

    couple.on_event = refuse
    for _ in range(5):
        left_peer.tls.write(message(b"unmasked"))
    left_peer.flush()
    rig.until(lambda: left_peer.ended)
    assert left_peer.plain == b"\x88\x02\x03\xea"
    assert len(couple.events) == 1
    assert not couple.ended
    left_peer.send_raw(b"more that is dropped")
    left_peer.finish()
    rig.until(lambda: couple.lost)
    assert couple.lost == [(left, None)]


def test_there_is_a_view_of_every_frame_that_comes_alone() -> None:
    for masked in (True, False):
        assert max(FrameWalker(masked).small) < FEW
    assert all(len(view) == size for size, view in enumerate(VIEWS))
