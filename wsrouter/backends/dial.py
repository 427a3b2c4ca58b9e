"""One attempt to reach one address: a connected leg, with TLS where it is asked for, or a DialError."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from socket import SocketType
from typing import Final, NamedTuple, TypeAlias

from twisted.python.failure import Failure

from wsrouter.errors import DialError
from wsrouter.relay.acceptor import set_tcp_options
from wsrouter.relay.deadlines import Waiter
from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import EPOLLOUT, Relay
from wsrouter.relay.tls import TlsLeg

_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

Connected = Callable[[Leg], None]
Failed = Callable[[DialError], None]


class Address(NamedTuple):
    """Where a backend listens: a socket family and what ``connect`` wants for it."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int] | str


@dataclass(frozen=True, slots=True)
class TlsClient:
    """How to speak TLS to a backend: the context, and the name that is sent and verified."""

    context: ssl.SSLContext
    name: str | None


#: A connection that was begun: its socket, and an error number as of ``connect``: 0 once it stands.
Begun: TypeAlias = tuple[SocketType | None, int]


def begin(address: Address, keepalive: float | None) -> Begun:
    """Begin to connect to ``address``, with TCP keep-alive after so many idle seconds."""
    sock = None
    try:
        family, sockaddr = address
        sock = SocketType(family, _STREAM)
        # Whether it is on this machine, by the loopback interface.
        near = sockaddr[0].startswith("127.") or sockaddr[0] == "::1"
        # Who is on this machine cannot vanish without its kernel saying so: there is nothing to probe for.
        set_tcp_options(sock, family, None if near else keepalive)
        number = sock.connect_ex(sockaddr)
        if number == errno.EINPROGRESS and near:
            # On the loopback interface the handshake is over when connect returns, whatever it says.
            sock.getpeername()
            number = 0
    except OSError as error:
        number = errno.EINPROGRESS if error.errno == errno.ENOTCONN else error.errno or errno.EIO
    return sock, number


def dial(
    relay: Relay,
    addresses: Sequence[Address],
    timeout: float,
    connected: Connected,
    failed: Failed,
    tls: TlsClient | None = None,
    keepalive: float | None = None,
    preface: bytes = b"",
) -> Dial | None:
    """As ``Dial`` does, but where the connection stands at once: then ``connected`` was called, and None is returned.

    That is the rule on the loopback interface, and spares every session there an object and a detour.
    """
    address = addresses[0]
    begun = begin(address, keepalive)
    sock, number = begun
    if number or tls is not None or preface:
        return Dial(relay, addresses, timeout, connected, failed, tls, keepalive, preface, begun)
    assert sock is not None
    leg = Leg(relay, sock, address.sockaddr)
    try:
        connected(leg)
    except Exception:
        relay.fail(leg)
    return None


