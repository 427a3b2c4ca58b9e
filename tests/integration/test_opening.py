"""The opening handshake over sockets: what the router refuses itself, and how it deals with every sort of backend."""

from __future__ import annotations

import gc
import select
import socket
import threading
from contextlib import suppress

import pytest

from tests.integration.http import fields_of, status_of
from tests.memory import resident
from wsrouter.layer7.opening import Opening
from wsrouter.policy.health import Hand

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
VERSION = "Sec-WebSocket-Version: 13"
MEGABYTE = 1024 * 1024


def handshake(
    *lines: str, method: str = "GET", key: str = f"Sec-WebSocket-Key: {KEY}", version: str = VERSION
) -> bytes:
    """An opening handshake; empty lines are left out."""
    all_lines = [f"{method} /ws HTTP/1.1", "Host: example.com", "Upgrade: websocket", "Connection: Upgrade"]
    return "\r\n".join([line for line in (*all_lines, key, version, *lines) if line]).encode() + b"\r\n\r\n"


def switch(*lines: str, accept: str = f"Sec-WebSocket-Accept: {ACCEPT}", upgrade: str = "Upgrade: websocket") -> bytes:
    """A 101 that answers KEY."""
    all_lines = ["HTTP/1.1 101 Switching Protocols", upgrade, "Connection: Upgrade", accept, *lines]
    return "\r\n".join([line for line in all_lines if line]).encode() + b"\r\n\r\n"


@pytest.fixture
def start(router):
    """``start(addresses, route="", pool="") -> running``: the backends at ``addresses`` behind ``/ws``."""

    def begin(*servers, route: str = "", pool: str = ""):
        addresses = [one if isinstance(one, str) else one.address for one in servers]
        return router(
            "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n"
            f"[route ws]\npath = /ws\npool = app\n{route}\n"
            f"[pool app]\n{pool}\nbackends =\n" + "".join(f"    {address}\n" for address in addresses)
        )

    return begin


@pytest.fixture
def ask(connect):
    """``ask(running, head) -> Peer``: a client that has sent ``head``."""

    def begin(running, head: bytes = b""):
        client = connect(running.port())
        client.send(head or handshake())
        return client

    return begin


def live_counts(running) -> list[int]:
    return [member.live for pool in running.service.pools.values() for member in pool.members]


# What the router refuses by itself.


@pytest.mark.parametrize(
    ("head", "status", "field"),
    [
        (handshake(version=""), 426, ("sec-websocket-version", "13")),
        (handshake(version="Sec-WebSocket-Version: 8"), 426, ("upgrade", "websocket")),
        (handshake(version="Sec-WebSocket-Version: 13, 8"), 426, ("sec-websocket-version", "13")),
        (handshake(VERSION), 426, ("connection", "Upgrade, close")),
        (handshake(key=""), 400, None),
        (handshake(f"Sec-WebSocket-Key: {KEY}"), 400, None),
        (handshake(key="Sec-WebSocket-Key: c2hvcnQ="), 400, None),
        (handshake(key="Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSB0b28gbG9uZw=="), 400, None),
        (handshake(key="Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="), 400, None),
        (handshake(method="POST"), 405, ("allow", "GET")),
        (handshake("Sec-WebSocket-Protocol: a b"), 400, None),
        (handshake("Sec-WebSocket-Protocol: a, a"), 400, None),
        (handshake("Sec-WebSocket-Extensions: ;"), 400, None),
        (handshake().replace(b"HTTP/1.1", b"HTTP/1.0"), 426, ("upgrade", "websocket")),
    ],
    ids=[
        "no version",
        "version 8",
        "a list of versions",
        "the version twice",
        "no key",
        "the key twice",
        "a short key",
        "a long key",
        "a key that is no base64",
        "POST",
        "a malformed subprotocol",
        "a subprotocol twice",
        "a malformed extension",
        "HTTP/1.0",
    ],
)
def test_a_bad_opening_handshake_reaches_no_backend(start, ask, backend, head, status, field) -> None:
    server = backend()
    running = start(server)
    client = ask(running, head)
    answer = client.recv_all()
    assert status_of(answer) == status
    if field is not None:
        assert fields_of(answer)[field[0]] == field[1]
    assert not client.was_reset
    assert [(one.status, one.stage) for one in running.refused] == [(status, "http")]
    assert not server.was_contacted()


