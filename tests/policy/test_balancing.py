"""Which backend of a pool takes the next session."""

from __future__ import annotations

from random import Random

import pytest

from wsrouter.config.values import Backend, Balance, Pool
from wsrouter.policy.balancing import Balancer, WithBackups, balancer_for
from wsrouter.policy.load import LeastSessions, RandomTwo
from wsrouter.policy.members import Member
from wsrouter.policy.ring import ConsistentHash
from wsrouter.policy.turns import Credits, First, Rotation

EVERY = pytest.mark.parametrize("balance", Balance)


def member(name: str, weight: int = 1, backup: bool = False, max_sessions: int | None = None) -> Member:
    return Member(Backend(name, 80, weight=weight, backup=backup, max_sessions=max_sessions))


def balancer(balance: Balance, *members: Member, slow_start: float | None = None) -> Balancer:
    backends = tuple(one.backend for one in members)
    return balancer_for(Pool("app", backends, balance=balance, slow_start=slow_start), members, Random(1))


def picked(chooser: Balancer, *excluded: Member, key: bytes | None = b"key", now: float = 0.0) -> set[str]:
    """Who is picked by forty clients."""
    found = (chooser.pick(now, key and key + b"%d" % at, excluded) for at in range(40))
    return {one.backend.host if one else "-" for one in found}


@pytest.mark.parametrize(
    ("balance", "weights", "kind"),
    [
        (Balance.ROUND_ROBIN, (1, 1), Rotation),
        (Balance.ROUND_ROBIN, (1, 2), Credits),
        (Balance.LEAST_SESSIONS, (1, 1), LeastSessions),
        (Balance.RANDOM_TWO, (1, 1), RandomTwo),
        (Balance.FIRST, (1, 1), First),
        (Balance.HASH, (1, 1), ConsistentHash),
    ],
)
def test_a_pool_gets_the_balancer_that_it_asks_for(balance: Balance, weights: tuple[int, int], kind: type) -> None:
    assert type(balancer(balance, member("a", weights[0]), member("b", weights[1]))) is kind


@EVERY
def test_backups_wait_until_no_other_member_can_be_chosen(balance: Balance) -> None:
    spare, a, b, extra = member("s", backup=True), member("a", max_sessions=1), member("b"), member("x", backup=True)
    chooser = balancer(balance, spare, a, b, extra)
    assert isinstance(chooser, WithBackups)
    assert picked(chooser) <= {"a", "b"}
    assert picked(chooser, b) == {"a"}
    a.live = 1
    assert picked(chooser, b) <= {"s", "x"}
    spare.available = False
    assert picked(chooser, b) == {"x"}
    assert picked(chooser, b, extra) == {"-"}
    b.available = False
    a.live = 0
    assert picked(chooser) == {"a"}


@EVERY
def test_a_pool_of_backups_works(balance: Balance) -> None:
    assert picked(balancer(balance, member("s", backup=True))) == {"s"}


@EVERY
def test_weight_0_takes_nothing(balance: Balance) -> None:
    assert picked(balancer(balance, member("a", 0), member("b"))) == {"b"}
    assert picked(balancer(balance, member("a", 0), member("s", 0, backup=True))) == {"-"}


@EVERY
def test_a_pool_without_members_has_nobody(balance: Balance) -> None:
    assert balancer(balance).pick(0.0, b"key") is None


@EVERY
def test_no_key_is_needed(balance: Balance) -> None:
    assert picked(balancer(balance, member("a"), member("b")), key=None) <= {"a", "b"}


@pytest.mark.parametrize(
    ("balance", "spared"),
    [
        (Balance.ROUND_ROBIN, True),
        (Balance.LEAST_SESSIONS, True),
        (Balance.RANDOM_TWO, True),
        (Balance.FIRST, False),
        (Balance.HASH, False),
    ],
)
def test_slow_start_holds_where_shares_are_balanced(balance: Balance, spared: bool) -> None:
    newcomer, a, b = member("n"), member("a"), member("b")
    newcomer.since = 0.0
    chooser = balancer(balance, newcomer, a, b, slow_start=1e6)
    assert ("n" not in picked(chooser)) is spared
    assert "n" in picked(balancer(balance, newcomer, a, b))


@EVERY
def test_picking_changes_no_member(balance: Balance) -> None:
    group = [member("a"), member("b", 2), member("s", backup=True)]
    before = [(one.live, one.since, one.available, one.weight) for one in group]
    picked(balancer(balance, *group, slow_start=5.0))
    assert [(one.live, one.since, one.available, one.weight) for one in group] == before
