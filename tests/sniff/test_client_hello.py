"""Reading a ClientHello: real ones, cut and torn ones, and lies."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from wsrouter.errors import SniffError
from wsrouter.sniff.client_hello import MAX_CLIENT_HELLO, MAX_RECORDS, read_client_hello
from wsrouter.sniff.verdict import Tls

# OpenSSL's server side does not look at names without a certificate.
ISSUED = trustme.CA().issue_cert("a.example")
KEY = load_pem_private_key(ISSUED.private_key_pem.bytes(), None)
CERTIFICATE = load_pem_x509_certificate(ISSUED.cert_chain_pems[0].bytes())


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def vec8(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def vec16(data: bytes) -> bytes:
    return u16(len(data)) + data


def extension(kind: int, data: bytes) -> bytes:
    return u16(kind) + vec16(data)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vec16(b"".join(bytes((kind,)) + vec16(name) for name in names)))


def alpn(*names: bytes) -> bytes:
    return extension(16, vec16(b"".join(map(vec8, names))))


def body(
    extensions: bytes | None = b"",
    *,
    version: int = 0x0303,
    session: bytes = b"s" * 32,
    suites: bytes = b"\x13\x01",
    compression: bytes = b"\0",
) -> bytes:
    """A ClientHello's body; ``extensions`` is None to leave the whole block out."""
    block = b"" if extensions is None else vec16(extensions)
    return u16(version) + b"r" * 32 + vec8(session) + vec16(suites) + vec8(compression) + block


