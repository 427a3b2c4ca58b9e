"""The router as a process of its own, run by ``twistd``: how it starts, refuses to start, drains and ends."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.integration.process import PATIENCE, RouterProcess, run, run_daemon
from wsrouter import __version__

TEXT, CLOSE = 1, 8

#: Runs the command behind it, and sends it SIGHUP as soon as it says that it listens.
HANGUP_AT_ONCE = """
import os, runpy, signal, sys
from twisted.logger import globalLogPublisher

def hang_up(event):
    if "listening on" in event.get("log_format", ""):
        os.kill(os.getpid(), signal.SIGHUP)

globalLogPublisher.addObserver(hang_up)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

SESSIONS = """
    [router]
    drain = {drain}
    drain_spread = 0s
    {router}
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    [tunnel opaque]
    match = opaque
    pool = app
    [route sessions]
    path = /ws
    pool = app
    [route plain]
    path = /http
    accept = http
    pool = app
    [pool app]
    backends = {backend}
"""


@pytest.fixture
def serving(start_process, backend):
    """``serving(drain="60s", router="") -> RouterProcess, Backend``: one backend for sessions, tunnels and requests."""

    def begin(drain: str = "60s", router: str = ""):
        server = backend()
        return start_process(SESSIONS.format(drain=drain, router=router, backend=server.address)), server

    return begin


@pytest.fixture
def open_session_with(connect):
    def begin(router: RouterProcess, server):
        client = connect(router.port)
        client.request("/ws")
        peer = server.accept()
        peer.answer()
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
        return client, peer

    return begin


