"""How much one client address may have at a time: connections, and new things for each second.

A rate is kept as the generic cell rate algorithm keeps it (ITU-T I.371): one float for each client, the time at
which its bucket will be full again. It says all that a token bucket and the time of its last use say.

Memory is bounded by forgetting, in two generations of one dictionary each. Who is asked about lives in the young one.
When that holds half the capacity, or is older than the longest debt, it becomes the old one, and the old one is
dropped. So who leaves was not seen for that long, or is among the least recently seen; nothing is searched or swept.

What somebody with very many addresses can do: use the burst of each, and push others out, who then have a full
bucket again; a bucket pushed out costs half a capacity of fresh addresses. What they cannot do: make
the memory grow, or have an address limited for what another did.
"""

from __future__ import annotations

from wsrouter.config.values import Rate
from wsrouter.policy.networks import IPV6, number_of

#: Who waits as long as told must pass; floats of the present time are not finer than this, in seconds.
SLACK = 1e-6


def client_key(ip: str) -> int | None:
    """What stands for one client: an IPv4 address, or the /64 of an IPv6 one, which a single host can use as it likes.

    None for a client without an address (``unix``): nothing tells such clients apart, so no limit of one address can
    hold for them.
    """
    number = number_of(ip)
    if number is None or number < IPV6:
        return number
    return number >> 64  # at least 2**64, so never an IPv4 address


class RateLimiter:
    """A token bucket for each key.

    ``capacity`` is the most keys that are remembered: 100 to 200 bytes each. Times are seconds of one clock; should
    it go back, nobody waits longer than an empty bucket takes to fill.
    """

    __slots__ = ("_born", "_full", "_half", "_interval", "_old", "_room", "_young", "rate")

    def __init__(self, rate: Rate, capacity: int = 100_000) -> None:
        self._young: dict[int | str | bytes, float] = {}
        self._old: dict[int | str | bytes, float] = {}
        #: When the young generation began.
        self._born = 0.0
        self._half = max(capacity // 2, 1)
        self.reconfigure(rate)

    def reconfigure(self, rate: Rate) -> None:
        """Hold this rate from now on.

        Debts stay as they are, in seconds, but none is longer than a bucket of the new rate takes to fill.
        """
        self.rate = rate
        self._interval = 1.0 / rate.per_second
        #: How long an empty bucket takes to fill.
        self._full = rate.burst * self._interval
        #: How far from full a bucket may be and still give.
        self._room = self._full - self._interval + SLACK

    def take(self, key: int | str | bytes, now: float) -> float:
        """Take one token of ``key``: 0.0 when there is one, else the seconds until there will be (for Retry-After).

        Being refused costs nothing.
        """
        young = self._young
        full_at = young.get(key)
        if full_at is None:
            if len(young) >= self._half or now - self._born > self._full:
                young = self._turn(now)
            full_at = self._old.get(key, now)
        debt = full_at - now
        if debt <= 0.0:
            debt = 0.0
        elif debt > self._full:
            debt = self._full
        if debt <= self._room:
            young[key] = now + debt + self._interval
            return 0.0
        young[key] = now + debt
        return debt - self._room + SLACK

    def __len__(self) -> int:
        """How many entries are kept; a key that is in both generations counts twice."""
        return len(self._young) + len(self._old)

    def _turn(self, now: float) -> dict[int | str | bytes, float]:
        """Begin a new generation; what was the old one is forgotten."""
        self._old, self._young = self._young, {}
        self._born = now
        return self._young


class TokenBucket:
    """One token bucket, kept as ``RateLimiter`` keeps each of its own; full at first.

    Times are seconds of one clock; should it go back, the bucket is empty at worst.
    """

    __slots__ = ("_full", "_full_at", "_interval", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._interval = 1.0 / rate.per_second
        #: How long an empty bucket takes to fill, and when this one will be full.
        self._full = rate.burst * self._interval
        self._full_at = 0.0

    def has(self, count: int, now: float) -> bool:
        """Whether there are ``count`` tokens at least; this is the quick question."""
        room = self._full - count * self._interval
        return room >= 0.0 and self._full_at - now <= room

    def level(self, now: float) -> int:
        """How many whole tokens there are."""
        debt = self._full_at - now
        if debt <= 0.0:
            return self.rate.burst
        if debt > self._full:
            debt = self._full
            self._full_at = now + debt
        return int((self._full - debt + SLACK) * self.rate.per_second)

    def take(self, count: int, now: float) -> None:
        """Take ``count`` tokens of those that ``has`` or ``level`` have told of."""
        full_at = self._full_at
        self._full_at = (full_at if full_at > now else now) + count * self._interval

    def wait(self, count: int, now: float) -> float:
        """Seconds until there are ``count`` tokens, of at most ``burst``; 0.0 if there are."""
        debt = min(self._full_at - now, self._full)
        return max(0.0, debt - self._full + count * self._interval)


class ConnectionCounter:
    """How many connections each key has; a key without any has no entry.

    ``limit`` is the most of one key, None for no limit; another may be set at any time, and holds for who enters after
    that.
    """

    __slots__ = ("_live", "limit")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._live: dict[int | str | bytes, int] = {}

    def enter(self, key: int | str | bytes) -> bool:
        """Count one more connection, or refuse it: False, and nothing is counted."""
        live = self._live.get(key, 0)
        if self.limit is not None and live >= self.limit:
            return False
        self._live[key] = live + 1
        return True

    def leave(self, key: int | str | bytes) -> None:
        """A connection that ``enter`` counted has ended; KeyError for one that it did not."""
        live = self._live[key] - 1
        if live:
            self._live[key] = live
        else:
            del self._live[key]

    def live(self, key: int | str | bytes) -> int:
        """The connections of one key."""
        return self._live.get(key, 0)

    def __len__(self) -> int:
        """How many keys have connections."""
        return len(self._live)
