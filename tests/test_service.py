from __future__ import annotations

import gc
import os
import signal
import socket
import ssl
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IResolutionReceiver
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, formatEvent

from wsrouter.config.reader import parse
from wsrouter.errors import ConfigError, RouterError
from wsrouter.service import FIRST_LOOKUPS, RouterService

PATIENCE = 5.0

FILES = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    [route files]
    path = /
    static = www
"""
NAMED = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    [tunnel all]
    match = any
    pool = app
    [pool app]
    backends = backend.example:80
"""


class Stand:
    """Stands in front of the reactor: time stands still, names resolve when the test says so, a stop is only noted."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.clock = Clock()
        self.callLater = self.clock.callLater
        self.seconds = self.clock.seconds
        self.stops = 0
        #: Look-ups under way.
        self.asked: list[tuple[str, IResolutionReceiver]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    @property
    def nameResolver(self) -> Stand:
        return self

    def resolveHostName(self, receiver: IResolutionReceiver, name: str, **more: object) -> None:
        self.asked.append((name, receiver))

    def resolve(self, *addresses: str) -> None:
        _, receiver = self.asked.pop(0)
        for address in addresses:
            receiver.addressResolved(IPv4Address("TCP", address, 0))
        receiver.resolutionComplete()

    def stop(self) -> None:
        self.stops += 1

    async def until(self, predicate: Callable[[], object]) -> None:
        """Let the reactor turn, and what is due at once be done, until ``predicate()`` is true."""
        end = self._reactor.seconds() + PATIENCE
        while not predicate():
            assert self._reactor.seconds() < end, "waited in vain"
            turn: Deferred[None] = Deferred()
            self._reactor.callLater(0.001, turn.callback, None)
            await turn
            self.clock.advance(0)


class Scene:
    """Routers in this process; all are stopped when the test is over."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.stand = Stand(reactor)
        self.folder = folder
        self.services: list[RouterService] = []
        (folder / "www").mkdir()

    def service(self, text: str) -> RouterService:
        config = parse(textwrap.dedent(text), self.folder / "router.ini")
        self.services.append(RouterService(self.stand, config))
        return self.services[-1]

    def prepared(self, text: str) -> RouterService:
        service = self.service(text)
        service.prepare()
        return service

    def started(self, text: str) -> RouterService:
        service = self.prepared(text)
        service.privilegedStartService()
        service.startService()
        return service

    @staticmethod
    def port(service: RouterService, index: int = 0) -> int:
        return service.listeners[index].port

    def connect(self, service: RouterService) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port(service)), PATIENCE)

    async def close(self) -> None:
        for service in self.services:
            await maybeDeferred(service.stopService)
        self.stand.clock.advance(0)