class Dial(Waiter):
    """Connects within ``timeout`` seconds (TLS included) and calls ``connected`` or ``failed``, once.

    ``preface`` is sent first of all, before TLS: a PROXY header.

    ``addresses`` are those of one backend, at least one. The next is tried when one refuses, or has not answered within
    its share of the time. ``begun`` is the first of them, where that was begun already. The result never comes before
    the constructor has returned. ``cancel`` forgets the attempt.
    """

    __slots__ = (
        "_address",
        "_connected",
        "_failed",
        "_keepalive",
        "_leg",
        "_others",
        "_preface",
        "_share",
        "_socket",
        "_tls",
        "_watched",
        "fd",
        "relay",
    )

    def __init__(
        self,
        relay: Relay,
        addresses: Sequence[Address],
        timeout: float,
        connected: Connected,
        failed: Failed,
        tls: TlsClient | None = None,
        keepalive: float | None = None,
        preface: bytes = b"",
        begun: Begun | None = None,
    ) -> None:
        self.relay = relay
        self._preface = preface
        self._address, *self._others = addresses
        self._tls = tls
        self._keepalive = keepalive
        self._connected: Connected | None = connected
        self._failed: Failed | None = failed
        self._leg: TlsLeg | None = None
        self._share = timeout / len(addresses)
        self._slice = None
        self._socket: SocketType | None = None
        self.fd = -1
        self._watched = 0
        number = self._connect(begun)
        if number:
            relay.later(lambda: self._refused(number))
        elif self._watched or tls is not None:
            self.wait(relay.deadlines, self._share)

    def _connect(self, begun: Begun | None = None) -> int:
        """Begin to connect to the present address; returns an error number, 0 for none yet."""
        self._socket, number = begin(self._address, self._keepalive) if begun is None else begun
        if number and number != errno.EINPROGRESS:
            # EAGAIN on a unix socket says that its queue is full: refused, as far as we are concerned.
            return number
        assert self._socket is not None
        self.fd = self._socket.fileno()
        self.relay.members[self.fd] = self
        if number:
            self._watched = EPOLLOUT
            self.relay.watch(self.fd, EPOLLOUT)
        else:
            self._watched = 0
            self.relay.later(self._established)
        return 0

    def _refused(self, number: int) -> None:
        """This address did not take the connection: the next, or the end."""
        while number and self._others and self._failed is not None:
            self._drop()
            self.wait(self.relay.deadlines, self._share)
            self._address = self._others.pop(0)
            number = self._connect()
        if number:
            self._fail(DialError(os.strerror(number).lower()))

    def cancel(self) -> None:
        """Forget the attempt; nothing is called any more."""
        self._connected = self._failed = None
        self.stop_waiting()
        self._drop()

    # What the relay calls.

    def read(self) -> None:
        """Never asked for."""

    def ready(self, events: int) -> None:
        """The connection stands, or it failed."""
        self._writable()

    def failed(self, failure: Failure) -> None:
        """The router itself failed while it took the connection on."""
        self._fail(DialError(f"internal error: {failure.getErrorMessage()}"))

    def abort(self) -> None:
        """The relay stops."""
        self.cancel()

    def _writable(self) -> None:
        sock = self._socket
        if sock is None:
            return
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._refused(number)
        else:
            self._established()

    def _established(self) -> None:
        sock = self._socket
        if sock is None:
            return  # cancelled meanwhile
        self._socket = None
        if self._preface:
            # A new connection has room for so little.
            try:
                sock.send(self._preface)
            except OSError as error:
                self._socket = sock
                self._refused(error.errno or errno.EIO)
                return
        # The leg takes this one's place on the relay.
        if self._tls is None:
            self._succeed(Leg(self.relay, sock, self._address.sockaddr, self._watched))
            return
        self._leave()
        try:
            self._leg = leg = TlsLeg(
                self.relay,
                sock,
                self._address.sockaddr,
                self._tls.context,
                server_side=False,
                server_hostname=self._tls.name,
            )
        except ValueError as error:
            # OpenSSL refuses some names, an empty one for instance.
            self.relay.bury(sock)
            self._fail(DialError(f"TLS: {error}", nonsense=True))
            return
        leg.handshake(lambda: self._succeed(leg), self._tls_failed)

    def _tls_failed(self, reason: str) -> None:
        self._leg = None
        self._fail(DialError(f"TLS: {reason}", nonsense=True))

    def _succeed(self, leg: Leg) -> None:
        self._leg = None
        self.stop_waiting()
        connected, self._connected, self._failed = self._connected, None, None
        if connected is None:
            return
        try:
            connected(leg)
        except Exception:
            self.relay.fail(leg)

    def _fail(self, error: DialError) -> None:
        self.stop_waiting()
        self._drop()
        failed, self._connected, self._failed = self._failed, None, None
        if failed is not None:
            failed(error)

    def late(self) -> None:
        """Not connected in time."""
        if self._others and self._leg is None:
            self._refused(errno.ETIMEDOUT)
        else:
            self._fail(DialError("no connection in time", timed_out=True))

    def _drop(self) -> None:
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.abortConnection()
        sock, self._socket = self._socket, None
        if sock is not None:
            if self.fd >= 0:
                self._leave()
            self.relay.bury(sock)

    def _leave(self) -> None:
        if self._watched:
            self.relay.unwatch(self.fd)
            self._watched = 0
        self.relay.members.pop(self.fd, None)
        self.fd = -1
