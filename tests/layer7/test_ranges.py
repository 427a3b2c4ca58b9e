from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.layer7.ranges import MOST_RANGES, parse_ranges


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        (b"bytes=0-0", [(0, 1)]),
        (b"bytes=10-19", [(10, 10)]),
        (b"Bytes= 10-", [(10, 90)]),
        (b"bytes=-1", [(99, 1)]),
        (b"bytes=-500", [(0, 100)]),
        (b"bytes=90-500", [(90, 10)]),
        (b"bytes=0-1, 5-6,", [(0, 2), (5, 2)]),
        (b"bytes=100-", []),
        (b"bytes=-0", []),
        (b"bytes=200-300,0-0", [(0, 1)]),
        (b"bytes=5-4", None),
        (b"bytes=-", None),
        (b"bytes=", None),
        (b"bytes=,", None),
        (b"bytes=+1-2", None),
        (b"bytes=1-2-3", None),
        (b"items=0-1", None),
        (b"0-1", None),
        (b"bytes=0-99,0-99", None),
        (b"bytes=" + b"1" * 19 + b"-", None),
        (b"bytes=\xff", None),
        (b"bytes=" + b",".join([b"0-0"] * (MOST_RANGES + 1)), None),
    ],
)
def test_a_range_field_selects(value: bytes, chosen: list[tuple[int, int]] | None) -> None:
    assert parse_ranges(value, 100) == chosen


def test_nothing_of_an_empty_file_can_be_satisfied() -> None:
    assert parse_ranges(b"bytes=0-", 0) == []
    assert parse_ranges(b"bytes=-5", 0) == []


@given(value=st.text(alphabet="bytes=0123456789-, ", max_size=40), size=st.integers(0, 50))
def test_what_is_chosen_lies_within_the_file(value: str, size: int) -> None:
    for offset, length in parse_ranges(value.encode(), size) or []:
        assert 0 <= offset < offset + length <= size
