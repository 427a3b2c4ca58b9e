from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Factory, Protocol

from wsrouter.backends.discovery import Discovery
from wsrouter.backends.pool import Attempt, BackendPool
from wsrouter.config.values import Backend, Pool
from wsrouter.errors import DialError

NAMED = Backend("name.invalid", 1)
OTHER = Backend("other.invalid", 1)


def backend_at(server: Any, **more: Any) -> Backend:
    return Backend(*server.getsockname(), **more)


def pool_of(rig: Any, *backends: Backend, **more: Any) -> BackendPool:
    return BackendPool(rig.relay, Pool("app", backends, **more), Discovery(rig, object(), backends))  # type: ignore[arg-type]


class Seeker:
    """An attempt, and what came of it."""

    def __init__(self, pool: BackendPool) -> None:
        self.legs: list[tuple[Any, Backend]] = []
        self.errors: list[Any] = []
        self.attempt = Attempt(pool, lambda leg, backend: self.legs.append((leg, backend)), self.errors.append)
        self.attempt.start()

    @property
    def over(self) -> bool:
        return bool(self.legs or self.errors)


def test_an_attempt_reaches_a_backend_and_counts_it(rig):
    backend = backend_at(rig.server())
    pool = pool_of(rig, backend)
    seeker = Seeker(pool)
    assert pool.live == {backend: 1}
    rig.until(lambda: seeker.over)
    assert seeker.legs[0][1] == backend
    assert pool.live == {backend: 1}
    assert seeker.attempt.story() == ""
    seeker.attempt.cancel()
    assert pool.live == {backend: 1}
    pool.give_back(backend)
    assert pool.live == {backend: 0}


def test_sessions_take_turns(rig):
    backends = [backend_at(rig.server()) for _ in range(3)]
    pool = pool_of(rig, *backends)
    seekers = [Seeker(pool) for _ in range(6)]
    rig.until(lambda: all(seeker.over for seeker in seekers))
    assert list(pool.live.values()) == [2, 2, 2]


def test_a_backend_that_refuses_is_followed_by_another_and_given_back(rig, nobody):
    dead = Backend(*nobody.sockaddr)
    alive = backend_at(rig.server())
    pool = pool_of(rig, dead, alive)
    seekers = [Seeker(pool) for _ in range(2)]
    rig.until(lambda: all(seeker.over for seeker in seekers))
    assert [seeker.legs[0][1] for seeker in seekers] == [alive] * 2
    assert pool.live == {dead: 0, alive: 2}
    assert f"{dead.label} connection refused" in "".join(seeker.attempt.story() for seeker in seekers)


def test_when_all_refuse_it_is_503_with_the_story(rig, nobody):
    dead = Backend(*nobody.sockaddr)
    pool = pool_of(rig, dead)
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    assert seeker.errors[0].status == 503
    assert seeker.errors[0].reason == f"pool app: no backend answers: {dead.label} connection refused"
    assert pool.live == {dead: 0}


def test_retries_have_an_end(rig, nobody):
    host, port = nobody.sockaddr
    backends = [Backend(host, port, weight=number + 1) for number in range(5)]
    seeker = Seeker(pool_of(rig, *backends, retries=1))
    rig.until(lambda: seeker.over)
    assert len(seeker.attempt.tried) == 2
    assert not any(seeker.attempt.pool.live.values())


@pytest.mark.parametrize(
    ("error", "status"),
    [(DialError("x", timed_out=True), 504), (DialError("x", nonsense=True), 502), (DialError("x"), 503)],
)
def test_the_last_failure_gives_the_status(rig, error, status):
    backend = backend_at(rig.server())
    pool = pool_of(rig, backend)
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    seeker.attempt.retry(error)
    assert seeker.errors[0].status == status
    assert pool.live == {backend: 0}


