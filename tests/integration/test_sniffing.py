"""The first bytes of a connection, as they come over a socket: cut, slow, lying, or absent."""

from __future__ import annotations

import hashlib
import ssl
import time

import pytest
from OpenSSL import SSL

TERMINATED = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    sniff_timeout = 5s
    certificates = *.pem
    [route all]
    pool = app
    [pool app]
    backends = {backend}
"""

PASSED = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
    [tunnel a]
    match = tls sni=a.example
    pool = app
    [tunnel rest]
    match = any
    pool = other
    [pool app]
    backends = {backend}
    [pool other]
    backends = {other}
"""


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def vec16(data: bytes) -> bytes:
    return u16(len(data)) + data


def extension(kind: int, data: bytes) -> bytes:
    return u16(kind) + vec16(data)


def server_name(*names: bytes) -> bytes:
    return extension(0, vec16(b"".join(b"\0" + vec16(name) for name in names)))


def message(extensions: bytes) -> bytes:
    """A ClientHello for TLS 1.2 that OpenSSL takes (RFC 5246 7.4.1.2), without its record."""
    groups = extension(10, vec16(u16(23) + u16(29)))
    signatures = extension(13, vec16(u16(0x0403) + u16(0x0804) + u16(0x0401)))
    suites = vec16(u16(0xC02B) + u16(0xC02F) + u16(0xC02C) + u16(0xC030))
    body = u16(0x0303) + b"r" * 32 + b"\0" + suites + b"\x01\0" + vec16(groups + signatures + extensions)
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(data: bytes, *sizes: int) -> bytes:
    """Put ``data`` into records of these sizes, the rest into one more."""
    out = b""
    for size in (*sizes, len(data)):
        piece, data = data[:size], data[size:]
        if piece:
            out += b"\x16\x03\x01" + vec16(piece)
    return out


def hello(extensions: bytes = b"") -> bytes:
    return records(message(extensions))


def real_hello(name: str | None) -> bytes:
    """What the standard library's client sends first, TLS 1.2 only, so that it is short."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def post_quantum_hello(name: bytes) -> bytes:
    """What a newer OpenSSL sends first: its key share alone is more than 1 KB."""
    client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    client.set_tlsext_host_name(name)
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    data = client.bio_read(1 << 14)
    assert len(data) > 1400
    return data


def alert(description: int) -> bytes:
    return b"\x15\x03\x03\0\x02\x02" + bytes([description])


def served_by(answer: bytes, authority, *names: str) -> bool:
    """Whether the plain-text flight of a TLS 1.2 server holds the certificate for ``names``."""
    pem = authority._leaf(names).cert_chain_pems[0].bytes().decode()
    return ssl.PEM_cert_to_DER_cert(pem) in answer


@pytest.fixture
def passing(router, backend):
    """``running, backend for a.example, backend for the rest``."""
    server, other = backend(), backend()
    return router(PASSED.format(backend=server.address, other=other.address)), server, other


@pytest.fixture
def terminating(router, backend, authority):
    """``running, backend``: TLS ends at the router, for a.example and b.example."""
    server = backend()
    files = {"a.pem": authority.issue("a.example"), "b.pem": authority.issue("b.example")}
    return router(TERMINATED.format(backend=server.address), files), server


# Silence and slowness.


def test_a_silent_client_is_closed_at_the_sniff_timeout(router, connect) -> None:
    running = router("""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        sniff_timeout = 200ms
        [route all]
        redirect = /x
    """)
    client = connect(running.port())
    assert client.recv_all() == b""
    assert not client.was_reset
    (refusal,) = running.refused
    assert (refusal.stage, refusal.reason) == ("sniff", "silence, and no tunnel rule for it")


def test_a_silent_client_gets_the_silence_rule(router, connect, backend) -> None:
    server, opaque = backend(), backend()
    running = router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        sniff_timeout = 100ms
        [tunnel opaque]
        match = opaque
        pool = opaque
        [tunnel smtp]
        match = silence
        pool = smtp
        [pool smtp]
        backends = {server.address}
        [pool opaque]
        backends = {opaque.address}
    """)
    client = connect(running.port())
    peer = server.accept()
    peer.send(b"220 mail.example\r\n")
    assert client.recv_until(b"\n") == b"220 mail.example\r\n"
    client.send(b"EHLO client\r\n")
    assert peer.recv_until(b"\n") == b"EHLO client\r\n"
    assert not opaque.was_contacted()


