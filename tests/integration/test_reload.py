"""Reloads, in this process: what changes for whom, and that nobody is cut."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from wsrouter.backends.pool import BackendPool
from wsrouter.config.values import Config
from wsrouter.layer7.certificates import CertificateStore
from wsrouter.layer7.proxy import HttpProxy
from wsrouter.listener.listener import Listener
from wsrouter.policy.routing import RouteTable
from wsrouter.policy.tunnels import TunnelTable

TEXT, CLOSE = 1, 8

BASE = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    [route app]
    path = /app
    pool = app
    [pool app]
    backends = {address}
"""


class Reloading:
    """A running router, its file, and its log."""

    def __init__(self, running: Any, folder: Path, lines: list[str]) -> None:
        self.running = running
        self.file = folder / "router.ini"
        self.lines = lines

    def write(self, text: str) -> None:
        self.file.write_text(textwrap.dedent(text))

    def reload(self, text: str | None = None) -> str:
        """Put ``text`` into the file and reload; returns what the log says, when it is over."""
        if text is not None:
            self.write(text)
        before = len(self.lines)
        running = self.running
        running.call(running.service.reload)
        running.until(lambda: not running.service.reloader.busy)
        # The access log and Twisted's own lines may come in between.
        return "\n".join(
            line
            for line in self.lines[before:]
            if not line.startswith(("event=", "Factory ", "ServerFactory ", "(TCP "))
        )

    def port(self, name: str = "main") -> int:
        return self.running.port(name)


@pytest.fixture
def reloading(router: Callable[..., Any], tmp_path: Path, lines: list[str]) -> Callable[..., Reloading]:
    """``reloading(text, files) -> Reloading``: a router whose file may be written anew."""

    def start(text: str, files: dict[str, Any] | None = None) -> Reloading:
        made = Reloading(router(text, files), tmp_path, lines)
        made.write(text)
        return made

    return start


def still_echoes(frame: Callable[..., bytes], client: Any, peer: Any) -> None:
    """The session lives, both ways."""
    client.send(frame(TEXT, b"still here"))
    assert peer.recv_frame().payload == b"still here"
    peer.send(frame(TEXT, b"so am I", mask=False))
    assert client.recv_frame().payload == b"so am I"


def answer_to(connect: Callable[..., Any], port: int | str, path: str = "/app", **more: Any) -> bytes:
    """The head that answers a plain request."""
    client = connect(port, **more)
    client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = client.recv_all()
    client.close()
    return answer


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# What is good, and what is not.


def test_a_reload_that_changes_nothing_says_so(reloading, backend, open_session, frame):
    server = backend()
    one = reloading(BASE.format(address=server.address))
    client, peer = open_session(one.running, server, "/app")
    assert one.reload() == "reloaded: nothing has changed; 1 session or tunnel lives on"
    # Where a section stands does not matter.
    assert one.reload("\n\n" + BASE.format(address=server.address)).startswith("reloaded: nothing has changed")
    still_echoes(frame, client, peer)


def test_a_broken_file_leaves_the_old_one_in_force(reloading, backend, open_session, frame, connect):
    server = backend()
    one = reloading(BASE.format(address=server.address))
    client, peer = open_session(one.running, server, "/app")
    told = one.reload(BASE.format(address="nonsense!") + "\n    balanse = first\n").splitlines()
    assert told[0] == "reload refused, the old configuration stays in force:"
    assert told[1].startswith(f"{one.file}:8: [pool app] backends: ")
    assert told[2].startswith(f"{one.file}:10: [pool app] balanse: ")
    assert len(told) == 3
    still_echoes(frame, client, peer)
    open_session(one.running, server, "/app")
    assert answer_to(connect, one.port()).startswith(b"HTTP/1.1 426 ")


def test_a_file_that_is_gone_leaves_the_old_one_in_force(reloading, backend, connect):
    one = reloading(BASE.format(address=backend().address))
    one.file.unlink()
    assert "cannot be read: No such file" in one.reload()
    assert answer_to(connect, one.port()).startswith(b"HTTP/1.1 426 ")