def until_refused(port: int) -> None:
    """Return once ``port`` refuses connections: it is closed a turn of the reactor behind the first goodbyes."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED:
                return
    pytest.fail(f"port {port} still accepts connections")


def until_gone(path: Path) -> None:
    """Return once ``path`` is gone: a daemon that cannot start says so before it tidies up."""
    deadline = time.monotonic() + PATIENCE
    while path.exists():
        if time.monotonic() > deadline:
            pytest.fail(f"{path} is still there")


# Ending.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_router_at_once_with_status_0(serving, number) -> None:
    router, _ = serving()
    router.signal(number)
    assert router.status() == 0
    router.wait_for(f"{signal.Signals(number).name}: draining")
    assert "Traceback" not in router.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_says_goodbye_to_sessions_and_waits_for_their_answers(
    serving, open_session_with, frame, number
) -> None:
    router, server = serving()
    sessions = [open_session_with(router, server) for _ in range(3)]
    client, peer = sessions[0]
    client.send(frame(TEXT, b"before"))
    assert peer.recv_frame().payload == b"before"
    router.signal(number)
    for client, peer in sessions:
        told = client.recv_frame()
        assert (told.opcode, told.code) == (CLOSE, 1001)
        told = peer.recv_frame()
        assert (told.opcode, told.code, told.masked) == (CLOSE, 1001, True)
    until_refused(router.port)
    assert router.process.poll() is None
    for client, peer in sessions:
        client.send(frame(CLOSE, b"\x03\xe9"))
        peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
        assert client.recv_all() == peer.recv_all() == b""
        assert not client.was_reset
        assert not peer.was_reset
        client.close()
        peer.close()
    assert router.status() == 0
    assert router.log.count("code=1001") == 3
    assert "Traceback" not in router.log


def test_a_drain_waits_for_the_end_of_a_frame(serving, open_session_with, frame) -> None:
    router, server = serving()
    client, peer = open_session_with(router, server)
    data = frame(2, b"x" * 1000, mask=False)
    peer.send(data[:500])
    assert client.recv_exactly(500) == data[:500]
    router.signal()
    assert peer.recv_frame().code == 1001
    peer.send(data[500:])
    assert client.recv_exactly(504) == data[500:]
    assert client.recv_frame().code == 1001
    client.close()
    peer.close()
    assert router.status() == 0


def test_what_does_not_end_is_cut_when_the_drain_is_over(serving, connect) -> None:
    router, server = serving(drain="300ms")
    client = connect(router.port)
    client.send(b"\0tunnel")
    peer = server.accept()
    assert peer.recv_exactly(7) == b"\0tunnel"
    router.signal()
    router.wait_for("draining: 1 tunnel; ")
    # It lives until then.
    client.send(b"more")
    assert peer.recv_exactly(4) == b"more"
    assert client.recv_all() == b""
    assert peer.recv_all() == b""
    assert router.status() == 0
    assert "the time is up, 1 of 1 tunnel are cut" in router.log
    assert "Traceback" not in router.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(serving, connect, number) -> None:
    router, server = serving()
    client = connect(router.port)
    client.send(b"\0tunnel")
    peer = server.accept()
    router.signal(number)
    router.wait_for("draining: 1 tunnel; ")
    router.signal(number)
    assert router.status() == 0
    assert "again: ending at once" in router.log
    client.recv_all()
    peer.recv_exactly(7)
    assert peer.recv_all() == b""
    assert "Traceback" not in router.log


def test_a_drain_closes_resting_connections_and_finishes_requests(serving, connect) -> None:
    router, server = serving()
    resting, asking = connect(router.port), connect(router.port)
    for client in (resting, asking):
        client.send(b"GET /http HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    # Whichever comes first is answered; the other waits.
    first, second = server.accept(), server.accept()
    for one in (first, second):
        one.recv_head()
    first.send(answer)
    done, _, _ = select.select([resting.socket, asking.socket], [], [], PATIENCE)
    if done == [asking.socket]:
        resting, asking = asking, resting
    assert resting.recv_until(b"ok").startswith(b"HTTP/1.1 200 ")
    router.signal()
    assert resting.recv_all() == b""
    assert router.process.poll() is None
    second.send(answer)
    assert asking.recv_all().endswith(b"ok")
    assert not asking.was_reset
    resting.close()
    asking.close()
    assert router.status() == 0
    assert "Traceback" not in router.log


def test_a_session_that_is_opened_during_the_drain_is_ended(serving, connect, frame) -> None:
    router, server = serving()
    client = connect(router.port)
    client.request("/ws")
    peer = server.accept()
    head = peer.recv_head()
    router.signal()
    router.wait_for("draining")
    peer.send(peer.agreement(head))
    if client.recv_head().startswith(b"HTTP/1.1 101 "):
        assert client.recv_frame().code == 1001
    client.close()
    peer.close()
    assert router.status() == 0
    assert "Traceback" not in router.log


# Running short.


def test_without_descriptors_accepting_pauses_and_live_sessions_go_on(
    serving, open_session_with, connect, frame
) -> None:
    router, server = serving()
    client, peer = open_session_with(router, server)
    pid = router.process.pid
    used = len(os.listdir(f"/proc/{pid}/fd"))
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3, before[1]))
    # Two wait for their first bytes to be whole, each with a descriptor; the others wait in the kernel.
    late = [connect(router.port) for _ in range(20)]
    router.wait_for("accepting pauses: too many open files")
    client.send(frame(TEXT, b"still here"))
    assert peer.recv_frame().payload == b"still here"
    peer.send(frame(TEXT, b"so am I", mask=False))
    assert client.recv_frame().payload == b"so am I"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    for one in late:
        one.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one.recv_all().startswith(b"HTTP/1.1 404 ")
        one.close()
    assert router.log.count("accepting pauses") == 1
    assert router.log.count("accepting again") == 1
    assert "Traceback" not in router.log


# Refusing to start.


def test_a_port_in_use_ends_the_start_with_one_line(tmp_path, backend) -> None:
    taken = backend()
    (tmp_path / "router.ini").write_text(
        f"[listener main]\nendpoint = tcp:{taken.port}:interface=127.0.0.1\n[route all]\nredirect = /x\n"
    )
    done = run(tmp_path, "--config", "router.ini")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"wsrouter: listener main: cannot listen on tcp:{taken.port}:interface=127.0.0.1: address already in use"
    ]
    assert "Traceback" not in done.stdout + done.stderr


def test_a_port_in_use_ends_the_start_of_the_daemon_too(tmp_path, backend) -> None:
    taken = backend()
    (tmp_path / "router.ini").write_text(
        "[listener free]\nendpoint = unix:r.sock\n"
        f"[listener main]\nendpoint = tcp:{taken.port}:interface=127.0.0.1\n[route all]\nredirect = /x\n"
    )
    done = run_daemon(tmp_path)
    assert done.returncode == 1
    assert "listener main: cannot listen on" in done.stderr
    log = (tmp_path / "d.log").read_text()
    assert f"cannot listen on tcp:{taken.port}:interface=127.0.0.1: address already in use" in log
    assert "Traceback" not in log + done.stderr
    until_gone(tmp_path / "d.pid")


def test_a_missing_file_ends_the_start_with_one_line(tmp_path) -> None:
    done = run(tmp_path, "--config", "nowhere.ini")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nowhere.ini: cannot be read: No such file or directory\n"


def test_without_a_file_the_start_says_what_is_needed(tmp_path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("wsrouter: --config FILE is needed")
    assert done.stderr.count("\n") == 1


FAULTY = """\
[listener main]
endpoint = tcp:0
sniff_timout = 5s
[route all]
pool = ap
[pool app]
backends = 127.0.0.1:1
connect_timeout = soon
"""


@pytest.mark.parametrize("more", [(), ("--check",)])
def test_every_fault_is_told_with_its_line(tmp_path, more) -> None:
    (tmp_path / "router.ini").write_text(FAULTY)
    done = run(tmp_path, "--config", "router.ini", *more)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["router.ini:3", "router.ini:5", "router.ini:8"]
    assert "did you mean 'sniff_timeout'?" in lines[0]
    assert "[route all] pool" in lines[1]


def test_a_certificate_that_cannot_be_used_ends_the_start(tmp_path) -> None:
    (tmp_path / "a.pem").write_text("nothing of that kind")
    (tmp_path / "router.ini").write_text(
        "[listener main]\nendpoint = tcp:0\ncertificates = a.pem\n[route all]\nredirect = /x\n"
    )
    for more in ((), ("--check",)):
        done = run(tmp_path, "--config", "router.ini", *more)
        assert (done.returncode, done.stdout) == (1, "")
        assert "a.pem" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_unknown_option_of_the_command_line_is_refused(tmp_path) -> None:
    done = run(tmp_path, "--confg", "router.ini")
    assert done.returncode == 1
    assert "--confg" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# Checking, and the version.


def test_check_accepts_a_good_file_and_binds_nothing(tmp_path, backend) -> None:
    taken = backend()
    (tmp_path / "router.ini").write_text(
        f"[listener main]\nendpoint = tcp:{taken.port}:interface=127.0.0.1\n[route all]\nredirect = /x\n"
    )
    done = run(tmp_path, "--config", "router.ini", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "router.ini: the configuration is good\n"


def test_the_version_is_shown(tmp_path) -> None:
    done = run(tmp_path, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wsrouter {__version__}\n", "")


def test_the_help_names_what_a_user_needs(tmp_path) -> None:
    done = run(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("--config", "--check", "--version", "SIGHUP", "SIGTERM", "etc/router.ini"):
        assert words in done.stdout


# Running elsewhere.


def test_paths_are_relative_to_the_file_wherever_it_is_run_from(start_process, connect, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("the page")
    router = start_process(
        """
        [router]
        access_log = access.log
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [route page]
        static = www
        """,
        cwd=elsewhere,
        config="../router.ini",
    )
    client = connect(router.port)
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert client.recv_all().endswith(b"the page")
    router.signal()
    assert router.status() == 0
    assert (tmp_path / "access.log").exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["epoll", "poll", "select"])
def test_any_reactor_of_twistds_will_do(start_process, backend, open_session_with, frame, name) -> None:
    server = backend()
    text = SESSIONS.format(drain="5s", router="", backend=server.address)
    router = start_process(text, options=["--reactor", name])
    client, peer = open_session_with(router, server)
    client.send(frame(TEXT, b"there"))
    assert peer.recv_frame().payload == b"there"
    peer.send(frame(CLOSE, b"\x03\xe8", mask=False))
    assert client.recv_frame().code == 1000
    client.send(frame(CLOSE, b"\x03\xe8"))
    peer.close()
    assert client.recv_all() == b""
    router.signal()
    assert router.status() == 0
    assert "Traceback" not in router.log


@pytest.fixture
def systemd(tmp_path):
    """What systemd hears at ``tmp_path / "notify"``: a datagram for each message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(PATIENCE)
        listening.bind(str(tmp_path / "notify"))
        yield listening


