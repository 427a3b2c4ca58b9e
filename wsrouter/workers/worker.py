"""A worker: a router that gets its ports, its configuration, and how the backends are, from the supervisor."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from wsrouter.assembly import Role
from wsrouter.config.memory import FileMemory
from wsrouter.config.reader import read
from wsrouter.config.values import Config, Log
from wsrouter.errors import ConfigError, RouterError
from wsrouter.listener.listener import GRACE
from wsrouter.live.registry import Kind
from wsrouter.policy.health import State
from wsrouter.policy.sharing import Sharing
from wsrouter.service import RouterService
from wsrouter.workers import control
from wsrouter.workers.generation import Generation
from wsrouter.workers.lent import LentPorts
from wsrouter.workers.process import CHANNEL, SHARED
from wsrouter.workers.shared import SharedMemory
from wsrouter.workers.telling import Teller

#: How often a worker looks whether a listener has been left, in seconds.
_LOOK = GRACE / 5

_log = Logger()


class WorkerService(RouterService):
    """The router in one worker. Raises ConfigError for what it cannot run on."""

    def __init__(
        self,
        reactor: Any,
        number: int,
        generation: Generation,
        ports: LentPorts,
        sharing: Sharing,
        channel: WorkerChannel,
    ) -> None:
        memory = FileMemory()
        memory.give(generation.reading)
        with memory.reading():
            config = _own(read(generation.file), generation)
        self._channel = channel
        self._lent = ports
        self._generation = generation
        #: Fires when it serves.
        self.started: Deferred[None] = Deferred()
        role = Role(ports=ports, probes=False, demo_folder=generation.demo_folder, sharing=sharing)
        super().__init__(reactor, config, memory, role, worker=number)

    def begin(self, generation: Generation) -> Deferred[None]:
        """Start; fires when it serves. Raises RouterError."""
        self._lent.numbers = generation.ports
        self.prepare()
        for one in generation.conditions:
            self.told(one.pool, one.backend, None, "", one.state, one.why)
        self.startService()
        return self.started

    async def reconfigure(self, generation: Generation) -> tuple[list[str], int]:
        """Run on ``generation`` from now on; returns what there is to warn of, and how many live on.

        When it returns, nobody is accepted any more on ports that are not wanted. Raises ConfigError.
        """
        if self._drain is not None:
            return [], len(self.registry.entries)
        self._generation = generation
        self._lent.numbers = generation.ports
        parts = self.parts
        parts.memory.give(generation.reading)
        parts.role = replace(parts.role, demo_folder=generation.demo_folder)
        try:
            outcome = await self.reloader.change()
        except CancelledError:
            return [], len(self.registry.entries)  # it has begun to drain meanwhile
        while not all(listener.stopped for listener in self.parts.leaving):
            await deferLater(self.reactor, _LOOK)
        # What the files say was told by the supervisor; the rest is this process's own.
        return [line for line in outcome.warnings if line.startswith("access log")], outcome.live

    def told(self, pool: str, backend: str, rtt: float | None, reason: str, state: str, why: str) -> None:
        """The supervisor has probed a backend, or knows how it is."""
        found = self.pools.get(pool)
        if found is not None:
            found.told(backend, rtt, reason, State(state), why)

    def leave(self, why: str, alone: bool) -> None:
        """Drain and end, if that has not begun; ``alone``: the others go on.

        Where the others follow one that has begun alone, it turns away who asks only now, too.
        """
        if self._drain is None:
            if alone or self._channel.transport is None:
                # The router goes on, or starts anew: nobody in front needs to look away.
                config = self.parts.config
                self.parts.config = replace(config, router=replace(config.router, drain_delay=0.0))
            self._begin_drain(why, alone)
        elif not alone and not self.site.leaving:
            _log.info("{why}: all drain now", why=why)
            self.site.leaving = True
            self._drain_fronts()

    def end(self) -> None:
        """End, now."""
        if self._stopping is None:
            self._stop_reactor()

    def _read(self, file: Path) -> Config:
        return _own(read(file), self._generation)

    def _kept_workers(self, config: Config) -> list[str]:
        return []

    def _ready(self) -> None:
        self._serving = True
        self.settle()
        self.started.callback(None)

    def _stop_listening(self) -> None:
        if not self.site.leaving:
            for listener in self.listeners:
                listener.discard()  # who waits is for the others
        else:
            super()._stop_listening()
        self._lent.close()

    def _close(self) -> None:
        super()._close()
        self._channel.tell(control.Closed)


def _own(config: Config, generation: Generation) -> Config:
    """What of a configuration is for a worker.

    The demonstration backends are the supervisor's; a listener that it could not bind, as it has told, has no port.
    """
    return replace(
        config,
        echoes=(),
        router=replace(config.router, log=Log(generation.log)),
        listeners=tuple([listener for listener in config.listeners if listener.name in generation.ports]),
    )


class WorkerChannel(control.Channel):
    """The worker's end of the channel."""

    def __init__(self, reactor: Any, number: int, sharing: Sharing) -> None:
        super().__init__()
        self._reactor = reactor
        self._sharing = sharing
        self._number = number
        self._ports = LentPorts()
        self._service: WorkerService | None = None
        self._stopped = False

    @control.Lend.responder
    def lend(self, port: int, descriptor: int) -> dict[str, object]:
        self._ports.take(port, descriptor)
        return {}

    @control.Configure.responder
    def configure(self, generation: int) -> Deferred[dict[str, object]]:
        return Deferred.fromCoroutine(self._configure(generation))

    async def _configure(self, descriptor: int) -> dict[str, object]:
        try:
            generation = Generation.of_descriptor(descriptor)
        finally:
            os.close(descriptor)
        try:
            if self._service is not None:
                warnings, live = await self._service.reconfigure(generation)
                return {"warnings": control.short(warnings), "live": live}
            self._service = WorkerService(self._reactor, self._number, generation, self._ports, self._sharing, self)
            self._reactor.addSystemEventTrigger("before", "shutdown", self._service.stopService)
            await self._service.begin(generation)
        except ConfigError as error:
            raise control.Refused("\n".join(control.short(error.faults))) from None
        except RouterError as error:
            raise control.Refused(str(error)[: control.LONGEST]) from None
        return {"warnings": [], "live": 0}

    @control.Probed.responder
    def probed(
        self, pool: str, backend: str, reason: str, state: str, why: str, rtt: float | None = None
    ) -> dict[str, object]:
        if self._service is not None:
            try:
                self._service.told(pool, backend, rtt, reason, state, why)
            except Exception:
                _log.failure("What a check has found could not be told")
        return {}

    @control.Leave.responder
    def leave(self, why: str, alone: bool) -> dict[str, object]:
        self.drain(why, alone)
        return {}

    @control.End.responder
    def end(self) -> dict[str, object]:
        if self._service is None:
            self._stop()
        else:
            self._service.end()
        return {}

    @control.Count.responder
    def count(self) -> dict[str, object]:
        service = self._service
        if service is None:
            return {"sessions": 0, "tunnels": 0}
        kinds = [entry.facts.kind for entry in service.registry.entries.values()]
        sessions = kinds.count(Kind.SESSION)
        return {"sessions": sessions, "tunnels": len(kinds) - sessions}

    def drain(self, why: str, alone: bool) -> None:
        """Drain and end."""
        if self._service is None:
            self._stop()
        else:
            self._service.leave(why, alone)

    def terminated(self) -> None:
        """SIGTERM: what it means, alone or with all, the supervisor knows."""
        if self._service is None or self.transport is None:
            self.drain("SIGTERM", alone=True)
        else:
            self.tell(control.AskToLeave)

    def _stop(self) -> None:
        """End before there is anything to drain."""
        if not self._stopped:
            self._stopped = True
            self._reactor.stop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The supervisor has died: end as it would have wanted."""
        super().connectionLost(reason)
        if self._reactor.running:
            _log.warn("the supervisor is gone")
            self.drain("the supervisor is gone", alone=False)


def main() -> None:
    """Run a worker: its number and column are the arguments, its channel and the shared memory are inherited."""
    from twisted.internet import reactor as installed  # noqa: TID251

    reactor: Any = installed
    number, column = map(int, sys.argv[1:3])
    teller = Teller(1)
    globalLogBeginner.beginLoggingTo([teller], redirectStandardIO=False)
    teller.reactor = reactor
    channel = WorkerChannel(reactor, number, SharedMemory(SHARED, column))
    os.set_blocking(CHANNEL, False)
    reactor.adoptStreamConnection(CHANNEL, socket.AF_UNIX, control.Once(channel))
    os.close(CHANNEL)

    def terminated(signal_number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(channel.terminated)

    def take_signal() -> None:
        signal.signal(signal.SIGTERM, terminated)

    take_signal()
    reactor.callWhenRunning(take_signal)  # the reactor sets its own
    reactor.run()
    teller.finish()
