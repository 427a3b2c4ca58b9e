"""Sockets that outlive a process, or come from another one, and a process with few descriptors. Run by ``twistd``."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

TWISTD = str(Path(sys.executable).with_name("twistd"))
#: How long a process may take for anything, in seconds.
PATIENCE = 20.0

TEXT = 1

#: Becomes a program that has a socket as descriptor 3 and its own number in the environment: what systemd gives to
#: the processes that it starts (sd_listen_fds(3)).
ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
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


class Process:
    """A router in the foreground; ``lines`` is its log so far."""

    def __init__(self, folder: Path, command: list[str], **more) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
        )
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._add(line)
        self._add("<end>")

    def _add(self, line: str) -> None:
        with self._grown:
            self.lines.append(line)
            self._grown.notify_all()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for(self, words: str) -> str:
        """The first line of the log that has ``words``; the test fails when the process ends before."""
        with self._grown:
            found = self._grown.wait_for(lambda: words in self.log or "<end>" in self.lines, PATIENCE)
            assert found, self.log
            assert words in self.log, self.log
            return next(line for line in self.lines if words in line)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end: the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path, backend):
    """``start(endpoint, wrap=(), **more) -> Process, Backend``: a router that serves; ``wrap`` starts its command."""
    started: list[Process] = []

    def begin(endpoint: str, wrap: tuple[str, ...] = (), **more):
        server = backend()
        (tmp_path / "router.ini").write_text(ROUTER.format(endpoint=endpoint, backend=server.address))
        command = [*wrap, TWISTD, "-n", "--pidfile=", "wsrouter", "--config", "router.ini"]
        started.append(Process(tmp_path, command, **more))
        started[-1].wait_for("listening on")
        return started[-1], server

    yield begin
    for one in started:
        one.close()


def port_of(process: Process) -> int:
    return int(process.wait_for("listening on").rpartition(":")[2])


def open_session(client, server):
    client.request("/ws")
    peer = server.accept()
    peer.answer()
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    return peer


# Unix sockets.


def test_the_file_of_a_router_that_was_killed_is_replaced(start, connect, tmp_path) -> None:
    killed, _ = start("unix:r.sock:mode=660")
    killed.end(signal.SIGKILL)
    assert (tmp_path / "r.sock").is_socket()
    router, server = start("unix:r.sock:mode=660")
    assert (tmp_path / "r.sock").stat().st_mode & 0o777 == 0o660
    client = connect(str(tmp_path / "r.sock"))
    peer = open_session(client, server)
    client.close()
    peer.close()
    assert router.end() == 0
    assert sorted(os.listdir(tmp_path)) == ["router.ini"]


def test_a_socket_that_is_in_use_ends_the_start_with_one_line(start, connect, tmp_path) -> None:
    _, server = start("unix:r.sock")
    second = subprocess.run(
        [TWISTD, "-n", "--pidfile=", "wsrouter", "--config", "router.ini"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr.splitlines() == [
        f"wsrouter: listener main: cannot listen on unix:{tmp_path}/r.sock: address already in use"
    ]
    # The first one has not noticed.
    open_session(connect(str(tmp_path / "r.sock")), server)


# Sockets from systemd.


@pytest.fixture
def passed():
    """``passed(sock) -> (wrap, options)``: start a process that gets ``sock`` as systemd would pass it."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:

        def wrap(sock: socket.socket):
            sock.listen(16)
            environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
            command = (sys.executable, "-c", ACTIVATED, str(sock.fileno()))
            return command, {"env": environment, "pass_fds": (sock.fileno(),)}

        yield wrap, tcp, unix


@pytest.mark.parametrize("which", ["name=web", "index=0"])
def test_a_socket_from_systemd_is_served(start, connect, frame, passed, which) -> None:
    wrap, tcp, _ = passed
    tcp.bind(("127.0.0.1", 0))
    command, more = wrap(tcp)
    # Who comes before the router runs is served then: that is what such sockets are for.
    client = connect(tcp.getsockname()[1])
    router, server = start(f"systemd:domain=INET:{which}", command, **more)
    peer = open_session(client, server)
    client.send(frame(TEXT, b"hello"))
    assert peer.recv_frame().payload == b"hello"
    assert port_of(router) == tcp.getsockname()[1]
    client.close()
    peer.close()
    assert router.end() == 0
    # It is systemd's, which goes on queueing clients for the next process.
    connect(tcp.getsockname()[1])


def test_the_file_of_a_unix_socket_from_systemd_stays(start, connect, tmp_path, passed) -> None:
    wrap, _, unix = passed
    unix.bind(str(tmp_path / "r.sock"))
    command, more = wrap(unix)
    router, server = start("systemd:domain=UNIX:name=web", command, **more)
    router.wait_for(f"listening on unix:{tmp_path}/r.sock")
    client = connect(str(tmp_path / "r.sock"))
    peer = open_session(client, server)
    client.close()
    peer.close()
    assert router.end() == 0
    connect(str(tmp_path / "r.sock"))


# Descriptors.


def test_sessions_are_capped_to_what_the_descriptors_hold_and_the_next_wait(start, connect, frame) -> None:
    """64 descriptors, 48 of them for the process itself, two for each session."""
    router, server = start(
        "tcp:0:interface=127.0.0.1",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    place = port_of(router)
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
