"""The addresses of backends: literals at once, names through the system's resolver, off the loop.

The system's resolver (hosts file, search domains, DNS, in a thread of the reactor) is what operators expect a name to mean.
It does not tell how long an answer holds, so names are asked again every REFRESH seconds. A name that stops resolving keeps its last
addresses: a resolver that is down must not take a healthy backend with it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IHostResolution, IReactorPluggableNameResolver, IReactorTime, IResolutionReceiver
from twisted.logger import Logger
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
    """Knows the current addresses of all backends. ``start`` looks names up for the first time and keeps them fresh."""

    def __init__(self, clock: IReactorTime, resolver: IReactorPluggableNameResolver, backends: Iterable[Backend]) -> None:
        self._clock = clock
        self._resolver = resolver
        self._names: set[str] = set()
        self._hosts: dict[str, list[tuple[int, str]]] = {}
        self._literals: dict[Backend, Address] = {}
        self._turn = 0
        self._call: IDelayedCall | None = None
        self._running = False
        for backend in backends:
            address = literal_address(backend)
            if address is None:
                self._names.add(backend.host)
            else:
                self._literals[backend] = address

    def start(self) -> None:
        """Look up all names now and every REFRESH seconds."""
        self._running = True
        self._refresh()

    def stop(self) -> None:
        """Look up no more."""
        self._running = False
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def address(self, backend: Backend) -> Address | None:
        """One address of ``backend`` (a name's addresses take turns), or None while its name does not resolve."""
        address = self._literals.get(backend)
        if address is not None:
            return address
        hosts = self._hosts.get(backend.host)
        if not hosts:
            return None
        self._turn += 1
        family, host = hosts[self._turn % len(hosts)]
        if family == socket.AF_INET6:
            return Address(family, (host, backend.port, 0, 0))
        return Address(family, (host, backend.port))

    def _refresh(self) -> None:
        if not self._names:
            return
        self._call = self._clock.callLater(REFRESH, self._refresh)
        for name in sorted(self._names):
            receiver = _Receiver()
            receiver.done.addCallback(lambda found, name=name: self._resolved(name, found))
            receiver.done.addErrback(lambda failure, name=name: _log.failure("looking up {name} failed", failure, name=name))
            self._resolver.nameResolver.resolveHostName(receiver, name, transportSemantics="TCP")

    def _resolved(self, name: str, found: Sequence[IAddress]) -> None:
        if not self._running:
            return
        hosts = sorted(
            {
                (socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET, address.host)
                for address in found
                if isinstance(address, IPv4Address | IPv6Address)
            }
        )
        known = self._hosts.get(name)
        if not hosts:
            if known is None:
                _log.warn("backend name {name} does not resolve; it is tried again in {seconds:.0f} s", name=name, seconds=REFRESH)
            return
        if known is not None and known != hosts:
            _log.info("backend name {name} resolves to {addresses} now", name=name, addresses=", ".join(host for _, host in hosts))
        self._hosts[name] = [(int(family), host) for family, host in hosts]
