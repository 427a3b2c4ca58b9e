"""The workloads: what each is for, which kinds of work and contenders it takes by default, and its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import measure
from bench.settings import Settings
from bench.setups import HTTP, MESSAGE, RELAY, TUNNEL, WSS


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a metric, how many of its units make one of the column's, and whether spread and ratio show."""

    metric: str
    title: str
    divisor: float = 1.0
    digits: int = 1
    compared: bool = False


Tables = dict[str, tuple[Column, ...]]
"""What a table is about, and its columns."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``contenders`` are those that take part unless others are asked for; none of them: all.

    ``fresh``: each reading has a proxy of its own, just started. Else the contenders run all the time and take turns.
    ``floor_in_wss``: for wss, too, the floor takes part, which has no TLS.
    """

    name: str
    about: str
    works: tuple[str, ...]
    rounds: int
    take: Callable[[measure.Place], measure.Reading]
    tables: Callable[[Settings], Tables]
    contenders: tuple[str, ...] = ()
    fresh: bool = False
    floor_in_wss: bool = False


def bytes_text(size: int) -> str:
    """A size as one says it: ``125 B``, ``64 KB``, ``1 MB``."""
    for unit, text in ((1 << 20, "MB"), (1 << 10, "KB")):
        if size >= unit and not size % unit:
            return f"{size // unit} {text}"
    return f"{size} B"


def _trips(settings: Settings) -> tuple[Column, ...]:
    return tuple(Column(f"round_trip_us.{size}", f"{bytes_text(size)} us", compared=True) for size in settings.sizes)


def _rates(settings: Settings) -> tuple[Column, ...]:
    columns: list[Column] = []
    for size in settings.sizes:
        title = bytes_text(size)
        columns += [
            Column(f"round_trips_per_s.{size}", f"{title}/s", digits=0),
            Column(f"p50_us.{size}", "p50 ms", divisor=1000, digits=2),
            Column(f"p99_us.{size}", "p99 ms", divisor=1000, digits=2),
            Column(f"proxy_busy.{size}", "CPU %", divisor=0.01, digits=0),
            Column(f"load_busy.{size}", "gen. %", divisor=0.01, digits=0),
        ]
    return tuple(columns)


def _cpu_tables(settings: Settings) -> Tables:
    opened: list[Column] = []
    for kind in ("opened", "resumed"):
        opened += [
            Column(f"{kind}_us", f"{kind} us", digits=0, compared=True),
            Column(f"{kind}_per_cpu_s", f"{kind}/CPU-s", digits=0),
            Column(f"{kind}_per_s", f"{kind}/s", digits=0),
            Column(f"{kind}_proxy_busy", "CPU %", divisor=0.01, digits=0),
            Column(f"{kind}_load_busy", "gen. %", divisor=0.01, digits=0),
        ]
    opened.append(Column("resumed_share", "TLS resumed %", divisor=0.01, digits=0))
    return {
        f"CPU for each round trip, {settings.connections} sessions": _trips(settings),
        f"sessions opened, {settings.opening} at a time": tuple(opened),
        "rates reached, and latency under full load": _rates(settings),
    }


def _cores_tables(settings: Settings) -> Tables:
    return {
        f"all CPUs: round trips of {bytes_text(min(settings.sizes))}, {settings.connections} sessions": (
            Column("round_trips_per_s", "round trips/s", digits=0, compared=True),
            Column("possible_per_s", "with all CPUs/s", digits=0),
            Column("proxy_busy", "CPU %", divisor=0.01, digits=0),
            Column("load_busy", "gen. %", divisor=0.01, digits=0),
            Column("round_trip_us", "us each"),
        )
    }


def _http_tables(settings: Settings) -> Tables:
    return {
        f"plain HTTP, {settings.opening} connections that stay open, answers of 125 B": (
            Column("request_us", "CPU us for each", compared=True),
            Column("requests_per_s", "requests/s", digits=0),
            Column("p50_us", "p50 ms", divisor=1000, digits=2),
            Column("p99_us", "p99 ms", divisor=1000, digits=2),
        )
    }


def _crowd_tables(settings: Settings) -> Tables:
    return {
        f"CPU for each round trip, {settings.crowd} sessions that all exchange messages": _trips(settings),
        "rates reached, and latency under full load": _rates(settings),
    }


def _latency_tables(settings: Settings) -> Tables:
    title = f"latency at {settings.rate:g} messages/s of {bytes_text(min(settings.sizes))} in all"
    return {
        f"{title}, {settings.connections} sessions": (
            Column("p50_us", "p50 us", compared=True),
            Column("p99_us", "p99 us", compared=True),
            Column("added_p50_us", "added p50 us", compared=True),
            Column("added_p99_us", "added p99 us", compared=True),
            Column("max_us", "max us", digits=0),
            Column("message_cpu_us", "CPU us"),
        )
    }


