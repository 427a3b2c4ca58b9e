"""Which backend gets the next message of a session, and what a session remembers of backends for that."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from wsrouter.backends.pool import BackendPool
from wsrouter.config.values import KeySource
from wsrouter.layer7.affinity import affinity_of
from wsrouter.layer7.branch import Outgoing
from wsrouter.layer7.joining import Asked
from wsrouter.policy.json_pointer import JsonPointer
from wsrouter.policy.members import Member
from wsrouter.relay.leg import Leg


@dataclass(frozen=True, slots=True)
class _Failure:
    """A backend could not join: it is left alone until then, unless the pool says before that it came back."""

    reason: str
    #: None: for good.
    until: float | None
    #: ``Member.since`` at that time.
    since: float | None


class Choice:
    """Chooses for one session, which begins at ``first`` and may be at ``fan_out`` backends."""

    __slots__ = (
        "_affinity",
        "_asked",
        "_client",
        "_config",
        "_dispatcher",
        "_failures",
        "_fan_out",
        "_pointer",
        "_pool",
    )

    def __init__(self, pool: BackendPool, asked: Asked, client: Leg, fan_out: int, first: Member) -> None:
        self._pool = pool
        self._asked = asked
        self._client = client
        self._fan_out = fan_out
        self._failures: dict[Member, _Failure] = {}
        self._learn(first)

    def _learn(self, first: Member | None = None) -> None:
        """Get to know the pool, as it is since the last reload."""
        pool = self._pool
        self._config = pool.config
        self._dispatcher = pool.dispatcher(first)
        self._affinity = affinity_of(pool, self._asked.request, self._client)
        key = pool.config.key
        self._pointer = JsonPointer(key.name) if key is not None and key.source is KeySource.JSON else None
        self._failures = {member: one for member, one in self._failures.items() if member in pool.members}

    @property
    def preface(self) -> bytes:
        """What opens the connection to a further backend."""
        return self._affinity.preface

    def pick(self, message: Outgoing, at: Collection[Member]) -> Member | None:
        """The backend for ``message`` of a session that is at the backends ``at``; None when no backend can have it."""
        if self._pool.config is not self._config:
            self._learn()
        key = self._affinity.key if self._pointer is None else self._pointer.key(message.payload)
        now = self._pool.relay.seconds()
        pick = self._dispatcher.pick
        member = pick(now, key, self._usable(now, at, message.tried))
        if member is None:
            # None is up. Who is at the session still may well serve; else who failed lately is asked once more.
            member = min([one for one in at if one not in message.tried], key=_unanswered, default=None)
        return member or pick(now, key, self._usable(inf, at, message.tried))

    def is_left(self, at: Collection[Member]) -> bool:
        """Whether there is a backend for a session that is at the backends ``at``."""
        return bool(at or self._usable(inf, at))

    def _usable(self, now: float, at: Collection[Member], tried: Collection[Member] = ()) -> set[Member]:
        """The backends that may have a message at ``now``; those that failed lately may not."""
        pool, failures = self._pool, self._failures
        more = len(at) < self._fan_out and not pool.retired and not pool.line.waiting
        usable = set()
        for member in pool.members:
            if member in at:
                fits = member.available
            elif fits := more and member.takes:
                failure = failures.get(member)
                if failure is not None and failure.since == member.since:
                    fits = failure.until is not None and now >= failure.until
            if fits and member not in tried:
                usable.add(member)
        return usable

    def failed(self, member: Member, reason: str, *, lasting: bool) -> None:
        """``member`` cannot join; with ``lasting`` it never will."""
        until = None if lasting else self._pool.relay.seconds() + self._pool.config.failure_time
        self._failures[member] = _Failure(reason, until, member.since)

    def story(self, message: Outgoing) -> str:
        """Why no backend can have ``message``."""
        known = [(member, self._failures.get(member)) for member in message.tried]
        return (
            ", ".join([f"{member.label} {failure.reason}" for member, failure in known if failure is not None])
            or self._pool.refusal().reason
        )


def _unanswered(member: Member) -> int:
    return member.unanswered
