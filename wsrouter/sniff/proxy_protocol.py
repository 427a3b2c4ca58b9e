"""The PROXY protocol's header, versions 1 and 2, read from a connection's first bytes (HAProxy's proxy-protocol.txt).

Who sends it is trusted, but what it says decides who a client is: limits, rules and logs go by it. So the header is
read by the letter, and what the letter does not allow ends the connection: numbers with leading zeros or
signs, lengths that do not add up, unknown commands and families. What the protocol wants ignored is ignored.

The reader is our own. Of PyPI's ``proxy-protocol`` nothing but the unpacking of integers would have remained behind
these checks: it takes ``+80``, ``1_0`` and IPv6 zones, takes facts that overrun the header or come twice, takes unknown
families, reads on behind the announced length, and verifies checksums only beside another package. The tests
compare the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from wsrouter.errors import SniffError
from wsrouter.policy.networks import IPV6, canonical, text_of
from wsrouter.wire.proxy_header import (
    CRC32C,
    MAX_UNIQUE_ID,
    UNIQUE_ID,
    V1_SIGNATURE,
    V2_FIXED,
    V2_SIGNATURE,
    Address,
    Tlv,
    crc32c,
)

#: The longest line of version 1, its CRLF included (section 2.1).
MAX_V1: Final = 107
#: The longest header of version 2 that is taken, in bytes: the protocol allows 64 KiB, real ones have some hundred.
MAX_V2: Final = V2_FIXED + 4 * 1024

_V6: Final = rb"([0-9A-Fa-f]*:[0-9A-Fa-f:.]+)"
_LINE: Final = re.compile(
    rb"PROXY TCP(?:4 ([0-9.]+) ([0-9.]+)|6 " + _V6 + rb" " + _V6 + rb")"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.DOTALL)

# Version 2: the highest four bits of a byte, and the lowest.
_VERSION: Final = 0x20
_LOCAL, _PROXY = 0, 1
_INET, _INET6, _UNIX = 1, 2, 3
#: How many bytes the addresses of a family take; of an unspecified one nothing is known.
_ADDRESSES: Final = {_INET: 12, _INET6: 36, _UNIX: 216}


@dataclass(frozen=True, slots=True)
class Header:
    """What a PROXY header says of a connection."""

    #: The client and what it connected to, in canonical form; None: the addresses of the socket itself stand.
    source: Address | None = None
    destination: Address | None = None
    #: Further facts (version 2), in the order they came, repeated ones too.
    tlvs: tuple[Tlv, ...] = ()


_NOTHING: Final = Header()


def read_header(data: bytes | bytearray) -> tuple[Header, int] | None:
    """Read the header that ``data``, the connection's bytes from the first on, begins with.

    Returns the header and its length in bytes; None while more bytes are needed. What follows the header is not
    looked at. Raises SniffError, without an alert to send, for what cannot become a header, as soon as that is
    sure; such a connection is to be closed without a word.

    LOCAL, UNKNOWN, unspecified families and unix sockets leave the socket's own address in place. A client that came
    by datagrams (HTTP/3, at the proxy in front) is a client like any other: its address is taken.
    """
    if data.startswith(V1_SIGNATURE):
        return _read_v1(data)
    if data.startswith(V2_SIGNATURE):
        return _read_v2(data)
    if V1_SIGNATURE.startswith(data) or V2_SIGNATURE.startswith(data):
        return None
    raise SniffError("no PROXY header where one is required")


def _read_v1(data: bytes | bytearray) -> tuple[Header, int] | None:
    start = bytes(data[:MAX_V1])
    line, found, _ = start.partition(b"\r\n")
    if b"\n" in line or b"\r" in (line if found else line[:-1]):
        raise SniffError("a PROXY line with a line end that is not CRLF")
    if not found:
        if len(data) >= MAX_V1:
            raise SniffError(f"a PROXY line of more than {MAX_V1} bytes")
        return None
    size = len(line) + 2
    if _UNKNOWN.fullmatch(line):
        return _NOTHING, size
    fields = _LINE.fullmatch(line)
    if fields is None:
        raise SniffError("a malformed PROXY line")
    four, four_to, six, six_to, port, port_to = fields.groups()
    return Header(_address(four or six, port), _address(four_to or six_to, port_to)), size


def _address(ip: bytes, port: bytes) -> Address:
    text = canonical(ip.decode("ascii"))
    if text is None:
        raise SniffError("a PROXY line with an address that is none")
    number = int(port)
    if number > 0xFFFF:
        raise SniffError("a PROXY line with a port over 65535")
    return text, number


def _read_v2(data: bytes | bytearray) -> tuple[Header, int] | None:
    have = len(data)
    command = data[12] ^ _VERSION if have > 12 else _PROXY
    if command not in (_LOCAL, _PROXY):
        raise SniffError(f"a PROXY header with version and command 0x{data[12]:02x}, expected 0x20 or 0x21")
    kind = data[13] if have > 13 else 0
    family, transport = kind >> 4, kind & 15
    # LOCAL is there for what has no addresses: "including the family which is ignored".
    if command == _PROXY and (family > _UNIX or transport > 2):
        raise SniffError(f"a PROXY header with the unknown family and transport 0x{kind:02x}")
    if have < V2_FIXED:
        return None
    size = V2_FIXED + (data[14] << 8 | data[15])
    if size > MAX_V2:
        raise SniffError(f"a PROXY header of {size} bytes, at most {MAX_V2} are taken")
    addresses = _ADDRESSES.get(family, 0)
    if command == _PROXY and size < V2_FIXED + addresses:
        raise SniffError(f"a PROXY header of {size} bytes, {V2_FIXED + addresses} are needed for its addresses")
    if have < size:
        return None
    if command == _LOCAL or not addresses:
        return _NOTHING, size
    header = bytes(data[:size])
    tlvs = _read_tlvs(header, V2_FIXED + addresses)
    if family == _UNIX or not transport:
        return Header(tlvs=tlvs), size
    source, destination = _read_addresses(header, 4 if family == _INET else 16)
    return Header(source, destination, tlvs), size


def _read_addresses(header: bytes, width: int) -> tuple[Address, Address]:
    """Two addresses of ``width`` bytes each, then two ports (section 2.2)."""
    middle, ports = V2_FIXED + width, V2_FIXED + 2 * width
    return (
        (_packed_text(header[V2_FIXED:middle]), header[ports] << 8 | header[ports + 1]),
        (_packed_text(header[middle:ports]), header[ports + 2] << 8 | header[ports + 3]),
    )


def _packed_text(packed: bytes) -> str:
    number = int.from_bytes(packed, "big")
    if len(packed) == 4 or number >> 32 == 0xFFFF:
        return text_of(number & 0xFFFFFFFF)
    return text_of(IPV6 | number)


def _read_tlvs(header: bytes, at: int) -> tuple[Tlv, ...]:
    """The facts behind the addresses; a checksum among them is verified (section 2.2.3)."""
    tlvs: list[Tlv] = []
    checked = False
    end = len(header)
    while at < end:
        start = at + 3
        if start > end:
            raise SniffError("a PROXY header that ends within a TLV's own header")
        kind = header[at]
        at = start + (header[at + 1] << 8 | header[at + 2])
        if at > end:
            raise SniffError("a PROXY header with a TLV that overruns it")
        value = header[start:at]
        if kind == CRC32C:
            if checked or len(value) != 4:
                raise SniffError("a PROXY header with a malformed or second checksum")
            if int.from_bytes(value, "big") != crc32c(header[:start] + bytes(4) + header[at:]):
                raise SniffError("a PROXY header with a wrong checksum")
            checked = True
        elif kind == UNIQUE_ID and len(value) > MAX_UNIQUE_ID:
            raise SniffError(
                f"a PROXY header with a unique id of {len(value)} bytes, at most {MAX_UNIQUE_ID} are allowed"
            )
        tlvs.append((kind, value))
    return tuple(tlvs)