def test_an_unusable_certificate_refuses_the_reload_with_every_fault(reloading, backend, connect, authority):
    text = BASE.format(address=backend().address).replace("[route", "certificates = a.pem\n    [route")
    one = reloading(text, {"a.pem": authority.issue("localhost")})
    (one.file.parent / "a.pem").write_text("nothing of that kind")
    told = one.reload(text + "\n    tls = yes\n    tls_ca = a.pem\n")
    assert "[listener main] certificates" in told
    assert "[pool app] tls_ca" in told
    tls = authority.client_context()
    assert answer_to(connect, one.port(), tls=tls, name="localhost").startswith(b"HTTP/1.1 426 ")


# Who sees what.


def test_a_session_on_a_removed_route_and_pool_goes_on(reloading, backend, open_session, frame, connect):
    old, new = backend(), backend()
    one = reloading(BASE.format(address=old.address))
    client, peer = open_session(one.running, old, "/app")
    told = one.reload(BASE.format(address=new.address).replace("app", "other"))
    assert told == (
        "reloaded: 1 route added; 1 route removed; 1 pool added; 1 pool removed; 1 session or tunnel lives on"
    )
    still_echoes(frame, client, peer)
    assert answer_to(connect, one.port(), "/app").startswith(b"HTTP/1.1 404 ")
    open_session(one.running, new, "/other")
    client.send(frame(CLOSE, b"\x03\xe8"))
    assert peer.recv_frame().code == 1000
    peer.send(frame(CLOSE, b"\x03\xe8", mask=False))
    assert client.recv_frame().code == 1000
    client.close()
    peer.close()
    one.running.until(lambda: one.running.closed)
    assert not [line for line in one.lines if "Traceback" in line]


def test_a_changed_pool_sends_new_sessions_elsewhere(reloading, backend, open_session, frame):
    old, new = backend(), backend()
    one = reloading(BASE.format(address=old.address))
    client, peer = open_session(one.running, old, "/app")
    assert "1 pool changed" in one.reload(BASE.format(address=new.address))
    open_session(one.running, new, "/app")
    still_echoes(frame, client, peer)


def test_an_open_connection_sees_the_new_routes_with_its_next_request(reloading, connect):
    text = """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [route all]
        redirect = /one
    """
    one = reloading(text)
    client = connect(one.port())
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    client.send(ask)
    assert b"Location: /one" in client.recv_head()
    client.recv_until(b"\n")
    one.reload(text.replace("/one", "/two"))
    client.send(ask)
    assert b"Location: /two" in client.recv_head()


def test_an_opening_under_way_is_answered_though_its_route_is_gone(reloading, backend, connect, frame):
    server = backend()
    one = reloading(BASE.format(address=server.address))
    client = connect(one.port())
    client.request("/app")
    peer = server.accept()
    head = peer.recv_head()
    one.reload(BASE.format(address="127.0.0.1:1").replace("app", "other"))
    peer.send(peer.agreement(head))
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    still_echoes(frame, client, peer)


STICKY = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    [route app]
    path = /app
    pool = app
    accept = both
    [pool app]
    sticky = cookie wsr
    balance = first
    backends = {addresses}
"""


def test_an_opening_that_ends_at_a_backend_which_a_reload_has_added_is_bound_to_it(reloading, backend, connect):
    first, second = backend(), backend()
    one = reloading(STICKY.format(addresses=first.address))
    client = connect(one.port())
    client.request("/app")
    leaves = first.accept()
    leaves.recv_head()
    one.reload(STICKY.format(addresses=f"{first.address}, {second.address}"))
    leaves.close()
    peer = second.accept()
    peer.answer()
    assert b"\r\nSet-Cookie: wsr=" in client.recv_head()
    assert [member.live for member in one.running.service.pools["app"].members] == [0, 1]


def test_a_plain_request_that_ends_at_a_backend_which_a_reload_has_added_is_bound_to_it(reloading, backend, connect):
    first, second = backend(), backend()
    one = reloading(STICKY.format(addresses=first.address))
    client = connect(one.port())
    client.send(b"GET /app HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    leaves = first.accept()
    leaves.recv_head()
    one.reload(STICKY.format(addresses=f"{first.address}, {second.address}"))
    leaves.close()
    peer = second.accept()
    peer.recv_head()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    answer = client.recv_all()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nSet-Cookie: wsr=" in answer
    one.running.until(lambda: not one.running.in_use("app"))


WAITING = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    [route app]
    path = /app
    pool = app
    accept = both
    [tunnel all]
    match = opaque
    pool = app
    [pool app]
    backends = {address} max_sessions=1
    queue = 5
    queue_timeout = 60s
    retry_time = 100ms
    on_down = {on_down}
"""


