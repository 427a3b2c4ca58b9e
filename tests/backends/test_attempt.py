"""Attempts on the loopback interface: real pools and sockets, a clock that stands still."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from wsrouter.backends.attempt import Attempt
from wsrouter.backends.discovery import Discovery
from wsrouter.backends.pool import BackendPool
from wsrouter.config.values import Backend, Balance, BalanceKey, KeySource, Pool
from wsrouter.errors import DialError
from wsrouter.policy.health import Hand, State
from wsrouter.policy.members import Member

NAMED = Backend("name.invalid", 1)
OTHER = Backend("other.invalid", 1)
HASH = {"balance": Balance.HASH, "key": BalanceKey(KeySource.CLIENT_IP)}
NO_GOOD = DialError("no good")


def backend_at(server: Any, **more: Any) -> Backend:
    return Backend(*server.getsockname(), **more)


def pool_of(rig: Any, *backends: Backend, **more: Any) -> BackendPool:
    return BackendPool(rig.relay, Pool("app", backends, **more), Discovery(rig, object(), backends))  # type: ignore[arg-type]


def counts(pool: BackendPool) -> list[int]:
    return [member.live for member in pool.members]


class Seeker:
    """An attempt, and what came of it."""

    def __init__(self, pool: BackendPool, **more: Any) -> None:
        self.legs: list[Any] = []
        self.members: list[Member] = []
        self.errors: list[Any] = []
        self.attempt = Attempt(pool, self._connected, self.errors.append, **more)
        self.attempt.start()

    def _connected(self, leg: Any, member: Member) -> None:
        self.legs.append(leg)
        self.members.append(member)

    @property
    def over(self) -> bool:
        return bool(self.legs or self.errors)


def test_an_attempt_reaches_a_backend_and_counts_it(rig):
    pool = pool_of(rig, backend_at(rig.server()))
    (member,) = pool.members
    seeker = Seeker(pool)
    assert member.live == 1
    rig.until(lambda: seeker.over)
    assert seeker.members == [member]
    assert seeker.attempt.member is member
    assert member.live == 1
    assert seeker.attempt.story() == ""
    seeker.attempt.cancel()
    assert member.live == 1
    pool.give_back(member)
    assert member.live == 0


def test_sessions_take_turns(rig):
    pool = pool_of(rig, *[backend_at(rig.server()) for _ in range(3)])
    seekers = [Seeker(pool) for _ in range(6)]
    rig.until(lambda: all(seeker.over for seeker in seekers))
    assert counts(pool) == [2, 2, 2]


def test_the_key_the_preferred_member_and_the_preface_are_handed_on(rig):
    servers = [rig.server() for _ in range(4)]
    pool = pool_of(rig, *[backend_at(server) for server in servers], **HASH)
    wanted = [pool.pick(b"192.0.2.%d" % number) for number in range(20)]
    assert len(set(wanted)) > 1
    seekers = [Seeker(pool, key=b"192.0.2.%d" % number) for number in range(20)]
    rig.until(lambda: all(seeker.over for seeker in seekers))
    assert [seeker.members[0] for seeker in seekers] == wanted
    one = pool.members[2]
    bound = Seeker(pool, key=b"192.0.2.1", preferred=one, preface=b"PROXY UNKNOWN\r\n")
    rig.until(lambda: bound.over)
    assert bound.members == [one]
    heard = [rig.accept(servers[2]) for _ in range(wanted.count(one) + 1)]
    assert heard[-1].recv(100) == b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize("why", ["full", "drained"])
def test_a_preferred_member_that_takes_no_more_is_passed_over(rig, why):
    pool = pool_of(rig, *[backend_at(rig.server(), max_sessions=1) for _ in range(2)])
    one, other = pool.members
    if why == "full":
        pool.take(one)
    else:
        pool.table.by_hand(one, 0.0, Hand.DRAIN)
    seeker = Seeker(pool, preferred=one)
    rig.until(lambda: seeker.over)
    assert seeker.members == [other]


# Backends that do not serve.


def test_a_backend_that_refuses_is_followed_by_another_and_given_back(rig, nobody):
    dead = Backend(*nobody.sockaddr)
    pool = pool_of(rig, dead, backend_at(rig.server()))
    seekers = [Seeker(pool) for _ in range(2)]
    rig.until(lambda: all(seeker.over for seeker in seekers))
    assert [seeker.members[0] for seeker in seekers] == [pool.members[1]] * 2
    assert counts(pool) == [0, 2]
    assert f"{dead.label} connection refused" in "".join(seeker.attempt.story() for seeker in seekers)


def test_when_all_refuse_it_is_503_with_the_story(rig, nobody):
    dead = Backend(*nobody.sockaddr)
    pool = pool_of(rig, dead)
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    assert seeker.errors[0].status == 503
    assert seeker.errors[0].reason == f"pool app: no backend answers: {dead.label} connection refused"
    assert counts(pool) == [0]


def test_retries_have_an_end(rig, nobody):
    host, port = nobody.sockaddr
    backends = [Backend(host, port, weight=number + 1) for number in range(5)]
    seeker = Seeker(pool_of(rig, *backends, retries=1))
    rig.until(lambda: seeker.over)
    assert len(seeker.attempt.tried) == 2
    assert not any(counts(seeker.attempt.pool))


@pytest.mark.parametrize("more", [{}, HASH, {"balance": Balance.FIRST}], ids=["round-robin", "hash", "first"])
def test_no_backend_is_tried_twice(rig, more):
    pool = pool_of(rig, *[backend_at(rig.server()) for _ in range(3)], retries=9, **more)
    seeker = Seeker(pool, key=b"192.0.2.1", preferred=pool.members[1])
    for number in range(1, 4):
        rig.until(lambda number=number: len(seeker.legs) == number)
        seeker.attempt.retry(NO_GOOD)
    assert len(seeker.errors) == 1
    assert seeker.members[0] is pool.members[1]
    assert sorted(map(id, seeker.members)) == sorted(map(id, pool.members))
    assert counts(pool) == [0, 0, 0]


@pytest.mark.parametrize(
    ("error", "status"),
    [(DialError("x", timed_out=True), 504), (DialError("x", nonsense=True), 502), (DialError("x"), 503)],
)
def test_the_last_failure_gives_the_status(rig, error, status):
    pool = pool_of(rig, backend_at(rig.server()))
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    seeker.attempt.retry(error)
    assert seeker.errors[0].status == status
    assert counts(pool) == [0]


def test_a_retry_goes_to_another_backend(rig):
    pool = pool_of(rig, *[backend_at(rig.server()) for _ in range(2)])
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    seeker.attempt.retry(NO_GOOD)
    rig.until(lambda: len(seeker.legs) == 2)
    first, second = seeker.members
    assert {first, second} == set(pool.members)
    assert (first.live, second.live) == (0, 1)


def test_failures_are_told_to_the_pool_and_three_of_them_eject(rig):
    pool = pool_of(rig, *[backend_at(rig.server()) for _ in range(2)], balance=Balance.FIRST)
    bad, good = pool.members
    for number in range(3):
        assert pool.table[bad].state is State.UP
        seeker = Seeker(pool)
        rig.until(lambda seeker=seeker: seeker.over)
        assert seeker.members == [bad]
        seeker.attempt.retry(NO_GOOD)
        rig.until(lambda seeker=seeker: len(seeker.legs) == 2)
        assert counts(pool) == [0, number + 1]
    assert pool.table[bad].state is State.EJECTED
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    assert seeker.members == [good]


def test_another_backend_is_counted_before_the_first_is_given_up_and_then_tried(rig):
    pool = pool_of(rig, *[backend_at(rig.server()) for _ in range(2)])
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    other = seeker.attempt.another()
    assert counts(pool) == [1, 1]
    seeker.attempt.retry(NO_GOOD, other)
    rig.until(lambda: len(seeker.legs) == 2)
    assert seeker.members == [*pool.members]
    assert counts(pool) == [0, 1]
    # Nobody is left, and no turn was used up to find that out.
    assert seeker.attempt.another() is None
    assert counts(pool) == [0, 1]


@pytest.mark.parametrize("spent", ["retries", "time"])
def test_there_is_no_other_where_a_retry_would_give_up(rig, spent):
    more = {"retries": 0} if spent == "retries" else {"retry_time": 1.0}
    pool = pool_of(rig, *[backend_at(rig.server()) for _ in range(2)], **more)
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    if spent == "time":
        rig.pass_time(1.1)
    assert seeker.attempt.another() is None
    assert counts(pool) == [1, 0]


def test_after_retry_time_no_further_backend_is_tried(rig):
    pool = pool_of(rig, *[backend_at(rig.server()) for _ in range(3)], retries=9, retry_time=5.0)
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    rig.pass_time(4.9)
    seeker.attempt.retry(NO_GOOD)
    rig.until(lambda: len(seeker.legs) == 2)
    assert seeker.errors == []
    rig.pass_time(0.2)
    seeker.attempt.retry(NO_GOOD)
    assert [error.status for error in seeker.errors] == [503]
    assert counts(pool) == [0, 0, 0]


@pytest.mark.interpreted
def test_what_is_left_of_retry_time_bounds_a_further_dial_but_not_the_first(rig, monkeypatch):
    pool = pool_of(rig, backend_at(rig.server()), backend_at(rig.server()), connect_timeout=2.0, retry_time=1.0)
    limits: list[float | None] = []
    dial = pool.dial

    def note(*asked: Any) -> Any:
        limits.append(asked[4])
        return dial(*asked)

    monkeypatch.setattr(pool, "dial", note)
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    rig.pass_time(0.75)
    seeker.attempt.retry(NO_GOOD)
    rig.until(lambda: len(seeker.legs) == 2)
    assert limits == [None, 0.25]


# When nobody takes it.


def test_full_backends_are_not_tried(rig):
    pool = pool_of(rig, backend_at(rig.server(), max_sessions=1))
    first, second = Seeker(pool), Seeker(pool)
    assert second.errors[0].status == 503
    assert second.errors[0].reason == "pool app: every backend is full"
    rig.until(lambda: first.over)
    assert counts(pool) == [1]


def test_where_all_are_down_nobody_waits_and_the_reason_says_so(rig):
    pool = pool_of(rig, backend_at(rig.server(), max_sessions=1), backend_at(rig.server(), weight=0), queue=5)
    pool.table.by_hand(pool.members[0], 0.0, Hand.DOWN)
    seeker = Seeker(pool)
    assert [error.reason for error in seeker.errors] == ["pool app: every backend is down"]
    assert len(pool.line) == 0


def test_who_waits_is_served_when_a_place_is_given_back(rig):
    pool = pool_of(rig, backend_at(rig.server(), max_sessions=1), queue=5)
    (member,) = pool.members
    pool.take(member)
    first, second = Seeker(pool), Seeker(pool)
    rig.settle()
    assert not first.over
    assert member.live == 1
    pool.give_back(member)
    rig.until(lambda: first.over)
    assert first.members == [member]
    assert not second.over
    assert member.live == 1
    pool.give_back(member)
    rig.until(lambda: second.over)
    assert member.live == 1


def test_nobody_overtakes_those_who_wait(rig):
    pool = pool_of(rig, backend_at(rig.server(), max_sessions=1), queue=5)
    (member,) = pool.members
    pool.take(member)
    waits = Seeker(pool)
    # The place is free from here on, but it is kept for the one in line.
    pool.give_back(member)
    late = Seeker(pool, preferred=member)
    rig.until(lambda: waits.over)
    assert waits.members == [member]
    assert not late.over
    late.attempt.cancel()
    assert len(pool.line) == 0


def test_who_has_waited_in_vain_gets_503(rig):
    pool = pool_of(rig, backend_at(rig.server(), max_sessions=1), queue=5, queue_timeout=3.0)
    pool.take(pool.members[0])
    seeker = Seeker(pool)
    rig.pass_time(2.9)
    assert not seeker.over
    rig.pass_time(0.2)
    (error,) = seeker.errors
    assert (error.status, error.reason) == (503, "pool app: every backend is full, and was while it waited")
    assert counts(pool) == [1]
    seeker.attempt.cancel()
    assert counts(pool) == [1]


def test_time_in_line_does_not_count_for_retry_time(rig):
    backends = [backend_at(rig.server(), max_sessions=1) for _ in range(2)]
    pool = pool_of(rig, *backends, queue=1, queue_timeout=60.0, retry_time=5.0)
    for member in pool.members:
        pool.take(member)
    seeker = Seeker(pool)
    rig.pass_time(30.0)
    for member in pool.members:
        pool.give_back(member)
    rig.until(lambda: seeker.over)
    seeker.attempt.retry(NO_GOOD)
    rig.until(lambda: len(seeker.legs) == 2)
    assert sum(counts(pool)) == 1


@pytest.mark.parametrize("when", ["in line", "served in this batch", "dialling"])
def test_who_leaves_takes_no_place(rig, when):
    pool = pool_of(rig, backend_at(rig.server(), max_sessions=1), queue=5)
    (member,) = pool.members
    pool.take(member)
    # Who has something to say first does not get its connection at once.
    gone, stays = Seeker(pool, preface=b"hello"), Seeker(pool)
    if when != "in line":
        pool.give_back(member)
    if when == "dialling":
        pool.line._serve()
        assert member.live == 1
    gone.attempt.cancel()
    gone.attempt.cancel()
    if when == "in line":
        pool.give_back(member)
    rig.until(lambda: stays.over)
    assert not gone.over
    assert stays.members == [member]
    assert member.live == 1
    assert len(pool.line) == 0


# Cancelling, names, and the end.


def test_a_cancel_gives_the_backend_back_once_and_calls_nobody(rig):
    pool = pool_of(rig, backend_at(rig.server()))
    seeker = Seeker(pool, preface=b"hello")
    seeker.attempt.cancel()
    seeker.attempt.cancel()
    rig.settle()
    assert not seeker.over
    assert counts(pool) == [0]
    assert not rig.relay.members


def test_names_that_do_not_resolve_are_passed_over(rig):
    pool = pool_of(rig, NAMED, OTHER, backend_at(rig.server()))
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    assert seeker.members == [pool.members[2]]
    assert counts(pool) == [0, 0, 1]


def test_when_no_name_resolves_it_is_503_at_once(rig):
    pool = pool_of(rig, NAMED, OTHER)
    seeker = Seeker(pool)
    assert seeker.errors[0].status == 503
    assert "its name does not resolve" in seeker.errors[0].reason
    assert not any(counts(pool))


def test_cancel_reaches_the_dial_behind_a_name_that_does_not_resolve(rig):
    pool = pool_of(rig, NAMED, backend_at(rig.server()))
    for _ in range(2):
        seeker = Seeker(pool, preface=b"hello")
        seeker.attempt.cancel()
        rig.settle()
        assert not seeker.over
        assert not any(counts(pool))
    assert not rig.relay.members


def test_a_settled_attempt_holds_nobody(rig):
    pool = pool_of(rig, backend_at(rig.server()))
    seeker = Seeker(pool)
    legs, attempt, dead = seeker.legs, seeker.attempt, weakref.ref(seeker)
    gc.collect()
    gc.disable()
    try:
        del seeker
        rig.until(lambda: legs)
        attempt.settle()
        assert dead() is None
        assert attempt.story() == ""
        # The client may still leave.
        attempt.cancel()
        assert counts(pool) == [1]
    finally:
        gc.enable()
