"""The benchmark's tables: medians, paired ratios, and what a reader is told besides."""

from __future__ import annotations

import pytest

from bench import report
from bench.report import Taken


def readings(work: str, contender: str, metric: str, *samples: float) -> list[Taken]:
    return [Taken(turn, work, contender, {metric: sample}) for turn, sample in enumerate(samples, 1)]


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    own, reference = {1: 20.0, 2: 60.0, 3: 30.0}, {1: 10.0, 2: 20.0, 3: 10.0}
    assert report.ratio(own, reference) == pytest.approx(3.0)


def test_a_round_that_only_one_contender_finished_is_not_compared() -> None:
    assert report.ratio({1: 20.0, 2: 99.0}, {1: 10.0}) == pytest.approx(2.0)


def test_contenders_without_a_common_round_have_no_ratio() -> None:
    assert report.ratio({1: 20.0}, {2: 10.0}) is None


def test_a_cell_shows_the_median_and_the_spread() -> None:
    taken = readings("relay", "nginx", "round_trip_us", 12.0, 10.0, 14.04)
    assert report.table(taken, "relay", "nginx") == [
        ["contender", "round trip us", "/ nginx"],
        ["nginx", "12.0 (10.0-14.0)", "1.00"],
    ]


def test_a_value_that_a_contender_lacks_is_a_dash() -> None:
    taken = readings("relay", "nginx", "round_trip_us", 12.0) + readings("relay", "floor", "round_trips_per_s", 70000)
    assert report.table(taken, "relay", "nginx")[1:] == [["nginx", "12.0", "1.00", "-"], ["floor", "-", "-", "70000"]]


def test_only_the_rows_of_the_work_asked_for_are_in_a_table() -> None:
    taken = readings("relay", "nginx", "idle_kb", 16.5) + readings("tunnel", "haproxy", "idle_kb", 3.2)
    assert [row[0] for row in report.table(taken, "tunnel", "nginx")] == ["contender", "haproxy"]


def test_text_is_aligned_and_markdown_has_a_rule() -> None:
    rows = [["contender", "idle KB"], ["nginx", "16.5"]]
    assert report.as_text(rows) == "contender  idle KB\nnginx         16.5"
    assert report.as_markdown(rows) == "| contender | idle KB |\n| --- | ---: |\n| nginx | 16.5 |"


def test_the_notes_name_failures_crowded_readings_and_a_saturated_generator() -> None:
    taken = [
        Taken(1, "wss", "nginx", {}, "refused"),
        Taken(1, "relay", "haproxy", {"proxy_waited": 0.2, "load_busy": 0.5}),
        Taken(1, "tunnel", "nginx", {"proxy_waited": 0.01, "load_busy": 0.99}),
        Taken(1, "tunnel", "floor", {"load_busy": 1.0}),
    ]
    failed, crowded, saturated = report.notes(taken)
    assert failed == "wss, nginx, round 1: no reading: refused"
    assert crowded.endswith(": relay haproxy")
    assert saturated.endswith(": tunnel nginx")


def test_quiet_readings_need_no_notes() -> None:
    assert report.notes([Taken(1, "relay", "nginx", {"proxy_waited": 0.01, "load_busy": 0.8})]) == []
