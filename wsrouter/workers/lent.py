"""Ports in a worker: sockets that the supervisor has bound, for all of them to accept from."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence

from wsrouter.config import values
from wsrouter.listener.listener import Listener
from wsrouter.listener.port import Port
from wsrouter.ports import Ports


class LentPorts:
    """What was lent to this worker, by number, and which listener has which."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}
        #: Listener -> number, as the configuration that is to be put in force has it.
        self.numbers: Mapping[str, int] = {}
        self._of: dict[Listener, int] = {}

    def take(self, number: int, descriptor: int) -> None:
        """The supervisor has lent the socket ``number``."""
        self._sockets[number] = socket.socket(fileno=descriptor)

    def bind(self, listener: Listener) -> None:
        """Give ``listener`` its port."""
        number = self.numbers[listener.name]
        # Its own descriptor: the listener closes it. Not by ``dup`` of the socket, which would make it block for all
        # who have it: others would wait in ``accept`` for a client that somebody else has taken.
        sock = socket.socket(fileno=os.dup(self._sockets[number].fileno()))
        listener.adopt(Port(sock, lent=True))
        self._of[listener] = number

    def open(
        self,
        running: Sequence[Listener],
        wanted: Sequence[values.Listener],
        make: Callable[[values.Listener], Listener],
    ) -> Ports:
        """Every listener gets the port that the supervisor has found for it; nothing can fail."""
        ports = Ports()
        by_number = {self._of[listener]: listener for listener in running}
        for config in wanted:
            if config.name not in self.numbers:
                continue  # the supervisor could not bind it, and has said so
            listener = by_number.pop(self.numbers[config.name], None)
            if listener is None:
                listener = make(config)
                self.bind(listener)
                listener.start()
                ports.opened.append(listener)
            ports.taken.append((config, listener))
        ports.closed = list(by_number.values())
        for listener in ports.closed:
            del self._of[listener]
        self._give_back()
        return ports

    def _give_back(self) -> None:
        """Close the sockets that no listener has."""
        used = set(self._of.values())
        for number in self._sockets.keys() - used:
            self._sockets.pop(number).close()

    def close(self) -> None:
        """Close all that was lent; listeners have descriptors of their own."""
        while self._sockets:
            self._sockets.popitem()[1].close()
