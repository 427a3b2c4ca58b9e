"""``on_down = close``: the live sessions of a backend that went down, or was taken out, are told to go elsewhere.

Sessions get Close 1012, service restart, upon which clients connect again and get another backend. Tunnels have no
polite end: each is cut when its turn comes. Both sides see a reset, so that nothing cut off looks whole. A session that
chooses a backend for each message leaves this one, and lives on where it has others.
"""

from __future__ import annotations

import functools
from collections.abc import Collection

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from wsrouter.config.values import OnDown, Pool
from wsrouter.live.registry import Answer, Branched, End, Entry, Kind, Refusal, Registry
from wsrouter.ops.spread import Spread
from wsrouter.wire.close import RESTART

_log = Logger()


class Evictions:
    """Ends the sessions and tunnels of backends that are no more, for the pools that want it.

    While backends are gone it observes the registry: one that was still being opened when its backend went is ended
    with the others.
    """

    def __init__(self, clock: IReactorTime, registry: Registry) -> None:
        self._clock = clock
        self._registry = registry
        self._spreads: list[Spread[Entry]] = []
        #: By pool and backend: who is opened there still, and until when that may happen.
        self._late: dict[tuple[str, str], tuple[Spread[Entry], float]] = {}
        self._stopped = False

    def gone(self, pool: Pool, backend: str) -> None:
        """The backend with this label has gone down or was removed. Nothing happens with ``on_down = keep``."""
        if pool.on_down is not OnDown.CLOSE or self._stopped:
            return
        entries = [
            entry
            for entry in self._registry.entries.values()
            if entry.facts.pool == pool.name and backend in _backends_of(entry)
        ]
        if entries:
            _log.info(
                "pool {pool}: backend {backend} is gone,"
                " its {count:,} sessions and tunnels are ended over {seconds:g} s",
                pool=pool.name,
                backend=backend,
                count=len(entries),
                seconds=pool.down_spread,
            )
        spread = Spread(self._clock, entries, pool.down_spread, functools.partial(self._end, backend))
        spread.start()
        longest = pool.queue_timeout + pool.retry_time + pool.connect_timeout + pool.handshake_timeout
        self._late[pool.name, backend] = (spread, self._clock.seconds() + longest)
        self._forget_late()
        self._spreads = [*(spread for spread in self._spreads if spread.waiting), spread]

    def back(self, pool: str, backend: str) -> None:
        """It is up again, or of the pool again: those that are opened there now may stay."""
        self._late.pop((pool, backend), None)
        self._observe()

    def _forget_late(self) -> None:
        now = self._clock.seconds()
        self._late = {key: late for key, late in self._late.items() if now < late[1]}
        self._observe()

    def _observe(self) -> None:
        """Observe the registry while there is a reason to: it costs each session a little."""
        observers = self._registry.observers
        if self._late and self not in observers:
            observers.append(self)
        elif not self._late and self in observers:
            observers.remove(self)

    def opened(self, entry: Entry) -> None:
        """A session or tunnel lives; the backend may have gone meanwhile."""
        self._forget_late()
        late = self._late.get((entry.facts.pool, entry.facts.backend))
        if late is not None:
            spread, _ = late
            spread.add([entry])
            if spread not in self._spreads:
                self._spreads.append(spread)

    def closed(self, entry: Entry, end: End) -> None:
        """One that ends by itself is passed over when its turn comes."""

    def refused(self, refusal: Refusal) -> None:
        """Nobody to end."""

    def answered(self, answer: Answer) -> None:
        """Nobody to end."""

    def stop(self) -> None:
        """End nobody any more: a drain does, or the process ends."""
        self._stopped = True
        for spread in self._spreads:
            spread.stop()
        self._spreads.clear()
        self._late.clear()
        self._observe()

    def _end(self, backend: str, entry: Entry) -> None:
        if entry.number not in self._registry.entries:
            return
        if isinstance(entry, Branched):
            entry.leave(backend)
        elif entry.facts.kind is Kind.SESSION:
            entry.end(RESTART, f"backend {backend} is gone")
        else:
            entry.abort()


def _backends_of(entry: Entry) -> Collection[str]:
    return entry.branches() if isinstance(entry, Branched) else (entry.facts.backend,)
