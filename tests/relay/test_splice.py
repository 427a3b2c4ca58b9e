"""Pumps that let long payload pass within the kernel: the same bytes, ends and limits as when they are copied."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import select
import socket
import stat
from typing import Any

import pytest

from tests.relay.test_policed import coupled as policed
from tests.relay.test_pump import FLOOD, coupled
from wsrouter.relay.leg import BUFFER_SIZE
from wsrouter.relay.splice import LEAST_SIZE, WORTH, Conduit


class Splices:
    """What goes through the relay's pipe: ``taken`` bytes so far. ``refuses`` says what fails, and with which error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        self.refuses: dict[str, int] = {}
        self._splice = os.splice
        monkeypatch.setattr(os, "splice", self)

    def __call__(self, source: int, sink: int, count: int, **more: Any) -> int:
        what = "take" if stat.S_ISFIFO(os.fstat(sink).st_mode) else "give"
        if what in self.refuses:
            number = self.refuses[what]
            raise OSError(number, os.strerror(number))
        moved = self._splice(source, sink, count, **more)
        assert count <= BUFFER_SIZE
        if what == "take":
            self.taken += moved
        return moved


@pytest.fixture
def conduit(monkeypatch: pytest.MonkeyPatch) -> Splices:
    return Splices(monkeypatch)


