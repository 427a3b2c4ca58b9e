from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from wsrouter.relay import acceptor as module
from wsrouter.relay.acceptor import BATCH, PAUSE, UNSENT, Acceptor, set_tcp_options


class House:
    """A listening socket, an acceptor on it, and the legs that it accepted."""

    def __init__(self, rig: Any, limit: int | None, keepalive: float | None, protocol: Any) -> None:
        self.rig = rig
        self.server = socket.create_server(("127.0.0.1", 0), backlog=128)
        rig.sockets.append(self.server)
        self.legs: list[Any] = []
        self.protocols: list[Any] = []
        self.protocol = protocol
        self.acceptor = Acceptor(rig.relay, self.server.fileno(), "main", self.accepted, limit, keepalive)

    def accepted(self, leg: Any) -> None:
        self.legs.append(leg)
        self.protocols.append(self.protocol())
        leg.attach(self.protocols[-1])

    def call(self) -> socket.socket:
        client = socket.create_connection(self.server.getsockname())
        client.settimeout(2)
        self.rig.sockets.append(client)
        return client


@pytest.fixture
def house(rig: Any, recorder: Any) -> Iterator[Any]:
    def make(limit: int | None = None, keepalive: float | None = None) -> House:
        return House(rig, limit, keepalive, recorder)

    return make


def test_connections_become_legs(rig, house):
    one = house()
    client = one.call()
    client.send(b"hello")
    rig.until(lambda: one.protocols and one.protocols[0].data == b"hello")
    assert one.legs[0].peername == client.getsockname()
    assert one.acceptor.live == 1
    client.close()
    rig.until(lambda: not one.acceptor.live)


def test_a_released_leg_counts_until_its_heir_ends(rig, house, recorder):
    one = house()
    one.call()
    rig.until(lambda: one.legs)
    leg = one.legs[0]
    home, leg.home = leg.home, None
    heir = type(leg)(rig.relay, leg.release(), leg.peername)
    heir.home = home
    assert one.acceptor.live == 1
    heir.abortConnection()
    assert one.acceptor.live == 0


def test_a_full_batch_is_followed_by_others(rig, house):
    one = house()
    for _ in range(BATCH + 10):
        one.call()
    rig.until(lambda: len(one.legs) == BATCH + 10)


@pytest.mark.parametrize(
    ("keepalive", "interval", "timeout"),
    [(1, 1, 4), (2, 1, 5), (3, 1, 6), (30, 7, 60), (60, 15, 120), (3600, 900, 7200)],
)
def test_legs_inherit_no_delay_and_keep_alive(rig, house, keepalive, interval, timeout):
    one = house(keepalive=float(keepalive))
    one.call()
    rig.until(lambda: one.legs)
    sock = one.legs[0].socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == keepalive
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == interval
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * timeout
    assert not sock.getblocking()


def test_without_keep_alive_there_is_still_no_delay(rig, house):
    one = house()
    one.call()
    rig.until(lambda: one.legs)
    sock = one.legs[0].socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_the_kernel_takes_little_for_a_peer_that_does_not_read(rig, house):
    one = house()
    client = one.call()
    rig.until(lambda: one.legs)
    leg = one.legs[0]
    taken = 0
    while leg.pending is None:
        leg.write(bytes(65536))
        taken += 65536
    # The peer's buffer holds no more than the kernel gives a socket from the start, which nobody has read from.
    assert taken < UNSENT + client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) + 4 * 65536


def test_unix_sockets_have_no_such_options():
    one, two = socket.socketpair()
    with one, two:
        set_tcp_options(one, one.family, 30)


def test_at_the_limit_accepting_pauses_and_goes_on_when_there_is_room(rig, house):
    one = house(limit=2)
    for _ in range(3):
        one.call()
    rig.until(lambda: len(one.legs) == 2)
    rig.turn()
    assert not rig.spin()
    rig.advance(PAUSE + 0.1)
    assert len(one.legs) == 2
    one.legs[0].abortConnection()
    rig.advance(PAUSE + 0.1)
    rig.until(lambda: len(one.legs) == 3)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_when_descriptors_are_used_up_accepting_pauses_and_the_live_ones_are_untouched(rig, house, monkeypatch, number):
    one = house()
    first = one.call()
    rig.until(lambda: one.legs)
    short = [True]

    class Short:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def _accept(self) -> Any:
            if short[0]:
                raise OSError(number, os.strerror(number))
            return self.sock._accept()  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    real_dup = os.dup

    def dup(fd: int) -> int:
        if short[0]:
            raise OSError(number, os.strerror(number))
        return real_dup(fd)

    one.acceptor.socket = Short(one.acceptor.socket)
    monkeypatch.setattr(module.os, "dup", dup)
    one.call()
    rig.until(lambda: not rig.rest(0))
    assert not rig.spin()
    first.send(b"unharmed")
    rig.until(lambda: one.protocols[0].data == b"unharmed")
    rig.advance(PAUSE + 0.1)
    assert not rig.spin()
    short[0] = False
    rig.advance(PAUSE + 0.1)
    rig.until(lambda: len(one.legs) == 2)


def test_a_connection_that_was_gone_before_it_was_accepted_is_skipped(rig, house):
    one = house()
    answers = [ConnectionAbortedError(errno.ECONNABORTED, "gone")]
    real = one.acceptor.socket

    class Aborting:
        def _accept(self) -> Any:
            if answers:
                raise answers.pop()
            return real._accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    one.acceptor.socket = Aborting()
    one.call()
    rig.until(lambda: one.legs)
    assert not answers


