"""The watch over a pool's backends: its rounds, what it tells the table, what it logs."""

from __future__ import annotations

import itertools
import socket
import ssl
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel, formatEvent
from websockets.sync.server import serve

from wsrouter.backends.discovery import Discovery
from wsrouter.backends.health import HealthChecker
from wsrouter.backends.tls import PoolTls
from wsrouter.config.values import Backend, BackendTls, Check, CheckKind, Pool
from wsrouter.errors import DialError
from wsrouter.policy.health import Change, Hand, State
from wsrouter.policy.health_table import HealthTable
from wsrouter.policy.members import Member

CHECK = Check(CheckKind.TCP, interval=10.0, timeout=2.0, rise=2, fall=3)
A, B = Backend("127.0.0.1", 2222), Backend("127.0.0.1", 3333)


class Watch:
    """A checker, and what it logs. ``chance`` is what it draws, one number after the other, again and again."""

    def __init__(self, rig: Any, *backends: Backend, chance: tuple[float, ...] = (0.5,), **config: Any) -> None:
        self.rig = rig
        self.logged: list[tuple[LogLevel, str]] = []
        self.pool = SimpleNamespace(
            relay=rig.relay, config=Pool("app", backends, **config), discovery=Discovery(rig, object(), backends)
        )
        self.pool.tls = PoolTls.read(self.pool.config)
        self.members = [Member(backend) for backend in backends]
        self.table = HealthTable(self.pool.config, self.members, rig.seconds())
        log = Logger("test", observer=lambda event: self.logged.append((event["log_level"], formatEvent(event))))
        self.checker = HealthChecker(rig, self.pool, self.table, log, itertools.cycle(chance).__next__)
        self.checker.start()

    def reconfigure(self, **config: Any) -> None:
        self.pool.config = replace(self.pool.config, backends=tuple(one.backend for one in self.members), **config)
        self.table.reconfigure(self.pool.config, self.members, self.rig.seconds())
        self.checker.reconfigure()

    def state(self, at: int = 0) -> State:
        return self.table[self.members[at]].state


