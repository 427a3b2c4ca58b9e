"""Balancers that look at no load: in turn, or the first."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config.values import Backend
from wsrouter.policy.balancing import Balancer
from wsrouter.policy.members import Member
from wsrouter.policy.turns import Credits, First, Rotation, round_robin


def members(*weights: int, **words: int | None) -> list[Member]:
    """Members a, b, c and so on with these weights."""
    return [
        Member(Backend(name, 80, weight=weight, **words)) for name, weight in zip("abcdefgh", weights, strict=False)
    ]


def picks(balancer: Balancer, count: int, *excluded: Member, now: float = 0.0) -> str:
    found = (balancer.pick(now, None, excluded) for _ in range(count))
    return "".join(one.backend.host if one else "-" for one in found)


def test_equal_weights_take_turns() -> None:
    balancer = round_robin(members(2, 2, 2))
    assert isinstance(balancer, Rotation)
    assert picks(balancer, 7) == "abcabca"


def test_weights_are_spread_out_as_nginx_spreads_them() -> None:
    assert picks(round_robin(members(5, 1, 1)), 14) == "aabacaaaabacaa"


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 2, 1)])
def test_an_excluded_member_is_passed_over(weights: tuple[int, int, int]) -> None:
    a, b, c = members(*weights)
    counts = Counter(picks(round_robin([a, b, c]), (weights[0] + weights[2]) * 10, b))
    assert counts == {"a": weights[0] * 10, "c": weights[2] * 10}


@pytest.mark.parametrize("weights", [(1, 1), (1, 2)])
def test_a_full_member_is_passed_over_until_a_session_ends(weights: tuple[int, int]) -> None:
    a, b = members(*weights, max_sessions=2)
    balancer = round_robin([a, b])
    assert set(picks(balancer, 6)) == {"a", "b"}
    a.live = 2
    assert picks(balancer, 4) == "bbbb"
    a.live = 1
    assert set(picks(balancer, 6)) == {"a", "b"}


@pytest.mark.parametrize("slow_start", [0.0, 10.0])
@pytest.mark.parametrize("weights", [(1, 1), (1, 2)])
def test_none_is_left_when_all_are_down_or_excluded(weights: tuple[int, int], slow_start: float) -> None:
    a, b = members(*weights)
    a.available = False
    assert picks(round_robin([a, b], slow_start), 2, b) == "--"
    assert picks(round_robin([], slow_start), 1) == "-"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_one_round_gives_each_member_its_weight(weights: list[int]) -> None:
    all_of_them = members(*weights)
    balancer = round_robin(all_of_them)
    for _ in range(2):
        counts = Counter(balancer.pick(0.0) for _ in range(sum(weights)))
        assert counts == {member: member.weight for member in all_of_them}


@pytest.mark.parametrize(("now", "newcomers"), [(100.0, 1), (105.0, 5), (125.0, 25), (150.0, 50), (200.0, 100)])
@pytest.mark.parametrize("kind", [Rotation, Credits])
def test_a_member_in_slow_start_gets_a_part_of_its_turns(
    kind: type[Rotation] | type[Credits], now: float, newcomers: int
) -> None:
    a, b, c = members(1, 1, 1)
    b.since = 100.0
    counts = Counter(picks(kind([a, b, c], 100.0), 200 + newcomers, now=now))
    assert counts["b"] == pytest.approx(newcomers, abs=1)
    assert counts["a"] == pytest.approx(counts["c"], abs=1)


@pytest.mark.parametrize("weights", [(2, 2, 2), (4, 2, 1)])
def test_after_slow_start_all_is_as_without(weights: tuple[int, int, int]) -> None:
    late = members(*weights)
    for member in late:
        member.since = 100.0
    assert picks(round_robin(late, 10.0), 14, now=110.0) == picks(round_robin(members(*weights)), 14)


@pytest.mark.parametrize("weights", [(1, 1), (1, 2)])
def test_members_that_are_all_in_slow_start_serve_at_once(weights: tuple[int, int]) -> None:
    a, b = members(*weights)
    a.since, b.since = 0.0, 50.0
    counts = Counter(picks(round_robin([a, b], 100.0), 300, now=100.0))
    assert counts["a"] == pytest.approx(300 * weights[0] / (weights[0] + weights[1] / 2), abs=1)
    assert picks(round_robin([a, b], 100.0), 3, a, now=50.0) == "bbb"


def test_serving_in_slow_start_leaves_no_debt() -> None:
    a, b, c = members(1, 1, 1)
    a.since = b.since = 0.0
    c.available = False
    balancer = round_robin([a, b, c], 100.0)
    assert Counter(picks(balancer, 1000, now=1.0)) == {"a": 500, "b": 500}
    c.available = True
    assert Counter(picks(balancer, 400, now=50.0))["a"] == pytest.approx(100, abs=2)


def test_who_refuses_does_not_gain_turns_meanwhile() -> None:
    a, b = members(1, 1)
    b.since = 0.0
    balancer = round_robin([a, b], 100.0)
    b.available = False
    assert picks(balancer, 50, now=50.0) == "a" * 50
    b.available = True
    assert Counter(picks(balancer, 30, now=50.0))["b"] == pytest.approx(10, abs=1)


@given(st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.floats(0, 30)), max_size=40), st.permutations([1, 1, 5]))
def test_what_is_picked_can_take_it_and_is_always_found(
    turns: list[tuple[set[str], float]], weights: list[int]
) -> None:
    for group in (members(1, 1, 1), members(*weights)):
        group[1].since, group[2].since = 3.0, 10.0
        balancer = round_robin(group, 10.0)
        for names, now in turns:
            found = balancer.pick(now, None, {member for member in group if member.backend.host in names})
            left = set("abc") - names
            assert (found.backend.host in left) if found else not left


def test_the_first_fills_up_before_the_next_is_used() -> None:
    a, b, c = group = members(1, 9, 1, max_sessions=2)
    balancer = First(group)
    taken = []
    for _ in range(7):
        found = balancer.pick(0.0)
        taken.append(found)
        if found:
            found.live += 1
    assert taken == [a, a, b, b, c, c, None]
    a.live = 1
    assert balancer.pick(0.0) is a
    b.live = 1
    assert balancer.pick(0.0, None, [a]) is b
    a.available = False
    assert balancer.pick(0.0) is b


def test_the_first_knows_no_slow_start() -> None:
    a, b = members(1, 1)
    a.since = 0.0
    assert picks(First([a, b]), 3, now=0.0) == "aaa"
