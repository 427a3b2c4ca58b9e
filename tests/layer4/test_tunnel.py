"""Tunnels on real legs, with a pool whose dials end when the test says so. Whole routers: tests/integration."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.turning import FarEnd, Meeting
from wsrouter.backends.discovery import Discovery
from wsrouter.backends.pool import BackendPool
from wsrouter.config.values import Backend, Match, Pool
from wsrouter.config.values import Tunnel as Rule
from wsrouter.errors import DialError
from wsrouter.layer4.tunnel import Layer4
from wsrouter.live.connection import Connection
from wsrouter.live.idle import IdleSweeper
from wsrouter.live.registry import Counts, End, Entry, Refusal, Registry, Who
from wsrouter.policy.members import Member
from wsrouter.relay.leg import Leg

pytestmark = pytest.mark.interpreted

ONE, TWO = Backend("127.0.0.1", 1), Backend("127.0.0.1", 2)
RULE = Rule("all", "app", Match.ANY, idle_timeout=80.0)


class FakeDial:
    """A dial that ends when the test says so."""

    def __init__(
        self,
        member: Member,
        connected: Callable[[Leg], None],
        failed: Callable[[DialError], None],
        preface: bytes = b"",
        timeout: float | None = None,
    ) -> None:
        self.member = member
        self.connected = connected
        self.failed = failed
        self.preface = preface
        self.timeout = timeout
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Scene(Meeting):
    """One client whose tunnel is being opened; ``ends``, ``opened`` and ``refusals`` are what the registry tells."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.registry.observers.append(self)  # type: ignore[arg-type]
        self.entries: list[Any] = []
        self.ends: list[End] = []
        self.refusals: list[Refusal] = []
        self.dials: list[FakeDial] = []
        discovery = Discovery(self.clock, object(), [ONE, TWO])  # type: ignore[arg-type]
        self.pool: Any = BackendPool(self.relay, Pool("app", (ONE, TWO)), discovery)
        self.pool.dial = self._dial
        self.layer4 = Layer4(self.relay, self.registry, {"app": self.pool}, IdleSweeper(self.clock))
        self.client_leg, self.client = self.leg()

    def open(self, prefetch: bytes = b"", rule: Rule = RULE) -> None:
        self.layer4.open(self.client_leg, Connection(1, "10.0.0.1", 5, "main"), rule, prefetch)

    def live(self, prefetch: bytes = b"", rule: Rule = RULE) -> tuple[Any, FarEnd]:
        """A tunnel that lives, and the backend's end of it."""
        self.open(prefetch, rule)
        leg, server = self.leg()
        self.dials[-1].connected(leg)
        return self.entries[-1], server

    def opened(self, entry: Entry) -> None:
        self.entries.append(entry)

    def closed(self, entry: Entry, end: End) -> None:
        self.ends.append(end)

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def _dial(self, *asked: Any) -> FakeDial:
        self.dials.append(FakeDial(*asked))
        return self.dials[-1]

    @property
    def clean(self) -> bool:
        """Nothing is left of any tunnel: no entry, no count of a backend, no leg."""
        return not self.registry.entries and not any(one.live for one in self.pool.members) and not self.relay.members

    def close(self) -> None:
        self.relay.stop()
        self.layer4.idle.stop()
        for peer in self.peers:
            peer.socket.close()
        assert self.clean
        assert not self.clock.getDelayedCalls()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


# Before it lives.


def test_nothing_is_read_from_the_client_while_the_backend_is_dialled(scene):
    scene.open(b"first ")
    scene.client.socket.send(b"second")
    for _ in range(5):
        scene.turn()
    assert not scene.client_leg.is_reading
    assert not scene.registry.entries
    leg, server = scene.leg()
    scene.dials[0].connected(leg)
    scene.until(lambda: server.received == b"first second")


def test_a_client_that_is_reset_while_the_backend_is_dialled_stops_the_dial(scene):
    scene.open()
    assert scene.dials[0].member.live == 1
    scene.client.reset()
    scene.until(lambda: scene.clean)
    assert scene.dials[0].cancelled
    assert scene.entries == scene.ends == []
    assert [refusal.reason for refusal in scene.refusals] == ["the client left before a backend was reached"]


def test_a_router_that_stops_while_the_backend_is_dialled_stops_the_dial(scene):
    scene.open()
    scene.relay.stop()
    assert scene.dials[0].cancelled
    assert scene.clean
    assert len(scene.refusals) == 1


def test_a_backend_that_fails_is_passed_over_and_the_entry_tells_of_it(scene):
    scene.open()
    first = scene.dials[0]
    first.failed(DialError("connection refused"))
    assert [dial.member.backend for dial in scene.dials] in ([ONE, TWO], [TWO, ONE])
    leg, _ = scene.leg()
    scene.dials[1].connected(leg)
    [entry] = scene.entries
    assert entry.facts.tried == f"{first.member.label} connection refused"
    assert entry.facts.backend == scene.dials[1].member.label
    assert (first.member.live, scene.dials[1].member.live) == (0, 1)


