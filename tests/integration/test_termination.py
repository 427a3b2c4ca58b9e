"""TLS that ends at the router, over sockets: certificates by name, alerts, client certificates, and wss sessions."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import struct
import threading

import pytest
import trustme

from tests.integration.http import fields_of, get, status_of, upgrade
from tests.integration.tls_by_hand import TlsByHand
from tests.memory import resident

# Alerts (RFC 8446 6.2).
UNEXPECTED_MESSAGE = 10
RECORD_OVERFLOW = 22
HANDSHAKE_FAILURE = 40
ILLEGAL_PARAMETER = 47
DECODE_ERROR = 50
PROTOCOL_VERSION = 70
MISSING_EXTENSION = 109
UNRECOGNIZED_NAME = 112

ALERT_RECORD = 21
HANDSHAKE_RECORD = 22
MEGABYTE = 1024 * 1024


def alert_of(data: bytes) -> int:
    """The description of the one fatal alert that ``data`` is, and nothing else."""
    kind, _, size, level, description = struct.unpack("!BHHBB", data)
    assert (kind, size, level) == (ALERT_RECORD, 2, 2), data
    return description


def vector(size: int, data: bytes) -> bytes:
    """``data`` behind its length in ``size`` bytes."""
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def sni(*names: bytes) -> bytes:
    return extension(0, vector(2, b"".join(b"\0" + vector(2, name) for name in names)))


# What a TLS 1.2 handshake with ECDHE needs: groups, point formats, signature algorithms.
USUAL = extension(10, vector(2, b"\0\x17\0\x1d")) + extension(11, b"\1\0") + extension(13, vector(2, b"\4\3\x08\4\4\1"))


def hello(*extensions: bytes, version: bytes = b"\3\3", usual: bytes = USUAL) -> bytes:
    """A ClientHello message of TLS 1.2, so that the certificate in the answer can be read."""
    suites = b"\xc0\x2b\xc0\x2f"
    body = version + os.urandom(32) + b"\0" + vector(2, suites) + b"\1\0"
    return b"\1" + vector(3, body + vector(2, usual + b"".join(extensions)))


def records(message: bytes, size: int = 1 << 14) -> bytes:
    """A handshake message in records of ``size`` bytes."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + vector(2, piece) for piece in pieces)


ROUTES = """
    [route ws]
    path = /ws
    pool = app
    set_header = X-Subject: {{client_cert_subject}}
    [route all]
    redirect = https://elsewhere.example{{uri}}
    [pool app]
    backends = {address}
"""
LISTENER = """
    [listener main]
    endpoint = tcp:0:interface=127.0.0.1
"""


@pytest.fixture
def start(router, backend, authority):
    """``start(names, listener="", more="", files={}) -> (running, server)``: each of ``names`` has its own certificate.

    A name may be a tuple: a certificate for all of them. The files are ``0.pem``, ``1.pem``, ...
    """

    def begin(*names, listener: str = "", more: str = "", files=None):
        server = backend()
        made = {f"{n}.pem": authority.issue(*([one] if isinstance(one, str) else one)) for n, one in enumerate(names)}
        certificates = "    certificates = *.pem\n" if names else ""
        text = LISTENER + certificates + listener + ROUTES.format(address=server.address) + more
        return router(text, files={**made, **(files or {})}), server

    return begin


@pytest.fixture
def two(start):
    """A router with certificates for ``a.example`` and ``b.example``, and no default."""
    return start("a.example", "b.example")[0]


# Certificates and names.


@pytest.mark.parametrize(
    ("name", "certificate"),
    [("a.example", 0), ("b.example", 1), ("x.w.example", 2), ("w.example", 3), ("plus.example", 3), ("1.w.example", 4)],
)
def test_the_certificate_is_chosen_by_name(start, connect, authority, name, certificate) -> None:
    names = ["a.example", "b.example", "*.w.example", ("w.example", "plus.example"), "1.w.example"]
    running, _ = start(*names)
    client = connect(running.port(), tls=authority.client_context(), name=name)  # which verifies the name
    wanted = names[certificate]
    shown = client.socket.getpeercert(binary_form=True)
    assert ssl_fingerprint(shown) == authority.fingerprint(*([wanted] if isinstance(wanted, str) else wanted))
    client.send(get(name))
    assert status_of(client.recv_head()) == 302


