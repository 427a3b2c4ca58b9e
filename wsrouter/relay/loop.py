"""The relay loop: one epoll object for all connections, beside the reactor's own.

The reactor's price for an event (log context, descriptor bookkeeping, selectable checks) is higher than
the two system calls that relay a message. So connections do not register with the reactor: they register
here, and are served in a tight loop.

Who sleeps? Twisted's epoll reactor has an epoll object too, and that can be watched like any descriptor. So where the
reactor would poll its own, the relay polls for both (``reactor.doIteration``): its connections, and the reactor's epoll
object as one more. Only when that is ready, for a descriptor of the reactor's (its waker among them, which signals and
threads use), or a timed call is due, the reactor has its turn. So a message that comes alone costs 60 us of CPU, where
the way through the reactor and back makes it 100.

To another reactor, or behind another relay, the relay is a reader, which is ready whenever some connection is. It then
serves what is ready, a bounded number of times, and returns.

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
from typing import Any, Final, Protocol, cast

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements

from wsrouter.relay.deadlines import Deadlines
from wsrouter.relay.splice import Conduit

EPOLLIN: Final = select.EPOLLIN
EPOLLOUT: Final = select.EPOLLOUT
EPOLLERR: Final = select.EPOLLERR

#: Events fetched at once.
BATCH: Final = 64

#: As a reader: how many batches before the reactor gets its turn again, and the longest turn in seconds. That is looked
#: at between batches: some reads cost far more than others.
ROUNDS: Final = 8
TURN: Final = 0.02

#: As a reader: TLS handshake steps a turn. One costs as much as about thirty relayed messages.
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
        #: What TLS handshakes and the like have cost in this turn, as a reader; see HEAVY_STEPS.
        self.heavy = 0
        #: What bytes are spliced through, by one member at a time; None where that is not to be had.
        self.conduit: Conduit | None = None
        self._epoll: select.epoll | None = None
        self._in_batch = False
        self._queue: list[Callable[[], None]] = []
        self._soon: list[Callable[[], None]] = []
        self._graveyard: list[SocketType] = []
        self._wake: IDelayedCall | None = None
        #: The reactor's own epoll object and how it polls that, where the relay polls for both.
        self._reactor_fd = -1
        self._poll_reactor: Callable[[float], None] | None = None

    def start(self) -> None:
        """Make the epoll object and join the reactor."""
        self._epoll = epoll = select.epoll()
        self.watch, self.rewatch, self.unwatch = epoll.register, epoll.modify, epoll.unregister
        try:
            self.conduit = Conduit()
        except OSError:
            pass  # without one bytes are copied, as short ones always are
        reactor: Any = self.reactor
        # One that only stands in for it has no loop of its own.
        if isinstance(self.reactor, EPollReactor) and "doIteration" not in vars(reactor):
            self._reactor_fd = reactor._poller.fileno()
            epoll.register(self._reactor_fd, EPOLLIN)
            self._poll_reactor = reactor.doIteration
            reactor.doIteration = self._iterate
        else:
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
            if self._poll_reactor is None:
                self.reactor.removeReader(self)
            else:
                del cast(Any, self.reactor).doIteration
                self._poll_reactor = None
                self._reactor_fd = -1
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
        until = self.seconds() + TURN
        self.heavy = 0
        for _ in range(ROUNDS):
            if not self._serve(0) or self.heavy > HEAVY_STEPS or self.seconds() > until:
                return

    def _iterate(self, rest: float | None) -> None:
        """Poll for the reactor, too, waiting at most ``rest`` seconds; None: for as long as it takes.

        Goes on until the reactor is wanted: for a descriptor of its own, a timed call, an end that a member asks for.
        """
        reactor: Any = self.reactor
        poll_reactor = self._poll_reactor
        while self._serve(rest):
            rest = reactor.timeout()
            if rest == 0 or reactor._justStopped or not reactor._started:
                return
        if poll_reactor is not None:
            poll_reactor(0)

    def _serve(self, rest: float | None) -> bool:
        """Serve one batch, waiting at most ``rest`` seconds; tell whether there was one, and of connections alone."""
        epoll = self._epoll
        if epoll is None:
            return False
        events = epoll.poll(rest, BATCH)
        if not events:
            return False
        members = self.members
        alone = True
        self._in_batch = True
        try:
            for fd, event in events:
                try:
                    member = members[fd]
                except KeyError:  # it left in this batch, or is the reactor's
                    if fd == self._reactor_fd:
                        alone = False
                    continue
                try:
                    if event == EPOLLIN:
                        read = member.read  # in two steps: CPython looks a method up, and this is an attribute
                        read()
                    else:
                        member.ready(event)
                except Exception:
                    self.fail(member)
            if self._queue or self._graveyard:
                self._end_batch()
        finally:
            self._in_batch = False
        return alone and self._epoll is not None

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
