from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import LogLevel

from wsrouter.ops.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The name that systemd would put into NOTIFY_SOCKET, and its socket."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@wsrouter-test-{tmp_path}"[:100]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(name if request.param == "path" else f"\0{name[1:]}")
        yield name, sock


def test_states_are_told_to_a_real_socket(systemd):
    name, sock = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("serving")
    assert sock.recv(4096) == b"READY=1\nSTATUS=serving"
    notifier.reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d{6,}", sock.recv(4096))
    notifier.stopping()
    assert sock.recv(4096).startswith(b"STOPPING=1")


def test_without_systemd_nothing_is_told():
    Notifier({}).ready("serving")


@pytest.mark.parametrize("name", ["/nowhere/notify", "/with\0nul"])
def test_a_socket_that_is_not_there_is_a_line_in_the_log(name, logged):
    Notifier({"NOTIFY_SOCKET": name}).stopping()
    assert [event["log_level"] for event in logged] == [LogLevel.warn]