def ssl_fingerprint(der: bytes) -> bytes:
    return hashlib.sha256(der).digest()


@pytest.mark.parametrize("name", [b"A.Example", b"a.example.", b"A.EXAMPLE."])
def test_case_and_a_final_dot_do_not_matter(two, connect, authority, name) -> None:
    client = connect(two.port())
    client.send(records(hello(sni(name))))
    assert client.recv_exactly(1)[0] == HANDSHAKE_RECORD
    certificate = ssl.PEM_cert_to_DER_cert(authority._leaf(("a.example",)).cert_chain_pems[0].bytes().decode())
    client.recv_until(certificate)


@pytest.mark.parametrize("extensions", [[], [sni(b"c.example")], [sni(b"127.0.0.1")], [sni(b"::1")]])
def test_the_default_certificate_is_for_no_name_and_for_unknown_ones(start, connect, authority, extensions) -> None:
    running, _ = start("a.example", "b.example", listener="    default_certificate = 1.pem\n")
    client = connect(running.port())
    client.send(records(hello(*extensions)))
    certificate = ssl.PEM_cert_to_DER_cert(authority._leaf(("b.example",)).cert_chain_pems[0].bytes().decode())
    client.recv_until(certificate)


@pytest.mark.parametrize(
    ("extensions", "description"),
    [
        ([], MISSING_EXTENSION),
        ([sni(b"127.0.0.1")], MISSING_EXTENSION),
        ([sni(b"c.example")], UNRECOGNIZED_NAME),
        ([sni(b"x.a.example")], UNRECOGNIZED_NAME),
        ([sni(b"a.example.evil")], UNRECOGNIZED_NAME),
    ],
    ids=["none", "an IP literal", "an unknown name", "below a name", "above a name"],
)
def test_without_a_default_certificate_an_unknown_name_gets_an_alert(two, connect, extensions, description) -> None:
    client = connect(two.port())
    client.send(records(hello(*extensions)))
    assert alert_of(client.recv_all()) == description
    assert not client.was_reset
    assert [(one.stage, one.status) for one in two.refused] == [("sniff", None)]


def test_a_tls_client_of_a_listener_without_certificates_gets_an_alert(start, connect) -> None:
    running, server = start()
    client = connect(running.port())
    client.send(records(hello(sni(b"a.example"))))
    assert alert_of(client.recv_all()) == HANDSHAKE_FAILURE
    assert len(running.refused) == 1
    assert not server.was_contacted()


WHOLE = hello(sni(b"a.example"))


def longer(by: int) -> bytes:
    """A ClientHello whose message length is a lie."""
    return records(b"\1" + (len(WHOLE) - 4 + by).to_bytes(3, "big") + WHOLE[4:])


MALFORMED = {
    "a record over 16 KiB": (b"\x16\3\1\xff\xff" + WHOLE, RECORD_OVERFLOW),
    "a hello over 16 KiB": (records(hello(sni(b"a.example"), extension(21, bytes(17000)))), ILLEGAL_PARAMETER),
    "a hello that claims 16 MiB": (b"\x16\3\1\0\4\1\xff\xff\xff", ILLEGAL_PARAMETER),
    "another handshake message": (records(b"\2" + WHOLE[1:]), UNEXPECTED_MESSAGE),
    "an empty record": (b"\x16\3\1\0\0", UNEXPECTED_MESSAGE),
    "an alert in between": (records(WHOLE, 60)[:65] + b"\x15\3\1\0\2\1\0", UNEXPECTED_MESSAGE),
    "a message that is shorter than it says": (longer(-1), UNEXPECTED_MESSAGE),
    "a message of no length": (b"\x16\3\1\0\4\1\0\0\0", DECODE_ERROR),
    "a NUL in the name": (records(hello(sni(b"a.example\0.evil"))), DECODE_ERROR),
    "a name of 256 bytes": (records(hello(sni(b".".join([b"a" * 63] * 4) + b"a"))), DECODE_ERROR),
    "an empty name": (records(hello(sni(b""))), DECODE_ERROR),
    "two names": (records(hello(sni(b"a.example", b"b.example"))), DECODE_ERROR),
    "two lists of names": (records(hello(sni(b"a.example"), sni(b"b.example"))), ILLEGAL_PARAMETER),
    "a name list that runs over": (records(hello(extension(0, b"\0\x20\0\0\x09a.example"))), DECODE_ERROR),
    "an extension that runs over": (records(hello(b"\0\x15\0\x10abc")), DECODE_ERROR),
}


