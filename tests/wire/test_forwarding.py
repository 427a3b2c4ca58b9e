from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.policy.networks import Networks
from wsrouter.wire.forwarding import (
    ClientFacts,
    Pair,
    client_answer,
    compile_template,
    fill,
    plain_fields,
    response_fields,
    said_behind,
    upgrade_head,
    with_field,
)
from wsrouter.wire.head import RequestHead, cut_head, parse_request, parse_response
from wsrouter.wire.opening import Accepted, Upgrade, check_upgrade

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
CLIENT = ClientFacts("192.0.2.1", 50000, "https", "example.com:8080")
OURS = [
    (b"X-Forwarded-Proto", b"https"),
    (b"X-Forwarded-For", b"192.0.2.1"),
    (b"X-Forwarded-Host", b"example.com:8080"),
    (b"Forwarded", b'for=192.0.2.1;host="example.com:8080";proto=https'),
]
PLAIN = Upgrade(KEY, (), ())


def request(*lines: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: example.com:8080") -> RequestHead:
    return parse_request(b"\r\n".join([line, *([host] if host else []), *lines, b"", b""]))


def passed(*lines: bytes, set_headers: tuple[Pair, ...] = ()) -> list[Pair]:
    """What of a plain request's fields goes on, without Host and our own."""
    pairs = plain_fields(request(*lines), CLIENT, set_headers)
    assert pairs[0] == (b"Host", b"example.com:8080")
    return [pair for pair in pairs[1:] if pair not in OURS]


def test_an_opening_handshake_is_written_anew_for_the_backend() -> None:
    head = request(
        b"Connection: keep-alive, Upgrade",
        b"Upgrade: h2c, websocket",
        b"sec-websocket-KEY: " + KEY,
        b"Sec-WebSocket-Version: 13",
        b"Origin: https://example.com:8080",
        b"Cookie:  a=1; b=\xc3\x85  ",
        b"Cookie: c=2",
        b"Sec-WebSocket-Protocol: chat.v2, chat.v1",
        b"Sec-WebSocket-Extensions: x-frames, permessage-deflate; client_max_window_bits, permessage-deflate",
        b"X-Forwarded-For: 10.0.0.1",
        line=b"GET /app/./ws?x=%41 HTTP/1.1",
    )
    assert upgrade_head(head, check_upgrade(head), b"/ws?x=%41", CLIENT, ()) == (
        b"GET /ws?x=%41 HTTP/1.1\r\n"
        b"Host: example.com:8080\r\n"
        b"sec-websocket-KEY: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Origin: https://example.com:8080\r\n"
        b"Cookie: a=1; b=\xc3\x85\r\n"
        b"Cookie: c=2\r\n"
        b"Sec-WebSocket-Protocol: chat.v2, chat.v1\r\n"
        b"X-Forwarded-Proto: https\r\n"
        b"X-Forwarded-For: 192.0.2.1\r\n"
        b"X-Forwarded-Host: example.com:8080\r\n"
        b'Forwarded: for=192.0.2.1;host="example.com:8080";proto=https\r\n'
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, permessage-deflate\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"\r\n"
    )


def test_extensions_that_are_no_deflate_leave_no_field() -> None:
    head = request(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Extensions: x-frames")
    written = parse_request(upgrade_head(head, PLAIN, b"/", CLIENT, ()))
    assert written.all(b"sec-websocket-extensions") == []


def test_a_route_may_take_compression_away() -> None:
    head = request(b"Connection: Upgrade", b"Upgrade: websocket")
    offered = PLAIN._replace(extensions=(b"permessage-deflate",))
    written = upgrade_head(head, offered, b"/", CLIENT, [(b"Sec-WebSocket-Extensions", b"")])
    assert b"permessage-deflate" not in written


@pytest.mark.parametrize(
    "field",
    [
        b"Connection: keep-alive",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Trailer: X",
        b"Transfer-Encoding: chunked",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABk",
        b"Content-Length: 5",
        b"Expect: 100-continue",
        b"Forwarded: for=10.0.0.1",
        b"forwarded: for=10.0.0.1",
        b"X-Forwarded-For: 10.0.0.1",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: evil",
        b"X-Forwarded-Port: 1",
        b"X-Forwarded-Client-Cert: x",
        b"X-FORWARDED-anything: x",
        b"X-Real-IP: 10.0.0.1",
        b"X_Forwarded_For: 10.0.0.1",
        b"X-Forwarded_For: 10.0.0.1",
        b"X_Real_IP: 10.0.0.1",
        b"Transfer_Encoding: x",
    ],
)
def test_hop_by_hop_and_spoofed_fields_end_here(field: bytes) -> None:
    assert passed(b"A: 1", field, b"B: 2") == [(b"A", b"1"), (b"B", b"2")]


def test_end_to_end_fields_pass_byte_for_byte_and_in_order() -> None:
    lines = [b"b: 2", b"A:", b"b: \xff\t\x85", b"snake_case: x", b"X-Forward: y", b"Authorization: z", b"If-Match: *"]
    expected = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    assert passed(*lines) == expected


def test_connection_names_fields_that_end_here_too() -> None:
    assert passed(b"Connection: close, X-A", b"Connection: x-b", b"X-A: 1", b"x-B: 2", b"X-C: 3") == [(b"X-C", b"3")]


def test_connection_cannot_take_away_what_the_router_or_the_handshake_needs() -> None:
    head = request(
        b"Connection: Upgrade, X-Forwarded-For, X-Forwarded-Proto, Forwarded, Host, X-Client, Sec-WebSocket-Key",
        b"Connection: sec-websocket-protocol, sec-websocket-version",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Key: " + KEY,
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Protocol: a",
    )
    written = parse_request(upgrade_head(head, check_upgrade(head), b"/", CLIENT, [(b"X-Client", b"me")]))
    assert written.host == "example.com:8080"
    assert written.all(b"x-client") == [b"me"]
    assert check_upgrade(written) == check_upgrade(head)
    for name, value in OURS:
        assert written.all(name.lower()) == [value]


@pytest.mark.parametrize(
    ("client", "forwarded", "plain"),
    [
        (CLIENT, b'for=192.0.2.1;host="example.com:8080";proto=https', b"192.0.2.1"),
        (ClientFacts("192.0.2.1", 1, "http", "a"), b"for=192.0.2.1;host=a;proto=http", b"192.0.2.1"),
        (ClientFacts("2001:db8::1", 1, "http", "a"), b'for="[2001:db8::1]";host=a;proto=http', b"2001:db8::1"),
        (ClientFacts("::1", 1, "http", "[::1]"), b'for="[::1]";host="[::1]";proto=http', b"::1"),
        (ClientFacts("192.0.2.1", 1, "http", ""), b"for=192.0.2.1;proto=http", b"192.0.2.1"),
        (ClientFacts("", 0, "http", "a"), b"for=unknown;host=a;proto=http", None),
    ],
)
def test_forwarded_is_written_as_rfc_7239_says(client: ClientFacts, forwarded: bytes, plain: bytes | None) -> None:
    written = dict(plain_fields(request(), client, ())[1:])
    assert written[b"Forwarded"] == forwarded
    assert written.get(b"X-Forwarded-For") == plain
    assert written.get(b"X-Forwarded-Host") == (client.host.encode() or None)

    # Most opening handshakes are written another way, twice: what is worked out for a host is remembered.
    for _ in range(2):
        head = upgrade_head(request(b"Connection: Upgrade", b"Upgrade: websocket"), PLAIN, b"/", client, ())
        opening = [field[1:] for field in parse_request(head).fields]
        assert opening == [(b"Host", b"example.com:8080"), *written.items(), *opening[-2:]]


def test_set_headers_replace_add_and_remove() -> None:
    lines = [b"x-client: spoof", b"X_Client: spoof", b"Cookie: a", b"Keep: 1"]
    rules = ((b"X-Client", b"me"), (b"Cookie", b""), (b"New", b"1"), (b"New", b"2"))
    assert passed(*lines, set_headers=rules) == [(b"Keep", b"1"), (b"X-Client", b"me"), (b"New", b"1"), (b"New", b"2")]


def test_set_headers_rule_over_the_routers_own_fields_and_host() -> None:
    rules = [(b"x-forwarded-for", b""), (b"Forwarded", b"for=_hidden"), (b"host", b"inner"), (b"X-Real-IP", b"1.2.3.4")]
    assert plain_fields(request(b"X-Real-IP: spoof"), CLIENT, rules) == [OURS[0], OURS[2], *rules[1:]]


def test_set_headers_cannot_take_host_away() -> None:
    assert passed(b"A: 1", set_headers=((b"Host", b""),)) == [(b"A", b"1")]


def test_a_name_that_the_template_uses_must_be_given() -> None:
    with pytest.raises(KeyError):
        fill("{unknown}", {"known": "x"})


@pytest.mark.parametrize("name", [b"Connection", b"upgrade", b"Transfer-Encoding", b"Content-Length"])
def test_set_headers_cannot_break_the_framing(name: bytes) -> None:
    assert passed(b"A: 1", set_headers=((name, b"x"),)) == [(b"A", b"1")]


def test_the_authority_of_an_absolute_target_becomes_the_host() -> None:
    head = request(b"A: 1", line=b"GET http://other:81/ HTTP/1.1")
    pairs = plain_fields(head, CLIENT, ())
    assert pairs[:2] == [(b"Host", b"other:81"), (b"A", b"1")]


def test_http_1_0_without_a_host_gets_none() -> None:
    head = request(b"A: 1", line=b"GET / HTTP/1.0", host=b"")
    assert plain_fields(head, CLIENT, ()) == [(b"A", b"1"), *OURS]


# Back to the client


def test_answers_lose_their_hop_by_hop_fields_only() -> None:
    head = parse_response(
        b"HTTP/1.1 401 Unauthorized\r\nConnection: keep-alive, X-Hop, Content-Length\r\nKeep-Alive: timeout=5\r\n"
        b"X-Hop: 1\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\n"
    )
    assert response_fields(head.fields) == [
        (b"Set-Cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"WWW-Authenticate", b"Basic"),
        (b"Content-Length", b"2"),
    ]


def test_a_101_passes_with_its_cookies_and_its_own_reason() -> None:
    head = parse_response(
        b"HTTP/1.1 101 Web Socket\r\nconnection: keep-alive, upgrade, x-hop, Sec-WebSocket-Accept\r\nX-Hop: 1\r\n"
        b"upgrade: WebSocket\r\nSec-WebSocket-Accept: abc\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Keep-Alive: timeout=5\r\nContent-Length: 0\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n\r\n"
    )
    assert client_answer(head, Accepted("chat", True)) == (
        b"HTTP/1.1 101 Web Socket\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: abc\r\n"
        b"Set-Cookie: a=1\r\n"
        b"Set-Cookie: b=2\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"\r\n"
    )


def test_a_101_without_a_reason_gets_one_and_loses_an_empty_list_of_extensions() -> None:
    head = parse_response(b"HTTP/1.1 101 \r\nConnection: Upgrade\r\nSec-WebSocket-Extensions:\r\nA: 1\r\n\r\n")
    assert client_answer(head, Accepted(None, False)) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nA: 1\r\n\r\n"
    )


# Templates


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", b""),
        ("plain", b"plain"),
        ("{client_ip}", b"192.0.2.1"),
        ("a{client_ip}b{path}c{client_ip}", b"a192.0.2.1b/{x}c192.0.2.1"),
        ("{{client_ip}}", b"{client_ip}"),
        ("{{{client_ip}}}", b"{192.0.2.1}"),
        ("}}{{", b"}{"),
        ("\xe9{name}", "\xe9\xe5\t".encode()),
        ("[{evil}]", b"[aX: bc]"),
        ("{broken}", b"?"),
    ],
)
def test_templates_are_filled_in(template: str, text: bytes) -> None:
    fields = {
        "client_ip": "192.0.2.1",
        "path": "/{x}",
        "name": "\xe5\t",
        "evil": "a\r\nX: b\0\x1b\x7fc",
        "broken": "\ud800",
    }
    assert fill(template, fields) == text


