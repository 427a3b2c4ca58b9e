from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from wsrouter.config.values import Router
from wsrouter.live.registry import Answer, Counts, End, Facts, Kind, Refusal, Registry, Who
from wsrouter.ops.drain import LOOK, SAY, Drain

END = End(Who.CLIENT, 1001, "")


class Entry:
    """A session; it ends only when the test says so."""

    def __init__(self, registry: Registry, kind: Kind = Kind.SESSION) -> None:
        self.registry = registry
        self.number = registry.number()
        self.facts = Facts(kind, "10.0.0.1", "10.0.0.1:5", "main", "all", "app", "127.0.0.1:2222", 0.0)
        self.asked: list[int] = []
        self.on_end: Callable[[], None] = lambda: None
        registry.open(self)

    def counts(self) -> Counts:
        return Counts(0, 0)

    def end(self, code: int, reason: str) -> None:
        assert reason == "the router is shutting down"
        self.asked.append(code)
        self.on_end()

    def abort(self) -> None:
        raise AssertionError("a drain cuts nobody")

    def leave(self) -> None:
        self.registry.close(self, END)


class Scene:
    """A registry, a clock, and the connections at HTTP, which the test counts by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = Registry()
        self.connections = 0
        self.closed: list[float] = []
        self.done: list[float] = []

    def drain(self, limit: float = 30.0, **more: Any) -> Drain:
        router = Router(**{"drain": limit, "drain_spread": 0.0} | more)
        return Drain(
            self.clock,
            self.registry,
            lambda: self.connections,
            router,
            lambda: self.closed.append(self.clock.seconds()),
            lambda: self.done.append(self.clock.seconds()),
        )

    def run(self, seconds: float) -> None:
        """Let time pass in steps that no look is longer than."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - LOOK / 4:
            self.clock.advance(LOOK / 2)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_without_anything_alive_a_drain_is_done_at_once(scene, lines):
    scene.drain().start()
    assert scene.done == [0.0]
    assert not scene.clock.getDelayedCalls()
    assert not scene.registry.observers
    assert lines == []


def test_every_session_is_asked_to_end_once_and_the_last_end_is_the_drains(scene):
    entries = [Entry(scene.registry) for _ in range(3)]
    scene.drain().start()
    scene.run(2)
    assert [entry.asked for entry in entries] == [[1001]] * 3
    assert scene.done == []
    for entry in entries:
        entry.leave()
    scene.run(2 * LOOK)
    assert len(scene.done) == 1
    scene.run(60)
    assert len(scene.done) == 1
    assert not scene.clock.getDelayedCalls()


def test_a_session_that_ends_while_it_is_asked_is_no_trouble(scene):
    entries = [Entry(scene.registry) for _ in range(3)]
    for entry in entries:
        entry.on_end = entry.leave
    scene.drain().start()
    assert scene.done == [0.0]


def test_connections_at_http_are_waited_for_too(scene):
    scene.connections = 1
    scene.drain().start()
    scene.run(3)
    assert scene.done == []
    scene.connections = 0
    scene.run(2 * LOOK)
    assert len(scene.done) == 1


def test_the_limit_ends_the_drain_and_says_how_many_are_cut(scene, lines):
    for _ in range(3):
        Entry(scene.registry)
    scene.drain(2.0).start()
    next(iter(scene.registry.entries.values())).leave()
    scene.run(1.9)
    assert scene.done == []
    scene.run(0.2)
    assert scene.done == [pytest.approx(2.0, abs=2 * LOOK)]
    assert lines[-1] == "draining: the time is up, 2 of 3 sessions are cut"
    assert not scene.clock.getDelayedCalls()


def test_a_limit_of_nothing_ends_the_drain_at_once(scene):
    entry = Entry(scene.registry)
    scene.drain(0.0).start()
    assert entry.asked == [1001]
    assert scene.done == [0.0]


def test_progress_is_told_now_and_then(scene, lines):
    entries = [Entry(scene.registry) for _ in range(4)]
    scene.drain(30.0).start()
    scene.run(SAY + LOOK)
    entries[0].leave()
    scene.run(SAY + LOOK)
    told = [line for line in lines if "left" in line]
    assert [line.split(" sessions")[0] for line in told] == ["draining: 4 of 4", "draining: 3 of 4"]
    assert told[0].endswith("left, 25 s")
    assert told[1].endswith("left, 20 s")
    assert "30 s at most" in lines[0]


def test_who_has_no_session_is_told_of_where_nobody_has(scene, lines):
    scene.connections = 3
    scene.drain(30.0).start()
    scene.run(SAY + LOOK)
    assert lines == ["draining: 3 client connections left, 25 s"]


def test_a_session_that_opens_during_the_drain_is_ended_behind_its_opening(scene):
    scene.connections = 1
    scene.drain().start()
    late = Entry(scene.registry)
    # Not from within its own opening.
    assert late.asked == []
    scene.run(2 * LOOK)
    assert late.asked == [1001]
    scene.connections = 0
    scene.run(1)
    assert scene.done == []
    late.leave()
    scene.run(2 * LOOK)
    assert len(scene.done) == 1


