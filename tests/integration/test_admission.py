"""Who is let in, and as whom: PROXY headers, trusted proxies, access lists, limits."""

from __future__ import annotations

import re
import select
import socket
import struct
from pathlib import Path

import pytest

from tests.integration.http import upgrade

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 443\r\n"
TLVS = b"\x02\0\x09a.example" + b"\xea\0\x03abc"
V2 = (
    SIGNATURE
    + b"\x21\x11"
    + struct.pack("!H", 12 + len(TLVS))
    + socket.inet_aton("192.0.2.1")
    + socket.inet_aton("198.51.100.7")
    + struct.pack("!HH", 4711, 443)
    + TLVS
)
V2_SIX = (
    SIGNATURE
    + b"\x21\x21\0\x24"
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + struct.pack("!HH", 4711, 443)
)

REQUIRED = """
[listener main]
endpoint = {endpoint}
proxy_protocol = require
trusted = {trusted}
certificates = localhost.pem
{options}
[tunnel opaque]
match = opaque
pool = app
[route ws]
path = /ws
pool = app
[pool app]
backends = {backend}
"""

LIMITED = """
[listener main]
endpoint = tcp:0:interface=127.0.0.1
certificates = localhost.pem
{options}
[tunnel opaque]
match = opaque
pool = app
{tunnel}
[route ws]
path = /ws
pool = app
{route}
[route go]
path = /go
redirect = https://{{host}}/{{client_ip}}
[pool app]
backends = {backend}
"""


@pytest.fixture
def fronted(router, backend, authority):
    """``fronted(...) -> Running, Backend``: a router whose listener requires PROXY headers."""

    def start(trusted: str = "127.0.0.1", endpoint: str = "tcp:0:interface=127.0.0.1", options: str = ""):
        server = backend()
        text = REQUIRED.format(trusted=trusted, endpoint=endpoint, options=options, backend=server.address)
        return router(text, {"localhost.pem": authority.issue("localhost")}), server

    return start


@pytest.fixture
def limited(router, backend, authority):
    """``limited(options) -> Running, Backend``: a router with these options of its listener, route or tunnel."""

    def start(options: str = "", route: str = "", tunnel: str = ""):
        server = backend()
        text = LIMITED.format(options=options, route=route, tunnel=tunnel, backend=server.address)
        return router(text, {"localhost.pem": authority.issue("localhost")}), server

    return start


def open_through(client, server, extra: bytes = b"") -> dict[bytes, bytes]:
    """Open a session on ``client`` and return the fields that the backend got."""
    client.send(upgrade("inner", more=extra))
    head = server.accept().answer()
    assert client.recv_head().startswith(b"HTTP/1.1 101 ")
    return dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)


def facts_of(running):
    """What the registry was told of the first session or tunnel."""
    running.until(lambda: running.opened)
    return running.opened[0].facts


def refusals(running) -> list[tuple[str, str]]:
    return [(one.stage, one.reason) for one in running.refused]


# The PROXY header.


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_a_header_cut_at_every_offset_tells_the_client(fronted, connect, header) -> None:
    running, server = fronted()
    for cut in range(1, len(header)):
        client = connect(running.port())
        client.send(header[:cut])
        running.settle()
        client.send(header[cut:] + b"\0hello")
        peer = server.accept()
        assert peer.recv_exactly(6) == b"\0hello"
        client.close()
        peer.close()
    running.until(lambda: len(running.closed) == len(header) - 1)
    assert {entry.facts.client for entry in running.opened} == {"192.0.2.1:4711"}
    assert not running.refused


