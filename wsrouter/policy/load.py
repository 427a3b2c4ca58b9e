"""Balancers that look at how much each backend has to do.

The measure is the load that a member would have with one session more: (live + 1) / weight. In slow start a member
counts with a part of its weight, so it is as loaded as the others when it has that part of their sessions: it
follows them up over ``slow_start`` seconds, where without it every new session would go to the empty one.

Each balances the members that it is given, all of a weight above 0; ``balancing`` deals with the others.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Sequence
from itertools import accumulate, chain
from math import inf
from random import Random

from wsrouter.policy.members import Member
from wsrouter.policy.slow_start import ramp

#: How often to draw blindly before those that can be chosen are counted: with half of a pool down, one draw in 256.
TRIES = 8


class LeastSessions:
    """The least loaded member; equal ones take turns."""

    __slots__ = ("_at", "_members", "_slow_start")

    def __init__(self, members: Sequence[Member], slow_start: float = 0.0) -> None:
        self._members = tuple((member, member.weight, at) for at, member in enumerate(members))
        self._slow_start = slow_start
        #: Where to begin to look: behind the one that was chosen last, since the first of equals is taken.
        self._at = 0

    def pick(self, now: float, key: bytes | None = None, excluded: Collection[Member] = ()) -> Member | None:
        """Return the member that has the least load with one session more."""
        members = self._members
        slow_start = self._slow_start
        best = None
        least = inf
        chosen = 0
        for member, weight, at in chain(members[self._at :], members[: self._at]):
            if slow_start and member.since is not None:
                load = (member.live + 1) / (weight * ramp(member.since, now, slow_start))
            else:
                load = (member.live + 1) / weight
            # The load first: of all that are looked at, only a few are better than those before.
            if load < least and member.takes and not (excluded and member in excluded):
                best, least, chosen = member, load, at
        if best is not None:
            self._at = chosen + 1
        return best


class RandomTwo:
    """Of two different members, drawn by weight, the less loaded.

    Nearly as even as the least loaded of all, and routers that do not know of each other's sessions do not all run
    to the same backend. A draw that hits a member that cannot be chosen is repeated, and a member in slow start refuses
    draws, more of them at first. So a pick needs no list of who is available.
    """

    __slots__ = ("_bounds", "_members", "_random", "_slow_start", "_weights")

    def __init__(self, members: Sequence[Member], random: Random, slow_start: float = 0.0) -> None:
        self._members = tuple(members)
        self._weights = tuple(member.weight for member in members)
        self._bounds = tuple(accumulate(self._weights))
        self._random = random
        self._slow_start = slow_start

    def pick(self, now: float, key: bytes | None = None, excluded: Collection[Member] = ()) -> Member | None:
        """Draw two, return one; where only one can be chosen, that one."""
        one = self._draw(now, excluded, -1)
        if one < 0:
            return None
        other = self._draw(now, excluded, one)
        if other >= 0 and self._load(other, now) < self._load(one, now):
            one = other
        return self._members[one]

    def _draw(self, now: float, excluded: Collection[Member], drawn: int) -> int:
        """Return the place of a member other than ``drawn``, or -1."""
        draw = self._random.random
        bounds = self._bounds
        for _ in range(TRIES if len(bounds) > 1 else 0):
            at = bisect(bounds, draw() * bounds[-1])
            member = self._members[at]
            if at == drawn or not member.takes or (excluded and member in excluded):
                continue
            if self._slow_start and member.since is not None and draw() >= ramp(member.since, now, self._slow_start):
                continue
            return at
        return self._draw_counted(now, excluded, drawn)

    def _draw_counted(self, now: float, excluded: Collection[Member], drawn: int) -> int:
        places = [
            at
            for at, member in enumerate(self._members)
            if at != drawn and member.takes and not (excluded and member in excluded)
        ]
        if not places:
            return -1
        bounds = tuple(accumulate(self._weight(at, now) for at in places))
        # The end is left out: sums of fractions are rounded, and a draw may lie on it.
        return places[bisect(bounds, self._random.random() * bounds[-1], hi=len(bounds) - 1)]

    def _weight(self, at: int, now: float) -> float:
        since = self._members[at].since
        if self._slow_start and since is not None:
            return self._weights[at] * ramp(since, now, self._slow_start)
        return self._weights[at]

    def _load(self, at: int, now: float) -> float:
        return (self._members[at].live + 1) / self._weight(at, now)
