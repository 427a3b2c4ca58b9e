"""One worker, as the supervisor has it: its process, its channel, its log."""

from __future__ import annotations

import enum
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.error import ConnectionDone, ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from wsrouter.workers import control
from wsrouter.workers.generation import Generation
from wsrouter.workers.shared import SharedMemory
from wsrouter.workers.telling import Listening

#: The descriptor of the channel in a worker; 0 is /dev/null, 1 takes its log, 2 what a crash writes.
CHANNEL = 3
#: And that of the memory that all have in common.
SHARED = 4
#: What a service manager has passed to the first process only.
_NOT_PASSED_ON = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")

_log = Logger()


class Stage(enum.Enum):
    """What a worker does."""

    STARTING = "starting"
    SERVING = "serving"
    #: It was told to end.
    LEAVING = "leaving"
    OVER = "over"


class WorkerProcess(ProcessProtocol):
    """A worker.

    ``over`` is called once its process has ended, with this and the end in words; ``closed`` when it accepts no more.
    """

    def __init__(
        self,
        reactor: Any,
        number: int,
        memory: SharedMemory,
        column: int,
        over: Callable[[WorkerProcess, str], None],
        closed: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._memory = memory
        #: Its column in that memory.
        self.column = column
        self._over = over
        self._closed = closed
        #: Counts up, as long as the supervisor runs.
        self.number = number
        self.stage = Stage.STARTING
        #: When it was started, on the reactor's clock.
        self.started = reactor.seconds()
        #: What it runs on, when it does.
        self.generation: Generation | None = None
        #: What lived in it when it was last asked.
        self.sessions = self.tunnels = self.clients = 0
        #: It accepts no more.
        self.closed = False
        #: An answer to ``count`` is awaited since then.
        self.asked: float | None = None
        self._ports: set[int] = set()
        self._listening = Listening(number)
        self._channel = _Channel(self)

    @property
    def pid(self) -> int | None:
        """The number of the process; None when it has ended."""
        transport: IProcessTransport | None = self.transport
        return None if transport is None else transport.pid

    def start(self) -> None:
        """Start the process: a new interpreter, with the code that is installed now."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            here.setblocking(False)
            self._reactor.adoptStreamConnection(here.fileno(), socket.AF_UNIX, control.Once(self._channel))
            self._reactor.spawnProcess(
                self,
                sys.executable,
                [sys.executable, "-m", "wsrouter.workers", str(self.number), str(self.column)],
                env=_environment(os.environ),
                childFDs={0: nothing, 1: "r", 2: "r", CHANNEL: there.fileno(), SHARED: self._memory.descriptor},
            )
        finally:
            os.close(nothing)
            here.close()
            there.close()

    # Commands.

    async def configure(self, generation: Generation, sockets: Mapping[int, socket.socket]) -> tuple[list[str], int]:
        """Run on ``generation``; ``sockets`` are its ports, by number. The first one makes it serve.

        Returns what there is to warn of, and how many sessions and tunnels live on. Raises Refused, and ConnectionLost
        and its kin when it ends meanwhile.
        """
        for number in generation.ports.values():
            if number not in self._ports:
                await self._channel.call(control.Lend, port=number, descriptor=sockets[number].fileno())
        self._ports = set(generation.ports.values())
        descriptor = generation.as_descriptor()
        try:
            answered = await self._channel.call(control.Configure, generation=descriptor)
        finally:
            os.close(descriptor)
        self.generation = generation
        return answered["warnings"], answered["live"]

    def probed(self, pool: str, backend: str, rtt: float | None, reason: str, state: str, why: str) -> None:
        """Tell what a probe has found."""
        if self.stage in (Stage.STARTING, Stage.SERVING):
            words = {"reason": reason[: control.LONGEST], "state": state, "why": why[: control.LONGEST]}
            self._channel.tell(control.Probed, pool=pool, backend=backend, rtt=rtt, **words)

    def leave(self, why: str, alone: bool = True) -> None:
        """Tell it to drain and end; ``alone``: the others go on."""
        if self.stage is not Stage.OVER:
            self.stage = Stage.LEAVING
            self._channel.tell(control.Leave, why=why, alone=alone)

    def end(self) -> None:
        """Tell it to end now."""
        if self.stage is not Stage.OVER:
            self.stage = Stage.LEAVING
            self._channel.tell(control.End)

    def kill(self) -> None:
        """End its process, whatever it does."""
        if self.transport is not None and self.transport.pid is not None:
            self.transport.signalProcess("KILL")

    async def count(self) -> None:
        """Ask what lives in it."""
        self.asked = self._reactor.seconds()
        answer = await self._channel.call(control.Count)
        self.asked = None
        self.sessions, self.tunnels, self.clients = answer["sessions"], answer["tunnels"], answer["clients"]

    # The process.

    def no_more_clients(self) -> None:
        """It accepts no more."""
        self.closed = True
        self._closed()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has said something."""
        self._listening.take(childFD, data)

    def processExited(self, reason: Failure) -> None:
        """It has ended; what it has said may still come."""
        self.stage = Stage.OVER
        self._over(self, _words_of(reason))

    def processEnded(self, reason: Failure) -> None:
        """All that it has said is here."""
        self._listening.end()


class _Channel(control.Channel):
    """The supervisor's end."""

    def __init__(self, worker: WorkerProcess) -> None:
        super().__init__()
        self._worker = worker

    @control.Closed.responder
    def closed(self) -> dict[str, object]:
        self._worker.no_more_clients()
        return {}


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _NOT_PASSED_ON}


def _words_of(reason: Failure) -> str:
    """How a process has ended: ``killed by SIGKILL``, ``exit status 1``."""
    error = reason.value
    if isinstance(error, ProcessTerminated) and error.signal is not None:
        try:
            return f"killed by {signal.Signals(error.signal).name}"
        except ValueError:
            return f"killed by signal {error.signal}"
    if isinstance(error, (ProcessDone, ProcessTerminated)):
        return f"exit status {error.exitCode}"
    return str(error or ConnectionDone())
