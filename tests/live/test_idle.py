from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from wsrouter.live.idle import IdleSweeper
from wsrouter.policy.idle import SAMPLES


class Thing:
    def __init__(self, on_idle: Callable[[Thing], object] = lambda thing: None) -> None:
        self.count = 0
        self.ends = 0
        self.on_idle = on_idle

    def activity(self) -> int:
        return self.count

    def idle(self) -> None:
        self.ends += 1
        self.on_idle(self)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sweeper(clock: Clock) -> IdleSweeper:
    return IdleSweeper(clock)


def run(clock: Clock, seconds: float, step: float = 0.5) -> None:
    clock.pump([step] * int(seconds / step))


def test_what_does_nothing_ends_after_its_timeout_and_at_most_an_eighth_later(clock, sweeper):
    thing = Thing(lambda thing: sweeper.forget(thing, 80))
    sweeper.watch(thing, 80)
    run(clock, 79.5)
    assert thing.ends == 0
    run(clock, 80 / SAMPLES + 1)
    assert thing.ends == 1
    assert not clock.getDelayedCalls()


def test_activity_puts_the_end_off(clock, sweeper):
    thing = Thing()
    sweeper.watch(thing, 80)
    for _ in range(5):
        run(clock, 60)
        thing.count += 1
    assert thing.ends == 0
    run(clock, 79)
    assert thing.ends == 0
    run(clock, 25)
    assert thing.ends > 0
    sweeper.stop()


def test_one_that_comes_later_is_not_early(clock, sweeper):
    first, second = Thing(), Thing()
    sweeper.watch(first, 80)
    run(clock, 75)
    sweeper.watch(second, 80)
    run(clock, 79)
    assert first.ends
    assert not second.ends
    run(clock, 15)
    assert second.ends
    sweeper.stop()


def test_all_of_one_timeout_share_a_timer_and_the_last_takes_it_along(clock, sweeper):
    things = [Thing() for _ in range(100)]
    for number, thing in enumerate(things):
        sweeper.watch(thing, 80 if number % 2 else 10)
    assert len(clock.getDelayedCalls()) == 2
    for number, thing in enumerate(things):
        sweeper.forget(thing, 80 if number % 2 else 10)
    assert not clock.getDelayedCalls()


def test_forgetting_what_is_not_watched_is_harmless(clock, sweeper):
    thing, other = Thing(), Thing()
    sweeper.forget(thing, 80)
    sweeper.watch(thing, 80)
    sweeper.forget(other, 80)
    assert len(clock.getDelayedCalls()) == 1
    sweeper.forget(thing, 80)
    sweeper.forget(thing, 80)
    assert not clock.getDelayedCalls()


def test_an_end_that_fails_is_logged_and_holds_no_other_back(clock, sweeper, logged_failures):
    def fail(thing: Thing) -> None:
        sweeper.forget(thing, 80)
        raise ZeroDivisionError

    bad, good = Thing(fail), Thing()
    sweeper.watch(bad, 80)
    sweeper.watch(good, 80)
    run(clock, 91)
    assert good.ends
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
    sweeper.stop()


def test_an_end_may_take_others_along(clock, sweeper):
    one = Thing()
    two = Thing()

    def both(thing: Thing) -> None:
        sweeper.forget(one, 80)
        sweeper.forget(two, 80)

    one.on_idle = two.on_idle = both
    sweeper.watch(one, 80)
    sweeper.watch(two, 80)
    run(clock, 100)
    assert one.ends == 1
    assert not clock.getDelayedCalls()


def test_a_stop_ends_all_watching(clock, sweeper):
    thing = Thing()
    sweeper.watch(thing, 80)
    sweeper.stop()
    run(clock, 200)
    assert not thing.ends
    assert not clock.getDelayedCalls()
    sweeper.forget(thing, 80)


def test_what_is_forgotten_is_not_kept(sweeper):
    gc.collect()
    gc.disable()
    try:
        one, two = Thing(), Thing()
        sweeper.watch(one, 80)
        sweeper.watch(two, 80)
        sweeper.forget(one, 80)
        dead = weakref.ref(one)
        del one
        assert dead() is None
    finally:
        gc.enable()
    sweeper.stop()
