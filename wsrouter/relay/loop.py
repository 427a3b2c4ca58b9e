"""The relay loop: one epoll object, registered with the reactor as one reader.

The reactor's price for an event (log context, descriptor bookkeeping, selectable checks) is higher than
the two system calls that relay a message. So connections do not register with the reactor: they register
here, and the reactor sees one descriptor that is readable whenever some connection is ready. The relay then
serves everything that is ready in a tight loop, a bounded number of times, and returns.

Three rules keep this safe:

- A descriptor is closed only at the end of a batch. Its number is free for reuse the moment it is closed,
  and an event that was fetched before would then reach a stranger.
- ``connectionLost`` and its kin are called at the end of a batch, never from inside a call that the same
  protocol made.
- An exception in one leg ends that leg (and its peer), logged once. Events are level-triggered, so an
  exception that was only logged would come again for ever.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from socket import SocketType
from typing import Final, Protocol, cast

from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements

from wsrouter.relay.deadlines import Deadlines
from wsrouter.relay.splice import Conduit

EPOLLIN: Final = select.EPOLLIN
EPOLLOUT: Final = select.EPOLLOUT
EPOLLERR: Final = select.EPOLLERR

#: Events fetched at once, and how often, before the reactor gets its turn again.
BATCH: Final = 64
ROUNDS: Final = 8

#: The longest turn in seconds, looked at between batches: some reads cost far more than others.
TURN: Final = 0.02

#: TLS handshake steps a turn: one costs as much as about thirty relayed messages.
HEAVY_STEPS: Final = 24

_log = Logger()


class Member(Protocol):
    """What lives on the relay: a leg, an acceptor, a connection being dialled."""

    @property
    def read(self) -> Callable[[], None]:
        """Called for a plain "readable" event, the hot case."""

    def ready(self, events: int) -> None:
        """Serve any other mix of events (epoll's bits)."""

    def failed(self, failure: Failure) -> None:
        """``read`` or ``ready`` raised: end this member, whatever it takes."""

    def abort(self) -> None:
        """The relay stops: end at once."""


class Relay:
    """Serves all legs of one process. ``start`` and ``stop`` bound its life; both run in the process that serves."""

    def __init__(self, reactor: IReactorFDSet) -> None:
        self.reactor = reactor
        self._clock = cast(IReactorTime, reactor)
        #: The reactor's clock.
        self.seconds: Callable[[], float] = self._clock.seconds
        self.deadlines = Deadlines(self._clock)
        #: Descriptor -> member, watched or not. Members put themselves in, and take themselves out, unwatched.
        self.members: dict[int, Member] = {}
        # The epoll object's own functions: with a method around each, every connection would pay for four calls more.
        #: Begin to serve events of a member's descriptor.
        self.watch: Callable[[int, int], None] = _not_started
        #: Change the events of a watched descriptor.
        self.rewatch: Callable[[int, int], None] = _not_started
        #: Stop serving a descriptor. Needed before its close: a duplicate elsewhere would keep the event alive.
        self.unwatch: Callable[[int], None] = _not_started
        #: Client legs that live, and how many may: a session needs a second descriptor for its backend.
        self.clients = 0
        self.client_limit = 1 << 30
        #: What TLS handshakes and the like have cost in this turn; see HEAVY_STEPS.
        self.heavy = 0
        #: What bytes are spliced through, by one member at a time; None where that is not to be had.
        self.conduit: Conduit | None = None
        self._epoll: select.epoll | None = None
        self._in_batch = False
        self._queue: list[Callable[[], None]] = []
        self._soon: list[Callable[[], None]] = []
        self._graveyard: list[SocketType] = []
        self._wake: IDelayedCall | None = None

    def start(self) -> None:
        """Make the epoll object and join the reactor."""
        self._epoll = epoll = select.epoll()
        self.watch, self.rewatch, self.unwatch = epoll.register, epoll.modify, epoll.unregister
        try:
            self.conduit = Conduit()
        except OSError:
            pass  # without one bytes are copied, as short ones always are
        self.reactor.addReader(self)

    def stop(self) -> None:
        """Abort what is left and leave the reactor."""
        # What hears of an end may begin something new: go on until nothing is left.
        while self.members or self._queue or self._graveyard:
            for fd, member in list(self.members.items()):
                try:
                    member.abort()
                except Exception:
                    _log.failure("A connection could not be aborted")
                self.members.pop(fd, None)
            self._end_batch()
        self._soon.clear()
        self.deadlines.stop()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self.copy_all()
        if self._epoll is not None:
            self.reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None
            self.watch = self.rewatch = self.unwatch = _not_started

    # What members use.

    def bury(self, sock: SocketType, then: Callable[[], None] | None = None) -> None:
        """Close a socket at the end of the batch, and run ``then`` as ``later`` would."""
        self._graveyard.append(sock)
        if then is not None:
            self._queue.append(then)
        if not self._in_batch:
            self._wake_up()

    def later(self, call: Callable[[], None]) -> None:
        """Run ``call`` at the end of the batch, or as soon as the reactor turns when no batch runs."""
        self._queue.append(call)
        if not self._in_batch:
            self._wake_up()

    def soon(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the reactor's next turn: for work that must let others have theirs."""
        self._soon.append(call)
        self._wake_up()

    def copy_all(self) -> None:
        """Splice nothing any more, and drop what may lie in the pipe."""
        if self.conduit is not None:
            self.conduit.close()
            self.conduit = None

    # What the reactor uses.

    def fileno(self) -> int:
        """The epoll object's descriptor: readable when a member is ready."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """How the reactor names this reader."""
        return "relay"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is shutting down, or dropped this reader; nothing to do that ``stop`` does not do."""

    def doRead(self) -> None:
        """Serve what is ready: at most ROUNDS batches of BATCH events."""
        epoll = self._epoll
        if epoll is None:
            return
        poll = epoll.poll
        seconds = self.seconds
        until = seconds() + TURN
        member_of = self.members.get
        self.heavy = 0
        self._in_batch = True
        try:
            for _ in range(ROUNDS):
                events = poll(0, BATCH)
                for fd, event in events:
                    member = member_of(fd)
                    if member is None:
                        continue
                    try:
                        if event == EPOLLIN:
                            member.read()
                        else:
                            member.ready(event)
                    except Exception:
                        self.fail(member)
                if self._queue or self._graveyard:
                    self._end_batch()
                if self._epoll is None:
                    return
                if not events or self.heavy > HEAVY_STEPS or seconds() > until:
                    return
        finally:
            self._in_batch = False

    def fail(self, member: Member) -> None:
        """End a member that raised; called from its ``except`` clause."""
        failure = Failure()  # type: ignore[no-untyped-call]
        _log.failure("A connection failed in the router itself and is ended", failure)
        try:
            member.failed(failure)
        except Exception:
            _log.failure("Ending that connection failed too")

    def _end_batch(self) -> None:
        # Calls may queue more calls; those run in this same end, so that nothing waits for the next event.
        while self._queue:
            queue, self._queue = self._queue, []
            for call in queue:
                try:
                    call()
                except Exception:
                    _log.failure("A connection's end was handled badly")
        graveyard, self._graveyard = self._graveyard, []
        for sock in graveyard:
            sock.close()

    def _wake_up(self) -> None:
        if self._wake is None:
            self._wake = self._clock.callLater(0, self._woken)

    def _woken(self) -> None:
        self._wake = None
        self._queue += self._soon
        self._soon = []
        self._in_batch = True
        try:
            self._end_batch()
        finally:
            self._in_batch = False


classImplements(Relay, IReadDescriptor)


def _not_started(fd: int, events: int = 0) -> None:
    """Refuse to watch anything: there is no epoll object."""
    raise RuntimeError("the relay is not running")