@pytest.mark.parametrize("workers", [1, 2])
def test_the_daemon_starts_serves_and_stops(tmp_path, backend, connect, systemd, workers) -> None:
    server = backend()
    options = f"access_log = access.log\n    workers = {workers}"
    text = textwrap.dedent(SESSIONS.format(drain="60s", router=options, backend=server.address))
    # A unix socket's place is known, a port of the kernel's choice would have to be looked for.
    (tmp_path / "router.ini").write_text(text.replace("tcp:0:interface=127.0.0.1", "unix:r.sock"))
    done = run_daemon(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = int((tmp_path / "d.pid").read_text())
    process = os.pidfd_open(pid)
    try:
        client = connect(str(tmp_path / "r.sock"))
        client.request("/ws")
        peer = server.accept()
        peer.answer()
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
        # The first worker serves before the router has started.
        assert systemd.recv(4096) == b"READY=1\nSTATUS=serving"
        signal.pidfd_send_signal(process, signal.SIGTERM)
        assert client.recv_frame().code == 1001
        assert peer.recv_frame().code == 1001
        client.close()
        peer.close()
        assert select.select([process], [], [], PATIENCE)[0]
    finally:
        if not select.select([process], [], [], 0)[0]:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)
    log = (tmp_path / "d.log").read_text()
    assert "listener main: listening on" in log
    assert "Traceback" not in log
    assert not (tmp_path / "d.pid").exists()
    assert not (tmp_path / "r.sock").exists()
    assert "event=close" in (tmp_path / "access.log").read_text()


