"""Counts that hold for all workers together, where there are several; in one process they are its own.

Three kinds: a gauge says how many of one thing live here and elsewhere; a counter and a limiter hold what a single
client may have, as ``limits`` describes it.
"""

from __future__ import annotations

from typing import Protocol

from wsrouter.config.values import Rate
from wsrouter.policy.limits import ConnectionCounter, RateLimiter


class Gauge(Protocol):
    """How many of one thing live."""

    def add(self, count: int) -> None:
        """So many more live in this process, or fewer."""

    def others(self) -> int:
        """How many live in the other processes."""

    def fair(self) -> float:
        """How many would live in each process if all had the same."""


def listener_gauge(name: str) -> str:
    """The name of the gauge of a listener's connections."""
    return f"listener {name}"


def backend_gauge(pool: str, label: str) -> str:
    """The name of the gauge of a backend's sessions."""
    return f"sessions {pool} {label}"


class Counter(Protocol):
    """How many connections each key has; see ``limits.ConnectionCounter``."""

    limit: int | None

    def enter(self, key: int) -> bool:
        """Count one more connection, or refuse it."""

    def leave(self, key: int) -> None:
        """A connection that ``enter`` counted has ended."""


class Limiter(Protocol):
    """A token bucket for each key; see ``limits.RateLimiter``."""

    def reconfigure(self, rate: Rate) -> None:
        """Hold this rate from now on."""

    def take(self, key: int, now: float) -> float:
        """Take one token: 0.0, or the seconds until there will be one."""


class Sharing(Protocol):
    """Makes counts by name; the same name is the same count in every process."""

    def gauge(self, name: str) -> Gauge | None:
        """None: nothing lives elsewhere."""

    def counter(self, name: str) -> Counter:
        """Without a limit, at first."""

    def limiter(self, name: str, rate: Rate) -> Limiter:
        """With full buckets, at first."""


class Alone:
    """There is one process."""

    def gauge(self, name: str) -> Gauge | None:
        """Nothing lives elsewhere."""
        return None

    def counter(self, name: str) -> Counter:
        """A counter of this process."""
        return ConnectionCounter(None)

    def limiter(self, name: str, rate: Rate) -> Limiter:
        """A limiter of this process."""
        return RateLimiter(rate)
