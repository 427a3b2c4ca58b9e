"""A leg: one connection on the relay, as a Twisted transport.

A leg's bytes go to the protocol that is attached to it, or, once it is coupled, to the leg on the other side
(see ``pump``). It writes at once; only what the kernel refuses is kept, and then whoever feeds the leg is
paused. So a slow reader costs one read's worth of memory.

The end of a leg has three forms. ``abortConnection`` resets it. ``finish_writing`` sends a FIN behind what is
pending and reads on (a half-close). ``loseConnection`` does the same, but drops what still arrives, for a
bounded time, and then closes: closing a socket with unread data would reset it, and a reset can eat the last
answer before the peer has read it.

Interest is two separate wishes, reading and writing. With neither, the descriptor is taken out of the epoll
object, because hang-ups and errors are reported whatever the mask says, and a half-closed connection with a
slow reader would wake the loop without end. Who only waits may ask to hear of errors all the same
(``await_end``): until the router has sent its own FIN, no TCP connection hangs up but with one.
"""

from __future__ import annotations

import enum
import functools
import os
import socket
import struct
from collections.abc import Callable, Iterable
from socket import SocketType
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import classImplements

from wsrouter.relay.deadlines import Deadline
from wsrouter.relay.loop import EPOLLERR, EPOLLIN, EPOLLOUT, Relay
from wsrouter.relay.socket_facts import SocketFacts

if TYPE_CHECKING:
    from wsrouter.relay.pump import Pump

#: One read, and so the most that a slow reader makes the router keep for it: 64 KB, as many peers write at once, with
#: what frames or TLS records add.
BUFFER_SIZE: Final = 80 * 1024
#: Every read of this process goes through this buffer. A reader must be done with it before it returns.
BUFFER: Final = bytearray(BUFFER_SIZE)
VIEW: Final = memoryview(BUFFER)
#: Below this length, in bytes, a view of what was read is taken out of a list, at a tenth of what making one costs. All
#: sizes of ``FrameWalker.small`` are below it.
FEW: Final = 512


def views(view: memoryview) -> list[memoryview]:
    """The beginning of ``view`` in every length below FEW."""
    return [view[:size] for size in range(FEW)]


VIEWS: Final = views(VIEW)

#: How long a closed leg drops what its peer still sends, in seconds.
LINGER: Final = 2.0
#: How long a closing leg waits for its peer to take what is pending, in seconds.
FLUSH: Final = 60.0

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

DONE: Final = Failure(ConnectionDone())  # type: ignore[no-untyped-call]


class State(enum.Enum):
    """Where a leg is in its life."""

    OPEN = "open"
    #: ``loseConnection`` was called; what is pending goes out first.
    FLUSHING = "flushing"
    #: A FIN was sent; what arrives is dropped until the peer's FIN or the deadline.
    LINGERING = "lingering"
    CLOSED = "closed"


OPEN: Final = State.OPEN
FLUSHING: Final = State.FLUSHING
LINGERING: Final = State.LINGERING
CLOSED: Final = State.CLOSED


class Coupled(Protocol):
    """What two coupled legs report to."""

    def leg_lost(self, leg: Leg, error: Exception | None) -> None:
        """The connection of ``leg`` is gone; ``error`` is None when it was closed in order."""


class Readable(Protocol):
    """What a pump reads from."""

    def recv_into(self, buffer: bytearray, /) -> int:
        """As of a non-blocking socket."""


class Writable(Protocol):
    """What a pump writes to."""

    def send(self, data: memoryview, /) -> int:
        """As of a non-blocking socket, but -1 says that all was taken and the pump must pause."""


class Home(Protocol):
    """Where a leg was accepted; it counts the legs that live."""

    def left(self) -> None:
        """One of them has ended."""