@pytest.fixture
def scene(reactor: Any, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(reactor, tmp_path)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails silences Python's own report of the exception."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def accepting(service: RouterService) -> list[bool]:
    acceptors = [listener._acceptor for listener in service.listeners]
    return [acceptor is not None and acceptor._watched for acceptor in acceptors]


# Building.


def test_every_file_that_cannot_be_used_is_told_at_once(scene):
    (scene.folder / "bad.pem").write_text("no certificate")
    with pytest.raises(ConfigError) as caught:
        scene.prepared(
            """
            [listener one]
            endpoint = tcp:0:interface=127.0.0.1
            certificates = bad.pem
            [listener two]
            endpoint = tcp:0:interface=127.0.0.1
            default_certificate = bad.pem
            [route a]
            path = /a
            pool = a
            [route b]
            path = /b
            pool = b
            [pool a]
            backends = 127.0.0.1:1
            tls = yes
            tls_ca = bad.pem
            [pool b]
            backends = 127.0.0.1:1
            tls = yes
            tls_certificate = bad.pem
            """
        )
    faults = caught.value.faults
    assert all(fault.startswith(f"{scene.folder / 'router.ini'}: ") and "\n" not in fault for fault in faults)
    for section in ("[listener one]", "[listener two]", "[pool a]", "[pool b]"):
        assert sum(section in fault for fault in faults) == 1, section


def test_preparing_binds_nothing(scene, taken):
    scene.prepared(FILES.replace("tcp:0", f"tcp:{taken}"))


def test_a_certificate_out_of_its_term_is_served_with_a_warning(scene, logged):
    certificate = trustme.CA().issue_cert("old.example", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    certificate.private_key_and_cert_chain_pem.write_to_path(scene.folder / "old.pem")
    scene.prepared(FILES.replace("[route", "certificates = old.pem\n    [route"))
    [warning] = [formatEvent(event) for event in logged if event["log_level"] is LogLevel.warn]
    assert "old.pem: expired on 2020-01-01" in warning


# Starting and stopping.


async def test_a_router_serves_from_its_start_to_its_stop(scene):
    (scene.folder / "www" / "index.html").write_text("hello")
    service = scene.started(FILES)
    port = scene.port(service)
    with scene.connect(service) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = await deferToThread(client.makefile("rb").read)
    assert answer.endswith(b"\r\n\r\nhello")
    await service.stopService()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()


async def test_stopping_twice_or_before_any_start_is_harmless(scene):
    service = scene.started(FILES)
    await service.stopService()
    await service.stopService()
    await scene.prepared(FILES).stopService()
    await scene.service(FILES).stopService()


async def test_a_stop_cuts_what_still_lives_and_leaves_nothing(scene):
    with socket.create_server(("127.0.0.1", 0)) as server:
        service = scene.started(
            NAMED.replace("backend.example:80", f"127.0.0.1:{server.getsockname()[1]}") + "[router]\naccess_log = log"
        )
        with scene.connect(service) as client:
            client.sendall(b"\0hello")
            await scene.stand.until(lambda: service.registry.entries)
            await service.stopService()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert not service.registry.entries
    assert not service.relay.members
    assert [member.live for member in service.pools["app"].members] == [0]
    assert " reason=cut " in (scene.folder / "log").read_text().splitlines()[-1]


async def test_echo_backends_live_as_long_as_the_router(scene):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    service = scene.started(FILES + f"[echo demo]\nports = {port}")
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"demonstration backend" in await deferToThread(client.makefile("rb").read)
    await service.stopService()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (FILES.replace("tcp:0", "tcp:{port}"), "listener main: cannot listen on tcp:{port}:interface=127.0.0.1: "),
        (FILES + "[echo demo]\nports = {port}", "echo demo: cannot listen on port {port}: "),
    ],
    ids=["listener", "echo"],
)
def test_a_port_in_use_is_told_in_one_line_on_standard_error(scene, taken, capfd, text, told, logged_failures):
    service = scene.prepared(text.replace("{port}", str(taken)))
    with pytest.raises(RouterError) as caught:
        service.privilegedStartService()
    line = told.format(port=taken) + "address already in use"
    assert str(caught.value) == line
    assert capfd.readouterr().err.splitlines()[-1] == f"wsrouter: {line}"
    logged_failures.events.clear()


async def test_a_start_that_fails_half_way_gives_back_the_ports_it_has_bound(scene, taken, logged_failures):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    service = scene.prepared(
        f"""
        [listener one]
        endpoint = tcp:{port}:interface=127.0.0.1
        [listener two]
        endpoint = tcp:{taken}:interface=127.0.0.1
        [route files]
        path = /
        static = www
        """
    )
    with pytest.raises(RouterError):
        service.privilegedStartService()
    logged_failures.events.clear()

    def closed() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) != 0

    await scene.stand.until(closed)


def test_an_access_log_that_cannot_be_opened_is_told_in_one_line_on_standard_error(scene, capfd, logged_failures):
    """The folder was there when the configuration was read; the user may have changed since, too."""
    (scene.folder / "logs").mkdir()
    service = scene.prepared(FILES + "[router]\naccess_log = logs/access.log")
    (scene.folder / "logs").rmdir()
    service.privilegedStartService()
    with pytest.raises(RouterError) as caught:
        service.startService()
    assert str(caught.value).endswith("logs/access.log: cannot be opened: no such file or directory")
    logged_failures.events.clear()
    assert capfd.readouterr().err.splitlines()[-1:] == [f"wsrouter: {caught.value}"]


# The first look-ups.


async def test_addresses_without_names_hold_nothing_up(scene):
    service = scene.started(NAMED.replace("backend.example", "127.0.0.1"))
    assert accepting(service) == [True]
    assert not scene.stand.asked


async def test_accepting_begins_when_the_names_were_looked_up(scene):
    service = scene.started(NAMED)
    assert accepting(service) == [False]
    assert [name for name, _ in scene.stand.asked] == ["backend.example"]
    # Clients wait in the kernel's queue meanwhile.
    with scene.connect(service):
        scene.stand.resolve("192.0.2.1")
        assert accepting(service) == [True]
    # And what waited for the look-ups is gone.
    scene.stand.clock.advance(FIRST_LOOKUPS)
    assert accepting(service) == [True]


async def test_a_resolver_that_does_not_answer_holds_up_the_start_for_three_seconds(scene):
    service = scene.started(NAMED)
    scene.stand.clock.advance(FIRST_LOOKUPS - 0.1)
    assert accepting(service) == [False]
    scene.stand.clock.advance(0.2)
    assert accepting(service) == [True]