@pytest.mark.parametrize(("data", "description"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_hello_gets_an_alert_whatever_the_default(start, connect, data, description) -> None:
    running, server = start("a.example", listener="    default_certificate = 0.pem\n")
    client = connect(running.port())
    client.send(data)
    assert alert_of(client.recv_all()) == description
    assert not client.was_reset
    (refusal,) = running.refused
    assert refusal.stage == "sniff"
    assert not server.was_contacted()


def test_a_tls_version_that_nobody_speaks_any_more_gets_an_alert(two, connect) -> None:
    client = connect(two.port())
    client.send(records(hello(sni(b"a.example"), version=b"\3\1")))
    assert alert_of(client.recv_all()) == PROTOCOL_VERSION
    assert [one.stage for one in two.refused] == ["tls"]


@pytest.mark.parametrize(
    "more",
    [
        [extension(0x0A0A, b""), extension(0x1A1A, b"\0")],
        [extension(0xFE0D, b"\0\0\1\0\1\7\0\x20" + bytes(32) + b"\0\x90" + bytes(144))],
        [extension(0x0017, b""), extension(0xFF01, b"\0"), extension(35, b"")],
    ],
    ids=["GREASE", "ECH", "empty extensions"],
)
@pytest.mark.parametrize("first", [True, False], ids=["before the name", "behind the name"])
def test_other_extensions_do_not_hide_the_name(two, connect, authority, more, first) -> None:
    client = connect(two.port())
    name = [sni(b"b.example")]
    client.send(records(hello(*(more + name if first else name + more))))
    certificate = ssl.PEM_cert_to_DER_cert(authority._leaf(("b.example",)).cert_chain_pems[0].bytes().decode())
    client.recv_until(certificate)


# Hellos in pieces.


def test_a_hello_that_is_cut_anywhere_gets_the_same_certificate(two, connect, authority) -> None:
    context = authority.client_context()
    for at in [*range(1, 12), *range(12, 1500, 149)]:
        client = connect(two.port())
        by_hand = TlsByHand(client, context, "b.example")
        first = by_hand.take(by_hand.tls.do_handshake)
        client.send(first[:at])
        client.send(first[at:])
        by_hand.handshake()  # it verifies the name
        client.close()


def test_a_hello_may_come_byte_by_byte(two, connect, authority) -> None:
    client = connect(two.port())
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    by_hand = TlsByHand(client, authority.client_context(), "b.example")
    for byte in by_hand.take(by_hand.tls.do_handshake):
        client.send(bytes((byte,)))
    by_hand.handshake()
    assert by_hand.tls.version() == "TLSv1.3"


@pytest.mark.parametrize("size", [37, 100, 700])
def test_a_hello_may_come_in_several_records(two, connect, authority, size) -> None:
    client = connect(two.port())
    by_hand = TlsByHand(client, authority.client_context(), "b.example")
    client.send(records(by_hand.take(by_hand.tls.do_handshake)[5:], size))
    by_hand.handshake()
    client.send(by_hand.take(by_hand.tls.write, get("b.example")))
    assert by_hand.read(12) == b"HTTP/1.1 302"


def test_the_name_may_be_cut_by_a_record(two, connect, authority) -> None:
    client = connect(two.port())
    by_hand = TlsByHand(client, authority.client_context(), "b.example")
    message = by_hand.take(by_hand.tls.do_handshake)[5:]
    middle = message.index(b"b.example") + 4
    client.send(records(message[:middle]) + records(message[middle:]))
    by_hand.handshake()


def test_a_hello_of_two_kilobytes_in_two_segments(two, connect, authority) -> None:
    context = authority.client_context(alpn=[f"protocol-{number:020}" for number in range(80)] + ["http/1.1"])
    client = connect(two.port())
    by_hand = TlsByHand(client, context, "a.example")
    first = by_hand.take(by_hand.tls.do_handshake)
    assert len(first) > 2048
    client.send(first[:1448])
    client.send(first[1448:])
    by_hand.handshake()
    assert by_hand.tls.selected_alpn_protocol() == "http/1.1"


# Time.


def test_a_hello_without_an_end_is_closed_at_the_sniff_timeout(start, connect) -> None:
    running, _ = start("a.example", listener="    sniff_timeout = 100ms\n")
    client = connect(running.port())
    client.send(records(WHOLE)[:-1])
    assert b"HTTP" not in client.recv_all()
    assert [(one.stage, one.reason) for one in running.refused] == [("sniff", "no verdict in 0.1 s")]


def test_a_handshake_without_an_end_is_closed_at_the_tls_timeout(start, connect) -> None:
    running, _ = start("a.example", listener="    tls_timeout = 100ms\n")
    client = connect(running.port())
    client.send(records(WHOLE))
    client.recv_all()
    assert [(one.stage, one.reason) for one in running.refused] == [("tls", "no handshake in 0.1 s")]
    running.until(lambda: not running.connections)


def test_a_client_that_leaves_in_the_handshake_is_no_more_than_a_refusal(start, connect) -> None:
    running, _ = start("a.example")
    client = connect(running.port())
    client.send(records(WHOLE))
    client.recv_exactly(100)
    client.reset()
    running.until(lambda: running.refused)
    assert running.refused[0].stage == "tls"
    running.until(lambda: not running.connections)


def test_a_client_that_does_not_trust_the_router_is_a_refusal(start, connect) -> None:
    running, _ = start("a.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(running.port(), tls=ssl.create_default_context(), name="a.example")
    running.until(lambda: running.refused)
    assert "unknown ca" in running.refused[0].reason


# Versions, ALPN, resumption.


def test_tls_min_keeps_older_versions_out(start, connect, authority) -> None:
    running, _ = start("a.example", listener="    tls_min = 1.3\n")
    old = authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        connect(running.port(), tls=old, name="a.example")
    assert connect(running.port(), tls=authority.client_context(), name="a.example").socket.version() == "TLSv1.3"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_are_spoken(two, connect, authority, version) -> None:
    context = authority.client_context()
    context.minimum_version = context.maximum_version = version
    client = connect(two.port(), tls=context, name="a.example")
    client.send(get("a.example"))
    assert status_of(client.recv_head()) == 302


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), ([], None), (["h2"], None)],
    ids=["browser", "http/1.1", "none", "h2 only"],
)
def test_http_1_1_is_the_protocol_of_alpn(two, connect, authority, offered, chosen) -> None:
    client = connect(two.port(), tls=authority.client_context(alpn=offered), name="a.example")
    assert client.socket.selected_alpn_protocol() == chosen
    client.send(get("a.example"))
    assert status_of(client.recv_head()) == 302


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_for_the_same_name_and_not_for_another(two, authority, version) -> None:
    context = authority.client_context()
    context.minimum_version = context.maximum_version = version

    def visit(name: str, session: ssl.SSLSession | None = None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", two.port()), timeout=10) as sock,
            context.wrap_socket(sock, server_hostname=name, session=session) as tls,
        ):
            tls.sendall(get(name))
            assert tls.recv(12) == b"HTTP/1.1 302"  # tickets of TLS 1.3 come behind the handshake
            return tls.session, tls.session_reused

    session, reused = visit("a.example")
    assert not reused
    assert visit("a.example", session)[1]
    assert not visit("b.example", session)[1]


