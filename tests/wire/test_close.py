"""Close codes and control frames, checked with websockets' own frame parser."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.frames import Close, Frame, Opcode

from wsrouter.errors import FrameError
from wsrouter.wire import close

MASKS = st.none() | st.binary(min_size=4, max_size=4)
VALID = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999]
INVALID = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


def read_frame(data: bytes, masked: bool) -> Frame:
    """Parse exactly one frame with websockets."""
    taken = 0

    def read_exact(count: int) -> Generator[None, None, bytes]:
        nonlocal taken
        piece = data[taken : taken + count]
        assert len(piece) == count
        taken += count
        yield from ()
        return piece

    parser = Frame.parse(read_exact, mask=masked)
    with pytest.raises(StopIteration) as stop:
        next(parser)
    assert taken == len(data)
    frame = stop.value.value
    assert isinstance(frame, Frame)
    return frame


@given(st.sampled_from(VALID), st.text(max_size=30), MASKS)
def test_a_close_frame_is_read_by_websockets_as_it_was_meant(code: int, reason: str, mask: bytes | None) -> None:
    frame = read_frame(close.close_frame(code, reason, mask), mask is not None)
    assert frame.opcode is Opcode.CLOSE
    assert frame.fin
    assert Close.parse(frame.data) == Close(code, reason)
    assert close.parse_close(bytes(frame.data)) == (code, reason)


@given(st.binary(max_size=125), MASKS)
def test_a_ping_frame_is_read_by_websockets_as_it_was_meant(payload: bytes, mask: bytes | None) -> None:
    frame = read_frame(close.ping_frame(payload, mask), mask is not None)
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (Opcode.PING, True, payload)


@given(st.binary(max_size=125), st.binary(min_size=4, max_size=4))
def test_masking_twice_gives_the_payload_again(payload: bytes, mask: bytes) -> None:
    assert close.apply_mask(close.apply_mask(payload, mask), mask) == payload


@pytest.mark.parametrize("mask", [None, b"\x01\x02\x03\x04"])
def test_a_close_without_a_code_has_an_empty_payload(mask: bytes | None) -> None:
    frame = read_frame(close.close_frame(close.NO_STATUS, mask=mask), mask is not None)
    assert (frame.opcode, bytes(frame.data)) == (Opcode.CLOSE, b"")
    assert close.parse_close(b"") == (1005, "")


@pytest.mark.parametrize("reason", ["x" * 200, "é" * 100, "x" + "é" * 61 + "y", "\N{SNOWMAN}" * 41 + "xé"])
def test_a_long_reason_is_cut_at_a_character(reason: str) -> None:
    _, text = close.parse_close(close.close_frame(1011, reason)[2:])
    assert reason.startswith(text)
    assert 120 <= len(text.encode()) <= 123


@pytest.mark.parametrize("code", VALID)
def test_a_valid_code_is_taken(code: int) -> None:
    assert close.parse_close(code.to_bytes(2, "big") + b"bye") == (code, "bye")
    Close.parse(code.to_bytes(2, "big"))


@pytest.mark.parametrize("code", INVALID)
def test_an_invalid_code_is_a_protocol_error_and_never_sent(code: int) -> None:
    with pytest.raises(FrameError) as caught:
        close.parse_close(code.to_bytes(2, "big") + b"bye")
    assert caught.value.code == 1002
    with pytest.raises(ProtocolError):
        Close.parse(code.to_bytes(2, "big"))
    with pytest.raises(ValueError, match="close code"):
        close.close_frame(code, "bye")


def test_every_code_is_judged_as_websockets_judges_it() -> None:
    for code in range(65536):
        try:
            Close(code, "").check()
            expected = True
        except ProtocolError:
            expected = False
        assert close.valid_code(code) is expected, code


def test_half_a_code_is_a_protocol_error() -> None:
    with pytest.raises(FrameError) as caught:
        close.parse_close(b"\x03")
    assert caught.value.code == 1002


@pytest.mark.parametrize("reason", [b"\xff", b"ok\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
def test_a_reason_that_is_not_utf8_is_invalid_text(reason: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        close.parse_close(b"\x03\xe8" + reason)
    assert caught.value.code == 1007


@pytest.mark.parametrize("mask", [b"", b"abc", b"abcde"])
def test_a_mask_of_another_size_is_refused(mask: bytes) -> None:
    with pytest.raises(ValueError, match="expected 4"):
        close.close_frame(1000, mask=mask)
    with pytest.raises(ValueError, match="expected 4"):
        close.ping_frame(b"x", mask)


def test_a_long_ping_is_refused() -> None:
    with pytest.raises(ValueError, match="126 bytes"):
        close.ping_frame(bytes(126))
