"""One run: the suite, a router and a peer, each a process of its own, play the cases that were chosen.

As a fuzzing client the suite attacks the router's clients' side, and an echo server is the backend; as a fuzzing server
it is the backend itself, and the peer is a client. All that a run writes lies in a folder of its own.
"""

from __future__ import annotations

import asyncio
import enum
import json
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trustme

from conformance import kinds, verdicts
from conformance.kinds import Kind
from conformance.programs import Program, StartError
from conformance.suite import Suite
from conformance.verdicts import Judgement

ROOT = Path(__file__).parent.parent
SCHEMES = ("ws", "wss")
#: How long a run may take, in seconds.
LONGEST_RUN = 7200.0
#: How long the suite waits, in seconds: for answers to its opening and closing handshakes, and for a server to end TCP
#: after the latter. It would wait 5, 1 and 1, which on a busy machine is not much; the router itself gives up after 5.
_WAITING = {"openHandshakeTimeout": 60, "closeHandshakeTimeout": 4}
_WAITING_FOR_SERVERS = {**_WAITING, "serverConnectionDropTimeout": 4}


class Role(enum.Enum):
    """What the suite is: it tests what is on the other end of the router."""

    CLIENT = "fuzzing client"
    SERVER = "fuzzing server"


@dataclass(frozen=True, slots=True)
class Run:
    """One row of the summary."""

    kind: Kind
    scheme: str
    role: Role

    @property
    def name(self) -> str:
        """Such as ``relay-ws-fuzzing-client``; also the name of its folder, and of who is tested."""
        return f"{self.kind.name}-{self.scheme}-{self.role.value.replace(' ', '-')}"

    def cases(self, chosen: Sequence[str]) -> list[str]:
        """Those of the chosen cases that have something to test here."""
        deflate = self.kind.deflate_clients if self.role is Role.CLIENT else self.kind.deflate_backends
        compressed = set(verdicts.select(chosen, ("12", "13")))
        return [case for case in chosen if deflate or case not in compressed]


def every_run() -> list[Run]:
    """Each kind of session, over each scheme, with the suite on each end where it can be."""
    return [
        Run(kind, scheme, role)
        for kind in kinds.KINDS
        for scheme in SCHEMES
        for role in Role
        if role is Role.CLIENT or kind.suite_as_backend
    ]


def quick_runs() -> list[Run]:
    """Those of every change: the first kind every way, each further one in both roles, over one scheme each."""
    # TLS is a property of a leg, and legs are the same for all kinds.
    further = {("ws", Role.CLIENT), ("wss", Role.SERVER)}
    return [run for run in every_run() if run.kind is kinds.KINDS[0] or (run.scheme, run.role) in further]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    run: Run
    judgement: Judgement
    seconds: float