def test_an_exception_over_one_connection_ends_it_and_the_next_is_accepted(rig, house, logged_failures):
    one = house()
    accepted = one.acceptor._accepted

    def fail(leg: Any) -> None:
        one.acceptor._accepted = accepted
        raise ZeroDivisionError

    one.acceptor._accepted = fail
    bad = one.call()
    rig.until(lambda: one.acceptor._accepted is accepted)
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
    one.call()
    rig.until(lambda: one.legs)
    rig.turn()
    assert one.acceptor.live == 1
    with pytest.raises(ConnectionResetError):
        bad.recv(1)


def test_an_abort_ends_the_accepting_and_leaves_the_live_ones(rig, house):
    one = house()
    client = one.call()
    rig.until(lambda: one.legs)
    one.acceptor.abort()
    one.acceptor.abort()
    rig.turn()
    one.acceptor.abort()
    one.call()
    rig.turn()
    assert len(one.legs) == 1
    client.send(b"on")
    rig.until(lambda: one.protocols[0].data == b"on")


def test_an_abort_while_accepting_pauses_leaves_no_deadline(rig, house):
    one = house(limit=1)
    one.call()
    one.call()
    rig.until(lambda: one.legs)
    rig.turn()
    one.acceptor.abort()
    rig.advance(PAUSE + 1)
    assert len(one.legs) == 1
    assert not rig.reactor.getDelayedCalls()


def test_a_stop_of_the_relay_closes_it(rig, house):
    one = house()
    one.call()
    rig.until(lambda: one.legs)
    rig.relay.stop()
    assert one.acceptor.socket.fileno() < 0
    assert one.acceptor.live == 0


# Reloads.


def test_what_is_accepted_after_a_reload_has_its_limit_and_keep_alive(rig, house):
    one = house(limit=1, keepalive=20.0)
    one.call()
    rig.until(lambda: one.legs)
    one.acceptor.reconfigure("other", 3, None)
    one.call()
    rig.advance(PAUSE + 0.1)
    rig.until(lambda: len(one.legs) == 2)
    options = (socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert [[leg.socket.getsockopt(*option) for option in options] for leg in one.legs] == [[1, 40_000], [0, 0]]
    one.acceptor.reconfigure("other", 3, 100.0)
    one.call()
    rig.until(lambda: len(one.legs) == 3)
    # So is the interval of the first configuration.
    assert one.legs[2].socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 25
    assert [one.legs[2].socket.getsockopt(*option) for option in options] == [1, 200_000]


def test_a_unix_socket_takes_over_a_reload_too(rig, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        acceptor = Acceptor(rig.relay, server.fileno(), "main", lambda leg: None, None, 20.0)
        acceptor.reconfigure("other", 5, 30.0)
        acceptor.abort()


# Where other processes accept from the same socket.


class Gauge:
    """What lives here and elsewhere, as the test says."""

    def __init__(self, elsewhere: int = 0, processes: int = 2) -> None:
        self.here, self.elsewhere, self.processes = 0, elsewhere, processes

    def add(self, count: int) -> None:
        self.here += count

    def others(self) -> int:
        return self.elsewhere

    def fair(self) -> float:
        return (self.here + self.elsewhere) / self.processes


def test_what_lives_elsewhere_counts_for_the_limit(rig, house):
    one = house(limit=3)
    gauge = Gauge(elsewhere=2)
    one.acceptor.reconfigure("main", 3, None, gauge)
    clients = [one.call() for _ in range(3)]
    rig.until(lambda: one.acceptor.live == 1)
    rig.turn()
    assert (one.acceptor.live, gauge.here) == (1, 1)
    gauge.elsewhere = 0
    rig.pass_time(2 * PAUSE)
    assert one.acceptor.live == 3
    assert gauge.here == 3
    clients[0].close()
    rig.until(lambda: gauge.here == 2)
    one.acceptor.reconfigure("main", 3, None)
    assert gauge.here == 0


@pytest.fixture
def holding(rig: Any, house: Any) -> House:
    """A house at which eight have called, and whose acceptor leaves some of them to others at this moment."""

    class Strict(Gauge):
        def fair(self) -> float:
            # Without the lead that each process has.
            return super().fair() - module.LEAD / module.LEAD_PART

    one: House = house()
    one.acceptor.reconfigure("main", None, None, Strict())
    for _ in range(8):
        one.call()
    rig.until(lambda: one.acceptor._holding)
    return one


def test_who_has_more_than_its_share_lets_others_go_first(rig, holding):
    # As many as it may have more, then it waits; nobody else takes the rest, so it does.
    one = holding
    assert one.acceptor.live == module.SHARED_BATCH
    rig.pass_time(2 * PAUSE)
    assert one.acceptor.live == 8


def test_a_stop_takes_who_was_left_to_others(rig, holding):
    one = holding
    one.acceptor.accept_waiting()
    assert one.acceptor.live == 8
    one.acceptor.abort()
    rig.turn()


def test_without_descriptors_nobody_is_left_to_others(rig, holding):
    one = holding
    one.acceptor.pause("there are none")
    rig.pass_time(2 * PAUSE)
    assert one.acceptor.live == 8