def test_each_listener_has_its_own_certificates(router, backend, connect, authority) -> None:
    server = backend()
    running = router(
        f"""
        [listener one]
        endpoint = tcp:0:interface=127.0.0.1
        certificates = one.pem
        [listener two]
        endpoint = tcp:0:interface=127.0.0.1
        certificates = two.pem
        tls_min = 1.3
        [listener three]
        endpoint = tcp:0:interface=127.0.0.1
        [route all]
        pool = app
        [pool app]
        backends = {server.address}
        """,
        files={"one.pem": authority.issue("a.example"), "two.pem": authority.issue("a.example", "b.example")},
    )
    shown = []
    for listener in ("one", "two"):
        client = connect(running.port(listener), tls=authority.client_context(), name="a.example")
        shown.append(ssl_fingerprint(client.socket.getpeercert(binary_form=True)))
    assert shown == [authority.fingerprint("a.example"), authority.fingerprint("a.example", "b.example")]
    old = authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    connect(running.port("one"), tls=old, name="a.example")
    with pytest.raises(ssl.SSLError):
        connect(running.port("two"), tls=old, name="a.example")
    client = connect(running.port("one"))
    client.send(records(hello(sni(b"b.example"))))
    assert alert_of(client.recv_all()) == UNRECOGNIZED_NAME
    client = connect(running.port("three"))
    client.send(records(WHOLE))
    assert alert_of(client.recv_all()) == HANDSHAKE_FAILURE


