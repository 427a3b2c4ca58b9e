from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from wsrouter.layer7.pieces import SMALL, Pieces

SIZES = st.one_of(st.integers(0, 100), st.integers(SMALL - 50, SMALL + 50), st.just(3 * SMALL))


@given(st.lists(st.lists(SIZES, max_size=12), max_size=3))
def test_messages_come_out_as_they_came_in_one_after_the_other(messages: list[list[int]]) -> None:
    pieces = Pieces()
    for sizes in messages:
        came = [bytes([at + 1]) * size for at, size in enumerate(sizes)]
        for piece in came:
            pieces.add(piece)
        assert pieces.size == sum(sizes)
        whole = pieces.take()
        assert type(whole) is bytes
        assert whole == b"".join(came)
    assert (pieces.size, pieces.take()) == (0, b"")


def test_a_message_in_one_piece_is_not_copied() -> None:
    pieces, piece = Pieces(), b"x" * 1000
    pieces.add(piece)
    assert pieces.take() is piece


def test_pieces_of_any_size_take_little_more_than_the_message() -> None:
    def peak(pieces: Iterable[bytes]) -> int:
        gathered = Pieces()
        tracemalloc.start()
        for piece in pieces:
            gathered.add(piece)
        assert gathered.size == 1 << 20
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(b"x" for _ in range(1 << 20)) < 1.3 * (1 << 20)
    assert peak(bytes(1000) + bytes(24) for _ in range(1024)) < 1.3 * (1 << 20)
    assert peak(bytes(SMALL) for _ in range(16)) < 1.3 * (1 << 20)
