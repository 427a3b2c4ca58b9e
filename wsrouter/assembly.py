"""The parts of a router, built from the values of its configuration, and built again for another.

``draw`` reads every file that a configuration names and makes all that can be made beside what runs; it finds every
fault and changes nothing. ``install`` swaps the result in, in one step in which no client is looked at. What
connections hold (the site, the listeners, the pools) stays the same object and is changed in place, so that one
that is open follows with its next request; a session, a tunnel or a request under way keeps what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from wsrouter.backends.discovery import Discovery
from wsrouter.backends.pool import BackendPool
from wsrouter.backends.tls import PoolTls
from wsrouter.config import values
from wsrouter.config.differences import same
from wsrouter.config.memory import FileMemory
from wsrouter.config.values import Accept, Config, Echo, Session
from wsrouter.demo.backends import EchoService
from wsrouter.demo.certificates import DemoCertificates
from wsrouter.errors import ConfigError
from wsrouter.layer4.tunnel import Layer4
from wsrouter.layer7.certificates import CertificateStore
from wsrouter.layer7.message_rules import MessageRules
from wsrouter.layer7.own_filters import make_filters
from wsrouter.layer7.plain import Maker, maker_for
from wsrouter.layer7.proxy import HttpProxy
from wsrouter.layer7.sides import IS_FAST
from wsrouter.layer7.site import HeaderRules, Site
from wsrouter.listener.listener import Listener
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import Registry
from wsrouter.ops.on_down import Evictions
from wsrouter.policy.health import Change, State
from wsrouter.policy.members import Member
from wsrouter.policy.routing import RouteTable
from wsrouter.policy.sharing import Sharing, backend_gauge, listener_gauge
from wsrouter.policy.tunnels import TunnelTable
from wsrouter.ports import OwnPorts, Ports, PortSource
from wsrouter.relay.loop import Relay

_log = Logger()


@dataclass(frozen=True, slots=True)
class Drawing:
    """A configuration whose files were read: all that ``install`` needs, and nothing that runs."""

    config: Config
    #: The pools, those that run already among them.
    pools: Mapping[str, BackendPool]
    #: What those that run already will speak TLS with.
    pool_tls: Mapping[str, PoolTls]
    proxies: Mapping[str, HttpProxy]
    stores: Mapping[str, CertificateStore | None]
    tunnels: TunnelTable
    routes: RouteTable
    rules: Mapping[str, HeaderRules]
    handlers: Mapping[str, Maker]
    messages: Mapping[str, MessageRules]
    demo: DemoCertificates | None
    #: What can be served but is hardly meant, one line each.
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class Role:
    """What a process is there for. One that is all of the router binds, accepts and probes."""

    #: None: it binds its ports itself.
    ports: PortSource | None = None
    #: Whether it takes clients.
    accepts: bool = True
    #: Whether it probes backends; else it is told how they are.
    probes: bool = True
    #: Where demonstration certificates lie that another process has made.
    demo_folder: Path | None = None
    #: What makes limits hold for all processes.
    sharing: Sharing | None = None


class Assembly:
    """All parts of one process. ``memory`` knows the files that were read for ``config``."""

    def __init__(self, reactor: Any, config: Config, memory: FileMemory, role: Role | None = None) -> None:
        self.reactor = reactor
        self.config = config
        self.memory = memory
        self.role = role or Role()
        self.ports = self.role.ports or OwnPorts(reactor)
        self.relay = Relay(reactor)
        self.registry = Registry()
        self.sweeper = IdleSweeper(reactor)
        self.discovery = Discovery(reactor, reactor, backends_of(config))
        self.evictions = Evictions(reactor, self.registry)
        self.pools: dict[str, BackendPool] = {}
        #: Those that a reload has removed, and somebody may still need.
        self.retired: list[BackendPool] = []
        self.proxies: dict[str, HttpProxy] = {}
        self.layer4 = Layer4(self.relay, self.registry, self.pools, self.sweeper)
        self.site = Site(self.relay, self.registry, self.sweeper, self.pools, RouteTable(()), {}, {})
        self.listeners: list[Listener] = []
        #: Those that were given up, while they take in who was on the way.
        self.leaving: list[Listener] = []
        self.demo: DemoCertificates | None = None
        #: By port; one service for each.
        self.echoes: dict[int, EchoService] = {}
        #: The pools are at work.
        self.serving = False

    # Reading.

    def draw(self, config: Config) -> Drawing:
        """Read the files of ``config`` and build what it needs.

        Raises ConfigError for files that cannot be used, all of them at once.
        """
        faults: list[str] = []
        warnings: list[str] = []
        with self.memory.reading():
            demo = self._demo_certificates(config)
            pools, pool_tls = self._draw_pools(config, faults)
            stores = _draw_stores(config, demo, faults, warnings)
            messages = self._draw_messages(config, faults, warnings)
            self._keep_stores(config, stores)
        if faults:
            self._forget(demo)
            raise ConfigError([f"{config.file}: {fault}" for fault in faults])
        routes = config.routes
        rules = {route.name: HeaderRules.of(route) for route in routes}
        plain = [route for route in routes if route.pool is None or route.accept is not Accept.WEBSOCKET]
        proxies = {route.pool: self._proxy(pools[route.pool]) for route in plain if route.pool is not None}
        return Drawing(
            config=config,
            pools=pools,
            pool_tls=pool_tls,
            proxies=proxies,
            stores=stores,
            tunnels=TunnelTable(config.tunnels),
            routes=RouteTable(routes),
            rules=rules,
            handlers={route.name: maker_for(route, rules[route.name], pools, proxies) for route in plain},
            messages=messages,
            demo=demo,
            warnings=warnings,
        )

    def discard(self, drawing: Drawing) -> None:
        """It was drawn in vain: leave nothing of it."""
        self._forget(drawing.demo)

    def _forget(self, demo: DemoCertificates | None) -> None:
        if demo is not None and demo is not self.demo:
            demo.cleanup()

    def _draw_pools(self, config: Config, faults: list[str]) -> tuple[dict[str, BackendPool], dict[str, PoolTls]]:
        pools: dict[str, BackendPool] = {}
        tls: dict[str, PoolTls] = {}
        for pool in config.pools:
            running = self.pools.get(pool.name)
            try:
                if running is None:
                    pools[pool.name] = BackendPool(
                        self.relay,
                        pool,
                        self.discovery,
                        _keepalive(config),
                        probes=self.role.probes,
                        sharing=self.role.sharing,
                    )
                else:
                    tls[pool.name] = PoolTls.read(pool)
                    pools[pool.name] = running
            except ConfigError as error:
                faults += [f"[pool {pool.name}] {fault}" for fault in error.faults]
        return pools, tls

    def _draw_messages(self, config: Config, faults: list[str], warnings: list[str]) -> dict[str, MessageRules]:
        messages: dict[str, MessageRules] = {}
        for route in config.routes:
            if route.session is Session.MESSAGE:
                filters, found = make_filters(route.filters, config.file.parent, self.relay.seconds)
                faults += [f"[route {route.name}] filter: {fault}" for fault in found]
                messages[route.name] = MessageRules.of(route, filters, self.reactor)
        if messages and not IS_FAST:
            warnings.append("message sessions are slow here: this build of autobahn lacks its native code")
        return messages

    def _keep_stores(self, config: Config, stores: dict[str, CertificateStore | None]) -> None:
        """Keep the stores whose files say what they said: the TLS sessions of clients can be resumed then."""
        if self.memory.changed() or _all_plain(self.config.certificates) != _all_plain(config.certificates):
            return
        running = {listener.name: listener for listener in self.listeners}
        for listener in config.listeners:
            old = running.get(listener.name)
            if old is not None and _material(old.config) == _material(listener):
                stores[listener.name] = old.store

    def _proxy(self, pool: BackendPool) -> HttpProxy:
        running = self.proxies.get(pool.name)
        if running is not None and self.pools.get(pool.name) is pool:
            return running
        return HttpProxy(self.reactor, pool, self.relay.deadlines)

    def _demo_certificates(self, config: Config) -> DemoCertificates | None:
        names = {name for listener in config.listeners for name in listener.demo_certificates}
        names |= {echo.demo_certificate for echo in config.echoes if echo.demo_certificate is not None}
        if not names:
            return None
        folder = self.role.demo_folder
        if folder is not None:
            return DemoCertificates(folder, frozenset(names), temporary=False)
        if self.demo is not None and names <= self.demo.names:
            return self.demo  # others would have another CA, which nobody trusts yet
        return DemoCertificates.load(sorted(names), now=datetime.now(UTC))

    # Listening.

    def make_listener(self, config: values.Listener, drawing: Drawing) -> Listener:
        """A listener; it is not bound yet."""
        store = drawing.stores[config.name]
        role = self.role
        return Listener(config, store, drawing.tunnels, self.layer4, self.site, role.accepts, role.sharing)

    def open_echoes(self, config: Config, demo: DemoCertificates | None) -> dict[int, EchoService]:
        """Bind the ports of demonstration backends that are not there yet. ConfigError: none of them was bound."""
        opened: dict[int, EchoService] = {}
        faults: list[str] = []
        for echo in config.echoes:
            file = None
            if echo.demo_certificate is not None and demo is not None:
                file = demo.file_for(echo.demo_certificate)
            for port in echo.ports:
                if port in self.echoes:
                    continue
                service = EchoService(self.reactor, Echo(echo.name, (port,), echo.demo_certificate), file)
                try:
                    service.privilegedStartService()
                except CannotListenError as error:
                    why = str(error.socketError.strerror or error.socketError).lower()
                    faults.append(f"echo {echo.name}: cannot listen on port {error.port}: {why}")
                else:
                    opened[port] = service
        if faults:
            for service in opened.values():
                service.retire()
            raise ConfigError(faults)
        return opened

    # Swapping in.

    def install(self, drawing: Drawing, ports: Ports, echoes: Mapping[int, EchoService]) -> None:
        """Put ``drawing`` in force, in one step."""
        config = drawing.config
        self._install_pools(drawing)
        self.discovery.reconfigure(backends_of(config))
        site = self.site
        site.routes, site.rules, site.handlers = drawing.routes, drawing.rules, drawing.handlers
        site.messages = drawing.messages
        site.log_query, site.drain_path = config.router.log_query, config.router.drain_path
        for wanted, listener in ports.taken:
            listener.reconfigure(wanted, drawing.stores[wanted.name], drawing.tunnels)
        for listener in ports.closed:
            # Its rules may name pools that are gone.
            listener.reconfigure(listener.config, listener.store, drawing.tunnels)
            listener.leave()
        self.leaving = [listener for listener in (*self.leaving, *ports.closed) if not listener.stopped]
        for front in list(site.fronts):
            front.reloaded()
        self.listeners[:] = [listener for _, listener in ports.taken]
        self._install_echoes(config, echoes)
        old, self.demo = self.demo, drawing.demo
        self._forget(old)
        self.config = config
        self.memory.commit()

    def _install_pools(self, drawing: Drawing) -> None:
        old_config, config = self.config, drawing.config
        before = dict(self.pools)
        self.retired = [pool for pool in self.retired if not pool.stopped]
        wanted = {pool.name: pool for pool in config.pools}
        self.pools.clear()
        self.pools.update(drawing.pools)
        for name, proxy in self.proxies.items():
            if drawing.proxies.get(name) is not proxy:
                _stop(proxy.stop)
        self.proxies = dict(drawing.proxies)
        unchanged = _keepalive(old_config) == _keepalive(config)
        for name, pool in self.pools.items():
            if before.get(name) is not pool:
                self._begin(pool)
            elif not (unchanged and same(pool.config, wanted[name])) or _has_files(wanted[name]):
                pool.reconfigure(wanted[name], _keepalive(config), drawing.pool_tls[name])
        for place in _places_of(config) - _places_of(old_config):
            self.evictions.back(*place)
        for name, pool in before.items():
            if self.pools.get(name) is not pool:
                pool.retire()
                self.retired.append(pool)
                for backend in pool.config.backends:
                    self.evictions.gone(pool.config, backend.label)

    def _begin(self, pool: BackendPool) -> None:
        def down(member: Member) -> None:
            if self.pools.get(pool.name) is pool:
                self.evictions.gone(pool.config, member.label)
            if member in pool.members:
                # Down, and not just removed: it will hardly answer those who wait for it.
                for front in list(self.site.fronts):
                    front.backend_gone(member)

        def changed(member: Member, change: Change) -> None:
            if change.new is State.UP and self.pools.get(pool.name) is pool:
                self.evictions.back(pool.name, member.label)

        pool.observe_gone(down)
        pool.table.observe(changed)
        if self.serving:
            pool.start()

    def _install_echoes(self, config: Config, opened: Mapping[int, EchoService]) -> None:
        wanted = {port for echo in config.echoes for port in echo.ports}
        for port in self.echoes.keys() - wanted:
            self.echoes.pop(port).retire()
        self.echoes.update(opened)
        if self.serving:
            for service in opened.values():
                service.startService()

    # Life.

    def start(self) -> Deferred[None]:
        """Begin to serve; clients are not accepted yet. Fires when the first look-ups of backends' names are done."""
        self.serving = True
        self.relay.start()
        for service in self.echoes.values():
            service.startService()
        for pool in self.pools.values():
            pool.start()
        return self.discovery.start()

    def part(self) -> None:
        """Close the ports that were given up, at once: their addresses may be wanted again."""
        for listener in self.leaving:
            listener.stop()
        self.leaving.clear()

    def release(self) -> list[Deferred[Any]]:
        """Close all ports."""
        self.part()
        echoes = [maybeDeferred(service.stopService) for service in self.echoes.values()]
        for listener in self.listeners:
            listener.stop()
        return echoes

    def stop(self) -> list[Deferred[Any]]:
        """End everything, at once."""
        self.serving = False
        self.evictions.stop()
        waiting = self.release()
        waiting += [maybeDeferred(proxy.stop) for proxy in self.proxies.values()]
        for pool in (*self.pools.values(), *self.retired):
            pool.stop()
        for entry in list(self.registry.entries.values()):
            entry.abort()
        self.relay.stop()
        self.discovery.stop()
        self.sweeper.stop()
        if self.demo is not None:
            self.demo.cleanup()
        return waiting