@pytest.mark.parametrize(
    ("header", "ip", "client"),
    [
        (V1, "192.0.2.1", "192.0.2.1:4711"),
        (V2, "192.0.2.1", "192.0.2.1:4711"),
        (V2_SIX, "2001:db8::1", "[2001:db8::1]:4711"),
    ],
    ids=["v1", "v2", "v2 over IPv6"],
)
def test_what_follows_a_header_in_the_same_segment_is_http_of_that_client(fronted, connect, header, ip, client) -> None:
    running, server = fronted()
    one = connect(running.port())
    one.send(header)
    fields = open_through(one, server)
    assert fields[b"X-Forwarded-For"].decode() == ip
    facts = facts_of(running)
    assert (facts.client_ip, facts.client) == (ip, client)


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_tls_follows_a_header(fronted, connect, authority, header) -> None:
    running, server = fronted()
    client = connect(running.port())
    client.send(header)
    client.socket = authority.client_context().wrap_socket(client.socket, server_hostname="localhost")
    fields = open_through(client, server)
    assert (fields[b"X-Forwarded-For"], fields[b"X-Forwarded-Proto"]) == (b"192.0.2.1", b"https")


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        SIGNATURE + b"\x20\0\0\0",
        # The addresses of a LOCAL header are the proxy's own affair.
        SIGNATURE + b"\x20" + V2[len(SIGNATURE) + 1 :],
        SIGNATURE + b"\x21\0\0\0",
        SIGNATURE + b"\x21\x31\0\xd8" + bytes(216),
    ],
    ids=["v1 unknown", "v2 local", "v2 local with addresses", "v2 unspecified", "v2 unix"],
)
def test_a_header_without_a_client_leaves_the_sockets_own_address(fronted, connect, header) -> None:
    running, server = fronted()
    client = connect(running.port())
    client.send(header + b"\0hello")
    assert server.accept().recv_exactly(6) == b"\0hello"
    assert facts_of(running).client_ip == "127.0.0.1"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no PROXY header where one is required"),
        (b"\x16\x03\x01", "no PROXY header where one is required"),
        (b"PROXY TCP4 192.0.2.1" + b" " * 107, "a PROXY line of more than 107 bytes"),
        (b"PROXY TCP4 999.0.2.1 192.0.2.2 1 2\r\n", "a PROXY line with an address that is none"),
        (SIGNATURE + b"\x21\x11\0\x04abcd", "a PROXY header of 20 bytes, 28 are needed for its addresses"),
        (
            SIGNATURE + b"\x21\x11\0\x10" + bytes(12) + b"\x02\0\x09a",
            "a PROXY header with a TLV that overruns it",
        ),
    ],
    ids=["http", "tls", "v1 too long", "v1 malformed", "v2 cut short", "tlv overrun"],
)
def test_what_is_no_header_ends_the_connection_without_a_word(fronted, connect, said, reason) -> None:
    running, server = fronted()
    client = connect(running.port())
    client.send(said)
    assert client.recv_all() == b""
    assert refusals(running) == [("proxy", reason)]
    assert not server.was_contacted()


def test_a_header_must_be_whole_before_the_sniff_timeout(fronted, connect) -> None:
    running, _ = fronted(options="sniff_timeout = 200ms")
    client = connect(running.port())
    client.send(V2[:20])
    silent = connect(running.port())
    assert (client.recv_all(), silent.recv_all()) == (b"", b"")
    running.until(lambda: len(running.refused) == 2)
    assert refusals(running) == [("proxy", "no whole PROXY header in 0.2 s")] * 2


def test_the_same_deadline_holds_for_what_follows_the_header(fronted, connect) -> None:
    running, _ = fronted(options="sniff_timeout = 200ms")
    client = connect(running.port())
    client.send(V1 + b"\x16")
    assert client.recv_all() == b""
    assert refusals(running) == [("sniff", "no verdict in 0.2 s")]


@pytest.mark.parametrize(
    ("at_once", "said"), [(b"", b"PROXY TCP4 " + b"1" * 80), (V1[:-14], V1[-14:] + b"M" * 14)], ids=["header", "both"]
)
def test_byte_after_byte_a_client_cannot_stretch_that_deadline(fronted, connect, at_once, said) -> None:
    """Each byte comes long before the deadline; if anything began it anew, all of them would get through."""
    running, _ = fronted(options="sniff_timeout = 400ms")
    client = connect(running.port())
    client.send(at_once)
    for byte in said:
        client.send(bytes([byte]))
        if select.select([client.socket], [], [], 0.02)[0]:
            break
    else:
        pytest.fail("the deadline does not end")
    assert client.recv_all() == b""
    assert len(running.refused) == 1