@pytest.mark.parametrize(
    ("data", "stage"),
    [
        (hello(server_name(b"a.example")), "sniff"),
        (b"METHODTHATNOBODYKNOWS", "sniff"),
        (b"GET /" + b"a" * 500, "http"),
    ],
    ids=["TLS", "a long method", "HTTP"],
)
def test_byte_after_byte_a_client_cannot_stretch_the_deadline(router, connect, data, stage) -> None:
    running = router("""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        sniff_timeout = 300ms
        head_timeout = 300ms
        [route all]
        redirect = /x
    """)
    client = connect(running.port())
    began = time.monotonic()
    client.socket.settimeout(0.05)
    for byte in data:
        client.send(bytes([byte]))
        try:
            client.buffer = client.socket.recv(65536)
        except TimeoutError:
            continue
        break
    assert 0.25 < time.monotonic() - began < 2
    if stage == "http":
        assert client.buffer.startswith(b"HTTP/1.1 408 ")
    running.until(lambda: running.refused)
    assert running.refused[0].stage == stage


def test_a_client_that_stops_within_the_handshake_is_closed_at_the_tls_timeout(router, connect, authority) -> None:
    running = router(
        """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        tls_timeout = 200ms
        certificates = a.pem
        [route all]
        redirect = /x
        """,
        {"a.pem": authority.issue("a.example")},
    )
    client = connect(running.port())
    client.send(hello(server_name(b"a.example")))
    assert served_by(client.recv_all(), authority, "a.example")
    running.until(lambda: running.refused)
    assert (running.refused[0].stage, running.refused[0].reason) == ("tls", "no handshake in 0.2 s")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("data", [b"", b"\x16\x03", b"G"])
def test_a_client_that_leaves_before_the_verdict_is_forgotten(terminating, connect, data, how) -> None:
    running, server = terminating
    client = connect(running.port())
    client.send(data)
    running.settle()
    getattr(client, how)()
    # The acceptor alone.
    running.until(lambda: running.call(lambda: len(running.service.relay.members)) == 1)
    assert not server.was_contacted()


def test_a_hello_that_breaks_off_reaches_no_backend(passing, connect) -> None:
    running, *servers = passing
    client = connect(running.port())
    client.send(hello(server_name(b"a.example"))[:-1])
    client.finish()
    client.recv_all()
    assert not any(server.was_contacted() for server in servers)


