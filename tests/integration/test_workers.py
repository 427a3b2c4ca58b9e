"""``workers = N``: the router as several processes on the same ports, as an operator sees it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import ssl
import struct
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.integration.http import upgrade
from tests.integration.process import PATIENCE, RouterProcess, run
from tests.integration.tls_by_hand import TlsByHand

TEXT, CLOSE = 1, 8

SESSIONS = """
    [router]
    workers = {workers}
    drain = 20s
    drain_spread = 0s
    {router}
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    {listener}
    [route sessions]
    path = /ws
    pool = app
    [pool app]
    backends = {backend}
    {pool}
"""

LIMITED = """
    [router]
    workers = 2
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    {limit}
    [route all]
    redirect = /x
"""

_SERVES = re.compile(r"worker (\d+) \(process (\d+)\) serves")


def processes_of(router: RouterProcess) -> dict[int, int]:
    """Worker -> process, of all that have ever served."""
    return {int(number): int(pid) for number, pid in _SERVES.findall(router.log)}


def until_over(pid: int) -> None:
    """Return once a process that is not ours has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], PATIENCE)[0], f"process {pid} lives on"
    finally:
        os.close(process)


def until_bound(sock: socket.socket, port: int) -> None:
    """Return once the port is free, and ``sock`` has it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < deadline, "nobody gives the port back"
            time.sleep(0.01)
        else:
            return


@pytest.fixture
def serving(start_process, backend):
    """``serving(workers=2, **more) -> RouterProcess, Backend``."""
    started: list[RouterProcess] = []

    def begin(workers: int | str = 2, router: str = "", pool: str = "", also: str = ""):
        server = backend()
        backends = ", ".join(filter(None, (server.address, also)))
        text = SESSIONS.format(workers=workers, router=router, listener="", backend=backends, pool=pool)
        started.append(start_process(text))
        started[-1].text = text
        return started[-1], server

    yield begin
    for router in started:
        if router.process.poll() is None:
            router.signal(signal.SIGTERM)
            router.signal(signal.SIGINT)
            router.status()
        for pid in processes_of(router).values():
            until_over(pid)


@pytest.fixture
def open_with(connect):
    """``open_with(router, server, path="/ws") -> client, peer, worker``: a session, and which worker has it."""

    def begin(router: RouterProcess, server, path: str = "/ws", **more):
        told = len(router.lines)
        client = connect(router.port, **more)
        client.request(path)
        peer = server.accept()
        peer.answer()
        head = client.recv_head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        mine = f"client=127.0.0.1:{client.socket.getsockname()[1]} "
        router.wait_for(mine)
        (line,) = [line for line in router.lines[told:] if mine in line and "event=open" in line]
        return client, peer, int(line.rpartition("worker=")[2])

    return begin


@pytest.fixture
def one_in_each(open_with):
    """``one_in_each(router, server, *workers)``: worker -> client, peer; sessions until each worker has one."""

    def begin(router: RouterProcess, server, *workers: int):
        found: dict[int, tuple] = {}
        end = time.monotonic() + PATIENCE
        while set(workers) - set(found):
            assert time.monotonic() < end, f"of {workers} only {set(found)} get clients"
            client, peer, worker = open_with(router, server)
            # One that has just been told to leave may still have taken this one.
            if worker in found or worker not in workers:
                client.close()
                peer.close()
            else:
                found[worker] = (client, peer)
        return found

    return begin


def lives(session, frame) -> bool:
    """Whether a session carries a message each way."""
    client, peer = session
    client.send(frame(TEXT, b"ping?"))
    there = peer.recv_frame().payload == b"ping?"
    peer.send(frame(TEXT, b"pong!", mask=False))
    return there and client.recv_frame().payload == b"pong!"


def end(session) -> None:
    for one in session:
        one.close()


# Serving, and the end.


def test_all_workers_take_clients_and_a_drain_ends_all(serving, one_in_each, frame) -> None:
    router, server = serving()
    assert sorted(processes_of(router)) == [1, 2]
    sessions = one_in_each(router, server, 1, 2)
    assert all(lives(session, frame) for session in sessions.values())
    router.signal()
    for client, peer in sessions.values():
        for one in (client, peer):
            closing = one.recv_frame()
            assert (closing.opcode, closing.code) == (CLOSE, 1001)
        client.send(frame(CLOSE, b"\x03\xe9"))
        peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
        end((client, peer))
    assert router.status() == 0
    for pid in processes_of(router).values():
        until_over(pid)
    assert "Traceback" not in router.log
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", router.port)) != 0


def test_a_second_signal_ends_all_at_once(serving, one_in_each) -> None:
    router, server = serving()
    sessions = one_in_each(router, server, 1, 2)
    router.signal()
    router.wait_for("worker 2: SIGTERM: draining")
    router.signal(signal.SIGINT)
    assert router.status() == 0
    for pid in processes_of(router).values():
        until_over(pid)
    for session in sessions.values():
        end(session)


def test_workers_whose_supervisor_dies_drain_and_end(serving, one_in_each, frame) -> None:
    router, server = serving()
    sessions = one_in_each(router, server, 1, 2)
    router.signal(signal.SIGKILL)
    for client, peer in sessions.values():
        assert client.recv_frame().code == 1001
        end((client, peer))
    for pid in processes_of(router).values():
        until_over(pid)


def test_as_many_workers_as_processors(start_process) -> None:
    processors = sorted(os.sched_getaffinity(0))[:2]
    text = LIMITED.format(limit="").replace("workers = 2", "workers = auto")
    router = start_process(text, before=("taskset", "--cpu-list", ",".join(map(str, processors))))
    # With one there is one process, and no worker.
    assert len(processes_of(router)) == (2 if len(processors) == 2 else 0)
    router.signal()
    assert router.status() == 0


# A worker that dies.


def test_a_worker_that_dies_is_replaced_and_the_others_sessions_live(serving, one_in_each, frame) -> None:
    router, server = serving()
    sessions = one_in_each(router, server, 1, 2)
    os.kill(processes_of(router)[1], signal.SIGKILL)
    router.wait_for("worker 1 has died: killed by SIGKILL")
    client, peer = sessions.pop(1)
    assert client.recv_all() == b""
    end((client, peer))
    router.wait_for("worker 3 (process")
    sessions |= one_in_each(router, server, 3)
    assert all(lives(session, frame) for session in sessions.values())
    for session in sessions.values():
        end(session)
    assert "Traceback" not in router.log


def test_workers_that_die_again_and_again_are_replaced_after_pauses(serving, connect) -> None:
    router, _ = serving()
    for number, pause in ((1, None), (3, "0.5 s"), (4, "1 s")):
        router.wait_for(f"worker {number} (process")
        os.kill(processes_of(router)[number], signal.SIGKILL)
        router.wait_for(f"worker {number} has died")
        if pause is not None:
            router.wait_for(f"in a row; the next one is started in {pause}")
    # The other one serves meanwhile.
    client = connect(router.port)
    client.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert client.recv_all().startswith(b"HTTP/1.1 404 ")
    client.close()


# Replacing all.


def test_workers_are_replaced_and_the_old_ones_drain(serving, one_in_each, frame) -> None:
    router, server = serving()
    before = one_in_each(router, server, 1, 2)
    router.signal(signal.SIGUSR2)
    router.wait_for("2 workers replaced")
    after = one_in_each(router, server, 3, 4)
    for client, peer in before.values():
        assert client.recv_frame().code == 1001
        assert peer.recv_frame().code == 1001
        client.send(frame(CLOSE, b"\x03\xe9"))
        peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
        end((client, peer))
    for number in (1, 2):
        router.wait_for(f"worker {number} has ended: exit status 0")
        until_over(processes_of(router)[number])
    assert all(lives(session, frame) for session in after.values())
    for session in after.values():
        end(session)
    assert "has died" not in router.log
    assert "Traceback" not in router.log


def test_nobody_is_refused_while_workers_are_replaced(serving, connect) -> None:
    router, _ = serving()
    asked = 0
    router.signal(signal.SIGUSR2)
    while "2 workers replaced" not in router.log or asked < 100:
        client = connect(router.port)
        client.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv_all().startswith(b"HTTP/1.1 404 ")
        client.close()
        asked += 1


@pytest.fixture
def let_in(start_process, backend, connect, authority, tmp_path):
    """``let_in(workers) -> router, server, clients, secrets``: clients that say nothing; TLS that is half agreed."""
    (tmp_path / "a.pem").write_bytes(authority.issue("a.test"))

    def begin(workers: int):
        server = backend()
        text = SESSIONS.format(
            workers=workers,
            router="drain_path = /.up",
            # Two interpreters start meanwhile, one after the other.
            listener="certificates = *.pem\n    sniff_timeout = 60s\n    tls_timeout = 60s\n    head_timeout = 1s",
            backend=server.address,
            pool="",
        )
        router = start_process(text + "    [tunnel odd]\n    match = opaque\n    pool = app\n")
        clients = [connect(router.port) for _ in range(6)]
        secrets = []
        for _ in range(2):
            client = connect(router.port)
            by_hand = TlsByHand(client, authority.client_context(), "a.test")
            client.send(by_hand.take(by_hand.tls.do_handshake))
            by_hand.incoming.write(client.socket.recv(1))  # the first of what a worker has said
            secrets.append(by_hand)
        return router, server, clients, secrets

    return begin


def test_who_was_let_in_before_workers_are_replaced_is_served_all_the_same(let_in, frame) -> None:
    """Whoever is on the way when the old workers begin to drain meets nobody who turns him away."""
    router, server, (checking, odd, *asking), (secret, silent) = let_in(2)
    router.signal(signal.SIGUSR2)
    for number in (1, 2):
        router.wait_for(f"worker {number}: no new connections")

    checking.send(b"GET /.up HTTP/1.1\r\nHost: x\r\n\r\n")
    assert checking.recv_all().startswith(b"HTTP/1.1 200 ")  # the router goes on
    for client in asking:
        client.request("/ws")
        peer = server.accept()
        peer.answer()
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
        assert (client.recv_frame().code, peer.recv_frame().code) == (1001, 1001)
        client.send(frame(CLOSE, b"\x03\xe9"))
        peer.send(frame(CLOSE, b"\x03\xe9", mask=False))
        end((client, peer))
    odd.send(b"\0hello")
    peer = server.accept()
    assert peer.recv_exactly(6) == b"\0hello"
    end((odd, peer))
    secret.handshake()
    secret.peer.send(secret.take(secret.tls.write, upgrade()))
    peer = server.accept()
    peer.answer()
    assert secret.read(13) == b"HTTP/1.1 101 "
    end((secret.peer, peer))
    # Who does not ask at all holds nobody up.
    silent.handshake()
    assert silent.read(13) == b"HTTP/1.1 408 "
    silent.peer.close()
    for number in (1, 2):
        router.wait_for(f"worker {number} has ended: exit status 0")
    refused = [line for line in router.lines if "event=refuse" in line and "status=408" not in line]
    assert not [line for line in refused if "/is-it-up" not in line]  # what the start asks is not there
    assert "Traceback" not in router.log


@pytest.mark.parametrize(("workers", "replaced"), [(1, False), (2, False), (2, True)], ids=["one", "two", "replaced"])
def test_a_drain_of_the_whole_router_turns_away_who_asks_only_now(let_in, workers, replaced) -> None:
    router, _, (checking, odd, *asking), (secret, silent) = let_in(workers)
    if replaced:
        # The old workers drain alone first.
        router.signal(signal.SIGUSR2)
        for number in (1, 2):
            router.wait_for(f"worker {number}: no new connections")
    router.signal(signal.SIGTERM)
    for number in range(1, workers + 1):
        name = f"worker {number}: " if workers > 1 else ""
        if replaced:
            # One that had nobody has ended already.
            router.wait_for(f"{name}SIGTERM: all drain now", f"{name}Main loop terminated")
        else:
            router.wait_for(f"{name}no new connections")
    checking.send(b"GET /.up HTTP/1.1\r\nHost: x\r\n\r\n")
    assert checking.recv_all().startswith(b"HTTP/1.1 503 ")
    for client in asking:
        client.request("/ws")
        head = client.recv_head()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in head
        client.close()
    odd.send(b"\0hello")
    assert odd.recv_all() == b""
    # Of TLS that ends now only what comes with its end is answered.
    flight = secret.last_flight()
    secret.peer.send(flight + secret.take(secret.tls.write, upgrade()))
    silent.handshake()
    for client in (secret, silent):
        client.incoming.write(client.peer.recv_all())
        said = b""
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while data := client.tls.read(65536):
                said += data
        assert said.startswith(b"HTTP/1.1 503 ") if client is secret else said == b""
    assert router.status() == 0
    assert "Traceback" not in router.log


def test_one_process_has_no_workers_to_replace(start_process, connect) -> None:
    router = start_process("[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n[route all]\nredirect = /x\n")
    router.signal(signal.SIGUSR2)
    router.wait_for("there are no workers to replace")
    router.signal()
    assert router.status() == 0


# Reloads.


def test_a_reload_reaches_all_workers(serving, one_in_each, connect, frame) -> None:
    router, server = serving()
    sessions = one_in_each(router, server, 1, 2)
    told = router.reload(router.text.replace("path = /ws", "path = /other"))
    assert "reloaded: 1 route changed; 2 sessions and tunnels live on" in told
    for _ in range(20):
        client = connect(router.port)
        client.request("/ws")
        assert client.recv_head().startswith(b"HTTP/1.1 404 ")
        client.close()
    assert all(lives(session, frame) for session in sessions.values())
    told = router.reload(router.text.replace("path = /ws", "paht = /ws"))
    assert "reload refused" in told
    router.wait_for("did you mean 'path'?")
    assert all(lives(session, frame) for session in sessions.values())
    for session in sessions.values():
        end(session)


def test_listeners_are_opened_and_closed_in_all_workers(serving, one_in_each, connect, frame, tmp_path) -> None:
    router, server = serving()
    sessions = one_in_each(router, server, 1, 2)
    port = router.port
    more = f"\n    [listener more]\n    endpoint = unix:{tmp_path}/r.sock\n"
    told = router.reload(router.text + more)
    assert "reloaded: 1 listener opened; 2 sessions and tunnels live on" in told
    for _ in range(10):
        client = connect(str(tmp_path / "r.sock"))
        client.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv_all().startswith(b"HTTP/1.1 404 ")
        client.close()
    told = router.reload(router.text.replace("tcp:0:interface=127.0.0.1", f"unix:{tmp_path}/r.sock"))
    assert "reloaded: 1 listener closed; 1 listener changed; 2 sessions and tunnels live on" in told
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
    assert all(lives(session, frame) for session in sessions.values())
    for session in sessions.values():
        end(session)


def test_a_reload_may_want_more_workers_or_fewer(serving, one_in_each, frame) -> None:
    router, server = serving()
    router.reload(router.text.replace("workers = 2", "workers = 3"))
    router.wait_for("worker 3 (process")
    sessions = one_in_each(router, server, 1, 2, 3)
    router.reload(router.text.replace("workers = 2", "workers = 1"))
    for number in (2, 3):
        client, peer = sessions.pop(number)
        assert client.recv_frame().code == 1001
        end((client, peer))
        router.wait_for(f"worker {number} has ended")
    assert lives(sessions[1], frame)
    end(sessions[1])
    assert "has died" not in router.log


def test_workers_after_a_reload_run_on_what_it_brought(serving, one_in_each, open_with) -> None:
    router, server = serving()
    router.reload(router.text.replace("path = /ws", "path = /other"))
    os.kill(processes_of(router)[1], signal.SIGKILL)
    router.wait_for("worker 3 (process")
    os.kill(processes_of(router)[2], signal.SIGKILL)
    router.wait_for("worker 4 (process")
    client, peer, worker = open_with(router, server, "/other")
    assert worker in (3, 4)
    end((client, peer))


# What is shared.


def test_backends_are_probed_by_one_process_for_all(serving, backend, connect, tmp_path) -> None:
    other = backend(unix=str(tmp_path / "other.sock"))
    pool = "check = tcp\n    check_interval = 100ms\n    check_fall = 2"
    router, server = serving(3, pool=pool, also=other.address)
    for _ in range(5):
        probe = other.accept()
        pid, _, _ = struct.unpack("3i", probe.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        assert pid == router.process.pid
        probe.close()
    other.close()
    server.close()
    for number in (1, 2, 3):
        for one in (server, other):
            router.wait_for(f"worker {number}: pool app: backend {one.address} is down")
    # A new one knows at once.
    os.kill(processes_of(router)[1], signal.SIGKILL)
    router.wait_for("worker 4 (process")
    router.wait_for(f"worker 4: pool app: backend {server.address} is down")
    for _ in range(20):
        client = connect(router.port)
        client.request("/ws")
        assert client.recv_head().startswith(b"HTTP/1.1 503 ")
        client.close()
    assert "tried=" not in router.log


def test_workers_serve_certificates_that_the_supervisor_has_read(start_process, authority, connect, tmp_path) -> None:
    (tmp_path / "a.pem").write_bytes(authority.issue("a.test"))
    router = start_process(
        """
        [router]
        workers = 2
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        certificates = *.pem
        [route all]
        redirect = /x
        """
    )
    # What is on disk meanwhile is for the next reload.
    (tmp_path / "a.pem").write_bytes(b"nothing of that kind")
    os.kill(processes_of(router)[1], signal.SIGKILL)
    router.wait_for("worker 3 (process")
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", router.port), PATIENCE) as raw:
            context = authority.client_context()
            with context.wrap_socket(raw, server_hostname="a.test") as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 302 ")
    told = router.reload()
    assert "reload refused" in told
    (tmp_path / "a.pem").write_bytes(authority.issue("b.test"))
    router.reload()
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", router.port), PATIENCE) as raw:
            context = authority.client_context()
            with context.wrap_socket(raw, server_hostname="b.test") as client:
                assert isinstance(client, ssl.SSLSocket)
    router.signal()
    assert router.status() == 0
    assert "Traceback" not in router.log


# The log.


def test_all_write_one_log_and_name_themselves(serving) -> None:
    router, _ = serving(router="log = json")
    router.signal()
    assert router.status() == 0
    lines = [json.loads(line) for line in router.lines if line != "<end>"]
    assert {line.get("worker") for line in lines} >= {None, 1, 2}


def test_all_write_one_access_log(serving, connect, tmp_path: Path) -> None:
    router, _ = serving(router="access_log = access.log")

    def ask(times: int) -> None:
        for _ in range(times):
            client = connect(router.port)
            client.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            client.recv_all()
            client.close()

    ask(40)
    (tmp_path / "access.log").rename(tmp_path / "old.log")
    router.reload()
    ask(40)
    router.signal()
    assert router.status() == 0
    for name in ("old.log", "access.log"):
        lines = (tmp_path / name).read_text().splitlines()
        # Beside them in one: what the first look at the router has asked.
        assert [line for line in lines if "/nowhere" in line and "worker=" in line][39:], name


# Refusing to start.


def test_what_cannot_be_started_ends_with_one_line(tmp_path, backend) -> None:
    taken = backend()
    (tmp_path / "router.ini").write_text(
        "[router]\nworkers = 2\n"
        f"[listener main]\nendpoint = tcp:{taken.port}:interface=127.0.0.1\n[route all]\nredirect = /x\n"
    )
    done = run(tmp_path, "--config", "router.ini")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"wsrouter: listener main: cannot listen on tcp:{taken.port}:interface=127.0.0.1: address already in use"
    ]


# Limits.


def test_limits_hold_for_all_workers_and_a_dead_one_gives_back_what_it_had(
    serving, one_in_each, open_with, connect
) -> None:
    router, server = serving()
    text = router.text.replace(server.address, f"{server.address} max_sessions=3")
    router.reload(text)
    sessions = one_in_each(router, server, 1, 2)
    third = open_with(router, server)
    for _ in range(10):
        client = connect(router.port)
        client.request("/ws")
        assert client.recv_head().startswith(b"HTTP/1.1 503 ")
        client.close()
    mine = f"client=127.0.0.1:{third[0].socket.getsockname()[1]} "
    end(third[:2])
    router.wait_for_line("event=close", mine)
    fourth = open_with(router, server)
    owners = [1, 2, fourth[2]]
    os.kill(processes_of(router)[1], signal.SIGKILL)
    router.wait_for("worker 3 (process")
    again = [open_with(router, server) for _ in range(owners.count(1))]
    client = connect(router.port)
    client.request("/ws")
    assert client.recv_head().startswith(b"HTTP/1.1 503 ")
    client.close()
    for session in (*sessions.values(), fourth[:2], *(one[:2] for one in again)):
        end(session)


def test_who_waits_is_served_when_a_place_becomes_free_in_another_worker(serving, one_in_each, connect) -> None:
    router, server = serving()
    text = router.text.replace(
        server.address, f"{server.address} max_sessions=2\n    queue = 5\n    queue_timeout = 20s"
    )
    sessions = one_in_each(router, server, 1, 2)
    router.reload(text)
    waiting = [connect(router.port) for _ in range(2)]
    for client in waiting:
        client.request("/ws")
    for session in sessions.values():
        end(session)
    for _ in waiting:
        server.accept().answer()
    for client in waiting:
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
        client.close()


def test_one_address_has_its_connections_in_all_workers_together(start_process, connect) -> None:
    router = start_process(LIMITED.format(limit="max_connections_per_ip = 4"))
    answers = []
    clients = [connect(router.port) for _ in range(12)]
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answers.append(client.recv_until(b"\r\n\r\n")[9:12])
    # The one that has looked whether it is up may be one of them still.
    assert answers.count(b"302") in (3, 4)
    assert answers.count(b"429") == 12 - answers.count(b"302")
    for client in clients:
        client.close()
    router.signal()
    assert router.status() == 0


def test_one_address_has_its_rate_in_all_workers_together(start_process, connect) -> None:
    router = start_process(LIMITED.format(limit="connections_per_ip = 5/h"))
    answers = []
    # One more has looked whether it is up.
    for _ in range(12):
        client = connect(router.port)
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answers.append(client.recv_until(b"\r\n\r\n")[9:12])
        client.close()
    assert answers == [b"302"] * 4 + [b"429"] * 8
    router.signal()
    assert router.status() == 0


def test_a_listener_has_its_connections_in_all_workers_together(start_process, connect) -> None:
    router = start_process(LIMITED.format(limit="max_connections = 4"))
    clients = [connect(router.port) for _ in range(8)]
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    served = select.select([client.socket for client in clients], [], [], PATIENCE)[0]
    while len(served) < 4:
        served = select.select([client.socket for client in clients], [], [], PATIENCE)[0]
    router.wait_for("accepting pauses: the limit of connections is reached")
    # By one more at most: two workers may take the last place in the same instant.
    assert len(select.select([client.socket for client in clients], [], [], 0)[0]) <= 5
    for client in clients:
        client.close()
    router.signal()
    assert router.status() == 0


# What a review has found.


def test_a_reload_that_is_overtaken_by_the_end_cuts_nobody(serving, one_in_each, frame, tmp_path) -> None:
    router, server = serving()
    router.reload(router.text + f"\n    [listener more]\n    endpoint = unix:{tmp_path}/r.sock\n")
    sessions = one_in_each(router, server, 1, 2)
    # Closing a port takes a moment in the workers.
    (router.folder / "router.ini").write_text(textwrap.dedent(router.text))
    router.signal(signal.SIGHUP)
    router.wait_for("event=open")
    router.signal()
    for client, peer in sessions.values():
        assert client.recv_frame().code == 1001
        assert peer.recv_frame().code == 1001
        end((client, peer))
    assert router.status() == 0
    assert "killed" not in router.log
    assert "Traceback" not in router.log


def test_a_worker_that_is_told_to_end_drains_and_gets_a_successor(serving, one_in_each, frame) -> None:
    router, server = serving()
    sessions = one_in_each(router, server, 1, 2)
    os.kill(processes_of(router)[1], signal.SIGTERM)
    router.wait_for("worker 3 (process")
    # It drains still: its client does not answer. A reload leaves it alone.
    assert sessions[1][0].recv_frame().code == 1001
    router.reload(router.text.replace("path = /ws", "path = /other"))
    end(sessions[1])
    router.wait_for("worker 1 has ended: exit status 0")
    assert lives(sessions[2], frame)
    end(sessions[2])
    assert "has died" not in router.log
    assert "Traceback" not in router.log


def test_a_signal_to_all_processes_is_a_drain_with_its_delay(serving, connect) -> None:
    """What systemd sends unless it is told otherwise."""
    router, _ = serving(router="drain_delay = 60s\n    drain_path = /.wsrouter")
    for pid in processes_of(router).values():
        os.kill(pid, signal.SIGTERM)
    router.signal()
    for number in (1, 2):
        router.wait_for(f"worker {number}: draining in 60 s")
    for _ in range(4):
        client = connect(router.port)
        client.send(b"GET /.wsrouter HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv_all().startswith(b"HTTP/1.1 503 ")
        client.close()
    router.signal()
    assert router.status() == 0
    assert "successor" not in router.log


def test_the_ports_of_a_router_that_has_died_are_free_while_workers_drain(serving, one_in_each) -> None:
    router, server = serving()
    sessions = one_in_each(router, server, 1, 2)
    router.signal(signal.SIGKILL)
    for client, _ in sessions.values():
        assert client.recv_frame().code == 1001
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The ports are closed at the end of the turn in which the first goodbyes are said.
        until_bound(sock, router.port)
    for session in sessions.values():
        end(session)


def test_modules_do_not_come_from_where_the_router_was_started(serving, connect, tmp_path) -> None:
    (tmp_path / "mmap.py").write_text("raise SystemExit('somebody else was run')\n")
    router, _ = serving()
    assert sorted(processes_of(router)) == [1, 2]
    assert "somebody else" not in router.log


def test_the_last_lines_of_workers_are_not_lost(serving, connect) -> None:
    router, server = serving()
    clients = [connect(router.port) for _ in range(200)]
    for client in clients:
        client.request("/ws")
        peer = server.accept()
        peer.answer()
        client.recv_head()
    router.wait_for(f":{clients[-1].socket.getsockname()[1]} ")
    router.signal()
    router.wait_for("draining")
    router.signal()
    assert router.status() == 0
    router.wait_for("<end>")
    assert router.log.count("event=close") == 200


def test_a_listener_that_cannot_be_bound_stands_in_no_workers_way(start_process, nobody_with_python) -> None:
    nobody = nobody_with_python
    text = LIMITED.format(limit="")
    router = start_process(text, options=["--uid", str(nobody[0]), "--gid", str(nobody[1])])
    router.reload(text + "\n    [listener low]\n    endpoint = tcp:81:interface=127.0.0.1\n")
    assert "it is not opened" in router.log
    os.kill(processes_of(router)[1], signal.SIGKILL)
    router.wait_for("worker 3 (process")
    router.signal()
    assert router.status() == 0
    assert "Traceback" not in router.log


def test_a_python_that_the_new_user_may_not_run_is_told(nobody, tmp_path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").symlink_to(sys.prefix)
    python = closed / "python" / Path(sys.executable).relative_to(sys.prefix)
    router = RouterProcess(
        tmp_path,
        LIMITED.format(limit=""),
        options=["--uid", str(nobody[0]), "--gid", str(nobody[1])],
        before=[str(python)],
    )
    try:
        assert router.status() == 1
        router.wait_for("<end>")
    finally:
        router.close()
    assert f"worker 1 cannot be started: permission denied; user 65534 has to be able to run {python}" in router.log
    assert "Traceback" not in router.log


def test_a_reload_while_workers_start_reaches_them(serving, open_with) -> None:
    router, server = serving()
    os.kill(processes_of(router)[1], signal.SIGKILL)
    router.wait_for("worker 1 has died")
    router.reload(router.text.replace("path = /ws", "path = /other"))
    router.wait_for("worker 3 (process")
    router.signal(signal.SIGUSR2)
    router.wait_for("2 workers replaced")
    client, peer, _ = open_with(router, server, "/other")
    end((client, peer))
    assert "Traceback" not in router.log
