"""When a tunnel or session has been idle for too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsrouter.policy.idle import IdleWatch


def test_a_count_that_stands_still_for_the_timeout_is_idle() -> None:
    watch = IdleWatch(8.0, now=100.0, count=5)
    assert watch.interval == 1.0
    assert not watch.sample(107.9, 5)
    assert watch.sample(108.0, 5)


def test_activity_starts_the_timeout_anew() -> None:
    watch = IdleWatch(8.0, now=0.0)
    assert not watch.sample(7.0, 1)
    assert not watch.sample(14.9, 1)
    assert watch.sample(15.0, 1)


def test_activity_seen_late_is_activity_still() -> None:
    watch = IdleWatch(8.0, now=0.0)
    assert not watch.sample(1000.0, 1)


@given(st.lists(st.floats(0.01, 30), max_size=20), st.floats(1, 60))
def test_the_end_comes_neither_early_nor_later_than_two_intervals(gaps: list[float], timeout: float) -> None:
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + min(gap, timeout / 2))
    watch = IdleWatch(timeout, now=0.0)
    step = 0
    while True:
        step += 1
        now = step * watch.interval
        if watch.sample(now, sum(time <= now for time in times[1:])):
            break
    assert times[-1] + timeout <= now + 1e-6
    assert now <= times[-1] + timeout + 2 * watch.interval + 1e-6
