"""Readings of one started proxy: what each workload does with it, and what comes of that."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

from bench.generator import BenchError, Generator, started
from bench.proxies import SETTLE, Proxy, answering, cpu_ns, kernel_kb, resident_kb, socket_kb, waited_ns
from bench.settings import Settings
from bench.setups import WSS

WARM_UP_SESSIONS = 20

IN_FLIGHT = 16 * 1024 * 1024
"""Bytes of messages on their way at a time, at most: with more, a window holds too few round trips to be counted."""

FEW = 10
"""How many sessions exchange messages where all others rest."""

RESUMED = 0.9
"""The share of resumed handshakes from which on a reading is one of resumed sessions."""

Reading = dict[str, float]
"""Metric to value, each named with its unit; see README.md."""


@dataclass(slots=True)
class Place:
    """Where a reading is taken: one proxy, one kind of work. Keeps how far other work disturbed it."""

    proxy: Proxy
    work: str
    settings: Settings
    generator: Generator
    proxy_waited: float = 0.0
    load_waited: float = 0.0
    ends: dict[str, object] = field(init=False)

    def __post_init__(self) -> None:
        self.ends = {
            "protocol": self.proxy.protocol,
            "connect": self.proxy.port,
            "backend": self.proxy.backend_port,
        }

    def load(self, mode: str, **options: object) -> dict[str, Any]:
        """Run the load generator against the proxy. Raises BenchError when anything meets a fault."""
        waited, since = waited_ns(self.proxy.pids), time.monotonic_ns()
        settings = self.settings
        options = {"warm": settings.warm, "seconds": settings.seconds, "patience": settings.patience} | options
        result = self.generator.run(mode, **self.ends, pids=",".join(map(str, self.proxy.pids)), **options)
        if result["stuck"]:
            raise BenchError(f"{result['stuck']} sessions made no progress for {settings.patience:g} s")
        if self.proxy.pids:
            if not result["proxy_cpu_ns"]:
                raise BenchError("the proxy has used no CPU: its processes are not those that do the work")
            share = (waited_ns(self.proxy.pids) - waited) / (time.monotonic_ns() - since)
            self.proxy_waited = max(self.proxy_waited, share)
        self.load_waited = max(self.load_waited, result["load_waited_ns"] / 1e9 / result["seconds"])
        return result

    def disturbed(self) -> Reading:
        """The largest shares of the time for which the two ends were kept off their CPUs."""
        return {"load_waited": self.load_waited} | ({"proxy_waited": self.proxy_waited} if self.proxy.pids else {})


def cpu(place: Place) -> Reading:
    """Round trips for each size of message, then opened sessions; for wss full handshakes and resumed ones."""
    settings = place.settings
    reading: Reading = {}
    for size in settings.sizes:
        reading |= _round_trips(place, size, settings.connections)
    reading |= opened(place, "opened")
    if place.work == WSS:
        reading |= opened(place, "resumed")
    return reading


def crowd(place: Place) -> Reading:
    """Round trips with thousands of sessions that all exchange messages."""
    reading: Reading = {}
    for size in place.settings.sizes:
        if size * place.settings.crowd <= 8 * IN_FLIGHT:
            reading |= _round_trips(place, size, place.settings.crowd, limit=8 * IN_FLIGHT)
    return reading


def _round_trips(place: Place, size: int, connections: int, limit: int = IN_FLIGHT, *, sleep: bool = False) -> Reading:
    connections = max(1, min(connections, limit // size))
    result = place.load("roundtrip", connections=connections, size=size, sleep=sleep)
    reading = {
        f"round_trips_per_s.{size}": result["trips"] / result["seconds"],
        f"p50_us.{size}": result["p50_us"],
        f"p99_us.{size}": result["p99_us"],
        f"load_busy.{size}": _busy(result),
    }
    if place.proxy.pids:
        reading[f"round_trip_us.{size}"] = result["proxy_cpu_ns"] / 1000 / result["trips"]
        reading[f"proxy_busy.{size}"] = result["proxy_cpu_ns"] / 1e9 / result["seconds"]
    return reading


def _busy(result: dict[str, Any]) -> float:
    """The generator's share of its CPU. Polls that found nothing are timed by the clock, so it may come out below 0."""
    return max(0.0, float(result["load_cpu_ns"]) / 1e9 / float(result["seconds"]))