@pytest.mark.parametrize("kind", ["session", "http", "tunnel"])
def test_who_waits_in_line_of_a_removed_pool_gets_its_place_there(
    reloading, backend, open_session, connect, frame, kind
):
    server = backend()
    one = reloading(WAITING.format(address=server.address, on_down="keep"))
    first, its_peer = open_session(one.running, server, "/app")
    pool = one.running.service.pools["app"]
    client = connect(one.port())
    if kind == "session":
        client.request("/app")
    else:
        client.send(ASK_APP if kind == "http" else b"\0hello")
    one.running.until(lambda: len(pool.line) == 1)
    one.reload(BASE.format(address=backend().address).replace("app", "other"))
    assert one.running.service.pools["other"] is not pool
    assert client.nothing_comes()
    assert not one.running.refused
    its_peer.close()
    first.close()
    peer = server.accept()
    if kind == "session":
        peer.answer()
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
        still_echoes(frame, client, peer)
    elif kind == "http":
        peer.recv_head()
        peer.send(OK)
        assert client.recv_until(b"ok").startswith(b"HTTP/1.1 200 ")
    else:
        assert peer.recv_exactly(6) == b"\0hello"
    # With the last that could need it, the pool ends.
    one.running.until(lambda: pool.stopped)


@pytest.mark.parametrize("kind", ["session", "http"])
def test_who_tries_on_in_a_removed_pool_still_knows_the_names_of_its_backends(reloading, backend, connect, kind):
    servers = [backend(), backend()]
    text = BASE.replace("path = /app", "path = /app\n    accept = both") + "\n    balance = first\n"
    one = reloading(text.format(address=", ".join(f"localhost:{server.port}" for server in servers)))
    client = connect(one.port())
    if kind == "session":
        client.request("/app")
    else:
        client.send(ASK_APP)
    peer = servers[0].accept()
    peer.recv_head()
    one.reload(BASE.format(address=backend().address).replace("app", "other"))
    peer.close()
    other = servers[1].accept()
    if kind == "session":
        other.answer()
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    else:
        other.recv_head()
        other.send(OK)
        assert client.recv_until(b"ok").startswith(b"HTTP/1.1 200 ")


ASK_APP = b"GET /app HTTP/1.1\r\nHost: localhost\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_a_request_whose_kept_connection_breaks_does_not_go_to_a_removed_backend_again(reloading, backend, connect):
    first, second = backend(), backend()
    text = BASE.replace("path = /app", "path = /app\n    accept = http")
    one = reloading(text.format(address=first.address))
    client = connect(one.port())
    client.send(ASK_APP)
    peer = first.accept()
    peer.recv_head()
    peer.send(OK)
    assert client.recv_until(b"ok").startswith(b"HTTP/1.1 200 ")
    client.send(ASK_APP)
    peer.recv_head()
    one.reload(text.format(address=second.address))
    peer.close()
    other = second.accept()
    other.recv_head()
    other.send(OK)
    assert client.recv_until(b"ok").startswith(b"HTTP/1.1 200 ")
    first.socket.settimeout(0)
    with pytest.raises(BlockingIOError):
        first.socket.accept()