def test_a_session_that_opened_and_ended_within_the_drain_is_not_asked(scene):
    scene.connections = 1
    drain = scene.drain()
    drain.start()
    late = Entry(scene.registry)
    late.leave()
    scene.run(2 * LOOK)
    assert late.asked == []
    drain.cancel()


def test_cancelled_it_is_done_now_and_only_once(scene):
    entry = Entry(scene.registry)
    drain = scene.drain()
    drain.start()
    drain.cancel()
    assert scene.done == [0.0]
    drain.cancel()
    scene.run(60)
    assert scene.done == [0.0]
    assert not scene.clock.getDelayedCalls()
    assert not scene.registry.observers
    Entry(scene.registry)
    scene.run(1)
    assert entry.asked == [1001]


def test_refusals_and_answers_do_not_matter(scene):
    scene.connections = 1
    drain = scene.drain()
    drain.start()
    scene.registry.refuse(Refusal(1, "10.0.0.1:5", "main", "sniff", "", "silence"))
    scene.registry.answer(Answer(1, "10.0.0.1:5", "main", "files", "GET", "a", "/", 200, 1, 0.1))
    assert scene.done == []
    drain.cancel()


def test_a_session_that_cannot_be_asked_does_not_hold_up_the_others(scene, logged_failures):
    """One that raises must not leave the router draining for ever."""

    def fails() -> None:
        raise RuntimeError("asked at a bad time")

    entries = [Entry(scene.registry) for _ in range(3)]
    entries[0].on_end = fails
    scene.drain(2.0).start()
    assert [entry.asked for entry in entries] == [[1001]] * 3
    scene.run(3)
    assert len(scene.done) == 1
    assert len(logged_failures.flush(RuntimeError)) == 1


# The delay.


def test_during_the_delay_nothing_ends_and_nothing_closes(scene, lines):
    entry = Entry(scene.registry)
    scene.drain(drain_delay=10.0).start()
    assert lines == ["draining in 10 s: still accepting"]
    scene.run(9.9)
    assert (scene.closed, entry.asked) == ([], [])
    scene.run(0.2)
    assert scene.closed == [pytest.approx(10.0)]
    assert entry.asked == [1001]
    entry.leave()
    scene.run(1)
    assert len(scene.done) == 1


def test_an_idle_router_waits_for_the_delay_too(scene):
    """A balancer in front may send it a client any moment."""
    scene.drain(drain_delay=10.0).start()
    scene.run(9.9)
    assert scene.done == []
    scene.run(0.2)
    assert scene.done == [pytest.approx(10.0)]


def test_cancelled_during_the_delay_it_is_done_at_once(scene):
    drain = scene.drain(drain_delay=10.0)
    drain.start()
    drain.cancel()
    assert (scene.closed, scene.done) == ([], [0.0])
    assert not scene.clock.getDelayedCalls()


def test_the_limit_counts_from_the_end_of_the_delay(scene):
    Entry(scene.registry)
    scene.drain(5.0, drain_delay=10.0).start()
    scene.run(14.8)
    assert scene.done == []
    scene.run(0.4)
    assert len(scene.done) == 1


# The spread.


def test_close_frames_are_spread_evenly(scene):
    entries = [Entry(scene.registry) for _ in range(1000)]
    scene.drain(drain_spread=5.0, drain_code=1012).start()
    told = []
    for _ in range(5):
        scene.run(1)
        told.append(sum(len(entry.asked) for entry in entries))
    assert told == [pytest.approx(200 * second, abs=25) for second in range(1, 6)]
    scene.run(0.2)
    assert [entry.asked for entry in entries] == [[1012]] * 1000


def test_close_frames_are_never_spread_over_more_than_the_drain(scene):
    entries = [Entry(scene.registry) for _ in range(10)]
    scene.drain(1.0, drain_spread=5.0).start()
    scene.run(0.96)
    assert all(entry.asked for entry in entries)


def test_one_that_left_before_its_turn_is_not_asked(scene):
    entries = [Entry(scene.registry) for _ in range(10)]
    scene.drain(drain_spread=5.0).start()
    waiting = [entry for entry in entries if not entry.asked]
    for entry in waiting:
        entry.leave()
    scene.run(6)
    assert not any(entry.asked for entry in waiting)


# Tunnels.


def test_a_tunnel_is_waited_for_and_never_asked(scene, lines):
    session, tunnel = Entry(scene.registry), Entry(scene.registry, Kind.TUNNEL)
    scene.drain(7.0).start()
    assert lines == ["draining: 1 session and 1 tunnel; 7 s at most"]
    assert (session.asked, tunnel.asked) == ([1001], [])
    session.leave()
    scene.run(SAY + LOOK)
    assert lines[-1] == "draining: 0 of 1 session and 1 of 1 tunnel left, 2 s"
    tunnel.leave()
    scene.run(2 * LOOK)
    assert lines[-1].startswith("draining: done, ")


def test_thousands_are_told_with_separators(scene, lines):
    for _ in range(1500):
        Entry(scene.registry)
    scene.drain(0.0).start()
    assert lines == [
        "draining: 1,500 sessions; 0 s at most",
        "draining: the time is up, 1,500 of 1,500 sessions are cut",
    ]