def _idle_tables(settings: Settings) -> Tables:
    columns: list[Column] = []
    for count in settings.idle:
        columns += [
            Column(f"idle_kb.{count}", f"KB each of {count}", compared=True),
            Column(f"sockets_kb.{count}", "socket buffers KB", digits=2),
            Column(f"kernel_kb.{count}", "kernel objects KB"),
        ]
    columns += [Column("idle_kb.flat", "highest / lowest", digits=2), Column("base_kb", "without any MB", 1024)]
    return {"memory of idle sessions": tuple(columns)}


def _storm_tables(settings: Settings) -> Tables:
    return {
        f"{settings.storm} sessions cut at once, all back within {settings.storm_seconds:g} s": (
            Column("all_open_s", "all open after s", digits=2, compared=True),
            Column("refused", "refused", digits=0),
            Column("p50_us", "p50 ms", divisor=1000, digits=2),
            Column("p99_us", "p99 ms", divisor=1000, digits=2, compared=True),
            Column("max_us", "max ms", divisor=1000, digits=0),
            Column("storm_us", "CPU us each", digits=0, compared=True),
        )
    }


_BESIDE = (
    Column("alone_p50_us", "alone p50 us"),
    Column("alone_p99_us", "p99 us", compared=True),
    Column("beside_p50_us", "beside p50 us"),
    Column("beside_p99_us", "p99 us", compared=True),
    Column("p99_times", "p99 beside / alone", digits=2),
)


def _transfer_tables(settings: Settings) -> Tables:
    return {
        f"{settings.chatty} sessions, {settings.rate:g} messages/s in all, alone and beside one transfer of "
        f"{settings.transfer / 1e9:g} GB": (
            *_BESIDE,
            Column("gb_per_s", "GB/s", digits=2),
            Column("cpu_s_per_gb", "CPU s/GB", digits=2, compared=True),
            Column("peak_mb", "memory grew MB", digits=1),
        )
    }


def _slow_tables(settings: Settings) -> Tables:
    return {
        f"{settings.chatty} sessions, {settings.rate:g} messages/s in all, alone and beside {settings.slow} that read "
        f"{settings.slow_rate / 1000:g} KB/s of {settings.slow_bytes / 1e9:g} GB": (
            *_BESIDE,
            Column("slow_kb", "memory grew KB each", compared=True),
            Column("pushed_mb", "pushed MB each", digits=2),
            Column("sockets_kb", "all sockets KB each", digits=0),
        )
    }


def _flat_tables(settings: Settings) -> Tables:
    titles = {
        "all_busy_us": "CPU us for each round trip, so many live sessions, all busy",
        "few_busy_us": f"CPU us for each round trip, so many live sessions, {measure.FEW} busy",
        "beside_us": "CPU us for each session opened beside so many that rest",
    }
    return {
        title: (
            *(Column(f"{metric}.{live}", str(live), compared=True) for live in settings.live),
            Column(f"{metric}.flat", "highest / lowest", digits=2),
        )
        for metric, title in titles.items()
    }


_MAIN = ("nginx", "haproxy", "wsrouter", "floor")

WORKLOADS = (
    Workload(
        "cpu",
        "CPU for each round trip and each opened session",
        (TUNNEL, RELAY, WSS, MESSAGE),
        7,
        measure.cpu,
        _cpu_tables,
    ),
    Workload(
        "latency",
        "latency at a fixed rate",
        (TUNNEL, RELAY, WSS),
        5,
        measure.latency,
        _latency_tables,
        floor_in_wss=True,
    ),
    Workload("idle", "memory of idle sessions", (TUNNEL, RELAY, WSS), 2, measure.idle, _idle_tables, fresh=True),
    Workload(
        "cores",
        "what several processes bring through",
        (RELAY, WSS, MESSAGE),
        5,
        measure.cores,
        _cores_tables,
        ("nginx", "nginx-cores", "wsrouter", "wsrouter-cores"),
    ),
    Workload("http", "plain HTTP requests", (HTTP,), 3, measure.http, _http_tables),
    Workload("crowd", "thousands of busy sessions", (TUNNEL, RELAY, WSS), 3, measure.crowd, _crowd_tables, _MAIN),
    Workload("flat", "the same work with few and many sessions", (RELAY,), 5, measure.flat, _flat_tables, _MAIN[:3]),
    Workload("storm", "all sessions come again at once", (RELAY, WSS), 3, measure.storm, _storm_tables, _MAIN),
    Workload("transfer", "one large transfer", (TUNNEL, RELAY, WSS), 3, measure.transfer, _transfer_tables, _MAIN),
    Workload("slow", "slow readers", (RELAY, WSS), 2, measure.slow, _slow_tables, _MAIN[:3], fresh=True),
)

TARGETS = ("cpu", "latency", "idle")
"""The workloads that have what is compared with the targets for speed and memory; see ``targets.py``."""
