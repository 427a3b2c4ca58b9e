from __future__ import annotations

import os
import socket
import ssl
from typing import Any

import pytest
import trustme
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from wsrouter.backends.dial import Address, Dial, TlsClient
from wsrouter.errors import DialError
from wsrouter.relay.tls import TlsLeg


class Caller:
    """Dials and notes what comes of it."""

    def __init__(self, rig: Any, address: Address | list[Address], timeout: float = 2.0, **more: Any) -> None:
        self.legs: list[Any] = []
        self.errors: list[DialError] = []
        addresses = address if isinstance(address, list) else [address]
        self.dial = Dial(rig.relay, addresses, timeout, self.legs.append, self.errors.append, **more)
        assert not self.legs
        assert not self.errors

    @property
    def over(self) -> bool:
        return bool(self.legs or self.errors)


class Reader(Protocol):
    def __init__(self) -> None:
        self.data = b""

    def dataReceived(self, data: bytes) -> None:
        self.data += data


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


def answer_tls(peer: socket.socket, authority: trustme.CA, name: str) -> Any:
    """A server's side of TLS on ``peer``, one step for each call."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    peer.setblocking(False)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)

    def step() -> None:
        try:
            incoming.write(peer.recv(65536))
        except OSError:
            pass
        try:
            tls.do_handshake()
        except ssl.SSLError:
            pass
        try:
            peer.send(outgoing.read())
        except OSError:
            pass

    return step


def test_a_connection_becomes_a_leg(rig, address):
    server = rig.server()
    caller = Caller(rig, address(server))
    rig.until(lambda: caller.over)
    (leg,) = caller.legs
    peer = rig.accept(server)
    reader = Reader()
    leg.attach(reader)
    leg.write(b"ping")
    assert peer.recv(10) == b"ping"
    peer.send(b"pong")
    rig.until(lambda: reader.data == b"pong")
    assert leg.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert leg.peername == server.getsockname()
    # The deadline does not linger.
    rig.pass_time(10)
    assert leg.connected


@pytest.mark.parametrize(("host", "probed"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_only_who_is_on_another_machine_is_probed_for_being_alive(rig, host, probed):
    # Linux takes a connection to 0.0.0.0 for one to itself, and it looks like any other address.
    caller = Caller(rig, Address(socket.AF_INET, (host, rig.server().getsockname()[1])), keepalive=30.0)
    rig.until(lambda: caller.over)
    (leg,) = caller.legs
    assert bool(leg.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is probed
    assert (leg.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30) is probed


def test_a_leg_that_nobody_reads_wakes_nobody(rig, address):
    server = rig.server()
    caller = Caller(rig, address(server))
    rig.until(lambda: caller.over)
    peer = rig.accept(server)
    rig.settle()
    peer.send(b"unread")
    rig.settle()


def test_a_unix_socket_is_reached(rig, tmp_path):
    server = socket.socket(socket.AF_UNIX)
    rig.sockets.append(server)
    server.bind(str(tmp_path / "s"))
    server.listen()
    caller = Caller(rig, Address(socket.AF_UNIX, str(tmp_path / "s")), keepalive=30.0)
    rig.until(lambda: caller.over)
    assert caller.legs[0].getPeer().name == os.fsencode(tmp_path / "s")


@pytest.mark.parametrize("path", ["nobody", "x" * 200])
def test_a_unix_socket_where_nobody_listens_fails(rig, tmp_path, path):
    caller = Caller(rig, Address(socket.AF_UNIX, str(tmp_path / path)))
    rig.until(lambda: caller.over)
    (error,) = caller.errors
    assert error.reason
    assert not error.timed_out
    assert not error.nonsense


def test_a_refusal_says_so(rig, nobody):
    caller = Caller(rig, nobody)
    rig.until(lambda: caller.over)
    (error,) = caller.errors
    assert error.reason == "connection refused"
    assert not error.timed_out
    assert not rig.relay.members


@pytest.mark.parametrize("refusals", [1, 3])
def test_the_next_address_is_tried_when_one_refuses(rig, address, nobody, refusals):
    server = rig.server()
    caller = Caller(rig, [nobody] * refusals + [address(server)])
    rig.until(lambda: caller.over)
    assert caller.legs[0].peername == server.getsockname()
    rig.settle()
    assert len(rig.relay.members) == 1


def test_addresses_that_fail_at_once_and_later_all_end_in_one_failure(rig, nobody, tmp_path):
    odd = Address(socket.AF_UNIX, str(tmp_path / "nobody"))
    for addresses in ([odd, nobody], [nobody, odd], [odd, odd], [nobody, odd, nobody, odd]):
        caller = Caller(rig, addresses)
        rig.until(lambda caller=caller: caller.over)
        rig.settle()
        assert len(caller.errors) == 1
        assert not rig.relay.members


def test_a_cancel_between_two_addresses_ends_the_trying(rig, address, nobody, tmp_path):
    odd = Address(socket.AF_UNIX, str(tmp_path / "nobody"))
    caller = Caller(rig, [odd, address(rig.server())])
    caller.dial.cancel()
    rig.settle()
    assert not caller.over
    assert not rig.relay.members


def test_silence_is_a_time_out(rig, address):
    server = rig.server(backlog=0)
    fill = [Caller(rig, address(server)) for _ in range(4)]
    rig.settle()
    waiting = [caller for caller in fill if not caller.over]
    assert waiting
    rig.pass_time(1.9)
    assert not any(caller.over for caller in waiting)
    rig.pass_time(0.2)
    for caller in waiting:
        (error,) = caller.errors
        assert error.timed_out
        assert error.reason == "no connection in time"
    for caller in fill:
        for leg in caller.legs:
            leg.abortConnection()
    rig.turn()
    assert not rig.relay.members


def test_no_descriptor_is_a_failure_like_others(rig, nobody, monkeypatch):
    def exhausted(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("wsrouter.backends.dial.SocketType", exhausted)
    caller = Caller(rig, nobody)
    rig.until(lambda: caller.over)
    assert caller.errors[0].reason == "too many open files"


@pytest.mark.parametrize("when", ["at once", "refused", "connected"])
def test_a_cancelled_attempt_calls_nobody_and_leaves_nothing(rig, address, nobody, when):
    server = rig.server()
    caller = Caller(rig, nobody if when == "refused" else address(server))
    if when == "connected":
        rig.accept(server)
    caller.dial.cancel()
    caller.dial.cancel()
    rig.settle()
    rig.pass_time(5)
    assert not caller.over
    assert not rig.relay.members


def test_a_stop_of_the_relay_cancels(rig, address):
    caller = Caller(rig, address(rig.server()))
    rig.relay.stop()
    assert not caller.over
    assert not rig.getDelayedCalls()


def test_an_exception_in_the_one_who_gets_the_leg_ends_the_leg(rig, address, logged_failures):
    server = rig.server()
    legs = []

    def fail(leg: Any) -> None:
        legs.append(leg)
        raise ZeroDivisionError

    Dial(rig.relay, [address(server)], 2.0, fail, lambda error: None)
    rig.until(lambda: legs)
    rig.settle()
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
    assert not legs[0].connected
    assert not rig.relay.members


def test_a_failure_within_the_relay_is_told(rig, address):
    caller = Caller(rig, address(rig.server()))
    caller.dial.failed(Failure(ValueError("odd")))
    assert caller.errors[0].reason == "internal error: odd"
    rig.settle()
    assert not rig.relay.members


# TLS.


def test_a_backend_that_proves_its_name_becomes_a_tls_leg(rig, address, authority, trusting):
    server = rig.server()
    caller = Caller(rig, address(server), tls=TlsClient(trusting, "app.example"))
    step = answer_tls(rig.accept(server), authority, "app.example")
    rig.until(lambda: step() or caller.over)
    (leg,) = caller.legs
    assert isinstance(leg, TlsLeg)
    rig.pass_time(10)
    assert leg.connected


def test_a_backend_of_another_name_is_nonsense(rig, address, authority, trusting):
    server = rig.server()
    caller = Caller(rig, address(server), tls=TlsClient(trusting, "app.example"))
    step = answer_tls(rig.accept(server), authority, "other.example")
    rig.until(lambda: step() or caller.over)
    (error,) = caller.errors
    assert error.nonsense
    assert error.reason.startswith("TLS: certificate does not verify")
    rig.pass_time(5)
    assert not rig.relay.members


def test_a_backend_without_tls_is_nonsense(rig, address, trusting):
    server = rig.server()
    caller = Caller(rig, address(server), tls=TlsClient(trusting, "app.example"))
    rig.accept(server).send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    rig.until(lambda: caller.over)
    assert caller.errors[0].nonsense
    rig.pass_time(5)
    assert not rig.relay.members


def test_a_backend_that_leaves_within_the_handshake_fails_once(rig, address, trusting):
    server = rig.server()
    caller = Caller(rig, address(server), tls=TlsClient(trusting, "app.example"))
    rig.until(lambda: len(rig.relay.members) == 1)
    rig.accept(server).close()
    rig.until(lambda: caller.over)
    rig.pass_time(5)
    assert len(caller.errors) == 1


def test_silence_within_the_handshake_is_a_time_out(rig, address, trusting):
    server = rig.server()
    caller = Caller(rig, address(server), tls=TlsClient(trusting, "app.example"))
    rig.accept(server)
    rig.settle()
    rig.pass_time(2.1)
    (error,) = caller.errors
    assert error.timed_out
    rig.settle()
    assert not rig.relay.members


def test_a_cancel_within_the_handshake_leaves_nothing(rig, address, trusting):
    server = rig.server()
    caller = Caller(rig, address(server), tls=TlsClient(trusting, "app.example"))
    rig.accept(server)
    rig.settle()
    caller.dial.cancel()
    rig.pass_time(5)
    assert not caller.over
    assert not rig.relay.members


def test_a_name_that_openssl_refuses_fails_and_leaves_nothing(rig, address, trusting):
    server = rig.server()
    caller = Caller(rig, address(server), tls=TlsClient(trusting, ""))
    rig.until(lambda: caller.over)
    assert caller.errors[0].nonsense
    rig.settle()
    assert not rig.relay.members
