"""Sockets that outlive a process, or come from another one, and a process with few descriptors. Run by ``twistd``."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest

from tests.integration.process import run

TEXT = 1

#: Becomes a program that has a socket as descriptor 3 and its own number in the environment: what systemd gives to
#: the processes that it starts (sd_listen_fds(3)).
ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
#: Becomes a program that may open few descriptors.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.execv(sys.argv[1], sys.argv[1:])
"""

ROUTER = """
[listener main]
endpoint = {endpoint}
[route ws]
path = /ws
pool = app
[pool app]
backends = {backend}
"""


@pytest.fixture
def start(start_process, backend):
    """``start(endpoint, **more) -> RouterProcess, Backend``: a router that serves there; see ``start_process``."""

    def begin(endpoint: str, **more):
        server = backend()
        return start_process(ROUTER.format(endpoint=endpoint, backend=server.address), **more), server

    return begin


def open_session(client, server):
    client.request("/ws")
    peer = server.accept()
    peer.answer()
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    return peer


# Unix sockets.


def test_the_file_of_a_router_that_was_killed_is_replaced(start, connect, tmp_path) -> None:
    killed, _ = start("unix:r.sock:mode=660")
    killed.signal(signal.SIGKILL)
    killed.status()
    assert (tmp_path / "r.sock").is_socket()
    router, server = start("unix:r.sock:mode=660")
    assert (tmp_path / "r.sock").stat().st_mode & 0o777 == 0o660
    client = connect(str(tmp_path / "r.sock"))
    peer = open_session(client, server)
    client.close()
    peer.close()
    router.signal()
    assert router.status() == 0
    assert sorted(os.listdir(tmp_path)) == ["router.ini"]


def test_a_socket_that_is_in_use_ends_the_start_with_one_line(start, connect, tmp_path) -> None:
    _, server = start("unix:r.sock")
    second = run(tmp_path, "--config", "router.ini")
    assert second.returncode == 1
    assert second.stderr.splitlines() == [
        f"wsrouter: listener main: cannot listen on unix:{tmp_path}/r.sock: address already in use"
    ]
    # The first one has not noticed.
    open_session(connect(str(tmp_path / "r.sock")), server)


# Sockets from systemd.


@pytest.fixture
def passed():
    """``passed(sock) -> options, tcp, unix``: with the options a process gets ``sock`` as systemd would pass it."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:

        def listening(sock: socket.socket):
            sock.listen(16)
            return {
                "before": (sys.executable, "-c", ACTIVATED, str(sock.fileno())),
                "environment": {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
                "pass_fds": (sock.fileno(),),
            }

        yield listening, tcp, unix


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("which", ["name=web", "index=0"])
def test_a_socket_from_systemd_is_served(start, connect, frame, passed, which, workers) -> None:
    listening, tcp, _ = passed
    tcp.bind(("127.0.0.1", 0))
    options = listening(tcp)
    # Who comes before the router runs is served then: that is what such sockets are for.
    client = connect(tcp.getsockname()[1])
    router, server = start(f"systemd:domain=INET:{which}\n[router]\nworkers = {workers}", **options)
    peer = open_session(client, server)
    client.send(frame(TEXT, b"hello"))
    assert peer.recv_frame().payload == b"hello"
    assert router.port == tcp.getsockname()[1]
    client.close()
    peer.close()
    router.signal()
    assert router.status() == 0
    # It is systemd's, which goes on queueing clients for the next process.
    connect(tcp.getsockname()[1])


def test_the_file_of_a_unix_socket_from_systemd_stays(start, connect, tmp_path, passed) -> None:
    listening, _, unix = passed
    unix.bind(str(tmp_path / "r.sock"))
    router, server = start("systemd:domain=UNIX:name=web", **listening(unix))
    router.wait_for(f"listening on unix:{tmp_path}/r.sock")
    client = connect(str(tmp_path / "r.sock"))
    peer = open_session(client, server)
    client.close()
    peer.close()
    router.signal()
    assert router.status() == 0
    connect(str(tmp_path / "r.sock"))


# Descriptors.


def test_sessions_are_capped_to_what_the_descriptors_hold_and_the_next_wait(start, connect, frame) -> None:
    """64 descriptors, 48 of them for the process itself, two for each session."""
    router, server = start(
        "tcp:0:interface=127.0.0.1",
        before=(sys.executable, "-c", LIMITED),
    )
    place = router.port
    sessions = []
    for _ in range(8):
        client = connect(place)
        sessions.append((client, open_session(client, server)))
    waiting = [connect(place) for _ in range(4)]
    for client in waiting:
        client.request("/ws")
    router.wait_for("accepting pauses: the limit of connections is reached")
    for number, (client, peer) in enumerate(sessions):
        client.send(frame(TEXT, b"%d" % number))
        assert peer.recv_frame().payload == b"%d" % number
        peer.send(frame(TEXT, b"back", mask=False))
        assert client.recv_frame().payload == b"back"
    assert all(client.nothing_comes() for client in waiting)
    for client, peer in sessions[:4]:
        client.close()
        peer.close()
    for _ in waiting:
        server.accept().answer()
    for client in waiting:
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    client, peer = sessions[-1]
    client.send(frame(TEXT, b"still here"))
    assert peer.recv_frame().payload == b"still here"
    assert router.log.count("accepting pauses") == 1
    assert "Traceback" not in router.log