def backends_of(config: Config) -> list[values.Backend]:
    """All backends of all pools."""
    return [backend for pool in config.pools for backend in pool.backends]


def gauges_of(config: Config) -> set[str]:
    """The names of all gauges that a configuration has (``policy.sharing``)."""
    listeners = {listener_gauge(listener.name) for listener in config.listeners}
    limited = [(pool.name, one.label) for pool in config.pools for one in pool.backends if one.max_sessions is not None]
    return listeners | {backend_gauge(pool, label) for pool, label in limited}


def _places_of(config: Config) -> set[tuple[str, str]]:
    """All backends, as pool and label."""
    return {(pool.name, backend.label) for pool in config.pools for backend in pool.backends}


def _keepalive(config: Config) -> float | None:
    """That of the legs to backends."""
    return min((one.tcp_keepalive for one in config.listeners if one.tcp_keepalive), default=None)


def _material(listener: values.Listener) -> tuple[object, ...]:
    """What the certificates of a listener depend on."""
    return listener.certificates, listener.default_certificate, listener.demo_certificates, listener.tls_min


def _all_plain(certificates: Sequence[values.Certificate]) -> list[values.Certificate]:
    return [replace(one, line=0) for one in certificates]


def _has_files(pool: values.Pool) -> bool:
    return pool.tls is not None or (pool.check is not None and pool.check.tls is not None)


def _draw_stores(
    config: Config, demo: DemoCertificates | None, faults: list[str], warnings: list[str]
) -> dict[str, CertificateStore | None]:
    stores: dict[str, CertificateStore | None] = {}
    for listener in config.listeners:
        extra: Sequence[Path] = [] if demo is None else [demo.file_for(name) for name in listener.demo_certificates]
        store = None
        if listener.certificates or listener.default_certificate or extra or config.certificates:
            try:
                store = CertificateStore.load(listener, config.certificates, extra)
            except ConfigError as error:
                faults += error.faults
                continue
            warnings += store.warnings
        stores[listener.name] = store
    return stores


def _stop(stop: Callable[[], Any]) -> None:
    stopped = maybeDeferred(stop)
    stopped.addErrback(lambda failure: _log.failure("A part that is not needed any more could not be stopped", failure))
