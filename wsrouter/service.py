"""The router as a process: its start, its signals, its end. ``wsrouter.assembly`` builds the parts.

``prepare`` reads everything that the configuration names (certificates, CA files) and binds nothing, so it also
serves ``--check``. ``privilegedStartService`` binds the ports, before privileges are dropped; ``startService`` runs
in the process that serves.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from wsrouter.assembly import Assembly, Role
from wsrouter.config.memory import FileMemory
from wsrouter.config.reader import read
from wsrouter.config.schema.listening import MOST_WORKERS
from wsrouter.config.values import Config, Router
from wsrouter.errors import RouterError
from wsrouter.listener.listener import Listener
from wsrouter.ops.access_log import AccessLog
from wsrouter.ops.drain import Drain
from wsrouter.ops.notify import Notifier
from wsrouter.ports import Ports
from wsrouter.reload import FIRST_LOOKUPS, Outcome, Reloader

#: How long after the last session a signal is ignored, in seconds; then it ends the process as it is.
LAST_PATIENCE = 3.0
#: Descriptors that are not for connections: the log, files being served, look-ups, the process's own.
RESERVED = 48

_log = Logger()


def workers_of(config: Config) -> int:
    """How many processes are to take the clients."""
    wanted = config.router.workers
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS) if wanted is None else wanted


def _client_limit() -> int:
    """How many clients the descriptors allow, two for each; the limit of the process is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        soft = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, (soft - RESERVED) // 2)


