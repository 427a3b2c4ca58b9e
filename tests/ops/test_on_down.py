from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from wsrouter.config.values import OnDown, Pool
from wsrouter.live.registry import Counts, End, Facts, Kind, Registry, Who
from wsrouter.ops.on_down import Evictions

POOL = Pool("app", (), on_down=OnDown.CLOSE, down_spread=5.0)


class Entry:
    def __init__(self, registry: Registry, backend: str = "a:1", pool: str = "app", kind: Kind = Kind.SESSION) -> None:
        self.registry = registry
        self.number = registry.number()
        self.facts = Facts(kind, "10.0.0.1", "10.0.0.1:5", "main", "all", pool, backend, 0.0)
        self.told: list[Any] = []
        registry.open(self)

    def counts(self) -> Counts:
        return Counts(0, 0)

    def end(self, code: int, reason: str) -> None:
        self.told.append((code, reason))

    def abort(self) -> None:
        self.told.append("cut")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def evictions(clock, registry) -> Evictions:
    return Evictions(clock, registry)


def test_those_of_the_backend_are_ended_over_the_spread_and_no_others(clock, registry, evictions):
    mine = [Entry(registry) for _ in range(10)]
    others = [Entry(registry, backend="b:1"), Entry(registry, pool="other")]
    evictions.gone(POOL, "a:1")
    clock.pump([0.1] * 20)
    assert 3 <= sum(bool(entry.told) for entry in mine) <= 6
    clock.pump([0.1] * 35)
    assert [entry.told for entry in mine] == [[(1012, "backend a:1 is gone")]] * 10
    assert not any(entry.told for entry in others)
    assert not clock.getDelayedCalls()


def test_a_pool_that_keeps_them_keeps_them(clock, registry, evictions):
    entry = Entry(registry)
    evictions.gone(Pool("app", ()), "a:1")
    assert not entry.told
    assert not clock.getDelayedCalls()


def test_tunnels_are_cut(registry, evictions):
    tunnel = Entry(registry, kind=Kind.TUNNEL)
    evictions.gone(POOL, "a:1")
    assert tunnel.told == ["cut"]


def test_one_that_left_before_its_turn_is_left_alone(clock, registry, evictions):
    entries = [Entry(registry) for _ in range(10)]
    evictions.gone(POOL, "a:1")
    waiting = [entry for entry in entries if not entry.told]
    for entry in waiting:
        registry.close(entry, End(Who.CLIENT, 1000, ""))
    clock.pump([0.1] * 60)
    assert not any(entry.told for entry in waiting)


def test_once_a_drain_has_begun_nobody_is_ended_here(clock, registry, evictions):
    entries = [Entry(registry) for _ in range(10)]
    evictions.gone(POOL, "a:1")
    evictions.stop()
    evictions.gone(POOL, "a:1")
    clock.pump([0.1] * 60)
    assert sum(len(entry.told) for entry in entries) == 1
    assert not clock.getDelayedCalls()


def test_one_that_was_still_being_opened_is_ended_too_within_the_same_time(clock, registry, evictions):
    evictions.gone(POOL, "a:1")
    clock.advance(1.0)
    late = [Entry(registry) for _ in range(5)]
    other = Entry(registry, backend="b:1")
    assert not any(entry.told for entry in late)
    clock.pump([0.1] * 45)
    assert [entry.told for entry in late] == [[(1012, "backend a:1 is gone")]] * 5
    latest = Entry(registry)
    assert not latest.told
    clock.advance(0)
    assert latest.told
    assert not other.told
    assert not clock.getDelayedCalls()


def test_one_that_opens_at_a_backend_that_is_back_or_in_a_pool_that_keeps_them_lives(clock, registry, evictions):
    evictions.gone(POOL, "a:1")
    evictions.back("app", "a:1")
    evictions.back("app", "never:1")
    evictions.gone(Pool("app", ()), "b:1")
    entries = [Entry(registry), Entry(registry, backend="b:1")]
    clock.pump([0.1] * 60)
    assert not any(entry.told for entry in entries)


def test_a_backend_is_remembered_for_as_long_as_an_opening_may_take(clock, registry, evictions):
    evictions.gone(POOL, "a:1")
    # Waiting in line, trying others, the last dial, and its handshake.
    clock.advance(POOL.queue_timeout + POOL.retry_time + POOL.connect_timeout + POOL.handshake_timeout - 1)
    evictions.gone(POOL, "b:1")
    late = Entry(registry)
    clock.advance(0)
    assert late.told
    clock.advance(2)
    evictions.gone(POOL, "c:1")
    latest = Entry(registry)
    clock.advance(0)
    assert not latest.told


def test_a_late_one_that_waits_for_its_turn_is_not_ended_behind_a_stop(clock, registry, evictions):
    evictions.gone(POOL, "a:1")
    late = Entry(registry)
    evictions.stop()
    latest = Entry(registry)
    clock.pump([0.1] * 60)
    assert not late.told
    assert not latest.told
    assert not clock.getDelayedCalls()


def test_a_backend_without_sessions_is_no_news(clock, evictions):
    evictions.gone(POOL, "a:1")
    assert not clock.getDelayedCalls()


class Branched(Entry):
    """A session that is at several backends."""

    def __init__(self, registry: Registry, *backends: str) -> None:
        self.at = list(backends)
        super().__init__(registry, backends[0])

    def branches(self) -> list[str]:
        return self.at

    def leave(self, backend: str) -> None:
        self.told.append(f"leave {backend}")


def test_one_that_is_at_several_backends_leaves_those_that_are_gone(clock, registry, evictions):
    one, other = Branched(registry, "a:1", "b:1"), Branched(registry, "b:1", "c:1")
    evictions.gone(POOL, "a:1")
    clock.pump([1.0] * 6)
    assert (one.told, other.told) == (["leave a:1"], [])
    evictions.gone(POOL, "b:1")
    clock.pump([1.0] * 6)
    assert (one.told, other.told) == (["leave a:1", "leave b:1"], ["leave b:1"])
    evictions.gone(POOL, "d:1")
    late = Branched(registry, "d:1", "a:1")
    clock.pump([1.0] * 6)
    assert late.told == ["leave d:1"]