async def test_an_answer_that_comes_late_is_used_at_once(scene):
    service = scene.started(NAMED)
    scene.stand.clock.advance(FIRST_LOOKUPS + 0.1)
    scene.stand.resolve("192.0.2.1")
    [backend] = service.pools["app"].config.backends
    assert [address.sockaddr for address in service.discovery.addresses(backend)] == [("192.0.2.1", 80)]


async def test_a_stop_while_names_are_looked_up_leaves_no_timer_and_opens_nothing(scene):
    service = scene.started(NAMED)
    await service.stopService()
    assert not scene.stand.clock.getDelayedCalls()
    scene.stand.resolve("192.0.2.1")
    assert accepting(service) == [False]


async def test_a_drain_while_names_are_looked_up_opens_nothing(scene):
    service = scene.started(NAMED)
    service.shut_down("SIGTERM")
    assert scene.stand.stops == 1
    scene.stand.resolve("192.0.2.1")
    assert accepting(service) == [False]


# The process.


async def test_signals_are_taken_and_drain(scene):
    service = scene.started(FILES)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        service.handle_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        await scene.stand.until(lambda: scene.stand.stops)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert service.site.draining
    assert service.site.turning_away
    assert accepting(service) == [False]


def test_the_collector_of_cycles_looks_seldom_in_a_process_that_routes(scene):
    thresholds = gc.get_threshold()
    try:
        scene.service(FILES).settle()
        assert gc.get_threshold() > thresholds
    finally:
        gc.set_threshold(*thresholds)


# Draining.


async def test_an_idle_router_stops_at_once_and_once(scene):
    service = scene.started(FILES)
    service.shut_down("SIGTERM")
    service.shut_down("SIGTERM")
    service.shut_down("SIGINT")
    assert scene.stand.stops == 1
    assert accepting(service) == [False]


@pytest.fixture
def tunnelled(scene: Scene) -> Iterator[tuple[RouterService, socket.socket]]:
    """A router with one live tunnel, and its client."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        service = scene.started(NAMED.replace("backend.example:80", f"127.0.0.1:{server.getsockname()[1]}"))
        with scene.connect(service) as client:
            client.sendall(b"\0hello")
            pytest_twisted.blockon(Deferred.fromCoroutine(scene.stand.until(lambda: service.registry.entries)))
            yield service, client


async def test_a_second_signal_ends_a_drain(scene, tunnelled):
    service, _ = tunnelled
    service.shut_down("SIGTERM")
    assert scene.stand.stops == 0
    service.shut_down("SIGTERM")
    assert scene.stand.stops == 1
    await service.stopService()
    assert scene.stand.stops == 1


async def test_a_stop_in_the_middle_of_a_drain_does_not_stop_the_reactor_once_more(scene, tunnelled):
    service, _ = tunnelled
    service.shut_down("SIGTERM")
    await service.stopService()
    assert scene.stand.stops == 0
    assert not scene.stand.clock.getDelayedCalls()


async def test_a_drain_waits_for_answers_that_are_on_their_way(scene):
    """The whole answer lies in the kernel's buffers; a reset would throw it away."""
    (scene.folder / "www" / "big").write_bytes(bytes(50_000))
    service = scene.started(FILES + "[router]\naccess_log = log")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", scene.port(service)))
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await scene.stand.until(lambda: " status=200 " in (scene.folder / "log").read_text())
        service.shut_down("SIGTERM")
        scene.stand.clock.advance(0.1)
        if scene.stand.stops:
            await service.stopService()
        answer = await deferToThread(client.makefile("rb").read)
    assert len(answer.partition(b"\r\n\r\n")[2]) == 50_000


