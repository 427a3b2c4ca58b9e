"""Where the time goes: the CPU of a proxy under load, by what runs there. ``python -m bench.where --help``.

perf (Debian: linux-perf) samples the proxy's process while the load generator keeps it busy; each sample belongs to a
file (the kernel, OpenSSL, the interpreter, ...). The shares are of the CPU time that the kernel has accounted to the
process for each unit of work. With py-spy (PyPI) the interpreter's part is told by function, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import generator, options, proxies
from bench.contenders import CONTENDERS
from bench.generator import BenchError
from bench.measure import Place
from bench.report import as_markdown
from bench.settings import Settings
from bench.setups import RELAY, TUNNEL, WSS, Contender, Setup, Tools

FREQUENCY = 4999
"""Samples a second of CPU time; odd, so as not to keep step with anything."""

KERNEL, TLS, PYTHON, COMPILED, MODULES, LIBRARIES, PROXY = (
    "kernel",
    "OpenSSL",
    "interpreter",
    "compiled router",
    "C modules",
    "C library",
    "the proxy's own",
)
PARTS = (KERNEL, TLS, PYTHON, COMPILED, MODULES, LIBRARIES, PROXY)

_FILES = (
    (re.compile(r"\[kernel|\[vdso\]|\[guest|\[unknown\]|\[k\]"), KERNEL),
    (re.compile(r"libcrypto|libssl"), TLS),
    (re.compile(r"libpython|python3(\.\d+)?$"), PYTHON),
    (re.compile(r"__mypyc|build/compiled"), COMPILED),
    (re.compile(r"\.cpython-.*\.so|\.abi3\.so|lib-dynload"), MODULES),
    (re.compile(r"^(libc|ld-linux|libm|libz|libpthread)[.-]"), LIBRARIES),
)

PATHS = {
    "round trip": ("roundtrip", (TUNNEL, RELAY, WSS)),
    "opened": ("open", (RELAY, WSS)),
}
"""What is looked at: the generator's mode, and the kinds of work."""

BEFORE = "wsrouter-before"
INTERPRETED = ("wsrouter", BEFORE)
"""Of what is compiled py-spy sees no function."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look: microseconds of CPU for each unit, and the share of each part."""

    unit_us: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is looked at: a kind of work, in the generator's ``mode``, and with what."""

    work: str
    mode: str
    settings: Settings
    load: generator.Generator


def part_of(file: str) -> str:
    """Whose a sample is that fell into ``file``, as perf names it."""
    for pattern, part in _FILES:
        if pattern.search(file):
            return part
    return PROXY


def shares(report: str) -> dict[str, float]:
    """Part to share, of what ``perf report --sort dso`` prints: lines of a percentage and a file."""
    found: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for line in report.splitlines():
        match = re.match(r"\s*(\d+\.\d+)%\s+(\S.*?)\s*$", line)
        if match:
            found[part_of(match[2])] += float(match[1]) / 100
    total = sum(found.values())
    return {part: found[part] / total for part in PARTS if found[part]} if total else {}


def hottest(stacks: str, most: int = 12) -> list[tuple[str, float]]:
    """The functions in which the most samples end, and their shares, of py-spy's collapsed stacks."""
    found: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack and count.isdigit():
            found[stack.rpartition(";")[2]] += int(count)
    total = sum(found.values())
    return [(name, count / total) for name, count in found.most_common(most)] if total else []