@pytest.mark.parametrize("template", ["{", "}", "a{b", "{}", "{A}", "{a b}", "{a}}", "{{a}"])
def test_a_lone_brace_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="lone"):
        compile_template(template)


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_value_breaks_out_of_its_line(literal: str, value: str) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    filled = fill("X: {v}", {"v": value})
    assert not {0, 10, 13} & set(filled)
    assert fill(escaped, {}) == literal.encode("utf-8", "replace")


# Whatever comes


NAMES = st.text("abxyzXY_-", min_size=1, max_size=8).map(str.encode)
VALUES = st.binary(max_size=12).map(lambda raw: bytes(c for c in raw if c == 9 or (c >= 32 and c != 127)).strip())


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_rewriting_and_reading_again_gives_the_same_end_to_end_fields(fields: list[Pair]) -> None:
    lines = [name + b": " + value for name, value in fields]
    head = request(*lines, b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: " + KEY)
    written = upgrade_head(head, PLAIN, b"/x?y", CLIENT, ())
    assert cut_head(written) == len(written)
    again = parse_request(written)
    assert again.target == b"/x?y"
    assert again.upgrades == (b"websocket",)
    pairs = [(name, value) for _, name, value in again.fields if (name, value) not in OURS]
    handshake = [(b"Sec-WebSocket-Key", KEY), (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]
    assert pairs == [(b"Host", b"example.com:8080"), *fields, *handshake]


# Behind a proxy that is trusted

TRUSTED = Networks([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])


def told(peer: str, *lines: bytes) -> dict[bytes, bytes]:
    """The router's own fields for a request of ``peer``."""
    head = request(*lines, host=b"Host: inner:81")
    client = ClientFacts(peer, 1, "http", head.host, said_behind(head, peer, TRUSTED))
    pairs = plain_fields(head, client, ())
    assert pairs[0] == (b"Host", b"inner:81")
    return dict(pairs[1:])


SAID = [b"X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.1", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: a.example"]


def test_what_a_trusted_proxy_says_is_written_anew_with_itself_behind_it() -> None:
    assert told("10.0.0.9", *SAID, b"X-Forwarded-Server: x") == {
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-For": b"192.0.2.1, 10.0.0.1, 10.0.0.9",
        b"X-Forwarded-Host": b"a.example",
        b"Forwarded": b"for=192.0.2.1;host=a.example;proto=https, for=10.0.0.1, "
        b'for=10.0.0.9;host="inner:81";proto=http',
    }


def test_a_port_and_a_real_address_are_told_where_a_trusted_proxy_tells_them() -> None:
    without = told("10.0.0.9", *SAID)
    # The real address is the one that is believed, whatever stood there.
    assert told("10.0.0.9", *SAID, b"X-Forwarded-Port: 8443", b"X-Real-IP: 6.6.6.6") == without | {
        b"X-Forwarded-Port": b"8443",
        b"X-Real-IP": b"192.0.2.1",
    }
    assert told("10.0.0.9", *SAID, b"X-Forwarded-Port: x") == without
    assert told("10.0.0.9", b"X-Real-IP: 192.0.2.1") == {
        b"X-Forwarded-Proto": b"http",
        b"X-Forwarded-For": b"192.0.2.1, 10.0.0.9",
        b"X-Real-IP": b"192.0.2.1",
        b"X-Forwarded-Host": b"inner:81",
        b"Forwarded": b'for=192.0.2.1, for=10.0.0.9;host="inner:81";proto=http',
    }
    assert told("10.0.0.9", b"X-Real-IP: unknown")[b"X-Real-IP"] == b"10.0.0.9"


def test_forwarded_of_a_trusted_proxy_is_read_too() -> None:
    assert told("fd00::9", b'Forwarded: for="[2001:db8::1]:99";proto=https, for=10.0.0.1;host=other') == {
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-For": b"2001:db8::1, 10.0.0.1, fd00::9",
        b"X-Forwarded-Host": b"inner:81",
        b"Forwarded": b'for="[2001:db8::1]";proto=https, for=10.0.0.1, for="[fd00::9]";host="inner:81";proto=http',
    }


def test_a_trusted_proxy_that_names_no_client_is_the_client() -> None:
    assert told("10.0.0.9", b"X-Forwarded-Proto: https") == {
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-For": b"10.0.0.9",
        b"X-Forwarded-Host": b"inner:81",
        b"Forwarded": b'for=10.0.0.9;host="inner:81";proto=https',
    }


@pytest.mark.parametrize("peer", ["192.0.2.9", "2001:db8::9"])
def test_what_an_untrusted_peer_says_changes_no_byte(peer: str) -> None:
    assert said_behind(request(*SAID), peer, TRUSTED) is None
    assert told(peer, *SAID) == told(peer)


@pytest.mark.parametrize("host", ["inner:81", "inner", ""])
@pytest.mark.parametrize("peer", ["10.0.0.9", "fd00::9"])
def test_a_trusted_proxy_that_says_nothing_is_a_client_like_any_other(peer: str, host: str) -> None:
    client = ClientFacts(peer, 1, "http", host)
    silent = client._replace(behind=said_behind(request(), peer, TRUSTED))
    assert silent.behind is not None
    assert plain_fields(request(), silent, ()) == plain_fields(request(), client, ())


def told_on_a_unix_socket(*lines: bytes) -> dict[bytes, bytes]:
    head = request(*lines, host=b"Host: inner:81")
    return dict(plain_fields(head, ClientFacts("", 0, "http", head.host, said_behind(head, "unix", TRUSTED)), ())[1:])


def test_a_proxy_on_a_unix_socket_has_no_address_to_tell() -> None:
    assert told_on_a_unix_socket(*SAID) == {
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-For": b"192.0.2.1, 10.0.0.1",
        b"X-Forwarded-Host": b"a.example",
        b"Forwarded": b'for=192.0.2.1;host=a.example;proto=https, for=10.0.0.1, for=unknown;host="inner:81";proto=http',
    }
    assert told_on_a_unix_socket(b"X-Real-IP: 192.0.2.1")[b"X-Real-IP"] == b"192.0.2.1"
    assert b"X-Real-IP" not in told_on_a_unix_socket(b"X-Real-IP: unknown")
    assert told_on_a_unix_socket() == {
        b"X-Forwarded-Proto": b"http",
        b"X-Forwarded-Host": b"inner:81",
        b"Forwarded": b'for=unknown;host="inner:81";proto=http',
    }


def test_a_field_is_put_at_the_end_of_a_head() -> None:
    assert with_field(b"HTTP/1.1 101 .\r\nA: b\r\n\r\n", (b"C", b"d")) == b"HTTP/1.1 101 .\r\nA: b\r\nC: d\r\n\r\n"