def test_when_every_backend_fails_the_client_is_closed_and_the_log_says_why(scene):
    scene.open(b"hello")
    scene.dials[0].failed(DialError("connection refused"))
    scene.dials[1].failed(DialError("no connection in time", timed_out=True))
    scene.until(lambda: scene.client.ended)
    assert scene.client.ended == "fin"
    scene.client.socket.close()
    scene.until(lambda: scene.clean)
    [refusal] = scene.refusals
    assert (refusal.stage, refusal.rule, refusal.status, refusal.client) == ("tunnel", "all", None, "10.0.0.1:5")
    assert "connection refused" in refusal.reason
    assert "no connection in time" in refusal.reason
    assert scene.entries == scene.ends == []


def test_a_pool_that_is_full_closes_the_client_at_once(scene):
    scene.pool.pick = lambda key=None, excluded=(), preferred=None: None
    scene.open(b"hello")
    [refusal] = scene.refusals
    assert refusal.reason == "pool app: every backend is full"
    scene.until(lambda: scene.client.ended == "fin")


def test_a_client_that_was_aborted_in_the_turn_in_which_the_dial_ended_takes_the_backend_with_it(scene):
    scene.open()
    leg, server = scene.leg()
    scene.client_leg.abortConnection()
    scene.dials[0].connected(leg)
    scene.until(lambda: server.ended)
    scene.until(lambda: scene.clean)
    assert len(scene.ends) == len(scene.entries)


# While it lives.


def test_the_facts_and_counts_are_those_of_the_connection(scene):
    entry, server = scene.live(b"hello")
    scene.until(lambda: server.received == b"hello")
    server.socket.send(b"hi")
    scene.until(lambda: scene.client.received == b"hi")
    facts = entry.facts
    assert (facts.client, facts.client_ip, facts.listener) == ("10.0.0.1:5", "10.0.0.1", "main")
    assert (facts.rule, facts.pool, facts.sni, facts.tried) == ("all", "app", "", "")
    assert entry.counts() == Counts(5, 2)
    assert entry.activity() == 7
    assert scene.registry.entries == {1: entry}


def test_a_polite_end_leaves_a_tunnel_as_it_is(scene):
    entry, server = scene.live()
    entry.end(1001, "the router is shutting down")
    scene.client.socket.send(b"still here")
    scene.until(lambda: server.received == b"still here")
    assert scene.ends == []


def test_an_abort_resets_both_sides_and_is_the_routers(scene):
    entry, server = scene.live()
    entry.abort()
    scene.until(lambda: server.ended and scene.client.ended)
    assert (scene.client.ended, server.ended) == ("reset", "reset")
    assert scene.ends == [End(Who.ROUTER, None, "cut")]
    assert scene.clean
    entry.abort()


def test_who_closed_first_is_the_one_who_ended_it(scene):
    _, server = scene.live()
    server.socket.shutdown(socket.SHUT_WR)
    scene.until(lambda: scene.client.ended == "fin")
    # The other direction goes on.
    scene.client.socket.send(b"goodbye")
    scene.until(lambda: server.received == b"goodbye")
    assert scene.ends == []
    scene.client.socket.shutdown(socket.SHUT_WR)
    scene.until(lambda: scene.ends)
    assert scene.ends == [End(Who.BACKEND, None, "closed")]
    assert scene.clean


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_reset_is_passed_on_as_a_reset(scene, first):
    _, server = scene.live()
    breaks, other = (scene.client, server) if first == "client" else (server, scene.client)
    breaks.reset()
    scene.until(lambda: other.ended)
    assert other.ended == "reset"
    assert scene.ends == [End(Who(first), None, "connection reset by peer")]
    assert scene.clean


# Idleness.


def test_idleness_closes_both_sides_in_order(scene):
    _, server = scene.live()
    scene.clock.pump([10.0] * 10)
    scene.until(lambda: server.ended and scene.client.ended)
    assert (scene.client.ended, server.ended) == ("fin", "fin")
    for peer in (scene.client, server):
        peer.socket.close()
    scene.until(lambda: scene.clean)
    assert scene.ends == [End(Who.ROUTER, None, "idle")]


def test_an_idle_tunnel_whose_client_takes_nothing_ends_all_the_same(scene):
    _, server = scene.live()
    scene.client.read = lambda: None  # type: ignore[method-assign]
    sent = 0
    for _ in range(400):
        try:
            sent += server.socket.send(bytes(65536))
        except BlockingIOError:
            pass
        scene.turn()
    assert scene.client_leg.pending is not None
    scene.clock.pump([10.0] * 30)
    scene.until(lambda: scene.clean)
    assert [end.who for end in scene.ends] == [Who.ROUTER]


def test_bytes_put_idleness_off(scene):
    _, server = scene.live()
    for _ in range(8):
        scene.client.socket.send(b"x")
        received = len(server.received)
        scene.until(lambda received=received: len(server.received) > received)
        scene.clock.pump([10.0] * 6)
    assert scene.ends == []


def test_without_a_timeout_a_tunnel_is_not_watched(scene):
    entry, _ = scene.live(rule=Rule("all", "app", Match.ANY, idle_timeout=None))
    scene.clock.advance(1e6)
    assert not scene.clock.getDelayedCalls()
    assert scene.ends == []
    entry.abort()
    scene.until(lambda: scene.clean)