@contextmanager
def _sampled(command: list[str]) -> Iterator[None]:
    """Run a profiler around the block; it ends with the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.send_signal(2)
        errors = process.communicate()[1]
    if process.returncode not in (0, -2, 130):
        raise BenchError(f"{command[0]}: {errors.decode(errors='replace').strip()[-300:]}")


def look(place: Place, mode: str, folder: Path) -> Look:
    """Keep the proxy busy and look where its time goes. Raises BenchError."""
    load = _load(place, mode)
    (pid,) = place.proxy.pids
    data = folder / "perf.data"
    perf = place.settings.tools.find("perf")
    record = [perf, "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "-p", str(pid), "-o", str(data)]
    with _sampled(record):
        result = place.load(mode, **load)
    shown = [perf, "report", "-i", str(data), "--stdio", "--sort", "dso", "--percent-limit", "0"]
    report = subprocess.run(shown, capture_output=True, text=True, check=False)
    parts = shares(report.stdout)
    if not parts:
        raise BenchError(f"perf: {report.stderr.strip()[-300:] or 'no sample'}")
    units = result["trips"] if mode == "roundtrip" else result["count"]
    return Look(result["proxy_cpu_ns"] / 1000 / units, parts)


def functions(place: Place, mode: str, folder: Path) -> list[tuple[str, float]]:
    """Keep an interpreted router busy, and tell its hottest functions, where py-spy is at hand. Raises BenchError."""
    spy = place.settings.tools.find("py-spy")
    if not spy:
        return []
    (pid,) = place.proxy.pids
    stacks = folder / "stacks"
    words = ["--pid", str(pid), "--rate", "1000", "--format", "raw", "--nonblocking"]
    with _sampled([spy, "record", "--duration", "unlimited", *words, "--output", str(stacks)]):
        place.load(mode, **_load(place, mode))
    return hottest(stacks.read_text()) if stacks.exists() else []


def _load(place: Place, mode: str) -> dict[str, object]:
    settings = place.settings
    many = settings.connections if mode == "roundtrip" else settings.opening
    return {"connections": many, "size": min(settings.sizes), "seconds": settings.rate_seconds}


def quietest(looks: Iterable[Look]) -> Look:
    """The look with the least CPU: whatever else the machine does can only add to it."""
    return min(looks, key=lambda one: one.unit_us)


def earlier(checkout: Path) -> Contender:
    """The router as another checkout has it."""
    (current,) = (one for one in CONTENDERS if one.name == "wsrouter")

    def command(setup: Setup) -> list[str]:
        words = current.command(setup)
        # An option that it does not know stays out.
        path = Path(words[-1])
        path.write_text(path.read_text().replace("workers = 1\n", ""))
        return ["/usr/bin/env", f"PYTHONPATH={checkout}", *words]

    return replace(current, name=BEFORE, command=command)


def table(looks: Mapping[str, Look]) -> list[list[str]]:
    """Header and rows: each contender's microseconds, in all and by part."""
    parts = [part for part in PARTS if any(part in one.parts for one in looks.values())]
    rows = [["us of CPU", "all", *parts]]
    for name, one in looks.items():
        own = [f"{one.unit_us * one.parts[part]:.1f}" if part in one.parts else "-" for part in parts]
        rows.append([name, f"{one.unit_us:.1f}", *own])
    return rows


def looked(
    contenders: Sequence[Contender], scene: Scene, rounds: int
) -> tuple[dict[str, list[Look]], dict[str, list[tuple[str, float]]], list[BenchError]]:
    """All looks at each of them, by turns; the hottest functions, as they were in the first round; what failed."""
    looks: dict[str, list[Look]] = {one.name: [] for one in contenders}
    hot: dict[str, list[tuple[str, float]]] = {}
    errors: list[BenchError] = []
    for turn in range(rounds):
        for contender in contenders[:: -1 if turn % 2 else 1]:
            with tempfile.TemporaryDirectory(prefix="wsrouter-where-") as name:
                folder = Path(name)
                try:
                    with proxies.running(contender, scene.work, scene.settings, folder) as proxy:
                        place = Place(proxy, scene.work, scene.settings, scene.load)
                        looks[contender.name].append(look(place, scene.mode, folder))
                        if not turn and contender.name in INTERPRETED:
                            hot[contender.name] = functions(place, scene.mode, folder)
                except BenchError as error:
                    errors.append(error)
    return looks, hot, errors


def main(argv: Sequence[str] | None = None) -> int:
    """Look, and print a page of Markdown; 1 when a look failed, 2 when nothing can be looked at."""
    parser = options.looking("python -m bench.where", (__doc__ or "").partition("\n\n")[0])
    add, number = parser.add_argument, options.number
    add("--seconds", type=number(float), default=1.5, help="how long each look takes (1.5)")
    add("--rounds", type=number(int), default=5, help="how many looks at each, by turns; the quietest is told (5)")
    asked = parser.parse_args(argv)
    tools = Tools(Path(sys.executable), dict(asked.tool))
    if not options.is_there(tools, "perf", "linux-perf"):
        return 2
    cpus = sorted(os.sched_getaffinity(0))
    settings = Settings(tools, cpus[min(1, len(cpus) - 1)], cpus[0], sizes=(125,), rate_seconds=asked.seconds)
    options.use_descriptors()
    try:
        load = generator.build(settings.load_cpu)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    contenders = [one for one in CONTENDERS if one.name in ("nginx", "wsrouter", "wsrouter-compiled")]
    contenders = [one for one in contenders if not one.missing(tools)]
    if asked.before:
        contenders.insert(1, earlier(asked.before))
    failed = False
    for what, (mode, works) in PATHS.items():
        for work in works:
            print(f"\n### {work}: {what}", flush=True)
            looks, hot, errors = looked(contenders, Scene(work, mode, settings, load), asked.rounds)
            print(f"\n{as_markdown(table({name: quietest(ones) for name, ones in looks.items() if ones}))}", flush=True)
            for name, found in hot.items():
                if found:
                    told = ", ".join(f"`{function}` {share:.0%}" for function, share in found)
                    print(f"\n{name}, by function: {told}", flush=True)
            for one in errors:
                print(f"bench: {work}: {what}: {one}", file=sys.stderr)
            failed = failed or bool(errors)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
