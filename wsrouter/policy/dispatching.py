"""Which backend of a pool gets the next message of one session (``dispatch = message``).

The balancers are those for sessions, with other measures. Each session has its own, so that its messages take turns
whatever other sessions do. Load is the number of messages that wait for an answer, of all sessions together. Keys go by
the pool's own ring.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from random import Random

from wsrouter.config.values import Balance, Pool
from wsrouter.policy.balancing import Balancer, RingWithBackups, balancer_for
from wsrouter.policy.members import Member
from wsrouter.policy.ring import ConsistentHash


class Dispatcher:
    """Chooses for the messages of one session.

    ``ring`` is the pool's balancer, for ``balance = hash``; ``first`` is the backend that the session begins at, which
    has the first turn.
    """

    __slots__ = ("_balancer", "_places", "_ring")

    def __init__(
        self, pool: Pool, members: Sequence[Member], ring: Balancer, random: Random, first: Member | None = None
    ) -> None:
        self._ring = ring if isinstance(ring, ConsistentHash | RingWithBackups) else None
        if self._ring is not None:
            # For messages without a key.
            pool = replace(pool, balance=Balance.ROUND_ROBIN)
        members = list(members)
        if first in members and pool.balance is not Balance.FIRST:
            at = members.index(first)
            members = members[at:] + members[:at]
        #: For each member one that stands for it, with this session's view of it.
        self._places = [(member, Member(replace(member.backend, max_sessions=None))) for member in members]
        self._balancer = balancer_for(pool, [place for _, place in self._places], random)

    def pick(self, now: float, key: bytes | None, usable: Collection[Member]) -> Member | None:
        """Return the member for one message, one of ``usable``; None if none of those may have it.

        ``usable`` is for the caller to know: those that it has a session at, though they take no further ones, and
        those that would take one. Weight 0 is never chosen.
        """
        if self._ring is not None and key:
            return self._ring.owner(key, usable)
        for member, place in self._places:
            place.available = member in usable
            place.live = member.unanswered
            place.since = member.since
        chosen = self._balancer.pick(now)
        return next((member for member, place in self._places if place is chosen), None)