def test_who_leaves_within_a_header_is_told_to_the_log_and_who_said_nothing_is_not(fronted, connect) -> None:
    running, _ = fronted()
    silent = connect(running.port())
    silent.finish()
    assert silent.recv_all() == b""
    client = connect(running.port())
    client.send(V1[:9])
    client.finish()
    assert client.recv_all() == b""
    running.until(lambda: running.refused)
    assert refusals(running) == [("proxy", "the connection ended within its PROXY header")]


def test_a_peer_that_is_not_trusted_is_closed_and_its_header_never_read(fronted, connect) -> None:
    running, server = fronted(trusted="192.0.2.0/24")
    client = connect(running.port())
    assert client.recv_all() == b""
    running.until(lambda: not running.connections)
    again = connect(running.port())
    again.recv_all()
    running.until(lambda: len(running.refused) == 2)
    assert set(refusals(running)) == {("proxy", "a peer that is not trusted must not send PROXY headers")}
    assert [one.repeated for one in running.refused] == [False, True]
    assert not server.was_contacted()


def test_where_no_header_is_required_one_is_opaque(limited, connect) -> None:
    running, server = limited()
    client = connect(running.port())
    client.send(V2 + b"\0hello")
    assert server.accept().recv_exactly(len(V2) + 6) == V2 + b"\0hello"
    assert facts_of(running).client_ip == "127.0.0.1"


def test_whoever_may_connect_to_a_unix_socket_may_announce_clients(fronted, connect, tmp_path) -> None:
    _, server = fronted(endpoint="unix:r.sock:mode=600", trusted="")
    assert (tmp_path / "r.sock").stat().st_mode & 0o777 == 0o600
    client = connect(str(tmp_path / "r.sock"))
    client.send(V1)
    assert open_through(client, server)[b"X-Forwarded-For"] == b"192.0.2.1"


# Access lists.


def test_a_listener_turns_away_by_address(limited, connect) -> None:
    running, server = limited("deny = 127.0.0.0/8")
    assert connect(running.port()).recv_all() == b""
    running.until(lambda: running.refused)
    assert refusals(running) == [("accept", "this address is not allowed here")]
    assert not server.was_contacted()


def test_a_listeners_lists_look_at_the_announced_client(fronted, connect) -> None:
    running, server = fronted(options="allow = 2001:db8::/32")
    client = connect(running.port())
    client.send(V1 + b"\0hello")
    assert client.recv_all() == b""
    other = connect(running.port())
    other.send(V2_SIX + b"\0hello")
    assert server.accept().recv_exactly(6) == b"\0hello"
    assert [(one.client, one.stage) for one in running.refused] == [("192.0.2.1:4711", "accept")]


def test_a_route_answers_403_to_who_is_not_on_its_list(limited, connect) -> None:
    running, server = limited(route="allow = 192.0.2.0/24")
    client = connect(running.port())
    client.send(upgrade())
    answer = client.recv_all()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"Connection: close" in answer
    assert [(one.rule, one.status) for one in running.refused] == [("ws", 403)]
    assert not server.was_contacted()


def test_a_tunnel_closes_who_is_not_on_its_list(limited, connect) -> None:
    running, server = limited(tunnel="deny = 127.0.0.1")
    client = connect(running.port())
    client.send(b"\0hello")
    assert client.recv_all() == b""
    assert [(one.stage, one.rule) for one in running.refused] == [("tunnel", "opaque")]
    assert not server.was_contacted()


# Limits.