def test_a_tunnel_whose_rule_and_pool_are_gone_goes_on_and_ends_in_order(reloading, backend, connect):
    server = backend()
    text = """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [tunnel all]
        match = any
        pool = app
        [pool app]
        backends = {address}
    """
    one = reloading(text.format(address=server.address))
    client = connect(one.port())
    client.send(b"\0hello")
    peer = server.accept()
    assert peer.recv_exactly(6) == b"\0hello"
    one.reload(text.format(address="127.0.0.1:1").replace("app", "other"))
    client.send(b"more")
    assert peer.recv_exactly(4) == b"more"
    client.close()
    assert peer.recv_all() == b""
    peer.close()
    one.running.until(lambda: one.running.closed)


def test_a_certificate_that_was_replaced_is_shown_to_new_connections(reloading, backend, connect, tmp_path):
    text = BASE.format(address=backend().address).replace("[route", "certificates = a.pem\n    [route")
    authorities = [trustme.CA(), trustme.CA()]
    pems = [one.issue_cert("localhost").private_key_and_cert_chain_pem.bytes() for one in authorities]
    one = reloading(text, {"a.pem": pems[0]})

    def trusting(authority: trustme.CA) -> Any:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    assert b" 426 " in answer_to(connect, one.port(), tls=trusting(authorities[0]), name="localhost")
    store = one.running.service.listeners[0].store
    one.reload()
    # The same files: tickets of before are still good.
    assert one.running.service.listeners[0].store is store
    (tmp_path / "a.pem").write_bytes(pems[1])
    assert "1 file changed" in one.reload()
    assert b" 426 " in answer_to(connect, one.port(), tls=trusting(authorities[1]), name="localhost")


# Listeners.


def test_listeners_are_opened_and_closed_and_their_sessions_go_on(
    reloading, backend, open_session, frame, connect, tmp_path
):
    server = backend()
    text = BASE.format(address=server.address)
    unix = f"unix:{tmp_path}/r.sock"
    one = reloading(text)
    client, peer = open_session(one.running, server, "/app")
    port = one.port()
    told = one.reload(text.replace("tcp:0:interface=127.0.0.1", unix).replace("main", "other"))
    assert f"listener other: listening on {unix}" in told
    assert "reloaded: 1 listener opened; 1 listener closed" in told
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    assert b" 426 " in answer_to(connect, str(tmp_path / "r.sock"))
    still_echoes(frame, client, peer)


def test_a_renamed_listener_keeps_its_socket_and_its_connections(reloading, connect):
    text = f"""
        [listener main]
        endpoint = tcp:{free_port()}:interface=127.0.0.1
        [route all]
        listener = main
        redirect = /main
    """
    one = reloading(text)
    port = one.port()
    client = connect(port)
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    client.send(ask)
    client.recv_head()
    client.recv_until(b"\n")
    listener = one.running.service.listeners[0]
    told = one.reload(text.replace("main", "other"))
    assert "1 listener changed" in told
    assert "opened" not in told
    assert one.running.service.listeners == [listener]
    client.send(ask)
    assert b"Location: /other" in client.recv_head()
    assert b"Location: /other" in answer_to(connect, port, "/")


def test_a_client_that_has_not_said_anything_yet_follows_a_renamed_listener(reloading, connect, authority):
    text = f"""
        [listener main]
        endpoint = tcp:{free_port()}:interface=127.0.0.1
        certificates = app.pem
        [route all]
        listener = main
        redirect = /main
    """
    one = reloading(text, {"app.pem": authority.issue("app.test")})
    plain, shaking = connect(one.port()), connect(one.port())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="app.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    shaking.send(outgoing.read())
    incoming.write(shaking.socket.recv(65536))
    one.reload(text.replace("main", "other"))
    plain.send(ASK)
    assert b"Location: /other" in plain.recv_head()
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write(shaking.socket.recv(65536))
    tls.write(ASK)
    shaking.send(outgoing.read())
    answer = b""
    while b"\r\n\r\n" not in answer:
        incoming.write(shaking.socket.recv(65536))
        try:
            answer += tls.read(4096)
        except ssl.SSLWantReadError:
            continue
    assert b"Location: /other" in answer


ASK = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"

GUARDED = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    certificates = app.pem
    [certificate app]
    file = app.pem
    [route all]
    redirect = /x
