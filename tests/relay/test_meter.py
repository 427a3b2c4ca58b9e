"""Walks that keep to rates; what pumps and sides make of them is tested with those."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from wsrouter.config.values import Rate
from wsrouter.policy.limits import TokenBucket
from wsrouter.relay.meter import Meter, MeteredWalk
from wsrouter.wire.policed import PolicyWalker


def message(payload: bytes) -> bytes:
    """A binary message in one frame; the mask is zero."""
    return bytes((0x82, 0x80 | len(payload))) + bytes(4) + payload


def metered(clock: Clock, messages: Rate | None, bytes_: Rate | None, *, strict: bool = False):
    walker = PolicyWalker(True)
    meter = Meter(messages and TokenBucket(messages), bytes_ and TokenBucket(bytes_), strict)
    return walker, MeteredWalk(walker, meter, clock.seconds)


@pytest.mark.parametrize(
    ("messages", "bytes_", "passed"),
    [
        (Rate(1.0, 3), None, 3 * 8),
        (None, Rate(1.0, 13), 8),
        (Rate(1.0, 3), Rate(1.0, 8), 8),
        (Rate(1.0, 9), Rate(1.0, 100), 5 * 8),
    ],
)
def test_as_much_passes_as_there_are_tokens_of_both_kinds(messages, bytes_, passed) -> None:
    walker, walk = metered(Clock(), messages, bytes_)
    data = message(b"ab") * 5
    taken = walk.walk(data, len(data))
    assert taken - taken % 8 == passed
    assert (walker.starved, walker.event) == ((True, True) if passed < len(data) else (False, False))


def test_a_strict_rate_refuses_and_another_tells_how_long_to_wait() -> None:
    clock = Clock()
    for strict in (True, False):
        walker, walk = metered(clock, Rate(2.0, 1), None, strict=strict)
        data = message(b"") * 2
        assert walk.walk(data, len(data)) == 6
        assert walk.wait(6) == (None if strict else 0.5)
        assert (walker.violation is not None) is strict
    assert walker.violation is None


@given(
    sizes=st.lists(st.integers(0, 125), max_size=30),
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    messages=st.none() | st.integers(1, 5),
    count=st.integers(50, 5000),
)
def test_whatever_the_rates_everything_passes_in_the_end_and_none_of_it_too_soon(sizes, cuts, messages, count) -> None:
    clock = Clock()
    # No smaller burst of bytes can be configured.
    walker, walk = metered(clock, messages and Rate(float(messages), messages), Rate(float(count), 1024))
    data = b"".join(message(bytes(size)) for size in sizes)
    passed, rest, at = b"", b"", 0
    while len(passed) < len(data):
        if not rest:
            size = cuts[at % len(cuts)]
            begin = len(passed) + len(walker.held)
            rest = data[begin : begin + size]
            at += 1
        taken = walker.held + rest
        end = walk.walk(taken, len(taken))
        passed += taken[:end]
        rest = taken[end + len(walker.held) :]
        assert len(passed) <= 1024 + count * clock.seconds() + 1
        if messages:
            assert walker.begun <= messages * (clock.seconds() + 1) + 1
        if walker.starved:
            walker.starved = walker.event = False
            seconds = walk.wait(len(rest))
            assert seconds is not None
            clock.advance(max(seconds, 0.001))
        assert not walker.event
    assert passed == data
    assert walker.messages == len(sizes)
