from __future__ import annotations

import select
import socket
from typing import Any

import pytest
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface.verify import verifyObject

from wsrouter.relay.loop import BATCH, EPOLLIN, ROUNDS, Relay


class Member:
    """Reads one byte for each event."""

    def __init__(self, rig: Any) -> None:
        self.near, self.far = socket.socketpair()
        rig.sockets += [self.near, self.far]
        self.relay = rig.relay
        self.fd = self.near.fileno()
        self.reads = 0
        self.others: list[int] = []
        self.failures: list[Failure] = []
        self.aborted = 0
        self.on_read: Any = lambda: None
        self.relay.members[self.fd] = self
        self.relay.watch(self.fd, EPOLLIN)

    def read(self) -> None:
        self.reads += 1
        self.near.recv(1)
        self.on_read()

    def ready(self, events: int) -> None:
        self.others.append(events)
        self.leave()

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        self.leave()

    def abort(self) -> None:
        self.aborted += 1
        self.leave()

    def leave(self) -> None:
        if self.fd in self.relay.members:
            self.relay.unwatch(self.fd)
            self.relay.members.pop(self.fd)


def test_a_relay_is_one_reader_of_the_reactor(rig):
    assert rig.reactor.readers == [rig.relay]
    assert verifyObject(IReadDescriptor, rig.relay)
    assert rig.relay.logPrefix() == "relay"
    rig.relay.connectionLost(Failure(ValueError()))
    rig.relay.stop()
    assert rig.reactor.readers == []
    assert rig.relay.fileno() == -1
    rig.relay.doRead()
    rig.relay.stop()


def test_its_descriptor_is_readable_while_a_member_is_ready(rig):
    member = Member(rig)
    assert not rig.rest(0)
    member.far.send(b"xy")
    assert rig.rest(0)
    rig.turn(2)
    assert member.reads == 2
    assert not rig.rest(0)


def test_a_turn_has_an_end_though_its_members_are_always_ready(rig):
    members = [Member(rig) for _ in range(3)]
    for member in members:
        member.far.send(b"x" * 1000)
    rig.relay.doRead()
    assert [member.reads for member in members] == [ROUNDS] * 3


def test_more_members_than_one_batch_all_get_their_turn(rig):
    members = [Member(rig) for _ in range(2 * BATCH)]
    for member in members:
        member.far.send(b"x")
    rig.relay.doRead()
    assert all(member.reads == 1 for member in members)


def test_dear_work_ends_a_turn_early(rig):
    members = [Member(rig) for _ in range(2 * BATCH)]

    def dear() -> None:
        rig.relay.heavy += 1

    for member in members:
        member.on_read = dear
        member.far.send(b"x")
    rig.relay.doRead()
    assert sum(member.reads for member in members) == BATCH
    rig.relay.doRead()
    assert sum(member.reads for member in members) == 2 * BATCH


def test_other_events_than_readable_go_to_ready(rig):
    member = Member(rig)
    member.far.close()
    rig.turn()
    assert member.others
    assert member.others[0] & select.EPOLLHUP


def test_an_exception_ends_the_member_once_and_harms_no_other(rig, logged_failures):
    bad, good = Member(rig), Member(rig)

    def fail() -> None:
        raise ZeroDivisionError

    bad.on_read = fail
    bad.far.send(b"xxx")
    good.far.send(b"x")
    rig.turn(3)
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
    assert len(bad.failures) == 1
    assert bad.reads == 1
    assert good.reads == 1


def test_an_exception_over_an_exception_is_only_logged(rig, logged_failures):
    bad, good = Member(rig), Member(rig)

    def fail(*_: Any) -> None:
        bad.leave()
        raise ZeroDivisionError

    bad.on_read = bad.failed = fail
    bad.far.send(b"x")
    good.far.send(b"x")
    rig.turn()
    assert len(logged_failures.flush(ZeroDivisionError)) == 2
    assert good.reads == 1


def test_a_close_waits_for_the_end_of_the_batch(rig):
    first, second = Member(rig), Member(rig)
    # Each closes the other; whoever comes first, the other's event is stale.
    numbers = []

    def close(other: Member) -> None:
        other.leave()
        rig.relay.bury(other.near)
        with socket.socket() as fresh:
            numbers.append(fresh.fileno())
        assert other.near.fileno() >= 0

    first.on_read = lambda: close(second)
    second.on_read = lambda: close(first)
    first.far.send(b"x")
    second.far.send(b"x")
    rig.relay.doRead()
    assert first.reads + second.reads == 1
    assert not {first.fd, second.fd} & set(numbers)
    assert (first.near.fileno() < 0) != (second.near.fileno() < 0)


def test_later_runs_at_the_end_of_the_batch_and_so_does_what_it_queues(rig):
    member = Member(rig)
    order: list[str] = []

    def inner() -> None:
        order.append("inner")

    def outer() -> None:
        order.append("outer")
        rig.relay.later(inner)

    def read() -> None:
        rig.relay.later(outer)
        order.append("read")

    member.on_read = read
    member.far.send(b"x")
    rig.relay.doRead()
    assert order == ["read", "outer", "inner"]
    assert not rig.reactor.getDelayedCalls()


def test_later_outside_of_a_batch_runs_with_the_next_turn_of_the_reactor(rig):
    order: list[int] = []
    rig.relay.later(lambda: order.append(1))
    rig.relay.later(lambda: order.append(2))
    assert order == []
    assert len(rig.reactor.getDelayedCalls()) == 1
    rig.reactor.advance(0)
    assert order == [1, 2]
    assert not rig.reactor.getDelayedCalls()


