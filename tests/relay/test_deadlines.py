from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from wsrouter.relay.deadlines import GRANULARITY, RECENT, Deadlines


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fired() -> list[str]:
    return []


def test_a_deadline_fires_once_at_its_time(clock, fired):
    Deadlines(clock).after(1.0, lambda: fired.append("x"))
    clock.advance(0.99)
    assert fired == []
    clock.advance(0.01 + GRANULARITY)
    clock.advance(10)
    assert fired == ["x"]
    assert not clock.getDelayedCalls()


def test_a_cancelled_deadline_does_not_fire_and_may_be_cancelled_again(clock, fired):
    deadline = Deadlines(clock).after(1.0, lambda: fired.append("x"))
    deadline.cancel()
    deadline.cancel()
    clock.advance(2)
    assert fired == []
    assert not clock.getDelayedCalls()


def test_cancelling_what_has_fired_is_harmless(clock, fired):
    deadline = Deadlines(clock).after(1.0, lambda: fired.append("x"))
    clock.advance(2)
    deadline.cancel()
    assert fired == ["x"]


def test_many_deadlines_cost_one_timer(clock):
    deadlines = Deadlines(clock)
    for number in range(1000):
        deadlines.after(5 + number / 100, lambda: None)
    assert len(clock.getDelayedCalls()) == 1


def test_an_earlier_deadline_moves_the_timer_up(clock, fired):
    deadlines = Deadlines(clock)
    deadlines.after(10, lambda: fired.append("late"))
    deadlines.after(1, lambda: fired.append("early"))
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(2)
    assert fired == ["early"]
    clock.advance(9)
    assert fired == ["early", "late"]


def test_a_time_of_nothing_or_less_fires_with_the_next_slice(clock, fired):
    deadlines = Deadlines(clock)
    deadlines.after(0, lambda: fired.append("now"))
    deadlines.after(-5, lambda: fired.append("past"))
    assert fired == []
    clock.advance(GRANULARITY)
    assert sorted(fired) == ["now", "past"]


def test_a_callback_may_set_another_deadline(clock, fired):
    deadlines = Deadlines(clock)

    def again() -> None:
        fired.append("x")
        if len(fired) < 3:
            deadlines.after(1, again)

    deadlines.after(1, again)
    for _ in range(10):
        clock.advance(1)
    assert fired == ["x"] * 3
    assert not clock.getDelayedCalls()


def test_a_callback_may_cancel_another_of_its_slice(clock, fired):
    deadlines = Deadlines(clock)
    both = []

    def first_comes(own: int) -> None:
        fired.append("x")
        both[1 - own].cancel()

    both.append(deadlines.after(1, lambda: first_comes(0)))
    both.append(deadlines.after(1, lambda: first_comes(1)))
    clock.advance(2)
    assert fired == ["x"]


def test_a_callback_that_fails_is_logged_and_keeps_no_other_back(clock, fired, logged_failures):
    deadlines = Deadlines(clock)
    deadlines.after(1, lambda: fired.append("before"))
    deadlines.after(1, lambda: 1 // 0)
    deadlines.after(1, lambda: fired.append("after"))
    clock.advance(2)
    assert sorted(fired) == ["after", "before"]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_a_stop_forgets_all(clock, fired):
    deadlines = Deadlines(clock)
    left = deadlines.after(1, lambda: fired.append("x"))
    deadlines.stop()
    deadlines.stop()
    assert not clock.getDelayedCalls()
    clock.advance(2)
    left.cancel()
    assert fired == []


def test_a_stop_from_a_callback_holds_back_what_is_due_later(clock, fired):
    deadlines = Deadlines(clock)
    deadlines.after(1, deadlines.stop)
    deadlines.after(2, lambda: fired.append("x"))
    clock.advance(3)
    assert fired == []
    assert not clock.getDelayedCalls()


@given(
    start=st.floats(0, 2**31),
    delays=st.lists(st.floats(0, 100), min_size=1, max_size=20),
    steps=st.lists(st.floats(0.001, 30), max_size=20),
)
def test_no_deadline_is_early_and_none_later_than_a_slice(start, delays, steps):
    clock = Clock()
    clock.rightNow = start
    deadlines = Deadlines(clock)
    due = [start + delay for delay in delays]
    times: dict[int, float] = {}
    for number, delay in enumerate(delays):
        deadlines.after(delay, lambda number=number: times.__setitem__(number, clock.seconds()))
    for step in [*steps, 200]:
        before = clock.seconds()
        clock.advance(step)
        now = clock.seconds()
        for number, when in enumerate(due):
            if number in times:
                assert times[number] >= when - 1e-6
            else:
                assert now < when + GRANULARITY + 1e-3, (before, now)
    assert len(times) == len(delays)
    assert not clock.getDelayedCalls()


@given(
    start=st.sampled_from([0.0, 0.35, 1e6 + 0.05]),
    asked=st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.05, 0.3]), st.sampled_from([-5.0, 0.0, 0.05, 0.1, 1.0]))),
)
def test_lengths_that_are_asked_for_again_and_again_keep_their_time(start, asked):
    clock = Clock()
    clock.rightNow = start
    deadlines = Deadlines(clock)
    due: list[float] = []
    soonest: list[float] = []
    times: dict[int, float] = {}

    def passes(seconds: float) -> None:
        # In steps that end where slices do, too.
        for _ in range(max(1, round(seconds / 0.01))):
            clock.advance(min(seconds, 0.01))

    for step, delay in asked:
        passes(step)
        number = len(due)
        due.append(clock.seconds() + delay)
        soonest.append(max(clock.seconds(), due[-1]))
        deadlines.after(delay, lambda number=number: times.__setitem__(number, clock.seconds()))
    passes(1.2)
    for number, when in enumerate(due):
        assert when - 1e-6 <= times[number] <= soonest[number] + GRANULARITY + 0.01 + 1e-6
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("tick", [1, 42, 43, 44, 81, 86, 91, 162])
def test_a_clock_that_stands_at_the_end_of_a_slice_has_passed_it_whatever_the_rounding(clock, fired, tick):
    deadlines = Deadlines(clock)
    deadlines.after((tick - 0.5) * GRANULARITY, lambda: deadlines.after(0, lambda: fired.append("next")))
    clock.advance(tick * GRANULARITY)
    assert fired == []
    clock.advance(2 * GRANULARITY)
    assert fired == ["next"]


def test_a_clock_that_is_set_back_makes_no_later_deadline_late(clock, fired):
    clock.rightNow = 10_000.0
    deadlines = Deadlines(clock)
    deadlines.after(5, lambda: fired.append("before"))
    clock.rightNow -= 3600
    deadlines.after(5, lambda: fired.append("after"))
    clock.advance(5 + GRANULARITY)
    assert fired == ["after"]
    deadlines.stop()


def test_lengths_without_number_fill_no_memory(clock):
    deadlines = Deadlines(clock)
    for number in range(10 * RECENT):
        deadlines.after(5 + number / 1000, lambda: None)
    assert len(deadlines.recent) <= RECENT
