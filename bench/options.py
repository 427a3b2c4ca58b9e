"""The command line of the benchmark: which workloads, with whom, how large."""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS
from bench.settings import Settings
from bench.setups import PROTOCOLS, Tools
from bench.workloads import TARGETS, WORKLOADS

RESULTS = Path(__file__).parent / "results"

QUICK: dict[str, Any] = {
    "seconds": 0.3,
    "warm": 0.1,
    "sizes": (125, 65_536),
    "idle": (200, 1000),
    "rate_seconds": 1.0,
    "crowd": 1000,
    "live": (10, 100, 1000),
    "storm": 1000,
    "transfer": 400_000_000,
    "slow": 20,
    "slow_bytes": 100_000_000,
    "slow_seconds": 3.0,
}
"""For a look: whether all works, and roughly what comes out."""

QUICK_ROUNDS = 2


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ``settings`` are complete, and what this machine can do. Exits on faults."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="wsrouter beside nginx and HAProxy, by CPU and memory. bench/README.md explains.",
    )
    names = [one.name for one in CONTENDERS]
    known = [one.name for one in WORKLOADS]
    what = parser.add_argument_group("what is measured")
    add = what.add_argument
    add(
        "--workload",
        type=_names([*known, "all"]),
        default=list(TARGETS),
        help=f"by comma: all, or {'; '.join(f'{one.name}: {one.about}' for one in WORKLOADS)} ({','.join(TARGETS)})",
    )
    add("--only", type=_names(names), default=[], help=f"contenders, by comma: {', '.join(names)}")
    add("--work", type=_names(list(PROTOCOLS)), default=[], help=f"kinds of work, by comma: {', '.join(PROTOCOLS)}")
    add("--quick", action="store_true", help="a look: small numbers, two rounds")
    add("--rounds", type=number(int), help="how often every contender takes its turn (each workload has its own)")
    add("--reference", choices=names, default="nginx", help="the contender that ratios are to (nginx)")
    where = parser.add_argument_group("with what")
    add = where.add_argument
    add("--python", type=Path, default=Path(sys.executable), help="interpreter that wsrouter is installed for")
    add(
        "--tool",
        type=tool,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where a program is: nginx, haproxy, caddy, node, mitmdump; http-proxy: the node_modules that has it",
    )
    add("--proxy-cpu", type=int, help="CPU of the proxy (the second that this process may use)")
    add("--load-cpu", type=int, help="CPU of the load generator (the first)")
    results = parser.add_argument_group("results")
    results.add_argument("--results", type=Path, default=RESULTS, help="folder that keeps all readings (bench/results)")
    results.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown too; - for the terminal")
    results.add_argument("--plots", type=Path, metavar="FOLDER", help="draw them as SVG (needs matplotlib)")
    results.add_argument(
        "--kept", type=Path, metavar="FILE", help="measure nothing: show kept readings (bench/results)"
    )
    _add_sizes(parser.add_argument_group("how large"))
    options = parser.parse_args(argv)
    if "all" in options.workload:
        options.workload = known
    if options.quick and options.rounds is None:
        options.rounds = QUICK_ROUNDS
    options.settings = _settings(options)
    return options


