"""Consistent hashing: the same key goes to the same backend, in every process and on every machine.

Each backend has points on a ring of 2^32 places, as many as its weight asks for. They come from its label alone, so
neither the order in the file nor the other backends have a say. A key is a place too; the backend whose point comes
next has it. When that one cannot take it, the next point that belongs to one that can decides: exactly what would be
if the former had no points. So a backend that leaves the file, is down, is full or was already tried moves its own
keys only, and they spread over all the others.

A table finds the next point: the ring is cut into at least as many slots as there are points, and each slot knows
the first point at or behind its beginning, so that less than one more has to be passed on average.

Slow start does not hold here: it would move each key twice, away when its backend comes back late and home
again when that has caught up, and the purpose is that keys stay.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Container, Sequence
from hashlib import blake2b
from struct import unpack

from wsrouter.policy.members import Member
from wsrouter.policy.turns import round_robin

#: Points for each unit of weight: loads then differ by some 4 % (one standard deviation).
POINTS = 512
#: More points than these, of many or of heavy backends, are halved for all until they fit: making a ring holds up the
#: whole process. Loads differ more then, and keys move when a change of the file crosses such a border.
MOST_POINTS = 1 << 16
#: How many points are tried one after the other, before each member that can be chosen is asked for its own.
STEPS = 64

_BITS = 32
_PLACES = 1 << _BITS
_PER_DIGEST = 16


class ConsistentHash:
    """Balances on a key; without one, sessions take turns."""

    __slots__ = ("_own_points", "_owners", "_points", "_shift", "_starts", "_turns")

    def __init__(self, members: Sequence[Member], slow_start: float = 0.0) -> None:
        self._turns = round_robin(members, slow_start)
        # Where two share a place, the label decides, as it does when one of them is not there.
        ordered = sorted(members, key=lambda member: member.backend.label)
        halvings = _halvings(sum(member.weight for member in ordered))
        #: The points of each member, for when many must be passed over.
        self._own_points = [
            (member, array("I", sorted(_points(member.backend.label, max(1, member.weight * POINTS >> halvings)))))
            for member in ordered
        ]
        marks = sorted(point << _BITS | at for at, (_, own) in enumerate(self._own_points) for point in own)
        #: All points, and whose they are. The first one's owner has what lies behind the last point too.
        self._points = array("I", [mark >> _BITS for mark in marks])
        self._owners = [ordered[mark & _PLACES - 1] for mark in marks]
        self._points.append(_PLACES - 1)
        self._owners += self._owners[:1]
        bits = len(marks).bit_length()
        self._shift = _BITS - bits
        self._starts = _starts(self._points, bits)

    def pick(self, now: float, key: bytes | None = None, excluded: Collection[Member] = ()) -> Member | None:
        """Return the member that has ``key``; with none, or an empty one, the member whose turn it is."""
        if not key or not self._own_points:
            return self._turns.pick(now, None, excluded)
        return self._next(key, lambda member: member.takes and not (excluded and member in excluded))

    def owner(self, key: bytes, among: Container[Member]) -> Member | None:
        """Return the member of ``among`` that has ``key``, whether it takes more sessions or not."""
        return self._next(key, among.__contains__) if self._own_points else None

    def _next(self, key: bytes, can: Callable[[Member], bool]) -> Member | None:
        place = int.from_bytes(blake2b(key, digest_size=_BITS // 8, person=b"wsrouter key").digest(), "little")
        at = self._next_point(place)
        owners = self._owners
        for _ in range(STEPS):
            member = owners[at]
            if can(member):
                return member
            at += 1
            if at == len(owners):
                at = 0
        return self._next_of_all(place, can)

    def _next_point(self, place: int) -> int:
        points = self._points
        at = self._starts[place >> self._shift]
        while points[at] < place:
            at += 1
        return at

    def _next_of_all(self, place: int, can: Callable[[Member], bool]) -> Member | None:
        # Nearly all are down or full. The ring could be long to walk, so each that is left tells its own next point.
        nearest = None
        least = _PLACES
        for member, own in self._own_points:
            if not can(member):
                continue
            at = bisect_left(own, place)
            distance = own[at] - place if at < len(own) else own[0] - place + _PLACES
            if distance < least:
                nearest, least = member, distance
        return nearest


def _halvings(weight: int) -> int:
    """How often the points of a pool of this weight are halved."""
    halvings = 0
    while weight * POINTS >> halvings > MOST_POINTS:
        halvings += 1
    return halvings


def _points(label: str, count: int) -> list[int]:
    """The first ``count`` points of a backend: fewer are always among more."""
    points: list[int] = []
    data = label.encode()
    while len(points) < count:
        salt = len(points).to_bytes(blake2b.SALT_SIZE, "little")
        points += unpack(f"<{_PER_DIGEST}I", blake2b(data, salt=salt, person=b"wsrouter ring").digest())
    return points[:count]


def _starts(points: array[int], bits: int) -> array[int]:
    """For each of 2^bits slots of the ring, the index of the first point at or behind its beginning."""
    starts = array("I")
    shift = _BITS - bits
    for at, point in enumerate(points):
        # Its own slot, if it is the first one there, and the empty slots before.
        while len(starts) <= point >> shift:
            starts.append(at)
    return starts
