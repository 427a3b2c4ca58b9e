"""A drain: no new work, a polite end for what lives, and a limit to it."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from wsrouter.live.registry import Registry
from wsrouter.wire.close import GOING_AWAY

#: How often a drain looks whether it is done, and how often it says how far it is, in seconds.
LOOK = 0.05
SAY = 5.0

_log = Logger()


class Drain:
    """Ends all sessions with Close 1001 and waits up to ``limit`` seconds; then ``done`` is called, once.

    ``connections`` tells how many client connections there still are, whatever they do. What is left at the
    limit is for the caller to cut.
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
        #: The numbers of those that were asked to end.
        self._asked: set[int] = set()
        self._running = False
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin."""
        now = self._clock.seconds()
        self._until = now + self._limit
        self._said = now
        count = len(self._registry.entries)
        if count:
            _log.info("draining: sessions and tunnels: {count}; {limit:g} s at most", count=count, limit=self._limit)
        self._running = True
        self._look()

    def cancel(self) -> None:
        """End the drain now; ``done`` is called."""
        if self.forget():
            self._done()

    def forget(self) -> bool:
        """End the drain without calling ``done``; tells whether there was one."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        running, self._running = self._running, False
        return running

    def _ask(self) -> None:
        """Ask all to end that were not asked before; some were still being opened when the drain began."""
        for number, entry in list(self._registry.entries.items()):
            if number not in self._asked:
                self._asked.add(number)
                try:
                    entry.end(GOING_AWAY, "the router is shutting down")
                except Exception:
                    _log.failure("A session could not be asked to end")

    def _look(self) -> None:
        self._call = None
        self._ask()
        now = self._clock.seconds()
        left = len(self._registry.entries)
        waiting = left + self._connections()
        if not waiting or now >= self._until:
            if left:
                _log.warn("draining: the time is up, {left} of {all} are cut", left=left, all=len(self._asked))
            self.cancel()
            return
        if now - self._said >= SAY:
            self._said = now
            _log.info(
                "draining: {left} of {all} sessions and tunnels left, {seconds:.0f} s",
                left=left,
                all=len(self._asked),
                seconds=self._until - now,
            )
        self._call = self._clock.callLater(LOOK, self._look)