"""


@pytest.mark.parametrize(
    "change",
    [
        ("certificates = app.pem", "certificates = app.pem\n    deny = 127.0.0.1"),
        ("certificates = app.pem", "certificates = app.pem\n    allow = 10.0.0.0/8"),
        ("file = app.pem", "file = app.pem\n    client_ca = ca.pem\n    client_auth = required"),
        ("tcp:0:interface=127.0.0.1", "tcp:0:interface=127.0.0.2"),
    ],
    ids=["deny", "allow", "client_ca", "gone"],
)
def test_an_open_connection_is_no_way_around_what_is_demanded_now(reloading, connect, authority, change):
    one = reloading(GUARDED, {"app.pem": authority.issue("app.test"), "ca.pem": authority.pem})
    idle, busy = [connect(one.port(), tls=authority.client_context(), name="app.test") for _ in range(2)]
    for client in (idle, busy):
        client.send(ASK)
        assert b" 302 " in client.recv_head()
        client.recv_until(b"\n")
    # A request of which a part is there is still answered, as the last one.
    busy.send(ASK[:20])
    fronts = one.running.service.site.fronts
    one.running.until(lambda: sum(bool(front._received) for front in fronts) == 1)
    assert "reloaded" in one.reload(GUARDED.replace(*change))
    assert idle.recv_all() == b""
    busy.send(ASK[20:])
    assert b"Connection: close" in busy.recv_all()


def test_another_certificate_authority_behind_the_same_name_counts_as_another_demand(reloading, connect, authority):
    text = GUARDED.replace("file = app.pem", "file = app.pem\n    client_ca = ca.pem\n    client_auth = required")
    one = reloading(text, {"app.pem": authority.issue("app.test"), "ca.pem": authority.pem})
    client = connect(one.port(), tls=authority.client_context(certificate="me.test"), name="app.test")
    client.send(ASK)
    assert b" 302 " in client.recv_head()
    client.recv_until(b"\n")
    (one.file.parent / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    assert "1 file changed" in one.reload()
    assert client.recv_all() == b""


def test_an_open_connection_goes_on_where_the_demands_stay(reloading, connect, authority):
    one = reloading(GUARDED, {"app.pem": authority.issue("app.test")})
    client = connect(one.port(), tls=authority.client_context(), name="app.test")
    for location in (b"/x", b"/y"):
        client.send(ASK)
        assert b"Location: " + location in client.recv_head()
        client.recv_until(b"\n")
        # Another certificate is for new connections, other limits too.
        renewed = trustme.CA().issue_cert("app.test").private_key_and_cert_chain_pem
        (one.file.parent / "app.pem").write_bytes(renewed.bytes())
        one.reload(GUARDED.replace("/x", "/y").replace("certificates =", "head_timeout = 9s\n    certificates ="))


def test_two_listeners_may_change_places(reloading, connect):
    text = """
        [listener a]
        endpoint = tcp:{}:interface=127.0.0.1
        [listener b]
        endpoint = tcp:{}:interface=127.0.0.1
        [route a]
        listener = a
        redirect = /a
        [route b]
        listener = b
        redirect = /b
    """
    first, second = free_port(), free_port()
    one = reloading(text.format(first, second))
    assert b"Location: /a" in answer_to(connect, first, "/")
    assert "2 listeners changed" in one.reload(text.format(second, first))
    assert b"Location: /b" in answer_to(connect, first, "/")
    assert b"Location: /a" in answer_to(connect, second, "/")


def test_an_address_may_grow_over_the_old_one(reloading, connect):
    text = "[listener main]\nendpoint = tcp:{}{}\n[route all]\nredirect = /x\n"
    port = free_port()
    one = reloading(text.format(port, ":interface=127.0.0.1"))
    told = one.reload(text.format(port, ""))
    assert f"listener main: listening on 0.0.0.0:{port}" in told
    assert b" 302 " in answer_to(connect, port, "/") or b" 308 " in answer_to(connect, port, "/")
    told = one.reload(text.format(port, ":interface=127.0.0.1"))
    assert f"listener main: listening on 127.0.0.1:{port}" in told
    assert b"Location: /x" in answer_to(connect, port, "/")


def test_a_port_in_use_refuses_the_reload_and_all_ports_are_as_before(reloading, backend, connect):
    taken, port, third = backend(), free_port(), free_port()
    text = """
        [listener main]
        endpoint = tcp:{}{}
        [route all]
        redirect = /x
    """
    one = reloading(text.format(port, ":interface=127.0.0.1"))
    more = f"""
        [listener third]
        endpoint = tcp:{third}:interface=127.0.0.1
        [listener taken]
        endpoint = tcp:{taken.port}:interface=127.0.0.1
        [route new]
        path = /new
        redirect = /new
    """
    told = one.reload(text.format(port, "") + more)
    assert told.splitlines() == [
        "reload refused, the old configuration stays in force:",
        f"listener taken: cannot listen on tcp:{taken.port}:interface=127.0.0.1: address already in use",
    ]
    # The one that had to make room listens again, and what was bound for nothing is free.
    assert one.running.service.listeners[0].address == f"127.0.0.1:{port}"
    assert b"Location: /x" in answer_to(connect, port, "/new")
    with pytest.raises(ConnectionRefusedError):
        connect(third)


def test_who_waits_at_a_closed_listener_is_served_still(reloading, backend, connect, tmp_path):
    server = backend()
    text = BASE.format(address=server.address)
    one = reloading(text)
    port = one.port()
    waiting: list[Any] = []

    def connect_and_reload() -> None:
        # In the reactor's thread: the connection waits in the kernel's queue while the reload runs.
        waiting.append(connect(port))
        one.running.service.reload()

    one.write(text.replace("tcp:0:interface=127.0.0.1", f"unix:{tmp_path}/r.sock"))
    one.running.call(connect_and_reload)
    waiting[0].send(b"GET /app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b" 426 " in waiting[0].recv_all()


# The rest of [router].


def test_the_access_log_is_opened_anew_by_every_reload(reloading, connect, tmp_path):
    text = (
        "[router]\naccess_log = {}\n[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n[route a]\nredirect = /x\n"
    )
    one = reloading(text.format("a.log"))
    log = tmp_path / "a.log"
    answer_to(connect, one.port(), "/first")
    log.rename(tmp_path / "a.log.1")
    one.reload()
    answer_to(connect, one.port(), "/second")
    one.running.until(lambda: "path=/second" in log.read_text())
    assert "path=/first" not in log.read_text()
    assert "path=/first" in (tmp_path / "a.log.1").read_text()
    # To another place; off; and back.
    assert "[router] changed" in one.reload(text.format("b.log"))
    answer_to(connect, one.port(), "/third")
    one.running.until(lambda: "path=/third" in (tmp_path / "b.log").read_text())
    one.reload(text.format("off"))
    answer_to(connect, one.port(), "/fourth")
    one.reload(text.format("a.log"))
    answer_to(connect, one.port(), "/fifth")
    one.running.until(lambda: "path=/fifth" in log.read_text())
    assert "path=/fourth" not in log.read_text() + (tmp_path / "b.log").read_text()


def test_an_access_log_that_cannot_be_opened_leaves_the_old_one(reloading, connect, tmp_path):
    text = (
        "[router]\naccess_log = {}\n[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n[route a]\nredirect = {}\n"
    )
    one = reloading(text.format("a.log", "/x"))
    os.mkfifo(tmp_path / "pipe")  # which nobody reads
    told = one.reload(text.format("pipe", "/y"))
    assert "pipe: cannot be opened" in told
    assert "the old one is written on" in told
    assert "reloaded: 1 route changed" in told
    answer_to(connect, one.port(), "/after")
    one.running.until(lambda: "path=/after" in (tmp_path / "a.log").read_text())


def test_an_access_log_that_was_off_stays_off_where_the_new_one_cannot_be_opened(reloading, connect, tmp_path):
    text = (
        "[router]\naccess_log = {}\n[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n[route a]\nredirect = /x\n"
    )
    one = reloading(text.format("off"))
    os.mkfifo(tmp_path / "pipe")  # which nobody reads
    told = one.reload(text.format("pipe"))
    assert "pipe: cannot be opened: no such device or address; nothing is written, as before" in told
    before = len(one.lines)
    answer_to(connect, one.port(), "/after")
    one.running.until(lambda: one.running.answered)
    assert not [line for line in one.lines[before:] if "path=/after" in line]
    # It is opened by the next reload that can.
    (tmp_path / "pipe").unlink()
    one.reload()
    answer_to(connect, one.port(), "/later")
    one.running.until(lambda: "path=/later" in (tmp_path / "pipe").read_text())


def test_another_form_of_the_log_needs_a_restart(reloading):
    text = "[router]\nlog = {}\n[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n[route a]\nredirect = /x\n"
    one = reloading(text.format("text"))
    told = one.reload(text.format("json"))
    assert "[router] log: another form needs a restart" in told
    assert "nothing has changed" in told


def test_demonstration_backends_come_and_go(reloading, connect):
    text = BASE.format(address="127.0.0.1:{}") + "\n    [echo demo]\n    ports = {}\n"
    first, second = free_port(), free_port()
    one = reloading(text.format(first, first))
    client = connect(one.port())
    client.request("/app")
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    assert "1 echo changed" in one.reload(text.format(second, f"{second}"))
    other = connect(one.port())
    other.request("/app")
    assert other.recv_head().startswith(b"HTTP/1.1 101 ")
    with pytest.raises(ConnectionRefusedError):
        connect(first)


@pytest.mark.parametrize("fault", ["file", "port"])
def test_a_refused_reload_leaves_no_demonstration_certificates(reloading, backend, tmp_path, monkeypatch, fault):
    (tmp_path / "file").write_text("no folder: certificates go to a temporary one")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    taken = backend()
    text = """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        demo_certificates = localhost
        [route a]
        redirect = /x
    """
    one = reloading(text)
    before = os.listdir(tmp_path / "tmp")
    assert len(before) == 1
    broken = text.replace("= localhost", "= localhost, more.localhost")
    if fault == "port":
        broken += f"[listener taken]\n        endpoint = tcp:{taken.port}:interface=127.0.0.1\n"
    else:
        broken = broken.replace("demo_", "certificates = file\n        demo_")
    assert "reload refused" in one.reload(broken)
    assert os.listdir(tmp_path / "tmp") == before
    assert "reloaded" in one.reload(text.replace("= localhost", "= localhost, more.localhost"))
    assert len(os.listdir(tmp_path / "tmp")) == 1


# What is asked for meanwhile, and what is left.


def test_a_reload_that_is_asked_for_during_another_comes_behind_it(reloading, backend):
    one = reloading(BASE.format(address=backend().address))
    service = one.running.service
    before = len(one.lines)

    def three() -> None:
        lookups = service.reloader._look_up

        async def asks_again(config: Any) -> None:
            service.reloader._look_up = lookups
            service.reload()
            service.reload()
            await lookups(config)

        service.reloader._look_up = asks_again
        service.reload()

    one.running.call(three)
    one.running.until(lambda: not service.reloader.busy)
    assert sum(line.startswith("reloaded: ") for line in one.lines[before:]) == 2


def test_a_hundred_reloads_leave_nothing(reloading, backend, open_session, frame, authority):
    server = backend()
    text = BASE.format(address=server.address).replace("[route", "certificates = {file}\n    [route")
    files = {name: authority.issue("localhost", name) for name in ("a.pem", "b.pem")}
    one = reloading(text.format(file="a.pem"), files)
    client, peer = open_session(one.running, server, "/app")
    service = one.running.service
    kinds = (RouteTable, TunnelTable, CertificateStore, Config, Listener, BackendPool, HttpProxy, ssl.SSLContext)

    def alive() -> dict[str, int]:
        gc.collect()
        things = gc.get_objects()
        return {kind.__name__: sum(type(thing) is kind for thing in things) for kind in kinds}

    one.reload(text.format(file="b.pem"))
    before = one.running.call(alive)
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        name = ("b.pem", "a.pem")[number % 2]
        one.reload(text.format(file=name) + f"\n    [route r{number}]\n    path = /r{number}\n    pool = app\n")
    one.reload(text.format(file="b.pem"))
    after = one.running.call(alive)
    # What an earlier test has left may be collected meanwhile.
    assert all(after[kind] <= before[kind] for kind in before), (before, after)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
    assert len(service.site.rules) == 1
    still_echoes(frame, client, peer)


# on_down = close.


def test_sessions_of_a_removed_backend_are_closed_where_the_pool_says_so(
    reloading, backend, open_session, frame, connect
):
    old, new = backend(), backend()
    text = BASE + "\n    on_down = close\n    down_spread = 100ms\n"
    one = reloading(text.format(address=old.address))
    sessions = [open_session(one.running, old, "/app") for _ in range(3)]
    told = one.reload(text.format(address=new.address))
    assert f"pool app: backend {old.address} is gone, its 3 sessions and tunnels are ended over 0.1 s" in told
    for client, peer in sessions:
        assert client.recv_frame().code == 1012
        assert peer.recv_frame().code == 1012
        client.close()
        peer.close()
    one.running.until(lambda: len(one.running.closed) == 3)
    assert {end.reason for _, end in one.running.closed} == {f"backend {old.address} is gone"}


def test_sessions_of_a_removed_pool_are_closed_where_it_said_so(reloading, backend, open_session):
    old, new = backend(), backend()
    text = BASE + "\n    on_down = close\n    down_spread = 100ms\n"
    one = reloading(text.format(address=old.address))
    client, peer = open_session(one.running, old, "/app")
    one.reload(text.format(address=new.address).replace("app", "other"))
    assert client.recv_frame().code == 1012
    assert peer.recv_frame().code == 1012


@pytest.mark.parametrize("removed", ["backend", "pool"])
def test_an_opening_under_way_at_what_a_reload_removes_becomes_no_session_that_stays(
    reloading, backend, connect, removed
):
    old, new = backend(), backend()
    text = BASE + "\n    on_down = close\n    down_spread = 0s\n"
    one = reloading(text.format(address=old.address))
    client = connect(one.port())
    client.request("/app")
    peer = old.accept()
    head = peer.recv_head()
    after = text.format(address=new.address)
    one.reload(after if removed == "backend" else after.replace("app", "other"))
    peer.send(peer.agreement(head))
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    assert client.recv_frame().code == 1012
    assert peer.recv_frame().code == 1012
    client.close()
    peer.close()
    one.running.until(lambda: one.running.closed)
    assert one.running.closed[0][1].reason == f"backend {old.address} is gone"


def test_an_opening_under_way_at_a_backend_that_has_come_back_meanwhile_is_left_alone(
    reloading, backend, connect, frame
):
    old, new = backend(), backend()
    text = BASE + "\n    on_down = close\n    down_spread = 0s\n"
    one = reloading(text.format(address=old.address))
    client = connect(one.port())
    client.request("/app")
    peer = old.accept()
    head = peer.recv_head()
    one.reload(text.format(address=new.address))
    one.reload(text.format(address=f"{new.address}, {old.address}"))
    peer.send(peer.agreement(head))
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    still_echoes(frame, client, peer)


def test_a_tunnel_that_is_dialled_while_its_backend_is_removed_is_cut(reloading, backend, connect, authority):
    old, new = backend(), backend()
    text = """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [tunnel all]
        match = any
        pool = app
        [pool app]
        backends = {address}
        tls = yes
        tls_verify = no
        on_down = close
        down_spread = 0s
    """
    one = reloading(text.format(address=old.address))
    client = connect(one.port())
    client.send(b"\0hello")
    peer = old.accept()
    one.reload(text.format(address=new.address))
    peer.socket = authority.server_context("localhost").wrap_socket(peer.socket, server_side=True)
    assert client.recv_all() == b""
    assert client.was_reset
    one.running.until(lambda: one.running.closed)
    assert one.running.closed[0][1].reason == "cut"
