"""Readings to tables: medians over the rounds, their spread, and ratios to the reference, paired round by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.measure import Reading

CROWDED = 0.05
"""Share of the time that the proxy waited for its CPU above which other work disturbed the reading."""

SATURATED = 0.97
"""Share of its CPU above which the generator, not the proxy, may set the rates."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One reading in its place; ``error`` instead of values when it could not be taken. Rounds count from 1."""

    round: int
    work: str
    contender: str
    reading: Reading
    error: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a metric, how many of its units make one of the column's, and whether spread and ratio show."""

    metric: str
    title: str
    divisor: float = 1.0
    digits: int = 1
    compared: bool = False


COLUMNS = (
    Column("round_trip_us", "round trip us", compared=True),
    Column("opened_us", "opened us", digits=0, compared=True),
    Column("idle_kb", "idle KB", compared=True),
    Column("round_trips_per_s", "round trips/s", digits=0),
    Column("opened_per_s", "opened/s", digits=0),
    Column("p50_us", "p50 ms", divisor=1000, digits=2),
    Column("p99_us", "p99 ms", divisor=1000, digits=2),
    Column("proxy_busy", "proxy CPU %", divisor=0.01, digits=0),
    Column("load_busy", "generator CPU %", divisor=0.01, digits=0),
    Column("open_load_busy", "(opening) %", divisor=0.01, digits=0),
    Column("resumed_share", "TLS resumed %", divisor=0.01, digits=0),
)


def values(taken: Sequence[Taken], work: str, contender: str, metric: str) -> dict[int, float]:
    """Round to value, for those rounds in which the metric was taken."""
    return {
        one.round: one.reading[metric]
        for one in taken
        if one.work == work and one.contender == contender and metric in one.reading
    }


def ratio(own: dict[int, float], reference: dict[int, float]) -> float | None:
    """Median over the rounds that both have of own divided by reference. The machine drifts; a round hardly does."""
    pairs = [own[turn] / reference[turn] for turn in own if reference.get(turn)]
    return statistics.median(pairs) if pairs else None


def table(taken: Sequence[Taken], work: str, reference: str) -> list[list[str]]:
    """Header and rows of one kind of work, as text cells."""
    shown = [column for column in COLUMNS if any(one.work == work and column.metric in one.reading for one in taken)]
    header = ["contender"]
    for column in shown:
        header += [column.title, f"/ {reference}"] if column.compared else [column.title]
    rows = [header]
    for contender in dict.fromkeys(one.contender for one in taken if one.work == work):
        row = [contender]
        for column in shown:
            own = values(taken, work, contender, column.metric)
            row.append(_cell(list(own.values()), column))
            if column.compared:
                paired = ratio(own, values(taken, work, reference, column.metric))
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
    """What a reader of the tables must know besides: readings that failed, and a generator without a rest."""
    lines = []
    for one in taken:
        if one.error:
            lines.append(f"{one.work}, {one.contender}, round {one.round}: no reading: {one.error}")
    crowded = {f"{one.work} {one.contender}" for one in taken if one.reading.get("proxy_waited", 0) > CROWDED}
    if crowded:
        lines.append(
            f"Other processes kept the proxy off its CPU for more than {CROWDED:.0%} of the time, so its caches were "
            "cold and its batches odd; measure again on a quiet machine: " + ", ".join(sorted(crowded))
        )
    full = {
        f"{one.work} {one.contender}"
        for one in taken
        if one.contender != "floor"
        and max(one.reading.get("load_busy", 0), one.reading.get("open_load_busy", 0)) > SATURATED
    }
    if full:
        lines.append(
            "The generator had no rest, so rates and latencies are its own as much as the proxy's "
            "(CPU for each unit stands): " + ", ".join(sorted(full))
        )
    return lines
