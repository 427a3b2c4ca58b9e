"""The service of the first process of several: it takes no clients itself.

It binds the ports, reads the configuration and every file that it names, probes the backends, runs the demonstration
backends, and takes the signals. What comes of all that it hands to the workers. A reload is one here, as in a router of
one process, with one step more: the workers take it over before any port is given up.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from socket import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from wsrouter.assembly import Role, gauges_of
from wsrouter.backends.pool import BackendPool
from wsrouter.config.memory import FileMemory
from wsrouter.config.values import Config
from wsrouter.listener.listener import Listener
from wsrouter.policy.health import State
from wsrouter.policy.members import Member
from wsrouter.reload import Outcome
from wsrouter.service import RouterService, workers_of
from wsrouter.workers.fleet import Fleet, StartFailed
from wsrouter.workers.generation import Condition, Generation

#: How long workers may take to end behind the last moment of a drain, in seconds; then they are killed.
LAST_WAIT = 5.0

_log = Logger()


class SupervisorService(RouterService):
    """The router as several processes."""

    def __init__(self, reactor: Any, config: Config, memory: FileMemory | None = None) -> None:
        super().__init__(reactor, config, memory, Role(accepts=False))
        self.fleet = Fleet(reactor, self._generation, self._conditions, self._look_at_ports)
        #: The number of every listener's port; workers know ports by these.
        self._numbers: dict[Listener, int] = {}
        self._last_number = 0
        self._revision = 0
        self._gauges = gauges_of(config)
        #: Stands for a drain; the workers' own ones do the work.
        self._leaving = False
        self._closing: IDelayedCall | None = None
        self._patience_at_the_end: IDelayedCall | None = None

    # What workers run on.

    def _generation(self) -> tuple[Generation, Mapping[int, socket]]:
        parts = self.parts
        for listener in self.listeners:
            if listener not in self._numbers:
                self._last_number += 1
                self._numbers[listener] = self._last_number
        self._numbers = {listener: self._numbers[listener] for listener in self.listeners}
        generation = Generation(
            revision=self._revision,
            file=self.config.file,
            reading=parts.memory.in_force,
            ports={listener.name: number for listener, number in self._numbers.items()},
            demo_folder=None if parts.demo is None else parts.demo.folder,
            log=self.config.router.log.value,
            conditions=[one for one in self._conditions() if one.state != State.UP.value],
        )
        return generation, {number: listener.socket for listener, number in self._numbers.items()}

    def _conditions(self) -> list[Condition]:
        """How all backends are."""
        now = self.reactor.seconds()
        return [
            Condition(pool.name, one.label, one.state.value, one.why)
            for pool in self.pools.values()
            for one in pool.table.snapshot(now)
        ]

    def _watch(self) -> None:
        """Pass on what is probed."""
        for pool in self.pools.values():
            pool.observe_probes(_Passing(self.fleet, pool))

    # Life.

    def _open_access_log(self) -> None:
        super()._open_access_log()
        if self._access_log is not None:
            # It can be opened. The workers write it.
            self._access_log.close()

    def _take_clients(self) -> None:
        self._watch()
        started = Deferred.fromCoroutine(self.fleet.start(workers_of(self.config)))
        started.addCallbacks(lambda _: self._started(), self._not_started)

    def _started(self) -> None:
        if not self._leaving:
            self._ready()

    def _not_started(self, failure: Failure) -> None:
        if isinstance(failure.value, StartFailed):
            _log.critical("no worker can be started")
        else:
            _log.failure("The start failed", failure)
        # twistd has no other way for a failure that shows once the reactor runs.
        atexit.register(_exit_with_failure)
        self.fleet.kill().addCallback(lambda _: self._stop_reactor())

    def stopService(self) -> Deferred[None]:
        """End at once."""
        for call in (self._closing, self._patience_at_the_end):
            if call is not None and call.active():
                call.cancel()
        killed = self.fleet.kill()
        stopped = super().stopService()
        return killed.addCallback(lambda _: stopped)

    # Reloading.

    async def _reloaded(self, config: Config, opened: Sequence[Listener]) -> Outcome:
        self._revision += 1
        self._watch()
        warnings, live = await self.fleet.configure()
        # They all accept elsewhere now, and have taken in who waited.
        self.parts.part()
        warnings += await self.fleet.resize(workers_of(config))
        self._free_gauges(config)
        outcome = await super()._reloaded(config, opened)
        return Outcome(warnings=[*outcome.warnings, *warnings], live=live)

    def _free_gauges(self, config: Config) -> None:
        """Forget gauges that neither this configuration nor the last one has, when no worker runs on an older one."""
        before, self._gauges = self._gauges, gauges_of(config)
        if self.fleet.memory is not None and not self.fleet.leaving:
            self.fleet.memory.keep_gauges(before | self._gauges)

    def _kept_workers(self, config: Config) -> list[str]:
        return []

    def _reopen_access_log(self, router: Any) -> list[str]:
        return []  # the workers do, and tell

    # The process.

    def replace_workers(self) -> None:
        """Replace all workers by fresh processes, one after the other."""
        rolled = Deferred.fromCoroutine(self.fleet.roll())
        rolled.addErrback(lambda failure: _log.failure("Replacing the workers failed", failure))

    def shut_down(self, why: str) -> None:
        """Have all workers drain, then stop the reactor; called again, end them now."""
        if self._leaving:
            _log.info("{why} again: ending at once", why=why)
            self._end()
            return
        self._leaving = True
        router = self.config.router
        delay = router.drain_delay if self.fleet.serving else 0.0
        _log.info("{why}: the workers drain", why=why)
        self.notifier.stopping()
        self._stop_waiting()
        self.reloader.stop()
        self.fleet.leave(why).addCallback(lambda _: self._stop_reactor())
        self._closing = self.reactor.callLater(delay, self._turn_away)
        self._patience_at_the_end = self.reactor.callLater(delay + router.drain + LAST_WAIT, self._lose_patience)

    def _turn_away(self) -> None:
        """Nobody new comes in."""
        for listener in self.listeners:
            listener.leave()
        self._look_at_ports()

    def _look_at_ports(self) -> None:
        """Close the ports when no worker accepts any more: who waits there then is told."""
        if self._leaving and all(worker.closed for worker in self.fleet.workers.values()):
            self.parts.part()
            for listener in self.listeners:
                listener.leave()
                listener.stop()

    def _lose_patience(self) -> None:
        _log.error("workers have not ended in time: they are killed")
        self.fleet.kill()

    def _end(self) -> None:
        self.fleet.end()
        if self._patience_at_the_end is not None and self._patience_at_the_end.active():
            self._patience_at_the_end.reset(LAST_WAIT)

    def _stop_reactor(self) -> None:
        if self._stopping is None:
            super()._stop_reactor()


class _Passing:
    """Passes on what the probes of one pool have found."""

    def __init__(self, fleet: Fleet, pool: BackendPool) -> None:
        self._fleet = fleet
        self._pool = pool

    def __call__(self, member: Member, rtt: float | None, reason: str) -> None:
        health = self._pool.table.get(member)
        if health is not None:
            self._fleet.probed(self._pool.name, member.label, rtt, reason, health.state.value, health.why)


def _exit_with_failure() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)
