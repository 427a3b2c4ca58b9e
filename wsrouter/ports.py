"""Which listening sockets a reload keeps, opens and closes.

A socket belongs to its address. So a listener that has another name, or two that have changed places, keep theirs, and
nobody in their queues notices. Everything new is bound before anything old is let go: what cannot be bound refuses the
reload as a whole, unless it is only that this process may not (it was root once): then what was bound stays.

One address may overlap with another that is given up: 0.0.0.0:80 cannot listen while 127.0.0.1:80 does. Where both
sockets belong to the same user they share the port for a moment. Else the old one stops listening just before the new
one begins; it stays bound, so that the way back is open.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from wsrouter.config import values
from wsrouter.config.endpoint import Address, bound_address
from wsrouter.errors import ConfigError, ListenError
from wsrouter.listener.listener import Listener

_DENIED = (errno.EACCES, errno.EPERM)


@dataclass(slots=True)
class Ports:
    """The listeners of a configuration, all bound. ``taken`` pairs each with its values, in file order."""

    taken: list[tuple[values.Listener, Listener]] = field(default_factory=list)
    opened: list[Listener] = field(default_factory=list)
    #: Those that are to be stopped.
    closed: list[Listener] = field(default_factory=list)
    #: One line for each port that is not as the configuration wants it.
    warnings: list[str] = field(default_factory=list)


def pair(running: Sequence[values.Listener], wanted: Sequence[values.Listener]) -> list[int | None]:
    """For each of ``wanted`` the index of the running listener whose socket it keeps; None for a new one."""
    free = {index: bound_address(one.endpoint) for index, one in enumerate(running)}
    found: list[int | None] = [None] * len(wanted)

    def take(fits: Callable[[values.Listener, int, Address], bool]) -> None:
        for number, listener in enumerate(wanted):
            if found[number] is None:
                address = bound_address(listener.endpoint)
                index = next((index for index in free if fits(listener, index, address)), None)
                if index is not None:
                    found[number] = index
                    del free[index]

    # Where several have the same address (port 0 is any), each keeps its own name's.
    take(lambda listener, index, address: free[index] == address and running[index].name == listener.name)
    take(lambda listener, index, address: free[index] == address)
    return found


class PortSource(Protocol):
    """Where the ports of listeners come from."""

    def bind(self, listener: Listener) -> None:
        """Give ``listener`` its port, at the start. Raises ListenError."""

    def open(
        self,
        running: Sequence[Listener],
        wanted: Sequence[values.Listener],
        make: Callable[[values.Listener], Listener],
    ) -> Ports:
        """The ports of a reload, as ``open_ports`` describes it. Raises ConfigError; all is as before then."""


class OwnPorts:
    """Ports that this process binds itself."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def bind(self, listener: Listener) -> None:
        """Bind what the configuration names."""
        listener.bind(self._reactor)

    def open(
        self,
        running: Sequence[Listener],
        wanted: Sequence[values.Listener],
        make: Callable[[values.Listener], Listener],
    ) -> Ports:
        """Bind what is new."""
        return open_ports(self._reactor, running, wanted, make)


def open_ports(
    reactor: Any,
    running: Sequence[Listener],
    wanted: Sequence[values.Listener],
    make: Callable[[values.Listener], Listener],
) -> Ports:
    """Bind what is new, and accept there from the reactor's next turn on.

    Raises ConfigError with one line for each port that cannot be bound; all is as before then.
    """
    return _Opening(reactor, running, wanted, make).run()


class _Opening:
    def __init__(
        self,
        reactor: Any,
        running: Sequence[Listener],
        wanted: Sequence[values.Listener],
        make: Callable[[values.Listener], Listener],
    ) -> None:
        self._reactor = reactor
        self._running = running
        self._wanted = wanted
        self._make = make
        self._ports = Ports()
        self._placed: dict[str, Listener] = {}
        self._disturbed: list[Listener] = []
        self._faults: list[str] = []

    def run(self) -> Ports:
        try:
            return self._run()
        except BaseException:
            self._go_back()
            raise

    def _run(self) -> Ports:
        bound = [replace(one.config, endpoint=one.endpoint) for one in self._running]
        for config, index in zip(self._wanted, pair(bound, self._wanted), strict=True):
            if index is not None:
                self._placed[config.name] = self._running[index]
                self._warn_of_endpoint(self._running[index], config)
        new = [config for config in self._wanted if config.name not in self._placed]
        in_use = [(config, error) for config in new if (error := self._bind(config)) is not None]
        # By now it is known which of the old ones are let go.
        for config, error in in_use:
            self._bind_over(config, error)
        if self._faults:
            raise ConfigError(self._faults)
        self._resume(set(self._disturbed) & set(self._placed.values()))
        ports = self._ports
        ports.taken = [(config, self._placed[config.name]) for config in self._wanted if config.name in self._placed]
        ports.closed = self._leaving()
        return ports

    def _bind(self, config: values.Listener) -> ListenError | None:
        """Bind a new address; returns the error when somebody has it."""
        try:
            self._open(config)
        except ListenError as error:
            if error.number == errno.EADDRINUSE:
                return error
            self._not_bound(config, error)
        return None

    def _open(self, config: values.Listener, old: Sequence[Listener] = ()) -> None:
        listener = self._make(config)
        if old:
            listener.bind_over(old)
        else:
            listener.bind(self._reactor)
        self._placed[config.name] = listener
        self._ports.opened.append(listener)
        try:
            listener.start()
        except OSError as error:
            raise ListenError(f"listener {config.name}: cannot accept: {error.strerror}", error.errno) from None

    def _not_bound(self, config: values.Listener, error: ListenError) -> None:
        if error.number not in _DENIED:
            self._faults.append(str(error))
            return
        old = next((one for one in self._leaving() if one.name == config.name), None)
        if old is None:
            self._ports.warnings.append(f"{error}: it is not opened")
        else:
            self._placed[config.name] = old
            self._ports.warnings.append(f"{error}: it stays at {old.address}")

    def _leaving(self) -> list[Listener]:
        placed = list(self._placed.values())
        return [one for one in self._running if one not in placed]

    def _bind_over(self, config: values.Listener, error: ListenError) -> None:
        """Bind an address that is in use, by old listeners of ours if all is well."""
        wanted = bound_address(config.endpoint)
        old = [one for one in self._leaving() if wanted.port and bound_address(one.endpoint).port == wanted.port]
        if not old:
            self._not_bound(config, error)
            return
        self._disturbed += old
        try:
            self._open(config, old)
        except ListenError as still:
            self._not_bound(config, still)

    def _go_back(self) -> None:
        for listener in self._ports.opened:
            listener.discard()
        self._resume(self._disturbed)

    @staticmethod
    def _resume(listeners: Iterable[Listener]) -> None:
        for listener in listeners:
            listener.resume()

    def _warn_of_endpoint(self, old: Listener, config: values.Listener) -> None:
        if old.endpoint != config.endpoint:
            self._ports.warnings.append(
                f"listener {config.name}: {config.endpoint} is bound already as {old.endpoint}; what differs"
                " needs a restart"
            )
