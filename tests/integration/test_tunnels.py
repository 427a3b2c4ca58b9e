"""Tunnels on real sockets: TLS that passes through, ends and half-ends, retries, balance, and a reader that is slow."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import socket
import ssl
import struct
import termios
import threading
import time

import pytest

from tests.memory import resident
from wsrouter.live.registry import Kind, Who
from wsrouter.relay.leg import BUFFER_SIZE, Leg

MEGABYTE = 1 << 20


def one_rule(backends: str, pool: str = "", tunnel: str = "", match: str = "any", listener: str = "") -> str:
    """The configuration of one tunnel rule with one pool; ``backends`` by comma, the others are further options."""
    return (
        f"[listener main]\nendpoint = tcp:0:interface=127.0.0.1\nsniff_timeout = 100ms\n{listener}\n"
        f"[tunnel rule]\nmatch = {match}\npool = app\n{tunnel}\n"
        f"[pool app]\nbackends = {backends}\n{pool}\n"
    )


@pytest.fixture
def open_tunnel(router, connect, backend):
    """``running, client, peer``: one tunnel, its prefetch (``\\0hello``) delivered."""

    def begin(**options):
        server = backend()
        running = router(one_rule(server.address, **options))
        client = connect(running.port())
        client.send(b"\0hello")
        peer = server.accept()
        assert peer.recv_exactly(6) == b"\0hello"
        return running, client, peer

    return begin


def fill(peer, block: bytes, limit: int = 64 * MEGABYTE) -> int:
    """Send ``block`` over and over until nothing is taken any more; how many bytes were. Fails at ``limit``."""
    sent = 0
    peer.socket.settimeout(0.2)
    try:
        while sent < limit:
            sent += peer.socket.send(memoryview(block)[sent % len(block) :])
    except TimeoutError:
        peer.socket.settimeout(10)
        return sent
    return pytest.fail(f"{limit} bytes were taken for somebody who does not read")


def unacknowledged(sock) -> int:
    """How many bytes, a FIN among them, have not come to the other end's kernel (tcp(7), SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def leg_of(running, address) -> Leg:
    """The router's end of the connection with the client at ``address``."""
    (leg,) = (leg for leg in list(running.service.relay.members.values()) if getattr(leg, "peername", None) == address)
    return leg


def hung_up(running, address) -> bool:
    """Whether the router's end of the connection with the client at ``address`` has a hang-up to report."""
    poll = select.poll()
    poll.register(leg_of(running, address).fd, 0)
    return bool(poll.poll(0))


def counted(peer) -> tuple[int, str]:
    """Read to the end: how many bytes came, and their SHA-256."""
    digest, count = hashlib.sha256(), 0
    while piece := peer.socket.recv(MEGABYTE):
        digest.update(piece)
        count += len(piece)
    return count, digest.hexdigest()


def expected(block: bytes, count: int) -> tuple[int, str]:
    """What ``counted`` says of ``block``, over and over, ``count`` bytes in all."""
    digest = hashlib.sha256()
    for at in range(0, count, len(block)):
        digest.update(block[: count - at])
    return count, digest.hexdigest()


# TLS passes through.


def greet(name: bytes):
    """As a TLS backend: say who it is and which protocol was agreed, then echo."""

    def script(peer) -> None:
        protocol = (peer.socket.selected_alpn_protocol() or "").encode()
        peer.send(name + b" " + protocol + b"\n")
        while data := peer.socket.recv(65536):
            peer.send(data)
        peer.socket.unwrap()

    return script


@pytest.fixture
def tls_backends(backend, authority):
    """Backends that end TLS themselves, by name: each with its own certificate."""
    names = {
        "app": ("app.example",),
        "wild": ("*.apps.example",),
        "two": ("app.example", "two.example"),
        "rest": ("rest.example", "*.rest.example"),
    }
    return {
        name: backend(greet(name.encode()), tls=authority.server_context(*hosts, alpn=["h2", "http/1.1"]))
        for name, hosts in names.items()
    }