def retry_after(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 429 "), answer
    assert b"Connection: close" in answer
    [seconds] = re.findall(rb"Retry-After: (\d+)", answer)
    return int(seconds)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_an_address_gets_its_connections_back_when_they_end(limited, connect, authority, open_session, tls) -> None:
    running, server = limited("max_connections_per_ip = 2")
    more = {"tls": authority.client_context(), "name": "localhost"} if tls else {}
    for _ in range(3):
        client, peer = open_session(running, server, "/ws", **more)
        other, _ = open_session(running, server, "/ws", **more)
        third = connect(running.port())
        third.send(upgrade())
        assert retry_after(third.recv_all()) == 1
        third.close()
        # One ends in order, the other by a reset.
        client.close()
        peer.close()
        other.reset()
        running.until(lambda: not running.connections)
    assert {(one.stage, one.status) for one in running.refused} == {("accept", 429)}
    assert [one.repeated for one in running.refused] == [False, True, True]


def test_however_a_connection_ends_its_place_is_given_back(limited, connect, authority) -> None:
    running, server = limited("max_connections_per_ip = 1\nsniff_timeout = 100ms")
    place = running.port()

    def in_time(client) -> None:
        client.recv_all()

    def told(data: bytes):
        def tell(client) -> None:
            client.send(data)
            client.recv_all()

        return tell

    def tunnelled(client) -> None:
        client.send(b"\0hello")
        peer = server.accept()
        peer.recv_exactly(6)
        peer.close()
        client.recv_all()

    ways = [
        in_time,
        told(b"\x16\x03\x01\x02\x00\x02\x00\x00\x00"),
        told(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"),
        told(b"GET  \r\n\r\n"),
        tunnelled,
        lambda client: client.reset(),
        lambda client: client.finish(),
    ]
    for way in ways:
        client = connect(place)
        running.until(lambda: running.connections == 1)
        way(client)
        client.close()
        running.until(lambda: not running.connections)
    client = connect(place, tls=authority.client_context(), name="localhost")
    client.close()
    running.until(lambda: not running.connections)
    assert all(one.stage != "accept" for one in running.refused)
    admission = running.service.listeners[0].admission
    assert len(admission._connections) == 0


def test_connections_come_at_a_rate_and_the_next_is_told_when(limited, connect) -> None:
    running, _ = limited("connections_per_ip = 2/m burst=1")
    connect(running.port())
    client = connect(running.port())
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert 28 <= retry_after(client.recv_all()) <= 30
    tls = connect(running.port())
    tls.send(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00")
    assert tls.recv_all() == b""
    opaque = connect(running.port())
    opaque.send(b"\0hello")
    assert opaque.recv_all() == b""
    gone = connect(running.port())
    running.until(lambda: running.service.listeners[0].courtesies)
    gone.reset()
    running.until(lambda: len(running.refused) == 4)
    assert [one.status for one in running.refused] == [429, None, None, None]
    assert {one.reason for one in running.refused} == {"too many new connections of one address"}
    for one in (client, tls, opaque):
        one.close()
    running.until(lambda: running.service.listeners[0].courtesies == 0)


@pytest.mark.interpreted
def test_only_some_at_a_time_are_told_of_the_limit_and_for_a_moment_only(limited, connect, monkeypatch) -> None:
    monkeypatch.setattr("wsrouter.listener.preamble.COURTESIES", 2)
    monkeypatch.setattr("wsrouter.listener.preamble.COURTESY", 0.1)
    running, _ = limited("max_connections_per_ip = 1")
    connect(running.port())
    running.until(lambda: running.connections == 1)
    listened_to = [connect(running.port()) for _ in range(2)]
    running.until(lambda: running.connections == 3)
    over = connect(running.port())
    assert over.recv_all() == b""
    for client in listened_to:
        assert client.recv_all() == b""
        client.close()
    running.until(lambda: running.connections == 1)
    client = connect(running.port())
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert retry_after(client.recv_all()) == 1


def test_limits_count_announced_clients_and_not_the_proxy(fronted, connect) -> None:
    running, server = fronted(options="max_connections_per_ip = 1")
    clients = []
    for header in (V1, V2_SIX, V1):
        client = connect(running.port())
        client.send(header + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        clients.append(client)
        running.settle()
    assert retry_after(clients[2].recv_all()) == 1
    assert [one.client for one in running.refused if one.stage == "accept"] == ["192.0.2.1:4711"]
    assert not server.was_contacted()


def test_a_network_of_64_bits_counts_as_one_address(fronted, connect) -> None:
    running, _ = fronted(options="max_connections_per_ip = 1")
    clients = []
    for ip in ("2001:db8::1", "2001:db8:0:0:ffff::2", "2001:db8:0:1::1"):
        client = connect(running.port())
        client.send(f"PROXY TCP6 {ip} 2001:db8::7 4711 443\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        clients.append(client)
        running.settle()
    assert retry_after(clients[1].recv_all()) == 1
    # The third was let in, and found no route.
    assert clients[2].recv_all().startswith(b"HTTP/1.1 404 ")
    assert [one.client for one in running.refused if one.stage == "accept"] == ["[2001:db8::ffff:0:0:2]:4711"]


def test_handshakes_come_at_a_rate_before_any_backend_is_asked(limited, connect) -> None:
    running, server = limited("handshakes_per_ip = 1/m")
    open_through(connect(running.port()), server)
    client = connect(running.port())
    client.send(upgrade())
    assert 55 <= retry_after(client.recv_all()) <= 60
    assert server.count == 1
    assert [(one.stage, one.rule, one.status) for one in running.refused] == [("http", "ws", 429)]
    plain = connect(running.port())
    plain.send(b"GET /go HTTP/1.1\r\nHost: a\r\n\r\n")
    assert plain.recv_head().startswith(b"HTTP/1.1 302 ")


# Proxies that speak HTTP.

SPOOFED = (
    b"X-Forwarded-For: 6.6.6.6, 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a.example\r\n"
    b"X-Forwarded-Port: 8443\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n"
)


def test_what_an_untrusted_peer_says_of_the_client_is_replaced(limited, connect) -> None:
    running, server = limited("trusted = 192.0.2.0/24", route="set_header = X-Client: {client_ip} {scheme} {host}")
    fields = open_through(connect(running.port()), server, SPOOFED)
    assert fields[b"X-Forwarded-For"] == b"127.0.0.1"
    assert fields[b"X-Forwarded-Proto"] == b"http"
    assert fields[b"X-Forwarded-Host"] == b"inner"
    assert fields[b"Forwarded"] == b"for=127.0.0.1;host=inner;proto=http"
    assert fields[b"X-Client"] == b"127.0.0.1 http inner"
    assert not {b"X-Real-IP", b"X-Forwarded-Port"} & fields.keys()
    assert facts_of(running).client_ip == "127.0.0.1"


def test_a_trusted_proxy_is_believed_as_far_as_its_own_word_goes(limited, connect) -> None:
    running, server = limited("trusted = 127.0.0.1", route="set_header = X-Client: {client_ip} {scheme} {host}")
    fields = open_through(connect(running.port()), server, SPOOFED)
    assert fields[b"X-Forwarded-For"] == b"192.0.2.1, 127.0.0.1"
    assert fields[b"X-Forwarded-Proto"] == b"https"
    assert fields[b"X-Forwarded-Host"] == b"a.example"
    assert fields[b"X-Forwarded-Port"] == b"8443"
    assert fields[b"X-Real-IP"] == b"192.0.2.1"
    assert fields[b"X-Client"] == b"192.0.2.1 https a.example"
    assert b"6.6.6.6" not in b"".join(fields.values())
    facts = facts_of(running)
    assert (facts.client_ip, facts.client) == ("192.0.2.1", "192.0.2.1")


def test_a_trusted_proxy_may_tell_the_client_by_its_real_address_alone(limited, connect) -> None:
    running, server = limited("trusted = 127.0.0.1")
    fields = open_through(connect(running.port()), server, b"X-Real-IP: 192.0.2.1\r\n")
    assert (fields[b"X-Real-IP"], fields[b"X-Forwarded-For"]) == (b"192.0.2.1", b"192.0.2.1, 127.0.0.1")
    assert facts_of(running).client_ip == "192.0.2.1"


def test_a_headers_rule_goes_before_what_a_trusted_proxy_says(limited, connect) -> None:
    running, server = limited(
        "trusted = 127.0.0.1", route="set_header =\n    X-Real-IP: {client_ip}!\n    X-Forwarded-Port:"
    )
    fields = open_through(connect(running.port()), server, SPOOFED)
    assert fields[b"X-Real-IP"] == b"192.0.2.1!"
    assert b"X-Forwarded-Port" not in fields


def test_each_request_of_a_trusted_proxy_has_a_client_of_its_own(limited, connect) -> None:
    running, _ = limited("trusted = 127.0.0.1")
    client = connect(running.port())
    for ip in (b"192.0.2.1", b"2001:db8::1"):
        client.send(b"GET /go HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %b\r\n\r\n" % ip)
        assert b"Location: https://a/%b\r\n" % ip in client.recv_until(b"Found\n")
    client.send(b"GET /none HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n")
    assert client.recv_all().startswith(b"HTTP/1.1 404 ")
    assert [one.client for one in running.answered] == ["192.0.2.1", "2001:db8::1"]
    assert [one.client for one in running.refused] == ["192.0.2.9"]


def test_limits_and_lists_hold_for_the_client_behind_a_trusted_proxy(limited, connect) -> None:
    running, server = limited(
        "trusted = 127.0.0.1\nmax_connections_per_ip = 1\nhandshakes_per_ip = 1/m", route="deny = 192.0.2.66"
    )
    # The proxy's own connections are not limited.
    open_through(connect(running.port()), server, b"X-Forwarded-For: 192.0.2.1\r\n")
    open_through(connect(running.port()), server, b"X-Forwarded-For: 192.0.2.2\r\n")
    for ip, status in ((b"192.0.2.1", b"429"), (b"192.0.2.66", b"403")):
        client = connect(running.port())
        client.send(upgrade(more=b"X-Forwarded-For: %b\r\n" % ip))
        assert client.recv_all().startswith(b"HTTP/1.1 %b " % status)
    assert [one.client for one in running.refused] == ["192.0.2.1", "192.0.2.66"]


def test_who_came_by_https_to_a_trusted_proxy_is_not_redirected(limited, connect) -> None:
    running, server = limited("trusted = 127.0.0.1\nplain = redirect", route="origins = same")
    said = b"X-Forwarded-Proto: %b\r\nX-Forwarded-Host: a.example\r\nOrigin: https://a.example\r\n"
    open_through(connect(running.port()), server, said % b"https")
    client = connect(running.port())
    client.send(upgrade("inner", more=said % b"http"))
    assert client.recv_all().startswith(b"HTTP/1.1 403 ")
    client = connect(running.port())
    client.send(b"GET /ws HTTP/1.1\r\nHost: inner\r\n" + said % b"http" + b"\r\n")
    assert b"Location: https://a.example/ws\r\n" in client.recv_all()


def test_a_proxy_on_a_unix_socket_is_believed_where_anybody_is(router, backend, connect, tmp_path) -> None:
    server = backend()
    text = """
        [listener main]
        endpoint = unix:r.sock
        {trusted}
        [route ws]
        path = /ws
        pool = app
        [pool app]
        backends = {backend}
    """
    running = router(text.format(trusted="trusted = 127.0.0.1", backend=server.address))
    fields = open_through(connect(str(tmp_path / "r.sock")), server, SPOOFED)
    assert (fields[b"X-Forwarded-For"], facts_of(running).client_ip) == (b"192.0.2.1", "192.0.2.1")
    running.call(running.service.listeners[0].stop)
    router(text.format(trusted="", backend=server.address))
    fields = open_through(connect(str(tmp_path / "r.sock")), server, SPOOFED)
    assert b"X-Forwarded-For" not in fields


# IPv6.


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_a_dual_stack_listener_knows_ipv4_clients_by_their_ipv4_address(router, backend, connect) -> None:
    server = backend()
    running = router(f"""
        [listener main]
        endpoint = tcp6:0
        deny = 127.0.0.0/8
        [tunnel opaque]
        match = opaque
        pool = app
        [pool app]
        backends = {server.address}
    """)
    assert connect(running.port()).recv_all() == b""
    assert [one.stage for one in running.refused] == ["accept"]
    assert running.refused[0].client.startswith("127.0.0.1:")
    with socket.create_connection(("::1", running.port()), 5) as six:
        six.sendall(b"\0hello")
        assert server.accept().recv_exactly(6) == b"\0hello"
    assert facts_of(running).client.startswith("[::1]:")
