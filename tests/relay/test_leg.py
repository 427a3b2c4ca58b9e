from __future__ import annotations

import os
import socket
import weakref
from typing import Any

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IConsumer, IPushProducer, ITCPTransport, ITransport
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from wsrouter.relay.leg import BUFFER_SIZE, FLUSH, LINGER, Leg

#: More than the kernel takes for a peer that does not read.
FLOOD = b"0123456789abcdef" * (1 << 14)


class Producer:
    """Notes what its consumer asks of it; ``on_resume`` may be replaced."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.on_resume: Any = lambda: None

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")
        self.on_resume()

    def stopProducing(self) -> None:
        self.calls.append("stop")


class Coupling:
    """Notes what legs report."""

    def __init__(self) -> None:
        self.lost: list[tuple[Leg, Exception | None]] = []

    def leg_lost(self, leg: Leg, error: Exception | None) -> None:
        self.lost.append((leg, error))


def stalled(rig: Any, protocol: Any = None) -> tuple[Leg, Any]:
    """A leg whose peer does not read."""
    leg, peer = rig.leg(protocol, 4096)
    peer.greedy = False
    return leg, peer


# A transport.


def test_a_leg_provides_what_it_says(rig, recorder):
    leg, _ = rig.leg(recorder())
    for interface in (ITransport, ITCPTransport, IConsumer, IPushProducer):
        assert verifyObject(interface, leg)


def test_bytes_go_both_ways(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    peer.send(b"ping")
    leg.writeSequence([b"po", b"ng"])
    rig.until(lambda: protocol.data == b"ping" and peer.received == b"pong")


def test_addresses_are_those_of_the_socket(rig, recorder):
    leg, peer = rig.leg(recorder())
    assert (leg.getPeer().host, leg.getPeer().port) == peer.socket.getsockname()
    assert (leg.getHost().host, leg.getHost().port) == peer.socket.getpeername()


def test_addresses_are_known_until_the_loss_was_told(rig, recorder):
    protocol = recorder()
    leg, _ = rig.leg(protocol)
    seen = []
    protocol.on_lost = lambda: seen.append((leg.getHost(), leg.getPeer()))
    leg.abortConnection()
    rig.turn()
    assert seen


def test_addresses_of_ipv6_and_unix_sockets(rig):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        near = socket.create_connection(server.getsockname()[:2])
        far, peername = server.accept()
    near.setblocking(False)
    rig.sockets += [near, far]
    leg = Leg(rig.relay, near, peername)
    assert (leg.getPeer().host, leg.getPeer().port) == peername[:2]
    near, far = socket.socketpair()
    rig.sockets += [near, far]
    leg = Leg(rig.relay, near, "")
    assert leg.getPeer().name is None
    assert leg.getTcpNoDelay()
    leg.setTcpNoDelay(False)


def test_socket_options_are_set_and_told(rig, recorder):
    leg, _ = rig.leg(recorder())
    for value in (False, True):
        leg.setTcpNoDelay(value)
        leg.setTcpKeepAlive(value)
        assert (leg.getTcpNoDelay(), leg.getTcpKeepAlive()) == (value, value)


def test_a_prefetch_comes_first_and_once(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg()
    peer.send(b"second")
    leg.attach(protocol, b"first")
    rig.until(lambda: protocol.data == b"firstsecond")
    rig.settle()
    assert protocol.data == b"firstsecond"


def test_a_protocol_that_pauses_over_its_prefetch_stays_paused(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(recorder())
    protocol.on_data = lambda data: leg.pauseProducing()
    peer.send(b"more")
    leg.attach(protocol, b"first")
    rig.settle()
    assert protocol.data == b"first"
    leg.resumeProducing()
    rig.until(lambda: protocol.data == b"firstmore")


def test_a_protocol_that_pauses_when_it_is_made_stays_paused(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg()
    protocol.on_made = leg.pauseProducing
    peer.send(b"more")
    leg.attach(protocol)
    rig.settle()
    assert not protocol.data


def test_a_protocol_that_closes_when_it_is_made_gets_no_prefetch(rig, recorder):
    protocol = recorder()
    leg, _ = rig.leg()
    protocol.on_made = leg.loseConnection
    leg.attach(protocol, b"data")
    assert not protocol.data


def test_a_second_protocol_takes_over(rig, recorder):
    first, second = recorder(), recorder()
    leg, peer = rig.leg(first)
    first.on_data = lambda data: leg.attach(second, data)
    peer.send(b"hello")
    rig.until(lambda: second.data == b"hello")
    peer.close()
    rig.until(lambda: second.lost)
    assert not first.lost


def test_a_released_socket_serves_another_leg(rig, recorder):
    leg, peer = rig.leg(recorder())
    protocol = recorder()
    other = Leg(rig.relay, leg.release(), leg.peername)
    other.attach(protocol)
    leg.abortConnection()
    peer.send(b"still here")
    rig.until(lambda: protocol.data == b"still here")


# Writing.


def test_partial_writes_arrive_whole_and_in_order(rig, recorder):
    leg, peer = stalled(rig, recorder())
    for _ in range(3):
        leg.write(FLOOD)
    assert leg.pending
    rig.turn(5)
    peer.greedy = True
    rig.until(lambda: len(peer.received) == 3 * len(FLOOD))
    assert peer.received == 3 * FLOOD
    assert leg.pending is None
    rig.settle()
    assert not rig.spin()


def test_writes_of_nothing_and_behind_the_end_are_ignored(rig, recorder):
    leg, peer = rig.leg(recorder())
    leg.write(b"")
    leg.loseConnection()
    leg.write(b"late")
    rig.until(lambda: peer.ended)
    assert not peer.received


def test_a_write_to_a_reset_connection_is_the_end_of_it_at_the_end_of_the_batch(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    leg.pauseProducing()
    peer.reset()
    for _ in range(3):
        leg.write(b"x")
    assert not protocol.lost
    rig.turn()
    assert len(protocol.lost) == 1


@pytest.mark.parametrize("how", ["send", "finish", "reset"])
def test_a_leg_tells_that_something_lies_unread_and_leaves_it_there(rig, recorder, how):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    assert not leg.has_unread()
    leg.pauseProducing()
    if how == "send":
        peer.send(b"x")
    else:
        getattr(peer, how)()
    rig.until(leg.has_unread)
    assert leg.has_unread()
    leg.resumeProducing()
    rig.until(lambda: protocol.data or protocol.lost)
    assert protocol.data == (b"x" if how == "send" else b"")
    assert leg.has_unread() is (how != "send")


# Pausing.


def test_a_paused_leg_reads_nothing_and_keeps_nobody_awake(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    leg.pauseProducing()
    peer.send(b"wait")
    rig.settle()
    assert not protocol.data
    assert not rig.spin()
    leg.resumeProducing()
    rig.until(lambda: protocol.data == b"wait")


@pytest.mark.parametrize("how", ["reset", "close"])
def test_hang_ups_and_errors_wake_nobody_while_nothing_is_wanted(rig, half_closer, how):
    protocol = half_closer()
    leg, peer = rig.leg(protocol)
    leg.pauseProducing()
    peer.send(b"unread")
    leg.finish_writing()
    getattr(peer, how)()
    rig.turn(3)
    assert not rig.spin()
    assert not protocol.lost
    leg.resumeProducing()
    rig.until(lambda: protocol.lost)


@pytest.mark.parametrize("said", [b"", b"unread"])
def test_a_leg_that_awaits_the_end_reads_nothing_and_notices_a_reset(rig, recorder, said):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    leg.await_end()
    peer.send(said)
    rig.turn(3)
    assert not rig.spin()
    peer.reset()
    rig.until(lambda: protocol.lost)
    assert not protocol.data
    assert isinstance(protocol.lost[0], ConnectionResetError)
    assert protocol.lost[0].strerror == "Connection reset by peer"


def test_what_is_written_meanwhile_does_not_end_the_wait_for_a_reset(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(protocol, 16384)
    peer.greedy = False
    leg.await_end()
    data = b"x" * (1 << 20)
    leg.write(data)
    assert leg.pending is not None
    peer.greedy = True
    rig.until(lambda: len(peer.received) == len(data))
    peer.send(b"unread")
    rig.turn(3)
    assert not rig.spin()
    peer.reset()
    rig.until(lambda: protocol.lost)
    assert not protocol.data
    assert isinstance(protocol.lost[0], ConnectionResetError)


def test_a_reset_behind_a_fin_is_noticed_too(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    leg.await_end()
    peer.send(b"unread")
    peer.finish()
    rig.turn(3)
    # It may wait for an answer.
    assert not rig.spin()
    assert not protocol.lost
    peer.reset()
    rig.until(lambda: protocol.lost)
    assert not protocol.data


def test_what_was_said_before_an_end_in_order_is_read_after_the_wait_for_it(rig, half_closer):
    protocol = half_closer()
    leg, peer = rig.leg(protocol)
    leg.await_end()
    peer.send(b"unread")
    peer.close()
    rig.turn(3)
    assert not rig.spin()
    leg.resumeProducing()
    rig.until(lambda: protocol.read_ended)
    assert protocol.data == b"unread"


def test_a_unix_client_that_hangs_up_in_order_wakes_nobody_and_is_read_later(rig, half_closer):
    near, far = socket.socketpair()
    near.setblocking(False)
    protocol = half_closer()
    leg = Leg(rig.relay, near, "")
    leg.attach(protocol)
    leg.await_end()
    far.send(b"unread")
    far.close()
    rig.turn(3)
    assert not rig.spin()
    assert not protocol.lost
    leg.resumeProducing()
    rig.until(lambda: protocol.read_ended)
    assert protocol.data == b"unread"


def test_both_fins_with_unread_data_wake_nobody(rig, half_closer):
    protocol = half_closer()
    leg, peer = rig.leg(protocol)
    leg.pauseProducing()
    peer.send(b"unread")
    peer.finish()
    leg.finish_writing()
    rig.turn(3)
    assert not rig.spin()
    leg.resumeProducing()
    rig.until(lambda: protocol.lost)
    assert protocol.data == b"unread"
    assert protocol.lost[0].__class__ is ConnectionDone


def test_a_stale_event_after_a_pause_is_no_loss(rig, half_closer, recorder):
    first, second = recorder(), half_closer()
    _, one_peer = rig.leg(first)
    two, two_peer = rig.leg(second)
    two.finish_writing()
    first.on_data = lambda data: two.pauseProducing()
    # Both are ready in one batch, the one that pauses first; the other with data and a hang-up.
    one_peer.send(b"pause him")
    two_peer.send(b"unread")
    two_peer.finish()
    rig.relay.doRead()
    assert first.data
    if not second.data:
        assert not second.lost
    rig.turn(2)
    assert not second.lost
    two.resumeProducing()
    rig.until(lambda: second.lost)
    assert second.data == b"unread"


def test_a_hang_up_for_a_leg_that_is_no_longer_watched_is_ignored(rig, half_closer):
    protocol = half_closer()
    leg, peer = rig.leg(protocol)
    leg.pauseProducing()
    peer.send(b"unread")
    leg.ready(0x1 | 0x10)
    rig.turn()
    assert not protocol.lost


def test_nothing_is_read_from_a_leg_that_was_lost_while_it_was_flushed(rig, recorder):
    protocol, producer = recorder(), Producer()
    leg, peer = stalled(rig, protocol)
    leg.registerProducer(producer, True)
    producer.on_resume = leg.abortConnection
    leg.write(FLOOD)
    peer.send(b"behind the end")
    peer.greedy = True
    rig.until(lambda: protocol.lost)
    protocol.data.clear()
    # The same, with both wishes in one event.
    protocol, producer = recorder(), Producer()
    leg, peer = rig.leg(protocol)
    leg.registerProducer(producer, True)
    producer.on_resume = leg.abortConnection
    peer.send(b"behind the end")
    rig.turn(0)
    while not rig.rest():
        pass
    leg.ready(0x1 | 0x4)
    assert not protocol.data


# Producers.


def test_a_streaming_producer_is_paused_while_the_peer_is_slow(rig, recorder):
    producer = Producer()
    leg, peer = stalled(rig, recorder())
    leg.registerProducer(producer, True)
    leg.write(b"small")
    assert producer.calls == []
    leg.write(FLOOD)
    assert producer.calls == ["pause"]
    peer.greedy = True
    rig.until(lambda: len(peer.received) == 5 + len(FLOOD))
    assert producer.calls == ["pause", "resume"]


def test_a_streaming_producer_that_comes_when_the_peer_is_slow_is_paused_at_once(rig, recorder):
    producer = Producer()
    leg, _ = stalled(rig, recorder())
    leg.write(FLOOD)
    leg.registerProducer(producer, True)
    assert producer.calls == ["pause"]


def test_a_second_producer_is_refused(rig, recorder):
    leg, _ = rig.leg(recorder())
    leg.registerProducer(Producer(), True)
    with pytest.raises(RuntimeError, match="is registered"):
        leg.registerProducer(Producer(), True)


def test_a_pull_producer_is_asked_until_it_is_done(rig, recorder):
    producer = Producer()
    leg, peer = rig.leg(recorder())
    pieces = [FLOOD, b"a", b"b"]

    def give() -> None:
        if pieces:
            leg.write(pieces.pop(0))
        else:
            leg.unregisterProducer()

    producer.on_resume = give
    leg.registerProducer(producer, False)
    rig.until(lambda: len(peer.received) == len(FLOOD) + 2)
    rig.settle()
    assert not rig.spin()
    assert producer.calls == ["resume"] * 4


def test_a_pull_producer_finishes_behind_lose_connection(rig, recorder):
    producer, protocol = Producer(), recorder()
    leg, peer = rig.leg(protocol)
    pieces = [b"one ", b"two ", b"three"]

    def give() -> None:
        if pieces:
            leg.write(pieces.pop(0))
        else:
            leg.unregisterProducer()

    producer.on_resume = give
    leg.registerProducer(producer, False)
    leg.loseConnection()
    rig.until(lambda: peer.ended)
    assert peer.received == b"one two three"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_producer_that_comes_after_the_loss_is_stopped(rig, recorder, streaming):
    producer = Producer()
    leg, _ = rig.leg(recorder())
    leg.abortConnection()
    leg.registerProducer(producer, streaming)
    assert producer.calls == ["stop"]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_producer_that_comes_while_the_leg_lingers_is_stopped_and_keeps_nobody_awake(rig, recorder, streaming):
    producer = Producer()
    leg, peer = rig.leg(recorder())
    leg.loseConnection()
    rig.until(lambda: peer.ended)
    leg.registerProducer(producer, streaming)
    assert not rig.spin()
    assert producer.calls == ["stop"]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_loss_stops_the_producer_before_the_protocol_hears(rig, recorder, streaming):
    producer, protocol = Producer(), recorder()
    leg, _ = rig.leg(protocol)
    leg.registerProducer(producer, streaming)
    heard = []
    protocol.on_lost = lambda: heard.extend(producer.calls)
    leg.abortConnection()
    rig.turn()
    assert heard[-1] == "stop"
    assert producer.calls.count("stop") == 1


def test_lose_connection_behind_a_paused_producer_flushes_and_closes(rig, recorder):
    producer, protocol = Producer(), recorder()
    leg, peer = stalled(rig, protocol)
    leg.registerProducer(producer, True)
    leg.write(FLOOD)
    leg.loseConnection()
    peer.greedy = True
    rig.until(lambda: peer.ended)
    assert peer.received == FLOOD
    peer.close()
    rig.until(lambda: protocol.lost)


def test_lose_connection_while_reading_is_paused_flushes_and_closes(rig, recorder):
    protocol = recorder()
    leg, peer = stalled(rig, protocol)
    leg.pauseProducing()
    leg.write(FLOOD)
    leg.loseConnection()
    peer.send(b"dropped")
    peer.greedy = True
    rig.until(lambda: peer.ended)
    assert peer.received == FLOOD
    assert peer.error is None
    peer.finish()
    rig.until(lambda: protocol.lost)
    assert not protocol.data


# The end.


@pytest.mark.parametrize("call", ["loseConnection", "abortConnection", "stopProducing", "loseWriteConnection", "close"])
def test_connection_lost_never_comes_from_inside_a_call_of_the_protocol(rig, recorder, call):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    inside = []

    def ending(data: bytes) -> None:
        getattr(leg, call)()
        leg.abortConnection()
        inside.append(list(protocol.lost))

    protocol.on_data = ending
    peer.send(b"x")
    rig.until(lambda: protocol.lost)
    assert inside == [[]]
    assert len(protocol.lost) == 1


def test_connection_lost_comes_once_and_outside_of_a_batch_with_the_next_turn(rig, recorder):
    protocol = recorder()
    leg, _ = rig.leg(protocol)
    leg.abortConnection()
    leg.abortConnection()
    leg.loseConnection()
    assert not protocol.lost
    rig.reactor.advance(0)
    assert [type(error) for error in protocol.lost] == [ConnectionAborted]


def test_an_abort_resets(rig, recorder):
    leg, peer = rig.leg(recorder())
    leg.abortConnection()
    rig.until(lambda: isinstance(peer.error, ConnectionResetError))


def test_a_fin_ends_a_protocol_without_half_close_when_all_is_written(rig, recorder):
    protocol = recorder()
    leg, peer = stalled(rig, protocol)
    leg.write(FLOOD)
    peer.finish()
    rig.turn(3)
    peer.greedy = True
    rig.until(lambda: protocol.lost)
    rig.until(lambda: peer.ended)
    assert peer.received == FLOOD
    assert type(protocol.lost[0]) is ConnectionDone


def test_a_reset_is_told_as_an_error(rig, recorder):
    protocol = recorder()
    _, peer = rig.leg(protocol)
    peer.reset()
    rig.until(lambda: protocol.lost)
    assert isinstance(protocol.lost[0], ConnectionResetError)


def test_a_half_closer_goes_on_writing_behind_the_peers_fin(rig, half_closer):
    protocol = half_closer()
    leg, peer = rig.leg(protocol)
    peer.send(b"question")
    peer.finish()
    rig.until(lambda: protocol.read_ended)
    assert not rig.spin()
    leg.write(b"answer")
    leg.loseConnection()
    rig.until(lambda: peer.ended)
    assert (protocol.data, peer.received) == (b"question", b"answer")
    assert protocol.read_ended == 1
    rig.until(lambda: protocol.lost)


def test_a_leg_reads_on_behind_its_own_fin(rig, half_closer):
    protocol = half_closer()
    leg, peer = stalled(rig, protocol)
    leg.write(FLOOD)
    leg.loseWriteConnection()
    leg.write(b"not behind the fin")
    peer.greedy = True
    rig.until(lambda: peer.ended)
    assert peer.received == FLOOD
    peer.send(b"still read")
    rig.until(lambda: protocol.data == b"still read")
    peer.finish()
    rig.until(lambda: protocol.lost)
    assert type(protocol.lost[0]) is ConnectionDone


def test_a_closed_leg_lingers_so_that_its_last_words_arrive(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    peer.greedy = False
    peer.send(FLOOD)
    rig.until(lambda: protocol.data)
    leg.write(b"refused")
    leg.loseConnection()
    seen = len(protocol.data)
    rig.turn(5)
    peer.send(b"and more")
    rig.settle()
    peer.greedy = True
    rig.until(lambda: peer.ended)
    assert peer.received == b"refused"
    assert peer.error is None
    assert len(protocol.data) == seen
    assert not protocol.lost
    peer.finish()
    rig.until(lambda: protocol.lost)


def test_lingering_has_an_end(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    leg.loseConnection()
    rig.until(lambda: peer.ended)
    rig.advance(LINGER - 0.01)
    assert not protocol.lost
    rig.advance(0.1)
    assert type(protocol.lost[0]) is ConnectionDone


def test_flushing_has_an_end(rig, recorder):
    protocol = recorder()
    leg, _ = stalled(rig, protocol)
    leg.write(FLOOD)
    leg.loseConnection()
    rig.advance(FLUSH - 0.01)
    assert not protocol.lost
    rig.advance(0.1)
    assert type(protocol.lost[0]) is ConnectionAborted


def test_a_reset_while_flushing_is_the_end(rig, recorder):
    protocol = recorder()
    leg, peer = stalled(rig, protocol)
    leg.write(FLOOD)
    leg.loseConnection()
    peer.reset()
    rig.until(lambda: protocol.lost)


def test_close_does_not_linger(rig, recorder):
    protocol = recorder()
    leg, peer = stalled(rig, protocol)
    leg.write(FLOOD)
    leg.close()
    peer.greedy = True
    rig.until(lambda: peer.ended and protocol.lost)
    assert peer.received == FLOOD


def test_a_peer_that_hangs_up_while_the_leg_lingers_keeps_nobody_awake(rig, recorder):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    leg.loseConnection()
    peer.reset()
    rig.until(lambda: protocol.lost)
    rig.settle()


# Failures.


@pytest.mark.parametrize("where", ["data", "resume", "read ended", "end"])
def test_an_exception_in_a_protocol_ends_that_leg_alone(rig, recorder, half_closer, logged_failures, where):
    innocent = recorder()
    _, other = rig.leg(innocent)
    protocol = half_closer() if where == "read ended" else recorder()
    leg, peer = stalled(rig, protocol)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    if where == "data":
        protocol.on_data = fail
        peer.send(b"x")
    elif where == "resume":
        producer = Producer()
        producer.on_resume = fail
        leg.registerProducer(producer, True)
        leg.write(FLOOD)
        peer.greedy = True
    elif where == "read ended":
        protocol.readConnectionLost = fail
        peer.finish()
    else:
        protocol.on_lost = fail
        peer.close()
    rig.until(lambda: protocol.lost)
    rig.settle()
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
    assert leg.fd not in rig.relay.members
    other.send(b"unharmed")
    rig.until(lambda: innocent.data == b"unharmed")


def test_a_producer_that_fails_when_it_is_stopped_does_not_hide_the_loss(rig, recorder, logged_failures):
    producer, protocol = Producer(), recorder()
    leg, _ = rig.leg(protocol)

    def fail() -> None:
        raise ZeroDivisionError

    producer.stopProducing = fail
    leg.registerProducer(producer, True)
    leg.abortConnection()
    rig.turn()
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
    assert protocol.lost


# Memory.


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("how", ["abort", "close", "reset", "linger"])
def test_an_ended_leg_leaves_no_cycle(rig, recorder, how):
    protocol = recorder()
    leg, peer = rig.leg(protocol)
    dead = weakref.ref(leg.socket), weakref.ref(protocol)
    rig.sockets.remove(leg.socket)
    lost = protocol.lost
    del protocol
    if how == "abort":
        leg.abortConnection()
    elif how == "close":
        peer.close()
    elif how == "reset":
        peer.reset()
    else:
        leg.loseConnection()
        rig.advance(LINGER + 0.1)
    rig.until(lambda: lost)
    lost.clear()
    del leg
    assert [one() for one in dead] == [None, None]


def test_a_leg_costs_one_descriptor_and_gives_it_back(rig, recorder):
    before = len(os.listdir("/proc/self/fd"))
    protocols = []
    for _ in range(10):
        protocol = recorder()
        protocols.append(protocol)
        _, peer = rig.leg(protocol)
        peer.close()
    rig.until(lambda: all(protocol.lost for protocol in protocols))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_buffer_is_one_read(rig, recorder):
    protocol = recorder()
    sizes = []
    protocol.on_data = lambda data: sizes.append(len(data))
    _, peer = rig.leg(protocol)
    peer.send(FLOOD)
    rig.until(lambda: len(protocol.data) == len(FLOOD))
    assert protocol.data == FLOOD
    assert max(sizes) <= BUFFER_SIZE


def test_the_clock_of_a_rig_stands_still(rig):
    assert isinstance(rig.reactor, Clock)
    assert rig.relay.seconds() == 0


# What the kernel holds.


def test_a_leg_knows_what_its_peer_has_not_taken_and_what_it_has_not_read_itself(rig):
    leg, peer = rig.leg()
    peer.greedy = False
    assert (leg.outstanding(), leg.unread()) == (0, 0)
    peer.send(b"hello")
    rig.until(lambda: leg.unread() == 5)
    # More than the peer's kernel takes without anybody reading.
    leg.write(bytes(32 << 20))
    rig.settle()
    taken = (32 << 20) - len(leg.pending) - leg.outstanding()
    assert 0 < taken < 32 << 20
    assert leg.outstanding() > 0
    peer.greedy = True
    rig.until(lambda: len(peer.received) == 32 << 20)
    rig.until(lambda: leg.outstanding() == 0)
