"""Limits of one client address, on a clock that is a number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrouter.config.values import Rate
from wsrouter.policy.limits import ConnectionCounter, RateLimiter, TokenBucket, client_key


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("0.0.0.0", "::", False),
        ("0.0.0.1", "0:0:0:1::", False),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network_of_64_bits(one: str, other: str, same: bool) -> None:
    assert (client_key(one) == client_key(other)) is same


def test_a_client_without_an_address_has_no_key() -> None:
    assert client_key("unix") is None


def test_a_burst_passes_at_once_and_then_one_at_a_time() -> None:
    limiter = RateLimiter(Rate(10.0, 3))
    assert [limiter.take("a", 100.0) for _ in range(3)] == [0.0] * 3
    assert limiter.take("a", 100.0) == pytest.approx(0.1)
    assert limiter.take("a", 100.05) == pytest.approx(0.05)
    assert limiter.take("a", 100.1) == 0.0
    assert limiter.take("a", 100.1) == pytest.approx(0.1)
    assert limiter.take("b", 100.1) == 0.0


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    limiter = RateLimiter(Rate(10.0, 2))
    assert limiter.take("a", 0.0) == 0.0
    assert [limiter.take("a", 1000.0) > 0 for _ in range(3)] == [False, False, True]


@given(st.floats(0.01, 1e5), st.integers(1, 50), st.floats(0, 2e9))
def test_who_waits_as_long_as_told_passes(per_second: float, burst: int, now: float) -> None:
    limiter = RateLimiter(Rate(per_second, burst))
    for _ in range(burst):
        limiter.take(1, now)
    wait = limiter.take(1, now)
    if wait:
        assert limiter.take(1, now + wait) == 0.0


class Bucket:
    """The plain form: a number of tokens, and when it was right."""

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate, self.tokens, self.at = rate, float(rate.burst), now

    def take(self, now: float) -> bool:
        self.tokens = min(self.rate.burst, self.tokens + (now - self.at) * self.rate.per_second)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@settings(max_examples=50)
@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=60))
def test_it_decides_as_a_token_bucket_does(burst: int, steps: list[tuple[int, int]]) -> None:
    # An eighth of a second at a time, with binary fractions: both calculate without rounding.
    rate = Rate(4.0, burst)
    limiter, buckets, now = RateLimiter(rate), {}, 1000.0
    for key, eighths in steps:
        now += eighths / 8
        bucket = buckets.setdefault(key, Bucket(rate, now))
        assert (limiter.take(key, now) == 0.0) is bucket.take(now)


def test_the_least_recently_seen_are_forgotten_at_the_capacity() -> None:
    limiter = RateLimiter(Rate(1.0, 1), capacity=100)
    limiter.take("flood", 0.0)
    for number in range(1000):
        limiter.take(number, 0.0)
        assert limiter.take("flood", 0.0) > 0, "who keeps knocking is remembered"
        assert len(limiter) <= 100
    assert limiter.take(999, 0.0) > 0
    assert limiter.take(0, 0.0) == 0.0, "forgotten: a full bucket again"


def test_a_refused_key_costs_no_more_memory_than_another() -> None:
    limiter = RateLimiter(Rate(1.0, 1), capacity=0)
    for number in range(10):
        limiter.take(number, 0.0)
        limiter.take(number, 0.0)
    assert len(limiter) == 2


def test_buckets_that_are_full_again_leave() -> None:
    limiter = RateLimiter(Rate(1.0, 5))
    for number in range(50):
        limiter.take(number, 100.0)
    assert len(limiter) == 50
    limiter.take("a", 105.5)
    limiter.take("b", 111.0)
    assert len(limiter) == 2


def test_time_alone_never_takes_a_debt_away() -> None:
    limiter = RateLimiter(Rate(1.0, 10))
    now = 1000.0
    passed = 0
    for step in range(400):
        now = 1000.0 + step / 4
        passed += limiter.take("flood", now) == 0.0
        limiter.take(f"other {step}", now)
    assert passed <= 10 + 100


def test_another_rate_holds_at_once_and_debts_are_kept() -> None:
    limiter = RateLimiter(Rate(1.0, 10))
    for _ in range(10):
        assert limiter.take("a", 0.0) == 0.0
    limiter.reconfigure(Rate(10.0, 5))
    assert limiter.rate == Rate(10.0, 5)
    assert limiter.take("a", 0.0) == pytest.approx(0.1), "no longer than an empty bucket of the new rate"
    assert limiter.take("a", 0.1) == 0.0
    assert limiter.take("a", 0.1) > 0.0
    assert limiter.take("b", 0.0) == 0.0


def test_a_clock_that_goes_back_makes_nobody_wait_longer_than_an_empty_bucket() -> None:
    limiter = RateLimiter(Rate(1.0, 3))
    limiter.take("a", 5000.0)
    assert limiter.take("a", 10.0) <= 3.0
    assert limiter.take("a", 13.5) == 0.0


def test_connections_are_counted_up_to_the_limit() -> None:
    counter = ConnectionCounter(2)
    assert [counter.enter("a") for _ in range(3)] == [True, True, False]
    assert counter.enter("b")
    assert (counter.live("a"), counter.live("b"), counter.live("c")) == (2, 1, 0)
    counter.leave("a")
    assert counter.enter("a")
    for key in "aab":
        counter.leave(key)
    assert len(counter) == 0
    with pytest.raises(KeyError):
        counter.leave("a")


def test_another_limit_of_connections_holds_for_who_comes_next() -> None:
    counter = ConnectionCounter(None)
    assert all(counter.enter(1) for _ in range(10))
    counter.limit = 3
    assert not counter.enter(1)
    for _ in range(8):
        counter.leave(1)
    assert counter.enter(1)
    assert counter.live(1) == 3


# One bucket.


def test_a_bucket_is_full_at_first_and_fills_again_with_time() -> None:
    bucket = TokenBucket(Rate(10.0, 30))
    assert bucket.level(1.7e9) == 30
    bucket.take(30, 1.7e9)
    assert bucket.level(1.7e9) == 0
    assert bucket.wait(1, 1.7e9) == pytest.approx(0.1)
    assert bucket.wait(30, 1.7e9) == pytest.approx(3.0)
    assert bucket.level(1.7e9 + 0.55) == 5
    assert bucket.wait(5, 1.7e9 + 0.55) == 0.0
    assert bucket.level(1.7e9 + 100) == 30


def test_a_clock_that_goes_back_leaves_a_bucket_that_is_empty_at_worst() -> None:
    bucket = TokenBucket(Rate(10.0, 30))
    bucket.take(30, 1000.0)
    assert bucket.level(500.0) == 0
    assert bucket.wait(30, 500.0) == pytest.approx(3.0)
    bucket.take(0, 500.0)
    assert bucket.level(503.1) == 30


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), max_size=50),
    st.sampled_from([Rate(0.1, 1), Rate(1.0, 5), Rate(50.0, 100), Rate(1e6, 4096)]),
    st.sampled_from([0.0, 1.7e9]),
)
def test_no_more_is_ever_taken_than_the_rate_and_one_burst_allow(steps, rate, start) -> None:
    bucket = TokenBucket(rate)
    now = start
    taken = 0
    for gap, wanted in steps:
        now += gap
        level = bucket.level(now)
        for asked in (0, wanted, level, level + 1, rate.burst, rate.burst + 1, 10 * rate.burst):
            assert not bucket.has(asked, now) or asked <= level
        count = wanted if bucket.has(wanted, now) else min(wanted, level)
        bucket.take(count, now)
        taken += count
        assert taken <= rate.burst + (now - start) * rate.per_second + 0.01 * rate.burst + 1


@given(st.integers(1, 100), st.floats(0, 1), st.sampled_from([Rate(0.1, 100), Rate(50.0, 100), Rate(1e5, 4096)]))
def test_who_waits_as_long_as_told_gets_what_it_waited_for(count, share, rate) -> None:
    bucket = TokenBucket(rate)
    now = 1.7e9
    bucket.take(int(rate.burst * share), now)
    now += bucket.wait(count, now)
    assert bucket.level(now) >= count