@pytest.mark.parametrize(
    ("usual", "written"),
    [
        (b"Connection: Upgrade", b"Connection: keep-alive, Upgrade"),
        (b"Connection: Upgrade", b"Connection: keep-alive\r\nConnection: Upgrade"),
        (b"Connection: Upgrade", b"connection:UPGRADE"),
        (b"Upgrade: websocket", b"UPGRADE:  WebSocket "),
        (b"Upgrade: websocket", b"Upgrade: foo/1, websocket"),
        (b"Host: ", b"Content-Length: 0\r\nHost: "),
        (b"GET", b"\r\nGET"),
    ],
)
def test_what_other_clients_write_is_understood(start, ask, backend, usual, written) -> None:
    server = backend()
    running = start(server)
    client = ask(running, handshake().replace(usual, written, 1))
    head = server.accept().answer()
    assert b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" in head
    assert head.lower().count(b"upgrade") == 2
    assert status_of(client.recv_head()) == 101


SAME = "origins = same"
NAMED = "origins =\n    https://example.org\n    http://localhost:3000"
NULL = "origins = null"


@pytest.mark.parametrize(
    ("rule", "origin", "allowed"),
    [
        ("", "https://evil.example", True),
        (SAME, "", True),
        (SAME, "http://example.com", True),
        (SAME, "HTTP://EXAMPLE.com:80", True),
        (SAME, "https://example.com", False),
        (SAME, "http://example.com:81", False),
        (SAME, "null", False),
        (NAMED, "https://example.org", True),
        (NAMED, "http://localhost:3000", True),
        (NAMED, "https://example.org.evil.example", False),
        (NAMED, "https://evil.example", False),
        (NAMED, "null", False),
        (NAMED, "", True),
        (NULL, "null", True),
        (NULL, "https://example.org", False),
    ],
)
def test_origins_are_held_against_the_route(start, ask, backend, rule, origin, allowed) -> None:
    server = backend()
    running = start(server, route=rule)
    client = ask(running, handshake(f"Origin: {origin}" if origin else ""))
    if allowed:
        assert fields_of(server.accept().answer()).get("origin", "") == origin
        assert status_of(client.recv_head()) == 101
    else:
        assert status_of(client.recv_all()) == 403
        assert [(one.status, one.rule) for one in running.refused] == [(403, "ws")]
        assert not server.was_contacted()


# Negotiation, from end to end.


