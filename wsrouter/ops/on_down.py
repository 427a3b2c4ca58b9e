"""``on_down = close``: the live sessions of a backend that went down, or was taken out, are told to go elsewhere.

Sessions get Close 1012, service restart, upon which clients connect again and get another backend. Tunnels have no
polite end: each is cut when its turn comes. Both sides see a reset, so that nothing cut off looks whole.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from wsrouter.config.values import OnDown, Pool
from wsrouter.live.registry import Entry, Kind, Registry
from wsrouter.ops.spread import Spread
from wsrouter.wire.close import RESTART

_log = Logger()


class Evictions:
    """Ends the sessions and tunnels of backends that are no more, for the pools that want it."""

    def __init__(self, clock: IReactorTime, registry: Registry) -> None:
        self._clock = clock
        self._registry = registry
        self._spreads: list[Spread[Entry]] = []
        self._stopped = False

    def gone(self, pool: Pool, backend: str) -> None:
        """The backend with this label has gone down or was removed. Nothing happens with ``on_down = keep``."""
        if pool.on_down is not OnDown.CLOSE or self._stopped:
            return
        entries = [
            entry
            for entry in self._registry.entries.values()
            if entry.facts.backend == backend and entry.facts.pool == pool.name
        ]
        if not entries:
            return
        _log.info(
            "pool {pool}: backend {backend} is gone, its {count:,} sessions and tunnels are ended over {seconds:g} s",
            pool=pool.name,
            backend=backend,
            count=len(entries),
            seconds=pool.down_spread,
        )
        self._spreads = [spread for spread in self._spreads if spread.waiting]
        spread = Spread(self._clock, entries, pool.down_spread, self._end)
        self._spreads.append(spread)
        spread.start()

    def stop(self) -> None:
        """End nobody any more: a drain does, or the process ends."""
        self._stopped = True
        for spread in self._spreads:
            spread.stop()
        self._spreads.clear()

    def _end(self, entry: Entry) -> None:
        if entry.number not in self._registry.entries:
            return
        if entry.facts.kind is Kind.SESSION:
            entry.end(RESTART, f"backend {entry.facts.backend} is gone")
        else:
            entry.abort()
