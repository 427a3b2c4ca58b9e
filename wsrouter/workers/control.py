"""The commands between the supervisor and a worker (AMP, ``twisted.protocols.amp``), on a pair of unix sockets.

Both ends may come from different versions of the router while workers are replaced. What a worker is to run on names
the version of this protocol, and a worker that does not know it refuses.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols import amp
from twisted.protocols.amp import AMP, BinaryBoxProtocol, Command
from twisted.python.failure import Failure

#: The version of what is said here and in ``generation``. Another one means that the supervisor must be restarted too.
PROTOCOL = 1
#: How many characters of a line, and how many lines, one value may have: AMP takes 65,535 bytes.
LONGEST = 2_000
MOST = 7

_amp: Any = amp
# Twisted's classes of arguments are not typed.
_BOOLEAN: amp.Argument = _amp.Boolean()
_DESCRIPTOR: amp.Argument = _amp.Descriptor()
_FLOAT: amp.Argument = _amp.Float(optional=True)
_INTEGER: amp.Argument = _amp.Integer()
_TEXT: amp.Argument = _amp.Unicode()
_LINES: amp.Argument = _amp.ListOf(_TEXT)


class Refused(Exception):
    """The worker cannot run on that; the text has one fault a line."""


class Lend(Command):
    """To a worker: the listening socket ``port``, for a ``Configure`` to name."""

    arguments = [(b"port", _INTEGER), (b"descriptor", _DESCRIPTOR)]


class Configure(Command):
    """To a worker: run on this (see ``generation``). The first one also starts it; it is answered when it serves.

    Answered with what there is to warn of, and how many sessions and tunnels live on.
    """

    arguments = [(b"generation", _DESCRIPTOR)]
    response = [(b"warnings", _LINES), (b"live", _INTEGER)]
    errors = {Refused: b"REFUSED"}


class Probed(Command):
    """To a worker: what a probe has found, and in which state the backend is now, and why."""

    arguments = [
        (b"pool", _TEXT),
        (b"backend", _TEXT),
        (b"rtt", _FLOAT),
        (b"reason", _TEXT),
        (b"state", _TEXT),
        (b"why", _TEXT),
    ]
    requiresAnswer = False


class Leave(Command):
    """To a worker: drain, then end. ``alone``: the others go on, and take the clients that wait to be accepted."""

    arguments = [(b"why", _TEXT), (b"alone", _BOOLEAN)]
    requiresAnswer = False


class End(Command):
    """To a worker: end, now."""

    requiresAnswer = False


class Count(Command):
    """To a worker: what lives in it? It shows as well that its loop turns."""

    response = [(b"sessions", _INTEGER), (b"tunnels", _INTEGER)]


class AskToLeave(Command):
    """From a worker: it has got SIGTERM. ``Leave`` is the answer: whether alone, the supervisor knows."""

    requiresAnswer = False


class Closed(Command):
    """From a worker: it accepts no more."""

    requiresAnswer = False


class Channel(AMP):
    """One end. It is no news for the log when it comes and goes, which Twisted's own class tells of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def makeConnection(self, transport: Any) -> None:
        """It is there."""
        BinaryBoxProtocol.makeConnection(self, transport)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        BinaryBoxProtocol.connectionLost(self, reason)  # type: ignore[no-untyped-call]
        self.transport = None

    def call(self, command: type[Command], **arguments: Any) -> Deferred[dict[str, Any]]:
        """Call the other end; fails with ConnectionClosed when that goes, or is gone."""
        if self.transport is None:
            return fail(ConnectionLost())
        called: Deferred[dict[str, Any]] = self.callRemote(command, **arguments)  # type: ignore[no-untyped-call]
        return called

    def tell(self, command: type[Command], **arguments: Any) -> None:
        """Call what is not answered; in vain if the other end is gone."""
        if self.transport is not None:
            self.callRemote(command, **arguments)  # type: ignore[no-untyped-call]


class Once(Factory):
    """Gives the one channel that it was made with."""

    noisy = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, addr: object) -> Channel:
        """The channel."""
        return self._channel


def short(lines: list[str]) -> list[str]:
    """Those of ``lines`` that a command can carry."""
    more = len(lines) - MOST
    return [line[:LONGEST] for line in lines[:MOST]] + ([f"and {more} more"] if more > 0 else [])