def opened(place: Place, kind: str) -> Reading:
    """Sessions that open, exchange a message and close; ``kind`` is ``opened`` or, with TLS resumption, ``resumed``."""
    resume = kind == "resumed"
    size = min(place.settings.sizes)
    result = place.load("open", connections=place.settings.opening, size=size, resume=resume)
    reading = {f"{kind}_load_busy": _busy(result)}
    if resume:
        share = reading["resumed_share"] = result["resumed"] / max(1, result["handshakes"])
        if share < RESUMED:
            return reading
    reading[f"{kind}_per_s"] = result["count"] / result["seconds"]
    if place.proxy.pids:
        reading[f"{kind}_us"] = result["proxy_cpu_ns"] / 1000 / result["count"]
        reading[f"{kind}_per_cpu_s"] = result["count"] / result["proxy_cpu_ns"] * 1e9
        reading[f"{kind}_proxy_busy"] = result["proxy_cpu_ns"] / 1e9 / result["seconds"]
    return reading


def cores(place: Place) -> Reading:
    """The most that comes through, and what there would be if all CPUs worked for it."""
    size = min(place.settings.sizes)
    reading = _round_trips(place, size, place.settings.connections, sleep=True)
    rate, busy = reading[f"round_trips_per_s.{size}"], reading.get(f"proxy_busy.{size}", 0.0)
    generator = reading[f"load_busy.{size}"]
    if not place.proxy.pids:
        return {"round_trips_per_s": rate, "load_busy": generator}
    cpus = len({place.settings.proxy_cpu, place.settings.load_cpu})
    return {
        "round_trips_per_s": rate,
        "possible_per_s": rate * cpus / (busy + generator),
        "proxy_busy": busy,
        "load_busy": generator,
        "round_trip_us": reading[f"round_trip_us.{size}"],
    }