# Bytes of no known protocol.


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"\0", b"\xff" * 10, b"\x16\x02", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\r"],
)
def test_unknown_bytes_get_the_opaque_rule_untouched(router, connect, backend, data) -> None:
    server = backend()
    running = router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [tunnel opaque]
        match = opaque
        pool = app
        [pool app]
        backends = {server.address}
    """)
    client = connect(running.port())
    client.send(data)
    assert server.accept().recv_exactly(len(data)) == data


def test_unknown_bytes_without_a_rule_are_closed_and_not_answered(terminating, connect) -> None:
    running, server = terminating
    client = connect(running.port())
    client.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    assert client.recv_all() == b""
    assert not client.was_reset
    assert running.refused[0].reason == "neither TLS nor HTTP, and no tunnel rule for it"
    assert not server.was_contacted()


def test_a_request_line_without_end_is_no_http(passing, connect) -> None:
    running, _, other = passing
    client = connect(running.port())
    data = b"A" * 9000
    client.send(data)
    assert other.accept().recv_exactly(len(data)) == data


# A ClientHello in pieces.


def test_a_hello_cut_in_two_segments_anywhere_gets_the_same_rule_and_arrives_untouched(passing, connect) -> None:
    running, server, other = passing
    data = real_hello("a.example")
    for cut in range(1, len(data)):
        client = connect(running.port())
        client.send(data[:cut])
        running.settle()
        client.send(data[cut:])
        peer = server.accept()
        assert peer.recv_exactly(len(data)) == data
        client.close()
        peer.close()
    assert not other.was_contacted()


def test_a_hello_byte_by_byte_gets_the_same_rule_and_arrives_untouched(passing, connect) -> None:
    running, server, _ = passing
    data = real_hello("a.example")
    client = connect(running.port())
    for byte in data:
        client.send(bytes([byte]))
        running.settle()
    assert server.accept().recv_exactly(len(data)) == data


def test_a_hello_in_several_records_with_its_name_cut_in_two_gets_the_right_rule(passing, connect) -> None:
    running, server, other = passing
    whole = message(server_name(b"a.example"))
    cut = whole.index(b"a.example") + 4
    for data in (records(whole, cut), records(whole, cut - 5, 3, 4), records(whole, *[1] * len(whole))):
        client = connect(running.port())
        client.send(data)
        assert server.accept().recv_exactly(len(data)) == data
    assert not other.was_contacted()


def test_a_hello_in_several_records_gets_the_right_certificate(terminating, connect, authority) -> None:
    running, _ = terminating
    whole = message(server_name(b"b.example"))
    cut = whole.index(b"b.example") + 4
    for name in ("a.example", "b.example"):
        client = connect(running.port())
        client.send(records(whole.replace(b"b.example", name.encode()), cut))
        answer = client.recv_until(b"\x0e\0\0\0")  # ServerHelloDone
        assert served_by(answer, authority, name)


def test_a_post_quantum_hello_in_two_segments_gets_the_right_rule(passing, connect) -> None:
    running, server, _ = passing
    data = post_quantum_hello(b"a.example")
    client = connect(running.port())
    client.send(data[:1400])
    running.settle()
    client.send(data[1400:])
    assert server.accept().recv_exactly(len(data)) == data


def test_what_follows_the_hello_at_once_is_passed_on_too(passing, connect) -> None:
    running, server, _ = passing
    data = hello(server_name(b"a.example")) + b"\x17\x03\x03\0\x05early" + b"x" * 100_000
    client = connect(running.port())
    client.send(data)
    assert server.accept().recv_exactly(len(data)) == data


# A ClientHello that lies.


def lies() -> dict[str, tuple[bytes, int]]:
    whole = message(server_name(b"a.example"))
    return {
        "over 16 KiB": (records(b"\x01" + (16385).to_bytes(3, "big") + b"x" * 100), 47),
        "an announced megabyte": (b"\x16\x03\x01\x40\x00\x01\x10\x00\x00" + b"x" * 60, 47),
        "a record over its limit": (b"\x16\x03\x01\x40\x01\x01", 22),
        "an empty record": (b"\x16\x03\x01\0\0", 10),
        "another message": (records(b"\x02" + whole[1:]), 10),
        "a record of another type inside": (records(whole, 50)[:55] + b"\x17\x03\x01\0\x05hello", 10),
        "too short": (records(b"\x01\0\0\x05hello"), 50),
        "bytes behind the message": (records(whole + b"x"), 10),
        "a name longer than its extension": (hello(extension(0, vec16(b"\0\0\x50a.example"))), 50),
        "a NUL in the name": (hello(server_name(b"a.example\0.evil")), 50),
        "an empty name": (hello(server_name(b"")), 50),
        "a name of 256 bytes": (hello(server_name(b"a" * 256)), 50),
        "two names": (hello(server_name(b"a.example", b"b.example")), 50),
        "two server_name extensions": (hello(server_name(b"a.example") * 2), 47),
        "a blank in the name": (hello(server_name(b"a example")), 50),
    }


@pytest.mark.parametrize(("data", "description"), lies().values(), ids=lies().keys())
@pytest.mark.parametrize("setting", ["passing", "terminating"])
def test_a_lying_hello_gets_a_fatal_alert_and_reaches_no_backend(request, connect, setting, data, description) -> None:
    running, *servers = request.getfixturevalue(setting)
    client = connect(running.port())
    client.send(data)
    assert client.recv_all() == alert(description)
    assert not client.was_reset
    assert not any(server.was_contacted() for server in servers)
    (refusal,) = running.refused
    assert refusal.stage == "sniff"


# Names.


@pytest.mark.parametrize(
    ("extensions", "description"),
    [
        (b"", 109),
        (server_name(b"c.example"), 112),
        (server_name(b"127.0.0.1"), 109),
        (server_name(b"::1"), 109),
        (server_name(b"x.a.example"), 112),
    ],
    ids=["none", "unknown", "an IPv4 literal", "an IPv6 literal", "below a known one"],
)
def test_without_a_default_certificate_an_unserved_name_gets_its_alert(
    terminating, connect, extensions, description
) -> None:
    running, server = terminating
    client = connect(running.port())
    client.send(hello(extensions))
    assert client.recv_all() == alert(description)
    assert not server.was_contacted()


@pytest.mark.parametrize(
    "extensions", [b"", server_name(b"c.example"), server_name(b"127.0.0.1")], ids=["none", "unknown", "a literal"]
)
def test_the_default_certificate_serves_every_other_name(router, connect, authority, extensions) -> None:
    running = router(
        """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        certificates = a.pem
        default_certificate = b.pem
        [route all]
        redirect = /x
        """,
        {"a.pem": authority.issue("a.example"), "b.pem": authority.issue("b.example")},
    )
    client = connect(running.port())
    client.send(hello(extensions))
    assert served_by(client.recv_until(b"\x0e\0\0\0"), authority, "b.example")


@pytest.mark.parametrize("name", [b"A.Example", b"a.example.", b"A.EXAMPLE."])
def test_case_and_a_final_dot_do_not_matter_in_a_name(passing, terminating, connect, authority, name) -> None:
    data = hello(server_name(name))
    running, server, _ = passing
    client = connect(running.port())
    client.send(data)
    assert server.accept().recv_exactly(len(data)) == data
    running, _ = terminating
    client = connect(running.port())
    client.send(data)
    assert served_by(client.recv_until(b"\x0e\0\0\0"), authority, "a.example")


@pytest.mark.parametrize(
    "more",
    [extension(0x1A1A, b"") + extension(0x2A2A, b"\0"), extension(0xFE0D, b"\0" * 40), extension(35, b"")],
    ids=["GREASE", "ECH", "an empty extension"],
)
def test_unknown_extensions_do_not_change_the_rule(passing, connect, more) -> None:
    running, server, other = passing
    for data in (hello(more + server_name(b"a.example")), hello(server_name(b"a.example") + more)):
        client = connect(running.port())
        client.send(data)
        assert server.accept().recv_exactly(len(data)) == data
    assert not other.was_contacted()


def test_a_real_client_shakes_hands_on_every_kind_of_segment(terminating, connect, authority) -> None:
    """The whole handshake through a socket that delivers one byte at a time."""
    running, _ = terminating
    client = connect(running.port())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="b.example")
    while True:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        for byte in outgoing.read():
            client.send(bytes([byte]))
        running.settle()
        if done:
            break
        incoming.write(client.socket.recv(65536))
    assert hashlib.sha256(tls.getpeercert(binary_form=True)).digest() == authority.fingerprint("b.example")


# The wrong protocol for the port.


def test_http_on_a_tls_only_listener_gets_400_without_an_echo(router, connect, backend, authority) -> None:
    server = backend()
    running = router(
        f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        plain = no
        certificates = a.pem
        [route all]
        pool = app
        [pool app]
        backends = {server.address}
        """,
        {"a.pem": authority.issue("a.example")},
    )
    client = connect(running.port())
    client.send(b"GET /<secret> HTTP/1.1\r\nHost: evil.example\r\nX-Echo: secret\r\n\r\n")
    answer = client.recv_all()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"secret" not in answer
    assert b"evil" not in answer
    assert not client.was_reset
    assert not server.was_contacted()


