"""What Twisted's transports tell of their socket: addresses and TCP options."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from socket import SocketType
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress


def address_of(sockaddr: object, family: int) -> Any:
    """The Twisted address for what the socket module calls one."""
    if family == socket.AF_UNIX:
        return UNIXAddress(sockaddr if isinstance(sockaddr, str | bytes) and sockaddr else None)
    assert isinstance(sockaddr, tuple)
    if family == socket.AF_INET6:
        return IPv6Address("TCP", sockaddr[0], sockaddr[1])
    return IPv4Address("TCP", sockaddr[0], sockaddr[1])


class SocketFacts:
    """The part of ``ITCPTransport`` that only asks the socket."""

    __slots__ = ("peername", "socket")

    #: The C type that ``socket.socket`` is made of: half as dear to make, and nothing of the wrapper is needed here.
    socket: SocketType
    #: The peer's socket address.
    peername: object

    def getPeer(self) -> Any:
        """The other end's address."""
        return address_of(self.peername, self.socket.family)

    def getHost(self) -> Any:
        """This end's address."""
        return address_of(self.socket.getsockname(), self.socket.family)

    def outstanding(self) -> int:
        """Bytes that the kernel was given, and the peer has not taken yet (SIOCOUTQ, tcp(7))."""
        return self._ask(termios.TIOCOUTQ)

    def unread(self) -> int:
        """Bytes of the peer's that wait in the kernel (SIOCINQ, tcp(7))."""
        return self._ask(termios.FIONREAD)

    def _ask(self, request: int) -> int:
        return int.from_bytes(fcntl.ioctl(self.socket.fileno(), request, bytes(4)), sys.byteorder)

    def getTcpNoDelay(self) -> bool:
        """Whether small segments are sent at once; true for all TCP legs."""
        return self.socket.family == socket.AF_UNIX or bool(
            self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        )

    def setTcpNoDelay(self, enabled: bool) -> None:
        """See getTcpNoDelay."""
        if self.socket.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        """Whether the kernel probes a quiet peer."""
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """See getTcpKeepAlive."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)