def message(content: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + len(content).to_bytes(3, "big") + content


def records(data: bytes, *sizes: int, version: int = 0x0301) -> bytes:
    """Put ``data`` into records of these sizes, the rest into one more."""
    out = b""
    for size in (*sizes, len(data)):
        piece, data = data[:size], data[size:]
        if piece:
            out += b"\x16" + u16(version) + vec16(piece)
    return out


def hello(extensions: bytes | None = b"", **parts: bytes | int) -> bytes:
    return records(message(body(extensions, **parts)))  # type: ignore[arg-type]


def refused(data: bytes) -> int | None:
    """The alert that ``data`` gets."""
    with pytest.raises(SniffError) as caught:
        read_client_hello(data)
    assert caught.value.reason
    return caught.value.alert


def real_hello(name: str | None, configure: Callable[[ssl.SSLContext], None] = lambda context: None) -> bytes:
    """What the standard library's client sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    configure(context)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def real_hello_of_openssl(name: bytes) -> bytes:
    """What the client of pyOpenSSL's own, newer OpenSSL sends first: with a post-quantum key share."""
    client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    client.set_tlsext_host_name(name)
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    return client.bio_read(1 << 14)


def openssl_reads(data: bytes) -> Tls:
    """What OpenSSL's server side makes of a ClientHello that it can take."""
    seen: dict[str, object] = {"sni": None, "alpn": ()}

    def on_name(connection: SSL.Connection) -> None:
        name = connection.get_servername()
        seen["sni"] = None if name is None else name.decode("latin-1").lower()

    def on_protocols(connection: SSL.Connection, offered: list[bytes]) -> object:
        seen["alpn"] = tuple(name.decode("latin-1") for name in offered)
        return SSL.NO_OVERLAPPING_PROTOCOLS

    context = SSL.Context(SSL.TLS_METHOD)
    context.set_tlsext_servername_callback(on_name)
    context.set_alpn_select_callback(on_protocols)
    context.use_privatekey(KEY)
    context.use_certificate(CERTIFICATE)
    server = SSL.Connection(context, None)
    server.set_accept_state()
    server.bio_write(data)
    try:
        server.do_handshake()
    except SSL.WantReadError:
        pass
    return Tls(seen["sni"], seen["alpn"])  # type: ignore[arg-type]


def tls12(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


def tls13(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3


def h2(context: ssl.SSLContext) -> None:
    context.set_alpn_protocols(["h2", "http/1.1"])


def many_protocols(context: ssl.SSLContext) -> None:
    context.set_alpn_protocols([f"{number:03}" + "x" * 200 for number in range(40)])


REAL = [
    real_hello("a.example", tls12),
    real_hello("a.example", tls13),
    real_hello("App.Example", h2),
    real_hello(None),
    real_hello(None, h2),
    real_hello_of_openssl(b"b.example"),
    real_hello("a-b.c_d.example", many_protocols),
]


@pytest.mark.parametrize("data", REAL, ids=range(len(REAL)))
def test_reads_real_hellos_as_openssl_does(data: bytes) -> None:
    assert read_client_hello(data) == openssl_reads(data)


def test_reads_the_name_and_the_protocols_of_a_real_hello() -> None:
    assert read_client_hello(REAL[2]) == Tls("app.example", ("h2", "http/1.1"))


@pytest.mark.parametrize("data", REAL[:6], ids=range(6))
def test_asks_for_more_at_every_cut_of_a_real_hello(data: bytes) -> None:
    for cut in range(len(data)):
        assert read_client_hello(bytearray(data[:cut])) is None
    assert read_client_hello(bytearray(data)) is not None


def test_reads_a_hello_cut_into_two_records_at_every_offset() -> None:
    whole = message(body(server_name(b"a.example") + alpn(b"h2")))
    for cut in range(1, len(whole)):
        data = records(whole, cut)
        assert read_client_hello(data) == Tls("a.example", ("h2",))
        assert read_client_hello(data[:-1]) is None
        assert read_client_hello(data[: cut + 7]) is None


def test_reads_a_hello_in_many_small_records_as_openssl_does() -> None:
    whole = message(REAL[0][9:])
    size = len(whole) // (MAX_RECORDS - 1) + 1
    data = records(whole, *[size] * MAX_RECORDS)
    assert read_client_hello(data) == openssl_reads(records(whole, len(whole) // 2))


def test_refuses_a_hello_in_records_of_one_byte() -> None:
    whole = message(REAL[0][9:])
    data = records(whole, *[1] * len(whole))
    assert read_client_hello(data[: 6 * MAX_RECORDS - 1]) is None
    with pytest.raises(SniffError, match="more than 128 records"):
        read_client_hello(data)


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(0, 400))
def test_the_verdict_does_not_depend_on_records_and_segments(sizes: list[int], cut: int) -> None:
    data = records(message(body(server_name(b"a.example") + alpn(b"h2", b"\xff"))), *sizes)
    early = read_client_hello(data[:cut])
    assert early == (Tls("a.example", ("h2", "\xff")) if cut >= len(data) else None)


def test_bytes_behind_the_last_record_are_left_alone() -> None:
    data = hello(server_name(b"a.example"))
    assert read_client_hello(data + b"\x17\x03\x03\x00\x05early") == Tls("a.example")


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302, 0x0303, 0x0304, 0x03FF])
def test_any_record_version_3_is_taken(version: int) -> None:
    assert read_client_hello(records(message(body()), version=version)) == Tls(None)


@pytest.mark.parametrize(
    ("extensions", "verdict"),
    [
        (None, Tls(None)),
        (b"", Tls(None)),
        (extension(0x0A0A, b"") + server_name(b"a.example") + extension(0x1A1A, b"\0"), Tls("a.example")),
        (alpn(b"\x0a\x0a", b"h2"), Tls(None, ("\n\n", "h2"))),
        (extension(0xFE0D, b"encrypted" * 20) + server_name(b"outer.example"), Tls("outer.example")),
        (extension(10, b"") + extension(10, b""), Tls(None)),
        (server_name(b"a", kind=7), Tls(None)),
        (server_name(b"A.Example."), Tls("a.example")),
        (server_name(b"localhost"), Tls("localhost")),
        (server_name(b"xn--bcher-kva.example"), Tls("xn--bcher-kva.example")),
        (server_name(b"1.2.3"), Tls("1.2.3")),
        (server_name(b".".join([b"a" * 50] * 5)), Tls(".".join(["a" * 50] * 5))),
        (server_name(b"a" * 255), Tls("a" * 255)),
        (server_name(b"192.0.2.1"), Tls(None)),
        (server_name(b"192.0.2.1."), Tls(None)),
        (server_name(b"999.0.2.1"), Tls(None)),
        (server_name(b"2001:db8::1"), Tls(None)),
        (server_name(b"[::1]"), Tls(None)),
    ],
)
def test_reads_extensions(extensions: bytes | None, verdict: Tls) -> None:
    assert read_client_hello(hello(extensions)) == verdict


@pytest.mark.parametrize(
    ("data", "alert"),
    [
        (b"\x17", 10),
        (b"\x16\x02", 70),
        (b"\x16\x02\x01\x00\x05", 70),
        (b"\x16\x03\x01\x00\x00", 10),
        (b"\x16\x03\x01\x40\x01", 22),
        (b"\x16\x03\x01\x00\x10\x02", 10),
        (records(message(body()), 20)[:25] + b"\x15", 10),
        (records(message(body()), 20)[:25] + b"\x16\x03\x01\x00\x00", 10),
        (records(message(body()), 20)[:25] + b"\x16\x03\x01\xff\xff", 22),
    ],
)
def test_a_wrong_record_is_refused_at_its_header(data: bytes, alert: int) -> None:
    assert refused(data) == alert


def test_a_hello_of_16_kib_is_taken_and_one_byte_more_is_not() -> None:
    empty = len(message(body(extension(21, b""))))
    padding = MAX_CLIENT_HELLO - empty
    assert read_client_hello(hello(extension(21, bytes(padding)))) == Tls(None)
    longer = message(body(extension(21, bytes(padding + 1))))
    assert refused(records(longer, 4)[:9]) == 47


def test_a_message_too_short_for_a_hello_is_refused_at_its_header() -> None:
    assert refused(b"\x16\x03\x01\x00\x2c\x01\x00\x00\x28") == 50


def test_a_record_that_goes_on_behind_the_hello_is_refused_at_its_header() -> None:
    assert refused(records(message(body()) + b"x")[:9]) == 10
    assert refused(records(message(body()) + message(b"", 20))) == 10


@pytest.mark.parametrize(
    "content",
    [
        body(session=b"s" * 33),
        b"\3\3" + b"r" * 32 + b"\xff" + b"s" * 10,
        b"\3\3" + b"r" * 32 + b"\x07" + b"s" * 8,
        body(suites=b""),
        body(suites=b"\x13\x01\x13"),
        body(None, session=b"")[:35] + b"\xff\xfe" + b"c" * 10,
        body(compression=b"", suites=b"\x13\x01\x13\x02"),
        body(None, session=b"", suites=b"\x13\x01\x13\x02")[:-2] + b"\x02\0",
        body(None) + b"\0",
        body(None) + b"\0\1",
        body() + b"\0",
        body(b"\0\0\0"),
        body(b"\0\x0a\0\1"),
        body(extension(0, b"")),
        body(extension(0, b"\0")),
        body(extension(0, b"\0\0")),
        body(extension(0, b"\0\5\0\0\1a")),
        body(extension(0, b"\0\3\0\0\1a")),
        body(extension(0, b"\0\2\0\0")),
        body(extension(0, b"\0\4\0\0\2a")),
        body(server_name(b"")),
        body(server_name(b"a.example", b"b.example")),
        body(server_name(b"a\0.example")),
        body(server_name(b"a" * 256)),
        body(server_name(b"a..example")),
        body(server_name(b".example")),
        body(server_name(b".")),
        body(server_name(b"a.example..")),
        body(server_name(b"*.example")),
        body(server_name(b"a example")),
        body(server_name(b"a.example\n")),
        body(server_name(b"a.example:443")),
        body(server_name("bücher.example".encode())),
        body(extension(16, b"")),
        body(extension(16, b"\0\0")),
        body(extension(16, b"\0\1\0")),
        body(extension(16, b"\0\3\2h2x")),
        body(extension(16, b"\0\4\4h2x")),
        body(alpn(b"h2", b"")),
    ],
)
def test_lengths_that_lie_and_names_that_are_none_get_decode_error(content: bytes) -> None:
    assert refused(records(message(content))) == 50


@pytest.mark.parametrize("twice", [server_name(b"a.example"), alpn(b"h2")])
def test_an_extension_that_routes_must_not_come_twice(twice: bytes) -> None:
    assert refused(hello(twice + twice)) == 47


@settings(max_examples=300)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_gives_a_verdict_or_a_sniff_error_and_nothing_else(at: int, value: int) -> None:
    data = bytearray(hello(server_name(b"a.example") + alpn(b"h2", b"http/1.1") + extension(10, b"\0\2\0\x1d")))
    data[at % len(data)] = value
    try:
        verdict = read_client_hello(data)
    except SniffError:
        return
    assert verdict is None or isinstance(verdict, Tls)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(REAL[:3]), st.integers(0, 10_000), st.integers(0, 255))
def test_what_both_take_is_read_as_openssl_reads_it(data: bytes, at: int, value: int) -> None:
    changed = bytearray(data)
    changed[at % len(data)] = value
    try:
        ours = read_client_hello(changed)
        theirs = openssl_reads(bytes(changed))
    except (SniffError, SSL.Error):
        return
    assert ours is None or replace(theirs, sni=theirs.sni and theirs.sni.removesuffix(".")) == ours


@given(st.binary(max_size=300), st.booleans())
def test_garbage_raises_nothing_but_a_sniff_error(garbage: bytes, framed: bool) -> None:
    data = records(message(body(None)[:41] + garbage)) if framed else b"\x16\x03" + garbage
    try:
        verdict = read_client_hello(data)
    except SniffError:
        return
    assert verdict is None or isinstance(verdict, Tls)


@given(st.lists(st.from_regex(rb"[a-zA-Z0-9_-]{1,20}(\.[a-zA-Z0-9_-]{1,20}){0,3}\.?", fullmatch=True), max_size=2))
def test_one_host_name_is_read_and_any_other_number_is_refused(names: list[bytes]) -> None:
    data = hello(server_name(*names))
    try:
        verdict = read_client_hello(data)
    except SniffError:
        assert len(names) != 1
        return
    assert verdict is not None
    assert len(names) == 1
    assert verdict.sni in (None, names[0].decode().lower().removesuffix("."))