def test_a_subprotocol_chooses_the_route_and_the_backend_chooses_among_those_offered(router, ask, backend) -> None:
    one, two = backend(), backend()
    running = router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [route any]
        path = /ws
        pool = one
        [route second]
        path = /ws
        subprotocol = chat.v2
        pool = two
        [pool one]
        backends = {one.address}
        [pool two]
        backends = {two.address}
    """)
    client = ask(running, handshake("Sec-WebSocket-Protocol: other, chat.v2", "Sec-WebSocket-Protocol: third"))
    peer = two.accept()
    head = peer.answer([("Sec-WebSocket-Protocol", "third")])
    assert b"\r\nSec-WebSocket-Protocol: other, chat.v2\r\nSec-WebSocket-Protocol: third\r\n" in head
    assert fields_of(client.recv_head())["sec-websocket-protocol"] == "third"
    running.until(lambda: running.opened)
    assert (running.opened[0].facts.rule, running.opened[0].facts.subprotocol) == ("second", "third")

    client = ask(running, handshake("Sec-WebSocket-Protocol: chat.v1"))
    one.accept().answer()
    assert "sec-websocket-protocol" not in fields_of(client.recv_head())


DEFLATE = "permessage-deflate; client_max_window_bits"


def test_only_permessage_deflate_is_offered_to_the_backend_and_its_grant_reaches_the_client(
    start, ask, backend
) -> None:
    server = backend()
    running = start(server)
    client = ask(running, handshake(f"Sec-WebSocket-Extensions: x-mux; max=4, {DEFLATE}, permessage-deflate"))
    granted = "permessage-deflate; client_max_window_bits=12"
    seen = fields_of(server.accept().answer([("Sec-WebSocket-Extensions", granted)]))
    assert seen["sec-websocket-extensions"] == f"{DEFLATE}, permessage-deflate"
    assert fields_of(client.recv_head())["sec-websocket-extensions"] == granted


def test_cookies_and_other_fields_pass_both_ways(start, ask, backend) -> None:
    server = backend()
    running = start(server)
    client = ask(running, handshake("Cookie: a=b; c=d", "Authorization: Bearer x=", "Cookie: e=f", "X-Odd:  a,  b "))
    head = server.accept().answer([("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; HttpOnly"), ("X-Node", "7")])
    for line in (
        b"Cookie: a=b; c=d",
        b"Cookie: e=f",
        b"Authorization: Bearer x=",
        b"X-Odd: a,  b",
        b"Host: example.com",
    ):
        assert b"\r\n" + line + b"\r\n" in head
    answer = client.recv_head()
    assert answer.count(b"Set-Cookie: ") == 2
    for line in (b"Set-Cookie: a=1; Path=/", b"Set-Cookie: b=2; HttpOnly", b"X-Node: 7"):
        assert b"\r\n" + line + b"\r\n" in answer


def test_the_backend_sees_the_headers_and_the_path_that_the_route_sets(start, ask, backend) -> None:
    server = backend()
    running = start(
        server,
        route="strip_prefix = yes\nset_header =\n"
        "    X-Real-IP: {client_ip}\n"
        "    X-From: {listener}/{route} {scheme} {host}{uri} {{x}}\n"
        "    X-Id: {request_id}\n"
        "    Host: inner.example\n"
        "    X-Forwarded-Host:\n"
        "    Cookie:\n",
    )
    client = ask(running, handshake("Cookie: a=b", "X-Id: mine").replace(b"/ws", b"/ws/deep/er?q=1"))
    head = server.accept().answer()
    fields = fields_of(head)
    assert head.startswith(b"GET /deep/er?q=1 HTTP/1.1\r\n")
    assert fields["x-real-ip"] == "127.0.0.1"
    assert fields["x-from"] == "main/ws http example.com/ws/deep/er?q=1 {x}"
    assert len(fields["x-id"]) == 32
    assert head.lower().count(b"\r\nx-id:") == 1
    assert fields["host"] == "inner.example"
    assert fields["x-forwarded-for"] == "127.0.0.1"
    assert not {"x-forwarded-host", "cookie"} & fields.keys()
    assert status_of(client.recv_head()) == 101


@pytest.mark.parametrize(
    ("path", "seen"), [(b"/ws", b"/"), (b"/ws?a=b", b"/?a=b"), (b"/ws/", b"/"), (b"/ws//x", b"//x")]
)
def test_a_stripped_path_is_never_empty(start, ask, backend, path, seen) -> None:
    server = backend()
    running = start(server, route="strip_prefix = yes")
    ask(running, handshake().replace(b"/ws", path))
    assert server.accept().recv_head().split(b" ")[1] == seen


# Backends that speak nonsense.

OK_WITH_UPGRADE = b"HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n"

NONSENSE = {
    "no Accept": switch(accept=""),
    "a wrong Accept": switch(accept="Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    "the Accept twice": switch(f"Sec-WebSocket-Accept: {ACCEPT}"),
    "another Upgrade": switch(upgrade="Upgrade: foo"),
    "no Upgrade": switch(upgrade=""),
    "no Connection": switch().replace(b"Connection: Upgrade\r\n", b""),
    "HTTP/1.0": switch().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a subprotocol that was not offered": switch("Sec-WebSocket-Protocol: other"),
    "two subprotocols": switch("Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"),
    "an extension that was not offered": switch("Sec-WebSocket-Extensions: x-mux"),
    "deflate that was not offered": switch("Sec-WebSocket-Extensions: permessage-deflate"),
    "a body": switch("Content-Length: 5"),
    "a chunked body": switch("Transfer-Encoding: chunked"),
    "200 with Upgrade": OK_WITH_UPGRADE,
    "a malformed status line": b"HTTP/1.1 abc\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "HTTP/2": b"HTTP/2 101 ok\r\n\r\n",
    "a folded line": switch("X-A: b\r\n c"),
    "a bare LF": b"HTTP/1.1 101 ok\nUpgrade: websocket\n\n",
    "a head without an end": b"HTTP/1.1 101 ok\r\n" + b"X-A: " + b"a" * 4000 + b"\r\n" + b"X-B: " + b"b" * 20000,
    "half a head and the end": b"HTTP/1.1 101 ok\r\nUpgr",
    "frames at once": b"\x81\x02hi\r\n\r\n",
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_backend_that_answers_nonsense_becomes_502_and_is_closed(start, ask, backend, answer) -> None:
    server = backend()
    running = start(server)
    client = ask(running, handshake("Sec-WebSocket-Protocol: chat"))
    peer = server.accept()
    peer.recv_head()
    peer.send(answer)
    if answer.endswith(b"Upgr"):
        peer.finish()
    told = client.recv_all()
    assert status_of(told) == 502
    assert told.count(b"HTTP/1.1") == 1
    # How backends are called and what they said is not the client's business.
    assert server.address.encode() not in told
    assert b"SSH" not in told
    assert not client.was_reset
    assert peer.recv_all() == b""
    (refusal,) = running.refused
    assert (refusal.status, refusal.rule) == (502, "ws")
    assert server.address in refusal.reason
    assert live_counts(running) == [0]
    assert running.opened == []


def test_a_backend_that_speaks_plainly_where_tls_is_expected_becomes_502(start, ask, backend) -> None:
    server = backend()
    running = start(server, pool="tls = yes\ntls_verify = no")
    client = ask(running)
    peer = server.accept()
    peer.send(switch())
    assert status_of(client.recv_all()) == 502
    assert b"GET" not in peer.recv_all()
    assert running.refused[0].status == 502


# Backends that refuse in their own words.


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=a\r\n",
        b"HTTP/1.1 403 Forbidden\r\nX-Reason: no\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://example.com/login\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n",
        b"HTTP/1.1 418 I'm a teapot \xe9\r\nX: y\r\n",
        b"HTTP/1.1 404 \r\nX: y\r\n",
    ],
    ids=["401", "403", "302", "503", "418", "404"],
)
@pytest.mark.parametrize("framing", ["length", "chunked", "until close", "empty"])
def test_a_refusal_of_the_backend_reaches_the_client_as_it_is(start, ask, backend, head, framing) -> None:
    server = backend()
    running = start(server)
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    body = b"<p>" + b"x" * 100_000
    if framing == "length":
        peer.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    elif framing == "chunked":
        body = b"%x;a=b\r\n%b\r\n3\r\nabc\r\n0\r\nX-Trailer: a\r\n\r\n" % (len(body), body)
        peer.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    elif framing == "until close":
        peer.send(head + b"Connection: close\r\n\r\n" + body)
        peer.finish()
    else:
        body = b""
        peer.send(head + b"Content-Length: 0\r\n\r\n")
    answer = client.recv_all()
    answered, _, content = answer.partition(b"\r\n\r\n")
    # Status line and first field byte for byte, then the framing.
    assert answered.startswith(head.rstrip())
    assert content == body
    fields = fields_of(answered)
    assert fields["connection"] == "close"
    assert fields.get("transfer-encoding") == ("chunked" if framing == "chunked" else None)
    assert fields.get("content-length") == (str(len(body)) if framing in ("length", "empty") else None)
    assert not client.was_reset
    assert [(one.status, one.stage) for one in running.refused] == [(int(head[9:12]), "backend")]
    running.until(lambda: live_counts(running) == [0])


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
    ids=["length", "chunked", "no chunk"],
)
def test_a_refusal_that_breaks_off_never_looks_whole(start, ask, backend, answer) -> None:
    server = backend()
    running = start(server)
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    peer.send(answer)
    if b"nonsense" not in answer:  # that one the router itself breaks off
        peer.finish()
    told = client.recv_all()
    assert client.was_reset
    assert not told.endswith(b"0\r\n\r\n")
    running.until(lambda: live_counts(running) == [0])


def test_interim_answers_are_left_out(start, ask, backend) -> None:
    server = backend()
    running = start(server)
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + switch())
    head = client.recv_head()
    assert status_of(head) == 101
    assert b"Link" not in head


def test_a_long_refusal_for_a_slow_client_costs_no_memory(start, connect, backend) -> None:
    server = backend()
    running = start(server)
    client = connect(running.port(), receive=65536)
    client.send(handshake())
    peer = server.accept()
    peer.recv_head()
    piece, count = bytes(MEGABYTE), 64
    peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % (len(piece) * count))
    before = resident()
    sender = threading.Thread(target=lambda: [peer.send(piece) for _ in range(count)])
    sender.start()
    sender.join(0.3)  # what is not in the kernel's buffers by then is still with the backend
    assert resident() - before < 8 * MEGABYTE
    assert status_of(client.recv_head()) == 403
    for _ in range(count):
        assert client.recv_exactly(len(piece)) == piece
    sender.join(10)
    assert client.recv_all() == b""
    assert not client.was_reset


def test_a_refusal_can_be_read_although_the_client_sends_frames_already(start, ask, backend, frame) -> None:
    server = backend()
    running = start(server)
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    sender = threading.Thread(target=client.send, args=(frame(2, bytes(8_000_000)),))
    sender.start()
    peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    sender.join(10)
    assert client.recv_all().endswith(b"\r\n\r\nno")
    assert not client.was_reset


# Backends that cannot be had.


def test_a_backend_that_keeps_silent_becomes_504(start, ask, backend) -> None:
    server = backend()
    running = start(server, pool="handshake_timeout = 100ms")
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    assert status_of(client.recv_all()) == 504
    peer.recv_all()
    assert [one.status for one in running.refused] == [504]
    assert live_counts(running) == [0]


def test_an_answer_that_trickles_has_one_absolute_time(start, ask, backend) -> None:
    server = backend()
    running = start(server, pool="handshake_timeout = 100ms")
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    peer.send(b"HTTP/1.1 101 ")
    with suppress(OSError):
        while not select.select([client.socket], [], [], 0.01)[0]:
            peer.send(b"a")
    assert status_of(client.recv_all()) == 504


def test_a_backend_that_accepts_nothing_becomes_504(start, ask) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        # With the queue full, further connections hang in their handshake.
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(address)
            running = start(f"127.0.0.1:{address[1]}", pool="connect_timeout = 100ms")
            client = ask(running)
            assert status_of(client.recv_all()) == 504
        finally:
            for filler in fillers:
                filler.close()


def test_when_all_backends_refuse_the_client_gets_503_and_may_come_again(start, ask, refusing_address) -> None:
    running = start(refusing_address)
    client = ask(running)
    answer = client.recv_all()
    assert status_of(answer) == 503
    assert fields_of(answer)["retry-after"] == "1"
    (refusal,) = running.refused
    assert f"{refusing_address} connection refused" in refusal.reason
    assert live_counts(running) == [0]


def test_when_a_backend_refuses_the_next_is_tried(start, ask, backend, refusing_address) -> None:
    server = backend()
    running = start(refusing_address, server)
    client = ask(running)
    server.accept().answer()
    assert status_of(client.recv_head()) == 101
    running.until(lambda: running.opened)
    assert running.opened[0].facts.tried == f"{refusing_address} connection refused"
    assert running.refused == []


@pytest.mark.parametrize("how", ["reset", "close"])
def test_when_a_backend_leaves_before_its_answer_the_next_is_tried(start, ask, backend, how) -> None:
    first, second = backend(), backend()
    running = start(first, second)
    client = ask(running)
    peer = first.accept()
    peer.recv_head()
    getattr(peer, how)()
    asked = second.accept().answer()
    assert f"Sec-WebSocket-Key: {KEY}".encode() in asked
    assert status_of(client.recv_head()) == 101
    running.until(lambda: running.opened)
    assert running.opened[0].facts.backend == second.address
    assert running.opened[0].facts.tried.startswith(f"{first.address} ")
    assert live_counts(running) == [0, 1]


def test_when_every_backend_leaves_before_its_answer_the_client_gets_502(start, ask, backend) -> None:
    servers = [backend(), backend()]
    running = start(*servers)
    client = ask(running)
    for server in servers:
        peer = server.accept()
        peer.recv_head()
        peer.reset()
    assert status_of(client.recv_all()) == 502
    assert live_counts(running) == [0, 0]


def test_who_waits_for_a_backend_that_is_found_down_gets_another(start, ask, backend) -> None:
    first, second = backend(), backend()
    running = start(first, second)
    client = ask(running)
    silent = first.accept()
    silent.recv_head()
    pool = running.service.pools["app"]
    running.call(lambda: pool.table.by_hand(pool.members[0], running.reactor.seconds(), Hand.DOWN))
    peer = second.accept()
    peer.send(switch())
    assert status_of(client.recv_head()) == 101
    assert silent.recv_all() == b""
    assert silent.was_reset
    running.until(lambda: running.opened)
    assert running.opened[0].facts.tried == f"{first.address} went down before its answer"
    assert live_counts(running) == [0, 1]


def test_who_may_try_no_other_backend_waits_for_one_that_is_found_down(start, ask, backend) -> None:
    first, second = backend(), backend()
    running = start(first, second, pool="retries = 0")
    client = ask(running)
    peer = first.accept()
    peer.recv_head()
    pool = running.service.pools["app"]
    running.call(lambda: pool.table.by_hand(pool.members[0], running.reactor.seconds(), Hand.DOWN))
    peer.send(switch())
    assert status_of(client.recv_head()) == 101
    assert live_counts(running) == [1, 0]


@pytest.mark.parametrize("other", ["none", "down", "full", "weight"])
def test_who_would_find_no_other_backend_waits_for_one_that_is_found_down(start, ask, backend, other) -> None:
    first, second = backend(), backend()
    servers = {
        "none": [first],
        "down": [first, second],
        "full": [first, f"{second.address} max_sessions=1"],
        "weight": [first, f"{second.address} weight=0"],
    }[other]
    running = start(*servers, pool="balance = first")
    pool = running.service.pools["app"]
    down, *others = pool.members
    client = ask(running)
    peer = first.accept()
    peer.recv_head()
    if other == "down":
        running.call(lambda: pool.table.by_hand(others[0], running.reactor.seconds(), Hand.DOWN))
    elif other == "full":
        running.call(pool.take, others[0])
    running.call(lambda: pool.table.by_hand(down, running.reactor.seconds(), Hand.DOWN))
    peer.send(switch())
    assert status_of(client.recv_head()) == 101
    assert down.live == 1


def test_no_more_backends_are_tried_than_the_pool_allows(start, ask, backend) -> None:
    servers = [backend() for _ in range(4)]
    running = start(*servers, pool="retries = 1")
    client = ask(running)
    for server in servers[:2]:
        peer = server.accept()
        peer.recv_head()
        peer.close()
    assert status_of(client.recv_all()) == 502
    assert not servers[2].was_contacted()
    assert not servers[3].was_contacted()


def test_an_answer_is_never_followed_by_a_retry(start, ask, backend) -> None:
    first, second = backend(), backend()
    running = start(first, second)
    client = ask(running)
    peer = first.accept()
    peer.recv_head()
    peer.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    assert status_of(client.recv_all()) == 503
    assert not second.was_contacted()


def test_a_full_pool_becomes_503(start, ask, backend) -> None:
    server = backend()
    running = start(f"{server.address} max_sessions=1")
    first = ask(running)
    peer = server.accept()
    peer.answer()
    assert status_of(first.recv_head()) == 101
    second = ask(running)
    assert status_of(second.recv_all()) == 503
    # The end of a session makes room.
    first.reset()
    running.until(lambda: live_counts(running) == [0] or peer.socket.close())
    third = ask(running)
    server.accept().answer()
    assert status_of(third.recv_head()) == 101


@pytest.mark.parametrize("how", ["refused", "broken", "unreached", "left"])
def test_an_opening_that_came_to_nothing_is_freed_without_the_collector(start, ask, backend, how) -> None:
    server = backend()
    running = start(server)
    if how == "unreached":
        server.close()
    gc.collect()
    gc.disable()
    try:
        client = ask(running)
        if how != "unreached":
            peer = server.accept()
            peer.recv_head()
            if how == "left":
                client.reset()
            else:
                peer.send(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n" if how == "refused" else b"nonsense\r\n\r\n")
        if how != "left":
            assert status_of(client.recv_all()) in (403, 502, 503)
            client.close()
        running.until(lambda: running.refused and not running.connections and live_counts(running) == [0])
        running.until(lambda: not any(isinstance(one, Opening) for one in gc.get_objects()))
    finally:
        gc.enable()


# Early frames.


def test_frames_in_the_same_segment_as_the_request_come_once_in_order_behind_the_101(
    start, ask, backend, frame
) -> None:
    server = backend()
    running = start(server)
    client = ask(running, handshake() + frame(1, b"one") + frame(2, b"two")[:5])
    peer = server.accept()
    peer.recv_head()
    client.send(frame(2, b"two")[5:] + frame(1, b"three"))
    # Nothing of it before the 101.
    assert peer.nothing_comes()
    peer.send(switch())
    assert [peer.recv_frame().payload for _ in range(3)] == [b"one", b"two", b"three"]
    assert status_of(client.recv_head()) == 101
    client.send(frame(1, b"four"))
    assert peer.recv_frame().payload == b"four"


def test_frames_behind_the_101_come_once_in_order(start, ask, backend, frame) -> None:
    server = backend()
    running = start(server)
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    greeting = frame(1, b"hello", mask=False)
    peer.send(switch() + greeting + greeting[:3])
    assert status_of(client.recv_head()) == 101
    assert client.recv_frame().payload == b"hello"
    peer.send(greeting[3:] + frame(1, b"again", mask=False))
    assert [client.recv_frame().payload for _ in range(2)] == [b"hello", b"again"]


def test_a_101_may_come_byte_by_byte(start, ask, backend, frame) -> None:
    server = backend()
    running = start(server)
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    for byte in switch("X-A: b") + frame(1, b"hi", mask=False):
        peer.send(bytes((byte,)))
    assert fields_of(client.recv_head())["x-a"] == "b"
    assert client.recv_frame().payload == b"hi"


def test_many_early_frames_arrive_whole_and_cost_no_memory(start, connect, backend, frame) -> None:
    server = backend()
    running = start(server)
    client = connect(running.port())
    message, count = frame(2, bytes(60_000)), 400
    client.send(handshake())
    peer = server.accept()
    peer.recv_head()
    before = resident()
    sender = threading.Thread(target=lambda: [client.send(message) for _ in range(count)])
    sender.start()
    sender.join(0.3)
    assert resident() - before < 8 * MEGABYTE
    peer.send(switch())
    for _ in range(count):
        assert peer.recv_frame().payload == bytes(60_000)
    sender.join(10)


# The connection before, and the client's end.


def test_a_later_request_of_a_kept_connection_may_upgrade(router, connect, backend, frame, tmp_path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a.txt").write_text("a page")
    server = backend()
    running = router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [route ws]
        path = /ws
        pool = app
        [route files]
        static = www
        [pool app]
        backends = {server.address}
    """)
    client = connect(running.port())
    client.send(b"GET /a.txt HTTP/1.1\r\nHost: example.com\r\n\r\n")
    head = client.recv_head()
    assert status_of(head) == 200
    assert client.recv_exactly(int(fields_of(head)["content-length"])) == b"a page"
    client.send(handshake())
    peer = server.accept()
    peer.answer()
    assert status_of(client.recv_head()) == 101
    client.send(frame(1, b"hello"))
    assert peer.recv_frame().payload == b"hello"
    running.until(lambda: running.opened)
    assert len(running.opened) == 1


@pytest.mark.parametrize("how", ["reset", "close", "finish"])
def test_a_client_that_vanishes_while_its_backend_is_asked_takes_the_backend_with_it(start, ask, backend, how) -> None:
    server = backend()
    running = start(server)
    client = ask(running)
    peer = server.accept()
    peer.recv_head()
    assert live_counts(running) == [1]
    getattr(client, how)()
    assert peer.recv_all() == b""
    running.until(lambda: live_counts(running) == [0])
    running.until(lambda: not running.connections)
    assert running.opened == []


def test_a_client_that_vanishes_while_its_backend_is_dialled_stops_the_dial(start, connect) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            running = start(f"127.0.0.1:{full.getsockname()[1]}", pool="connect_timeout = 30s")
            client = connect(running.port())
            client.send(handshake())
            running.until(lambda: live_counts(running) == [1])
            client.reset()
            running.until(lambda: live_counts(running) == [0])
        finally:
            for filler in fillers:
                filler.close()