async def test_a_drain_waits_for_a_tls_handshake(scene):
    authority = trustme.CA()
    certificate = authority.issue_cert("a.example")
    certificate.private_key_and_cert_chain_pem.write_to_path(scene.folder / "a.pem")
    service = scene.started(FILES.replace("[route", "certificates = a.pem\n    [route"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with scene.connect(service) as client:
        client.sendall(outgoing.read())
        # The router's part of the handshake is here; the client's is missing.
        assert await deferToThread(client.recv, 5)
        service.shut_down("SIGTERM")
        scene.stand.clock.advance(0.1)
        assert scene.stand.stops == 0


async def test_a_drain_waits_for_a_tunnel_that_is_being_dialled(scene):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        service = scene.started(
            NAMED.replace("backend.example:80", f"127.0.0.1:{deaf.getsockname()[1]}")
            + "    tls = yes\n    tls_verify = no\n    connect_timeout = 60s"
        )
        with scene.connect(service) as client:
            client.sendall(b"\0hello")
            await scene.stand.until(lambda: service.pools["app"].members[0].live)
            service.shut_down("SIGTERM")
            scene.stand.clock.advance(0.1)
            assert scene.stand.stops == 0


async def test_demonstration_certificates_in_a_folder_of_their_own_go_with_the_router(scene, monkeypatch):
    # A file in the place of the cache folder: it cannot be made.
    (scene.folder / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(scene.folder / "cache"))
    service = scene.started(FILES.replace("[route", "demo_certificates = localhost\n    [route"))
    assert service.parts.demo is not None
    folder = service.parts.demo.folder
    assert os.path.isdir(folder)
    await service.stopService()
    assert not os.path.exists(folder)


# Reloading. The rest: tests/integration/test_reload.py.


def reloaded(scene: Scene, service: RouterService, text: str) -> None:
    (scene.folder / "router.ini").write_text(textwrap.dedent(text))
    service.reload()


ANOTHER = NAMED.replace("backend.example", "new.example")


async def test_a_new_name_is_looked_up_before_it_is_in_force(scene, lines):
    service = scene.started(NAMED)
    scene.stand.resolve("192.0.2.1")
    reloaded(scene, service, ANOTHER)
    assert [name for name, _ in scene.stand.asked] == ["new.example"]
    assert service.config.pools[0].backends[0].host == "backend.example"
    scene.stand.resolve("192.0.2.2")
    [backend] = service.config.pools[0].backends
    assert backend.host == "new.example"
    assert [address.sockaddr for address in service.discovery.addresses(backend)] == [("192.0.2.2", 80)]
    assert lines[-1].startswith("reloaded: 1 pool changed")


async def test_a_name_that_nobody_answers_for_holds_up_a_reload_for_three_seconds(scene):
    service = scene.started(NAMED)
    scene.stand.resolve("192.0.2.1")
    reloaded(scene, service, ANOTHER)
    scene.stand.clock.advance(FIRST_LOOKUPS - 0.1)
    assert service.reloader.busy
    scene.stand.clock.advance(0.2)
    assert not service.reloader.busy
    assert service.config.pools[0].backends[0].host == "new.example"
    scene.stand.resolve("192.0.2.2")
    assert service.discovery.addresses(service.config.pools[0].backends[0])


async def test_a_drain_gives_up_a_reload_that_waits(scene, lines):
    service = scene.started(NAMED)
    scene.stand.resolve("192.0.2.1")
    reloaded(scene, service, ANOTHER)
    service.shut_down("SIGTERM")
    assert not service.reloader.busy
    assert service.config.pools[0].backends[0].host == "backend.example"
    service.reload()
    assert lines[-1] == "no reload: the router is shutting down"
    scene.stand.resolve("192.0.2.2")


async def test_what_is_asked_for_while_a_reload_waits_is_done_behind_it(scene):
    service = scene.started(NAMED)
    scene.stand.resolve("192.0.2.1")
    reloaded(scene, service, ANOTHER)
    reloaded(scene, service, NAMED.replace("backend.example", "127.0.0.1"))
    assert service.config.pools[0].backends[0].host == "backend.example"
    scene.stand.resolve("192.0.2.2")
    assert service.config.pools[0].backends[0].host == "127.0.0.1"


async def test_a_reload_that_is_asked_for_during_the_start_comes_behind_it(scene):
    service = scene.started(NAMED)
    reloaded(scene, service, NAMED.replace("backend.example", "127.0.0.1"))
    assert accepting(service) == [False]
    assert service.config.pools[0].backends[0].host == "backend.example"
    scene.stand.resolve("192.0.2.1")
    assert accepting(service) == [True]
    assert service.config.pools[0].backends[0].host == "127.0.0.1"


async def test_a_fault_in_the_router_itself_leaves_all_as_it_was_and_later_reloads_work(
    scene, monkeypatch, logged_failures
):
    service = scene.started(NAMED.replace("backend.example", "127.0.0.1"))

    def fails(*_: object) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(service.parts, "draw", fails)
        reloaded(scene, service, NAMED.replace("backend.example", "127.0.0.2"))
    assert len(logged_failures.flush(RuntimeError)) == 1
    assert service.config.pools[0].backends[0].host == "127.0.0.1"
    service.reload()
    assert service.config.pools[0].backends[0].host == "127.0.0.2"


async def test_a_drain_before_anybody_was_served_needs_no_delay(scene):
    service = scene.started(NAMED + "\n    [router]\n    drain_delay = 60s\n")
    service.shut_down("SIGTERM")
    assert scene.stand.stops == 1
    scene.stand.resolve("192.0.2.1")
