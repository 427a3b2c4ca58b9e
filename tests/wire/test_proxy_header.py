"""Writing PROXY headers; tests/sniff/test_proxy_protocol.py reads them again."""

from __future__ import annotations

import pytest

from wsrouter.wire.proxy_header import Address, client_tlvs, crc32c, header_v1, header_v2

CLIENT = ("192.168.0.1", 56324)
HERE = ("192.168.0.11", 443)
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (CLIENT, HERE, b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
        (("2001:DB8:0::1", 1), ("::1", 0), b"PROXY TCP6 2001:db8::1 ::1 1 0\r\n"),
        (CLIENT, ("::1", 2), b"PROXY TCP6 ::ffff:c0a8:1 ::1 56324 2\r\n"),
        (("::1", 2), HERE, b"PROXY TCP6 ::1 ::ffff:c0a8:b 2 443\r\n"),
        (("fe80::1%eth0", 2), ("fe80::2", 3), b"PROXY TCP6 fe80::1 fe80::2 2 3\r\n"),
        (None, HERE, b"PROXY UNKNOWN\r\n"),
        (CLIENT, None, b"PROXY UNKNOWN\r\n"),
        (None, None, b"PROXY UNKNOWN\r\n"),
    ],
)
def test_version_1_is_a_line(source: Address | None, destination: Address | None, line: bytes) -> None:
    assert header_v1(source, destination) == line


def test_version_2_is_binary() -> None:
    assert header_v2(CLIENT, HERE) == SIGNATURE + bytes.fromhex("2111000c c0a80001 c0a8000b dc04 01bb")
    assert header_v2(("::1", 1), ("::2", 2)) == SIGNATURE + bytes.fromhex(
        "21210024" + "0" * 31 + "1" + "0" * 31 + "2" + "00010002"
    )


def test_tlvs_follow_the_addresses_in_their_order() -> None:
    data = header_v2(CLIENT, HERE, ((0xE1, b"ab"), (2, b"")))
    assert data[15] == 12 + 5 + 3
    assert data[28:] == b"\xe1\0\2ab\2\0\0"


@pytest.mark.parametrize(("source", "destination"), [(None, None), (CLIENT, None), (None, HERE)])
def test_version_2_without_addresses_is_local_and_empty(source: Address | None, destination: Address | None) -> None:
    assert header_v2(source, destination, ((0xE1, b"ab"),), checksum=True) == SIGNATURE + b"\x20\0\0\0"


def test_no_address_and_no_room_are_errors() -> None:
    for write in (header_v1, header_v2):
        with pytest.raises(ValueError):
            write(("unix", 0), HERE)
    with pytest.raises(ValueError, match="at most 65535"):
        header_v2(CLIENT, HERE, ((4, bytes(40_000)), (4, bytes(40_000))))


def test_a_client_is_told_of_by_tlvs() -> None:
    assert client_tlvs() == ()
    assert client_tlvs("a.example", "h\xff", b"i" * 200) == ((1, b"h\xff"), (2, b"a.example"), (5, b"i" * 128))


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_is_that_of_the_published_examples(data: bytes, value: int) -> None:
    assert crc32c(data) == value
