"""What of a listener needs no client: binding, naming its address, stopping. The rest: tests/integration."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from wsrouter.config import values
from wsrouter.config.values import Match, Tunnel
from wsrouter.errors import RouterError
from wsrouter.listener import port as module
from wsrouter.listener.listener import Listener
from wsrouter.listener.port import BACKLOG
from wsrouter.live.registry import Refusal, Registry
from wsrouter.policy.tunnels import TunnelTable
from wsrouter.relay.loop import Relay

pytestmark = pytest.mark.interpreted


class Scene:
    """Listeners without layer 7 and with one tunnel rule, whose tunnels are only noted."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.relay = Relay(reactor)
        self.relay.start()
        self.registry = Registry()
        self.registry.observers.append(self)  # type: ignore[arg-type]
        self.refusals: list[Refusal] = []
        self.tunnelled: list[bytes] = []
        self.listeners: list[Listener] = []

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def open(self, leg: Any, connection: Any, rule: Tunnel, prefetch: bytes) -> None:
        self.tunnelled.append(prefetch)
        leg.abortConnection()

    def refuse(self, connection: Any, stage: str, rule: str, status: int | None, reason: str) -> None:
        self.registry.refuse(Refusal(connection.number, connection.client, connection.listener, stage, rule, reason))

    def listener(self, endpoint: str, match: Match = Match.OPAQUE) -> Listener:
        site: Any = SimpleNamespace(relay=self.relay, registry=self.registry, refuse=self.refuse, turning_away=False)
        layer4: Any = SimpleNamespace(open=self.open)
        config = values.Listener("main", endpoint)
        self.listeners.append(Listener(config, None, TunnelTable([Tunnel("all", "app", match)]), layer4, site))
        return self.listeners[-1]

    def bound(self, endpoint: str = "tcp:0:interface=127.0.0.1", match: Match = Match.OPAQUE) -> Listener:
        listener = self.listener(endpoint, match)
        listener.bind(self.reactor)
        return listener

    async def until(self, predicate: Any) -> None:
        end = self.reactor.seconds() + 5
        while not predicate():
            assert self.reactor.seconds() < end, "waited in vain"
            turn: Deferred[None] = Deferred()
            self.reactor.callLater(0.001, turn.callback, None)
            await turn

    async def close(self) -> None:
        for listener in self.listeners:
            listener.stop()
        self.relay.stop()


@pytest.fixture
def scene(reactor: Any) -> Iterator[Scene]:
    made = Scene(reactor)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


# Binding.


def test_the_address_is_told_as_in_a_url(scene, tmp_path):
    listener = scene.bound()
    assert listener.port > 0
    assert listener.address == f"127.0.0.1:{listener.port}"
    unix = scene.bound(f"unix:{tmp_path}/r.sock")
    assert (unix.port, unix.address) == (0, f"unix:{tmp_path}/r.sock")


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_an_ipv6_address_stands_in_brackets(scene):
    listener = scene.bound(r"tcp6:0:interface=\:\:1")
    assert listener.address == f"[::1]:{listener.port}"


def test_a_port_in_use_is_told_in_few_words(scene):
    taken = scene.bound().port
    with pytest.raises(RouterError) as caught:
        scene.bound(f"tcp:{taken}:interface=127.0.0.1")
    assert str(caught.value) == (
        f"listener main: cannot listen on tcp:{taken}:interface=127.0.0.1: address already in use"
    )


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:0:interface=192.0.2.1",
        "tcp:0:interface=no such name",
        "unix:/nowhere/at/all/r.sock",
        "systemd:domain=INET:index=0",
        "systemd:domain=INET:name=main",
    ],
    ids=["foreign address", "name", "folder", "systemd index", "systemd name"],
)
def test_an_endpoint_that_cannot_be_bound_is_told_in_one_line(scene, endpoint):
    with pytest.raises(RouterError) as caught:
        scene.bound(endpoint)
    told = str(caught.value)
    assert told.startswith("listener main: ")
    assert endpoint in told
    assert "\n" not in told
    assert len(told.rpartition(": ")[2]) > 5