# The access log.


def test_every_line_of_a_json_access_log_is_an_object(serving, open_session_with, connect, frame, tmp_path) -> None:
    router, server = serving(router="log = json\n    access_log = access.log")
    client, peer = open_session_with(router, server)
    client.send(frame(TEXT, b"hello"))
    peer.recv_frame()
    peer.send(frame(CLOSE, b'\x0f\xa0a "reason"\n{with} \xc3\xb6', mask=False))
    assert client.recv_frame().code == 4000
    client.send(frame(CLOSE, b"\x0f\xa0"))
    client.recv_all()
    client.close()
    peer.close()
    stranger = connect(router.port)
    stranger.send(b'GET /no"where HTTP/1.1\r\nHost: x\r\n\r\n')
    assert stranger.recv_all()
    tunnel = connect(router.port)
    tunnel.send(b"\0x")
    other = server.accept()
    other.recv_exactly(2)
    tunnel.close()
    assert other.recv_all() == b""
    other.close()
    router.signal()
    assert router.status() == 0
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert [(line["event"], line.get("kind"), line.get("rule")) for line in lines if line["event"] != "refuse"] == [
        ("open", "session", "sessions"),
        ("close", "session", "sessions"),
        ("open", "tunnel", "opaque"),
        ("close", "tunnel", "opaque"),
    ]
    assert [line["status"] for line in lines if line["event"] == "refuse"][-1] in (400, 404)
    end = next(line for line in lines if line["event"] == "close")
    assert (end["by"], end["code"], end["reason"]) == ("backend", 4000, 'a "reason"\n{with} ö')
    assert (end["messages_in"], end["messages_out"]) == (1, 0)
    assert end["seconds"] >= 0
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_the_access_log_goes_to_the_log_by_default(serving, open_session_with, frame) -> None:
    router, server = serving()
    client, peer = open_session_with(router, server)
    router.wait_for("event=open kind=session")
    client.send(frame(CLOSE, b"\x03\xe8{braces} %s"))
    peer.recv_frame()
    peer.send(frame(CLOSE, b"\x03\xe8", mask=False))
    client.close()
    peer.close()
    assert 'by=client code=1000 reason="{braces} %s"' in router.wait_for("event=close")


def test_the_whole_log_is_json_where_that_is_asked_for(serving, open_session_with) -> None:
    router, server = serving(router="log = json")
    client, peer = open_session_with(router, server)
    router.wait_for('"event":"open"')
    client.close()
    peer.close()
    router.wait_for('"event":"close"')
    router.signal()
    assert router.status() == 0
    router.wait_for("Server Shut Down")
    lines = [json.loads(line) for line in router.log.splitlines() if line != "<end>"]
    assert {"listening", "draining"} <= {word for line in lines for word in line.get("message", "").split()}
    assert [line["kind"] for line in lines if line.get("event") == "open"] == ["session"]


