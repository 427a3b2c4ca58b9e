"""The verdict on the first bytes of a connection."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.errors import SniffError
from wsrouter.sniff.client_hello import MAX_CLIENT_HELLO
from wsrouter.sniff.sniffer import PREFETCH_LIMIT, alert, sniff
from wsrouter.sniff.verdict import Http, Opaque, Tls, Verdict


def a_real_hello() -> bytes:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = a_real_hello()


@pytest.mark.parametrize(
    ("data", "verdict", "after"),
    [
        (HELLO, Tls("a.example", ("http/1.1",)), len(HELLO)),
        (b"GET /chat HTTP/1.1\r\n", Http(), 4),
        (b"PROPFIND / HTTP/1.1\r\n", Http(), 21),
        (b"\r\nPOST / HTTP/1.1\r\n", Http(), 7),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Opaque(), 12),
        (b"SSH-2.0-x\r\n", Opaque(), 10),
        (b"\x80\x2e\x01\x03\x01\x00\x15", Opaque(), 1),
        (b"\x16\x02\x01", Opaque(), 2),
        (b"\0", Opaque(), 1),
    ],
)
def test_the_verdict_comes_at_the_earliest_byte_and_stays(data: bytes, verdict: Verdict, after: int) -> None:
    for cut in range(len(data)):
        assert sniff(data[:cut]) == (None if cut < after else verdict)
    assert sniff(bytearray(data)) == verdict


def test_opaque_bytes_are_not_silence() -> None:
    assert sniff(b"\0") != Opaque(silent=True)


def test_a_hello_in_ever_so_many_records_is_given_up() -> None:
    inside = b"\x01\x00\x3f\x00" + bytes(MAX_CLIENT_HELLO)
    torn = b"".join(b"\x16\x03\x01\x00\x01" + inside[at : at + 1] for at in range(4000))
    with pytest.raises(SniffError):
        sniff(torn)
    whole = b"".join(b"\x16\x03\x01\x00\x80" + inside[at : at + 128] for at in range(0, 16000, 128))
    assert sniff(whole) is None
    assert len(whole) < PREFETCH_LIMIT


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x16", b"\x16\x03\x01\x00\x60\x01\x00\x00\x5c", b"GET"]))
def test_nothing_but_a_sniff_error_is_raised_and_a_verdict_stands(data: bytes, front: bytes) -> None:
    early: Verdict | None = None
    for cut in range(0, len(front + data) + 1, 7):
        try:
            verdict = sniff((front + data)[:cut])
        except SniffError:
            assert early is None
            return
        assert early is None or verdict == early
        early = verdict


def test_an_alert_is_what_openssl_reads_as_one() -> None:
    incoming = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(alert(112))
    with pytest.raises(ssl.SSLError, match="unrecognized name"):
        client.do_handshake()
