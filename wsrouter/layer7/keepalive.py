"""Keep-alive pings of the router's own on one leg of a session, and finding out that its peer is dead.

A deadline looks at the leg a few times within the interval; see ``policy.heartbeat`` for what it makes of that. The
relay's deadlines are a coarse wheel, so a thousand sessions are looked at with one timer of the reactor.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from wsrouter.config import values
from wsrouter.policy.heartbeat import STALL, Heartbeat, Verdict
from wsrouter.relay.deadlines import Waiter
from wsrouter.relay.leg import Leg
from wsrouter.relay.loop import Relay
from wsrouter.wire.policed import OwnPings


class Heard(Protocol):
    """What reads the frames of a peer."""

    @property
    def source(self) -> Leg:
        """The leg of that peer."""

    @property
    def sink(self) -> Leg | None:
        """The leg for whose sake reading may be paused; None once nothing is passed on."""

    @property
    def bytes(self) -> int:
        """Bytes that were read so far."""

    @property
    def paused(self) -> bool:
        """Whether reading is held."""


class Into(Protocol):
    """What gives a peer its frames."""

    @property
    def passed(self) -> int:
        """Bytes that the peer was given so far, the router's own pings perhaps excepted."""

    @property
    def at_boundary(self) -> bool:
        """Whether a frame may be put in at once."""

    @property
    def is_inserting(self) -> bool:
        """Whether a frame waits to be put in."""

    def put_in(self, frame: bytes) -> None:
        """Give the peer a control frame of the router's own, as soon as may be."""


class KeepAlive(Waiter):
    """Pings the peer whose frames ``heard`` reads and to whom ``into`` writes.

    ``interval`` and ``timeout`` are in seconds; ``mask`` makes the mask of each ping, None towards a client. ``dead``
    is called once, with the leg that is dead and with how that was found out, unless ``stop`` was called before. It
    is that of the peer, or that of the one who has not let it be heard for too long.
    """

    #: For the compiler: what ``del`` may take away.
    __deletable__ = ["_dead", "_heard", "_into"]
    __slots__ = ("_beat", "_dead", "_heard", "_into", "_mask", "_pings", "_relay", "_sent", "_timeout")

    def __init__(
        self,
        relay: Relay,
        heard: Heard,
        into: Into,
        pings: OwnPings,
        interval: float,
        timeout: float,
        mask: Callable[[], bytes] | None,
        dead: Callable[[Leg, str], None],
    ) -> None:
        super().__init__()
        self._relay = relay
        self._heard = heard
        self._into = into
        self._pings = pings
        self._timeout = timeout
        self._mask = mask
        self._dead = dead
        #: When the last ping went out; None if it had to wait for the end of a frame.
        self._sent: float | None = None
        self._beat = Heartbeat(interval, timeout, relay.seconds(), heard.bytes)

    @property
    def rtt(self) -> float | None:
        """The round-trip time of the last ping that was answered, in seconds."""
        return self._beat.rtt

    def start(self) -> None:
        """Watch over the peer from now on."""
        self.wait(self._relay.deadlines, self._beat.wait(self._relay.seconds()))

    def stop(self) -> None:
        """Ping no more."""
        self.stop_waiting()

    def dissolve(self) -> None:
        """The session has ended: let go of it, so that no cycle is left to collect; the figures stay."""
        self.stop()
        del self._dead, self._heard, self._into

    def answered(self) -> None:
        """An answer to a ping was taken out of what the peer sends."""
        now = self._relay.seconds()
        latest = self._pings.answered == self._pings.sent
        self._beat.answered(now, now - self._sent if latest and self._sent is not None else None)

    def late(self) -> None:
        """It is time to look at the peer."""
        heard = self._heard
        now = self._relay.seconds()
        sink = heard.sink
        stuck = heard.paused and sink is not None and sink.pending is not None
        verdict = self._beat.look(now, heard.bytes, heard.paused, stuck)
        if verdict is Verdict.STALLED:
            assert sink is not None
            self._dead(sink, f"has taken nothing for {STALL * self._timeout:g} s")
        elif verdict is Verdict.LATE and self._is_dead():
            self._dead(heard.source, f"did not answer a ping within {self._timeout:g} s")
        else:
            if verdict is Verdict.PING:
                self._ping(now)
            self.wait(self._relay.deadlines, self._beat.wait(now))

    def _ping(self, now: float) -> None:
        into = self._into
        put_in = into.at_boundary
        given, outstanding = into.passed, self._outstanding()
        self._sent = now if put_in else None
        into.put_in(self._pings.make(None if self._mask is None else self._mask()))
        self._beat.pinged(now, given, outstanding, put_in=put_in)

    def _is_dead(self) -> bool:
        into = self._into
        if self._beat.excuse(into.passed, self._outstanding(), put_in=not into.is_inserting):
            return False
        # Where the router itself was held up, the answer may lie there still: this turn will read it.
        return not self._heard.source.unread()

    def _outstanding(self) -> int:
        leg = self._heard.source
        return leg.outstanding() + len(leg.pending or b"")


class Peer(NamedTuple):
    """One peer of a session, by what hears it and what it is written through; and the router's pings to it, if any."""

    heard: Heard
    into: Into
    pings: OwnPings | None


def keepers_for(
    route: values.Route, relay: Relay, client: Peer, backend: Peer, dead: Callable[[Leg, str], None]
) -> Mapping[object, KeepAlive]:
    """What pings the peers of a session, by what hears them; see ``KeepAlive`` for ``dead``."""
    keepers = {
        client.heard: client_keeper(route, relay, client, dead),
        backend.heard: backend_keeper(route, relay, backend, dead),
    }
    return {heard: keeper for heard, keeper in keepers.items() if keeper is not None}


def client_keeper(route: values.Route, relay: Relay, peer: Peer, dead: Callable[[Leg, str], None]) -> KeepAlive | None:
    """What pings the client of a session; None where nothing does."""
    if peer.pings is None or route.ping is None:
        return None
    return KeepAlive(relay, peer.heard, peer.into, peer.pings, route.ping, route.ping_timeout, None, dead)


def backend_keeper(route: values.Route, relay: Relay, peer: Peer, dead: Callable[[Leg, str], None]) -> KeepAlive | None:
    """The same for a backend."""
    if peer.pings is None or route.backend_ping is None:
        return None
    mask = functools.partial(os.urandom, 4)
    return KeepAlive(relay, peer.heard, peer.into, peer.pings, route.backend_ping, route.ping_timeout, mask, dead)
