"""Which backend of a pool takes the next session.

A session stays where it begins, often for hours. So a choice cannot be made good later, and what matters is where the
next one goes:

    round-robin      each in turn, by weight                                                   turns
    first            the first in the file that has room                                       turns
    least-sessions   the least loaded                                                          load
    random-two       the less loaded of two at random: for many routers before one pool        load
    hash             the same key, the same backend                                            ring

``slow_start`` holds for round-robin, least-sessions and random-two; what the others promise it would break.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from random import Random
from typing import Protocol

from wsrouter.config.values import Balance, Pool
from wsrouter.policy.load import LeastSessions, RandomTwo
from wsrouter.policy.members import Member
from wsrouter.policy.ring import ConsistentHash
from wsrouter.policy.turns import First, round_robin


class Balancer(Protocol):
    """Chooses among the members of one pool."""

    def pick(self, now: float, key: bytes | None = None, excluded: Collection[Member] = ()) -> Member | None:
        """Return the member for one more session, or None when none can take it.

        ``now`` is on the clock of the members' ``since``. ``key`` is what ``balance = hash`` looks at; with None, or an
        empty one (the client has no such cookie, say), it takes turns. ``excluded`` are those already tried for this
        session. Backups are chosen only while no other member can be. Weight 0 is never chosen.

        No member is changed: it is for the caller to count the session in ``live`` before the next pick. Whether
        a member takes more, its ``live`` and ``since`` are looked at each time, so nobody need tell when they change.
        """
        ...


def balancer_for(pool: Pool, members: Sequence[Member], random: Random) -> Balancer:
    """Make the balancer of ``pool`` for its members, in file order.

    The members' weights, labels and which are backups are read once: after a reload, make a new one.
    """
    used = [member for member in members if member.weight > 0]
    primaries = [member for member in used if not member.backend.backup]
    backups = [member for member in used if member.backend.backup]
    if primaries and backups:
        if pool.balance is Balance.HASH:
            return RingWithBackups(*[ConsistentHash(part, pool.slow_start or 0.0) for part in (primaries, backups)])
        return WithBackups(_balancer(pool, primaries, random), _balancer(pool, backups, random))
    return _balancer(pool, primaries or backups, random)


def _balancer(pool: Pool, members: Sequence[Member], random: Random) -> Balancer:
    slow_start = pool.slow_start or 0.0
    match pool.balance:
        case Balance.ROUND_ROBIN:
            return round_robin(members, slow_start)
        case Balance.LEAST_SESSIONS:
            return LeastSessions(members, slow_start)
        case Balance.RANDOM_TWO:
            return RandomTwo(members, random, slow_start)
        case Balance.FIRST:
            return First(members)
        case Balance.HASH:
            return ConsistentHash(members, slow_start)


class WithBackups:
    """Two balancers, the second for when the first has nobody."""

    __slots__ = ("_backups", "_primaries")

    def __init__(self, primaries: Balancer, backups: Balancer) -> None:
        self._primaries = primaries
        self._backups = backups

    def pick(self, now: float, key: bytes | None = None, excluded: Collection[Member] = ()) -> Member | None:
        """Return a primary, else a backup; see ``Balancer``."""
        return self._primaries.pick(now, key, excluded) or self._backups.pick(now, key, excluded)


class RingWithBackups(WithBackups):
    """The same of two rings."""

    __slots__ = ("_rings",)

    def __init__(self, primaries: ConsistentHash, backups: ConsistentHash) -> None:
        super().__init__(primaries, backups)
        self._rings = (primaries, backups)

    def owner(self, key: bytes, among: Container[Member]) -> Member | None:
        """Return the member of ``among`` that has ``key``; see ``ConsistentHash``."""
        primaries, backups = self._rings
        return primaries.owner(key, among) or backups.owner(key, among)
