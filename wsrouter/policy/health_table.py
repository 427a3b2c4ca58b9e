"""The health of all backends of a pool, and what holds for them together.

A few failed sessions say less than a check: a client may have asked for something odd, or the network had a moment.
So passive failures never take out the last backend that can be chosen; and where nothing else is left, because it went
down, was taken out by hand or is gone from the configuration, the ejected ones are tried again at once. Checks
may take down the last backend, too: nobody answers there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from wsrouter.config.values import Pool
from wsrouter.policy.health import Change, Hand, Health, Snapshot, State
from wsrouter.policy.members import Member

#: Hears of each change once, when ``member.available`` tells it already.
Observer: TypeAlias = Callable[[Member, Change], None]


class HealthTable:
    """The health of all members of one pool; it keeps their ``available`` and ``since``.

    Every change is told to the observers, once. What is reported of a member that has left the pool is ignored: its
    sessions may outlive it there.
    """

    def __init__(self, pool: Pool, members: Iterable[Member], now: float, changed: Observer | None = None) -> None:
        self._table = {member: Health(member.backend.label, pool, now) for member in members}
        self._observers: list[Observer] = [] if changed is None else [changed]

    def observe(self, observer: Observer) -> None:
        """Tell ``observer`` of every change from now on."""
        self._observers.append(observer)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._table)

    def __getitem__(self, member: Member) -> Health:
        return self._table[member]

    def get(self, member: Member) -> Health | None:
        """Its health; None once it has left the pool."""
        return self._table.get(member)

    # What sessions, checks, time and the operator report.

    def failure(self, member: Member, now: float, reason: str) -> None:
        """A session or request did not get through to ``member``."""
        health = self._table.get(member)
        if health is not None:
            alone = not any(_usable(other) for other in self._table if other is not member)
            self._apply(now, (member, health.failure(now, reason, alone)))

    def success(self, member: Member) -> None:
        """A session or request got through."""
        health = self._table.get(member)
        if health is not None:
            health.success()

    def passed(self, member: Member, now: float, rtt: float) -> None:
        """A check of ``member`` passed, with this round-trip time in seconds."""
        health = self._table.get(member)
        if health is not None:
            self._apply(now, (member, health.passed(now, rtt)))

    def failed(self, member: Member, now: float, reason: str) -> None:
        """A check of ``member`` failed."""
        health = self._table.get(member)
        if health is not None:
            self._apply(now, (member, health.failed(now, reason)))

    def by_hand(self, member: Member, now: float, hand: Hand) -> None:
        """The operator has spoken."""
        health = self._table.get(member)
        if health is not None:
            self._apply(now, (member, health.by_hand(now, hand)))

    def take_over(self, member: Member, now: float, state: State, why: str) -> None:
        """Another process, which probes for this one too, has ``member`` in ``state``.

        What was ejected here stays so while it is up there: its sessions failed here.
        """
        health = self._table.get(member)
        if health is not None and not (health.state is State.EJECTED and state is State.UP):
            self._apply(now, (member, health.take_over(now, state, why)))

    def due(self, now: float) -> None:
        """End the ejections whose time has come."""
        self._apply(now, *[(member, health.due(now)) for member, health in self._table.items()])

    def next_due(self) -> float | None:
        """When ``due`` has something to do next; None: nothing that is known yet."""
        return min((at for health in self._table.values() if (at := health.due_at) is not None), default=None)

    # The pool as a whole.

    def reconfigure(self, pool: Pool, members: Iterable[Member], now: float) -> None:
        """Take over a reload: members that stay keep their health, new ones are up."""
        known = self._table
        self._table = {member: known.get(member) or Health(member.backend.label, pool, now) for member in members}
        kept = [(member, health.reconfigure(pool, now)) for member, health in self._table.items() if member in known]
        self._apply(now, *kept, left=True)

    def snapshot(self, now: float) -> list[Snapshot]:
        """All there is to tell, in the pool's order."""
        return [health.snapshot(now) for health in self._table.values()]

    def _apply(self, now: float, *found: tuple[Member, Change | None], left: bool = False) -> None:
        """Carry out what has changed, all of it, and then tell. ``left``: members have gone, or lost their weight."""
        changes = [(member, change) for member, change in found if change is not None]
        _carry_out(changes)
        if (changes or left) and not any(map(_usable, self._table)):
            tried = [(member, health.last_resort(now)) for member, health in self._table.items() if member.weight > 0]
            more = [(member, change) for member, change in tried if change is not None]
            _carry_out(more)
            changes += more
        for member, change in changes:
            for observer in self._observers:
                observer(member, change)


def _carry_out(changes: Iterable[tuple[Member, Change]]) -> None:
    for member, change in changes:
        member.available = change.new is State.UP
        if member.available:
            member.since = change.now


def _usable(member: Member) -> bool:
    """Whether new sessions can be sent there. Backups can; one without weight is never chosen."""
    return member.available and member.weight > 0