class Stage:
    """Where one run is played: its folder, its certificate, its programs."""

    def __init__(self, run: Run, suite: Suite, folder: Path, programs: AsyncExitStack) -> None:
        self.folder = folder
        self._run = run
        self._suite = suite
        self._programs = programs
        self._faults: list[str] = []
        self._secure = run.scheme == "wss"
        if self._secure:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(self.authority))
            authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
                str(folder / "localhost.pem")
            )

    @property
    def authority(self) -> Path:
        """The CA's certificate, of which the router's is."""
        return self.folder / "ca.pem"

    async def start(
        self,
        name: str,
        *command: str,
        heard: Callable[[str], None] = lambda line: None,
        variables: Mapping[str, str] | None = None,
    ) -> Program:
        """Start a program that ends with the run at the latest."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "PYTHONPATH": path, **(variables or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        program = Program(process, self.folder / f"{name}.log", heard)
        self._programs.push_async_callback(program.stop)
        return program

    async def start_suite(self, mode: str, spec: Mapping[str, object], heard: Callable[[str], None]) -> Program:
        """Start ``wstest``. It knows no path of ours: its Python is another."""
        file = self.folder / f"{mode}.json"
        file.write_text(json.dumps({"outdir": str(self.folder / "report"), **spec}))
        variables = {"PYTHONPATH": "", **({"SSL_CERT_FILE": str(self.authority)} if self._secure else {})}
        command = (*self._suite.command, "--mode", mode, "--spec", str(file), "--webport", "0")
        return await self.start("wstest", *command, heard=heard, variables=variables)

    async def start_peer(self, *words: str) -> Program:
        """Start the peer."""
        return await self.start("peer", sys.executable, "-m", "conformance.peers", *words)

    @asynccontextmanager
    async def router(self, backend: int) -> AsyncIterator[str]:
        """A router in front of the backend at that port: the port that it listens at. Its faults are the run's."""
        file = self.folder / "router.ini"
        certificate = self.folder / "localhost.pem" if self._secure else None
        file.write_text(kinds.configuration(self._run.kind, backend, certificate))
        twistd = str(Path(sys.executable).with_name("twistd"))
        options = ("-n", "--pidfile=", "wsrouter", "--config", str(file))
        router = await self.start("router", sys.executable, twistd, *options, heard=self._look_for_faults)
        yield await router.find(r"listening on [^\"]*:(\d+)")
        status = await router.stop()
        if status:
            self._faults.append(f"the router ended with status {status}")

    def _look_for_faults(self, line: str) -> None:
        """A line of the router's log, which is JSON but for what a crash leaves."""
        try:
            told = json.loads(line)
        except ValueError:
            told = {"level": "error", "message": line.rstrip()}
        if told.get("level") in ("error", "critical") or "traceback" in told:
            self._faults.append(f"the router logged: {told.get('message', line)}")

    def judge(self, cases: Sequence[str]) -> Judgement:
        """Judge the report that the suite has written by now, and the router's log."""
        try:
            report = (self.folder / "report" / "index.json").read_text()
        except OSError:
            return Judgement(len(cases), faults=("there is no report", *self._faults))
        judgement = verdicts.judge(report, self._run.name, cases)
        return replace(judgement, faults=(*judgement.faults, *self._faults))


async def play(run: Run, suite: Suite, chosen: Sequence[str], folder: Path, began: Callable[[str], None]) -> Outcome:
    """Play a run in a new folder; ``began`` is told each case that begins. What fails is in the outcome."""
    folder.mkdir(parents=True)
    cases = run.cases(chosen)
    start = time.monotonic()

    def heard(line: str) -> None:
        match = re.match(r"Running test case ID (\S+) ", line)
        if match:
            began(match[1])

    async with AsyncExitStack() as programs:
        stage = Stage(run, suite, folder, programs)
        act = _fuzz_as_client if run.role is Role.CLIENT else _fuzz_as_server
        try:
            async with asyncio.timeout(LONGEST_RUN):
                await act(stage, run, cases, heard)
            judgement = stage.judge(cases)
        except (StartError, OSError) as error:
            judgement = Judgement(len(cases), faults=(str(error) or type(error).__name__,))
    return Outcome(run, judgement, time.monotonic() - start)


async def _fuzz_as_client(stage: Stage, run: Run, cases: Sequence[str], heard: Callable[[str], None]) -> None:
    peer = await stage.start_peer("server", *([] if run.kind.deflate_backends else ["--plain"]))
    async with stage.router(int(await peer.find(r"^(\d+)$"))) as port:
        server = {"agent": run.name, "url": f"{run.scheme}://localhost:{port}"}
        if run.scheme == "wss":
            # So the suite verifies the certificate, and names the server in its ClientHello.
            server["hostname"] = "localhost"
        fuzzer = await stage.start_suite(
            "fuzzingclient", {"servers": [server], "cases": cases, "options": _WAITING_FOR_SERVERS}, heard
        )
        await fuzzer.ended()


async def _fuzz_as_server(stage: Stage, run: Run, cases: Sequence[str], heard: Callable[[str], None]) -> None:
    # The suite cannot say which port it got, so it gets one that is bound here, though nobody listens there yet.
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("", 0))
        backend = place.getsockname()[1]
        spec = {"url": f"ws://localhost:{backend}", "cases": cases, "options": _WAITING}
        fuzzer = await stage.start_suite("fuzzingserver", spec, heard)
        await fuzzer.listening(backend)
        async with stage.router(backend) as port:
            authority = [str(stage.authority)] if run.scheme == "wss" else []
            peer = await stage.start_peer("client", f"{run.scheme}://localhost:{backend}", port, run.name, *authority)
            await peer.ended()
