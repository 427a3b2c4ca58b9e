"""A drain: no new work, a polite end for what lives, and a limit to it."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from wsrouter.live.registry import Answer, End, Entry, Refusal, Registry
from wsrouter.wire.close import GOING_AWAY

#: How often a drain looks whether it is done, and how often it says how far it is, in seconds.
LOOK = 0.05
SAY = 5.0

_log = Logger()


class Drain:
    """Ends all sessions with Close 1001 and waits up to ``limit`` seconds; then ``done`` is called, once.

    ``connections`` tells how many client connections there still are at HTTP. What is left at the limit is for the
    caller to cut.
    """

    def __init__(
        self,
        clock: IReactorTime,
        registry: Registry,
        connections: Callable[[], int],
        limit: float,
        done: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._connections = connections
        self._limit = limit
        self._done = done
        self._until = 0.0
        self._said = 0.0
        self._all = 0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin."""
        now = self._clock.seconds()
        self._until = now + self._limit
        self._said = now
        entries = list(self._registry.entries.values())
        self._all = len(entries)
        if entries:
            _log.info(
                "draining: sessions and tunnels: {count}; {limit:g} s at most", count=len(entries), limit=self._limit
            )
        self._registry.observers.append(self)
        for entry in entries:
            entry.end(GOING_AWAY, "the router is shutting down")
        self._look()

    def cancel(self) -> None:
        """End the drain now; ``done`` is called."""
        self._finish()

    def opened(self, entry: Entry) -> None:
        """A session that was being opened when the drain began: it ends at once."""
        self._clock.callLater(0, self._end_late, entry)

    def closed(self, entry: Entry, end: End) -> None:
        """Noticed at the next look."""

    def refused(self, refusal: Refusal) -> None:
        """Of no concern here."""

    def answered(self, answer: Answer) -> None:
        """Of no concern here."""

    def _end_late(self, entry: Entry) -> None:
        if entry.number in self._registry.entries:
            entry.end(GOING_AWAY, "the router is shutting down")

    def _look(self) -> None:
        self._call = None
        now = self._clock.seconds()
        left = len(self._registry.entries)
        waiting = left + self._connections()
        if not waiting or now >= self._until:
            if left:
                _log.warn("draining: the time is up, {left} of {all} are cut", left=left, all=self._all)
            self._finish()
            return
        if now - self._said >= SAY:
            self._said = now
            _log.info(
                "draining: {left} of {all} sessions and tunnels left, {seconds:.0f} s",
                left=left,
                all=self._all,
                seconds=self._until - now,
            )
        self._call = self._clock.callLater(LOOK, self._look)

    def _finish(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self in self._registry.observers:
            self._registry.observers.remove(self)
            self._done()