def test_tls_on_a_listener_without_certificates_gets_an_alert(router, connect, backend) -> None:
    server = backend()
    running = router(f"""
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        [route all]
        pool = app
        [pool app]
        backends = {server.address}
    """)
    client = connect(running.port())
    client.send(hello(server_name(b"a.example")))
    assert client.recv_all() == alert(40)
    assert not client.was_reset
    assert not server.was_contacted()


def test_a_handshake_that_fails_is_refused_with_its_reason(terminating, connect) -> None:
    running, server = terminating
    client = connect(running.port())
    client.send(hello(server_name(b"a.example")) + b"\x15\x03\x03\0\x02\x02\x2a")  # bad_certificate
    client.recv_all()
    running.until(lambda: running.refused)
    assert running.refused[0].stage == "tls"
    assert "bad certificate" in running.refused[0].reason
    assert not server.was_contacted()


def test_a_reset_within_the_preamble_leaves_the_router_serving(passing, connect) -> None:
    running, server, _ = passing
    for data in (b"", b"\x16\x03\x01", b"GE", hello(server_name(b"a.example"))[:-1]):
        client = connect(running.port())
        client.send(data)
        running.settle()
        client.reset()
    data = hello(server_name(b"a.example"))
    client = connect(running.port())
    client.send(data)
    assert server.accept().recv_exactly(len(data)) == data