# Client certificates.

DEMANDING = """
    [certificate secret]
    file = secret/secret.pem
    client_ca = secret/ca.pem
    client_auth = {auth}
"""


@pytest.fixture
def demanding(start, authority):
    """``demanding(auth) -> (running, server)``: ``secret.example`` asks for certificates, ``a.example`` does not."""

    def begin(auth: str):
        files = {"secret/secret.pem": authority.issue("secret.example"), "secret/ca.pem": authority.pem}
        return start("a.example", more=DEMANDING.format(auth=auth), files=files)

    return begin


@pytest.fixture
def alice(authority):
    """A client's context with a certificate of the CA that the router trusts."""
    context = authority.client_context()
    authority.ca.issue_cert("alice@example.com", common_name="alice, of\u00e9").configure_cert(context)
    return context


@pytest.fixture
def mallory(authority):
    """A client's context with a certificate of another CA."""
    context = authority.client_context()
    trustme.CA().issue_cert("alice@example.com", common_name="alice").configure_cert(context)
    return context


def refused_by_tls(connect, running, context) -> None:
    """Whether the handshake fails: in TLS 1.3 a client learns that with its first read."""
    with pytest.raises(ssl.SSLError, match=r"ALERT|alert"):
        connect(running.port(), tls=context, name="secret.example").recv_exactly(1)
    running.until(lambda: running.refused)
    assert [(one.stage, one.rule) for one in running.refused] == [("tls", "secret")]


@pytest.mark.parametrize("auth", ["required", "optional"])
def test_a_client_certificate_is_verified_and_told_to_the_backend(demanding, connect, alice, auth) -> None:
    running, server = demanding(auth)
    client = connect(running.port(), tls=alice, name="secret.example")
    client.send(upgrade("secret.example"))
    head = server.accept().answer()
    assert rb"CN=alice\, of" + "\u00e9".encode() in head
    assert b"X-Forwarded-Proto: https" in head
    assert status_of(client.recv_head()) == 101


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_a_certificate_is_refused_where_one_is_required(
    demanding, connect, authority, version
) -> None:
    running, server = demanding("required")
    context = authority.client_context()
    context.minimum_version = context.maximum_version = version
    refused_by_tls(connect, running, context)
    assert not server.was_contacted()