class Probes:
    """Stands in for the real probes: the test answers them."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        #: (when, port, Host) of every probe that was begun.
        self.begun: list[tuple[float, int, str]] = []
        self.prefaces: list[bytes] = []
        self.open: list[Deferred[float]] = []
        self.checks: list[Check] = []
        self.cancelled = 0
        self.result: Any = 0.001

    def probe(
        self, relay: Any, check: Check, addresses: Any, host: str, tls: Any = None, preface: bytes = b""
    ) -> Deferred[float]:
        self.begun.append((self.clock.seconds(), addresses[0].sockaddr[1], host))
        self.prefaces.append(preface)
        self.checks.append(check)
        if isinstance(self.result, ZeroDivisionError):
            raise self.result
        deferred: Deferred[float] = Deferred(self._cancel)
        self.open.append(deferred)
        if isinstance(self.result, Exception):
            deferred.errback(self.result)
        elif self.result is not None:
            deferred.callback(self.result)
        return deferred

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    @property
    def times(self) -> list[float]:
        return [time for time, _, _ in self.begun]


@pytest.fixture
def probes(rig, monkeypatch) -> Probes:
    made = Probes(rig)
    monkeypatch.setattr("wsrouter.backends.health.probe", made.probe)
    return made


def run(rig: Any, seconds: int) -> None:
    for _ in range(seconds * 8):
        rig.advance(0.125)  # which has no rounding error


# Rounds.


def test_the_first_probes_are_spread_over_one_interval(rig, probes):
    watch = Watch(rig, A, B, chance=(0.0, 0.75), check=CHECK)
    run(rig, 9)
    assert [(time, port) for time, port, _ in probes.begun] == [(0.125, 2222), (7.5, 3333)]
    watch.checker.stop()


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 9.0), (0.5, 10.0), (1.0, 11.0)])
def test_the_pauses_are_an_interval_give_or_take_a_tenth(rig, probes, chance, pause):
    watch = Watch(rig, A, chance=(chance,), check=CHECK)
    run(rig, 45)
    assert [second - first for first, second in itertools.pairwise(probes.times)] == [pause] * (len(probes.times) - 1)
    assert len(probes.times) >= 4
    watch.checker.stop()


def test_there_is_one_probe_at_a_time(rig, probes):
    probes.result = None
    watch = Watch(rig, A, check=CHECK)
    run(rig, 28)
    assert probes.times == [5.0]
    # Its round has taken longer than the interval: the next begins at once.
    probes.open[0].callback(0.5)
    rig.advance(0)
    assert probes.times == [5.0, 28.0]
    assert watch.table[watch.members[0]].rtt == 0.5
    # The pause counts from the beginning of a probe, not from its end.
    run(rig, 4)
    probes.open[1].callback(0.5)
    run(rig, 7)
    assert probes.times == [5.0, 28.0, 38.0]
    watch.checker.stop()


def test_after_a_stop_nothing_runs_and_nothing_is_told(rig, probes):
    probes.result = None
    watch = Watch(rig, A, B, chance=(0.2, 0.9), check=CHECK)
    run(rig, 5)
    watch.checker.stop()
    watch.checker.stop()
    assert probes.cancelled == 1
    assert not rig.getDelayedCalls()
    assert watch.table[watch.members[0]].checked is None
    watch.checker.start()
    run(rig, 10)
    assert len(probes.begun) == 3
    watch.checker.stop()


def test_a_backend_that_was_taken_down_by_hand_is_left_alone(rig, probes):
    watch = Watch(rig, A, B, check=CHECK)
    watch.table.by_hand(watch.members[0], 0.0, Hand.DOWN)
    watch.table.by_hand(watch.members[1], 0.0, Hand.DRAIN)
    run(rig, 16)
    assert [port for _, port, _ in probes.begun] == [3333, 3333]
    watch.table.by_hand(watch.members[0], 16.0, Hand.UP)
    run(rig, 10)
    assert [port for _, port, _ in probes.begun].count(2222) == 1
    watch.checker.stop()


# What the table and the log hear.


def test_failed_checks_take_a_backend_down_and_passed_ones_bring_it_back(rig, probes):
    watch = Watch(rig, A, check=CHECK)
    probes.result = DialError("connection refused")
    run(rig, 26)
    assert watch.state() is State.DOWN
    assert not watch.members[0].available
    run(rig, 20)
    probes.result = 0.002
    run(rig, 10)
    assert watch.state() is State.DOWN
    run(rig, 10)
    assert watch.state() is State.UP
    assert watch.logged == [
        (LogLevel.warn, "pool app: backend 127.0.0.1:2222 is down: connection refused (3 failed checks)"),
        (LogLevel.info, "pool app: backend 127.0.0.1:2222 is up: 2 passed checks"),
    ]
    assert watch.table.snapshot(rig.seconds())[0].rtt == 0.002
    watch.checker.stop()


def test_what_operators_do_is_logged_too(rig):
    watch = Watch(rig, A)
    for hand in (Hand.DRAIN, Hand.DOWN, Hand.UP):
        watch.table.by_hand(watch.members[0], 1.0, hand)
    assert watch.logged == [
        (LogLevel.warn, "pool app: backend 127.0.0.1:2222 is drained: by hand"),
        (LogLevel.warn, "pool app: backend 127.0.0.1:2222 is off: by hand"),
        (LogLevel.info, "pool app: backend 127.0.0.1:2222 is up: by hand"),
    ]
    watch.checker.stop()


def test_without_a_check_an_ejection_ends_by_itself(rig):
    watch = Watch(rig, A, B, max_failures=1, failure_time=10.0)
    assert not rig.getDelayedCalls()
    run(rig, 3)
    watch.table.failure(watch.members[0], rig.seconds(), "connection refused")
    assert watch.state() is State.EJECTED
    run(rig, 9)
    assert watch.state() is State.EJECTED
    run(rig, 2)
    assert watch.state() is State.UP
    assert [text for _, text in watch.logged] == [
        "pool app: backend 127.0.0.1:2222 is ejected: connection refused (1 failure within 10 s)",
        "pool app: backend 127.0.0.1:2222 is up: tried again after 10 s",
    ]
    watch.table.failure(watch.members[0], rig.seconds(), "connection refused")
    watch.checker.stop()
    assert not rig.getDelayedCalls()


@pytest.mark.parametrize("how", ["raises", "errback"])
def test_a_probe_that_fails_in_the_router_itself_is_a_failed_check_and_goes_on(rig, probes, logged_failures, how):
    watch = Watch(rig, A, check=CHECK)
    probes.result = ZeroDivisionError() if how == "raises" else ValueError("odd")
    run(rig, 16)
    assert len(probes.begun) == 2
    assert watch.table[watch.members[0]].check_error == "internal error"
    assert watch.logged[0] == (LogLevel.critical, "The check of 127.0.0.1:2222 failed in the router itself")
    watch.checker.stop()


def test_an_observer_that_raises_does_not_end_the_rounds(rig, probes):
    watch = Watch(rig, A, check=replace(CHECK, fall=1))

    def fail(member: Member, change: Change) -> None:
        raise ZeroDivisionError

    watch.table.observe(fail)
    probes.result = DialError("connection refused")
    run(rig, 16)
    assert len(probes.begun) == 2
    assert watch.logged[-1] == (LogLevel.critical, "What a check has found could not be told")
    watch.checker.stop()


# Reloads.


def test_a_reload_keeps_the_rounds_of_those_who_stay(rig, probes):
    watch = Watch(rig, A, B, chance=(0.5,), check=CHECK)
    run(rig, 3)
    gone = watch.members.pop(1)
    watch.members.append(Member(Backend("127.0.0.1", 4444)))
    watch.reconfigure()
    run(rig, 3)
    assert [(time, port) for time, port, _ in probes.begun] == [(5.0, 2222)]
    run(rig, 3)
    assert [port for _, port, _ in probes.begun] == [2222, 4444]
    assert gone not in watch.table
    watch.checker.stop()


def test_a_reload_with_another_check_begins_anew(rig, probes):
    probes.result = None
    watch = Watch(rig, A, check=CHECK)
    run(rig, 6)
    other = replace(CHECK, interval=2.0)
    watch.reconfigure(check=other)
    assert probes.cancelled == 1
    run(rig, 2)
    assert probes.checks == [CHECK, other]
    assert probes.times == [5.0, 7.0]
    watch.reconfigure(check=None)
    assert probes.cancelled == 2
    assert not rig.getDelayedCalls()
    watch.checker.stop()


def test_a_reload_while_stopped_starts_nothing(rig, probes):
    watch = Watch(rig, A, check=CHECK)
    watch.checker.stop()
    watch.reconfigure(check=replace(CHECK, interval=2.0))
    assert not rig.getDelayedCalls()


def test_a_round_of_one_who_has_left_is_empty(rig, probes):
    watch = Watch(rig, A, B, check=CHECK)
    watch.table.reconfigure(watch.pool.config, watch.members[1:], 0.0)
    run(rig, 6)
    assert [port for _, port, _ in probes.begun] == [3333]
    watch.checker.stop()


# Where and how.


@pytest.mark.parametrize(
    ("backend", "check", "expected"),
    [
        (A, CHECK, (2222, "127.0.0.1:2222")),
        (Backend("::1", 80), CHECK, (80, "[::1]:80")),
        (A, replace(CHECK, port=9000), (9000, "127.0.0.1:9000")),
        (A, replace(CHECK, host="app.example"), (2222, "app.example")),
    ],
)
def test_the_check_says_where_to_probe(rig, probes, backend, check, expected):
    watch = Watch(rig, backend, check=check)
    run(rig, 6)
    assert probes.begun[0][1:] == expected
    watch.checker.stop()


def test_a_unix_socket_has_no_port_and_no_name(rig, probes, tmp_path):
    watch = Watch(rig, Backend("", 0, unix=str(tmp_path / "s")), check=replace(CHECK, port=9000))
    run(rig, 6)
    assert probes.begun[0][2] == "localhost"
    watch.checker.stop()


def test_a_name_that_does_not_resolve_is_a_failed_check(rig):
    watch = Watch(rig, Backend("name.invalid", 1), check=replace(CHECK, fall=1))
    run(rig, 6)
    assert watch.table[watch.members[0]].why == "its name does not resolve (1 failed check)"
    watch.checker.stop()


def test_a_name_is_probed_at_the_port_of_the_check(rig, probes, monkeypatch):
    watch = Watch(rig, Backend("name.invalid", 1), check=replace(CHECK, port=9000))
    monkeypatch.setattr(
        watch.pool.discovery, "addresses", lambda backend: [SimpleNamespace(sockaddr=("192.0.2.1", backend.port))]
    )
    run(rig, 6)
    assert probes.begun[0][1:] == (9000, "name.invalid:9000")
    watch.checker.stop()


# With real probes.


def test_a_real_backend_is_found_down_and_up_again(rig, serving, tmp_path):
    authority, theirs = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("app.example").configure_cert(theirs)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    check = Check(
        CheckKind.WEBSOCKET,
        rise=1,
        fall=1,
        tls=BackendTls(ca=tmp_path / "ca.pem", name="app.example"),
        port=free_port(),
    )
    watch = Watch(rig, A, check=check)
    health = watch.table[watch.members[0]]

    def checked() -> State:
        before = health.checked
        rig.advance(check.interval)
        rig.until(lambda: health.checked != before)
        return health.state

    def handle(session: Any) -> None:
        for _ in session:
            pass

    assert checked() is State.DOWN
    with serving(serve(handle, "127.0.0.1", check.port, ssl=theirs)):
        assert checked() is State.UP
        rig.settle()
        rig.pass_time(2.1)
    assert checked() is State.DOWN
    assert watch.logged[0][1] == "pool app: backend 127.0.0.1:2222 is down: connection refused (1 failed check)"
    watch.checker.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