@pytest.mark.parametrize("how", ["a handshake", "a failed handshake", "a reset handshake", "silence"])
def test_every_end_of_a_tls_connection_gives_its_place_back(router, connect, authority, how) -> None:
    running = router(
        """
        [listener main]
        endpoint = tcp:0:interface=127.0.0.1
        max_connections = 1
        certificates = a.pem
        [route all]
        redirect = /x
        """,
        {"a.pem": authority.issue("a.example")},
    )
    client = connect(running.port())
    if how == "a handshake":
        client.close()
        client = connect(running.port(), tls=authority.client_context(), name="a.example")
    elif how == "a failed handshake":
        client.send(hello(server_name(b"a.example")) + b"\x15\x03\x03\0\x02\x02\x2a")
        client.recv_all()
    elif how == "a reset handshake":
        client.send(hello(server_name(b"a.example")))
        client.recv_until(b"\x0e\0\0\0")
        client.reset()
    client.close()
    again = connect(running.port(), tls=authority.client_context(), name="a.example")
    again.send(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
    assert again.recv_until(b"\r\n") == b"HTTP/1.1 302 Found\r\n"


@pytest.mark.interpreted
def test_an_exception_within_one_preamble_ends_that_one_and_the_router_serves_on(
    passing, connect, logged_failures, monkeypatch
) -> None:
    running, server, _ = passing

    def fail(data: bytes) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("wsrouter.listener.preamble.sniff", fail)
        client = connect(running.port())
        client.send(b"x")
        assert client.recv_all() == b""
        assert client.was_reset
    assert len(logged_failures.flush(ZeroDivisionError)) == 1
    data = hello(server_name(b"a.example"))
    client = connect(running.port())
    client.send(data)
    assert server.accept().recv_exactly(len(data)) == data
    running.until(lambda: running.call(lambda: len(running.service.relay.members)) == 3)