@pytest.mark.parametrize("auth", ["required", "optional"])
def test_a_client_with_a_foreign_certificate_is_refused(demanding, connect, mallory, auth) -> None:
    running, server = demanding(auth)
    refused_by_tls(connect, running, mallory)
    assert not server.was_contacted()


def test_a_client_without_a_certificate_passes_where_it_is_optional(demanding, connect, authority) -> None:
    running, server = demanding("optional")
    client = connect(running.port(), tls=authority.client_context(), name="secret.example")
    client.send(upgrade("secret.example", more=b"X-Subject: CN=alice\r\n"))
    assert b"x-subject: cn" not in server.accept().answer().lower()
    assert status_of(client.recv_head()) == 101


def test_a_resumed_session_has_its_client_certificate_still(demanding, alice) -> None:
    running, server = demanding("required")
    session = None
    for reused in (False, True):
        with (
            socket.create_connection(("127.0.0.1", running.port()), timeout=10) as sock,
            alice.wrap_socket(sock, server_hostname="secret.example", session=session) as tls,
        ):
            tls.sendall(upgrade("secret.example"))
            peer = server.accept()
            assert b"CN=alice" in peer.answer()
            assert tls.recv(12) == b"HTTP/1.1 101"
            assert tls.session_reused == reused
            session = tls.session