class Leg(SocketFacts):
    """A plain connection.

    ``sock`` is connected and non-blocking; ``peername`` is its peer's socket address; ``watched`` are the events
    that the relay watches it for already.
    """

    __slots__ = (
        "_feeder",
        "_fin",
        "_linger",
        "_mask",
        "_producer",
        "_state",
        "_streaming",
        "coupling",
        "eof",
        "fd",
        "home",
        "is_reading",
        "pending",
        "protocol",
        "read",
        "relay",
    )

    def __init__(self, relay: Relay, sock: SocketType, peername: object, watched: int = 0) -> None:
        self.relay = relay
        self.socket = sock
        self.fd = sock.fileno()
        self.peername = peername
        #: The relay calls this when there is something to read.
        self.read: Callable[[], None] = _nothing
        #: An IProtocol, or None: before ``attach``, and once the leg is coupled.
        self.protocol: Any = None
        self.coupling: Coupled | None = None
        #: What the kernel did not take yet.
        self.pending: bytearray | None = None
        #: The peer's FIN was read.
        self.eof = False
        self.home: Home | None = None
        self._mask = watched
        #: Whether what the peer sends, and its end, will be noticed; not to be set from outside.
        self.is_reading = False
        self._state = OPEN
        self._fin = False
        self._feeder: Pump | None = None
        #: An IPushProducer, or an IPullProducer when not ``_streaming``.
        self._producer: Any = None
        self._streaming = False
        self._linger: Deadline | None = None
        relay.members[self.fd] = self

    # Joining a protocol or a peer.

    def attach(self, protocol: IProtocol, prefetch: bytes = b"") -> None:
        """Give the connection's bytes to ``protocol`` from now on, ``prefetch`` first."""
        if self.protocol is None:  # else it reads for a protocol already
            self.read = self._read_for_protocol
        self.protocol = protocol
        # Before the protocol has its say: it may pause.
        if not self.is_reading:
            self.resumeProducing()
        protocol.makeConnection(self)
        if prefetch and self._state is OPEN:
            protocol.dataReceived(prefetch)

    def couple(self, coupling: Coupled, outward: Pump, inward: Pump) -> None:
        """Leave the protocol: ``outward`` reads this leg from now on, ``inward`` writes into it."""
        self.protocol = None
        self.coupling = coupling
        self._feeder = inward
        self.read = outward.run
        if self._producer is not None:
            self.unregisterProducer()

    def release(self) -> SocketType:
        """Give up the socket, unclosed, to another leg that takes this one's place on the relay."""
        self._watch(0)
        self.relay.members.pop(self.fd, None)
        self._state = CLOSED
        self.protocol = None
        self.read = _nothing
        return self.socket

    def readable(self) -> Readable:
        """What a pump reads this leg's bytes from."""
        return self.socket

    def writable(self) -> Writable:
        """What a pump writes bytes for this leg's peer to."""
        return self.socket

    # What the relay calls.

    def ready(self, events: int) -> None:
        """Serve writable, hang-up and error events."""
        if events & EPOLLOUT:
            self._flush()
        if events & ~EPOLLOUT:
            if self.is_reading:
                self.read()
            elif self._mask and not events & EPOLLOUT:
                # Only a hang-up or an error is left, and nobody reads: it is the end.
                error = self._socket_error()
                if error is None and self._mask == EPOLLERR:
                    # A unix socket's peer has closed in order: what it said last is still to be read.
                    self._watch(0)
                else:
                    self.lose(error or ConnectionLost())

    def failed(self, failure: Failure) -> None:
        """The router itself failed while it served this leg: end it, and through it its peer."""
        self.lose(failure.value if isinstance(failure.value, Exception) else ConnectionLost(), reset=True)

    def abort(self) -> None:
        """The relay stops."""
        self.abortConnection()

    # ITransport, ITCPTransport.

    @property
    def connected(self) -> bool:
        """Whether bytes may still be written."""
        return self._state is OPEN and not self._fin

    def has_unread(self) -> bool:
        """Whether something of the peer's waits to be read: bytes, or the end.

        Bytes and a FIN stay there for the reader. An error does not: the kernel tells it once.
        """
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass  # an end, too
        return True

    @property
    def disconnecting(self) -> bool:
        """Twisted's protocols look at this."""
        return self._state is not OPEN

    def write(self, data: bytes) -> None:
        """Send ``data`` now, or keep it until the kernel takes it. Ignored once the leg is closing."""
        if data and ((self._state is OPEN and not self._fin) or self._takes_bytes()):
            self._push(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send several pieces as one."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close in order: send what is pending, then a FIN, and drop what still arrives for a bounded time."""
        if self._state is OPEN:
            self._state = FLUSHING
            self.is_reading = False
            if self.pending is None and not self._pulling():
                self._linger_on()
            else:
                self._linger = self.relay.deadlines.after(FLUSH, self.abortConnection)
                self._watch_wishes()

    def close(self) -> None:
        """Close once what is pending is sent, without lingering: for a peer that has nothing more to say."""
        self.eof = True
        if self._state is OPEN and self.pending is None:
            self._say_goodbye()
            self.lose(None)
        else:
            self.loseConnection()

    def abortConnection(self) -> None:
        """Close now; the peer sees a reset."""
        self.lose(ConnectionAborted(), reset=True)

    def give_up(self) -> None:
        """The peer has had its time: close in order, or cut what is closing already."""
        if self.connected:
            self.loseConnection()
        else:
            self.abortConnection()

    def loseWriteConnection(self) -> None:
        """Half-close."""
        self.finish_writing()

    def finish_writing(self) -> None:
        """Send a FIN behind what is pending; reading goes on."""
        if self._state is OPEN and not self._fin:
            self._fin = True
            if self.pending is None:
                self._shutdown()

    # IPushProducer: this leg as a source.

    def pauseProducing(self) -> None:
        """Stop reading; a reset is noticed when it goes on."""
        if (self.is_reading or self._mask & EPOLLERR) and self._state is OPEN:
            self.is_reading = False
            self._watch(self._mask & EPOLLOUT)

    def await_end(self) -> None:
        """Stop reading, but notice a reset at once. A FIN is not looked for: its sender may still read."""
        if self._state is OPEN:
            self.is_reading = False
            self._watch(self._mask & EPOLLOUT | EPOLLERR)

    def resumeProducing(self) -> None:
        """Read on."""
        if not self.is_reading and not self.eof and self._state is OPEN:
            self.is_reading = True
            if self._mask or self._producer is not None:
                self._watch_wishes()
            else:
                self._mask = EPOLLIN
                self.relay.watch(self.fd, EPOLLIN)

    def stopProducing(self) -> None:
        """Nobody wants this leg's bytes any more."""
        self.loseConnection()

    # IConsumer: this leg as a sink.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let ``producer`` be paused while the peer is slow; a pull producer is asked whenever there is room."""
        if self._producer is not None:
            raise RuntimeError(f"cannot register {producer!r}: {self._producer!r} is registered")
        if self._state is not OPEN:
            producer.stopProducing()
            return
        self._producer = producer
        self._streaming = streaming
        if not streaming:
            self._watch_wishes()
        elif self.pending is not None:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The producer is done."""
        self._producer = None
        if self._state is FLUSHING and self.pending is None:
            self._linger_on()
        elif self._state is not CLOSED:
            self._watch_wishes()

    # Writing.

    def hold(self, rest: bytes | memoryview) -> None:
        """Keep what the kernel refused of a pump's read; the pump goes on when it is gone."""
        self.pending = bytearray(rest)
        self._watch_wishes()

    def _push(self, data: bytes) -> None:
        if self.pending is not None:
            self.pending += data
            return
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose(error)
            return
        if sent != len(data):
            self.pending = bytearray(memoryview(data)[sent:])
            self._watch_wishes()
            if self._feeder is not None:
                self._feeder.pause()
            elif self._producer is not None and self._streaming:
                self._producer.pauseProducing()

    def _flush(self) -> None:
        pending = self.pending
        if pending is not None:
            try:
                sent = self.socket.send(pending)
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(error)
                return
            if sent != len(pending):
                del pending[:sent]
                return
            self.pending = None
        self._flushed()

    def _flushed(self) -> None:
        if self._pulling():
            self._producer.resumeProducing()
            return
        self._watch_wishes()
        if self._state is FLUSHING:
            self._linger_on()
        elif self._fin:
            self._shutdown()
        elif self._feeder is not None:
            self._feeder.resume()
        elif self._producer is not None:
            self._producer.resumeProducing()

    def _takes_bytes(self) -> bool:
        """Whether bytes may still be written; a pull producer goes on behind ``loseConnection``."""
        return (self._state is OPEN or (self._state is FLUSHING and self._pulling())) and not self._fin

    def _pulling(self) -> bool:
        return self._producer is not None and not self._streaming

    def _shutdown(self) -> None:
        # Needed before a close, too: only this tells of a reset that has come behind the peer's FIN.
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.lose(error)
            return
        if self.eof:
            self.lose(None)

    # Reading.

    def _read_for_protocol(self) -> None:
        if not self.is_reading:
            return  # paused by an earlier event of the same batch
        try:
            count = self.socket.recv_into(BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(error)
            return
        if count:
            protocol = self.protocol
            assert protocol is not None
            protocol.dataReceived(VIEW[:count].tobytes())
        else:
            self._end_of_input()

    def _end_of_input(self) -> None:
        self.stop_reading()
        protocol = self.protocol
        if self._fin and self.pending is None:
            self.lose(None)
        elif IHalfCloseableProtocol.providedBy(protocol):
            protocol.readConnectionLost()
        else:
            self.loseConnection()

    def stop_reading(self) -> None:
        """The peer's FIN was read: there is nothing more to come."""
        self.eof = True
        self.is_reading = False
        self._watch_wishes()

    def _discard(self) -> None:
        try:
            count = self.socket.recv_into(BUFFER)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.lose(None)

    # The end.

    def _linger_on(self) -> None:
        self._say_goodbye()
        if self._state is not FLUSHING:
            return
        if self.eof:
            self.lose(None)
            return
        if not self._fin:
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.lose(None)
                return
        self._state = LINGERING
        self.read = self._discard
        self.is_reading = True
        self._watch_wishes()
        if self._linger is not None:
            self._linger.cancel()
        self._linger = self.relay.deadlines.after(LINGER, self._lingered)

    def _say_goodbye(self) -> None:
        """What a layer on this connection says before the FIN."""

    def _lingered(self) -> None:
        self.lose(None)

    def lose(self, error: Exception | None, reset: bool = False) -> None:
        """The connection is gone.

        ``error`` says how, None for in order. Whoever owns the leg hears it at the end of the batch.
        """
        if self._state is CLOSED:
            return
        self._state = CLOSED
        self.is_reading = False
        relay = self.relay
        if self._mask:
            self._mask = 0
            relay.unwatch(self.fd)
        relay.members.pop(self.fd, None)
        if self.home is not None:
            self.home.left()
        self.pending = None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if reset:
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            except OSError:
                pass  # the kernel has dropped the connection already
        if self._producer is not None:
            producer, self._producer = self._producer, None
            relay.later(producer.stopProducing)
        relay.bury(self.socket, functools.partial(self._tell_lost, error))

    def _tell_lost(self, error: Exception | None) -> None:
        coupling, self.coupling = self.coupling, None
        protocol, self.protocol = self.protocol, None
        self._feeder = None
        # Bound methods of this leg, and of its pump, hold it in a cycle.
        self.read = _nothing
        if coupling is not None:
            coupling.leg_lost(self, error)
        elif protocol is not None:
            protocol.connectionLost(DONE if error is None else Failure(error))  # type: ignore[no-untyped-call]

    def _socket_error(self) -> OSError | None:
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    # Interest.

    def _watch_wishes(self) -> None:
        if self._state is CLOSED:
            return
        # Errors are asked for by ``await_end`` only.
        mask = EPOLLIN if self.is_reading else self._mask & EPOLLERR
        if self.pending is not None or self._pulling():
            mask |= EPOLLOUT
        self._watch(mask)

    def _watch(self, mask: int) -> None:
        known = self._mask
        if mask == known:
            return
        self._mask = mask
        if not known:
            self.relay.watch(self.fd, mask)
        elif mask:
            self.relay.rewatch(self.fd, mask)
        else:
            self.relay.unwatch(self.fd)


classImplements(Leg, ITCPTransport, IConsumer, IPushProducer)


def _nothing() -> None:
    """What a leg does that is asked to read before it was attached to anything, or after its end."""
