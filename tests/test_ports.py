"""Which sockets are kept. Binding, and the way back, are told in tests/integration/test_reload.py."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from wsrouter.config.values import Listener as Values
from wsrouter.errors import ConfigError, ListenError
from wsrouter.ports import open_ports, pair


def named(*pairs: tuple[str, str]) -> list[Values]:
    return [Values(name, endpoint) for name, endpoint in pairs]


@pytest.mark.parametrize(
    ("running", "wanted", "kept"),
    [
        ([("a", "tcp:1")], [("a", "tcp:1")], [0]),
        ([("a", "tcp:1")], [("b", "tcp:1")], [0]),
        ([("a", "tcp:1")], [("a", "tcp:2")], [None]),
        ([("a", "tcp:1"), ("b", "tcp:2")], [("a", "tcp:2"), ("b", "tcp:1")], [1, 0]),
        ([("a", "tcp:1")], [("a", "tcp:1:backlog=9")], [0]),
        ([("a", "tcp:1")], [("a", "tcp6:1")], [None]),
        ([("a", "tcp:1:interface=127.0.0.1")], [("a", "tcp:1")], [None]),
        ([("a", "unix:/r.sock")], [("a", "unix:/r.sock:mode=600")], [0]),
        ([("a", "tcp:0"), ("b", "tcp:0")], [("b", "tcp:0"), ("a", "tcp:0")], [1, 0]),
        ([("a", "tcp:0"), ("b", "tcp:0")], [("c", "tcp:0"), ("b", "tcp:0"), ("d", "tcp:0")], [0, 1, None]),
        ([("a", "systemd:domain=INET:name=x")], [("b", "systemd:domain=INET:name=x")], [0]),
    ],
)
def test_a_socket_belongs_to_its_address_and_then_to_its_name(running, wanted, kept):
    assert pair(named(*running), named(*wanted)) == kept


class Fake:
    """A listener whose binding fails as the test says."""

    def __init__(self, config: Values, error: int | None = None, log: list[str] | None = None) -> None:
        self.config = config
        self.name = config.name
        self.endpoint = config.endpoint
        self.address = f"<{config.endpoint}>"
        self.error = error
        self.log = [] if log is None else log

    def bind(self, reactor: object) -> None:
        if self.error is not None:
            raise ListenError(f"{self.endpoint}: no", self.error)
        self.log.append(f"bind {self.endpoint}")

    def bind_over(self, old: list[Fake]) -> None:
        self.log.append(f"over {[one.endpoint for one in old]}")
        self.bind(None)

    def start(self) -> None:
        self.log.append(f"start {self.endpoint}")

    def resume(self) -> None:
        self.log.append(f"resume {self.endpoint}")

    def discard(self) -> None:
        self.log.append(f"discard {self.endpoint}")


def made(log: list[str], *errors: tuple[str, int]) -> Callable[[Values], Any]:
    """Makes listeners; those at the endpoints fail once with each error given for them."""
    waiting = list(errors)

    def make(config: Values) -> Any:
        error = next((one for one in waiting if one[0] == config.endpoint), None)
        if error is not None:
            waiting.remove(error)
        return Fake(config, None if error is None else error[1], log)

    return make


def opened(running: list[tuple[str, str]], wanted: list[tuple[str, str]], log: list[str], *errors: Any) -> Any:
    fakes: Any = [Fake(config, log=log) for config in named(*running)]
    return open_ports(None, fakes, named(*wanted), made(log, *errors))


def test_a_port_that_may_not_be_bound_leaves_the_listener_where_it_is():
    log: list[str] = []
    ports = opened([("a", "tcp:8080")], [("a", "tcp:80")], log, ("tcp:80", errno.EACCES))
    assert [(config.endpoint, listener.endpoint) for config, listener in ports.taken] == [("tcp:80", "tcp:8080")]
    assert ports.warnings == ["tcp:80: no: it stays at <tcp:8080>"]
    assert (ports.opened, ports.closed, log) == ([], [], [])


def test_a_new_listener_that_may_not_be_bound_is_left_out():
    log: list[str] = []
    ports = opened([("a", "tcp:1")], [("a", "tcp:1"), ("b", "tcp:80")], log, ("tcp:80", errno.EPERM))
    assert [listener.name for _, listener in ports.taken] == ["a"]
    assert ports.warnings == ["tcp:80: no: it is not opened"]


def test_every_port_that_cannot_be_bound_is_told_and_what_was_bound_is_let_go():
    log: list[str] = []
    wanted = [("a", "tcp:1"), ("b", "tcp:2"), ("c", "tcp:3"), ("d", "tcp:4")]
    with pytest.raises(ConfigError) as caught:
        opened([("a", "tcp:1")], wanted, log, ("tcp:3", errno.EADDRINUSE), ("tcp:4", errno.EADDRNOTAVAIL))
    assert sorted(caught.value.faults) == ["tcp:3: no", "tcp:4: no"]
    assert log == ["bind tcp:2", "start tcp:2", "discard tcp:2"]


def test_an_old_listener_makes_room_for_a_wider_one():
    log: list[str] = []
    narrow = "tcp:80:interface=127.0.0.1"
    ports = opened([("a", narrow)], [("a", "tcp:80")], log, ("tcp:80", errno.EADDRINUSE))
    assert log == [f"over {[narrow]}", "bind tcp:80", "start tcp:80"]
    assert [listener.endpoint for listener in ports.closed] == [narrow]


def test_an_old_listener_that_made_room_in_vain_listens_again():
    log: list[str] = []
    narrow = "tcp:80:interface=127.0.0.1"
    with pytest.raises(ConfigError):
        opened([("a", narrow)], [("a", "tcp:80")], log, *[("tcp:80", errno.EADDRINUSE)] * 2)
    assert log == [f"over {[narrow]}", f"resume {narrow}"]
    log.clear()
    ports = opened([("a", narrow)], [("a", "tcp:80")], log, ("tcp:80", errno.EADDRINUSE), ("tcp:80", errno.EACCES))
    assert log == [f"over {[narrow]}", f"resume {narrow}"]
    assert ports.closed == []


def test_another_backlog_or_mode_needs_a_restart():
    ports = opened([("a", "tcp:1")], [("a", "tcp:1:backlog=9")], [])
    assert ports.warnings == [
        "listener a: tcp:1:backlog=9 is bound already as tcp:1; what differs needs a restart"
    ]  # fmt: skip


def test_descriptors_that_run_out_refuse_the_reload(monkeypatch):
    def start(self: Fake) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Fake, "start", start)
    log: list[str] = []
    with pytest.raises(ConfigError, match="cannot accept: Too many open files"):
        opened([], [("a", "tcp:1")], log)
    assert log[-1] == "discard tcp:1"


def test_a_fault_of_the_router_itself_leaves_no_port_open(monkeypatch):
    def bind(self: Fake, reactor: object) -> None:
        self.log.append(f"bind {self.endpoint}")
        if self.endpoint == "tcp:2":
            raise ZeroDivisionError

    monkeypatch.setattr(Fake, "bind", bind)
    log: list[str] = []
    with pytest.raises(ZeroDivisionError):
        opened([], [("a", "tcp:1"), ("b", "tcp:2")], log)
    assert log == ["bind tcp:1", "start tcp:1", "bind tcp:2", "discard tcp:1"]
