"""A running pool: what it holds through reloads, who is told, and its backends as Twisted endpoints."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol

from wsrouter.backends.discovery import Discovery
from wsrouter.backends.pool import BackendPool
from wsrouter.backends.tls import PoolTls
from wsrouter.config.values import Backend, BackendTls, Balance, Check, CheckKind, Pool, Sticky
from wsrouter.errors import BackendError, DialError
from wsrouter.policy.health import Hand, State
from wsrouter.policy.members import Member

NAMED = Backend("name.invalid", 1)
A, B, C = Backend("127.0.0.1", 1), Backend("127.0.0.1", 2), Backend("127.0.0.1", 3)
CHECK = Check(CheckKind.TCP, interval=10.0)
REFUSED = DialError("connection refused")


def backend_at(server: Any, **more: Any) -> Backend:
    return Backend(*server.getsockname(), **more)


def pool_of(rig: Any, *backends: Backend, **more: Any) -> BackendPool:
    return BackendPool(rig.relay, Pool("app", backends, **more), Discovery(rig, object(), backends))  # type: ignore[arg-type]


def reconfigured(pool: BackendPool, *backends: Backend, **more: Any) -> None:
    config = replace(pool.config, **{"backends": backends or pool.config.backends} | more)
    pool.reconfigure(config, pool.keepalive, PoolTls.read(config))


# Choosing.


def test_a_preferred_member_comes_first_if_it_takes_one_more_and_was_not_tried(rig):
    pool = pool_of(rig, A, B, balance=Balance.FIRST)
    one, other = pool.members
    assert pool.pick() is one
    assert pool.pick(preferred=other) is other
    assert pool.pick(excluded=[other], preferred=other) is one
    pool.table.by_hand(other, 0.0, Hand.DRAIN)
    assert pool.pick(preferred=other) is one


def test_a_preferred_member_may_be_a_backup_or_one_without_weight(rig):
    pool = pool_of(rig, A, replace(B, backup=True), replace(C, weight=0))
    assert [pool.pick(preferred=member) for member in pool.members] == list(pool.members)
    assert [pool.pick() for _ in range(3)] == [pool.members[0]] * 3


@pytest.mark.parametrize(
    ("down", "why"), [((), "is full"), ((0,), "is full"), ((0, 1), "is down")], ids=["none", "one", "both"]
)
def test_a_refusal_tells_full_from_down(rig, down, why):
    pool = pool_of(rig, A, B)
    for place in down:
        pool.table.by_hand(pool.members[place], 0.0, Hand.DOWN)
    refusal = pool.refusal()
    assert (refusal.status, refusal.reason) == (503, f"pool app: every backend {why}")


# Health.


def test_failures_of_openings_eject_and_a_success_ends_the_trial(rig):
    pool = pool_of(rig, A, B, max_failures=2, failure_time=10.0)
    pool.start()
    bad, _ = pool.members
    pool.failed(bad, REFUSED)
    pool.failed(bad, BackendError(502, "no 101"))
    assert pool.table[bad].state is State.EJECTED
    assert pool.table[bad].why == "no 101 (2 failures within 10 s)"
    assert [pool.pick() for _ in range(3)] == [pool.members[1]] * 3
    rig.advance(10.1)
    assert bad.available
    pool.failed(bad, REFUSED)
    assert pool.table[bad].state is State.EJECTED
    rig.advance(10.1)
    pool.worked(bad)
    pool.failed(bad, REFUSED)
    assert pool.table[bad].state is State.UP
    pool.stop()
    assert not rig.getDelayedCalls()


def test_the_last_one_standing_is_never_ejected(rig):
    pool = pool_of(rig, A, B, max_failures=1)
    for _ in range(3):
        for member in pool.members:
            pool.failed(member, REFUSED)
    assert [member.available for member in pool.members] == [False, True]
    pool.stop()


def test_who_goes_down_by_hand_or_by_its_checks_is_told_of_and_who_is_ejected_or_drained_is_not(rig):
    pool = pool_of(rig, A, B, C, max_failures=1, check=replace(CHECK, fall=1))
    gone: list[Member] = []
    pool.observe_gone(gone.append)
    one, two, three = pool.members
    pool.failed(one, REFUSED)
    pool.table.by_hand(two, 0.0, Hand.DRAIN)
    assert gone == []
    pool.table.by_hand(two, 0.0, Hand.DOWN)
    pool.table.failed(three, 0.0, "silent")
    assert gone == [two, three]


def test_who_waits_gets_the_place_of_one_that_comes_back(rig):
    pool = pool_of(rig, replace(A, max_sessions=1), B, queue=1)
    one, other = pool.members
    pool.take(one)
    pool.table.by_hand(other, 0.0, Hand.DRAIN)
    served: list[Any] = []
    assert pool.wait(None, served.append)
    assert pool.wait(None, served.append) is None
    pool.table.by_hand(other, 0.0, Hand.UP)
    rig.turn()
    assert served == [other]
    assert other.live == 1


def test_a_pool_that_stops_lets_nobody_wait_on(rig):
    pool = pool_of(rig, replace(A, max_sessions=1), queue=1)
    pool.take(pool.members[0])
    served: list[Any] = []
    pool.wait(None, served.append)
    pool.stop()
    assert served == [None]


def test_a_pool_that_retires_serves_who_waits_and_stops_when_nobody_can_need_it(rig):
    pool = pool_of(rig, replace(A, max_sessions=1), queue=1, queue_timeout=20.0, retry_time=5.0, check=CHECK)
    pool.start()
    (member,) = pool.members
    pool.take(member)
    served: list[Any] = []
    pool.wait(None, served.append)
    pool.retire()
    for _ in range(15):
        rig.pass_time(1.0)
    assert served == []
    pool.give_back(member)
    rig.turn()
    assert served == [member]
    for _ in range(5):
        # It may still have to try another one.
        assert not pool.stopped
        rig.pass_time(1.0)
    for _ in range(10):
        rig.pass_time(1.0)
    assert pool.stopped
    assert not rig.getDelayedCalls()


def test_a_pool_that_retires_lets_who_waits_use_up_its_time(rig):
    pool = pool_of(rig, replace(A, max_sessions=1), queue=1, queue_timeout=60.0, retry_time=5.0)
    pool.take(pool.members[0])
    served: list[Any] = []
    pool.wait(None, served.append)
    reconfigured(pool, queue_timeout=1.0)
    pool.retire()
    for _ in range(59):
        rig.pass_time(1.0)
    assert served == []
    assert not pool.stopped
    for _ in range(12):
        rig.pass_time(1.0)
    assert served == [None]
    assert pool.stopped
    assert not rig.getDelayedCalls()


def test_a_retired_pool_may_be_stopped_before_its_time(rig):
    pool = pool_of(rig, A)
    pool.start()
    pool.retire()
    pool.stop()
    assert not rig.getDelayedCalls()


def test_a_retired_pool_knows_the_addresses_of_its_backends_though_others_forget_them(rig):
    server = rig.server()
    named = Backend("app.internal", server.getsockname()[1])
    pool = pool_of(rig, named)
    discovery = pool.discovery
    discovery._hosts["app.internal"] = [(socket.AF_INET, "127.0.0.1")]
    pool.retire()
    discovery.reconfigure([])
    legs: list[Any] = []
    pool.dial(pool.members[0], legs.append, pytest.fail)
    rig.until(lambda: legs)
    pool.stop()


# Reloads.


def test_who_stays_is_the_same_member_with_its_sessions_and_its_health(rig):
    pool = pool_of(rig, A, B)
    one, other = pool.members
    pool.take(one)
    pool.table.by_hand(other, 0.0, Hand.DRAIN)
    reconfigured(pool, C, replace(B, weight=4, max_sessions=7), A)
    third, *rest = pool.members
    assert rest == [other, one]
    assert (one.live, other.live, third.live) == (1, 0, 0)
    assert pool.table[other].state is State.DRAINED
    assert (other.weight, other.backend.max_sessions) == (4, 7)
    pool.give_back(one)
    assert one.live == 0


def test_who_is_new_starts_slowly_and_who_was_there_from_the_beginning_does_not(rig):
    pool = pool_of(rig, A, balance=Balance.LEAST_SESSIONS, slow_start=100.0)
    rig.advance(5.0)
    reconfigured(pool, A, B)
    assert [member.since for member in pool.members] == [None, 5.0]
    rig.advance(10.0)
    chosen = []
    for _ in range(22):
        member = pool.pick()
        assert member is not None
        pool.take(member)
        chosen.append(member)
    # At a tenth of its weight it gets a tenth of what the other has.
    assert [chosen.count(member) for member in pool.members] == [20, 2]


def test_who_leaves_is_told_of_and_gets_nothing_more_but_is_given_back(rig):
    pool = pool_of(rig, A, B)
    gone: list[Member] = []
    pool.observe_gone(gone.append)
    one, other = pool.members
    pool.take(one)
    reconfigured(pool, B)
    assert gone == [one]
    assert not one.takes
    assert pool.members == (other,)
    assert [pool.pick(preferred=one) for _ in range(3)] == [other] * 3
    # What its sessions report is taken, and means nothing any more.
    pool.failed(one, REFUSED)
    pool.worked(one)
    pool.give_back(one)
    assert one.live == 0


def test_one_that_was_down_already_is_told_of_when_it_leaves_all_the_same(rig):
    pool = pool_of(rig, A, B)
    pool.table.by_hand(pool.members[0], 0.0, Hand.DOWN)
    gone: list[Member] = []
    pool.observe_gone(gone.append)
    left = pool.members[0]
    reconfigured(pool, B)
    assert gone == [left]


def test_connections_to_backends_are_told_apart_by_what_they_were_made_of(rig):
    pool = pool_of(rig, A)
    epoch = pool.epoch
    reconfigured(pool)
    assert pool.epoch is not epoch


@pytest.mark.parametrize(
    "opens",
    [
        {"backends": (replace(A, max_sessions=2),)},
        {"backends": (replace(A, max_sessions=1), B)},
        {"backends": (A,)},
    ],
    ids=["more room", "one more", "no limit"],
)
def test_who_waits_gets_a_place_that_a_reload_opens(rig, opens):
    pool = pool_of(rig, replace(A, max_sessions=1), queue=1)
    pool.take(pool.members[0])
    served: list[Any] = []
    pool.wait(None, served.append)
    reconfigured(pool, **opens)
    rig.turn()
    assert served == [pool.members[-1]]
    assert sum(member.live for member in pool.members) == 2


def test_a_reload_without_a_queue_keeps_the_promise_to_those_who_wait(rig):
    pool = pool_of(rig, replace(A, max_sessions=1), queue=1)
    (member,) = pool.members
    pool.take(member)
    served: list[Any] = []
    pool.wait(None, served.append)
    reconfigured(pool, queue=0)
    assert pool.wait(None, served.append) is None
    pool.give_back(member)
    rig.turn()
    assert served == [member]


@pytest.mark.parametrize("same", [True, False], ids=["the same rules", "another balance"])
def test_turns_go_on_where_they_were_unless_the_rules_have_changed(rig, same):
    pool = pool_of(rig, A, B)
    assert pool.pick() is pool.members[0]
    reconfigured(pool, **({"retries": 1} if same else {"balance": Balance.FIRST}))
    assert pool.pick() is pool.members[1 if same else 0]


def test_a_sticky_cookie_that_a_reload_brings_knows_the_members(rig):
    pool = pool_of(rig, A, B)
    assert pool.sticky is None
    reconfigured(pool, sticky=Sticky("id"))
    assert pool.sticky is not None
    for member in pool.members:
        cookie = pool.sticky.set_cookie(member, secure=False).partition(b";")[0]
        assert pool.sticky.member_of(cookie) is member


# Reaching one.


@pytest.mark.parametrize("tls", [BackendTls(verify=False), None], ids=["stays", "goes"])
def test_one_that_has_left_a_pool_with_tls_is_not_dialled_in_the_clear(rig, tls):
    server = rig.server()
    pool = pool_of(rig, backend_at(server), B, tls=BackendTls(verify=False))
    left = pool.members[0]
    reconfigured(pool, B, tls=tls)
    errors: list[DialError] = []
    assert pool.dial(left, lambda leg: None, errors.append) is None
    assert [error.reason for error in errors] == ["it is not of the pool any more"]


def test_a_time_that_is_given_shortens_the_pools_own_and_never_stretches_it(rig):
    server = rig.server()
    # Nobody speaks TLS there: the dial ends with its time.
    pool = pool_of(rig, backend_at(server), tls=BackendTls(verify=False), connect_timeout=2.0)
    (member,) = pool.members
    ended: list[tuple[str, float]] = []
    for name, timeout in (("none", None), ("shorter", 0.5), ("longer", 60.0)):
        pool.dial(
            member,
            lambda leg: None,
            lambda error, name=name: ended.append((name, round(rig.seconds()))),  # type: ignore[misc]
            timeout=timeout,
        )
    for _ in range(12):
        rig.pass_time(0.25)
    assert ended[0] == ("shorter", 1) or ended[0] == ("shorter", 0)
    assert sorted(ended[1:]) == [("longer", 2), ("none", 2)]


class Greeter(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello")


def connecting(pool: BackendPool, factory: Factory | None = None, preface: bytes = b"") -> Deferred[Any]:
    return pool.endpoint(pool.members[0], preface).connect(factory or Factory.forProtocol(Greeter))


@pytest.mark.parametrize("preface", [b"", b"PROXY UNKNOWN\r\n"])
def test_an_endpoint_connects_a_protocol_behind_the_preface(rig, preface):
    server = rig.server()
    found: list[Any] = []
    connecting(pool_of(rig, backend_at(server)), preface=preface).addCallback(found.append)
    rig.until(lambda: found)
    assert rig.accept(server).recv(100) == preface + b"hello"


def test_an_endpoint_tells_of_a_failure(rig, nobody):
    errors: list[Any] = []
    for backend in (Backend(*nobody.sockaddr), NAMED):
        connecting(pool_of(rig, backend)).addErrback(errors.append)
    rig.until(lambda: len(errors) == 2)
    assert {error.value.reason for error in errors} == {"connection refused", "its name does not resolve"}


def test_an_endpoint_whose_factory_wants_no_protocol_aborts(rig):
    backend = backend_at(rig.server())
    factory = Factory()
    factory.buildProtocol = lambda address: None  # type: ignore[method-assign]
    errors: list[Any] = []
    connecting(pool_of(rig, backend), factory).addErrback(errors.append)
    rig.until(lambda: errors)
    assert errors[0].check(DialError)
    rig.settle()
    assert not rig.relay.members


def test_an_endpoint_whose_factory_fails_tells_of_it_and_leaves_nothing(rig, logged_failures):
    backend = backend_at(rig.server())
    factory = Factory()

    def fail(address: object) -> None:
        raise ZeroDivisionError

    factory.buildProtocol = fail  # type: ignore[method-assign,assignment]
    errors: list[Any] = []
    connecting(pool_of(rig, backend), factory).addErrback(errors.append)
    rig.settle()
    logged_failures.flush(ZeroDivisionError)
    assert len(errors) == 1
    assert not rig.relay.members


def test_a_cancelled_connect_dials_no_more(rig):
    backend = backend_at(rig.server())
    errors: list[Any] = []
    attempt = connecting(pool_of(rig, backend), preface=b"hello")
    attempt.addErrback(errors.append)
    attempt.cancel()
    assert errors[0].check(CancelledError)
    rig.settle()
    assert not rig.relay.members