def test_a_call_that_fails_at_the_end_of_a_batch_holds_no_other_back(rig, logged_failures):
    order: list[int] = []
    rig.relay.later(lambda: order.append(1 // 0))
    rig.relay.later(lambda: order.append(2))
    rig.reactor.advance(0)
    assert order == [2]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


def test_a_stop_aborts_all_members_and_leaves_nothing(rig):
    members = [Member(rig) for _ in range(3)]
    rig.relay.later(lambda: None)
    rig.relay.deadlines.after(5, lambda: None)
    rig.relay.stop()
    assert [member.aborted for member in members] == [1, 1, 1]
    assert not rig.relay.members
    assert not rig.reactor.getDelayedCalls()


def test_a_stop_tells_the_protocols_and_resets_the_peers(rig, recorder):
    protocols = [recorder(), recorder(), recorder()]
    _, one = rig.leg(protocols[0])
    _, two = rig.tls_leg(protocols[1])
    leg, three = rig.leg(protocols[2])
    leg.loseConnection()
    rig.relay.stop()
    assert [len(protocol.lost) for protocol in protocols] == [1, 1, 1]
    for peer in (one, two):
        peer.step()
        assert isinstance(peer.error, ConnectionResetError)
    three.step()


def test_a_stop_from_the_end_of_a_batch_is_the_last_of_it(rig):
    member = Member(rig)
    member.on_read = lambda: rig.relay.later(rig.relay.stop)
    member.far.send(b"xx")
    rig.relay.doRead()
    assert member.reads == 1
    assert member.aborted == 1


def test_a_stop_from_within_a_batch_is_the_last_of_it(rig):
    first, second = Member(rig), Member(rig)
    first.on_read = second.on_read = rig.relay.stop
    first.far.send(b"x")
    second.far.send(b"x")
    rig.relay.doRead()
    assert first.reads + second.reads == 1


def test_a_member_that_fails_to_abort_holds_no_other_back(rig, logged_failures):
    bad, good = Member(rig), Member(rig)

    def fail() -> None:
        bad.leave()
        raise ZeroDivisionError

    bad.abort = fail
    rig.relay.stop()
    assert good.aborted == 1
    assert rig.reactor.readers == []
    logged_failures.flush(ZeroDivisionError)


def test_what_joins_while_the_relay_stops_is_aborted_too(rig, recorder):
    latecomers = []
    protocol = recorder()
    rig.leg(protocol)
    protocol.on_lost = lambda: latecomers.append(Member(rig))
    rig.relay.stop()
    assert latecomers[0].aborted == 1
    assert not rig.relay.members


def test_a_relay_that_never_started_can_be_stopped(rig):
    Relay(rig.reactor).stop()
    assert rig.reactor.readers == [rig.relay]


# Whole protocols on legs.


class Data(Resource):
    """Answers with ``data``."""

    isLeaf = True

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    def render_GET(self, request: Any) -> bytes:
        return self.data


def test_a_site_of_twisted_web_serves_on_a_leg(rig):
    root = Resource()
    root.putChild(b"small", Data(b"hello"))
    root.putChild(b"large", Data(b"x" * 3_000_000))
    site = Site(root, reactor=rig.reactor)
    site.startFactory()
    leg, peer = rig.leg()
    leg.attach(site.buildProtocol(leg.getPeer()))
    for _ in range(2):
        peer.send(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
    rig.until(lambda: peer.received.count(b"hello") == 2)
    peer.received.clear()
    peer.send(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    rig.until(lambda: peer.ended)
    assert peer.received.endswith(b"x" * 3_000_000)
    peer.close()
    rig.settle()
    site.stopFactory()


def test_a_site_of_twisted_web_serves_on_a_tls_leg(rig):
    site = Site(Data(b"x" * 500_000), reactor=rig.reactor)
    leg, peer = rig.tls_leg()
    leg.attach(site.buildProtocol(leg.getPeer()))
    peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    rig.until(lambda: peer.notified)
    assert peer.plain.endswith(b"x" * 500_000)
    peer.close()
    rig.settle()


class Echo(WebSocketServerProtocol):
    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)


class Asker(WebSocketClientProtocol):
    def onOpen(self) -> None:
        self.sendMessage(self.factory.question, True)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.factory.answers.append(payload)
        self.sendClose(1000)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.factory.closes.append((wasClean, code))


@pytest.mark.parametrize("size", [5, 100_000])
def test_autobahns_server_and_client_meet_on_legs(rig, size, monkeypatch):
    import txaio

    txaio.use_twisted()
    monkeypatch.setattr(txaio.config, "loop", rig.reactor)
    servers = WebSocketServerFactory("ws://127.0.0.1:9000", reactor=rig.reactor)
    servers.protocol = Echo
    clients = WebSocketClientFactory("ws://127.0.0.1:9000", reactor=rig.reactor)
    clients.protocol = Asker
    clients.question = b"q" * size
    clients.answers = []
    clients.closes = []
    server_leg, client_leg = two_legs(rig)
    server_leg.attach(servers.buildProtocol(server_leg.getPeer()))
    client_leg.attach(clients.buildProtocol(client_leg.getPeer()))
    rig.until(lambda: clients.closes)
    assert clients.answers == [clients.question]
    assert clients.closes == [(True, 1000)]


def two_legs(rig: Any) -> tuple[Any, Any]:
    """Two legs that are each other's peers."""
    near, far = rig.pair()
    far.setblocking(False)
    leg_class = type(rig.leg()[0])
    return leg_class(rig.relay, near, near.getpeername()), leg_class(rig.relay, far, far.getpeername())
