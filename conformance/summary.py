"""What is told about all runs: a table, and what is wrong. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from conformance.runs import Outcome
from conformance.verdicts import INFORMATIONAL, NON_STRICT, OK

_TITLES = ["session", "over", "the suite as", "cases", "passed", "OK", "non-strict", "informational", "minutes"]


def table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A row for each run, below the titles; the first three columns are words."""
    rows = [_TITLES]
    for one in outcomes:
        judgement = one.judgement
        numbers = (
            *(judgement.asked, judgement.passed),
            *(judgement.counts.get(verdict, 0) for verdict in (OK, NON_STRICT, INFORMATIONAL)),
        )
        words = [one.run.kind.name, one.run.scheme, one.run.role.value]
        rows.append([*words, *map(str, numbers), f"{one.seconds / 60:.1f}"])
    return rows


def in_words(outcome: Outcome) -> str:
    """One line."""
    judgement = outcome.judgement
    faults = f", {len(judgement.faults)} faults" if judgement.faults else ""
    return f"{judgement.passed} of {judgement.asked} cases passed{faults}"


def as_text(rows: Sequence[Sequence[str]], outcomes: Sequence[Outcome]) -> str:
    """For a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number < 3 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *_faults(outcomes)])


def as_markdown(rows: Sequence[Sequence[str]], outcomes: Sequence[Outcome]) -> str:
    """For a file."""
    rule = ["---"] * 3 + ["---:"] * (len(rows[0]) - 3)
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    return "\n".join([*lines, "", *(f"- {fault}" for fault in _faults(outcomes))]).rstrip() + "\n"


def as_json(outcomes: Sequence[Outcome]) -> str:
    """For programs: by name of the run, what was asked for, what passed, and the faults."""
    told = {
        one.run.name: {
            "asked": one.judgement.asked,
            "passed": one.judgement.passed,
            "verdicts": dict(one.judgement.counts),
            "faults": one.judgement.faults,
        }
        for one in outcomes
    }
    return json.dumps(told, indent=1) + "\n"


def _faults(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{one.run.name}: {fault}" for one in outcomes for fault in one.judgement.faults]