def test_two_signals_at_once_end_an_idle_router_in_order(serving) -> None:
    router, _ = serving()
    router.signal(signal.SIGINT)
    router.signal(signal.SIGTERM)
    assert router.status() == 0
    router.wait_for("Server Shut Down")


# Reloading.


def test_who_is_told_that_it_listens_may_ask_for_a_reload(start_process, backend) -> None:
    text = SESSIONS.format(drain="60s", router="", backend=backend().address)
    router = start_process(text, before=(sys.executable, "-c", HANGUP_AT_ONCE))
    router.wait_for("reloaded: ")
    router.signal()
    assert router.status() == 0


def test_a_hangup_signal_reloads_and_cuts_nobody(serving, open_session_with, connect, frame) -> None:
    router, server = serving()
    client, peer = open_session_with(router, server)
    text = (router.folder / "router.ini").read_text()
    assert "nothing has changed; 1 session or tunnel lives on" in router.reload()
    assert "1 route changed" in router.reload(text.replace("path = /http", "path = /other"))
    assert "reload refused" in router.reload(text + "nonsense = 1\n")
    assert "router.ini:" in router.wait_for("[pool app] nonsense")
    client.send(frame(TEXT, b"still here"))
    assert peer.recv_frame().payload == b"still here"
    gone = connect(router.port)
    gone.send(b"GET /http HTTP/1.1\r\nHost: x\r\n\r\n")
    assert gone.recv_head().startswith(b"HTTP/1.1 404 ")
    client.close()
    peer.close()
    assert "Traceback" not in router.log


