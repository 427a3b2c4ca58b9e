"""The benchmark's command and its rounds. Run it as ``python -m bench`` from the top of the checkout."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import generator, measure, options, proxies, publish
from bench.contenders import CONTENDERS
from bench.report import Taken
from bench.settings import Settings
from bench.setups import HTTP, WSS, Contender
from bench.workloads import WORKLOADS, Workload


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, keep the results; 1 when a reading failed, 2 when nothing can be measured, 130 on Ctrl-C."""
    asked = options.parse(argv)
    if asked.kept:
        facts, taken = publish.load(asked.kept)
        publish.publish(asked, facts, taken)
        return 0
    if asked.plots:
        publish.need_plots()
    signal.signal(signal.SIGTERM, _terminated)
    settings = asked.settings
    options.warn_of_cpus(settings)
    options.use_descriptors()
    try:
        load = generator.build(settings.load_cpu)
    except generator.BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not load.tls:
        print("bench: without wss: OpenSSL's headers are missing (Debian: libssl-dev)", file=sys.stderr)
    run = Run(settings, load, _plan(asked, settings, load.tls))
    if not run.plan:
        print("bench: nothing is left to measure", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, {settings.load_cpu})
    started = datetime.datetime.now(datetime.UTC)
    status = 0
    try:
        for block in run.plan:
            run.go_round(block)
    except KeyboardInterrupt:
        print("\nbench: interrupted; what was measured so far:", file=sys.stderr)
        status = 130
    facts = _facts(started, settings, run.plan, sys.argv[1:] if argv is None else argv)
    if run.taken:
        publish.publish(asked, facts, run.taken, publish.keep(asked.results, facts, run.taken))
    return status or int(any(one.error for one in run.taken))


@dataclass(frozen=True, slots=True)
class Block:
    """One workload over one kind of work: rounds of turns of the contenders."""

    workload: Workload
    work: str
    contenders: tuple[Contender, ...]
    rounds: int


def _plan(asked: argparse.Namespace, settings: Settings, tls: bool) -> list[Block]:
    """What can be measured here of what was asked for; what is missing is named once."""
    missing: dict[str, str] = {}
    plan = []
    for workload in WORKLOADS:
        for work in asked.work or workload.works:
            if workload.name not in asked.workload or (work == WSS and not tls):
                continue
            if (work == HTTP) != (HTTP in workload.works):
                continue  # one workload asks in plain HTTP, and it asks nothing else
            able = []
            for contender in CONTENDERS:
                if not _takes_part(contender, workload, work, asked.only):
                    continue
                if contender.name not in missing:
                    missing[contender.name] = contender.missing(settings.tools)
                if not missing[contender.name]:
                    able.append(contender)
            if able:
                plan.append(Block(workload, work, tuple(able), asked.rounds or workload.rounds))
    for name, reason in missing.items():
        if reason:
            print(f"bench: without {name}: {reason}", file=sys.stderr)
    return plan


def _takes_part(contender: Contender, workload: Workload, work: str, only: list[str]) -> bool:
    """``only`` are those that were asked for; with none, the workload's own, and all where that has none."""
    if work not in contender.works or (contender.name == "floor" and work == WSS and not workload.floor_in_wss):
        return False
    if contender.cores and contender.name not in workload.contenders:
        return False
    chosen = only or workload.contenders
    return not chosen or contender.name in chosen


@dataclass(slots=True)
class Run:
    """What is to be measured and what was, in the order in which it happened."""

    settings: Settings
    load: generator.Generator
    plan: list[Block]
    taken: list[Taken] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def go_round(self, block: Block) -> None:
        """Every contender takes its turn in every round, so that what drifts, drifts for all of them.

        They all run meanwhile, and rest but in their turns: so turns can be short and follow each other closely. Each
        other round has them in the opposite order. Where a reading needs a fresh process, only that one runs.
        """
        with contextlib.ExitStack() as stack:
            ready: dict[str, proxies.Proxy] = {}
            for contender in () if block.workload.fresh else block.contenders:
                with self._told(block, 0, contender):
                    ready[contender.name] = stack.enter_context(self._running(contender, block))
            for turn in range(1, block.rounds + 1):
                for contender in block.contenders[:: 1 if turn % 2 else -1]:
                    if block.workload.fresh:
                        with self._told(block, turn, contender) as reading, self._running(contender, block) as proxy:
                            self._take(block, proxy, reading)
                    elif contender.name in ready:
                        with self._told(block, turn, contender) as reading:
                            self._take(block, ready[contender.name], reading)

    def _take(self, block: Block, proxy: proxies.Proxy, reading: measure.Reading) -> None:
        place = measure.Place(proxy, block.work, self.settings, self.load)
        try:
            reading |= block.workload.take(place) | place.disturbed()
            proxies.check(proxy)
        except generator.BenchError as error:
            reading.clear()
            raise generator.BenchError(f"{error}\n{proxies.log_tail(proxy)}".rstrip()) from error

    @contextlib.contextmanager
    def _running(self, contender: Contender, block: Block) -> Iterator[proxies.Proxy]:
        with (
            tempfile.TemporaryDirectory(prefix="wsrouter-bench-") as name,
            proxies.running(contender, block.work, self.settings, Path(name)) as proxy,
        ):
            yield proxy

    @contextlib.contextmanager
    def _told(self, block: Block, turn: int, contender: Contender) -> Iterator[measure.Reading]:
        """Note a reading, or why there is none, and say so on the terminal. Turn 0 is the start: noted if it fails."""
        reading: measure.Reading = {}
        error = ""
        try:
            yield reading
        except generator.BenchError as fault:
            error = str(fault)
        if not (error or turn):
            return
        self.taken.append(Taken(turn, block.workload.name, block.work, contender.name, reading, error))
        turns = sum(one.rounds * len(one.contenders) for one in self.plan)
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        where = f"{minutes:3}:{seconds:02} {len(self.taken):4}/{turns} {block.workload.name:8} {block.work:7}"
        print(
            f"{where} {turn}/{block.rounds} {contender.name:16} {error or self._summary(block, reading)}",
            file=sys.stderr,
        )

    def _summary(self, block: Block, reading: measure.Reading) -> str:
        tables = block.workload.tables(self.settings).values()
        columns = [one for columns in tables for one in columns if one.metric in reading]
        first = [one for one in columns if one.compared] or columns
        return ", ".join(f"{one.title} {reading[one.metric] / one.divisor:.{one.digits}f}" for one in first[:5])


def _facts(started: datetime.datetime, settings: Settings, plan: list[Block], words: Sequence[str]) -> publish.Facts:
    """Where and with what the numbers came about."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    contenders = {contender.name: contender for block in plan for contender in block.contenders}
    return publish.Facts(
        started=started.isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "bench", *_without_paths(words)]),
        machine=f"{os.cpu_count()} CPUs, {model}, Linux {platform.release().partition('-')[0]}",
        versions={name: one.version(settings.tools) for name, one in contenders.items()},
        rounds={block.workload.name: block.rounds for block in plan},
        settings={name: value for name, value in dataclasses.asdict(settings).items() if name != "tools"},
    )


def _without_paths(words: Sequence[str]) -> Iterator[str]:
    """The command as others would give it: where programs lie and where results went is of no use to them."""
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in ("--tool", "--python", "--results", "--markdown", "--plots"):
            yield word
            continue
        value = value if equals else next(rest, "")
        if option == "--tool":
            yield from (option, f"{value.partition('=')[0]}=PATH")
        elif option == "--python":
            yield from (option, "PATH")


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)
