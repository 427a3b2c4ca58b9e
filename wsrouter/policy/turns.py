"""Balancers that look at no load: backends take turns, or the first one fills up.

Each balances the members that it is given, all of a weight above 0; ``balancing`` deals with the others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from wsrouter.policy.members import Member
from wsrouter.policy.slow_start import ramp


def round_robin(members: Sequence[Member], slow_start: float = 0.0) -> Rotation | Credits:
    """Make the round robin that these weights need. ``slow_start`` is in seconds, 0 for none."""
    if len({member.weight for member in members}) > 1:
        return Credits(members, slow_start)
    return Rotation(members, slow_start)


class Rotation:
    """Members of one weight, each in turn.

    One in slow start is passed over in most of its turns: at each it is given its part of a turn, and when
    that makes a whole one it is taken. So nobody else's state need be looked at, and a pick costs the same as ever.
    """

    __slots__ = ("_at", "_credits", "_members", "_slow_start")

    def __init__(self, members: Sequence[Member], slow_start: float = 0.0) -> None:
        self._members = tuple(members)
        self._slow_start = slow_start
        self._at = 0
        #: The parts of a turn that were given in slow start.
        self._credits = [0.0] * len(members)

    def pick(self, now: float, key: bytes | None = None, excluded: Collection[Member] = ()) -> Member | None:
        """Return the member whose turn it is."""
        members = self._members
        following = self._at
        for _ in members:
            at = following
            member = members[at]
            following = at + 1
            if following == len(members):
                following = 0
            if not member.takes or (excluded and member in excluded):
                continue
            if self._slow_start and member.since is not None and not self._is_due(at, member.since, now):
                continue
            self._at = following
            return member
        return self._nearest(now, excluded) if self._slow_start else None

    def _is_due(self, at: int, since: float, now: float) -> bool:
        part = ramp(since, now, self._slow_start)
        if part == 1.0:
            return True
        self._credits[at] += part
        if self._credits[at] < 1.0:
            return False
        self._credits[at] -= 1.0
        return True

    def _nearest(self, now: float, excluded: Collection[Member]) -> Member | None:
        # All that can be chosen are in slow start, and none has a whole turn: the nearest to one is taken. It pays
        # what they all were given in this round, as in Credits; a whole turn would leave them in debt for long.
        given = 0.0
        nearest = -1
        for at, member in enumerate(self._members):
            if not member.takes or (excluded and member in excluded):
                continue
            assert member.since is not None
            given += ramp(member.since, now, self._slow_start)
            if nearest < 0 or self._credits[at] > self._credits[nearest]:
                nearest = at
        if nearest < 0:
            return None
        self._credits[nearest] -= given
        return self._members[nearest]


class Credits:
    """Smooth weighted round robin, as nginx does it: heavy members get their turns spread out, not in a row.

    Each pick gives every member that can be chosen its weight in credit; the one with the most is chosen and pays the
    sum of what was given. Weights 5, 1, 1 make a a b a c a a. In slow start a member is given a part of its weight.
    """

    __slots__ = ("_credits", "_members", "_slow_start")

    def __init__(self, members: Sequence[Member], slow_start: float = 0.0) -> None:
        self._members = tuple((member, member.weight) for member in members)
        self._slow_start = slow_start
        self._credits: list[float] = [0] * len(members)

    def pick(self, now: float, key: bytes | None = None, excluded: Collection[Member] = ()) -> Member | None:
        """Return the member with the most credit."""
        credit = self._credits
        slow_start = self._slow_start
        given: float = 0
        best = -1
        for at, (member, weight) in enumerate(self._members):
            if not member.takes or (excluded and member in excluded):
                continue
            gain: float = weight
            if slow_start and member.since is not None:
                gain *= ramp(member.since, now, slow_start)
            given += gain
            credit[at] += gain
            if best < 0 or credit[at] > credit[best]:
                best = at
        if best < 0:
            return None
        credit[best] -= given
        return self._members[best][0]


class First:
    """The first member in file order that takes more: each fills up to its ``max_sessions`` before the next is used.

    So the last ones stay empty, and can be switched off. Slow start does not hold here: the order is the
    purpose, and a part of a weight says nothing about it.
    """

    __slots__ = ("_members",)

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    def pick(self, now: float, key: bytes | None = None, excluded: Collection[Member] = ()) -> Member | None:
        """Return the first member that can be chosen."""
        for member in self._members:
            if member.takes and not (excluded and member in excluded):
                return member
        return None