@pytest.fixture
def passthrough(router, tls_backends):
    return router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [tunnel two]
        match = tls sni=app.example alpn=h2
        pool = two
        [tunnel app]
        match = tls sni=app.example
        pool = app
        [tunnel wild]
        match = tls sni=*.apps.example
        pool = wild
        [tunnel rest]
        match = tls
        pool = rest
        [pool two]
        backends = {tls_backends["two"].address}
        [pool app]
        backends = {tls_backends["app"].address}
        [pool wild]
        backends = {tls_backends["wild"].address}
        [pool rest]
        backends = {tls_backends["rest"].address}
    """)


@pytest.mark.parametrize(
    ("name", "alpn", "backend_name", "names"),
    [
        ("app.example", (), "app", ("app.example",)),
        ("APP.example", (), "app", ("app.example",)),
        ("app.example", ("http/1.1",), "app", ("app.example",)),
        ("app.example", ("h2",), "two", ("app.example", "two.example")),
        ("app.example", ("http/1.1", "h2"), "two", ("app.example", "two.example")),
        ("x.apps.example", (), "wild", ("*.apps.example",)),
        ("x.apps.example", ("h2",), "wild", ("*.apps.example",)),
        ("rest.example", (), "rest", ("rest.example", "*.rest.example")),
        ("deep.rest.example", ("h2",), "rest", ("rest.example", "*.rest.example")),
    ],
)
def test_tls_goes_to_the_backend_of_its_name_and_protocol_still_encrypted(
    passthrough, connect, authority, name, alpn, backend_name, names
) -> None:
    client = connect(passthrough.port(), tls=authority.client_context(alpn=alpn), name=name)
    seen = client.socket.getpeercert(binary_form=True)
    assert hashlib.sha256(seen).digest() == authority.fingerprint(*names)
    # The backend prefers h2, so what was agreed shows that the backend itself chose.
    agreed = "h2" if "h2" in alpn else alpn[0] if alpn else ""
    assert client.recv_until(b"\n") == f"{backend_name} {agreed}\n".encode()
    client.send(b"x" * 100_000)
    assert client.recv_exactly(100_000) == b"x" * 100_000
    client.socket.unwrap()
    client.close()
    passthrough.until(lambda: passthrough.closed)
    entry, end = passthrough.closed[0]
    assert entry.facts.kind is Kind.TUNNEL
    assert entry.facts.rule == entry.facts.pool == backend_name
    assert entry.facts.sni == name.lower()
    assert end.code is None


def test_tls_without_a_name_gets_the_rule_without_names(passthrough, connect, authority) -> None:
    context = authority.client_context()
    context.check_hostname = False
    client = connect(passthrough.port(), tls=context)
    assert client.recv_until(b"\n") == b"rest \n"


def test_a_client_certificate_passes_through(router, connect, backend, authority) -> None:
    context = authority.server_context("app.example")
    authority.ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    server = backend(lambda peer: peer.send(repr(peer.socket.getpeercert()["subjectAltName"]).encode()), tls=context)
    running = router(one_rule(server.address, match="tls"))
    client = connect(running.port(), tls=authority.client_context(certificate="me.example"), name="app.example")
    assert b"me.example" in client.recv_all()


# Which rule.


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "web"),
        (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nX: \xff\r\n\r\n\x81\x05hello", "web"),
        (b"SSH-2.0-x\r\n", "opaque"),
        (b"", "quiet"),
    ],
)
def test_each_kind_of_connection_has_its_rule(router, connect, backend, data, rule) -> None:
    servers = {name: backend() for name in ("web", "opaque", "quiet")}
    kinds = {"web": "http", "opaque": "opaque", "quiet": "silence"}
    running = router(
        "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\nsniff_timeout = 100ms\n"
        + "".join(
            f"[tunnel {name}]\nmatch = {kinds[name]}\npool = {name}\n[pool {name}]\nbackends = {one.address}\n"
            for name, one in servers.items()
        )
    )
    client = connect(running.port())
    client.send(data)
    peer = servers.pop(rule).accept()
    assert peer.recv_exactly(len(data)) == data
    peer.send(b"welcome")
    assert client.recv_exactly(7) == b"welcome"
    assert not any(other.was_contacted() for other in servers.values())
    running.until(lambda: running.opened)
    assert running.opened[0].facts.rule == rule


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b""])
def test_any_takes_every_kind(router, connect, backend, data) -> None:
    server = backend()
    running = router(one_rule(server.address))
    client = connect(running.port())
    client.send(data)
    peer = server.accept()
    assert peer.recv_exactly(len(data)) == data


def test_rules_of_other_listeners_do_not_count(router, connect, backend) -> None:
    first, second = backend(), backend()
    running = router(f"""
        [listener one]
        endpoint = tcp:0:interface=127.0.0.1
        [listener two]
        endpoint = tcp:0:interface=127.0.0.1
        [tunnel one]
        listener = one
        match = opaque
        pool = one
        [tunnel two]
        listener = two
        match = opaque
        pool = two
        [pool one]
        backends = {first.address}
        [pool two]
        backends = {second.address}
    """)
    for listener, server in (("two", second), ("one", first)):
        client = connect(running.port(listener))
        client.send(b"\0x")
        assert server.accept().recv_exactly(2) == b"\0x"
        running.until(lambda: running.opened)
        assert running.opened.pop().facts.listener == listener


# Ends.


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_half_close_is_passed_on_and_the_other_direction_finishes(open_tunnel, first) -> None:
    running, client, peer = open_tunnel()
    one, other = (client, peer) if first == "client" else (peer, client)
    one.send(b"last words")
    one.finish()
    assert other.recv_all() == b"last words"
    assert not other.was_reset
    assert running.live == 1
    other.send(b"x" * 300_000)
    other.send(b"the end")
    other.finish()
    assert one.recv_all() == b"x" * 300_000 + b"the end"
    assert not one.was_reset
    running.until(lambda: running.closed)
    entry, end = running.closed[0]
    assert end.who is (Who.CLIENT if first == "client" else Who.BACKEND)
    counts = entry.counts()
    sent = (16, 300_007) if first == "client" else (6 + 300_007, 10)
    assert (counts.bytes_in, counts.bytes_out) == sent
    assert counts.messages_in is None


def test_a_request_that_ends_with_a_fin_is_answered(router, connect, backend) -> None:
    """The FIN comes with the first bytes, before there is a backend."""
    server = backend(lambda peer: peer.send(b"got " + peer.recv_all()))
    running = router(one_rule(server.address))
    client = connect(running.port())
    client.send(b"\0request")
    client.finish()
    assert client.recv_all() == b"got \0request"


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_reset_is_passed_on_as_a_reset(open_tunnel, first) -> None:
    running, client, peer = open_tunnel()
    one, other = (client, peer) if first == "client" else (peer, client)
    one.send(b"cut of")
    assert other.recv_exactly(6) == b"cut of"
    one.reset()
    assert other.recv_all() == b""
    assert other.was_reset
    running.until(lambda: running.closed)
    _, end = running.closed[0]
    assert end.who is (Who.CLIENT if first == "client" else Who.BACKEND)
    assert end.reason == "connection reset by peer"


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_reset_behind_a_half_close_is_passed_on(open_tunnel, first) -> None:
    _, client, peer = open_tunnel()
    one, other = (client, peer) if first == "client" else (peer, client)
    one.finish()
    assert other.recv_all() == b""
    assert not other.was_reset
    one.reset()
    # The reset reaches the router with the next bytes that it sends to the one who is gone.
    try:
        fill(other, b"x" * 10_000)
    except (ConnectionResetError, BrokenPipeError):
        return
    pytest.fail("nobody told of the reset")


def test_a_reset_behind_a_half_close_is_passed_on_by_a_fin_too(open_tunnel) -> None:
    """No bytes are left to send that would meet the reset, but some are on their way to a slow reader."""
    running, client, peer = open_tunnel()
    address = client.socket.getsockname()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.send(bytes(150_000))
    client.finish()
    running.until(lambda: leg_of(running, address).eof)
    client.reset()
    running.until(lambda: hung_up(running, address))
    peer.finish()
    running.until(lambda: running.closed)
    running.settle()
    peer.recv_all()
    assert peer.was_reset


def test_idleness_ends_a_tunnel(open_tunnel) -> None:
    running, client, peer = open_tunnel(tunnel="idle_timeout = 200ms")
    assert client.recv_all() == b""
    assert peer.recv_all() == b""
    assert not client.was_reset
    assert not peer.was_reset
    # Both sides may linger until their own end.
    client.close()
    peer.close()
    running.until(lambda: running.closed)
    entry, end = running.closed[0]
    assert (end.who, end.reason) == (Who.ROUTER, "idle")
    assert entry.counts().bytes_in == 6


def test_bytes_in_one_direction_keep_a_tunnel_alive(open_tunnel) -> None:
    running, client, peer = open_tunnel(tunnel="idle_timeout = 300ms")
    until = time.monotonic() + 0.8
    client.socket.settimeout(0.05)
    while time.monotonic() < until:
        peer.send(b"x")
        assert client.socket.recv(100)
        with pytest.raises(TimeoutError):
            client.socket.recv(100)
    assert running.live == 1
    client.socket.settimeout(10)
    assert client.recv_all() == b""
    assert running.live <= 1


def test_a_tunnel_without_idle_timeout_is_not_watched(open_tunnel) -> None:
    running, client, peer = open_tunnel(tunnel="idle_timeout = off")
    client.send(b"still here")
    assert peer.recv_exactly(10) == b"still here"
    assert not running.call(lambda: running.service.sweeper._groups)


# Backends that cannot be reached.


def test_a_backend_that_refuses_is_passed_over(router, connect, backend, refusing_address) -> None:
    server = backend()
    running = router(one_rule(f"{refusing_address}, {server.address}"))
    for _ in range(3):
        client = connect(running.port())
        client.send(b"\0x")
        assert server.accept().recv_exactly(2) == b"\0x"
    running.until(lambda: len(running.opened) == 3)
    assert running.opened[0].facts.tried == f"{refusing_address} connection refused"
    assert running.opened[0].facts.backend == server.address


def test_when_every_backend_refuses_the_client_is_closed_at_once(router, connect, refusing_address) -> None:
    running = router(one_rule(f"{refusing_address}, unix:/nowhere/app.sock"))
    client = connect(running.port())
    client.send(b"\0x")
    assert client.recv_all() == b""
    assert not client.was_reset
    (refusal,) = running.refused
    assert (refusal.stage, refusal.rule) == ("tunnel", "rule")
    assert refusal.reason == (
        f"pool app: no backend answers: {refusing_address} connection refused, "
        "unix:/nowhere/app.sock no such file or directory"
    )
    assert not running.opened
    assert running.in_use("app") == 0


def test_no_more_backends_are_tried_than_retries_allow(router, connect, backend, refusing_address) -> None:
    server = backend()
    running = router(one_rule(f"{refusing_address}, unix:/nowhere, {server.address}", pool="retries = 1"))
    client = connect(running.port())
    client.send(b"\0x")
    assert client.recv_all() == b""
    assert not server.was_contacted()


@pytest.fixture
def deaf_address():
    """An address where nothing is accepted: the queue of its socket is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = []
        while True:
            one = socket.socket()
            waiting.append(one)
            one.settimeout(0.05)
            try:
                one.connect(listening.getsockname())
            except TimeoutError:
                break
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        for one in waiting:
            one.close()


