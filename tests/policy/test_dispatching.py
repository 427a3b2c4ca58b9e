from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config.values import Backend, Balance, Pool
from wsrouter.policy.balancing import balancer_for
from wsrouter.policy.dispatching import Dispatcher
from wsrouter.policy.members import Member


def member(name: str, weight: int = 1, backup: bool = False, max_sessions: int | None = None) -> Member:
    return Member(Backend(name, 80, weight=weight, backup=backup, max_sessions=max_sessions))


def dispatcher(balance: Balance, *members: Member, first: Member | None = None) -> Dispatcher:
    pool = Pool("app", tuple(one.backend for one in members), balance=balance)
    return Dispatcher(pool, members, balancer_for(pool, members, Random(1)), Random(1), first)


EVERY = pytest.mark.parametrize("balance", Balance)


@given(st.integers(1, 6), st.integers(0, 5), st.data())
def test_by_turns_all_that_are_there_get_equally_much_whoever_leaves(count: int, at: int, data) -> None:
    members = [member(str(number)) for number in range(count)]
    chooser = dispatcher(Balance.ROUND_ROBIN, *members, first=members[at % count])
    usable = set(members)
    counts: Counter[Member] = Counter()
    for step in range(data.draw(st.integers(1, 40))):
        gone = data.draw(st.none() | st.sampled_from(members))
        if gone is not None and len(usable) > 1:
            usable.discard(gone)
        chosen = chooser.pick(0.0, None, usable)
        assert chosen in usable
        assert step or chosen is members[at % count] or gone is members[at % count]
        counts[chosen] += 1
    stayed = [counts[one] for one in usable]
    assert max(stayed) - min(stayed) <= 1


def test_weights_count() -> None:
    heavy, light = member("a", weight=3), member("b")
    chooser = dispatcher(Balance.ROUND_ROBIN, light, heavy)
    assert Counter(chooser.pick(0.0, None, {heavy, light}) for _ in range(400)) == {heavy: 300, light: 100}


def test_the_one_with_the_fewest_messages_unanswered_is_next_and_equal_ones_take_turns() -> None:
    members = [member(name) for name in "abc"]
    chooser = dispatcher(Balance.LEAST_SESSIONS, *members, first=members[1])
    turns = [chooser.pick(0.0, None, members) for _ in range(6)]
    assert turns == [*members[1:], *members, members[0]][:3] * 2
    members[0].unanswered = members[2].unanswered = 2
    # Sessions are no measure.
    members[1].live = 100
    for _ in range(2):
        assert chooser.pick(0.0, None, members) is members[1]
        members[1].unanswered += 1
    assert chooser.pick(0.0, None, {members[0]}) is members[0]


def test_of_two_drawn_the_one_with_fewer_unanswered_is_next() -> None:
    busy, free = member("a"), member("b")
    busy.unanswered = 5
    chooser = dispatcher(Balance.RANDOM_TWO, busy, free)
    assert {chooser.pick(0.0, None, {busy, free}) for _ in range(50)} == {free}


def test_first_keeps_to_the_order_of_the_file() -> None:
    members = [member(name) for name in "abc"]
    chooser = dispatcher(Balance.FIRST, *members, first=members[2])
    assert chooser.pick(0.0, None, members) is members[0]
    assert chooser.pick(0.0, None, members[1:]) is members[1]


def test_a_key_has_the_backend_that_the_pool_gives_it_and_another_only_while_that_is_gone() -> None:
    members = [member(str(number)) for number in range(5)]
    pool = Pool("app", tuple(one.backend for one in members), balance=Balance.HASH)
    ring = balancer_for(pool, members, Random(1))
    choosers = [Dispatcher(pool, members, ring, Random(1), first) for first in members]
    keys = [b"%d" % number for number in range(100)]
    homes = {key: ring.pick(0.0, key) for key in keys}
    for key in keys:
        assert {chooser.pick(0.0, key, members) for chooser in choosers} == {homes[key]}
    left = members[1:]
    moved = {key: choosers[0].pick(0.0, key, left) for key in keys}
    assert all(moved[key] is homes[key] for key in keys if homes[key] is not members[0])
    assert len({moved[key] for key in keys if homes[key] is members[0]}) > 1


def test_who_has_a_session_at_its_backend_needs_no_further_place_there() -> None:
    full, other = member("a", max_sessions=1), member("b", max_sessions=1)
    full.live = 1
    for balance in (Balance.ROUND_ROBIN, Balance.LEAST_SESSIONS, Balance.RANDOM_TWO, Balance.FIRST):
        assert dispatcher(balance, full, other).pick(0.0, None, {full}) is full
    chooser = dispatcher(Balance.HASH, full, other)
    assert {chooser.pick(0.0, b"%d" % number, {full, other}) for number in range(50)} == {full, other}


def test_messages_without_a_key_take_turns() -> None:
    members = [member(name) for name in "abc"]
    chooser = dispatcher(Balance.HASH, *members)
    for key in (None, b""):
        assert Counter(chooser.pick(0.0, key, members) for _ in range(9)) == dict.fromkeys(members, 3)


@EVERY
def test_a_backup_has_messages_only_while_no_other_can_and_weight_0_never(balance: Balance) -> None:
    primary, backup, unused = member("a"), member("b", backup=True), member("c", weight=0)
    chooser = dispatcher(balance, primary, backup, unused)

    def chosen(*usable: Member) -> set[Member | None]:
        return {chooser.pick(0.0, b"%d" % number, set(usable)) for number in range(30)}

    assert chosen(primary, backup, unused) == {primary}
    assert chosen(backup, unused) == {backup}
    assert chosen(unused) == chosen() == {None}


@EVERY
def test_nobody_is_chosen_from_nobody(balance: Balance) -> None:
    assert dispatcher(balance, member("c", weight=0)).pick(0.0, b"key", ()) is None