def frame(size: int, first: int = 0x82, *, masked: bool = True) -> bytes:
    """A frame of ``size`` bytes, of FLOOD's; the mask is zero."""
    payload = (FLOOD * (1 + size // len(FLOOD)))[:size]
    mask, key = (0x80, bytes(4)) if masked else (0, b"")
    if size < 126:
        return bytes((first, mask | size)) + key + payload
    if size < 1 << 16:
        return bytes((first, mask | 126)) + size.to_bytes(2, "big") + key + payload
    return bytes((first, mask | 127)) + size.to_bytes(8, "big") + key + payload


def passes(rig: Any, ends: Any, data: bytes) -> None:
    """``data`` goes from left to right, in order and whole."""
    before = len(ends.right.received)
    ends.left.send(data)
    rig.until(lambda: len(ends.right.received) - before >= len(data))
    assert ends.right.received[before:] == data


@pytest.mark.parametrize("frames", [False, True])
def test_long_payload_is_spliced_and_short_is_copied(rig, conduit, frames):
    ends = coupled(rig, frames=frames)
    short, long = (frame(100), frame(1 << 20)) if frames else (b"s" * 100, FLOOD * 4)
    passes(rig, ends, short)
    assert conduit.taken == 0
    passes(rig, ends, long)
    assert conduit.taken > len(long) // 2
    # What came in the end was short; so is what follows.
    passes(rig, ends, short)
    taken = conduit.taken
    for _ in range(5):
        passes(rig, ends, short)
    assert conduit.taken == taken
    assert ends.out.bytes == len(ends.right.received)
    if frames:
        assert ends.out.walker.messages == 8
        assert ends.out.walker.largest == 1 << 20
        assert ends.out.at_boundary


def test_of_long_frames_the_headers_are_read_and_the_payload_is_spliced(rig, conduit):
    ends = coupled(rig, frames=True)
    passes(rig, ends, frame(1 << 16))
    assert conduit.taken == 0
    for times in range(1, 5):
        passes(rig, ends, frame(1 << 16))
        assert conduit.taken == times << 16
    assert ends.out.bytes == len(ends.right.received)
    assert ends.out.walker.messages == 5
    # A short one is looked for once more, and then no longer.
    for _ in range(3):
        passes(rig, ends, frame(40_000) + frame(100) + frame(10))
    assert ends.out.walker.messages == 14
    assert ends.out.at_boundary


def test_a_burst_of_short_frames_is_read_as_ever(rig, conduit):
    ends = coupled(rig, frames=True)
    passes(rig, ends, frame(100) * 1000)
    assert not ends.out._splicing
    assert conduit.taken == 0


@pytest.mark.parametrize("size", [125, 126, WORTH, 1 << 16])
def test_a_header_in_pieces_is_read_in_pieces(rig, conduit, size):
    ends = coupled(rig, frames=True)
    data = frame(1 << 16)
    for cut in range(1, 15):
        passes(rig, ends, data)
        passes(rig, ends, data)
        assert ends.out._splicing
        more = frame(size)
        ends.left.send(more[:cut])
        rig.settle()
        before = len(ends.right.received)
        ends.left.send(more[cut:])
        rig.until(lambda: not ends.out.walker.skip and not ends.out.walker.held)
        rig.settle()
        whole = ends.right.received
        assert whole.endswith(more)
        assert before <= len(whole)


@pytest.mark.parametrize(
    ("last", "event"),
    [
        (b"\x88\x82\0\0\0\0\x03\xe8", "close"),
        (b"\xf2\xfe\0\0\0\0\0\0\0\0\0\0\0\0", "violation"),
    ],
)
def test_what_ends_a_session_is_seen_where_a_long_header_is_looked_for(rig, conduit, last, event):
    ends = coupled(rig, frames=True)
    long = frame(1 << 16)
    passes(rig, ends, long)
    passes(rig, ends, long)
    assert ends.out._splicing
    ends.left.send(last + long)
    rig.until(lambda: ends.couple.events)
    rig.settle()
    assert getattr(ends.out.walker, event) is not None
    assert ends.right.received == long * 2 + (last if event == "close" else b"")


@pytest.mark.parametrize("how", ["finish", "reset"])
def test_the_end_is_seen_where_a_long_header_is_looked_for(rig, conduit, how):
    ends = coupled(rig, frames=True)
    for _ in range(2):
        passes(rig, ends, frame(1 << 16))
    assert ends.out._splicing
    getattr(ends.left, how)()
    rig.until(lambda: ends.couple.ended or ends.couple.lost)
    if how == "finish":
        assert ends.couple.ended == [ends.out]
    else:
        assert isinstance(ends.couple.lost[0][1], ConnectionResetError)


def test_a_header_that_the_sink_does_not_take_waits(rig, conduit):
    ends = coupled(rig, frames=True)
    long = frame(1 << 16)
    for _ in range(2):
        passes(rig, ends, long)
    ends.right.greedy = False
    stuffed = 0
    while select.select([], [ends.out._output], [], 0)[1]:
        stuffed += ends.out._output.send(b"s" * 65536)
    with contextlib.suppress(BlockingIOError):  # there is a little room left where it does not count as writable
        while True:
            stuffed += ends.out._output.send(b"s")
    ends.left.send(long)
    rig.until(lambda: ends.out.paused)
    assert ends.out.sink.pending == long[:14]
    ends.right.greedy = True
    rig.until(lambda: len(ends.right.received) == 3 * len(long) + stuffed)
    assert ends.right.received == long * 2 + b"s" * stuffed + long


def test_a_header_that_can_go_nowhere_is_told_as_ever(rig, conduit):
    ends = coupled(rig, frames=True)
    for _ in range(2):
        passes(rig, ends, frame(1 << 16))
    ends.out._output.shutdown(socket.SHUT_WR)
    ends.left.send(frame(1 << 16))
    rig.until(lambda: isinstance(ends.out.failure, BrokenPipeError))
    rig.settle()
    assert ends.out.walker.messages == 3


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_in_whatever_pieces_arrives(rig, conduit, seed):
    dice = random.Random(seed)
    ends = coupled(rig, frames=True, buffer=dice.choice([None, 16384]))
    data = b""
    for _ in range(12):
        size = dice.choice(
            [0, 1, 125, 126, WORTH, 65_536, BUFFER_SIZE - 8, BUFFER_SIZE, 200_000, 400_000]
        ) + dice.randrange(3)
        data += frame(size) + (frame(5, 0x89) if dice.random() < 0.3 else b"")
        if dice.random() < 0.3:
            data += frame(300_000, 0x02) + frame(3, 0x8A) + frame(150_000, 0x80)
    sent = 0
    while len(ends.right.received) < len(data):
        if sent < len(data) and not ends.left._unsent:
            piece = dice.choice([1, 13, 5000, 100_000, 1 << 20])
            ends.left.send(data[sent : sent + piece])
            sent += piece
        ends.right.greedy = dice.random() < 0.7
        rig.turn()
        # At most one read, and what was held before it.
        assert ends.out.sink.pending is None or len(ends.out.sink.pending) <= BUFFER_SIZE + 130
    assert ends.right.received == data
    assert ends.out.at_boundary
    assert conduit.taken


@pytest.mark.parametrize("frames", [False, True])
def test_a_slow_reader_holds_up_its_own_source_alone(rig, conduit, frames):
    slow = coupled(rig, frames=frames, buffer=16384)
    slow.right.greedy = False
    flood = frame(2 << 20)
    slow.left.send(flood)
    rig.until(lambda: slow.out.paused)
    assert 0 < len(slow.out.sink.pending) <= BUFFER_SIZE
    assert not rig.spin()
    # Nothing of it lies in the pipe.
    other = coupled(rig, frames=frames)
    passes(rig, other, frame(1 << 20))
    slow.right.greedy = True
    rig.until(lambda: len(slow.right.received) == len(flood))
    assert slow.right.received == flood


def test_a_fin_comes_behind_what_was_spliced(rig, conduit):
    ends = coupled(rig)
    ends.left.send(FLOOD * 4)
    while ends.left._unsent:
        rig.turn()
    ends.left.finish()
    rig.until(lambda: ends.right.ended)
    assert ends.right.received == FLOOD * 4
    assert ends.couple.ended == [ends.out]
    assert conduit.taken


@pytest.mark.parametrize("frames", [False, True])
def test_a_reset_on_either_side_is_told_as_ever(rig, conduit, frames):
    for victim in ("left", "right"):
        ends = coupled(rig, frames=frames)
        ends.left.send(frame(16 << 20))
        rig.until(lambda ends=ends: ends.out._splicing)
        getattr(ends, victim).reset()
        rig.until(lambda ends=ends: ends.couple.lost or ends.couple.ended)
        if victim == "left":
            assert [leg for leg, _ in ends.couple.lost] == [ends.out.source]
            assert isinstance(ends.couple.lost[0][1], ConnectionResetError)
        else:
            assert isinstance(ends.out.failure, ConnectionResetError | BrokenPipeError)
            assert ends.couple.ended == [ends.back]
        ends.out.source.abortConnection()
        ends.back.source.abortConnection()
        rig.settle()
    # And nothing is left for the next.
    passes(rig, coupled(rig, frames=frames), frame(1 << 20))


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_where_the_kernel_does_not_splice_bytes_are_copied(rig, conduit, frames, number):
    conduit.refuses["take"] = number
    ends = coupled(rig, frames=frames)
    passes(rig, ends, frame(1 << 20) * 2)
    assert conduit.taken == 0
    assert rig.relay.conduit is None
    passes(rig, ends, frame(1 << 20))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
def test_a_sink_that_is_not_spliced_into_gets_its_bytes_all_the_same(rig, conduit, number):
    conduit.refuses["give"] = number
    ends = coupled(rig)
    passes(rig, ends, FLOOD * 4)
    assert conduit.taken


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("end", [False, True])
def test_urgent_data_stops_splicing_and_nothing_else(rig, conduit, frames, end):
    # The byte itself is not passed on; what comes behind it is, and nobody spins.
    ends = coupled(rig, frames=frames)
    head, tail = (frame(1 << 20), b"") if frames else (FLOOD * 4, b"")
    cut = len(head) // 2
    ends.left.send(head[:cut])
    rig.until(lambda: len(ends.right.received) == cut)
    assert ends.out._splicing or conduit.taken
    ends.out.pause()
    more = head[cut : cut + (200_000 if frames else 100_000)]
    ends.left.socket.send(more[:100_000])
    ends.left.socket.send(b"U", socket.MSG_OOB)
    ends.left.send(more[100_000:] + tail)
    if end:
        ends.left.finish()
    ends.out.resume()
    rig.until(lambda: len(ends.right.received) == cut + len(more))
    assert ends.right.received == head[: cut + len(more)]
    if end:
        rig.until(lambda: ends.right.ended)
        assert ends.couple.ended == [ends.out]
    else:
        assert not rig.spin()


def test_what_is_left_in_the_pipe_by_a_failure_reaches_nobody(rig, conduit, monkeypatch, logged_failures):
    ends = coupled(rig)
    ends.left.send(b"secret.." * (1 << 21))
    rig.until(lambda: ends.out._splicing)

    def no_memory(*_: Any) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", no_memory)
        conduit.refuses["give"] = errno.EAGAIN
        rig.until(lambda: ends.couple.lost)
    conduit.refuses.clear()
    assert len(logged_failures.flush(MemoryError)) == 1
    passes(rig, coupled(rig), FLOOD * 4)


def test_a_sink_that_fails_loses_what_is_in_the_pipe_and_nobody_elses(rig, conduit):
    ends = coupled(rig)
    ends.left.send(FLOOD * 16)
    rig.until(lambda: ends.out._splicing)
    conduit.refuses["give"] = errno.EPIPE
    rig.until(lambda: isinstance(ends.out.failure, BrokenPipeError))
    conduit.refuses.clear()
    passes(rig, coupled(rig), FLOOD * 4)


def test_a_pipe_that_is_too_small_is_none(monkeypatch):
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command, *_: LEAST_SIZE // 2)
    with pytest.raises(OSError, match="memory"):
        Conduit()
    assert os.listdir("/proc/self/fd") == before


def test_without_a_pipe_everything_is_copied(rig):
    rig.relay.copy_all()
    for frames in (False, True):
        passes(rig, coupled(rig, frames=frames), frame(1 << 20))


def test_a_boundary_is_reported_within_a_spliced_frame(rig, conduit):
    ends = coupled(rig, frames=True)
    data = frame(4 << 20)
    ends.left.send(data + b"\x82\x81\0\0\0\0x")
    rig.until(lambda: ends.out._splicing)
    ends.out.stop_at_boundary()
    rig.until(lambda: ends.couple.events)
    assert ends.couple.events == [ends.out]
    rig.until(lambda: len(ends.right.received) == len(data))
    rig.settle()
    assert ends.right.received == data


def test_a_diverted_pump_splices_no_more_and_sees_the_close(rig, conduit):
    ends = coupled(rig, frames=True)
    ends.left.send(frame(4 << 20) + b"\x88\x80\0\0\0\0")
    rig.until(lambda: ends.out._splicing)
    ends.out.divert()
    rig.until(lambda: ends.couple.events)
    assert ends.out.walker.close == (1005, "")


def test_a_ping_waits_for_the_end_of_a_spliced_frame(rig, conduit):
    ends = policed(rig)
    data = frame(4 << 20)
    ends.left.send(data + frame(3))
    rig.until(lambda: ends.out._splicing)
    ends.out.put_in(b"\x89\x80\0\0\0\0")
    rig.until(lambda: len(ends.right.received) == len(data) + 6 + 9)
    assert ends.right.received == data + b"\x89\x80\0\0\0\0" + frame(3)
    assert conduit.taken
