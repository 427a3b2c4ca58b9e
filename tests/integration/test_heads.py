"""Request heads as they come over a socket: what is refused and how, what passes, and how long a client may take.

A refusal is one answer with ``Connection: close`` and one entry for the log; no backend hears of it.
"""

from __future__ import annotations

import os
import select
import socket

import pytest

from tests.integration.http import UPGRADE_FIELDS, status_of
from tests.memory import resident


def opening(*lines: bytes, path: bytes = b"/ws", host: bytes = b"Host: example.com") -> bytes:
    """An opening handshake with ``lines`` added."""
    return b"\r\n".join([b"GET %b HTTP/1.1" % path, host, *lines]) + b"\r\n" + UPGRADE_FIELDS + b"\r\n"


def plain(*lines: bytes, path: bytes = b"/http", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), b"Host: example.com", *lines]) + b"\r\n\r\n"


def fields_of(head: bytes) -> dict[bytes, bytes]:
    """The fields of a head by their names in lower case; one that comes twice is joined with a comma."""
    fields: dict[bytes, bytes] = {}
    for line in head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b": ")
        fields[name.lower()] = fields[name.lower()] + b", " + value if name.lower() in fields else value
    return fields


def respond(peer) -> None:
    """As a backend: answer every plain request with its own target."""
    waiting = b""
    while data := peer.socket.recv(65536):
        waiting += data
        while b"\r\n\r\n" in waiting:
            head, _, waiting = waiting.partition(b"\r\n\r\n")
            target = head.split()[1]
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target))


@pytest.fixture
def start(router, backend):
    """``start(listener="", route="") -> (running, server)``: one backend behind ``/ws`` (WebSocket) and ``/http``."""

    def begin(listener: str = "", route: str = "", script=None):
        server = backend(script)
        running = router(
            "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n"
            f"{listener}\n[route ws]\npath = /ws\npool = app\n{route}\n"
            "[route http]\npath = /http\naccept = http\npool = app\n"
            f"[pool app]\nbackends = {server.address}\n"
        )
        return running, server

    return begin


