"""Balancers that look at how much each backend has to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.watched import Watched
from wsrouter.config.values import Backend
from wsrouter.policy.balancing import Balancer
from wsrouter.policy.load import TRIES, LeastSessions, RandomTwo
from wsrouter.policy.members import Member


def members(*weights: int, **words: int | None) -> list[Member]:
    """Members 0, 1, 2 and so on with these weights."""
    return [Member(Backend(str(at), 80, weight=weight, **words)) for at, weight in enumerate(weights)]


def serve(balancer: Balancer, count: int, now: float = 0.0) -> Counter[Member]:
    """Take ``count`` sessions that all live on; return how many each member got."""
    taken: Counter[Member] = Counter()
    for _ in range(count):
        found = balancer.pick(now)
        assert found is not None
        found.live += 1
        taken[found] += 1
    return taken


def random_two(group: list[Member], slow_start: float = 0.0) -> RandomTwo:
    return RandomTwo(group, Random(7), slow_start)


BOTH = pytest.mark.parametrize("make", [LeastSessions, random_two])


def test_equal_members_take_turns() -> None:
    a, b, c = group = members(1, 1, 1)
    balancer = LeastSessions(group)
    assert [balancer.pick(0.0) for _ in range(6)] == [a, b, c, a, b, c]
    b.live = 1
    assert [balancer.pick(0.0) for _ in range(4)] == [a, c, a, c]


def test_the_least_loaded_is_chosen_until_it_is_level() -> None:
    a, b, c = group = members(1, 1, 1)
    a.live, b.live, c.live = 5, 2, 4
    assert serve(LeastSessions(group), 7) == {b: 4, c: 2, a: 1}


def test_load_is_measured_by_weight() -> None:
    a, b, c = group = members(5, 3, 2)
    assert serve(LeastSessions(group), 100) == {a: 50, b: 30, c: 20}


def test_the_heavier_of_two_empty_members_comes_first() -> None:
    light, heavy = members(1, 2)
    assert LeastSessions([light, heavy]).pick(0.0) is heavy
    assert random_two([light, heavy]).pick(0.0) is heavy


@BOTH
def test_who_is_full_down_or_excluded_is_passed_over(make: Callable[[list[Member]], Balancer]) -> None:
    a, b, c = group = members(1, 1, 1, max_sessions=9)
    balancer = make(group)
    a.available = False
    b.live = 8
    assert {balancer.pick(0.0) for _ in range(20)} == {c}
    assert balancer.pick(0.0, None, [c]) is b
    b.live = 9
    assert balancer.pick(0.0, None, [c]) is None
    assert make([]).pick(0.0) is None


@BOTH
@pytest.mark.parametrize("down", [0, 90, 99])
def test_one_of_many_is_found_however_many_are_down(make: Callable[[list[Member]], Balancer], down: int) -> None:
    group = members(*[1] * 100)
    for member in group[:down]:
        member.available = False
    taken = serve(make(group), 1000)
    assert set(taken) == set(group[down:])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=6), st.sets(st.integers(0, 5)))
def test_what_is_picked_can_take_it_and_is_always_found(state: list[tuple[int, int, bool]], excluded: set[int]) -> None:
    group = members(*(weight for weight, _, _ in state), max_sessions=5)
    for member, (_, live, late) in zip(group, state, strict=True):
        member.live, member.since = live, 0.0 if late else None
    out = [member for at, member in enumerate(group) if at in excluded]
    able = {member for member in group if member.takes and member not in out}
    for balancer in (LeastSessions(group, 10.0), random_two(group, 10.0)):
        for now in (1.0, 5.0, 20.0):
            found = balancer.pick(now, None, out)
            assert (found in able) if found else not able


def test_two_are_drawn_by_weight() -> None:
    group = members(6, 3, 1)
    balancer = random_two(group)
    drawn = Counter(balancer._draw(0.0, (), -1) for _ in range(10_000))
    assert [drawn[at] / 10_000 for at in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.02)
    others = Counter(balancer._draw(0.0, (), 0) for _ in range(10_000))
    assert [others[at] / 10_000 for at in range(3)] == pytest.approx([0.0, 0.75, 0.25], abs=0.02)


def test_the_count_draws_as_the_blind_draws_do() -> None:
    group = members(6, 3, 1)
    group[0].since = 0.0
    balancer = random_two(group, 10.0)
    for drawn in (balancer._draw, balancer._draw_counted):
        counts = Counter(drawn(5.0, (), -1) for _ in range(10_000))
        assert [counts[at] / 10_000 for at in range(3)] == pytest.approx([3 / 7, 3 / 7, 1 / 7], abs=0.02)


def test_two_are_always_different() -> None:
    busy, idle = members(50, 1)
    busy.live = 500
    assert {random_two([busy, idle]).pick(0.0) for _ in range(50)} == {idle}


def test_the_worst_of_all_is_never_chosen_and_loads_stay_close() -> None:
    group = members(*[1] * 50)
    group[9].live = 1000
    taken = serve(random_two(group), 4900)
    assert group[9] not in taken
    assert max(taken.values()) - min(taken.values()) <= 6


@pytest.mark.parametrize("size", [10, 100, 1000])
@pytest.mark.interpreted
def test_drawing_costs_no_more_in_a_large_pool(size: int) -> None:
    group: list[Member] = [Watched(Backend(str(at), 80)) for at in range(size)]
    for member in group[::10]:
        member.available = False
    balancer = random_two(group)
    Watched.looks = 0
    for _ in range(100):
        balancer.pick(0.0)
    assert Watched.looks <= 100 * TRIES


@pytest.mark.parametrize("seconds", [0.0, 1.0, 15.0, 30.0, 45.0, 60.0, 1000.0])
@pytest.mark.parametrize("weight", [1, 4])
def test_a_newcomer_follows_the_others_up_the_ramp(seconds: float, weight: int) -> None:
    a, b, newcomer = group = members(1, 1, weight)
    a.live = b.live = 500
    newcomer.since = 0.0
    balancer = LeastSessions(group, 60.0)
    serve(balancer, 5000, now=seconds)
    part = min(1.0, max(0.01, seconds / 60.0))
    assert newcomer.live == pytest.approx(weight * part * a.live, abs=weight + 1)


def test_without_slow_start_every_new_session_goes_to_the_newcomer() -> None:
    a, b, newcomer = group = members(1, 1, 1)
    a.live = b.live = 500
    newcomer.since = 0.0
    assert serve(LeastSessions(group), 499) == {newcomer: 499}


def test_draws_refused_in_slow_start_go_to_the_others() -> None:
    a, b, newcomer = group = members(1, 1, 1)
    a.live = b.live = 500
    newcomer.since = 0.0
    assert serve(random_two(group, 60.0), 400, now=6.0)[newcomer] == pytest.approx(400 * 0.14, abs=20)


def test_members_that_are_all_in_slow_start_serve_at_once() -> None:
    group = members(1, 1)
    for member in group:
        member.since = 0.0
    assert serve(LeastSessions(group, 60.0), 10) == dict.fromkeys(group, 5)
    assert set(serve(random_two(group, 60.0), 10)) == set(group)