def http(place: Place) -> Reading:
    """Plain HTTP requests over connections that stay open; wrk asks, and nginx answers behind the proxy.

    Raises BenchError where there is no wrk, or an answer is not the backend's.
    """
    settings, proxy = place.settings, place.proxy
    wrk = settings.tools.find("wrk")
    if not wrk:
        raise BenchError("wrk is not installed (--tool wrk=PATH names it)")
    address = f"http://127.0.0.1:{proxy.port}/"
    words = [wrk, "--threads", "1", "--connections", str(settings.opening), "--latency"]
    with answering(proxy.backend_port, settings):
        for seconds in (1, max(1, round(settings.rate_seconds))):  # the first is to get warm
            before = cpu_ns(proxy.pids)
            with started([*words, "--duration", f"{seconds}s", address], {settings.load_cpu}) as process:
                told = process.communicate()[0].decode()
            used = cpu_ns(proxy.pids) - before
    found = re.search(r"(\d+) requests in ([\d.]+)(m?s)", told)
    if not found or "Socket errors" in told or "Non-2xx" in told:
        raise BenchError(f"wrk says: {told.strip()}")
    count, time_taken = int(found[1]), float(found[2]) / (1000 if found[3] == "ms" else 1)
    reading = {"requests_per_s": count / time_taken}
    for name in ("50", "99"):
        part = re.search(rf"{name}% +([\d.]+)(us|ms|s)", told)
        if part:
            reading[f"p{name}_us"] = float(part[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[part[2]]
    return reading | {"request_us": used / 1000 / count}


def latency(place: Place) -> Reading:
    """Messages at a fixed rate that leaves everybody time."""
    settings = place.settings
    result = place.load(
        "roundtrip",
        connections=settings.connections,
        size=min(settings.sizes),
        rate=settings.rate,
        seconds=settings.rate_seconds,
    )
    reading = {name: result[name] for name in ("p50_us", "p90_us", "p99_us", "max_us")}
    if place.proxy.pids:
        reading["message_cpu_us"] = result["proxy_cpu_ns"] / 1000 / result["trips"]
    return reading


def idle(place: Place) -> Reading:
    """What idle sessions need, so many and so many, counted from before the first of them; in a fresh proxy.

    What earlier work has left behind would hide it.
    """
    size = min(place.settings.sizes)
    pids = place.proxy.pids
    place.load("open", connections=WARM_UP_SESSIONS, size=size, warm=0, seconds=0.3)
    time.sleep(SETTLE)
    before, sockets, kernel = resident_kb(pids), socket_kb(), kernel_kb()
    reading: Reading = {"base_kb": before} if pids else {}
    for count in place.settings.idle:
        with place.generator.holding(**place.ends, size=size, connections=count, patience=place.settings.patience):
            time.sleep(SETTLE)
            reading[f"sockets_kb.{count}"] = (socket_kb() - sockets) / count
            reading[f"kernel_kb.{count}"] = (kernel_kb() - kernel) / count
            if pids:
                reading["idle_kb"] = reading[f"idle_kb.{count}"] = (resident_kb(pids) - before) / count
    return reading


def storm(place: Place) -> Reading:
    """All sessions are cut at once and come again within a second."""
    settings = place.settings
    result = place.load("storm", connections=settings.storm, size=min(settings.sizes), seconds=settings.storm_seconds)
    reading = {
        "all_open_s": result["seconds"],
        "refused": result["refused"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "max_us": result["max_us"],
    }
    if place.proxy.pids:
        reading["storm_us"] = result["proxy_cpu_ns"] / 1000 / result["count"]
    return reading


def transfer(place: Place) -> Reading:
    """Chatty sessions at a fixed rate, alone and then beside one large transfer to a client."""
    settings = place.settings
    chatty = _chatty(settings)
    alone = place.load("roundtrip", **chatty, seconds=settings.rate_seconds)
    beside = place.load("roundtrip", **chatty, bulks=1, bulk_bytes=settings.transfer)
    reading = _alone_and_beside(alone, beside)
    reading["gb_per_s"] = beside["bulk_bytes"] / 1e9 / beside["bulk_seconds"]
    if place.proxy.pids:
        reading["cpu_s_per_gb"] = beside["proxy_cpu_ns"] / beside["bulk_bytes"]
        reading["peak_mb"] = (beside["peak_kb"] - beside["base_kb"]) / 1024
    return reading


def slow(place: Place) -> Reading:
    """Chatty sessions at a fixed rate, alone and then beside slow readers whose backends push; in a fresh proxy."""
    settings = place.settings
    chatty = _chatty(settings)
    alone = place.load("roundtrip", **chatty, seconds=settings.slow_seconds)
    beside = place.load(
        "roundtrip",
        **chatty,
        seconds=settings.slow_seconds,
        bulks=settings.slow,
        bulk_bytes=settings.slow_bytes // settings.slow,
        slow=settings.slow_rate,
    )
    reading = _alone_and_beside(alone, beside)
    reading["pushed_mb"] = beside["pushed_bytes"] / 1e6 / settings.slow
    reading["sockets_kb"] = beside["sockets_kb"] / settings.slow
    if place.proxy.pids:
        reading["slow_kb"] = (beside["peak_kb"] - beside["base_kb"]) / settings.slow
    return reading


def _chatty(settings: Settings) -> dict[str, object]:
    return {"connections": settings.chatty, "rate": settings.rate, "size": min(settings.sizes)}


def _alone_and_beside(alone: dict[str, Any], beside: dict[str, Any]) -> Reading:
    return {
        "alone_p50_us": alone["p50_us"],
        "alone_p99_us": alone["p99_us"],
        "beside_p50_us": beside["p50_us"],
        "beside_p99_us": beside["p99_us"],
        "p99_times": beside["p99_us"] / alone["p99_us"],
    }


def flat(place: Place) -> Reading:
    """The same work with few and many live sessions: all of them busy; a few of them busy; some opened beside them."""
    settings = place.settings
    size = min(settings.sizes)
    reading: Reading = {}
    for live in settings.live:
        few = min(FEW, live)
        results = {
            "all_busy_us": place.load("roundtrip", connections=live, size=size),
            "few_busy_us": place.load("roundtrip", connections=few, resting=live - few, size=size),
            "beside_us": place.load("open", connections=settings.opening, resting=live, size=size),
        }
        for metric, result in results.items():
            unit = result["count"] if metric == "beside_us" else result["trips"]
            if place.proxy.pids:
                reading[f"{metric}.{live}"] = result["proxy_cpu_ns"] / 1000 / unit
    return reading
