"""What is attached to a leg while its bytes have to be read: the base of the router's own protocols."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import classImplements

from wsrouter.relay.deadlines import Waiter
from wsrouter.relay.leg import Leg


class LegProtocol(Waiter):
    """An IProtocol that can wait, and no more: several are made for each session.

    Twisted's own base is made for any transport and for subclasses that keep what they like in a dictionary each.
    """

    __slots__ = ("transport",)

    transport: Leg

    def makeConnection(self, transport: Any) -> None:
        """The leg's bytes are for this protocol from now on; a subclass with more to do then replaces this."""
        self.transport = transport

    def connectionMade(self) -> None:
        """Part of the interface, but never called, to spare the call: replace ``makeConnection``."""

    def dataReceived(self, data: bytes) -> None:
        """What was read; it never comes empty."""
        raise NotImplementedError

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        raise NotImplementedError


classImplements(LegProtocol, IProtocol)
