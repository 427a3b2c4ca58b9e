from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from wsrouter.config.values import Rate
from wsrouter.layer7.inlet import Inlet
from wsrouter.layer7.policies import Policies
from wsrouter.policy.limits import TokenBucket
from wsrouter.relay.meter import Meter
from wsrouter.wire.policed import OwnPings

CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame; the mask is zero."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


def inlet(clock: Clock, pings: OwnPings | None = None, messages: Rate | None = None, strict: bool = False) -> Inlet:
    meter = None if messages is None else Meter(TokenBucket(messages), None, strict)
    return Inlet(Policies(pings=pings, meter=meter), masked=True, deflate=False, seconds=clock.seconds)


@given(
    parts=st.lists(st.sampled_from(["message", "ping", "own"]), max_size=20),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    rate=st.none() | st.integers(1, 10),
)
def test_all_but_our_pongs_is_taken_in_order_and_none_of_it_before_its_time(parts, cuts, rate) -> None:
    clock, pings = Clock(), OwnPings(b"8 bytes!")
    one = inlet(clock, pings, rate and Rate(float(rate), rate))
    sent, expected = b"", b""
    for part in parts:
        if part == "own":
            sent += frame(10, pings.make()[2:])
        else:
            sent += frame(2 if part == "message" else 9, part.encode())
            expected += sent[-6 - len(part) :]
    taken, at, turn = b"", 0, 0
    while at < len(sent) or one.wait is not None:
        if one.wait is not None:
            clock.advance(one.wait)
            taken += one.take_rest()
        else:
            size = cuts[turn % len(cuts)]
            taken += one.take(sent[at : at + size])
            at += size
            turn += 1
        assert not one.walker.event
        if rate is not None:
            assert one.walker.begun <= rate * (clock.seconds() + 1) + 1
    assert taken == expected
    assert one.answered == ("own" in parts)
    assert one.activity(len(sent), data=False) == len(expected)
    assert one.activity(len(sent), data=True) == parts.count("message") * len(frame(2, b"message"))


def test_a_strict_rate_lets_nothing_wait() -> None:
    one = inlet(Clock(), messages=Rate(1.0, 1), strict=True)
    assert one.take(frame(2, b"a") + frame(2, b"b")) == frame(2, b"a")
    assert one.wait is None
    violation = one.walker.violation
    assert violation is not None
    assert violation.code == 1008
    assert one.take(frame(2, b"c")) == b""


def test_what_waits_is_dropped_by_who_does_not_hold_back_any_more_but_its_close_is_seen() -> None:
    pings = OwnPings(b"8 bytes!")
    one = inlet(Clock(), pings, Rate(1.0, 1))
    late = frame(10, pings.make()[2:])
    assert one.take(frame(2, b"a") + frame(2, b"b") + late + CLOSE) == frame(2, b"a")
    assert one.walker.close is None
    one.relax()
    assert one.wait is None
    assert one.walker.close == (1000, "")
    assert not one.answered
