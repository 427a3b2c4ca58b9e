"""Readings to tables: medians over the rounds, their spread, and ratios to the reference, paired round by round."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.measure import Reading
from bench.setups import MESSAGE
from bench.workloads import Column

CROWDED = 0.05
"""Share of the time that the proxy waited for its CPU above which other work disturbed the reading."""

SATURATED = 0.97
"""Share of its CPU above which the generator, not the proxy, may set the rates."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One reading in its place; ``error`` instead of values when it could not be taken. Rounds count from 1."""

    round: int
    workload: str
    work: str
    contender: str
    reading: Reading
    error: str = ""


def values(taken: Sequence[Taken], workload: str, work: str, contender: str, metric: str) -> dict[int, float]:
    """Round to value, for those rounds in which the metric was taken.

    ``metric.flat`` has one value, of no round's: how far ``metric.N`` at its highest is above its lowest, over the
    numbers N of sessions that it was taken at. Those are medians: of single readings the highest is far above the
    lowest by chance.
    """
    of = metric.removesuffix(".flat")
    if of != metric:
        named = {name for one in taken for name in one.reading if name.rpartition(".")[0] == of}
        found = [list(values(taken, workload, work, contender, name).values()) for name in named]
        medians = [statistics.median(samples) for samples in found if samples]
        return {0: max(medians) / min(medians)} if len(medians) > 1 and min(medians) > 0 else {}
    return {
        one.round: one.reading[metric]
        for one in taken
        if (one.workload, one.work, one.contender) == (workload, work, contender) and metric in one.reading
    }


def reference_for(work: str, asked: str) -> str:
    """Whom the ratios of a table are to: messages are nothing that the usual reference would see."""
    return "autobahn" if work == MESSAGE else asked


def ratios(own: dict[int, float], reference: dict[int, float]) -> list[float]:
    """Own divided by reference, for each round in which both are above zero."""
    return [own[turn] / reference[turn] for turn in own if own[turn] > 0 and reference.get(turn, 0) > 0]


def ratio(own: dict[int, float], reference: dict[int, float]) -> float | None:
    """Median over the rounds that both have of own divided by reference. The machine drifts; a round hardly does.

    A difference that came out below zero was lost in noise, and has no ratio.
    """
    pairs = ratios(own, reference)
    return statistics.median(pairs) if pairs else None


def with_added(taken: Sequence[Taken]) -> list[Taken]:
    """The readings of latency, each with what it has above the floor's of the same round."""
    floors = {(one.round, one.workload, one.work): one.reading for one in taken if one.contender == "floor"}
    result = []
    for one in taken:
        floor = floors.get((one.round, one.workload, one.work), {})
        added = {
            f"added_{metric}": one.reading[metric] - floor[metric]
            for metric in ("p50_us", "p99_us")
            if one.workload == "latency" and one.contender != "floor" and metric in one.reading and metric in floor
        }
        result.append(dataclasses.replace(one, reading={**one.reading, **added}))
    return result


def table(
    taken: Sequence[Taken], workload: str, work: str, columns: Sequence[Column], reference: str
) -> list[list[str]]:
    """Header and rows of one kind of work, as text cells; no rows at all where no column has a value."""
    own = [one for one in taken if (one.workload, one.work) == (workload, work)]
    contenders = dict.fromkeys(one.contender for one in own)
    shown = [
        column
        for column in columns
        if any(values(own, workload, work, contender, column.metric) for contender in contenders)
    ]
    if not shown:
        return []
    header = ["contender"]
    for column in shown:
        header += [column.title, f"/ {reference}"] if column.compared else [column.title]
    rows = [header]
    for contender in contenders:
        row = [contender]
        for column in shown:
            mine = values(taken, workload, work, contender, column.metric)
            row.append(_cell(list(mine.values()), column))
            if column.compared:
                paired = ratio(mine, values(taken, workload, work, reference, column.metric))
                row.append("-" if paired is None else f"{paired:.2f}")
        rows.append(row)
    return rows


def _cell(samples: list[float], column: Column) -> str:
    if not samples:
        return "-"
    low, middle, high = (
        f"{value / column.divisor:.{column.digits}f}"
        for value in (min(samples), statistics.median(samples), max(samples))
    )
    return f"{middle} ({low}-{high})" if column.compared and len(samples) > 1 else middle


def as_text(rows: list[list[str]]) -> str:
    """Aligned columns for a terminal: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return "\n".join(lines)


def as_markdown(rows: list[list[str]]) -> str:
    """A table of GitHub's kind."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def notes(taken: Sequence[Taken]) -> list[str]:
    """What a reader must know besides: readings that failed or were disturbed, a generator without a rest."""
    lines = []
    for one in taken:
        if one.error:
            lines.append(f"{_place(one)}, round {one.round}: no reading: {one.error}")
    for metric, who in (("proxy_waited", "the proxy"), ("load_waited", "the generator")):
        crowded = {_place(one) for one in taken if one.reading.get(metric, 0) > CROWDED}
        if crowded:
            lines.append(
                f"Other processes kept {who} off its CPU for more than {CROWDED:.0%} of the time: caches were cold, "
                "batches odd, latencies too high; measure again on a quiet machine: " + ", ".join(sorted(crowded))
            )
    lines += _scaling(taken)
    full = {
        _place(one)
        for one in taken
        if one.contender != "floor"
        and any(value > SATURATED for metric, value in one.reading.items() if "load_busy" in metric)
    }
    if full:
        lines.append(
            "The generator had no rest, so rates and latencies are its own as much as the proxy's "
            "(CPU for each unit stands): " + ", ".join(sorted(full))
        )
    return lines


def _scaling(taken: Sequence[Taken]) -> list[str]:
    """What several processes bring through, of what one does, and of what these CPUs would allow."""
    lines = []
    for work in dict.fromkeys(one.work for one in taken if one.workload == "cores"):
        for name in ("nginx", "wsrouter"):
            single = values(taken, "cores", work, name, "round_trips_per_s")
            reached = ratio(values(taken, "cores", work, f"{name}-cores", "round_trips_per_s"), single)
            possible = ratio(values(taken, "cores", work, name, "possible_per_s"), single)
            if reached is not None and possible is not None:
                lines.append(
                    f"{name}, {work}: {reached:.2f} times as much with all CPUs, of {possible:.2f} that they allow, "
                    "since the generator needs its part"
                )
    return lines


def _place(one: Taken) -> str:
    return f"{one.workload} {one.work} {one.contender}"
