"""Slow start: a backend that comes back gets its share of new sessions bit by bit."""

from __future__ import annotations

import pytest

from wsrouter.policy.slow_start import LEAST, ramp


@pytest.mark.parametrize(
    ("now", "part"),
    [(99.0, LEAST), (100.0, LEAST), (100.1, LEAST), (106.0, 0.1), (130.0, 0.5), (160.0, 1.0), (1e9, 1.0)],
)
def test_the_part_grows_with_time_from_a_little_to_all(now: float, part: float) -> None:
    assert ramp(100.0, now, 60.0) == pytest.approx(part)
