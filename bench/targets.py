"""What wsrouter is to reach, as ratios to others in the same run, and how far it does."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.report import Taken, ratio, values
from bench.setups import MESSAGE, RELAY, TUNNEL, WSS


@dataclass(frozen=True, slots=True)
class Target:
    """``most`` is the largest ratio of a metric to that of ``reference``; of the metric itself where there is none.

    ``aim`` is what would be better still, or 0.
    """

    what: str
    workload: str
    work: str
    metric: str
    reference: str
    most: float
    aim: float = 0.0
    contender: str = "wsrouter"


def _three(
    what: str, workload: str, metric: str, reference: str, most: tuple[float, ...], aim: tuple[float, ...] = (0, 0, 0)
) -> tuple[Target, ...]:
    works = zip((RELAY, TUNNEL, WSS), most, aim, strict=True)
    return tuple(Target(what, workload, work, metric, reference, limit, better) for work, limit, better in works)


TARGETS = (
    *_three("CPU, 125 B round trip", "cpu", "round_trip_us.125", "nginx", (1.2, 1.12, 1.2), (1.1, 1.05, 1.1)),
    *_three("CPU, 64 KB round trip", "cpu", "round_trip_us.65536", "nginx", (0.3, 0.6, 0.5)),
    *_three("CPU, 64 KB round trip", "cpu", "round_trip_us.65536", "nginx-tuned", (0.9, 0.9, 1.0)),
    *_three("CPU, opened session", "cpu", "opened_us", "nginx", (1.7, 1.5, 1.4), (1.4, 1.25, 0)),
    Target("CPU, resumed session", "cpu", WSS, "resumed_us", "nginx", 1.7),
    *_three("memory, idle session", "idle", "idle_kb", "nginx", (0.12, 0.15, 0.4), (0, 0, 0.25)),
    *_three("added latency, p99", "latency", "added_p99_us", "nginx", (1.3, 1.3, 1.4)),
    Target("CPU, 125 B round trip", "cpu", MESSAGE, "round_trip_us.125", "autobahn", 0.75),
    Target("CPU, opened session", "cpu", MESSAGE, "opened_us", "autobahn", 0.75),
    Target("CPU, 125 B round trip", "cpu", MESSAGE, "round_trip_us.125", "mitmproxy", 0.25),
    *[
        replace(target, contender="wsrouter-compiled")
        for target in _three("CPU, opened session", "cpu", "opened_us", "nginx", (1.7, 1.5, 1.4), (1.4, 1.25, 0))
    ],
    Target("CPU with all policies", "cpu", RELAY, "round_trip_us.125", "wsrouter", 1.2, contender="wsrouter-policed"),
    Target("memory, few and many", "idle", RELAY, "idle_kb.flat", "", 1.3),
    Target("CPU, all sessions busy", "flat", RELAY, "all_busy_us.flat", "", 1.3),
    Target("CPU, few of them busy", "flat", RELAY, "few_busy_us.flat", "", 1.3),
    Target("CPU, opened beside them", "flat", RELAY, "beside_us.flat", "", 1.3),
    Target("KB for each slow reader", "slow", RELAY, "slow_kb", "", 128),
    Target("KB for each slow reader", "slow", WSS, "slow_kb", "", 128),
    Target("p99 beside slow readers", "slow", RELAY, "p99_times", "", 1.5),
    Target("p99 beside slow readers", "slow", WSS, "p99_times", "", 1.5),
)


def reached(taken: Sequence[Taken], target: Target) -> float | None:
    """The median over the rounds, or None where nothing was read for it."""
    own = values(taken, target.workload, target.work, target.contender, target.metric)
    if target.reference:
        return ratio(own, values(taken, target.workload, target.work, target.reference, target.metric))
    return statistics.median(own.values()) if own else None


def verdict(target: Target, value: float) -> str:
    """In words: whether it is met."""
    if value > target.most:
        return "missed"
    return "met, and the aim" if target.aim and value <= target.aim else "met"


def table(taken: Sequence[Taken]) -> list[list[str]]:
    """Header and rows, for those targets of which something was read."""
    rows = [["target", "session", "of", "reached", "at most", "aim", ""]]
    for target in TARGETS:
        value = reached(taken, target)
        if value is not None:
            against = f"{target.contender} / {target.reference}" if target.reference else target.contender
            limits = [f"{target.most:g}", f"{target.aim:g}" if target.aim else "-"]
            rows.append([target.what, target.work, against, f"{value:.2f}", *limits, verdict(target, value)])
    return rows