def test_a_session_of_another_name_does_not_slip_past_the_demand(demanding, authority) -> None:
    running, server = demanding("required")
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # whose tickets come with the handshake
    with (
        socket.create_connection(("127.0.0.1", running.port()), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname="a.example") as tls,
    ):
        session = tls.session
    assert session.has_ticket
    with (
        socket.create_connection(("127.0.0.1", running.port()), timeout=10) as sock,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(sock, server_hostname="secret.example", session=session)
    assert not server.was_contacted()


def test_every_request_of_a_connection_is_held_against_its_name(demanding, connect, authority) -> None:
    running, server = demanding("required")
    client = connect(running.port(), tls=authority.client_context(), name="a.example")
    client.send(get("a.example"))
    head = client.recv_head()
    assert status_of(head) == 302
    client.recv_exactly(int(fields_of(head)["content-length"]))
    client.send(upgrade("secret.example"))
    assert status_of(client.recv_all()) == 421
    assert not server.was_contacted()


@pytest.mark.parametrize("auth", ["required", "optional"])
@pytest.mark.parametrize("request_of", [get, upgrade], ids=["plain", "upgrade"])
def test_a_request_for_a_demanding_host_on_another_connection_gets_421(
    demanding, connect, authority, auth, request_of
) -> None:
    running, server = demanding(auth)
    client = connect(running.port(), tls=authority.client_context(), name="a.example")
    client.send(request_of("Secret.example:443"))
    assert status_of(client.recv_all()) == 421
    assert [(one.status, one.host) for one in running.refused] == [(421, "Secret.example:443")]
    assert not server.was_contacted()


@pytest.mark.parametrize(
    ("name", "host", "status"),
    [
        ("a.example", "b.example", 421),
        ("a.example", "x.w.example", 421),
        ("c.example", "d.example", 302),
        ("d.example", "c.example:8443", 302),
        ("a.example", "unknown.example", 302),
        ("x.w.example", "y.w.example", 302),
    ],
)
def test_a_host_must_not_be_the_name_of_another_certificate(start, connect, authority, name, host, status) -> None:
    running, _ = start("a.example", "b.example", "*.w.example", ("c.example", "d.example"))
    client = connect(running.port(), tls=authority.client_context(), name=name)
    client.send(get(host))
    assert status_of(client.recv_head()) == status


# Sessions over TLS.


@pytest.fixture
def session(start, connect, authority):
    """``session() -> (running, client, peer)``: an open wss session; ``client`` is a TLS client by hand."""

    def begin(**more):
        running, server = start("a.example")
        client = TlsByHand(connect(running.port(), **more), authority.client_context(), "a.example")
        client.handshake()
        client.peer.send(client.take(client.tls.write, upgrade("a.example")))
        peer = server.accept()
        agreement = peer.agreement(peer.recv_head())
        peer.send(agreement)
        assert status_of(client.read(len(agreement))) == 101
        return running, client, peer

    return begin


def test_big_messages_pass_both_ways_at_once(start, connect, authority, frame) -> None:
    running, server = start("a.example")
    client = connect(running.port(), tls=authority.client_context(), name="a.example")
    client.send(upgrade("a.example"))
    peer = server.accept()
    peer.answer()
    client.recv_head()
    up, down = os.urandom(5 * MEGABYTE), os.urandom(4 * MEGABYTE)
    seen = {}
    threads = [
        threading.Thread(target=client.send, args=(frame(2, up),)),
        threading.Thread(target=peer.send, args=(frame(2, down, mask=False),)),
        threading.Thread(target=lambda: seen.update(up=peer.recv_frame().payload)),
    ]
    for thread in threads:
        thread.start()
    # An SSL object is not for two threads at a time: the client reads when it has written.
    threads[0].join(10)
    assert client.recv_frame().payload == down
    for thread in threads[1:]:
        thread.join(10)
    assert seen["up"] == up
    running.until(lambda: running.opened)
    counts = running.opened[0].counts()
    assert (counts.messages_in, counts.messages_out) == (1, 1)


def test_a_client_that_does_not_read_costs_no_memory_and_loses_nothing(session, frame) -> None:
    _, client, peer = session(receive=65536)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    message = frame(2, bytes(MEGABYTE), mask=False)
    before = resident()
    sender = threading.Thread(target=lambda: [peer.send(message) for _ in range(40)])
    sender.start()
    sender.join(0.3)  # what is not in the kernel's buffers by then is still with the backend
    assert resident() - before < 8 * MEGABYTE
    for _ in range(40):
        assert client.read(10) == message[:10]
        for _ in range(16):
            assert not any(client.read(MEGABYTE // 16))
    sender.join(10)


def test_a_backend_that_does_not_read_costs_no_memory_and_loses_nothing(session, frame) -> None:
    _, client, peer = session()
    whole = b"".join(client.take(client.tls.write, frame(2, bytes(16_000))) for _ in range(1500))
    before = resident()
    sender = threading.Thread(target=client.peer.send, args=(whole,))
    sender.start()
    sender.join(0.3)  # what is not in the kernel's buffers by then is still with the client
    assert resident() - before < 8 * MEGABYTE
    for _ in range(1500):
        assert len(peer.recv_frame().payload) == 16_000
    sender.join(10)


def test_a_record_may_come_byte_by_byte_and_many_at_once(session, frame) -> None:
    _, client, peer = session()
    client.peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    for byte in client.take(client.tls.write, frame(1, b"slowly")):
        client.peer.send(bytes((byte,)))
    assert peer.recv_frame().payload == b"slowly"
    # A record for every byte of the frame, in one segment.
    whole = frame(1, b"quickly")
    client.peer.send(b"".join(client.take(client.tls.write, whole[at : at + 1]) for at in range(len(whole))))
    assert peer.recv_frame().payload == b"quickly"


def test_frames_in_the_record_of_the_request_come_behind_the_101(start, connect, authority, frame) -> None:
    running, server = start("a.example")
    client = connect(running.port(), tls=authority.client_context(), name="a.example")
    client.send(upgrade("a.example") + frame(1, b"early"))
    peer = server.accept()
    peer.recv_head()
    assert peer.nothing_comes()


def test_requests_are_pipelined_over_tls(two, connect, authority) -> None:
    client = connect(two.port(), tls=authority.client_context(), name="a.example")
    client.send(get("a.example") * 200)
    for _ in range(200):
        head = client.recv_head()
        assert status_of(head) == 302
        client.recv_exactly(int(fields_of(head)["content-length"]))


def test_a_refusal_can_be_read_although_the_client_still_sends(two, connect, authority) -> None:
    client = connect(two.port(), tls=authority.client_context(), name="a.example")
    client.send(b"POST /ws HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(100):
        client.send(bytes(65536))
    assert status_of(client.recv_all()) == 426
    assert not client.was_reset


def test_a_request_may_come_with_the_last_flight_of_the_handshake(two, connect, authority) -> None:
    client = connect(two.port())
    by_hand = TlsByHand(client, authority.client_context(), "a.example")
    client.send(by_hand.take(by_hand.tls.do_handshake))
    flight = by_hand.last_flight()
    client.send(flight + by_hand.take(by_hand.tls.write, get("a.example")))
    assert by_hand.read(12) == b"HTTP/1.1 302"


@pytest.mark.parametrize("asks", [True, False], ids=["asks", "does not ask"])
def test_a_handshake_that_ends_in_a_drain_holds_it_up_for_what_came_with_it_only(start, connect, authority, asks):
    running, _ = start("a.example", listener="    head_timeout = 60s\n")
    client = connect(running.port())
    by_hand = TlsByHand(client, authority.client_context(), "a.example")
    client.send(by_hand.take(by_hand.tls.do_handshake))
    flight = by_hand.last_flight()
    running.call(setattr, running.service.site, "draining", True)
    running.call(setattr, running.service.site, "leaving", True)
    client.send(flight + (by_hand.take(by_hand.tls.write, get("a.example")) if asks else b""))
    by_hand.incoming.write(client.recv_all())
    answer = b""
    with contextlib.suppress(ssl.SSLZeroReturnError):
        while data := by_hand.tls.read(65536):
            answer += data
    assert not client.was_reset
    if asks:
        assert status_of(answer) == 302
        assert fields_of(answer)["connection"] == "close"
    else:
        assert answer == b""


def test_a_client_that_ends_without_close_notify_is_an_end_of_the_client(session, frame) -> None:
    running, client, peer = session()
    client.peer.send(client.take(client.tls.write, frame(1, b"last words")))
    client.peer.finish()
    assert peer.recv_frame().payload == b"last words"
    close = peer.recv_frame()
    assert (close.opcode, close.code, close.masked) == (8, 1001, True)
    peer.close()
    running.until(lambda: running.closed)
    entry, end = running.closed[0]
    assert (end.who.value, end.code) == ("client", 1006)
    assert entry.counts().messages_in == 1


def test_a_client_that_ends_inside_a_frame_never_makes_a_whole_message(session, frame) -> None:
    running, client, peer = session()
    part = frame(1, b"x" * 100)[:50]
    client.peer.send(client.take(client.tls.write, part))
    client.peer.finish()
    assert peer.recv_all() == part
    peer.close()
    running.until(lambda: running.closed)
    _, end = running.closed[0]
    assert (end.who.value, end.code) == ("client", 1006)
    assert "in the middle of a frame" in end.reason


def test_a_tampered_record_ends_the_session_with_an_alert(session, frame) -> None:
    running, client, peer = session()
    record = bytearray(client.take(client.tls.write, frame(1, b"hello")))
    record[-1] ^= 1
    client.peer.send(bytes(record))
    assert peer.recv_frame().code == 1001
    peer.close()
    running.until(lambda: running.closed)
    assert running.closed[0][1].who.value == "client"
    received = client.peer.recv_all()
    assert received
    assert received[0] in (ALERT_RECORD, 23)  # in TLS 1.3 an alert looks like data


def test_a_session_ends_with_close_frames_and_close_notify(session, frame) -> None:
    running, client, peer = session()
    client.peer.send(client.take(client.tls.write, frame(8, b"\x03\xe8bye")))
    assert peer.recv_frame().payload == b"\x03\xe8bye"
    peer.send(frame(8, b"\x03\xe8bye", mask=False))
    assert client.read(7) == frame(8, b"\x03\xe8bye", mask=False)
    client.incoming.write(client.peer.recv_all())
    assert client.tls.read(1) == b""  # close_notify: a bare FIN would raise
    peer.close()
    running.until(lambda: running.closed)
    assert (running.closed[0][1].who.value, running.closed[0][1].code) == ("client", 1000)