def test_a_backend_that_does_not_accept_is_passed_over_in_time(router, connect, backend, deaf_address) -> None:
    server = backend()
    running = router(one_rule(f"{deaf_address}, {server.address}", pool="connect_timeout = 200ms"))
    client = connect(running.port())
    client.send(b"\0x")
    assert server.accept().recv_exactly(2) == b"\0x"
    running.until(lambda: running.opened)
    assert running.opened[0].facts.tried == f"{deaf_address} no connection in time"


def test_without_another_backend_the_client_is_closed_in_time(router, connect, deaf_address) -> None:
    running = router(one_rule(deaf_address, pool="connect_timeout = 200ms"))
    client = connect(running.port())
    began = time.monotonic()
    client.send(b"\0x")
    assert client.recv_all() == b""
    assert 0.2 <= time.monotonic() - began < 1
    assert running.refused[0].reason == f"pool app: no backend answers: {deaf_address} no connection in time"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_while_the_backend_is_dialled_leaves_nothing(router, connect, deaf_address, how) -> None:
    running = router(one_rule(deaf_address, pool="connect_timeout = 300ms"))
    client = connect(running.port())
    client.send(b"\0x")
    running.until(lambda: running.in_use("app") == 1)
    getattr(client, how)()
    running.until(lambda: running.in_use("app") == 0)
    running.until(lambda: running.call(lambda: len(running.service.relay.members)) == 1)
    assert not running.opened


