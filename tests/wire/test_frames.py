"""The frame walker, checked with a slow reference written from the RFC and with websockets' own protocol."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side

from wsrouter.wire.close import valid_code
from wsrouter.wire.frames import FrameWalker

MASK = b"\x11\x22\xf3\x44"
CODES = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def frame(first: int, payload: bytes = b"", *, masked: bool, form: int = 0, mask: bytes = MASK) -> bytes:
    """One frame; ``form`` is the least width of the length in bytes, to make it longer than it must be."""
    bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126 and form == 0:
        head = bytes((first, bit | size))
    elif size < 65536 and form <= 2:
        head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


# The reference: looks at everything from the start, every time, and asks the RFC one question after another.


@dataclass
class Verdict:
    passed: int = 0
    skip: int = 0
    fragmented: bool = False
    data_frames: int = 0
    messages: int = 0
    control: int = 0
    control_bytes: int = 0
    largest: int = 0
    gathered: int = 0
    closes: int = 0
    close: tuple[int, str] | None = None
    violation: int | None = None
    boundaries: set[int] = field(default_factory=lambda: {0})


def header_size(head: bytes) -> int:
    return 2 + {126: 2, 127: 8}.get(head[1] & 127, 0) + (4 if head[1] & 128 else 0)


def header_is_good(head: bytes, masked: bool, deflate: bool, fragmented: bool) -> bool:
    final, rsv1, rsv23, opcode = head[0] >> 7, head[0] >> 6 & 1, head[0] >> 4 & 3, Opcode(head[0] & 15)
    short = head[1] & 127
    data = opcode in (Opcode.TEXT, Opcode.BINARY)
    checks = [
        rsv23 == 0,
        rsv1 == 0 or (deflate and data),
        head[1] >> 7 == masked,
        opcode is not Opcode.CONT or fragmented,
        not (data and fragmented),
    ]
    if short == 126:
        checks.append(int.from_bytes(head[2:4], "big") >= 126)
    if short == 127:
        checks.append(65536 <= int.from_bytes(head[2:10], "big") < 2**63)
    if opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG):
        checks += [final == 1, short <= 125, not (opcode is Opcode.CLOSE and short == 1)]
    return all(checks)


def header_may_become_good(head: bytes, *state: bool) -> bool:
    """Whether any rest makes a good header of this; a length of the greatest digits is good if any is."""
    seconds = [b""] if len(head) > 1 else [bytes((byte,)) for byte in (0, 126, 127, 128, 254, 255)]
    for second in seconds:
        whole = head + second
        whole += (b"\x7f" if len(whole) == 2 else b"") + b"\xff" * 14
        try:
            if header_is_good(whole, *state):
                return True
        except ValueError:
            pass
    return False


def judge(data: bytes, masked: bool, deflate: bool) -> Verdict:
    verdict = Verdict()
    pos = 0
    while pos < len(data):
        verdict.passed = pos
        head = data[pos:]
        if not header_may_become_good(head[:14], masked, deflate, verdict.fragmented):
            verdict.violation = 1002
            return verdict
        if len(head) < 2 or len(head) < header_size(head):
            return verdict
        start = pos + header_size(head)
        length = head[1] & 127
        if length > 125:
            length = int.from_bytes(head[2 : 4 if length == 126 else 10], "big")
        end = start + length
        opcode = head[0] & 15
        if opcode >= 8:
            if end > len(data):
                return verdict
            if opcode == 8:
                payload = data[start:end]
                if masked:
                    payload = bytes(byte ^ data[start - 4 + i % 4] for i, byte in enumerate(payload))
                try:
                    close = Close.parse(payload)
                except ProtocolError:
                    verdict.violation = 1002
                except UnicodeDecodeError:
                    # The code is judged before the reason.
                    verdict.violation = 1007 if int.from_bytes(payload[:2], "big") in CODES else 1002
                else:
                    verdict.close = (int(close.code), close.reason)
                    verdict.closes = 1
                    verdict.control_bytes += end - pos
                    verdict.passed = end
                return verdict
            verdict.control += 1
            verdict.control_bytes += end - pos
        else:
            verdict.data_frames += 1
            verdict.fragmented = not data[pos] & 0x80
            verdict.messages += not verdict.fragmented
            verdict.gathered = length + (0 if opcode else verdict.gathered)
            if not verdict.fragmented:
                verdict.largest = max(verdict.largest, verdict.gathered)
        pos = end
        verdict.boundaries.add(pos)
        verdict.passed = min(pos, len(data))
    verdict.skip = pos - len(data)
    return verdict


# Driving the walker as a relay does.

Buffer = bytes | bytearray | memoryview
SHAPES: list[Callable[[bytes], Buffer]] = [
    bytes,
    lambda data: bytearray(data + b"\x81\x05\xff\x88"),
    lambda data: memoryview(bytearray(data + b"\x82\x85\x00")),
]


def feed(walker: FrameWalker, new: bytes, shape: Callable[[bytes], Buffer] = bytes) -> bytes:
    data = walker.held + new
    ended = walker.event
    passed = walker.walk(shape(data), len(data))
    assert len(walker.held) <= 130
    if walker.event:
        assert not walker.held
        assert walker.skip == 0
        assert (walker.close is None) is not (walker.violation is None)
        assert passed == 0 or not ended
    else:
        assert data[passed:] == walker.held
    return data[:passed]


def check(walker: FrameWalker, verdict: Verdict) -> None:
    assert walker.messages == verdict.messages
    assert walker.control == verdict.control
    assert walker.largest == verdict.largest
    if walker.violation is None:
        assert walker.control_bytes == verdict.control_bytes
    assert walker.frames == verdict.data_frames + verdict.control + verdict.closes
    assert walker.fragmented == verdict.fragmented
    assert walker.skip == verdict.skip
    assert walker.close == verdict.close
    assert (walker.violation and walker.violation.code) == verdict.violation
    assert walker.event is (verdict.close is not None or verdict.violation is not None)


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(marks) if a < b]


# Streams: mostly right, with now and then something wrong in them.


@st.composite
def streams(draw: st.DrawFn, masked: bool, deflate: bool) -> bytes:
    data = bytearray()
    fragmented = False
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["data", "data", "data", "control", "close", "any"]))
        wrong = kind == "any"
        size = draw(st.integers(0, 10) | st.sampled_from([124, 125, 126, 127, 300]))
        payload = draw(st.binary(min_size=2, max_size=2)) * (size // 2) + b"z" * (size % 2)
        form = 0
        if kind == "control":
            first, payload = draw(st.sampled_from([0x89, 0x8A])), payload[:125]
        elif kind == "close":
            code = draw(st.sampled_from([1000, 1001, 1004, 1005, 1015, 3000, 5000]))
            reason = draw(st.binary(max_size=4) | st.just("é".encode()))
            first, payload = 0x88, draw(st.sampled_from([b"", b"\x03", code.to_bytes(2, "big") + reason]))
        elif wrong:
            first, form = draw(st.integers(0, 255)), draw(st.sampled_from([0, 0, 2, 8]))
        else:
            final = draw(st.booleans())
            first = 0x80 * final
            if not fragmented:
                first |= draw(st.sampled_from([1, 2, 0x41, 0x42] if deflate else [1, 2]))
            fragmented = not final
        mask_bit = masked is not (wrong and draw(st.integers(0, 3)) == 0)
        data += frame(first, payload, masked=mask_bit, form=form, mask=draw(st.binary(min_size=4, max_size=4)))
    if data and draw(st.integers(0, 3)) == 0:
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


# The direction is drawn, not parametrized: pytest-twisted wraps a hypothesis test anew for each parameter, and fails.


@given(
    data=st.data(),
    masked=st.booleans(),
    deflate=st.booleans(),
    cuts=st.lists(st.integers(0, 5000), max_size=12),
    shape=st.sampled_from(SHAPES),
)
@settings(max_examples=400, deadline=None)
def test_any_stream_cut_anywhere_is_judged_as_the_reference_judges_it(
    data: st.DataObject, masked: bool, deflate: bool, cuts: list[int], shape: Callable[[bytes], Buffer]
) -> None:
    stream = data.draw(streams(masked, deflate))
    walker = FrameWalker(masked, deflate)
    passed = b""
    seen = 0
    for part in split(stream, cuts):
        passed += feed(walker, part, shape)
        seen += len(part)
        verdict = judge(stream[:seen], masked, deflate)
        check(walker, verdict)
        assert passed == stream[: verdict.passed]


@given(stream=st.binary(max_size=40), masked=st.booleans(), deflate=st.booleans())
@settings(max_examples=600, deadline=None)
def test_random_bytes_are_judged_as_the_reference_judges_them(stream: bytes, masked: bool, deflate: bool) -> None:
    walker = FrameWalker(masked, deflate)
    for end in range(1, len(stream) + 1):
        feed(walker, stream[end - 1 : end])
        check(walker, judge(stream[:end], masked, deflate))


def rich_stream(masked: bool) -> bytes:
    """Every form of a length, control frames between fragments, empty frames, and a Close."""
    return b"".join(
        [
            frame(0x81, b"small", masked=masked),
            frame(0x82, b"", masked=masked),
            frame(0x82, b"m" * 126, masked=masked),
            frame(0x01, b"first", masked=masked),
            frame(0x89, b"ping", masked=masked),
            frame(0x00, b"", masked=masked),
            frame(0x8A, b"p" * 125, masked=masked),
            frame(0x80, b"l" * 200, masked=masked),
            frame(0x89, b"", masked=masked),
            frame(0x02, b"", masked=masked),
            frame(0x80, b"", masked=masked),
            frame(0x88, b"\x03\xe9bye", masked=masked),
        ]
    )


@pytest.mark.parametrize("masked", [True, False])
def test_a_stream_gives_the_same_for_each_single_cut(masked: bool) -> None:
    stream = rich_stream(masked)
    whole = judge(stream, masked, False)
    assert (whole.messages, whole.control, whole.close) == (5, 3, (1001, "bye"))
    for cut in range(len(stream) + 1):
        walker = FrameWalker(masked)
        assert b"".join(feed(walker, part) for part in split(stream, [cut])) == stream
        check(walker, whole)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [True, False])
def test_frame_boundaries_are_seen_exactly_when_they_are_there(masked: bool, shape: Callable[[bytes], Buffer]) -> None:
    stream = rich_stream(masked)
    boundaries = judge(stream, masked, False).boundaries
    assert len(boundaries) == 12
    walker = FrameWalker(masked)
    passed = b""
    for end in range(1, len(stream)):
        passed += feed(walker, stream[end - 1 : end], shape)
        assert (walker.skip == 0 and not walker.held) is (end in boundaries)
        assert passed + walker.held == stream[:end]


@pytest.mark.parametrize("size", [65535, 65536, 200_000])
@pytest.mark.parametrize("masked", [True, False])
def test_a_large_frame_passes_over_many_reads(masked: bool, size: int) -> None:
    stream = frame(0x82, bytes(size), masked=masked) + frame(0x81, b"next", masked=masked)
    walker = FrameWalker(masked)
    passed = b"".join(feed(walker, stream[at : at + 4096]) for at in range(0, len(stream), 4096))
    assert passed == stream
    check(walker, judge(stream, masked, False))
    assert walker.messages == 2


def test_a_frame_of_the_greatest_length_is_followed() -> None:
    walker = FrameWalker(False)
    feed(walker, b"\x82\x7f\x7f" + b"\xff" * 7 + b"abc")
    assert walker.skip == 2**63 - 1 - 3
    assert feed(walker, b"\x88\x00") == b"\x88\x00"
    assert walker.skip == 2**63 - 1 - 5
    assert not walker.event


def test_a_message_counts_once_its_header_is_whole() -> None:
    walker = FrameWalker(True)
    assert feed(walker, b"\x82\x85\x00\x00\x00") == b""
    assert (walker.messages, walker.held) == (0, b"\x82\x85\x00\x00\x00")
    assert feed(walker, b"\x00") == b"\x82\x85\x00\x00\x00\x00"
    assert (walker.messages, walker.skip, walker.held) == (1, 5, b"")


def test_one_frame_passes_over_a_thousand_reads() -> None:
    stream = frame(0x82, bytes(99_986), masked=True)
    walker = FrameWalker(True)
    for start in range(0, 100_000, 100):
        part = stream[start : start + 100]
        assert feed(walker, part) == part
        assert walker.skip == 100_000 - start - 100
    assert (walker.frames, walker.messages, walker.largest) == (1, 1, 99_986)


@pytest.mark.parametrize("masked", [True, False])
def test_the_largest_message_is_known_to_the_byte_for_every_form_of_a_length(masked: bool) -> None:
    walker = FrameWalker(masked)
    largest = 0
    for size in [0, 3, 2, 3, 1, 125, 124, 126, 5, 127, 65535, 300, 65536, 65537, 65536, 0]:
        feed(walker, frame(0x81, bytes(size), masked=masked))
        largest = max(largest, size)
        assert walker.largest == largest
    assert walker.messages == 16
    feed(walker, frame(0x01, bytes(40_000), masked=masked) + frame(0x00, bytes(40_000), masked=masked))
    assert walker.largest == 65537
    feed(walker, frame(0x80, b"", masked=masked))
    assert walker.largest == 80_000


def test_an_empty_read_changes_nothing() -> None:
    walker = FrameWalker(True)
    assert walker.walk(b"", 0) == 0
    feed(walker, b"\x82\x85\x00\x00\x00\x00ab")
    assert walker.walk(b"", 0) == 0
    assert walker.skip == 3


# What breaks the rules. Each entry is refused with its last byte, and not before it.

BROKEN = {
    "unmasked from a client": (True, False, b"", b"\x81\x05", 1002),
    "unmasked long frame from a client": (True, False, b"", b"\x81\x7e", 1002),
    "unmasked ping from a client": (True, False, b"", b"\x89\x00", 1002),
    "masked from a backend": (False, False, b"", b"\x81\x85", 1002),
    "masked long frame from a backend": (False, False, b"", b"\x82\xff", 1002),
    "RSV1 without the extension": (True, False, b"", b"\xc1", 1002),
    "RSV2": (True, True, b"", b"\xa1", 1002),
    "RSV3": (True, True, b"", b"\x91", 1002),
    "RSV1 on a continuation": (True, True, frame(0x41, b"x", masked=True), b"\x40", 1002),
    "RSV1 on the final continuation": (True, True, frame(0x41, b"x", masked=True), b"\xc0", 1002),
    "RSV1 on a ping": (False, True, b"", b"\xc9", 1002),
    "RSV1 on a Close": (False, True, b"", b"\xc8", 1002),
    **{
        f"reserved opcode {n}": (True, True, b"", bytes((0x80 | n,)), 1002) for n in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "a long ping": (True, False, b"", b"\x89\xfe", 1002),
    "a very long pong": (False, False, b"", b"\x8a\x7f", 1002),
    "a long Close": (False, False, b"", b"\x88\x7e", 1002),
    "a fragmented ping": (True, False, b"", b"\x09", 1002),
    "a fragmented Close": (True, False, b"", b"\x08", 1002),
    "an orphan continuation": (True, False, b"", b"\x00", 1002),
    "an orphan final continuation": (True, False, frame(0x81, b"x", masked=True), b"\x80", 1002),
    "a continuation after the message ended": (
        False,
        False,
        frame(0x01, b"x", masked=False) + frame(0x80, b"y", masked=False),
        b"\x80",
        1002,
    ),
    "a message inside a message": (True, False, frame(0x01, b"x", masked=True), b"\x81", 1002),
    "a first fragment inside a message": (True, False, frame(0x02, b"", masked=True), b"\x02", 1002),
    "a 64-bit length with its top bit": (True, False, b"", b"\x82\xff\x80", 1002),
    "16 bits for 125": (False, False, b"", b"\x82\x7e\x00\x7d", 1002),
    "16 bits for 0": (True, False, b"", b"\x82\xfe\x00\x00", 1002),
    "64 bits for 65535": (True, False, b"", b"\x82\xff" + bytes(6), 1002),
    "a Close with half a code": (True, False, b"", b"\x88\x81", 1002),
    "a Close with code 999": (False, False, b"", b"\x88\x02\x03\xe7", 1002),
    "a Close with code 1005": (False, False, b"", b"\x88\x02\x03\xed", 1002),
    "a masked Close with code 1006": (True, False, b"", frame(0x88, b"\x03\xee", masked=True), 1002),
    "a masked Close with code 5000": (True, False, b"", frame(0x88, b"\x13\x88", masked=True), 1002),
    "a Close with bad text": (False, False, b"", b"\x88\x04\x03\xe8\xc3\x28", 1007),
    "a masked Close with bad text": (True, False, b"", frame(0x88, b"\x03\xe8ok\xff", masked=True), 1007),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_seen_with_the_first_byte_that_proves_it(name: str) -> None:
    masked, deflate, before, bad, code = BROKEN[name]
    walker = FrameWalker(masked, deflate)
    good = frame(0x89, b"ping", masked=masked) + before
    assert feed(walker, good) == good
    assert feed(walker, bad[:-1]) == b""
    assert not walker.event
    assert feed(walker, bad[-1:]) == b""
    assert walker.close is None
    assert walker.violation is not None
    assert walker.violation.code == code
    assert feed(walker, frame(0x81, b"more", masked=masked)) == b""


@pytest.mark.parametrize("name", BROKEN)
def test_what_stands_before_a_broken_rule_in_the_same_read_is_passed_on(name: str) -> None:
    masked, deflate, before, bad, code = BROKEN[name]
    walker = FrameWalker(masked, deflate)
    good = frame(0x82, b"x" * 130, masked=masked) + before
    assert feed(walker, good + bad + bytes(20)) == good
    assert walker.violation is not None
    assert walker.violation.code == code
    assert walker.frames == 1 + judge(before, masked, deflate).data_frames


def first_two_bytes_are_good(first: int, second: int, masked: bool, deflate: bool, fragmented: bool) -> bool:
    """RFC 6455 5.2, 5.4, 5.5 and RFC 7692 6, written as lists of what may stand there."""
    final, bits, opcode = first >> 7, first >> 4 & 7, first & 15
    if second >> 7 != masked:
        return False
    if opcode in (8, 9, 10):
        return final == 1 and bits == 0 and second & 127 <= 125 and (opcode, second & 127) != (8, 1)
    if opcode == 0:
        return fragmented and bits == 0
    return opcode in (1, 2) and not fragmented and bits in ((0, 4) if deflate else (0,))


@pytest.mark.parametrize("fragmented", [True, False])
@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_every_pair_of_first_bytes_is_judged_as_the_rfc_says(masked: bool, deflate: bool, fragmented: bool) -> None:
    wrong = []
    before = frame(0x01, b"x", masked=masked) if fragmented else b""
    for first in range(256):
        for second in range(256):
            walker = FrameWalker(masked, deflate)
            walker.walk(before, len(before))
            walker.walk(bytes((first, second)), 2)
            code = None if first_two_bytes_are_good(first, second, masked, deflate, fragmented) else 1002
            if (walker.violation and walker.violation.code) != code:
                wrong.append((first, second))
    assert not wrong


@pytest.mark.parametrize("masked", [True, False])
def test_every_length_in_sixteen_bits_that_fits_seven_is_refused_and_no_other(masked: bool) -> None:
    for length in range(65536):
        walker = FrameWalker(masked)
        head = bytes((0x82, 0x80 * masked | 126)) + length.to_bytes(2, "big") + MASK[: 4 * masked]
        walker.walk(head, len(head))
        assert (walker.violation is None) is (length >= 126)
        assert walker.skip == (length if length >= 126 else 0)


@pytest.mark.parametrize("length", [0, 125, 126, 65535, 65536, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("masked", [True, False])
def test_a_length_in_sixty_four_bits_is_refused_if_it_fits_sixteen_or_has_its_top_bit_set(
    masked: bool, length: int
) -> None:
    walker = FrameWalker(masked)
    feed(walker, bytes((0x82, 0x80 * masked | 127)) + length.to_bytes(8, "big") + MASK[: 4 * masked])
    assert (walker.violation is None) is (65536 <= length < 2**63)


def test_every_close_code_is_judged_as_the_registry_says() -> None:
    for code in range(65536):
        walker = FrameWalker(False)
        feed(walker, b"\x88\x02" + code.to_bytes(2, "big"))
        assert (walker.close == (code, "")) is (code in CODES)


@pytest.mark.parametrize(
    ("before", "first", "reason"),
    [
        (b"", 0x83, "got reserved opcode 3"),
        (b"", 0xFF, "got reserved opcode 15"),
        (b"", 0xA1, "got a reserved bit without an extension that defines it"),
        (b"", 0x91, "got a reserved bit without an extension that defines it"),
        (b"\x01\x00", 0xB0, "got a reserved bit without an extension that defines it"),
        (b"", 0xC9, "got a compressed control frame"),
        (b"", 0x09, "got a fragmented control frame"),
        (b"\x01\x00", 0x82, "got a new message inside a fragmented one"),
        (b"\x41\x00", 0x41, "got a new message inside a fragmented one"),
        (b"\x01\x00", 0xC0, "got a continuation with RSV1 set"),
        (b"", 0x80, "got a continuation with nothing to continue"),
    ],
)
def test_a_refused_first_byte_is_told_with_its_reason(before: bytes, first: int, reason: str) -> None:
    walker = FrameWalker(False, deflate=True)
    feed(walker, before + bytes((first,)))
    assert walker.violation is not None
    assert walker.violation.reason == reason


def test_rsv1_is_a_reserved_bit_where_no_extension_was_negotiated() -> None:
    for first in (0xC1, 0xC9, 0xC0):
        walker = FrameWalker(False)
        feed(walker, bytes((first,)))
        assert walker.violation is not None
        assert "reserved bit" in walker.violation.reason


def test_a_violation_keeps_no_stack_alive() -> None:
    walker = FrameWalker(False)
    feed(walker, b"\x88\x03\x03\xe8\xff")
    assert walker.violation is not None
    assert walker.violation.__traceback__ is None
    assert walker.violation.__context__ is None


def test_deflated_messages_pass_where_the_extension_was_negotiated() -> None:
    stream = b"".join(
        frame(first, b"x", masked=True) for first in (0xC1, 0xC2, 0x81, 0x41, 0x00, 0x89, 0x80, 0x42, 0x80, 0xC1)
    )
    walker = FrameWalker(True, deflate=True)
    assert feed(walker, stream) == stream
    assert (walker.messages, walker.frames, walker.control, walker.event) == (6, 10, 1, False)


# The end.


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("payload", "expected"),
    [(b"", (1005, "")), (b"\x03\xe8", (1000, "")), (b"\x0f\xa0" + "é".encode() * 61, (4000, "é" * 61))],
)
def test_nothing_passes_behind_a_close(masked: bool, payload: bytes, expected: tuple[int, str]) -> None:
    walker = FrameWalker(masked)
    close = frame(0x88, payload, masked=masked)
    assert feed(walker, close + frame(0x81, b"late", masked=masked)) == close
    assert (walker.close, walker.violation, walker.event, walker.frames) == (expected, None, True, 1)
    assert feed(walker, frame(0x81, b"later", masked=masked)) == b""
    assert feed(walker, b"\xff" * 10) == b""
    assert walker.violation is None


def test_a_close_inside_a_fragmented_message_is_a_close() -> None:
    walker = FrameWalker(False)
    feed(walker, b"\x01\x01a\x88\x00")
    assert (walker.close, walker.fragmented, walker.messages) == ((1005, ""), True, 0)


def test_an_event_set_by_the_caller_changes_no_verdict() -> None:
    walker = FrameWalker(False)
    walker.event = True
    stream = b"\x89\x00\x01\x01a\x8a\x00\x80\x00\x88\x00"
    assert walker.walk(stream, len(stream)) == len(stream)
    check(walker, judge(stream, False, False))
    other = FrameWalker(False)
    other.event = True
    assert other.walk(b"\x89\x00\x83", 3) == 2
    assert other.violation is not None
    walker.event = False
    assert walker.walk(b"\x81\x00", 2) == 0
    assert walker.violation is None


def test_a_walker_is_small() -> None:
    assert not hasattr(FrameWalker(True), "__dict__")


# websockets' own protocol as a second judge, for whole frames in their shortest form.

frames = st.tuples(
    st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A]) | st.integers(0, 255),
    st.binary(max_size=5) | st.sampled_from([b"\x03\xe8bye", b"\x03\xed", bytes(125), bytes(126), bytes(70_000)]),
    st.integers(0, 15).map(lambda n: n == 0),
)


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(data=st.data(), masked=st.booleans(), cuts=st.lists(st.integers(0, 5000), max_size=12))
@settings(max_examples=200, deadline=None)
def test_websockets_sees_the_same_frames_in_a_stream_that_is_cut_anywhere(
    data: st.DataObject, masked: bool, cuts: list[int]
) -> None:
    stream = data.draw(streams(masked, False))
    protocol = Protocol(Side.SERVER if masked else Side.CLIENT, max_size=None)
    walker = FrameWalker(masked)
    received: list[Frame] = []
    for part in split(stream, cuts):
        feed(walker, part)
        if walker.violation is not None:
            return
        protocol.receive_data(part)
        received += [event for event in protocol.events_received() if isinstance(event, Frame)]
        whole = [one for one in received if one.opcode in (Opcode.PING, Opcode.PONG)]
        assert walker.control == len(whole)
        if walker.event:
            break
    messages = sum(one.fin and one.opcode < 8 for one in received)
    # A message counts with its last header, and its payload may still be on its way.
    assert walker.messages - messages == (walker.skip > 0 and not walker.fragmented)
    data_or_control = [one for one in received if one.opcode is not Opcode.CLOSE]
    assert walker.frames - len(data_or_control) == (walker.skip > 0) + (walker.close is not None)


@given(whole=st.lists(frames, max_size=10), masked=st.booleans())
@example(whole=[(0x88, b"\x00\x00\xff", False)], masked=True)
@example(
    whole=[(0x01, b"a", False), (0x89, b"", False), (0x80, b"b", False), (0x88, b"\x03\xe8bye", False)], masked=True
)
@settings(max_examples=300, deadline=None)
def test_websockets_comes_to_the_same_verdict(whole: list[tuple[int, bytes, bool]], masked: bool) -> None:
    protocol = Protocol(Side.SERVER if masked else Side.CLIENT, max_size=None)
    walker = FrameWalker(masked)
    for first, payload, mismasked in whole:
        wire = frame(first, payload, masked=masked is not mismasked)
        protocol.receive_data(wire)
        feed(walker, wire)
        received = protocol.events_received()
        if walker.event:
            break
        assert [event.opcode for event in received if isinstance(event, Frame)] == [first & 15]
    if walker.close is not None:
        assert protocol.close_rcvd == Close(*walker.close)
    if walker.violation is not None:
        assert protocol.parser_exc is not None
        assert protocol.close_sent is not None
        # A Close may be wrong in its code and in its text; either may be named first.
        twice_wrong = first == 0x88 and not valid_code(int.from_bytes(payload[:2], "big")) and not is_text(payload[2:])
        codes = {1002, 1007} if twice_wrong else {walker.violation.code}
        assert protocol.close_sent.code in codes
        assert walker.violation.code in codes
    if not walker.event:
        assert protocol.parser_exc is None
