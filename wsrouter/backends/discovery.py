"""The addresses of backends: literals at once, names through the system's resolver, off the loop.

The system's resolver (hosts file, search domains, DNS, in a thread of the reactor) is what operators expect a name
to mean. It does not tell how long an answer holds, so names are asked again every REFRESH seconds. A name that stops
resolving keeps its last addresses: a resolver that is down must not take a healthy backend with it.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterable, Sequence, Set
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostResolution,
    IReactorPluggableNameResolver,
    IReactorTime,
    IResolutionReceiver,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from wsrouter.backends.dial import Address
from wsrouter.config.values import Backend

#: How often names are asked for again, in seconds.
REFRESH = 30.0

_log = Logger()


def literal_address(backend: Backend) -> Address | None:
    """The address of a backend that needs no look-up, or None for a name."""
    if backend.unix is not None:
        return Address(socket.AF_UNIX, backend.unix)
    try:
        version = ip_address(backend.host).version
    except ValueError:
        return None
    if version == 6:
        return Address(socket.AF_INET6, (backend.host, backend.port, 0, 0))
    return Address(socket.AF_INET, (backend.host, backend.port))


@implementer(IResolutionReceiver)
class _Receiver:
    """Gathers the answers to one look-up."""

    def __init__(self) -> None:
        self.found: list[IAddress] = []
        self.done: Deferred[list[IAddress]] = Deferred()

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """The look-up runs."""

    def addressResolved(self, address: IAddress) -> None:
        """One address more."""
        self.found.append(address)

    def resolutionComplete(self) -> None:
        """No more answers."""
        self.done.callback(self.found)


class Discovery:
    """Knows the current addresses of all backends; ``start`` keeps those of names fresh."""

    def __init__(
        self, clock: IReactorTime, resolver: IReactorPluggableNameResolver, backends: Iterable[Backend]
    ) -> None:
        self._clock = clock
        self._resolver = resolver
        self._names: frozenset[str] = frozenset()
        #: Names whose look-up is under way: a dead resolver must not fill the reactor's threads.
        self._asking: set[str] = set()
        self._hosts: dict[str, list[tuple[int, str]]] = {}
        self._literals: dict[Backend, tuple[Address, ...]] = {}
        self._turn = 0
        self._call: IDelayedCall | None = None
        self._running = False
        self.reconfigure(backends)

    def add(self, backends: Iterable[Backend]) -> Deferred[None]:
        """Look up those names of ``backends`` that are not known yet; fires when these look-ups have ended.

        ``reconfigure`` must follow, with all backends: it says what stays.
        """
        new = _names(backends) - self._names
        self._names |= new
        return self._look_up(new - self._hosts.keys())

    def reconfigure(self, backends: Iterable[Backend]) -> None:
        """These are all backends from now on. A name that stays keeps its addresses; one that is gone is forgotten."""
        backends = list(backends)
        self._names = _names(backends)
        self._hosts = {name: hosts for name, hosts in self._hosts.items() if name in self._names}
        literals = ((backend, literal_address(backend)) for backend in backends)
        self._literals = {backend: (address,) for backend, address in literals if address is not None}
        if self._running and self._names and self._call is None:
            self._call = self._clock.callLater(REFRESH, self._refresh)

    def detached(self, backends: Iterable[Backend]) -> Discovery:
        """One for these backends alone: it knows of them what this one knows now, and asks for nothing."""
        made = Discovery(self._clock, self._resolver, backends)
        made._hosts = {name: hosts for name, hosts in self._hosts.items() if name in made._names}
        return made

    def start(self) -> Deferred[None]:
        """Look up all names now and every REFRESH seconds; fires when the first look-ups have ended."""
        self._running = True
        return self._refresh()

    def stop(self) -> None:
        """Look up no more."""
        self._running = False
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def addresses(self, backend: Backend) -> Sequence[Address]:
        """The addresses of ``backend``, in the order to try them; empty while its name does not resolve.

        A name's addresses take turns at being the first.
        """
        literal = self._literals.get(backend)
        if literal is not None:
            return literal
        hosts = self._hosts.get(backend.host, [])
        if len(hosts) > 1:
            self._turn += 1
            first = self._turn % len(hosts)
            hosts = hosts[first:] + hosts[:first]
        return [
            Address(family, (host, backend.port, 0, 0) if family == socket.AF_INET6 else (host, backend.port))
            for family, host in hosts
        ]

    def _refresh(self) -> Deferred[None]:
        self._call = None
        if self._names:
            self._call = self._clock.callLater(REFRESH, self._refresh)
        return self._look_up(self._names)

    def _look_up(self, names: Set[str]) -> Deferred[None]:
        lookups: list[Deferred[None]] = []
        for name in sorted(names - self._asking):
            self._asking.add(name)
            receiver = _Receiver()
            lookup = receiver.done.addBoth(functools.partial(self._answered, name))
            lookup.addCallback(functools.partial(self._resolved, name))
            lookups.append(lookup.addErrback(functools.partial(_failed, name)))
            self._resolver.nameResolver.resolveHostName(receiver, name, transportSemantics="TCP")
        return DeferredList(lookups).addCallback(lambda _: None)

    def _answered(self, name: str, result: Any) -> Any:
        self._asking.discard(name)
        return result

    def _resolved(self, name: str, found: Sequence[IAddress]) -> None:
        if not self._running or name not in self._names:
            return
        hosts = sorted(
            {
                (int(socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET), address.host)
                for address in found
                if isinstance(address, IPv4Address | IPv6Address)
            }
        )
        known = self._hosts.get(name)
        if not hosts:
            if known is None:
                _log.warn("backend {name} does not resolve; next try in {seconds:.0f} s", name=name, seconds=REFRESH)
            return
        if known is not None and known != hosts:
            addresses = ", ".join(host for _, host in hosts)
            _log.info("backend {name} resolves to {addresses} now", name=name, addresses=addresses)
        self._hosts[name] = hosts


def _names(backends: Iterable[Backend]) -> frozenset[str]:
    return frozenset(backend.host for backend in backends if literal_address(backend) is None)


def _failed(name: str, failure: Failure) -> None:
    _log.failure("looking up {name} failed", failure, name=name)