def test_a_flood_while_the_backend_is_dialled_stays_with_the_client(router, connect, deaf_address) -> None:
    running = router(one_rule(deaf_address, pool="connect_timeout = 300ms"))
    client = connect(running.port())
    fill(client, b"\0" * 65536)
    assert client.recv_all() == b""


# Kinds of backends.


def test_tunnels_go_to_unix_sockets_and_come_from_them(router, connect, backend, tmp_path) -> None:
    server = backend(unix=str(tmp_path / "b.sock"))
    running = router(
        f"""
        [listener main]
        endpoint = unix:{tmp_path}/r.sock
        [tunnel rule]
        match = any
        pool = app
        [pool app]
        backends = unix:b.sock
    """.replace("unix:b.sock", server.address)
    )
    client = connect(str(tmp_path / "r.sock"))
    client.send(b"\0x" * 100_000)
    peer = server.accept()
    assert peer.recv_exactly(200_000) == b"\0x" * 100_000
    peer.send(b"back")
    peer.finish()
    assert client.recv_all() == b"back"
    client.close()
    running.until(lambda: running.closed)
    facts = running.closed[0][0].facts
    assert (facts.client_ip, facts.client, facts.backend) == ("unix", "unix", f"unix:{tmp_path}/b.sock")


def test_a_tunnel_may_be_encrypted_towards_the_backend(router, connect, backend, authority, tmp_path) -> None:
    server = backend(greet(b"inner"), tls=authority.server_context("inner.example"))
    running = router(
        one_rule(server.address, pool="tls = yes\ntls_ca = ca.pem\ntls_name = inner.example"), {"ca.pem": authority.pem}
    )
    client = connect(running.port())
    client.send(b"\0" * 200_000)
    assert client.recv_until(b"\n") == b"inner \n"
    assert client.recv_exactly(200_000) == b"\0" * 200_000
    client.close()
    running.until(lambda: running.closed)


