"""The health of all backends of a pool."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wsrouter.config.values import Backend, Check, CheckKind, Pool
from wsrouter.policy.health import Change, Hand, State
from wsrouter.policy.health_table import HealthTable
from wsrouter.policy.members import Member

UP, EJECTED, DOWN, DRAINED, OFF = State

CHECK = Check(CheckKind.TCP, rise=2, fall=3)


def backend(name: str, **more: Any) -> Backend:
    return Backend(name, 80, **more)


def pool(check: Check | None = CHECK, **more: Any) -> Pool:
    return Pool("app", (), check=check, **{"max_failures": 3, "failure_time": 10.0, **more})


UNCHECKED = pool(None)


def member(name: str, **more: Any) -> Member:
    return Member(backend(name, **more))


class Watcher:
    """A table, and what its observers were told."""

    def __init__(self, rules: Pool, *members: Member) -> None:
        self.told: list[str] = []
        self.table = HealthTable(rules, members, 0.0, self.changed)

    def changed(self, member: Member, change: Change) -> None:
        assert member.available == (change.new is UP)
        self.told.append(f"{change.label[0]} {change.old.value} -> {change.new.value}")

    def fail(self, member: Member, now: float = 1.0) -> None:
        for _ in range(3):
            self.table.failure(member, now, "refused")

    def fall(self, member: Member, now: float = 1.0) -> None:
        for _ in range(3):
            self.table.failed(member, now, "refused")


def test_members_are_available_while_they_are_up() -> None:
    a, b = member("a"), member("b")
    watcher = Watcher(UNCHECKED, a, b)
    assert list(watcher.table) == [a, b]
    watcher.fail(a)
    assert (a.available, a.since) == (False, None)
    assert watcher.table[a].state is EJECTED
    assert watcher.table.next_due() == 11.0
    watcher.table.due(11.0)
    assert (a.available, a.since) == (True, 11.0)
    assert watcher.told == ["a up -> ejected", "a ejected -> up"]
    assert watcher.table.next_due() is None
    watcher.table.success(a)
    watcher.table.failure(a, 13.0, "refused")
    assert a.available


def test_every_observer_is_told() -> None:
    a = member("a")
    table = HealthTable(pool(), [a], 0.0)
    told: list[State] = []
    for _ in range(2):
        table.observe(lambda member, change: told.append(change.new))
    table.by_hand(a, 1.0, Hand.DRAIN)
    assert told == [DRAINED, DRAINED]


@pytest.mark.parametrize(
    ("other", "ejected"), [({}, True), ({"backup": True}, True), ({"weight": 0}, False), (None, False)]
)
def test_one_that_can_be_chosen_must_stay(other: dict[str, Any] | None, ejected: bool) -> None:
    a = member("a")
    watcher = Watcher(UNCHECKED, a, *([] if other is None else [member("b", **other)]))
    watcher.fail(a)
    assert a.available != ejected


def test_checks_may_take_down_all() -> None:
    a, b = member("a"), member("b")
    watcher = Watcher(pool(), a, b)
    watcher.fall(a)
    watcher.fall(b)
    assert not a.available
    assert not b.available
    watcher.table.passed(a, 2.0, 0.1)
    watcher.table.passed(a, 3.0, 0.1)
    assert a.available
    assert watcher.told == ["a up -> down", "b up -> down", "a down -> up"]


@pytest.mark.parametrize("how", ["down", "drained", "removed", "no weight"])
def test_ejected_ones_are_tried_again_when_nobody_else_is_left(how: str) -> None:
    a, b, idle = member("a"), member("b"), member("c", weight=0)
    watcher = Watcher(pool(), a, b, idle)
    watcher.fail(idle)
    watcher.fail(a)
    watcher.told.clear()
    if how == "down":
        watcher.fall(b, 2.0)
    elif how == "drained":
        watcher.table.by_hand(b, 2.0, Hand.DRAIN)
    elif how == "removed":
        watcher.table.reconfigure(pool(), [a, idle], 2.0)
    else:
        b.reconfigure(backend("b", weight=0))
        watcher.table.reconfigure(pool(), [a, b, idle], 2.0)
    assert (a.available, a.since) == (True, 2.0)
    assert not idle.available
    assert watcher.told[-1] == "a ejected -> up"
    assert watcher.table[a].why == "tried again: no other backend is left"


def test_a_reload_keeps_the_health_of_those_who_stay() -> None:
    a, b, c = member("a"), member("b"), member("c")
    watcher = Watcher(pool(), a, b)
    watcher.fall(a)
    joined = Member(c.backend, since=5.0)
    watcher.table.reconfigure(pool(), [joined, a], 5.0)
    assert list(watcher.table) == [joined, a]
    assert not a.available
    assert (joined.available, joined.since) == (True, 5.0)
    assert [told.state for told in watcher.table.snapshot(6.0)] == [UP, DOWN]
    watcher.table.reconfigure(UNCHECKED, [joined, a], 7.0)
    assert (a.available, a.since) == (True, 7.0)
    assert watcher.told == ["a up -> down", "a down -> up"]


def test_what_is_told_of_one_who_left_is_ignored() -> None:
    a, gone = member("a"), member("b")
    watcher = Watcher(pool(), a)
    watcher.fail(gone)
    watcher.fall(gone)
    watcher.table.success(gone)
    watcher.table.passed(gone, 1.0, 0.1)
    watcher.table.by_hand(gone, 1.0, Hand.DOWN)
    assert watcher.told == []
    assert gone.available
    assert watcher.table.get(gone) is None
    assert watcher.table.get(a) is watcher.table[a]


class Life(RuleBasedStateMachine):
    """A pool to which anything happens, in any order."""

    @initialize(checked=st.booleans(), weights=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def begin(self, checked: bool, weights: list[int]) -> None:
        self.now = 0.0
        self.rules = pool(CHECK if checked else None)
        self.members = [member("abcd"[at], weight=weight) for at, weight in enumerate(weights)]
        self.all = list(self.members)
        self.states = dict.fromkeys(self.all, UP)
        self.table = HealthTable(self.rules, self.members, 0.0, self.changed)

    def changed(self, member: Member, change: Change) -> None:
        # Told once: each change begins where the last one ended.
        assert change.old is self.states[member]
        assert change.new is not change.old
        assert change.reason
        assert change.now == self.now
        self.states[member] = change.new
        if change.new is UP:
            assert member.since == self.now

    @rule(at=st.integers(0, 3), times=st.integers(1, 4))
    def fail(self, at: int, times: int) -> None:
        for _ in range(times):
            self.table.failure(self.all[at % len(self.all)], self.now, "refused")

    @rule(at=st.integers(0, 3))
    def succeed(self, at: int) -> None:
        self.table.success(self.all[at % len(self.all)])

    @rule(at=st.integers(0, 3), passes=st.lists(st.booleans(), min_size=1, max_size=3))
    def check(self, at: int, passes: list[bool]) -> None:
        for passed in passes:
            one = self.all[at % len(self.all)]
            if passed:
                self.table.passed(one, self.now, 0.1)
            else:
                self.table.failed(one, self.now, "refused")

    @rule(at=st.integers(0, 3), hand=st.sampled_from(Hand))
    def by_hand(self, at: int, hand: Hand) -> None:
        self.table.by_hand(self.all[at % len(self.all)], self.now, hand)

    @rule(seconds=st.floats(0.0, 12.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.table.due(self.now)
        due = self.table.next_due()
        assert due is None or due > self.now

    @precondition(lambda self: len(self.members) > 1)
    @rule(checked=st.booleans(), failures=st.integers(0, 3))
    def reload(self, checked: bool, failures: int) -> None:
        self.rules = pool(CHECK if checked else None, max_failures=failures)
        self.members.pop(0)
        self.table.reconfigure(self.rules, self.members, self.now)

    @invariant()
    def nobody_is_ejected_where_nobody_is_left(self) -> None:
        if not any(one.available and one.weight for one in self.members):
            assert not any(one.weight and self.table[one].state is EJECTED for one in self.members)

    @invariant()
    def available_means_up(self) -> None:
        for one in self.members:
            assert one.available == (self.table[one].state is UP)
            assert self.table[one].state is self.states[one]

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        for one in self.members:
            health = self.table[one]
            assert len(health._failures) <= self.rules.max_failures
            assert health._rises < CHECK.rise
            assert health._falls < CHECK.fall


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase


# Another process probes.


def test_what_another_process_knows_is_taken_over_and_told_once() -> None:
    a, b = member("a"), member("b")
    watcher = Watcher(pool(), a, b)
    watcher.table.take_over(a, 1.0, DOWN, "refused (3 failed checks)")
    watcher.table.take_over(a, 2.0, DOWN, "refused (4 failed checks)")
    assert watcher.told == ["a up -> down"]
    assert not a.available
    (one, _) = watcher.table.snapshot(2.0)
    assert (one.why, one.since) == ("refused (3 failed checks)", 1.0)
    watcher.table.take_over(a, 3.0, UP, "2 passed checks")
    assert watcher.told[1:] == ["a down -> up"]
    assert a.available
    watcher.table.take_over(member("c"), 3.0, DOWN, "it has left the pool")
    assert len(watcher.told) == 2


def test_what_was_ejected_here_stays_so_while_it_is_up_there() -> None:
    a, b = member("a"), member("b")
    watcher = Watcher(pool(), a, b)
    watcher.fail(a)
    watcher.table.take_over(a, 2.0, UP, "")
    assert watcher.told == ["a up -> ejected"]
    watcher.table.take_over(a, 2.0, DOWN, "refused")
    watcher.table.take_over(a, 3.0, UP, "2 passed checks")
    assert watcher.told[1:] == ["a ejected -> down", "a down -> up"]
