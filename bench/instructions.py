"""Instructions that the router's own code takes, counted. ``python -m bench.instructions --help``.

CPU time on a machine that others share differs by a fifth from one minute to the next; the number of instructions does
not. valgrind (Debian: valgrind) counts those of ``programs/dry.py``, in which the router's code runs over sockets that
are none. So the kernel has no part, nor have caches: whether it helps what is saved here, the benchmark has to tell.
The stand-ins' own instructions are among those that are told, the same for all checkouts.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import options
from bench.contenders import COMPILED, CONTENDERS, ROOT
from bench.generator import BenchError
from bench.report import as_markdown
from bench.setups import Tools

DRY = Path(__file__).parent / "programs" / "dry.py"
SESSIONS = 32
"""As many are served together in each round."""
FEW, MANY = 10, 40
"""Rounds of a run; what they have in common, the start above all, falls out of the difference."""
WHAT = {"roundtrip": "round trip", "opened": "opened session"}


def start(tools: Tools, checkout: Path, what: str, rounds: int) -> subprocess.Popen[str]:
    """Begin to count the instructions of so many rounds."""
    valgrind = [tools.find("valgrind"), "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    words = [*valgrind, str(tools.python), "-P", str(DRY), what, str(rounds), str(SESSIONS)]
    # Hashes have to fall alike in all runs.
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def collected(said: str) -> int:
    """How many instructions there were, by what callgrind has said. Raises BenchError."""
    match = re.search(r"Collected\s*:\s*(\d+)", said)
    if match is None:
        raise BenchError(f"valgrind: {said.strip()[-300:]}")
    return int(match[1])


def count(tools: Tools, checkout: Path, what: str) -> float:
    """Instructions for one unit of ``what``. Raises BenchError."""
    runs = [start(tools, checkout, what, rounds) for rounds in (FEW, MANY)]
    said = [run.communicate()[1] for run in runs]
    for run, words in zip(runs, said, strict=True):
        if run.returncode:
            raise BenchError(f"dry.py over {checkout}: {words.strip()[-300:]}")
    few, many = map(collected, said)
    return (many - few) / (MANY - FEW) / SESSIONS


def table(counts: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Header and rows: each checkout's instructions, and their ratio to those of the first."""
    first = next(iter(counts.values()))
    rows = [["instructions", *(word for what in first for word in (WHAT[what], "ratio"))]]
    for name, one in counts.items():
        rows.append(
            [name, *(word for what in first for word in (f"{one[what]:,.0f}", f"{one[what] / first[what]:.2f}"))]
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Count, and print a table; 2 when nothing can be counted."""
    first = (__doc__ or "").partition("\n\n")[0]
    asked = options.looking("python -m bench.instructions", first).parse_args(argv)
    tools = Tools(Path(sys.executable), dict(asked.tool))
    if not options.is_there(tools, "valgrind", "valgrind"):
        return 2
    checkouts = {"wsrouter": ROOT}
    if asked.before:
        checkouts = {"wsrouter-before": asked.before, **checkouts}
    if any(one.name == "wsrouter-compiled" and not one.missing(tools) for one in CONTENDERS):
        checkouts["wsrouter-compiled"] = COMPILED
    try:
        counts = {name: {what: count(tools, path, what) for what in WHAT} for name, path in checkouts.items()}
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(as_markdown(table(counts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
