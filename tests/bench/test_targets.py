"""The benchmark's targets: whether what was read reaches them."""

from __future__ import annotations

import pytest

from bench import targets
from bench.report import Taken
from bench.targets import Target

ROUND_TRIP = Target("round trip", "cpu", "relay", "round_trip_us.125", "nginx", 1.2, 1.1)
ABSOLUTE = Target("slow", "slow", "relay", "slow_kb", "", 128)


def test_a_target_is_a_ratio_within_each_round() -> None:
    taken = [
        Taken(turn, "cpu", "relay", contender, {"round_trip_us.125": value})
        for contender, *samples in (("nginx", 10.0, 20.0, 10.0), ("wsrouter", 11.0, 23.0, 12.0))
        for turn, value in enumerate(samples, 1)
    ]
    assert targets.reached(taken, ROUND_TRIP) == pytest.approx(1.15)


def test_a_target_without_a_reference_is_the_value() -> None:
    taken = [Taken(turn, "slow", "relay", "wsrouter", {"slow_kb": value}) for turn, value in enumerate((3.0, 9.0), 1)]
    assert targets.reached(taken, ABSOLUTE) == pytest.approx(6.0)


def test_a_target_of_which_nothing_was_read_is_left_out() -> None:
    assert targets.reached([], ROUND_TRIP) is None
    assert len(targets.table([])) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.21, "missed"), (1.2, "met"), (1.11, "met"), (1.1, "met, and the aim"), (0.5, "met, and the aim")],
)
def test_a_verdict_knows_the_limit_and_the_aim(value: float, words: str) -> None:
    assert targets.verdict(ROUND_TRIP, value) == words


def test_without_an_aim_there_is_none_to_reach() -> None:
    assert targets.verdict(ABSOLUTE, 1.0) == "met"


def test_a_row_of_the_table_shows_limit_aim_and_verdict() -> None:
    taken = [
        Taken(1, "cpu", "relay", "wsrouter", {"round_trip_us.125": 13.0}),
        Taken(1, "cpu", "relay", "nginx", {"round_trip_us.125": 10.0}),
    ]
    assert targets.table(taken)[1:] == [
        ["CPU, 125 B round trip", "relay", "wsrouter / nginx", "1.30", "1.2", "1.1", "missed"]
    ]
