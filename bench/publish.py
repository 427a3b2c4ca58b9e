"""What becomes of readings: tables on the terminal and as Markdown, plots, and a file that keeps all of them."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report, targets
from bench.report import Taken
from bench.settings import Settings
from bench.setups import Tools
from bench.workloads import WORKLOADS


@dataclass(frozen=True, slots=True)
class Facts:
    """Where, when and with what the readings came about; ``settings`` by name, without the tools."""

    started: str
    command: str
    machine: str
    versions: dict[str, str]
    rounds: dict[str, int]
    settings: dict[str, Any]

    def whole_settings(self) -> Settings:
        """The settings as they were, for the titles of tables."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()
        }
        return Settings(tools=Tools(Path()), **values)

    def caption(self) -> str:
        """One paragraph for below a table or a plot."""
        versions = "; ".join(dict.fromkeys(text for name, text in self.versions.items() if name != "floor"))
        return f"Measured {self.started} on {self.machine}, with {versions}. Command: `{self.command}`."


def keep(folder: Path, facts: Facts, taken: Sequence[Taken]) -> Path:
    """Write all readings as JSON, and return where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{facts.started.replace(':', '')}.json"
    kept = dataclasses.asdict(facts) | {"readings": [dataclasses.asdict(one) for one in taken]}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> tuple[Facts, list[Taken]]:
    """Read what ``keep`` has written. Exits with a word when it is not that."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        readings = [Taken(**one) for one in kept.pop("readings")]
        return Facts(**kept), readings
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise SystemExit(f"bench: {path}: {fault!r}, expected a file of readings") from None


def need_plots() -> None:
    """Exits with a word when plots cannot be drawn: better before an hour of measuring than after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("bench: --plots needs matplotlib: pip install -e '.[docs]'")


def publish(asked: argparse.Namespace, facts: Facts, readings: Sequence[Taken], kept: Path | None = None) -> None:
    """Print the tables; write them as Markdown and draw the plots where that was asked for."""
    taken = report.with_added(readings)
    tables = _tables(facts, taken, asked.reference)
    remarks = report.notes(taken)
    for title, rows in tables:
        print(f"\n{title}\n{report.as_text(rows)}")
    if remarks:
        print("\n" + "\n".join(remarks))
    if kept:
        print(f"\nAll readings: {kept}")
    parts = [f"{facts.caption()} Cells are medians (lowest-highest); ratios are taken within a round."]
    for title, rows in tables:
        parts += [f"### {title}", report.as_markdown(rows)]
    if remarks:
        parts.append("\n".join(f"- {' '.join(line.split())}" for line in remarks))
    text = "\n\n".join(parts) + "\n"
    if asked.markdown == "-":
        print("\n" + text)
    elif asked.markdown:
        Path(asked.markdown).write_text(text, encoding="utf-8")
    if asked.plots:
        from bench import plots

        for path in plots.draw(asked.plots, facts.caption(), facts.whole_settings(), taken):
            print(f"Drawn: {path}")


def _tables(facts: Facts, taken: Sequence[Taken], reference: str) -> list[tuple[str, list[list[str]]]]:
    """Title and rows: the targets first, then all that was measured."""
    found = []
    reached = targets.table(taken)
    if len(reached) > 1:
        found.append(("Targets: medians over the rounds of one run", reached))
    settings = facts.whole_settings()
    for workload in WORKLOADS:
        for work in dict.fromkeys(one.work for one in taken if one.workload == workload.name):
            for title, columns in workload.tables(settings).items():
                rows = report.table(taken, workload.name, work, columns, report.reference_for(work, reference))
                if rows:
                    found.append((f"{work}: {title}; {facts.rounds[workload.name]} rounds", rows))
    return found
