"""The walker with policies. The streams are made of known frames, so a list of those says what must come out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrouter.wire.frames import FrameWalker
from wsrouter.wire.policed import OwnPings, PolicyWalker

MASK = b"\x11\x22\xf3\x44"
TOKEN = b"8 bytes!"


def frame(first: int, payload: bytes = b"", *, masked: bool) -> bytes:
    bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))


def feed(walker: PolicyWalker, new: bytes, *, allowance: int | None = None) -> tuple[bytes, int, bytes]:
    """Go on behind whatever is cut: what passed, how many pongs were cut, and what waits for an allowance."""
    passed, cuts = b"", 0
    data = walker.held + new
    walker.ration(allowance)
    if walker.starved:
        walker.starved = walker.event = False
    while True:
        end = walker.walk(data, len(data))
        passed += data[:end]
        if walker.starved:
            assert not walker.skip
            assert not walker.held
            return passed, cuts, data[end:]
        if not walker.cut:
            return passed, cuts, b""
        assert walker.event
        cuts += 1
        data = data[end + walker.cut :]
        walker.cut, walker.event = 0, False


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(marks) if a < b]


# Sizes.


@pytest.mark.parametrize("limit", [0, 1, 5, 124, 125, 126, 127, 1000, 65535, 65536, 100_000])
@pytest.mark.parametrize("masked", [True, False])
def test_a_frame_over_the_limit_is_refused_with_its_header_and_one_at_the_limit_passes(limit, masked) -> None:
    walker = PolicyWalker(masked, max_message=limit)
    good = frame(0x82, bytes(limit), masked=masked)
    for _ in range(3):
        assert feed(walker, good)[0] == good
    header = frame(0x82, bytes(limit + 1), masked=masked)[: -limit - 1]
    assert feed(walker, header[:-1])[0] == b""
    assert not walker.event
    assert feed(walker, header[-1:])[0] == b""
    assert walker.violation is not None
    assert (walker.violation.code, walker.violation.reason) == (1009, f"got a message of more than {limit} bytes")
    assert (walker.messages, walker.skip) == (3, 0)
    assert feed(walker, good)[0] == b""


@pytest.mark.parametrize("masked", [True, False])
def test_fragments_are_summed_and_the_one_that_goes_beyond_does_not_pass(masked) -> None:
    walker = PolicyWalker(masked, max_message=1000)
    for _ in range(2):
        parts = [(0x01, 400), (0x89, 100), (0x00, 600), (0x00, 0), (0x80, 0)]
        whole = b"".join(frame(first, bytes(size), masked=masked) for first, size in parts)
        assert feed(walker, whole)[0] == whole
    begun = frame(0x02, bytes(1000), masked=masked)
    assert feed(walker, begun + frame(0x00, b"x", masked=masked))[0] == begun
    assert walker.violation is not None
    assert walker.violation.code == 1009
    assert (walker.messages, walker.fragmented, walker.largest) == (2, True, 1000)


@pytest.mark.parametrize("masked", [True, False])
def test_a_message_of_too_many_fragments_is_refused_though_they_are_empty(masked) -> None:
    walker = PolicyWalker(masked, max_message=10, max_fragments=1000)
    first, more, last = (frame(byte, masked=masked) for byte in (0x01, 0x00, 0x80))
    whole = first + more * 998 + last
    assert feed(walker, whole)[0] == whole
    assert walker.messages == 1
    flood = first + more * 1_000_000
    passed, _, _ = feed(walker, flood)
    assert passed == first + more * 999
    assert walker.violation is not None
    assert (walker.violation.code, walker.violation.reason) == (1008, "got a message of more than 1000 fragments")


def test_without_limits_it_walks_like_a_plain_one() -> None:
    stream = (
        b"".join(frame(0x82, bytes(size), masked=True) for size in (0, 5, 5, 200, 70_000))
        + frame(0x01, b"x", masked=True)
        + frame(0x80, b"y", masked=True)
        + frame(0x8A, b"pong", masked=True)
    )
    walker, plain = PolicyWalker(True), FrameWalker(True)
    for start in range(0, len(stream), 1000):
        part = stream[start : start + 1000]
        assert feed(walker, part)[0] == part
        plain.walk(plain.held + part, len(plain.held + part))
    for name in ("messages", "control", "control_bytes", "frames", "largest"):
        assert getattr(walker, name) == getattr(plain, name)


# The router's own pings.


def pong(payload: bytes, *, masked: bool = True) -> bytes:
    return frame(0x8A, payload, masked=masked)


def own(number: int) -> bytes:
    return TOKEN + number.to_bytes(4, "big")


def test_a_ping_of_our_own_is_a_whole_frame_with_token_and_number() -> None:
    pings = OwnPings(TOKEN)
    assert pings.make() == frame(0x89, own(1), masked=False)
    assert pings.make(MASK) == frame(0x89, own(2), masked=True)
    assert (pings.sent, pings.answered) == (2, 0)


@pytest.mark.parametrize("masked", [True, False])
def test_the_pong_to_our_ping_is_taken_out_once_and_every_other_passes(masked) -> None:
    pings = OwnPings(TOKEN)
    walker = PolicyWalker(masked, pings=pings)
    for _ in range(3):
        pings.make()
    theirs = [
        *(b"", TOKEN, own(0), own(4), own(1) + b"x", own(2)[:-1], b"9 bytes!" + own(2)[8:]),
        bytes(12),
        b"x" * 125,
    ]
    for payload in theirs:
        assert feed(walker, pong(payload, masked=masked)) == (pong(payload, masked=masked), 0, b"")
    for first in (0x89, 0x82):
        same = frame(first, own(2), masked=masked)
        assert feed(walker, same) == (same, 0, b"")
    assert feed(walker, pong(own(2), masked=masked)) == (b"", 1, b"")
    assert pings.answered == 2
    # The first was answered along with it; neither is ours a second time.
    for number in (1, 2):
        again = pong(own(number), masked=masked)
        assert feed(walker, again) == (again, 0, b"")
    assert feed(walker, pong(own(3), masked=masked)) == (b"", 1, b"")
    assert walker.control == len(theirs) + 3
    assert walker.cut_bytes == 2 * len(pong(own(1), masked=masked))


def test_nothing_is_taken_out_once_the_walker_is_relaxed() -> None:
    pings = OwnPings(TOKEN)
    walker = PolicyWalker(True, pings=pings)
    pings.make()
    walker.relax()
    data = pong(own(1)) + frame(0x81, b"x", masked=True)
    assert feed(walker, data) == (data, 0, b"")


@st.composite
def chosen_frames(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Well-formed frames in order: messages, fragmented ones, control frames between, pongs of ours among them."""
    found: list[tuple[int, bytes]] = []
    fragmented = False
    number = 0
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["data", "data", "control", "own"]))
        if kind == "data":
            final = draw(st.booleans())
            opcode = 0 if fragmented else draw(st.sampled_from([1, 2]))
            fragmented = not final
            found.append((0x80 * final | opcode, bytes(draw(st.sampled_from([0, 1, 12, 125, 126, 300])))))
        elif kind == "control":
            found.append((draw(st.sampled_from([0x89, 0x8A])), draw(st.binary(max_size=13))))
        else:
            number += draw(st.integers(1, 2))
            found.append((0x8A, own(number)))
    return found