# Living.


@pytest.fixture
def closing() -> Iterator[Callable[[socket.socket], socket.socket]]:
    """``closing(sock)`` closes it at the end of the test, however that ends."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


async def test_who_comes_between_binding_and_the_start_is_served_then(scene):
    listener = scene.bound()
    with socket.create_connection(("127.0.0.1", listener.port), 5) as client:
        client.sendall(b"\0hello")
        listener.start()
        await scene.until(lambda: scene.tunnelled)
    assert scene.tunnelled == [b"\0hello"]


async def test_many_may_wait_between_binding_and_the_start(scene, closing):
    """Clients come in the seconds in which the names of backends are looked up first."""
    listener = scene.bound()
    clients = [closing(socket.socket()) for _ in range(200)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", listener.port))

    def connected() -> int:
        states = [client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] for client in clients]
        return states.count(1)  # TCP_ESTABLISHED

    # Whom the queue has no room for tries again after a second.
    assert connected() == len(clients) < BACKLOG
    listener.start()
    await scene.until(lambda: listener._acceptor.live == len(clients))
    for client in clients:
        client.close()
    await scene.until(lambda: not listener._acceptor.live)


async def test_a_stop_before_the_start_closes_the_port(scene):
    listener = scene.bound()
    port = listener.port
    listener.stop()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
    listener.stop()


async def test_a_stop_takes_in_who_waits_already(scene):
    listener = scene.bound()
    listener.start()
    with socket.create_connection(("127.0.0.1", listener.port), 5) as client:
        client.sendall(b"\0hello")
        listener.stop()
        await scene.until(lambda: scene.tunnelled)
    assert scene.tunnelled == [b"\0hello"]


def state(client: socket.socket) -> int:
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


async def test_who_comes_while_a_listener_leaves_is_not_reset(scene, closing):
    """It asks again after a second, when another may have the address."""
    listener = scene.bound()
    listener.start()
    first, late = closing(socket.socket()), closing(socket.socket())
    for client in (first, late):
        client.setblocking(False)
    first.connect_ex(("127.0.0.1", listener.port))
    listener.leave()
    late.connect_ex(("127.0.0.1", listener.port))
    first.send(b"\0hello")
    await scene.until(lambda: scene.tunnelled)
    assert state(late) == 2  # TCP_SYN_SENT
    await scene.until(lambda: listener.stopped)
    assert state(late) == 2


async def test_where_filters_are_not_for_us_a_listener_leaves_all_the_same(scene, closing, monkeypatch):
    monkeypatch.setattr(module, "SO_ATTACH_FILTER", -1)
    listener = scene.bound()
    listener.start()
    late = closing(socket.socket())
    listener.leave()
    # Nobody is turned away, so who comes is taken in.
    late.connect(("127.0.0.1", listener.port))
    late.sendall(b"\0hello")
    await scene.until(lambda: scene.tunnelled)
    await scene.until(lambda: listener.stopped)


async def test_a_listener_that_has_left_may_be_stopped_and_one_that_never_began_may_leave(scene):
    running, bound = scene.bound(), scene.bound()
    running.start()
    for listener in (running, bound):
        port = listener.port
        listener.leave()
        listener.stop()
        assert listener.stopped
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    assert not scene.relay.members


async def test_a_unix_listener_that_leaves_cannot_be_found(scene, closing, tmp_path):
    listener = scene.bound(f"unix:{tmp_path}/r.sock")
    listener.start()
    client, late = closing(socket.socket(socket.AF_UNIX)), closing(socket.socket(socket.AF_UNIX))
    client.connect(f"{tmp_path}/r.sock")
    listener.leave()
    assert late.connect_ex(f"{tmp_path}/r.sock") == errno.ENOENT
    client.sendall(b"\0hello")
    await scene.until(lambda: scene.tunnelled)
    await scene.until(lambda: listener.stopped)


async def test_a_port_may_be_stopped_before_it_is_bound(scene):
    scene.listener("tcp:0").stop()