@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_is_told_of_the_start_of_reloads_and_of_the_end(start_process, tmp_path, systemd, workers) -> None:
    text = (
        f"[router]\nworkers = {workers}\n[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n"
        "[route all]\nredirect = /x\n"
    )
    router = start_process(text, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    assert systemd.recv(4096) == b"READY=1\nSTATUS=serving"
    router.reload()
    assert systemd.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=serving"
    router.reload(text + "nonsense = 1")
    assert systemd.recv(4096).startswith(b"RELOADING=1")
    # It serves, if not as it was asked to.
    assert systemd.recv(4096).startswith(b"READY=1\nSTATUS=the configuration on disk is refused")
    router.signal()
    assert systemd.recv(4096).startswith(b"STOPPING=1")
    assert router.status() == 0


def test_a_hangup_signal_during_a_drain_is_ignored(serving, connect) -> None:
    router, server = serving()
    client = connect(router.port)
    client.send(b"\0tunnel")
    peer = server.accept()
    router.signal()
    router.wait_for("draining: 1 tunnel")
    router.signal(signal.SIGHUP)
    router.wait_for("no reload: the router is shutting down")
    client.send(b"more")
    assert peer.recv_exactly(11) == b"\0tunnelmore"
    client.close()
    peer.close()
    assert router.status() == 0


# Less rights than at the start.


PRIVILEGED = """
    [router]
    workers = WORKERS
    access_log = {log}
    [listener main]
    endpoint = tcp:{port}:interface=127.0.0.1
    certificates = keys/*.pem
    [listener last]
    endpoint = tcp:0:interface=127.0.0.1
    [route all]
    redirect = {target}
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_new_user_may_not_read_or_bind_stays_and_the_rest_is_reloaded(
    start_process, connect, request, tmp_path, authority, workers
) -> None:
    nobody = request.getfixturevalue("nobody" if workers == 1 else "nobody_with_python")
    text = PRIVILEGED.replace("WORKERS", str(workers))
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    (keys / "a.pem").write_bytes(authority.issue("localhost"))
    (tmp_path / "log").touch()
    os.chown(tmp_path / "log", *nobody)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = ["--uid", str(nobody[0]), "--gid", str(nobody[1])]
    router = start_process(text.format(log="log", port=port, target="/one"), options=options)
    with open(f"/proc/{router.process.pid}/status") as status:
        assert "Uid:\t65534\t65534" in status.read()
    tls = authority.client_context()

    def location(name: str = "localhost") -> bytes:
        client = connect(port, tls=tls, name=name)
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return client.recv_all()

    assert b"Location: /one" in location()
    # The keys are closed, and so are ports below 1024 and the place of the new log.
    told = router.reload(text.format(log="/access.log", port=81, target="/two"))
    assert f"{keys}/a.pem: cannot be read (permission denied)" in router.log
    assert "listener main: cannot listen on tcp:81:interface=127.0.0.1: permission denied" in router.log
    assert f"it stays at 127.0.0.1:{port}" in router.log
    assert "access log /access.log: cannot be opened: permission denied" in router.log
    assert "reloaded: 1 listener changed; 1 route changed" in told
    # The rest is in force, the old certificate and port too.
    assert b"Location: /two" in location()
    # Once the key can be read, a new one is taken; a port that was tried in vain is tried again.
    keys.chmod(0o755)
    (keys / "a.pem").chmod(0o644)
    (keys / "b.pem").write_bytes(authority.issue("b.example"))
    (keys / "b.pem").chmod(0o644)
    router.reload(text.format(log="log", port=port, target="/three"))
    client = connect(port, tls=tls, name="b.example")
    client.send(b"GET / HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n")
    assert b"Location: /three" in client.recv_all()
    # A key that was never known cannot be made up.
    (keys / "c.pem").write_bytes(authority.issue("c.example"))
    (keys / "c.pem").chmod(0o600)
    assert "reload refused" in router.reload(text.format(log="log", port=port, target="/four"))
    assert b"Location: /three" in location()
    # A socket that root has bound shares its port with nobody: it makes room, and a port in use makes it come back.
    (keys / "c.pem").unlink()
    wider = text.replace(":interface=127.0.0.1\n    certificates", "\n    certificates")
    taken = f"\n    [listener taken]\n    endpoint = tcp:{router.port}:interface=0.0.0.0\n"
    told = router.reload(wider.format(log="log", port=port, target="/five") + taken)
    assert "reload refused" in told
    assert b"Location: /three" in location()
    router.reload(wider.format(log="log", port=port, target="/five"))
    router.wait_for(f"listening on 0.0.0.0:{port}")
    assert b"Location: /five" in location()
    router.signal()
    assert router.status() == 0
    assert "Traceback" not in router.log


# Draining behind a balancer.


def test_during_the_delay_the_balancer_is_told_and_clients_are_served(
    serving, open_session_with, connect, frame
) -> None:
    router, server = serving(router="drain_path = /.wsrouter\n    drain_delay = 60s")

    def state(method: str = "GET") -> bytes:
        client = connect(router.port)
        client.send(f"{method} /.wsrouter HTTP/1.1\r\nHost: anything\r\n\r\n".encode())
        return client.recv_all()

    assert state().startswith(b"HTTP/1.1 200 ")
    router.signal()
    router.wait_for("draining in 60 s")
    answer = state()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in answer
    assert state("HEAD").endswith(b"\r\n\r\n")
    assert state("POST").startswith(b"HTTP/1.1 405 ")
    client, peer = open_session_with(router, server)
    client.send(frame(TEXT, b"served"))
    assert peer.recv_frame().payload == b"served"
    # Questions of balancers are too many to be logged.
    assert "status=200" not in router.log
    assert "status=503" not in router.log
    router.signal()
    assert router.status() == 0


def test_when_the_delay_is_over_the_drain_begins(serving, open_session_with) -> None:
    router, server = serving(router="drain_delay = 100ms\n    drain_code = 1012")
    client, peer = open_session_with(router, server)
    router.signal()
    assert client.recv_frame().code == 1012
    assert peer.recv_frame().code == 1012
    client.close()
    peer.close()
    until_refused(router.port)
    assert router.status() == 0


@pytest.mark.parametrize(("plain", "status"), [("redirect", b"200"), ("no", b"400"), ("yes", b"200")])
def test_the_balancer_is_answered_in_clear_unless_the_port_speaks_tls_only(
    start_process, connect, authority, tmp_path, plain, status
) -> None:
    (tmp_path / "a.pem").write_bytes(authority.issue("localhost"))
    router = start_process(
        f"""
        [router]
        drain_path = /state
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        plain = {plain}
        certificates = a.pem
        [route all]
        redirect = /x
        """
    )
    client = connect(router.port)
    client.send(b"GET /state HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv_all().startswith(b"HTTP/1.1 " + status)
    client = connect(router.port, tls=authority.client_context(), name="localhost")
    client.send(b"GET /state HTTP/1.1\r\nHost: unknown.example\r\n\r\n")
    assert client.recv_all().startswith(b"HTTP/1.1 200 ")
