"""The PROXY protocol's header, as the router writes it to a backend (HAProxy's proxy-protocol.txt, section 2).

It says who is at the other end of a connection, ahead of all else on it. ``sniff.proxy_protocol`` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

#: An address as text, and a port.
Address: TypeAlias = tuple[str, int]
#: The type and the value of one further fact in a header of version 2.
Tlv: TypeAlias = tuple[int, bytes]

V1_SIGNATURE: Final = b"PROXY "
V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
#: The bytes of a header of version 2 ahead of its addresses.
V2_FIXED: Final = 16

# Types of TLVs (section 2.2).
ALPN: Final = 0x01
AUTHORITY: Final = 0x02
CRC32C: Final = 0x03
NOOP: Final = 0x04
UNIQUE_ID: Final = 0x05
#: The longest unique id (section 2.2.5).
MAX_UNIQUE_ID: Final = 128

_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPEC: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21


def header_v1(source: Address | None, destination: Address | None) -> bytes:
    """A header of version 1: one line of text.

    ``source`` is the client, ``destination`` what it connected to. If either is None (a unix socket), the line says
    UNKNOWN and the backend uses the connection's own addresses. An IPv4 address beside an IPv6 one is
    written as a mapped one. Raises ValueError for what is no address.
    """
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    first, last = _one_family(source[0], destination[0])
    return b"PROXY TCP%d %b %b %d %d\r\n" % (first.version, _text(first), _text(last), source[1], destination[1])


def header_v2(
    source: Address | None, destination: Address | None, tlvs: Sequence[Tlv] = (), *, checksum: bool = False
) -> bytes:
    """A header of version 2: binary, with ``tlvs`` in their order, and with a CRC32C as the last one if asked for.

    If ``source`` or ``destination`` is None, the header says LOCAL and nothing else: receivers must take that, and
    use the connection's own addresses (they may refuse PROXY with an unspecified family). Health probes say the same.
    Raises ValueError for what is no address and for more than 65,535 bytes behind the fixed part.
    """
    if source is None or destination is None:
        return V2_SIGNATURE + bytes((_LOCAL, _UNSPEC, 0, 0))
    first, last = _one_family(source[0], destination[0])
    body = b"%b%b%b%b" % (first.packed, last.packed, source[1].to_bytes(2, "big"), destination[1].to_bytes(2, "big"))
    if checksum:
        tlvs = (*tlvs, (CRC32C, bytes(4)))
    for kind, value in tlvs:
        body += b"%c%b%b" % (kind, len(value).to_bytes(2, "big"), value)
    size = len(body)
    if size > 0xFFFF:
        raise ValueError(f"a PROXY header with {size} bytes of addresses and facts, at most 65535 are possible")
    family = _TCP4 if first.version == 4 else _TCP6
    header = V2_SIGNATURE + bytes((_PROXY, family)) + size.to_bytes(2, "big") + body
    return header[:-4] + crc32c(header).to_bytes(4, "big") if checksum else header


def client_tlvs(sni: str | None = None, alpn: str | None = None, unique_id: bytes = b"") -> tuple[Tlv, ...]:
    """What else a header of version 2 may say of a client; what is None or empty is left out.

    ``sni`` is the server name of its ClientHello, ``alpn`` the protocol that TLS agreed on (latin-1, as
    ``sniff.verdict.Tls`` has it), ``unique_id`` names the connection in logs, in 128 bytes at most.
    """
    tlvs: list[Tlv] = []
    if alpn:
        tlvs.append((ALPN, alpn.encode("latin-1")))
    if sni:
        tlvs.append((AUTHORITY, sni.encode()))
    if unique_id:
        tlvs.append((UNIQUE_ID, unique_id[:MAX_UNIQUE_ID]))
    return tuple(tlvs)


def crc32c(data: bytes) -> int:
    """The CRC32c of RFC 4960 appendix B; headers are short and few carry it, so Python is fast enough."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _crc_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(map(_crc_entry, range(256)))


def _one_family(source: str, destination: str) -> tuple[IPv4Address, IPv4Address] | tuple[IPv6Address, IPv6Address]:
    first, last = ip_address(source), ip_address(destination)
    if isinstance(first, IPv4Address) and isinstance(last, IPv4Address):
        return first, last
    return _as_ipv6(first), _as_ipv6(last)


def _as_ipv6(address: IPv4Address | IPv6Address) -> IPv6Address:
    # The number alone: a zone (RFC 4007 11) means nothing to another host.
    return IPv6Address(0xFFFF << 32 | int(address) if isinstance(address, IPv4Address) else int(address))


def _text(address: IPv4Address | IPv6Address) -> bytes:
    """As the protocol wants it: IPv6 in hexadecimal digits alone, so mapped addresses too."""
    if isinstance(address, IPv6Address) and (mapped := address.ipv4_mapped) is not None:
        return b"::ffff:%x:%x" % (int(mapped) >> 16, int(mapped) & 0xFFFF)
    return str(address).encode()
