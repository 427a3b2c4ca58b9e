"""The benchmark's command: options, rounds, results. Run it as ``python -m bench`` from the top of the checkout."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench import generator, measure, report
from bench.contenders import CONTENDERS, PROTOCOLS, WSS, Contender

RESULTS = Path(__file__).parent / "results"

#: How often the memory of idle sessions is measured; it hardly varies.
IDLE_ROUNDS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, keep the results; 1 when a reading failed, 2 when nothing can be measured, 130 on Ctrl-C."""
    options = _options(argv)
    signal.signal(signal.SIGTERM, _terminated)
    cpus = sorted(os.sched_getaffinity(0))
    settings = _settings(options, cpus)
    try:
        load = generator.build(settings.load_cpu)
    except generator.BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    contenders, works = _chosen(options, settings, load.tls)
    if not contenders or not works:
        print("bench: nothing is left to measure", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, {settings.load_cpu})
    taken: list[report.Taken] = []
    started = datetime.datetime.now(datetime.UTC)
    status = 0
    try:
        _rounds(options.rounds, contenders, works, settings, load, taken)
    except KeyboardInterrupt:
        print("\nbench: interrupted; what was measured so far:", file=sys.stderr)
        status = 130
    _publish(options, taken, _facts(started, settings, contenders))
    return status or int(any(one.error for one in taken))