REFUSED = {
    # Host
    "no Host": (b"GET /ws HTTP/1.1\r\n" + UPGRADE_FIELDS + b"\r\n", 400),
    "two Hosts": (opening(b"Host: example.net"), 400),
    "the same Host twice": (opening(b"Host: example.com"), 400),
    "a Host with a blank": (opening(host=b"Host: a b"), 400),
    # Field lines
    "a space before the colon": (opening(b"X-A : b"), 400),
    "a folded line": (opening(b"X-A: b\r\n c"), 400),
    "a folded first line": (opening(host=b" Host: example.com"), 400),
    "a bare CR": (opening(b"X-A: b\rX-C: d"), 400),
    "a bare LF": (opening(b"X-A: b\nX-C: d"), 400),
    "bare LFs only": (b"GET /ws HTTP/1.1\nHost: example.com\n\n", 400),
    "a NUL": (opening(b"X-A: b\0c"), 400),
    "a vertical tab": (opening(b"X-A: b\x0bc"), 400),
    "a file separator": (opening(b"X-A: b\x1cc"), 400),
    "an empty name": (opening(b": b"), 400),
    "a line without a colon": (opening(b"X-A"), 400),
    "a name with 0x85": (opening(b"X-\x85A: b"), 400),
    # Lengths
    "Content-Length with Transfer-Encoding": (
        plain(b"Content-Length: 5", b"Transfer-Encoding: chunked", method=b"POST"),
        400,
    ),
    "two lengths": (plain(b"Content-Length: 5", b"Content-Length: 6", method=b"POST"), 400),
    "the same length twice": (plain(b"Content-Length: 5", b"Content-Length: 5", method=b"POST"), 400),
    "a length with a sign": (plain(b"Content-Length: +5", method=b"POST"), 400),
    "an empty length": (plain(b"Content-Length: ", method=b"POST"), 400),
    "a list of lengths": (plain(b"Content-Length: 5, 5", method=b"POST"), 400),
    "an unknown transfer coding": (plain(b"Transfer-Encoding: gzip, chunked", method=b"POST"), 501),
    "a transfer coding without an end": (plain(b"Transfer-Encoding: gzip", method=b"POST"), 400),
    "chunked twice": (plain(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", method=b"POST"), 400),
    "an upgrade with a body": (opening(b"Content-Length: 6") + b"\x81\x80abcd", 400),
    "an upgrade with a chunked body": (opening(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    # Sizes
    "a head over 16 KiB": (opening(*[b"X-%d: %b" % (n, b"a" * 6000) for n in range(3)]), 431),
    "a head over 16 KiB without an end": (b"GET /ws HTTP/1.1\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 600, 431),
    "more than 100 fields": (opening(*[b"X-%d: a" % n for n in range(96)]), 431),
    "a field line over 8 KiB": (opening(b"X-A: " + b"a" * 8200), 431),
    "a request line over 8 KiB": (opening(path=b"/ws?" + b"a" * 8200), 414),
    "a request line without an end": (b"GET /" + b"a" * 9000, 414),
    # Targets
    "a backslash": (opening(path=b"/ws\\x"), 400),
    "an encoded backslash": (opening(path=b"/ws/%5cx"), 400),
    "a fragment": (opening(path=b"/ws#x"), 400),
    "a path above the root": (opening(path=b"/ws/../../ws"), 400),
    "a path above the root, encoded": (opening(path=b"/%2e%2e/ws"), 400),
    "an encoded NUL": (opening(path=b"/ws/%00"), 400),
    "a malformed percent-encoding": (opening(path=b"/ws/%zz"), 400),
    "a blank in the target": (opening(path=b"/ws /x"), 400),
    "an absolute form with user information": (opening(path=b"http://me@example.com/ws"), 400),
    "another scheme": (opening(path=b"ftp://example.com/ws"), 400),
    "CONNECT": (plain(path=b"example.com:443", method=b"CONNECT"), 405),
    # Versions
    "HTTP/2.0": (b"GET /ws HTTP/2.0\r\nHost: example.com\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /ws HTTP/1.2\r\nHost: example.com\r\n\r\n", 505),
}


@pytest.mark.parametrize(("head", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_head_is_refused_and_reaches_no_backend(start, connect, head, status) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(head)
    answer = client.recv_all()
    assert status_of(answer) == status
    assert fields_of(answer)[b"connection"] == b"close"
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not client.was_reset
    (refusal,) = running.refused
    assert (refusal.stage, refusal.status, refusal.listener) == ("http", status, "main")
    assert refusal.client == f"127.0.0.1:{client.socket.getsockname()[1]}"
    assert refusal.reason
    assert not server.was_contacted()
    assert running.live == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/../secret", 400),
        (b"/%2e%2e/secret", 400),
        (b"/a/../../secret", 400),
        (b"/..%2fsecret", 404),
        (b"/%2e%2e%2fsecret", 404),
        (b"//secret", 404),
        (b"/a/%2e%2e/page", 200),
    ],
)
def test_nothing_outside_its_directory_is_served(router, connect, path, status) -> None:
    running = router(
        "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n[route files]\nstatic = www\n",
        {"www/page": "the page", "secret": "s3cret"},
    )
    client = connect(running.port())
    client.send(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
    answer = client.recv_all()
    assert status_of(answer) == status
    assert b"s3cret" not in answer


@pytest.mark.parametrize("path", [b"//ws", b"/ws%2Fx", b"/wsx", b"/ws/../x", b"/ws/%2e%2e/x", b"/WS", b"/"])
def test_what_is_no_path_below_the_route_gets_404(start, connect, path) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(opening(path=path))
    assert status_of(client.recv_all()) == 404
    assert [(one.status, one.rule, one.reason) for one in running.refused] == [(404, "", "no route")]
    assert not server.was_contacted()


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (b"/%77s", b"/ws"),
        (b"/x/../ws", b"/ws"),
        (b"/x/%2E%2e/ws/./a", b"/ws/a"),
        (b"/ws//a/", b"/ws//a/"),
        (b"/ws/a%2fb", b"/ws/a%2Fb"),
        (b"/ws/\xc3\xa9?\xc3\xa9=%zz&/../", b"/ws/%C3%A9?\xc3\xa9=%zz&/../"),
        (b"http://example.com/ws?a", b"/ws?a"),
        (b"ws://example.com:80/ws", b"/ws"),
    ],
)
def test_the_path_that_was_routed_is_the_path_that_is_forwarded(start, connect, target, seen) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(opening(path=target))
    peer = server.accept()
    assert peer.answer().split(b" ")[1] == seen
    assert status_of(client.recv_head()) == 101
    running.until(lambda: running.opened)
    (entry,) = running.opened
    assert entry.facts.path == seen.partition(b"?")[0].decode()


def test_the_authority_of_an_absolute_form_is_the_host(router, connect, backend) -> None:
    server = backend()
    running = router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [route b]
        host = b.example
        pool = app
        [pool app]
        backends = {server.address}
    """)
    client = connect(running.port())
    client.send(opening(path=b"http://B.example/ws", host=b"Host: a.example"))
    assert fields_of(server.accept().answer())[b"host"] == b"B.example"
    assert status_of(client.recv_head()) == 101


def test_text_beyond_ascii_passes_untouched(start, connect) -> None:
    running, server = start()
    value = "caf\u00e9 \u0085 X-Admin: yes ".encode() + b"\x85\xff"
    client = connect(running.port())
    client.send(opening(b"X-Name: " + value))
    head = server.accept().answer()
    assert b"\r\nX-Name: " + value + b"\r\n" in head
    assert status_of(client.recv_head()) == 101


FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded")


@pytest.mark.parametrize("make", [opening, plain], ids=["upgrade", "plain"])
def test_forwarding_headers_of_clients_are_replaced(start, connect, make) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(
        make(
            b"X-Forwarded-For: 10.1.1.1",
            b"X-FORWARDED-Proto: https",
            b"X-Forwarded-Host: admin.example",
            b"X-Forwarded-Port: 1",
            b"Forwarded: for=10.1.1.1;proto=https",
            b"X-Real-IP: 10.1.1.1",
            b"X_Forwarded_For: 10.1.1.1",
        )
    )
    head = server.accept().recv_head()
    fields = fields_of(head)
    assert [fields[name] for name in FORWARDED] == [
        b"127.0.0.1",
        b"http",
        b"example.com",
        b"for=127.0.0.1;host=example.com;proto=http",
    ]
    assert b"10.1.1.1" not in head
    assert not {b"x-forwarded-port", b"x-real-ip", b"x_forwarded_for"} & fields.keys()


def test_connection_cannot_talk_the_forwarding_headers_away(start, connect) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(
        opening(b"X-Mine: a", b"X-Kept: b").replace(
            b"Connection: Upgrade",
            b"Connection: Upgrade, X-Forwarded-For, Forwarded, X-Mine, Host, Sec-WebSocket-Key, Sec-WebSocket-Version",
        )
    )
    fields = fields_of(server.accept().answer())
    assert all(name in fields for name in FORWARDED)
    assert fields[b"connection"] == b"Upgrade"
    assert b"x-mine" not in fields
    assert fields[b"x-kept"] == b"b"
    assert fields[b"host"] == b"example.com"
    assert status_of(client.recv_head()) == 101


H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")


def test_h2c_is_served_as_a_plain_request(start, connect) -> None:
    running, _server = start(script=respond)
    client = connect(running.port())
    client.send(plain(*H2C))
    assert status_of(client.recv_until(b"/http")) == 200
    assert running.refused == []


@pytest.mark.parametrize(
    "lines",
    [H2C, *((b"Connection: Upgrade", b"Upgrade: " + token) for token in (b"TLS/1.0", b"foo, h2c", b"websocket2"))],
    ids=["h2c", "TLS", "several", "alike"],
)
def test_no_upgrade_but_websocket_reaches_a_backend(start, connect, lines) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(plain(*lines))
    fields = fields_of(server.accept().recv_head())
    assert not {b"upgrade", b"http2-settings"} & fields.keys()


@pytest.mark.parametrize("lines", [(), H2C, (b"Upgrade: websocket",)], ids=["plain", "h2c", "not in Connection"])
def test_a_plain_request_where_only_websockets_are_taken_gets_426(start, connect, lines) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(plain(*lines, path=b"/ws"))
    answer = client.recv_all()
    fields = fields_of(answer)
    assert status_of(answer) == 426
    assert fields[b"upgrade"] == b"websocket"
    assert fields[b"sec-websocket-version"] == b"13"
    assert fields[b"connection"] == b"Upgrade, close"
    assert [(one.status, one.rule, one.path, one.host) for one in running.refused] == [
        (426, "ws", "/ws", "example.com")
    ]
    assert not server.was_contacted()


def test_what_follows_an_upgrade_that_the_backend_declines_reaches_nobody(start, connect) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(opening() + plain(path=b"/ws/admin") + plain(path=b"/http/admin"))
    peer = server.accept()
    peer.recv_head()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
    answer = client.recv_all()
    assert status_of(answer) == 200
    assert answer.endswith(b"\r\n\r\nno")
    assert fields_of(answer)[b"connection"] == b"close"
    # The connection ends, and nothing else has come over it or over another.
    assert peer.recv_all() == b""
    client.close()
    running.until(lambda: not running.connections)
    server.was_contacted()
    assert server.count == 1


def test_a_refused_head_ends_the_connection_whatever_follows(start, connect) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(plain(b"X-A : b") + plain() + opening())
    answer = client.recv_all()
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not server.was_contacted()


def test_the_refusal_of_a_head_request_has_no_body(start, connect) -> None:
    running, _ = start()
    client = connect(running.port())
    client.send(plain(path=b"/none", method=b"HEAD"))
    answer = client.recv_all()
    assert status_of(answer) == 404
    assert answer.endswith(b"\r\n\r\n")


def test_input_is_never_echoed(start, connect) -> None:
    running, _ = start()
    client = connect(running.port())
    client.send(plain(b"X-Secret: <script>", path=b"/<script>"))
    answer = client.recv_all()
    assert status_of(answer) in (400, 404)
    assert b"script" not in answer


# Pieces, several requests, and time.


def test_a_head_may_come_byte_by_byte(start, connect) -> None:
    running, server = start()
    client = connect(running.port())
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    for byte in opening(b"X-A: b"):
        client.send(bytes((byte,)))
    assert fields_of(server.accept().answer())[b"x-a"] == b"b"
    assert status_of(client.recv_head()) == 101


def test_pipelined_requests_are_answered_in_order(start, connect) -> None:
    running, _server = start(script=respond)
    client = connect(running.port())
    count = 300
    client.send(b"".join(plain(path=b"/http/%03d" % number) for number in range(count)))
    for number in range(count):
        assert status_of(client.recv_head()) == 200
        assert client.recv_exactly(9) == b"/http/%03d" % number


def test_no_next_request_is_looked_at_before_the_answer(start, connect) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(plain(path=b"/http/1") + b"GET / nonsense\r\n\r\n")
    peer = server.accept()
    peer.recv_head()
    assert running.refused == []
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert status_of(client.recv_head()) == 200
    assert status_of(client.recv_all()) == 400


def test_an_upgrade_may_be_pipelined_behind_a_plain_request(start, connect, frame) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(plain() + opening() + frame(1, b"early"))
    first = server.accept()
    first.recv_head()
    first.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert status_of(client.recv_head()) == 200
    second = server.accept()
    second.answer()
    assert status_of(client.recv_head()) == 101
    assert second.recv_frame().payload == b"early"


def test_a_head_that_does_not_end_gets_408(start, connect) -> None:
    running, server = start("head_timeout = 100ms")
    client = connect(running.port())
    client.send(opening()[:-2])
    answer = client.recv_all()
    assert status_of(answer) == 408
    assert [one.status for one in running.refused] == [408]
    assert not server.was_contacted()


def test_the_time_for_a_head_is_absolute(start, connect) -> None:
    running, _ = start("head_timeout = 150ms")
    client = connect(running.port())
    client.send(b"GET /ws HTTP/1.1\r\nX-A: ")
    sent = 0
    while not select.select([client.socket], [], [], 0.01)[0]:
        client.send(b"a")
        sent += 1
    assert status_of(client.recv_all()) == 408
    assert 1 <= sent < 100


def test_an_idle_connection_is_closed_after_keep_alive_without_an_answer(start, connect) -> None:
    running, _ = start("keep_alive = 100ms", script=respond)
    client = connect(running.port())
    client.send(plain())
    assert status_of(client.recv_until(b"\r\n\r\n/http")) == 200
    assert client.recv_all() == b""
    assert not client.was_reset
    assert running.refused == []


def test_a_later_head_has_its_own_time(start, connect) -> None:
    running, _ = start("keep_alive = 30s\nhead_timeout = 100ms", script=respond)
    client = connect(running.port())
    client.send(plain())
    client.recv_until(b"\r\n\r\n/http")
    client.send(b"GET /ht")
    assert status_of(client.recv_all()) == 408
    assert [one.status for one in running.refused] == [408]


def test_a_connection_is_kept_for_a_next_request_within_keep_alive(start, connect) -> None:
    running, _ = start("head_timeout = 100ms", script=respond)
    client = connect(running.port())
    for _ in range(3):
        client.send(plain())
        client.recv_until(b"\r\n\r\n/http")
        # Longer than head_timeout: between requests another time counts.
        assert not select.select([client.socket], [], [], 0.15)[0]


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_a_client_that_has_finished_sending_still_gets_its_file(router, connect, size) -> None:
    content = os.urandom(size)
    running = router(
        """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [route files]
        static = www
        """,
        files={"www/a.bin": content},
    )
    client = connect(running.port())
    client.send(plain(path=b"/a.bin"))
    client.finish()
    answer = client.recv_all()
    assert status_of(answer) == 200
    assert answer.partition(b"\r\n\r\n")[2] == content


# What listeners refuse to do in clear.


def test_a_plain_request_is_redirected_to_https(router, connect, authority) -> None:
    running = redirecting(router, authority)
    client = connect(running.port())
    client.send(b"GET /a/../b%41?c=%2f HTTP/1.1\r\nHost: example.com:8080\r\n\r\n")
    answer = client.recv_all()
    assert status_of(answer) == 308
    assert fields_of(answer)[b"location"] == b"https://example.com:8080/bA?c=%2f"
    assert [one.status for one in running.refused] == [308]


def test_a_plain_upgrade_is_not_redirected_but_refused(router, connect, authority) -> None:
    running = redirecting(router, authority)
    client = connect(running.port())
    client.send(opening())
    assert status_of(client.recv_all()) == 403
    assert [(one.status, one.reason) for one in running.refused] == [(403, "use wss")]


def test_a_plain_request_without_a_host_cannot_be_redirected(router, connect, authority) -> None:
    running = redirecting(router, authority)
    client = connect(running.port())
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert status_of(client.recv_all()) == 400


def redirecting(router, authority, plain: str = "redirect"):
    return router(
        f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        plain = {plain}
        certificates = a.pem
        [route all]
        redirect = https://elsewhere.example/
        """,
        files={"a.pem": authority.issue("example.com")},
    )


@pytest.mark.parametrize("head", [opening(), plain()], ids=["upgrade", "plain"])
def test_http_on_a_listener_for_tls_only_gets_400(router, connect, authority, head) -> None:
    running = redirecting(router, authority, "no")
    client = connect(running.port())
    client.send(head)
    answer = client.recv_all()
    assert status_of(answer) == 400
    assert b"example.com" not in answer
    assert [(one.status, one.reason) for one in running.refused] == [(400, "this port speaks TLS only")]


# Clients that do not stop to send.


@pytest.mark.parametrize(
    "head",
    [
        plain(b"Content-Length: 100000000", path=b"/ws", method=b"POST"),
        plain(b"Content-Length: 100000000", path=b"/none", method=b"POST"),
        plain(b"Content-Length: 100000000", method=b"POST"),
        b"GET / HTTP/1.1\r\nX-A : ",
    ],
    ids=["426", "404", "413", "400"],
)
def test_a_refusal_can_be_read_although_the_client_still_sends(start, connect, head) -> None:
    running, server = start("max_body = 1m")
    client = connect(running.port())
    piece = b"a" * 65536
    client.send(head + b"a: b\r\n\r\n")
    for _ in range(200):
        client.send(piece)
    answer = client.recv_all()
    assert status_of(answer) in (400, 404, 413, 426)
    assert not client.was_reset
    assert not server.was_contacted()


def test_a_head_without_an_end_costs_no_memory(start, connect) -> None:
    running, _ = start()
    client = connect(running.port())
    piece = b"X-A: " + b"a" * 4000 + b"\r\n"
    client.send(b"GET / HTTP/1.1\r\n" + piece)
    before = resident()
    for _ in range(16_000):
        client.send(piece)
    grown = resident() - before
    assert status_of(client.recv_all()) == 431
    assert grown < 4 * 1024 * 1024
