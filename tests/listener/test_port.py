"""Binding and closing sockets. What it looks like from outside: test_listener, tests/integration/test_sockets."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError

from wsrouter.errors import RouterError
from wsrouter.listener.port import Port, bind


@pytest.fixture
def bound(reactor) -> Iterator:
    """``bound(endpoint) -> Port``; closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def begin(endpoint: str) -> Port:
            port = bind(reactor, endpoint)
            stack.callback(port.close)
            return port

        yield begin


def connects(path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def leave_stale(path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (CannotListenError("127.0.0.1", 80, OSError(13, "Permission denied")), "permission denied"),
        (CannotListenError("127.0.0.1", 80, socket.gaierror(-2, "Name or service not known")), "name or service"),
        (RuntimeError("something else"), "something else"),
    ],
)
def test_an_endpoint_that_fails_later_is_told_in_few_words(bound, monkeypatch, error, why):
    endpoint = SimpleNamespace(listen=lambda factory: fail(error))
    monkeypatch.setattr("wsrouter.listener.port.serverFromString", lambda reactor, text: endpoint)
    with pytest.raises(RouterError, match=why):
        bound("tcp:0")


def test_an_endpoint_that_takes_its_time_is_refused(bound, monkeypatch):
    endpoint = SimpleNamespace(listen=lambda factory: Deferred())
    monkeypatch.setattr("wsrouter.listener.port.serverFromString", lambda reactor, text: endpoint)
    with pytest.raises(RouterError, match="cannot be bound at once"):
        bound("tcp:0")


def test_a_unix_socket_is_bound_with_its_mode_and_removed_when_it_is_closed(bound, tmp_path):
    port = bound(f"unix:{tmp_path}/r.sock:mode=640:backlog=7")
    assert (port.address, port.number) == (f"unix:{tmp_path}/r.sock", 0)
    assert (tmp_path / "r.sock").stat().st_mode & 0o777 == 0o640
    assert connects(tmp_path / "r.sock")
    port.close()
    assert not os.listdir(tmp_path)
    port.close()


def test_a_file_that_nobody_listens_on_is_replaced(bound, tmp_path):
    leave_stale(tmp_path / "r.sock")
    bound(f"unix:{tmp_path}/r.sock")
    assert connects(tmp_path / "r.sock")


def test_a_socket_that_somebody_listens_on_is_left_alone(bound, tmp_path):
    bound(f"unix:{tmp_path}/r.sock")
    with pytest.raises(RouterError, match="address already in use"):
        bound(f"unix:{tmp_path}/r.sock")
    assert connects(tmp_path / "r.sock")


def test_a_socket_whose_queue_is_full_has_somebody_behind_it(bound, tmp_path):
    bound(f"unix:{tmp_path}/r.sock:backlog=1")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(f"{tmp_path}/r.sock")
        with pytest.raises(RouterError, match="address already in use"):
            bound(f"unix:{tmp_path}/r.sock")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_never_removed(bound, tmp_path, kind):
    place = tmp_path / "r.sock"
    if kind == "file":
        place.write_text("precious")
    elif kind == "folder":
        place.mkdir()
    else:
        leave_stale(tmp_path / "other.sock")
        place.symlink_to(tmp_path / "other.sock")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(RouterError, match="no socket; it is left alone"):
        bound(f"unix:{place}")
    assert sorted(os.listdir(tmp_path)) == before


def test_the_file_of_another_is_not_removed(bound, tmp_path):
    port = bound(f"unix:{tmp_path}/r.sock")
    os.unlink(tmp_path / "r.sock")
    port.close()
    port = bound(f"unix:{tmp_path}/r.sock")
    # The first one stays, so that the second has a number of its own.
    os.rename(tmp_path / "r.sock", tmp_path / "old.sock")
    other = bound(f"unix:{tmp_path}/r.sock")
    port.close()
    assert connects(tmp_path / "r.sock")
    other.close()
    assert os.listdir(tmp_path) == ["old.sock"]


def test_nobody_takes_a_closing_sockets_file_for_a_stale_one_before_it_is_removed(bound, tmp_path, monkeypatch):
    port = bound(f"unix:{tmp_path}/r.sock")
    unlink = os.unlink
    refused = []

    def start_another_first(path):
        monkeypatch.setattr(os, "unlink", unlink)
        with pytest.raises(RouterError, match="address already in use"):
            bound(f"unix:{tmp_path}/r.sock")
        refused.append(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", start_another_first)
    port.close()
    assert refused
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_not_there_is_told_in_few_words(bound, tmp_path):
    with pytest.raises(RouterError, match="no such file or directory"):
        bound(f"unix:{tmp_path}/none/r.sock")


def test_a_file_that_went_away_meanwhile_is_no_obstacle(bound, tmp_path, monkeypatch):
    leave_stale(tmp_path / "r.sock")
    lstat = os.lstat

    def gone(path):
        status = lstat(path)
        monkeypatch.setattr(os, "lstat", lstat)
        os.unlink(path)
        return status

    monkeypatch.setattr(os, "lstat", gone)
    bound(f"unix:{tmp_path}/r.sock")
    assert connects(tmp_path / "r.sock")


@pytest.fixture
def exhausted() -> Iterator:
    """``with exhausted(left):`` a process that may open so many descriptors more."""

    @contextlib.contextmanager
    def limit(left: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        fillers = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(os.open("/dev/null", os.O_RDONLY))
            for _ in range(left):
                os.close(fillers.pop())
            yield
        finally:
            for fd in fillers:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return limit


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("endpoint", ["tcp:0:interface=127.0.0.1", "unix:{}/r.sock"])
def test_descriptors_that_are_used_up_are_told_and_nothing_stays_open(reactor, tmp_path, exhausted, endpoint, left):
    before = len(os.listdir("/proc/self/fd"))
    with exhausted(left), pytest.raises(RouterError, match="too many open files"):
        bind(reactor, endpoint.format(tmp_path))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_somebody_keeps_locked_holds_nobody_up(bound, tmp_path):
    # Whoever may read a folder may lock it.
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with pytest.raises(RouterError, match="its folder is locked by another process"):
            bound(f"unix:{tmp_path}/r.sock")
    finally:
        os.close(folder)
    bound(f"unix:{tmp_path}/r.sock")