def _rounds(
    count: int,
    contenders: list[Contender],
    works: list[str],
    settings: measure.Settings,
    load: generator.Generator,
    taken: list[report.Taken],
) -> None:
    """Every contender takes its turn in every round, so that what drifts, drifts for all of them.

    They all run while one kind of work is measured, and rest but in their turns: so turns can be short and follow each
    other closely. Each other round has them in the opposite order.
    """
    for work in works:
        able = [contender for contender in contenders if work in contender.works]
        with tempfile.TemporaryDirectory(prefix="wsrouter-bench-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            proxies: dict[str, measure.Proxy] = {}
            for contender in able:
                with _told(taken, 0, work, contender) as reading:
                    proxies[contender.name] = stack.enter_context(
                        measure.running(contender, work, settings, _place(folder, contender))
                    )
            for turn in range(1, count + 1):
                for contender in able[:: 1 if turn % 2 else -1]:
                    if contender.name in proxies:
                        with _told(taken, turn, work, contender, f"round {turn}/{count}") as reading:
                            reading |= measure.read(proxies[contender.name], work, settings, load)
        for turn in range(1, IDLE_ROUNDS + 1 if settings.idle else 1):
            for contender in able:
                with (
                    _told(taken, turn, work, contender, f"idle {turn}/{IDLE_ROUNDS}") as reading,
                    tempfile.TemporaryDirectory(prefix="wsrouter-bench-") as name,
                ):
                    place = _place(Path(name), contender)
                    reading |= measure.read_idle(contender, work, settings, load, place)


def _place(folder: Path, contender: Contender) -> Path:
    """A folder of the contender's own, with a certificate."""
    place = folder / contender.name
    place.mkdir()
    _write_certificate(place / "cert.pem")
    return place


@contextlib.contextmanager
def _told(
    taken: list[report.Taken], turn: int, work: str, contender: Contender, title: str = ""
) -> Iterator[measure.Reading]:
    """Note a reading, or why there is none, and say so on the terminal. Nothing is noted of what went well untitled."""
    reading: measure.Reading = {}
    error = ""
    try:
        yield reading
    except generator.BenchError as fault:
        error = str(fault)
    if error or title:
        taken.append(report.Taken(turn, work, contender.name, reading, error))
        print(f"{title or 'start':12} {work:7} {contender.name:9} {error or _summary(reading)}", file=sys.stderr)


def _summary(reading: measure.Reading) -> str:
    shown = {"round_trip_us": "us/round trip", "opened_us": "us/opened", "idle_kb": "KB/idle"}
    if not shown.keys() & reading.keys():  # no proxy
        shown = {"round_trips_per_s": "round trips/s", "opened_per_s": "opened/s"}
    return "  ".join(f"{reading[metric]:.1f} {unit}" for metric, unit in shown.items() if metric in reading)


def _publish(options: argparse.Namespace, taken: list[report.Taken], facts: dict[str, object]) -> None:
    """Print the tables; write all readings as JSON, and the tables as Markdown where that was asked for."""
    if not taken:
        return
    markdown = [f"Measured {facts['started']} on {facts['machine']}. " + _conditions(options)]
    for work in dict.fromkeys(one.work for one in taken):
        rows = report.table(taken, work, options.reference)
        print(f"\n{work} ({_conditions(options)})\n{report.as_text(rows)}")
        markdown += [f"### {work}", report.as_markdown(rows)]
    remarks = report.notes(taken)
    if remarks:
        print("\n" + "\n".join(remarks))
        markdown.append("\n".join(f"- {line}" for line in remarks))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{str(facts['started']).replace(':', '')}.json"
    path.write_text(json.dumps({**facts, "readings": [dataclasses.asdict(one) for one in taken]}, indent=1) + "\n")
    print(f"\nAll readings: {path}")
    if options.markdown == "-":
        print("\n" + "\n\n".join(markdown))
    elif options.markdown:
        Path(options.markdown).write_text("\n\n".join(markdown) + "\n", encoding="utf-8")


def _conditions(options: argparse.Namespace) -> str:
    return (
        f"{options.connections} connections, {options.size}-byte messages, {options.opening} openings at a time, "
        f"{options.idle} idle sessions; median (lowest-highest) of {options.rounds} rounds of {options.seconds:g} s, "
        f"of {IDLE_ROUNDS} for the idle ones"
    )


def _facts(started: datetime.datetime, settings: measure.Settings, contenders: list[Contender]) -> dict[str, object]:
    """Where and with what the numbers came about."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "started": started.isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPUs, {model}, Linux {platform.release()}",
        "settings": {name: str(value) for name, value in dataclasses.asdict(settings).items()},
        "versions": {one.name: one.version(settings.python) for one in contenders},
    }


def _chosen(options: argparse.Namespace, settings: measure.Settings, tls: bool) -> tuple[list[Contender], list[str]]:
    """The contenders and the work that can be measured here; the rest is named with the reason."""
    contenders = []
    for contender in CONTENDERS:
        if contender.name in options.only:
            missing = contender.missing(settings.python)
            if missing:
                print(f"bench: without {contender.name}: {missing}", file=sys.stderr)
            else:
                contenders.append(contender)
    works = [work for work in PROTOCOLS if work in options.work]
    if WSS in works and not tls:
        print("bench: without wss: OpenSSL's headers are missing (Debian: libssl-dev)", file=sys.stderr)
        works.remove(WSS)
    return contenders, works


def _settings(options: argparse.Namespace, cpus: list[int]) -> measure.Settings:
    load_cpu = cpus[0] if options.load_cpu is None else options.load_cpu
    proxy_cpu = cpus[min(1, len(cpus) - 1)] if options.proxy_cpu is None else options.proxy_cpu
    siblings = Path(f"/sys/devices/system/cpu/cpu{proxy_cpu}/topology/thread_siblings_list")
    if load_cpu == proxy_cpu:
        print("bench: one CPU for proxy and generator: rates and latencies mean little here", file=sys.stderr)
    elif siblings.exists() and load_cpu in _numbers(siblings.read_text()):
        print(
            f"bench: CPUs {load_cpu} and {proxy_cpu} are two threads of one core, which slow each other",
            file=sys.stderr,
        )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = hard // 2 - 200
    if options.idle > most:
        print(
            f"bench: {most} idle sessions instead of {options.idle}: a process may have {hard} descriptors",
            file=sys.stderr,
        )
        options.idle = most
    return measure.Settings(
        seconds=options.seconds,
        warm=options.warm,
        connections=options.connections,
        opening=options.opening,
        size=options.size,
        idle=options.idle,
        resume=options.resume,
        proxy_cpu=proxy_cpu,
        load_cpu=load_cpu,
        python=options.python,
    )


def _numbers(text: str) -> set[int]:
    """CPU numbers of the kernel's list form: ``0-1,4``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="wsrouter beside nginx and HAProxy, by CPU and memory"
    )
    add = parser.add_argument
    add(
        "--only",
        type=_names([one.name for one in CONTENDERS]),
        default=[one.name for one in CONTENDERS],
        help="contenders, by comma",
    )
    add("--work", type=_names(list(PROTOCOLS)), default=list(PROTOCOLS), help="kinds of work, by comma")
    add("--reference", default="nginx", help="the contender that ratios are to")
    add("--rounds", type=int, default=15, help="how often every contender takes its turn")
    add("--seconds", type=float, default=1.0, help="length of each counted window")
    add("--warm", type=float, default=0.3, help="seconds of the same work before each window")
    add("--connections", type=int, default=100, help="connections that exchange messages")
    add("--opening", type=int, default=32, help="sessions that open at the same time")
    add("--size", type=int, default=125, help="bytes of a message")
    add("--idle", type=int, default=2000, help="idle sessions whose memory is measured; 0 for none")
    add("--resume", action="store_true", help="wss: resume TLS sessions instead of full handshakes")
    add("--proxy-cpu", type=int, help="CPU of the proxy (the second that this process may use)")
    add("--load-cpu", type=int, help="CPU of the load generator (the first)")
    add("--python", type=Path, default=Path(sys.executable), help="interpreter that wsrouter is installed for")
    add("--markdown", metavar="FILE", help="write the tables as Markdown too; - for the terminal")
    return parser.parse_args(argv)


def _names(known: list[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
        return names

    return split


def _write_certificate(path: Path) -> None:
    """A certificate for bench.test and its key, P-256, in one file: what a busy site of today has."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bench.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.touch(mode=0o600)
    path.write_bytes(certificate.public_bytes(pem) + secret)


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)