def test_a_backend_whose_certificate_does_not_verify_gets_no_tunnel(router, connect, backend, authority) -> None:
    server = backend(lambda peer: pytest.fail("the handshake came through"), tls=authority.server_context("b.example"))
    running = router(
        one_rule(server.address, pool="tls = yes\ntls_ca = ca.pem\ntls_name = a.example"), {"ca.pem": authority.pem}
    )
    client = connect(running.port())
    client.send(b"\0x")
    assert client.recv_all() == b""
    assert "Hostname mismatch" in running.refused[0].reason


# Balance.


def served(running, connect, servers, count: int) -> list[int]:
    """Open ``count`` tunnels, all kept; the place in ``servers`` of the backend that took each."""
    places = []
    labels = [server.address for server in servers]
    for _ in range(count):
        before = len(running.opened)
        client = connect(running.port())
        client.send(b"\0x")
        running.until(lambda before=before: len(running.opened) > before)
        places.append(labels.index(running.opened[-1].facts.backend))
    return places


def test_backends_take_turns(router, connect, backend) -> None:
    servers = [backend() for _ in range(3)]
    running = router(one_rule(", ".join(server.address for server in servers)))
    assert served(running, connect, servers, 7) == [0, 1, 2, 0, 1, 2, 0]


def test_a_heavier_backend_gets_more_turns(router, connect, backend) -> None:
    servers = [backend(), backend()]
    running = router(one_rule(f"{servers[0].address} weight=3, {servers[1].address}"))
    places = served(running, connect, servers, 8)
    assert (places.count(0), places.count(1)) == (6, 2)


def test_a_full_backend_gets_no_more_until_one_leaves(router, connect, backend) -> None:
    servers = [backend(), backend()]
    running = router(one_rule(f"{servers[0].address} max_sessions=1, {servers[1].address} max_sessions=2"))
    clients = []

    def kept(*arguments, **more):
        clients.append(connect(*arguments, **more))
        return clients[-1]

    assert served(running, kept, servers, 3) == [0, 1, 1]
    late = connect(running.port())
    late.send(b"\0x")
    assert late.recv_all() == b""
    assert running.refused[-1].reason == "pool app: every backend is full"
    clients[0].close()
    servers[0].accept().close()
    running.until(lambda: running.closed)
    assert served(running, kept, servers, 1) == [0]


