"""Running proxies: started, found listening, their processes and memory, ended."""

from __future__ import annotations

import datetime
import os
import random
import re
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.generator import BenchError, started
from bench.settings import Settings
from bench.setups import PROTOCOLS, TUNNEL, Contender, Setup

SETTLE = 0.5
"""Seconds for what a process still does after it began to listen, or after sessions were opened."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A started proxy (no processes at all for the floor), and where its clients and its backend meet it.

    ``protocol`` is what its clients speak, in the load generator's words; ``log`` what it writes to.
    """

    pids: tuple[int, ...]
    port: int
    backend_port: int
    protocol: str
    log: Path | None = None


@contextmanager
def running(contender: Contender, work: str, settings: Settings, folder: Path) -> Iterator[Proxy]:
    """Start the contender on its CPU, or all of them, and wait until it listens.

    Raises BenchError with its log when it does not.
    """
    backend_port = free_port()
    port = free_port(backend_port)
    certificate = folder / "cert.pem"
    write_certificate(certificate)
    # Proxies refuse to start with more than their descriptors serve: two for a session.
    sessions = min(settings.most_sessions(), resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 300)
    setup = Setup(folder, work, port, backend_port, sessions, certificate, settings.tools)
    command = contender.command(setup)
    if not command:
        yield Proxy((), backend_port, backend_port, "tcp" if work == TUNNEL else "ws")
        return
    log = folder / f"{contender.name}.log"
    cpus = {settings.proxy_cpu, settings.load_cpu} if contender.cores else {settings.proxy_cpu}
    with log.open("wb") as output, started(command, cpus, output) as process:
        deadline = time.monotonic() + 10 * settings.patience
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                what = "does not listen" if process.returncode is None else f"ended with {process.returncode}"
                raise BenchError(f"{contender.name} {what}:\n{_tail(log)}")
            time.sleep(0.05)
        time.sleep(SETTLE)
        yield Proxy(_family(process.pid), port, backend_port, PROTOCOLS[work], log)


def check(proxy: Proxy) -> None:
    """Raises BenchError when the proxy has started or lost processes: its CPU time would lack what they used."""
    if proxy.pids and (not Path(f"/proc/{proxy.pids[0]}/stat").exists() or _family(proxy.pids[0]) != proxy.pids):
        raise BenchError("the proxy does not run as the same processes any more")


def log_tail(proxy: Proxy) -> str:
    """The last that the proxy has written."""
    return _tail(proxy.log) if proxy.log else ""


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])


def free_port(taken: int = 0) -> int:
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


def resident_kb(pids: tuple[int, ...]) -> int:
    """What the processes have in memory. Raises BenchError where the kernel does not tell."""
    total = 0
    for pid in pids:
        match = re.search(r"^Rss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        if not match:
            raise BenchError(f"the kernel does not tell the memory of process {pid}")
        total += int(match[1])
    return total


def waited_ns(pids: tuple[int, ...]) -> int:
    """How long the processes were ready to run while their CPU ran something else; 0 where the kernel does not tell."""
    files = [Path(f"/proc/{pid}/schedstat") for pid in pids]
    return sum(int(file.read_text().split()[1]) for file in files if file.exists())


def cpu_ns(pids: tuple[int, ...]) -> int:
    """User and system time of the processes, in steps of a tick (10 ms). Raises BenchError when one has gone."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError as error:
            raise BenchError(f"a process of the proxy has gone: {error}") from None
        ticks += int(fields[11]) + int(fields[12])
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@contextmanager
def answering(port: int, settings: Settings) -> Iterator[None]:
    """Within the block, nginx answers HTTP requests with 125 bytes on the generator's CPU."""
    with tempfile.TemporaryDirectory(prefix="wsrouter-bench-") as folder:
        path = Path(folder) / "nginx.conf"
        path.write_text(
            "daemon off; master_process off; error_log stderr error; events { worker_connections 4096; }"
            f" pid {folder}/nginx.pid;"
            f" http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {folder};"
            f" server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{'x' * 125}'; }} }} }}"
        )
        command = [settings.tools.find("nginx"), "-e", "stderr", "-p", f"{folder}/", "-c", str(path)]
        if not command[0]:
            raise BenchError("nginx is not installed, which answers behind the proxy")
        with started(command, {settings.load_cpu}) as process:
            deadline = time.monotonic() + settings.patience
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError("nginx does not answer behind the proxy")
                time.sleep(0.02)
            yield


def socket_kb() -> int:
    """What all TCP sockets hold in their buffers. Raises BenchError where the kernel does not tell."""
    match = re.search(r"^TCP: .*\bmem (\d+)$", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
    if not match:
        raise BenchError("the kernel does not tell the memory of TCP sockets")
    return int(match[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def kernel_kb() -> int:
    """The kernel's own objects, all of the machine's: sockets, descriptors, epoll items are among them."""
    match = re.search(r"^Slab: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if not match:
        raise BenchError("the kernel does not tell the memory of its objects")
    return int(match[1])


def write_certificate(path: Path) -> None:
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