def is_ours(payload: bytes) -> bool:
    return payload.startswith(TOKEN)


@given(chosen=chosen_frames(), masked=st.booleans(), cuts=st.lists(st.integers(0, 5000), max_size=12))
@settings(max_examples=300, deadline=None)
def test_our_pongs_are_taken_out_of_any_stream_however_it_is_cut(chosen, masked, cuts) -> None:
    pings = OwnPings(TOKEN)
    pings.sent = 100
    walker = PolicyWalker(masked, pings=pings, max_message=10_000)
    stream = b"".join(frame(*one, masked=masked) for one in chosen)
    theirs = b"".join(frame(*one, masked=masked) for one in chosen if not is_ours(one[1]))
    passed, cut = b"", 0
    for part in split(stream, cuts):
        more, found, _ = feed(walker, part)
        passed += more
        cut += found
    assert passed + walker.held == theirs
    assert cut == sum(is_ours(payload) for _, payload in chosen)
    assert walker.cut_bytes == len(stream) - len(theirs)
    assert walker.frames == len([one for one in chosen if not is_ours(one[1])])


# Allowances.


@given(
    chosen=chosen_frames(),
    cuts=st.lists(st.integers(0, 5000), max_size=12),
    allowances=st.lists(st.integers(0, 4) | st.none(), min_size=1, max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_no_more_begins_than_is_allowed_and_nothing_is_lost(chosen, cuts, allowances) -> None:
    pings = OwnPings(TOKEN)
    pings.sent = 100
    walker = PolicyWalker(True, pings=pings)
    stream = b"".join(frame(*one, masked=True) for one in chosen)
    theirs = [one for one in chosen if not is_ours(one[1])]
    passed, rest, taken = b"", b"", 0
    parts = split(stream, cuts)
    turns = itertools.chain(allowances, itertools.repeat(1, 40))
    for allowance in turns:
        part = parts.pop(0) if parts and not rest else b""
        before = walker.begun
        more, _, rest = feed(walker, rest + part, allowance=allowance)
        passed += more
        taken += walker.begun - before
        assert walker.begun - before <= (1000 if allowance is None else allowance)
        begun = sum(first & 0x0F in (1, 2, 9, 10) for first, _ in frames_of(passed))
        assert begun == taken
    assert not parts
    assert passed == b"".join(frame(*one, masked=True) for one in theirs)
    assert walker.largest == walked(passed).largest


def frames_of(data: bytes) -> list[tuple[int, int]]:
    """First bytes and lengths of the frames that begin in ``data``, which begins with one."""
    found, pos = [], 0
    while pos + 6 <= len(data):
        length = data[pos + 1] & 127
        head = 6
        if length == 126:
            length, head = int.from_bytes(data[pos + 2 : pos + 4], "big"), 8
        found.append((data[pos], length))
        pos += head + length
    return found


def walked(data: bytes) -> FrameWalker:
    walker = FrameWalker(True)
    walker.walk(data, len(data))
    return walker


def test_fragments_and_a_close_need_no_allowance_but_a_ping_does() -> None:
    walker = PolicyWalker(True)
    parts = [frame(0x01, b"a", masked=True), frame(0x00, b"b", masked=True), frame(0x80, b"c", masked=True)]
    assert feed(walker, b"".join(parts), allowance=1) == (b"".join(parts), 0, b"")
    ping = frame(0x89, b"", masked=True)
    assert feed(walker, ping, allowance=0) == (b"", 0, ping)
    assert feed(walker, ping, allowance=1) == (ping, 0, b"")
    close = frame(0x88, b"\x03\xe8", masked=True)
    assert feed(walker, close, allowance=0) == (close, 0, b"")
    assert walker.close == (1000, "")


def test_a_rule_of_the_callers_ends_it_like_one_of_its_own() -> None:
    walker = PolicyWalker(True)
    data = frame(0x82, b"x" * 100, masked=True)
    walker.walk(data, 50)
    walker.refuse("got more than 5 messages a second", 1008)
    assert walker.event
    assert walker.violation is not None
    assert (walker.violation.code, walker.violation.reason) == (1008, "got more than 5 messages a second")
    # The frame stays cut off: nothing may be put in behind it.
    assert walker.skip == len(data) - 50
