from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from wsrouter.ops.spread import TICK, Spread


class Scene:
    """What was served, and when."""

    def __init__(self, count: int, seconds: float, **more: Any) -> None:
        self.clock = Clock()
        self.served: list[tuple[float, int]] = []
        self.spread = Spread(self.clock, range(count), seconds, self.serve, **more)

    def serve(self, thing: int) -> None:
        self.served.append((self.clock.seconds(), thing))

    def run(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - TICK / 4:
            self.clock.advance(TICK / 2)


@given(st.integers(0, 300), st.floats(0.0, 10.0))
def test_everybody_has_one_turn_at_an_even_pace(count, seconds):
    scene = Scene(count, seconds)
    scene.spread.start()
    scene.run(seconds + 3 * TICK)
    assert sorted(thing for _, thing in scene.served) == list(range(count))
    for index, (when, _) in enumerate(scene.served):
        assert when == pytest.approx(index * seconds / count, abs=2.5 * TICK)
    assert not scene.clock.getDelayedCalls()


def test_the_order_is_a_random_one():
    scene = Scene(100, 0.0)
    scene.spread.start()
    assert [thing for _, thing in scene.served] not in (list(range(100)), list(range(100))[::-1])


def test_one_alone_has_its_turn_at_once():
    scene = Scene(1, 5.0)
    scene.spread.start()
    assert scene.served == [(0.0, 0)]


def test_without_time_all_have_their_turn_at_once():
    scene = Scene(50, 0.0)
    scene.spread.start()
    assert len(scene.served) == 50


def test_thousands_share_a_timer():
    scene = Scene(10_000, 5.0)
    scene.spread.start()
    assert len(scene.clock.getDelayedCalls()) == 1
    scene.run(2.5)
    assert len(scene.served) == pytest.approx(5000, abs=200)
    assert scene.spread.waiting == 10_000 - len(scene.served)


def test_who_comes_late_is_served_within_the_same_time():
    scene = Scene(10, 5.0)
    scene.spread.start()
    scene.run(2.5)
    scene.spread.add(range(100, 120))
    scene.run(2.6)
    assert len(scene.served) == 30
    times = [when for when, thing in scene.served if thing >= 100]
    assert max(times) - min(times) > 1.0


def test_who_comes_when_the_time_is_over_is_served_in_the_next_turn():
    scene = Scene(3, 1.0)
    scene.spread.start()
    scene.run(10)
    scene.spread.add([7, 8])
    assert len(scene.served) == 3
    scene.clock.advance(0)
    assert sorted(thing for _, thing in scene.served[3:]) == [7, 8]


def test_stopped_it_serves_nobody():
    scene = Scene(10, 5.0)
    scene.spread.start()
    scene.spread.stop()
    scene.run(10)
    assert len(scene.served) == 1
    assert not scene.clock.getDelayedCalls()


def test_one_that_fails_does_not_hold_up_the_others(logged_failures):
    seen: list[int] = []

    def act(thing: int) -> None:
        seen.append(thing)
        if thing == 1:
            raise RuntimeError("at a bad time")

    Spread(Clock(), range(3), 0.0, act).start()
    assert sorted(seen) == [0, 1, 2]
    assert len(logged_failures.flush(RuntimeError)) == 1
