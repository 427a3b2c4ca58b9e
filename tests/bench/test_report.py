"""The benchmark's tables: medians, paired ratios, and what a reader is told besides."""

from __future__ import annotations

import pytest

from bench import report
from bench.report import Taken
from bench.workloads import Column

US = Column("round_trip_us", "round trip us", compared=True)
RATE = Column("round_trips_per_s", "round trips/s", digits=0)


def readings(work: str, contender: str, metric: str, *samples: float, workload: str = "cpu") -> list[Taken]:
    return [Taken(turn, workload, work, contender, {metric: sample}) for turn, sample in enumerate(samples, 1)]


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    own, reference = {1: 20.0, 2: 60.0, 3: 30.0}, {1: 10.0, 2: 20.0, 3: 10.0}
    assert report.ratio(own, reference) == pytest.approx(3.0)


def test_a_round_that_only_one_contender_finished_is_not_compared() -> None:
    assert report.ratio({1: 20.0, 2: 99.0}, {1: 10.0}) == pytest.approx(2.0)


def test_a_difference_that_noise_has_turned_round_is_not_compared() -> None:
    assert report.ratio({1: 20.0, 2: -5.0, 3: 5.0}, {1: 10.0, 2: 10.0, 3: -1.0}) == pytest.approx(2.0)


def test_contenders_without_a_common_round_have_no_ratio() -> None:
    assert report.ratio({1: 20.0}, {2: 10.0}) is None


def test_a_cell_shows_the_median_and_the_spread() -> None:
    taken = readings("relay", "nginx", "round_trip_us", 12.0, 10.0, 14.04)
    assert report.table(taken, "cpu", "relay", [US], "nginx") == [
        ["contender", "round trip us", "/ nginx"],
        ["nginx", "12.0 (10.0-14.0)", "1.00"],
    ]


def test_a_value_that_a_contender_lacks_is_a_dash() -> None:
    taken = readings("relay", "nginx", "round_trip_us", 12.0) + readings("relay", "floor", "round_trips_per_s", 70000)
    rows = report.table(taken, "cpu", "relay", [US, RATE], "nginx")
    assert rows[1:] == [["nginx", "12.0", "1.00", "-"], ["floor", "-", "-", "70000"]]


def test_only_the_rows_of_the_workload_and_the_work_asked_for_are_in_a_table() -> None:
    taken = [
        *readings("relay", "nginx", "round_trip_us", 16.5),
        *readings("tunnel", "caddy", "round_trip_us", 9.5, workload="crowd"),
        *readings("tunnel", "haproxy", "round_trip_us", 3.2),
    ]
    assert [row[0] for row in report.table(taken, "cpu", "tunnel", [US], "nginx")] == ["contender", "haproxy"]


def test_a_table_of_which_nothing_was_read_has_no_rows() -> None:
    taken = readings("relay", "nginx", "round_trip_us", 16.5)
    assert report.table(taken, "cpu", "relay", [RATE], "nginx") == []


def test_flatness_is_that_of_the_medians_and_not_of_single_rounds() -> None:
    taken = [
        Taken(turn, "flat", "relay", "nginx", {"busy_us.10": few, "busy_us.9000": many})
        for turn, (few, many) in enumerate([(10.0, 13.0), (18.0, 12.0), (10.0, 20.0)], 1)
    ]
    columns = [Column("busy_us.flat", "highest / lowest", digits=2)]
    assert report.table(taken, "flat", "relay", columns, "nginx")[1:] == [["nginx", "1.30"]]
    few = [Taken(1, "flat", "relay", "nginx", {"busy_us.10": 10.0})]
    assert report.table(few, "flat", "relay", columns, "nginx") == []


def test_messages_are_compared_with_autobahn() -> None:
    assert report.reference_for("message", "haproxy") == "autobahn"
    assert report.reference_for("relay", "haproxy") == "haproxy"


def test_added_latency_is_what_is_above_the_floor_of_the_same_round() -> None:
    taken = [
        Taken(1, "latency", "relay", "nginx", {"p50_us": 30.0, "p99_us": 50.0}),
        Taken(1, "latency", "relay", "floor", {"p50_us": 10.0, "p99_us": 15.0}),
        Taken(2, "latency", "relay", "nginx", {"p50_us": 31.0, "p99_us": 60.0}),
        Taken(1, "storm", "relay", "nginx", {"p50_us": 99.0, "p99_us": 99.0}),
    ]
    first, floor, second, storm = report.with_added(taken)
    assert (first.reading["added_p50_us"], first.reading["added_p99_us"]) == (20.0, 35.0)
    assert [one.reading.keys() for one in (floor, second, storm)] == [{"p50_us", "p99_us"}] * 3


def test_text_is_aligned_and_markdown_has_a_rule() -> None:
    rows = [["contender", "idle KB"], ["nginx", "16.5"]]
    assert report.as_text(rows) == "contender  idle KB\nnginx         16.5"
    assert report.as_markdown(rows) == "| contender | idle KB |\n| --- | ---: |\n| nginx | 16.5 |"


def test_the_notes_name_failures_crowded_readings_and_a_saturated_generator() -> None:
    taken = [
        Taken(1, "cpu", "wss", "nginx", {}, "refused"),
        Taken(1, "cpu", "relay", "haproxy", {"proxy_waited": 0.2, "load_busy.125": 0.5}),
        Taken(1, "latency", "relay", "haproxy", {"load_waited": 0.3}),
        Taken(1, "cpu", "tunnel", "nginx", {"proxy_waited": 0.01, "load_busy.125": 0.2, "opened_load_busy": 0.99}),
        Taken(1, "cpu", "tunnel", "floor", {"load_busy.125": 1.0}),
    ]
    failed, proxy, load, saturated = report.notes(taken)
    assert failed == "cpu wss nginx, round 1: no reading: refused"
    assert "kept the proxy off" in proxy
    assert proxy.endswith(": cpu relay haproxy")
    assert "kept the generator off" in load
    assert load.endswith(": latency relay haproxy")
    assert saturated.endswith(": cpu tunnel nginx")


def test_quiet_readings_need_no_notes() -> None:
    quiet = {"proxy_waited": 0.01, "load_waited": 0.01, "load_busy.125": 0.8}
    assert report.notes([Taken(1, "cpu", "relay", "nginx", quiet)]) == []