def test_a_backup_serves_only_when_the_others_cannot(router, connect, backend) -> None:
    servers = [backend(), backend()]
    running = router(one_rule(f"{servers[0].address} backup, {servers[1].address}"))
    assert served(running, connect, servers, 3) == [1, 1, 1]
    servers[1].close()
    assert served(running, connect, servers, 2) == [0, 0]
    assert running.opened[-1].facts.tried == f"{servers[1].address} connection refused"


def test_the_listeners_limit_holds_connections_back_until_one_leaves(router, connect, backend) -> None:
    server = backend()
    running = router(one_rule(server.address, listener="max_connections = 1"))
    first, second = connect(running.port()), connect(running.port())
    first.send(b"\0one")
    second.send(b"\0two")
    peer = server.accept()
    assert peer.recv_exactly(4) == b"\0one"
    running.settle()
    assert running.live == 1
    first.close()
    peer.close()
    assert server.accept().recv_exactly(4) == b"\0two"


# Much data.


@pytest.mark.parametrize("sender", ["client", "backend"])
def test_a_slow_reader_blocks_the_sender_and_costs_one_read(open_tunnel, sender) -> None:
    running, client, peer = open_tunnel()
    one, other = (client, peer) if sender == "client" else (peer, client)
    total = 64 * MEGABYTE
    block = bytes(range(256)) * 1024
    before = resident()
    sent = fill(one, block, total)
    assert resident() - before < 4 * MEGABYTE
    legs = running.call(lambda: [leg for leg in running.service.relay.members.values() if hasattr(leg, "pending")])
    assert sum(len(leg.pending or b"") for leg in legs) <= BUFFER_SIZE

    def send_the_rest() -> None:
        at = sent
        while at < total:
            at += one.socket.send(memoryview(block)[at % len(block) :][: total - at])
        one.finish()

    thread = threading.Thread(target=send_the_rest)
    thread.start()
    assert counted(other) == expected(block, total)
    thread.join(10)
    assert not thread.is_alive()
    assert resident() - before < 8 * MEGABYTE
    other.close()
    running.until(lambda: running.closed)
    counts = running.closed[0][0].counts()
    assert (counts.bytes_in, counts.bytes_out) == ((total + 6, 0) if sender == "client" else (6, total))


def test_what_is_pending_for_a_slow_reader_survives_the_senders_end(open_tunnel) -> None:
    _, client, peer = open_tunnel()
    data = os.urandom(MEGABYTE)
    sent = fill(client, data)
    client.close()  # with nothing unread: a FIN
    assert counted(peer) == expected(data, sent)


def test_both_directions_flow_at_once(open_tunnel) -> None:
    _, client, peer = open_tunnel()
    total = 16 * MEGABYTE
    results = {}

    def read(name, end) -> None:
        results[name] = counted(end)

    def write(end, letter) -> None:
        for _ in range(total // MEGABYTE):
            end.send(letter * MEGABYTE)
        end.finish()

    threads = [
        threading.Thread(target=read, args=("client", client)),
        threading.Thread(target=read, args=("peer", peer)),
        threading.Thread(target=write, args=(client, b"c")),
        threading.Thread(target=write, args=(peer, b"p")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert results["client"] == expected(b"p" * MEGABYTE, total)
    assert results["peer"] == expected(b"c" * MEGABYTE, total)


def test_a_half_closed_tunnel_with_a_slow_reader_does_not_spin(open_tunnel, monkeypatch) -> None:
    """Both ends have sent their FIN and one still has unread data: epoll reports a hang-up whatever is asked for."""
    running, client, peer = open_tunnel()
    sent = fill(client, b"x" * MEGABYTE)
    client.finish()
    peer.finish()
    assert client.recv_all() == b""
    # The hang-up comes with the client's FIN, which waits behind all that the router's kernel has no room for.
    read = 0
    while unacknowledged(client.socket):
        read += len(peer.socket.recv(MEGABYTE // 16))
        running.settle()
    assert hung_up(running, client.socket.getsockname())
    events = 0
    ready = Leg.ready

    def counting(leg, mask) -> None:
        nonlocal events
        events += 1
        ready(leg, mask)

    monkeypatch.setattr(Leg, "ready", counting)
    for _ in range(20):
        running.settle()
    assert events == 0
    assert read + len(peer.recv_all()) == sent
    assert events > 0
    running.until(lambda: running.closed)
