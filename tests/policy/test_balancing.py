"""Which backend takes the next session."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config.values import Backend
from wsrouter.policy.balancing import Balancer, RoundRobin


def backend(name: str, weight: int = 1, max_sessions: int | None = None, backup: bool = False) -> Backend:
    return Backend(host=name, port=80, weight=weight, max_sessions=max_sessions, backup=backup)


A, B, C = backend("a"), backend("b"), backend("c")


def picks(balancer: Balancer, count: int, *excluded: Backend, live: dict[Backend, int] | None = None) -> str:
    found = (balancer.pick(excluded, live) for _ in range(count))
    return "".join(one.host if one else "-" for one in found)


def test_equal_weights_take_turns() -> None:
    assert picks(RoundRobin([A, B, C]), 7) == "abcabca"


def test_weights_are_spread_out_as_nginx_spreads_them() -> None:
    assert picks(RoundRobin([backend("a", 5), B, C]), 14) == "aabacaaaabacaa"


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 2, 1)])
def test_an_excluded_backend_is_passed_over(weights: tuple[int, int, int]) -> None:
    a, b, c = (backend(name, weight) for name, weight in zip("abc", weights, strict=True))
    balancer = RoundRobin([a, b, c])
    counts = Counter(picks(balancer, (weights[0] + weights[2]) * 10, b))
    assert counts == {"a": weights[0] * 10, "c": weights[2] * 10}


@pytest.mark.parametrize("weight", [1, 2])
def test_a_full_backend_is_passed_over_until_a_session_ends(weight: int) -> None:
    a = backend("a", max_sessions=2)
    b = backend("b", weight)
    balancer = RoundRobin([a, b])
    assert set(picks(balancer, 6, live={a: 1, b: 900})) == {"a", "b"}
    assert picks(balancer, 4, live={a: 2, b: 900}) == "bbbb"
    assert set(picks(balancer, 6, live={b: 900})) == {"a", "b"}


@pytest.mark.parametrize("weight", [1, 2])
def test_none_is_left_when_all_are_full_or_excluded(weight: int) -> None:
    a, b = backend("a", max_sessions=1), backend("b", weight)
    assert picks(RoundRobin([a, b]), 2, b, live={a: 1}) == "--"
    assert picks(RoundRobin([]), 1) == "-"


def test_backups_wait_until_no_other_backend_can_be_chosen() -> None:
    spare, extra = backend("s", backup=True), backend("x", backup=True)
    a = backend("a", max_sessions=1)
    balancer = RoundRobin([spare, a, B, extra])
    assert picks(balancer, 4) == "abab"
    assert picks(balancer, 2, B) == "aa"
    assert picks(balancer, 3, B, live={a: 1}) == "sxs"
    assert picks(balancer, 1, B, spare, extra, live={a: 1}) == "-"
    assert picks(balancer, 2) == "ba"


def test_a_pool_of_backups_works() -> None:
    assert picks(RoundRobin([backend("s", backup=True)]), 2) == "ss"


def test_weight_0_takes_nothing() -> None:
    assert picks(RoundRobin([backend("a", 0), B]), 3) == "bbb"
    assert picks(RoundRobin([backend("a", 0)]), 1) == "-"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_one_round_gives_each_backend_its_weight(weights: list[int]) -> None:
    balancer = RoundRobin([backend(str(at), weight) for at, weight in enumerate(weights)])
    for _ in range(2):
        counts = Counter(balancer.pick() for _ in range(sum(weights)))
        assert {b.host: n for b, n in counts.items() if b} == {str(at): weight for at, weight in enumerate(weights)}


@given(st.lists(st.sets(st.sampled_from("abcd")), max_size=40), st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_what_is_picked_is_never_excluded_and_always_found(excluded: list[set[str]], weights: list[int]) -> None:
    backends = {name: backend(name, weight, backup=name == "d") for name, weight in zip("abcd", weights, strict=True)}
    balancer = RoundRobin(list(backends.values()))
    for names in excluded:
        found = balancer.pick({backends[name] for name in names})
        left = set("abc") - names or set("d") - names
        assert (found.host in left) if found else not left
