"""A listening socket on the relay.

A Twisted endpoint binds the port; its socket is then served here, so that no Twisted transport stands behind
a leg. Connections are accepted in batches. What every leg needs (no delay, keep-alive) is set on the listening
socket: Linux hands it down to what is accepted from it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from socket import SOCK_STREAM, SocketType
from typing import Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from wsrouter.policy.sharing import Gauge
from wsrouter.relay.deadlines import Deadline
from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import EPOLLIN, Relay

#: Connections accepted for one event, before other members get their turn.
BATCH: Final = 32
#: And where other processes accept from the same socket: none should take all that come at once.
SHARED_BATCH: Final = 4
#: A process that has more than its share, by this number and this part, leaves new ones to the others for so many
#: seconds at a time. They live long: where they begin they stay.
LEAD: Final = 8
LEAD_PART: Final = 1.125
HOLD: Final = 0.05
#: How long accepting pauses when descriptors or memory are used up, in seconds.
PAUSE: Final = 0.25
#: How much the kernel takes for a peer beyond what is on its way to it, in bytes. Else a slow reader's socket grows to
#: megabytes: to fill them keeps others waiting, and what a drain or a policy says last would wait behind them.
UNSENT: Final = 128 * 1024
#: How often the log is told of pauses, in seconds.
SAY: Final = 60.0

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = Logger()


def set_tcp_options(sock: SocketType, family: int, seconds: float | None) -> None:
    """Set what every TCP leg has: no delay, little unsent, and keep-alive that finds a dead peer in twice ``seconds``.

    TCP_USER_TIMEOUT covers what probes do not: data sent to a peer that no longer acknowledges it (RFC 5482).
    """
    if family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    if seconds is None:
        return
    idle = max(1, round(seconds))
    # With a user timeout the number of probes does not count, only how many fit into the rest of it. Networks lose
    # packets, so several have to, also where the kernel's whole seconds leave little room.
    interval = max(1, idle // 4)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * max(2 * idle, idle + 3 * interval))


class Acceptor:
    """Accepts from the listening descriptor ``fd`` (duplicated, so the caller keeps its own)."""

    __slots__ = (
        "_accepted",
        "_family",
        "_gauge",
        "_generous",
        "_holding",
        "_label",
        "_limit",
        "_paused_at",
        "_resume",
        "_said",
        "_taken",
        "_watched",
        "fd",
        "live",
        "relay",
        "socket",
    )

    def __init__(
        self,
        relay: Relay,
        fd: int,
        label: str,
        accepted: Callable[[Leg], None],
        limit: int | None,
        keepalive: float | None,
        gauge: Gauge | None = None,
    ) -> None:
        #: What was accepted by other processes and lives; None where nobody else accepts here.
        self._gauge = gauge
        #: It leaves who waits to others at this moment; and it did the last time that it had more than its share.
        self._holding = self._generous = False
        #: How many of the accepted legs live.
        self.live = 0
        self._taken = 0
        #: When accepting last paused, on the relay's clock, and whether the log was told.
        self._paused_at = -SAY
        self._said = False
        self.relay = relay
        self.socket = SocketType(fileno=os.dup(fd))
        self.socket.setblocking(False)
        self._family = self.socket.family
        set_tcp_options(self.socket, self._family, keepalive)
        self.fd = self.socket.fileno()
        self._label = label
        self._accepted = accepted
        self._limit = limit
        self._resume: Deadline | None = None
        relay.members[self.fd] = self
        relay.watch(self.fd, EPOLLIN)
        self._watched = True

    def reconfigure(self, label: str, limit: int | None, keepalive: float | None, gauge: Gauge | None = None) -> None:
        """Take over a reload: what is accepted from now on has these."""
        self._label = label
        self._limit = limit
        if self._gauge is not None:
            self._gauge.add(-self.live)
        self._gauge = gauge
        if gauge is not None:
            gauge.add(self.live)
        if self._family != socket.AF_UNIX:
            # What the last configuration may have set, and this one does not.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        set_tcp_options(self.socket, self._family, keepalive)

    def read(self) -> None:
        """Connections wait."""
        gauge = self._gauge
        if gauge is None:
            self._accept_some(BATCH)
        elif self.live <= LEAD + LEAD_PART * gauge.fair():
            self._accept_some(SHARED_BATCH)
        elif not self._hold_back():
            self._accept_some(BATCH)  # it was in vain: the others have their hands full

    def _accept_some(self, batch: int) -> None:
        # What ``accept`` of the wrapper calls; see ``SocketFacts.socket``.
        accept = self.socket._accept  # type: ignore[attr-defined]
        relay, family = self.relay, self._family
        for _ in range(batch):
            if self._full():
                self.pause("the limit of connections is reached")
                return
            try:
                fd, peername = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self.pause(os.strerror(error.errno or 0).lower())
                    return
                if error.errno == errno.EINVAL:
                    self._rest()  # it was shut down, and another listens in its place for a moment, or for good
                    return
                continue  # that one connection was gone before it was accepted (accept(2), "Error handling")
            sock = SocketType(family, SOCK_STREAM, 0, fd)
            sock.setblocking(False)
            leg = Leg(relay, sock, peername)
            leg.home = self
            self._taken += 1
            self.live += 1
            relay.clients += 1
            if self._gauge is not None:
                self._gauge.add(1)
            try:
                self._accepted(leg)
            except Exception:
                relay.fail(leg)

    def _hold_back(self) -> bool:
        """Leave who waits to others for a moment, unless that has just been tried in vain."""
        self._generous = not self._generous
        if self._generous:
            self._rest()
        return self._generous

    def _rest(self) -> None:
        """Accept nothing for a moment."""
        if self._watched:
            self.relay.unwatch(self.fd)
            self._watched = False
            self._holding = True
            self._resume = self.relay.deadlines.after(HOLD, self._watch_again)

    def _watch_again(self) -> None:
        self._resume = None
        self._holding = False
        self.relay.watch(self.fd, EPOLLIN)
        self._watched = True

    def left(self) -> None:
        """A leg that was accepted here has ended."""
        self.live -= 1
        self.relay.clients -= 1
        if self._gauge is not None:
            self._gauge.add(-1)

    def _full(self) -> bool:
        relay = self.relay
        if relay.clients >= relay.client_limit:
            return True
        if self._limit is None:
            return False
        live = self.live if self._gauge is None else self.live + self._gauge.others()
        return live >= self._limit

    def accept_waiting(self) -> None:
        """Accept all that wait at this moment, unless accepting pauses."""
        before = -1
        while (self._watched or self._holding) and self._taken != before:
            before = self._taken
            self._accept_some(BATCH)

    def pause(self, why: str) -> None:
        """Leave new connections in the kernel's queue for a moment; the live ones are untouched."""
        if self._watched:
            now = self.relay.seconds()
            # Under overload this alternates several times a second; once a minute is enough to know.
            self._said = now - self._paused_at >= SAY
            if self._said:
                self._paused_at = now
                _log.warn("listener {label}: accepting pauses: {why}", label=self._label, why=why)
            self.relay.unwatch(self.fd)
            self._watched = False
        if self._resume is not None:
            self._resume.cancel()
        self._holding = False
        self._resume = self.relay.deadlines.after(PAUSE, self._try_again)

    def _try_again(self) -> None:
        self._resume = None
        if self._full():
            self._resume = self.relay.deadlines.after(PAUSE, self._try_again)
            return
        try:
            os.close(os.dup(self.fd))
        except OSError:
            self._resume = self.relay.deadlines.after(PAUSE, self._try_again)
            return
        if self._said:
            _log.info("listener {label}: accepting again", label=self._label)
        self._watch_again()

    def ready(self, events: int) -> None:
        """Errors on a listening socket show when accepting."""
        self.read()

    def failed(self, failure: Failure) -> None:
        """A connection could not be taken in; the next one is a new try (the failure was logged)."""

    def abort(self) -> None:
        """Stop accepting."""
        if self.socket.fileno() < 0:
            return
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._watched:
            self.relay.unwatch(self.fd)
            self._watched = False
        self.relay.members.pop(self.fd, None)
        self.relay.bury(self.socket)
