"""Limits in memory that several processes have in common."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config.values import Rate
from wsrouter.policy.limits import RateLimiter
from wsrouter.workers.shared import ENTRIES, SharedMemory

#: Few, so that all are full soon.
SETS = 16


@contextlib.contextmanager
def three() -> Iterator[tuple[SharedMemory, ...]]:
    first = SharedMemory.create(3)
    memories = (first, *(SharedMemory(os.dup(first.descriptor), column) for column in (1, 2)))
    try:
        yield memories
    finally:
        for memory in memories:
            memory.close()


@pytest.fixture
def columns() -> Iterator[tuple[SharedMemory, ...]]:
    """One memory, as each of three workers has it."""
    with three() as memories:
        yield memories


def test_what_lives_elsewhere_is_seen_and_goes_with_its_process(columns):
    gauges = [memory.gauge("listener main") for memory in columns]
    for gauge, live in zip(gauges, (1, 2, 4), strict=True):
        gauge.add(live)
    assert [gauge.others() for gauge in gauges] == [6, 5, 3]
    assert columns[0].gauge("another").others() == 0
    columns[0].clear(2)
    assert [gauge.others() for gauge in gauges] == [2, 1, 3]
    gauges[1].add(-1)
    assert gauges[0].others() == 1
    # More were given back than taken: it was cleared meanwhile.
    gauges[2].add(-4)
    assert gauges[0].others() == 1


def test_connections_of_a_client_are_counted_together(columns):
    counters = [memory.counter("main") for memory in columns]
    for counter in counters:
        counter.limit = 4
    assert [counters[at % 3].enter(7) for at in range(6)] == [True] * 4 + [False] * 2
    assert counters[0].enter(8)
    assert columns[0].counter("other").enter(7)
    counters[1].leave(7)
    assert counters[2].enter(7)
    assert not counters[0].enter(7)
    columns[0].clear(2)
    assert counters[0].enter(7)
    assert counters[0].enter(7)
    assert not counters[0].enter(7)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.floats(0, 2))),
    st.sampled_from((0.5, 2.0, 50.0)),
    st.integers(1, 5),
)
def test_rates_of_a_client_hold_together_as_one_limiter_holds_them(takes, per_second, burst):
    rate = Rate(per_second, burst)
    model = RateLimiter(rate)
    now = 1000.0
    with three() as memories:
        limiters = [memory.limiter("main", rate) for memory in memories]
        for worker, key, pause in takes:
            now += pause
            assert limiters[worker].take(key, now) == pytest.approx(model.take(key, now))


def test_a_rate_may_change(columns):
    limiter = columns[0].limiter("main", Rate(1.0, 1))
    assert limiter.take(1, 5.0) == 0.0
    assert limiter.take(1, 5.0) == pytest.approx(1.0, abs=1e-3)
    limiter.reconfigure(Rate(1.0, 2))
    assert limiter.take(1, 5.0) == 0.0


def test_when_a_set_is_full_the_least_is_forgotten_and_gauges_never_are():
    memory = SharedMemory.create(1, SETS)
    gauge = memory.gauge("kept")
    gauge.add(3)
    limiter, counter = memory.limiter("main", Rate(1.0, 1)), memory.counter("main")
    counter.limit = 1
    assert counter.enter(-1)
    for key in range(9 * SETS * ENTRIES):
        limiter.take(key, float(key))
    assert not counter.enter(-1)
    assert memory.gauge("kept")._counts[gauge._own] == 3
    # Nobody waits who was forgotten, and who has come lately is known.
    assert limiter.take(0, 1.0) == 0.0
    assert limiter.take(key, float(key)) > 0.0
    memory.close()


def test_who_finds_no_place_is_not_counted():
    memory = SharedMemory.create(1, SETS)
    counter = memory.counter("main")
    counter.limit = 1
    entered = [key for key in range(9 * SETS * ENTRIES) if counter.enter(key)]
    assert len(entered) == 9 * SETS * ENTRIES
    again = sum(counter.enter(key) for key in entered)
    assert again == len(entered) - SETS * ENTRIES
    assert memory.gauge("too late") is None
    for key in entered:
        counter.leave(key)
    assert memory.gauge("in time") is not None
    memory.close()


def test_there_is_no_more_than_there_are_columns():
    memory = SharedMemory.create(2)
    for column in (-1, 2):
        with pytest.raises(ValueError, match=f"no column {column}"):
            SharedMemory(memory.descriptor, column)
    memory.close()


HAMMER = """
import sys
from wsrouter.config.values import Rate
from wsrouter.workers.shared import SharedMemory
memory = SharedMemory(int(sys.argv[1]), int(sys.argv[2]))
counter, limiter = memory.counter("main"), memory.limiter("main", Rate(0.001, 500))
counter.limit = 300
sys.stdin.readline()
print(sum(counter.enter(7) for _ in range(1000)), sum(not limiter.take(7, 1000.0) for _ in range(1000)))
"""


def test_limits_are_exact_between_processes():
    memory = SharedMemory.create(4)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(memory.descriptor), str(column)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(memory.descriptor,),
        )
        for column in range(4)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sum(int(one) for one, _ in told) == 300
    assert sum(int(two) for _, two in told) == 500
    memory.close()


def test_gauges_that_nobody_has_any_more_are_forgotten(columns):
    old, used, kept = (columns[1].gauge(name) for name in ("old", "used", "kept"))
    for gauge in (used, kept):
        gauge.add(1)
    columns[0].keep_gauges({"kept"})
    assert sum(time == float("inf") for time in columns[0]._times) == 2
    used.add(-1)
    columns[0].keep_gauges({"kept"})
    assert columns[2].gauge("kept").others() == 1
    assert sum(time == float("inf") for time in columns[0]._times) == 1
    assert old.others() == 0
