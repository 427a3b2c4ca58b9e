"""Readings of one contender: CPU time for each round trip and each opened session, memory for each idle one."""

from __future__ import annotations

import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import PROTOCOLS, Contender, Setup
from bench.generator import BenchError, Generator, started

START_TIMEOUT = 20.0
SETTLE = 0.5
WARM_UP_SESSIONS = 20

Reading = dict[str, float]
"""Metric to value, each named with its unit; see README.md."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What every reading of a run has in common; times in seconds, ``size`` in bytes."""

    seconds: float
    warm: float
    connections: int
    opening: int
    size: int
    idle: int
    resume: bool
    proxy_cpu: int
    load_cpu: int
    python: Path


@dataclass(frozen=True, slots=True)
class Proxy:
    """A started proxy (no processes at all for the floor), and where its clients and its backend meet it."""

    pids: tuple[int, ...]
    port: int
    backend_port: int


def read(proxy: Proxy, work: str, settings: Settings, generator: Generator) -> Reading:
    """Measure round trips and opened sessions once. Raises BenchError when anything meets a fault."""
    return _round_trips(proxy, work, settings, generator) | _opened(proxy, work, settings, generator)


def read_idle(contender: Contender, work: str, settings: Settings, generator: Generator, folder: Path) -> Reading:
    """Measure what idle sessions need. Raises BenchError when anything meets a fault."""
    # A new process: memory that earlier work has left behind would hide it.
    with running(contender, work, settings, folder) as proxy:
        return _idle(proxy, work, settings, generator) if proxy.pids else {}


def _round_trips(proxy: Proxy, work: str, settings: Settings, generator: Generator) -> Reading:
    waited, since = _waited_ns(proxy.pids), time.monotonic_ns()
    result = generator.run(
        "roundtrip",
        protocol=PROTOCOLS[work],
        connect=proxy.port,
        backend=proxy.backend_port,
        connections=settings.connections,
        size=settings.size,
        warm=settings.warm,
        seconds=settings.seconds,
        pids=_joined(proxy.pids),
    )
    _check(result)
    reading = {
        "round_trips_per_s": result["count"] / result["seconds"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "load_busy": result["load_cpu_ns"] / 1e9 / result["seconds"],
    }
    if proxy.pids:
        reading["proxy_waited"] = (_waited_ns(proxy.pids) - waited) / (time.monotonic_ns() - since)
        reading["round_trip_us"] = result["proxy_cpu_ns"] / 1000 / result["count"]
        reading["proxy_busy"] = result["proxy_cpu_ns"] / 1e9 / result["seconds"]
    return reading


def _opened(proxy: Proxy, work: str, settings: Settings, generator: Generator) -> Reading:
    result = generator.run(
        "open",
        protocol=PROTOCOLS[work],
        connect=proxy.port,
        backend=proxy.backend_port,
        connections=settings.opening,
        size=settings.size,
        warm=settings.warm,
        seconds=settings.seconds,
        pids=_joined(proxy.pids),
        resume=settings.resume,
    )
    _check(result)
    reading = {
        "opened_per_s": result["count"] / result["seconds"],
        "open_load_busy": result["load_cpu_ns"] / 1e9 / result["seconds"],
    }
    if settings.resume and result["handshakes"]:
        reading["resumed_share"] = result["resumed"] / result["handshakes"]
    if proxy.pids:
        reading["opened_us"] = result["proxy_cpu_ns"] / 1000 / result["count"]
        reading["open_proxy_busy"] = result["proxy_cpu_ns"] / 1e9 / result["seconds"]
    return reading


def _idle(proxy: Proxy, work: str, settings: Settings, generator: Generator) -> Reading:
    ends = {"protocol": PROTOCOLS[work], "connect": proxy.port, "backend": proxy.backend_port, "size": settings.size}
    generator.run("open", **ends, connections=WARM_UP_SESSIONS, warm=0, seconds=0.3)
    time.sleep(SETTLE)
    before = _resident_kb(proxy.pids)
    with generator.holding(**ends, connections=settings.idle):
        time.sleep(SETTLE)
        after = _resident_kb(proxy.pids)
    return {"idle_kb": (after - before) / settings.idle, "base_kb": before}


def _check(result: dict[str, float]) -> None:
    if not result["count"]:
        raise BenchError("not one unit of work was done in the window")
    if result["stuck"]:
        raise BenchError(f"{result['stuck']} sessions made no progress for 2 s")


@contextmanager
def running(contender: Contender, work: str, settings: Settings, folder: Path) -> Iterator[Proxy]:
    """Start the contender on its CPU and wait until it listens. Raises BenchError with its log when it does not."""
    backend_port = _free_port()
    port = _free_port(backend_port)
    sessions = max(settings.idle, settings.connections, settings.opening)
    certificate = folder / "cert.pem"
    command = contender.command(Setup(folder, work, port, backend_port, sessions, certificate, settings.python))
    if not command:
        yield Proxy((), backend_port, backend_port)
        return
    log = folder / f"{contender.name}.log"
    with log.open("wb") as output, started(command, settings.proxy_cpu, output) as process:
        deadline = time.monotonic() + START_TIMEOUT
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                what = "does not listen" if process.returncode is None else f"ended with {process.returncode}"
                raise BenchError(f"{contender.name} {what}:\n{_tail(log)}")
            time.sleep(0.05)
        time.sleep(SETTLE)
        try:
            yield Proxy(_family(process.pid), port, backend_port)
        except BenchError as error:
            raise BenchError(f"{error}\n{_tail(log)}".rstrip()) from error


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])


def _free_port(taken: int = 0) -> int:
    """A free port below those that the kernel gives to outgoing connections, which come and go in thousands here."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.randrange(max(1024, low - 12_000), low) if low > 2048 else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
        if chosen != taken:
            return chosen
    raise BenchError("no free port was found")


def _listens(port: int) -> bool:
    """Whether anybody listens on the port, told by the kernel's table: a probing connection would reach the backend.

    The table begins with the listening sockets (state 0A). The rest may be tens of thousands of lines and is not read.
    """
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        with table.open() as lines:
            next(lines)
            for line in lines:
                _, local, _, state, *_ = line.split()
                if state != "0A":
                    break
                if local.endswith(f":{port:04X}"):
                    return True
    return False


def _family(root: int) -> tuple[int, ...]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(stat.parent.name))
    family = [root]
    for pid in family:
        family += children.get(pid, [])
    return tuple(family)


def _resident_kb(pids: tuple[int, ...]) -> float:
    total = 0
    for pid in pids:
        match = re.search(r"^Rss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        if not match:
            raise BenchError(f"the kernel does not tell the memory of process {pid}")
        total += int(match[1])
    return total


def _waited_ns(pids: tuple[int, ...]) -> int:
    """How long the processes were ready to run while their CPU ran something else; 0 where the kernel does not tell."""
    files = [Path(f"/proc/{pid}/schedstat") for pid in pids]
    return sum(int(file.read_text().split()[1]) for file in files if file.exists())


def _joined(pids: tuple[int, ...]) -> str:
    return ",".join(map(str, pids))
