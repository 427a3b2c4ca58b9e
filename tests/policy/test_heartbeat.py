"""When peers are pinged and given up, on a clock that is a number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrouter.policy.heartbeat import LOOKS, STALL, Heartbeat, Verdict

WAIT, PING, LATE, STALLED = Verdict.WAIT, Verdict.PING, Verdict.LATE, Verdict.STALLED


def look(beat: Heartbeat, now: float, heard: int, *, held: bool = False, stuck: bool = False) -> Verdict:
    return beat.look(now, heard, held, stuck)


def pinged(beat: Heartbeat, now: float) -> None:
    beat.pinged(now, 0, 0, put_in=True)


def test_who_is_silent_for_the_interval_is_pinged_and_who_does_not_answer_in_time_is_late() -> None:
    beat = Heartbeat(8.0, 5.0, 100.0, 7)
    assert look(beat, 107.9, 7) is WAIT
    assert look(beat, 108.0, 7) is PING
    pinged(beat, 108.0)
    assert look(beat, 112.9, 7) is WAIT
    assert look(beat, 113.0, 7) is LATE
    assert not beat.excuse(0, 0, put_in=True)


def test_any_byte_is_an_answer() -> None:
    beat = Heartbeat(8.0, 5.0, 100.0, 0)
    assert look(beat, 108.0, 0) is PING
    pinged(beat, 108.0)
    assert look(beat, 112.0, 1) is WAIT
    assert look(beat, 113.0, 1) is WAIT
    assert beat.rtt is None


def test_a_pong_is_an_answer_and_tells_the_round_trip() -> None:
    beat = Heartbeat(8.0, 5.0, 100.0, 0)
    pinged(beat, 108.0)
    beat.answered(108.25, 0.25)
    assert beat.rtt == 0.25
    # Its bytes are seen later, and do not put off the next ping.
    assert look(beat, 109.0, 18) is WAIT
    assert look(beat, 116.2, 18) is WAIT
    assert beat.wait(116.2) == pytest.approx(0.05)
    assert look(beat, 116.25, 18) is PING


def test_who_speaks_is_not_pinged() -> None:
    beat = Heartbeat(8.0, 5.0, 100.0, 0)
    now = 100.0
    for count in range(1, 50):
        now += beat.wait(now)
        assert look(beat, now, count) is WAIT


def test_the_time_of_a_byte_is_taken_for_the_look_before_it() -> None:
    beat = Heartbeat(8.0, 5.0, 100.0, 0)
    assert look(beat, 101.0, 0) is WAIT
    assert look(beat, 102.0, 1) is WAIT
    assert look(beat, 108.9, 1) is WAIT
    assert look(beat, 109.0, 1) is PING


@given(
    st.lists(st.floats(0.01, 30), max_size=10),
    st.floats(1, 60),
    st.floats(1, 60),
)
@settings(deadline=None)
def test_a_peer_that_falls_silent_is_found_within_interval_and_timeout_and_never_too_early(
    gaps: list[float], interval: float, timeout: float
) -> None:
    spoken = [0.0]
    for gap in gaps:
        spoken.append(spoken[-1] + gap)
    beat = Heartbeat(interval, timeout, 0.0, 0)
    now, sent, limit = 0.0, None, spoken[-1] + 2 * (interval + timeout)
    while now < limit:
        step = beat.wait(now)
        assert 0 < step <= interval / LOOKS + 1e-9
        now += step
        heard = sum(when <= now for when in spoken[1:])
        verdict = look(beat, now, heard)
        if verdict is PING:
            pinged(beat, now)
            sent = now
        if verdict is LATE:
            break
    else:
        pytest.fail("it was not found")
    last = max(when for when in spoken if when <= now)
    assert sent is not None
    assert now >= sent + timeout - 1e-9
    assert last <= sent
    assert now <= last + interval + timeout + 1e-6


# Who cannot be heard.


def test_while_reading_is_held_nobody_is_pinged_and_no_answer_is_late() -> None:
    beat = Heartbeat(8.0, 5.0, 100.0, 0)
    assert look(beat, 110.0, 0, held=True) is WAIT
    assert look(beat, 110.5, 0) is PING
    pinged(beat, 110.5)
    for second in range(111, 140):
        assert look(beat, float(second), 0, held=True) is WAIT
    assert look(beat, 143.9, 0) is WAIT
    assert look(beat, 144.0, 0) is LATE


def test_who_is_held_by_a_sink_that_takes_nothing_is_told_of_after_ten_timeouts() -> None:
    beat = Heartbeat(8.0, 5.0, 100.0, 0)
    assert look(beat, 101.0, 0, held=True, stuck=True) is WAIT
    assert look(beat, 101.0 + STALL * 5.0 - 0.1, 0, held=True, stuck=True) is WAIT
    assert look(beat, 101.0 + STALL * 5.0, 0, held=True, stuck=True) is STALLED


@pytest.mark.parametrize("change", [{"heard": 1}, {"stuck": False}])
def test_a_sink_that_takes_something_now_and_then_is_not_stuck(change) -> None:
    beat = Heartbeat(8.0, 5.0, 100.0, 0)
    assert look(beat, 101.0, 0, held=True, stuck=True) is WAIT
    still = {"heard": 0, "stuck": True} | change
    assert beat.look(140.0, held=True, **still) is WAIT
    assert beat.look(152.0, heard=still["heard"], held=True, stuck=True) is WAIT


# Who cannot be reached.


def late(beat: Heartbeat, now: float) -> float:
    """The next time at which it is late."""
    while look(beat, now, 0) is not LATE:
        now += 0.5
    return now


def started(given: int, outstanding: int, *, put_in: bool = True) -> tuple[Heartbeat, float]:
    beat = Heartbeat(8.0, 5.0, 100.0, 0)
    assert look(beat, 108.0, 0) is PING
    beat.pinged(108.0, given, outstanding, put_in=put_in)
    return beat, 113.0


def test_who_has_got_the_ping_and_is_silent_is_dead_though_it_takes_what_else_comes() -> None:
    """A frozen process: its kernel goes on taking bytes."""
    beat, now = started(1000, 0)
    assert look(beat, now, 0) is LATE
    assert not beat.excuse(5000, 0, put_in=True)


def test_who_takes_nothing_is_dead() -> None:
    """Its packets are lost: what is given to it stays outstanding."""
    beat, now = started(1000, 0)
    assert look(beat, now, 0) is LATE
    assert not beat.excuse(5000, 4010, put_in=True)


def test_a_slow_reader_has_all_its_time_once_it_has_got_the_ping() -> None:
    beat, now = started(1_000_000, 900_000)
    for outstanding in (800_000, 500_000, 100):
        assert look(beat, now, 0) is LATE
        assert beat.excuse(1_000_000, outstanding, put_in=True)
        assert look(beat, now + 4.9, 0) is WAIT
        now += 5.0
    assert look(beat, now, 0) is LATE
    assert beat.excuse(1_000_000, 0, put_in=True)
    assert late(beat, now) == now + 5.0
    assert not beat.excuse(1_000_000, 0, put_in=True)


def test_a_slow_reader_that_stops_reading_is_dead() -> None:
    beat, now = started(1_000_000, 900_000)
    assert look(beat, now, 0) is LATE
    assert beat.excuse(1_000_000, 800_000, put_in=True)
    assert late(beat, now) == now + 5.0
    assert not beat.excuse(1_000_000, 800_000, put_in=True)


def test_a_ping_that_waits_for_a_frames_end_is_no_fault_of_who_has_taken_all_or_is_taking() -> None:
    beat, now = started(1000, 500, put_in=False)
    for total, outstanding in ((5000, 4000), (5000, 0), (5000, 0)):
        now = late(beat, now)
        assert beat.excuse(total, outstanding, put_in=False)
    now = late(beat, now)
    # The frame has ended, and the ping is out.
    assert beat.excuse(9000, 0, put_in=True)
    now = late(beat, now)
    assert not beat.excuse(9000, 0, put_in=True)


def test_who_takes_nothing_of_a_frame_that_the_ping_waits_for_is_dead() -> None:
    beat, now = started(1000, 500, put_in=False)
    now = late(beat, now)
    assert not beat.excuse(1000, 500, put_in=False)
