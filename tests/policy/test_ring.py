"""Consistent hashing."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.watched import Watched
from wsrouter.config.values import Backend
from wsrouter.policy.members import Member
from wsrouter.policy.ring import MOST_POINTS, STEPS, ConsistentHash

KEYS = [b"10.%d.%d.7" % (at >> 8, at & 255) for at in range(100_000)]


def members(count: int, weight: int = 1) -> list[Member]:
    return [Member(Backend(f"10.1.0.{at}", 8080, weight=weight)) for at in range(count)]


def owners(balancer: ConsistentHash, keys: Iterable[bytes], excluded: tuple[Member, ...] = ()) -> list[Member | None]:
    pick = balancer.pick
    return [pick(0.0, key, excluded) for key in keys]


@pytest.fixture(scope="module")
def hundred() -> tuple[list[Member], list[Member | None]]:
    """A hundred members, and who has each of the keys."""
    group = members(100)
    return group, owners(ConsistentHash(group), KEYS)


def test_loads_are_even(hundred: tuple[list[Member], list[Member | None]]) -> None:
    group, homes = hundred
    loads = Counter(homes)
    assert set(loads) == set(group)
    assert max(loads.values()) <= 1.25 * len(KEYS) / 100
    assert min(loads.values()) >= 0.75 * len(KEYS) / 100


def test_a_member_that_leaves_moves_its_own_keys_only(hundred: tuple[list[Member], list[Member | None]]) -> None:
    group, homes = hundred
    loads = Counter(homes)
    # So what moves when any one leaves is its own share ...
    assert max(loads.values()) <= 1.2 * len(KEYS) / 100
    # ... as these show, the largest among them, with the keys going to nearly all of the others.
    for gone in (group[0], group[57], loads.most_common(1)[0][0]):
        after = owners(ConsistentHash([member for member in group if member is not gone]), KEYS)
        moved = [new for home, new in zip(homes, after, strict=True) if home is not new]
        assert len(moved) == loads[gone]
        assert len(set(moved)) > 90


@pytest.mark.parametrize("gone", [0, 31, 99])
def test_down_excluded_and_removed_are_the_same(hundred: tuple[list[Member], list[Member | None]], gone: int) -> None:
    group, _ = hundred
    keys = KEYS[::20]
    balancer = ConsistentHash(group)
    removed = owners(ConsistentHash(group[:gone] + group[gone + 1 :]), keys)
    assert owners(balancer, keys, (group[gone],)) == removed
    group[gone].available = False
    try:
        assert owners(balancer, keys) == removed
    finally:
        group[gone].available = True


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.sets(st.integers(0, 5)),
    st.lists(st.binary(min_size=1), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_neither_who_is_gone_nor_the_order_in_the_file_matters(
    weights: list[int], gone: set[int], keys: list[bytes], random: Random
) -> None:
    group = [Member(Backend(str(at), 80, weight=weight)) for at, weight in enumerate(weights)]
    left = [member for at, member in enumerate(group) if at not in gone]
    balancer = ConsistentHash(random.sample(group, len(group)))
    out = tuple(member for member in group if member not in left)
    expected = owners(ConsistentHash(left), keys)
    assert owners(balancer, keys, out) == expected
    for member in out:
        member.available = False
    assert owners(balancer, keys) == expected


def test_the_last_ones_left_are_found_as_if_they_had_been_alone() -> None:
    group = members(300)
    balancer = ConsistentHash(group)
    left = [group[7], group[200]]
    out = tuple(member for member in group if member not in left)
    assert owners(balancer, KEYS[:300], out) == [walked(balancer, key, left) for key in KEYS[:300]]
    assert balancer.pick(0.0, b"key", tuple(group)) is None


def walked(balancer: ConsistentHash, key: bytes, left: list[Member]) -> Member:
    """Who of ``left`` is next on the ring, however long the way."""
    at = balancer._next_point(int.from_bytes(blake2b(key, digest_size=4, person=b"wsrouter key").digest(), "little"))
    while balancer._owners[at] not in left:
        at = (at + 1) % len(balancer._owners)
    return balancer._owners[at]


def test_weights_are_honoured() -> None:
    heavy, light = (Member(Backend(name, 80, weight=weight)) for name, weight in (("heavy", 3), ("light", 1)))
    counts = Counter(owners(ConsistentHash([heavy, light]), KEYS[:20_000]))
    assert counts[heavy] / 20_000 == pytest.approx(0.75, abs=0.05)


def test_without_a_key_sessions_take_turns() -> None:
    a, b = group = members(2)
    balancer = ConsistentHash(group)
    assert [balancer.pick(0.0, key) for key in (None, b"", None, b"")] == [a, b, a, b]
    assert ConsistentHash([]).pick(0.0, b"key") is None


def test_a_full_member_leaves_its_keys_to_others_and_gets_them_back() -> None:
    a, b = (Member(Backend(name, 80, max_sessions=1)) for name in "ab")
    balancer = ConsistentHash([a, b])
    home = balancer.pick(0.0, b"key")
    assert home is not None
    home.live = 1
    assert balancer.pick(0.0, b"key") is (b if home is a else a)
    home.live = 0
    assert balancer.pick(0.0, b"key") is home


def test_keys_stay_where_they_were_in_every_version() -> None:
    """A change here sends every client of a running installation elsewhere, and routers of two versions disagree."""
    group = [
        Member(Backend("127.0.0.1", 2222)),
        Member(Backend("app.internal", 3333, weight=2)),
        Member(Backend("::1", 80)),
        Member(Backend("", 0, unix="/run/app.sock")),
    ]
    balancer = ConsistentHash(group)
    homes = {
        b"192.0.2.1": "unix:/run/app.sock",
        b"192.0.2.2": "127.0.0.1:2222",
        b"2001:db8::/64": "[::1]:80",
        b"/chat": "app.internal:3333",
        b"alice": "127.0.0.1:2222",
        b"bob": "unix:/run/app.sock",
        b"carol": "unix:/run/app.sock",
        b"\x00\xff": "app.internal:3333",
    }
    found = {key: balancer.pick(0.0, key) for key in homes}
    assert {key: member and member.backend.label for key, member in found.items()} == homes


def test_points_are_bounded_however_large_the_pool() -> None:
    for group in (members(2, weight=1_000_000), members(1000), members(300, weight=256)):
        balancer = ConsistentHash(group)
        assert len(balancer._owners) <= MOST_POINTS + 1
        assert {len(own) for _, own in balancer._own_points} == {(len(balancer._owners) - 1) // len(group)}


def test_a_member_of_little_weight_keeps_a_point() -> None:
    small, large = (Member(Backend(name, 80, weight=weight)) for name, weight in (("small", 1), ("large", 10**9)))
    balancer = ConsistentHash([small, large])
    assert [len(own) for _, own in balancer._own_points][1] == 1
    assert balancer.pick(0.0, b"key", (large,)) is small


def test_places_at_the_ends_of_the_ring_have_owners() -> None:
    balancer = ConsistentHash(members(3))
    last = len(balancer._owners) - 1
    assert balancer._next_point(0) == 0
    assert balancer._next_point((1 << 32) - 1) == last
    assert balancer._owners[last] is balancer._owners[0]


class Counting:
    """A list that counts how often it is read."""

    def __init__(self, values: array[int]) -> None:
        self.values = values
        self.reads = 0

    def __getitem__(self, at: int) -> int:
        self.reads += 1
        return self.values[at]


@pytest.mark.parametrize("size", [1, 10, 100, 1000])
def test_finding_a_point_costs_no_more_in_a_large_pool(size: int) -> None:
    balancer: Any = ConsistentHash(members(size))
    balancer._points = counting = Counting(balancer._points)
    most = 0
    for key in KEYS[:2000]:
        counting.reads = 0
        balancer.pick(0.0, key)
        most = max(most, counting.reads)
    assert most <= 12


@pytest.mark.parametrize(("up", "most"), [(100, 1), (50, 30), (1, STEPS + 100), (0, STEPS + 100)])
@pytest.mark.interpreted
def test_passing_over_others_is_bounded(up: int, most: int) -> None:
    group = [Watched(Backend(f"10.1.0.{at}", 8080)) for at in range(100)]
    balancer = ConsistentHash(group)
    for member in group[up:]:
        member.available = False
    for key in KEYS[:200]:
        Watched.looks = 0
        assert (balancer.pick(0.0, key) is None) is (up == 0)
        assert Watched.looks <= most


def test_of_some_members_the_owner_is_who_has_the_key_while_the_others_are_gone() -> None:
    group = members(7)
    balancer = ConsistentHash(group)
    for member in group:
        member.available = False
    for key in KEYS[:200]:
        assert balancer.owner(key, ()) is None
    for among in (group, group[3:], group[:1]):
        found = [balancer.owner(key, among) for key in KEYS[:500]]
        for member in group:
            member.available = member in among
        assert found == owners(balancer, KEYS[:500])
        for member in group:
            member.available = False
    assert ConsistentHash([]).owner(b"key", group) is None
