"""A member of a pool that counts how often any of its kind is looked at."""

from __future__ import annotations

from wsrouter.policy.members import Member


class Watched(Member):
    """``Watched.looks`` is the count; a test sets it to nothing before it begins."""

    __slots__ = ()
    looks = 0

    @property
    def takes(self) -> bool:
        Watched.looks += 1
        return super().takes