class RouterService(Service):
    """The router as one Twisted service. ``reactor`` is the process's reactor (epoll)."""

    name = "wsrouter"

    def __init__(
        self,
        reactor: Any,
        config: Config,
        memory: FileMemory | None = None,
        role: Role | None = None,
        worker: int | None = None,
    ) -> None:
        self.reactor = reactor
        #: Which worker this process is, where there are several.
        self.worker = worker
        self.parts = parts = Assembly(reactor, config, memory or FileMemory(), role)
        self.relay = parts.relay
        self.registry = parts.registry
        self.sweeper = parts.sweeper
        self.discovery = parts.discovery
        #: These two are changed in place by a reload, as is the site.
        self.listeners = parts.listeners
        self.pools = parts.pools
        self.site = parts.site
        self.notifier = Notifier()
        self.reloader = Reloader(parts, self.notifier, self._reloaded, self._read)
        self._access_log: AccessLog | None = None
        self._drain: Drain | None = None
        self._bound = False
        #: When the reactor was told to stop, on its own clock.
        self._stopping: float | None = None
        #: What can be served but is hardly meant, one line each: certificates out of their term and the like.
        self.warnings: list[str] = []
        #: Runs while the first look-ups hold up accepting.
        self._patience: IDelayedCall | None = None
        #: Clients are taken, or were.
        self._serving = False
        #: A reload was asked for before.
        self._reload_wanted = False
        #: Called with the parent that this gets.
        self.on_parent: Callable[[Any], None] | None = None

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.parts.config

    def prepare(self) -> None:
        """Build all parts. Raises ConfigError for files that cannot be used, all of them at once."""
        parts = self.parts
        drawing = parts.draw(parts.config)
        for warning in drawing.warnings:
            _log.warn("{warning}", warning=warning)
        self.warnings += drawing.warnings
        listeners = [(listener, parts.make_listener(listener, drawing)) for listener in parts.config.listeners]
        parts.install(drawing, Ports(taken=listeners), {})
        if parts.config.router.access_log is not None:
            # Its file is opened when the router serves.
            self._observe(self._new_access_log(parts.config.router))

    def _observe(self, log: AccessLog) -> None:
        self._access_log = log
        self.registry.observers.append(log)

    def _new_access_log(self, router: Router) -> AccessLog:
        """An access log that is not open yet."""
        return AccessLog(self.reactor, router.log, _file_of(router), self.worker)

    def _reopen_access_log(self, router: Router) -> list[str]:
        """Open the access log anew, even where nothing has changed: this is how logs are rotated. Returns warnings."""
        old = self._access_log
        if router.access_log is None:
            if old is not None:
                self.registry.observers.remove(old)
                old.close()
                self._access_log = None
            return []
        log = self._new_access_log(router) if old is None else old
        try:
            log.reopen(_file_of(router))
        except RouterError as error:
            return [f"{error}; {'nothing is written, as before' if old is None else 'the old one is written on'}"]
        if old is None:
            self._observe(log)
        return []

    # Life.

    def setServiceParent(self, parent: Any) -> None:
        """Become a part of ``parent``, twistd's application."""
        if self.on_parent is not None:
            self.on_parent(parent)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    def privilegedStartService(self) -> None:
        """Bind all ports. Raises RouterError with one line that says which one cannot be bound, and why."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        with self._told_in_one_line():
            self._bind()

    @contextmanager
    def _told_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except RouterError as error:
            self._release()
            _log.critical("{error}", error=error)
            print(f"wsrouter: {error}", file=sys.__stderr__)
            # It was said in one line. twistd still needs the exception, to exit with status 1 and remove its pid file.
            sys.excepthook = lambda *_: None
            raise

    def _bind(self) -> None:
        if self._bound:
            return
        for listener in self.listeners:
            self.parts.ports.bind(listener)
        self.parts.echoes.update(self.parts.open_echoes(self.config, self.parts.demo))
        self._bound = True

    def startService(self) -> None:
        """Serve."""
        super().startService()  # type: ignore[no-untyped-call]
        with self._told_in_one_line():
            self._bind()
            self._open_access_log()
        self.relay.client_limit = _client_limit()
        # Clients wait in the kernel's queue until the names of backends were looked up once, or for so long; and until
        # the reactor runs: who is told that the router serves may send it any signal.
        self._patience = self.reactor.callLater(FIRST_LOOKUPS, self._accept)
        looked_up = self.parts.start().addCallback(lambda _: self.reactor.callWhenRunning(self._accept))
        looked_up.addErrback(lambda failure: _log.failure("The start failed", failure))

    def _open_access_log(self) -> None:
        if self._access_log is not None:
            self._access_log.open()

    def _release(self) -> None:
        """Close all ports."""
        self._bound = False
        self.parts.release()

    def _accept(self) -> None:
        if self._patience is None:
            return  # the other one came first, or the end
        if self._patience.active():
            self._patience.cancel()
        self._patience = None
        self._take_clients()

    def _take_clients(self) -> None:
        for listener in self.listeners:
            listener.start()
        self._ready()

    def _ready(self) -> None:
        """Clients are taken, on all ports: say so."""
        self._serving = True
        for listener in self.listeners:
            _tell_address(listener)
        if self.parts.demo is not None:
            _log.info("demonstration certificates: clients may trust {ca}", ca=self.parts.demo.ca)
        if self.config.echoes and self.listeners:
            _log.info("demonstration: open http://{address}/", address=self.listeners[0].address)
        self.notifier.ready("serving")
        if self._reload_wanted:
            self.reload()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def stopService(self) -> Deferred[None]:
        """End at once: what a drain left is cut."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._drain is not None:
            self._drain.forget()
        self._stop_waiting()
        self.reloader.stop()
        self._bound = False
        waiting = self.parts.stop()
        if self._access_log is not None:
            self._access_log.close()
        return DeferredList(waiting).addCallback(lambda _: None)

    # Reloading.

    def reload(self) -> None:
        """Read the configuration again, and put it in force if it is good; see ``wsrouter.reload``."""
        self._reload_wanted = not self._serving and self._drain is None
        if not self._reload_wanted:
            self.reloader.request()

    def _read(self, file: Path) -> Config:
        return read(file)

    async def _reloaded(self, config: Config, opened: Sequence[Listener]) -> Outcome:
        """A configuration was put in force: what is left to do here."""
        for listener in opened:
            _tell_address(listener)
        warnings = self._reopen_access_log(config.router) + self._kept_workers(config)
        return Outcome(warnings=warnings, live=len(self.registry.entries))

    def _kept_workers(self, config: Config) -> list[str]:
        """A line if there are to be other processes than there can be without a restart."""
        return ["[router] workers: several need a restart"] if workers_of(config) > 1 else []

    def replace_workers(self) -> None:
        """Replace all workers by fresh processes, where there are any."""
        _log.warn("there are no workers to replace: this is one process (see workers in [router])")

    # The process.

    def settle(self) -> None:
        """Tune the garbage collector of a process that does nothing but route. Call it once the reactor runs."""
        # What was built lives as long as the process, and ended sessions leave no cycles: look seldom.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)

    def handle_signals(self) -> None:
        """Take SIGTERM and SIGINT (the first drains, the second ends at once), SIGHUP and SIGUSR2.

        Call it once the reactor runs.

        twistd's own handler would raise the signal again after the reactor has stopped, and so spoil the exit status.
        """

        def received(number: int, frame: FrameType | None) -> None:
            if self._stopping is None:
                self.reactor.callFromThread(self.shut_down, signal.Signals(number).name)
            elif self.reactor.seconds() - self._stopping > LAST_PATIENCE:
                # The reactor is deaf by now, and stopping may take long: a look-up in a thread cannot be cut off.
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, received)
        signal.signal(signal.SIGINT, received)
        for number, handle in ((signal.SIGHUP, self.reload), (signal.SIGUSR2, self.replace_workers)):
            signal.signal(number, partial(self._on_signal, handle))

    def _on_signal(self, handle: Callable[[], None], number: int, frame: FrameType | None) -> None:
        self.reactor.callFromThread(handle)

    def _stop_reactor(self) -> None:
        self._stopping = self.reactor.seconds()
        self.reactor.stop()

    def shut_down(self, why: str) -> None:
        """Drain, then stop the reactor; called again, stop it now."""
        if self._drain is None:
            self._begin_drain(why, alone=False)
        else:
            _log.info("{why} again: ending at once", why=why)
            self._drain.cancel()

    def _begin_drain(self, why: str, alone: bool) -> None:
        """Drain, then stop the reactor; ``alone``: other processes of the router go on."""
        _log.info("{why}: draining", why=why)
        router = self.config.router
        if self._patience is not None:
            # Nobody was ever told that this router serves.
            router = replace(router, drain_delay=0.0)
        self.notifier.stopping()
        self._stop_waiting()
        self.reloader.stop()
        self.parts.evictions.stop()
        self.site.leaving = not alone
        self._drain = Drain(
            self.reactor, self.registry, lambda: self.relay.clients, router, self._close, self._stop_reactor
        )
        self._drain.start()

    def _close(self) -> None:
        """The drain is there: no new connections, and no new work but of who was let in by one that leaves alone."""
        _log.info("no new connections")
        self.site.draining = True
        self.parts.part()
        self._stop_listening()
        self._drain_fronts()

    def _drain_fronts(self) -> None:
        for front in list(self.site.fronts):
            front.drain()

    def _stop_listening(self) -> None:
        for listener in self.listeners:
            listener.stop()


def _file_of(router: Router) -> Path | None:
    """The access log's own file; None for the log stream."""
    return router.access_log if isinstance(router.access_log, Path) else None


def _tell_address(listener: Listener) -> None:
    _log.info("listener {name}: listening on {address}", name=listener.name, address=listener.address)