def _add_sizes(group: argparse._ArgumentGroup) -> None:
    count, seconds = number(int), number(float)
    for name, kind, text in (
        ("seconds", seconds, "length of each counted window"),
        ("warm", number(float, zero=True), "seconds of the same work before each window"),
        ("connections", count, "connections that exchange messages"),
        ("opening", count, "sessions that open at the same time"),
        ("sizes", _counts, "bytes of a message, by comma; where only one is used, the least"),
        ("idle", _counts, "idle sessions whose memory is measured, by comma"),
        ("rate", number(float), "messages a second in all, where the rate is fixed"),
        ("rate_seconds", seconds, "length of the window there"),
        ("crowd", count, "crowd: sessions"),
        ("live", _counts, "flat: sessions, by comma"),
        ("storm", count, "storm: sessions"),
        ("storm_seconds", seconds, "storm: within what time they come again"),
        ("chatty", count, "transfer, slow: sessions beside"),
        ("transfer", count, "transfer: bytes"),
        ("slow", count, "slow: readers"),
        ("slow_bytes", count, "slow: bytes that their backends push in all"),
        ("slow_rate", count, "slow: bytes a second that each reads"),
        ("slow_seconds", seconds, "slow: length of the window"),
        ("patience", seconds, "longest that a session may wait for an echo; ten times that for the start of a proxy"),
    ):
        default = next(one.default for one in dataclasses.fields(Settings) if one.name == name)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else f"{default:g}"
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, help=f"{text} ({shown})")


def _settings(options: argparse.Namespace) -> Settings:
    cpus = sorted(os.sched_getaffinity(0))
    settings = Settings(
        tools=Tools(options.python, dict(options.tool)),
        proxy_cpu=cpus[min(1, len(cpus) - 1)] if options.proxy_cpu is None else options.proxy_cpu,
        load_cpu=cpus[0] if options.load_cpu is None else options.load_cpu,
    )
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    given = {name: value for name, value in given.items() if name not in ("tools", "proxy_cpu", "load_cpu")}
    settings = dataclasses.replace(settings, **((QUICK if options.quick else {}) | given))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = settings.within(hard)
    if possible != settings:
        print(f"bench: fewer sessions than asked for: a process may have {hard} descriptors", file=sys.stderr)
    return possible


def use_descriptors() -> None:
    """Let this process and what it starts have as many descriptors as they may, for which the settings are made."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def warn_of_cpus(settings: Settings) -> None:
    """Say it where the two CPUs are not two."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{settings.proxy_cpu}/topology/thread_siblings_list")
    if settings.load_cpu == settings.proxy_cpu:
        print("bench: one CPU for proxy and generator: rates and latencies mean little here", file=sys.stderr)
    elif siblings.exists() and settings.load_cpu in _cpu_numbers(siblings.read_text()):
        pair = f"{settings.load_cpu} and {settings.proxy_cpu}"
        print(f"bench: CPUs {pair} are two threads of one core, which slow each other", file=sys.stderr)


def _cpu_numbers(text: str) -> set[int]:
    """CPU numbers of the kernel's list form: ``0-1,4``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _names(known: list[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
        return names

    return split


def number(kind: type[int] | type[float], zero: bool = False) -> Callable[[str], int | float]:
    """What reads an option that is a number above 0, or 0 as well with ``zero``."""

    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a number") from None
        if value < 0 or (not zero and not value):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected more than 0")
        return value

    return read


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(number(int)(part)) for part in text.split(",")}))


def looking(prog: str, about: str) -> argparse.ArgumentParser:
    """What tools take that look at the router beside the benchmark: ``before`` and ``tool``."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--before", type=_checkout, metavar="FOLDER", help="an earlier checkout of the router")
    parser.add_argument(
        "--tool", type=tool, action="append", default=[], metavar="NAME=PATH", help="a program they run"
    )
    return parser


def is_there(tools: Tools, program: str, package: str) -> bool:
    """Whether ``program`` can be run; else it is said where it comes from."""
    if tools.find(program):
        return True
    print(f"bench: {program} is needed (Debian: {package}; --tool {program}=PATH names it)", file=sys.stderr)
    return False


def _checkout(value: str) -> Path:
    # Anywhere else Python would find the router that is installed, and that would be measured.
    if not (Path(value) / "wsrouter" / "tap.py").exists():
        raise argparse.ArgumentTypeError(f"{value} holds no checkout of the router")
    return Path(value).resolve()


def tool(text: str) -> tuple[str, str]:
    """``NAME=PATH`` of the command line: where a program is."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=PATH")
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"there is no {path}")
    return name, path