def test_a_retry_goes_to_another_backend(rig):
    backends = [backend_at(rig.server()) for _ in range(2)]
    pool = pool_of(rig, *backends)
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    first = seeker.legs[0][1]
    seeker.attempt.retry(DialError("no good"))
    rig.until(lambda: len(seeker.legs) == 2)
    assert {first, seeker.legs[1][1]} == set(backends)
    assert pool.live == {first: 0, seeker.legs[1][1]: 1}


def test_full_backends_are_not_tried(rig):
    backend = backend_at(rig.server(), max_sessions=1)
    pool = pool_of(rig, backend)
    first, second = Seeker(pool), Seeker(pool)
    assert second.errors[0].status == 503
    assert "full" in second.errors[0].reason
    rig.until(lambda: first.over)
    assert pool.live == {backend: 1}


def test_a_cancel_gives_the_backend_back_once_and_calls_nobody(rig):
    backend = backend_at(rig.server())
    pool = pool_of(rig, backend)
    seeker = Seeker(pool)
    seeker.attempt.cancel()
    seeker.attempt.cancel()
    rig.settle()
    assert not seeker.over
    assert pool.live == {backend: 0}
    assert not rig.relay.members


def test_names_that_do_not_resolve_are_passed_over(rig):
    backend = backend_at(rig.server())
    pool = pool_of(rig, NAMED, OTHER, backend)
    seeker = Seeker(pool)
    rig.until(lambda: seeker.over)
    assert seeker.legs[0][1] == backend
    assert pool.live == {NAMED: 0, OTHER: 0, backend: 1}


def test_when_no_name_resolves_it_is_503_at_once(rig):
    pool = pool_of(rig, NAMED, OTHER)
    seeker = Seeker(pool)
    assert seeker.errors[0].status == 503
    assert "its name does not resolve" in seeker.errors[0].reason
    assert not any(pool.live.values())


def test_cancel_reaches_the_dial_behind_a_name_that_does_not_resolve(rig):
    backend = backend_at(rig.server())
    pool = pool_of(rig, NAMED, backend)
    for _ in range(2):
        seeker = Seeker(pool)
        seeker.attempt.cancel()
        rig.settle()
        assert not seeker.over
        assert not any(pool.live.values())
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
    finally:
        gc.enable()


# As an endpoint of Twisted.


class Greeter(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello")


def test_an_endpoint_connects_a_protocol(rig):
    server = rig.server()
    backend = backend_at(server)
    found: list[Any] = []
    pool_of(rig, backend).endpoint(backend).connect(Factory.forProtocol(Greeter)).addCallback(found.append)
    rig.until(lambda: found)
    assert rig.accept(server).recv(10) == b"hello"


def test_an_endpoint_tells_of_a_failure(rig, nobody):
    errors: list[Any] = []
    for backend in (Backend(*nobody.sockaddr), NAMED):
        pool_of(rig, backend).endpoint(backend).connect(Factory.forProtocol(Greeter)).addErrback(errors.append)
    rig.until(lambda: len(errors) == 2)
    assert {error.value.reason for error in errors} == {"connection refused", "its name does not resolve"}


def test_an_endpoint_whose_factory_wants_no_protocol_aborts(rig):
    backend = backend_at(rig.server())
    factory = Factory()
    factory.buildProtocol = lambda address: None  # type: ignore[method-assign]
    errors: list[Any] = []
    pool_of(rig, backend).endpoint(backend).connect(factory).addErrback(errors.append)
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
    pool_of(rig, backend).endpoint(backend).connect(factory).addErrback(errors.append)
    rig.settle()
    logged_failures.flush(ZeroDivisionError)
    assert len(errors) == 1
    assert not rig.relay.members


def test_a_cancelled_connect_dials_no_more(rig):
    backend = backend_at(rig.server())
    errors: list[Any] = []
    connecting = pool_of(rig, backend).endpoint(backend).connect(Factory.forProtocol(Greeter))
    connecting.addErrback(errors.append)
    connecting.cancel()
    assert errors[0].check(CancelledError)
    rig.settle()
    assert not rig.relay.members
