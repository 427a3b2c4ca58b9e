"""What a process weighs, and what it has cost."""

from __future__ import annotations

import gc
import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(process: int | str = "self") -> int:
    """The resident memory of this process, or of the one with the number ``process``, in bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE


def peak(process: int | str = "self") -> int:
    """The most resident memory that the process ever had, in bytes."""
    (line,) = (one for one in Path(f"/proc/{process}/status").read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def processor_time(process: int | str = "self") -> float:
    """What the process has used of the processors, for itself and in the kernel, in seconds."""
    # The name in parentheses may hold anything; behind it, user and system time are fields 14 and 15 (proc(5)).
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def living(kind: type) -> int:
    """How many objects of this class there are, those included that only wait for the collector."""
    return sum(type(one) is kind for one in gc.get_objects())
