"""A drain: no new connections, a polite end for what lives, and a limit to it.

Behind a balancer it begins with a delay, in which all goes on but for ``drain_path``: the balancer asks there, hears of
the end, and sends clients elsewhere. Then the ports are closed and the sessions are told, one after the other. Tunnels
have no polite end; they go on, and so does what is still being asked for. At the limit the caller cuts what is left.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from wsrouter.config.values import Router
from wsrouter.live.registry import Entry, Kind, Registry
from wsrouter.ops.spread import Spread

#: How often a drain looks whether it is done, and how often it says how far it is, in seconds.
LOOK = 0.05
SAY = 5.0

_log = Logger()


class _Stage(enum.Enum):
    NEW = "new"
    #: Still accepting.
    DELAY = "delay"
    #: Sessions are being told.
    ENDING = "ending"
    OVER = "over"


class Drain:
    """Waits ``drain_delay``, calls ``close``, ends all sessions with ``drain_code`` over ``drain_spread``.

    When all have ended, or after ``drain`` seconds from ``close`` on, ``done`` is called, once. ``connections`` tells
    how many client connections there still are, whatever they do. What is left at the limit is for the caller to cut.
    """

    def __init__(
        self,
        clock: IReactorTime,
        registry: Registry,
        connections: Callable[[], int],
        router: Router,
        close: Callable[[], None],
        done: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._connections = connections
        self._router = router
        self._close = close
        self._done = done
        self._stage = _Stage.NEW
        self._until = 0.0
        self._said = 0.0
        #: Those that were there to end, by number.
        self._known: dict[int, Kind] = {}
        self._spread: Spread[Entry] | None = None
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin."""
        delay = self._router.drain_delay
        if not delay:
            self._end()
            return
        _log.info("draining in {delay:g} s: still accepting", delay=delay)
        self._stage = _Stage.DELAY
        self._call = self._clock.callLater(delay, self._end)

    def cancel(self) -> None:
        """End the drain now; ``done`` is called."""
        if self.forget():
            self._done()

    def forget(self) -> bool:
        """End the drain without calling ``done``; tells whether there was one."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._spread is not None:
            self._spread.stop()
        running = self._stage in (_Stage.DELAY, _Stage.ENDING)
        self._stage = _Stage.OVER
        return running

    def _end(self) -> None:
        self._call = None
        self._stage = _Stage.ENDING
        self._close()
        now = self._clock.seconds()
        self._until = now + self._router.drain
        self._said = now
        entries = self._new()
        if self._known:
            _log.info("draining: {all}; {limit:g} s at most", all=self._total(), limit=self._router.drain)
        self._spread = Spread(self._clock, entries, min(self._router.drain_spread, self._router.drain), self._tell)
        self._spread.start()
        self._look()

    def _new(self) -> list[Entry]:
        """The sessions that nobody has looked at; some were opened only when the drain had begun."""
        entries = [entry for number, entry in self._registry.entries.items() if number not in self._known]
        self._known |= {entry.number: entry.facts.kind for entry in entries}
        return [entry for entry in entries if entry.facts.kind is Kind.SESSION]

    def _tell(self, entry: Entry) -> None:
        if entry.number in self._registry.entries:
            entry.end(self._router.drain_code, "the router is shutting down")

    def _look(self) -> None:
        self._call = None
        assert self._spread is not None
        late = self._new()
        if late:
            self._spread.add(late)
        now = self._clock.seconds()
        entries = self._registry.entries
        if not (entries or self._connections()) or now >= self._until:
            if entries:
                _log.warn("draining: the time is up, {left} are cut", left=self._left())
            elif self._known:
                _log.info("draining: done, {seconds:.0f} s before its time", seconds=self._until - now)
            self.cancel()
            return
        if now - self._said >= SAY:
            self._said = now
            _log.info("draining: {left} left, {seconds:.0f} s", left=self._left(), seconds=self._until - now)
        self._call = self._clock.callLater(LOOK, self._look)

    def _left(self) -> str:
        """How many are left: ``812 of 2,000 sessions and 3 of 40 tunnels``; who has neither, if nobody ever had."""
        left = [entry.facts.kind for entry in self._registry.entries.values()]
        known = list(self._known.values())
        told = _both([(kind, f"{left.count(kind):,} of {known.count(kind):,}", known.count(kind)) for kind in Kind])
        others = self._connections()
        return told or f"{others:,} client connection{'' if others == 1 else 's'}"

    def _total(self) -> str:
        known = list(self._known.values())
        return _both([(kind, f"{known.count(kind):,}", known.count(kind)) for kind in Kind])


def _both(counted: list[tuple[Kind, str, int]]) -> str:
    told = [f"{text} {kind.value}{'' if all == 1 else 's'}" for kind, text, all in counted if all]
    return " and ".join(told)
