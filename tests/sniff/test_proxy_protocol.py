"""Reading PROXY headers: those of the specification, cut and torn ones, and lies."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from proxyprotocol.detect import ProxyProtocolDetect

from wsrouter.errors import SniffError
from wsrouter.sniff.proxy_protocol import MAX_V1, MAX_V2, Header, read_header
from wsrouter.wire.proxy_header import CRC32C, V2_SIGNATURE, Address, Tlv, crc32c, header_v1, header_v2

NOTHING = Header()
V4 = bytes((192, 168, 0, 1, 192, 168, 0, 11)) + struct.pack("!HH", 56324, 443)
V4_READ = Header(("192.168.0.1", 56324), ("192.168.0.11", 443))
V6 = IPv6Address("2001:db8::1").packed + IPv6Address("2001:db8::2").packed + struct.pack("!HH", 1, 65535)
V6_READ = Header(("2001:db8::1", 1), ("2001:db8::2", 65535))


def v2(command: int, kind: int, body: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return V2_SIGNATURE + bytes((command, kind)) + size.to_bytes(2, "big") + body


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


GOOD = [
    # Version 1 (section 2.1)
    (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", V4_READ),
    (
        b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n",
        Header(("255.255.255.255", 65535), ("0.0.0.0", 0)),
    ),
    (b"PROXY TCP6 2001:db8::1 2001:0DB8:0:0:0:0:0:2 1 65535\r\n", V6_READ),
    (
        b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n",
        Header((":".join(["ffff"] * 8), 65535), (":".join(["ffff"] * 8), 65535)),
    ),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Header(("192.0.2.1", 1), ("::1", 2))),
    (b"PROXY TCP6 ::ffff:c000:201 :: 1 2\r\n", Header(("192.0.2.1", 1), ("::", 2))),
    (b"PROXY UNKNOWN\r\n", NOTHING),
    (b"PROXY UNKNOWN \r\n", NOTHING),
    (b"PROXY UNKNOWN what \0ever \xff\r\n", NOTHING),
    (b"PROXY UNKNOWN " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n", NOTHING),
    # Version 2 (section 2.2)
    (v2(0x21, 0x11, V4), V4_READ),
    (v2(0x21, 0x21, V6), V6_READ),
    (v2(0x21, 0x12, V4), V4_READ),
    (v2(0x21, 0x22, V6), V6_READ),
    (
        v2(0x21, 0x21, IPv6Address("::ffff:192.0.2.1").packed + IPv6Address("::1").packed + bytes(4)),
        Header(("192.0.2.1", 0), ("::1", 0)),
    ),
    (v2(0x20, 0x00), NOTHING),
    (v2(0x20, 0x11, V4), NOTHING),
    (v2(0x20, 0xFF, b"garbage"), NOTHING),
    (v2(0x21, 0x00), NOTHING),
    (v2(0x21, 0x00, b"garbage"), NOTHING),
    (v2(0x21, 0x01, V4), NOTHING),
    (v2(0x21, 0x10, V4), NOTHING),
    (v2(0x21, 0x20, V6), NOTHING),
    (v2(0x21, 0x31, bytes(216)), NOTHING),
    (v2(0x21, 0x32, b"\xff" * 216), NOTHING),
    (v2(0x21, 0x30, bytes(216) + tlv(0xE0, b"x")), Header(tlvs=((0xE0, b"x"),))),
    (
        v2(0x21, 0x11, V4 + tlv(2, b"a.example") + tlv(4, b"") + tlv(0xE0, b"1") + tlv(0xE0, b"2")),
        Header(V4_READ.source, V4_READ.destination, ((2, b"a.example"), (4, b""), (0xE0, b"1"), (0xE0, b"2"))),
    ),
    (v2(0x21, 0x11, V4 + tlv(5, b"u" * 128)), Header(V4_READ.source, V4_READ.destination, ((5, b"u" * 128),))),
]

BAD = [
    b"G",
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"proxy ",
    b"PROXY\t",
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXY  TCP4 1.2.3.4 1.2.3.5 1 2\r\n",
    b"PROXY TCP4 1.2.3.4  1.2.3.5 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2 \r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2 3\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 1\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5\r\n",
    b"PROXY TCP4 \r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP5 1.2.3.4 1.2.3.5 1 2\r\n",
    b"PROXY tcp4 1.2.3.4 1.2.3.5 1 2\r\n",
    b"PROXY UDP4 1.2.3.4 1.2.3.5 1 2\r\n",
    b"PROXY unknown\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY TCP4 999.2.3.4 1.2.3.5 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.256 1 2\r\n",
    b"PROXY TCP4 1.2.3 1.2.3.5 1 2\r\n",
    b"PROXY TCP4 01.2.3.4 1.2.3.5 1 2\r\n",
    b"PROXY TCP4 1.2.3.4.5 1.2.3.5 1 2\r\n",
    b"PROXY TCP4 ::1 ::2 1 2\r\n",
    b"PROXY TCP6 1.2.3.4 1.2.3.5 1 2\r\n",
    b"PROXY TCP6 ::1 1.2.3.5 1 2\r\n",
    b"PROXY TCP6 ::1::2 ::2 1 2\r\n",
    b"PROXY TCP6 1:2:3:4:5:6:7 ::2 1 2\r\n",
    b"PROXY TCP6 00001::1 ::2 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
    b"PROXY TCP6 [::1] ::2 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 65536 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 1 99999\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 100000 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 01 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 00 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 +1 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 -1 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 1_0 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 1 \r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r ",
    b"PROXY TCP4 1.2.3.4\n1.2.3.5 1 2\r\n",
    b"PROXY UNKNOWN a\nb\r\n",
    b"PROXY UNKNOWN a\rb\r\n",
    b"PROXY UNKNOWN " + b"x" * (MAX_V1 - 14),
    b"PROXY UNKNOWN " + b"x" * (MAX_V1 - 15) + b"\r\n",
    b"\r\n\r\n\0\r\nQUIT\r",
    b"\r\n\r\nG",
    v2(0x11, 0x11, V4),
    v2(0x31, 0x11, V4),
    v2(0x22, 0x11, V4),
    v2(0x2F, 0x11, V4),
    v2(0x21, 0x41, V4),
    v2(0x21, 0xF0),
    v2(0x21, 0x13, V4),
    v2(0x21, 0x1F, V4),
    v2(0x21, 0x11, V4[:11]),
    v2(0x21, 0x11),
    v2(0x21, 0x21, V6[:35]),
    v2(0x21, 0x20, V6[:35]),
    v2(0x21, 0x31, bytes(215)),
    v2(0x21, 0x11, V4 + b"\x02"),
    v2(0x21, 0x11, V4 + b"\x02\0"),
    v2(0x21, 0x11, V4 + b"\x02\0\x05abcd"),
    v2(0x21, 0x11, V4 + tlv(2, b"a") + b"\x02\xff\xff"),
    v2(0x21, 0x31, bytes(216) + b"\x02\0\x05abcd"),
    v2(0x21, 0x11, V4 + tlv(CRC32C, bytes(4))),
    v2(0x21, 0x11, V4 + tlv(CRC32C, bytes(3))),
    v2(0x21, 0x11, V4 + tlv(CRC32C, bytes(5))),
    v2(0x21, 0x11, V4 + tlv(5, b"u" * 129)),
    v2(0x21, 0x11, length=MAX_V2 - 16 + 1),
    v2(0x20, 0x00, length=0xFFFF),
]


@pytest.mark.parametrize(("data", "header"), GOOD, ids=range(len(GOOD)))
def test_a_header_is_read_whole_and_what_follows_is_left_alone(data: bytes, header: Header) -> None:
    assert read_header(data) == (header, len(data))
    assert read_header(bytearray(data + b"\r\nPROXY ")) == (header, len(data))


@pytest.mark.parametrize("data", [data for data, _ in GOOD], ids=range(len(GOOD)))
def test_a_header_cut_at_any_offset_asks_for_more(data: bytes) -> None:
    for cut in range(len(data)):
        assert read_header(data[:cut]) is None
        assert read_header(bytearray(data[:cut])) is None


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_what_the_specification_does_not_allow_is_refused(data: bytes) -> None:
    with pytest.raises(SniffError) as refused:
        read_header(data)
    assert refused.value.alert is None
    with pytest.raises(SniffError):
        read_header(data + b"more")


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b"PROXY TCP4 1.2.3.4\n", 19),
        (b"PROXY UNKNOWN \ra", 16),
        (v2(0x11, 0x11), 13),
        (v2(0x21, 0x44), 14),
        (v2(0x21, 0x11, length=11), 16),
        (v2(0x21, 0x11, length=5000), 16),
    ],
)
def test_a_lost_cause_is_refused_with_its_first_wrong_byte(data: bytes, at: int) -> None:
    assert read_header(data[: at - 1]) is None
    with pytest.raises(SniffError):
        read_header(data[:at])


def test_the_longest_headers_are_taken() -> None:
    line = b"PROXY UNKNOWN ".ljust(MAX_V1 - 2, b"x") + b"\r\n"
    assert read_header(line) == (NOTHING, MAX_V1)
    assert read_header(line[:-1]) is None
    binary = v2(0x21, 0x11, V4 + tlv(4, bytes(MAX_V2 - 16 - 12 - 3)))
    found = read_header(binary)
    assert found is not None
    assert found[1] == len(binary) == MAX_V2


def test_a_checksum_holds_wherever_it_stands_and_for_every_bit() -> None:
    body = V4 + tlv(2, b"a") + tlv(CRC32C, bytes(4)) + tlv(0xE0, b"b")
    unsigned = v2(0x21, 0x11, body)
    data = unsigned.replace(tlv(CRC32C, bytes(4)), tlv(CRC32C, crc32c(unsigned).to_bytes(4, "big")))
    found = read_header(data)
    assert found is not None
    assert found[0].tlvs[1][0] == CRC32C
    type_at = 16 + len(V4) + len(tlv(2, b"a"))  # of another type, it would be no checksum
    for at in {*range(16, len(data))} - {type_at}:
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(SniffError):
            read_header(changed)


def test_a_second_checksum_is_refused_though_the_first_is_right() -> None:
    data = bytearray(v2(0x21, 0x11, V4 + tlv(CRC32C, bytes(4)) + tlv(CRC32C, b"\1\2\3\4")))
    data[31:35] = crc32c(bytes(data)).to_bytes(4, "big")
    with pytest.raises(SniffError, match="second"):
        read_header(data)


# What the router writes, and what another library makes of it

IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(str)  # type: ignore[union-attr]
PORTS = st.integers(0, 65535)
KINDS = st.integers(0, 255).filter(lambda kind: kind not in (CRC32C, 5))
TLVS = st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=5)


def as_ipv6(ip: str) -> str:
    address = ip_address(ip)
    return f"::ffff:{ip}" if isinstance(address, IPv4Address) else ip


def other_reads(data: bytes) -> tuple[Address, Address]:
    result = ProxyProtocolDetect().unpack(data)
    (source, port), (destination, port_to) = result.source, result.dest
    return (str(source), port), (str(destination), port_to)


@given(st.one_of(st.tuples(IPV4, IPV4), st.tuples(IPV6, IPV6)), PORTS, PORTS, TLVS, st.booleans())
def test_what_the_router_writes_it_reads_and_so_does_another(
    ips: tuple[str, str], port: int, port_to: int, tlvs: list[Tlv], checksum: bool
) -> None:
    source, destination = (ips[0], port), (ips[1], port_to)
    line = header_v1(source, destination)
    assert read_header(line) == (Header(source, destination), len(line))
    binary = header_v2(source, destination, tlvs, checksum=checksum)
    found = read_header(binary)
    assert found is not None
    assert found[0].tlvs[: len(tlvs)] == tuple(tlvs)
    assert len(found[0].tlvs) == len(tlvs) + checksum
    assert (found[0].source, found[0].destination, found[1]) == (source, destination, len(binary))
    assert other_reads(line) == other_reads(binary) == (source, destination)


@given(st.one_of(st.tuples(IPV4, IPV6), st.tuples(IPV6, IPV4)), PORTS, PORTS)
def test_a_pair_of_both_families_is_written_as_ipv6_and_read_as_it_was(
    ips: tuple[str, str], port: int, port_to: int
) -> None:
    source, destination = (ips[0], port), (ips[1], port_to)
    for data in (header_v1(source, destination), header_v2(source, destination)):
        assert read_header(data) == (Header(source, destination), len(data))
        read = other_reads(data)
        assert [IPv6Address(ip) for ip, _ in read] == [IPv6Address(as_ipv6(ip)) for ip in ips]


@given(
    st.one_of(
        st.binary(max_size=130),
        st.binary(max_size=120).map(lambda raw: b"PROXY " + raw),
        st.binary(max_size=260).map(lambda raw: V2_SIGNATURE + raw),
        st.tuples(st.sampled_from((0x20, 0x21)), st.integers(0, 0x3F), st.binary(max_size=260)).map(lambda v: v2(*v)),
        st.text("PROXYTCUNKW46 0123456789.:abcdef\r\n", max_size=120).map(lambda text: b"PROXY TCP" + text.encode()),
    ),
    st.binary(max_size=3),
)
@example(b"", b"")
def test_whatever_comes_gives_a_header_or_a_sniff_error_and_more_bytes_never_change_it(
    data: bytes, more: bytes
) -> None:
    try:
        found = read_header(data)
    except SniffError:
        with pytest.raises(SniffError):
            read_header(data + more)
        return
    if found is not None:
        assert 15 <= found[1] <= len(data)
        assert read_header(data + more) == found
        assert read_header(data[: found[1] - 1]) is None


@given(st.sampled_from([data for data, header in GOOD if header.source]), st.integers(0, 200), st.integers(0, 255))
def test_what_both_take_is_read_as_the_other_reads_it(data: bytes, at: int, value: int) -> None:
    changed = bytearray(data)
    changed[at % len(data)] = value
    try:
        found = read_header(changed)
    except SniffError:
        return
    if found is None or found[0].source is None or found[0].destination is None:
        return
    theirs = other_reads(bytes(changed[: found[1]]))
    ours = (found[0].source, found[0].destination)
    assert [(IPv6Address(as_ipv6(ip)), port) for ip, port in ours] == [
        (IPv6Address(as_ipv6(ip)), port) for ip, port in theirs
    ]
