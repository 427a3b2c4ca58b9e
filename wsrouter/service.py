"""The configuration, running: builds every part from its values and owns their life.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from wsrouter.backends.discovery import Discovery
from wsrouter.backends.pool import BackendPool
from wsrouter.config.values import Accept, Config, Echo, Listener
from wsrouter.demo.backends import EchoService
from wsrouter.demo.certificates import DemoCertificates
from wsrouter.errors import ConfigError, RouterError
from wsrouter.layer4.tunnel import Layer4
from wsrouter.layer7.certificates import CertificateStore
from wsrouter.layer7.plain import maker_for
from wsrouter.layer7.proxy import HttpProxy
from wsrouter.layer7.site import HeaderRules, Site
from wsrouter.listener import Listener as RunningListener
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import Registry
from wsrouter.ops.access_log import AccessLog
from wsrouter.ops.drain import Drain
from wsrouter.policy.routing import RouteTable
from wsrouter.policy.tunnels import TunnelTable
from wsrouter.relay.loop import Relay

#: How long the first look-ups of backends' names may hold up the start, in seconds.
FIRST_LOOKUPS = 3.0

#: How long after the last session a signal is ignored, in seconds; then it ends the process as it is.
LAST_PATIENCE = 3.0
#: Descriptors that are not for connections: the log, files being served, look-ups, the process's own.
RESERVED = 48

_log = Logger()


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

    def __init__(self, reactor: Any, config: Config) -> None:
        self.reactor = reactor
        self.config = config
        self.relay = Relay(reactor)
        self.registry = Registry()
        self.sweeper = IdleSweeper(reactor)
        self.discovery = Discovery(reactor, reactor, [backend for pool in config.pools for backend in pool.backends])
        self.listeners: list[RunningListener] = []
        self.pools: dict[str, BackendPool] = {}
        self._proxies: dict[str, HttpProxy] = {}
        self._demo: DemoCertificates | None = None
        self._echoes: list[EchoService] = []
        self._access_log: AccessLog | None = None
        self._drain: Drain | None = None
        self._bound = False
        #: When the reactor was told to stop, on its own clock.
        self._stopping: float | None = None
        #: What can be served but is hardly meant, one line each: certificates out of their term and the like.
        self.warnings: list[str] = []
        #: Runs while the first look-ups hold up accepting.
        self._patience: IDelayedCall | None = None

    # Building.

    def prepare(self) -> None:
        """Build all parts. Raises ConfigError for files that cannot be used, all of them at once."""
        config = self.config
        faults: list[str] = []
        self._demo = self._demo_certificates()
        self.pools = self._build_pools(faults)
        stores = self._build_stores(faults)
        if faults:
            raise ConfigError([f"{config.file}: {fault}" for fault in faults])
        self.layer4 = Layer4(self.relay, self.registry, self.pools, self.sweeper)
        self.site = self._build_site()
        tunnels = TunnelTable(config.tunnels)
        self.listeners = [
            RunningListener(listener, stores[listener.name], tunnels, self.layer4, self.site)
            for listener in config.listeners
        ]
        self._echoes = [EchoService(self.reactor, echo, self._demo_file(echo)) for echo in config.echoes]
        file = config.router.access_log
        if file is not None:
            self._access_log = AccessLog(self.reactor, config.router.log, file if isinstance(file, Path) else None)
            self.registry.observers.append(self._access_log)

    def _build_pools(self, faults: list[str]) -> dict[str, BackendPool]:
        keepalive = min((one.tcp_keepalive for one in self.config.listeners if one.tcp_keepalive), default=None)
        pools: dict[str, BackendPool] = {}
        for pool in self.config.pools:
            try:
                pools[pool.name] = BackendPool(self.relay, pool, self.discovery, keepalive)
            except ConfigError as error:
                faults += [f"[pool {pool.name}] {fault}" for fault in error.faults]
        return pools

    def _build_stores(self, faults: list[str]) -> dict[str, CertificateStore | None]:
        stores: dict[str, CertificateStore | None] = {}
        for listener in self.config.listeners:
            try:
                stores[listener.name] = self._store(listener)
            except ConfigError as error:
                faults += error.faults
        return stores

    def _build_site(self) -> Site:
        routes = self.config.routes
        rules = {route.name: HeaderRules.of(route) for route in routes}
        plain = [route for route in routes if route.pool is None or route.accept is not Accept.WEBSOCKET]
        self._proxies = {route.pool: self._proxy(self.pools[route.pool]) for route in plain if route.pool is not None}
        return Site(
            relay=self.relay,
            registry=self.registry,
            sweeper=self.sweeper,
            pools=self.pools,
            routes=RouteTable(routes),
            rules=rules,
            handlers={route.name: maker_for(route, rules[route.name], self.pools, self._proxies) for route in plain},
            log_query=self.config.router.log_query,
        )

    def _proxy(self, pool: BackendPool) -> HttpProxy:
        return HttpProxy(self.reactor, pool, self.relay.deadlines)

    def _demo_certificates(self) -> DemoCertificates | None:
        names = [name for listener in self.config.listeners for name in listener.demo_certificates]
        names += [echo.demo_certificate for echo in self.config.echoes if echo.demo_certificate is not None]
        return DemoCertificates.load(sorted(set(names)), now=datetime.now(UTC)) if names else None

    def _demo_file(self, echo: Echo) -> Path | None:
        if echo.demo_certificate is None or self._demo is None:
            return None
        return self._demo.file_for(echo.demo_certificate)

    def _store(self, listener: Listener) -> CertificateStore | None:
        extra: Sequence[Path] = ()
        if self._demo is not None:
            extra = [self._demo.file_for(name) for name in listener.demo_certificates]
        if not (listener.certificates or listener.default_certificate or extra or self.config.certificates):
            return None
        store = CertificateStore.load(listener, self.config.certificates, extra)
        self.warnings += store.warnings
        for warning in store.warnings:
            _log.warn("{warning}", warning=warning)
        return store

    # Life.

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
            listener.bind(self.reactor)
        for config, echo in zip(self.config.echoes, self._echoes, strict=True):
            try:
                echo.privilegedStartService()
            except CannotListenError as error:
                why = str(error.socketError.strerror or error.socketError).lower()
                raise RouterError(f"echo {config.name}: cannot listen on port {error.port}: {why}") from None
        self._bound = True

    def startService(self) -> None:
        """Serve."""
        super().startService()  # type: ignore[no-untyped-call]
        with self._told_in_one_line():
            self._bind()
            if self._access_log is not None:
                self._access_log.open()
        self.relay.client_limit = _client_limit()
        self.relay.start()
        for echo in self._echoes:
            echo.startService()
        for pool in self.pools.values():
            pool.start()
        # Clients wait in the kernel's queue until the names of backends were looked up once, or for so long.
        self._patience = self.reactor.callLater(FIRST_LOOKUPS, self._accept)
        looked_up = self.discovery.start().addCallback(lambda _: self._accept())
        looked_up.addErrback(lambda failure: _log.failure("The start failed", failure))

    def _release(self) -> list[Deferred[Any]]:
        """Close all ports."""
        self._bound = False
        return [maybeDeferred(listener.stop) for listener in self.listeners] + [
            maybeDeferred(echo.stopService) for echo in self._echoes
        ]

    def _accept(self) -> None:
        if self._patience is None:
            return  # the other one came first, or the end
        if self._patience.active():
            self._patience.cancel()
        self._patience = None
        for listener in self.listeners:
            listener.start()
            _log.info("listener {name}: listening on {address}", name=listener.name, address=listener.address)
        if self._demo is not None:
            _log.info("demonstration certificates: clients may trust {ca}", ca=self._demo.ca)
        if self.config.echoes and self.listeners:
            _log.info("demonstration: open http://{address}/", address=self.listeners[0].address)

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
        waiting = self._release()
        waiting += [maybeDeferred(proxy.stop) for proxy in self._proxies.values()]
        for pool in self.pools.values():
            pool.stop()
        for entry in list(self.registry.entries.values()):
            entry.abort()
        self.relay.stop()
        self.discovery.stop()
        self.sweeper.stop()
        if self._access_log is not None:
            self._access_log.close()
        if self._demo is not None:
            self._demo.cleanup()
        return DeferredList(waiting).addCallback(lambda _: None)

    # The process.

    def settle(self) -> None:
        """Tune the garbage collector of a process that does nothing but route. Call it once the reactor runs."""
        # What was built lives as long as the process, and ended sessions leave no cycles: look seldom.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)

    def handle_signals(self) -> None:
        """Take SIGTERM and SIGINT: the first drains, the second ends at once. Call it once the reactor runs.

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
        signal.signal(signal.SIGHUP, self._cannot_reload)

    def _cannot_reload(self, number: int, frame: FrameType | None) -> None:
        # Without a handler this signal would end the process, and every session with it.
        self.reactor.callFromThread(
            _log.warn,
            "SIGHUP: this version cannot reload; everything goes on as it is. Restart to change the configuration",
        )

    def _stop_reactor(self) -> None:
        self._stopping = self.reactor.seconds()
        self.reactor.stop()

    def shut_down(self, why: str) -> None:
        """Drain, then stop the reactor; called again, stop it now."""
        if self._drain is not None:
            _log.info("{why} again: ending at once", why=why)
            self._drain.cancel()
            return
        _log.info("{why}: no new connections, draining", why=why)
        site = self.site
        site.draining = True
        self._stop_waiting()
        for listener in self.listeners:
            listener.stop()
        self._drain = Drain(
            self.reactor,
            self.registry,
            lambda: sum(listener.live for listener in self.listeners),
            self.config.router.drain,
            self._stop_reactor,
        )
        self._drain.start()
        for front in list(site.fronts):
            front.drain()
