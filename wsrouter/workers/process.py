"""One worker, as the supervisor has it: its process, its channel, its log."""

from __future__ import annotations

import enum
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone, ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol, connectionDone
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


class Keeper(Protocol):
    """Who keeps workers, and hears what becomes of them."""

    def over(self, worker: WorkerProcess, how: str) -> None:
        """Its process has ended; ``how`` is for people. What it has said may still come."""

    def silent(self, worker: WorkerProcess) -> None:
        """All that it has said is here."""

    def closed(self, worker: WorkerProcess) -> None:
        """It accepts no more."""

    def asks_to_leave(self, worker: WorkerProcess) -> None:
        """It was asked to end, by others."""


class WorkerProcess(ProcessProtocol):
    """A worker."""

    def __init__(self, reactor: Any, number: int, memory: SharedMemory, column: int, keeper: Keeper) -> None:
        self._reactor = reactor
        self._memory = memory
        #: Its column in that memory.
        self.column = column
        self._keeper = keeper
        #: Counts up, as long as the supervisor runs.
        self.number = number
        self.stage = Stage.STARTING
        #: When it was started, on the reactor's clock.
        self.started = reactor.seconds()
        #: What lived in it when it was last asked.
        self.sessions = self.tunnels = 0
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
        """Start the process: a new interpreter, with the code that is installed now. Raises OSError."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        # -P: modules do not come from the folder in which the router was started.
        command = [sys.executable, "-P", "-m", "wsrouter.workers", str(self.number), str(self.column)]
        try:
            self._reactor.spawnProcess(
                self,
                sys.executable,
                command,
                env=_environment(os.environ),
                childFDs={0: nothing, 1: "r", 2: "r", CHANNEL: there.fileno(), SHARED: self._memory.descriptor},
            )
            here.setblocking(False)
            self._reactor.adoptStreamConnection(here.fileno(), socket.AF_UNIX, control.Once(self._channel))
        finally:
            os.close(nothing)
            here.close()
            there.close()

    # Commands.

    async def configure(
        self, generation: Generation, descriptor: int, sockets: Mapping[int, socket.socket]
    ) -> tuple[list[str], int]:
        """Run on ``generation``, which is in ``descriptor``; ``sockets`` are its ports, by number.

        The first one makes it serve. Returns what there is to warn of, and how many sessions and tunnels live on.
        Raises Refused, and ConnectionClosed when it ends meanwhile.
        """
        wanted = set(generation.ports.values())
        # Descriptors of its own: they are sent a little later, when the others may be closed.
        lent = {number: os.dup(sockets[number].fileno()) for number in wanted - self._ports}
        try:
            for number, one in lent.items():
                await self._channel.call(control.Lend, port=number, descriptor=one)
            self._ports = wanted
            answered = await self._channel.call(control.Configure, generation=descriptor)
        finally:
            for one in lent.values():
                os.close(one)
        return answered["warnings"], answered["live"]

    def probed(self, pool: str, backend: str, rtt: float | None, reason: str, state: str, why: str) -> None:
        """Tell what a probe has found."""
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
        self.sessions, self.tunnels = answer["sessions"], answer["tunnels"]

    # What becomes of it.

    def no_more_clients(self) -> None:
        """It accepts no more."""
        self.closed = True
        self._keeper.closed(self)

    def asks_to_leave(self) -> None:
        """Somebody has sent it a signal, or its channel is gone: it is to drain and end."""
        if self.stage in (Stage.STARTING, Stage.SERVING):
            self._keeper.asks_to_leave(self)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has said something."""
        self._listening.take(childFD, data)

    def processExited(self, reason: Failure) -> None:
        """It has ended; what it has said may still come."""
        self.stage = Stage.OVER
        self._keeper.over(self, _words_of(reason))

    def processEnded(self, reason: Failure) -> None:
        """All that it has said is here."""
        self._listening.end()
        self._keeper.silent(self)


class _Channel(control.Channel):
    """The supervisor's end."""

    def __init__(self, worker: WorkerProcess) -> None:
        super().__init__()
        self._worker = worker

    @control.Closed.responder
    def closed(self) -> dict[str, object]:
        self._worker.no_more_clients()
        return {}

    @control.AskToLeave.responder
    def ask_to_leave(self) -> dict[str, object]:
        self._worker.asks_to_leave()
        return {}

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        # Without it the worker drains by itself, if it has not just ended.
        self._worker.asks_to_leave()


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
