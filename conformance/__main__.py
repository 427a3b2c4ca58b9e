"""The command: which runs, which cases, how many runs at once; what came of it. ``python -m conformance --help``."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from conformance import summary, verdicts
from conformance.kinds import KINDS
from conformance.python2 import Unavailable
from conformance.runs import SCHEMES, Outcome, Run, every_run, play, quick_runs
from conformance.suite import Suite, prepare

RESULTS = Path(__file__).parent / "results"
#: All that is quick: the protocol itself, and of the two long groups about compression one case each.
QUICK = (*map(str, range(1, 11)), "12.1.1", "13.1.1")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every case of every run passed, 1 when not, 2 when the suite cannot be had, 130 when interrupted."""
    options = _options(argv)
    try:
        suite = prepare(_say)
    except Unavailable as error:
        _say(str(error))
        return 2
    chosen = list(suite.cases)
    if options.quick or options.cases:
        chosen = verdicts.select(chosen, QUICK if options.quick else options.cases)
    runs = [
        run
        for run in (quick_runs() if options.quick else every_run())
        if run.kind.name in options.kinds and run.scheme in options.over and run.role.value.split()[1] in options.suite
    ]
    runs = [run for run in runs if run.cases(chosen)]
    if not runs:
        _say("there is no such run, or no such case in it")
        return 2
    for run in runs:
        # What an earlier call left is not of this one.
        shutil.rmtree(options.results / run.name, ignore_errors=True)
    _say(f"{len(runs)} runs of up to {len(chosen)} cases, {options.jobs} at a time; reports in {options.results}")
    try:
        outcomes = asyncio.run(_play_all(runs, suite, chosen, options.results, options.jobs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("interrupted")
        return 130
    table = summary.table(outcomes)
    (options.results / "summary.md").write_text(summary.as_markdown(table, outcomes))
    (options.results / "summary.json").write_text(summary.as_json(outcomes))
    print(f"\n{summary.as_text(table, outcomes)}\n\nReports and logs: {options.results}")
    return int(any(one.judgement.faults for one in outcomes))


async def _play_all(
    runs: Sequence[Run], suite: Suite, chosen: Sequence[str], results: Path, jobs: int
) -> list[Outcome]:
    places = asyncio.Semaphore(jobs)
    # As Ctrl-C does: so that what the runs have started ends with them.
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)

    async def one(run: Run) -> Outcome:
        async with places:
            outcome = await play(run, suite, chosen, results / run.name, _progress(run, run.cases(chosen)))
        _say(f"{run.name}: {summary.in_words(outcome)}")
        return outcome

    # A group waits for all its tasks when it is cancelled.
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(run)) for run in runs]
    return [task.result() for task in tasks]


def _progress(run: Run, cases: Sequence[str]) -> Callable[[str], None]:
    """Says so when a part of a group of cases begins."""
    part = ""

    def began(case: str) -> None:
        nonlocal part
        group, subgroup, *_ = case.split(".")
        # Where a subgroup is long it is news; in the quick groups only the group is.
        now = f"{group}.{subgroup}" if group in ("12", "13") else group
        if now != part and case in cases:
            part = now
            _say(f"{run.name}: {now}.* ({cases.index(case)} of {len(cases)} done)")

    return began


def _say(text: str) -> None:
    print(f"conformance: {text}", file=sys.stderr, flush=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m conformance", description="The Autobahn test suite, through the router, both ways"
    )
    add = parser.add_argument
    add("--kinds", type=_names([one.name for one in KINDS]), default=[one.name for one in KINDS], help="by comma")
    add("--over", type=_names(list(SCHEMES)), default=list(SCHEMES), help="ws, wss")
    add("--suite", type=_names(["client", "server"]), default=["client", "server"], help="what the suite is")
    cases = parser.add_mutually_exclusive_group()
    cases.add_argument("--cases", type=lambda text: text.split(","), help="groups or cases, by comma: 9,12.1,13.2.4")
    cases.add_argument("--quick", action="store_true", help="what every change is tested with: fewer cases and runs")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (one for each CPU)")
    add("--results", type=Path, default=RESULTS, help="folder of the reports; what it has of the same runs is replaced")
    options = parser.parse_args(argv)
    # The router takes paths to be relative to its configuration.
    options.results = options.results.resolve()
    return options


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
        return names

    return split


if __name__ == "__main__":
    sys.exit(main())
